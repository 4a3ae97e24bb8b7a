//! Everything a statement mentions, found by visiting every field of every node.
//!
//! The visitor knows no node by heart: it follows the structures the syntax tree is made of,
//! through their serialisation, so that a node nobody thought of is still seen. The structured
//! walk must account for every column, relation and sub-statement counted here; what it missed
//! is a refusal. This is also where the depth limit is held.

use std::collections::BTreeSet;

use serde::Serialize;
use serde::ser::{self, Impossible};

use super::parse::MAX_DEPTH;
use super::types::SqlError;

/// What one statement mentions.
#[derive(Debug, Default, Clone)]
pub struct Mentions {
    /// Names of functions called, as written, parts separate.
    pub functions: Vec<Vec<String>>,
    /// Names of operators, as written.
    pub operators: Vec<Vec<String>>,
    /// Names of types, as written.
    pub types: Vec<Vec<String>>,
    /// Relations, as written: database, schema, name.
    pub relations: Vec<[String; 3]>,
    /// Names in column references, fields and sampling methods.
    pub fields: BTreeSet<String>,
    /// Number of column references.
    pub columns: usize,
    /// Number of SELECT, INSERT, UPDATE, DELETE and MERGE nodes.
    pub queries: usize,
    /// Start of every constant.
    pub constants: Vec<i32>,
    /// Highest parameter number.
    pub max_param: u32,
    /// Kinds of nodes.
    pub nodes: BTreeSet<&'static str>,
    /// The comparison operators some construct uses without naming them.
    pub implied_comparison: bool,
    depth: usize,
}

/// Nodes of constructs that look like calls.
const SYNTAX_CALLS: [(&str, &str); 9] = [
    ("JsonObjectConstructor", "json_object"),
    ("JsonArrayConstructor", "json_array"),
    ("JsonArrayQueryConstructor", "json_array"),
    ("JsonParseExpr", "json"),
    ("JsonScalarExpr", "json_scalar"),
    ("JsonSerializeExpr", "json_serialize"),
    ("JsonObjectAgg", "json_objectagg"),
    ("JsonArrayAgg", "json_arrayagg"),
    ("MergeSupportFunc", "merge_action"),
];

/// Stops the visit.
#[derive(Debug)]
pub struct Stop;

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nested too deeply")
    }
}
impl std::error::Error for Stop {}
impl ser::Error for Stop {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Mentions {
    /// Visits a node with everything below it.
    pub fn of<T: Serialize>(node: &T) -> Result<Self, SqlError> {
        let mut mentions = Self::default();
        node.serialize(&mut mentions).map_err(|_| SqlError::TooDeep { limit: MAX_DEPTH })?;
        Ok(mentions)
    }

    fn enter(&mut self, name: &'static str) {
        match name {
            "ColumnRef" => self.columns += 1,
            "SelectStmt" | "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "MergeStmt" => {
                self.queries += 1;
            }
            "RangeVar" => self.relations.push(Default::default()),
            "CaseExpr" | "JoinExpr" | "SubLink" | "MinMaxExpr" => self.implied_comparison = true,
            _ => {}
        }
        // On servers older than the grammar these words are ordinary function names.
        if let Some((_, function)) = SYNTAX_CALLS.iter().find(|(node, _)| *node == name) {
            self.functions.push(vec![(*function).to_owned()]);
        }
        self.nodes.insert(name);
    }

    fn field<T: Serialize + ?Sized>(
        &mut self,
        of: &'static str,
        key: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        match (of, key) {
            ("FuncCall", "funcname") => self.functions.push(words(value)?),
            ("AExpr", "name") | ("SubLink", "oper_name") | ("SortBy", "use_op") => {
                let name = words(value)?;
                if name.last().is_some_and(|n| n.contains("BETWEEN")) {
                    self.implied_comparison = true;
                } else if !name.is_empty() {
                    self.operators.push(name);
                }
            }
            ("Constraint", "exclusions") => {
                if !words(value)?.is_empty() {
                    self.nodes.insert("exclusion constraint");
                }
            }
            ("ColumnRef", "fields")
            | ("AIndirection", "indirection")
            | ("RangeTableSample", "method") => {
                self.fields.extend(words(value)?);
                value.serialize(&mut *self)?;
            }
            ("TypeName", "names") => self.types.push(words(value)?),
            ("RangeVar", "catalogname") => self.relation_part(0, value)?,
            ("RangeVar", "schemaname") => self.relation_part(1, value)?,
            ("RangeVar", "relname") => self.relation_part(2, value)?,
            ("AConst", "location") => {
                if let Some(n) = number(value)?
                    && let Ok(n) = i32::try_from(n)
                {
                    self.constants.push(n);
                }
            }
            ("ParamRef", "number") => {
                if let Some(n) = number(value)? {
                    self.max_param = self.max_param.max(u32::try_from(n).unwrap_or(0));
                }
            }
            _ => value.serialize(&mut *self)?,
        }
        Ok(())
    }

    fn relation_part<T: Serialize + ?Sized>(&mut self, at: usize, value: &T) -> Result<(), Stop> {
        let word = words(value)?.pop().unwrap_or_default();
        if let Some(relation) = self.relations.last_mut() {
            relation[at] = word;
        }
        Ok(())
    }
}

/// A structure being visited.
pub struct Fields<'a> {
    mentions: &'a mut Mentions,
    name: &'static str,
}

impl Drop for Fields<'_> {
    fn drop(&mut self) {
        self.mentions.depth -= 1;
    }
}

impl ser::SerializeStruct for Fields<'_> {
    type Ok = ();
    type Error = Stop;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        self.mentions.field(self.name, key, value)
    }
    fn end(self) -> Result<(), Stop> {
        Ok(())
    }
}

/// A list being visited.
pub struct Items<'a>(&'a mut Mentions);

impl ser::SerializeSeq for Items<'_> {
    type Ok = ();
    type Error = Stop;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        value.serialize(&mut *self.0)
    }
    fn end(self) -> Result<(), Stop> {
        Ok(())
    }
}

macro_rules! ignore {
    ($($name:ident: $ty:ty),* $(,)?) => {
        $(fn $name(self, _: $ty) -> Result<(), Stop> { Ok(()) })*
    };
}

impl<'a> ser::Serializer for &'a mut Mentions {
    type Ok = ();
    type Error = Stop;
    type SerializeSeq = Items<'a>;
    type SerializeTuple = Impossible<(), Stop>;
    type SerializeTupleStruct = Impossible<(), Stop>;
    type SerializeTupleVariant = Impossible<(), Stop>;
    type SerializeMap = Impossible<(), Stop>;
    type SerializeStruct = Fields<'a>;
    type SerializeStructVariant = Impossible<(), Stop>;

    ignore!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32,
        serialize_u64: u64, serialize_f32: f32, serialize_f64: f64, serialize_char: char,
        serialize_str: &str, serialize_bytes: &[u8], serialize_unit_struct: &'static str);
    fn serialize_none(self) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_unit(self) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Items<'a>, Stop> {
        Ok(Items(self))
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Stop> {
        Err(Stop)
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Stop> {
        Err(Stop)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Stop> {
        Err(Stop)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Stop> {
        Err(Stop)
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Fields<'a>, Stop> {
        if self.depth >= 2 * MAX_DEPTH {
            return Err(Stop);
        }
        self.depth += 1;
        self.enter(name);
        Ok(Fields { mentions: self, name })
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Stop> {
        Err(Stop)
    }
}

/// All strings in a value: the parts of a name.
fn words<T: Serialize + ?Sized>(value: &T) -> Result<Vec<String>, Stop> {
    let mut out = Words::default();
    value.serialize(&mut out)?;
    Ok(out.0)
}

/// The number in a value.
fn number<T: Serialize + ?Sized>(value: &T) -> Result<Option<i64>, Stop> {
    let mut out = Words::default();
    value.serialize(&mut out)?;
    Ok(out.1)
}

/// Collects the strings and the last number of a small value.
#[derive(Default)]
struct Words(Vec<String>, Option<i64>, usize);

impl ser::SerializeSeq for &mut Words {
    type Ok = ();
    type Error = Stop;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stop> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Stop> {
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Words {
    type Ok = ();
    type Error = Stop;
    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Stop> {
        self.2 -= 1;
        Ok(())
    }
}

impl<'a> ser::Serializer for &'a mut Words {
    type Ok = ();
    type Error = Stop;
    type SerializeSeq = &'a mut Words;
    type SerializeTuple = Impossible<(), Stop>;
    type SerializeTupleStruct = Impossible<(), Stop>;
    type SerializeTupleVariant = Impossible<(), Stop>;
    type SerializeMap = Impossible<(), Stop>;
    type SerializeStruct = &'a mut Words;
    type SerializeStructVariant = Impossible<(), Stop>;

    ignore!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_u8: u8,
        serialize_u16: u16, serialize_u64: u64, serialize_f32: f32, serialize_f64: f64,
        serialize_char: char, serialize_bytes: &[u8], serialize_unit_struct: &'static str);
    fn serialize_i32(self, v: i32) -> Result<(), Stop> {
        self.1 = Some(v.into());
        Ok(())
    }
    fn serialize_i64(self, v: i64) -> Result<(), Stop> {
        self.1 = Some(v);
        Ok(())
    }
    fn serialize_u32(self, v: u32) -> Result<(), Stop> {
        self.1 = Some(v.into());
        Ok(())
    }
    fn serialize_str(self, v: &str) -> Result<(), Stop> {
        self.0.push(v.to_owned());
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_unit(self) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Stop> {
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Stop> {
        value.serialize(self)
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Self, Stop> {
        Ok(self)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Stop> {
        Err(Stop)
    }
    fn serialize_tuple_struct(
        self,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleStruct, Stop> {
        Err(Stop)
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Stop> {
        Err(Stop)
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Stop> {
        Err(Stop)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Stop> {
        self.2 += 1;
        if self.2 > 16 {
            return Err(Stop);
        }
        Ok(self)
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Stop> {
        Err(Stop)
    }
}
