//! What goes over a channel, on its way into the record.
//!
//! Bytes are gathered and written behind: at most 64 KiB or 100 ms after they went by. All of
//! them count and are hashed, as many as the service's setting says are kept. What is kept is
//! under the record's SHA-256 chain; the whole stream is hashed with BLAKE3, since SHA-256
//! without its own instructions takes more time than all encryption together (docs/adr/0009).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use blake3::Hasher;
use tokio::time::Instant;

use super::acting::Acting;
use crate::session::log::{RecordError, event};

/// Bytes after which what was gathered is written.
const FULL: usize = 64 << 10;

/// Longest time that a byte waits to be written.
const PATIENCE: Duration = Duration::from_millis(100);

/// One stream of one channel.
pub struct Tape {
    acting: Arc<Acting>,
    ch: u32,
    stream: &'static str,
    /// Bytes of the stream that are written or given up.
    offset: u64,
    waiting: Vec<u8>,
    /// Bytes that went by since the last write, kept or not.
    passed: u64,
    /// When the first of them did.
    since: Option<Instant>,
    /// Bytes that may still be kept.
    left: u64,
    digest: Hasher,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tape({} {} at {})", self.ch, self.stream, self.offset)
    }
}

/// What a whole stream came to.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3 with 256 bits, hex.
    pub blake3: String,
}

impl Tape {
    /// An empty tape for `in`, `out` or `err`.
    pub fn new(acting: &Arc<Acting>, ch: u32, stream: &'static str) -> Self {
        Self {
            acting: Arc::clone(acting),
            ch,
            stream,
            offset: 0,
            waiting: Vec::new(),
            passed: 0,
            since: None,
            left: acting.parts.service.ssh.record_bytes,
            digest: Hasher::new(),
        }
    }

    /// Counts and hashes, and keeps nothing.
    pub fn unkept(self) -> Self {
        Self { left: 0, ..self }
    }

    /// Takes bytes that went by.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.digest.update(bytes);
        self.since.get_or_insert_with(Instant::now);
        self.passed += bytes.len() as u64;
        let keep = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.waiting.extend_from_slice(&bytes[..keep]);
        self.left -= keep as u64;
        if self.waiting.len() >= FULL { self.write() } else { Ok(()) }
    }

    /// Notes bytes that must not be kept, not even in the hash: what was typed unseen.
    pub fn redact(&mut self, count: usize) -> Result<(), RecordError> {
        self.write()?;
        self.append(count as u64, true, false, &[])
    }

    /// When it has to be written at the latest.
    pub fn due(&self) -> Option<Instant> {
        // Once nothing is kept any more there is nothing to hurry for.
        self.since.filter(|_| !self.waiting.is_empty()).map(|since| since + PATIENCE)
    }

    /// Writes what was gathered.
    pub fn write(&mut self) -> Result<(), RecordError> {
        if self.passed == 0 {
            return Ok(());
        }
        let kept = std::mem::take(&mut self.waiting);
        let passed = std::mem::take(&mut self.passed);
        self.since = None;
        let truncated = (kept.len() as u64) < passed;
        if truncated && kept.is_empty() && self.offset > 0 {
            // That the rest is only counted was said when it began.
            self.offset += passed;
            return Ok(());
        }
        self.append(passed, false, truncated, &kept)
    }

    fn append(
        &mut self,
        bytes: u64,
        redacted: bool,
        truncated: bool,
        data: &[u8],
    ) -> Result<(), RecordError> {
        let event = event::ChannelData {
            ch: self.ch,
            stream: Cow::Borrowed(self.stream),
            offset: self.offset,
            bytes,
            redacted,
            truncated,
        };
        self.offset += bytes;
        let appended = self.acting.with(|session| {
            session.log().append_with(&event, data)?;
            // Data may trail; what is asked for next waits for the disk.
            session.log().commit().map(drop)
        });
        appended.unwrap_or(Ok(()))
    }

    /// Writes the rest and says what the stream came to.
    pub fn finish(mut self) -> Result<Sum, RecordError> {
        self.write()?;
        let blake3 = self.digest.finalize().to_hex().to_string();
        Ok(Sum { bytes: self.offset, blake3 })
    }
}
