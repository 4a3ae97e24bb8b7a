//! Brings what a collector kept in SQLite into the database of `[store]`, once.
//!
//! First every replica becomes its host's feed, each in one transaction, so that any collector of
//! the database makes the same replica from it. These feeds stand under numbers that no host has.
//! Then the tables of `collector.db` follow in one transaction, under the lock that all writers
//! take, and the feeds get their hosts: with its commit the database is the truth, and before it
//! there is nothing in it that anybody serves from. So an import that was cut off is begun again.
//!
//! Hosts need nothing: the keys, their certificates and where each of them stands stay the same.
//! Replicas stay as well, and follow their feeds from then on.
//!
//! What this module must never do: take a database that something else stands in, take from a
//! `collector.db` that is in use, or leave one behind that could be served from again.

mod feeds;
mod tables;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::audit::{self, Who};
use super::db::{self, Connection, OptionalExtension, params};
use super::error::CollectorError;
use super::hosts::{self, Host};
use super::{Collector, Config, central, recordings};

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
    /// Hosts of which not all records could be read: how many events were, of how many.
    pub incomplete: Vec<Incomplete>,
}

/// A host of which not all records could be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Incomplete {
    /// Its name.
    pub host: String,
    /// Events that were brought.
    pub brought: u64,
    /// Events that its sessions have.
    pub of: u64,
}

/// How far `collector.db` is: whether it is still the one that was brought.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stand {
    /// Last step of the audit trail.
    audit: i64,
    /// Hash of it, in hexadecimal.
    hash: String,
    /// Seals in the log.
    leaves: i64,
    /// Events in the index.
    events: i64,
}

impl Stand {
    fn of(old: &Connection) -> Result<Self, CollectorError> {
        let (audit, hash) = audit::newest(old)?;
        let (leaves, events) = old
            .query_row(
                "SELECT (SELECT count(*) FROM leaves), \
                 (SELECT coalesce(sum(events), 0) FROM sessions)",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .map_err(CollectorError::db("read where collector.db stands"))?;
        Ok(Self { audit, hash: crate::record::chain::hex(&hash), leaves, events })
    }
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
    let stand = Stand::of(&old)?;
    if let Some(before) = imported_before(&new)? {
        if before != stand {
            return Err(taken());
        }
        drop(old);
        put_away(state)?;
        return Ok(Imported { before: true, ..Imported::default() });
    }
    may_begin(collector, &old, &new)?;
    let (mut imported, mut made) = (Imported::default(), Vec::new());
    for host in feeds::hosts(&old)? {
        imported.hosts += 1;
        let brought = feeds::bring(collector, feed, &host, told).inspect_err(|error| {
            tracing::error!(host = %host.name, %error, "the records of this host end the import");
        });
        if let Some(feed) = brought? {
            imported.events += feed.events;
            made.push((host, feed));
        }
    }
    in_transaction(&new, |db| {
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
        feeds::give(db, &made)?;
        let target = state.display().to_string();
        let detail =
            json!({ "hosts": imported.hosts, "sessions": imported.sessions, "from": stand });
        audit::append(db, &audit::Entry { who, what: WHAT, target: &target, detail: &detail })?;
        imported.incomplete = incomplete(db, who, &made)?;
        Ok(())
    })?;
    drop(old);
    put_away(state)?;
    Ok(imported)
}

/// Which hosts have records that could not be read; each has a problem from now on.
fn incomplete(
    db: &Connection,
    who: &Who,
    made: &[(Host, feeds::Brought)],
) -> Result<Vec<Incomplete>, CollectorError> {
    let mut all = Vec::new();
    for (host, feeds::Brought { events, of, .. }) in made.iter().filter(|(_, f)| f.events != f.of) {
        let words = format!(
            "reported: {events} of {of} events were brought into the database of [store]; the \
             others cannot be read in the replica of the collector that had them: keep it"
        );
        hosts::set_problem(db, host, who, Some(&words))?;
        all.push(Incomplete { host: host.name.clone(), brought: *events, of: *of });
    }
    Ok(all)
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
    not_twice(&collector.config.state)?;
    let place: String = old
        .query_row("SELECT place FROM recordings", [], |r| r.get(0))
        .map_err(CollectorError::db("read where recordings are"))?;
    if !place.is_empty() {
        if !collector.recordings.moves() {
            return Err(CollectorError::Recordings(format!(
                "url must name the place where recordings were moved to: \
                 url = \"file://{}\", or where you move that folder, for all collectors alike",
                collector.config.state.join("recordings").display()
            )));
        }
        recordings::check_place(&collector.recordings, &place)
            .map_err(CollectorError::Recordings)?;
    }
    in_transaction(new, |db| if is_empty(db)? { feeds::forget(db) } else { Err(taken()) })
}

/// What an import before this one has left is not overwritten.
fn not_twice(state: &Path) -> Result<(), CollectorError> {
    let before = state.join(central::IMPORTED);
    if !before.exists() {
        return Ok(());
    }
    Err(CollectorError::Store(format!(
        "was imported to before, from what is {} now: move that file away first",
        before.display()
    )))
}

fn taken() -> CollectorError {
    CollectorError::Store(
        "names a database in which something stands already: an import needs an empty one".into(),
    )
}

/// Whether nothing stands in any table that a collector fills because somebody asked it to.
fn is_empty(db: &Connection) -> Result<bool, CollectorError> {
    for table in tables::ALL.iter().filter(|t| !tables::begins_with_rows(t)) {
        let there = db
            .prepare(&format!("SELECT 1 FROM {table} LIMIT 1"))
            .and_then(|mut s| s.exists([]))
            .map_err(CollectorError::db("look whether the database of [store] is empty"))?;
        if there {
            return Ok(false);
        }
    }
    Ok(true)
}

/// From where this was done, if it was, and only what comes last was not.
fn imported_before(db: &Connection) -> Result<Option<Stand>, CollectorError> {
    let detail: Option<String> = db
        .prepare_cached("SELECT detail FROM audit WHERE what = ?1 ORDER BY id DESC LIMIT 1")
        .and_then(|mut s| s.query_row(params![WHAT], |r| r.get(0)).optional())
        .map_err(CollectorError::db("read the audit trail"))?;
    let Some(detail) = detail else { return Ok(None) };
    let from = serde_json::from_str::<serde_json::Value>(&detail)
        .ok()
        .and_then(|detail| serde_json::from_value(detail.get("from")?.clone()).ok());
    from.map(Some).ok_or_else(taken)
}

/// Renames the old files, which are in use no more.
fn put_away(state: &Path) -> Result<(), CollectorError> {
    not_twice(state)?;
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
