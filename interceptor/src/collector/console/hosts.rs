//! Hosts and how they are: what they said last, and how long ago.

use askama::Template;
use axum::extract::State;
use axum::response::Html;
use rusqlite::Connection;

use super::Console;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::Viewer;
use super::text::{Shown, When, ago, bytes, count};
use crate::collector::CollectorError;
use crate::collector::wire::Report;
use crate::control::protocol::Status;
use crate::record::now_us;
use crate::record::terminal::duration;

/// A host that said nothing for so long is away.
const AWAY_US: i64 = 45_000_000;
/// A clock that differs by more is worth a word.
const SKEW_US: i64 = 5_000_000;
/// A certificate that ends this soon was not renewed as it should have been.
const SOON_US: i64 = 10 * 86_400_000_000;

/// A host as the database has it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Host {
    /// Id at the collector.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Fingerprint of the key that signs its records.
    pub fingerprint: String,
    /// When it enrolled; microseconds since the Unix epoch.
    pub enrolled_us: i64,
    /// When it was revoked, if it was.
    pub revoked_us: Option<i64>,
    /// When its certificate ends.
    pub certificate_until_us: i64,
    /// When it was last heard of.
    pub seen_us: Option<i64>,
    /// Version of its daemon.
    pub version: Option<String>,
    /// Last entry of its ledger that has come.
    pub ledger_idx: i64,
    /// Events that have come.
    pub events: i64,
    /// Why its records were refused, if they were.
    pub problem: Option<String>,
    /// What it said last, with its lag.
    pub status: Option<serde_json::Value>,
    /// Sessions of it that run.
    pub live: i64,
}

/// All hosts by name.
pub fn all(db: &Connection) -> Result<Vec<Host>, CollectorError> {
    let read = || -> rusqlite::Result<Vec<Host>> {
        db.prepare_cached(
            "SELECT id, name, fingerprint, enrolled_us, revoked_us, certificate_until_us, \
             seen_us, version, ledger_idx, events, problem, status, (SELECT count(*) FROM \
             sessions s WHERE s.host = h.id AND s.closed_us IS NULL AND s.sealed IS NULL) \
             FROM hosts h ORDER BY revoked_us IS NOT NULL, name, id LIMIT 5000",
        )?
        .query_map([], |r| {
            let status: Option<String> = r.get(11)?;
            Ok(Host {
                id: r.get(0)?,
                name: r.get(1)?,
                fingerprint: r.get(2)?,
                enrolled_us: r.get(3)?,
                revoked_us: r.get(4)?,
                certificate_until_us: r.get(5)?,
                seen_us: r.get(6)?,
                version: r.get(7)?,
                ledger_idx: r.get(8)?,
                events: r.get(9)?,
                problem: r.get(10)?,
                status: status.and_then(|s| serde_json::from_str(&s).ok()),
                live: r.get(12)?,
            })
        })?
        .collect()
    };
    read().map_err(CollectorError::sqlite("list hosts"))
}

impl Host {
    /// `up`, `away`, `revoked`, `new`.
    pub fn state(&self, now: i64) -> &'static str {
        match (self.revoked_us, self.seen_us) {
            (Some(_), _) => "revoked",
            (None, None) => "new",
            (None, Some(seen)) if now.saturating_sub(seen) > AWAY_US => "away",
            _ => "up",
        }
    }
}

#[derive(Template)]
#[template(path = "console/hosts.html")]
struct Page {
    frame: Frame,
    hosts: Vec<Card>,
    up: usize,
}

/// A host on the page.
struct Card {
    name: Shown,
    href: String,
    state: &'static str,
    words: &'static str,
    seen: String,
    fingerprint: Shown,
    enrolled: When,
    facts: Vec<(&'static str, Shown)>,
    services: Vec<Service>,
    problems: Vec<Shown>,
}

struct Service {
    name: Shown,
    protocol: Shown,
    port: u16,
    mode: Shown,
    captured: bool,
    live: u64,
    steered: String,
    refused: String,
    exempt: String,
}

/// `GET /hosts`.
pub async fn list(
    State(console): State<Console>,
    Viewer(login): Viewer,
) -> Result<Html<String>, Fault> {
    let hosts = console.collector().central.read(all).await?;
    let now = now_us();
    let up = hosts.iter().filter(|h| h.state(now) == "up").count();
    let page = Page {
        frame: Frame::new("Hosts", "hosts", &login).live("hosts"),
        up,
        hosts: hosts.iter().map(|h| card(h, now)).collect(),
    };
    Ok(Html(page.render()?))
}

fn card(h: &Host, now: i64) -> Card {
    let state = h.state(now);
    let said = h.status.as_ref();
    let report: Option<Report> = said.and_then(|s| serde_json::from_value(s.clone()).ok());
    let lag = report.as_ref().map(|r| r.lag_events);
    let status = report.map(|r| r.status).unwrap_or_default();
    let mut facts = vec![("version", Shown::or_dash(h.version.as_deref()))];
    if said.is_some() {
        let policy = &status.policy;
        let words = format!("{} ({} rules)", policy.version, policy.rules);
        facts.push(("policy", Shown::line(&words)));
        facts.push(("not here yet", Shown::line(&behind(lag))));
        let store = format!(
            "{} of {}, on {}",
            bytes(status.record.bytes),
            bytes(status.record.max_bytes),
            status.record.durability
        );
        facts.push(("store", Shown::line(&store)));
        facts.push(("up for", Shown::line(&duration(status.uptime_s.saturating_mul(1_000_000)))));
        let waiting = format!("{} waiting, {} grants", status.held, status.grants);
        facts.push(("approvals", Shown::line(&waiting)));
    }
    let events = count(u64::try_from(h.events).unwrap_or(0));
    facts.push(("records", Shown::line(&format!("{events} events, ledger at {}", h.ledger_idx))));
    facts.push(("live sessions", Shown::line(&h.live.to_string())));
    let until = When::at(h.certificate_until_us).words;
    facts.push(("certificate", Shown::line(&format!("until {until} UTC"))));
    Card {
        name: Shown::line(&h.name),
        href: format!("/sessions?host={}", super::text::query(&h.name)),
        state,
        words: match state {
            "up" => "up",
            "away" => "away",
            "revoked" => "revoked",
            _ => "never seen",
        },
        seen: h.seen_us.map(|at| ago(at, now)).unwrap_or_default(),
        fingerprint: Shown::line(&h.fingerprint),
        enrolled: When::at(h.enrolled_us),
        facts,
        services: status.services.iter().take(100).map(service).collect(),
        problems: problems(h, &status, now),
    }
}

fn service(s: &crate::control::protocol::ServiceStatus) -> Service {
    Service {
        name: Shown::short(&s.name, 60),
        protocol: Shown::short(&s.protocol, 20),
        port: s.port,
        mode: Shown::short(&s.mode, 20),
        captured: s.listening,
        live: s.live,
        steered: count(s.steered),
        refused: count(s.refused),
        exempt: count(s.exempt),
    }
}

/// What the host has not shipped yet, as it says.
fn behind(events: Option<u64>) -> String {
    match events {
        None => "unknown".into(),
        Some(0) => "nothing".into(),
        Some(1) => "1 event".into(),
        Some(n) => format!("{} events", count(n)),
    }
}

fn problems(h: &Host, status: &Status, now: i64) -> Vec<Shown> {
    let mut all = Vec::new();
    if let Some(problem) = &h.problem {
        all.push(Shown::line(&format!("Its records are refused: {problem}")));
    }
    if h.revoked_us.is_some() {
        return all;
    }
    let skew = h.status.as_ref().and_then(|s| s.get("skew_us")).and_then(|v| v.as_i64());
    if let Some(skew) = skew.filter(|s| s.abs() > SKEW_US) {
        let words = format!("Its clock differs by {} s.", skew / 1_000_000);
        all.push(Shown::line(&words));
    }
    if h.certificate_until_us.saturating_sub(now) < SOON_US {
        all.push(Shown::line("Its certificate ends soon and was not renewed."));
    }
    if let Some(why) = &status.record.refusing {
        all.push(Shown::line(&format!("It refuses new requests: {why}")));
    }
    if let Some(why) = &status.policy.reload_error {
        all.push(Shown::line(&format!("Its newest policies are not in force: {why}")));
    }
    for issuer in &status.issuers {
        if let Some(why) = &issuer.error {
            all.push(Shown::line(&format!("Issuer {} cannot be asked: {why}", issuer.name)));
        }
    }
    for service in status.services.iter().filter(|s| !s.listening) {
        let words = format!("Port {} of {} is not captured.", service.port, service.name);
        all.push(Shown::line(&words));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_here_yet_is_unknown_until_a_host_says_it() {
        assert_eq!(behind(None), "unknown");
        assert_eq!(behind(Some(0)), "nothing");
        assert_eq!(behind(Some(1200)), "1\u{202f}200 events");
    }
}
