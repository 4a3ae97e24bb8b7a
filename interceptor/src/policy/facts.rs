//! What a rule can see of one request, and of who makes it.
//!
//! These are plain values: the analysis of SQL fills [`SqlFacts`], the pipeline fills
//! [`Subject`], rules only read them. Whatever could not be determined must say so here
//! ([`SqlFacts::unseen`], an empty schema, the column `*`), because a fact that is silently
//! missing would be a fact no rule can deny.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config;
use crate::identity::Claims;

pub use super::ssh::facts::{SshClass, SshFacts};

/// What kind of statement a request is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum StatementClass {
    /// `SELECT`, `VALUES`, `TABLE`.
    Select,
    /// `INSERT`.
    Insert,
    /// `UPDATE`.
    Update,
    /// `DELETE`.
    Delete,
    /// `MERGE`.
    Merge,
    /// Whatever creates, alters or drops: objects, roles, rights, `TRUNCATE`, `COMMENT`.
    Ddl,
    /// `COPY` in either direction.
    Copy,
    /// `CALL`.
    Call,
    /// `DO`.
    Do,
    /// Everything that is none of the others: `EXPLAIN`, `SHOW`, `VACUUM`, `LOCK`, `LISTEN`.
    Utility,
    /// `BEGIN`, `COMMIT`, `SAVEPOINT` and the like.
    Transaction,
    /// `SET`, `RESET`, `set_config`.
    Set,
    /// The FunctionCall message of the wire protocol.
    Fastpath,
    /// A command of the replication protocol.
    Replication,
    /// Not known: allowed only by a rule that names it.
    #[default]
    Unknown,
}

impl StatementClass {
    /// Every class.
    pub const ALL: [Self; 15] = [
        Self::Select,
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Merge,
        Self::Ddl,
        Self::Copy,
        Self::Call,
        Self::Do,
        Self::Utility,
        Self::Transaction,
        Self::Set,
        Self::Fastpath,
        Self::Replication,
        Self::Unknown,
    ];

    /// The name rules and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Merge => "merge",
            Self::Ddl => "ddl",
            Self::Copy => "copy",
            Self::Call => "call",
            Self::Do => "do",
            Self::Utility => "utility",
            Self::Transaction => "transaction",
            Self::Set => "set",
            Self::Fastpath => "fastpath",
            Self::Replication => "replication",
            Self::Unknown => "unknown",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }

    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for StatementClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a table, view or function, as the catalog spells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Name {
    /// Its schema; empty when it could not be resolved, which a rule that allows never accepts
    /// in place of a schema it names and a rule that denies always does.
    pub schema: String,
    /// Its own name.
    pub name: String,
}

impl Name {
    /// A name from its parts.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.schema.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}.{}", self.schema, self.name)
        }
    }
}

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct ColumnName {
    /// The table.
    pub table: Name,
    /// The column, or `*` where it is not known which: a whole row, a `*` without catalog.
    pub column: String,
}

impl ColumnName {
    /// A column from its parts.
    pub fn new(table: Name, column: impl Into<String>) -> Self {
        Self { table, column: column.into() }
    }
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.table, self.column)
    }
}

/// What is known of one SQL statement.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqlFacts {
    /// What it is.
    pub class: StatementClass,
    /// What it is besides: a data-modifying `WITH`, the statement inside `EXPLAIN ANALYZE`,
    /// `PREPARE` or `COPY (…)`, the `UPDATE` of `INSERT … ON CONFLICT DO UPDATE`.
    pub also: Vec<StatementClass>,
    /// The command in lower case as its command tag has it, and that of every statement inside:
    /// `drop table`, `alter role`, `explain`, `show`, `vacuum`. `COPY` says its two ends:
    /// `copy to stdout`, `copy from stdin`, `copy to file`, `copy from file`,
    /// `copy to program`, `copy from program`.
    pub commands: Vec<String>,
    /// The configuration parameters it sets or resets, lower case (`all` for `RESET ALL`), be it
    /// by `SET` or by `set_config`.
    pub settings: Vec<String>,
    /// Tables and views it reads.
    pub tables_read: Vec<Name>,
    /// Tables and views it writes, creates, alters or drops.
    pub tables_written: Vec<Name>,
    /// Columns it reads.
    pub columns_read: Vec<ColumnName>,
    /// Columns it writes.
    pub columns_written: Vec<ColumnName>,
    /// Functions and procedures it calls.
    pub functions: Vec<Name>,
    /// An `UPDATE` or `DELETE` without `WHERE` is in it.
    pub without_where: bool,
    /// What about it cannot be seen, in words for a human.
    pub unseen: Option<String>,
    /// Roles it assumes: `SET ROLE`, `SET SESSION AUTHORIZATION`, `set_config('role', …)`.
    pub roles_assumed: Vec<String>,
    /// Its text.
    pub text: Arc<str>,
}

impl SqlFacts {
    /// All its classes, the main one first.
    pub fn classes(&self) -> impl Iterator<Item = StatementClass> + '_ {
        std::iter::once(self.class).chain(self.also.iter().copied())
    }

    /// Bits of all its classes; whatever changes a parameter is a `SET` too.
    pub(super) fn class_bits(&self) -> u32 {
        let set = if self.settings.is_empty() { 0 } else { StatementClass::Set.bit() };
        self.classes().fold(set, |bits, c| bits | c.bit())
    }
}

/// Who asks, for whom, and where.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The token's claims; `None` where nothing was proven (passthrough, observe).
    pub claims: Option<Arc<Claims>>,
    /// The registered agent; `None` where nothing was proven.
    pub agent: Option<Arc<config::Agent>>,
    /// The service's name.
    pub service: String,
    /// The database; empty for SSH.
    pub database: String,
    /// The database role, or the OS user.
    pub role: String,
    /// Where the connection comes from.
    pub source: IpAddr,
    /// What the client says it is; never matched, since it can say anything.
    pub client: Option<String>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Ask<'a> {
    /// The connection itself.
    Connect,
    /// One SQL statement.
    Sql(&'a SqlFacts),
    /// One SSH request.
    Ssh(&'a SshFacts),
}
