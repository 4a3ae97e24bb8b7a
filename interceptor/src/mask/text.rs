//! Masking of one text: the methods as bytes.

use bytes::BufMut;

use super::detect::email;
use super::{HashKey, Method};

/// What [`Method::Redact`] leaves.
pub const REDACTED: &str = "[redacted]";

/// Stands before the hexadecimal digits of a keyed hash.
pub const HASH_PREFIX: &str = "h_";

/// At most this many asterisks stand for hidden characters.
const MAX_STARS: usize = 32;

/// Texts shorter than this show nothing when masked partially.
const MIN_PARTIAL: usize = 4;

/// Appends the masked form of a text. Null appends nothing.
pub(super) fn mask_into(method: &Method, key: &HashKey, value: &[u8], out: &mut impl BufMut) {
    match method {
        Method::Null => {}
        Method::Fixed(constant) => out.put_slice(constant.as_bytes()),
        Method::Redact => out.put_slice(REDACTED.as_bytes()),
        Method::Hash => hash_into(key, value, out),
        Method::Partial { keep_start, keep_end } => {
            partial_into(value, usize::from(*keep_start), usize::from(*keep_end), out);
        }
    }
}

/// Appends prefix and 32 hexadecimal digits.
pub(super) fn hash_into(key: &HashKey, value: &[u8], out: &mut impl BufMut) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 34];
    text[..2].copy_from_slice(HASH_PREFIX.as_bytes());
    for (pair, byte) in text[2..].chunks_exact_mut(2).zip(key.digest(value)) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    out.put_slice(&text);
}

/// Keeps characters at both ends, never more than half of them and none of a very short text.
/// Of an e-mail address the first letter and the last label of the domain stay. What is not
/// UTF-8 has no characters to keep and is redacted.
fn partial_into(value: &[u8], keep_start: usize, keep_end: usize, out: &mut impl BufMut) {
    let ascii = value.is_ascii();
    let mail = memchr::memchr2(b'@', b'%', value).is_some();
    // Plain ASCII needs no look at its characters.
    let text = if ascii && !mail { Ok("") } else { std::str::from_utf8(value) };
    let Ok(text) = text else {
        out.put_slice(REDACTED.as_bytes());
        return;
    };
    if mail && let Some(parts) = email::split(text) {
        return partial_email_into(&parts, keep_start, keep_end, out);
    }
    let count = if ascii { value.len() } else { text.chars().count() };
    let budget = if count < MIN_PARTIAL { 0 } else { count / 2 };
    let start = keep_start.min(budget);
    let end = keep_end.min(budget - start);
    let stars = (count - start - end).min(MAX_STARS);
    let (head, tail) = if ascii {
        (start, count - end)
    } else {
        let at = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        (at(start), if end == 0 { text.len() } else { at(count - end) })
    };
    const STARS: [u8; MAX_STARS] = [b'*'; MAX_STARS];
    out.put_slice(&value[..head]);
    out.put_slice(&STARS[..stars]);
    out.put_slice(&value[tail..]);
}

/// `alice@shop.example.com` becomes `a***@***.com`.
fn partial_email_into(
    parts: &email::Parts<'_>,
    keep_start: usize,
    keep_end: usize,
    out: &mut impl BufMut,
) {
    if keep_start > 0
        && parts.local.chars().nth(1).is_some()
        && let Some(first) = parts.local.chars().next()
    {
        out.put_slice(first.encode_utf8(&mut [0; 4]).as_bytes());
    }
    out.put_slice(b"***@***");
    if let Some(tld) = parts.tld.filter(|_| keep_end > 0) {
        out.put_u8(b'.');
        out.put_slice(tld.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partial(value: &str, keep_start: u8, keep_end: u8) -> String {
        let key = HashKey::from_bytes(&[1; 32]);
        let mut out = Vec::new();
        let method = Method::Partial { keep_start, keep_end };
        mask_into(&method, &key, value.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn partial_shows_at_most_half() {
        for (value, start, end, shown) in [
            ("4111111111111111", 1, 4, "4***********1111"),
            ("Alice", 1, 4, "A***e"),
            ("Bob", 1, 4, "***"),
            ("", 1, 4, ""),
            ("x", 9, 9, "*"),
            ("Zoë Łukasiewicz", 2, 2, "Zo***********cz"),
            ("日本語テキスト", 1, 1, "日*****ト"),
            ("abcdefgh", 255, 255, "abcd****"),
            ("abcdefgh", 0, 255, "****efgh"),
            ("alice@shop.example.com", 1, 4, "a***@***.com"),
            ("a@b.co", 1, 4, "***@***.co"),
            ("alice@example.com", 0, 0, "***@***"),
            ("write to alice@example.com", 2, 2, "wr**********************om"),
        ] {
            assert_eq!(partial(value, start, end), shown, "{value}");
        }
        assert_eq!(partial(&"x".repeat(1000), 1, 1).len(), 34);
    }

    #[test]
    fn partial_of_unknown_encoding_is_redacted() {
        let mut out = Vec::new();
        mask_into(
            &Method::DEFAULT_PARTIAL,
            &HashKey::from_bytes(&[1; 32]),
            b"caf\xe9s und",
            &mut out,
        );
        assert_eq!(out, REDACTED.as_bytes());
    }

    #[test]
    fn hashes_are_keyed_and_equal_for_equal_values() {
        let hash = |key: u8, value: &str| {
            let mut out = Vec::new();
            hash_into(&HashKey::from_bytes(&[key; 32]), value.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(hash(1, "alice"), hash(1, "alice"));
        assert_ne!(hash(1, "alice"), hash(1, "bob"));
        assert_ne!(hash(1, "alice"), hash(2, "alice"));
        assert!(hash(1, "alice").starts_with(HASH_PREFIX));
        assert_eq!(hash(1, "alice").len(), 34);
    }
}
