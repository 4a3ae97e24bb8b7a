//! Prometheus metrics of the collector.

use std::fmt::Write;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, FORWARDED, HOST};
use axum::response::{IntoResponse, Response};
use rusqlite::Connection;

use super::caller::Caller;
use super::{Api, Refused};
use crate::collector::{CollectorError, Peer, hosts};
use crate::record::now_us;

/// A number of a host at a time (microseconds since the Unix epoch), where there is one.
type OfHost = fn(&hosts::Listed, i64) -> Option<i64>;

/// `GET /metrics`: for programs on this machine, and for viewers with a token.
pub async fn show(State(api): State<Api>, request: Request) -> Result<Response, Refused> {
    if !from_this_machine(&request) {
        let (mut parts, _) = request.into_parts();
        Caller::from_request_parts(&mut parts, &api).await?;
    }
    let text = api.0.collector.central.read(text).await?;
    let mut answer = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(answer)
}

/// What a proxy on this machine passes on is not of this machine.
fn from_this_machine(request: &Request) -> bool {
    let headers = request.headers();
    let passed_on = headers.contains_key(FORWARDED)
        || headers.contains_key("x-forwarded-for")
        || headers.contains_key("x-real-ip")
        || headers.contains_key("via");
    // A proxy that adds nothing still passes on the name that was asked for, and so does a browser
    // that was led here by somebody else's name.
    let host = headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let own = name == "localhost"
        || name.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let peer = request.extensions().get::<Peer>();
    own && !passed_on && peer.is_some_and(|p| p.address.ip().is_loopback())
}

fn text(db: &Connection) -> Result<String, CollectorError> {
    let hosts = hosts::list(db)?;
    let one = |sql: &str| -> rusqlite::Result<i64> {
        db.prepare_cached(sql)?.query_row([], |r| r.get(0))
    };
    let counts = || -> rusqlite::Result<[(&str, &str, &str, i64); 7]> {
        Ok([
            (
                "sessions_live",
                "gauge",
                "Sessions that run.",
                one("SELECT count(*) FROM sessions WHERE closed_us IS NULL AND sealed IS NULL")?,
            ),
            (
                "holds_waiting",
                "gauge",
                "Requests that wait for a person.",
                one("SELECT count(*) FROM holds WHERE state = 'waiting'")?,
            ),
            ("logins", "gauge", "People who are logged in.", one("SELECT count(*) FROM logins")?),
            (
                "log_leaves",
                "gauge",
                "Sealed sessions in the log.",
                one("SELECT coalesce(max(idx) + 1, 0) FROM leaves")?,
            ),
            (
                "orders_open",
                "gauge",
                "Orders that hosts have not carried out.",
                one("SELECT count(*) FROM orders WHERE done_us IS NULL")?,
            ),
            (
                "audit_entries",
                "gauge",
                "Entries of the audit trail.",
                one("SELECT coalesce(max(id), 0) FROM audit")?,
            ),
            (
                "policy_version",
                "gauge",
                "Newest version of policies that hosts may take.",
                one("SELECT coalesce(max(version), 0) FROM policy_versions")?,
            ),
        ])
    };
    let counts = counts().map_err(CollectorError::sqlite("count for metrics"))?;
    let mut out = String::new();
    for (name, kind, help, value) in counts {
        head(&mut out, name, kind, help);
        line(&mut out, name, "", value);
    }
    let now = now_us();
    let each: [(&str, &str, &str, OfHost); 7] = [
        ("host_up", "gauge", "Whether a host was heard of lately.", |h, now| {
            Some(i64::from(h.state(now) == "up"))
        }),
        ("host_silent_seconds", "gauge", "Since a host was heard of.", |h, now| {
            h.seen_us.map(|seen| now.saturating_sub(seen).max(0) / 1_000_000)
        }),
        ("host_events_total", "counter", "Events that have come.", |h, _| Some(h.events)),
        ("host_refused", "gauge", "Whether a host's records are refused.", |h, _| {
            Some(i64::from(h.problem.is_some()))
        }),
        ("host_certificate_seconds", "gauge", "Until a host's certificate ends.", |h, now| {
            Some(h.certificate_until_us.saturating_sub(now) / 1_000_000)
        }),
        ("host_policy_version", "gauge", "Version of policies that a host took.", |h, _| {
            h.policies.takes.then(|| i64::try_from(h.policies.version).unwrap_or(i64::MAX))
        }),
        ("host_policy_refused", "gauge", "Whether a host refuses a newer version.", |h, _| {
            h.policies.takes.then_some(i64::from(h.policies.error.is_some()))
        }),
    ];
    for (name, kind, help, value) in each {
        head(&mut out, name, kind, help);
        for host in hosts.iter().filter(|h| h.revoked_us.is_none()) {
            if let Some(value) = value(host, now) {
                line(&mut out, name, &label(host), value);
            }
        }
    }
    Ok(out)
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "# HELP interceptor_collector_{name} {help}");
    let _ = writeln!(out, "# TYPE interceptor_collector_{name} {kind}");
}

fn line(out: &mut String, name: &str, label: &str, value: i64) {
    let _ = writeln!(out, "interceptor_collector_{name}{label} {value}");
}

/// The id tells hosts of one name apart.
fn label(host: &hosts::Listed) -> String {
    let name: String = host.name.chars().filter(|c| !c.is_control()).take(200).collect();
    let name = name.replace('\\', "\\\\").replace('"', "\\\"");
    format!("{{host=\"{name}\",id=\"{}\"}}", host.id)
}
