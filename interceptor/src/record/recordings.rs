//! Recordings: attachments of sealed sessions that stand in objects beside a replica.
//!
//! Only replicas have them. An object is a *part* of a session: whole frames of some of its events
//! in a row, as the host wrote them, named by what it holds. The replica keeps the events with
//! their bodies and hashes, and for each attachment the part in which it is, where, and how long.
//! Whoever reads events gets attachments from there ([`Objects`]).
//!
//! What this module must never do: take an attachment out of a replica that does not say where it
//! is instead, give bytes of an object that is not what was put there, or give nothing in place of
//! what cannot be read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::chain::{self, Hash, hex, unhex};
use super::frame::{self, EventFrame, Frame, MAX_KIND, MAX_PAYLOAD, Parsed};
use super::reader::Reader;
use super::store::{self, MAX_SEQ, Store, StoredEvent, event_id, hash_of, number_of, seq_of};
use super::{RecordError, Summary};

/// A part ends before it would become larger, unless it is one event.
pub const PART_BYTES: u64 = 16 << 20;
/// Largest part that is believed: one event of the largest size, or a full part.
pub const MAX_PART: u64 = MAX_PAYLOAD as u64 + PART_BYTES;
/// Seals that are looked at in one step.
const PORTION: usize = 500;
/// Where it is remembered how far that came, and for which size.
const WEIGHED: &str = "recordings_weighed";
const WEIGHED_FROM: &str = "recordings_from";
/// Bytes of a hash, with which a frame ends.
const HASH: u64 = 32;

/// Made when a replica is opened for writing, so that the schema of stores stays that of hosts.
/// `shed` is the event up to which attachments are out of this file; none when all are. Of an event
/// nothing may change, but that its attachment goes when it is elsewhere.
const TABLES: &str = "CREATE TABLE IF NOT EXISTS recordings (
  number INTEGER PRIMARY KEY,
  shed   INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS recordings_shed ON recordings (number) WHERE shed IS NOT NULL;
CREATE TABLE IF NOT EXISTS recording_parts (
  number INTEGER NOT NULL,
  part   INTEGER NOT NULL,
  bytes  INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  PRIMARY KEY (number, part)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recorded (
  id     INTEGER PRIMARY KEY,
  part   INTEGER NOT NULL,
  at     INTEGER NOT NULL,
  length INTEGER NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS events_keep BEFORE UPDATE OF id, ts_us, kind, body, hash ON events
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS attachments_keep BEFORE UPDATE OF data ON events
  WHEN NEW.data IS NOT NULL OR NOT EXISTS (SELECT 1 FROM recorded WHERE id = OLD.id)
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
DROP TRIGGER IF EXISTS events_stay;";

/// One object: some events of a session in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The session's number on its host.
    pub number: u64,
    /// Which of its parts, from 0.
    pub part: u32,
    /// Its length.
    pub bytes: u64,
    /// Hash of it.
    pub sha256: Hash,
}

/// Where objects are, for one host.
pub trait Objects: Send + Sync {
    /// A part as a file on this machine, whose contents are what its hash says. Blocks.
    fn open(&self, part: &Part) -> Result<File, ObjectError>;
}

/// Why an object cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// The store says that there is none.
    #[error(
        "the recording {name} is missing in {place}: somebody took it away, or the store was put \
         back; restore it from a backup"
    )]
    Missing {
        /// Its name there.
        name: String,
        /// Where.
        place: String,
    },
    /// It is another.
    #[error(
        "the recording {name} in {place} was altered: it is not what was put there; restore it \
         from a backup"
    )]
    Altered {
        /// Its name there.
        name: String,
        /// Where.
        place: String,
    },
    /// The store does not answer, or the reader was not told of it.
    #[error("the recording {name} cannot be read now from {place}: {why}")]
    Away {
        /// Its name there.
        name: String,
        /// Where.
        place: String,
        /// In words.
        why: String,
    },
}

impl ObjectError {
    /// Whether it may be there all the same.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
}

/// Name of a part below its host.
pub fn name(part: &Part) -> String {
    format!("{}/{}-{}", part.number, part.part, hex(&part.sha256))
}

pub(super) fn has_tables(db: &Connection) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'recorded'")?
        .exists([])
}

// ---- reading -----------------------------------------------------------------------------------

/// Gives attachments from the parts, one part at a time.
struct Attachments<'a> {
    db: &'a Connection,
    objects: Option<&'a dyn Objects>,
    open: Option<(u32, File)>,
    bytes: Vec<u8>,
}

impl Attachments<'_> {
    fn read(&mut self, id: i64, part: u32, at: u64, length: u64) -> Result<&[u8], RecordError> {
        let strange = || {
            RecordError::Contents(format!(
                "the place of the attachment of event {} of session {} cannot be: the replica was \
                 altered",
                seq_of(id),
                number_of(id)
            ))
        };
        if self.open.as_ref().is_none_or(|(open, _)| *open != part) {
            let found = self.part(number_of(id), part)?.ok_or_else(strange)?;
            let objects = self.objects.ok_or_else(|| ObjectError::Away {
                name: name(&found),
                place: "an object store".into(),
                why: "this program was not told where that is".into(),
            })?;
            self.open = Some((part, objects.open(&found)?));
        }
        let Some((_, file)) = &self.open else { return Err(strange()) };
        let length = usize::try_from(length).ok().filter(|l| *l <= MAX_PAYLOAD);
        self.bytes.resize(length.ok_or_else(strange)?, 0);
        file.read_exact_at(&mut self.bytes, at).map_err(|_| strange())?;
        Ok(&self.bytes)
    }

    fn part(&self, number: u64, part: u32) -> Result<Option<Part>, RecordError> {
        part_of(self.db, number, part).map_err(RecordError::sqlite("look for a recording"))
    }
}

fn part_of(db: &Connection, number: u64, part: u32) -> rusqlite::Result<Option<Part>> {
    db.prepare_cached("SELECT bytes, sha256 FROM recording_parts WHERE number = ?1 AND part = ?2")?
        .query_row(params![number as i64, part], |r| {
            let sha256 = hash_of(&r.get::<_, Vec<u8>>(1)?).ok_or(rusqlite::Error::InvalidQuery)?;
            Ok(Part { number, part, bytes: r.get::<_, i64>(0)?.max(0).unsigned_abs(), sha256 })
        })
        .optional()
}

/// Reads the events of a session behind a position, in order, until the taker has enough, with
/// their attachments wherever they are.
pub(super) fn each_event_until(
    db: &Connection,
    objects: Option<&dyn Objects>,
    number: u64,
    after: u64,
    mut take: impl FnMut(&StoredEvent<'_>) -> bool,
) -> Result<(), RecordError> {
    let fail = || RecordError::sqlite("read events");
    if !has_tables(db).map_err(fail())? {
        return store::each_event_until(db, number, after, take).map_err(fail());
    }
    let mut attachments = Attachments { db, objects, open: None, bytes: Vec::new() };
    let sql = "SELECT e.id, e.ts_us, e.kind, e.body, e.data, e.hash, r.part, r.at, r.length \
               FROM events e LEFT JOIN recorded r ON r.id = e.id AND e.data IS NULL \
               WHERE e.id > ?1 AND e.id <= ?2 ORDER BY e.id";
    let mut statement = db.prepare_cached(sql).map_err(fail())?;
    let range = [event_id(number, after), event_id(number, MAX_SEQ)];
    let mut rows = statement.query(range).map_err(fail())?;
    while let Some(row) = rows.next().map_err(fail())? {
        let (mut event, id) = (store::from_row(row).map_err(fail())?, row.get(0).map_err(fail())?);
        if let Some(part) = row.get::<_, Option<u32>>(6).map_err(fail())? {
            let at: i64 = row.get(7).map_err(fail())?;
            let length: i64 = row.get(8).map_err(fail())?;
            let (at, length) = (at.max(0).unsigned_abs(), length.max(0).unsigned_abs());
            event.data = attachments.read(id, part, at, length)?;
        }
        if !take(&event) {
            break;
        }
    }
    Ok(())
}

impl Reader {
    /// Reads attachments from there, where they are not in the replica itself.
    pub fn with_objects(mut self, objects: Box<dyn Objects>) -> Self {
        self.objects = Some(objects);
        self
    }

    /// Parts of all sessions, by session, until the taker has enough.
    pub fn each_part(&self, mut take: impl FnMut(&Part) -> bool) -> Result<(), RecordError> {
        let mut read = || -> rusqlite::Result<()> {
            if !has_tables(&self.db)? {
                return Ok(());
            }
            let mut s = self.db.prepare(
                "SELECT number, part FROM recording_parts WHERE number NOT IN \
                 (SELECT number FROM tombstones) ORDER BY number, part",
            )?;
            let mut rows = s.query([])?;
            while let Some(row) = rows.next()? {
                let number = row.get::<_, i64>(0)?.max(0).unsigned_abs();
                if let Some(part) = part_of(&self.db, number, row.get(1)?)?
                    && !take(&part)
                {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(RecordError::sqlite("read recordings"))
    }

    /// Whether attachments of a session are in objects.
    pub fn is_recording(&self, number: u64) -> Result<bool, RecordError> {
        let read = || -> rusqlite::Result<bool> {
            Ok(has_tables(&self.db)?
                && self
                    .db
                    .prepare_cached("SELECT 1 FROM recordings WHERE number = ?1")?
                    .exists([number as i64])?)
        };
        read().map_err(RecordError::sqlite("look for a recording"))
    }

    /// Whether the first object of a session can be read, where there is one.
    pub fn try_recording(&self, number: u64) -> Result<(), RecordError> {
        if !self.is_recording(number)? {
            return Ok(());
        }
        let first = "SELECT min(id) FROM recorded WHERE id > ?1 AND id <= ?2";
        let first: Option<i64> = self
            .db
            .query_row(first, [event_id(number, 0), event_id(number, MAX_SEQ)], |r| r.get(0))
            .map_err(RecordError::sqlite("look for a recording"))?;
        let Some(first) = first.map(seq_of) else { return Ok(()) };
        self.events_until(number, first.saturating_sub(1), |_| false)
    }

    /// Whether attachments of any session are in objects.
    pub(super) fn has_recordings(&self) -> Result<bool, RecordError> {
        let read = || -> rusqlite::Result<bool> {
            Ok(has_tables(&self.db)? && self.db.prepare("SELECT 1 FROM recordings")?.exists([])?)
        };
        read().map_err(RecordError::sqlite("look for recordings"))
    }

    /// Whether attachments are still in the replica that are in objects as well.
    pub fn has_to_shed(&self) -> Result<bool, RecordError> {
        let read = || -> rusqlite::Result<bool> {
            Ok(has_tables(&self.db)?
                && self
                    .db
                    .prepare_cached("SELECT 1 FROM recordings WHERE shed IS NOT NULL")?
                    .exists([])?)
        };
        read().map_err(RecordError::sqlite("look for what was moved"))
    }
}

// ---- what is large -----------------------------------------------------------------------------

/// A step along the seals of a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weighed {
    /// Sessions whose attachments come to as many bytes as was asked for or more, each with the
    /// place of its seal.
    pub heavy: Vec<(u64, u64)>,
    /// Seals up to this ledger entry were looked at.
    pub upto: u64,
    /// Nothing follows.
    pub finished: bool,
}

impl Reader {
    /// Seals up to this ledger entry were looked at, when sessions counted as large from so many
    /// bytes on.
    pub fn weighed(&self, from: u64) -> Result<u64, RecordError> {
        let number = |key| store::meta(&self.db, key).map(|n: Option<i64>| n.unwrap_or_default());
        let same = number(WEIGHED_FROM)? == i64::try_from(from).unwrap_or(i64::MAX);
        Ok(if same { number(WEIGHED)?.max(0).unsigned_abs() } else { 0 })
    }

    /// Looks for large sessions among those that were sealed behind a ledger entry and whose
    /// attachments are all here.
    pub fn weigh(&self, behind: u64, from: u64) -> Result<Weighed, RecordError> {
        let seals = self.seals_after(behind, PORTION)?;
        let mut weighed = Weighed {
            heavy: Vec::new(),
            upto: seals.last().map_or(behind, |(idx, _, _)| *idx),
            finished: seals.len() < PORTION,
        };
        let weigh = |number: u64| -> rusqlite::Result<u64> {
            self.db
                .prepare_cached(
                    "SELECT coalesce(sum(octet_length(data)), 0) FROM events \
                     WHERE id > ?1 AND id <= ?2 AND data IS NOT NULL",
                )?
                .query_row([event_id(number, 0), event_id(number, MAX_SEQ)], |r| {
                    r.get::<_, i64>(0).map(|n| n.max(0).unsigned_abs())
                })
        };
        for (idx, number, _) in seals {
            let bytes = weigh(number).map_err(RecordError::sqlite("weigh a session"))?;
            if bytes >= from && !self.is_recording(number)? {
                weighed.heavy.push((number, idx));
            }
        }
        Ok(weighed)
    }

    /// The next part of a session whose attachments are all here: whole frames behind an event
    /// where its chain stands so; none behind the last. The chain is computed along.
    pub fn cut(
        &self,
        session: &Summary,
        (after, mut head): (u64, Hash),
    ) -> Result<Option<Cut>, RecordError> {
        let (number, id) = (session.number, id_of(session)?);
        let (mut bytes, mut last, mut broken) = (Vec::new(), after, None);
        self.events_until(number, after, |e| {
            let length = frame_length(e.kind, e.body.len() as u64, e.data.len() as u64);
            if !bytes.is_empty() && bytes.len() as u64 + length > PART_BYTES {
                return false;
            }
            head = chain::step(&head, e.seq, e.ts_us, e.kind, e.body, e.data);
            if e.seq != last + 1 || hash_of(e.hash) != Some(head) || e.kind.len() > MAX_KIND {
                broken = Some(e.seq);
                return false;
            }
            last = e.seq;
            let at = bytes.len();
            frame::begin_event(&mut bytes, number, id, e.seq, e.ts_us, e.kind);
            bytes.extend_from_slice(e.body);
            frame::finish_event(&mut bytes, at, e.kind, e.data, &head);
            true
        })?;
        match broken {
            Some(seq) => Err(RecordError::Contents(format!(
                "event {seq} of session {number} changed while it was read"
            ))),
            None if bytes.is_empty() => Ok(None),
            None => Ok(Some(Cut { first: after + 1, last, bytes, head })),
        }
    }

    /// What replicas keep of a part of a session whose attachments are all here: the bodies.
    pub fn recorded(&self, session: &Summary, placed: &Placed) -> Result<Recorded, RecordError> {
        let mut out = Recorded::begin(placed.part, placed.is_last);
        let end = |seq, _| seq > placed.last;
        self.bodies(session, placed.first, "coalesce(octet_length(data), 0)", &mut out, end)?;
        Ok(out)
    }

    /// The same of all parts of a session whose attachments are in objects, as they were noted.
    pub fn recorded_parts(
        &self,
        session: &Summary,
        mut take: impl FnMut(&Recorded) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        let parts = self.parts_of(session.number)?;
        let mut first = 1;
        for (i, part) in parts.iter().enumerate() {
            let mut out = Recorded::begin(*part, i + 1 == parts.len());
            // A part is as long as the frames in it.
            let full = |_, bytes| bytes >= part.bytes;
            let length = "coalesce((SELECT length FROM recorded r WHERE r.id = events.id), \
                          octet_length(data), 0)";
            first = self.bodies(session, first, length, &mut out, full)?;
            if out.bytes() != part.bytes {
                return Err(RecordError::Contents(format!(
                    "the recording of session {} does not fit its events",
                    session.number
                )));
            }
            take(&out)?;
        }
        Ok(())
    }

    fn parts_of(&self, number: u64) -> Result<Vec<Part>, RecordError> {
        let read = || -> rusqlite::Result<Vec<Part>> {
            let mut s = self.db.prepare_cached(
                "SELECT part FROM recording_parts WHERE number = ?1 ORDER BY part",
            )?;
            let parts = s.query_map([number as i64], |r| r.get(0))?;
            let parts = parts.map(|part| part_of(&self.db, number, part?));
            parts.filter_map(rusqlite::Result::transpose).collect()
        };
        read().map_err(RecordError::sqlite("read the parts of a recording"))
    }

    /// Adds bodies of events, and what stands as the length of their attachments, until there is
    /// enough, by the number of the next event and the bytes so far; which event that is.
    fn bodies(
        &self,
        session: &Summary,
        first: u64,
        length: &'static str,
        out: &mut Recorded,
        enough: impl Fn(u64, u64) -> bool,
    ) -> Result<u64, RecordError> {
        let (number, id) = (session.number, id_of(session)?);
        let (mut next, mut attached) = (first, 0);
        let mut read = || -> rusqlite::Result<()> {
            let mut s = self.db.prepare_cached(&format!(
                "SELECT id, ts_us, kind, body, NULL, hash, {length} FROM events \
                 WHERE id >= ?1 AND id <= ?2 ORDER BY id"
            ))?;
            let mut rows = s.query([event_id(number, first), event_id(number, MAX_SEQ)])?;
            while let Some(row) = rows.next()? {
                let e = store::from_row(row)?;
                if enough(e.seq, out.frames.len() as u64 + attached) {
                    break;
                }
                let hash = hash_of(e.hash).ok_or(rusqlite::Error::InvalidQuery)?;
                let at = out.frames.len();
                frame::begin_event(&mut out.frames, number, id, e.seq, e.ts_us, e.kind);
                out.frames.extend_from_slice(e.body);
                frame::finish_event(&mut out.frames, at, e.kind, &[], &hash);
                let length = row.get::<_, i64>(6)?.max(0).unsigned_abs();
                out.lengths.push(length);
                attached += length;
                next = e.seq + 1;
            }
            Ok(())
        };
        read().map_err(RecordError::sqlite("read a part of a session"))?;
        Ok(next)
    }
}

fn id_of(session: &Summary) -> Result<ulid::Ulid, RecordError> {
    ulid::Ulid::from_string(&session.id).map_err(|_| {
        RecordError::Contents(format!("the id of session {} was altered", session.number))
    })
}

/// Length of a frame.
fn frame_length(kind: &str, body: u64, data: u64) -> u64 {
    frame::body_offset(kind) as u64 + body + 4 + data + HASH
}

/// The frames of some events of a session in a row.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The first event in it.
    pub first: u64,
    /// The last event in it.
    pub last: u64,
    /// The frames.
    pub bytes: Vec<u8>,
    /// Hash of the last event.
    pub head: Hash,
}

/// A part that is in its place.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// It.
    pub part: Part,
    /// The first event in it.
    pub first: u64,
    /// The last event in it.
    pub last: u64,
    /// No part of the session follows.
    pub is_last: bool,
}

// ---- what replicas keep of a part --------------------------------------------------------------

/// What a replica keeps of a part: the frames of its events without their attachments, and how
/// long these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The part.
    pub part: Part,
    /// No part of the session follows.
    pub last: bool,
    /// Length of each attachment.
    pub lengths: Vec<u64>,
    /// Frames without attachments.
    pub frames: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    number: u64,
    part: u32,
    bytes: u64,
    sha256: String,
    last: bool,
    lengths: Vec<u64>,
}

impl Recorded {
    fn begin(part: Part, last: bool) -> Self {
        Self { part, last, lengths: Vec::new(), frames: Vec::new() }
    }

    /// Length of the frames with their attachments.
    fn bytes(&self) -> u64 {
        self.frames.len() as u64 + self.lengths.iter().sum::<u64>()
    }

    /// As it stands in a feed.
    pub fn encode(&self) -> Vec<u8> {
        let head = Head {
            number: self.part.number,
            part: self.part.part,
            bytes: self.part.bytes,
            sha256: hex(&self.part.sha256),
            last: self.last,
            lengths: self.lengths.clone(),
        };
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let mut out = (head.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.frames);
        out
    }

    /// Reads it back; none when it cannot be one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (head, frames) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let head: Head = serde_json::from_slice(head).ok()?;
        let part = Part {
            number: head.number,
            part: head.part,
            bytes: head.bytes,
            sha256: unhex(&head.sha256)?,
        };
        let out = Self { part, last: head.last, lengths: head.lengths, frames: frames.to_owned() };
        (part.bytes <= MAX_PART && out.events().is_some()).then_some(out)
    }

    /// Each event, and where its attachment begins in the object; none when they do not make the
    /// part.
    fn events(&self) -> Option<Vec<(EventFrame<'_>, u64, u64)>> {
        let mut all = Vec::with_capacity(self.lengths.len());
        let (mut rest, mut at) = (&self.frames[..], 0_u64);
        for length in &self.lengths {
            let Parsed::Whole(Frame::Event(e), own) = frame::parse(rest) else { return None };
            let follows = all.last().is_none_or(|(before, _, _): &(EventFrame<'_>, _, _)| {
                before.seq + 1 == e.seq && before.session == e.session
            });
            if !follows || e.number != self.part.number || !e.data.is_empty() || e.seq > MAX_SEQ {
                return None;
            }
            let end = at.checked_add(own as u64)?;
            all.push((e, end - HASH, *length));
            at = end.checked_add(*length)?;
            rest = &rest[own..];
        }
        (rest.is_empty() && at == self.part.bytes && !all.is_empty()).then_some(all)
    }
}

impl Store {
    /// Makes what a replica has beside a host's store.
    pub(super) fn prepare_recordings(&self) -> Result<(), RecordError> {
        self.db.execute_batch(TABLES).map_err(RecordError::sqlite("prepare a replica"))
    }

    /// Notes up to where [`Reader::weigh`] came, and with which size.
    pub fn note_weighed(&self, upto: u64, from: u64) -> Result<(), RecordError> {
        self.note_number(WEIGHED, 0)?;
        self.note_number(WEIGHED_FROM, i64::try_from(from).unwrap_or(i64::MAX))?;
        self.remember(WEIGHED, upto)
    }

    /// Notes a part inside the batch that is under way: from its end on the attachments are read
    /// there. Events that are not here come without theirs. How many came.
    pub fn record(&mut self, recorded: &Recorded) -> Result<u64, RecordError> {
        let number = recorded.part.number;
        let strange = |what: &str| {
            RecordError::Contents(format!("a part of the recording of session {number} {what}"))
        };
        let events = recorded.events().ok_or_else(|| strange("is none"))?;
        let mut new = 0;
        for (e, at, length) in &events {
            let was_here = self.event_hash(number, e.seq)?.is_some();
            if !self.event(e)? {
                return Err(strange("is over other events than are here"));
            }
            new += u64::from(!was_here);
            if *length > 0 {
                self.place(event_id(number, e.seq), recorded.part.part, *at, *length)?;
            }
        }
        let (Some((first, _, _)), Some((last, _, _))) = (events.first(), events.last()) else {
            return Ok(new);
        };
        self.note_part(&recorded.part, first.seq)?;
        if recorded.last {
            self.sealed_already(number, last.session)?;
        }
        Ok(new)
    }

    fn place(&self, id: i64, part: u32, at: u64, length: u64) -> Result<(), RecordError> {
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO recorded (id, part, at, length) VALUES (?1, ?2, ?3, ?4)",
            )
            .and_then(|mut s| s.execute(params![id, part, at as i64, length as i64]))
            .map(drop)
            .map_err(RecordError::sqlite("note where an attachment is"))
    }

    fn note_part(&self, part: &Part, first: u64) -> Result<(), RecordError> {
        let write = || -> rusqlite::Result<()> {
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO recording_parts (number, part, bytes, sha256) \
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    part.number as i64,
                    part.part,
                    part.bytes as i64,
                    &part.sha256[..]
                ])?;
            self.db
                .prepare_cached(
                    "INSERT INTO recordings (number, shed) VALUES (?1, ?2) \
                     ON CONFLICT (number) DO UPDATE SET shed = coalesce(shed, ?2)",
                )?
                .execute([part.number as i64, first.saturating_sub(1) as i64])?;
            Ok(())
        };
        write().map_err(RecordError::sqlite("note a part of a recording"))
    }

    /// A replica that is made anew gets the seal before the events.
    fn sealed_already(&mut self, number: u64, id: ulid::Ulid) -> Result<(), RecordError> {
        if let Some((idx, _, _)) = self.seal_of(number)? {
            self.summary(number, id)?.seal.get_or_insert(idx);
        }
        Ok(())
    }

    /// Takes attachments out that are in objects, in one transaction of limited size; whether
    /// nothing is left to take out.
    pub fn shed(&self, most_bytes: u64) -> Result<bool, RecordError> {
        let write = || -> rusqlite::Result<bool> {
            let next: Option<(i64, i64)> = self
                .db
                .prepare_cached(
                    "SELECT number, shed FROM recordings WHERE shed IS NOT NULL LIMIT 1",
                )?
                .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()?;
            let finished = match next {
                None => true,
                Some((number, shed)) => {
                    self.shed_some(number, shed, most_bytes)?;
                    false
                }
            };
            self.db.execute_batch("COMMIT")?;
            Ok(finished)
        };
        self.begin()?;
        let result = write().map_err(RecordError::sqlite("take attachments out"));
        if result.is_err() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        result
    }

    /// Those of one session behind an event.
    fn shed_some(&self, number: i64, shed: i64, most_bytes: u64) -> rusqlite::Result<()> {
        let session = number.max(0).unsigned_abs();
        let behind = event_id(session, shed.max(0).unsigned_abs());
        let (mut last, mut bytes) = (None, 0);
        {
            let mut s = self.db.prepare_cached(
                "SELECT e.id, octet_length(e.data) FROM recorded r JOIN events e ON e.id = r.id \
                 WHERE r.id > ?1 AND r.id <= ?2 AND e.data IS NOT NULL ORDER BY r.id",
            )?;
            let mut rows = s.query([behind, event_id(session, MAX_SEQ)])?;
            while bytes < most_bytes {
                let Some(row) = rows.next()? else { break };
                last = Some(row.get::<_, i64>(0)?);
                bytes += row.get::<_, i64>(1)?.max(0).unsigned_abs();
            }
        }
        if let Some(last) = last {
            self.db
                .prepare_cached(
                    "UPDATE events SET data = NULL WHERE id > ?1 AND id <= ?2 \
                     AND data IS NOT NULL AND id IN (SELECT id FROM recorded \
                     WHERE id > ?1 AND id <= ?2)",
                )?
                .execute([behind, last])?;
        }
        let shed = last.map(|id| seq_of(id) as i64);
        self.db
            .prepare_cached("UPDATE recordings SET shed = ?2 WHERE number = ?1")?
            .execute(params![number, shed])?;
        Ok(())
    }

    /// Forgets where attachments of a session with a tombstone were, up to an event; all of it
    /// with the last.
    pub(super) fn forget_recorded(&self, number: u64, upto: Option<i64>) -> rusqlite::Result<()> {
        let last = upto.unwrap_or_else(|| event_id(number, MAX_SEQ));
        self.db
            .prepare_cached("DELETE FROM recorded WHERE id BETWEEN ?1 AND ?2")?
            .execute([event_id(number, 0), last])?;
        if upto.is_none() {
            for sql in [
                "DELETE FROM recording_parts WHERE number = ?1",
                "DELETE FROM recordings WHERE number = ?1",
            ] {
                self.db.prepare_cached(sql)?.execute([number as i64])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Recorded {
        let mut out = Recorded {
            part: Part { number: 7, part: 1, bytes: 0, sha256: [3; 32] },
            last: true,
            lengths: vec![0, 9, 4],
            frames: Vec::new(),
        };
        for seq in 3..6 {
            let at = out.frames.len();
            frame::begin_event(&mut out.frames, 7, ulid::Ulid::from_parts(1, 2), seq, 5, "request");
            out.frames.extend_from_slice(b"{}");
            frame::finish_event(&mut out.frames, at, "request", &[], &[seq as u8; 32]);
        }
        out.part.bytes = out.frames.len() as u64 + 13;
        out
    }

    #[test]
    fn what_stands_in_a_feed_is_read_back_and_nothing_else_is() {
        let good = recorded();
        assert_eq!(Recorded::decode(&good.encode()), Some(good.clone()));
        type Change = fn(&mut Recorded);
        let bad: [Change; 6] = [
            |r| r.part.bytes += 1,
            |r| r.part.number = 8,
            |r| r.lengths.truncate(2),
            |r| r.lengths[0] = u64::MAX,
            |r| r.frames.truncate(100),
            |r| r.part.bytes = MAX_PART + 1,
        ];
        for change in bad {
            let mut bad = good.clone();
            change(&mut bad);
            assert_eq!(Recorded::decode(&bad.encode()), None, "{bad:?}");
        }
        assert_eq!(Recorded::decode(&[]), None);
        assert_eq!(Recorded::decode(&[255, 255, 255, 255, 0]), None);
    }

    /// Attachments are read where whole frames have them.
    #[test]
    fn places_are_those_of_whole_frames() {
        let good = recorded();
        let mut whole = Vec::new();
        for (n, seq) in (3..6).enumerate() {
            let at = whole.len();
            frame::begin_event(&mut whole, 7, ulid::Ulid::from_parts(1, 2), seq, 5, "request");
            whole.extend_from_slice(b"{}");
            let data = vec![n as u8; good.lengths[n] as usize];
            frame::finish_event(&mut whole, at, "request", &data, &[seq as u8; 32]);
            assert_eq!((whole.len() - at) as u64, frame_length("request", 2, data.len() as u64));
        }
        assert_eq!(whole.len() as u64, good.part.bytes);
        for (n, (_, at, length)) in good.events().unwrap().into_iter().enumerate() {
            let (at, length) = (at as usize, length as usize);
            assert!(whole[at..at + length].iter().all(|b| *b == n as u8));
        }
    }
}
