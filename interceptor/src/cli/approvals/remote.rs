//! `interceptor approvals --collector`: the same for the requests of all hosts, by the collector's
//! REST interface and a token of one's own.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::console::Console;
use super::super::table::{Paint, Table, cut, safe, span};
use super::{Verb, describe, show};
use crate::approval::{HoldDetail, HoldSummary, Impact};

/// A hold, as far as it is shown here.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    host_name: String,
    summary: HoldSummary,
    needs: u32,
    approvals: u32,
    state: String,
}

#[derive(Deserialize)]
struct View {
    #[serde(flatten)]
    row: Row,
    statement: Option<String>,
    values: Option<Vec<Option<String>>>,
    #[serde(default)]
    impact: Option<Impact>,
    withheld: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Grant {
    host: i64,
    host_name: String,
    grant: String,
    summary: Option<HoldSummary>,
    by: Value,
    until_us: i64,
}

/// Runs the verb at a collector.
pub async fn run(console: &Console, verb: Verb) -> anyhow::Result<ExitCode> {
    let paint = Paint::stdout();
    match verb {
        Verb::List { wait: true, .. } => {
            bail!("--wait is for the daemon of a host: at the collector use its webhooks")
        }
        Verb::List { json: as_json, .. } => {
            let all: Value = console.get("/api/v1/holds").await?;
            let rows = rows(&all)?;
            show(&all, as_json, || list(&rows, paint))?;
        }
        Verb::Show { id, json: as_json } => {
            let found: Value = console.get(&format!("/api/v1/holds/{}", name(&id)?)).await?;
            let view: View = serde_json::from_value(found.clone())?;
            show(&found, as_json, || shown(view, paint))?;
        }
        Verb::Approve { id, time, reason, json } => {
            let for_seconds = time.map(|t| t.as_secs());
            let choice = json!({ "approve": true, "for_seconds": for_seconds, "reason": reason });
            decide(console, &id, &choice, json).await?;
        }
        Verb::Deny { id, reason, json } => {
            decide(console, &id, &json!({ "approve": false, "reason": reason }), json).await?;
        }
        Verb::Grants { json: as_json } => {
            let all: Value = console.get("/api/v1/grants").await?;
            let standing: Vec<Grant> = serde_json::from_value(items(&all))?;
            show(&all, as_json, || grants(&standing, paint))?;
        }
        Verb::Revoke { id, json: as_json } => {
            let path = format!("/api/v1/grants/{}/revoke", name(&id)?);
            let gone: Value = console.post(&path, &json!({})).await?;
            show(&gone, as_json, || format!("the host is told to withdraw {}\n", safe(&id)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An id as it may stand in a path.
fn name(id: &str) -> anyhow::Result<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b':');
    if id.is_empty() || !id.bytes().all(fits) {
        bail!("{id:?} is no id: see `interceptor approvals list --collector …`");
    }
    Ok(id)
}

/// The list itself, or the first list in its envelope.
fn items(answer: &Value) -> Value {
    match answer {
        Value::Object(map) => map.values().find(|v| v.is_array()).cloned().unwrap_or_default(),
        other => other.clone(),
    }
}

fn rows(answer: &Value) -> anyhow::Result<Vec<Row>> {
    Ok(serde_json::from_value(items(answer))?)
}

async fn decide(console: &Console, id: &str, choice: &Value, json: bool) -> anyhow::Result<()> {
    let path = format!("/api/v1/holds/{}/decision", name(id)?);
    let done: Value = console.post(&path, choice).await?;
    show(&done, json, || {
        let state = done["state"].as_str().unwrap_or_default();
        match state {
            "waiting" => format!(
                "{} has {} of {} approvals: it waits for somebody else\n",
                safe(id),
                done["approvals"],
                done["needs"]
            ),
            _ => format!("{} is {}\n", safe(id), safe(state)),
        }
    })
}

fn list(rows: &[Row], paint: Paint) -> String {
    if rows.is_empty() {
        return "nothing waits\n".into();
    }
    let mut table = Table::new(&[
        "ID",
        "LEFT",
        "HOST",
        "SERVICE",
        "AGENT",
        "FOR",
        "APPROVED",
        "STATEMENT (NO VALUES)",
    ]);
    for row in rows {
        let h = &row.summary;
        table.row([
            row.id.clone(),
            span(Duration::from_millis(h.remaining_ms)),
            cut(&row.host_name, 24),
            format!("{}/{}", h.service, h.database),
            cut(&h.agent, 24),
            cut(&h.principal, 32),
            format!("{}/{}", row.approvals, row.needs),
            cut(&h.shape, 72),
        ]);
    }
    table.render(paint)
        + "\n`interceptor approvals show ID --collector …` shows the exact statement\n"
}

fn shown(view: View, paint: Paint) -> String {
    let View { row, statement, values, impact, withheld } = view;
    let head = format!(
        "{:<10} {}\n{:<10} {}, {} of {} approvals\n",
        "host:",
        safe(&row.host_name),
        "state:",
        safe(&row.state),
        row.approvals,
        row.needs
    );
    let summary = HoldSummary { id: row.id, ..row.summary };
    head + &describe(&HoldDetail { summary, statement, values, impact, withheld }, paint)
}

fn grants(all: &[Grant], paint: Paint) -> String {
    if all.is_empty() {
        return "no grant stands\n".into();
    }
    let now = crate::record::now_us();
    let mut table =
        Table::new(&["ID", "LEFT", "HOST", "SERVICE", "AGENT", "BY", "STATEMENT (NO VALUES)"]);
    for g in all {
        let left = u64::try_from(g.until_us.saturating_sub(now)).unwrap_or(0);
        let of = |pick: fn(&HoldSummary) -> &str| g.summary.as_ref().map_or("", pick).to_owned();
        let by = g.by.as_array().map(Vec::as_slice).unwrap_or_default();
        let by: Vec<&str> = by.iter().filter_map(|b| b["name"].as_str()).collect();
        table.row([
            format!("{}:{}", g.host, g.grant),
            span(Duration::from_micros(left)),
            cut(&g.host_name, 24),
            of(|s| &s.service),
            cut(&of(|s| &s.agent), 24),
            cut(&by.join(" and "), 32),
            cut(&of(|s| &s.shape), 72),
        ]);
    }
    table.render(paint)
}
