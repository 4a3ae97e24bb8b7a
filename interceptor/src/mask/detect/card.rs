//! Payment card numbers: issuer prefix, length for that issuer, grouping, Luhn.

use std::ops::Range;

use super::digits::{Run, luhn, number};

/// Issuer prefixes: first and last value of the prefix, its number of digits, and the
/// lengths in use as (shortest, longest).
const ISSUERS: &[(u64, u64, u32, usize, usize)] = &[
    (4, 4, 1, 13, 19),           // Visa (13, 16, 19 are checked below)
    (51, 55, 2, 16, 16),         // Mastercard
    (2221, 2720, 4, 16, 16),     // Mastercard
    (34, 34, 2, 15, 15),         // American Express
    (37, 37, 2, 15, 15),         // American Express
    (6011, 6011, 4, 16, 19),     // Discover
    (644, 659, 3, 16, 19),       // Discover
    (62, 62, 2, 16, 19),         // UnionPay
    (81, 82, 2, 16, 19),         // UnionPay, RuPay
    (3528, 3589, 4, 16, 19),     // JCB
    (300, 305, 3, 14, 19),       // Diners Club
    (3095, 3095, 4, 14, 19),     // Diners Club
    (36, 36, 2, 14, 19),         // Diners Club
    (38, 39, 2, 14, 19),         // Diners Club
    (2200, 2205, 4, 16, 19),     // Mir
    (5018, 5018, 4, 13, 19),     // Maestro
    (5020, 5020, 4, 13, 19),     // Maestro
    (5038, 5038, 4, 13, 19),     // Maestro
    (5893, 5893, 4, 13, 19),     // Maestro
    (6304, 6304, 4, 13, 19),     // Maestro
    (6759, 6763, 4, 13, 19),     // Maestro
    (508500, 508999, 6, 16, 16), // RuPay
    (606985, 607984, 6, 16, 16), // RuPay
    (9792, 9792, 4, 16, 16),     // Troy
];

/// True when these digit values are a card number.
pub(super) fn is_card(digits: &[u8]) -> bool {
    if !(13..=19).contains(&digits.len()) || digits.iter().all(|d| *d == digits[0]) {
        return false;
    }
    if digits[0] == 4 && !matches!(digits.len(), 13 | 16 | 19) {
        return false;
    }
    let issued = ISSUERS.iter().any(|(first, last, width, shortest, longest)| {
        let prefix = number(&digits[..*width as usize]);
        (*first..=*last).contains(&prefix) && (*shortest..=*longest).contains(&digits.len())
    });
    issued && luhn(digits)
}

/// Finds card numbers in a run of digit groups.
pub(super) fn find(run: &Run<'_>, mut found: impl FnMut(Range<usize>)) {
    let mut first = run.first;
    while first < run.groups.len() {
        match longest_from(run, first) {
            Some(window) => {
                first = window.end;
                found(run.span(&window));
            }
            None => first += 1,
        }
    }
}

/// The longest card number that begins with group `first`.
fn longest_from(run: &Run<'_>, first: usize) -> Option<Range<usize>> {
    // A fraction (`0.4111…`) is not a card.
    if first > 0 && run.gap(first - 1) == b"." && run.groups[first].len() > 4 {
        return None;
    }
    let mut total = 0;
    let mut best = None;
    for (last, group) in run.groups.iter().enumerate().skip(first) {
        total += group.len();
        if total > 19 || (last > first && !joins(run, first, last)) {
            break;
        }
        let window = first..last + 1;
        if total >= 13 && run.bounded(&window) && grouped_like_a_card(run, &window) {
            let digits = run.digits::<19>(&window);
            if digits.is_some_and(|digits| is_card(&digits)) {
                best = Some(window);
            }
        }
    }
    best
}

/// Whether the gap before group `last` is one separator, the same as the first of the window.
fn joins(run: &Run<'_>, first: usize, last: usize) -> bool {
    let gap = run.gap(last - 1);
    matches!(gap, b" " | b"-" | b"." | b"  ") && gap == run.gap(first)
}

/// One piece, equal pieces with a shorter rest, or the groupings printed on cards.
fn grouped_like_a_card(run: &Run<'_>, window: &Range<usize>) -> bool {
    let groups = &run.groups[window.clone()];
    let Some((last, front)) = groups.split_last() else { return false };
    let Some(first) = front.first() else { return true };
    let equal = front.iter().all(|g| g.len() == first.len()) && last.len() <= first.len();
    // `4 5 6 1 …` is a list of numbers unless every group has the same length.
    let uniform = equal && (first.len() >= 3 || last.len() == first.len());
    let sizes = || groups.iter().map(|g| g.len());
    uniform
        || sizes().eq([4, 6, 5])
        || sizes().eq([4, 6, 4])
        || sizes().eq([6, 13])
        || sizes().eq([4, 12])
        || sizes().eq([6, 10])
}
