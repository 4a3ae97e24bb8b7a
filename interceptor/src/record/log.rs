//! One session's side of the recorder.
//!
//! A [`SessionLog`] belongs to one session and is not shared: events are encoded and chained
//! into its own buffer without a lock, and a commit is one write to the common journal. A log
//! that is dropped without [`SessionLog::seal`] is sealed as interrupted.

use std::sync::Arc;
use std::sync::Mutex;

use serde::Serialize;

use super::RecordError;
use super::chain::{self, Hash};
use super::event::{Body, End, Event, now_us};
use super::frame;
use super::journal::{Pending, lock};
use super::recorder::Shared;
use super::store::MAX_SEQ;

/// From this size on, `append` writes by itself.
const WRITE_AT: usize = 1 << 20;
/// Most bytes of events that may wait for a commit that fails.
const MAX_BUFFER: usize = 8 << 20;
/// Memory that an idle session may keep.
const KEEP: usize = 8 << 10;

/// What a commit came to.
#[derive(Debug)]
#[must_use = "with disk durability the commit is complete only when it resolves"]
pub enum Commit {
    /// It survives the death of this process.
    Done,
    /// It will survive the loss of power when this resolves.
    Pending(Pending),
}

impl Commit {
    /// Waits until the configured durability is reached.
    pub async fn durable(self) -> Result<(), RecordError> {
        match self {
            Self::Done => Ok(()),
            Self::Pending(pending) => pending.await,
        }
    }

    /// The same, outside of an async runtime.
    pub fn wait(self) -> Result<(), RecordError> {
        match self {
            Self::Done => Ok(()),
            Self::Pending(pending) => pending.wait_blocking(),
        }
    }
}

/// What the recorder knows of an open session: its head as of the last commit.
pub(super) struct Live {
    pub number: u64,
    pub id: ulid::Ulid,
    pub head: Mutex<(u64, Hash)>,
}

/// Encodes and chains the events of one session.
pub(super) struct Chain {
    pub number: u64,
    pub id: ulid::Ulid,
    pub seq: u64,
    pub head: Hash,
    pub buffer: Vec<u8>,
    pub buffered: u64,
}

impl Chain {
    pub fn new(number: u64, id: ulid::Ulid, seq: u64, head: Hash) -> Self {
        Self { number, id, seq, head, buffer: Vec::new(), buffered: 0 }
    }

    pub fn append<B: Serialize + ?Sized>(
        &mut self,
        event: &Event<'_, B>,
    ) -> Result<u64, RecordError> {
        let fail = |message: String| RecordError::Event { kind: event.kind.into(), message };
        if event.kind.len() > frame::MAX_KIND {
            return Err(fail("its kind is too long".into()));
        }
        if self.seq >= MAX_SEQ {
            return Err(fail("the session has too many events: end it".into()));
        }
        if self.buffer.len() > MAX_BUFFER {
            return Err(RecordError::Refusing("too much waits to be written".into()));
        }
        let at = self.buffer.len();
        let seq = self.seq + 1;
        frame::begin_event(&mut self.buffer, self.number, self.id, seq, event.ts_us, event.kind);
        let body = at + frame::body_offset(event.kind);
        if let Err(e) = serde_json::to_writer(&mut self.buffer, event.body) {
            self.buffer.truncate(at);
            return Err(fail(e.to_string()));
        }
        if self.buffer.len() - at + event.data.len() + 64 > frame::MAX_PAYLOAD {
            self.buffer.truncate(at);
            self.buffer.shrink_to(KEEP);
            return Err(fail("it is larger than 64 MiB".into()));
        }
        let hash =
            chain::step(&self.head, seq, event.ts_us, event.kind, &self.buffer[body..], event.data);
        frame::finish_event(&mut self.buffer, at, event.kind, event.data, &hash);
        self.seq = seq;
        self.head = hash;
        self.buffered += 1;
        Ok(seq)
    }

    /// Forgets what was written.
    pub fn written(&mut self) -> u64 {
        self.buffer.clear();
        if self.buffer.capacity() > 2 * KEEP {
            self.buffer.shrink_to(KEEP);
        }
        std::mem::take(&mut self.buffered)
    }
}

/// The record of one session while it lives.
pub struct SessionLog {
    shared: Arc<Shared>,
    live: Arc<Live>,
    chain: Chain,
    done: bool,
}

impl std::fmt::Debug for SessionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionLog({} at {})", self.chain.id, self.chain.seq)
    }
}

impl SessionLog {
    pub(super) fn new(shared: Arc<Shared>, live: Arc<Live>, chain: Chain) -> Self {
        Self { shared, live, chain, done: false }
    }

    /// The session.
    pub fn id(&self) -> ulid::Ulid {
        self.chain.id
    }

    /// The host's gap-free number of the session.
    pub fn number(&self) -> u64 {
        self.chain.number
    }

    /// Encodes and chains an event; it is acknowledged by the next [`SessionLog::commit`].
    pub fn append<B: Serialize + ?Sized>(
        &mut self,
        event: &Event<'_, B>,
    ) -> Result<u64, RecordError> {
        let seq = self.chain.append(event)?;
        if self.chain.buffer.len() > WRITE_AT {
            // A failure is kept for the commit: the events are still in the buffer.
            let _ = self.shared.write(&mut self.chain, &self.live);
        }
        Ok(seq)
    }

    /// Appends an event that happens now.
    pub fn record<B: Body>(&mut self, body: &B) -> Result<u64, RecordError> {
        self.append(&Event::now(body))
    }

    /// Makes everything appended so far durable, with one write.
    pub fn commit(&mut self) -> Result<Commit, RecordError> {
        if self.chain.buffer.is_empty() {
            // What `append` wrote by itself may still be on its way to the disk.
            return Ok(self.shared.sync_all());
        }
        self.shared.write(&mut self.chain, &self.live)
    }

    /// Ends the record in order: last event, commit, seal.
    pub fn seal(mut self, end: &End<'_>) -> Result<(), RecordError> {
        self.done = true;
        self.finish(end, false)
    }

    /// Ends as the death of the process ends it: without a last event and without a seal.
    #[cfg(test)]
    pub(crate) fn abandon(mut self) {
        self.done = true;
    }

    fn finish(&mut self, end: &End<'_>, interrupted: bool) -> Result<(), RecordError> {
        let ts_us = now_us();
        let appended = self.chain.append(&Event::at(ts_us, end)).map(drop);
        let sealed = appended
            .and_then(|()| self.shared.seal(&mut self.chain, ts_us, end, interrupted, None));
        if sealed.is_err() {
            let empty = Chain::new(self.chain.number, self.chain.id, 0, [0; 32]);
            let chain = std::mem::replace(&mut self.chain, empty);
            self.shared.adopt(chain, end, interrupted);
        }
        sealed
    }
}

impl Drop for SessionLog {
    fn drop(&mut self) {
        if !self.done {
            let _ = self.finish(&End::because("interrupted"), true);
        }
    }
}

impl Live {
    pub fn new(chain: &Chain) -> Arc<Self> {
        Arc::new(Self {
            number: chain.number,
            id: chain.id,
            head: Mutex::new((chain.seq, chain.head)),
        })
    }

    pub fn advance(&self, chain: &Chain) {
        *lock(&self.head) = (chain.seq, chain.head);
    }
}
