//! What a watcher asks and tells.

use bytes::Bytes;

use crate::wire::ssh::sftp::Direction;

/// Names a [`Step::Judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket(pub(super) u64);

/// A file or a directory that a source announces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which way it goes.
    pub direction: Direction,
    /// It is a directory.
    pub directory: bool,
    /// Its name without a path.
    pub name: String,
    /// Every path that it can be read from or written to, as the command names them.
    pub paths: Vec<String>,
    /// False: the login shell made names of a pattern, and `paths` are where they may lie.
    pub certain: bool,
    /// Bytes; zero for a directory.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
}

/// What became of one announced file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// As it was judged.
    pub entry: Entry,
    /// Bytes that passed.
    pub bytes: u64,
    /// SHA-256 of them.
    pub sha256: [u8; 32],
    /// They are the whole file, and both sides say that all went well.
    pub complete: bool,
    /// Why not, in the words of the side that said so.
    pub failure: Option<String>,
}

/// What is to be done now.
#[derive(Debug)]
pub enum Step {
    /// Send this to the server.
    ToServer(Bytes),
    /// Send this to the agent.
    ToAgent(Bytes),
    /// Ask policy; answer with [`super::Watcher::decide`].
    Judge {
        /// Names the question.
        ticket: Ticket,
        /// What is announced.
        entry: Entry,
    },
    /// A file has passed, or was cut off.
    Ended(File),
}
