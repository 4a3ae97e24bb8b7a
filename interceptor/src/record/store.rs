//! The SQLite side: schema, migrations, and the writes of the drain.
//!
//! One connection writes: the drain's, or that of a reader that holds the store lock while no
//! daemon runs. Everything else opens the file read-only.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::RecordError;
use super::chain::Hash;
use super::frame::{EventFrame, Signed};
use super::journal::Position;
use super::keys::PublicKey;
use super::ledger::{self, Checkpoint, Deletion, Entry, Head, Placed};
use super::summary::Summary;
use crate::config::Durability;

/// Statements that bring a store from version `i` to `i + 1`.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];
/// Checkpoints that are kept; older ones are superseded.
const CHECKPOINTS_KEPT: i64 = 64;
/// Bits of an event's id that hold its position in the session.
const SEQ_BITS: u32 = 31;
/// Largest position in a session.
pub const MAX_SEQ: u64 = (1 << SEQ_BITS) - 1;

/// Row id of an event.
pub fn event_id(number: u64, seq: u64) -> i64 {
    ((number << SEQ_BITS) | seq) as i64
}

/// Position in its session of the event with a row id.
pub fn seq_of(id: i64) -> u64 {
    (id as u64) & MAX_SEQ
}

/// Number of the session of the event with a row id.
pub fn number_of(id: i64) -> u64 {
    (id as u64) >> SEQ_BITS
}

/// The open store of the one writer.
pub struct Store {
    pub(super) db: Connection,
    path: PathBuf,
    open: HashMap<u64, Summary>,
    dirty: HashSet<u64>,
    /// Keeps what the ledger says was deleted where it came from.
    replica: bool,
}

impl Store {
    /// Where the store lives in a state directory.
    pub fn path(state: &Path) -> PathBuf {
        state.join("records.db")
    }

    /// Opens for writing, creating or migrating as needed.
    pub fn open(state: &Path, durability: Durability) -> Result<Self, RecordError> {
        let path = Self::path(state);
        let sql = RecordError::sqlite;
        let mut db = Connection::open(&path).map_err(sql("open records.db"))?;
        private(&path)?;
        db.busy_timeout(Duration::from_secs(5)).map_err(sql("configure records.db"))?;
        let synchronous = match durability {
            Durability::Process => "NORMAL",
            Durability::Disk => "FULL",
        };
        db.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; \
             PRAGMA wal_autocheckpoint = 8000; PRAGMA journal_size_limit = 67108864; \
             PRAGMA cache_size = -8192; PRAGMA foreign_keys = OFF; PRAGMA trusted_schema = OFF;"
        ))
        .map_err(sql("configure records.db"))?;
        migrate(&mut db)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(Self { db, path, open: HashMap::new(), dirty: HashSet::new(), replica: false })
    }

    /// Opens the copy of another host's store: every commit is on disk when it returns, and
    /// that host's deletions are kept in mind but not followed.
    ///
    /// A new one can give room back to the file system; that is decided before its first table.
    pub fn open_replica(state: &Path) -> Result<Self, RecordError> {
        let path = Self::path(state);
        if !path.exists() {
            let sql = RecordError::sqlite;
            let db = Connection::open(&path).map_err(sql("open records.db"))?;
            private(&path)?;
            db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL;")
                .map_err(sql("configure records.db"))?;
        }
        let store = Self { replica: true, ..Self::open(state, Durability::Disk)? };
        // There may be thousands of them in one process.
        store
            .db
            .execute_batch("PRAGMA cache_size = -1024")
            .map_err(RecordError::sqlite("configure records.db"))?;
        store.prepare_tombstones()?;
        store.prepare_recordings()?;
        Ok(store)
    }

    /// Begins a batch.
    pub fn begin(&self) -> Result<(), RecordError> {
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(RecordError::sqlite("begin a batch"))
    }

    /// Ends a batch: what it holds and how far the journal is consumed stand or fall together.
    pub fn commit(&mut self, consumed: Position) -> Result<(), RecordError> {
        let dirty = std::mem::take(&mut self.dirty);
        let write = || -> rusqlite::Result<()> {
            for number in &dirty {
                if let Some(summary) = self.open.get(number) {
                    summary.save(&self.db)?;
                }
            }
            set_meta(&self.db, "consumed_segment", consumed.segment as i64)?;
            set_meta(&self.db, "consumed_offset", consumed.offset as i64)?;
            self.db.execute_batch("COMMIT")
        };
        let result = write().map_err(RecordError::sqlite("commit a batch"));
        if result.is_err() {
            self.rollback();
        } else {
            self.open.retain(|_, s| s.seal.is_none());
        }
        result
    }

    /// Gives a batch up; the summaries are read again when they are needed.
    pub fn rollback(&mut self) {
        let _ = self.db.execute_batch("ROLLBACK");
        self.open.clear();
        self.dirty.clear();
    }

    /// Inserts an event. `false` when another event stands in its place.
    pub fn event(&mut self, e: &EventFrame<'_>) -> Result<bool, RecordError> {
        let fail = RecordError::sqlite;
        let id = event_id(e.number, e.seq);
        let inserted = self
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO events (id, ts_us, kind, body, data, hash) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut s| {
                let data = (!e.data.is_empty()).then_some(e.data);
                s.execute(params![id, e.ts_us, e.kind, Text(e.body), data, &e.hash[..]])
            })
            .map_err(fail("store an event"))?;
        if inserted == 0 {
            let there: Option<Vec<u8>> = self
                .db
                .query_row("SELECT hash FROM events WHERE id = ?1", [id], |r| r.get(0))
                .optional()
                .map_err(fail("read an event"))?;
            return Ok(there.as_deref() == Some(&e.hash[..]));
        }
        self.summary(e.number, e.session)?.apply(e);
        Ok(true)
    }

    /// Inserts a ledger entry and does what it states. `false` when it is not this host's.
    pub fn ledger(&mut self, key: &PublicKey, signed: &Signed<'_>) -> Result<bool, RecordError> {
        if !ledger::entry_is_signed(key, signed.body, signed.signature) {
            return Ok(false);
        }
        let Ok(placed) = serde_json::from_slice::<Placed>(signed.body) else { return Ok(false) };
        self.enter(placed, signed)?;
        Ok(true)
    }

    /// Inserts a ledger entry whose signature was checked, and does what it states.
    pub fn enter(&mut self, placed: Placed, signed: &Signed<'_>) -> Result<(), RecordError> {
        let number = match &placed.entry {
            Entry::Seal(seal) => Some(seal.number as i64),
            _ => None,
        };
        let inserted = self
            .db
            .prepare_cached(
                "INSERT OR IGNORE INTO ledger (idx, kind, number, ts_us, body, signature) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut s| {
                s.execute(params![
                    placed.idx as i64,
                    placed.entry.kind(),
                    number,
                    placed.ts_us,
                    Text(signed.body),
                    &signed.signature[..]
                ])
            })
            .map_err(RecordError::sqlite("store a ledger entry"))?;
        if inserted == 1 {
            match placed.entry {
                Entry::Seal(seal) => {
                    if let Ok(id) = ulid::Ulid::from_string(&seal.session)
                        && (!self.replica || self.has_session(seal.number)?)
                    {
                        self.summary(seal.number, id)?.seal = Some(placed.idx);
                    }
                }
                Entry::Deletion(deletion) if !self.replica => self.delete(&deletion)?,
                Entry::Deletion(_) | Entry::Damage(_) | Entry::Epoch(_) => {}
            }
        }
        Ok(())
    }

    /// Inserts a checkpoint, and drops those it supersedes.
    pub fn checkpoint(&mut self, signed: &Signed<'_>) -> Result<bool, RecordError> {
        let Ok(c) = serde_json::from_slice::<Checkpoint>(signed.body) else { return Ok(false) };
        let idx = c.idx as i64;
        let write = || -> rusqlite::Result<()> {
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO checkpoints (idx, ts_us, body, signature) \
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![idx, c.ts_us, Text(signed.body), &signed.signature[..]])?;
            self.db
                .prepare_cached("DELETE FROM checkpoints WHERE idx <= ?1")?
                .execute([idx - CHECKPOINTS_KEPT])?;
            Ok(())
        };
        write().map_err(RecordError::sqlite("store a checkpoint"))?;
        Ok(true)
    }

    fn delete(&mut self, deletion: &Deletion) -> Result<(), RecordError> {
        for (first, last) in &deletion.numbers {
            let range = [event_id(*first, 0), event_id(*last, MAX_SEQ)];
            self.db
                .execute("DELETE FROM events WHERE id BETWEEN ?1 AND ?2", range)
                .and_then(|_| {
                    self.db.execute(
                        "DELETE FROM sessions WHERE number BETWEEN ?1 AND ?2",
                        [*first as i64, *last as i64],
                    )
                })
                .map_err(RecordError::sqlite("delete old sessions"))?;
            self.open.retain(|n, _| !(*first..=*last).contains(n));
        }
        Ok(())
    }

    pub(super) fn summary(
        &mut self,
        number: u64,
        id: ulid::Ulid,
    ) -> Result<&mut Summary, RecordError> {
        use std::collections::hash_map::Entry as Slot;
        self.dirty.insert(number);
        match self.open.entry(number) {
            Slot::Occupied(slot) => Ok(slot.into_mut()),
            Slot::Vacant(slot) => {
                let known = Summary::load(&self.db, number)
                    .map_err(RecordError::sqlite("read a session"))?;
                Ok(slot.insert(known.unwrap_or_else(|| Summary::new(number, id))))
            }
        }
    }

    /// Lets go of a row of this batch: another takes its place.
    pub(super) fn forget_open(&mut self, number: u64) {
        self.open.remove(&number);
        self.dirty.remove(&number);
    }

    /// Whether it is a replica, where deleted sessions leave a tombstone.
    pub(super) fn keeps_deletions(&self) -> bool {
        self.replica
    }

    /// Whether this batch, or one before, holds the row of a session that is not sealed.
    pub(super) fn is_open_here(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// Remembers a number with the batch that is under way.
    pub fn remember(&self, key: &str, value: u64) -> Result<(), RecordError> {
        set_meta(&self.db, key, value as i64).map_err(RecordError::sqlite("remember a number"))
    }

    /// A number that was remembered; 0 when none was.
    pub fn remembered(&self, key: &str) -> Result<u64, RecordError> {
        self.meta_number(key)
    }

    /// Remembers any number with the batch that is under way.
    pub fn note_number(&self, key: &str, value: i64) -> Result<(), RecordError> {
        set_meta(&self.db, key, value).map_err(RecordError::sqlite("remember a number"))
    }

    /// Any number that was remembered; 0 when none was.
    pub fn noted_number(&self, key: &str) -> Result<i64, RecordError> {
        meta(&self.db, key).map(Option::unwrap_or_default)
    }

    /// How far the journal is consumed.
    pub fn consumed(&self) -> Result<Position, RecordError> {
        Ok(Position {
            segment: self.meta_number("consumed_segment")?,
            offset: self.meta_number("consumed_offset")?,
        })
    }

    fn meta_number(&self, key: &str) -> Result<u64, RecordError> {
        meta(&self.db, key).map(|v| v.map_or(0, |n: i64| n.max(0) as u64))
    }

    /// Remembers whose store this is; a store of another host key is refused.
    pub fn claim(&self, key: &PublicKey, host: &str) -> Result<(), RecordError> {
        let known: Option<String> = meta(&self.db, "public_key")?;
        let pem = key.to_pem();
        if known.as_ref().is_some_and(|k| *k != pem) {
            return Err(RecordError::Contents(format!(
                "{} was written with another host.key: put that key back, or move the store away",
                self.path.display()
            )));
        }
        // A replica is opened often, and each write waits for the disk.
        if known.is_some() && meta::<String>(&self.db, "host")?.as_deref() == Some(host) {
            return Ok(());
        }
        set_meta(&self.db, "public_key", pem)
            .and_then(|()| set_meta(&self.db, "host", host.to_owned()))
            .map_err(RecordError::sqlite("write the store's owner"))
    }

    /// Where the ledger stands.
    pub fn ledger_head(&self, key: &PublicKey) -> Result<Head, RecordError> {
        let last: Option<(i64, String)> = self
            .db
            .query_row("SELECT idx, body FROM ledger ORDER BY idx DESC LIMIT 1", [], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .optional()
            .map_err(RecordError::sqlite("read the ledger"))?;
        Ok(last.map_or_else(
            || Head::start(key),
            |(idx, body)| Head { idx: idx as u64, hash: ledger::entry_hash(body.as_bytes()) },
        ))
    }

    /// The newest checkpoint whose signature is this host's.
    pub fn last_checkpoint(&self, key: &PublicKey) -> Result<Option<Checkpoint>, RecordError> {
        let read = || -> rusqlite::Result<Option<Checkpoint>> {
            let mut all =
                self.db.prepare("SELECT body, signature FROM checkpoints ORDER BY idx DESC")?;
            let mut rows = all.query([])?;
            while let Some(row) = rows.next()? {
                let (body, signature): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                if ledger::checkpoint_is_signed(key, body.as_bytes(), &signature)
                    && let Ok(c) = serde_json::from_str(&body)
                {
                    return Ok(Some(c));
                }
            }
            Ok(None)
        };
        read().map_err(RecordError::sqlite("read the checkpoints"))
    }

    /// The number that the next session gets.
    pub fn next_number(&self) -> Result<u64, RecordError> {
        self.db
            .query_row(
                "SELECT max(coalesce((SELECT max(number) FROM sessions), 0), \
                 coalesce((SELECT max(number) FROM ledger WHERE number IS NOT NULL), 0))",
                [],
                |r| r.get::<_, i64>(0),
            )
            .map(|n| n.max(0) as u64 + 1)
            .map_err(RecordError::sqlite("read the last session number"))
    }

    /// Sessions without a seal: number and id.
    pub fn unsealed(&self) -> Result<Vec<(u64, String)>, RecordError> {
        self.db
            .prepare("SELECT number, id FROM sessions WHERE seal IS NULL ORDER BY number")
            .and_then(|mut s| {
                s.query_map([], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?)))?.collect()
            })
            .map_err(RecordError::sqlite("read the open sessions"))
    }

    /// The events of a session in order.
    pub fn each_event(
        &self,
        number: u64,
        take: impl FnMut(&StoredEvent<'_>),
    ) -> Result<(), RecordError> {
        each_event(&self.db, number, 0, take).map_err(RecordError::sqlite("read events"))
    }

    /// Sealed sessions that closed before a time and whose seal stands in the ledger up to
    /// `acknowledged`, oldest first, with about so many events.
    pub fn sealed_before(
        &self,
        before_us: i64,
        most_events: u64,
        acknowledged: u64,
    ) -> Result<(Vec<u64>, u64), RecordError> {
        let acknowledged = i64::try_from(acknowledged).unwrap_or(i64::MAX);
        let read = || -> rusqlite::Result<(Vec<u64>, u64)> {
            let mut s = self.db.prepare_cached(
                "SELECT number, events FROM sessions WHERE closed_us < ?1 AND seal <= ?2 \
                 ORDER BY closed_us LIMIT 1000",
            )?;
            let (mut numbers, mut events) = (Vec::new(), 0);
            let mut rows = s.query([before_us, acknowledged])?;
            while let Some(row) = rows.next()? {
                numbers.push(row.get::<_, i64>(0)? as u64);
                events += row.get::<_, i64>(1)?.max(0) as u64;
                if events >= most_events {
                    break;
                }
            }
            numbers.sort_unstable();
            Ok((numbers, events))
        };
        read().map_err(RecordError::sqlite("look for old sessions"))
    }

    /// Bytes that the store's contents take.
    pub fn bytes(&self) -> Result<u64, RecordError> {
        let pragma = |name: &str| {
            self.db
                .pragma_query_value(None, name, |r| r.get::<_, i64>(0))
                .map(|n| n.max(0) as u64)
                .map_err(RecordError::sqlite("read the store's size"))
        };
        let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        let wal = std::fs::metadata(self.wal()).map_or(0, |m| m.len());
        Ok(pages * pragma("page_size")? + wal)
    }

    /// Brings everything committed so far to disk.
    pub fn sync(&self) -> Result<(), RecordError> {
        for path in [self.wal(), self.path.clone()] {
            match std::fs::File::open(&path) {
                Ok(file) => {
                    file.sync_data().map_err(|e| RecordError::io("sync", &path, e))?;
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(RecordError::io("open", &path, e)),
            }
        }
        Ok(())
    }

    /// Whether the disk may soon lack the room that bringing the write-ahead log home takes,
    /// after a batch of that many bytes more.
    pub fn is_tight(&self, batch: u64) -> bool {
        let wal = std::fs::metadata(self.wal()).map_or(0, |m| m.len());
        let free = nix::sys::statvfs::statvfs(&self.path)
            .map_or(u64::MAX, |s| s.blocks_available().saturating_mul(s.fragment_size()));
        free < wal.saturating_add(batch.saturating_mul(8))
    }

    /// Gives the room of the write-ahead log back, as far as readers allow.
    pub fn shrink_wal(&self) {
        let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    fn wal(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push("-wal");
        name.into()
    }
}

/// One event as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'a> {
    /// Position in the session.
    pub seq: u64,
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// What happened.
    pub kind: &'a str,
    /// JSON, unless somebody altered it.
    pub body: &'a [u8],
    /// Attachment.
    pub data: &'a [u8],
    /// Chain hash as stored.
    pub hash: &'a [u8],
}

/// Reads the events of a session of a host's own store behind a position, in order. Of a replica
/// attachments may be elsewhere: [`Reader::events`](super::Reader::events).
pub fn each_event(
    db: &Connection,
    number: u64,
    after: u64,
    mut take: impl FnMut(&StoredEvent<'_>),
) -> rusqlite::Result<()> {
    each_event_until(db, number, after, |e| {
        take(e);
        true
    })
}

/// The same until the taker has enough.
pub fn each_event_until(
    db: &Connection,
    number: u64,
    after: u64,
    take: impl FnMut(&StoredEvent<'_>) -> bool,
) -> rusqlite::Result<()> {
    let sql = "SELECT id, ts_us, kind, body, data, hash FROM events WHERE id > ?1 AND id <= ?2 \
               ORDER BY id";
    each_row_until(db, sql, number, after, take)
}

/// The same without attachments, which are most of what a store holds.
pub fn each_body_until(
    db: &Connection,
    number: u64,
    after: u64,
    take: impl FnMut(&StoredEvent<'_>) -> bool,
) -> rusqlite::Result<()> {
    let sql = "SELECT id, ts_us, kind, body, NULL, hash FROM events WHERE id > ?1 AND id <= ?2 \
               ORDER BY id";
    each_row_until(db, sql, number, after, take)
}

fn each_row_until(
    db: &Connection,
    sql: &str,
    number: u64,
    after: u64,
    mut take: impl FnMut(&StoredEvent<'_>) -> bool,
) -> rusqlite::Result<()> {
    let mut s = db.prepare_cached(sql)?;
    let mut rows = s.query([event_id(number, after), event_id(number, MAX_SEQ)])?;
    while let Some(row) = rows.next()? {
        if !take(&from_row(row)?) {
            break;
        }
    }
    Ok(())
}

/// An event of a row that begins with its columns in their order.
pub(super) fn from_row<'a>(row: &'a rusqlite::Row<'_>) -> rusqlite::Result<StoredEvent<'a>> {
    Ok(StoredEvent {
        seq: seq_of(row.get(0)?),
        ts_us: row.get(1)?,
        kind: std::str::from_utf8(bytes(row.get_ref(2)?)).unwrap_or("\u{fffd}"),
        body: bytes(row.get_ref(3)?),
        data: bytes(row.get_ref(4)?),
        hash: bytes(row.get_ref(5)?),
    })
}

fn bytes(value: ValueRef<'_>) -> &[u8] {
    match value {
        ValueRef::Text(b) | ValueRef::Blob(b) => b,
        _ => &[],
    }
}

/// Opens the store for reading only.
pub fn open_read_only(state: &Path) -> Result<Connection, RecordError> {
    let path = Store::path(state);
    let sql = RecordError::sqlite;
    let db = Connection::open_with_flags(
        &path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )
    .map_err(sql("open records.db"))?;
    db.busy_timeout(Duration::from_secs(5)).map_err(sql("configure records.db"))?;
    db.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF;")
        .map_err(sql("configure records.db"))?;
    let version: i64 = db
        .pragma_query_value(None, "user_version", |r| r.get(0))
        .map_err(sql("read the schema version"))?;
    if version != MIGRATIONS.len() as i64 {
        return Err(RecordError::Contents(format!(
            "{} has schema version {version}, this program knows {}: run the daemon of this \
             version once to migrate it, or use the version that wrote it",
            path.display(),
            MIGRATIONS.len()
        )));
    }
    Ok(db)
}

fn migrate(db: &mut Connection) -> Result<(), RecordError> {
    migrate_with(db, MIGRATIONS)
}

fn migrate_with(db: &mut Connection, migrations: &[&str]) -> Result<(), RecordError> {
    let fail = RecordError::sqlite;
    let tx = db
        .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
        .map_err(fail("migrate records.db"))?;
    let have: i64 = tx
        .pragma_query_value(None, "user_version", |r| r.get(0))
        .map_err(fail("read the schema version"))?;
    let Some(missing) = usize::try_from(have).ok().and_then(|have| migrations.get(have..)) else {
        return Err(RecordError::Contents(format!(
            "records.db has schema version {have}, newer than this program's {}: use a newer one",
            migrations.len()
        )));
    };
    for step in missing {
        tx.execute_batch(step).map_err(fail("migrate records.db"))?;
    }
    tx.pragma_update(None, "user_version", migrations.len() as i64)
        .and_then(|()| tx.commit())
        .map_err(fail("migrate records.db"))
}

fn set_meta(db: &Connection, key: &str, value: impl Into<Value>) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
        .execute(params![key, value.into()])?;
    Ok(())
}

/// Reads a value of the table `meta`.
pub fn meta<T: rusqlite::types::FromSql>(
    db: &Connection,
    key: &str,
) -> Result<Option<T>, RecordError> {
    db.query_row("SELECT value FROM meta WHERE key = ?1", [key], |r| r.get(0))
        .optional()
        .map_err(RecordError::sqlite("read the store's owner"))
}

/// Reads a hash column.
pub fn hash_of(bytes: &[u8]) -> Option<Hash> {
    bytes.try_into().ok()
}

fn private(path: &Path) -> Result<(), RecordError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|e| RecordError::io("protect", path, e))
}

/// Bytes that are known to be text.
struct Text<'a>(&'a [u8]);

impl rusqlite::ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_run_once_and_newer_stores_are_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate_with(&mut db, &["CREATE TABLE a (x)"]).unwrap();
        migrate_with(&mut db, &["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y"]).unwrap();
        db.execute("INSERT INTO a (x, y) VALUES (1, 2)", []).unwrap();
        let e = migrate_with(&mut db, &["CREATE TABLE a (x)"]).unwrap_err().to_string();
        assert!(e.contains("newer"), "{e}");
        let bad = ["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y", "CREATE TABLE b (x); oops"];
        migrate_with(&mut db, &bad).unwrap_err();
        assert!(db.prepare("SELECT * FROM b").is_err(), "a failed migration leaves nothing");
    }

    #[test]
    fn event_ids_keep_sessions_together() {
        let id = event_id(5, 9);
        assert_eq!((number_of(id), seq_of(id)), (5, 9));
        assert!(event_id(5, MAX_SEQ) < event_id(6, 0));
    }
}
