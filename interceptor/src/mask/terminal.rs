//! Masking of what a terminal shows. Best effort, and no boundary.
//!
//! Detectors look at the line as it is printed: escape sequences take no room and always pass
//! whole, `\b` takes the last character back, a row that is full goes on in the next. What is
//! found is replaced in the same number of columns where the method is redact, so that the
//! picture stays. The echo of a key goes out with the same push unless it continues something
//! that has begun to look like a finding; of a finding whose beginning is out, the rest is
//! masked.
//!
//! Not seen, among other things: values drawn out of order or put together by moving the
//! cursor, values that pause for longer than the pump's patience ([`TerminalMasker::flush`]),
//! and pictures. Who must not see a value must not have a terminal that can print it.

mod printed;
mod sequence;

use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};

use super::detect::{BESIDE, Folded, Pace, Settled};
use super::stream::{LONG, MAX_HELD, Swallow, in_run};
use super::{Detectors, Finding, Hits, Method};
use printed::Printed;
use sequence::{Effect, Sequences};

/// A push that prints no more characters than this is the echo of a key.
const ECHO: usize = 16;

/// Bytes taken in one go.
const PIECE: usize = 16 * 1024;

/// Printed bytes kept as the beginning of the line that is out already.
const CONTEXT: usize = 8 * BESIDE;

/// Masks what a terminal is sent.
///
/// Output is appended to the buffer that each call is given.
pub struct TerminalMasker {
    detectors: Arc<Detectors>,
    sequences: Sequences,
    /// What waits, as it came, and how it looks behind what is out.
    printed: Printed,
    /// The beginning of a character.
    partial: Vec<u8>,
    swallow: Option<Swallow>,
    /// Bytes that waited when the detectors last looked.
    looked_at: usize,
    hits: Hits,
}

impl TerminalMasker {
    /// A masker for a terminal with an empty screen.
    pub fn new(detectors: Arc<Detectors>) -> Self {
        Self {
            detectors,
            sequences: Sequences::default(),
            printed: Printed::default(),
            partial: Vec::new(),
            swallow: None,
            looked_at: 0,
            hits: Hits::default(),
        }
    }

    /// The terminal is this many columns wide from now on; 0 when that is not known.
    pub fn resize(&mut self, columns: u32) {
        self.printed.resize(columns);
    }

    /// Takes the next bytes and appends what can go on.
    pub fn push(&mut self, bytes: &[u8], out: &mut BytesMut) {
        if self.detectors.is_empty() {
            return out.put_slice(bytes);
        }
        for piece in bytes.chunks(PIECE) {
            let before = self.printed.len();
            self.read(piece);
            // What is long is looked at again when it has grown by a part of its length.
            let held = self.printed.held();
            if held > LONG && held <= MAX_HELD && held.saturating_sub(self.looked_at) < held / 16 {
                continue;
            }
            let pace = if self.printed.len() <= before + ECHO { Pace::Echo } else { Pace::Bulk };
            self.settle(pace, out);
            if self.printed.held() > MAX_HELD {
                self.decide(true, out);
            }
            self.looked_at = self.printed.held();
        }
    }

    /// Decides all that waits, as at the end of the stream.
    pub fn flush(&mut self, out: &mut BytesMut) {
        for byte in std::mem::take(&mut self.partial) {
            self.printed.print(&[byte]);
        }
        self.decide(false, out);
        self.looked_at = 0;
    }

    /// How many bytes wait.
    pub fn held(&self) -> usize {
        self.printed.held() + self.partial.len()
    }

    /// What was masked so far, in numbers.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Takes bytes apart into sequences, controls and characters.
    fn read(&mut self, bytes: &[u8]) {
        let joined;
        let mut rest = if self.partial.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.partial).as_slice(), bytes].concat();
            &joined[..]
        };
        while !rest.is_empty() {
            let plain = if self.sequences.inside() {
                0
            } else {
                memchr::memchr(0x1b, rest).unwrap_or(rest.len())
            };
            let (text, behind) = rest.split_at(plain);
            self.text(text, behind.is_empty());
            rest = behind;
            if let Some(taken) = self.sequences.read(rest) {
                self.printed.sequence(&rest[..taken.length], taken.effect);
                if !matches!(taken.effect, Effect::None) {
                    self.interrupt();
                }
                rest = &rest[taken.length..];
            }
        }
    }

    /// Plain text; the last one may end inside a character.
    fn text(&mut self, text: &[u8], last: bool) {
        let mut end = 0;
        for chunk in text.utf8_chunks() {
            for c in chunk.valid().chars() {
                self.char(c);
            }
            end += chunk.valid().len() + chunk.invalid().len();
            let unfinished = last && end == text.len() && is_beginning(chunk.invalid());
            if unfinished {
                self.partial.extend_from_slice(chunk.invalid());
                continue;
            }
            for byte in chunk.invalid() {
                self.printed.print(&[*byte]);
            }
        }
    }

    fn char(&mut self, c: char) {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        if c.is_control() {
            if matches!(c, '\n' | '\r' | '\t') {
                self.interrupt();
            }
            return self.printed.control(c, bytes);
        }
        let swallowed = match &mut self.swallow {
            None => false,
            Some(Swallow::Run) => bytes.iter().all(|b| in_run(*b)),
            Some(Swallow::Key(end)) => {
                if end.find(bytes).is_some() {
                    self.swallow = None;
                    // Its beginning must not be taken for that of another.
                    self.printed.forget();
                }
                return;
            }
        };
        if !swallowed {
            self.swallow = None;
            self.printed.print(bytes);
        }
    }

    /// A token does not go on in another place; a private key does.
    fn interrupt(&mut self) {
        if matches!(self.swallow, Some(Swallow::Run)) {
            self.swallow = None;
        }
    }

    fn settle(&mut self, pace: Pace, out: &mut BytesMut) {
        let (folded, shown) = Folded::lossy(self.printed.text(), self.printed.shown());
        let Settled { cut, findings, going } =
            self.detectors.settle_shown(&folded.bytes, 0, shown, pace);
        if let Some(going) = going.filter(|_| self.swallow.is_none()) {
            self.swallow = Some(Swallow::new(going, &folded.bytes));
        }
        let (cut, findings) = (folded.original(cut), originals(findings, &folded));
        self.emit(cut, findings, out);
    }

    fn decide(&mut self, begun: bool, out: &mut BytesMut) {
        let (folded, _) = Folded::lossy(self.printed.text(), self.printed.shown());
        let Settled { findings, going, .. } = self.detectors.decide(&folded.bytes, 0, begun);
        self.swallow = going.map(|going| Swallow::new(going, &folded.bytes));
        let findings = originals(findings, &folded);
        self.emit(self.printed.text().len(), findings, out);
    }

    /// Appends what is settled, findings replaced as far as they are not out already.
    fn emit(&mut self, cut: usize, findings: Vec<(Finding, Method)>, out: &mut BytesMut) {
        for (finding, method) in findings {
            let detectors = &self.detectors;
            let replaced = self.printed.replace(finding.range, &method, out, |value, out| {
                detectors.mask(finding.kind, &method, value, out);
            });
            if replaced {
                self.hits.add(finding.kind);
            }
        }
        self.printed.pass(cut, CONTEXT, out);
    }
}

/// Findings as they stand in the text that was folded.
fn originals(findings: Vec<(Finding, Method)>, folded: &Folded<'_>) -> Vec<(Finding, Method)> {
    let original = |(finding, method): (Finding, Method)| {
        let range = folded.original(finding.range.start)..folded.original(finding.range.end);
        (Finding { range, ..finding }, method)
    };
    findings.into_iter().map(original).collect()
}

/// Whether more bytes could make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests;
