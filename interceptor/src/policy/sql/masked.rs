//! Which columns of a database are masked, after following what repeats them.
//!
//! A rule names columns; a child table or partition holds the same column, a parent shows it,
//! and a generated column is computed from it. All of these are masked as well.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::catalog::Catalog;
use crate::mask::Method;
use crate::policy::facts::ColumnName;
use crate::policy::verdict::MaskRule;

type Id = (u32, i16);

/// The masked columns of one database for one subject.
#[derive(Debug, Clone, Default)]
pub struct MaskedColumns {
    columns: BTreeMap<Id, Method>,
    by_name: HashMap<ColumnName, Method>,
    names: HashSet<String>,
}

impl MaskedColumns {
    /// The columns of a catalog that rules name, and all that repeat them.
    pub fn new(catalog: &Catalog, rules: &[Arc<MaskRule>]) -> Self {
        let mut masked = Self::default();
        let mut queue = Vec::new();
        for rule in rules {
            for pattern in &rule.columns {
                if let Some((_, table)) = pattern.table().exact() {
                    masked.names.insert(table.to_owned());
                }
            }
        }
        for relation in catalog.relations() {
            for column in &relation.columns {
                let named = ColumnName::new(relation.name.clone(), column.name.clone());
                if let Some(method) = MaskRule::method_for(rules, &named) {
                    queue.push(((relation.oid, column.attnum), method));
                }
            }
        }
        while let Some((id, method)) = queue.pop() {
            if masked.add(id, &method) {
                masked.repeats(catalog, id, &mut queue);
            }
        }
        for ((oid, attnum), method) in &masked.columns {
            let Some(relation) = catalog.relation(*oid) else { continue };
            masked.names.insert(relation.name.name.clone());
            if let Some(column) = relation.columns.iter().find(|c| c.attnum == *attnum) {
                let named = ColumnName::new(relation.name.clone(), column.name.clone());
                masked.by_name.insert(named, method.clone());
            }
        }
        masked
    }

    /// The columns, as rules name them, whose table is there while they are not: a slip of the
    /// pen, or a column that has a new name, and its values pass unmasked.
    pub fn missing(catalog: &Catalog, rules: &[Arc<MaskRule>]) -> Vec<(String, String)> {
        let mut missing = Vec::new();
        for rule in rules {
            for pattern in &rule.columns {
                let mut tables = catalog
                    .relations()
                    .filter(|relation| pattern.table().must_match(&relation.name))
                    .peekable();
                let there = tables.peek().is_some();
                let named = tables.any(|relation| {
                    relation.columns.iter().any(|column| pattern.column().matches(&column.name))
                });
                if there && !named {
                    missing.push((rule.rule.clone(), pattern.to_string()));
                }
            }
        }
        missing
    }

    /// Adds a column; false when that changed nothing.
    fn add(&mut self, id: Id, method: &Method) -> bool {
        let stricter = match self.columns.get(&id) {
            Some(known) => Method::stricter(known.clone(), method.clone()),
            None => method.clone(),
        };
        self.columns.insert(id, stricter.clone()).as_ref() != Some(&stricter)
    }

    /// Columns that hold the same values as one.
    fn repeats(&self, catalog: &Catalog, (oid, attnum): Id, queue: &mut Vec<(Id, Method)>) {
        let Some(method) = self.columns.get(&(oid, attnum)) else { return };
        let Some(relation) = catalog.relation(oid) else { return };
        let name = relation.columns.iter().find(|c| c.attnum == attnum).map(|c| c.name.as_str());
        for other in catalog.children(oid).iter().chain(catalog.parents(oid)) {
            let column = catalog
                .relation(*other)
                .and_then(|r| r.columns.iter().find(|c| Some(c.name.as_str()) == name));
            if let Some(column) = column {
                queue.push(((*other, column.attnum), method.clone()));
            }
        }
        for column in relation.columns.iter().filter(|c| c.generated) {
            // Not known from what: from everything.
            let from = catalog.generated_from(oid, column.attnum);
            if from.is_none_or(|f| f.contains(&attnum)) {
                queue.push(((oid, column.attnum), method.clone()));
            }
        }
    }

    /// No column of the database is masked.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// How a column is masked.
    pub fn method(&self, column: &ColumnName) -> Option<&Method> {
        self.by_name.get(column)
    }

    /// How a column is masked, by the oid and number RowDescription reports.
    pub fn method_at(&self, relation: u32, attnum: i16) -> Option<&Method> {
        self.columns.get(&(relation, attnum))
    }

    /// Whether the column RowDescription reports is masked.
    pub fn is_masked(&self, relation: u32, attnum: i16) -> bool {
        self.columns.contains_key(&(relation, attnum))
    }

    /// Whether a relation of this name has masked columns, whatever its schema.
    pub fn governs(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// All masked columns with their methods.
    pub fn iter(&self) -> impl Iterator<Item = (u32, i16, &Method)> {
        self.columns.iter().map(|((oid, attnum), method)| (*oid, *attnum, method))
    }
}
