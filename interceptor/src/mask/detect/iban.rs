//! International bank account numbers: country length, mod-97.

use std::ops::Range;

/// Country and total length, by ISO 13616.
const LENGTHS: &[(&[u8; 2], usize)] = &[
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HN", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
    (b"YE", 30),
];

/// The longest IBAN with a separator between all its characters.
const LONGEST: usize = 2 * 34;

/// What stands at the start of a word.
enum Walk {
    /// Something else.
    Other,
    /// As many of the letters and digits as there is text.
    Open,
    /// All of them in upper case, and where they end.
    Whole([u8; 34], usize),
}

/// Letters and digits from `start`, skipping single separators between them, until `count`
/// are there and no other follows.
fn walk(text: &[u8], start: usize, count: usize) -> Walk {
    let mut chars = [0u8; 34];
    let mut at = start;
    for (i, slot) in chars.iter_mut().take(count).enumerate() {
        if i > 0 && text.get(at).is_some_and(|b| matches!(b, b' ' | b'-' | b'.')) {
            at += 1;
        }
        match text.get(at) {
            None => return Walk::Open,
            Some(byte) if byte.is_ascii_alphanumeric() => *slot = byte.to_ascii_uppercase(),
            Some(_) => return Walk::Other,
        }
        at += 1;
    }
    match text.get(at) {
        Some(next) if next.is_ascii_alphanumeric() => Walk::Other,
        _ => Walk::Whole(chars, at),
    }
}

/// ISO 7064 mod 97 over the rearranged characters.
fn mod97(iban: &[u8]) -> bool {
    let (head, tail) = iban.split_at(4);
    let remainder = tail.iter().chain(head).fold(0u32, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        _ => (rest * 100 + u32::from(byte.saturating_sub(b'A')) + 10) % 97,
    });
    remainder == 1
}

/// Finds IBANs in a folded text.
pub(super) fn find(text: &[u8], from: usize, mut found: impl FnMut(Range<usize>)) {
    let mut at = from;
    while at + 15 <= text.len() {
        if text[at + 2].is_ascii_digit()
            && text[at + 3].is_ascii_digit()
            && begins(text, at)
            && let Some(end) = iban_at(text, at)
        {
            found(at..end);
            at = end;
            continue;
        }
        at += 1;
    }
}

fn begins(text: &[u8], at: usize) -> bool {
    text[at].is_ascii_alphabetic() && (at == 0 || !text[at - 1].is_ascii_alphanumeric())
}

/// Where an IBAN begins that more text behind could complete or spoil.
pub(super) fn alive(text: &[u8], from: usize) -> Option<usize> {
    let open = |at: usize| {
        let head = &text[at..];
        let digits = head.iter().skip(2).take(2).all(u8::is_ascii_digit);
        digits
            && LENGTHS.iter().any(|(code, length)| {
                code.iter().zip(head).all(|(c, b)| b.eq_ignore_ascii_case(c))
                    && match walk(text, at, *length) {
                        Walk::Open => true,
                        Walk::Whole(_, end) => end == text.len(),
                        Walk::Other => false,
                    }
            })
    };
    let start = from.max(text.len().saturating_sub(LONGEST));
    (start..text.len()).find(|at| begins(text, *at) && open(*at))
}

fn iban_at(text: &[u8], at: usize) -> Option<usize> {
    let country = [text[at].to_ascii_uppercase(), text[at + 1].to_ascii_uppercase()];
    let (_, length) = LENGTHS.iter().find(|(code, _)| **code == country)?;
    match walk(text, at, *length) {
        Walk::Whole(chars, end) => mod97(&chars[..*length]).then_some(end),
        Walk::Other | Walk::Open => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ibans_that_may_go_on() {
        for (text, alive) in [
            ("", None),
            ("to D", Some(3)),
            ("to DE", Some(3)),
            ("to DE8", Some(3)),
            ("to DE89 3704 0044 0532 0130 0", Some(3)),
            ("to DE89370400440532013000", Some(3)),
            ("to DE89370400440532013000,", None),
            ("to DX89 3704", None),
            ("to DEA9", None),
            ("to DE89  ", None),
        ] {
            assert_eq!(super::alive(text.as_bytes(), 0), alive, "{text:?}");
        }
    }
}
