//! Patterns of names: exact text or globs, for plain words, tables and columns.
//!
//! A name in a pattern is folded as SQL folds it: `Customers` means `customers`, and
//! `"Customers"` in double quotes keeps its case. `*`, `?`, `[…]` and `{a,b}` are globs either
//! way. Each pattern has two readings, because what the analysis could not resolve must
//! neither slip past a rule that denies nor into a rule that allows: `may_match` counts what
//! is unknown as a match, `must_match` does not.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Serialize, Serializer};

use super::facts::{ColumnName, Name};

/// Longest accepted pattern, in bytes.
pub const MAX_PATTERN: usize = 512;

/// Exact text or a glob.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    kind: PatternKind,
}

#[derive(Clone)]
enum PatternKind {
    Any,
    Exact,
    Prefix(Box<str>),
    Glob(Box<GlobMatcher>),
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(source: &str) -> Result<Self, String> {
        if source.is_empty() {
            return Err("an empty pattern matches nothing; write a name or a glob".into());
        }
        if source.len() > MAX_PATTERN {
            return Err(format!("a pattern has at most {MAX_PATTERN} bytes"));
        }
        let meta = |c| matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\');
        let kind = if source == "*" {
            PatternKind::Any
        } else if !source.contains(meta) {
            PatternKind::Exact
        } else if let Some(prefix) = source.strip_suffix('*').filter(|p| !p.contains(meta)) {
            PatternKind::Prefix(prefix.into())
        } else {
            let glob = GlobBuilder::new(source)
                .backslash_escape(true)
                .literal_separator(false)
                .build()
                .map_err(|e| format!("{source:?} is no glob: {}", e.kind()))?;
            PatternKind::Glob(Box::new(glob.compile_matcher()))
        };
        Ok(Self { source: source.into(), kind })
    }

    /// Whether the text fits.
    pub fn matches(&self, text: &str) -> bool {
        match &self.kind {
            PatternKind::Any => true,
            PatternKind::Exact => *self.source == *text,
            PatternKind::Prefix(prefix) => text.starts_with(&**prefix),
            PatternKind::Glob(glob) => glob.is_match(text),
        }
    }

    /// The text itself when the pattern is no glob.
    pub fn exact(&self) -> Option<&str> {
        matches!(self.kind, PatternKind::Exact).then_some(&*self.source)
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}

/// A table, view or function: `customers` in any schema, or `public.customers`.
#[derive(Debug, Clone)]
pub struct NamePattern {
    source: Box<str>,
    schema: Option<Pattern>,
    name: Pattern,
}

impl NamePattern {
    /// Reads `name` or `schema.name`.
    pub fn new(source: &str) -> Result<Self, String> {
        let parts = split(source)?;
        match parts.as_slice() {
            [name] => Self::of(source, None, name),
            [schema, name] => Self::of(source, Some(schema), name),
            _ => Err(format!("{source:?} has too many parts; write name or schema.name")),
        }
    }

    fn of(source: &str, schema: Option<&str>, name: &str) -> Result<Self, String> {
        Ok(Self {
            source: source.into(),
            schema: schema.map(Pattern::new).transpose()?,
            name: Pattern::new(name)?,
        })
    }

    /// Whether the name fits, an unknown schema counted as fitting.
    pub fn may_match(&self, name: &Name) -> bool {
        self.name.matches(&name.name)
            && (name.schema.is_empty()
                || self.schema.as_ref().is_none_or(|s| s.matches(&name.schema)))
    }

    /// Whether the name certainly fits.
    pub fn must_match(&self, name: &Name) -> bool {
        self.name.matches(&name.name)
            && self.schema.as_ref().is_none_or(|s| {
                matches!(s.kind, PatternKind::Any)
                    || (!name.schema.is_empty() && s.matches(&name.schema))
            })
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Schema (when named) and name, when neither is a glob.
    pub fn exact(&self) -> Option<(Option<&str>, &str)> {
        match &self.schema {
            None => Some((None, self.name.exact()?)),
            Some(schema) => Some((Some(schema.exact()?), self.name.exact()?)),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// A column: `customers.email` in any schema, or `public.customers.email`.
#[derive(Debug, Clone)]
pub struct ColumnPattern {
    source: Box<str>,
    table: NamePattern,
    column: Pattern,
}

impl ColumnPattern {
    /// Reads `table.column` or `schema.table.column`.
    pub fn new(source: &str) -> Result<Self, String> {
        let parts = split(source)?;
        let (table, column) = match parts.as_slice() {
            [table, column] => (NamePattern::of(table, None, table)?, column),
            [schema, table, column] => {
                (NamePattern::of(&format!("{schema}.{table}"), Some(schema), table)?, column)
            }
            _ => {
                return Err(format!(
                    "{source:?} is no column; write table.column or schema.table.column"
                ));
            }
        };
        Ok(Self { source: source.into(), table, column: Pattern::new(column)? })
    }

    /// The table part.
    pub fn table(&self) -> &NamePattern {
        &self.table
    }

    /// The column part.
    pub fn column(&self) -> &Pattern {
        &self.column
    }

    /// Whether the column fits, everything unknown counted as fitting. Masks use this reading.
    pub fn may_match(&self, column: &ColumnName) -> bool {
        (column.column == "*" || self.column.matches(&column.column))
            && self.table.may_match(&column.table)
    }

    /// Whether the column certainly fits.
    pub fn must_match(&self, column: &ColumnName) -> bool {
        let fits = if column.column == "*" {
            matches!(self.column.kind, PatternKind::Any)
        } else {
            self.column.matches(&column.column)
        };
        fits && self.table.must_match(&column.table)
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl fmt::Display for ColumnPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Serialize for ColumnPattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.source)
    }
}

/// Splits at dots outside double quotes and glob classes, folding what is not quoted.
fn split(source: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        let Some(part) = parts.last_mut() else { break };
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c if quoted => part.push(c),
            c => part.push(c.to_ascii_lowercase()),
        }
    }
    if quoted {
        return Err(format!("{source:?} has an open double quote"));
    }
    if parts.iter().any(String::is_empty) {
        return Err(format!("{source:?} has an empty part between dots"));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_as_sql_folds_them() {
        for (pattern, schema, name, may, must) in [
            ("customers", "public", "customers", true, true),
            ("customers", "other", "customers", true, true),
            ("Customers", "public", "customers", true, true),
            ("\"Customers\"", "public", "customers", false, false),
            ("\"Customers\"", "public", "Customers", true, true),
            ("public.customers", "public", "customers", true, true),
            ("public.customers", "app", "customers", false, false),
            ("public.customers", "", "customers", true, false),
            ("customers", "", "customers", true, true),
            ("pg_catalog.*", "pg_catalog", "pg_class", true, true),
            ("pg_catalog.*", "pg_catalog2", "pg_class", false, false),
            ("pg_catalog.*", "", "pg_class", true, false),
            ("*.*", "", "x", true, true),
            ("p*.cust?mers", "public", "customers", true, true),
            ("p*.{customers,orders}", "public", "orders", true, true),
            ("\"a.b\".\"c\"\"d\"", "a.b", "c\"d", true, true),
        ] {
            let p = NamePattern::new(pattern).unwrap();
            let n = Name::new(schema, name);
            assert_eq!((p.may_match(&n), p.must_match(&n)), (may, must), "{pattern} {n}");
        }
    }

    #[test]
    fn a_column_that_is_not_known_may_be_any_and_must_be_none() {
        let star = ColumnName::new(Name::new("public", "customers"), "*");
        let email = ColumnPattern::new("customers.email").unwrap();
        assert!(email.may_match(&star) && !email.must_match(&star));
        let all = ColumnPattern::new("public.customers.*").unwrap();
        assert!(all.must_match(&star));
        let other = ColumnPattern::new("orders.*").unwrap();
        assert!(!other.may_match(&star));
    }

    #[test]
    fn bad_patterns_say_what_to_write() {
        for (bad, says) in [
            ("", "empty part"),
            ("a..b", "empty part"),
            ("a.b.c", "too many parts"),
            ("\"a", "open double quote"),
            ("a[", "no glob"),
        ] {
            let e = NamePattern::new(bad).unwrap_err();
            assert!(e.contains(says), "{bad}: {e}");
        }
        assert!(ColumnPattern::new("email").unwrap_err().contains("table.column"));
        assert!(Pattern::new(&"x".repeat(600)).unwrap_err().contains("at most"));
    }
}
