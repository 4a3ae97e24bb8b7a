//! The ledger of first uses: which source, and which client key, used a token first.
//!
//! A first use is on disk before the token is accepted, so that neither a restart nor a power cut
//! makes a stolen token fresh again. Entries are keyed by issuer and `jti`; the token itself is
//! never here. Beside them stand the tokens that are barred ([`super::barred`]), for as long as
//! any token of now can live.

use std::num::NonZeroUsize;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::barred;
use super::refusal::IdentityError;

/// First uses that are answered from memory.
const IN_MEMORY: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
/// Entries forgotten in one go.
const SWEEP: usize = 512;
/// Kept this much longer than the token lives: a clock that jumps ahead and comes back must not
/// make the ledger forget.
const KEEP_AFTER_S: i64 = 86_400;
/// Largest size of the ledger, in pages of 4 KiB: 1 GiB.
const MAX_PAGES: i64 = 262_144;
const VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE first_use (
        iss TEXT NOT NULL,
        jti TEXT NOT NULL,
        source TEXT NOT NULL,
        client_key TEXT,
        used_at INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (iss, jti)
    ) WITHOUT ROWID;
    CREATE INDEX first_use_expires ON first_use (expires);
    PRAGMA user_version = 1;
";

/// Not in `SCHEMA`: an older version opens a ledger that has it.
const BARRED: &str = "
    CREATE TABLE IF NOT EXISTS barred (
        token TEXT PRIMARY KEY,
        until INTEGER NOT NULL
    ) WITHOUT ROWID;
";

/// A use of a token.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub iss: String,
    pub jti: String,
    /// The place, see [`super::Source::key`].
    pub source: String,
    /// The client key proven on the connection.
    pub client_key: Option<String>,
    pub now: i64,
    /// When the token can no longer be used, leeway included.
    pub expires: i64,
}

/// To what a token is pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pin {
    pub source: String,
    pub client_key: Option<String>,
    pub used_at: i64,
}

impl Pin {
    /// The same place, and the same key if the first use showed one.
    fn admits(&self, usage: &Use) -> bool {
        self.source == usage.source
            && (self.client_key.is_none() || self.client_key == usage.client_key)
    }
}

/// What the ledger says of a use.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The first use; it is on disk.
    First,
    /// A further use from the same place.
    Again,
    /// A use from somewhere else than the first.
    Elsewhere(Pin),
}

/// The ledger. One per daemon.
pub(super) struct Ledger {
    store: Mutex<Store>,
    memory: Mutex<LruCache<[u8; 32], Pin>>,
}

struct Store {
    db: Connection,
    since_sweep: usize,
}

impl Ledger {
    /// Opens or creates `STATE/tokens.db`.
    pub fn open(state: &Path) -> Result<Arc<Self>, IdentityError> {
        let path = state.join("tokens.db");
        let fail = |what: String| IdentityError::State { path: path.clone(), message: what };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state)
            .and_then(|()| {
                // Made by us first: SQLite's own files take over its mode.
                std::fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o600)
                    .open(&path)
                    .map(drop)
            })
            .map_err(|e| fail(format!("{e}: the state directory must be the daemon's own")))?;
        let db = open_database(&path).map_err(|e| {
            fail(format!("{e}: if it is damaged, move it away; tokens in use are then pinned anew"))
        })?;
        Ok(Arc::new(Self {
            store: Mutex::new(Store { db, since_sweep: 0 }),
            memory: Mutex::new(LruCache::new(IN_MEMORY)),
        }))
    }

    /// Pins a token at its first use and compares every later use with that. A first use is
    /// durable when this returns.
    pub async fn note(self: &Arc<Self>, usage: Use) -> Result<Outcome, String> {
        let id = memory_key(&usage);
        if let Some(pin) = lock(&self.memory).get(&id) {
            return Ok(if pin.admits(&usage) {
                Outcome::Again
            } else {
                Outcome::Elsewhere(pin.clone())
            });
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.note_on_disk(id, &usage))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    }

    /// Whether the token was used on this host before, wherever from.
    pub async fn knows(self: &Arc<Self>, usage: &Use) -> bool {
        if lock(&self.memory).contains(&memory_key(usage)) {
            return true;
        }
        let (this, iss, jti) = (self.clone(), usage.iss.clone(), usage.jti.clone());
        let found = tokio::task::spawn_blocking(move || lock(&this.store).has(&iss, &jti)).await;
        // Where the ledger cannot be read, noting the use fails too and says so.
        matches!(found, Ok(Ok(true)))
    }

    /// Forgets a bounded number of entries of tokens that are long dead.
    pub fn sweep(&self, now: i64) -> Result<usize, String> {
        lock(&self.store).sweep(now).map_err(|e| e.to_string())
    }

    /// Keeps a token barred; on disk when this returns. Blocks.
    pub fn bar(&self, token: &str, until: i64) -> Result<(), String> {
        lock(&self.store).bar(token, until).map_err(|e| e.to_string())
    }

    /// The tokens that are barred, the oldest first.
    pub fn barred(&self, now: i64) -> Result<Vec<String>, String> {
        lock(&self.store).barred(now).map_err(|e| e.to_string())
    }

    fn note_on_disk(&self, id: [u8; 32], usage: &Use) -> rusqlite::Result<Outcome> {
        let mut store = lock(&self.store);
        let (outcome, pin) = store.first_use(usage)?;
        lock(&self.memory).put(id, pin);
        store.since_sweep += 1;
        if store.since_sweep >= SWEEP {
            store.since_sweep = 0;
            store.sweep(usage.now)?;
        }
        Ok(outcome)
    }
}

impl Store {
    fn has(&self, iss: &str, jti: &str) -> rusqlite::Result<bool> {
        self.db
            .prepare_cached("SELECT 1 FROM first_use WHERE iss = ? AND jti = ?")?
            .exists(params![iss, jti])
    }

    fn first_use(&mut self, usage: &Use) -> rusqlite::Result<(Outcome, Pin)> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let known = tx
            .prepare_cached(
                "SELECT source, client_key, used_at FROM first_use WHERE iss = ? AND jti = ?",
            )?
            .query_row(params![usage.iss, usage.jti], |row| {
                Ok(Pin { source: row.get(0)?, client_key: row.get(1)?, used_at: row.get(2)? })
            })
            .optional()?;
        if let Some(pin) = known {
            let outcome = match pin.admits(usage) {
                true => Outcome::Again,
                false => Outcome::Elsewhere(pin.clone()),
            };
            return Ok((outcome, pin));
        }
        tx.prepare_cached("INSERT INTO first_use VALUES (?, ?, ?, ?, ?, ?)")?.execute(params![
            usage.iss,
            usage.jti,
            usage.source,
            usage.client_key,
            usage.now,
            usage.expires
        ])?;
        tx.commit()?;
        let pin = Pin {
            source: usage.source.clone(),
            client_key: usage.client_key.clone(),
            used_at: usage.now,
        };
        Ok((Outcome::First, pin))
    }

    fn bar(&mut self, token: &str, until: i64) -> rusqlite::Result<()> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.prepare_cached(
            "INSERT INTO barred VALUES (?1, ?2) \
             ON CONFLICT (token) DO UPDATE SET until = max(until, ?2)",
        )?
        .execute(params![token, until])?;
        tx.prepare_cached(
            "DELETE FROM barred WHERE token IN \
             (SELECT token FROM barred ORDER BY until DESC LIMIT -1 OFFSET ?)",
        )?
        .execute([barred::MOST.get() as i64])?;
        tx.commit()
    }

    fn barred(&mut self, now: i64) -> rusqlite::Result<Vec<String>> {
        self.db
            .prepare_cached("SELECT token FROM barred WHERE until > ? ORDER BY until")?
            .query_map([now], |row| row.get(0))?
            .collect()
    }

    fn sweep(&mut self, now: i64) -> rusqlite::Result<usize> {
        let kept = now.saturating_sub(KEEP_AFTER_S);
        self.db.prepare_cached("DELETE FROM barred WHERE until < ?")?.execute([kept])?;
        self.db
            .prepare_cached(
                "DELETE FROM first_use WHERE (iss, jti) IN
                 (SELECT iss, jti FROM first_use WHERE expires < ? LIMIT ?)",
            )?
            .execute(params![kept, 2 * SWEEP as i64])
    }
}

fn open_database(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(2))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "max_page_count", MAX_PAGES)?;
    match db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? {
        0 => db.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?,
        VERSION => {}
        _ => return Err(rusqlite::Error::InvalidQuery),
    }
    db.execute_batch(BARRED)?;
    Ok(db)
}

fn memory_key(usage: &Use) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((usage.iss.len() as u64).to_be_bytes());
    hash.update(&usage.iss);
    hash.update(&usage.jti);
    hash.finalize().into()
}

/// SQLite rolls back what a panic interrupted, so that the guarded state stays consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(jti: &str, source: &str, key: Option<&str>) -> Use {
        Use {
            iss: "okta".into(),
            jti: jti.into(),
            source: source.into(),
            client_key: key.map(str::to_owned),
            now: 1000,
            expires: 1360,
        }
    }

    fn kind(outcome: &Outcome) -> &'static str {
        match outcome {
            Outcome::First => "first",
            Outcome::Again => "again",
            Outcome::Elsewhere(_) => "elsewhere",
        }
    }

    #[tokio::test]
    async fn a_token_belongs_to_its_first_place_and_key_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        let steps = [
            ("a", "10.0.0.1", None, "first"),
            ("a", "10.0.0.1", None, "again"),
            ("a", "10.0.0.1", Some("K"), "again"),
            ("a", "10.0.0.2", None, "elsewhere"),
            ("b", "10.0.0.1", Some("K"), "first"),
            ("b", "10.0.0.1", Some("K"), "again"),
            ("b", "10.0.0.1", Some("L"), "elsewhere"),
            ("b", "10.0.0.1", None, "elsewhere"),
        ];
        for (jti, source, key, want) in steps {
            let got = ledger.note(usage(jti, source, key)).await.unwrap();
            assert_eq!(kind(&got), want, "{jti} {source} {key:?}");
        }
        drop(ledger);
        ledger = Ledger::open(dir.path()).unwrap();
        for (jti, source, key, want) in steps {
            let want = if want == "first" { "again" } else { want };
            let got = ledger.note(usage(jti, source, key)).await.unwrap();
            assert_eq!(kind(&got), want, "after a restart: {jti} {source} {key:?}");
        }
    }

    #[tokio::test]
    async fn of_many_first_uses_at_once_one_place_wins() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..32 {
            let ledger = ledger.clone();
            tasks.spawn(async move { ledger.note(usage("x", &format!("10.0.0.{n}"), None)).await });
        }
        let all: Vec<_> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
        assert_eq!(all.iter().filter(|o| **o == Outcome::First).count(), 1);
        assert_eq!(all.iter().filter(|o| matches!(o, Outcome::Elsewhere(_))).count(), 31);
    }

    #[tokio::test]
    async fn dead_tokens_are_forgotten_but_not_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.note(usage("a", "s", None)).await.unwrap();
        assert_eq!(ledger.sweep(1361).unwrap(), 0);
        assert_eq!(ledger.sweep(1361 + KEEP_AFTER_S).unwrap(), 1);
    }

    #[tokio::test]
    async fn a_ledger_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let other = Connection::open(dir.path().join("tokens.db")).unwrap();
        other.execute_batch("DROP TABLE first_use").unwrap();
        assert!(ledger.note(usage("a", "s", None)).await.is_err());
    }

    #[test]
    fn barred_tokens_are_kept_up_to_a_number_and_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let most = barred::MOST.get();
        for (n, until) in [(0, 500), (1, 400), (0, 300)] {
            ledger.bar(&format!("t{n}"), until).unwrap();
        }
        assert_eq!(ledger.barred(0).unwrap(), ["t1", "t0"]);
        assert_eq!(ledger.barred(400).unwrap(), ["t0"]);
        lock(&ledger.store)
            .db
            .execute_batch(&format!(
                "INSERT INTO barred WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 \
                 FROM n WHERE n < {most} - 1) SELECT 't' || n, 1000 FROM n"
            ))
            .unwrap();
        ledger.bar("last", 2000).unwrap();
        let all = ledger.barred(0).unwrap();
        assert_eq!((all.len(), &*all[0], &*all[most - 1]), (most, "t0", "last"));
        ledger.sweep(1001 + KEEP_AFTER_S).unwrap();
        assert_eq!(ledger.barred(0).unwrap(), ["last"]);
    }

    #[test]
    fn the_ledger_is_for_the_daemon_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let _ledger = Ledger::open(&dir.path().join("state")).unwrap();
        for file in ["state/tokens.db", "state/tokens.db-wal", "state"] {
            let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{file}");
        }
    }
}
