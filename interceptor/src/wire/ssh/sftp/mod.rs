//! SFTP, version 3 as OpenSSH speaks it: what passes between an agent and the server's
//! `sftp-server`, cut into operations that policy can judge.
//!
//! A [`Guard`] does no input or output of its own. Bytes go in ([`Guard::from_agent`],
//! [`Guard::from_server`]), [`Step`]s come out ([`Guard::next`]), and each [`Step::Judge`] is
//! answered once ([`Guard::decide`]), at once or minutes later. Nothing that names a path
//! reaches the server before its decision.
//!
//! # Which path is judged
//!
//! The one that the server means. For each path the guard asks the server for its canonical form
//! (REALPATH, under an id of its own) and holds the packet until the answer. Of operations on a
//! name (LSTAT, READLINK, REMOVE, RENAME, MKDIR, the link of a SYMLINK) the directory is
//! resolved and the last part kept. The permitted operation then goes out with the path that was
//! judged in place of the one asked for, so that a link that changes meanwhile does not lead it
//! elsewhere. What can still change meanwhile, by another channel or process, is a part of the
//! judged path itself; who may replace directories there is beyond what this guard can see.
//!
//! Within a channel nothing can: operations that move names run alone between resolution and
//! forwarding ([`jobs`]), and a decision that was not made at once is checked against a new
//! resolution. This counts on a server that serves requests in order, as `sftp-server` does.
//!
//! A path that the server cannot resolve is judged as it reads and marked so. If it is
//! permitted, the agent gets the server's own answer to the resolution, which is what the
//! operation would have met; it is not sent.
//!
//! # What passes unjudged
//!
//! READ, WRITE, READDIR, FSTAT, `fsync`, `fstatvfs` and CLOSE on handles that a judged operation
//! opened for just that; `limits` and `users-groups-by-id`. Bulk data is not decoded and not
//! encoded again: its id is replaced where it stands. Unknown types and extensions are
//! answered with OP_UNSUPPORTED and do not reach the server, and the server's greeting names
//! only the extensions that may be used.
//!
//! # Order
//!
//! The packets of one handle keep their order, also around one that waits for its decision.
//! Operations on paths start in order; one that is held does not hold up the rest.

mod agent;
mod frame;
mod handles;
mod held;
mod jobs;
mod operation;
mod packet;
mod path;
mod request;
mod server;
mod transfer;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use russh_sftp::protocol::{Packet, StatusCode};

pub use self::frame::{FrameError, MAX_PACKET};
use self::handles::{Handles, Opened, Serial};
use self::jobs::Jobs;
pub use self::operation::{Operation, Place, Touch, Verb};
pub use self::transfer::{Direction, MAX_RANGES, Transfer};

/// What one channel may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests that are unanswered; further ones wait in the channel.
    pub requests: usize,
    /// Open files and directories; further ones are refused.
    pub handles: usize,
    /// Bytes of packets that wait for a decision on their handle.
    pub waiting: usize,
    /// Bytes that are kept to put answers in order for the hash.
    pub window: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests: 1024, handles: 256, waiting: 1 << 20, window: 4 << 20 }
    }
}

/// Most bytes of an agent that may lie here unread. A caller that heeds [`Guard::is_full`]
/// stays far below.
const MAX_UNREAD: usize = 8 << 20;

/// Why the channel must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SftpError {
    /// The agent's bytes are no SFTP.
    #[error("sftp from the agent: {0}")]
    Agent(Fault),
    /// The server's bytes are no SFTP, or no answer to what was asked.
    #[error("sftp from the server: {0}")]
    Server(Fault),
    /// It had to end before.
    #[error("the sftp channel has ended")]
    Over,
}

/// What is wrong with one side's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// They are not cut into packets.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A packet is not what its type says.
    #[error("a packet of type {0} is malformed")]
    Malformed(u8),
    /// It comes out of turn.
    #[error("a packet of type {0} out of turn")]
    OutOfTurn(u8),
    /// Not a version that is served.
    #[error("version {0} is not served")]
    Version(u32),
    /// More was sent than was asked for.
    #[error("{0} bytes are unread")]
    Overrun(usize),
}

/// Names a [`Step::Judge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What is to be done now.
#[derive(Debug)]
pub enum Step {
    /// Send this to the server.
    ToServer(Bytes),
    /// Send this to the agent.
    ToAgent(Bytes),
    /// Ask policy; answer with [`Guard::decide`].
    Judge {
        /// Names the question.
        ticket: Ticket,
        /// What is asked.
        operation: Operation,
    },
    /// A file was closed, or the channel ended before.
    Ended(Transfer),
}

/// The answer to a [`Step::Judge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Let it go on.
    Permit {
        /// The file's content must not be seen: an operation that reads is refused.
        withhold: bool,
    },
    /// Answer the agent with PERMISSION_DENIED.
    Refuse {
        /// The message, e.g. `interceptor: denied by rule "no-keys" (session 01J…)`.
        message: String,
    },
}

/// How far the greeting has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Greeted,
    Running,
    Over,
}

/// What an answer of the server is for.
#[derive(Debug)]
enum Asked {
    /// Our question for the directory in which relative paths start.
    Home,
    /// Our question for the canonical form of one of a job's paths.
    Resolve { job: Ticket, place: usize },
    /// Our question for an open file's size.
    Size(Serial),
    /// The agent's request, under its own id.
    Agent { id: u32, wants: Wants },
}

/// Which answers a request may have, and what they mean here.
#[derive(Debug)]
enum Wants {
    Status,
    Attributes,
    Names,
    Extended,
    Handle(Opened),
    Data { serial: Serial, offset: u64, len: u32 },
    Written(Serial),
    Closed(Serial),
}

/// One SFTP channel.
#[derive(Debug)]
pub struct Guard {
    limits: Limits,
    phase: Phase,
    agent: BytesMut,
    server: BytesMut,
    steps: VecDeque<Step>,
    /// What the server owes an answer to, by the ids that it was asked under.
    asked: HashMap<u32, Asked>,
    last_id: u32,
    jobs: Jobs,
    handles: Handles,
    /// Bytes in [`handles::Handle::waiting`].
    waiting: usize,
    /// Where relative paths start, once the server has said so.
    home: Option<String>,
}

impl Guard {
    /// For a channel on which nothing has been said.
    pub fn new(limits: Limits) -> Self {
        let handles = Handles::new(limits.window);
        Self {
            limits,
            phase: Phase::Start,
            agent: BytesMut::new(),
            server: BytesMut::new(),
            steps: VecDeque::new(),
            asked: HashMap::new(),
            last_id: 0,
            jobs: Jobs::default(),
            handles,
            waiting: 0,
            home: None,
        }
    }

    /// The agent sent `bytes`. On an error the channel must end; steps that came before it may
    /// still be taken.
    pub fn from_agent(&mut self, bytes: &[u8]) -> Result<(), SftpError> {
        self.alive()?;
        if self.agent.len() + bytes.len() > MAX_UNREAD {
            let unread = self.agent.len() + bytes.len();
            return self.over(SftpError::Agent(Fault::Overrun(unread)));
        }
        self.agent.extend_from_slice(bytes);
        self.park_undecided();
        self.read_agent()
    }

    /// The server sent `bytes`; as [`Guard::from_agent`].
    pub fn from_server(&mut self, bytes: &[u8]) -> Result<(), SftpError> {
        self.alive()?;
        self.server.extend_from_slice(bytes);
        self.park_undecided();
        loop {
            match frame::Frame::cut(&mut self.server) {
                Ok(Some(frame)) => {
                    if let Err(fault) = self.on_answer(frame) {
                        return self.over(SftpError::Server(fault));
                    }
                }
                Ok(None) => break,
                Err(e) => return self.over(SftpError::Server(e.into())),
            }
        }
        self.read_agent()
    }

    /// The next step; `None` until more bytes or decisions come. After [`Guard::decide`] there
    /// may be more.
    #[allow(clippy::should_implement_trait, reason = "more can come after None")]
    pub fn next(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// No bytes should be taken from the agent until the server has answered or decisions are
    /// made.
    pub fn is_full(&self) -> bool {
        self.asked.len() + self.jobs.len() >= self.limits.requests
            || self.waiting >= self.limits.waiting
    }

    /// The channel ends, by whatever side: what is still open is told of by [`Guard::next`].
    pub fn end(&mut self) {
        self.phase = Phase::Over;
        let ended = self.handles.abandon();
        self.steps.extend(ended.into_iter().map(Step::Ended));
    }

    fn alive(&self) -> Result<(), SftpError> {
        if self.phase == Phase::Over { Err(SftpError::Over) } else { Ok(()) }
    }

    fn over(&mut self, error: SftpError) -> Result<(), SftpError> {
        self.phase = Phase::Over;
        Err(error)
    }

    /// An id that no unanswered request has.
    fn fresh_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if !self.asked.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Asks the server something, under a new id that `encode` is given.
    fn ask(&mut self, asked: Asked, encode: impl FnOnce(u32) -> Option<Bytes>) -> Option<()> {
        let id = self.fresh_id();
        let bytes = encode(id)?;
        self.asked.insert(id, asked);
        self.steps.push_back(Step::ToServer(bytes));
        Some(())
    }

    /// Answers the agent's request `id` with a status.
    fn refuse(&mut self, id: u32, code: StatusCode, words: &str) {
        // A status with a short text can always be encoded.
        if let Ok(bytes) = Bytes::try_from(Packet::status(id, code, words, "en")) {
            self.steps.push_back(Step::ToAgent(bytes));
        }
    }
}
