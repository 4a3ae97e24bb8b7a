//! Hosts and how they are: what they said last, and how long ago.

use askama::Template;
use axum::extract::State;
use axum::response::Html;

use super::Console;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::Viewer;
use super::text::{Shown, When, ago, bytes, count};
use crate::collector::hosts::{self, Listed};
use crate::collector::wire::Report;
use crate::control::protocol::Status;
use crate::record::now_us;
use crate::record::terminal::duration;

/// A clock that differs by more is worth a word.
const SKEW_US: i64 = 5_000_000;
/// A certificate that ends this soon was not renewed as it should have been.
const SOON_US: i64 = 10 * 86_400_000_000;

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
    let told = console.collector().hub.told();
    let hosts = console.collector().central.read(hosts::list).await?;
    let now = now_us();
    let up = hosts.iter().filter(|h| h.state(now) == "up").count();
    let page = Page {
        frame: Frame::new("Hosts", "hosts", &login).live("hosts", told),
        up,
        hosts: hosts.iter().map(|h| card(h, now)).collect(),
    };
    Ok(Html(page.render()?))
}

fn card(h: &Listed, now: i64) -> Card {
    let state = h.state(now);
    let said = h.status.as_ref();
    let report: Option<Report> = said.and_then(|s| serde_json::from_value(s.clone()).ok());
    let lag = report.as_ref().map(|r| r.lag_events);
    let status = report.map(|r| r.status).unwrap_or_default();
    let mut facts = vec![("version", Shown::or_dash(h.version.as_deref()))];
    facts.push(("from the centre", Shown::line(&h.policies.words())));
    if said.is_some() {
        let policy = &status.policy;
        let words = format!("{} ({} rules)", policy.version, policy.rules);
        facts.push(("policy", Shown::line(&words)));
        facts.push(("still to ship", Shown::line(&behind(lag))));
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

fn problems(h: &Listed, status: &Status, now: i64) -> Vec<Shown> {
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
    if let Some(why) = &h.policies.status.error {
        let which =
            h.policies.status.refused.map(|v| format!(" (version {v})")).unwrap_or_default();
        let words = format!("Policies from here{which} are not in force there: {why}");
        all.push(Shown::line(&words));
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
