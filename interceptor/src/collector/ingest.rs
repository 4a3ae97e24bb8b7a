//! Takes batches of hosts: one at a time for each host, into its replica, then into the index
//! and the log. What is answered as standing is on disk.
//!
//! Memory is bounded by the bodies that are read at a time, files by the replicas that are open.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use bytes::Bytes;
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::feed::{self, Kind, Mark, Row, Turn};
use super::hosts::{self, Host, Known};
use super::index::{self, Update};
use super::refuse::Refuse;
use super::replica::{Refusal, Replica, Taken};
use super::wire::{FRAMES, Standing};
use super::{Change, Collector};
use crate::record::frame::MAX_PAYLOAD;
use crate::record::recordings::Placed;
use crate::record::tombstones::Burial;
use crate::record::{Reader, RecordError, Summary};

/// Largest batch: the largest frame, with what may stand beside it.
pub const MAX_BATCH: usize = MAX_PAYLOAD + (8 << 20);
/// Bytes of bodies that are held at a time.
const IN_FLIGHT: usize = 512 << 20;
/// Bytes that one permit stands for.
const UNIT: usize = 64 << 10;
/// A body must come within this time.
const BODY: Duration = Duration::from_secs(120);
/// A request waits so long for its turn.
const TURN: Duration = Duration::from_secs(30);
/// Replicas that are open at a time; more are closed, the longest unused first. Each takes four
/// files and up to a mebibyte; closing and opening one costs more than a batch does.
const OPEN: u64 = 2048;
/// Files of an open replica: its database with two beside it, and its lock.
const FILES: u64 = 4;
/// Pages that are given back at a time.
const STEP_PAGES: u32 = 1_000;
/// Most characters of a problem that are kept; a host chooses some of them.
const MAX_PROBLEM: usize = 500;
/// A host that goes from one collector to another and back is followed so often for one batch.
const TRIES: u32 = 5;
/// A host's gaps are written down this often at most.
const NOTE: Duration = Duration::from_secs(10);

/// The replicas that are open.
pub struct Replicas {
    state: PathBuf,
    slots: Mutex<HashMap<i64, Arc<tokio::sync::Mutex<Slot>>>>,
    /// So many are open at a time.
    most: usize,
    room: Arc<Semaphore>,
    /// Each host sends one body at a time, so that none takes the room of all.
    turns: Mutex<HashMap<i64, Arc<Semaphore>>>,
}

/// One host's replica, when it is open.
#[derive(Default)]
pub struct Slot {
    replica: Option<Replica>,
    /// Seals up to this ledger entry are in the log.
    logged: u64,
    /// Newest signed checkpoint of the log.
    log: Option<String>,
    used: Option<Instant>,
    noted: Option<Instant>,
    /// It followed what another collector took, and whether that one indexed it is not known.
    followed: bool,
}

impl Replicas {
    /// Below a collector's state directory.
    pub fn new(state: &Path) -> Self {
        let room = Arc::new(Semaphore::new(IN_FLIGHT / UNIT));
        let most = most(getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(now, _)| now));
        let (slots, turns) = (Mutex::default(), Mutex::default());
        Self { state: state.into(), slots, most, room, turns }
    }

    fn slot(&self, host: i64) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= self.most && !slots.contains_key(&host) {
            let idle = slots.iter().filter(|(_, s)| Arc::strong_count(s) == 1);
            let oldest = idle.min_by_key(|(_, s)| s.try_lock().ok().and_then(|s| s.used));
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                slots.remove(&oldest);
            }
        }
        Arc::clone(slots.entry(host).or_default())
    }

    async fn turn(&self, host: i64) -> Result<OwnedSemaphorePermit, Refuse> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(host).or_insert_with(|| Arc::new(Semaphore::new(1))))
        };
        match tokio::time::timeout(TURN, turn.acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Refuse::busy()),
        }
    }

    async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refuse> {
        let units = u32::try_from(bytes.div_ceil(UNIT).max(1)).map_err(|_| Refuse::busy())?;
        match tokio::time::timeout(TURN, Arc::clone(&self.room).acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Refuse::busy()),
        }
    }
}

/// How many replicas may be open in a process that may have so many files, half of which are for
/// connections.
fn most(files: u64) -> usize {
    usize::try_from(OPEN.min(files / 2 / FILES)).unwrap_or(1).max(1)
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CollectorError> {
    tokio::task::spawn_blocking(run).await.map_err(|_| CollectorError::Stopped)
}

/// The host's slot, with its replica open and the index brought up to it.
async fn open(collector: &Arc<Collector>, host: &Host) -> Result<OwnedMutexGuard<Slot>, Refuse> {
    let slot = collector.replicas.slot(host.id);
    let turn = tokio::time::timeout(TURN, slot.lock_owned()).await;
    let mut slot = turn.map_err(|_| Refuse::busy())?;
    slot.used = Some(Instant::now());
    if slot.replica.is_none() {
        let (state, key, name) = (collector.replicas.state.clone(), host.key, host.name.clone());
        let replica = blocking(move || Replica::open(&state, key, &name))
            .await?
            .map_err(CollectorError::from)?;
        let (replica, followed) = follow(collector, host, replica).await?;
        slot.followed |= followed;
        let replica = match collector.feed {
            None => catch_up(collector, host, &mut slot, replica).await?,
            Some(_) => replica,
        };
        // The index is looked at by whoever takes something next.
        slot.followed |= collector.feed.is_some();
        slot.replica = Some(replica);
    }
    Ok(slot)
}

/// The same, with what other collectors took of this host.
async fn open_fresh(
    collector: &Arc<Collector>,
    host: &Host,
) -> Result<OwnedMutexGuard<Slot>, Refuse> {
    let mut slot = open(collector, host).await?;
    if collector.feed.is_some()
        && let Some(replica) = slot.replica.take()
    {
        let (replica, followed) = follow(collector, host, replica).await?;
        slot.followed |= followed;
        slot.replica = Some(replica);
    }
    Ok(slot)
}

/// Sees to it that the index has what other collectors took, since one may have died before it
/// wrote that.
async fn indexed(
    collector: &Arc<Collector>,
    host: &Host,
    slot: &mut Slot,
) -> Result<(), CollectorError> {
    if slot.followed
        && let Some(replica) = slot.replica.take()
    {
        slot.replica = Some(catch_up(collector, host, slot, replica).await?);
        slot.followed = false;
    }
    Ok(())
}

/// Brings a replica up to the end of its feed; whether that took anything. One that belongs to
/// another feed, since the database was put back, is made anew.
async fn follow(
    collector: &Arc<Collector>,
    host: &Host,
    replica: Replica,
) -> Result<(Replica, bool), CollectorError> {
    if collector.feed.is_none() {
        return Ok((replica, false));
    }
    let (this, of) = (Arc::clone(collector), host.clone());
    let (replica, followed, put_aside) = blocking(move || follow_in(&this, &of, replica)).await??;
    if let Some(place) = put_aside {
        let (host, words) = (
            host.clone(),
            format!(
                "reported: the database of [store] is an older or another one than this replica \
             followed; the replica is kept in {place}, and a new one is made from the database"
            ),
        );
        tracing::error!(host = %host.name, words, "a host's records");
        collector
            .central
            .write(move |db| hosts::set_problem(db, &host, &Who::Collector, Some(&words)))
            .await?;
    }
    Ok((replica, followed))
}

/// The replica, whether it took anything, and where one was put that followed another feed.
fn follow_in(
    collector: &Collector,
    host: &Host,
    mut replica: Replica,
) -> Result<(Replica, bool, Option<String>), CollectorError> {
    let Some(feed) = &collector.feed else { return Ok((replica, false, None)) };
    let state = &collector.replicas.state;
    let (mut followed, mut put_aside) = (false, None);
    if !feed.knows(host.id, replica.followed())? {
        drop(replica);
        put_aside = Some(Replica::put_aside(state, &host.key)?);
        replica = Replica::open(state, host.key, &host.name)?;
        followed = true;
    }
    loop {
        end_burials(collector, host, &mut replica)?;
        let rows = feed.after(host.id, replica.followed().at)?;
        if rows.is_empty() {
            return Ok((replica, followed, put_aside));
        }
        followed = true;
        replica.follow(&rows)?;
        if rows.iter().any(|row| row.kind == Kind::Recorded) {
            collector.recordings.came(host.id);
        }
    }
}

/// Deletes what remains of sessions that have a tombstone, also what was left when this process died
/// in the middle of it.
pub(super) fn end_burials(
    collector: &Collector,
    host: &Host,
    replica: &mut Replica,
) -> Result<(), CollectorError> {
    let buried = replica.store().remaining()?;
    if !buried.is_empty() {
        collector.search.remove(&collector.replicas.state, host, &buried)?;
        collector.recordings.forget(&host.fingerprint, &buried);
        replica.remove_buried()?;
    }
    Ok(())
}

/// Brings a host's replica here up to what all collectors took, for those who read it.
pub(super) async fn freshen(collector: &Arc<Collector>, host: &Host) -> Result<(), CollectorError> {
    let slot = open_fresh(collector, host).await;
    slot.map(drop).map_err(|_| CollectorError::Busy(host.name.clone()))
}

/// Deletes sessions: in the replica, and before it in the feed, where there is one. Those that
/// have a tombstone now.
pub(super) async fn bury(
    collector: &Arc<Collector>,
    host: &Host,
    marked: Vec<Burial>,
) -> Result<Vec<u64>, CollectorError> {
    if collector.feed.is_none() {
        return with_replica(collector, host, move |replica| replica.store().bury(&marked)).await;
    }
    let busy = || CollectorError::Busy(host.name.clone());
    for _ in 0..TRIES {
        let mut slot = open_fresh(collector, host).await.map_err(|_| busy())?;
        let mut replica = slot.replica.take().ok_or_else(busy)?;
        let (this, id, marked) = (Arc::clone(collector), host.id, marked.clone());
        let (replica, result) = blocking(move || {
            let result = bury_shared(&this, id, &mut replica, &marked);
            (replica, result)
        })
        .await?;
        if let Some(buried) = result? {
            slot.replica = Some(replica);
            return Ok(buried);
        }
        slot.replica = Some(replica);
    }
    Err(busy())
}

/// None when another collector was faster.
fn bury_shared(
    collector: &Collector,
    host: i64,
    replica: &mut Replica,
    marked: &[Burial],
) -> Result<Option<Vec<u64>>, CollectorError> {
    let Some(feed) = &collector.feed else { return Ok(None) };
    let mut turn = feed.lock(host)?;
    if turn.end() != replica.followed() {
        return Ok(None);
    }
    let stones = replica.stones(marked)?;
    if !stones.is_empty() {
        let numbers: Vec<u64> = stones.iter().map(|s| s.summary.number).collect();
        turn.empty(&numbers)?;
        let body = serde_json::to_vec(&stones).map_err(|_| CollectorError::Stopped)?;
        turn.append(Kind::Stones, None, &body)?;
        let mark = turn.commit()?;
        replica.follow(&[Row { mark, kind: Kind::Stones, body }])?;
    }
    let numbers: Vec<u64> = marked.iter().map(|burial| burial.number).collect();
    Ok(Some(replica.buried_of(&numbers)?))
}

/// Notes that the attachments of a session are in objects: in the feed, where there is one, whose
/// rows with bodies take the place of the session's, and in the replica. False where the session was
/// deleted meanwhile.
pub(super) async fn record(
    collector: &Arc<Collector>,
    host: &Host,
    reader: Reader,
    session: Summary,
    parts: Vec<Placed>,
) -> Result<bool, CollectorError> {
    let busy = || CollectorError::Busy(host.name.clone());
    let mut work = (reader, session, parts);
    for _ in 0..TRIES {
        let mut slot = open_fresh(collector, host).await.map_err(|_| busy())?;
        let mut replica = slot.replica.take().ok_or_else(busy)?;
        let (this, id) = (Arc::clone(collector), host.id);
        let (replica, back, result) = blocking(move || {
            let result = record_in(&this, id, &mut replica, &work);
            (replica, work, result)
        })
        .await?;
        work = back;
        // After a failure it is opened anew, from what is on disk.
        let done = result?;
        slot.replica = Some(replica);
        drop(slot);
        if let Some(done) = done {
            // Its own replica follows as every other one does.
            if collector.feed.is_some() {
                freshen(collector, host).await?;
            }
            collector.recordings.came(host.id);
            return Ok(done);
        }
    }
    Err(busy())
}

/// None when another collector was faster.
fn record_in(
    collector: &Collector,
    host: i64,
    replica: &mut Replica,
    (reader, session, parts): &(Reader, Summary, Vec<Placed>),
) -> Result<Option<bool>, CollectorError> {
    let number = session.number;
    if reader.is_recording(number)? {
        return Ok(Some(true));
    }
    let Some(feed) = &collector.feed else {
        return Ok(Some(replica.record(reader, session, parts)?));
    };
    let mut turn = feed.lock(host)?;
    if turn.end() != replica.followed() {
        return Ok(None);
    }
    if !replica.buried_of(&[number])?.is_empty() {
        return Ok(Some(false));
    }
    turn.empty(&[number])?;
    for part in parts {
        let body = reader.recorded(session, part)?.encode();
        turn.append(Kind::Recorded, Some(number), &body)?;
    }
    turn.commit()?;
    Ok(Some(true))
}

/// Gives the room of what was taken out of a replica back to the file system, in steps between which
/// the host may ship.
pub(super) async fn give_room_back(
    collector: &Arc<Collector>,
    host: &Host,
) -> Result<(), CollectorError> {
    let give = |replica: &Replica| replica.store().reclaim(STEP_PAGES);
    while with_replica(collector, host, give).await? {}
    // The log of changes still holds it.
    let shrink = |replica: &Replica| {
        replica.store().shrink_wal();
        Ok(())
    };
    with_replica(collector, host, shrink).await
}

/// Does something with a host's replica between its batches.
pub(super) async fn with_replica<T: Send + 'static>(
    collector: &Arc<Collector>,
    host: &Host,
    work: impl FnOnce(&Replica) -> Result<T, RecordError> + Send + 'static,
) -> Result<T, CollectorError> {
    let busy = || CollectorError::Busy(host.name.clone());
    let mut slot = open(collector, host).await.map_err(|_| busy())?;
    let replica = slot.replica.take().ok_or_else(busy)?;
    let (replica, result) = blocking(move || {
        let result = work(&replica);
        (replica, result)
    })
    .await?;
    // After a failure it is opened anew, from what is on disk.
    if result.is_ok() {
        slot.replica = Some(replica);
    }
    Ok(result?)
}

/// After a crash the replica may be ahead of the index, or the index of a lost replica.
async fn catch_up(
    collector: &Arc<Collector>,
    host: &Host,
    slot: &mut Slot,
    replica: Replica,
) -> Result<Replica, CollectorError> {
    let id = host.id;
    let (events, ledger, logged) = collector
        .central
        .read(move |db| {
            db.query_row(
                "SELECT events, ledger_idx, logged_idx FROM hosts WHERE id = ?1",
                [id],
                |r| Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?, r.get::<_, i64>(2)?)),
            )
            .map_err(CollectorError::db("read a host's position"))
        })
        .await?;
    slot.logged = logged.max(0) as u64;
    let have = replica.ledger().idx;
    if slot.logged > have {
        tracing::error!(host = %host.name, logged, have, "the replica is behind the log: was it put back?");
    }
    let index = (events.max(0) as u64, ledger.max(0) as u64);
    if index == (replica.events(), have) && slot.logged >= have {
        return Ok(replica);
    }
    // Another collector took more meanwhile, and wrote it.
    if collector.feed.is_some() && index.0 >= replica.events() && index.1 >= have {
        return Ok(replica);
    }
    tracing::info!(host = %host.name, "bringing the index up to the replica");
    let (sender, mut updates) = tokio::sync::mpsc::channel(2);
    let logged = slot.logged;
    let reader = tokio::task::spawn_blocking(move || {
        let result = index::lagging(&replica, logged, |update| {
            sender.blocking_send(update).map_err(|_| CollectorError::Stopped)
        });
        (replica, result)
    });
    while let Some(update) = updates.recv().await {
        slot.log = Some(write(collector, host, update).await?);
    }
    let (replica, result) = reader.await.map_err(|_| CollectorError::Stopped)?;
    result?;
    slot.logged = slot.logged.max(have);
    Ok(replica)
}

async fn write(
    collector: &Arc<Collector>,
    host: &Host,
    update: Update,
) -> Result<String, CollectorError> {
    let (shared, host) = (Arc::clone(collector), host.clone());
    collector
        .central
        .write(move |db| index::write(db, &shared.keys, &shared.config.origin, &host, &update))
        .await
}

/// `POST /host/v1/batch`: journal frames.
pub async fn batch(
    State(collector): State<Arc<Collector>>,
    Known(host): Known,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Standing>, Refuse> {
    if headers.get(CONTENT_TYPE).is_none_or(|t| t != FRAMES) {
        return Err(Refuse::form("the body is no journal frames"));
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<usize>().ok());
    let length = length.filter(|l| *l <= MAX_BATCH);
    let length = length.ok_or_else(|| Refuse::form("no Content-Length, or too much"))?;
    let turn = collector.replicas.turn(host.id).await?;
    let room = collector.replicas.room(length).await?;
    let body = tokio::time::timeout(BODY, axum::body::to_bytes(body, length)).await;
    let Ok(Ok(frames)) = body else { return Err(Refuse::form("the body did not come whole")) };
    // Once it is here it is taken to its end, whether the host waits for it or not.
    let task = tokio::spawn(async move {
        let standing = take(&collector, &host, frames).await;
        drop((room, turn));
        standing
    });
    task.await.unwrap_or_else(|_| Err(CollectorError::Stopped.into())).map(Json)
}

pub(super) async fn take(
    collector: &Arc<Collector>,
    host: &Host,
    frames: Bytes,
) -> Result<Standing, Refuse> {
    let mut slot = open(collector, host).await?;
    indexed(collector, host, &mut slot).await?;
    let mut tries = 0;
    let (replica, result) = loop {
        let Some(mut replica) = slot.replica.take() else { return Err(Refuse::busy()) };
        let logged = slot.logged;
        let (this, id, frames) = (Arc::clone(collector), host.id, frames.clone());
        let (replica, result) = blocking(move || {
            let result = take_in(&this, id, &mut replica, &frames, logged);
            (replica, result)
        })
        .await?;
        match result {
            Ok(Some(done)) => break (replica, Ok(done)),
            Err(refusal) => break (replica, Err(refusal)),
            // Another collector took something of this host meanwhile.
            Ok(None) if tries < TRIES => {
                slot.replica = Some(replica);
                drop(slot);
                slot = open_fresh(collector, host).await?;
                indexed(collector, host, &mut slot).await?;
                tries += 1;
            }
            Ok(None) => {
                slot.replica = Some(replica);
                return Err(Refuse::busy());
            }
        }
    };
    let position = replica.position();
    let (have, followed) = (replica.ledger().idx, replica.followed());
    match result {
        Ok((taken, update)) => {
            let note = write(collector, host, update).await?;
            slot.replica = Some(replica);
            slot.logged = slot.logged.max(have);
            slot.log = Some(note.clone());
            accepted(collector, host, taken).await?;
            Ok(Standing { position, log: Some(note) })
        }
        Err(Refusal::Gap(what)) => {
            slot.replica = Some(replica);
            note_gap(collector, host, &mut slot, followed, &what).await?;
            Err(Refuse::gap(&what, Standing { position, log: slot.log.clone() }))
        }
        Err(Refusal::Altered(what)) => {
            slot.replica = Some(replica);
            note(collector, host, format!("altered: {what}"), None).await?;
            Err(Refuse::altered(&what))
        }
        // The replica is opened anew, from what is on disk.
        Err(Refusal::Record(e)) => Err(CollectorError::from(e).into()),
    }
}

/// A batch, in the feed and in the replica, in this order; none when the replica is not at the
/// feed's end.
fn take_in(
    collector: &Collector,
    host: i64,
    replica: &mut Replica,
    frames: &Bytes,
    logged: u64,
) -> Result<Option<(Taken, Update)>, Refusal> {
    let taken = match &collector.feed {
        None => replica.take(frames)?,
        Some(feed) => {
            let turn = feed.lock(host).map_err(RecordError::elsewhere)?;
            if turn.end() != replica.followed() {
                return Ok(None);
            }
            replica.take_after(frames, |taken| {
                append(turn, taken, frames).map_err(RecordError::elsewhere)
            })?
        }
    };
    let update = index::after_batch(replica, &taken.touched, logged)?;
    Ok(Some((taken, update)))
}

/// What is new of a batch, if anything is; where the feed ends with it.
fn append(
    mut turn: Turn<'_>,
    taken: &Taken,
    frames: &[u8],
) -> Result<Option<Mark>, CollectorError> {
    if taken.fresh.is_empty() {
        return Ok(None);
    }
    turn.append_frames(frames, &taken.fresh)?;
    turn.commit().map(Some)
}

async fn accepted(
    collector: &Arc<Collector>,
    host: &Host,
    taken: Taken,
) -> Result<(), CollectorError> {
    if !taken.problems.is_empty() {
        note(collector, host, format!("reported: {}", taken.problems.join("; ")), None).await?;
    }
    for number in taken.touched {
        collector.hub.tell(Change::Session(index::session_id(host.id, number)));
    }
    Ok(())
}

/// What a host lacks here. Gaps come and go, so it is said now and then; what is altered or reported
/// is said each time, and must not be missed.
async fn note_gap(
    collector: &Arc<Collector>,
    host: &Host,
    slot: &mut Slot,
    followed: Mark,
    what: &str,
) -> Result<(), CollectorError> {
    if slot.noted.is_some_and(|t| t.elapsed() < NOTE) {
        return Ok(());
    }
    slot.noted = Some(Instant::now());
    note(collector, host, format!("{}{what}", index::GAP), Some(followed)).await
}

/// Loudly: in the log, in the audit trail, and at the host's row until somebody looked into it.
/// Nothing is said that was so only up to a place of the feed behind which other collectors have
/// taken more: they may have filled the gap.
async fn note(
    collector: &Arc<Collector>,
    host: &Host,
    problem: String,
    up_to: Option<Mark>,
) -> Result<(), CollectorError> {
    let problem: String = problem.chars().take(MAX_PROBLEM).collect();
    tracing::error!(host = %host.name, fingerprint = %host.fingerprint, problem, "a host's records");
    let owner = host.clone();
    collector
        .central
        .write(move |db| {
            if let Some(up_to) = up_to
                && feed::goes_on(db, owner.id, up_to)?
            {
                return Ok(());
            }
            // What is graver stays.
            let before: Option<String> = db
                .query_row("SELECT problem FROM hosts WHERE id = ?1", [owner.id], |r| r.get(0))
                .map_err(CollectorError::db("read a host"))?;
            if before.is_some_and(|before| gravity(&before) > gravity(&problem)) {
                return Ok(());
            }
            hosts::set_problem(db, &owner, &owner.who(), Some(&problem))
        })
        .await?;
    collector.hub.tell(Change::Host(host.id));
    Ok(())
}

/// Gaps pass; what a host reports of itself waits for a person, and so does what it altered.
fn gravity(problem: &str) -> u8 {
    match problem.split(':').next() {
        Some("gap") => 0,
        Some("altered") => 2,
        _ => 1,
    }
}

/// What a host says when it asks where it stands.
#[derive(Debug, serde::Deserialize)]
pub struct Asks {
    /// Where its ledger stands: at its first contact, sessions sealed up to there may have no
    /// events any more, since retention took them before it had a collector.
    #[serde(default)]
    ledger: u64,
}

/// `GET /host/v1/position`: where the host goes on.
pub async fn position(
    State(collector): State<Arc<Collector>>,
    Known(host): Known,
    Query(asks): Query<Asks>,
) -> Result<Json<Standing>, Refuse> {
    if i64::try_from(asks.ledger).is_err() {
        return Err(Refuse::form("ledger is no entry's number"));
    }
    let mut slot = open_fresh(&collector, &host).await?;
    indexed(&collector, &host, &mut slot).await?;
    if let Some(mut replica) = slot.replica.take() {
        let (this, id) = (Arc::clone(&collector), host.id);
        let (replica, result) = blocking(move || {
            let result = begin(&this, id, &mut replica, asks.ledger);
            (replica, result)
        })
        .await?;
        slot.replica = Some(replica);
        if result? {
            first_contact(&collector, &host, asks.ledger).await?;
        }
    }
    let position = slot.replica.as_ref().map(Replica::position).unwrap_or_default();
    Ok(Json(Standing { position, log: slot.log.clone() }))
}

/// Where a host begins; whether this is its first contact.
fn begin(
    collector: &Collector,
    host: i64,
    replica: &mut Replica,
    ledger: u64,
) -> Result<bool, CollectorError> {
    let Some(feed) = &collector.feed else { return Ok(replica.begin(ledger)?) };
    if replica.followed().at > 0 {
        return Ok(false);
    }
    let mut turn = feed.lock(host)?;
    if turn.end() != replica.followed() {
        return Ok(false);
    }
    let body = ledger.to_le_bytes();
    turn.append(Kind::Began, None, &body)?;
    let mark = turn.commit()?;
    replica.follow(&[Row { mark, kind: Kind::Began, body: body.to_vec() }])?;
    Ok(true)
}

async fn first_contact(
    collector: &Arc<Collector>,
    host: &Host,
    ledger: u64,
) -> Result<(), CollectorError> {
    let host = host.clone();
    collector
        .central
        .write(move |db| {
            let detail = serde_json::json!({ "ledger": ledger });
            let who = host.who();
            let entry =
                Entry { who: &who, what: "host.began", target: &host.name, detail: &detail };
            audit::append(db, &entry)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::most;

    #[test]
    fn no_more_replicas_are_open_than_files_are_allowed() {
        let all = [0, 1024, 20_000, 65_536, u64::MAX].map(most);
        assert_eq!(all, [1, 128, 2048, 2048, 2048]);
    }
}
