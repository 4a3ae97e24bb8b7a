//! The shipped lists: which functions, system relations and operators may be used while
//! columns are masked.
//!
//! The lists are data (`functions.txt`, `relations.txt`). What is not on them is refused; what
//! a user or an untrusted extension made is never on them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use super::catalog::Foreign;
use super::pool::Context;
use crate::policy::facts::{ColumnName, Name};

struct Lists {
    /// `schema.name` → columns in FROM.
    functions: HashMap<&'static str, Vec<&'static str>>,
    extensions: HashSet<&'static str>,
    /// `schema.name` → columns that may not be read all the same.
    relations: HashMap<&'static str, Vec<&'static str>>,
}

/// Names the server ships, not listed, that trusted extensions also use: none is known.
const EXCLUDED: [&str; 0] = [];

fn lines(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'))
}

static LISTS: LazyLock<Lists> = LazyLock::new(|| {
    let mut lists = Lists {
        functions: HashMap::new(),
        extensions: HashSet::new(),
        relations: lines(include_str!("relations.txt"))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let hidden = |w: &'static str| w.strip_prefix('-');
                Some((words.next()?, words.filter_map(hidden).collect()))
            })
            .collect(),
    };
    for line in lines(include_str!("functions.txt")) {
        if let Some(extension) = line.strip_prefix("@extension ") {
            lists.extensions.insert(extension.trim());
            continue;
        }
        let (name, columns) = line.split_once('(').unwrap_or((line, ""));
        let columns = columns.trim_end_matches(')').split(',').filter(|c| !c.is_empty());
        lists.functions.insert(name, columns.collect());
    }
    lists
});

/// Whether a system relation describes objects only.
pub(super) fn relation_listed(name: &Name) -> bool {
    LISTS.relations.contains_key(format!("{}.{}", name.schema, name.name).as_str())
}

/// Whether a column of a listed system relation holds what may not be read.
pub(super) fn column_hidden(column: &ColumnName) -> bool {
    let relation = format!("{}.{}", column.table.schema, column.table.name);
    let hidden = LISTS.relations.get(relation.as_str());
    hidden.is_some_and(|h| h.contains(&column.column.as_str()))
}

/// Whether a function is on the list of those that reach nothing but their arguments.
pub(in crate::policy) fn is_listed(name: &Name) -> bool {
    match name.schema.as_str() {
        "pg_catalog" => LISTS.functions.contains_key(name.name.as_str()),
        schema => LISTS.functions.contains_key(format!("{schema}.{}", name.name).as_str()),
    }
}

/// Whether a function of this name, as the server ships it, is on that list.
pub fn is_harmless(name: &str) -> bool {
    LISTS.functions.contains_key(name)
}

/// The name columns of a function in FROM, if it has several.
pub(super) fn columns(written: &[String]) -> Option<&'static [&'static str]> {
    let key = match written {
        [name] => name.clone(),
        [schema, name] if schema == "pg_catalog" => name.clone(),
        [schema, name] => format!("{schema}.{name}"),
        _ => return None,
    };
    LISTS.functions.get(key.as_str()).map(Vec::as_slice)
}

/// What a function's name means, and why it may not run while columns are masked.
pub(super) fn function(written: &[String], context: &Context) -> (Name, Option<String>) {
    let (schema, name) = match written {
        [name] => (None, name.as_str()),
        [schema, name] => (Some(schema.as_str()), name.as_str()),
        _ => {
            let name = Name { schema: String::new(), name: written.join(".") };
            let why = format!("function {}()", written.join("."));
            return (name, Some(why));
        }
    };
    let resolved = |schema: &str| Name { schema: schema.into(), name: name.into() };
    let foreign = context.catalog.as_ref().map_or(&[][..], |c| c.foreign_functions(name));
    let reachable = |s: &str| match schema {
        Some(schema) => s == schema || (schema == "pg_temp" && s.starts_with("pg_temp")),
        // Temporary functions are found only by their full name.
        None => context.search_path.iter().any(|p| p == s),
    };
    let mut found = foreign.iter().filter(|f| reachable(&f.schema)).peekable();
    let listed = match schema {
        None => LISTS.functions.contains_key(name),
        Some("pg_catalog") => LISTS.functions.contains_key(name),
        Some(schema) => LISTS.functions.contains_key(format!("{schema}.{name}").as_str()),
    };
    if found.peek().is_some() && schema != Some("information_schema") {
        let at = found.peek().map_or("", |f| f.schema.as_str());
        let name = resolved(at);
        let trusted =
            |f: &Foreign| f.extension.as_deref().is_some_and(|e| LISTS.extensions.contains(e));
        // Beside the extension's there may be one of the server's with the same name, which
        // an unqualified call can also mean: that one must be on the list if it is at all.
        if found.all(trusted) && (listed || !EXCLUDED.iter().any(|e| *e == name.name)) {
            return (name, None);
        }
        let why =
            format!("function {}.{}(), which is not one the server ships", name.schema, name.name);
        return (name, Some(why));
    }
    // Without a catalog an unlisted name may be anybody's.
    let builtin = if listed || context.catalog.is_some() { "pg_catalog" } else { "" };
    let name = resolved(schema.unwrap_or(builtin));
    if listed {
        return (name, None);
    }
    let why = format!(
        "function {}(), which is not on the list of functions that may run while columns are masked",
        written.join(".")
    );
    (name, Some(why))
}

/// Why an operator may not be used while columns are masked.
pub(super) fn operator(written: &[String], context: &Context) -> Option<String> {
    let (schema, name) = match written {
        [name] => (None, name.as_str()),
        [schema, name] => (Some(schema.as_str()), name.as_str()),
        _ => return Some(format!("operator {}", written.join("."))),
    };
    let foreign = context.catalog.as_ref()?.foreign_operators(name);
    let reachable = |s: &str| match schema {
        Some(schema) => s == schema,
        None => context.search_path.iter().any(|p| p == s),
    };
    let stranger = foreign.iter().find(|f| {
        reachable(&f.schema)
            && !f.extension.as_deref().is_some_and(|e| LISTS.extensions.contains(e))
    })?;
    Some(format!("operator {}.{name}, which is not one the server ships", stranger.schema))
}

/// Why a type's name is not one that is known.
pub(super) fn type_name(written: &[String], context: &Context) -> Option<String> {
    let catalog = context.catalog.as_ref()?;
    let (schema, name) = match written {
        [name] => (None, name.as_str()),
        [schema, name] => (Some(schema.as_str()), name.as_str()),
        // `%TYPE` and database-qualified names.
        _ => return Some(format!("type {}", written.join("."))),
    };
    // A type pg_catalog does not have is the server's to refuse; it cannot be anything else.
    match schema {
        None | Some("pg_catalog") => None,
        Some(schema) => {
            let known = catalog.type_schemas(name).iter().any(|s| s == schema);
            (!known).then(|| format!("type {schema}.{name}, which is not known"))
        }
    }
}
