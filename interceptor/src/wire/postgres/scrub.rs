//! What the server says beside rows: errors, notices, notifications, parameter values.
//!
//! With masked columns in reach such a text can carry their values (`Key (email)=(…)`, a failed
//! cast, a RAISE, even at COMMIT), so only what cannot is let through: the SQLSTATE, names of
//! objects, positions, and the primary message where the source file that wrote it never prints
//! data.

use bytes::{BufMut, BytesMut};

use super::codec;

/// Server source files whose messages name identifiers, types and states, never values
/// (`errfile`, field `F`): the parser, name lookup, permissions, transactions.
const SILENT_FILES: &[&str] = &[
    "scan.l",
    "gram.y",
    "parser.c",
    "parse_agg.c",
    "parse_clause.c",
    "parse_collate.c",
    "parse_cte.c",
    "parse_expr.c",
    "parse_func.c",
    "parse_merge.c",
    "parse_oper.c",
    "parse_param.c",
    "parse_relation.c",
    "parse_target.c",
    "parse_utilcmd.c",
    "analyze.c",
    "aclchk.c",
    "postgres.c",
    "prepare.c",
    "portalcmds.c",
    "portalmem.c",
    "xact.c",
    "tablecmds.c",
    "heap.c",
    "dependency.c",
    "utility.c",
    "proc.c",
    "procarray.c",
    "lmgr.c",
    "deadlock.c",
    "predicate.c",
];

/// Parameters whose values are the server's own words.
const OWN_WORDS: &[&str] = &[
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "application_name",
    "client_encoding",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "is_superuser",
    "scram_iterations",
    "search_path",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
];

/// Appends an ErrorResponse or NoticeResponse, scrubbed when `shielded`; returns the primary
/// message as the agent sees it.
pub fn report(tag: u8, body: &[u8], shielded: bool, out: &mut BytesMut) -> String {
    let Ok(fields) = codec::report_fields(body) else {
        let message = "the server's message cannot be read and is withheld";
        codec::Report::error("XX000", message).write(out);
        return message.to_owned();
    };
    let find =
        |kind: u8| fields.iter().find(|(k, _)| *k == kind).map(|(_, v)| String::from_utf8_lossy(v));
    let code = find(b'C').unwrap_or_default();
    let silent = find(b'F').is_some_and(|file| SILENT_FILES.contains(&file.as_ref()));
    let message = match find(b'M') {
        Some(message) if !shielded || silent => message.into_owned(),
        _ => format!("{} (text withheld: masked columns are in reach)", condition(&code)),
    };
    codec::message(out, tag, |out| {
        for (kind, value) in &fields {
            match kind {
                b'M' => {
                    out.put_u8(b'M');
                    codec::put_string(out, message.as_bytes());
                }
                // Detail, hint, context, internal query: values and whole statements.
                b'D' | b'H' | b'W' | b'q' if shielded => {}
                _ => {
                    out.put_u8(*kind);
                    codec::put_string(out, value);
                }
            }
        }
        out.put_u8(0);
    });
    message
}

/// Appends a NotificationResponse, its payload emptied when `shielded`.
pub fn notification(body: &[u8], shielded: bool, out: &mut BytesMut) {
    if !shielded {
        codec::message(out, b'A', |out| out.extend_from_slice(body));
        return;
    }
    let mut fields = codec::Body::new(b'A', body);
    let (Ok(pid), Ok(channel)) = (fields.i32("pid"), fields.string("channel")) else { return };
    codec::message(out, b'A', |out| {
        out.put_i32(pid);
        codec::put_string(out, channel);
        out.put_u8(0);
    });
}

/// A parameter's value as the agent sees it: without the session's id in front of its own
/// `application_name`, and nothing of unknown parameters when `shielded`.
pub fn parameter(name: &str, value: &str, prefix: &str, shielded: bool) -> String {
    if name == "application_name" {
        let own = value.strip_prefix(prefix).unwrap_or(value);
        return own.strip_prefix(' ').unwrap_or(own).to_owned();
    }
    if shielded && !OWN_WORDS.contains(&name) {
        return String::new();
    }
    value.to_owned()
}

/// The class of an SQLSTATE in words (manual, appendix A).
fn condition(code: &str) -> &'static str {
    match code {
        "22012" => "division by zero",
        "22P02" => "invalid input for a type",
        "23502" => "null value violates a not-null constraint",
        "23503" => "foreign key violation",
        "23505" => "duplicate key violates a unique constraint",
        "23514" => "check constraint violation",
        "57014" => "canceling statement due to user request",
        _ => match code.get(..2).unwrap_or_default() {
            "00" => "notice",
            "01" => "warning",
            "08" => "connection error",
            "0A" => "feature not supported",
            "22" => "data error",
            "23" => "integrity constraint violation",
            "25" => "invalid transaction state",
            "40" => "transaction rollback",
            "42" => "syntax error or access rule violation",
            "53" => "insufficient resources",
            "54" => "program limit exceeded",
            "55" => "object not in prerequisite state",
            "57" => "operator intervention",
            "P0" => "error in a function",
            _ => "error",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(fields: &[(u8, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, value) in fields {
            out.push(*kind);
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        }
        out.push(0);
        out
    }

    #[test]
    fn values_in_errors_are_withheld_when_shielded() {
        let body = body(&[
            (b'S', "ERROR"),
            (b'C', "23505"),
            (b'M', "duplicate key value violates unique constraint \"customers_email_key\""),
            (b'D', "Key (email)=(alice@example.com) already exists."),
            (b'W', "SQL statement \"insert … alice@example.com\""),
            (b'n', "customers_email_key"),
            (b'F', "nbtinsert.c"),
        ]);
        let mut out = BytesMut::new();
        report(b'E', &body, true, &mut out);
        let text = String::from_utf8_lossy(&out);
        assert!(!text.contains("alice"), "{text}");
        assert!(text.contains("23505") && text.contains("customers_email_key"));
        let mut open = BytesMut::new();
        report(b'E', &body, false, &mut open);
        assert!(String::from_utf8_lossy(&open).contains("alice@example.com"));
    }

    #[test]
    fn parser_messages_stay_readable() {
        let body = body(&[
            (b'C', "42703"),
            (b'M', "column \"emial\" does not exist"),
            (b'F', "parse_relation.c"),
        ]);
        let mut out = BytesMut::new();
        assert_eq!(report(b'E', &body, true, &mut out), "column \"emial\" does not exist");
    }

    #[test]
    fn a_raise_cannot_pass_as_a_parser_message() {
        let body = body(&[(b'C', "42703"), (b'M', "alice@example.com"), (b'F', "pl_exec.c")]);
        let mut out = BytesMut::new();
        assert!(!report(b'E', &body, true, &mut out).contains("alice"));
    }

    #[test]
    fn the_own_application_name_is_shown_without_the_session() {
        assert_eq!(parameter("application_name", "01ABC psql", "01ABC", true), "psql");
        assert_eq!(parameter("application_name", "01ABC", "01ABC", true), "");
    }
}
