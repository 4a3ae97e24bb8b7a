//! How the collector stands, at one glance: what an operator asks first when something is wrong.
//!
//! Everything here is read from the state directory, whether the collector runs or not. It must
//! never change anything, nor show what a session contains.

use std::path::Path;

use crate::collector::db::Connection;
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use x509_parser::prelude::FromDer;

use super::error::CollectorError;
use super::{Collector, forward, hosts, policies, recordings, retention, rotation};

/// Everything that stands in the state directory.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Overview {
    /// Hosts, counted.
    pub hosts: Fleet,
    /// Events that have come in all.
    pub events: u64,
    /// Sessions, counted.
    pub sessions: Sessions,
    /// Requests that wait for people.
    pub holds: Waiting,
    /// The log over sealed sessions.
    pub log: Log,
    /// The keys that sign it, orders and policies.
    pub signing: Signing,
    /// Other systems that get events.
    pub forwards: Vec<Forwarding>,
    /// Messages for webhooks.
    pub deliveries: Deliveries,
    /// What retention did.
    pub retention: Retention,
    /// Policies that hosts may take.
    pub policies: Centre,
    /// Large sessions whose attachments were moved.
    pub moved: recordings::Moved,
}

/// Hosts, counted; a host may be in several counts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Fleet {
    /// That are let in.
    pub enrolled: u64,
    /// That were heard of lately.
    pub up: u64,
    /// That were not: name, and when they were heard of last.
    pub away: Vec<(String, i64)>,
    /// That have never come since they enrolled.
    pub new: Vec<String>,
    /// That are let in no more.
    pub revoked: u64,
    /// Whose records are refused, or who report damage: name and why.
    pub problems: Vec<(String, String)>,
    /// That said of themselves that they have events which are not here: name and how many.
    pub behind: Vec<(String, u64)>,
    /// Whose own store is filling up or refuses: name and why.
    pub full: Vec<(String, String)>,
    /// That refuse the newest policies: name and why.
    pub refuse_policies: Vec<(String, String)>,
    /// Whose certificate ends first: name and when.
    pub certificate: Option<(String, i64)>,
}

/// Sessions, counted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sessions {
    /// All that are known.
    pub all: u64,
    /// That run.
    pub live: u64,
}

/// Requests that wait for people.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Waiting {
    /// How many.
    pub waiting: u64,
    /// When the oldest was raised; microseconds since the Unix epoch.
    pub oldest_us: Option<i64>,
    /// When the next one expires.
    pub next_end_us: Option<i64>,
}

/// The log over sealed sessions.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Log {
    /// Sealed sessions in it.
    pub size: u64,
    /// How many of them the newest signed checkpoint covers.
    pub signed: u64,
    /// When it was signed.
    pub signed_us: Option<i64>,
}

/// The signing keys.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Signing {
    /// Fingerprint of the one in force.
    pub key: String,
    /// Since when; unknown of the first key. Microseconds since the Unix epoch.
    pub since_us: Option<i64>,
    /// Its private part is here, so that this collector can sign.
    pub here: bool,
    /// Hosts that have not said that they follow it: away, or of an older version.
    pub behind: u64,
    /// Hosts that follow it.
    pub following: u64,
    /// The database lacks changes of the key that were made.
    pub put_back: bool,
    /// Until when an old key signs the log along.
    pub along_until_us: Option<i64>,
    /// Old keys that sign nothing any more and whose private parts are here.
    pub to_retire: u64,
}

/// One other system that gets events.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Forwarding {
    /// Its name.
    pub name: String,
    /// What it is.
    pub to: &'static str,
    /// Events that it does not have.
    pub waiting: u64,
}

/// Messages for webhooks.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Deliveries {
    /// That wait to be sent.
    pub waiting: u64,
    /// Of them, those that failed before.
    pub failed: u64,
    /// Most attempts that one of them has behind it.
    pub tries: u64,
}

/// What retention did.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Retention {
    /// Whether anything is ever deleted.
    pub configured: bool,
    /// When the last sweep ended.
    pub swept_us: Option<i64>,
    /// Sessions that were deleted.
    pub deleted: u64,
    /// Old sessions that stay because they are not as they were sealed.
    pub altered: u64,
    /// Legal holds that stand.
    pub legal_holds: u64,
}

/// Policies that hosts may take.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Centre {
    /// The newest version; 0 before the first.
    pub version: u64,
    /// Hosts that take policies from here.
    pub hosts: u64,
    /// Of them, those that have the newest version.
    pub current: u64,
}

/// Share of its own store that a host may have taken before somebody should look.
const FULL_PERCENT: u64 = 80;

/// Reads how everything stands.
pub fn read(db: &Connection, collector: &Collector, now: i64) -> Result<Overview, CollectorError> {
    let newest = policies::newest(db)?;
    let all = hosts::list(db)?;
    let standing = retention::standing(db)?;
    let mut overview = counts(db).map_err(CollectorError::db("count what is here"))?;
    overview.events = all.iter().map(|h| count(h.events)).sum();
    overview.policies.version = newest;
    overview.signing = signing(&rotation::list(db, &collector.keys)?);
    overview.signing.behind = rotation::silent(db, &overview.signing.key)?;
    overview.signing.put_back = collector.keys.in_force(db)?.is_put_back();
    overview.moved = recordings::moved(db)?;
    for host in &all {
        fleet(&mut overview, host, now);
    }
    for forward in &collector.config.forwards {
        let waiting = count(forward::waiting(db, &forward.name)?);
        let (name, to) = (forward.name.clone(), forward.to.word());
        overview.forwards.push(Forwarding { name, to, waiting });
    }
    overview.retention = Retention {
        configured: collector.config.retention.deletes(),
        swept_us: standing.swept_us,
        deleted: count(standing.sessions),
        altered: count(standing.altered),
        legal_holds: count(standing.legal_holds),
    };
    Ok(overview)
}

fn signing(all: &[rotation::Listed]) -> Signing {
    let mut signing = Signing::default();
    for key in all {
        match key.state {
            "in force" => {
                signing.key.clone_from(&key.fingerprint);
                (signing.since_us, signing.here) = (key.since_us, key.here);
                signing.following = key.hosts;
            }
            "new" => {}
            _ => {
                signing.along_until_us = signing.along_until_us.max(key.along_until_us);
                signing.to_retire += u64::from(key.here && key.along_until_us.is_none());
            }
        }
    }
    signing
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn counts(db: &Connection) -> crate::collector::db::Result<Overview> {
    let mut o = Overview::default();
    (o.sessions.all, o.sessions.live) = db.query_row(
        "SELECT (SELECT count(*) FROM sessions), \
         (SELECT count(*) FROM sessions WHERE closed_us IS NULL AND sealed IS NULL)",
        [],
        |r| Ok((count(r.get(0)?), count(r.get(1)?))),
    )?;
    o.holds = db.query_row(
        "SELECT count(*), min(opened_us), min(deadline_us) FROM holds WHERE state = 'waiting'",
        [],
        |r| {
            let waiting = count(r.get(0)?);
            Ok(Waiting { waiting, oldest_us: r.get(1)?, next_end_us: r.get(2)? })
        },
    )?;
    o.log = db.query_row(
        "SELECT (SELECT coalesce(max(idx) + 1, 0) FROM leaves), coalesce(max(size), 0), \
         (SELECT ts_us FROM log_checkpoints ORDER BY size DESC LIMIT 1) FROM log_checkpoints",
        [],
        |r| Ok(Log { size: count(r.get(0)?), signed: count(r.get(1)?), signed_us: r.get(2)? }),
    )?;
    o.deliveries = db.query_row(
        "SELECT count(*), count(CASE WHEN tries > 0 THEN 1 END), coalesce(max(tries), 0) FROM deliveries",
        [],
        |r| {
            let (waiting, failed) = (count(r.get(0)?), count(r.get(1)?));
            Ok(Deliveries { waiting, failed, tries: count(r.get(2)?) })
        },
    )?;
    Ok(o)
}

/// Counts one host in.
fn fleet(overview: &mut Overview, host: &hosts::Listed, now: i64) {
    let fleet = &mut overview.hosts;
    let name = || host.name.clone();
    match host.state(now) {
        "revoked" => {
            fleet.revoked += 1;
            return;
        }
        "new" => fleet.new.push(name()),
        "away" => fleet.away.push((name(), host.seen_us.unwrap_or_default())),
        _ => fleet.up += 1,
    }
    fleet.enrolled += 1;
    if let Some(problem) = &host.problem {
        fleet.problems.push((name(), problem.clone()));
    }
    let until = host.certificate_until_us;
    if fleet.certificate.as_ref().is_none_or(|(_, first)| until < *first) {
        fleet.certificate = Some((name(), until));
    }
    if let Some(said) = &host.status {
        let lag = said["lag_events"].as_u64().unwrap_or(0);
        if lag > 0 {
            fleet.behind.push((name(), lag));
        }
        if let Some(why) = full(&said["status"]["record"]) {
            fleet.full.push((name(), why));
        }
    }
    if host.policies.takes {
        overview.policies.hosts += 1;
        overview.policies.current +=
            u64::from(host.policies.status.version == overview.policies.version);
        if let Some(why) = &host.policies.status.error {
            overview.hosts.refuse_policies.push((name(), why.clone()));
        }
    }
}

/// What a host says of its own store, when that is bad.
fn full(record: &serde_json::Value) -> Option<String> {
    if let Some(why) = record["refusing"].as_str() {
        return Some(format!("refuses new requests: {why}"));
    }
    let (bytes, most) = (record["bytes"].as_u64()?, record["max_bytes"].as_u64()?);
    let percent = bytes.saturating_mul(100).checked_div(most)?;
    (percent >= FULL_PERCENT).then(|| format!("is {percent} % full"))
}

/// When a certificate ends; microseconds since the Unix epoch.
pub fn ends(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    parsed.validity().not_after.timestamp().checked_mul(1_000_000)
}

/// Bytes that the state directory takes, and of its file system what is free and all there is.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Disk {
    /// Bytes of the files below the state directory.
    pub used: u64,
    /// Bytes that are free to us.
    pub free: u64,
    /// Bytes of the file system.
    pub size: u64,
}

/// Looks at the disk.
pub fn disk(state: &Path) -> Result<Disk, CollectorError> {
    let s = nix::sys::statvfs::statvfs(state)
        .map_err(|e| CollectorError::io("look at the disk of", state, e.into()))?;
    let unit = s.fragment_size();
    let used = bytes_below(state).map_err(|e| CollectorError::io("measure", state, e))?;
    let (free, size) = (s.blocks_available().saturating_mul(unit), s.blocks().saturating_mul(unit));
    Ok(Disk { used, free, size })
}

/// What is taken away meanwhile does not count; links are not followed.
fn bytes_below(dir: &Path) -> std::io::Result<u64> {
    let mut sum = 0_u64;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        sum = sum.saturating_add(match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()).unwrap_or(0),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        });
    }
    Ok(sum)
}
