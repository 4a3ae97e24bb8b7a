//! Ids with letters: GB, ES, FR, IT, FI. Each begins at the start of a word.

use std::ops::Range;

use super::super::digits::{tied_after, tied_before};
use super::super::iban::collect;

/// Finds ids with letters in a folded text.
pub(super) fn find(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    let mut at = 0;
    while at + 9 <= text.len() {
        let fresh = text[at].is_ascii_alphanumeric()
            && (at == 0 || !text[at - 1].is_ascii_alphanumeric())
            && !tied_before(text, at);
        if fresh {
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

/// Digits and letters from `at`, by count; `None` unless a word ends there.
fn take<const N: usize>(text: &[u8], at: usize) -> Option<([u8; N], usize)> {
    let (chars, end) = collect(text, at, N)?;
    Some((*chars.first_chunk::<N>()?, end))
}

fn all_digits(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_digit)
}

fn value(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |n, d| n * 10 + u64::from(d.wrapping_sub(b'0')))
}

/// UK national insurance number. It has no checksum, so its letters must be capitals.
fn gb_nino(text: &[u8], at: usize) -> Option<usize> {
    let (n, end) = take::<9>(text, at)?;
    let first = !matches!(n[0], b'D' | b'F' | b'I' | b'Q' | b'U' | b'V');
    let second = !matches!(n[1], b'D' | b'F' | b'I' | b'O' | b'Q' | b'U' | b'V');
    let issued = !matches!(&n[..2], b"BG" | b"GB" | b"KN" | b"NK" | b"NT" | b"TN" | b"ZZ");
    let shaped = n[0].is_ascii_uppercase()
        && n[1].is_ascii_alphabetic()
        && all_digits(&n[2..8])
        && matches!(n[8], b'A'..=b'D');
    let capitals = !text[at..end].iter().any(u8::is_ascii_lowercase);
    (first && second && issued && shaped && capitals).then_some(end)
}

const NIF: &[u8; 23] = b"TRWAGMYFPDXBNJZSQVHLCKE";

fn nif_letter(number: u64) -> u8 {
    usize::try_from(number % 23).ok().and_then(|i| NIF.get(i)).copied().unwrap_or(0)
}

/// Spain, citizens: eight digits and a letter by mod 23.
fn es_nif(text: &[u8], at: usize) -> Option<usize> {
    let (n, end) = take::<9>(text, at)?;
    let capital = text[end - 1].is_ascii_uppercase();
    (capital && all_digits(&n[..8]) && n[8] == nif_letter(value(&n[..8]))).then_some(end)
}

/// Spain, foreigners: X, Y or Z stand for 0, 1 and 2.
fn es_nie(text: &[u8], at: usize) -> Option<usize> {
    let (n, end) = take::<9>(text, at)?;
    let first = match text[at] {
        b'X' => 0,
        b'Y' => 1,
        b'Z' => 2,
        _ => return None,
    };
    let number = first * 10_000_000 + value(&n[1..8]);
    (all_digits(&n[1..8]) && n[8] == nif_letter(number)).then_some(end)
}

/// France: NIR with its key, mod 97; the two departments of Corsica carry a letter.
fn fr_nir(text: &[u8], at: usize) -> Option<usize> {
    let (mut n, end) = take::<15>(text, at)?;
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
    const SHAPE: &[u8; 16] = b"LLLLLLDDLDDLDDDL";
    const ODD: [u8; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let (n, end) = take::<16>(text, at)?;
    let shaped = n.iter().zip(SHAPE).all(|(c, kind)| match kind {
        b'L' => c.is_ascii_alphabetic(),
        _ => c.is_ascii_digit() || matches!(c, b'L' | b'M' | b'N' | b'P'..=b'V'),
    });
    let month = matches!(n[8], b'A'..=b'E' | b'H' | b'L' | b'M' | b'P' | b'R'..=b'T');
    if !shaped || !month {
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
