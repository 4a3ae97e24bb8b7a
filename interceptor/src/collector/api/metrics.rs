//! Prometheus metrics of the collector.

use std::fmt::Write;

use crate::collector::db::Connection;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_TYPE, FORWARDED, HOST};
use axum::response::{IntoResponse, Response};

use super::caller::Caller;
use super::{Api, Refused};
use crate::collector::forward::{self, Forward, Standing};
use crate::collector::{CollectorError, Peer, hosts, recordings, retention};
use crate::record::now_us;

/// A number of a host at a time (microseconds since the Unix epoch), where there is one.
type OfHost = fn(&hosts::Listed, i64) -> Option<i64>;

/// `GET /metrics`: for programs on this machine, and for viewers with a token.
pub async fn show(State(api): State<Api>, request: Request) -> Result<Response, Refused> {
    if !from_this_machine(&request) {
        let (mut parts, _) = request.into_parts();
        Caller::from_request_parts(&mut parts, &api).await?;
    }
    let collector = std::sync::Arc::clone(&api.0.collector);
    let read = move |db: &Connection| {
        let mut out = text(db)?;
        let all = collector.config.forwards.iter();
        let all: Vec<_> = all.map(|f| (f, collector.forwards.of(f))).collect();
        forwards(&mut out, db, &all)?;
        let in_force = collector.keys.in_force(db)?;
        let key = in_force.public().fingerprint_hex();
        let signs = u8::from(in_force.check().is_ok());
        let _ = writeln!(
            out,
            "# HELP interceptor_collector_signs Whether this process has the signing key in force.\n\
             # TYPE interceptor_collector_signs gauge\n\
             interceptor_collector_signs{{key=\"{key}\"}} {signs}"
        );
        moving(&mut out, &recordings::moved(db)?, &collector.recordings.state());
        Ok::<_, CollectorError>(out)
    };
    let text = api.0.collector.central.read(read).await?;
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
    let one = |sql: &str| -> crate::collector::db::Result<i64> {
        db.prepare_cached(sql)?.query_row([], |r| r.get(0))
    };
    let counts = || -> crate::collector::db::Result<[(&str, &str, &str, i64); 7]> {
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
    let counts = counts().map_err(CollectorError::db("count for metrics"))?;
    let mut out = String::new();
    head(&mut out, "info", "gauge", "The version that runs.");
    line(&mut out, "info", concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
    for (name, kind, help, value) in counts {
        head(&mut out, name, kind, help);
        line(&mut out, name, "", value);
    }
    let now = now_us();
    retention(&mut out, &retention::standing(db)?, now);
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
            h.policies.takes.then(|| i64::try_from(h.policies.status.version).unwrap_or(i64::MAX))
        }),
        ("host_policy_refused", "gauge", "Whether a host refuses a newer version.", |h, _| {
            h.policies.takes.then_some(i64::from(h.policies.status.error.is_some()))
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

/// A number of a forward, where there is one.
type OfForward = fn(&Standing, i64) -> u64;

/// How other systems are served. All metrics stand there even when there is no forward.
fn forwards(
    out: &mut String,
    db: &Connection,
    all: &[(&Forward, Standing)],
) -> Result<(), CollectorError> {
    let waiting: Result<Vec<i64>, _> =
        all.iter().map(|(f, _)| forward::waiting(db, &f.name)).collect();
    let waiting = waiting?;
    let each: [(&str, &str, &str, OfForward); 6] = [
        ("forward_waiting_events", "gauge", "Events that are not delivered.", |_, waiting| {
            u64::try_from(waiting).unwrap_or(0)
        }),
        ("forward_behind_seconds", "gauge", "Since everything was delivered.", |s, _| {
            s.behind_since.map_or(0, |since| since.elapsed().as_secs())
        }),
        ("forward_failing", "gauge", "Whether the last attempt failed.", |s, _| {
            u64::from(s.failing)
        }),
        ("forward_failures_total", "counter", "Attempts that failed.", |s, _| s.failures),
        ("forward_events_total", "counter", "OCSF events that were delivered.", |s, _| s.delivered),
        ("forward_rejected_total", "counter", "Events that the receiver refused.", |s, _| {
            s.rejected
        }),
    ];
    for (name, kind, help, value) in each {
        head(out, name, kind, help);
        for ((forward, standing), waiting) in all.iter().zip(&waiting) {
            // Names of forwards need no escapes.
            let label = format!("{{forward=\"{}\",to=\"{}\"}}", forward.name, forward.to.word());
            let value = i64::try_from(value(standing, *waiting)).unwrap_or(i64::MAX);
            line(out, name, &label, value);
        }
    }
    Ok(())
}

/// What retention did.
fn retention(out: &mut String, s: &retention::Standing, now: i64) {
    let seconds = |us: i64| now.saturating_sub(us).max(0) / 1_000_000;
    let all = [
        ("retention_sessions_total", "counter", "Sessions that were deleted.", Some(s.sessions)),
        ("retention_events_total", "counter", "Events of them.", Some(s.events)),
        ("retention_bytes_total", "counter", "Bytes of these events.", Some(s.bytes)),
        ("retention_pending", "gauge", "Deleted, and not all taken out yet.", Some(s.pending)),
        ("retention_altered", "gauge", "Old, and not as they were sealed.", Some(s.altered)),
        ("retention_swept_seconds", "gauge", "Since the last sweep.", s.swept_us.map(seconds)),
        (
            "retention_oldest_seconds",
            "gauge",
            "Since the oldest session that is kept was sealed.",
            Some(s.oldest_us.map_or(0, seconds)),
        ),
        ("legal_holds", "gauge", "Legal holds that stand.", Some(s.legal_holds)),
    ];
    for (name, kind, help, value) in all {
        if let Some(value) = value {
            head(out, name, kind, help);
            line(out, name, "", value);
        }
    }
}

/// How attachments of large sessions go out of the replicas.
fn moving(out: &mut String, moved: &recordings::Moved, state: &recordings::State) {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let failing = i64::from(state.failing.is_some());
    for (name, kind, help, value) in [
        ("recordings_sessions_total", "counter", "Large sessions moved.", moved.sessions),
        ("recordings_bytes_total", "counter", "Bytes of their objects.", moved.bytes),
        ("recordings_failing", "gauge", "Whether the last attempt to move failed.", failing),
        (
            "recordings_failures_total",
            "counter",
            "Attempts to move that failed.",
            number(state.failures),
        ),
        (
            "recordings_altered",
            "gauge",
            "Large, and not as they were sealed.",
            number(state.altered),
        ),
    ] {
        head(out, name, kind, help);
        line(out, name, "", value);
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::collector::Central;

    const DASHBOARD: &str = include_str!("../../../../docs/grafana/interceptor.json");

    /// Everything in a text that begins as our metrics do.
    fn names(text: &str) -> BTreeSet<String> {
        let begins = text.match_indices("interceptor_").map(|(at, _)| &text[at..]);
        begins
            .map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                rest[..end.unwrap_or(rest.len())].to_owned()
            })
            .collect()
    }

    /// Every query in a dashboard.
    fn queries<'a>(value: &'a serde_json::Value, all: &mut Vec<&'a str>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    let is_query = ["expr", "query", "definition"].contains(&key.as_str());
                    all.extend(value.as_str().filter(|_| is_query));
                    queries(value, all);
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|v| queries(v, all)),
            _ => {}
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_dashboard_asks_for_metrics_that_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let central = Central::open(dir.path()).unwrap();
        let forward: Forward = toml::from_str("name = 'siem'\nto = 'file'\npath = '/x'").unwrap();
        let printed = central
            .write(move |db| {
                db.execute_batch(
                    "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
                     certificate_until_us, seen_us, events) VALUES ('f', 'db1', x'00', 1, '', 1, 1, 7); \
                     INSERT INTO host_policies (host, reported_us, takes, version, in_force, sha256, rules) \
                     SELECT id, 1, 1, 3, 1, '', 2 FROM hosts; \
                     UPDATE retention SET swept_us = 1;",
                )
                .map_err(CollectorError::db("test"))?;
                let mut out = text(db)?;
                forwards(&mut out, db, &[(&forward, Standing::default())])?;
                moving(&mut out, &recordings::moved(db)?, &recordings::State::default());
                Ok::<_, CollectorError>(out)
            })
            .await
            .unwrap();
        // Not yet begun: nothing waits.
        let line = "interceptor_collector_forward_waiting_events{forward=\"siem\",to=\"file\"} 0";
        assert!(printed.lines().any(|l| l == line), "{printed}");
        let values: String = printed.lines().filter(|l| !l.starts_with('#')).collect();
        let there = names(&values);
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
        let mut all = Vec::new();
        queries(&dashboard, &mut all);
        let asked: BTreeSet<_> = all.iter().flat_map(|query| names(query)).collect();
        let unknown: Vec<_> = asked.difference(&there).collect();
        assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}");
        let unseen: Vec<_> = there.difference(&asked).collect();
        assert!(unseen.is_empty(), "the dashboard does not show {unseen:?}");
        // Each panel shows something of its own, and asks the chosen source.
        for panel in dashboard["panels"].as_array().unwrap() {
            assert_eq!(panel["datasource"]["uid"], "${source}", "{}", panel["title"]);
        }
    }
}
