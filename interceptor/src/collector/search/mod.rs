//! Finding sessions by what was said in them, however many there are: an index of words over the
//! replicas, in a file of its own.
//!
//! `search.db` is derived: whoever deletes it, or brings a version that reads it differently, has
//! it made anew from the replicas, while searches go on more slowly. It is behind what was
//! accepted by moments; what it does not have yet is read in the replicas. It only proposes:
//! every session that is shown was looked at in its replica.
//!
//! What is searched are the texts of events: statements, commands, values, paths, claims,
//! messages, names. Not searched are numbers, names of fields, sums over exact contents, and what
//! terminals printed (attachments).
//!
//! What this module must never do: be the truth, hold acceptance up, keep words of a session that
//! retention deleted, or take a person's text for the full-text table's syntax.

mod follow;
mod page;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
mod words;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rusqlite::Connection;

use super::error::CollectorError;
use super::hosts::Host;
use super::index::session_id;
use super::replica::Replica;
use super::{Collector, forward};
use crate::record::store::open_read_only;
use store::{Cursors, is_damaged};

pub use super::console::find::{Cursor, Found, Page, Wanted};
pub use follow::run;
pub(super) use page::page;
pub use words::Query;

/// Readers that are kept open.
const READERS: usize = 4;

/// Connections to read with, all to the same file.
#[derive(Default)]
struct Readers {
    idle: Vec<Connection>,
    /// Files that were thrown away before.
    thrown: u64,
}

/// The index of words.
pub struct Index {
    path: PathBuf,
    writer: Mutex<Option<Connection>>,
    /// Absent while the file is not open.
    cursors: RwLock<Option<Arc<Cursors>>>,
    readers: Mutex<Readers>,
}

impl Index {
    /// The index below a collector's state directory. Its file is made when it is first written.
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join("search.db"),
            writer: Mutex::default(),
            cursors: RwLock::default(),
            readers: Mutex::default(),
        }
    }

    /// How far hosts are indexed; nothing while the file is not open.
    fn cursors(&self) -> Option<Arc<Cursors>> {
        self.cursors.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, cursors: Option<Arc<Cursors>>) {
        *self.cursors.write().unwrap_or_else(PoisonError::into_inner) = cursors;
    }

    /// One writer at a time does something, and says how far one host is indexed then. A damaged
    /// file is thrown away.
    fn write<T>(
        &self,
        work: impl FnOnce(
            &Connection,
            &Cursors,
        ) -> Result<(T, Option<(i64, forward::Cursor)>), CollectorError>,
    ) -> Result<T, CollectorError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let (db, cursors) = match (writer.take(), self.cursors()) {
            (Some(db), Some(cursors)) => (db, cursors),
            _ => self.open()?,
        };
        match work(&db, &cursors) {
            Ok((result, stands)) => {
                if let Some((host, cursor)) = stands {
                    let mut all = Cursors::clone(&cursors);
                    all.insert(host, cursor);
                    self.set(Some(Arc::new(all)));
                }
                *writer = Some(db);
                Ok(result)
            }
            Err(CollectorError::Database { source: super::db::Error::Sqlite(source), action })
                if is_damaged(&source) =>
            {
                drop(db);
                tracing::error!(error = %source, "the search index is damaged and made anew");
                self.throw_away()?;
                Err(CollectorError::sqlite(action)(source))
            }
            // It is opened anew, from what is on disk.
            Err(error) => Err(error),
        }
    }

    fn open(&self) -> Result<(Connection, Arc<Cursors>), CollectorError> {
        let open = || -> rusqlite::Result<Option<(Connection, Cursors)>> {
            let Some(db) = store::open(&self.path)? else { return Ok(None) };
            let cursors = store::cursors(&db)?;
            Ok(Some((db, cursors)))
        };
        let opened = match open() {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                tracing::info!("the search index is of another version and made anew");
                self.throw_away()?;
                self.made_anew()?
            }
            Err(e) if is_damaged(&e) => {
                tracing::error!(error = %e, "the search index is damaged and made anew");
                self.throw_away()?;
                self.made_anew()?
            }
            Err(e) => return Err(CollectorError::sqlite("open search.db")(e)),
        };
        std::fs::set_permissions(&self.path, Permissions::from_mode(0o600))
            .map_err(|e| CollectorError::io("close to others", &self.path, e))?;
        let cursors = Arc::new(opened.1);
        self.set(Some(Arc::clone(&cursors)));
        Ok((opened.0, cursors))
    }

    fn made_anew(&self) -> Result<(Connection, Cursors), CollectorError> {
        let db = store::open(&self.path).map_err(CollectorError::sqlite("make search.db"))?;
        let made = |db| (db, Cursors::new());
        db.map(made).ok_or_else(|| CollectorError::Key("search.db cannot be made".into()))
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discard(&self) -> Result<(), CollectorError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        *writer = None;
        self.throw_away()
    }

    /// Deletes the file, whose writer is closed and waits; what was in it is read from the
    /// replicas again.
    fn throw_away(&self) -> Result<(), CollectorError> {
        self.set(None);
        let mut readers = self.readers();
        readers.idle.clear();
        readers.thrown += 1;
        for end in ["", "-wal", "-shm"] {
            let mut path = self.path.as_os_str().to_owned();
            path.push(end);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CollectorError::io("delete", Path::new(&path), e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads, on one snapshot; nothing when there is no index, or a damaged one.
    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, CollectorError> {
        if self.cursors().is_none() {
            return Ok(None);
        }
        let (kept, thrown) = {
            let mut readers = self.readers();
            (readers.idle.pop(), readers.thrown)
        };
        let work = || -> rusqlite::Result<(Connection, T)> {
            let db = kept.map_or_else(|| store::open_to_read(&self.path), Ok)?;
            let result = {
                let snapshot = db.unchecked_transaction()?;
                read(&snapshot)?
            };
            Ok((db, result))
        };
        match work() {
            Ok((db, result)) => {
                let mut readers = self.readers();
                if readers.thrown == thrown && readers.idle.len() < READERS {
                    readers.idle.push(db);
                }
                Ok(Some(result))
            }
            Err(e) if is_damaged(&e) => {
                tracing::error!(error = %e, "the search index cannot be read and is made anew");
                self.discard()?;
                Ok(None)
            }
            Err(e) => Err(CollectorError::sqlite("search in search.db")(e)),
        }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    /// Closes the connections that are kept for readers, so that the next search opens its own.
    pub fn let_go(&self) {
        self.readers().idle.clear();
    }

    /// Takes some sessions of a host out, whose events are about to be deleted: their words are
    /// overwritten in the file. When that cannot be done the whole index goes.
    pub(super) fn remove(
        &self,
        state: &Path,
        host: &Host,
        numbers: &[u64],
    ) -> Result<(), CollectorError> {
        if !self.path.exists() {
            return Ok(());
        }
        let dir = Replica::directory(state, &host.fingerprint);
        let removed = self.write(|db, _| {
            let records = open_read_only(&dir)?;
            let fail = || CollectorError::sqlite("take deleted sessions out of search.db");
            let mut some = 0;
            for number in numbers {
                let step = db.unchecked_transaction().map_err(fail())?;
                some += store::remove(&step, &records, session_id(host.id, *number), *number)
                    .map_err(fail())?;
                step.commit().map_err(fail())?;
            }
            if some > 0 {
                // The log of changes still holds them.
                db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(fail())?;
            }
            Ok(((), None))
        });
        let Err(error) = removed else { return Ok(()) };
        tracing::error!(%error, host = %host.name, "deleted sessions cannot be taken out of the \
            search index: it is made anew");
        self.discard()
    }
}

/// Takes sessions out of the index that have their tombstone, before their events go.
pub(super) async fn forget(
    collector: &Arc<Collector>,
    host: &Host,
    numbers: &[u64],
) -> Result<(), CollectorError> {
    let (shared, host, numbers) = (Arc::clone(collector), host.clone(), numbers.to_vec());
    let work = move || shared.search.remove(&shared.config.state, &host, &numbers);
    tokio::task::spawn_blocking(work).await.map_err(|_| CollectorError::Stopped)?
}

/// Events that are accepted and not in the index; all of them while there is none.
pub async fn behind(collector: &Arc<Collector>) -> Result<u64, CollectorError> {
    let hosts = collector.central.read(follow::hosts).await?;
    let cursors = collector.search.cursors().unwrap_or_default();
    let passed = |host| cursors.get(&host).map_or(0, forward::Cursor::passed);
    Ok(hosts.iter().map(|(host, _, events)| events.saturating_sub(passed(*host))).sum())
}
