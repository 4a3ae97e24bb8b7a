//! The host's side of the collector: ships what is recorded, raises holds there, and carries out
//! its signed orders.
//!
//! What this module must never do: ship what is not on disk, let anything be deleted that was
//! not acknowledged, or act on an order whose signature, host, age or number is wrong.

mod acknowledged;
pub mod bundle;
pub mod centre;
pub mod client;
mod enrol;
mod identity;
pub mod kept;
pub mod line;
pub mod link;
pub mod orders;
pub mod people;
mod prove;
pub mod remote;
pub mod reserve;
mod spool;
pub mod start;
pub mod succession;
pub mod trusted;
mod uplink;
pub mod wire;

use std::path::{Path, PathBuf};

pub use crate::collector::Position;
use crate::collector::wire::Refused;
use crate::record::RecordError;
pub use acknowledged::{Acknowledged, Memory, SeenLog};
pub use enrol::enrol;
pub use identity::Identity;
pub use prove::{Proved, prove};
pub use spool::{Batch, Spool, Waiting};
pub use uplink::{Shipper, Shipping};

/// Why something cannot be shipped. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// The operating system refused.
    #[error("ship: cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What is kept here cannot be used.
    #[error("ship: {path}: {message}")]
    State {
        /// File or directory.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// This host is not enrolled, or cannot be.
    #[error("ship: {0}")]
    Enrolment(String),
    /// The collector cannot be reached or cannot answer now.
    #[error("ship: the collector is away: {0}")]
    Away(String),
    /// The collector refuses.
    #[error("ship: the collector refuses ({}): {}", .0.code, .0.message)]
    Refused(Box<Refused>),
    /// What it says of its log is not true.
    #[error("ship: the collector's log: {0}")]
    Log(String),
    /// The records cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl ShipError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// Makes a directory that only its owner may look into.
fn make_private(dir: &Path) -> Result<(), ShipError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|e| ShipError::io("create", dir, e))
}
