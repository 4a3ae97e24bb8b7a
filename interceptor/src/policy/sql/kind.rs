//! What the wire must know about a statement: settings, transactions, cursors, COPY.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self, DiscardMode, Node, TransactionStmt, TransactionStmtKind, VariableSetKind,
    VariableSetStmt, a_const,
};

use super::types::{
    CopyFormat, CopyKind, DiscardKind, SetValue, Setting, StatementKind, TransactionKind,
};

/// The text of a constant, casts of constants included.
pub(super) fn constant(node: &Node) -> Option<String> {
    match node.node.as_ref()? {
        NodeEnum::AConst(c) => match c.val.as_ref()? {
            a_const::Val::Sval(s) => Some(s.sval.clone()),
            a_const::Val::Ival(i) => Some(i.ival.to_string()),
            a_const::Val::Fval(f) => Some(f.fval.clone()),
            a_const::Val::Boolval(b) => Some(b.boolval.to_string()),
            a_const::Val::Bsval(b) => Some(b.bsval.clone()),
        },
        NodeEnum::TypeCast(c) => constant(c.arg.as_deref()?),
        NodeEnum::String(s) => Some(s.sval.clone()),
        NodeEnum::Integer(i) => Some(i.ival.to_string()),
        NodeEnum::Float(f) => Some(f.fval.clone()),
        NodeEnum::Boolean(b) => Some(b.boolval.to_string()),
        _ => None,
    }
}

/// A `SET` or `RESET`, with what it sets.
pub(super) fn set(s: &VariableSetStmt) -> (StatementKind, Vec<Setting>) {
    let VariableSetStmt { kind, name, args, jumble_args: _, is_local, location: _ } = s;
    let name = name.to_ascii_lowercase();
    let local = *is_local;
    let setting = |value: SetValue| Setting { name: Some(name.clone()), value, local };
    match VariableSetKind::try_from(*kind) {
        Ok(VariableSetKind::VarResetAll) => {
            let all = Setting { name: Some("all".into()), value: SetValue::Default, local };
            (StatementKind::Reset(None), vec![all])
        }
        // `SET TRANSACTION …` and `SET SESSION CHARACTERISTICS …`.
        Ok(VariableSetKind::VarSetMulti) => {
            let kind = StatementKind::Set {
                name: name.clone(),
                value: SetValue::Unknown,
                local: name != "session characteristics",
            };
            (kind, vec![setting(SetValue::Unknown)])
        }
        Ok(kind) => {
            let value = set_value(kind, args);
            let settings = vec![setting(value.clone())];
            if name == "role" || name == "session_authorization" {
                return (role(&name, &value, local), settings);
            }
            if kind == VariableSetKind::VarReset {
                return (StatementKind::Reset(Some(name.clone())), settings);
            }
            (StatementKind::Set { name: name.clone(), value, local }, settings)
        }
        Err(_) => (
            StatementKind::Set { name: name.clone(), value: SetValue::Unknown, local },
            vec![setting(SetValue::Unknown)],
        ),
    }
}

fn set_value(kind: VariableSetKind, args: &[Node]) -> SetValue {
    match kind {
        VariableSetKind::VarSetValue => {
            let values: Option<Vec<_>> = args.iter().map(constant).collect();
            values.map_or(SetValue::Unknown, SetValue::Values)
        }
        VariableSetKind::VarSetDefault | VariableSetKind::VarReset => SetValue::Default,
        VariableSetKind::VarSetCurrent => SetValue::Current,
        _ => SetValue::Unknown,
    }
}

fn role(name: &str, value: &SetValue, local: bool) -> StatementKind {
    let session = name == "session_authorization";
    let role = match value {
        SetValue::Values(v) if !session && v.first().is_some_and(|r| r == "none") => None,
        SetValue::Values(v) => v.first().cloned(),
        _ => None,
    };
    StatementKind::SetRole { role, session, local }
}

/// A transaction statement.
pub(super) fn transaction(s: &TransactionStmt) -> Option<TransactionKind> {
    let TransactionStmt { kind, options: _, savepoint_name, gid, chain, location: _ } = s;
    let name = savepoint_name.clone();
    Some(match TransactionStmtKind::try_from(*kind).ok()? {
        TransactionStmtKind::TransStmtBegin | TransactionStmtKind::TransStmtStart => {
            TransactionKind::Begin
        }
        TransactionStmtKind::TransStmtCommit => TransactionKind::Commit { chain: *chain },
        TransactionStmtKind::TransStmtRollback => TransactionKind::Rollback { chain: *chain },
        TransactionStmtKind::TransStmtSavepoint => TransactionKind::Savepoint(name),
        TransactionStmtKind::TransStmtRelease => TransactionKind::Release(name),
        TransactionStmtKind::TransStmtRollbackTo => TransactionKind::RollbackTo(name),
        TransactionStmtKind::TransStmtPrepare => TransactionKind::Prepare(gid.clone()),
        TransactionStmtKind::TransStmtCommitPrepared => {
            TransactionKind::CommitPrepared(gid.clone())
        }
        TransactionStmtKind::TransStmtRollbackPrepared => {
            TransactionKind::RollbackPrepared(gid.clone())
        }
        TransactionStmtKind::Undefined => return None,
    })
}

/// What a `DISCARD` discards.
pub(super) fn discard(target: i32) -> DiscardKind {
    match DiscardMode::try_from(target) {
        Ok(DiscardMode::DiscardPlans) => DiscardKind::Plans,
        Ok(DiscardMode::DiscardSequences) => DiscardKind::Sequences,
        Ok(DiscardMode::DiscardTemp) => DiscardKind::Temp,
        _ => DiscardKind::All,
    }
}

/// Whether a boolean option of a list is on; `None` when it is not there.
pub(super) fn option_on(options: &[Node], name: &str) -> Option<bool> {
    options.iter().rev().find_map(|node| match &node.node {
        Some(NodeEnum::DefElem(d)) if d.defname.eq_ignore_ascii_case(name) => {
            let value = d.arg.as_deref().and_then(constant).map(|v| v.to_ascii_lowercase());
            Some(!matches!(value.as_deref(), Some("false" | "off" | "0" | "no")))
        }
        _ => None,
    })
}

/// The options of a `COPY`, old and new syntax alike (the grammar makes them one).
pub(super) fn copy_format(options: &[Node]) -> CopyFormat {
    let mut format = CopyFormat {
        kind: CopyKind::Text,
        delimiter: None,
        null: None,
        header: false,
        quote: None,
        escape: None,
        encoding: None,
        other: Vec::new(),
    };
    for node in options {
        let Some(NodeEnum::DefElem(d)) = &node.node else {
            format.other.push("?".to_owned());
            continue;
        };
        let protobuf::DefElem {
            defnamespace: _,
            defname,
            arg,
            defaction: _,
            location: _,
            arg_location: _,
        } = d.as_ref();
        let value = arg.as_deref().and_then(constant);
        match defname.to_ascii_lowercase().as_str() {
            "format" => match value.as_deref() {
                Some("text") => format.kind = CopyKind::Text,
                Some("csv") => format.kind = CopyKind::Csv,
                Some("binary") => format.kind = CopyKind::Binary,
                _ => format.other.push("format".to_owned()),
            },
            "delimiter" => format.delimiter = value,
            "null" => format.null = value,
            "header" => {
                let off = matches!(value.as_deref(), Some("false" | "off" | "0" | "no"));
                format.header = !off;
            }
            "quote" => format.quote = value,
            "escape" => format.escape = value,
            "encoding" => format.encoding = value,
            // These change which values are quoted or accepted, never where a field ends.
            "freeze" | "force_quote" | "force_not_null" | "force_null" | "default" | "on_error"
            | "log_verbosity" | "reject_limit" => {}
            other => format.other.push(other.to_owned()),
        }
    }
    format
}
