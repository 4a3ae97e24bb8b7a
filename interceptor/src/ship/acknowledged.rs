//! What the collector acknowledged, remembered across restarts in a small database of its own:
//! retention may delete no more than that.
//!
//! Losing the newest of it is harmless: the collector is asked again, and until then less may
//! be deleted.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Position, ShipError};

/// When the collector answered last, and for what.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Acknowledged {
    /// What is on its disk.
    pub position: Position,
    /// When it said so; microseconds since the Unix epoch.
    pub at_us: i64,
}

/// A checkpoint of the collector's log that was verified here.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SeenLog {
    /// Leaves.
    pub size: u64,
    /// Root, hex.
    pub root: String,
    /// The signed note.
    pub note: String,
}

/// The open database.
pub struct Memory {
    db: Mutex<Connection>,
    path: PathBuf,
}

impl Memory {
    /// Opens or creates `ship.db` in the ship's state directory.
    pub fn open(dir: &Path) -> Result<Self, ShipError> {
        let path = dir.join("ship.db");
        if path.is_symlink() {
            return Err(ShipError::State { path, message: "is a link: remove it".into() });
        }
        let open = || -> rusqlite::Result<Connection> {
            let db = Connection::open(&path)?;
            db.busy_timeout(Duration::from_secs(5))?;
            db.execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
                 PRAGMA trusted_schema = OFF; \
                 CREATE TABLE IF NOT EXISTS memory (key TEXT PRIMARY KEY, value TEXT NOT NULL) \
                 STRICT, WITHOUT ROWID;",
            )?;
            Ok(db)
        };
        let db = open().map_err(|e| fail(&path, &e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .map_err(|e| ShipError::io("close to others", &path, e))?;
        Ok(Self { db: Mutex::new(db), path })
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ShipError> {
        let text: Option<String> = self
            .db
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .query_row("SELECT value FROM memory WHERE key = ?1", [key], |r| r.get(0))
            .optional()
            .map_err(|e| fail(&self.path, &e))?;
        Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
    }

    fn set<T: Serialize>(&self, key: &str, value: &T) -> Result<(), ShipError> {
        let text = serde_json::to_string(value).map_err(|e| fail(&self.path, &e))?;
        self.db
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .execute("INSERT OR REPLACE INTO memory VALUES (?1, ?2)", params![key, text])
            .map(drop)
            .map_err(|e| fail(&self.path, &e))
    }

    /// What was acknowledged last.
    pub fn acknowledged(&self) -> Result<Acknowledged, ShipError> {
        Ok(self.get("acknowledged")?.unwrap_or_default())
    }

    /// Remembers what was acknowledged.
    pub fn acknowledge(&self, acknowledged: &Acknowledged) -> Result<(), ShipError> {
        self.set("acknowledged", acknowledged)
    }

    /// The log as it was verified last.
    pub fn log(&self) -> Result<Option<SeenLog>, ShipError> {
        self.get("log")
    }

    /// Remembers the log as it was verified.
    pub fn saw_log(&self, log: &SeenLog) -> Result<(), ShipError> {
        self.set("log", log)
    }
}

fn fail(path: &Path, e: &dyn std::fmt::Display) -> ShipError {
    ShipError::State { path: path.into(), message: e.to_string() }
}
