//! A session's page: who, what was asked and what came of it, whether it is as it was signed.

use std::sync::Arc;

use crate::collector::db::OptionalExtension;
use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::Value;

use super::fault::Fault;
use super::find::{self, Found};
use super::frame::Frame;
use super::guard::{Signed, Viewer, demand};
use super::sessions::{Line, href};
use super::text::{Shown, When, count};
use super::timeline::{Entry, Item, Timeline};
use super::{Console, blocking, legal};
use crate::collector::retention::legal_holds;
use crate::collector::{Collector, CollectorError, Role, decisions};
use crate::record::event::IdentityProven;
use crate::record::{Body, PublicKey, Reader, RecordError, day, now_us, sealed};
use crate::session::Target;

/// Most entries of a page.
const ENTRIES: usize = 200;
/// Bytes of recorded text after which a page has no further entry.
const SHOWN: usize = 1 << 20;
/// Bytes of events after which no further one is read for a page.
const READ: usize = 16 << 20;
/// Sessions with more events, or more bytes of them, are checked only when somebody asks.
const CHECK_AT_ONCE: u64 = 20_000;
const CHECK_BYTES: u64 = 128 << 20;

/// Which part of the page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Part {
    after: u64,
    verify: String,
    ended: String,
}

#[derive(Template)]
#[template(path = "console/session.html")]
struct Page {
    frame: Frame,
    line: Line,
    facts: Vec<(&'static str, Shown)>,
    claims: Vec<(Shown, Shown)>,
    labels: Vec<Shown>,
    entries: Vec<Entry>,
    after: u64,
    next: Option<u64>,
    verified: Verified,
    live: bool,
    last: u64,
    ssh: bool,
    id: String,
    may_end: bool,
    end_asked: bool,
    /// Its content is not there any more.
    gone: bool,
    /// A legal hold keeps it.
    kept: bool,
    /// Those that do, for administrators, who may place one as well.
    legal: Vec<legal::Line>,
    may_hold: bool,
}

/// New entries of a session that is followed.
#[derive(Template)]
#[template(path = "console/entries.html")]
pub struct Fragment {
    pub entries: Vec<Entry>,
}

/// What is known of the session's integrity.
struct Verified {
    /// `good`, `bad`, `open`, `unasked`, `gone`.
    state: &'static str,
    title: &'static str,
    lines: Vec<Shown>,
}

/// Everything of a session that is read in one go.
#[derive(Default)]
struct Looked {
    claims: Option<Value>,
    labels: Vec<Shown>,
    entries: Vec<Entry>,
    next: Option<u64>,
    last: u64,
    checked: Option<sealed::Checked>,
}

/// `GET /sessions/{id}`.
pub async fn show(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Path(name): Path<String>,
    Query(part): Query<Part>,
) -> Result<Html<String>, Fault> {
    let found =
        find::session(console.collector(), name).await.map_err(|m| Fault::from(m).of(&login))?;
    let host = found.host;
    let known = move |db: &crate::collector::db::Connection| of_host(db, host);
    let key = console.collector().central.read(known).await?;
    let collector = Arc::clone(console.collector());
    let asked = part.verify == "yes";
    let (after, row) = (part.after, found.clone());
    let looked = blocking(move || look(&collector, &row, key, after, asked)).await;
    // Deleted, perhaps since it was found.
    let gone = looked.as_ref().is_err_and(Fault::is_gone);
    let (found, looked) = if gone {
        let again = find::session(console.collector(), found.id.to_string()).await;
        (again.map_err(|m| Fault::from(m).of(&login))?, Looked::default())
    } else {
        (found, looked.map_err(|f| f.of(&login))?)
    };
    let admin = login.person.is(Role::Admin);
    let legal = match admin && found.legal_hold {
        true => {
            let id = found.id;
            let read = move |db: &crate::collector::db::Connection| legal_holds::of_session(db, id);
            console.collector().central.read(read).await?
        }
        false => Vec::new(),
    };
    let live = found.live();
    let title = format!("{} on {}", found.agent.as_deref().unwrap_or("unknown"), found.host_name);
    let html = Page {
        frame: Frame::new(&title, "sessions", &login),
        line: Line::new(&found, now_us()),
        facts: facts(&found),
        claims: claims(looked.claims.as_ref()),
        labels: looked.labels,
        entries: looked.entries,
        after,
        next: looked.next,
        verified: if gone { deleted(&found) } else { verified(&found, looked.checked) },
        live: live && looked.next.is_none(),
        last: looked.last,
        ssh: found.protocol == "ssh",
        id: href(&found).trim_start_matches("/sessions/").to_owned(),
        may_end: live && admin,
        end_asked: part.ended == "asked",
        gone,
        kept: found.legal_hold,
        legal: legal.iter().map(legal::Line::new).collect(),
        may_hold: admin && !gone,
    };
    Ok(Html(html.render()?))
}

/// The key with which a host signs.
fn of_host(
    db: &crate::collector::db::Connection,
    host: i64,
) -> Result<Option<PublicKey>, CollectorError> {
    let key: Option<Vec<u8>> = db
        .query_row("SELECT public_key FROM hosts WHERE id = ?1", [host], |r| r.get(0))
        .optional()
        .map_err(CollectorError::db("read a host's key"))?;
    Ok(key.and_then(|k| k.try_into().ok()).map(PublicKey))
}

fn look(
    collector: &Collector,
    found: &Found,
    key: Option<PublicKey>,
    after: u64,
    asked: bool,
) -> Result<Looked, Fault> {
    let reader = found.reader(collector)?;
    let summary = reader.find(&found.number.to_string())?;
    let (claims, labels) = identity(&reader, found.number)?;
    let (entries, next, last) = entries(&reader, found.number, found.opened_us, after)?;
    let check =
        asked || found.events <= CHECK_AT_ONCE && reader.bytes_of(found.number)? <= CHECK_BYTES;
    let checked = match key {
        Some(key) if check => Some(sealed::session(&reader, &key, &summary)?),
        _ => None,
    };
    Ok(Looked { claims, labels, entries, next, last, checked })
}

/// A page of entries behind a position; where the next begins; the last position. Whatever an
/// event has, one at least is on the page.
fn entries(
    reader: &Reader,
    number: u64,
    opened_us: i64,
    after: u64,
) -> Result<(Vec<Entry>, Option<u64>, u64), RecordError> {
    let mut timeline = Timeline::new(opened_us, true);
    let (mut next, mut last, mut read) = (None, after, 0usize);
    reader.events_until(number, after, |e| {
        if timeline.len() >= ENTRIES || timeline.bytes() >= SHOWN || read >= READ {
            next = Some(last);
            return false;
        }
        read = read.saturating_add(e.body.len()).saturating_add(e.data.len());
        timeline.take(e);
        last = timeline.last();
        true
    })?;
    Ok((timeline.finish(), next, last))
}

/// Entries behind a position, for whoever follows a session.
pub fn fragment(
    collector: &Collector,
    found: &Found,
    after: u64,
) -> Result<(Fragment, u64), Fault> {
    let reader = found.reader(collector)?;
    let (entries, _, last) = entries(&reader, found.number, found.opened_us, after)?;
    Ok((Fragment { entries }, last))
}

fn identity(reader: &Reader, number: u64) -> Result<(Option<Value>, Vec<Shown>), Fault> {
    let (mut claims, mut labels) = (None, Vec::new());
    reader.bodies_until(number, 0, |e| {
        if e.kind == IdentityProven::KIND
            && let Ok(proven) = serde_json::from_slice::<IdentityProven<'_>>(e.body)
        {
            let way = proven.way.as_deref().unwrap_or_default();
            labels =
                proven.labels.iter().map(|(k, v)| Shown::short(&format!("{k}={v}"), 80)).collect();
            if !way.is_empty() {
                labels.push(Shown::short(&format!("token came by {way}"), 80));
            }
            claims = Some(proven.claims);
            return false;
        }
        e.seq < 50
    })?;
    Ok((claims, labels))
}

fn facts(f: &Found) -> Vec<(&'static str, Shown)> {
    let mut facts = vec![
        ("service", Shown::line(&format!("{} ({})", f.service, f.protocol))),
        ("host", Shown::line(&f.host_name)),
        ("from", Shown::line(&f.source)),
    ];
    if let Some(role) = &f.role {
        facts.push(("role", Shown::line(role)));
    }
    if let Some(database) = f.database.as_deref().filter(|d| !d.is_empty()) {
        facts.push(("database", Shown::line(database)));
    }
    let words =
        format!("{}, {} held, {} denied, {} failed", count(f.requests), f.held, f.denied, f.errors);
    facts.push(("requests", Shown::line(&words)));
    facts.push(("masked", Shown::line(&format!("{} values", count(f.masked)))));
    facts.push(("events", Shown::line(&count(f.events))));
    facts
}

/// Claims, the ones that people ask for first, before the rest.
pub fn claims(all: Option<&Value>) -> Vec<(Shown, Shown)> {
    let Some(all) = all.and_then(Value::as_object) else { return Vec::new() };
    let mut out = Vec::new();
    let mut push = |name: &str, value: &Value| {
        let text = match value {
            Value::Null => return,
            Value::String(text) => text.clone(),
            Value::Array(list) if list.is_empty() => return,
            Value::Array(list) if list.iter().all(Value::is_string) => {
                list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        out.push((Shown::short(name, 80), Shown::line(&text)));
    };
    for (name, value) in all.iter().filter(|(name, _)| *name != "all") {
        match (name.as_str(), value.as_i64()) {
            ("iat" | "exp" | "nbf" | "auth_time", Some(seconds)) => {
                let at = When::at(seconds.saturating_mul(1_000_000)).words;
                push(name, &Value::String(format!("{at} UTC")));
            }
            _ => push(name, value),
        }
    }
    out
}

/// What stands of a session whose content is gone.
fn deleted(found: &Found) -> Verified {
    let Some(at) = found.deleted_us else {
        let words = "Its events were taken out of the replica, and no deletion of it is recorded";
        return Verified { state: "bad", title: "Altered", lines: vec![Shown::line(words)] };
    };
    let policy = found.deleted_policy.as_deref().unwrap_or_default();
    let mut lines = vec![
        Shown::line(&format!("Deleted on {} ({policy}); the audit trail says so", day(at))),
        Shown::line(&format!("{} events were sealed as recorded", count(found.events))),
    ];
    if let Some(leaf) = found.leaf {
        let words = format!("Its seal stays: leaf {leaf} of the collector's log");
        lines.push(Shown::line(&words));
    }
    Verified { state: "gone", title: "Deleted by retention", lines }
}

fn verified(found: &Found, checked: Option<sealed::Checked>) -> Verified {
    let Some(checked) = checked else {
        let text = format!("{} events: checked when you ask.", count(found.events));
        return Verified {
            state: "unasked",
            title: "Not checked now",
            lines: vec![Shown::line(&text)],
        };
    };
    if !checked.problems.is_empty() {
        let lines = checked.problems.iter().map(|p| Shown::line(p)).collect();
        return Verified { state: "bad", title: "Altered", lines };
    }
    let chain = format!("{} events, chain recomputed", count(checked.events));
    let Some(idx) = checked.seal else {
        let open = "Still open: it is sealed when it ends.";
        let lines = vec![Shown::line(&chain), Shown::line(open)];
        return Verified { state: "open", title: "Unaltered so far", lines };
    };
    let mut lines = vec![
        Shown::line(&chain),
        Shown::line(&format!("Seal {idx} signed by the host's key, matches")),
    ];
    lines.push(match found.leaf {
        Some(leaf) => Shown::line(&format!("Leaf {leaf} of the collector's log")),
        None => Shown::line("Not yet in the collector's log"),
    });
    if let Some(lost) = &checked.lost_tail {
        lines.push(Shown::line(&format!("The host says that its tail was lost: {lost}")));
    }
    Verified { state: "good", title: "Unaltered", lines }
}

/// What the form to end a session says.
#[derive(Debug, Deserialize)]
pub struct Kill {
    #[serde(default)]
    reason: String,
}

/// `POST /sessions/{id}/kill`.
pub async fn kill(
    State(console): State<Console>,
    Path(name): Path<String>,
    Signed { login, form }: Signed<Kill>,
) -> Result<Response, Fault> {
    demand(&login, Role::Admin)?;
    let found =
        find::session(console.collector(), name).await.map_err(|m| Fault::from(m).of(&login))?;
    let reason = form.reason.trim();
    if reason.is_empty() || reason.chars().count() > crate::approval::MAX_REASON {
        let text = "Say in a few words why the session is ended: it is recorded.";
        return Err(Fault::bad(text).of(&login));
    }
    let target = Target::Session(found.session.clone());
    let (host, reason) = (Some(found.host), Some(reason.to_owned()));
    decisions::kill(console.collector(), &login.person, target, host, reason)
        .await
        .map_err(|e| Fault::from(e).of(&login))?;
    Ok(Redirect::to(&format!("{}?ended=asked", href(&found))).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::event::Event;
    use crate::record::{End, Opening, Recorder};

    /// A session of long statements and much output, all in one stream.
    fn recorded(dir: &std::path::Path) -> Reader {
        let settings = crate::config::Record::default();
        let recorder = Recorder::open_with(dir, "db1", &settings, 64 << 20).unwrap();
        let mut log = recorder
            .begin(Opening {
                id: ulid::Ulid::new(),
                ts_us: 1,
                host: "db1".into(),
                service: "orders".into(),
                protocol: "ssh".into(),
                source: "10.0.0.1:4711".into(),
                original_dst: "10.0.0.2:22".into(),
                mode: "enforce".into(),
                peer_uid: None,
            })
            .unwrap();
        let mut add = |kind: &str, body: &Value, data: &[u8]| {
            log.append(&Event { ts_us: 2, kind, body, data }).unwrap();
        };
        for n in 0..60 {
            let text = format!("select {n} {}", "\u{1}".repeat(50_000));
            let body =
                serde_json::json!({ "n": n, "verdict": "allow", "class": "select", "text": text });
            add("request", &body, &[]);
        }
        let piece = vec![b'x'; 1 << 20];
        for n in 0..40u64 {
            let body = serde_json::json!({
                "ch": 0, "stream": "out", "offset": n << 20, "bytes": 1 << 20
            });
            add("channel.data", &body, &piece);
        }
        log.seal(&End::because("client")).unwrap();
        recorder.flush().unwrap();
        recorder.shutdown();
        Reader::open(dir, &|| Ok(())).unwrap()
    }

    #[test]
    fn a_page_is_bounded_however_large_the_session_is_and_the_pages_have_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let reader = recorded(dir.path());
        assert!(reader.bytes_of(1).unwrap() > 40 << 20);
        let (mut after, mut pages, mut kinds) = (0, 0, BTreeMap::new());
        loop {
            let (entries, next, last) = entries(&reader, 1, 1, after).unwrap();
            for entry in &entries {
                let kind = match &entry.item {
                    Item::Request(_) => "request",
                    Item::Output(_) => "output",
                    _ => "other",
                };
                *kinds.entry(kind).or_insert(0) += 1;
            }
            let html = Fragment { entries }.render().unwrap();
            // A control character takes many bytes, so a single statement takes two megabytes here.
            assert!(html.len() < SHOWN + (3 << 20), "{} bytes", html.len());
            pages += 1;
            let Some(next) = next else { break };
            assert!(next > after && next == last);
            after = next;
        }
        assert_eq!(kinds["request"], 60);
        // The one stream is on several pages, since reading it has an end as well.
        assert!(kinds["output"] >= 3, "{kinds:?}");
        assert!(pages >= 60, "{pages} pages");
    }
}
