//! What names mean at one place of a query.
//!
//! The same rules as the server's: a column name is looked for level by level, in what is
//! visible of each level's FROM; a relation name likewise. Where the answer is not certain the
//! scope says so; it never picks one.

use std::sync::Arc;

use super::types::BaseColumn;
use crate::policy::facts::Name;

/// A column that can be named.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Col {
    pub name: String,
    pub base: Option<Arc<BaseColumn>>,
}

impl Col {
    pub fn computed(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None }
    }
}

/// One entry of FROM, or what a join makes of two.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Its name or alias.
    pub name: Option<String>,
    /// The relation's own name, where it has no alias, for `schema.table.column`.
    pub relation: Option<Name>,
    /// The relation it stands for, whatever it is called here.
    pub source: Option<Name>,
    /// `name.column` works.
    pub named: bool,
    /// `column` works.
    pub bare: bool,
    pub cols: Vec<Col>,
    /// It may have columns that are not known.
    pub open: bool,
    /// It is a relation, which has system columns.
    pub stored: bool,
}

impl Item {
    pub fn new(name: Option<String>, cols: Vec<Col>) -> Self {
        Self {
            name,
            relation: None,
            source: None,
            named: true,
            bare: true,
            cols,
            open: false,
            stored: false,
        }
    }
}

/// A WITH query.
#[derive(Debug, Clone)]
pub(super) struct Cte {
    pub name: String,
    /// None while it is not analysed yet.
    pub cols: Option<Vec<Col>>,
    pub open: bool,
}

/// One level of query nesting.
#[derive(Debug, Default)]
pub(super) struct Level {
    pub items: Vec<Item>,
    pub ctes: Vec<Cte>,
    /// The items are out of sight: a subquery of FROM without LATERAL is being looked at.
    pub hidden: bool,
}

/// What a column reference means.
#[derive(Debug, Clone)]
pub(super) enum Meaning {
    /// A column.
    Column(Col),
    /// A whole row of an entry of FROM.
    Row { name: String, relation: Option<Name>, cols: Vec<Col>, open: bool },
    /// A value that no column holds, or a column of an entry whose columns are not known.
    Other,
    /// Not certain; the words say why.
    Unknown { why: String, candidates: Vec<Col> },
}

const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// The meaning of a column reference of one to three parts.
pub(super) fn resolve(levels: &[Level], parts: &[&str]) -> Meaning {
    match parts {
        [column] => bare(levels, column),
        [item, column] => qualified(levels, None, item, column),
        [schema, item, column] => qualified(levels, Some(schema), item, column),
        _ => Meaning::Unknown {
            why: format!("reference {}", parts.join(".")),
            candidates: Vec::new(),
        },
    }
}

fn visible(levels: &[Level]) -> impl Iterator<Item = &Level> {
    levels.iter().rev().filter(|l| !l.hidden)
}

fn bare(levels: &[Level], column: &str) -> Meaning {
    let mut open_below = false;
    for level in visible(levels) {
        let items = level.items.iter().filter(|i| i.bare);
        let mut found: Vec<Col> = Vec::new();
        let mut open = false;
        for item in items.clone() {
            found.extend(item.cols.iter().filter(|c| c.name == column).cloned());
            open |= item.open;
        }
        match found.len() {
            0 => {}
            1 if !open_below => return Meaning::Column(found.remove(0)),
            1 => {
                return Meaning::Unknown {
                    why: format!("column {column}, which more than one relation may have"),
                    candidates: found,
                };
            }
            _ => {
                return Meaning::Unknown {
                    why: format!("column {column}, which is ambiguous"),
                    candidates: found,
                };
            }
        }
        if SYSTEM_COLUMNS.contains(&column) && level.items.iter().any(|i| i.stored) {
            return Meaning::Other;
        }
        open_below |= open;
    }
    if open_below {
        let candidates = open_candidates(levels, column);
        if candidates.is_empty() {
            return Meaning::Other;
        }
        return Meaning::Column(candidates[0].clone());
    }
    match item_named(levels, None, column) {
        Some(item) => row(item, column),
        None => Meaning::Unknown {
            why: format!("column {column}, which is not known"),
            candidates: Vec::new(),
        },
    }
}

/// Columns a name may stand for in relations whose columns are not known.
fn open_candidates(levels: &[Level], column: &str) -> Vec<Col> {
    visible(levels)
        .flat_map(|l| l.items.iter())
        .filter(|i| i.open && i.bare)
        .filter_map(|i| i.source.as_ref())
        .map(|relation| unresolved(relation, column))
        .collect()
}

/// A column as written, of a relation that no catalog knows.
pub(super) fn unresolved(relation: &Name, column: &str) -> Col {
    let named =
        crate::policy::facts::ColumnName { table: relation.clone(), column: column.to_owned() };
    let base = BaseColumn { relation: 0, attnum: 0, column: named, through: None };
    Col { name: column.to_owned(), base: Some(Arc::new(base)) }
}

fn qualified(levels: &[Level], schema: Option<&str>, item: &str, column: &str) -> Meaning {
    let unknown = |why: String, candidates| Meaning::Unknown { why, candidates };
    let Some(found) = item_named(levels, schema, item) else {
        return unknown(format!("reference {item}.{column}, which is not known"), Vec::new());
    };
    let mut cols = found.cols.iter().filter(|c| c.name == column);
    match (cols.next(), cols.next()) {
        (Some(col), None) => Meaning::Column(col.clone()),
        (Some(_), Some(_)) => unknown(
            format!("reference {item}.{column}, which is ambiguous"),
            found.cols.iter().filter(|c| c.name == column).cloned().collect(),
        ),
        (None, _) if found.open => match &found.source {
            Some(relation) => Meaning::Column(unresolved(relation, column)),
            None => Meaning::Other,
        },
        (None, _) if found.stored && SYSTEM_COLUMNS.contains(&column) => Meaning::Other,
        // The server would try a function of that name on the whole row.
        (None, _) => unknown(format!("attribute notation {item}.{column}"), found.cols.clone()),
    }
}

/// The entry of FROM that a relation name means.
pub(super) fn item_named<'a>(
    levels: &'a [Level],
    schema: Option<&str>,
    name: &str,
) -> Option<&'a Item> {
    visible(levels).find_map(|level| {
        level.items.iter().find(|i| {
            i.named
                && match schema {
                    None => i.name.as_deref() == Some(name),
                    Some(schema) => {
                        i.relation.as_ref().is_some_and(|r| r.schema == schema && r.name == name)
                    }
                }
        })
    })
}

fn row(item: &Item, name: &str) -> Meaning {
    Meaning::Row {
        name: name.to_owned(),
        relation: item.source.clone(),
        cols: item.cols.clone(),
        open: item.open,
    }
}
