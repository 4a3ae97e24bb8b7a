//! What of this host's records the collector does not have yet, as batches of journal frames.
//!
//! The spool is the store itself, read beside the drain by a connection of its own. A batch is
//! taken from one read snapshot, and only after the files behind that snapshot are on disk: what
//! a power cut could still take away is never shipped.
//!
//! Order: the ledger entry by entry, before each seal the events that it seals and before each
//! epoch the events that it names; then the events of open sessions; then checkpoints. So the
//! collector can check each thing against what it has when it comes.
//!
//! What this module must never do: write to the store, or ship what is not on disk.

use std::fs::File;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, params};

use super::Position;
use crate::record::frame;
use crate::record::ledger::{Entry, Placed};
use crate::record::store::{self, MAX_SEQ, Store, hash_of};
use crate::record::{RecordError, now_us};

/// Entries and sessions that are looked at in one batch.
const MOST: i64 = 4096;

/// A batch, and where the collector stands when it has taken it.
#[derive(Debug)]
pub struct Batch {
    /// Whole frames.
    pub frames: Vec<u8>,
    /// Events among them.
    pub events: u64,
    /// When the first of the events happened; microseconds since the Unix epoch.
    pub oldest_us: Option<i64>,
    /// Where the collector stands then.
    pub after: Position,
    /// There is more.
    pub more: bool,
}

/// What waits to be shipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Events.
    pub events: u64,
    /// Ledger entries.
    pub ledger: u64,
    /// When the oldest session with such events opened; microseconds since the Unix epoch.
    pub oldest_us: Option<i64>,
}

/// Reads the host's own store.
pub struct Spool {
    db: Connection,
    path: PathBuf,
    seen: Option<i64>,
}

impl Spool {
    /// Opens the store in a state directory.
    pub fn open(state: &Path) -> Result<Self, RecordError> {
        let db = store::open_read_only(state)?;
        db.set_prepared_statement_cache_capacity(16);
        let path = Store::path(state);
        // The files' own entries in the directory must survive too.
        File::open(state).and_then(|dir| dir.sync_all()).map_err(|source| RecordError::Io {
            action: "sync",
            path: state.into(),
            source,
        })?;
        Ok(Self { db, path, seen: None })
    }

    /// Whether the store changed since this was asked last. Costs no disk access.
    pub fn changed(&mut self) -> bool {
        let version: Option<i64> =
            self.db.pragma_query_value(None, "data_version", |r| r.get(0)).ok();
        let changed = version.is_none() || version != self.seen;
        self.seen = version;
        changed
    }

    /// Forgets that the store was looked at.
    pub fn look_again(&mut self) {
        self.seen = None;
    }

    /// Where the ledger stands.
    pub fn ledger(&self) -> Result<u64, RecordError> {
        self.db
            .query_row("SELECT coalesce(max(idx), 0) FROM ledger", [], |r| r.get::<_, i64>(0))
            .map(|n| n.max(0) as u64)
            .map_err(sql)
    }

    /// The next batch of about so many bytes behind a position; `None` when there is nothing.
    pub fn next(&self, at: &Position, bytes: usize) -> Result<Option<Batch>, RecordError> {
        self.snapshot(|| {
            let batch = Batch {
                frames: Vec::with_capacity(bytes.min(1 << 20)),
                events: 0,
                oldest_us: None,
                after: at.clone(),
                more: false,
            };
            let mut filler = Filler { db: &self.db, batch, bytes };
            filler.fill()?;
            Ok((!filler.batch.frames.is_empty()).then_some(filler.batch))
        })
    }

    /// What waits behind a position.
    pub fn waiting(&self, at: &Position) -> Result<Waiting, RecordError> {
        let read = || -> rusqlite::Result<Waiting> {
            let mut waiting = Waiting::default();
            let last: i64 =
                self.db.query_row("SELECT coalesce(max(idx), 0) FROM ledger", [], |r| r.get(0))?;
            waiting.ledger = (last.max(0) as u64).saturating_sub(at.ledger);
            let mut rows = self.db.prepare_cached(
                "SELECT number, events, opened_us FROM sessions WHERE seal IS NULL \
                 UNION ALL SELECT s.number, s.events, s.opened_us FROM ledger l \
                 JOIN sessions s ON s.number = l.number WHERE l.idx > ?1",
            )?;
            let mut rows = rows.query([at.ledger as i64])?;
            while let Some(row) = rows.next()? {
                let (number, events) = (row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64);
                let have = at.sessions.get(&number).copied().unwrap_or(0);
                if events > have {
                    waiting.events += events - have;
                    let opened = row.get(2)?;
                    waiting.oldest_us =
                        Some(waiting.oldest_us.map_or(opened, |o: i64| o.min(opened)));
                }
            }
            Ok(waiting)
        };
        read().map_err(sql)
    }

    /// Runs in one read snapshot that is on disk.
    fn snapshot<T>(&self, run: impl FnOnce() -> Result<T, RecordError>) -> Result<T, RecordError> {
        self.db.execute_batch("BEGIN").map_err(sql)?;
        // A snapshot begins with its first read.
        let begun = self.db.query_row("SELECT count(*) FROM meta", [], |_| Ok(())).map_err(sql);
        let result = begun.and_then(|()| self.sync()).and_then(|()| run());
        let _ = self.db.execute_batch("COMMIT");
        result
    }

    fn sync(&self) -> Result<(), RecordError> {
        let mut wal = self.path.as_os_str().to_owned();
        wal.push("-wal");
        // The log first: what it lacks by then stands in the database already.
        for path in [PathBuf::from(wal), self.path.clone()] {
            match File::open(&path).and_then(|f| f.sync_data()) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(RecordError::Io { action: "sync", path, source }),
            }
        }
        Ok(())
    }
}

fn sql(source: rusqlite::Error) -> RecordError {
    RecordError::Sqlite { action: "read what is to be shipped", source }
}

/// Fills one batch.
struct Filler<'a> {
    db: &'a Connection,
    batch: Batch,
    bytes: usize,
}

impl Filler<'_> {
    fn fill(&mut self) -> Result<(), RecordError> {
        let whole = self.ledger().map_err(sql)?
            && self.open_sessions().map_err(sql)?
            && self.checkpoints().map_err(sql)?;
        self.batch.more = !whole;
        Ok(())
    }

    fn full(&self) -> bool {
        self.batch.frames.len() >= self.bytes
    }

    /// Each of these says whether it came to its end.
    fn ledger(&mut self) -> rusqlite::Result<bool> {
        let db = self.db;
        let mut entries = db.prepare_cached(
            "SELECT idx, kind, number, body, signature FROM ledger WHERE idx > ?1 \
             ORDER BY idx LIMIT ?2",
        )?;
        let mut rows = entries.query(params![self.batch.after.ledger as i64, MOST])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            seen += 1;
            let number = row.get::<_, Option<i64>>(2)?.map(|n| n as u64);
            let body = row.get_ref(3)?.as_bytes().unwrap_or_default();
            if let Some(number) = number {
                if !self.session(number, MAX_SEQ)? {
                    return Ok(false);
                }
            } else if row.get_ref(1)?.as_str().unwrap_or_default() == "epoch"
                && !self.epoch(body)?
            {
                return Ok(false);
            }
            // One of another length is an error that is shown: nothing can be shipped past it.
            let signature: [u8; 64] = row.get(4)?;
            self.batch.frames.extend_from_slice(&frame::ledger(body, &signature));
            self.batch.after.ledger = row.get::<_, i64>(0)? as u64;
            if let Some(number) = number {
                self.batch.after.sessions.remove(&number);
            }
            if self.full() {
                return Ok(false);
            }
        }
        Ok(seen < MOST)
    }

    fn epoch(&mut self, body: &[u8]) -> rusqlite::Result<bool> {
        let Ok(Placed { entry: Entry::Epoch(epoch), .. }) = serde_json::from_slice(body) else {
            return Ok(true);
        };
        for open in &epoch.open {
            if !self.session(open.number, open.seq)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn open_sessions(&mut self) -> rusqlite::Result<bool> {
        let open: Vec<u64> = self
            .db
            .prepare_cached(
                "SELECT number, events FROM sessions WHERE seal IS NULL ORDER BY number",
            )?
            .query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64)))?
            .filter_map(|row| match row {
                Ok((number, events)) => {
                    let have = self.batch.after.sessions.get(&number).copied().unwrap_or(0);
                    (events > have).then_some(Ok(number))
                }
                Err(e) => Some(Err(e)),
            })
            .collect::<rusqlite::Result<_>>()?;
        for number in open {
            if !self.session(number, MAX_SEQ)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn checkpoints(&mut self) -> rusqlite::Result<bool> {
        let db = self.db;
        let mut all = db.prepare_cached(
            "SELECT idx, body, signature FROM checkpoints WHERE idx > ?1 ORDER BY idx",
        )?;
        let mut rows = all.query([self.batch.after.checkpoint as i64])?;
        while let Some(row) = rows.next()? {
            let body = row.get_ref(1)?.as_bytes().unwrap_or_default();
            let signature: Vec<u8> = row.get(2)?;
            if let Ok(signature) = <[u8; 64]>::try_from(signature) {
                self.batch.frames.extend_from_slice(&frame::checkpoint(body, &signature));
            }
            self.batch.after.checkpoint = row.get::<_, i64>(0)? as u64;
        }
        Ok(true)
    }

    /// Events of a session behind the position, up to one. A gap in them ends the session here:
    /// what stands behind it proves nothing.
    fn session(&mut self, number: u64, upto: u64) -> rusqlite::Result<bool> {
        let mut have = self.batch.after.sessions.get(&number).copied().unwrap_or(0);
        if have >= upto {
            return Ok(true);
        }
        let Some(id) = self.session_id(number)? else { return Ok(true) };
        let mut full = false;
        store::each_event_until(self.db, number, have, |e| {
            if e.seq > upto {
                return false;
            }
            full = self.full();
            if full {
                return false;
            }
            let follows = e.seq == have + 1 && e.kind.len() <= frame::MAX_KIND;
            let Some(hash) = hash_of(e.hash).filter(|_| follows) else { return false };
            let at = self.batch.frames.len();
            frame::begin_event(&mut self.batch.frames, number, id, e.seq, e.ts_us, e.kind);
            self.batch.frames.extend_from_slice(e.body);
            frame::finish_event(&mut self.batch.frames, at, e.kind, e.data, &hash);
            have = e.seq;
            self.batch.after.sessions.insert(number, e.seq);
            self.batch.events += 1;
            let oldest = self.batch.oldest_us.get_or_insert_with(now_us);
            *oldest = e.ts_us.min(*oldest);
            true
        })?;
        Ok(!full)
    }

    fn session_id(&self, number: u64) -> rusqlite::Result<Option<ulid::Ulid>> {
        use rusqlite::OptionalExtension;
        let id: Option<String> = self
            .db
            .prepare_cached("SELECT id FROM sessions WHERE number = ?1")?
            .query_row([number as i64], |r| r.get(0))
            .optional()?;
        Ok(id.and_then(|id| ulid::Ulid::from_string(&id).ok()))
    }
}
