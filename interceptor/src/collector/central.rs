//! The central database: one writer with group commit, several readers.
//!
//! Writes go to a thread of their own, which puts all that wait into one transaction: one fsync
//! for many. Each write runs in a savepoint, so that one that fails undoes only itself. Whoever
//! wrote hears of it only when it is on disk.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::error::CollectorError;

/// Statements that bring a database from version `i` to `i + 1`.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("migrations/001-certificates.sql"),
    include_str!("migrations/002-forwards.sql"),
    include_str!("migrations/003-retention.sql"),
    include_str!("migrations/004-policies.sql"),
];
/// Most writes in one transaction.
const GROUP: usize = 512;
/// Writes that may wait before further writers do.
const QUEUE: usize = 4096;
/// Readers at a time.
const READERS: usize = 4;
/// How long a lock is waited for.
const BUSY: Duration = Duration::from_secs(10);

/// What became of a write inside its transaction.
struct Done {
    /// Whether what it did stays.
    keep: bool,
    /// Tells the writer, once the transaction has ended.
    tell: Box<dyn FnOnce(Result<(), rusqlite::Error>) + Send>,
}

type Job = Box<dyn FnOnce(&Connection) -> Done + Send>;

/// The open central database.
pub struct Central {
    path: PathBuf,
    writer: mpsc::Sender<Job>,
    readers: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
}

impl Central {
    /// Opens or creates `collector.db` below the state directory and starts its writer.
    pub fn open(state: &Path) -> Result<Self, CollectorError> {
        let path = state.join("collector.db");
        let sql = CollectorError::sqlite;
        let mut db = Connection::open(&path).map_err(sql("open collector.db"))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))
            .map_err(|e| CollectorError::io("close to others", &path, e))?;
        db.busy_timeout(BUSY).map_err(sql("configure collector.db"))?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA cache_size = -32768; PRAGMA trusted_schema = OFF;",
        )
        .map_err(sql("configure collector.db"))?;
        migrate(&mut db)?;
        db.set_prepared_statement_cache_capacity(128);
        let (writer, jobs) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("central-writer".into())
            .spawn(move || write_all(&db, jobs))
            .map_err(|e| CollectorError::io("start the writer of", &path, e))?;
        let places = Arc::new(Semaphore::new(READERS));
        Ok(Self { path, writer, readers: Arc::default(), places })
    }

    /// Runs a write; its result comes when it is on disk. What it did is undone when it fails.
    pub async fn write<T, E, F>(&self, write: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<CollectorError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |db| {
            let result = write(db);
            let keep = result.is_ok();
            let tell = move |committed: Result<(), rusqlite::Error>| {
                let result = match committed {
                    Err(e) if keep => Err(CollectorError::sqlite("commit")(e).into()),
                    _ => result,
                };
                let _ = sender.send(result);
            };
            Done { keep, tell: Box::new(tell) }
        });
        if self.writer.send(job).await.is_err() {
            return Err(CollectorError::Stopped.into());
        }
        receiver.await.unwrap_or_else(|_| Err(CollectorError::Stopped.into()))
    }

    /// Runs a read beside the writes, on a snapshot of its own.
    pub async fn read<T, E, F>(&self, read: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<CollectorError> + Send + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return Err(CollectorError::Stopped.into());
        };
        let (readers, path) = (Arc::clone(&self.readers), self.path.clone());
        let task = tokio::task::spawn_blocking(move || -> Result<T, E> {
            let kept = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let db = match kept {
                Some(db) => db,
                None => open_reader(&path)?,
            };
            let result = db
                .unchecked_transaction()
                .map_err(|e| CollectorError::sqlite("begin to read")(e).into())
                .and_then(|snapshot| read(&snapshot));
            readers.lock().unwrap_or_else(PoisonError::into_inner).push(db);
            drop(place);
            result
        });
        task.await.unwrap_or_else(|_| Err(CollectorError::Stopped.into()))
    }
}

fn open_reader(path: &Path) -> Result<Connection, CollectorError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<Connection> {
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON;")?;
        db.set_prepared_statement_cache_capacity(128);
        Ok(db)
    };
    open().map_err(CollectorError::sqlite("open collector.db to read"))
}

fn migrate(db: &mut Connection) -> Result<(), CollectorError> {
    let run = |db: &mut Connection| -> rusqlite::Result<()> {
        let version: usize =
            db.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0))? as usize;
        for (i, statements) in MIGRATIONS.iter().enumerate().skip(version) {
            let step = db.transaction()?;
            step.execute_batch(statements)?;
            step.pragma_update(None, "user_version", i as i64 + 1)?;
            step.commit()?;
        }
        Ok(())
    };
    run(db).map_err(CollectorError::sqlite("bring collector.db up to date"))
}

/// Until nobody can write any more.
fn write_all(db: &Connection, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        write_group(db, group);
    }
}

fn write_group(db: &Connection, group: Vec<Job>) {
    if let Err(e) = db.execute_batch("BEGIN IMMEDIATE") {
        tracing::error!(error = %e, "the central database takes no writes");
        // Each job must be told; what it does now lands in no transaction that stays.
        return drop(group);
    }
    let mut told = Vec::with_capacity(group.len());
    let mut broken = None;
    for job in group {
        let one = || -> rusqlite::Result<Done> {
            db.execute_batch("SAVEPOINT one")?;
            let done = job(db);
            let end = if done.keep { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
            db.execute_batch(end)?;
            Ok(done)
        };
        match one() {
            Ok(done) => told.push(done.tell),
            Err(e) => {
                broken = Some(e);
                break;
            }
        }
    }
    let ended = match broken {
        None => db.execute_batch("COMMIT"),
        Some(e) => Err(e),
    };
    if let Err(e) = &ended {
        tracing::error!(error = %e, "the central database lost a group of writes");
        let _ = db.execute_batch("ROLLBACK");
    }
    for tell in told {
        tell(copied(&ended));
    }
}

/// The same result for each of the group.
fn copied(result: &Result<(), rusqlite::Error>) -> Result<(), rusqlite::Error> {
    match result {
        Ok(()) => Ok(()),
        Err(rusqlite::Error::SqliteFailure(code, text)) => {
            Err(rusqlite::Error::SqliteFailure(*code, text.clone()))
        }
        Err(e) => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ERROR),
            Some(e.to_string()),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn count(db: &Connection) -> Result<i64, CollectorError> {
        db.query_row("SELECT count(*) FROM codes", [], |r| r.get(0))
            .map_err(CollectorError::sqlite("count"))
    }

    fn insert(db: &Connection, n: u32) -> Result<(), CollectorError> {
        db.execute(
            "INSERT INTO codes (hash, name, made_by, created_us, expires_us) VALUES (?1, '', '', 0, 0)",
            [n.to_le_bytes()],
        )
        .map(drop)
        .map_err(CollectorError::sqlite("insert"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_undoes_itself_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let central = Arc::new(Central::open(dir.path()).unwrap());
        let all: Vec<_> = (0..300u32)
            .map(|n| {
                let central = Arc::clone(&central);
                tokio::spawn(async move {
                    central
                        .write(move |db| {
                            insert(db, n)?;
                            if n % 3 == 0 { insert(db, n) } else { Ok(()) }
                        })
                        .await
                })
            })
            .collect();
        let mut failed = 0;
        for task in all {
            failed += u32::from(task.await.unwrap().is_err());
        }
        assert_eq!(failed, 100);
        assert_eq!(central.read(count).await.unwrap(), 200);
        drop(central);
        let again = Central::open(dir.path()).unwrap();
        assert_eq!(again.read(count).await.unwrap(), 200);
    }

    /// Retention counts from the first signed root over a leaf, where leaves had no time yet.
    #[test]
    fn leaves_from_before_retention_get_the_time_of_their_root() {
        let mut db = Connection::open_in_memory().unwrap();
        for statements in &MIGRATIONS[..2] {
            db.execute_batch(statements).unwrap();
        }
        db.execute_batch(
            "PRAGMA user_version = 2; \
             INSERT INTO leaves VALUES (0, 1, 1, x'00', x'00'), (1, 1, 2, x'00', x'00'), \
             (2, 1, 3, x'00', x'00'), (3, 1, 4, x'00', x'00'); \
             INSERT INTO log_checkpoints VALUES (2, x'00', 111, ''), (3, x'00', 222, '');",
        )
        .unwrap();
        migrate(&mut db).unwrap();
        let at = |idx: i64| -> i64 {
            let sql = "SELECT accepted_us FROM leaves WHERE idx = ?1";
            db.query_row(sql, [idx], |r| r.get(0)).unwrap()
        };
        assert_eq!((at(0), at(1), at(2)), (111, 111, 222));
        assert!(at(3) > 1_700_000_000_000_000, "now, where no root covers it");
        db.execute("UPDATE leaves SET accepted_us = 1", []).unwrap_err();
    }
}
