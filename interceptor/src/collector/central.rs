//! The central database: one writer with group commit, several readers.
//!
//! Writes go to a thread of their own, which puts all that wait into one transaction: one fsync
//! for many. Each write runs in a savepoint, so that one that fails undoes only itself. Whoever
//! wrote hears of it only when it is on disk.
//!
//! On PostgreSQL several collectors write. Each transaction that writes takes one advisory lock
//! first, so that writes of all collectors follow one another as those of one do: whatever a write
//! reads is true until its end, on either database. What is large and concerns one host alone does
//! not go this way ([`super::feed`]).

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::OpenFlags;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::db::{self, Connection};
use super::error::CollectorError;
use super::keys::Keys;
use super::store::{self, Server};

/// Statements that bring a SQLite database from version `i` to `i + 1`.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("migrations/001-certificates.sql"),
    include_str!("migrations/002-forwards.sql"),
    include_str!("migrations/003-retention.sql"),
    include_str!("migrations/004-policies.sql"),
    include_str!("migrations/005-columns-of-documents.sql"),
    include_str!("migrations/006-keys.sql"),
    include_str!("migrations/007-recordings.sql"),
];
/// The same for PostgreSQL, where versions count from 1 as well.
const POSTGRES_MIGRATIONS: &[&str] = &[
    include_str!("postgres/001-schema.sql"),
    include_str!("postgres/002-keys.sql"),
    include_str!("postgres/003-recordings.sql"),
];
/// The SQLite database below the state directory.
pub(super) const FILE: &str = "collector.db";
/// What it is called once all of it is in the database of `[store]`.
pub(super) const IMPORTED: &str = "collector.db.imported";
/// Most writes in one transaction.
const GROUP: usize = 512;
/// Writes that may wait before further writers do.
const QUEUE: usize = 4096;
/// Readers at a time.
const READERS: usize = 4;
/// How long a lock is waited for.
const BUSY: Duration = Duration::from_secs(10);
/// Key of the advisory lock under which PostgreSQL is written to, and migrated.
const LOCK: i64 = 0x1e7e_5cab_1e00_0001;

/// What became of a write inside its transaction.
struct Done {
    /// Whether what it did stays.
    keep: bool,
    /// Tells the writer, once the transaction has ended.
    tell: Box<dyn FnOnce(Result<(), db::Error>) + Send>,
}

type Job = Box<dyn FnOnce(&Connection) -> Done + Send>;

/// Where the database is.
#[derive(Clone)]
enum Place {
    File(PathBuf),
    Server(Box<Server>),
}

impl Place {
    fn writer(&self) -> Result<Connection, CollectorError> {
        match self {
            Self::File(path) => open_writer(path),
            Self::Server(server) => open_server(server, "open the database of [store]"),
        }
    }

    fn reader(&self) -> Result<Connection, CollectorError> {
        match self {
            Self::File(path) => open_reader(path),
            Self::Server(server) => open_server(server, "open the database of [store] to read"),
        }
    }

    fn begin_write(&self) -> String {
        match self {
            Self::File(_) => "BEGIN IMMEDIATE".into(),
            Self::Server(_) => begin_shared(),
        }
    }

    fn begin_read(&self) -> &'static str {
        match self {
            Self::File(_) => "BEGIN",
            Self::Server(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        }
    }
}

/// The open central database.
pub struct Central {
    place: Place,
    writer: mpsc::Sender<Job>,
    readers: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
}

impl Central {
    /// Opens or creates `collector.db` below the state directory and starts its writer.
    pub fn open(state: &Path) -> Result<Self, CollectorError> {
        Self::at(Place::File(state.join(FILE)), None)
    }

    /// The same for a collector, which learns which of its keys is in force.
    pub fn open_file(state: &Path, keys: &Keys) -> Result<Self, CollectorError> {
        let path = state.join(FILE);
        if !path.exists() && state.join(IMPORTED).exists() {
            return Err(CollectorError::Store(format!(
                "is not configured, and what was in {} is in that database now: name it again",
                path.display()
            )));
        }
        Self::at(Place::File(path), Some(keys))
    }

    /// Opens the database of `[store]`, which must exist, brings its tables up to date and starts
    /// its writer. Blocks.
    ///
    /// It belongs to the collectors with these keys, from the first that opens it on.
    pub fn open_store(server: Server, keys: &Keys) -> Result<Self, CollectorError> {
        Self::at(Place::Server(Box::new(server)), Some(keys))
    }

    fn at(place: Place, keys: Option<&Keys>) -> Result<Self, CollectorError> {
        // A connection to a server may not be opened on a thread that runs tasks.
        let opened = std::thread::scope(|scope| {
            let open = || {
                let db = place.writer()?;
                migrate(&db)?;
                if let Some(keys) = keys {
                    if let Place::Server(_) = place {
                        store::claim(&db, keys)?;
                    }
                    keys.remember(&db)?;
                }
                Ok::<_, CollectorError>(db)
            };
            scope.spawn(open).join()
        });
        let db = opened.unwrap_or(Err(CollectorError::Stopped))?;
        let (writer, jobs) = mpsc::channel(QUEUE);
        let own = place.clone();
        std::thread::Builder::new()
            .name("central-writer".into())
            .spawn(move || write_all(&own, db, jobs))
            .map_err(|e| CollectorError::io("start the writer of", Path::new("the store"), e))?;
        let places = Arc::new(Semaphore::new(READERS));
        Ok(Self { place, writer, readers: Arc::default(), places })
    }

    /// The server of `[store]`, when it is one.
    pub fn server(&self) -> Option<&Server> {
        match &self.place {
            Place::File(_) => None,
            Place::Server(server) => Some(server),
        }
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
            let tell = move |committed: Result<(), db::Error>| {
                let result = match committed {
                    Err(e) if keep => Err(CollectorError::db("commit")(e).into()),
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
        let Ok(permit) = Arc::clone(&self.places).acquire_owned().await else {
            return Err(CollectorError::Stopped.into());
        };
        let (readers, place) = (Arc::clone(&self.readers), self.place.clone());
        let task = tokio::task::spawn_blocking(move || -> Result<T, E> {
            let db = begin_read(&place, &readers)?;
            let result = read(&db);
            if db.execute_batch("ROLLBACK").is_ok() {
                readers.lock().unwrap_or_else(PoisonError::into_inner).push(db);
            }
            drop(permit);
            result
        });
        task.await.unwrap_or_else(|_| Err(CollectorError::Stopped.into()))
    }
}

/// Begins a transaction that writes to the database of `[store]`, under the lock of all writers.
pub(super) fn begin_shared() -> String {
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SET LOCAL idle_in_transaction_session_timeout = '60s'; \
         SELECT pg_advisory_xact_lock({LOCK})"
    )
}

/// Opens `collector.db` for an import: brought up to date, and while this lives nobody else has it
/// open.
pub(super) fn open_alone(state: &Path) -> Result<Connection, CollectorError> {
    let path = state.join(FILE);
    if !path.exists() {
        return Err(CollectorError::Store(format!(
            "has nothing to take: there is no {}",
            path.display()
        )));
    }
    let open = || -> rusqlite::Result<rusqlite::Connection> {
        let db = rusqlite::Connection::open(&path)?;
        // Every other connection stands in the way of this one, also one that only reads.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA trusted_schema = OFF; BEGIN EXCLUSIVE; COMMIT;",
        )?;
        migrate_sqlite(&db)?;
        Ok(db)
    };
    match open() {
        Ok(db) => Ok(db.into()),
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
            Err(CollectorError::Store(format!(
                "cannot take {}, which is in use: stop the collector, \
                 `systemctl stop interceptor-collector`",
                path.display()
            )))
        }
        Err(e) => Err(CollectorError::db("open collector.db alone")(e.into())),
    }
}

/// A connection on which a read has begun: a kept one, or a new one when the server has ended that
/// meanwhile.
fn begin_read(
    place: &Place,
    readers: &Mutex<Vec<Connection>>,
) -> Result<Connection, CollectorError> {
    let begin = |db: &Connection| db.execute_batch(place.begin_read());
    let kept = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
    if let Some(db) = kept {
        match begin(&db) {
            // As a rule the others are gone as well.
            Err(_) if db.is_closed() => {
                readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            begun => {
                begun.map_err(CollectorError::db("begin to read"))?;
                return Ok(db);
            }
        }
    }
    let db = place.reader()?;
    begin(&db).map_err(CollectorError::db("begin to read"))?;
    Ok(db)
}

fn open_writer(path: &Path) -> Result<Connection, CollectorError> {
    let open = || -> rusqlite::Result<rusqlite::Connection> {
        let db = rusqlite::Connection::open(path)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
             PRAGMA cache_size = -32768; PRAGMA trusted_schema = OFF;",
        )?;
        db.set_prepared_statement_cache_capacity(128);
        Ok(db)
    };
    let db = open().map_err(|e| CollectorError::db("open collector.db")(e.into()))?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .map_err(|e| CollectorError::io("close to others", path, e))?;
    Ok(db.into())
}

fn open_reader(path: &Path) -> Result<Connection, CollectorError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || -> rusqlite::Result<rusqlite::Connection> {
        let db = rusqlite::Connection::open_with_flags(path, flags)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON;")?;
        db.set_prepared_statement_cache_capacity(128);
        Ok(db)
    };
    let db = open().map_err(|e| CollectorError::db("open collector.db to read")(e.into()))?;
    Ok(db.into())
}

fn open_server(server: &Server, action: &'static str) -> Result<Connection, CollectorError> {
    db::connect(server).map_err(CollectorError::db(action))
}

fn migrate(db: &Connection) -> Result<(), CollectorError> {
    match db {
        Connection::Sqlite(db) => migrate_sqlite(db).map_err(db::Error::from),
        Connection::Postgres(_) => migrate_postgres(db),
    }
    .map_err(CollectorError::db("bring the central database up to date"))
}

fn migrate_sqlite(db: &rusqlite::Connection) -> rusqlite::Result<()> {
    let version = db.query_row("PRAGMA user_version", [], |r| r.get::<_, i64>(0))?;
    let version = usize::try_from(version).unwrap_or_default();
    for (i, statements) in MIGRATIONS.iter().enumerate().skip(version) {
        let step = db.unchecked_transaction()?;
        step.execute_batch(statements)?;
        step.pragma_update(None, "user_version", i as i64 + 1)?;
        step.commit()?;
    }
    Ok(())
}

/// Several collectors may start at a time: one of them migrates.
fn migrate_postgres(db: &Connection) -> db::Result<()> {
    db.execute_batch(&format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SELECT pg_advisory_xact_lock({LOCK}); \
         CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL);"
    ))?;
    let version: i64 =
        db.query_row("SELECT coalesce(max(version), 0) FROM schema_version", [], |r| r.get(0))?;
    if usize::try_from(version).is_ok_and(|v| v > POSTGRES_MIGRATIONS.len()) {
        db.execute_batch("ROLLBACK")?;
        return Err(db::Error::Group(
            "its tables are of a newer version of interceptor: bring this collector up to date"
                .into(),
        ));
    }
    let version = usize::try_from(version).unwrap_or_default();
    for (i, statements) in POSTGRES_MIGRATIONS.iter().enumerate().skip(version) {
        db.execute_batch(statements)?;
        db.execute("INSERT INTO schema_version VALUES (?1)", [i as i64 + 1])?;
    }
    db.execute_batch("COMMIT")
}

/// Until nobody can write any more. A server that went away is looked for again with the next
/// group; what was under way when it went fails and says so.
fn write_all(place: &Place, db: Connection, mut jobs: mpsc::Receiver<Job>) {
    let mut open = Some(db);
    while let Some(first) = jobs.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP {
            let Ok(job) = jobs.try_recv() else { break };
            group.push(job);
        }
        match begin_write(place, &mut open) {
            Ok(db) => write_group(db, group),
            // Each of the group hears that nothing is taken, since it is dropped.
            Err(error) => tracing::error!(%error, "the central database takes no writes"),
        }
    }
}

/// Begins a transaction of the writer. That the server has ended its connection shows only now:
/// nothing is done yet, so it is begun on a new one.
fn begin_write<'c>(
    place: &Place,
    open: &'c mut Option<Connection>,
) -> Result<&'c Connection, CollectorError> {
    let begin = |db: &Connection| {
        let begun = db.execute_batch(&place.begin_write());
        if begun.is_err() {
            let _ = db.execute_batch("ROLLBACK");
        }
        begun.map_err(CollectorError::db("begin to write"))
    };
    let begun = open.as_ref().map(begin);
    if open.as_ref().is_some_and(Connection::is_closed) {
        *open = None;
    }
    match (begun, open) {
        (Some(begun), Some(db)) => begun.map(|()| &*db),
        (_, open) => {
            let db = open.insert(place.writer()?);
            begin(db)?;
            Ok(db)
        }
    }
}

fn write_group(db: &Connection, group: Vec<Job>) {
    let mut told = Vec::with_capacity(group.len());
    let mut broken = None;
    for job in group {
        let one = || -> db::Result<Done> {
            db.execute_batch("SAVEPOINT one")?;
            let done = job(db);
            let end = if done.keep {
                "RELEASE SAVEPOINT one"
            } else {
                "ROLLBACK TO SAVEPOINT one; RELEASE SAVEPOINT one"
            };
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
        // The same result for each of the group.
        tell(match &ended {
            Ok(()) => Ok(()),
            Err(e) => Err(db::Error::Group(e.to_string())),
        });
    }
}
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn count(db: &Connection) -> Result<i64, CollectorError> {
        db.query_row("SELECT count(*) FROM codes", [], |r| r.get(0))
            .map_err(CollectorError::db("count"))
    }

    fn insert(db: &Connection, n: u32) -> Result<(), CollectorError> {
        db.execute(
            "INSERT INTO codes (hash, name, made_by, created_us, expires_us) VALUES (?1, '', '', 0, 0)",
            [n.to_le_bytes()],
        )
        .map(drop)
        .map_err(CollectorError::db("insert"))
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
        let db = Connection::open_in_memory().unwrap();
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
        migrate(&db).unwrap();
        let at = |idx: i64| -> i64 {
            let sql = "SELECT accepted_us FROM leaves WHERE idx = ?1";
            db.query_row(sql, [idx], |r| r.get(0)).unwrap()
        };
        assert_eq!((at(0), at(1), at(2)), (111, 111, 222));
        assert!(at(3) > 1_700_000_000_000_000, "now, where no root covers it");
        db.execute("UPDATE leaves SET accepted_us = 1", []).unwrap_err();
    }
}
