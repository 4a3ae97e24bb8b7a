//! Records for other systems: JSON lines with everything, OCSF events, or recordings.

mod asciicast;
mod ocsf;
mod ocsf_ssh;

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::reader::Reader;
use super::store::StoredEvent;
use super::summary::Summary;

/// In which form records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Every event with its whole body and attachment, one JSON object per line.
    Jsonl,
    /// OCSF events, one per line.
    Ocsf,
    /// A recording that the asciinema player plays: one SSH session, one channel of it or all.
    Asciicast,
}

/// Writes the events of one session; of a recording only one channel, if one is named.
pub fn session(
    reader: &Reader,
    session: &Summary,
    format: Format,
    channel: Option<u32>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match format {
        Format::Jsonl => lines(reader, session, out, |e| Some(plain(session, e))),
        Format::Ocsf => {
            let answers = ocsf::answers(reader, session)?;
            let mut identity = ocsf::Identity::default();
            lines(reader, session, out, |e| ocsf::event(session, e, &answers, &mut identity))
        }
        Format::Asciicast => asciicast::session(reader, session, channel, out),
    }
}

/// Writes what is made of each event on a line of its own.
fn lines(
    reader: &Reader,
    session: &Summary,
    out: &mut impl Write,
    mut line: impl FnMut(&StoredEvent<'_>) -> Option<Value>,
) -> anyhow::Result<()> {
    let mut result: io::Result<()> = Ok(());
    reader.events(session.number, 0, |e| {
        if result.is_err() {
            return;
        }
        if let Some(line) = line(e) {
            result = serde_json::to_writer(&mut *out, &line)
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"));
        }
    })?;
    Ok(result?)
}

/// One event as it is stored.
pub fn plain(session: &Summary, e: &StoredEvent<'_>) -> Value {
    let body: Value = serde_json::from_slice(e.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(e.body).into_owned()));
    let mut line = json!({
        "host": session.host,
        "session": session.id,
        "number": session.number,
        "seq": e.seq,
        "ts_us": e.ts_us,
        "kind": e.kind,
        "body": body,
        "hash": super::chain::hex(e.hash),
    });
    if !e.data.is_empty() {
        line["data"] = Value::String(STANDARD.encode(e.data));
    }
    line
}
<<<<<<< HEAD

#[derive(Default)]
struct Identity {
    uid: Option<String>,
    client: Option<Value>,
}

struct Answer {
    rows: u64,
    bytes: u64,
    duration_us: u64,
    error: Option<(String, String)>,
}

fn answers(reader: &Reader, session: &Summary) -> anyhow::Result<HashMap<u64, Answer>> {
    let mut found = HashMap::new();
    reader.events(session.number, 0, |e| {
        if e.kind != Response::KIND {
            return;
        }
        if let Ok(r) = serde_json::from_slice::<Response<'_>>(e.body) {
            let error = r.error.map(|e| (e.code.into_owned(), e.message.into_owned()));
            let answer = Answer { rows: r.rows, bytes: r.bytes, duration_us: r.duration_us, error };
            found.insert(r.n, answer);
        }
    })?;
    Ok(found)
}

fn ocsf(
    session: &Summary,
    e: &StoredEvent<'_>,
    answers: &HashMap<u64, Answer>,
    identity: &mut Identity,
) -> Option<Value> {
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
            Some(request(session, e, identity, &r, answers.get(&r.n)))
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

fn base(
    s: &Summary,
    e: &StoredEvent<'_>,
    identity: &Identity,
    class: u32,
    category: u32,
    activity: u32,
    severity: u32,
) -> Value {
    json!({
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
        "database": { "name": s.database, "type_id": 1, "type": s.protocol },
        "service": { "name": s.service },
    })
}

fn endpoint(address: &str) -> Value {
    match address.parse::<std::net::SocketAddr>() {
        Ok(a) => json!({ "ip": a.ip().to_string(), "port": a.port() }),
        Err(_) => json!({ "name": address }),
    }
}
=======
>>>>>>> part/stream
