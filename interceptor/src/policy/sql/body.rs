//! Code inside statements: DO blocks and the bodies of functions.
//!
//! Static SQL of a PL/pgSQL body is analysed like any other; dynamic SQL and other languages
//! cannot be seen, and say so. While columns are masked none of this may run or be made.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node};
use serde_json::Value;

use super::kind::constant;
use super::names;
use super::pool;
use super::statement::Draft;
use super::types::SqlError;
use crate::policy::facts::StatementClass as Class;

/// Bodies inside bodies that are looked into.
const MAX_STATEMENTS: usize = 10_000;

impl Draft<'_> {
    /// `DO`.
    pub fn do_block(&mut self, s: &protobuf::DoStmt) -> Result<(), SqlError> {
        self.class = Class::Do;
        self.command = "do".to_owned();
        self.found.problem("DO, whose code cannot be followed");
        self.ddl = true;
        let (language, _) = options(&s.args);
        if language.as_deref().unwrap_or("plpgsql") == "plpgsql" {
            let text = self.text.text.get(self.range.clone()).unwrap_or_default().to_owned();
            plpgsql(self, &text);
        } else {
            unseen(self, "code in another language");
        }
        Ok(())
    }
}

/// What a statement that makes code will make run.
pub(super) fn look_into(draft: &mut Draft<'_>, inside: &NodeEnum) {
    match inside {
        NodeEnum::CreateFunctionStmt(s) => {
            let (language, body) = options(&s.options);
            match language.as_deref() {
                _ if s.sql_body.is_some() => unseen(draft, "the body of a function"),
                Some("sql") => match body {
                    Some(body) => sql(draft, &body),
                    None => unseen(draft, "the body of a function"),
                },
                Some("plpgsql") => {
                    let text = draft.text.text.get(draft.range.clone());
                    plpgsql(draft, text.unwrap_or_default());
                }
                _ => unseen(draft, "code in another language"),
            }
        }
        NodeEnum::CreateExtensionStmt(_) | NodeEnum::AlterExtensionStmt(_) => {
            unseen(draft, "what an extension brings");
        }
        NodeEnum::ImportForeignSchemaStmt(_) => unseen(draft, "what a foreign schema brings"),
        _ => {}
    }
}

fn unseen(draft: &mut Draft<'_>, what: &str) {
    draft.unseen.get_or_insert_with(|| what.to_owned());
}

/// The language and the body among the options of a function or DO.
fn options(options: &[Node]) -> (Option<String>, Option<String>) {
    let mut found = (None, None);
    for node in options {
        let Some(NodeEnum::DefElem(d)) = &node.node else { continue };
        let text = || match d.arg.as_deref().and_then(|a| a.node.as_ref()) {
            Some(NodeEnum::List(l)) => names::strings(&l.items).into_iter().next(),
            _ => d.arg.as_deref().and_then(constant),
        };
        match d.defname.as_str() {
            "language" => found.0 = text().map(|l| l.to_ascii_lowercase()),
            "as" => found.1 = text(),
            _ => {}
        }
    }
    found
}

/// Takes over what SQL text does when it runs.
fn sql(draft: &mut Draft<'_>, text: &str) {
    match pool::analyze_here(&text.into(), draft.text.context) {
        Ok(analysis) => {
            for statement in &analysis.statements {
                draft.inherit(statement);
            }
        }
        Err(_) => unseen(draft, "SQL of a body that does not parse"),
    }
}

fn plpgsql(draft: &mut Draft<'_>, text: &str) {
    let Ok(tree) = pg_query::parse_plpgsql(text) else {
        return unseen(draft, "a PL/pgSQL body that does not parse");
    };
    let mut found = Vec::new();
    if !collect(&tree, 0, &mut found) {
        unseen(draft, "a PL/pgSQL body that is too deep or too long");
    }
    for part in found {
        match part {
            Part::Dynamic => unseen(draft, "dynamic SQL of a PL/pgSQL body"),
            Part::Statement(text) => sql(draft, &text),
            Part::Expression(text) => sql(draft, &format!("SELECT {text}")),
            Part::Assignment(text) => {
                match text.split_once(":=").or_else(|| text.split_once('=')) {
                    Some((_, value)) => sql(draft, &format!("SELECT {value}")),
                    None => unseen(draft, "an assignment of a PL/pgSQL body"),
                }
            }
        }
    }
}

enum Part {
    Statement(String),
    Expression(String),
    Assignment(String),
    Dynamic,
}

/// Collects the SQL of a PL/pgSQL tree; false when it gave up.
fn collect(value: &Value, depth: usize, found: &mut Vec<Part>) -> bool {
    if depth > 1_000 || found.len() > MAX_STATEMENTS {
        return false;
    }
    match value {
        Value::Array(items) => items.iter().all(|v| collect(v, depth + 1, found)),
        Value::Object(fields) => fields.iter().all(|(key, value)| {
            if key.starts_with("PLpgSQL_stmt_dyn") {
                found.push(Part::Dynamic);
            }
            if key == "PLpgSQL_expr" {
                let query = value.get("query").and_then(Value::as_str).unwrap_or_default();
                let part = match value.get("parseMode").and_then(Value::as_i64).unwrap_or(0) {
                    0 => Part::Statement(query.to_owned()),
                    2 => Part::Expression(query.to_owned()),
                    _ => Part::Assignment(query.to_owned()),
                };
                found.push(part);
                return true;
            }
            collect(value, depth + 1, found)
        }),
        _ => true,
    }
}
