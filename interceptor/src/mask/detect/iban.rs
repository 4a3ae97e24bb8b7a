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

/// Letters and digits from `start`, skipping single separators between them, until `N` are
/// there; gives them in upper case and where they end. `None` when the text ends before, or a
/// letter or digit follows.
pub(super) fn collect(text: &[u8], start: usize, count: usize) -> Option<([u8; 34], usize)> {
    let mut chars = [0u8; 34];
    let mut at = start;
    for (i, slot) in chars.iter_mut().take(count).enumerate() {
        let mut byte = *text.get(at)?;
        if i > 0 && matches!(byte, b' ' | b'-' | b'.') {
            at += 1;
            byte = *text.get(at)?;
        }
        if !byte.is_ascii_alphanumeric() {
            return None;
        }
        *slot = byte.to_ascii_uppercase();
        at += 1;
    }
    let ends = !text.get(at).is_some_and(u8::is_ascii_alphanumeric);
    ends.then_some((chars, at))
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
pub(super) fn find(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while at + 15 <= text.len() {
        let fresh = at == 0 || !text[at - 1].is_ascii_alphanumeric();
        let country = fresh && text[at].is_ascii_alphabetic();
        if country
            && text[at + 2].is_ascii_digit()
            && text[at + 3].is_ascii_digit()
            && let Some(end) = iban_at(text, at)
        {
            found(at..end);
            at = end;
            continue;
        }
        at += 1;
    }
}

fn iban_at(text: &[u8], at: usize) -> Option<usize> {
    let country = [text[at].to_ascii_uppercase(), text[at + 1].to_ascii_uppercase()];
    let (_, length) = LENGTHS.iter().find(|(code, _)| **code == country)?;
    let (chars, end) = collect(text, at, *length)?;
    let iban = &chars[..*length];
    mod97(iban).then_some(end)
}
