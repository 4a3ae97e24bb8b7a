//! What is to be delivered, read from the hosts' replicas: so only what the collector accepted,
//! which is on its disk.
//!
//! Everything is bounded: a batch by its lines and bytes, what is read for it, and what is
//! remembered of sessions. What an event says depends on nothing that comes after it, so that one
//! that is delivered again says the same again.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, params};

use super::config::Forward;
use super::cursor::Cursor;
use super::line::Line;
use crate::collector::replica::Replica;
use crate::record::event::{Admission, Body, IdentityProven, Opening};
use crate::record::frame::EventFrame;
use crate::record::ocsf::{self, Answers, Asked, Identity, Link};
use crate::record::store::{self, MAX_SEQ, StoredEvent, each_body_until, event_id, seq_of};
use crate::record::tombstones::is_buried;
use crate::record::{RecordError, Store, Summary};

/// Most lines of a batch.
const LINES: usize = 2_000;
/// A batch with so many bytes takes no further line.
const BYTES: usize = 4 << 20;
/// Most events that are read for a batch: a filter may pass none of them.
const READ: u64 = 50_000;
/// Most events of one session in a batch, so that one that is busy keeps no other waiting.
const READ_OF_ONE: u64 = 10_000;
/// Most sessions that are looked at for a batch.
pub const SESSIONS: usize = 1_000;
/// Sessions of which is remembered who they are.
const KNOWN: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// The request of an answer is looked for among so many events before it.
const FAR: u64 = 100_000;

/// What is delivered at once.
#[derive(Debug, Default)]
pub struct Batch {
    /// Events, those of one host together.
    pub lines: Vec<Line>,
    /// Where the cursors stand after it.
    pub cursors: Vec<(i64, Cursor)>,
    bytes: usize,
    read: u64,
}

impl Batch {
    /// Whether it is worth being delivered before more is read.
    pub fn is_full(&self) -> bool {
        self.lines.len() >= LINES || self.bytes >= BYTES || self.read >= READ
    }
}

/// Reads for one forward.
pub struct Source {
    state: PathBuf,
    classes: Option<BTreeSet<u32>>,
    max_event: usize,
    known: LruCache<(i64, u64), Known>,
}

/// What the events of a session up to one of them say about all that follow.
#[derive(Default)]
struct Known {
    session: Summary,
    identity: Identity,
}

/// Kinds of events that say something about those that follow.
const TELLING: [&str; 3] = [Opening::KIND, IdentityProven::KIND, Admission::KIND];

impl Known {
    fn learn(&mut self, e: &StoredEvent<'_>) {
        if !TELLING.contains(&e.kind) {
            return;
        }
        self.session.apply(&EventFrame {
            number: self.session.number,
            session: ulid::Ulid::nil(),
            seq: e.seq,
            ts_us: e.ts_us,
            kind: e.kind,
            body: e.body,
            data: &[],
            hash: [0; 32],
        });
        if e.kind == IdentityProven::KIND
            && let Some(identity) = Identity::proven(e.body)
        {
            self.identity = identity;
        }
    }
}

/// A session that may have something.
pub struct Candidate {
    /// Its number on its host.
    pub number: u64,
    /// Its events.
    pub events: u64,
    /// None will follow.
    pub sealed: bool,
}

impl Source {
    /// From the replicas below a collector's state directory.
    pub fn new(state: &Path, forward: &Forward) -> Self {
        Self {
            state: state.into(),
            classes: forward.classes.clone(),
            max_event: forward.max_event,
            known: LruCache::new(KNOWN),
        }
    }

    /// Forgets who sessions were: what was read is read again.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    fn open(&self, fingerprint: &str) -> Result<Option<Connection>, RecordError> {
        let dir = Replica::directory(&self.state, fingerprint);
        // A host that was enrolled and has not shipped yet.
        if !Store::path(&dir).exists() {
            return Ok(None);
        }
        store::open_read_only(&dir).map(Some)
    }

    /// The cursor behind everything that a host has shipped.
    pub fn end(&self, fingerprint: &str) -> Result<Cursor, RecordError> {
        let mut cursor = Cursor::default();
        let Some(db) = self.open(fingerprint)? else { return Ok(cursor) };
        let mut read = || -> rusqlite::Result<()> {
            let mut s = db
                .prepare("SELECT number, events, seal IS NOT NULL FROM sessions ORDER BY number")?;
            let mut rows = s.query([])?;
            while let Some(row) = rows.next()? {
                let number = unsigned(row.get(0)?);
                cursor.advance(number, unsigned(row.get(1)?));
                if row.get(2)? {
                    cursor.finish(number, number);
                }
            }
            Ok(())
        };
        read().map_err(RecordError::sqlite("read a replica's sessions"))?;
        Ok(cursor)
    }

    /// Adds what a host has behind a cursor to a batch; whether there is more than fits.
    pub fn fill(
        &mut self,
        batch: &mut Batch,
        host: i64,
        fingerprint: &str,
        mut cursor: Cursor,
    ) -> Result<bool, RecordError> {
        let Some(db) = self.open(fingerprint)? else { return Ok(false) };
        let fail = RecordError::sqlite;
        // One snapshot: what comes meanwhile is for the next batch.
        let db = db.unchecked_transaction().map_err(fail("begin to read a replica"))?;
        let candidates = candidates(&db, &mut cursor).map_err(fail("look for new events"))?;
        let mut more = candidates.len() >= SESSIONS;
        for candidate in candidates {
            if batch.is_full() {
                more = true;
                break;
            }
            let before = cursor.events(candidate.number);
            let buried = is_buried(&db, candidate.number).map_err(fail("look for a tombstone"))?;
            if before < candidate.events && buried {
                let lost = candidate.events - before;
                tracing::warn!(
                    host = fingerprint,
                    session = candidate.number,
                    events = lost,
                    "retention deleted what was not forwarded yet"
                );
                cursor.advance(candidate.number, candidate.events);
            } else if before < candidate.events {
                self.session(&db, batch, host, fingerprint, candidate.number, &mut cursor)?;
            }
            let now = cursor.events(candidate.number);
            if now < candidate.events {
                // One whose events are not there is no reason to look again at once.
                more |= now > before;
            } else if candidate.sealed {
                cursor.finish(candidate.number, candidate.number);
                self.known.pop(&(host, candidate.number));
            }
        }
        batch.cursors.push((host, cursor));
        Ok(more)
    }

    fn session(
        &mut self,
        db: &Connection,
        batch: &mut Batch,
        host: i64,
        fingerprint: &str,
        number: u64,
        cursor: &mut Cursor,
    ) -> Result<(), RecordError> {
        let fail = RecordError::sqlite;
        let after = cursor.events(number);
        let mut known = match self.known.pop(&(host, number)) {
            Some(known) => known,
            None => known_at(db, number, after).map_err(fail("read a session's beginning"))?,
        };
        let mut previous = hash_of(db, number, after).map_err(fail("read a session's chain"))?;
        let none = Answers::default();
        let mut read = 0;
        let mut failed = None;
        each_body_until(db, number, after, |e| {
            known.learn(e);
            let Known { session, identity } = &mut known;
            let link = Link { authority: Some(fingerprint), previous: previous.as_deref() };
            let value = match Asked::number(e) {
                None => ocsf::event(session, e, &none, identity, link),
                Some(n) => match asked(db, number, e, n) {
                    Ok(asked) => ocsf::answer(session, e, asked.as_ref(), identity, link),
                    Err(error) => {
                        failed = Some(error);
                        return false;
                    }
                },
            };
            let value = value
                .or_else(|| ocsf::is_told(session, e.kind).then(|| ocsf::unread(session, e, link)));
            if let Some(value) = value.filter(|v| self.is_wanted(v)) {
                let line = Line::new(session, e, value, self.max_event);
                batch.bytes += line.text.len();
                batch.lines.push(line);
            }
            previous = Some(e.hash.to_vec());
            cursor.advance(number, e.seq);
            read += 1;
            batch.read += 1;
            !batch.is_full() && read < READ_OF_ONE
        })
        .and_then(|()| failed.map_or(Ok(()), Err))
        .map_err(fail("read new events"))?;
        self.known.put((host, number), known);
        Ok(())
    }

    /// What could not be read is for everybody: it may be of any class.
    fn is_wanted(&self, value: &serde_json::Value) -> bool {
        let class = value["class_uid"].as_u64().and_then(|c| u32::try_from(c).ok());
        self.classes
            .as_ref()
            .is_none_or(|classes| class.is_some_and(|c| c == ocsf::BASE || classes.contains(&c)))
    }
}

/// Sessions that may have something behind the cursor. Numbers that the replica has given up, or
/// knows only by a seal, are through.
pub fn candidates(db: &Connection, cursor: &mut Cursor) -> rusqlite::Result<Vec<Candidate>> {
    let known: Option<i64> = db
        .prepare_cached("SELECT value FROM meta WHERE key = 'complete_below'")?
        .query_row([], |r| r.get(0))
        .optional()?;
    let known = known.map_or(1, unsigned);
    let mut found = Vec::new();
    let mut s = db.prepare_cached(
        "SELECT number, events, seal IS NOT NULL FROM sessions \
         WHERE number BETWEEN ?1 AND ?2 ORDER BY number",
    )?;
    for (first, last) in cursor.rest() {
        let mut expected = first;
        let mut rows = s.query(params![signed(first), signed(last)])?;
        while let Some(row) = rows.next()? {
            let (number, events) = (unsigned(row.get(0)?), unsigned(row.get(1)?));
            skip(cursor, expected, number, known);
            expected = number + 1;
            let sealed = row.get(2)?;
            if sealed || cursor.events(number) < events {
                found.push(Candidate { number, events, sealed });
            }
            if found.len() >= SESSIONS {
                return Ok(found);
            }
        }
        skip(cursor, expected, last.saturating_add(1), known);
    }
    Ok(found)
}

/// Passes over numbers from `first` to before `end` as far as all below `known` are known.
fn skip(cursor: &mut Cursor, first: u64, end: u64, known: u64) {
    let end = end.min(known);
    if first < end {
        cursor.finish(first, end - 1);
    }
}

/// What a session's events up to one say.
fn known_at(db: &Connection, number: u64, until: u64) -> rusqlite::Result<Known> {
    let mut known = Known::default();
    known.session.number = number;
    known.session.id = db
        .prepare_cached("SELECT id FROM sessions WHERE number = ?1")?
        .query_row([signed(number)], |r| r.get(0))?;
    let mut s = db.prepare_cached(
        "SELECT id, ts_us, kind, body FROM events WHERE id > ?1 AND id <= ?2 \
         AND kind IN ('session.open', 'identity.proven', 'admission') ORDER BY id",
    )?;
    let mut rows = s.query([event_id(number, 0), event_id(number, until.min(MAX_SEQ))])?;
    while let Some(row) = rows.next()? {
        let (kind, body): (String, String) = (row.get(2)?, row.get(3)?);
        known.learn(&StoredEvent {
            seq: seq_of(row.get(0)?),
            ts_us: row.get(1)?,
            kind: &kind,
            body: body.as_bytes(),
            data: &[],
            hash: &[],
        });
    }
    Ok(known)
}

fn hash_of(db: &Connection, number: u64, seq: u64) -> rusqlite::Result<Option<Vec<u8>>> {
    db.prepare_cached("SELECT hash FROM events WHERE id = ?1")?
        .query_row([event_id(number, seq)], |r| r.get(0))
        .optional()
}

/// The request that an event answers: one of the last before it.
fn asked(
    db: &Connection,
    number: u64,
    e: &StoredEvent<'_>,
    n: u64,
) -> rusqlite::Result<Option<Asked>> {
    let mut s = db.prepare_cached(
        "SELECT body FROM events WHERE id >= ?1 AND id < ?2 AND kind = 'request' ORDER BY id DESC",
    )?;
    let from = event_id(number, e.seq.saturating_sub(FAR));
    let mut rows = s.query([from, event_id(number, e.seq)])?;
    while let Some(row) = rows.next()? {
        let body = row.get_ref(0)?.as_bytes().unwrap_or_default();
        if let Some(asked) = Asked::of(body, n) {
            return Ok(Some(asked));
        }
    }
    Ok(None)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
