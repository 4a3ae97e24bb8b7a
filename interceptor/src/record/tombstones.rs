//! Tombstones: what a replica keeps of a session whose events the collector's retention deleted.
//!
//! Only replicas have them. A host's own retention stands in its signed ledger; a collector has no
//! key of that host, so its deletions stand in its audit trail, and here is only what the replica
//! itself needs: that the events are gone by intent, how many there were, and where their chain
//! ended. A tombstone is written in a transaction of its own before the first event goes, so a
//! reader sees a session whole, or sees its tombstone.
//!
//! What this module must never do: bury a session without a seal, or delete an event of a session
//! that has no tombstone.

use rusqlite::{Connection, OptionalExtension, params};

use super::chain::Hash;
use super::reader::Reader;
use super::store::{MAX_SEQ, Store, event_id, hash_of};
use super::{RecordError, SessionHead, Summary};

/// Made when a replica is opened for writing, so that the schema of stores stays that of hosts.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS tombstones (
  number     INTEGER PRIMARY KEY,
  deleted_us INTEGER NOT NULL,
  policy     TEXT NOT NULL,
  events     INTEGER NOT NULL,
  head       BLOB NOT NULL,
  remains    INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX IF NOT EXISTS tombstones_remain ON tombstones (number) WHERE remains = 1;";

/// What is left of a deleted session beside its row and its seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The session's number on its host.
    pub number: u64,
    /// When it was decided; microseconds since the Unix epoch.
    pub deleted_us: i64,
    /// By which rule, in words.
    pub policy: String,
    /// Events that it had.
    pub events: u64,
    /// Hash of the last one.
    pub head: Hash,
}

/// What is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Burial {
    /// The session's number on its host.
    pub number: u64,
    /// When it was decided.
    pub deleted_us: i64,
    /// By which rule, in words.
    pub policy: String,
}

/// What one step of a deletion did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Events that are gone.
    pub events: u64,
    /// Bytes of their bodies and attachments.
    pub bytes: u64,
    /// Nothing remains of any session with a tombstone.
    pub finished: bool,
}

fn sql(action: &'static str) -> impl FnOnce(rusqlite::Error) -> RecordError {
    RecordError::sqlite(action)
}

/// Whether a session of a replica was deleted; asked of any connection to it.
pub(crate) fn is_buried(db: &Connection, number: u64) -> rusqlite::Result<bool> {
    tombstone(db, number).map(|stone| stone.is_some())
}

/// The tombstone of a session. Replicas that were never opened by this version have none.
fn tombstone(db: &Connection, number: u64) -> rusqlite::Result<Option<Tombstone>> {
    if !has_table(db)? {
        return Ok(None);
    }
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    db.prepare_cached(
        "SELECT number, deleted_us, policy, events, head FROM tombstones WHERE number = ?1",
    )?
    .query_row([number], from_row)
    .optional()
}

fn has_table(db: &Connection) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'tombstones'")?
        .exists([])
}

fn from_row(r: &rusqlite::Row<'_>) -> rusqlite::Result<Tombstone> {
    let head: Vec<u8> = r.get(4)?;
    Ok(Tombstone {
        number: r.get::<_, i64>(0)?.max(0).unsigned_abs(),
        deleted_us: r.get(1)?,
        policy: r.get(2)?,
        events: r.get::<_, i64>(3)?.max(0).unsigned_abs(),
        head: hash_of(&head).ok_or(rusqlite::Error::InvalidQuery)?,
    })
}

/// All tombstones, by number.
pub(super) fn all(db: &Connection) -> rusqlite::Result<Vec<Tombstone>> {
    if !has_table(db)? {
        return Ok(Vec::new());
    }
    db.prepare("SELECT number, deleted_us, policy, events, head FROM tombstones ORDER BY number")?
        .query_map([], from_row)?
        .collect()
}

impl Reader {
    /// The tombstone of a session.
    pub fn tombstone(&self, number: u64) -> Result<Option<Tombstone>, RecordError> {
        tombstone(&self.db, number).map_err(sql("read a tombstone"))
    }

    /// All tombstones, by number.
    pub fn tombstones(&self) -> Result<Vec<Tombstone>, RecordError> {
        all(&self.db).map_err(sql("read tombstones"))
    }

    /// Reads from here on what stands now, whatever is deleted meanwhile.
    pub fn pin(&self) -> Result<(), RecordError> {
        // A transaction begins to see with its first read.
        self.db
            .execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1;")
            .map_err(sql("begin to read"))
    }
}

impl Store {
    /// Makes what a replica has beside a host's store. Deleted contents are overwritten, so that
    /// they are gone from the file as well.
    pub(super) fn prepare_tombstones(&self) -> Result<(), RecordError> {
        self.db
            .execute_batch("PRAGMA secure_delete = ON;")
            .and_then(|()| self.db.execute_batch(TABLE))
            .map_err(sql("prepare a replica"))
    }

    /// The tombstone of a session.
    pub fn tombstone(&self, number: u64) -> Result<Option<Tombstone>, RecordError> {
        tombstone(&self.db, number).map_err(sql("read a tombstone"))
    }

    /// Where a session with a tombstone stood.
    pub(super) fn buried_head(&self, number: u64) -> Result<Option<SessionHead>, RecordError> {
        let Some(stone) = self.tombstone(number)? else { return Ok(None) };
        let id = self.summary_of(number)?.and_then(|s| ulid::Ulid::from_string(&s.id).ok());
        let id = id.ok_or_else(|| {
            RecordError::Contents(format!("session {number} has a tombstone and no row"))
        })?;
        Ok(Some(SessionHead { id, seq: stone.events, hash: stone.head, sealed: true }))
    }

    /// Writes tombstones for sealed sessions, all or none, before any of their events go. A
    /// session that has one keeps it. Those that are not sealed here are left out: the numbers
    /// that have a tombstone afterwards come back.
    pub fn bury(&self, all: &[Burial]) -> Result<Vec<u64>, RecordError> {
        let write = || -> rusqlite::Result<Vec<u64>> {
            let mut buried = Vec::with_capacity(all.len());
            for burial in all {
                let number = burial.number as i64;
                let range = [event_id(burial.number, 0), event_id(burial.number, MAX_SEQ)];
                self.db
                    .prepare_cached(
                        "INSERT OR IGNORE INTO tombstones (number, deleted_us, policy, events, head) \
                         SELECT s.number, ?4, ?5, e.id & ?6, e.hash FROM sessions s JOIN events e \
                         ON e.id = (SELECT max(id) FROM events WHERE id BETWEEN ?2 AND ?3) \
                         WHERE s.number = ?1 AND s.seal IS NOT NULL",
                    )?
                    .execute(params![
                        number,
                        range[0],
                        range[1],
                        burial.deleted_us,
                        burial.policy,
                        MAX_SEQ as i64
                    ])?;
                let there = self
                    .db
                    .prepare_cached("SELECT 1 FROM tombstones WHERE number = ?1")?
                    .exists([number])?;
                if there {
                    buried.push(burial.number);
                }
            }
            self.db.execute_batch("COMMIT")?;
            Ok(buried)
        };
        self.begin()?;
        let result = write().map_err(sql("write tombstones"));
        if result.is_err() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        result
    }

    /// Lays a tombstone that another replica of the same host has, inside the batch that is under
    /// way. The session's events, if they are here, go with the next [`Store::remove_buried`].
    pub fn lay(
        &mut self,
        summary: &Summary,
        deleted_us: i64,
        policy: &str,
        (events, head): (u64, Hash),
    ) -> Result<(), RecordError> {
        self.forget_open(summary.number);
        let write = || -> rusqlite::Result<()> {
            summary.save(&self.db)?;
            self.db
                .prepare_cached(
                    "INSERT OR IGNORE INTO tombstones (number, deleted_us, policy, events, head) \
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    summary.number as i64,
                    deleted_us,
                    policy,
                    events as i64,
                    &head[..]
                ])?;
            Ok(())
        };
        write().map_err(sql("lay a tombstone"))
    }

    /// Sessions with a tombstone of which something may remain.
    pub fn remaining(&self) -> Result<Vec<u64>, RecordError> {
        let read = || -> rusqlite::Result<Vec<u64>> {
            self.db
                .prepare_cached("SELECT number FROM tombstones WHERE remains = 1")?
                .query_map([], |r| r.get::<_, i64>(0).map(|n| n.max(0).unsigned_abs()))?
                .collect()
        };
        read().map_err(sql("look for what is to be deleted"))
    }

    /// Deletes some events of sessions with a tombstone, in one transaction of limited size.
    pub fn remove_buried(&self, most_events: u64, most_bytes: u64) -> Result<Removed, RecordError> {
        let write = || -> rusqlite::Result<Removed> {
            let mut removed = Removed::default();
            while removed.events < most_events && removed.bytes < most_bytes {
                let next: Option<i64> = self
                    .db
                    .prepare_cached("SELECT min(number) FROM tombstones WHERE remains = 1")?
                    .query_row([], |r| r.get(0))?;
                let Some(number) = next else {
                    removed.finished = true;
                    break;
                };
                if !self.remove_some(number, most_events, most_bytes, &mut removed)? {
                    self.db
                        .prepare_cached("UPDATE tombstones SET remains = 0 WHERE number = ?1")?
                        .execute([number])?;
                }
            }
            self.db.execute_batch("COMMIT")?;
            Ok(removed)
        };
        self.begin()?;
        let result = write().map_err(sql("delete events"));
        if result.is_err() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        result
    }

    /// The first events of one session; whether there may be more.
    fn remove_some(
        &self,
        number: i64,
        most_events: u64,
        most_bytes: u64,
        removed: &mut Removed,
    ) -> rusqlite::Result<bool> {
        let number = number.max(0).unsigned_abs();
        let range = [event_id(number, 0), event_id(number, MAX_SEQ)];
        let mut last = None;
        {
            let mut s = self.db.prepare_cached(
                "SELECT id, octet_length(body) + coalesce(octet_length(data), 0) FROM events \
                 WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
            )?;
            let mut rows = s.query(range)?;
            while removed.events < most_events && removed.bytes < most_bytes {
                let Some(row) = rows.next()? else { break };
                last = Some(row.get::<_, i64>(0)?);
                removed.events += 1;
                removed.bytes += row.get::<_, i64>(1)?.max(0).unsigned_abs();
            }
        }
        self.forget_recorded(number, last)?;
        let Some(last) = last else { return Ok(false) };
        self.db
            .prepare_cached("DELETE FROM events WHERE id BETWEEN ?1 AND ?2")?
            .execute([range[0], last])?;
        Ok(true)
    }

    /// Gives some free pages back to the file system; whether there are more. A replica that was
    /// made before this was thought of keeps its pages, and fills them again.
    pub fn reclaim(&self, pages: u32) -> Result<bool, RecordError> {
        let number = |name: &str| self.db.pragma_query_value(None, name, |r| r.get::<_, i64>(0));
        let step = || -> rusqlite::Result<bool> {
            if number("auto_vacuum")? != 2 {
                return Ok(false);
            }
            self.db.execute_batch(&format!("PRAGMA incremental_vacuum({pages})"))?;
            Ok(number("freelist_count")? > 0)
        };
        step().map_err(sql("give room back"))
    }
}
