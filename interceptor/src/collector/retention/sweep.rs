//! Finding what is old, and deleting it step by step. The order and why: see the module above.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::collector::db::{Connection, Row, params};
use serde::Serialize;
use serde_json::json;

use super::legal_holds;
use super::policy::{DAY_US, Retention, Subject, Term, Terms};
use crate::collector::audit::{self, Who};
use crate::collector::forward::{self, Forward};
use crate::collector::hosts::{self, Host};
use crate::collector::replica::Replica;
use crate::collector::{Change, Collector, CollectorError, index, ingest, recordings, search};
use crate::record::recordings::Objects;
use crate::record::tombstones::{Burial, Removed};
use crate::record::{Reader, RecordError, now_us, sealed};

/// Sessions of the index that are looked at in one read.
const PORTION: usize = 500;
/// Most sessions of one decision, which is one entry of the audit trail.
const BATCH: usize = 100;
/// Most events and bytes that go in one transaction of a replica.
const STEP_EVENTS: u64 = 2_000;
const STEP_BYTES: u64 = 8 << 20;
/// Sessions that a preview names.
const NAMED: usize = 10_000;
/// How a host's problem begins that retention found.
const PROBLEM: &str = "altered here: ";

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sessions that were decided.
    pub sessions: u64,
    /// Events that are gone, with what a sweep before left.
    pub events: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Sessions that stay because they are not as they were sealed.
    pub altered: u64,
}

/// A session that may be old enough.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    id: i64,
    leaf: i64,
    host: i64,
    number: u64,
    session: String,
    host_name: String,
    service: String,
    protocol: String,
    events: i64,
    accepted_us: i64,
    held: bool,
}

impl Candidate {
    fn from_row(r: &Row<'_>) -> crate::collector::db::Result<Self> {
        Ok(Self {
            id: r.get(0)?,
            leaf: r.get(1)?,
            host: r.get(2)?,
            number: r.get::<_, i64>(3)?.max(0).unsigned_abs(),
            session: r.get(4)?,
            host_name: r.get(5)?,
            service: r.get(6)?,
            protocol: r.get(7)?,
            events: r.get(8)?,
            accepted_us: r.get(9)?,
            held: r.get(10)?,
        })
    }

    /// How long it is kept, when that time is over.
    fn over(&self, terms: &Terms, now: i64) -> Option<Term> {
        let subject =
            Subject { host: &self.host_name, service: &self.service, protocol: &self.protocol };
        terms.of(subject).filter(|t| is_over(self.accepted_us, t.days, now))
    }
}

fn is_over(accepted_us: i64, days: u32, now: i64) -> bool {
    accepted_us.saturating_add(i64::from(days).saturating_mul(DAY_US)) <= now
}

/// Sealed sessions that are there, behind a leaf, as far as anything could be old enough.
pub(super) fn portion(
    db: &Connection,
    after: i64,
    before_us: i64,
) -> Result<Vec<Candidate>, CollectorError> {
    let sql = format!(
        "SELECT s.id, s.leaf, s.host, s.number, s.session, h.name, s.service, s.protocol, \
         s.events, v.accepted_us, {} FROM sessions s JOIN leaves v ON v.idx = s.leaf \
         JOIN hosts h ON h.id = s.host WHERE s.deleted_us IS NULL AND s.leaf > ?1 \
         AND s.leaf <= (SELECT idx FROM leaves WHERE accepted_us <= ?2 \
         ORDER BY accepted_us DESC, idx DESC LIMIT 1) \
         AND s.sealed IS NOT NULL AND v.accepted_us <= ?2 ORDER BY s.leaf LIMIT ?3",
        legal_holds::held()
    );
    db.prepare_cached(&sql)
        .and_then(|mut s| {
            s.query_map(params![after, before_us, PORTION as i64], Candidate::from_row)?.collect()
        })
        .map_err(CollectorError::db("look for what is old"))
}

pub(super) fn compiled(policy: &Retention) -> Result<Terms, CollectorError> {
    policy.compile().map_err(CollectorError::Key)
}

/// Looks once at everything that is old enough at a time, and deletes it.
pub async fn sweep(collector: &Arc<Collector>, now: i64) -> Result<Swept, CollectorError> {
    let mut swept = Swept::default();
    finish(collector, &mut swept).await?;
    let policy = &collector.config.retention;
    let Some(shortest) = policy.shortest() else { return Ok(swept) };
    let terms = compiled(policy)?;
    let before_us = now.saturating_sub(i64::from(shortest).saturating_mul(DAY_US));
    let mut altered: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
    let mut after = -1;
    loop {
        let read = move |db: &Connection| portion(db, after, before_us);
        let candidates = collector.central.read(read).await?;
        let Some(last) = candidates.last() else { break };
        after = last.leaf;
        for (host, old) in old_by_host(candidates, &terms, now) {
            for batch in old.chunks(BATCH) {
                // One host whose replica cannot be read must not keep the others.
                match one_batch(collector, host, batch, now, &mut swept).await {
                    Ok(bad) => altered.entry(host).or_default().extend(bad),
                    Err(CollectorError::Stopped) => return Err(CollectorError::Stopped),
                    Err(error) => {
                        tracing::error!(%error, host, "what is old there cannot be looked at");
                        break;
                    }
                }
            }
        }
    }
    swept.altered = altered.values().map(|all| all.len() as u64).sum();
    tell(collector, altered, swept.altered).await?;
    Ok(swept)
}

pub(super) type Old = (Candidate, Term);

/// What is old enough and under no legal hold.
pub(super) fn old_by_host(all: Vec<Candidate>, terms: &Terms, now: i64) -> BTreeMap<i64, Vec<Old>> {
    let mut by_host: BTreeMap<i64, Vec<Old>> = BTreeMap::new();
    for candidate in all.into_iter().filter(|c| !c.held) {
        if let Some(term) = candidate.over(terms, now) {
            by_host.entry(candidate.host).or_default().push((candidate, term));
        }
    }
    by_host
}

/// Steps 1 to 5 for some sessions of one host; the numbers of those that are not as they were
/// sealed.
async fn one_batch(
    collector: &Arc<Collector>,
    host: i64,
    batch: &[Old],
    now: i64,
    swept: &mut Swept,
) -> Result<Vec<u64>, CollectorError> {
    let known = collector.central.read(move |db| hosts::by_id(db, host)).await?;
    let Some(known) = known else { return Ok(Vec::new()) };
    if collector.feed.is_some() {
        ingest::freshen(collector, &known).await?;
    }
    let (state, key) = (collector.config.state.clone(), known.clone());
    let batch = batch.to_vec();
    let objects = collector.recordings.of(&known.fingerprint);
    let look = move || unaltered(&state, &key, objects, batch);
    let looked = tokio::task::spawn_blocking(look).await.map_err(|_| CollectorError::Stopped)?;
    let (good, bad) = looked?;
    let decided = decide(collector, &known, good, now).await?;
    swept.sessions += decided;
    if decided > 0 {
        purge(collector, &known, swept).await?;
    }
    Ok(bad)
}

/// Step 1: those whose chain is what was sealed, and the numbers of the others.
fn unaltered(
    state: &Path,
    host: &Host,
    objects: Box<dyn Objects>,
    batch: Vec<Old>,
) -> Result<(Vec<Old>, Vec<u64>), CollectorError> {
    let dir = Replica::directory(state, &host.fingerprint);
    let reader = Reader::of_replica(&dir)?.with_objects(objects);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for one in batch {
        let number = one.0.number;
        if reader.tombstone(number)?.is_some() {
            // The central database is older than its deletion: `collector verify` tells it.
            tracing::error!(host = %host.name, number, "deleted here, and nothing here says why");
            continue;
        }
        let as_sealed = match reader.find(&number.to_string()) {
            Ok(summary) => {
                let checked = match sealed::session(&reader, &host.key, &summary) {
                    // It can be looked at when the place of its recording answers again; the
                    // others need not wait for that.
                    Err(RecordError::Object(e)) if e.is_away() => {
                        tracing::warn!(host = %host.name, number, error = %e, "stays for now");
                        continue;
                    }
                    checked => checked?,
                };
                // What the host itself sealed as broken is known to be so for good.
                summary.id == one.0.session
                    && checked.seal.is_some()
                    && (checked.problems.is_empty() || (checked.reported && !checked.broken))
            }
            Err(RecordError::Contents(_)) => false,
            Err(e) => return Err(e.into()),
        };
        if as_sealed {
            good.push(one);
        } else {
            bad.push(number);
        }
    }
    Ok((good, bad))
}

/// Step 2: marks sessions and writes them into the audit trail, in one transaction; how many.
pub(super) async fn decide(
    collector: &Arc<Collector>,
    host: &Host,
    batch: Vec<Old>,
    now: i64,
) -> Result<u64, CollectorError> {
    if batch.is_empty() {
        return Ok(0);
    }
    let host = host.clone();
    let forwards = collector.config.forwards.clone();
    let mark = move |db: &Connection| mark(db, &host, &batch, &forwards, now);
    let ids = collector.central.write(mark).await?;
    for id in &ids {
        collector.hub.tell(Change::Session(*id));
    }
    Ok(ids.len() as u64)
}

fn mark(
    db: &Connection,
    host: &Host,
    batch: &[Old],
    forwards: &[Forward],
    now: i64,
) -> Result<Vec<i64>, CollectorError> {
    let sql = CollectorError::db;
    let cursors = forward::cursors(db, forwards, host.id)?;
    let passed =
        |c: &Candidate| cursors.iter().all(|f| f.is_past(c.number, c.events.max(0).unsigned_abs()));
    let waiting = batch.iter().filter(|(c, _)| !passed(c)).count();
    if waiting > 0 {
        tracing::warn!(host = %host.name, sessions = waiting, "old sessions stay until all \
            forwards have passed them on");
    }
    // Asked again here: a hold may have been placed since, and in this transaction none can be.
    let ask = format!(
        "SELECT 1 FROM sessions s JOIN hosts h ON h.id = s.host JOIN leaves v ON v.idx = s.leaf \
         WHERE s.id = ?1 AND s.deleted_us IS NULL AND s.sealed IS NOT NULL \
         AND v.accepted_us = ?2 AND NOT {}",
        legal_holds::held()
    );
    let (mut ids, mut named, mut events) = (Vec::new(), Vec::new(), 0);
    for (c, term) in batch {
        let goes = is_over(c.accepted_us, term.days, now)
            && passed(c)
            && db
                .prepare_cached(&ask)
                .and_then(|mut s| s.exists(params![c.id, c.accepted_us]))
                .map_err(sql("look for legal holds"))?;
        if !goes {
            continue;
        }
        db.prepare_cached("UPDATE sessions SET deleted_us = ?2, deleted_policy = ?3 WHERE id = ?1")
            .and_then(|mut s| s.execute(params![c.id, now, term.policy]))
            .map_err(sql("mark what is deleted"))?;
        ids.push(c.id);
        events += c.events;
        named.push(json!({
            "session": c.session, "number": c.number, "events": c.events, "policy": term.policy,
            "accepted_us": c.accepted_us,
        }));
    }
    if ids.is_empty() {
        return Ok(ids);
    }
    let detail = json!({
        "host": host.fingerprint, "count": ids.len(), "events": events, "sessions": named,
    });
    let who = Who::Collector;
    let entry =
        audit::Entry { who: &who, what: "retention.deleted", target: &host.name, detail: &detail };
    audit::append(db, &entry)?;
    db.prepare_cached("UPDATE retention SET sessions = sessions + ?1, events = events + ?2")
        .and_then(|mut s| s.execute(params![ids.len() as i64, events]))
        .map_err(sql("count what is deleted"))?;
    Ok(ids)
}

/// Goes on with what was marked and is not gone.
pub(super) async fn finish(
    collector: &Arc<Collector>,
    swept: &mut Swept,
) -> Result<(), CollectorError> {
    let waiting = |db: &Connection| {
        db.prepare(
            "SELECT DISTINCT host FROM sessions WHERE deleted_us IS NOT NULL AND purged_us IS NULL",
        )
        .and_then(|mut s| {
            s.query_map([], |r| r.get(0))?.collect::<crate::collector::db::Result<Vec<i64>>>()
        })
        .map_err(CollectorError::db("look for what is to be deleted"))
    };
    for id in collector.central.read(waiting).await? {
        let Some(host) = collector.central.read(move |db| hosts::by_id(db, id)).await? else {
            continue;
        };
        // One host whose replica cannot be written must not keep the others.
        if let Err(error) = purge(collector, &host, swept).await {
            tracing::error!(%error, host = %host.name, "what is deleted cannot be taken out yet");
        }
    }
    Ok(())
}

/// Marks what was deleted and is back, since a replica was restored from a backup of before: it
/// has no tombstone, so it is deleted again.
pub(super) async fn find_restored(collector: &Arc<Collector>) -> Result<(), CollectorError> {
    let hosts = collector.central.read(hosts::list).await?;
    for host in hosts {
        let dir = Replica::directory(&collector.config.state, &host.fingerprint);
        let stones = move || -> Result<HashSet<u64>, RecordError> {
            if !crate::record::Store::path(&dir).exists() {
                return Ok(HashSet::new());
            }
            Ok(Reader::of_replica(&dir)?.tombstones()?.into_iter().map(|t| t.number).collect())
        };
        let stones = tokio::task::spawn_blocking(stones).await;
        let stones = match stones.map_err(|_| CollectorError::Stopped)? {
            Ok(stones) => stones,
            Err(error) => {
                tracing::error!(%error, host = %host.name, "its tombstones cannot be read");
                continue;
            }
        };
        let again = move |db: &Connection| unsettle(db, host.id, &stones);
        let back = collector.central.write(again).await?;
        if back > 0 {
            tracing::warn!(host = %host.name, sessions = back, "deleted sessions came back: was \
                the replica restored?");
        }
    }
    Ok(())
}

fn unsettle(db: &Connection, host: i64, stones: &HashSet<u64>) -> Result<usize, CollectorError> {
    let write = || -> crate::collector::db::Result<usize> {
        let settled: Vec<(i64, i64)> = db
            .prepare("SELECT id, number FROM sessions WHERE host = ?1 AND purged_us IS NOT NULL")?
            .query_map([host], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<crate::collector::db::Result<_>>()?;
        let mut back = 0;
        for (id, number) in settled {
            if !stones.contains(&number.max(0).unsigned_abs()) {
                back += db
                    .prepare_cached("UPDATE sessions SET purged_us = NULL WHERE id = ?1")?
                    .execute([id])?;
            }
        }
        Ok(back)
    };
    write().map_err(CollectorError::db("look for what came back"))
}

/// Steps 3 to 5 for what is marked of one host.
async fn purge(
    collector: &Arc<Collector>,
    host: &Host,
    swept: &mut Swept,
) -> Result<(), CollectorError> {
    loop {
        let id = host.id;
        let marked = collector.central.read(move |db| marked(db, id)).await?;
        let wanted = marked.len();
        let whole = wanted < PORTION;
        let buried = bury(collector, host, marked).await?;
        if buried.len() < wanted {
            tracing::warn!(
                host = %host.name, missing = wanted - buried.len(),
                "the replica has no sealed session where one was deleted: was it put back?"
            );
        }
        search::forget(collector, host, &buried).await?;
        let removed = remove(collector, host).await?;
        swept.events += removed.events;
        swept.bytes += removed.bytes;
        // Only what is gone everywhere counts as gone; a store that is away is asked again.
        recordings::delete(collector, host, &buried).await?;
        let progress = !buried.is_empty();
        settle(collector, host, buried, removed.bytes).await?;
        if whole || !progress {
            return Ok(());
        }
    }
}

pub(super) fn marked(db: &Connection, host: i64) -> Result<Vec<Burial>, CollectorError> {
    db.prepare_cached(
        "SELECT number, deleted_us, deleted_policy FROM sessions WHERE host = ?1 \
         AND deleted_us IS NOT NULL AND purged_us IS NULL LIMIT ?2",
    )
    .and_then(|mut s| {
        s.query_map(params![host, PORTION as i64], |r| {
            Ok(Burial {
                number: r.get::<_, i64>(0)?.max(0).unsigned_abs(),
                deleted_us: r.get(1)?,
                policy: r.get(2)?,
            })
        })?
        .collect()
    })
    .map_err(CollectorError::db("look for what is to be deleted"))
}

/// Step 3: tombstones; the numbers that have one.
pub(super) async fn bury(
    collector: &Arc<Collector>,
    host: &Host,
    marked: Vec<Burial>,
) -> Result<Vec<u64>, CollectorError> {
    ingest::bury(collector, host, marked).await
}

/// Step 4: the events, in steps between which the host may ship; then the room they took.
pub(super) async fn remove(
    collector: &Arc<Collector>,
    host: &Host,
) -> Result<Removed, CollectorError> {
    let mut all = Removed::default();
    while !all.finished {
        let step = |replica: &Replica| replica.store().remove_buried(STEP_EVENTS, STEP_BYTES);
        let removed = ingest::with_replica(collector, host, step).await?;
        all.events += removed.events;
        all.bytes += removed.bytes;
        all.finished = removed.finished;
    }
    if all.events > 0 {
        ingest::give_room_back(collector, host).await?;
    }
    Ok(all)
}

/// Step 5: the events are gone.
pub(super) async fn settle(
    collector: &Arc<Collector>,
    host: &Host,
    numbers: Vec<u64>,
    bytes: u64,
) -> Result<(), CollectorError> {
    let id = host.id;
    collector
        .central
        .write(move |db| {
            let write = || -> crate::collector::db::Result<()> {
                let mut note = db.prepare_cached(
                    "UPDATE sessions SET purged_us = ?3 WHERE host = ?1 AND number = ?2 \
                     AND deleted_us IS NOT NULL AND id = ?4",
                )?;
                for number in &numbers {
                    let row = index::session_id(id, *number);
                    note.execute(params![id, *number as i64, now_us(), row])?;
                }
                db.prepare_cached("UPDATE retention SET bytes = bytes + ?1")?
                    .execute([i64::try_from(bytes).unwrap_or(i64::MAX)])?;
                Ok(())
            };
            write().map_err(CollectorError::db("note what is gone"))
        })
        .await
}

/// The sweep is over: notes when, and marks hosts whose replicas are not as they were sealed.
async fn tell(
    collector: &Arc<Collector>,
    altered: BTreeMap<i64, Vec<u64>>,
    count: u64,
) -> Result<(), CollectorError> {
    let changed: Vec<i64> =
        altered.iter().filter(|(_, numbers)| !numbers.is_empty()).map(|(h, _)| *h).collect();
    collector
        .central
        .write(move |db| {
            for (id, numbers) in altered.iter().filter(|(_, numbers)| !numbers.is_empty()) {
                if let Some(host) = hosts::by_id(db, *id)? {
                    problem(db, &host, numbers)?;
                }
            }
            db.execute(
                "UPDATE retention SET kept = ?1, swept_us = ?2",
                params![i64::try_from(count).unwrap_or(i64::MAX), now_us()],
            )
            .map(drop)
            .map_err(CollectorError::db("note a sweep"))
        })
        .await?;
    for host in changed {
        collector.hub.tell(Change::Host(host));
    }
    Ok(())
}

fn problem(db: &Connection, host: &Host, numbers: &[u64]) -> Result<(), CollectorError> {
    let first: Vec<String> = numbers.iter().take(5).map(u64::to_string).collect();
    let more = if numbers.len() > first.len() { ", …" } else { "" };
    let words = format!(
        "{PROBLEM}the replica has {} sessions otherwise than they were sealed, and retention keeps \
         them: {}{more}",
        numbers.len(),
        first.join(", ")
    );
    let before: Option<String> = db
        .query_row("SELECT problem FROM hosts WHERE id = ?1", [host.id], |r| r.get(0))
        .map_err(CollectorError::db("read a host"))?;
    // What else is wrong stays until somebody looked into it.
    if before.is_some_and(|p| !p.starts_with(index::GAP) && !p.starts_with(PROBLEM)) {
        return Ok(());
    }
    hosts::set_problem(db, host, &Who::Collector, Some(&words))
}

/// What a sweep would delete now.
#[derive(Debug, Default, Serialize)]
pub struct Preview {
    /// By host and rule.
    pub groups: Vec<Group>,
    /// Sessions.
    pub sessions: u64,
    /// Events.
    pub events: u64,
    /// Sessions that are old enough and stay because of a legal hold.
    pub held: u64,
    /// Their ids, the first ten thousand.
    pub named: Vec<String>,
}

/// What one rule deletes of one host.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Name of the host.
    pub host: String,
    /// The rule.
    pub policy: String,
    /// Sessions.
    pub sessions: u64,
    /// Events.
    pub events: u64,
}

/// What a sweep would delete at a time. It does not look into replicas: those that are not as they
/// were sealed stay, and are counted here.
pub fn preview(db: &Connection, policy: &Retention, now: i64) -> Result<Preview, CollectorError> {
    let mut all = Preview::default();
    let Some(shortest) = policy.shortest() else { return Ok(all) };
    let terms = compiled(policy)?;
    let before_us = now.saturating_sub(i64::from(shortest).saturating_mul(DAY_US));
    let mut groups: BTreeMap<(i64, String, String), (u64, u64)> = BTreeMap::new();
    let mut after = -1;
    loop {
        let candidates = portion(db, after, before_us)?;
        let Some(last) = candidates.last() else { break };
        after = last.leaf;
        for c in candidates {
            let Some(term) = c.over(&terms, now) else { continue };
            if c.held {
                all.held += 1;
                continue;
            }
            let events = c.events.max(0).unsigned_abs();
            let group = groups.entry((c.host, c.host_name, term.policy)).or_default();
            group.0 += 1;
            group.1 += events;
            all.sessions += 1;
            all.events += events;
            if all.named.len() < NAMED {
                all.named.push(c.session);
            }
        }
    }
    let group = |((_, host, policy), (sessions, events))| Group { host, policy, sessions, events };
    all.groups = groups.into_iter().map(group).collect();
    Ok(all)
}

/// Whether every deletion stands in the audit trail: each row that is marked, and each tombstone
/// of each replica. How many sessions were deleted, or what is missing.
pub(super) fn check(db: &Connection, state: &Path) -> Result<Result<u64, String>, CollectorError> {
    let sql = CollectorError::db;
    let recorded = recorded(db).map_err(sql("read the audit trail"))?;
    let mut marked: HashSet<(String, u64)> = HashSet::new();
    let read = || -> crate::collector::db::Result<Vec<(String, u64)>> {
        db.prepare(
            "SELECT h.fingerprint, s.number FROM sessions s JOIN hosts h ON h.id = s.host \
             WHERE s.deleted_us IS NOT NULL",
        )?
        .query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?.max(0).unsigned_abs())))?
        .collect()
    };
    marked.extend(read().map_err(sql("read what was deleted"))?);
    let fingerprints: Vec<String> = db
        .prepare("SELECT fingerprint FROM hosts")
        .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
        .map_err(sql("list hosts"))?;
    let unrecorded = marked.iter().find(|one| !recorded.contains(*one));
    if let Some((host, number)) = unrecorded {
        return Ok(Err(format!("session {number} of host {host} is marked as deleted")));
    }
    for host in fingerprints {
        let dir = Replica::directory(state, &host);
        if !crate::record::Store::path(&dir).exists() {
            continue;
        }
        for stone in Reader::of_replica(&dir)?.tombstones()? {
            if !recorded.contains(&(host.clone(), stone.number)) {
                let number = stone.number;
                return Ok(Err(format!("the events of session {number} of host {host} are gone")));
            }
        }
    }
    Ok(Ok(marked.len() as u64))
}

/// Host and number of every session that the audit trail calls deleted.
pub(super) fn recorded(db: &Connection) -> crate::collector::db::Result<HashSet<(String, u64)>> {
    let mut s = db.prepare("SELECT detail FROM audit WHERE what = 'retention.deleted'")?;
    let mut rows = s.query([])?;
    let mut all = HashSet::new();
    while let Some(row) = rows.next()? {
        let detail: String = row.get(0)?;
        let Ok(detail) = serde_json::from_str::<serde_json::Value>(&detail) else { continue };
        let Some(host) = detail["host"].as_str() else { continue };
        let numbers = detail["sessions"].as_array().into_iter().flatten();
        all.extend(numbers.filter_map(|s| Some((host.to_owned(), s["number"].as_u64()?))));
    }
    Ok(all)
}
