//! Why the collector cannot do something.

use std::path::{Path, PathBuf};

use super::db;
use crate::config::ConfigError;
use crate::record::RecordError;

/// Why the collector cannot do something. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The operating system refused.
    #[error("collector: cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The central database refused.
    #[error("collector: cannot {action}: {source}; {}", advice(.source))]
    Database {
        /// What was tried.
        action: &'static str,
        /// The database's reason.
        source: db::Error,
    },
    /// `[store]` cannot be used.
    #[error("collector: [store] {0}")]
    Store(String),
    /// `[recordings]` cannot be used, or the place does not answer.
    #[error("collector: [recordings] {0}")]
    Recordings(String),
    /// The database's writer has stopped.
    #[error("collector: the database takes nothing now: try again, and read the collector's log")]
    Stopped,
    /// A replica is in use for long.
    #[error("collector: the records of host {0} are in use: it is tried again later")]
    Busy(String),
    /// A key or certificate cannot be made or used.
    #[error("collector: {0}")]
    Key(String),
    /// It cannot listen.
    #[error("collector: cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl CollectorError {
    pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// A file of SQLite beside the central database refused.
    pub(super) fn sqlite(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Database { action, source: source.into() }
    }

    pub(super) fn db(action: &'static str) -> impl FnOnce(db::Error) -> Self {
        move |source| Self::Database { action, source }
    }
}

fn advice(source: &db::Error) -> &'static str {
    match source {
        db::Error::Postgres(_) => "see whether the server of [store] is well",
        _ => "see whether the disk of the state directory is full",
    }
}
