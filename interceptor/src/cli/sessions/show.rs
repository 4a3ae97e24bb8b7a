//! `interceptor sessions list` and `show`, for people and for programs.

mod ssh;

use std::io::{self, Write};

use serde_json::json;

use crate::record::replay::print_rows;
use crate::record::terminal::{Style, clock, columns, duration, local_time, safe, safe_lines};
use crate::record::{Reader, StoredEvent, Summary, event, export};
use ssh::Outcomes;

/// Sessions in a table.
pub(super) fn list(
    sessions: &[Summary],
    as_json: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if as_json {
        serde_json::to_writer_pretty(&mut *out, sessions)?;
        return Ok(writeln!(out)?);
    }
    let title = [
        "SESSION",
        "OPENED",
        "FOR",
        "SERVICE",
        "AGENT",
        "PRINCIPAL",
        "ROLE@DATABASE",
        "REQUESTS",
        "DENIED",
        "HELD",
        "STATE",
    ];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    for s in sessions {
        rows.push(vec![
            s.id.clone(),
            local_time(s.opened_us),
            lasted(s),
            safe(&s.service),
            or_dash(s.agent.as_deref()),
            or_dash(s.principal.as_deref()),
            match (&s.role, s.database.as_deref()) {
                (Some(role), Some("")) => safe(role),
                (Some(role), Some(database)) => safe(&format!("{role}@{database}")),
                _ => "-".into(),
            },
            s.requests.to_string(),
            s.denied.to_string(),
            s.held.to_string(),
            safe(state(s)),
        ]);
    }
    write!(out, "{}", columns(&rows, style))?;
    Ok(())
}

fn state(s: &Summary) -> &str {
    match (&s.reason, s.seal) {
        (Some(reason), Some(_)) => reason,
        _ => "open",
    }
}

fn lasted(s: &Summary) -> String {
    let until = s.closed_us.unwrap_or_else(event::now_us);
    duration(u64::try_from(until - s.opened_us).unwrap_or(0))
}

fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".into(), safe)
}

/// One session with every event.
pub(super) fn json(reader: &Reader, session: &Summary, out: &mut impl Write) -> anyhow::Result<()> {
    let mut events = Vec::new();
    reader.events(session.number, 0, |e| events.push(export::plain(session, e)))?;
    serde_json::to_writer_pretty(&mut *out, &json!({ "session": session, "events": events }))?;
    Ok(writeln!(out)?)
}

/// One session for people.
pub(super) fn text(
    reader: &Reader,
    s: &Summary,
    rows: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    writeln!(out, "{}", style.bold(&format!("session {} (number {})", s.id, s.number)))?;
    let agent = if s.proven { or_dash(s.agent.as_deref()) } else { "unproven".into() };
    let ssh = s.protocol == "ssh";
    for (name, value) in [
        ("service", format!("{} ({}) on {}", safe(&s.service), safe(&s.mode), safe(&s.host))),
        ("opened", format!("{}, {}", local_time(s.opened_us), lasted(s))),
        ("source", format!("{} to {}", safe(&s.source), safe(&s.original_dst))),
        ("agent", agent),
        ("principal", or_dash(s.principal.as_deref())),
        ("role", or_dash(s.role.as_deref())),
        ("database", if ssh { String::new() } else { or_dash(s.database.as_deref()) }),
        ("client", or_dash(s.client.as_deref())),
        ("state", safe(state(s))),
        (
            "requests",
            format!(
                "{}: {} allowed, {} held, {} denied, {} failed",
                s.requests, s.allowed, s.held, s.denied, s.errors
            ),
        ),
        (
            "results",
            if ssh {
                String::new()
            } else {
                format!("{} rows, {} values masked", s.rows, s.masked)
            },
        ),
    ] {
        if !value.is_empty() {
            writeln!(out, "{} {value}", style.dim(&format!("{name:>10}")))?;
        }
    }
    let outcomes = if ssh { Outcomes::of(reader, s)? } else { Outcomes::default() };
    let mut result = Ok(());
    reader.events(s.number, 0, |e| {
        if result.is_ok() {
            result = show_event(e, rows, &outcomes, style, out);
        }
    })?;
    Ok(result?)
}

fn show_event(
    e: &StoredEvent<'_>,
    rows: bool,
    outcomes: &Outcomes,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    if let Some(shown) = ssh::show_event(e, rows, style, out) {
        return shown;
    }
    let at = style.dim(&clock(e.ts_us));
    let body: serde_json::Value = serde_json::from_slice(e.body).unwrap_or_default();
    match e.kind {
        "session.open" => Ok(()),
        "identity.proven" => {
            writeln!(out, "{at} claims")?;
            let text = serde_json::to_string_pretty(&body["claims"]).unwrap_or_default();
            text.lines().try_for_each(|l| writeln!(out, "    {}", safe(l)))
        }
        "request" => {
            let rules = strings(&body["rules"]).join(", ");
            let verdict = style.verdict(word(&body["verdict"]));
            let (n, class) = (&body["n"], safe(word(&body["class"])));
            writeln!(out, "{at} #{n} {verdict} {class} [{}]", safe(&rules))?;
            for line in safe_lines(word(&body["text"])).lines() {
                writeln!(out, "    {line}")?;
            }
            let values = body["values"].as_array().map_or(&[][..], Vec::as_slice);
            for (i, value) in values.iter().enumerate() {
                writeln!(out, "    ${} = {}", i + 1, safe(&value.to_string()))?;
            }
            if let Some(message) = body["message"].as_str() {
                writeln!(out, "    {}", safe(message))?;
            }
            outcomes.show(body["n"].as_u64().unwrap_or(0), style, out)
        }
        "response" => {
            let took = duration(body["duration_us"].as_u64().unwrap_or(0));
            let (n, tag, count) = (&body["n"], safe(word(&body["tag"])), &body["rows"]);
            let masked = body["masked"].as_u64().unwrap_or(0);
            match body["error"].as_object() {
                Some(_) => {
                    let (code, text) = (&body["error"]["code"], &body["error"]["message"]);
                    let text = format!("ERROR {} {}", safe(word(code)), safe(word(text)));
                    writeln!(out, "{at} #{n} {} {took}", style.red(&text))?;
                }
                None => writeln!(out, "{at} #{n} {tag}: {count} rows, {masked} masked, {took}")?,
            }
            if rows { print_rows(out, e.data, style) } else { Ok(()) }
        }
        kind => {
            let text = safe(&String::from_utf8_lossy(e.body));
            writeln!(out, "{at} {} {text}", safe(kind))
        }
    }
}

fn word(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(value: &serde_json::Value) -> Vec<&str> {
    value.as_array().map(|a| a.iter().filter_map(|v| v.as_str()).collect()).unwrap_or_default()
}
