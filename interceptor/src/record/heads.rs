//! What a store knows of places in its chains: where sessions and the ledger stand, and the
//! hash at an earlier place. For whoever continues a chain that came from elsewhere.

use rusqlite::{Connection, OptionalExtension, params};

use super::RecordError;
use super::chain::Hash;
use super::ledger::{Entry, Epoch, Placed};
use super::reader::Reader;
use super::store::{MAX_SEQ, Store, event_id, hash_of, seq_of};
use super::summary::Summary;

/// Where a session's record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionHead {
    /// The session.
    pub id: ulid::Ulid,
    /// Events it has.
    pub seq: u64,
    /// Hash of the last one.
    pub hash: Hash,
    /// Its seal is in the ledger.
    pub sealed: bool,
}

/// Place in the ledger, session number, and exact bytes of a seal.
pub type PlacedSeal = (u64, u64, String);

fn seals_after(db: &Connection, idx: u64, most: usize) -> Result<Vec<PlacedSeal>, RecordError> {
    db.prepare_cached(
        "SELECT idx, number, body FROM ledger WHERE idx > ?1 AND kind = 'seal' \
         ORDER BY idx LIMIT ?2",
    )
    .and_then(|mut s| {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        s.query_map(params![idx as i64, most], |r| {
            Ok((r.get::<_, i64>(0)? as u64, r.get::<_, i64>(1)? as u64, r.get(2)?))
        })?
        .collect()
    })
    .map_err(RecordError::sqlite("read seals"))
}

impl Reader {
    /// Seals behind a place in the ledger, in order.
    pub fn seals_after(&self, idx: u64, most: usize) -> Result<Vec<PlacedSeal>, RecordError> {
        seals_after(&self.db, idx, most)
    }

    /// The exact bytes of a session's seal, with its place and signature.
    pub fn seal_of(&self, number: u64) -> Result<Option<(u64, String, Vec<u8>)>, RecordError> {
        seal_of(&self.db, number)
    }
}

fn seal_of(db: &Connection, number: u64) -> Result<Option<(u64, String, Vec<u8>)>, RecordError> {
    db.prepare_cached("SELECT idx, body, signature FROM seals WHERE number = ?1")
        .and_then(|mut s| {
            s.query_row([number as i64], |r| Ok((r.get::<_, i64>(0)? as u64, r.get(1)?, r.get(2)?)))
                .optional()
        })
        .map_err(RecordError::sqlite("read a seal"))
}

impl Store {
    /// Where a session stands; `None` when it never had an event.
    pub fn session_head(&self, number: u64) -> Result<Option<SessionHead>, RecordError> {
        let fail = RecordError::sqlite;
        if self.keeps_deletions()
            && let Some(head) = self.buried_head(number)?
        {
            return Ok(Some(head));
        }
        let row: Option<(i64, Vec<u8>)> = self
            .db
            .prepare_cached(
                "SELECT id, hash FROM events WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1",
            )
            .and_then(|mut s| {
                s.query_row([event_id(number, 0), event_id(number, MAX_SEQ)], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })
                .optional()
            })
            .map_err(fail("read a session's last event"))?;
        let Some((id, hash)) = row else { return Ok(None) };
        let summary = Summary::load(&self.db, number).map_err(fail("read a session"))?;
        let known = summary.and_then(|s| Some((ulid::Ulid::from_string(&s.id).ok()?, s.seal)));
        let (Some((session, seal)), Some(hash)) = (known, hash_of(&hash)) else {
            return Err(RecordError::Contents(format!("session {number} has events but no row")));
        };
        Ok(Some(SessionHead { id: session, seq: seq_of(id), hash, sealed: seal.is_some() }))
    }

    /// Hash of an event.
    pub fn event_hash(&self, number: u64, seq: u64) -> Result<Option<Hash>, RecordError> {
        self.db
            .prepare_cached("SELECT hash FROM events WHERE id = ?1")
            .and_then(|mut s| {
                s.query_row([event_id(number, seq)], |r| r.get::<_, Vec<u8>>(0)).optional()
            })
            .map(|h| h.and_then(|h| hash_of(&h)))
            .map_err(RecordError::sqlite("read an event"))
    }

    /// The exact bytes of a ledger entry, and its signature.
    pub fn ledger_entry(&self, idx: u64) -> Result<Option<(String, Vec<u8>)>, RecordError> {
        self.db
            .prepare_cached("SELECT body, signature FROM ledger WHERE idx = ?1")
            .and_then(|mut s| s.query_row([idx as i64], |r| Ok((r.get(0)?, r.get(1)?))).optional())
            .map_err(RecordError::sqlite("read the ledger"))
    }

    /// The exact bytes of a session's seal, with its place and signature.
    pub fn seal_of(&self, number: u64) -> Result<Option<(u64, String, Vec<u8>)>, RecordError> {
        seal_of(&self.db, number)
    }

    /// Seals behind a place in the ledger, in order.
    pub fn seals_after(&self, idx: u64, most: usize) -> Result<Vec<PlacedSeal>, RecordError> {
        seals_after(&self.db, idx, most)
    }

    /// The newest epoch.
    pub fn last_epoch(&self) -> Result<Option<Epoch>, RecordError> {
        let body: Option<String> = self
            .db
            .query_row(
                "SELECT body FROM ledger WHERE kind = 'epoch' ORDER BY idx DESC LIMIT 1",
                [],
                |r| r.get(0),
            )
            .optional()
            .map_err(RecordError::sqlite("read the last epoch"))?;
        let Some(body) = body else { return Ok(None) };
        match serde_json::from_str::<Placed>(&body).map(|p| p.entry) {
            Ok(Entry::Epoch(epoch)) => Ok(Some(epoch)),
            _ => Err(RecordError::Contents("the ledger's last epoch cannot be read".into())),
        }
    }

    /// Whether a session has a row, or is about to.
    pub fn has_session(&self, number: u64) -> Result<bool, RecordError> {
        if self.is_open_here(number) {
            return Ok(true);
        }
        self.db
            .prepare_cached("SELECT 1 FROM sessions WHERE number = ?1")
            .and_then(|mut s| s.exists([number as i64]))
            .map_err(RecordError::sqlite("look for a session"))
    }

    /// Whether a session number is known, by a row or by a seal.
    pub fn knows(&self, number: u64) -> Result<bool, RecordError> {
        if self.has_session(number)? {
            return Ok(true);
        }
        self.db
            .prepare_cached("SELECT 1 FROM ledger WHERE number = ?1")
            .and_then(|mut s| s.exists([number as i64]))
            .map_err(RecordError::sqlite("look for a seal"))
    }

    /// The row of a session as this batch leaves it.
    pub fn summary_of(&self, number: u64) -> Result<Option<Summary>, RecordError> {
        Summary::load(&self.db, number).map_err(RecordError::sqlite("read a session"))
    }

    /// Rows of all sessions, ascending, in portions: those behind a number.
    pub fn summaries_after(&self, number: u64, most: usize) -> Result<Vec<Summary>, RecordError> {
        self.db
            .prepare_cached("SELECT * FROM sessions WHERE number > ?1 ORDER BY number LIMIT ?2")
            .and_then(|mut s| {
                s.query_map(params![number as i64, most as i64], Summary::from_row)?.collect()
            })
            .map_err(RecordError::sqlite("read sessions"))
    }

    /// The newest checkpoint's index and exact bytes, signed or not.
    pub fn newest_checkpoint(&self) -> Result<Option<(u64, String)>, RecordError> {
        self.db
            .query_row("SELECT idx, body FROM checkpoints ORDER BY idx DESC LIMIT 1", [], |r| {
                Ok((r.get::<_, i64>(0)? as u64, r.get(1)?))
            })
            .optional()
            .map_err(RecordError::sqlite("read the last checkpoint"))
    }

    /// Forgets the checkpoints: those that follow do not continue them.
    pub fn forget_checkpoints(&self) -> Result<(), RecordError> {
        self.db
            .execute("DELETE FROM checkpoints", [])
            .map(drop)
            .map_err(RecordError::sqlite("forget old checkpoints"))
    }

    /// Whether the ledger states damage to the journal.
    pub fn has_damage(&self) -> Result<bool, RecordError> {
        self.db
            .prepare("SELECT 1 FROM ledger WHERE kind = 'damage'")
            .and_then(|mut s| s.exists([]))
            .map_err(RecordError::sqlite("look for damage"))
    }

    /// How many events are stored: the sum over the sessions' rows.
    pub fn count_events(&self) -> Result<u64, RecordError> {
        self.db
            .query_row("SELECT coalesce(sum(events), 0) FROM sessions", [], |r| r.get::<_, i64>(0))
            .map(|n| n.max(0) as u64)
            .map_err(RecordError::sqlite("count events"))
    }
}
