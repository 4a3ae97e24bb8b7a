//! OCSF events.
//!
//! Schema version 1.3. `type_uid` is `class_uid * 100 + activity_id`; `metadata.uid` is
//! `<session>:<seq>`; `time` is in milliseconds; what has no place in the schema stands under
//! `unmapped`.
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
//! The answer to a request is merged into the request's event. Sessions of SSH have classes of
//! their own for admissions and requests ([`super::ocsf_ssh`]). Other kinds have no OCSF event
//! of their own; they are in the JSON lines.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::ocsf_ssh;
use crate::record::event::*;
use crate::record::reader::Reader;
use crate::record::store::StoredEvent;
use crate::record::summary::Summary;

/// Version of the schema that is written.
const OCSF: &str = "1.3.0";

/// Whose events these are, as far as it is known.
#[derive(Default)]
pub(super) struct Identity {
    uid: Option<String>,
    client: Option<Value>,
}

/// What became of requests, by their number.
pub(super) struct Answers {
    rows: HashMap<u64, Answer>,
    /// How what ran on SSH channels ended.
    pub exits: HashMap<u64, (Option<u32>, Option<String>, u64)>,
}

struct Answer {
    rows: u64,
    bytes: u64,
    duration_us: u64,
    error: Option<(String, String)>,
}

/// Reads what became of the requests of a session.
pub(super) fn answers(reader: &Reader, session: &Summary) -> anyhow::Result<Answers> {
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
pub(super) fn event(
    session: &Summary,
    e: &StoredEvent<'_>,
    answers: &Answers,
    identity: &mut Identity,
) -> Option<Value> {
    if session.protocol == "ssh" && ocsf_ssh::covers(e.kind) {
        return ocsf_ssh::event(session, e, answers, identity);
    }
    match e.kind {
        IdentityProven::KIND => {
            let i: IdentityProven<'_> = serde_json::from_slice(e.body).ok()?;
            identity.uid = i.claims.get("uid").and_then(Value::as_str).map(str::to_owned);
            identity.client = i.claims.get("cid").cloned();
            let mut line = base(session, e, identity, 3002, 3, 1, 1);
            line["status_id"] = json!(1);
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
    let activity = match r.class.as_ref() {
        "select" => 4,
        "insert" | "merge" => 5,
        "update" => 2,
        "delete" => 7,
        "copy" => 1,
        _ => 99,
    };
    let severity = if r.verdict == "deny" { 3 } else { 1 };
    let mut line = base(session, e, identity, 6005, 6, activity, severity);
    if activity == 99 {
        line["activity_name"] = json!(r.class);
    }
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

/// Says what a verdict means.
pub(super) fn verdict(line: &mut Value, verdict: &str, message: Option<&str>) {
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
pub(super) fn base(
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
        "src_endpoint": endpoint(&s.source),
        "dst_endpoint": endpoint(&s.original_dst),
        "device": { "hostname": s.host, "type_id": 1 },
        "service": { "name": s.service },
    });
    if s.protocol != "ssh" {
        line["database"] = json!({ "name": s.database, "type_id": 1, "type": s.protocol });
    }
    line
}

fn endpoint(address: &str) -> Value {
    match address.parse::<std::net::SocketAddr>() {
        Ok(a) => json!({ "ip": a.ip().to_string(), "port": a.port() }),
        Err(_) => json!({ "name": address }),
    }
}
