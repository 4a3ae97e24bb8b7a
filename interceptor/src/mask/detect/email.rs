//! E-mail addresses, also with `@` written as `%40`, and with letters beyond ASCII.

use std::ops::Range;

const MAX_LOCAL: usize = 64;
const MAX_DOMAIN: usize = 253;

/// The byte is an everyday one of a local part.
const EVERYDAY: u8 = 1;
/// The byte may stand in a label of a domain.
const LABEL: u8 = 2;

/// One look-up for a byte instead of a comparison for each class: every value of a masked column
/// of addresses comes through here.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'%' | b'+' | b'-') {
            classes[byte] |= EVERYDAY;
        }
        if b.is_ascii_alphanumeric() || b == b'-' || b >= 0x80 {
            classes[byte] |= LABEL;
        }
        byte += 1;
    }
    classes
};

/// Length of the character beyond ASCII that ends at `end`; 1 for a byte that is no part of a
/// UTF-8 character.
fn beyond_len(text: &[u8], end: usize) -> usize {
    (2..=4usize.min(end))
        .find(|len| {
            std::str::from_utf8(&text[end - len..end]).is_ok_and(|s| s.chars().count() == 1)
        })
        .unwrap_or(1)
}

/// What may stand in the local part: ASCII of everyday addresses, letters of two UTF-8 bytes
/// (so `jürgen` is whole, and Chinese text before an address is not taken for it), and bytes
/// that are letters of some other encoding.
fn local_len(text: &[u8], end: usize) -> usize {
    let floor = end.saturating_sub(MAX_LOCAL);
    let mut start = end;
    while start > floor {
        let byte = text[start - 1];
        if CLASSES[usize::from(byte)] & EVERYDAY != 0 {
            start -= 1;
        } else if byte == b'\'' {
            // o'brien@…, but not a quote before the address
            let inner = start >= 2 && text[start - 2].is_ascii_alphanumeric() && start < end;
            if !inner {
                break;
            }
            start -= 1;
        } else if byte >= 0x80 {
            let len = beyond_len(&text[..start], start);
            let letter = len == 1 || (len == 2 && (0xC3..=0xD6).contains(&text[start - 2]));
            if !letter || start < floor + len {
                break;
            }
            start -= len;
        } else {
            break;
        }
    }
    while start < end && matches!(text[start], b'.' | b'%' | b'-') {
        start += 1;
    }
    end - start
}

const fn in_label(byte: u8) -> bool {
    CLASSES[byte as usize] & LABEL != 0
}

/// Length of the domain at `start`; 0 when there is none.
fn domain_len(text: &[u8], start: usize) -> usize {
    let limit = text.len().min(start + MAX_DOMAIN);
    let domain = &text[start..limit];
    if domain.first() == Some(&b'[') {
        return bracketed_len(domain);
    }
    let mut best = 0;
    let mut label = 0;
    loop {
        let end =
            domain[label..].iter().position(|b| !in_label(*b)).map_or(domain.len(), |p| p + label);
        let name = &domain[label..end];
        let trimmed = name.len() - name.iter().rev().take_while(|b| **b == b'-').count();
        if name.is_empty() || name[0] == b'-' || trimmed == 0 {
            break;
        }
        if label > 0 && is_tld(&name[..trimmed]) {
            best = label + trimmed;
        }
        if trimmed < name.len() || domain.get(end) != Some(&b'.') {
            break;
        }
        label = end + 1;
    }
    if is_scaled_image(&domain[..best]) { 0 } else { best }
}

/// `user@[192.0.2.1]`
fn bracketed_len(domain: &[u8]) -> usize {
    match domain.iter().take(50).position(|b| *b == b']') {
        Some(end)
            if end > 6
                && domain[1..end].iter().all(|b| {
                    b.is_ascii_hexdigit() || matches!(b, b'.' | b':' | b'I' | b'P' | b'v')
                }) =>
        {
            end + 1
        }
        _ => 0,
    }
}

fn is_tld(label: &[u8]) -> bool {
    label.starts_with(b"xn--")
        || ((2..=24).contains(&label.len())
            && label.iter().all(|b| b.is_ascii_alphabetic() || *b >= 0x80))
}

/// `icon@2x.png` is a file.
fn is_scaled_image(domain: &[u8]) -> bool {
    let name = domain.split(|b| *b == b'.').next().unwrap_or_default();
    let Some((b'x', scale)) = name.split_last().map(|(l, r)| (*l, r)) else { return false };
    !scale.is_empty() && scale.iter().all(u8::is_ascii_digit)
}

/// Finds e-mail addresses in a folded text.
pub(super) fn find(text: &[u8], from: usize, mut found: impl FnMut(Range<usize>)) {
    let begin = from;
    let mut from = from;
    for at in memchr::memchr2_iter(b'@', b'%', &text[begin..]).map(|at| at + begin) {
        let Some(sign) = sign_len(&text[at..]) else { continue };
        if at < from {
            continue;
        }
        let local = local_len(&text[from..], at - from);
        if local == 0 {
            continue;
        }
        let domain = domain_len(text, at + sign);
        if domain > 0 {
            let end = at + sign + domain;
            found(at - local..end);
            from = end;
        }
    }
}

/// `@` or `%40`
fn sign_len(text: &[u8]) -> Option<usize> {
    match text {
        [b'@', ..] => Some(1),
        [b'%', b'4', b'0', ..] => Some(3),
        _ => None,
    }
}

/// Where an address begins that more text behind could complete or lengthen.
pub(super) fn alive(text: &[u8], from: usize) -> Option<usize> {
    let local = |end: usize, longest: usize| {
        let local = text[from..end].iter().rev().take(longest);
        end - local.take_while(|b| maybe_local(**b)).count()
    };
    // Two characters of `%40` may be there already.
    let word = local(text.len(), MAX_LOCAL + 2);
    // A domain, or none yet, that reaches the end.
    let domain = text[from..].iter().rev().take(MAX_DOMAIN).take_while(|b| maybe_domain(**b));
    let sign = (text.len() - domain.count()).checked_sub(1).filter(|at| *at >= from);
    let address = sign.filter(|at| sign_len(&text[*at..]).is_some()).map(|at| local(at, MAX_LOCAL));
    let start = address.map_or(word, |address| address.min(word));
    (start < text.len()).then_some(start)
}

const fn maybe_local(byte: u8) -> bool {
    in_label(byte) || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'\'')
}

const fn maybe_domain(byte: u8) -> bool {
    in_label(byte) || matches!(byte, b'.' | b'[' | b']' | b':')
}

/// The parts of a value that is one e-mail address and nothing else.
pub(crate) struct Parts<'a> {
    /// Before the `@`.
    pub local: &'a str,
    /// The last label of the domain, when there is one.
    pub tld: Option<&'a str>,
}

/// Splits a value that is one e-mail address; anything else is `None`.
pub(crate) fn split(value: &str) -> Option<Parts<'_>> {
    let bytes = value.as_bytes();
    let mut whole = None;
    find(bytes, 0, |span| whole = Some(span));
    if whole? != (0..value.len()) {
        return None;
    }
    let sign = memchr::memchr(b'@', bytes).or_else(|| memchr::memmem::find(bytes, b"%40"))?;
    let dot = memchr::memrchr(b'.', bytes).filter(|dot| *dot > sign);
    let tld = dot.and_then(|dot| value.get(dot + 1..)).filter(|tld| is_tld(tld.as_bytes()));
    Some(Parts { local: value.get(..sign)?, tld })
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_that_may_go_on() {
        let long = "x".repeat(200);
        for (text, alive) in [
            ("", None),
            ("to ali", Some(3)),
            ("to alice@", Some(3)),
            ("to alice@exam", Some(3)),
            ("to alice@example.", Some(3)),
            ("to alice@example.com,", None),
            ("to alice%4", Some(3)),
            ("to alice%40example.co", Some(3)),
            ("to alice@[192.0.", Some(3)),
            ("to alice@, bo", Some(11)),
            ("to alice ", None),
            (&format!("a {long}"), Some(202 - 66)),
            (&format!("a {long}@x"), Some(202 - 64)),
        ] {
            assert_eq!(super::alive(text.as_bytes(), 0), alive, "{text:?}");
        }
    }
}
