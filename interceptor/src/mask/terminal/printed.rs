//! What is printed, and the bytes that print it.

use std::ops::Range;

use bytes::{BufMut as _, BytesMut};

use super::sequence::Effect;
use crate::mask::{Method, REDACTED};

/// A jump to the right by more than this many columns begins something else.
const NEAR: u16 = 3;

/// The text of the line as it stands, from shortly before what waits; one byte of it may be
/// printed, or stand for a movement of the cursor.
#[derive(Default)]
pub(super) struct Printed {
    /// Bytes that wait, as they came.
    raw: Vec<u8>,
    /// Of `raw`, this much is appended to the output already.
    passed: usize,
    /// What is printed: first what is out, then what waits.
    text: Vec<u8>,
    /// Length of what is out.
    shown: usize,
    /// For each byte of `text` behind `shown`.
    origins: Vec<Origin>,
    /// Width of the terminal; 0 when it is not known.
    columns: u32,
    column: u32,
    /// The row began because the one before was full.
    wrapped: bool,
}

/// Where a byte of the text comes from.
#[derive(Debug, Clone, Copy)]
struct Origin {
    /// Its place in `raw`.
    at: usize,
    /// It is that byte; else it stands for what begins there.
    printed: bool,
}

impl Printed {
    pub fn resize(&mut self, columns: u32) {
        self.columns = columns;
    }

    /// The text as it is printed.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// How many bytes of the text are out.
    pub fn shown(&self) -> usize {
        self.shown
    }

    /// Length of the text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Bytes that wait.
    pub fn held(&self) -> usize {
        self.raw.len()
    }

    /// A character.
    pub fn print(&mut self, bytes: &[u8]) {
        if self.columns > 0 && self.column >= self.columns {
            (self.column, self.wrapped) = (0, true);
        }
        self.column = self.column.saturating_add(width(bytes));
        for byte in bytes {
            self.origins.push(Origin { at: self.raw.len(), printed: true });
            self.raw.push(*byte);
        }
        self.text.extend_from_slice(bytes);
    }

    /// A control character.
    pub fn control(&mut self, c: char, bytes: &[u8]) {
        let at = self.raw.len();
        self.raw.extend_from_slice(bytes);
        match c {
            '\n' | '\x0b' | '\x0c' => self.mark(b'\n', at),
            '\t' => self.mark(b'\t', at),
            '\x08' => self.back(),
            '\r' => {
                // Line editors print a space and return behind a full row to get into the next.
                if self.wrapped && self.column == 1 && self.text.ends_with(b" ") {
                    self.back();
                } else {
                    self.mark(b'\n', at);
                }
                (self.column, self.wrapped) = (0, false);
            }
            _ => {}
        }
    }

    /// Bytes of a sequence, and what it does when it ends there.
    pub fn sequence(&mut self, bytes: &[u8], effect: Effect) {
        let at = self.raw.len();
        self.raw.extend_from_slice(bytes);
        match effect {
            Effect::None => {}
            Effect::Forward(columns) if columns <= NEAR => {
                (0..columns).for_each(|_| self.mark(b' ', at));
            }
            Effect::Forward(_) | Effect::Elsewhere => self.mark(b'\n', at),
            Effect::Back(columns) => (0..columns).for_each(|_| self.back()),
        }
    }

    fn mark(&mut self, byte: u8, at: usize) {
        self.text.push(byte);
        self.origins.push(Origin { at, printed: false });
    }

    /// The cursor goes back by one: what is printed next takes the place of the last character.
    fn back(&mut self) {
        if matches!(self.text.last(), None | Some(b'\n')) {
            return;
        }
        while let Some(byte) = self.text.pop() {
            if !(0x80..0xC0).contains(&byte) {
                break;
            }
        }
        self.shown = self.shown.min(self.text.len());
        self.origins.truncate(self.text.len() - self.shown);
        self.column = self.column.saturating_sub(1);
    }

    /// Replaces what of a finding is not out, line by line so that the picture stays; false
    /// when all of it is out.
    pub fn replace(
        &mut self,
        range: Range<usize>,
        method: &Method,
        out: &mut BytesMut,
        mask: impl Fn(&[u8], &mut BytesMut),
    ) -> bool {
        let range = range.start.max(self.shown)..range.end.max(self.shown);
        let origins = &self.origins[range.start - self.shown..range.end - self.shown];
        let text = &self.text[range];
        let printed = |(byte, origin): (&u8, &Origin)| origin.printed.then_some(*byte);
        let value: Vec<u8> = text.iter().zip(origins).filter_map(printed).collect();
        let mut first = true;
        for line in lines(text, origins) {
            let (text, origins) = (&text[line.clone()], &origins[line]);
            let visible: Vec<u8> = text.iter().zip(origins).filter_map(printed).collect();
            let Some(begin) = origins.iter().find(|origin| origin.printed) else { continue };
            out.put_slice(&self.raw[self.passed..begin.at]);
            self.passed = begin.at;
            match method {
                Method::Redact => fill(width(&visible), first, out),
                _ if first => mask(&value, out),
                _ => {}
            }
            first = false;
            for origin in origins.iter().filter(|origin| origin.printed) {
                out.put_slice(&self.raw[self.passed..origin.at]);
                self.passed = origin.at + 1;
            }
        }
        !first
    }

    /// Forgets what is out.
    pub fn forget(&mut self) {
        self.text.drain(..self.shown);
        self.shown = 0;
    }

    /// Appends what waits up to `cut`, and forgets all but `context` bytes of the text before.
    pub fn pass(&mut self, cut: usize, context: usize, out: &mut BytesMut) {
        let cut = cut.clamp(self.shown, self.text.len());
        let end = self.origins.get(cut - self.shown).map_or(self.raw.len(), |origin| origin.at);
        let end = end.max(self.passed);
        out.put_slice(&self.raw[self.passed..end]);
        self.raw.drain(..end);
        self.passed = 0;
        self.origins.drain(..cut - self.shown);
        for origin in &mut self.origins {
            origin.at -= end;
        }
        let behind = |at: &usize| !self.text.get(*at).is_some_and(|b| (0x80..0xC0).contains(b));
        let forget = (cut.saturating_sub(context)..cut).find(behind).unwrap_or(cut);
        if forget > context {
            self.text.drain(..forget);
            self.shown = cut - forget;
        } else {
            self.shown = cut;
        }
    }
}

/// The stretches between breaks of the line.
fn lines(text: &[u8], origins: &[Origin]) -> Vec<Range<usize>> {
    let breaks = |at: &usize| text[*at] == b'\n' && !origins[*at].printed;
    let mut lines = Vec::new();
    let mut start = 0;
    for at in (0..text.len()).filter(breaks).chain([text.len()]) {
        lines.push(start..at);
        start = at + 1;
    }
    lines
}

/// So many columns that say that something was taken away.
fn fill(columns: u32, first: bool, out: &mut BytesMut) {
    let mut left = columns as usize;
    if first && left >= REDACTED.len() {
        out.put_slice(REDACTED.as_bytes());
        left -= REDACTED.len();
    }
    out.put_bytes(b'*', left);
}

/// Columns that a text takes.
fn width(text: &[u8]) -> u32 {
    text.utf8_chunks()
        .map(|chunk| {
            let invalid = u32::try_from(chunk.invalid().len()).unwrap_or(u32::MAX);
            chunk.valid().chars().map(columns_of).sum::<u32>() + invalid
        })
        .sum()
}

const fn columns_of(c: char) -> u32 {
    match c {
        '\u{00AD}'
        | '\u{0300}'..='\u{036F}'
        | '\u{200B}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{2069}'
        | '\u{FE00}'..='\u{FE0F}'
        | '\u{FEFF}' => 0,
        '\u{1100}'..='\u{115F}'
        | '\u{2E80}'..='\u{303E}'
        | '\u{3041}'..='\u{A4CF}'
        | '\u{AC00}'..='\u{D7A3}'
        | '\u{F900}'..='\u{FAFF}'
        | '\u{FE30}'..='\u{FE6F}'
        | '\u{FF00}'..='\u{FF60}'
        | '\u{FFE0}'..='\u{FFE6}'
        | '\u{1F300}'..='\u{1FAFF}'
        | '\u{20000}'..='\u{3FFFD}' => 2,
        _ => 1,
    }
}
