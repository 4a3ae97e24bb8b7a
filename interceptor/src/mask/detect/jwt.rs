//! JSON web tokens: base64url segments whose first one is a JSON header with an algorithm.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

/// Headers longer than this are not looked at.
const MAX_HEADER: usize = 8 * 1024;

const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

const fn in_segment(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn segment_end(text: &[u8], start: usize) -> usize {
    text[start..].iter().position(|b| !in_segment(*b)).map_or(text.len(), |p| p + start)
}

/// Finds tokens in a folded text; a signed token has three segments, an encrypted one five.
/// Returns where one begins that more text behind could complete or lengthen.
pub(super) fn find(text: &[u8], from: usize, mut found: impl FnMut(Range<usize>)) -> Option<usize> {
    let begins = |start: usize| start == 0 || !in_segment(text[start - 1]);
    let mut alive = None;
    let mut from = from;
    while let Some(start) = memchr::memmem::find(&text[from..], b"eyJ").map(|p| p + from) {
        let header = segment_end(text, start);
        from = header;
        if !begins(start) {
            continue;
        }
        if header == text.len() {
            alive = alive.or(Some(start));
        }
        if text.get(header) != Some(&b'.') || !is_header(&text[start..header]) {
            continue;
        }
        let mut end = header;
        let mut dots = 0;
        while dots < 4 && text.get(end) == Some(&b'.') {
            end = segment_end(text, end + 1);
            dots += 1;
        }
        if end == text.len() {
            alive = alive.or(Some(start));
        }
        if dots >= 2 {
            // A sentence's full stop after the last segment is not part of it.
            while text[end - 1] == b'.' && dots > 2 {
                end -= 1;
                dots -= 1;
            }
            found(start..end);
            from = end;
        }
    }
    let prefix = [2, 1].into_iter().find(|n| text[from..].ends_with(&b"ey"[..*n]));
    alive.or(prefix.map(|n| text.len() - n).filter(|start| begins(*start)))
}

/// Whether what begins at `start` has a complete header of a token.
pub(super) fn has_header(text: &[u8], start: usize) -> bool {
    let header = segment_end(text, start);
    text[start..].starts_with(b"eyJ")
        && text.get(header) == Some(&b'.')
        && is_header(&text[start..header])
}

fn is_header(segment: &[u8]) -> bool {
    if segment.len() > MAX_HEADER {
        return true;
    }
    let Ok(json) = BASE64URL.decode(segment) else { return false };
    serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&json)
        .is_ok_and(|header| header.get("alg").is_some_and(serde_json::Value::is_string))
}
