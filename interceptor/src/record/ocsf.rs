//! OCSF events.
//!
//! Schema version 1.4 with the profile `host`, to which every event conforms: an attribute that
//! the class does not have, or of which the value is not known, is not there. `type_uid` is
//! `class_uid * 100 + activity_id`; `metadata.uid` is `<session>:<seq>`; `time` is in milliseconds;
//! what has no place in the schema stands under `unmapped`.
//!
//! | event | class | activity | status |
//! |---|---|---|---|
//! | `identity.proven` | Authentication 3002 | 1 Logon | success |
//! | `identity.refused` | Authentication 3002 | 1 Logon | failure, code in `status_code` |
//! | `admission` | Datastore Activity 6005 | 3 Connect | by verdict |
//! | `request` | Datastore Activity 6005 | by class: select 4 Query, insert and merge 5 Write, update 2 Update, delete 7 Delete, copy 1 Read, else 99 Other | by verdict, or failure when the server failed it |
//! | `hold.decided` | API Activity 6003 | 3 Update, operation `approvals.decide` | by outcome |
//! | `alert` | Detection Finding 2004 | 1 Create | unknown |
//!
//! Where a whole session is written, the answer to a request is merged into the request's event
//! ([`answers`]). Where events are passed on as they come, nothing waits: the answer is an event of
//! its own ([`answer`]), so that what an event says depends on nothing that comes after it.
//!
//! | answer | class | activity | status |
//! |---|---|---|---|
//! | `response` | Datastore Activity 6005 | that of its request | failure when the server failed it |
//! | `channel.exit` | Process Activity 1007 | 2 Terminate, with `exit_code` | success when it is 0 |
//!
//! Sessions of SSH have classes of their own for admissions and requests ([`ssh`]). Other kinds
//! have no OCSF event of their own; they are in the JSON lines.
//!
//! Each event says where it stands in its session's hash chain, in the form of the profile
//! `record_integrity` of OCSF 1.9. Since that is not final it stands under `unmapped`, and since
//! the fingerprint is over the stored event ([`super::chain`]), not over these lines, a verifier
//! needs the record (`sessions export --format jsonl`).

mod ssh;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::chain::hex;
use super::event::*;
use super::reader::Reader;
use super::store::StoredEvent;
use super::summary::Summary;

/// Classes that are written: OCSF's name and number of each.
pub const CLASSES: &[(&str, u32)] = &[
    ("file_activity", 1001),
    ("process_activity", 1007),
    ("detection_finding", 2004),
    ("authentication", 3002),
    ("ssh_activity", 4007),
    ("api_activity", 6003),
    ("datastore_activity", 6005),
];

/// Number of the class Base Event, for what has no other ([`unread`]).
pub const BASE: u32 = 0;

/// Version of the schema that is written.
const OCSF: &str = "1.4.0";

/// OpenID among OCSF's authentication protocols.
const OPENID: u32 = 4;

/// SHA-256 among OCSF's algorithms.
const SHA256: u32 = 3;

/// Whose events these are, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    uid: Option<String>,
    client: Option<Value>,
}

impl Identity {
    /// What the body of an `identity.proven` says.
    pub fn proven(body: &[u8]) -> Option<Self> {
        serde_json::from_slice::<IdentityProven<'_>>(body).ok().map(|i| Self::of(&i))
    }

    fn of(i: &IdentityProven<'_>) -> Self {
        let uid = i.claims.get("uid").and_then(Value::as_str).map(str::to_owned);
        Self { uid, client: i.claims.get("cid").cloned() }
    }
}

/// What stands beside an event in its chain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Link<'a> {
    /// Fingerprint of the host's record key, which signs the chain's end.
    pub authority: Option<&'a str>,
    /// Hash of the event before; none before the first.
    pub previous: Option<&'a [u8]>,
}

impl Link<'_> {
    fn attestation(self, session: &Summary, e: &StoredEvent<'_>) -> Value {
        let hash = |value: &[u8]| {
            let value = hex(value);
            json!({ "algorithm_id": SHA256, "algorithm": "SHA-256", "value": value })
        };
        let mut one = json!({ "uid": format!("{}:{}", session.id, e.seq),
            "chain_uid": session.id, "fingerprint": hash(e.hash) });
        if let Some(authority) = self.authority {
            one["authority_uid"] = json!(authority);
        }
        if let Some(previous) = self.previous.filter(|_| e.seq > 1) {
            let uid = format!("{}:{}", session.id, e.seq.saturating_sub(1));
            one["prev_event"] = json!({ "uid": uid, "fingerprint": hash(previous) });
        }
        json!({ "attestation_list": [one] })
    }

    fn attach(self, line: &mut Value, session: &Summary, e: &StoredEvent<'_>) {
        line["unmapped"]["record_integrity"] = self.attestation(session, e);
        ends(line, session);
        prune(line);
    }
}

/// What became of requests, by their number.
#[derive(Debug, Default)]
pub struct Answers {
    rows: HashMap<u64, Answer>,
    /// How what ran on SSH channels ended.
    exits: HashMap<u64, (Option<u32>, Option<String>, u64)>,
}

/// A request whose answer is to be told.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    class: String,
    text: String,
}

impl Asked {
    /// What the body of a `request` says, when it is the one with this number.
    pub fn of(body: &[u8], n: u64) -> Option<Self> {
        let r: Request<'_> = serde_json::from_slice(body).ok()?;
        (r.n == n).then(|| Self { class: r.class.into_owned(), text: r.text.into_owned() })
    }

    /// The number of the request that an event answers, if it answers one.
    pub fn number(e: &StoredEvent<'_>) -> Option<u64> {
        #[derive(serde::Deserialize)]
        struct Numbered {
            n: u64,
        }
        let answers = [Response::KIND, ChannelExit::KIND].contains(&e.kind);
        answers.then(|| serde_json::from_slice::<Numbered>(e.body).ok().map(|r| r.n)).flatten()
    }
}

#[derive(Debug)]
struct Answer {
    rows: u64,
    bytes: u64,
    duration_us: u64,
    error: Option<(String, String)>,
}

/// Reads what became of the requests of a session.
pub fn answers(reader: &Reader, session: &Summary) -> anyhow::Result<Answers> {
    let mut answers = Answers { rows: HashMap::new(), exits: HashMap::new() };
    reader.events(session.number, 0, |e| match e.kind {
        Response::KIND => {
            if let Ok(r) = serde_json::from_slice::<Response<'_>>(e.body) {
                let (bytes, duration_us) = (r.bytes, r.duration_us);
                let error = r.error.map(|e| (e.code.into_owned(), e.message.into_owned()));
                answers.rows.insert(r.n, Answer { rows: r.rows, bytes, duration_us, error });
            }
        }
        ChannelExit::KIND => {
            if let Ok(x) = serde_json::from_slice::<ChannelExit<'_>>(e.body) {
                let signal = x.signal.map(|s| s.into_owned());
                answers.exits.insert(x.n, (x.status, signal, x.duration_us));
            }
        }
        _ => {}
    })?;
    Ok(answers)
}

/// One event, when it has an OCSF event of its own.
pub fn event(
    session: &Summary,
    e: &StoredEvent<'_>,
    answers: &Answers,
    identity: &mut Identity,
    link: Link<'_>,
) -> Option<Value> {
    let mut line = mapped(session, e, answers, identity)?;
    link.attach(&mut line, session, e);
    Some(line)
}

/// The answer to a request as an event of its own; the request, where it was found.
pub fn answer(
    session: &Summary,
    e: &StoredEvent<'_>,
    asked: Option<&Asked>,
    identity: &Identity,
    link: Link<'_>,
) -> Option<Value> {
    let mut line = match e.kind {
        Response::KIND => response(session, e, asked, identity)?,
        ChannelExit::KIND => ssh::exit(session, e, asked, identity)?,
        _ => return None,
    };
    link.attach(&mut line, session, e);
    Some(line)
}

/// Whether events of this kind are told, by [`event`] or [`answer`].
pub fn is_told(session: &Summary, kind: &str) -> bool {
    let always = [
        IdentityProven::KIND,
        IdentityRefused::KIND,
        Admission::KIND,
        Request::KIND,
        Response::KIND,
        HoldDecided::KIND,
        Alert::KIND,
        ChannelExit::KIND,
    ];
    always.contains(&kind) || (session.protocol == "ssh" && ssh::covers(kind))
}

/// A Base Event in place of one that is told, but not as this version reads it: a newer host may
/// have written it. So a hole is never silent.
pub fn unread(session: &Summary, e: &StoredEvent<'_>, link: Link<'_>) -> Value {
    let mut line = base(session, e, &Identity::default(), BASE, 0, 99, 3);
    line["activity_name"] = json!(e.kind);
    line["message"] = json!("this version of the collector cannot read the event: update it");
    line["unmapped"] = json!({ "kind": e.kind, "body": String::from_utf8_lossy(e.body) });
    for key in ["actor", "device"] {
        line["unmapped"][key] = line[key].take();
    }
    line["metadata"]["profiles"] = Value::Null;
    link.attach(&mut line, session, e);
    line
}

fn response(
    session: &Summary,
    e: &StoredEvent<'_>,
    asked: Option<&Asked>,
    identity: &Identity,
) -> Option<Value> {
    let r: Response<'_> = serde_json::from_slice(e.body).ok()?;
    let class = asked.map_or("response", |a| a.class.as_str());
    let mut line = datastore(session, e, identity, class, 1);
    line["status_id"] = json!(if r.error.is_some() { 2 } else { 1 });
    if let Some(error) = &r.error {
        line["status_code"] = json!(error.code);
        line["status_detail"] = json!(error.message);
    }
    line["duration"] = json!(r.duration_us / 1000);
    if let Some(asked) = asked {
        line["query_info"] = json!({ "uid": format!("{}:{}", session.id, r.n),
            "query_string": asked.text, "bytes": r.bytes });
    }
    line["unmapped"] = json!({ "n": r.n, "answer": true, "tag": r.tag, "rows": r.rows,
        "bytes": r.bytes, "masked": r.masked });
    Some(line)
}

fn mapped(
    session: &Summary,
    e: &StoredEvent<'_>,
    answers: &Answers,
    identity: &mut Identity,
) -> Option<Value> {
    if session.protocol == "ssh" && ssh::covers(e.kind) {
        return ssh::event(session, e, answers, identity);
    }
    match e.kind {
        IdentityProven::KIND => {
            let i: IdentityProven<'_> = serde_json::from_slice(e.body).ok()?;
            *identity = Identity::of(&i);
            let mut line = base(session, e, identity, 3002, 3, 1, 1);
            line["status_id"] = json!(1);
            line["auth_protocol_id"] = json!(OPENID);
            line["auth_protocol"] = json!("OpenID Connect");
            line["user"] = json!({ "name": i.principal, "uid": identity.uid });
            line["unmapped"] = json!({ "claims": i.claims, "labels": i.labels,
                "proven": i.proven, "pinned_new": i.pinned_new, "way": i.way });
            Some(line)
        }
        IdentityRefused::KIND => {
            let r: IdentityRefused<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = base(session, e, identity, 3002, 3, 1, if r.alert { 4 } else { 2 });
            line["status_id"] = json!(2);
            line["status_code"] = json!(r.code);
            line["status_detail"] = json!(r.message);
            line["user"] = json!({ "name": "unknown" });
            line["unmapped"] = json!({ "claims": r.claims, "observed": r.observed });
            Some(line)
        }
        Admission::KIND => {
            let a: Admission<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = base(session, e, identity, 6005, 6, 3, 1);
            verdict(&mut line, &a.verdict, a.message.as_deref());
            line["unmapped"] = json!({ "rules": a.rules, "policy": a.policy,
                "client": a.client, "observed": a.observed });
            Some(line)
        }
        Request::KIND => {
            let r: Request<'_> = serde_json::from_slice(e.body).ok()?;
            Some(request(session, e, identity, &r, answers.rows.get(&r.n)))
        }
        HoldDecided::KIND => {
            let h: HoldDecided<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = base(session, e, identity, 6003, 6, 3, 1);
            line["api"] = json!({ "operation": "approvals.decide",
                "request": { "uid": h.id }, "response": { "message": h.outcome } });
            line["status_id"] = json!(if h.outcome == "granted" { 1 } else { 2 });
            line["status_detail"] = json!(h.reason);
            line["duration"] = json!(h.waited_us / 1000);
            line["unmapped"] = json!({ "decided_by": h.by, "scope": h.scope, "request": h.n });
            Some(line)
        }
        Alert::KIND => {
            let a: Alert<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = base(session, e, identity, 2004, 2, 1, 4);
            line["finding_info"] = json!({ "uid": format!("{}:{}", session.id, e.seq), "title": a.code,
                    "desc": a.message });
            Some(line)
        }
        _ => None,
    }
}

fn request(
    session: &Summary,
    e: &StoredEvent<'_>,
    identity: &Identity,
    r: &Request<'_>,
    answer: Option<&Answer>,
) -> Value {
    let severity = if r.verdict == "deny" { 3 } else { 1 };
    let mut line = datastore(session, e, identity, &r.class, severity);
    verdict(&mut line, &r.verdict, r.message.as_deref());
    line["query_info"] = json!({ "uid": format!("{}:{}", session.id, r.n),
        "query_string": r.text });
    let mut unmapped = json!({ "n": r.n, "verdict": r.verdict, "rules": r.rules,
        "policy": r.policy, "values": r.values, "hmac": r.hmac, "masks": r.masks,
        "observed": r.observed });
    if let Some(a) = answer {
        line["duration"] = json!(a.duration_us / 1000);
        line["query_info"]["bytes"] = json!(a.bytes);
        unmapped["rows"] = json!(a.rows);
        if let Some((code, message)) = &a.error {
            line["status_id"] = json!(2);
            line["status_code"] = json!(code);
            line["status_detail"] = json!(message);
        }
    }
    line["unmapped"] = unmapped;
    line
}

/// Datastore Activity of a class of statements.
fn datastore(
    session: &Summary,
    e: &StoredEvent<'_>,
    identity: &Identity,
    class: &str,
    severity: u32,
) -> Value {
    let activity = match class {
        "select" => 4,
        "insert" | "merge" => 5,
        "update" => 2,
        "delete" => 7,
        "copy" => 1,
        _ => 99,
    };
    let mut line = base(session, e, identity, 6005, 6, activity, severity);
    if activity == 99 {
        line["activity_name"] = json!(class);
    }
    line
}

/// Says what a verdict means.
fn verdict(line: &mut Value, verdict: &str, message: Option<&str>) {
    line["status_id"] = json!(match verdict {
        "allow" => 1,
        "deny" => 2,
        _ => 99,
    });
    if verdict != "allow" {
        line["status"] = json!(verdict);
        line["status_detail"] = json!(message);
    }
}

/// What all events have.
fn base(
    s: &Summary,
    e: &StoredEvent<'_>,
    identity: &Identity,
    class: u32,
    category: u32,
    activity: u32,
    severity: u32,
) -> Value {
    let mut line = json!({
        "metadata": {
            "version": OCSF,
            "uid": format!("{}:{}", s.id, e.seq),
            "correlation_uid": s.id,
            "profiles": ["host"],
            "product": { "name": "interceptor", "vendor_name": "interceptor",
                "version": env!("CARGO_PKG_VERSION") },
        },
        "time": e.ts_us / 1000,
        "class_uid": class,
        "category_uid": category,
        "activity_id": activity,
        "type_uid": class * 100 + activity,
        "severity_id": severity,
        "actor": {
            "user": { "name": s.principal, "uid": identity.uid },
            "app_name": s.agent,
            "app_uid": identity.client,
            "session": { "uid": s.id, "issuer": s.issuer },
        },
        "device": { "hostname": s.host, "type_id": 1 },
    });
    if class == 6005 {
        // Of a database one of name and uid has to be there, and before login there is no name.
        line["database"] = json!({ "name": s.database, "uid": s.service, "type_id": 1,
            "type": s.protocol });
    }
    line
}

/// Both ends of the connection, where the class has a place for them.
fn ends(line: &mut Value, s: &Summary) {
    let (source, mut destination) = (endpoint(&s.source), endpoint(&s.original_dst));
    destination["svc_name"] = json!(s.service);
    let place = match line["class_uid"].as_u64() {
        Some(0 | 1001 | 1007) => &mut line["unmapped"],
        Some(2004) => {
            line["evidences"] = json!([{}]);
            &mut line["evidences"][0]
        }
        Some(3002) => {
            line["service"] = json!({ "name": s.service });
            line
        }
        _ => line,
    };
    place["src_endpoint"] = source;
    place["dst_endpoint"] = destination;
}

/// Takes out what is not known: the schema has no null.
fn prune(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (_, value) in fields.iter_mut().filter(|(key, _)| *key != "unmapped") {
        prune(value);
    }
    fields.retain(|key, value| {
        key == "unmapped" || !(value.is_null() || value.as_object().is_some_and(Map::is_empty))
    });
}

fn endpoint(address: &str) -> Value {
    match address.parse::<std::net::SocketAddr>() {
        Ok(a) => json!({ "ip": a.ip().to_string(), "port": a.port() }),
        Err(_) => json!({ "name": address }),
    }
}
