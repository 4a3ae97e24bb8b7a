//! What hosts shipped, in a PostgreSQL database that several collectors share.
//!
//! Of each host the database has one sequence of rows, its feed: the events, ledger entries and
//! checkpoints that a collector accepted, in that order, and what retention deleted. A collector's
//! replica of the host is made from it, and remembers how far; so any collector may take the host's
//! next batch, and a replica that is lost is made anew.
//!
//! Whoever appends holds the host's row in `feed_heads` until the transaction ends, has a replica
//! that stands at the feed's end, and commits here before its replica does. A replica that is ahead
//! of the feed, or that followed rows which are there no more, belongs to a database that was put
//! back: it is made anew too.
//!
//! Of a session whose attachments were moved into objects, rows with the bodies stand in place of
//! its events: what is large leaves the database, and a replica is made without any object.
//!
//! What this module must never do: append for a replica that is not at the end, or bring back an
//! event that retention deleted.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::db::{self, Connection, OptionalExtension, params};
use super::error::CollectorError;
use super::store::Server;
use crate::record::Summary;

/// Bytes of bodies that are read at a time.
const PORTION_BYTES: i64 = 16 << 20;
/// Rows that are read at a time.
const PORTION_ROWS: i64 = 1_000;
/// Connections at a time.
const MOST: usize = 16;
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that are kept open.
const IDLE: usize = 4;

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing any more: retention deleted it, or what it held stands in later rows.
    Emptied,
    /// Frames of events, all of one session.
    Events,
    /// Frames of ledger entries and checkpoints.
    Ledger,
    /// Where the host's ledger stood at its first contact.
    Began,
    /// Sessions that retention deleted, as JSON of [`Stone`]s.
    Stones,
    /// A part of a session whose attachments are in objects, as [`Recorded`]: it stands in place of
    /// its events.
    ///
    /// [`Recorded`]: crate::record::recordings::Recorded
    Recorded,
}

impl Kind {
    fn number(self) -> i64 {
        match self {
            Self::Emptied => 0,
            Self::Events => 1,
            Self::Ledger => 2,
            Self::Began => 3,
            Self::Stones => 4,
            Self::Recorded => 5,
        }
    }

    fn of(number: i64) -> db::Result<Self> {
        let all =
            [Self::Emptied, Self::Events, Self::Ledger, Self::Began, Self::Stones, Self::Recorded];
        all.into_iter().find(|k| k.number() == number).ok_or(db::Error::Contents)
    }
}

/// A session that retention deleted: all that a replica keeps of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stone {
    /// Its row.
    pub summary: Summary,
    /// When it was decided; microseconds since the Unix epoch.
    pub deleted_us: i64,
    /// By which rule, in words.
    pub policy: String,
    /// Events that it had.
    pub events: u64,
    /// Hash of the last one, in hexadecimal.
    pub head: String,
}

/// Where a feed ends, or how far a replica followed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark {
    /// Rows so far.
    pub at: i64,
    /// Drawn for the last one: a database that was put back has another there.
    pub mark: i64,
}

/// A frame of a batch: the session of an event, and where in the batch it is.
pub type FramePlace = (Option<u64>, Range<usize>);

/// A row.
#[derive(Debug)]
pub struct Row {
    /// Its place and its mark.
    pub mark: Mark,
    /// What it holds.
    pub kind: Kind,
    /// That.
    pub body: Vec<u8>,
}

/// The feeds of all hosts.
pub struct Feed {
    server: Server,
    idle: Mutex<Vec<Connection>>,
    /// Connections that are in use; whoever wants one more than [`MOST`] waits.
    used: Mutex<usize>,
    freed: Condvar,
}

/// A connection, and its place among those that are in use.
struct Used<'f> {
    feed: &'f Feed,
    db: Option<Connection>,
}

impl Used<'_> {
    fn db(&self) -> Result<&Connection, CollectorError> {
        self.db.as_ref().ok_or(CollectorError::Stopped)
    }

    /// It is in no transaction any more.
    fn give_back(mut self) {
        if let Some(db) = self.db.take() {
            let mut idle = self.feed.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE {
                idle.push(db);
            }
        }
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        let mut used = self.feed.used.lock().unwrap_or_else(PoisonError::into_inner);
        *used = used.saturating_sub(1);
        self.feed.freed.notify_one();
    }
}

impl Feed {
    /// In the database of `[store]`, whose tables are there.
    pub fn new(server: Server) -> Self {
        Self { server, idle: Mutex::default(), used: Mutex::default(), freed: Condvar::new() }
    }

    /// A place among the connections that are in use, still without one.
    fn place(&self) -> Result<Used<'_>, CollectorError> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.freed.wait_timeout_while(used, PATIENCE, |used| *used >= MOST);
        let (mut used, waited) = wait.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return Err(CollectorError::Stopped);
        }
        *used += 1;
        drop(used);
        // From here on the place is given back, whatever happens.
        Ok(Used { feed: self, db: None })
    }

    /// Begins something, on a connection that was kept when there is one. That the server ended a
    /// kept one meanwhile shows only at its first statement: then it is begun again on a new one.
    /// So `start` must be harmless when it is begun twice: a read, or a transaction up to where
    /// nothing of it can be committed yet.
    fn begin<T>(
        &self,
        action: &'static str,
        start: impl Fn(&Connection) -> db::Result<T>,
    ) -> Result<(Used<'_>, T), CollectorError> {
        let mut used = self.place()?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut begun = kept.map(|db| (start(&db), db));
        if begun.as_ref().is_some_and(|(_, db)| db.is_closed()) {
            begun = None;
            // As a rule the others are gone as well.
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let (result, db) = match begun {
            Some(begun) => begun,
            None => {
                let db = db::connect(&self.server);
                let db = db.map_err(CollectorError::db("reach the database of [store]"))?;
                (start(&db), db)
            }
        };
        if result.is_ok() || db.execute_batch("ROLLBACK").is_ok() {
            used.db = Some(db);
        }
        match result {
            Ok(value) => Ok((used, value)),
            Err(e) => {
                used.give_back();
                Err(CollectorError::db(action)(e))
            }
        }
    }

    /// Reads.
    fn with<T>(
        &self,
        action: &'static str,
        read: impl Fn(&Connection) -> db::Result<T>,
    ) -> Result<T, CollectorError> {
        let (used, result) = self.begin(action, read)?;
        used.give_back();
        Ok(result)
    }

    /// Where every feed ends. Blocks, as all that follows.
    pub fn ends(&self) -> Result<Vec<(i64, Mark)>, CollectorError> {
        self.with("read where feeds end", |db| {
            // Those below zero are nobody's yet: an import makes them.
            db.prepare_cached("SELECT host, at, mark FROM feed_heads WHERE host > 0")?
                .query_map([], |r| Ok((r.get(0)?, Mark { at: r.get(1)?, mark: r.get(2)? })))?
                .collect()
        })
    }

    /// Whether a replica that stands there followed this feed.
    pub fn knows(&self, host: i64, mark: Mark) -> Result<bool, CollectorError> {
        if mark.at == 0 {
            return Ok(true);
        }
        self.with("read a feed", |db| {
            db.prepare_cached("SELECT 1 FROM feed WHERE host = ?1 AND at = ?2 AND mark = ?3")?
                .exists(params![host, mark.at, mark.mark])
        })
    }

    /// Rows behind a place, as many as memory should hold; none at the end.
    pub fn after(&self, host: i64, at: i64) -> Result<Vec<Row>, CollectorError> {
        self.rows(host, at, None)
    }

    /// The same, of one kind.
    pub fn after_of(&self, host: i64, at: i64, kind: Kind) -> Result<Vec<Row>, CollectorError> {
        self.rows(host, at, Some(kind))
    }

    fn rows(&self, host: i64, at: i64, kind: Option<Kind>) -> Result<Vec<Row>, CollectorError> {
        let kind = kind.map(Kind::number);
        self.with("read a feed", |db| {
            db.prepare_cached(
                "SELECT at, mark, kind, body FROM (SELECT at, mark, kind, body, \
                 sum(octet_length(body)) OVER (ORDER BY at) - octet_length(body) AS before \
                 FROM (SELECT at, mark, kind, body FROM feed WHERE host = ?1 AND at > ?2 \
                 AND kind = coalesce(CAST(?5 AS BIGINT), kind) \
                 ORDER BY at LIMIT ?3) AS next) AS portion WHERE before < ?4 ORDER BY at",
            )?
            .query_map(params![host, at, PORTION_ROWS, PORTION_BYTES, kind], |r| {
                Ok(Row {
                    mark: Mark { at: r.get(0)?, mark: r.get(1)? },
                    kind: Kind::of(r.get(2)?)?,
                    body: r.get(3)?,
                })
            })?
            .collect()
        })
    }

    /// Takes the host's feed: nobody else appends until this ends.
    pub fn lock(&self, host: i64) -> Result<Turn<'_>, CollectorError> {
        let take = |db: &Connection| -> db::Result<Mark> {
            db.execute_batch(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '20s'; \
                 SET LOCAL idle_in_transaction_session_timeout = '60s'",
            )?;
            if let Some(end) = locked(db, host)? {
                return Ok(end);
            }
            db.prepare_cached(
                "INSERT INTO feed_heads (host, at, mark) VALUES (?1, 0, 0) ON CONFLICT DO NOTHING",
            )?
            .execute([host])?;
            locked(db, host)?.ok_or(db::Error::NoRows)
        };
        let (used, end) = self.begin("take a host's turn", take)?;
        Ok(Turn { used: Some(used), host, end })
    }
}

/// Whether a host's feed goes on behind a place, seen in a transaction of the central database;
/// never where there are no feeds.
pub fn goes_on(db: &Connection, host: i64, behind: Mark) -> Result<bool, CollectorError> {
    match db {
        Connection::Sqlite(_) => Ok(false),
        Connection::Postgres(_) => db
            .prepare_cached("SELECT 1 FROM feed_heads WHERE host = ?1 AND at > ?2")
            .and_then(|mut s| s.exists([host, behind.at]))
            .map_err(CollectorError::db("look whether a feed goes on")),
    }
}

/// Where a feed ends, once nobody else appends to it; none before anybody has.
fn locked(db: &Connection, host: i64) -> db::Result<Option<Mark>> {
    db.prepare_cached("SELECT at, mark FROM feed_heads WHERE host = ?1 FOR UPDATE")?
        .query_row([host], |r| Ok(Mark { at: r.get(0)?, mark: r.get(1)? }))
        .optional()
}

/// A host's feed while nobody else appends to it. What was appended stays only with
/// [`Turn::commit`].
pub struct Turn<'f> {
    used: Option<Used<'f>>,
    host: i64,
    end: Mark,
}

impl Turn<'_> {
    /// Where the feed ends, with what this turn appended.
    pub fn end(&self) -> Mark {
        self.end
    }

    fn db(&self) -> Result<&Connection, CollectorError> {
        self.used.as_ref().ok_or(CollectorError::Stopped)?.db()
    }

    /// Appends a row.
    pub fn append(
        &mut self,
        kind: Kind,
        number: Option<u64>,
        body: &[u8],
    ) -> Result<(), CollectorError> {
        let next = Mark { at: self.end.at + 1, mark: rand::random::<i64>() };
        let number = number.map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        self.db()?
            .prepare_cached(
                "INSERT INTO feed (host, at, mark, kind, number, body) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )
            .and_then(|mut s| {
                s.execute(params![self.host, next.at, next.mark, kind.number(), number, body])
            })
            .map_err(CollectorError::db("append to a feed"))?;
        self.end = next;
        Ok(())
    }

    /// Appends frames of a batch, each with the session of an event and its place there: the events
    /// of each session together, and the ledger in its place. What the ledger says is about events
    /// before it.
    pub fn append_frames(
        &mut self,
        batch: &[u8],
        frames: &[FramePlace],
    ) -> Result<(), CollectorError> {
        let mut sessions: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut ledger = Vec::new();
        for (number, place) in frames {
            let frame = batch.get(place.clone()).unwrap_or_default();
            match number {
                Some(number) => {
                    if !ledger.is_empty() {
                        self.append(Kind::Ledger, None, &std::mem::take(&mut ledger))?;
                    }
                    sessions.entry(*number).or_default().extend_from_slice(frame);
                }
                None => {
                    for (number, body) in std::mem::take(&mut sessions) {
                        self.append(Kind::Events, Some(number), &body)?;
                    }
                    ledger.extend_from_slice(frame);
                }
            }
        }
        for (number, body) in sessions {
            self.append(Kind::Events, Some(number), &body)?;
        }
        if !ledger.is_empty() {
            self.append(Kind::Ledger, None, &ledger)?;
        }
        Ok(())
    }

    /// Takes the events of sessions out of the feed.
    pub fn empty(&self, numbers: &[u64]) -> Result<(), CollectorError> {
        for number in numbers {
            let number = i64::try_from(*number).unwrap_or(i64::MAX);
            self.db()?
                .prepare_cached(
                    "UPDATE feed SET kind = 0, body = ''::bytea, number = NULL \
                     WHERE host = ?1 AND number = ?2",
                )
                .and_then(|mut s| s.execute([self.host, number]))
                .map_err(CollectorError::db("empty a feed"))?;
        }
        Ok(())
    }

    /// What was appended is on disk when this returns.
    pub fn commit(mut self) -> Result<Mark, CollectorError> {
        let Some(used) = self.used.take() else { return Err(CollectorError::Stopped) };
        let db = used.db()?;
        db.prepare_cached("UPDATE feed_heads SET at = ?2, mark = ?3 WHERE host = ?1")
            .and_then(|mut s| s.execute([self.host, self.end.at, self.end.mark]))
            .and_then(|_| db.execute_batch("COMMIT"))
            .map_err(CollectorError::db("commit to a feed"))?;
        used.give_back();
        Ok(self.end)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(used) = self.used.take()
            && used.db().is_ok_and(|db| db.execute_batch("ROLLBACK").is_ok())
        {
            used.give_back();
        }
    }
}
