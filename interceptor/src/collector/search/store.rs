//! The file: a full-text table without its texts, which document stands for which events, and how
//! far each host is indexed.
//!
//! A document is some events of one session. Its id begins with the moment at which the session
//! opened, so that matches come newest first without being sorted, and an interval of time is an
//! interval of ids. The texts themselves are only in the replicas: to take a document out, they
//! are read there once more. Nor are there places of words: two words that stand side by side are a
//! word of their own, by which a text of many common words is found as fast as a rare one.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};

use super::words::Gathered;
use crate::collector::forward::Cursor;
use crate::record::store::each_body_until;

/// Raised whenever the schema, or what counts as a word, changes: the file is made anew.
const VERSION: i64 = 1;
/// How long a lock is waited for.
const BUSY: Duration = Duration::from_secs(10);
/// Bits of a document's id that count within its moment: 2^22 microseconds, four seconds.
const COUNT: i64 = (1 << 22) - 1;
/// Bytes of words that are sorted in memory before they are written.
const SORTED: i64 = 32 << 20;

const SCHEMA: &str = "
CREATE TABLE docs (
  id      INTEGER PRIMARY KEY,
  session INTEGER NOT NULL,
  behind  INTEGER NOT NULL,
  last    INTEGER NOT NULL
) STRICT;
CREATE INDEX docs_session ON docs (session);
-- Documents for which their moment had no room: candidates of every search.
CREATE TABLE unplaced (
  session INTEGER NOT NULL,
  behind  INTEGER NOT NULL,
  last    INTEGER NOT NULL,
  PRIMARY KEY (session, behind)
) STRICT, WITHOUT ROWID;
CREATE TABLE positions (
  host   INTEGER PRIMARY KEY,
  cursor TEXT NOT NULL,
  passed INTEGER NOT NULL
) STRICT;
CREATE VIRTUAL TABLE words USING fts5 (text, content = '', columnsize = 0, detail = none,
  tokenize = 'ascii');
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);";

/// How far each host is indexed.
pub type Cursors = BTreeMap<i64, Cursor>;

/// Some events of a session: those behind one, up to another.
pub type Span = (u64, u64);

/// Some events that become a document.
pub struct Document {
    /// Id of the session.
    pub session: i64,
    /// When it opened.
    pub opened_us: i64,
    /// Its events.
    pub span: Span,
    /// Their words.
    pub words: String,
}

/// Sessions that may have what is looked for.
#[derive(Debug, Default)]
pub struct Candidates {
    /// With the events in which it may be.
    pub sessions: BTreeMap<i64, Vec<Span>>,
    /// All that opened at this time or later were looked at; none when that is all there is.
    pub since_us: Option<i64>,
}

/// Whether the file is damaged, so that it must be made anew.
pub fn is_damaged(e: &rusqlite::Error) -> bool {
    matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// First id of those that share a document's moment.
fn floor(opened_us: i64) -> i64 {
    opened_us & !COUNT
}

fn ceiling(opened_us: i64) -> i64 {
    opened_us | COUNT
}

/// Opens the file to write; nothing when it is of another version.
pub fn open(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY)?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON; \
         PRAGMA trusted_schema = OFF; PRAGMA cache_size = -16384; \
         PRAGMA journal_size_limit = 67108864;",
    )?;
    let version: i64 = db.pragma_query_value(None, "user_version", |r| r.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0))?;
    if version != VERSION && (version, tables) != (0, 0) {
        return Ok(None);
    }
    if version == 0 {
        let step = db.unchecked_transaction()?;
        step.execute_batch(SCHEMA)?;
        step.pragma_update(None, "user_version", VERSION)?;
        step.commit()?;
    }
    db.execute("INSERT INTO words (words, rank) VALUES ('hashsize', ?1)", [SORTED])?;
    Ok(Some(db))
}

/// Opens it to read.
pub fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    db.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cache_size = -16384;",
    )?;
    Ok(db)
}

/// How far all hosts are indexed.
pub fn cursors(db: &Connection) -> rusqlite::Result<Cursors> {
    let mut s = db.prepare("SELECT host, cursor, passed FROM positions")?;
    let mut rows = s.query([])?;
    let mut all = Cursors::new();
    while let Some(row) = rows.next()? {
        let (text, passed): (String, i64) = (row.get(1)?, row.get(2)?);
        // One that cannot be read begins anew: what is indexed twice is found once.
        let cursor = Cursor::read(&text, passed).unwrap_or_default();
        all.insert(row.get(0)?, cursor);
    }
    Ok(all)
}

/// Notes how far a host is indexed, inside the caller's transaction.
pub fn note(db: &Connection, host: i64, cursor: &Cursor) -> rusqlite::Result<()> {
    let (text, passed) = cursor.write();
    db.prepare_cached(
        "INSERT OR REPLACE INTO positions (host, cursor, passed) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![host, text, passed])
    .map(drop)
}

/// Adds documents, inside the caller's transaction; how many did not find room.
pub fn add(db: &Connection, mut all: Vec<Document>) -> rusqlite::Result<usize> {
    // In the order of their ids, which is how the full-text table takes them together.
    all.sort_by_key(|d| floor(d.opened_us));
    let mut full = 0;
    let mut last: Option<i64> = None;
    for d in all {
        let (from, until) = (floor(d.opened_us), ceiling(d.opened_us));
        let id = match last.filter(|last| floor(*last) == from) {
            Some(last) => last.checked_add(1),
            None => {
                let newest: Option<i64> = db
                    .prepare_cached("SELECT max(id) FROM docs WHERE id BETWEEN ?1 AND ?2")?
                    .query_row([from, until], |r| r.get(0))?;
                newest.map_or(Some(from), |newest| newest.checked_add(1))
            }
        };
        let span = [d.session, signed(d.span.0), signed(d.span.1)];
        let Some(id) = id.filter(|id| *id <= until) else {
            db.prepare_cached("INSERT OR REPLACE INTO unplaced VALUES (?1, ?2, ?3)")?
                .execute(span)?;
            full += 1;
            continue;
        };
        last = Some(id);
        db.prepare_cached("INSERT INTO docs (session, behind, last, id) VALUES (?1, ?2, ?3, ?4)")?
            .execute([span[0], span[1], span[2], id])?;
        db.prepare_cached("INSERT INTO words (rowid, text) VALUES (?1, ?2)")?
            .execute(params![id, d.words])?;
    }
    Ok(full)
}

/// Whether documents of a session stand at another time than it says now that it opened.
pub fn has_moved(db: &Connection, session: i64, opened_us: i64) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM docs WHERE session = ?1 AND id NOT BETWEEN ?2 AND ?3")?
        .exists([session, floor(opened_us), ceiling(opened_us)])
}

/// Takes the documents of a session out, inside the caller's transaction; how many. Their words
/// are read from its replica.
pub fn remove(
    db: &Connection,
    replica: &Connection,
    session: i64,
    number: u64,
) -> rusqlite::Result<usize> {
    let docs: Vec<(i64, i64, i64)> = db
        .prepare_cached("SELECT id, behind, last FROM docs WHERE session = ?1 ORDER BY id")?
        .query_map([session], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    db.prepare_cached("DELETE FROM unplaced WHERE session = ?1")?.execute([session])?;
    for (id, behind, last) in &docs {
        let (words, seen) = words(replica, number, (unsigned(*behind), unsigned(*last)))?;
        if seen != unsigned(*last) {
            // What it had cannot be told any more, so it cannot be taken out either.
            return Err(rusqlite::Error::QueryReturnedNoRows);
        }
        db.prepare_cached("INSERT INTO words (words, rowid, text) VALUES ('delete', ?1, ?2)")?
            .execute(params![id, words])?;
        db.prepare_cached("DELETE FROM docs WHERE id = ?1")?.execute([id])?;
    }
    Ok(docs.len())
}

/// The words of some events, and the last event that there was.
fn words(replica: &Connection, number: u64, span: Span) -> rusqlite::Result<(String, u64)> {
    let (mut gathered, mut seen) = (Gathered::default(), span.0);
    each_body_until(replica, number, span.0, |e| {
        if e.seq <= span.1 {
            gathered.event(e.body);
            seen = e.seq;
        }
        e.seq < span.1
    })?;
    Ok((gathered.into_words(), seen))
}

/// Documents that had no room, at most so many.
pub fn unplaced(db: &Connection, most: usize) -> rusqlite::Result<Vec<(i64, Span)>> {
    db.prepare_cached("SELECT session, behind, last FROM unplaced LIMIT ?1")?
        .query_map([signed(most as u64)], |r| {
            Ok((r.get(0)?, (unsigned(r.get(1)?), unsigned(r.get(2)?))))
        })?
        .collect()
}

/// The newest sessions that fit and opened before `below_us` and not before `since_us`: about so
/// many, always all of one moment, and only those of a stretch of time behind the newest document,
/// so that what fits nowhere takes no longer than that stretch.
pub fn candidates(
    db: &Connection,
    expression: &str,
    (since_us, below_us): (i64, i64),
    stretch_us: i64,
    most: usize,
) -> rusqlite::Result<Candidates> {
    let mut found = Candidates::default();
    let Some(last) = below_us.checked_sub(1) else { return Ok(found) };
    let ends: (Option<i64>, Option<i64>) = db
        .prepare_cached(
            "SELECT (SELECT min(id) FROM docs), (SELECT max(id) FROM docs WHERE id <= ?1)",
        )?
        .query_row([ceiling(last)], |r| Ok((r.get(0)?, r.get(1)?)))?;
    let (Some(oldest), Some(newest)) = ends else { return Ok(found) };
    let (first, stretch) = (floor(since_us.max(oldest)), floor(newest.saturating_sub(stretch_us)));
    let mut s = db.prepare_cached(
        "SELECT w.rowid, d.session, d.behind, d.last FROM words w CROSS JOIN docs d \
         ON d.id = w.rowid WHERE words MATCH ?1 AND w.rowid BETWEEN ?2 AND ?3 \
         ORDER BY w.rowid DESC",
    )?;
    let mut rows = s.query(params![expression, first.max(stretch), newest])?;
    let mut moment = i64::MAX;
    while let Some(row) = rows.next()? {
        let at = floor(row.get(0)?);
        if at != moment && found.sessions.len() >= most {
            found.since_us = Some(moment);
            return Ok(found);
        }
        moment = at;
        let span = (unsigned(row.get(2)?), unsigned(row.get(3)?));
        found.sessions.entry(row.get(1)?).or_default().push(span);
    }
    found.since_us = (stretch > first).then_some(stretch);
    Ok(found)
}

/// Which of some sessions may have what is looked for, and where.
pub fn among(
    db: &Connection,
    expression: &str,
    sessions: &[i64],
) -> rusqlite::Result<BTreeMap<i64, Vec<Span>>> {
    let mut found: BTreeMap<i64, Vec<Span>> = BTreeMap::new();
    let mut docs =
        db.prepare_cached("SELECT id, behind, last FROM docs WHERE session = ?1 ORDER BY id")?;
    let mut fits = db.prepare_cached("SELECT 1 FROM words WHERE words MATCH ?1 AND rowid = ?2")?;
    for session in sessions {
        let mut rows = docs.query([session])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let there: Option<i64> =
                fits.query_row(params![expression, id], |r| r.get(0)).optional()?;
            if there.is_some() {
                let span = (unsigned(row.get(1)?), unsigned(row.get(2)?));
                found.entry(*session).or_default().push(span);
            }
        }
    }
    Ok(found)
}

fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
