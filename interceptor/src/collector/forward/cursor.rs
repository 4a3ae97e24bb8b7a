//! How far a forward is with one host's events.
//!
//! Events of a host have no order of their own across sessions: many grow at a time. So a cursor
//! is, for each session that is not through, how many of its events were delivered, and the
//! numbers of those that are through, as ranges. Its size follows the sessions that run, not
//! those that were.

use std::collections::BTreeMap;

use crate::collector::db::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::config::Forward;
use crate::collector::error::CollectorError;
use crate::record::now_us;

/// How far a forward is with one host's events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Sessions that are through: first and last number, in order, apart from each other.
    done: Vec<(u64, u64)>,
    /// Delivered events of other sessions.
    open: BTreeMap<u64, u64>,
    /// Events in all that lie behind it.
    #[serde(skip)]
    passed: u64,
}

impl Cursor {
    /// Events of a session that lie behind it.
    pub fn events(&self, number: u64) -> u64 {
        self.open.get(&number).copied().unwrap_or(0)
    }

    /// Whether the first events of a session, so many, lie behind it.
    pub fn is_past(&self, number: u64, events: u64) -> bool {
        self.done.iter().any(|(first, last)| (*first..=*last).contains(&number))
            || self.events(number) >= events
    }

    /// The events of a session up to this one lie behind it.
    pub fn advance(&mut self, number: u64, seq: u64) {
        let before = self.open.insert(number, seq).unwrap_or(0);
        self.passed += seq.saturating_sub(before);
    }

    /// Nothing comes any more of the sessions with these numbers.
    pub fn finish(&mut self, first: u64, last: u64) {
        self.open.retain(|number, _| !(first..=last).contains(number));
        // Those that it touches or overlaps become one with it.
        let begin = self.done.partition_point(|(_, end)| end.saturating_add(1) < first);
        let end = self.done.partition_point(|(start, _)| *start <= last.saturating_add(1));
        let (mut first, mut last) = (first, last);
        if begin < end {
            first = first.min(self.done[begin].0);
            last = last.max(self.done[end - 1].1);
        }
        self.done.splice(begin..end, [(first, last)]);
    }

    /// Numbers of sessions that are not through: first and last, in order.
    pub fn rest(&self) -> Vec<(u64, u64)> {
        let mut from = 1;
        let mut rest = Vec::new();
        for (first, last) in &self.done {
            if from < *first {
                rest.push((from, first - 1));
            }
            from = last.saturating_add(1);
        }
        rest.push((from, u64::from(u32::MAX)));
        rest
    }

    /// Events in all that lie behind it.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// As text and the events behind it, to be kept somewhere.
    pub fn write(&self) -> (String, i64) {
        let text = serde_json::to_string(self).unwrap_or_default();
        (text, i64::try_from(self.passed).unwrap_or(i64::MAX))
    }

    /// Reads what [`Self::write`] wrote.
    pub fn read(text: &str, passed: i64) -> Option<Self> {
        let mut cursor: Self = serde_json::from_str(text).ok()?;
        cursor.passed = u64::try_from(passed).unwrap_or(0);
        Some(cursor)
    }

    /// Reads the cursor of a forward at a host; at the beginning when there is none.
    pub fn load(db: &Connection, forward: &str, host: i64) -> Result<Self, CollectorError> {
        let row: Option<(String, i64)> = db
            .prepare_cached(
                "SELECT cursor, passed FROM forward_cursors WHERE forward = ?1 AND host = ?2",
            )
            .and_then(|mut s| {
                s.query_row(params![forward, host], |r| Ok((r.get(0)?, r.get(1)?))).optional()
            })
            .map_err(CollectorError::db("read a forward's cursor"))?;
        let Some((text, passed)) = row else { return Ok(Self::default()) };
        let mut cursor: Self = serde_json::from_str(&text).map_err(|e| {
            CollectorError::Key(format!(
                "the cursor of forward {forward:?} at host {host} cannot be read ({e}): give the \
                 forward another name, with from = \"start\""
            ))
        })?;
        cursor.passed = u64::try_from(passed).unwrap_or(0);
        Ok(cursor)
    }

    /// Writes it, inside the caller's transaction.
    pub fn save(&self, db: &Connection, forward: &str, host: i64) -> Result<(), CollectorError> {
        let text = serde_json::to_string(self)
            .map_err(|e| CollectorError::Key(format!("a cursor cannot be written: {e}")))?;
        let passed = i64::try_from(self.passed).unwrap_or(i64::MAX);
        db.prepare_cached(
            "INSERT INTO forward_cursors (forward, host, cursor, passed) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (forward, host) DO UPDATE SET cursor = ?3, passed = ?4 \
             WHERE forward_cursors.passed <= ?4",
        )
        .and_then(|mut s| s.execute(params![forward, host, text, passed]))
        .map(drop)
        .map_err(CollectorError::db("move a forward's cursor"))
    }
}

/// Whether a forward was begun, by this collector or one before.
pub fn is_begun(db: &Connection, forward: &str) -> Result<bool, CollectorError> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM forwards WHERE name = ?1)")
        .and_then(|mut s| s.query_row([forward], |r| r.get(0)))
        .map_err(CollectorError::db("look for a forward"))
}

/// Begins a forward: at these cursors, and with other hosts at their first event.
pub fn begin(
    db: &Connection,
    forward: &str,
    cursors: &[(i64, Cursor)],
) -> Result<(), CollectorError> {
    for (host, cursor) in cursors {
        cursor.save(db, forward, *host)?;
    }
    db.execute(
        "INSERT INTO forwards (name, begun_us) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        params![forward, now_us()],
    )
    .map(drop)
    .map_err(CollectorError::db("begin a forward"))
}

/// All hosts: id and fingerprint.
pub fn hosts(db: &Connection) -> Result<Vec<(i64, String)>, CollectorError> {
    db.prepare_cached("SELECT id, fingerprint FROM hosts ORDER BY id")
        .and_then(|mut s| s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
        .map_err(CollectorError::db("list hosts"))
}

/// Hosts of which a forward has not delivered everything: id and fingerprint.
pub fn behind(db: &Connection, forward: &str) -> Result<Vec<(i64, String)>, CollectorError> {
    db.prepare_cached(
        "SELECT h.id, h.fingerprint FROM hosts h \
         LEFT JOIN forward_cursors c ON c.forward = ?1 AND c.host = h.id \
         WHERE h.events > coalesce(c.passed, 0) ORDER BY h.id",
    )
    .and_then(|mut s| s.query_map([forward], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
    .map_err(CollectorError::db("look for what is to be forwarded"))
}

/// How far forwards are with a host's events; one that has not begun is at their beginning.
pub fn of(db: &Connection, forwards: &[Forward], host: i64) -> Result<Vec<Cursor>, CollectorError> {
    forwards.iter().map(|forward| Cursor::load(db, &forward.name, host)).collect()
}

/// Events that a forward has not delivered; none before it was begun.
pub fn waiting(db: &Connection, forward: &str) -> Result<i64, CollectorError> {
    db.prepare_cached(
        "SELECT CAST(coalesce(sum(CASE WHEN h.events > coalesce(c.passed, 0) \
         THEN h.events - coalesce(c.passed, 0) ELSE 0 END), 0) AS BIGINT) FROM hosts h \
         LEFT JOIN forward_cursors c ON c.forward = ?1 AND c.host = h.id \
         WHERE EXISTS (SELECT 1 FROM forwards WHERE name = ?1)",
    )
    .and_then(|mut s| s.query_row([forward], |r| r.get(0)))
    .map_err(CollectorError::db("count what is to be forwarded"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sessions_end_in_any_order_and_the_cursor_stays_small() {
        let mut cursor = Cursor::default();
        for number in [2, 1, 4, 7, 3, 5] {
            cursor.advance(number, 10);
            assert_eq!(cursor.events(number), 10);
            cursor.finish(number, number);
        }
        assert_eq!(cursor.done, [(1, 5), (7, 7)]);
        assert_eq!(cursor.passed, 60);
        assert_eq!(cursor.rest(), [(6, 6), (8, u64::from(u32::MAX))]);
        cursor.advance(6, 3);
        cursor.advance(6, 5);
        assert_eq!((cursor.passed, cursor.events(6)), (65, 5));
        // Again, and over what is there.
        cursor.finish(7, 7);
        cursor.finish(3, 6);
        assert_eq!(cursor.done, [(1, 7)]);
        assert!(cursor.open.is_empty());
        cursor.finish(20, 30);
        cursor.finish(10, 12);
        cursor.finish(9, 40);
        assert_eq!(cursor.done, [(1, 7), (9, 40)]);
    }

    #[test]
    fn it_comes_back_as_it_was_written() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("../migrations/002-forwards.sql")).unwrap();
        assert_eq!(Cursor::load(&db, "siem", 1).unwrap(), Cursor::default());
        let mut cursor = Cursor::default();
        cursor.finish(1, 4);
        cursor.advance(5, 7);
        cursor.advance(9, 1);
        cursor.save(&db, "siem", 1).unwrap();
        assert_eq!(Cursor::load(&db, "siem", 1).unwrap(), cursor);
        assert_eq!(Cursor::load(&db, "siem", 2).unwrap(), Cursor::default());
        assert_eq!(Cursor::load(&db, "other", 1).unwrap(), Cursor::default());
    }
}
