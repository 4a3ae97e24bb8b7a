//! What passed through a handle in one direction: bytes, ranges, and a running SHA-256.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;

/// Which way a file's content went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the server to the agent.
    Read,
    /// From the agent to the server.
    Write,
}

/// What became of one open file, in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// The path that was judged.
    pub path: String,
    /// Which way.
    pub direction: Direction,
    /// Bytes that passed, repeated ones counted again.
    pub bytes: u64,
    /// SHA-256 over them: in the order of the file where `complete`, else as far as they could
    /// be put in order and then as they came.
    pub sha256: [u8; 32],
    /// They are the whole file, from its first byte to its last, each once.
    pub complete: bool,
    /// Start and end of the parts that passed, in order; at most [`MAX_RANGES`].
    pub ranges: Vec<(u64, u64)>,
    /// There were more parts than `ranges` holds.
    pub more_ranges: bool,
    /// Why the transfer failed, if it did: the server's status, or that the file was never
    /// closed.
    pub failure: Option<String>,
}

/// Parts of a file that are told apart.
pub const MAX_RANGES: usize = 32;

/// Pieces that may wait for an earlier one. Each may keep more memory alive than its own.
const MAX_EARLY: usize = 64;

/// One direction of an open file.
pub(super) struct Passage {
    hash: Context,
    bytes: u64,
    /// All before it has been hashed, in order.
    next: u64,
    /// Pieces that came before their turn, by offset.
    early: BTreeMap<u64, Bytes>,
    in_order: bool,
    ranges: Vec<(u64, u64)>,
    more_ranges: bool,
    pub failure: Option<String>,
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Passage {
    pub fn new() -> Self {
        Self {
            hash: Context::new(&SHA256),
            bytes: 0,
            next: 0,
            early: BTreeMap::new(),
            in_order: true,
            ranges: Vec::new(),
            more_ranges: false,
            failure: None,
        }
    }

    /// Where the next byte in order belongs.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Anything passed.
    pub fn used(&self) -> bool {
        self.bytes > 0
    }

    /// It is no whole file, whatever passes.
    pub fn spoil(&mut self) {
        self.in_order = false;
    }

    /// A piece at `offset` passes. `window` is what the channel may still keep for pieces that
    /// come too early, in bytes.
    pub fn piece(&mut self, offset: u64, data: Bytes, window: &mut usize) {
        if data.is_empty() {
            return;
        }
        self.bytes += data.len() as u64;
        self.note_range(offset, offset.saturating_add(data.len() as u64));
        if offset == self.next && self.in_order {
            self.hash_in_order(&data);
            self.catch_up(window);
            return;
        }
        let fits = data.len() <= *window && self.early.len() < MAX_EARLY;
        if self.in_order && offset > self.next && fits && !self.early.contains_key(&offset) {
            *window -= data.len();
            self.early.insert(offset, data);
            return;
        }
        self.release(window);
        self.in_order = false;
        self.hash.update(&data);
    }

    fn hash_in_order(&mut self, data: &[u8]) {
        self.hash.update(data);
        self.next = self.next.saturating_add(data.len() as u64);
    }

    /// Takes early pieces whose turn has come.
    fn catch_up(&mut self, window: &mut usize) {
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.next {
                return;
            }
            // A piece that starts before its turn overlaps with what passed.
            self.in_order &= *entry.key() == self.next;
            let data = entry.remove();
            *window += data.len();
            self.hash_in_order(&data);
        }
    }

    /// Hashes what still waits, with the gaps left out.
    fn release(&mut self, window: &mut usize) {
        self.in_order &= self.early.is_empty();
        for data in std::mem::take(&mut self.early).into_values() {
            *window += data.len();
            self.hash.update(&data);
        }
    }

    fn note_range(&mut self, start: u64, end: u64) {
        // Nearly always the last range grows, or the one before it closes up with it.
        let at = self.ranges.partition_point(|range| range.1 < start);
        let Some(range) = self.ranges.get_mut(at).filter(|range| range.0 <= end) else {
            if self.ranges.len() < MAX_RANGES {
                self.ranges.insert(at, (start, end));
            } else {
                self.more_ranges = true;
            }
            return;
        };
        *range = (range.0.min(start), range.1.max(end));
        let upto = range.1;
        let last = self.ranges.partition_point(|range| range.0 <= upto);
        if let Some(&(_, end)) = self.ranges.get(last.saturating_sub(1))
            && last > at + 1
        {
            self.ranges[at].1 = upto.max(end);
            self.ranges.drain(at + 1..last);
        }
    }

    /// The file is closed. `whole` says whether what passed, if all of it was in order up to
    /// the offset given, is the file.
    pub fn end(
        mut self,
        path: &str,
        direction: Direction,
        window: &mut usize,
        whole: impl FnOnce(u64) -> bool,
    ) -> Transfer {
        self.release(window);
        let digest = self.hash.finish();
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        Transfer {
            path: path.to_owned(),
            direction,
            bytes: self.bytes,
            sha256,
            complete: self.in_order && self.failure.is_none() && whole(self.next),
            ranges: self.ranges,
            more_ranges: self.more_ranges,
            failure: self.failure,
        }
    }
}
