//! Large recordings: attachments of sealed sessions go into a folder or a bucket, and out of the
//! replicas and the database.
//!
//! The order, each step durable before the next:
//! 1. The session's chain is computed once more. What is not as it was sealed is not moved.
//! 2. Its frames go into objects, part by part, each named by its hash and read back, while the
//!    chain is computed along.
//! 3. One transaction notes where each attachment is: of the replica, or with `[store]` of the
//!    feed, where rows with the bodies take the place of the session's rows. Every replica follows
//!    those.
//! 4. Attachments go out of the replica, in small transactions.
//!
//! Killed before step 3, objects are left that the next attempt writes again under the same names,
//! and that go with the session when it is deleted. Killed behind it, step 4 goes on.
//!
//! Retention deletes objects by the session's place, whatever stands there, and holds the same
//! lease and the same lock as moving does: so nothing is put for a session that was deleted.
//!
//! What this module must never do: take an attachment out of a replica whose object was not read
//! back, put anything into a place that is another collector's, or keep a host's records from being
//! accepted.

mod objects;
mod settings;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::audit::Who;
use super::db::Connection;
use super::hosts::{self, Host};
use super::replica::Replica;
use super::{Change, Collector, CollectorError, Config, index, ingest};
use crate::record::chain;
use crate::record::recordings::{self, Cut, ObjectError, Part, Placed};
use crate::record::{Reader, RecordError, Store, Summary, sealed};
use objects::{Cache, Objects};
pub use settings::{Place, Settings};

/// How often is looked for what is large.
const EVERY: Duration = Duration::from_secs(30);
/// Longest wait after failures.
const LONGEST: Duration = Duration::from_secs(15 * 60);
/// The lease: that of retention, so that one collector at a time moves and deletes.
const LEASE: &str = "retention";
/// Bytes that go out of a replica in one transaction.
const STEP_BYTES: u64 = 8 << 20;
/// Seals after which it is noted in the replica that they were looked at.
const NOTE: u64 = 64;

/// The recordings of a collector.
pub struct Recordings {
    settings: Settings,
    place: Place,
    /// Authority of this collector: a place belongs to one.
    owner: String,
    cache: Arc<Cache>,
    open: Mutex<Option<Arc<Objects>>>,
    /// Moving a session, and deleting objects.
    turn: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
}

/// What this process knows of its work.
#[derive(Default)]
struct Known {
    /// Ledgers of hosts up to here were looked at.
    seen: HashMap<i64, i64>,
    /// Hosts whose replicas may have attachments that are elsewhere as well.
    to_shed: HashSet<i64>,
    /// Sessions that are large and not as they were sealed.
    altered: HashSet<(i64, u64)>,
    failing: Option<String>,
    failures: u64,
}

/// How moving goes, as far as this process knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Why the last attempt failed, if it did.
    pub failing: Option<String>,
    /// Attempts that failed.
    pub failures: u64,
    /// Large sessions that stay because they are not as they were sealed.
    pub altered: u64,
}

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Sessions.
    pub sessions: i64,
    /// Bytes of their objects.
    pub bytes: i64,
}

/// Marks a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Authority of the collectors.
    collector: String,
    /// Drawn when the place was first used; their database knows it.
    place: String,
}

fn wrong(why: impl Into<String>) -> CollectorError {
    CollectorError::Recordings(why.into())
}

impl Recordings {
    /// As configured. Nothing is asked or made yet.
    pub fn new(config: &Config, owner: String) -> Result<Self, CollectorError> {
        let settings = config.recordings.clone();
        let place = settings.place(&config.state, config.store.is_some()).map_err(wrong)?;
        Ok(Self {
            settings,
            place,
            owner,
            cache: Arc::new(Cache::new(config.state.join("cache").join("recordings"))),
            open: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        })
    }

    /// Reads the secret of a bucket, so that one that is missing is known at the start. Asks nobody.
    pub fn ready(&self) -> Result<(), CollectorError> {
        match &self.place {
            Place::S3 { .. } => self.objects(false).map(drop).map_err(wrong),
            Place::Off | Place::Folder { .. } => Ok(()),
        }
    }

    /// Where they are, in words.
    pub fn words(&self) -> String {
        objects::words(&self.place)
    }

    /// Whether anything is ever moved.
    pub fn moves(&self) -> bool {
        self.place != Place::Off
    }

    /// How moving goes.
    pub fn state(&self) -> State {
        let known = self.known();
        State {
            failing: known.failing.clone(),
            failures: known.failures,
            altered: known.altered.len() as u64,
        }
    }

    /// Whether the place answers: what is wrong, or whether it was used yet. Blocks.
    pub fn probe(&self) -> Result<bool, String> {
        if let Place::Folder { path, own: true } = &self.place
            && !path.exists()
        {
            return Ok(false);
        }
        self.objects(false)?.mark().map(|mark| mark.is_some())
    }

    /// Whether the place has the mark of this collector. Blocks.
    fn is_marked_ours(&self) -> Result<bool, String> {
        let absent = matches!(&self.place, Place::Folder { path, .. } if !path.exists());
        if !self.moves() || absent {
            return Ok(false);
        }
        let mark = self.objects(false)?.mark()?;
        let mark = mark.and_then(|text| serde_json::from_str::<Mark>(&text).ok());
        Ok(mark.is_some_and(|mark| mark.collector == self.owner))
    }

    /// Gives attachments of a host to readers.
    pub fn of(self: &Arc<Self>, fingerprint: &str) -> Box<dyn recordings::Objects> {
        Box::new(OfHost { recordings: Arc::clone(self), fingerprint: fingerprint.to_owned() })
    }

    /// Rows of recordings came into a host's replica.
    pub(super) fn came(&self, host: i64) {
        self.known().to_shed.insert(host);
    }

    /// Sessions were deleted: nothing of them may be read here any more.
    pub(super) fn forget(&self, fingerprint: &str, numbers: &[u64]) {
        self.cache.forget(fingerprint, numbers);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open place. A folder of our own is made where `make` says so.
    fn objects(&self, make: bool) -> Result<Arc<Objects>, String> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok(Arc::clone(open));
        }
        let store = match &self.place {
            Place::Off => return Err("[recordings] names no place: say url".into()),
            Place::Folder { path, own } => objects::folder(path, make && *own)?,
            // Its secret may be one that only the service is given.
            Place::S3 { .. } => {
                objects::bucket(&self.settings, &self.place).map_err(|e| e.to_string())?
            }
        };
        let new = Arc::new(Objects::new(store, &self.place, Arc::clone(&self.cache))?);
        *open = Some(Arc::clone(&new));
        Ok(new)
    }
}

/// Objects of one host.
struct OfHost {
    recordings: Arc<Recordings>,
    fingerprint: String,
}

impl recordings::Objects for OfHost {
    fn open(&self, part: &Part) -> Result<std::fs::File, ObjectError> {
        let objects = self.recordings.objects(false).map_err(|why| ObjectError::Away {
            name: format!("{}/{}", self.fingerprint, recordings::name(part)),
            place: self.recordings.words(),
            why,
        })?;
        objects.open(&self.fingerprint, part)
    }
}

/// What was moved in all, by any collector of the database.
pub fn moved(db: &Connection) -> Result<Moved, CollectorError> {
    db.query_row("SELECT sessions, bytes FROM recordings", [], |r| {
        Ok(Moved { sessions: r.get(0)?, bytes: r.get(1)? })
    })
    .map_err(CollectorError::db("read what was moved"))
}

// ---- moving ------------------------------------------------------------------------------------

/// Looks again and again; never returns.
pub async fn run(collector: Arc<Collector>) {
    let mut wait = EVERY;
    shed_all(&collector).await;
    loop {
        match pass(&collector).await {
            Ok(moved) => {
                if moved.sessions > 0 {
                    let Moved { sessions, bytes } = moved;
                    tracing::info!(
                        sessions,
                        bytes,
                        to = collector.recordings.words(),
                        "recordings"
                    );
                }
                if collector.recordings.known().failing.take().is_some() {
                    tracing::info!("recordings are moved again");
                }
                wait = EVERY;
            }
            Err(error) => {
                tracing::error!(%error, again_s = wait.as_secs(), "recordings are not moved: they \
                    stay in the replicas meanwhile");
                let mut known = collector.recordings.known();
                known.failing = Some(error.to_string());
                known.failures += 1;
                drop(known);
                wait = (wait * 2).min(LONGEST);
            }
        }
        tokio::time::sleep(wait).await;
    }
}

/// Looks once at everything that was sealed since, and moves what is large.
pub async fn pass(collector: &Arc<Collector>) -> Result<Moved, CollectorError> {
    let mut moved = Moved::default();
    shed_those(collector).await;
    if !collector.recordings.moves() || !collector.leads(LEASE).await {
        return Ok(moved);
    }
    for listed in collector.central.read(hosts::list).await? {
        let seen = collector.recordings.known().seen.get(&listed.id).copied();
        if seen.is_some_and(|seen| seen >= listed.ledger_idx) {
            continue;
        }
        let id = listed.id;
        let Some(host) = collector.central.read(move |db| hosts::by_id(db, id)).await? else {
            continue;
        };
        match look(collector, &host, &mut moved).await {
            Ok(true) => drop(collector.recordings.known().seen.insert(id, listed.ledger_idx)),
            // Another collector goes on with it.
            Ok(false) => return Ok(moved),
            Err(e @ (CollectorError::Recordings(_) | CollectorError::Stopped)) => return Err(e),
            // One host whose replica cannot be read must not keep the others.
            Err(error) => tracing::error!(%error, host = %host.name, "its recordings stay"),
        }
    }
    Ok(moved)
}

/// What is large of one host; false when another collector is to go on.
async fn look(
    collector: &Arc<Collector>,
    host: &Host,
    moved: &mut Moved,
) -> Result<bool, CollectorError> {
    if collector.feed.is_some() {
        ingest::freshen(collector, host).await?;
    }
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    if !Store::path(&dir).exists() {
        return Ok(true);
    }
    let from = collector.recordings.settings.from;
    let read = dir.clone();
    let mut behind = blocking(move || Reader::of_replica(&read)?.weighed(from)).await?;
    let mut noted = behind;
    loop {
        let (read, at) = (dir.clone(), behind);
        let step = blocking(move || Reader::of_replica(&read)?.weigh(at, from)).await?;
        for (number, _) in &step.heavy {
            if !move_one(collector, host, *number, moved).await? {
                return Ok(false);
            }
        }
        behind = step.upto;
        if !step.heavy.is_empty() || behind >= noted + NOTE {
            let note = move |replica: &Replica| replica.store().note_weighed(behind, from);
            ingest::with_replica(collector, host, note).await?;
            noted = behind;
        }
        if step.finished {
            return Ok(true);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, CollectorError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| CollectorError::Stopped)?;
    Ok(done?)
}

/// What became of putting a session's frames into objects.
enum Put {
    /// They are there.
    Whole(Box<Whole>),
    /// It is not as it was sealed.
    Altered(String),
    /// It was deleted or moved meanwhile.
    Gone,
    /// Another collector is to go on.
    Later,
}

/// A session whose frames are in objects.
struct Whole {
    reader: Reader,
    session: Summary,
    parts: Vec<Placed>,
}

/// One session; false when another collector is to go on.
async fn move_one(
    collector: &Arc<Collector>,
    host: &Host,
    number: u64,
    moved: &mut Moved,
) -> Result<bool, CollectorError> {
    let _turn = collector.recordings.turn.lock().await;
    if !collector.leads(LEASE).await {
        return Ok(false);
    }
    own_place(collector).await?;
    let (this, of, handle) = (Arc::clone(collector), host.clone(), Handle::current());
    let put = tokio::task::spawn_blocking(move || put(&this, &of, number, &handle));
    let put = put.await.map_err(|_| CollectorError::Stopped)?;
    if !matches!(put, Ok(Put::Whole(_) | Put::Altered(_))) {
        // It may have been deleted while something of it was on its way into the place.
        delete_buried(collector, host, number).await?;
    }
    let Whole { reader, session, parts } = match put? {
        Put::Whole(whole) => *whole,
        Put::Altered(what) => {
            tracing::error!(host = %host.name, number, what, "a large session stays in the \
                replica: it is not as it was sealed");
            collector.recordings.known().altered.insert((host.id, number));
            tell(collector, host, number).await?;
            return Ok(true);
        }
        Put::Gone => return Ok(true),
        Put::Later => return Ok(false),
    };
    own_place(collector).await?;
    let bytes: u64 = parts.iter().map(|p| p.part.bytes).sum();
    if !ingest::record(collector, host, reader, session, parts).await? {
        // It was deleted since: what was put goes too.
        delete_those(collector, host, vec![number]).await?;
        return Ok(true);
    }
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    moved.sessions += 1;
    moved.bytes = moved.bytes.saturating_add(bytes);
    let count = move |db: &Connection| {
        db.execute("UPDATE recordings SET sessions = sessions + 1, bytes = bytes + ?1", [bytes])
            .map(drop)
            .map_err(CollectorError::db("count what was moved"))
    };
    collector.central.write(count).await?;
    shed(collector, host).await?;
    Ok(true)
}

/// Marks a host of which a session is not as it was sealed, until somebody looked into it.
async fn tell(collector: &Arc<Collector>, host: &Host, number: u64) -> Result<(), CollectorError> {
    let (host, id) = (host.clone(), host.id);
    let write = move |db: &Connection| {
        let before: Option<String> = db
            .query_row("SELECT problem FROM hosts WHERE id = ?1", [host.id], |r| r.get(0))
            .map_err(CollectorError::db("read a host"))?;
        // What else is wrong stays.
        if before.is_some_and(|p| !p.starts_with(index::GAP)) {
            return Ok(());
        }
        let words = format!(
            "altered here: session {number} is large and not as it was sealed, and stays in the \
             replica"
        );
        hosts::set_problem(db, &host, &Who::Collector, Some(&words))
    };
    collector.central.write(write).await?;
    collector.hub.tell(Change::Host(id));
    Ok(())
}

/// Steps 1 and 2.
fn put(
    collector: &Arc<Collector>,
    host: &Host,
    number: u64,
    handle: &Handle,
) -> Result<Put, CollectorError> {
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    let reader = Reader::of_replica(&dir)?;
    if reader.tombstone(number)?.is_some() || reader.is_recording(number)? {
        return Ok(Put::Gone);
    }
    let session = reader.find(&number.to_string())?;
    let checked = sealed::session(&reader, &host.key, &session)?;
    // What the host itself sealed as broken is known to be so for good, and stays.
    if checked.reported && !checked.broken {
        return Ok(Put::Gone);
    }
    if let Some(problem) = checked.problems.first() {
        return Ok(Put::Altered(problem.clone()));
    }
    let Some(end) = checked.seal.and(checked.head) else {
        return Ok(Put::Altered("it has no seal".into()));
    };
    let objects = collector.recordings.objects(true).map_err(wrong)?;
    let id = ulid::Ulid::from_string(&session.id).map_err(|e| wrong(e.to_string()))?;
    let mut at = (0, chain::start(&host.key.fingerprint(), id, number));
    let mut parts: Vec<Placed> = Vec::new();
    // Each part is read by itself, so that no snapshot stands for as long as the store takes.
    while let Some(cut) = reader.cut(&session, at)? {
        let Cut { first, last, bytes, head } = cut;
        let index = u32::try_from(parts.len()).map_err(|e| wrong(e.to_string()))?;
        let sha256 = objects::hash(&bytes);
        let part = Part { number, part: index, bytes: bytes.len() as u64, sha256 };
        if !handle.block_on(collector.leads(LEASE)) {
            return Ok(Put::Later);
        }
        objects.put(&host.fingerprint, &part, bytes).map_err(wrong)?;
        parts.push(Placed { part, first, last, is_last: false });
        at = (last, head);
    }
    if at.1 != end {
        // Retention took it away in the middle; anything else is told when it is looked at again.
        return Ok(Put::Gone);
    }
    if let Some(last) = parts.last_mut() {
        last.is_last = true;
    }
    Ok(Put::Whole(Box::new(Whole { reader, session, parts })))
}

/// Step 4, for one host.
async fn shed(collector: &Arc<Collector>, host: &Host) -> Result<(), CollectorError> {
    let step = |replica: &Replica| replica.store().shed(STEP_BYTES);
    while !ingest::with_replica(collector, host, step).await? {}
    ingest::give_room_back(collector, host).await?;
    collector.recordings.known().to_shed.remove(&host.id);
    Ok(())
}

/// Hosts into whose replicas recordings came; what fails is tried again with the next pass.
async fn shed_those(collector: &Arc<Collector>) {
    let all: Vec<i64> = collector.recordings.known().to_shed.iter().copied().collect();
    for id in all {
        let host = collector.central.read(move |db| hosts::by_id(db, id)).await;
        let done = match host {
            Ok(Some(host)) => shed(collector, &host).await,
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(error) = done {
            tracing::warn!(%error, host = id, "attachments that are elsewhere stay in its replica");
        }
    }
}

/// What was left when the process before ended.
async fn shed_all(collector: &Arc<Collector>) {
    let all = match collector.central.read(hosts::list).await {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "whether attachments are left in replicas cannot be told");
            return;
        }
    };
    let state = collector.config.state.clone();
    let left = tokio::task::spawn_blocking(move || {
        let has = |fingerprint: &str| {
            let dir = Replica::directory(&state, fingerprint);
            Store::path(&dir).exists()
                && Reader::of_replica(&dir).and_then(|r| r.has_to_shed()).unwrap_or(false)
        };
        all.into_iter().filter(|h| has(&h.fingerprint)).map(|h| h.id).collect::<Vec<i64>>()
    });
    let left = left.await.unwrap_or_default();
    collector.recordings.known().to_shed.extend(left);
}

// ---- whose place it is -------------------------------------------------------------------------

/// Sees to it that the place is that of this collector's database. Asked whenever something is put
/// there or deleted: a folder may be unmounted at any moment, and what is below is another place.
async fn own_place(collector: &Arc<Collector>) -> Result<(), CollectorError> {
    let known = |db: &Connection| {
        db.query_row("SELECT place FROM recordings", [], |r| r.get::<_, String>(0))
            .map_err(CollectorError::db("read where recordings are"))
    };
    let known = collector.central.read(known).await?;
    let (this, before) = (Arc::clone(collector), known.clone());
    let checked = tokio::task::spawn_blocking(move || check_place(&this.recordings, &known));
    let place = checked.await.map_err(|_| CollectorError::Stopped)?.map_err(wrong)?;
    if place == before {
        return Ok(());
    }
    let note = move |db: &Connection| {
        db.execute("UPDATE recordings SET place = ?1 WHERE place = ''", [&place])
            .and_then(|_| db.query_row("SELECT place = ?1 FROM recordings", [&place], |r| r.get(0)))
            .map_err(CollectorError::db("note where recordings are"))
    };
    let same: bool = collector.central.write(note).await?;
    if !same {
        return Err(wrong("another collector has begun to use another place: name the same"));
    }
    Ok(())
}

/// The name that the place has, or gets now when it and the database are new to each other.
pub(super) fn check_place(recordings: &Recordings, known: &str) -> Result<String, String> {
    let objects = recordings.objects(known.is_empty())?;
    let words = recordings.words();
    let Some(text) = objects.mark()? else {
        if !known.is_empty() {
            return Err(format!(
                "{words} is not where the recordings of this collector are, or has lost its mark: \
                 is it mounted, and is url what it was?"
            ));
        }
        let mark =
            Mark { collector: recordings.owner.clone(), place: ulid::Ulid::new().to_string() };
        objects.set_mark(serde_json::to_string(&mark).map_err(|e| e.to_string())?)?;
        return Ok(mark.place);
    };
    let mark: Mark = serde_json::from_str(&text)
        .map_err(|_| format!("{words} has a mark that is none of a collector's"))?;
    if mark.collector != recordings.owner {
        return Err(format!("{words} belongs to another collector: name another place"));
    }
    if !known.is_empty() && known != mark.place {
        return Err(format!(
            "{words} is another place than the one where the recordings of this collector are"
        ));
    }
    Ok(mark.place)
}

// ---- deleting ----------------------------------------------------------------------------------

/// Deletes the objects of sessions that have a tombstone.
pub(super) async fn delete(
    collector: &Arc<Collector>,
    host: &Host,
    numbers: &[u64],
) -> Result<(), CollectorError> {
    if numbers.is_empty() {
        return Ok(());
    }
    let _turn = collector.recordings.turn.lock().await;
    delete_those(collector, host, numbers.to_vec()).await
}

/// Deletes what was put of a session that has a tombstone by now, also by another collector.
async fn delete_buried(
    collector: &Arc<Collector>,
    host: &Host,
    number: u64,
) -> Result<(), CollectorError> {
    if collector.feed.is_some() {
        ingest::freshen(collector, host).await?;
    }
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    let buried =
        blocking(move || Ok(Reader::of_replica(&dir)?.tombstone(number)?.is_some())).await?;
    match buried {
        true => delete_those(collector, host, vec![number]).await,
        false => Ok(()),
    }
}

/// The same for whoever has the turn.
async fn delete_those(
    collector: &Arc<Collector>,
    host: &Host,
    numbers: Vec<u64>,
) -> Result<(), CollectorError> {
    let used = |db: &Connection| {
        db.query_row("SELECT place <> '' FROM recordings", [], |r| r.get::<_, bool>(0))
            .map_err(CollectorError::db("read where recordings are"))
    };
    // Where nothing was ever put there is nothing to delete; but a database that was put back may
    // not know of what was.
    if !collector.central.read(used).await? {
        let this = Arc::clone(collector);
        let ours = tokio::task::spawn_blocking(move || this.recordings.is_marked_ours());
        if !ours.await.map_err(|_| CollectorError::Stopped)?.map_err(wrong)? {
            return Ok(());
        }
    }
    own_place(collector).await?;
    let (this, host) = (Arc::clone(collector), host.fingerprint.clone());
    let work = move || -> Result<(), String> {
        let objects = this.recordings.objects(false)?;
        numbers.iter().try_for_each(|number| objects.delete(&host, *number).map(drop))
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|_| CollectorError::Stopped)?;
    done.map_err(wrong)?;
    // What was found empty must have been the place.
    own_place(collector).await
}

// ---- looking at all of it ----------------------------------------------------------------------

/// What was found of all objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Objects that are what was put there.
    pub parts: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is not, in words.
    pub problems: Vec<String>,
}

/// Reads every object that replicas here refer to. Blocks.
pub fn check(collector: &Collector, all: &[hosts::Listed]) -> Result<Checked, CollectorError> {
    let mut out = Checked::default();
    for host in all {
        let dir = Replica::directory(&collector.config.state, &host.fingerprint);
        if !Store::path(&dir).exists() {
            continue;
        }
        let mut parts = Vec::new();
        Reader::of_replica(&dir)?.each_part(|part| {
            parts.push(*part);
            true
        })?;
        for part in parts {
            let read = collector.recordings.objects(false).and_then(|objects| {
                objects.look(&host.fingerprint, &part).map_err(|e| e.to_string())
            });
            match read {
                Ok(()) => {
                    out.parts += 1;
                    out.bytes += part.bytes;
                }
                Err(why) => {
                    out.problems.push(format!("session {} of {}: {why}", part.number, host.name));
                }
            }
        }
    }
    Ok(out)
}
