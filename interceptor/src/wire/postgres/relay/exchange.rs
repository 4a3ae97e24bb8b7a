//! What the agent was forwarded and which answers are still owed, in order.
//!
//! PostgreSQL answers strictly in order, so every forwarded message has a slot and every answer
//! belongs to the first one. A refusal takes a slot too: in place of the refused message the
//! server gets one that fails without doing anything, and its error is replaced by ours. So the
//! transaction status that the agent sees is always the server's own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::mask::{CopyPlan, RowPlan};
use crate::session::sql::Ruling;

use super::super::codec::Report;
use super::prepared::Prepared;

/// One answer that is owed.
#[derive(Debug)]
pub enum Slot {
    /// Simple Query or FunctionCall: everything up to ReadyForQuery.
    Query(Box<Running>),
    /// ParseComplete.
    Parse(Arc<Prepared>),
    /// BindComplete.
    Bind,
    /// ParameterDescription and RowDescription or NoData, asked by us for this statement and
    /// not shown to the agent.
    OwnDescribe(Arc<Prepared>),
    /// ParameterDescription and RowDescription or NoData of a statement.
    DescribeStatement(Arc<Prepared>),
    /// RowDescription or NoData of a portal.
    DescribePortal,
    /// Everything up to CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute(Box<Running>),
    /// CloseComplete; the statement comes back if the server skips the Close.
    Close(Option<(Box<[u8]>, Arc<Prepared>)>),
    /// An error that stands for a refused message.
    Refused(Box<Report>),
    /// ReadyForQuery.
    Sync,
}

impl Slot {
    /// Whether an error here makes the server skip to the next Sync.
    fn is_extended(&self) -> bool {
        !matches!(self, Self::Query(_) | Self::Sync)
    }
}

/// How the rows of the running statement are treated.
#[derive(Debug, Default)]
pub enum Rows {
    /// Untouched.
    #[default]
    Plain,
    /// To be looked at, by the description that has come before.
    Unresolved,
    /// Masked by a plan.
    Masked(Arc<RowPlan>),
    /// Withheld, since the result is not what was judged; its error has been sent.
    Withheld,
}

/// A request whose answer is being relayed.
#[derive(Debug)]
pub struct Running {
    /// Number of the recorded request.
    pub request: u64,
    /// What was decided; its statements are answered in order.
    pub ruling: Arc<Ruling>,
    /// Index of the statement that is being answered.
    pub statement: usize,
    /// For extended execution: the statement that runs.
    pub prepared: Option<Arc<Prepared>>,
    /// For extended execution: result format codes as bound.
    pub formats: Vec<i16>,
    /// When it was forwarded.
    pub started: Instant,
    /// Replaces the server's error, for a request that was refused.
    pub refusal: Option<Report>,
    /// Treatment of rows.
    pub rows: Rows,
    /// Treatment of COPY TO STDOUT data.
    pub copy: Option<CopyPlan>,
    /// Running BLAKE3 of copy data.
    pub digest: Option<CopyDigest>,
    /// Rows relayed.
    pub row_count: u64,
    /// Bytes of rows or copy data relayed.
    pub byte_count: u64,
    /// The answer's first bytes, as the agent saw them.
    pub captured: Vec<u8>,
    /// Whether the answer was larger than what is captured.
    pub truncated: bool,
    /// Values masked.
    pub masked: u64,
    /// Last command tag.
    pub tag: String,
    /// SQLSTATE and message of an error, as the agent saw them.
    pub error: Option<(String, String)>,
}

impl Running {
    /// A request that was just forwarded.
    pub fn new(request: u64, ruling: Arc<Ruling>, prepared: Option<Arc<Prepared>>) -> Self {
        Self {
            request,
            ruling,
            statement: 0,
            prepared,
            formats: Vec::new(),
            started: Instant::now(),
            refusal: None,
            rows: Rows::Plain,
            copy: None,
            digest: None,
            row_count: 0,
            byte_count: 0,
            captured: Vec::new(),
            truncated: false,
            masked: 0,
            tag: String::new(),
            error: None,
        }
    }

    /// Keeps the first `limit` bytes of the answer.
    pub fn capture(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.captured.len());
        if bytes.len() > room {
            self.truncated = true;
        }
        self.captured.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

/// So many bytes of small rows are gathered before they are hashed: BLAKE3 is fast on many chunks
/// of 1 KiB at a time.
const GATHER: usize = 16 << 10;

/// What is known of the data of a COPY.
#[derive(Clone)]
pub struct CopyDigest {
    /// Running BLAKE3 of all but what is gathered.
    hasher: blake3::Hasher,
    /// The last bytes, not hashed yet; less than [`GATHER`].
    gathered: Vec<u8>,
    /// From the agent to the service.
    pub inward: bool,
    /// Bytes so far.
    pub bytes: u64,
    /// CopyData messages so far.
    pub messages: u64,
    /// Bytes when the last progress was recorded.
    pub recorded: u64,
}

impl std::fmt::Debug for CopyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CopyDigest").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl CopyDigest {
    /// Of no data yet.
    pub fn new(inward: bool) -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            gathered: Vec::new(),
            inward,
            bytes: 0,
            messages: 0,
            recorded: 0,
        }
    }

    /// Adds data.
    pub fn update(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        if self.gathered.len() + data.len() >= GATHER {
            self.hasher.update(&self.gathered);
            self.gathered.clear();
            if data.len() >= GATHER {
                self.hasher.update(data);
                return;
            }
        }
        self.gathered.extend_from_slice(data);
    }

    /// The digest so far, hex.
    pub fn hex(&self) -> String {
        self.hasher.clone().update(&self.gathered).finalize().to_hex().to_string()
    }
}

/// The slots, in order.
#[derive(Debug, Default)]
pub struct Exchange {
    slots: VecDeque<Slot>,
    /// The server failed an extended message and ignores everything up to the next Sync.
    skipping: bool,
    /// The server reads copy data and ignores Sync and Flush.
    copy_in: bool,
}

impl Exchange {
    /// Whether no answer is owed.
    pub fn is_quiet(&self) -> bool {
        self.slots.is_empty() && !self.skipping
    }

    /// Whether the last thing forwarded was an extended message without its Sync.
    pub fn is_open_batch(&self) -> bool {
        self.skipping || self.slots.back().is_some_and(Slot::is_extended)
    }

    /// Whether the server ignores what is sent now.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether the server is reading copy data.
    pub fn in_copy(&self) -> bool {
        self.copy_in
    }

    /// How many answers are owed.
    pub fn owed(&self) -> usize {
        self.slots.len()
    }

    /// Notes a forwarded message.
    pub fn push(&mut self, slot: Slot) {
        if matches!(slot, Slot::Sync) {
            if self.copy_in {
                return;
            }
            self.skipping = false;
        }
        self.slots.push_back(slot);
    }

    /// The slot whose answer is coming.
    pub fn front(&mut self) -> Option<&mut Slot> {
        self.slots.front_mut()
    }

    /// The request whose answer is coming.
    pub fn running(&mut self) -> Option<&mut Running> {
        match self.slots.front_mut() {
            Some(Slot::Query(running) | Slot::Execute(running)) => Some(running),
            _ => None,
        }
    }

    /// The first answer is complete.
    pub fn pop(&mut self) -> Option<Slot> {
        self.slots.pop_front()
    }

    /// The server failed the first slot. For an extended message, returns it and all that the
    /// server skips; for a simple one the slot stays until its ReadyForQuery.
    pub fn fail(&mut self) -> Vec<Slot> {
        self.copy_in = false;
        if !self.slots.front().is_some_and(Slot::is_extended) {
            return Vec::new();
        }
        let mut skipped = Vec::new();
        while let Some(slot) = self.slots.pop_front() {
            if matches!(slot, Slot::Sync) {
                self.slots.push_front(slot);
                return skipped;
            }
            skipped.push(slot);
        }
        self.skipping = true;
        skipped
    }

    /// The server asked for copy data; Syncs that were sent ahead will never be answered.
    pub fn begin_copy_in(&mut self) {
        self.copy_in = true;
        if matches!(self.slots.front(), Some(Slot::Execute(_))) {
            self.slots.retain(|slot| !matches!(slot, Slot::Sync));
        }
    }

    /// The agent ended its copy data; what it sends next is answered again.
    pub fn end_copy_in(&mut self) {
        self.copy_in = false;
    }

    /// All that is still owed, at the end of a session.
    pub fn drain(&mut self) -> impl Iterator<Item = Slot> + '_ {
        self.slots.drain(..)
    }
}
