//! Masking of a stream: what the detectors find in the whole is masked however it is cut.
//!
//! Bytes come in pieces of any size and leave as soon as nothing that may follow can change
//! what becomes of them. Only what may still become a finding waits: the last word before a
//! possible `@`, a number that may go on, a token without its end. A finding that is longer than
//! [`MAX_HELD`] is masked by its beginning, and what goes on behind it is taken away unseen, so
//! nothing of it gets out; such a one may have another hash or partial form than in one piece.
//!
//! Null takes a finding away. Bytes that are not UTF-8 pass as they are. At a [`flush`] all
//! that waits is decided as at the end: call it when the stream ends, or when nothing came for
//! so long that somebody may be waiting for what is held. A value that pauses in its middle
//! for longer than that patience is seen as two.
//!
//! [`flush`]: StreamMasker::flush

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};

use super::detect::{BESIDE, Folded, Going, KeyEnd, Settled};
use super::{Detectors, Hits};

/// At most this many bytes wait when a push returns.
pub const MAX_HELD: usize = 8 * 1024;

/// Bytes looked at in one go; they stay in the processor's nearest cache.
const BLOCK: usize = 16 * 1024;

/// Original bytes kept before a cut, so that after folding [`BESIDE`] are left, and more.
const CONTEXT: usize = 4 * BESIDE;

/// Bytes of a new piece that are joined to what waits before the rest is looked at in place.
const JOIN: usize = 2 * CONTEXT;

/// More than this only waits for the end of one long run of token characters.
pub(super) const LONG: usize = 2 * 1024;

/// Masks one direction of one stream.
///
/// Output is appended to the buffer that each call is given.
#[derive(Debug)]
pub struct StreamMasker {
    detectors: Arc<Detectors>,
    /// What is out already and stands beside, then what waits.
    buffer: Vec<u8>,
    /// Length of the first part.
    context: usize,
    swallow: Option<Swallow>,
    hits: Hits,
}

/// What is taken away as it comes.
#[derive(Debug)]
pub(super) enum Swallow {
    /// The rest of a private key.
    Key(KeyEnd),
    /// The rest of a token.
    Run,
}

impl Swallow {
    /// What goes on behind a folded text.
    pub(super) fn new(going: Going, text: &[u8]) -> Self {
        match going {
            Going::Run => Self::Run,
            Going::Key(start) => {
                let mut end = KeyEnd::default();
                end.find(&text[start..]);
                Self::Key(end)
            }
        }
    }
}

/// What tokens of every kind are made of.
pub(super) const fn in_run(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'/' | b'+' | b'=' | b'.')
}

/// How the end of a text is to be taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// More follows.
    Open,
    /// Nothing follows.
    Final,
    /// More follows, but too much waits already.
    Forced,
}

impl StreamMasker {
    /// A masker for a stream that has not begun.
    pub fn new(detectors: Arc<Detectors>) -> Self {
        Self { detectors, buffer: Vec::new(), context: 0, swallow: None, hits: Hits::default() }
    }

    /// Takes the next bytes and appends what can go on.
    pub fn push(&mut self, piece: &[u8], out: &mut BytesMut) {
        if self.detectors.is_empty() {
            return out.put_slice(piece);
        }
        let held = self.held();
        // A long run of token characters is looked at again when it ends.
        if held > LONG && held + piece.len() <= MAX_HELD && piece.iter().all(|b| in_run(*b)) {
            return self.buffer.extend_from_slice(piece);
        }
        let (joined, rest) = piece.split_at(piece.len().min(JOIN));
        self.buffer.extend_from_slice(joined);
        self.advance(End::Open, out);
        if rest.is_empty() {
            return;
        }
        // When what waited before is decided, the rest need not be copied to be looked at.
        match joined.len().checked_sub(self.held()).filter(|settled| *settled >= CONTEXT) {
            Some(settled) => {
                let cut = self.settle(piece, settled, End::Open, out);
                self.buffer.clear();
                self.buffer.extend_from_slice(&piece[cut - CONTEXT.min(cut)..]);
                self.context = CONTEXT.min(cut);
            }
            None => {
                self.buffer.extend_from_slice(rest);
                self.advance(End::Open, out);
            }
        }
    }

    /// Decides all that waits, as at the end of the stream.
    pub fn flush(&mut self, out: &mut BytesMut) {
        if self.held() > 0 {
            self.advance(End::Final, out);
        }
    }

    /// How many bytes wait.
    pub fn held(&self) -> usize {
        self.buffer.len() - self.context
    }

    /// What was masked so far, in numbers.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Settles what waits, as far as that is possible.
    fn advance(&mut self, end: End, out: &mut BytesMut) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let cut = self.settle(&buffer, self.context, end, out);
        self.context = CONTEXT.min(cut);
        buffer.drain(..cut - self.context);
        self.buffer = buffer;
    }

    /// Decides a text from `from` on, block by block; returns how far.
    fn settle(&mut self, text: &[u8], from: usize, end: End, out: &mut BytesMut) -> usize {
        let mut from = from;
        loop {
            from += self.swallow(&text[from..]);
            let stop = text.len().min(from + BLOCK);
            let last = stop == text.len();
            let end = if last { end } else { End::Open };
            let mut cut = self.block(&text[..stop], from, end, out);
            if stop - cut > MAX_HELD {
                cut = self.block(&text[..stop], cut, End::Forced, out);
            }
            from = cut;
            if last {
                return cut;
            }
        }
    }

    /// Decides a block as far as its end allows; returns how far.
    fn block(&mut self, text: &[u8], from: usize, end: End, out: &mut BytesMut) -> usize {
        let stop = match end {
            End::Open => text.len() - unfinished_char(&text[from..]),
            End::Final | End::Forced => text.len(),
        };
        if from == stop {
            return from;
        }
        let begin = from.saturating_sub(CONTEXT);
        let (folded, folded_from) = Folded::lossy(&text[begin..stop], from - begin);
        let Settled { cut, findings, going } = match end {
            End::Open => self.detectors.settle(&folded.bytes, folded_from),
            End::Final | End::Forced => {
                self.detectors.decide(&folded.bytes, folded_from, end == End::Forced)
            }
        };
        let original = |at: usize| (begin + folded.original(at)).min(stop);
        let mut copied = from;
        for (finding, method) in findings {
            let range = original(finding.range.start)..original(finding.range.end);
            out.put_slice(&text[copied..range.start]);
            self.detectors.mask(finding.kind, &method, &text[range.clone()], out);
            self.hits.add(finding.kind);
            copied = range.end;
        }
        let cut = if end == End::Open { original(cut) } else { stop };
        out.put_slice(&text[copied..cut]);
        self.swallow = going.map(|going| Swallow::new(going, &folded.bytes));
        cut
    }

    /// Takes away what goes on from before; returns how much that is.
    fn swallow(&mut self, text: &[u8]) -> usize {
        let rest = match &mut self.swallow {
            None => return 0,
            Some(Swallow::Run) => text.iter().position(|b| !in_run(*b)),
            Some(Swallow::Key(end)) => end.find(text),
        };
        if rest.is_some() {
            self.swallow = None;
        }
        rest.unwrap_or(text.len())
    }
}

/// Bytes at the end of a text that are the beginning of a UTF-8 character.
fn unfinished_char(text: &[u8]) -> usize {
    let tail = &text[text.len() - text.len().min(3)..];
    let Some(lead) = tail.iter().rposition(|b| *b >= 0xC0) else { return 0 };
    match std::str::from_utf8(&tail[lead..]) {
        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => tail.len() - lead,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
