//! Brings what a collector kept in SQLite into the database of `[store]`, once.
//!
//! First every replica becomes its host's feed, each in one transaction, so that any collector of
//! the database makes the same replica from it. Then the tables of `collector.db` follow in one
//! transaction, under the lock that all writers take: with its commit the database is the truth,
//! and before it there is nothing in it that anybody serves from. So an import that was cut off is
//! begun again.
//!
//! Hosts need nothing: the keys, their certificates and where each of them stands stay the same.
//! Replicas stay as well, and follow their feeds from then on.
//!
//! What this module must never do: take a database that something else stands in, take from a
//! `collector.db` that is in use, or leave one behind that could be served from again.

mod feeds;
mod tables;

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::audit::{self, Who};
use super::db::{self, Connection, params};
use super::error::CollectorError;
use super::{Collector, Config, central};

/// What the audit trail says of it.
const WHAT: &str = "store.imported";

/// What was brought over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Hosts, revoked ones too.
    pub hosts: u64,
    /// Sessions, deleted ones too.
    pub sessions: u64,
    /// Events of those that are not deleted.
    pub events: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// It was done before: only the old file was put out of the way now.
    pub before: bool,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'s> {
    /// Events of a host so far.
    Host(&'s str, u64),
    /// Rows of a table so far.
    Table(&'s str, u64),
}

/// Brings everything over. Blocks, for as long as it takes to read and write all records.
///
/// # Errors
/// Where nothing is to be brought, either database is in use, or something cannot be read or
/// written; the database of `[store]` is then as it was, but for feeds that nobody reads.
pub fn run(
    collector: &Collector,
    who: &Who,
    told: &mut dyn FnMut(Step<'_>),
) -> Result<Imported, CollectorError> {
    let state = &collector.config.state;
    let (Some(feed), Some(server)) = (&collector.feed, collector.central.server()) else {
        return Err(CollectorError::Store(
            "is not configured: say in the collector's configuration where the database is".into(),
        ));
    };
    let old = central::open_alone(state)?;
    let new = db::connect(server).map_err(CollectorError::db("reach the database of [store]"))?;
    if imported_before(&new)? {
        drop(old);
        put_away(state)?;
        return Ok(Imported { before: true, ..Imported::default() });
    }
    may_begin(collector, &old, &new)?;
    let mut imported = Imported::default();
    for host in feeds::hosts(&old)? {
        imported.hosts += 1;
        imported.events += feeds::bring(collector, feed, &host, told)?;
    }
    let copy = |db: &Connection| -> Result<(), CollectorError> {
        if !is_empty(db)? {
            return Err(taken());
        }
        for table in tables::ALL {
            let rows = tables::bring(&old, db, table, told)?;
            imported.rows += rows;
            if *table == "sessions" {
                imported.sessions = rows;
            }
        }
        tables::number_on(db)?;
        let target = state.display().to_string();
        let detail = json!({ "hosts": imported.hosts, "sessions": imported.sessions });
        audit::append(db, &audit::Entry { who, what: WHAT, target: &target, detail: &detail })
    };
    in_transaction(&new, copy)?;
    drop(old);
    put_away(state)?;
    Ok(imported)
}

/// Refuses to serve from `[store]` beside a past in SQLite: its hosts would be strangers.
///
/// # Errors
/// Where there is one.
pub fn is_done(config: &Config) -> Result<(), CollectorError> {
    let path = config.state.join(central::FILE);
    if config.store.is_none() || !path.exists() {
        return Ok(());
    }
    Err(CollectorError::Store(format!(
        "is configured, and what this collector kept in {path} is not in it: run `interceptor \
         collector import`, or move that file away if it is to be forgotten",
        path = path.display()
    )))
}

/// Runs a write under the lock of all writers.
fn in_transaction(
    db: &Connection,
    work: impl FnOnce(&Connection) -> Result<(), CollectorError>,
) -> Result<(), CollectorError> {
    let fail = CollectorError::db;
    db.execute_batch(&central::begin_shared()).map_err(fail("begin to write to [store]"))?;
    match work(db) {
        Ok(()) => db.execute_batch("COMMIT").map_err(fail("commit to [store]")),
        Err(e) => {
            let _ = db.execute_batch("ROLLBACK");
            Err(e)
        }
    }
}

/// Refuses what would mix two collectors, and takes away what an import left that was cut off.
fn may_begin(
    collector: &Collector,
    old: &Connection,
    new: &Connection,
) -> Result<(), CollectorError> {
    let moved: i64 = old
        .query_row("SELECT sessions FROM recordings", [], |r| r.get(0))
        .map_err(CollectorError::db("read what was moved into objects"))?;
    if moved > 0 && !collector.recordings.moves() {
        let folder = collector.config.state.join("recordings");
        return Err(CollectorError::Recordings(format!(
            "url must name the place where the recordings of {moved} sessions are: \
             url = \"file://{}\", or where you move that folder, for all collectors alike",
            folder.display()
        )));
    }
    in_transaction(new, |db| {
        if !is_empty(db)? {
            return Err(taken());
        }
        db.execute_batch("TRUNCATE feed, feed_heads")
            .map_err(CollectorError::db("empty the feeds of [store]"))
    })
}

fn taken() -> CollectorError {
    CollectorError::Store(
        "names a database in which hosts, codes or steps of the audit trail stand already: an \
         import needs an empty one"
            .into(),
    )
}

fn is_empty(db: &Connection) -> Result<bool, CollectorError> {
    let any = "SELECT 1 FROM hosts UNION ALL SELECT 1 FROM codes UNION ALL SELECT 1 FROM sessions \
               UNION ALL SELECT 1 FROM leaves UNION ALL SELECT 1 FROM audit LIMIT 1";
    db.prepare_cached(any)
        .and_then(|mut s| s.exists([]))
        .map(|there| !there)
        .map_err(CollectorError::db("look whether the database of [store] is empty"))
}

/// Whether this was done, and only what comes last was not.
fn imported_before(db: &Connection) -> Result<bool, CollectorError> {
    db.prepare_cached("SELECT 1 FROM audit WHERE what = ?1")
        .and_then(|mut s| s.exists(params![WHAT]))
        .map_err(CollectorError::db("read the audit trail"))
}

/// Renames the old files, which are in use no more.
fn put_away(state: &Path) -> Result<(), CollectorError> {
    for end in ["-wal", "-shm", ""] {
        let from = state.join(format!("collector.db{end}"));
        if from.exists() {
            let to = state.join(format!("{}{end}", central::IMPORTED));
            std::fs::rename(&from, to).map_err(|e| CollectorError::io("rename", &from, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
