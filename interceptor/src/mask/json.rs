//! Scrubbing of JSON: every string, key and number by itself, everything else byte for byte.
//!
//! Whether a text is JSON, and what a string in it says, is for `serde_json` to tell; here the
//! text is only cut at its quotes, so that white space, order, duplicate keys and the spelling
//! of numbers stay, and no depth of nesting costs stack.

use bytes::BufMut;

use super::Hits;
use super::detect::{Context, Detectors};

/// Scrubs a JSON text; `None` when there is nothing to change. What is not JSON is scrubbed
/// as text.
pub(super) fn scrub(
    detectors: &Detectors,
    json: &[u8],
    context: &Context,
    hits: &mut Hits,
) -> Option<Vec<u8>> {
    if serde_json::from_slice::<serde::de::IgnoredAny>(json).is_err() {
        return detectors.scrub_bytes(json, context, hits).map(|scrubbed| scrubbed.bytes);
    }
    Scrubber { detectors, json, out: Vec::new(), copied: 0, context: context.clone() }.run(hits)
}

struct Scrubber<'a> {
    detectors: &'a Detectors,
    json: &'a [u8],
    out: Vec<u8>,
    /// The text up to here is in `out`.
    copied: usize,
    /// The key of the value at hand, or the column when there is none.
    context: Context,
}

impl Scrubber<'_> {
    fn run(mut self, hits: &mut Hits) -> Option<Vec<u8>> {
        let mut at = 0;
        while let Some(byte) = self.json.get(at) {
            at = match byte {
                b'"' => self.string(at, hits),
                b'-' | b'0'..=b'9' => self.number(at, hits),
                _ => at + 1,
            };
        }
        if self.copied == 0 {
            return None;
        }
        self.out.extend_from_slice(&self.json[self.copied..]);
        Some(self.out)
    }

    /// One string token; returns where it ends.
    fn string(&mut self, start: usize, hits: &mut Hits) -> usize {
        let end = string_end(self.json, start);
        let token = &self.json[start..end];
        let after = self.json[end..].trim_ascii_start();
        let is_key = after.first() == Some(&b':');
        // A lone surrogate has no decoded form: its token is looked at as it is written.
        let decoded = serde_json::from_slice::<String>(token);
        let text = match &decoded {
            Ok(text) => text.as_bytes(),
            Err(_) => token.get(1..token.len().saturating_sub(1)).unwrap_or_default(),
        };
        let none = Context::default();
        let context = if is_key { &none } else { &self.context };
        if let Some(scrubbed) = self.detectors.scrub_bytes(text, context, hits) {
            let null = scrubbed.null && !is_key;
            self.replace(start, end, (!null).then_some(&scrubbed.bytes));
        }
        if is_key {
            self.context = Context::named(&String::from_utf8_lossy(text));
        }
        end
    }

    /// One number token; returns where it ends.
    fn number(&mut self, start: usize, hits: &mut Hits) -> usize {
        let end = self.json[start..]
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .map_or(self.json.len(), |p| p + start);
        let token = &self.json[start..end];
        if token.len() < 7 || !token.iter().all(u8::is_ascii_digit) {
            return end;
        }
        if let Some(scrubbed) = self.detectors.scrub_bytes(token, &self.context, hits) {
            self.replace(start, end, (!scrubbed.null).then_some(&scrubbed.bytes));
        }
        end
    }

    /// Puts a string, or `null`, in the place of a token.
    fn replace(&mut self, start: usize, end: usize, text: Option<&Vec<u8>>) {
        self.out.extend_from_slice(&self.json[self.copied..start]);
        match text {
            None => self.out.extend_from_slice(b"null"),
            Some(text) => string_into(text, &mut self.out),
        }
        self.copied = end;
    }
}

/// Where the string token that begins at `start` ends, behind its closing quote.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if json[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    json.len()
}

/// Appends a text as a JSON string.
pub(super) fn string_into(text: &[u8], out: &mut impl BufMut) {
    let text = String::from_utf8_lossy(text);
    out.put_u8(b'"');
    for c in text.chars() {
        match c {
            '"' => out.put_slice(b"\\\""),
            '\\' => out.put_slice(b"\\\\"),
            c if c < ' ' => out.put_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            c => out.put_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.put_u8(b'"');
}
