//! A snapshot of a database's catalog: what names mean there.
//!
//! Built from the text-format rows of a few queries that any role may run, so that it needs no
//! client library of its own. It holds names, oids and definitions, never a row of a table. It
//! must never guess: what it does not hold is unknown, and unknown is refused by the first ring.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::query::QueryShape;
use crate::policy::facts::Name;

/// One query of the snapshot.
#[derive(Debug, Clone, Copy)]
pub struct CatalogQuery {
    /// Which of the snapshot's parts it fills.
    pub name: &'static str,
    /// The text, one statement.
    pub sql: &'static str,
}

/// One row as the simple protocol gives it.
pub type Row = Vec<Option<String>>;

/// Why no catalog could be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// A query's rows are missing.
    #[error("catalog snapshot lacks the rows of query {0:?}; run all of Catalog::QUERIES")]
    Missing(&'static str),
    /// A row has another form than its query gives.
    #[error("row {row} of catalog query {query:?} is malformed; is the server a PostgreSQL?")]
    Malformed {
        /// The query.
        query: &'static str,
        /// The row, from zero.
        row: usize,
    },
}

/// A column of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its number.
    pub attnum: i16,
    /// Its name.
    pub name: String,
    /// Oid of its type.
    pub type_oid: u32,
    /// It is computed from others of the same row.
    pub generated: bool,
}

/// A relation: anything that shares the name space of tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its oid.
    pub oid: u32,
    /// Its resolved name.
    pub name: Name,
    /// `pg_class.relkind`.
    pub kind: char,
    /// Its live columns in order.
    pub columns: Vec<Column>,
    /// Definition of a view or materialised view made by users.
    pub definition: Option<Arc<str>>,
    /// It has rules other than a view's own.
    pub rules: bool,
}

impl Relation {
    /// It came with the server, not from a user.
    pub const fn is_system(&self) -> bool {
        self.oid < FIRST_USER_OID
    }
}

/// Objects at and above this oid were made by users.
pub(super) const FIRST_USER_OID: u32 = 16_384;

/// A function, operator or cast outside what the server ships.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Foreign {
    pub schema: String,
    pub extension: Option<String>,
}

/// A snapshot of a catalog.
#[derive(Debug, Default)]
pub struct Catalog {
    relations: HashMap<u32, Arc<Relation>>,
    by_name: HashMap<String, Vec<Arc<Relation>>>,
    parents: HashMap<u32, Vec<u32>>,
    children: HashMap<u32, Vec<u32>>,
    /// (relation, generated column) → columns it is computed from; empty when not known.
    generated: HashMap<(u32, i16), Vec<i16>>,
    functions: HashMap<String, Vec<Foreign>>,
    operators: HashMap<String, Vec<Foreign>>,
    types: HashMap<String, Vec<String>>,
    schemas: HashSet<String>,
    views: Mutex<HashMap<u32, Arc<QueryShape>>>,
}

const NAMESPACES: CatalogQuery =
    CatalogQuery { name: "namespaces", sql: "SELECT oid, nspname FROM pg_catalog.pg_namespace" };
const RELATIONS: CatalogQuery = CatalogQuery {
    name: "relations",
    sql: "SELECT oid, relnamespace, relname, relkind, EXISTS (SELECT FROM pg_catalog.pg_rewrite r \
          WHERE r.ev_class OPERATOR(pg_catalog.=) c.oid AND r.ev_type OPERATOR(pg_catalog.<>) '1') \
          FROM pg_catalog.pg_class c",
};
const COLUMNS: CatalogQuery = CatalogQuery {
    name: "columns",
    sql: "SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.attgenerated \
          OPERATOR(pg_catalog.<>) '' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c \
          ON c.oid OPERATOR(pg_catalog.=) a.attrelid WHERE a.attnum OPERATOR(pg_catalog.>) 0 \
          AND NOT a.attisdropped AND c.relkind \
          OPERATOR(pg_catalog.=) ANY ('{r,p,v,m,f,S}'::pg_catalog.\"char\"[]) \
          ORDER BY a.attrelid, a.attnum",
};
const INHERITS: CatalogQuery = CatalogQuery {
    name: "inherits",
    sql: "SELECT inhrelid, inhparent FROM pg_catalog.pg_inherits",
};
/// Views as text with all names qualified. The path is put back in any case, also where there is
/// no view: the left side of the join is always computed, and it needs the count of the views.
const VIEWS: CatalogQuery = CatalogQuery {
    name: "views",
    sql: "WITH p AS MATERIALIZED (SELECT pg_catalog.current_setting('search_path') AS old, \
          pg_catalog.set_config('search_path', '', true) AS new), v AS MATERIALIZED (\
          SELECT c.oid, pg_catalog.pg_get_viewdef(c.oid) AS def FROM p, pg_catalog.pg_class c \
          WHERE p.new IS NOT NULL AND c.relkind \
          OPERATOR(pg_catalog.=) ANY ('{v,m}'::pg_catalog.\"char\"[]) \
          AND c.oid OPERATOR(pg_catalog.>=) 16384), n AS MATERIALIZED (\
          SELECT pg_catalog.count(v.def) AS n FROM v), r AS MATERIALIZED (\
          SELECT pg_catalog.set_config('search_path', p.old, true) AS back FROM p, n \
          WHERE n.n IS NOT NULL) SELECT v.oid, v.def FROM r LEFT JOIN v ON r.back IS NOT NULL",
};
const GENERATED: CatalogQuery = CatalogQuery {
    name: "generated",
    sql: "SELECT d.refobjid, a.adnum, d.refobjsubid FROM pg_catalog.pg_depend d \
          JOIN pg_catalog.pg_attrdef a ON a.oid OPERATOR(pg_catalog.=) d.objid \
          AND a.adrelid OPERATOR(pg_catalog.=) d.refobjid \
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
          AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
          AND d.refobjsubid OPERATOR(pg_catalog.<>) a.adnum \
          UNION SELECT d.refobjid, d.objsubid, d.refobjsubid FROM pg_catalog.pg_depend d \
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
          AND d.refclassid OPERATOR(pg_catalog.=) d.classid \
          AND d.objid OPERATOR(pg_catalog.=) d.refobjid \
          AND d.objsubid OPERATOR(pg_catalog.<>) 0 AND d.refobjsubid OPERATOR(pg_catalog.<>) 0",
};
const FUNCTIONS: CatalogQuery = CatalogQuery {
    name: "functions",
    sql: "SELECT DISTINCT p.proname, n.nspname, e.extname FROM pg_catalog.pg_proc p \
          JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
          LEFT JOIN (pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid \
          OPERATOR(pg_catalog.=) d.refobjid AND d.refclassid OPERATOR(pg_catalog.=) \
          'pg_catalog.pg_extension'::pg_catalog.regclass) ON d.objid OPERATOR(pg_catalog.=) p.oid \
          AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
          AND d.deptype OPERATOR(pg_catalog.=) 'e' \
          WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' \
          OR p.oid OPERATOR(pg_catalog.>=) 16384",
};
const OPERATORS: CatalogQuery = CatalogQuery {
    name: "operators",
    sql: "SELECT DISTINCT o.oprname, n.nspname, e.extname FROM pg_catalog.pg_operator o \
          JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace \
          LEFT JOIN (pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid \
          OPERATOR(pg_catalog.=) d.refobjid AND d.refclassid OPERATOR(pg_catalog.=) \
          'pg_catalog.pg_extension'::pg_catalog.regclass) ON d.objid OPERATOR(pg_catalog.=) o.oid \
          AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_operator'::pg_catalog.regclass \
          AND d.deptype OPERATOR(pg_catalog.=) 'e' \
          WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' \
          OR o.oid OPERATOR(pg_catalog.>=) 16384",
};
const TYPES: CatalogQuery = CatalogQuery {
    name: "types",
    sql: "SELECT t.typname, n.nspname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n \
          ON n.oid OPERATOR(pg_catalog.=) t.typnamespace \
          WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog' \
          OR t.oid OPERATOR(pg_catalog.>=) 16384",
};

impl Catalog {
    /// The queries whose rows make a snapshot, to be run over one connection to the database,
    /// best inside one `REPEATABLE READ` transaction.
    pub const QUERIES: &[CatalogQuery] =
        &[NAMESPACES, RELATIONS, COLUMNS, INHERITS, VIEWS, GENERATED, FUNCTIONS, OPERATORS, TYPES];

    /// One row of one value that changes with every change of what the snapshot holds. Asked on an
    /// agent's connection, as all of these: every name says where it is, since the agent's search
    /// path and its temporary objects would else choose what runs.
    pub const FINGERPRINT: &str = "SELECT pg_catalog.concat_ws(':', \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint), '/', pg_catalog.sum(oid::bigint)) FROM pg_catalog.pg_class), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_attribute WHERE attrelid OPERATOR(pg_catalog.>=) 16384), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_attrdef), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_namespace), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_inherits), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_rewrite WHERE oid OPERATOR(pg_catalog.>=) 16384), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_proc WHERE oid OPERATOR(pg_catalog.>=) 16384), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_operator WHERE oid OPERATOR(pg_catalog.>=) 16384), \
        (SELECT pg_catalog.concat(pg_catalog.count(*), '/', pg_catalog.sum(xmin::pg_catalog.text::bigint)) FROM pg_catalog.pg_type WHERE oid OPERATOR(pg_catalog.>=) 16384))";

    /// Builds a snapshot from the rows of [`Self::QUERIES`], in their order.
    pub fn build(rows: Vec<Vec<Row>>) -> Result<Self, CatalogError> {
        let mut rows: HashMap<_, _> = Self::QUERIES.iter().map(|q| q.name).zip(rows).collect();
        let mut take = |query: CatalogQuery| {
            rows.remove(query.name)
                .map(|rows| Table { query: query.name, rows })
                .ok_or(CatalogError::Missing(query.name))
        };
        let mut catalog = Self::default();
        let mut schemas = HashMap::new();
        take(NAMESPACES)?.each(|r| {
            schemas.insert(r.number::<u32>(0)?, r.text(1)?.to_owned());
            Some(())
        })?;
        let mut relations = HashMap::new();
        take(RELATIONS)?.each(|r| {
            let relation = relation(&r, &schemas)?;
            relations.insert(relation.oid, relation);
            Some(())
        })?;
        take(COLUMNS)?.each(|r| {
            let column = Column {
                attnum: r.number(1)?,
                name: r.text(2)?.to_owned(),
                type_oid: r.number(3)?,
                generated: r.text(4)? == "t",
            };
            // A relation made between the two queries is simply not there yet.
            if let Some(relation) = relations.get_mut(&r.number::<u32>(0)?) {
                relation.columns.push(column);
            }
            Some(())
        })?;
        take(VIEWS)?.each(|r| {
            if r.optional(0).is_none() {
                return Some(());
            }
            let oid: u32 = r.number(0)?;
            // No definition: the relation vanished or is not ours to see; it stays unknown.
            if let (Some(relation), Some(text)) = (relations.get_mut(&oid), r.optional(1)) {
                relation.definition = Some(text.trim_end().trim_end_matches(';').into());
            }
            Some(())
        })?;
        take(INHERITS)?.each(|r| {
            let (child, parent) = (r.number(0)?, r.number(1)?);
            catalog.parents.entry(child).or_default().push(parent);
            catalog.children.entry(parent).or_default().push(child);
            Some(())
        })?;
        take(GENERATED)?.each(|r| {
            let key = (r.number(0)?, r.number(1)?);
            catalog.generated.entry(key).or_default().push(r.number(2)?);
            Some(())
        })?;
        let foreign = |table: Table, into: &mut HashMap<String, Vec<Foreign>>| {
            table.each(|r| {
                let entry = Foreign {
                    schema: r.text(1)?.to_owned(),
                    extension: r.optional(2).map(str::to_owned),
                };
                into.entry(r.text(0)?.to_owned()).or_default().push(entry);
                Some(())
            })
        };
        foreign(take(FUNCTIONS)?, &mut catalog.functions)?;
        foreign(take(OPERATORS)?, &mut catalog.operators)?;
        take(TYPES)?.each(|r| {
            catalog.types.entry(r.text(0)?.to_owned()).or_default().push(r.text(1)?.to_owned());
            Some(())
        })?;
        catalog.schemas = schemas.into_values().collect();
        for (oid, relation) in relations {
            let relation = Arc::new(relation);
            let named = catalog.by_name.entry(relation.name.name.clone()).or_default();
            named.push(relation.clone());
            catalog.relations.insert(oid, relation);
        }
        Ok(catalog)
    }

    /// The relation with an oid.
    pub fn relation(&self, oid: u32) -> Option<&Arc<Relation>> {
        self.relations.get(&oid)
    }

    /// All relations.
    pub fn relations(&self) -> impl Iterator<Item = &Arc<Relation>> {
        self.relations.values()
    }

    /// The relation a name means, as the server resolves it.
    pub fn lookup(&self, schema: &str, name: &str, path: &[String]) -> Option<&Arc<Relation>> {
        let named = self.by_name.get(name)?;
        let within = |schema: &str| named.iter().find(|r| r.name.schema == schema);
        if schema.is_empty() {
            return path.iter().find_map(|s| within(s));
        }
        if schema == "pg_temp" {
            return path.iter().filter(|s| s.starts_with("pg_temp_")).find_map(|s| within(s));
        }
        within(schema)
    }

    /// Whether a schema is there.
    pub fn has_schema(&self, schema: &str) -> bool {
        self.schemas.contains(schema)
    }

    /// Relations that inherit from one, directly.
    pub fn children(&self, oid: u32) -> &[u32] {
        self.children.get(&oid).map_or(&[], Vec::as_slice)
    }

    /// Relations one inherits from, directly.
    pub fn parents(&self, oid: u32) -> &[u32] {
        self.parents.get(&oid).map_or(&[], Vec::as_slice)
    }

    /// The columns a generated column is computed from; none when that is not known.
    pub fn generated_from(&self, oid: u32, attnum: i16) -> Option<&[i16]> {
        self.generated.get(&(oid, attnum)).map(Vec::as_slice)
    }

    /// Functions with a name that users or extensions made.
    pub(super) fn foreign_functions(&self, name: &str) -> &[Foreign] {
        self.functions.get(name).map_or(&[], Vec::as_slice)
    }

    /// Operators with a name that users or extensions made.
    pub(super) fn foreign_operators(&self, name: &str) -> &[Foreign] {
        self.operators.get(name).map_or(&[], Vec::as_slice)
    }

    /// Schemas with a type of a name, `pg_catalog`'s own left out.
    pub(super) fn type_schemas(&self, name: &str) -> &[String] {
        self.types.get(name).map_or(&[], Vec::as_slice)
    }

    /// The analysed body of a view, if it was analysed before.
    pub(super) fn view(&self, oid: u32) -> Option<Arc<QueryShape>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).get(&oid).cloned()
    }

    /// Keeps the analysed body of a view.
    pub(super) fn keep_view(&self, oid: u32, shape: Arc<QueryShape>) {
        self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(oid, shape);
    }
}

fn relation(r: &Fields<'_>, schemas: &HashMap<u32, String>) -> Option<Relation> {
    let schema = schemas.get(&r.number::<u32>(1)?).cloned().unwrap_or_default();
    Some(Relation {
        oid: r.number(0)?,
        name: Name { schema, name: r.text(2)?.to_owned() },
        kind: r.text(3)?.chars().next()?,
        columns: Vec::new(),
        definition: None,
        rules: r.text(4)? == "t",
    })
}

/// Rows of one query.
struct Table {
    query: &'static str,
    rows: Vec<Row>,
}

impl Table {
    fn each(self, mut f: impl FnMut(Fields<'_>) -> Option<()>) -> Result<(), CatalogError> {
        for (row, fields) in self.rows.iter().enumerate() {
            f(Fields(fields)).ok_or(CatalogError::Malformed { query: self.query, row })?;
        }
        Ok(())
    }
}

/// Fields of one row.
struct Fields<'a>(&'a [Option<String>]);

impl Fields<'_> {
    fn text(&self, at: usize) -> Option<&str> {
        self.optional(at)
    }
    fn optional(&self, at: usize) -> Option<&str> {
        self.0.get(at)?.as_deref()
    }
    fn number<T: std::str::FromStr>(&self, at: usize) -> Option<T> {
        self.text(at)?.parse().ok()
    }
}
