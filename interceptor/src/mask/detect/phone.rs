//! Telephone numbers that are written as such: with `+` or `00`, with a trunk zero and
//! grouping, or in the North American grouping. A bare row of digits is a number like any
//! other unless its column or the words before it speak of a telephone.

use std::ops::Range;

use super::context::{Context, said_before};
use super::digits::{Run, number};

/// Names of columns and words before a number that make a bare number a phone number.
pub(super) const WORDS: &[&str] = &[
    "phone",
    "phones",
    "telephone",
    "tel",
    "mobile",
    "cell",
    "cellphone",
    "fax",
    "handy",
    "telefon",
    "telefono",
    "telephones",
    "mobil",
    "msisdn",
    "whatsapp",
    "sms",
];

/// Finds telephone numbers in a run of digit groups.
pub(super) fn find(run: &Run<'_>, context: &Context, mut found: impl FnMut(Range<usize>)) {
    let mut first = run.first;
    while first < run.groups.len() {
        let hit = international(run, first)
            .or_else(|| north_american(run, first))
            .or_else(|| trunk_zero(run, first))
            .or_else(|| spoken_of(run, first, context.phone));
        match hit {
            Some(window) => {
                let span = run.span(&window);
                found(lead_in(run.text, span.start)..span.end);
                first = window.end;
            }
            None => first += 1,
        }
    }
}

/// At most this many of `+` and `(` belong to a number.
const LEAD: usize = 4;

/// Takes a `+` and opening parenthesis before the first digit into the span.
fn lead_in(text: &[u8], start: usize) -> usize {
    let lead = text[..start].iter().rev().take(LEAD);
    start - lead.take_while(|b| matches!(b, b'+' | b'(')).count()
}

/// Where a number begins whose first digit is at `first` or still to come behind the text.
pub(super) fn alive(text: &[u8], from: usize, first: Option<usize>) -> Option<usize> {
    let first = first.unwrap_or(text.len());
    let start = from + lead_in(&text[from..], first - from);
    (start < text.len()).then_some(start)
}

/// Groups from `first` on that one number may hold: at most `max` digits, gaps of
/// separators as phone numbers have them.
fn stretch(run: &Run<'_>, first: usize, max: usize) -> (usize, usize) {
    let mut digits = 0;
    let mut last = first;
    for (i, group) in run.groups.iter().enumerate().skip(first) {
        if digits + group.len() > max || (i > first && !is_phone_gap(run.gap(i - 1))) {
            break;
        }
        digits += group.len();
        last = i + 1;
    }
    (last, digits)
}

fn is_phone_gap(gap: &[u8]) -> bool {
    matches!(
        gap,
        b" " | b"-"
            | b"."
            | b"/"
            | b"("
            | b")"
            | b" ("
            | b") "
            | b")-"
            | b"- "
            | b" / "
            | b" - "
            | b"-("
            | b")/"
    )
}

fn letter_before(text: &[u8], start: usize) -> bool {
    start.checked_sub(1).is_some_and(|i| text[i].is_ascii_alphanumeric())
}

fn letter_after(text: &[u8], end: usize) -> bool {
    text.get(end).is_some_and(u8::is_ascii_alphabetic)
}

/// `+49 171 1234567`, `0049-171-1234567`
fn international(run: &Run<'_>, first: usize) -> Option<Range<usize>> {
    let start = run.groups[first].start;
    let lead = lead_in(run.text, start);
    let plus = run.text[lead..start].contains(&b'+') && !letter_before(run.text, lead);
    let digits_of_first = &run.text[start..run.groups[first].end];
    let zeros = digits_of_first.starts_with(b"00")
        && digits_of_first.get(2).is_some_and(|d| *d != b'0')
        && run.isolated(&(first..first + 1));
    if plus {
        let (end, digits) = stretch(run, first, 15);
        let real = (8..=15).contains(&digits) && digits_of_first[0] != b'0';
        return (real && !letter_after(run.text, run.groups[end - 1].end)).then_some(first..end);
    }
    // Without a separator a number with two leading zeros is a padded id.
    let (end, digits) = stretch(run, first, 17);
    let real = zeros && end > first + 1 && (10..=17).contains(&digits);
    (real && !letter_after(run.text, run.groups[end - 1].end)).then_some(first..end)
}

/// `(415) 555-2671`, `415-555-2671`, `1.415.555.2671`
fn north_american(run: &Run<'_>, first: usize) -> Option<Range<usize>> {
    let one = run.groups[first].len() == 1 && run.text[run.groups[first].start] == b'1';
    let area = first + usize::from(one);
    let window = first..area + 3;
    let groups = run.groups.get(area..area + 3)?;
    if [groups[0].len(), groups[1].len(), groups[2].len()] != [3, 3, 4] {
        return None;
    }
    if !(first..area + 2).all(|i| is_phone_gap(run.gap(i))) || !alone(run, &window) {
        return None;
    }
    let digits = run.digits::<10>(&(area..area + 3))?;
    let service_code = digits[1] == 1 && digits[2] == 1;
    (digits[0] >= 2 && digits[3] >= 2 && !service_code).then_some(window)
}

/// Not part of a longer chain of dashes, dots or letters.
fn alone(run: &Run<'_>, window: &Range<usize>) -> bool {
    let span = run.span(window);
    let lead = lead_in(run.text, span.start);
    if lead < span.start {
        return !letter_before(run.text, lead) && !super::digits::tied_after(run.text, span.end);
    }
    run.isolated(window)
}

/// `0171 1234567`, `(030) 12 34 56`, `01 23 45 67 89`
fn trunk_zero(run: &Run<'_>, first: usize) -> Option<Range<usize>> {
    let head = run.groups[first];
    let zero = head.len() >= 2 && run.text[head.start] == b'0' && run.text[head.start + 1] != b'0';
    if !zero {
        return None;
    }
    let (mut end, _) = stretch(run, first, 12);
    // Beyond the first gap, which may differ, the separators are the same.
    while end > first + 2 && run.gap(end - 2) != run.gap(first + 1) {
        end -= 1;
    }
    let window = first..end;
    let digits: usize = run.groups[window.clone()].iter().map(|g| g.len()).sum();
    let shaped = end > first + 1
        && (9..=12).contains(&digits)
        && run.groups[window.clone()].iter().all(|g| g.len() >= 2);
    (shaped && alone(run, &window) && !is_date(run, &window)).then_some(window)
}

/// `01-02-2024 10`: day, month, year.
fn is_date(run: &Run<'_>, window: &Range<usize>) -> bool {
    let groups = &run.groups[window.clone()];
    let [day, month, year, ..] = groups else { return false };
    let value = |i: usize| {
        run.digits::<19>(&(window.start + i..window.start + i + 1)).map_or(0, |d| number(&d))
    };
    [day.len(), month.len(), year.len()] == [2, 2, 4]
        && (1..=31).contains(&value(0))
        && (1..=31).contains(&value(1))
        && (1900..2100).contains(&value(2))
}

/// Any number of a plausible length in a place that is said to hold phone numbers.
fn spoken_of(run: &Run<'_>, first: usize, named: bool) -> Option<Range<usize>> {
    let (end, digits) = stretch(run, first, 15);
    let window = first..end;
    if !(7..=15).contains(&digits) || !run.bounded(&window) || is_date(run, &window) {
        return None;
    }
    (named || said_before(run.text, run.groups[first].start, WORDS)).then_some(window)
}
