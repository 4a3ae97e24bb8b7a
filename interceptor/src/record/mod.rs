//! The record: what every session did, append-only, hash-chained, sealed, in local SQLite.
//!
//! An event goes the same way always: [`SessionLog::append`] encodes and chains it into the
//! session's own buffer; [`SessionLog::commit`] writes the buffer with one `write` to the
//! journal, from where it survives the death of the daemon (and, with `durability = "disk"`,
//! after the group's `fdatasync`, the loss of power); the drain thread moves committed frames
//! into SQLite and deletes a segment only when SQLite has it on disk. Readers see both.
//!
//! Tamper evidence: every session is a hash chain ([`chain`]); its seal, signed with the
//! host's key, is an entry of the host-wide [`ledger`]; open sessions stand in a signed
//! checkpoint every ten seconds; [`verify`] recomputes all of it.
//!
//! What this module must never do: acknowledge an event that could be lost, drop one silently,
//! or look into the bodies of events beyond what lists and counts need.

pub mod chain;
mod consume;
mod drain;
pub mod event;
pub mod export;
pub mod frame;
pub mod heads;
mod journal;
mod keys;
pub mod ledger;
mod log;
pub mod ocsf;
pub mod reader;
mod recorder;
pub mod recordings;
mod recover;
pub mod replay;
pub mod rows;
pub mod screen;
pub mod sealed;
mod search;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod ssh_tests;
pub mod store;
pub mod summary;
pub mod terminal;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
pub mod tombstones;
pub mod verify;

pub use event::{Body, End, Event, Opening, now_us};
pub use heads::SessionHead;
pub use journal::Pending;
pub use keys::{HmacKey, HostKey, PublicKey};
pub use log::{Commit, SessionLog};
pub use reader::{Filter, Reader};
pub(crate) use recorder::lock_store;
pub use recorder::{Health, Recorder};
pub use store::{Store, StoredEvent};
pub use summary::Summary;
pub use tombstones::Tombstone;

use std::path::{Path, PathBuf};

/// Why something could not be recorded or read. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system refused.
    #[error("record: cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("record: cannot {action}: {source}; see whether another program holds records.db")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// A key file cannot be used.
    #[error("record: key {path} {message}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Another process has the store.
    #[error("record: {0} is in use by another process: stop the other daemon first")]
    Locked(PathBuf),
    /// The store takes no more; new requests must be refused.
    #[error("record: refusing: {0}")]
    Refusing(String),
    /// An event is larger than a frame may be, or a session longer than can be numbered.
    #[error("record: event {kind:?} cannot be recorded: {message}")]
    Event {
        /// Kind of the event.
        kind: String,
        /// What is wrong.
        message: String,
    },
    /// An attachment is in an object that cannot be read.
    #[error("record: {0}")]
    Object(#[from] recordings::ObjectError),
    /// Another store, which must have it first, refused.
    #[error("{0}")]
    Elsewhere(String),
    /// The store's contents are not what this version understands.
    #[error("record: {0}")]
    Contents(String),
    /// Retention deleted the events of this session; its row and its proofs are there.
    #[error("the content of this session was deleted by retention on {} ({policy})", day(*.deleted_us))]
    Deleted {
        /// When; microseconds since the Unix epoch.
        deleted_us: i64,
        /// By which rule.
        policy: String,
    },
}

/// The day of a moment, UTC: `2026-01-31`.
pub fn day(us: i64) -> String {
    match jiff::Timestamp::from_microsecond(us) {
        Ok(t) => t.strftime("%Y-%m-%d").to_string(),
        Err(_) => "a day that cannot be told".into(),
    }
}

impl RecordError {
    /// Another store refused.
    pub(crate) fn elsewhere(why: impl std::fmt::Display) -> Self {
        Self::Elsewhere(why.to_string())
    }

    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    fn key(path: &Path, message: impl Into<String>) -> Self {
        Self::Key { path: path.into(), message: message.into() }
    }

    pub(crate) fn sqlite(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Sqlite { action, source }
    }
}
