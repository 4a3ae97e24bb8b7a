//! Ids with letters: GB, ES, FR, IT, FI. Each begins at the start of a word.

use std::ops::Range;

use super::super::digits::{tied_after, tied_before};

/// Digits that an id of these has at least. One with more letters in their place reads like
/// words, and texts without that many digits are not looked at.
const DIGITS: usize = 5;

/// The longest id with a separator between all its characters, and what ties it to more text.
const LONGEST: usize = 2 * 16 + 1;

/// The first digit of an id stands at most so far behind its beginning: of the characters of a
/// codice fiscale that are digits as a rule, two of the first three may be letters.
const FIRST_DIGIT: usize = 2 * 9;

/// Finds ids with letters in a folded text.
pub(super) fn find(text: &[u8], from: usize, mut found: impl FnMut(Range<usize>)) {
    let mut at = from;
    let mut digit: Option<usize> = None;
    while at + 9 <= text.len() {
        // Where no digit is near, no id begins.
        let next = match digit.filter(|digit| *digit >= at) {
            Some(next) => next,
            None => match text[at..].iter().position(u8::is_ascii_digit) {
                Some(next) => at + next,
                None => return,
            },
        };
        digit = Some(next);
        at = at.max(next.saturating_sub(FIRST_DIGIT));
        if at + 9 <= text.len() && begins(text, at) {
            let hit = if text[at].is_ascii_digit() {
                es_nif(text, at).or_else(|| fr_nir(text, at)).or_else(|| fi_hetu(text, at))
            } else {
                gb_nino(text, at).or_else(|| es_nie(text, at)).or_else(|| it_cf(text, at))
            };
            if let Some(end) = hit.filter(|end| !tied_after(text, *end)) {
                found(at..end);
                at = end;
                continue;
            }
        }
        at += 1;
    }
}

fn begins(text: &[u8], at: usize) -> bool {
    text[at].is_ascii_alphanumeric()
        && (at == 0 || !text[at - 1].is_ascii_alphanumeric())
        && !tied_before(text, at)
}

/// Where an id begins that more text behind could complete, or tie to something else.
pub(super) fn alive(text: &[u8], from: usize) -> Option<usize> {
    let open = |at: usize| {
        SHAPES.iter().any(|shape| match walk(text, at, shape) {
            Walk::Open => true,
            Walk::Whole(_, end) => undecided(text, end),
            Walk::Other => false,
        }) || hetu_open(&text[at..])
    };
    let start = from.max(text.len().saturating_sub(LONGEST));
    (start..text.len()).find(|at| begins(text, *at) && open(*at))
}

/// Whether [`tied_after`] asks for bytes that are not there.
fn undecided(text: &[u8], end: usize) -> bool {
    matches!(&text[end..], [] | [b'-' | b'.' | b'_' | b'/'])
}

/// `L` a letter, `D` a digit, `A` either, `C` a digit or the letter that stands for one in a
/// codice fiscale.
const SHAPES: [&[u8]; 5] = [NINO, NIF_SHAPE, NIE, NIR, CF];
const NINO: &[u8; 9] = b"LLDDDDDDL";
const NIF_SHAPE: &[u8; 9] = b"DDDDDDDDL";
const NIE: &[u8; 9] = b"LDDDDDDDL";
const NIR: &[u8; 15] = b"DDDDDAADDDDDDDD";
const CF: &[u8; 16] = b"LLLLLLCCLCCLCCCL";

const fn fits(byte: u8, class: u8) -> bool {
    match class {
        b'L' => byte.is_ascii_alphabetic(),
        b'D' => byte.is_ascii_digit(),
        b'A' => byte.is_ascii_alphanumeric(),
        _ => matches!(
            byte.to_ascii_uppercase(),
            b'0'..=b'9' | b'L' | b'M' | b'N' | b'P'..=b'V'
        ),
    }
}

/// What stands at the start of a word, held against a shape.
enum Walk {
    /// Something else.
    Other,
    /// As much of the shape as there is text.
    Open,
    /// Its characters in upper case, and where they end.
    Whole([u8; 16], usize),
}

/// Follows a shape over letters and digits, skipping single separators between them.
fn walk(text: &[u8], start: usize, shape: &[u8]) -> Walk {
    let mut chars = [0u8; 16];
    let mut at = start;
    for (i, (slot, class)) in chars.iter_mut().zip(shape).enumerate() {
        if i > 0 && text.get(at).is_some_and(|b| matches!(b, b' ' | b'-' | b'.')) {
            at += 1;
        }
        let Some(byte) = text.get(at) else { return Walk::Open };
        if !fits(*byte, *class) {
            return Walk::Other;
        }
        *slot = byte.to_ascii_uppercase();
        at += 1;
    }
    match text.get(at) {
        Some(next) if next.is_ascii_alphanumeric() => Walk::Other,
        _ => Walk::Whole(chars, at),
    }
}

/// Characters of that shape from `at`; `None` unless a word ends there.
fn take<const N: usize>(text: &[u8], at: usize, shape: &[u8; N]) -> Option<([u8; N], usize)> {
    match walk(text, at, shape) {
        Walk::Whole(chars, end) => Some((*chars.first_chunk::<N>()?, end)),
        Walk::Other | Walk::Open => None,
    }
}

fn all_digits(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_digit)
}

fn value(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |n, d| n * 10 + u64::from(d.wrapping_sub(b'0')))
}

/// UK national insurance number. It has no checksum, so its letters must be capitals.
fn gb_nino(text: &[u8], at: usize) -> Option<usize> {
    let (n, end) = take(text, at, NINO)?;
    let first = !matches!(n[0], b'D' | b'F' | b'I' | b'Q' | b'U' | b'V');
    let second = !matches!(n[1], b'D' | b'F' | b'I' | b'O' | b'Q' | b'U' | b'V');
    let issued = !matches!(&n[..2], b"BG" | b"GB" | b"KN" | b"NK" | b"NT" | b"TN" | b"ZZ");
    let suffix = matches!(n[8], b'A'..=b'D');
    let capitals = !text[at..end].iter().any(u8::is_ascii_lowercase);
    (first && second && issued && suffix && capitals).then_some(end)
}

const NIF: &[u8; 23] = b"TRWAGMYFPDXBNJZSQVHLCKE";

fn nif_letter(number: u64) -> u8 {
    usize::try_from(number % 23).ok().and_then(|i| NIF.get(i)).copied().unwrap_or(0)
}

/// Spain, citizens: eight digits and a letter by mod 23.
fn es_nif(text: &[u8], at: usize) -> Option<usize> {
    let (n, end) = take(text, at, NIF_SHAPE)?;
    let capital = text[end - 1].is_ascii_uppercase();
    (capital && n[8] == nif_letter(value(&n[..8]))).then_some(end)
}

/// Spain, foreigners: X, Y or Z stand for 0, 1 and 2.
fn es_nie(text: &[u8], at: usize) -> Option<usize> {
    let first = match text[at] {
        b'X' => 0,
        b'Y' => 1,
        b'Z' => 2,
        _ => return None,
    };
    let (n, end) = take(text, at, NIE)?;
    let number = first * 10_000_000 + value(&n[1..8]);
    (n[8] == nif_letter(number)).then_some(end)
}

/// France: NIR with its key, mod 97; the two departments of Corsica carry a letter.
fn fr_nir(text: &[u8], at: usize) -> Option<usize> {
    let (mut n, end) = take(text, at, NIR)?;
    let corsica = match &n[5..7] {
        b"2A" => Some(b'9'),
        b"2B" => Some(b'8'),
        _ => None,
    };
    if let Some(digit) = corsica {
        n[5] = b'1';
        n[6] = digit;
    }
    if !all_digits(&n) || !matches!(n[0], b'1' | b'2' | b'7' | b'8') {
        return None;
    }
    let month = value(&n[3..5]);
    let real_month = matches!(month, 1..=12 | 20..=42);
    (real_month && value(&n[13..]) == 97 - value(&n[..13]) % 97).then_some(end)
}

/// Italy: codice fiscale with its check letter; digits may be letters (omocodia).
fn it_cf(text: &[u8], at: usize) -> Option<usize> {
    const ODD: [u8; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let (n, end) = take(text, at, CF)?;
    let month = matches!(n[8], b'A'..=b'E' | b'H' | b'L' | b'M' | b'P' | b'R'..=b'T');
    if !month || n.iter().filter(|c| c.is_ascii_digit()).count() < DIGITS {
        return None;
    }
    let index = |c: u8| if c.is_ascii_digit() { c - b'0' } else { c.wrapping_sub(b'A') };
    let sum: u32 = n[..15]
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let index = index(*c);
            u32::from(if i % 2 == 0 { ODD[usize::from(index) % 26] } else { index })
        })
        .sum();
    (u32::from(n[15] - b'A') == sum % 26).then_some(end)
}

/// Finland: date, century sign, serial and a check character by mod 31.
fn fi_hetu(text: &[u8], at: usize) -> Option<usize> {
    const CHECK: &[u8; 31] = b"0123456789ABCDEFHJKLMNPRSTUVWXY";
    let end = at + 11;
    let n = text.get(at..end)?;
    let sign = matches!(n[6], b'+' | b'-' | b'A'..=b'F' | b'U'..=b'Y');
    if !sign || !all_digits(&n[..6]) || !all_digits(&n[7..10]) {
        return None;
    }
    let (day, month) = (value(&n[..2]), value(&n[2..4]));
    if !(1..=31).contains(&day) || !(1..=12).contains(&month) {
        return None;
    }
    let number = value(&n[..6]) * 1000 + value(&n[7..10]);
    let check = usize::try_from(number % 31).ok().and_then(|i| CHECK.get(i));
    (check == Some(&n[10])).then_some(end)
}

/// Whether a text is the beginning of such an id, or one that what follows could tie.
fn hetu_open(text: &[u8]) -> bool {
    let shaped = text.iter().take(11).enumerate().all(|(i, byte)| match i {
        6 => matches!(byte, b'+' | b'-' | b'A'..=b'F' | b'U'..=b'Y'),
        10 => byte.is_ascii_alphanumeric(),
        _ => byte.is_ascii_digit(),
    });
    shaped && (text.len() < 11 || undecided(text, 11))
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_that_may_go_on() {
        for (text, alive) in [
            ("", None),
            ("AB 12", Some(0)),
            ("is AB 12 34 56 C", Some(3)),
            ("is AB 12 34 56 C.", Some(3)),
            ("is AB 12 34 56 C,", None),
            ("is AB 12 34 56 CX, ", None),
            ("010190-123", Some(0)),
            ("010190-1234", Some(0)),
            ("010190-1234-", Some(0)),
            ("010190-1234, ", None),
            ("the words, ", None),
            ("RSSMRA85T10A562", Some(0)),
        ] {
            assert_eq!(super::alive(text.as_bytes(), 0), alive, "{text:?}");
        }
        assert_eq!(super::alive(b"AB 12 34", 1), Some(3));
    }
}
