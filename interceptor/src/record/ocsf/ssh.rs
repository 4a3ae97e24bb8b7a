//! OCSF events of SSH sessions.
//!
//! | event | class | activity | status |
//! |---|---|---|---|
//! | `admission` | SSH Activity 4007 | 1 Open, 5 Refuse when denied | by verdict |
//! | `request`: exec, shell, scp, rsync, subsystem | Process Activity 1007 | 1 Launch, with `exit_code` | by verdict |
//! | `request`: sftp | File System Activity 1001 | by operation: 14 Open, 2 Read, 3 Update, 1 Create, 4 Delete, 5 Rename, 6 Set Attributes, 8 Get Attributes, else 99 Other | by verdict |
//! | `request`: everything else (forwards, terminals, variables) | SSH Activity 4007 | 1 Open, 5 Refuse when denied | by verdict |
//! | `file.done` | File System Activity 1001 | 2 Read or 3 Update, with size and SHA-256 | success when whole |
//! | `session.end` | SSH Activity 4007 | 2 Close, with traffic | success |

use serde_json::{Value, json};

use super::{Answers, Asked, Identity, SHA256, base, verdict};
use crate::record::event::*;
use crate::record::store::StoredEvent;
use crate::record::summary::Summary;

const SSH: (u32, u32) = (4007, 4);
const PROCESS: (u32, u32) = (1007, 1);
const FILE: (u32, u32) = (1001, 1);

/// Kinds that have classes of their own here.
pub(super) fn covers(kind: &str) -> bool {
    [Admission::KIND, Request::KIND, FileDone::KIND, SessionEnd::KIND].contains(&kind)
}

/// One event of an SSH session.
pub(super) fn event(
    session: &Summary,
    e: &StoredEvent<'_>,
    answers: &Answers,
    identity: &Identity,
) -> Option<Value> {
    let line = |(class, category), activity, severity| {
        base(session, e, identity, class, category, activity, severity)
    };
    match e.kind {
        Admission::KIND => {
            let a: Admission<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = line(SSH, open_or_refuse(&a.verdict), 1);
            verdict(&mut line, &a.verdict, a.message.as_deref());
            line["protocol_ver"] = json!("2.0");
            line["unmapped"] = json!({ "role": a.role, "rules": a.rules, "policy": a.policy,
                "client": a.client, "observed": a.observed });
            Some(line)
        }
        Request::KIND => {
            let r: Request<'_> = serde_json::from_slice(e.body).ok()?;
            let severity = if r.verdict == "deny" { 3 } else { 1 };
            let mut line = match r.class.as_ref() {
                "exec" | "shell" | "scp" | "rsync" | "subsystem" => {
                    let mut line = line(PROCESS, 1, severity);
                    line["process"] = process(session, r.n, Some(&r.text));
                    line
                }
                "sftp" => file(&r, |activity| line(FILE, activity, severity)),
                _ => {
                    let mut line = line(SSH, open_or_refuse(&r.verdict), severity);
                    line["message"] = json!(r.text);
                    line
                }
            };
            verdict(&mut line, &r.verdict, r.message.as_deref());
            line["unmapped"] = json!({ "n": r.n, "channel": r.ch, "class": r.class,
                "text": r.text, "verdict": r.verdict, "rules": r.rules, "policy": r.policy,
                "hmac": r.hmac, "observed": r.observed });
            if let Some((status, signal, duration_us)) = answers.exits.get(&r.n) {
                line["exit_code"] = json!(status);
                line["duration"] = json!(duration_us / 1000);
                line["unmapped"]["signal"] = json!(signal);
            }
            Some(line)
        }
        FileDone::KIND => {
            let f: FileDone<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = line(FILE, if f.op == "write" { 3 } else { 2 }, 1);
            line["file"] = named(&f.path);
            line["file"]["size"] = json!(f.bytes);
            line["file"]["hashes"] =
                json!([{ "algorithm_id": SHA256, "algorithm": "SHA-256", "value": f.sha256 }]);
            line["status_id"] = json!(if f.complete { 1 } else { 99 });
            line["unmapped"] = json!({ "n": f.n, "channel": f.ch, "complete": f.complete });
            Some(line)
        }
        SessionEnd::KIND => {
            let s: SessionEnd<'_> = serde_json::from_slice(e.body).ok()?;
            let mut line = line(SSH, 2, 1);
            line["status_id"] = json!(1);
            line["status_detail"] = json!(s.reason);
            line["traffic"] = json!({ "bytes_in": s.bytes_in, "bytes_out": s.bytes_out });
            Some(line)
        }
        _ => None,
    }
}

/// The end of what a request ran.
pub(super) fn exit(
    session: &Summary,
    e: &StoredEvent<'_>,
    asked: Option<&Asked>,
    identity: &Identity,
) -> Option<Value> {
    let x: ChannelExit<'_> = serde_json::from_slice(e.body).ok()?;
    let (class, category) = PROCESS;
    let mut line = base(session, e, identity, class, category, 2, 1);
    line["status_id"] = json!(match (x.status, &x.signal) {
        (Some(0), None) => 1,
        (None, None) => 0,
        _ => 2,
    });
    line["exit_code"] = json!(x.status);
    line["duration"] = json!(x.duration_us / 1000);
    line["process"] = process(session, x.n, asked.map(|a| a.text.as_str()));
    line["unmapped"] = json!({ "n": x.n, "channel": x.ch, "answer": true,
        "class": asked.map(|a| &a.class), "signal": x.signal });
    Some(line)
}

/// What runs for a request. Its process id is sshd's to know, so the request names it.
fn process(session: &Summary, n: u64, command: Option<&str>) -> Value {
    json!({ "uid": format!("{}:{n}", session.id), "cmd_line": command,
        "user": { "name": session.role } })
}

fn open_or_refuse(verdict: &str) -> u32 {
    if verdict == "deny" { 5 } else { 1 }
}

/// An sftp operation: its word, then paths.
fn file(r: &Request<'_>, line: impl FnOnce(u32) -> Value) -> Value {
    let (word, path) = r.text.split_once(' ').unwrap_or((&r.text, ""));
    let activity = match word {
        "open" => 14,
        "read" | "get" | "list" | "opendir" | "readdir" | "readlink" => 2,
        "write" | "put" => 3,
        "mkdir" | "symlink" | "link" | "hardlink" => 1,
        "remove" | "rmdir" => 4,
        "rename" => 5,
        "setstat" | "fsetstat" | "lsetstat" => 6,
        "stat" | "lstat" | "fstat" | "realpath" | "statvfs" => 8,
        _ => 99,
    };
    let mut line = line(activity);
    if activity == 99 {
        line["activity_name"] = json!(word);
    }
    line["file"] = named(path);
    line
}

fn named(path: &str) -> Value {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    json!({ "path": path, "name": name, "type_id": 1 })
}
