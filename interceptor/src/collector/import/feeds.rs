//! A replica as its host's feed.
//!
//! The events and the ledger are read as a host reads its own store to ship it, so they are in an
//! order in which they could have come. Of sessions whose attachments are in objects the rows with
//! bodies are made again, and of those that retention deleted what their tombstones say.

use std::collections::BTreeSet;

use crate::collector::db::{self, Connection};
use crate::collector::feed::{Feed, FramePlace, Kind, Mark, Stone, Turn};
use crate::collector::hosts::Host;
use crate::collector::replica::{Position, Replica};
use crate::collector::{Collector, CollectorError, hosts as known, ingest};
use crate::record::chain::hex;
use crate::record::frame::{self, Frame, Parsed};
use crate::record::tombstones::Tombstone;
use crate::record::{Reader, RecordError};
use crate::ship::Spool;

use super::Step;

/// Bytes of a batch; it becomes a few rows.
const BATCH: usize = 1 << 20;
/// Tombstones in one row.
const STONES: usize = 500;

/// All hosts of a database.
pub(super) fn hosts(db: &Connection) -> Result<Vec<Host>, CollectorError> {
    let ids: Vec<i64> = db
        .prepare("SELECT id FROM hosts ORDER BY id")
        .and_then(|mut s| s.query_map([], |r| r.get(0))?.collect())
        .map_err(CollectorError::db("list hosts"))?;
    ids.into_iter().filter_map(|id| known::by_id(db, id).transpose()).collect()
}

/// A feed that was made.
#[derive(Debug)]
pub(super) struct Brought {
    /// Events that were read.
    pub events: u64,
    /// Events that the host's sessions have, less those that were deleted.
    pub of: u64,
    /// Where the feed ends.
    pub end: Mark,
}

/// Number under which the feed of a host stands before it is anybody's.
const fn beside(host: i64) -> i64 {
    -host
}

/// Makes the feed of one host; none where it never shipped anything.
pub(super) fn bring(
    collector: &Collector,
    feed: &Feed,
    host: &Host,
    told: &mut dyn FnMut(Step<'_>),
) -> Result<Option<Brought>, CollectorError> {
    let state = &collector.config.state;
    let dir = Replica::directory(state, &host.fingerprint);
    if !dir.join("records.db").exists() {
        return Ok(None);
    }
    // Also so that nobody else writes to it.
    let mut replica = Replica::open(state, host.key, &host.name)?;
    ingest::end_burials(collector, host, &mut replica)?;
    let reader = Reader::of_replica(&dir)?;
    let mut turn = feed.lock(beside(host.id))?;
    if turn.end() != Mark::default() {
        return Err(another());
    }
    if let Some(ledger) = replica.began()? {
        turn.append(Kind::Began, None, &ledger.to_le_bytes())?;
    }
    let (recorded, stones) = (recorded(&reader)?, reader.tombstones()?);
    let mut at = Position::default();
    for number in recorded.iter().copied().chain(stones.iter().map(|stone| stone.number)) {
        // Its events count as taken: rows of another kind stand for them.
        at.sessions.insert(number, u64::MAX);
    }
    let spool = Spool::open(&dir)?;
    let mut events = 0;
    while let Some(batch) = spool.next(&at, BATCH)? {
        turn.append_frames(&batch.frames, &places(&batch.frames)?)?;
        (at, events) = (batch.after, events + batch.events);
        told(Step::Host(&host.name, events));
    }
    for number in recorded {
        events += recording(&reader, &replica, number, &mut turn)?;
        told(Step::Host(&host.name, events));
    }
    bury(&replica, &stones, &mut turn)?;
    // Rows of sessions count the events of deleted ones as well.
    let buried = stones.iter().map(|stone| stone.events).sum();
    let of = replica.events().saturating_sub(buried);
    let end = turn.commit()?;
    replica.now_follows(end)?;
    Ok(Some(Brought { events, of, end }))
}

/// Appends what is left of sessions that retention deleted.
fn bury(
    replica: &Replica,
    stones: &[Tombstone],
    turn: &mut Turn<'_>,
) -> Result<(), CollectorError> {
    for portion in stones.chunks(STONES) {
        let mut body = Vec::new();
        for stone in portion {
            let Some(summary) = replica.store().summary_of(stone.number)? else { continue };
            body.push(Stone {
                summary,
                deleted_us: stone.deleted_us,
                policy: stone.policy.clone(),
                events: stone.events,
                head: hex(&stone.head),
            });
        }
        let body = serde_json::to_vec(&body).map_err(|_| CollectorError::Stopped)?;
        turn.append(Kind::Stones, None, &body)?;
    }
    Ok(())
}

fn another() -> CollectorError {
    CollectorError::Store("is being imported to from elsewhere: one import at a time".into())
}

/// Gives the feeds that were made to their hosts, inside the transaction with the tables.
pub(super) fn give(db: &Connection, made: &[(Host, Brought)]) -> Result<(), CollectorError> {
    let fail = || CollectorError::db("give feeds to their hosts");
    let there: Vec<(i64, Mark)> = db
        .prepare("SELECT host, at, mark FROM feed_heads WHERE host < 0 ORDER BY host DESC")
        .and_then(|mut s| {
            let row =
                |r: &db::Row<'_>| Ok((beside(r.get(0)?), Mark { at: r.get(1)?, mark: r.get(2)? }));
            s.query_map([], row)?.collect()
        })
        .map_err(fail())?;
    if !there.into_iter().eq(made.iter().map(|(host, feed)| (host.id, feed.end))) {
        return Err(another());
    }
    db.execute_batch(
        "DELETE FROM feed WHERE host > 0; DELETE FROM feed_heads WHERE host > 0; \
         UPDATE feed SET host = -host; UPDATE feed_heads SET host = -host",
    )
    .map_err(fail())
}

/// Takes away what an import left that was cut off.
pub(super) fn forget(db: &Connection) -> Result<(), CollectorError> {
    db.execute_batch("DELETE FROM feed; DELETE FROM feed_heads")
        .map_err(CollectorError::db("empty the feeds of [store]"))
}

/// Sessions whose attachments are in objects.
fn recorded(reader: &Reader) -> Result<BTreeSet<u64>, CollectorError> {
    let mut numbers = BTreeSet::new();
    reader.each_part(|part| {
        numbers.insert(part.number);
        true
    })?;
    Ok(numbers)
}

/// Appends the rows of such a session; how many events it has. None of it where its parts do not
/// fit the events any more: half of it would be a session that never ends.
fn recording(
    reader: &Reader,
    replica: &Replica,
    number: u64,
    turn: &mut Turn<'_>,
) -> Result<u64, CollectorError> {
    let Some(session) = replica.store().summary_of(number)? else { return Ok(0) };
    match reader.recorded_parts(&session, |_| Ok(())) {
        Err(RecordError::Contents(_)) => return Ok(0),
        fits => fits?,
    }
    let mut events = 0;
    reader.recorded_parts(&session, |part| {
        events += part.lengths.len() as u64;
        let appended = turn.append(Kind::Recorded, Some(number), &part.encode());
        appended.map_err(RecordError::elsewhere)
    })?;
    Ok(events)
}

/// Where each frame of a batch is, with the session of an event.
fn places(batch: &[u8]) -> Result<Vec<FramePlace>, CollectorError> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < batch.len() {
        let Parsed::Whole(frame, length) = frame::parse(&batch[at..]) else {
            return Err(RecordError::Contents("a batch that is no frames".into()).into());
        };
        let number = match frame {
            Frame::Event(event) => Some(event.number),
            Frame::Ledger(_) | Frame::Checkpoint(_) => None,
        };
        all.push((number, at..at + length));
        at += length;
    }
    Ok(all)
}
