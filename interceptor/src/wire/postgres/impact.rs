//! What a held statement would touch: asked of the service on a connection of our own, in a
//! transaction that is READ ONLY and rolled back.
//!
//! Planning runs code: functions with constant arguments, the input of types, what indexes,
//! constraints and defaults are made of, the planner support of operators. So `EXPLAIN`, never with
//! `ANALYZE`, is asked only where all of that is what the server itself ships; the question
//! comes first ([`safe_query`]), and again when the tables are locked. What this module must never do: send the statement in any other form,
//! on the agent's connection, or when the answer to that question was not read.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Semaphore;

use crate::approval::{Impact, MAX_PLAN, MAX_TABLES, TableSize};
use crate::capture::Pins;
use crate::config::Service;
use crate::policy::sql::{Analysis, Lookups, is_harmless};
use crate::policy::{Name, StatementClass};

use super::upstream::{self, Upstream, UpstreamError};

/// Longest time that looking may take in all.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most services asked at a time.
static PLACES: Semaphore = Semaphore::const_new(4);
/// Longest statement that is planned, in bytes.
const LONGEST: usize = 256 << 10;

/// Sets up the transaction. No lock is waited for: a plan is not worth standing in a queue that
/// others then stand in too.
const BEGIN: [&str; 6] = [
    "BEGIN TRANSACTION READ ONLY",
    "SET LOCAL search_path = pg_catalog",
    "SET LOCAL statement_timeout = 1000",
    "SET LOCAL lock_timeout = 200",
    "SET LOCAL standard_conforming_strings = on",
    "SET LOCAL jit = off",
];

/// Who asks, and what about.
pub struct Question {
    /// The service.
    pub service: Arc<Service>,
    /// Its pinned certificate.
    pub pins: Option<Arc<Pins>>,
    /// Role of the session.
    pub role: String,
    /// Database of the session.
    pub database: String,
    /// Effective search path of the session.
    pub path: Vec<String>,
    /// `application_name` on the server.
    pub application: String,
    /// The statement as it was judged.
    pub text: Arc<str>,
    /// What is known of it.
    pub analysis: Arc<Analysis>,
}

/// Looks; takes [`PATIENCE`] at most. Never fails: what is missing is said in the answer.
pub async fn look(question: &Question) -> Impact {
    let asked = async {
        let _place = PLACES.acquire().await.ok();
        let mut impact = Impact::default();
        let looked = ask(question, &mut impact).await;
        (impact, looked)
    };
    let why = match tokio::time::timeout(PATIENCE, asked).await {
        Ok((impact, Ok(()))) => return impact,
        Ok((mut impact, Err(error))) => {
            impact.remark = Some(words(&error));
            return impact;
        }
        Err(_) => "the server took too long to say what this would touch",
    };
    Impact::unknown(why)
}

/// The server's own words can hold values of the statement, so they stand in the impact, which is
/// kept as the statement is, and in no log.
fn words(error: &UpstreamError) -> String {
    match error {
        UpstreamError::Refused(body) => format!("the server says: {}", said(body)),
        other => format!("the server could not be asked: {other}"),
    }
}

/// The message of an ErrorResponse.
fn said(body: &[u8]) -> String {
    let mut fields = body.split(|b| *b == 0);
    let message = fields.find_map(|f| f.strip_prefix(b"M")).unwrap_or_default();
    String::from_utf8_lossy(message).chars().take(500).collect()
}

async fn ask(question: &Question, impact: &mut Impact) -> Result<(), UpstreamError> {
    let stream = upstream::connect(&question.service, question.pins.as_deref()).await?;
    let parameters = [
        ("user", question.role.as_str()),
        ("database", &question.database),
        ("application_name", &question.application),
        ("client_encoding", "UTF8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let password = credential(question)?;
    let mut server = Upstream::start(stream, &parameters, password.as_ref()).await?;
    for sql in BEGIN {
        server.rows(sql).await?;
    }
    let tables = tables(&question.analysis);
    if !tables.is_empty() {
        impact.tables = sizes(server.rows(&size_query(&tables)).await?, &tables);
    }
    match plan(question, &mut server, &tables).await? {
        Ok(plan) => impact.plan = Some(plan),
        Err(why) => impact.remark = Some(why),
    }
    // The server rolls back when the connection goes.
    Ok(())
}

fn credential(question: &Question) -> Result<Option<SecretString>, UpstreamError> {
    let role = question.service.roles.get(&question.role);
    let Some(reference) = role.and_then(|r| r.password.as_ref()) else { return Ok(None) };
    reference.read().map(Some).map_err(|_| UpstreamError::Credential("one that cannot be read"))
}

/// What the statements name, written first.
fn tables(analysis: &Analysis) -> Vec<(Name, bool)> {
    let facts = || analysis.statements.iter().map(|s| &s.facts);
    let written: BTreeSet<&Name> = facts().flat_map(|f| &f.tables_written).collect();
    let read: BTreeSet<&Name> = facts().flat_map(|f| &f.tables_read).collect();
    let all = written.iter().map(|n| ((*n).clone(), true));
    let read = read.difference(&written).map(|n| ((*n).clone(), false));
    all.chain(read).take(MAX_TABLES).collect()
}

/// A string constant that reads the same whatever the settings are.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''"))
}

fn identifier(name: &Name) -> String {
    let quoted = |part: &str| part.replace('"', "\"\"");
    format!("\"{}\".\"{}\"", quoted(&name.schema), quoted(&name.name))
}

fn array<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<_> = texts.into_iter().map(|t| literal(t)).collect();
    format!("ARRAY[{}]::pg_catalog.text[]", all.join(","))
}

fn values(tables: &[(Name, bool)]) -> String {
    let one = |(n, (name, _)): (usize, &(Name, bool))| {
        format!("({n}, {}, {})", literal(&name.schema), literal(&name.name))
    };
    tables.iter().enumerate().map(one).collect::<Vec<_>>().join(",")
}

/// Number, rows and bytes of each; partitions count for their parent.
fn size_query(tables: &[(Name, bool)]) -> String {
    format!(
        "SELECT v.n, \
         (SELECT sum(p.reltuples) FILTER (WHERE p.reltuples >= 0) FROM pg_class p \
          WHERE p.oid = c.oid AND c.relkind <> 'p' OR c.relkind = 'p' AND p.oid IN \
           (SELECT t.relid FROM pg_partition_tree(c.oid) t WHERE t.isleaf))::bigint, \
         CASE WHEN c.relkind IN ('r', 'm', 't') THEN pg_total_relation_size(c.oid) \
          WHEN c.relkind = 'p' THEN (SELECT sum(pg_total_relation_size(t.relid)) \
           FROM pg_partition_tree(c.oid) t WHERE t.isleaf) END::bigint \
         FROM (VALUES {}) v (n, nspname, relname) \
         JOIN pg_namespace s ON s.nspname = v.nspname \
         JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = v.relname",
        values(tables)
    )
}

fn sizes(rows: Vec<Vec<Option<String>>>, tables: &[(Name, bool)]) -> Vec<TableSize> {
    let mut all: Vec<TableSize> = tables
        .iter()
        .map(|(name, written)| {
            let dot = if name.schema.is_empty() { "" } else { "." };
            let name = format!("{}{dot}{}", name.schema, name.name);
            TableSize { name, written: *written, rows: None, bytes: None }
        })
        .collect();
    for row in rows {
        let number = |n: usize| row.get(n)?.as_deref()?.parse::<u64>().ok();
        let at = number(0).and_then(|n| usize::try_from(n).ok());
        if let Some(table) = at.and_then(|n| all.get_mut(n)) {
            (table.rows, table.bytes) = (number(1), number(2));
        }
    }
    all
}

/// What stands in the way of planning a statement, a line each, at most one: `relations` as in
/// [`values`], then the names it looks up. Objects from 16384 on are not the server's own
/// (FirstNormalObjectId); those below have no entries in pg_depend that refer to them.
///
/// Filled in one pass: what stands in a name is never looked at again.
fn safe_query(tables: &[(Name, bool)], lookups: &Lookups) -> String {
    let relations = match tables {
        [] => "(0, ''::text, ''::text) LIMIT 0".to_owned(),
        some => values(some),
    };
    // `t.f` may call f(t).
    let functions = array(lookups.functions.iter().chain(&lookups.columns));
    let (operators, types) = (array(&lookups.operators), array(&lookups.types));
    format!(
        "WITH RECURSIVE v (n, nspname, relname) AS (VALUES {relations}),
named (oid) AS (
  SELECT c.oid FROM v JOIN pg_namespace s ON s.nspname = v.nspname
  JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = v.relname),
rels (oid) AS (
  SELECT oid FROM named
  UNION SELECT i.inhrelid FROM pg_inherits i JOIN rels r ON i.inhparent = r.oid),
parts (classid, objid) AS (
  SELECT 'pg_class'::regclass::oid, oid FROM rels
  UNION ALL SELECT 'pg_class'::regclass, x.indexrelid FROM pg_index x JOIN rels r ON x.indrelid = r.oid
  UNION ALL SELECT 'pg_constraint'::regclass, k.oid FROM pg_constraint k JOIN rels r ON k.conrelid = r.oid
  UNION ALL SELECT 'pg_attrdef'::regclass, a.oid FROM pg_attrdef a JOIN rels r ON a.adrelid = r.oid
  UNION ALL SELECT 'pg_statistic_ext'::regclass, e.oid FROM pg_statistic_ext e JOIN rels r ON e.stxrelid = r.oid)
SELECT * FROM (
  SELECT 'table ' || v.nspname || '.' || v.relname || ' is not there for this connection' FROM v
  WHERE NOT EXISTS (SELECT FROM pg_namespace s JOIN pg_class c ON c.relnamespace = s.oid
    WHERE s.nspname = v.nspname AND c.relname = v.relname)
  UNION ALL SELECT c.oid::regclass || ' is no ordinary table' FROM pg_class c JOIN rels r ON c.oid = r.oid
    WHERE c.relkind NOT IN ('r', 'p')
  UNION ALL SELECT c.oid::regclass || ' has rules or row security' FROM pg_class c JOIN rels r ON c.oid = r.oid
    WHERE c.relrowsecurity OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid)
  UNION ALL SELECT 'a table depends on ' || pg_describe_object(d.refclassid, d.refobjid, 0)
    FROM parts p JOIN pg_depend d ON d.classid = p.classid AND d.objid = p.objid
    WHERE d.refclassid <> ALL (ARRAY['pg_class', 'pg_namespace', 'pg_constraint']::regclass[]) AND d.refobjid >= 16384
  UNION ALL SELECT d.objid::regprocedure || ' takes a row of a table'
    FROM rels r JOIN pg_class c ON c.oid = r.oid
    JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = c.reltype
      AND d.classid = 'pg_proc'::regclass
  UNION ALL SELECT 'there is a function ' || p.oid::regprocedure FROM pg_proc p
    WHERE p.proname = ANY ({functions}) AND p.oid >= 16384
  UNION ALL SELECT 'there is an operator ' || o.oid::regoperator FROM pg_operator o
    WHERE o.oprname = ANY ({operators}) AND o.oid >= 16384
  UNION ALL SELECT 'there is a type ' || t.oid::regtype FROM pg_type t
    WHERE t.typname = ANY ({types}) AND t.oid >= 16384
  UNION ALL SELECT 'there is a cast by ' || c.castfunc::regprocedure FROM pg_cast c
    WHERE c.castfunc >= 16384 AND c.castsource < 16384 AND c.casttarget < 16384
) found LIMIT 1"
    )
}

/// The plan, or why there is none.
async fn plan(
    question: &Question,
    server: &mut Upstream,
    tables: &[(Name, bool)],
) -> Result<Result<String, String>, UpstreamError> {
    use StatementClass::{Delete, Insert, Merge, Select, Update};
    let [statement] = question.analysis.statements.as_slice() else {
        return Ok(Err("no plan: it is more than one statement".into()));
    };
    if !matches!(statement.facts.class, Select | Insert | Update | Delete | Merge) {
        return Ok(Err("no plan: only queries and changes of rows have one".into()));
    }
    if statement.facts.unseen.is_some() || question.text.len() > LONGEST {
        return Ok(Err("no plan: the statement cannot be seen whole".into()));
    }
    let temporary = |s: &String| s.starts_with("pg_temp") || s.starts_with("pg_toast_temp");
    if question.path.iter().chain(tables.iter().map(|(n, _)| &n.schema)).any(temporary) {
        return Ok(Err(
            "no plan: the session has temporary objects, which others cannot see".into()
        ));
    }
    if tables.len() >= MAX_TABLES || tables.iter().any(|(name, _)| name.schema.is_empty()) {
        return Ok(Err("no plan: it is not known which tables it means".into()));
    }
    let generic = statement.max_param > 0;
    if generic && major(server) < 16 {
        return Ok(Err("no plan: with parameters it needs PostgreSQL 16".into()));
    }
    if let Some(name) = statement.lookups.functions.iter().find(|f| !is_harmless(f)) {
        return Ok(Err(format!(
            "no plan: {name}() is not on the list of functions that only compute"
        )));
    }
    let ask = safe_query(tables, &statement.lookups);
    let locked: Vec<_> = tables.iter().map(|(name, _)| identifier(name)).collect();
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", locked.join(", "));
    for step in [None, Some(lock)] {
        // Once that these are ordinary tables, then that these are what was locked.
        if let Some(lock) = step.filter(|_| !tables.is_empty()) {
            server.rows(&lock).await?;
        }
        if let Some(row) = server.rows(&ask).await?.first() {
            let what = row.first().cloned().flatten().unwrap_or_default();
            return Ok(Err(format!("no plan, since making one could run code: {what}")));
        }
    }
    server.rows(&format!("SET LOCAL search_path = {}", path(&question.path))).await?;
    let options = if generic { "GENERIC_PLAN" } else { "COSTS" };
    let rows = server.rows(&format!("EXPLAIN ({options}) {}", question.text)).await?;
    Ok(Ok(lines(rows)))
}

fn path(schemas: &[String]) -> String {
    let all: Vec<_> = schemas.iter().map(|s| literal(s)).collect();
    if all.is_empty() { "''".into() } else { all.join(", ") }
}

fn lines(rows: Vec<Vec<Option<String>>>) -> String {
    let mut plan = String::new();
    for line in rows.iter().filter_map(|r| r.first()?.as_deref()) {
        if plan.len() + line.len() >= MAX_PLAN {
            plan.push('…');
            break;
        }
        let _ = writeln!(plan, "{line}");
    }
    plan.truncate(plan.trim_end().len());
    plan
}

fn major(server: &Upstream) -> u32 {
    let version = server.parameters.iter().find(|(name, _)| name == "server_version");
    let digits = version.and_then(|(_, v)| v.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|d| d.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_our_own_places_stay_names() {
        let names = ["{relations}", "{functions}", "{operators}", "{types}", "a'b\\", "x\"y"];
        let set = || names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let lookups = Lookups { functions: set(), columns: set(), operators: set(), types: set() };
        let tables: Vec<_> = names.iter().map(|n| (Name::new(*n, *n), true)).collect();
        let query = safe_query(&tables, &lookups);
        for sql in [query, size_query(&tables)] {
            // Outside its constants nothing of a name is left.
            let mut bare = String::new();
            let mut rest = sql.as_str();
            while let Some(at) = rest.find("E'") {
                bare.push_str(&rest[..at]);
                rest = &rest[at + 2..];
                loop {
                    let end = rest.find(['\'', '\\']).unwrap();
                    let pair = rest[end..].starts_with("''") || rest[end..].starts_with('\\');
                    rest = &rest[end + if pair { 2 } else { 1 }..];
                    if !pair {
                        break;
                    }
                }
            }
            bare.push_str(rest);
            for part in ["{", "}", "a'b", "x\"y"] {
                assert!(!bare.contains(part), "{part} in {bare}");
            }
        }
        assert_eq!(identifier(&tables[5].0), r#""x""y"."x""y""#);
    }
}
