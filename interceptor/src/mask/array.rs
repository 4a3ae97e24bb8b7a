//! Detectors inside arrays of text and JSON: element by element, in both formats.

use bytes::{BufMut, BytesMut};

use super::value::Cell;
use super::{Context, Detectors, Hits};

/// Scans the elements of one array.
pub(super) struct Scan<'a> {
    pub detectors: &'a Detectors,
    pub context: &'a Context,
    /// Elements are JSON.
    pub json: bool,
}

/// What became of an element.
enum Element {
    Keep,
    Null,
    New(Vec<u8>),
}

impl Scan<'_> {
    fn element(&self, value: &[u8], version_byte: bool, hits: &mut Hits) -> Element {
        if self.json {
            let (head, json) = match value.split_first() {
                Some((1, json)) if version_byte => (&value[..1], json),
                _ => (&value[..0], value),
            };
            return match super::json::scrub(self.detectors, json, self.context, hits) {
                None => Element::Keep,
                Some(scrubbed) => Element::New([head, &scrubbed].concat()),
            };
        }
        match self.detectors.scrub_bytes(value, self.context, hits) {
            None => Element::Keep,
            Some(scrubbed) if scrubbed.null => Element::Null,
            Some(scrubbed) => Element::New(scrubbed.bytes),
        }
    }

    /// An array in text format: `{a,"b \"c\"",NULL}`, perhaps nested, perhaps with bounds.
    /// What is not an array literal becomes NULL when something is found in it.
    pub fn literal(&self, value: &[u8], out: &mut BytesMut, hits: &mut Hits) -> Cell {
        let Some(open) = value.iter().position(|b| *b == b'{') else {
            let found = self.detectors.scrub_bytes(value, self.context, hits).is_some();
            return if found { Cell::Null } else { Cell::Keep };
        };
        let mut at = open;
        let mut copied = 0;
        while let Some(byte) = value.get(at) {
            if matches!(byte, b'{' | b'}' | b',' | b' ') {
                at += 1;
                continue;
            }
            let (text, end) = literal_element(value, at);
            let quoted = *byte == b'"';
            let element = if !quoted && text.eq_ignore_ascii_case(b"null") {
                Element::Keep
            } else {
                self.element(&text, false, hits)
            };
            if !matches!(element, Element::Keep) {
                out.put_slice(&value[copied..at]);
                match element {
                    Element::New(text) => quote_into(&text, out),
                    _ => out.put_slice(b"NULL"),
                }
                copied = end;
            }
            at = end;
        }
        if copied == 0 {
            return Cell::Keep;
        }
        out.put_slice(&value[copied..]);
        Cell::New
    }

    /// An array in binary format; `None` when it is not one.
    pub fn binary(&self, value: &[u8], out: &mut BytesMut, hits: &mut Hits) -> Option<Cell> {
        let int = |at: usize| -> Option<i32> {
            Some(i32::from_be_bytes(*value.get(at..at + 4)?.first_chunk()?))
        };
        let dimensions = usize::try_from(int(0)?).ok().filter(|n| *n <= 6)?;
        let header = 12 + dimensions * 8;
        let mut count: usize = usize::from(dimensions > 0);
        for dimension in 0..dimensions {
            count = count.checked_mul(usize::try_from(int(12 + dimension * 8)?).ok()?)?;
        }
        let mark = out.len();
        out.put_slice(value.get(..header)?);
        let (mut at, mut changed, mut nulls) = (header, false, false);
        // Every element takes four bytes at least, so a false count ends with the value.
        for _ in 0..count {
            let length = int(at)?;
            at += 4;
            if length == -1 {
                out.put_i32(-1);
                continue;
            }
            let end = at.checked_add(usize::try_from(length).ok()?)?;
            let element = value.get(at..end)?;
            at = end;
            match self.element(element, true, hits) {
                Element::Keep => {
                    out.put_i32(length);
                    out.put_slice(element);
                }
                Element::Null => {
                    out.put_i32(-1);
                    (changed, nulls) = (true, true);
                }
                Element::New(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).ok()?);
                    out.put_slice(&bytes);
                    changed = true;
                }
            }
        }
        if at != value.len() {
            return None;
        }
        if !changed {
            out.truncate(mark);
            return Some(Cell::Keep);
        }
        if nulls {
            out[mark + 4..mark + 8].copy_from_slice(&1i32.to_be_bytes());
        }
        Some(Cell::New)
    }
}

/// The element that begins at `start`, unescaped, and where it ends.
fn literal_element(value: &[u8], start: usize) -> (Vec<u8>, usize) {
    let quoted = value[start] == b'"';
    let mut at = start + usize::from(quoted);
    let mut text = Vec::new();
    while let Some(byte) = value.get(at) {
        at += 1;
        match byte {
            b'\\' => {
                text.extend(value.get(at));
                at += 1;
            }
            b'"' if quoted => return (text, at),
            b',' | b'{' | b'}' if !quoted => return (text, at - 1),
            byte => text.push(*byte),
        }
    }
    (text, value.len())
}

fn quote_into(text: &[u8], out: &mut BytesMut) {
    out.put_u8(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}
