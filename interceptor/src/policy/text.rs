//! Reading TOML with its places: every error names file, line and key, and an unknown key is
//! refused with the one that was probably meant.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong at one place of one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}{}: {}{message}", place(*line), key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
pub struct PolicyError {
    /// The file as it was named to the loader.
    pub file: String,
    /// One-based line; 0 when the file as a whole is meant.
    pub line: usize,
    /// The key, as a path: `rule "no-drop", not.tables`.
    pub key: Option<String>,
    /// What to change.
    pub message: String,
}

fn place(line: usize) -> String {
    if line == 0 { String::new() } else { format!(":{line}") }
}

/// Everything that is wrong with a set of policies; the set is not used.
#[derive(Debug, Clone, PartialEq, Eq, Default, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyErrors(pub Vec<PolicyError>);

impl From<PolicyError> for PolicyErrors {
    fn from(error: PolicyError) -> Self {
        Self(vec![error])
    }
}

/// One value of a file, with where it stands and how its key is called.
#[derive(Clone)]
pub(super) struct Node<'a> {
    file: &'a str,
    text: &'a str,
    key: Cow<'a, str>,
    value: &'a Spanned<DeValue<'a>>,
}

/// A result that knows where it went wrong.
pub(super) type Read<T> = Result<T, PolicyError>;

pub(super) fn fault(
    file: &str,
    text: &str,
    span: Option<Range<usize>>,
    key: Option<String>,
    message: impl Into<String>,
) -> PolicyError {
    let line = span.map_or(0, |s| {
        let upto = s.start.min(text.len());
        text.as_bytes()[..upto].iter().filter(|b| **b == b'\n').count() + 1
    });
    PolicyError { file: file.into(), line, key, message: message.into() }
}

/// Parses a whole file.
pub(super) fn parse<'a>(file: &str, text: &'a str) -> Read<Spanned<DeTable<'a>>> {
    DeTable::parse(text).map_err(|e| fault(file, text, e.span(), None, e.message()))
}

/// The entries of a table after its keys were checked.
pub(super) struct Fields<'a> {
    file: &'a str,
    text: &'a str,
    path: String,
    span: Range<usize>,
    table: &'a DeTable<'a>,
}

impl<'a> Fields<'a> {
    /// The top of a file.
    pub fn top(file: &'a str, text: &'a str, table: &'a Spanned<DeTable<'a>>) -> Self {
        Self { file, text, path: String::new(), span: 0..0, table: table.get_ref() }
    }

    /// Refuses keys that are not known.
    pub fn known(&self, allowed: &[&str]) -> Read<()> {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if allowed.contains(&name) {
                continue;
            }
            let near = allowed
                .iter()
                .map(|a| {
                    let elsewhere = a.bytes().next() != name.bytes().next();
                    (strsim::damerau_levenshtein(name, a), elsewhere, *a)
                })
                .min()
                .filter(|(distance, _, a)| *distance <= 1 + a.len() / 4);
            let hint = match near {
                Some((_, _, a)) => format!("unknown key; did you mean `{a}`?"),
                None => format!("unknown key; known are {}", allowed.join(", ")),
            };
            return Err(fault(
                self.file,
                self.text,
                Some(key.span()),
                Some(self.key_of(name)),
                hint,
            ));
        }
        Ok(())
    }

    /// How the table is called in errors from now on.
    pub fn rename(&mut self, path: impl Into<String>) {
        self.path = path.into();
    }

    fn key_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path if path.ends_with('"') => format!("{path}, {name}"),
            path => format!("{path}.{name}"),
        }
    }

    /// One entry.
    pub fn get(&self, name: &str) -> Option<Node<'a>> {
        let value = self.table.get(name)?;
        Some(self.node(name, value))
    }

    fn node(&self, name: &str, value: &'a Spanned<DeValue<'a>>) -> Node<'a> {
        Node { file: self.file, text: self.text, key: self.key_of(name).into(), value }
    }

    /// One entry that must be there.
    pub fn need(&self, name: &str) -> Read<Node<'a>> {
        self.get(name).ok_or_else(|| self.err(format!("`{name}` is missing")))
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Node<'a>)> + '_ {
        self.table.iter().map(|(key, value)| {
            let name: &'a str = key.get_ref();
            (name, self.node(name, value))
        })
    }

    /// An error about the table as a whole.
    pub fn err(&self, message: impl Into<String>) -> PolicyError {
        let key = (!self.path.is_empty()).then(|| self.path.clone());
        fault(self.file, self.text, Some(self.span.clone()), key, message)
    }

    /// The line the table begins on.
    pub fn line(&self) -> usize {
        self.err("").line
    }
}

impl<'a> Node<'a> {
    /// An error at this place.
    pub fn err(&self, message: impl Into<String>) -> PolicyError {
        let key = Some(self.key.clone().into_owned());
        fault(self.file, self.text, Some(self.value.span()), key, message)
    }

    pub fn str(&self) -> Read<&'a str> {
        self.value
            .get_ref()
            .as_str()
            .ok_or_else(|| self.err(format!("a text, not {}", self.kind())))
    }

    pub fn bool(&self) -> Read<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.err("true or false"))
    }

    pub fn u64(&self) -> Read<u64> {
        match self.integer() {
            Some(n) if n >= 0 => {
                u64::try_from(n).map_err(|_| self.err("a number that is not negative"))
            }
            _ => Err(self.err("a whole number that is not negative")),
        }
    }

    /// The value when it is an integer.
    pub fn integer(&self) -> Option<i64> {
        let n = self.value.get_ref().as_integer()?;
        i64::from_str_radix(n.as_str(), n.radix()).ok()
    }

    /// The value when it is a number.
    pub fn number(&self) -> Option<f64> {
        match self.value.get_ref() {
            DeValue::Float(f) => f.as_str().parse().ok(),
            #[allow(clippy::cast_precision_loss)]
            _ => self.integer().map(|n| n as f64),
        }
    }

    /// The elements of a list, or the one value that stands in its place.
    pub fn list(&self) -> Vec<Node<'a>> {
        match self.value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .map(|value| Node {
                    file: self.file,
                    text: self.text,
                    key: self.key.clone(),
                    value,
                })
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// Each element of a list of texts, read by `read`.
    pub fn each<T>(&self, read: impl Fn(&str) -> Result<T, String>) -> Read<Vec<T>> {
        let items = self.list();
        if items.len() > MAX_LIST {
            return Err(self.err(format!("a list has at most {MAX_LIST} entries")));
        }
        items.iter().map(|item| read(item.str()?).map_err(|e| item.err(e))).collect()
    }

    /// The value as a table.
    pub fn table(&self) -> Read<Fields<'a>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(Fields {
                file: self.file,
                text: self.text,
                path: self.key.clone().into_owned(),
                span: self.value.span(),
                table,
            }),
            _ => Err(self.err(format!("a table, not {}", self.kind()))),
        }
    }

    /// What kind of value it is.
    pub fn kind(&self) -> &'static str {
        self.value.get_ref().type_str()
    }

    /// The value as JSON, for claims and the like.
    pub fn json(&self) -> Read<serde_json::Value> {
        let de = toml::de::ValueDeserializer::from(self.value.clone());
        serde::Deserialize::deserialize(de).map_err(|e| self.err(e.message()))
    }

    /// The value as any type serde can read.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Read<T> {
        let de = toml::de::ValueDeserializer::from(self.value.clone());
        T::deserialize(de).map_err(|e| self.err(e.message()))
    }
}

/// Most entries of one list.
const MAX_LIST: usize = 10_000;
