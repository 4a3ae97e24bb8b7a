//! stub
pub mod sql;
pub mod facts { pub use super::{SqlFacts, Name, ColumnName, StatementClass}; }
use std::sync::Arc; use std::collections::BTreeMap;
#[derive(Debug,Clone,Copy,PartialEq,Eq,PartialOrd,Ord,serde::Serialize)] pub enum Effect{Allow,Hold,Deny}
#[derive(Debug,Clone,Copy,PartialEq,Eq,Default,serde::Serialize)] pub enum StatementClass{#[default]Unknown,Call}
impl StatementClass{pub fn as_str(self)->&'static str{"x"}}
#[derive(Debug,Clone,PartialEq,Eq,serde::Serialize)] pub struct Name{pub schema:String,pub name:String}
#[derive(Debug,Clone,PartialEq,Eq,serde::Serialize)] pub struct ColumnName{pub table:Name,pub column:String}
#[derive(Debug,Clone,serde::Serialize)] pub struct SqlFacts{pub class:StatementClass,pub unseen:Option<String>,#[serde(skip)]pub text:Arc<str>, pub also:Vec<StatementClass>}
impl Default for SqlFacts{fn default()->Self{Self{class:StatementClass::Unknown,unseen:None,text:Arc::from(""),also:vec![]}}}
#[derive(Debug,Clone)] pub struct Subject{pub claims:Option<Arc<crate::identity::Claims>>,pub agent:Option<Arc<crate::config::Agent>>,pub service:String,pub database:String,pub role:String,pub source:std::net::IpAddr,pub client:Option<String>}
#[derive(Debug)] pub enum Ask<'a>{Connect,Sql(&'a SqlFacts)}
#[derive(Debug,Clone)] pub struct RuleHit{pub rule:String,pub effect:Option<Effect>}
#[derive(Debug,Clone,Default)] pub struct Limits{pub rows:Option<u64>,pub bytes:Option<u64>,pub seconds:Option<u64>}
#[derive(Debug,Clone)] pub struct HoldTerms{pub timeout:Option<std::time::Duration>}
#[derive(Debug,Clone)] pub struct MaskRule{pub kinds:Vec<crate::mask::Kind>,pub method:crate::mask::Method}
#[derive(Debug,Clone)] pub struct Verdict{pub effect:Effect,pub rules:Vec<RuleHit>,pub masks:Vec<Arc<MaskRule>>,pub message:Option<String>,pub limits:Limits,pub hold:Option<HoldTerms>,pub cacheable:bool}
impl Verdict{pub fn combine(self,_o:Verdict)->Verdict{self} pub fn allow()->Self{Verdict{effect:Effect::Allow,rules:vec![],masks:vec![],message:None,limits:Limits::default(),hold:None,cacheable:true}}}
#[derive(Debug)] pub struct PolicySet; #[derive(Debug,thiserror::Error)]#[error("x")] pub struct PolicyErrors;
impl PolicySet{pub fn load(_d:&std::path::Path)->Result<Self,PolicyErrors>{Ok(Self)} pub fn version(&self)->&str{""} pub fn judge(&self,_s:&Subject,_a:&Ask<'_>,_n:jiff::Timestamp)->Verdict{Verdict::allow()} pub fn mask_rules(&self,_s:&Subject,_n:jiff::Timestamp)->Vec<Arc<MaskRule>>{vec![]} pub fn names_tables(&self)->bool{false} pub fn len(&self)->usize{0}}
type _X=BTreeMap<u8,u8>;
