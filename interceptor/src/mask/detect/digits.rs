//! Runs of digit groups: the raw material of cards, phone numbers and numeric ids.
//!
//! A run is a sequence of digit groups with short gaps of separators between them. Detectors
//! look at windows of whole groups, so that a number is only found where it stands alone.
//!
//! A text may be looked at from somewhere on: what stands before only stands beside.

use std::ops::Range;

/// A maximal sequence of ASCII digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub start: usize,
    pub end: usize,
}

impl Group {
    pub const fn len(self) -> usize {
        self.end - self.start
    }
}

/// Longest gap between two groups of one run, in bytes.
const MAX_GAP: usize = 3;

/// The most digits one finding has.
const LONGEST: usize = 19;

const fn is_gap(byte: u8) -> bool {
    matches!(byte, b' ' | b'-' | b'.' | b'/' | b'(' | b')')
}

/// One run of groups in a text.
pub(super) struct Run<'a> {
    pub text: &'a [u8],
    pub groups: &'a [Group],
    /// The first group to look at; those before it only stand beside.
    pub first: usize,
}

/// Calls `visit` for every run with groups that begin at `from` or later, left to right.
pub(super) fn each_run(text: &[u8], from: usize, mut visit: impl FnMut(&Run<'_>)) {
    let mut groups: Vec<Group> = Vec::new();
    let mut at = from.saturating_sub(MAX_GAP + 1);
    let mut visit = |groups: &[Group]| {
        let first = groups.iter().take_while(|group| group.start < from).count();
        if first < groups.len() {
            visit(&Run { text, groups, first });
        }
    };
    while let Some(start) = text[at..].iter().position(u8::is_ascii_digit).map(|p| p + at) {
        let end = text[start..]
            .iter()
            .position(|b| !b.is_ascii_digit())
            .map_or(text.len(), |p| p + start);
        let joined = groups.last().is_some_and(|last: &Group| {
            let gap = &text[last.end..start];
            gap.len() <= MAX_GAP && gap.iter().all(|b| is_gap(*b))
        });
        if !joined && !groups.is_empty() {
            visit(&groups);
            groups.clear();
        }
        groups.push(Group { start, end });
        at = end;
    }
    visit(&groups);
}

/// Where the numbers begin that more text behind could still change: the last groups of a run
/// that is not closed, as many as one finding may have.
pub(super) fn alive(text: &[u8], from: usize) -> Option<usize> {
    let tail = &text[from..];
    let gap = tail.iter().rev().take(MAX_GAP + 1).take_while(|b| is_gap(**b)).count();
    // `_` only ties a number to what follows it.
    let behind = if gap == 0 { usize::from(tail.ends_with(b"_")) } else { gap };
    if behind > MAX_GAP {
        return None;
    }
    let mut end = text.len() - behind;
    let mut left = LONGEST;
    let mut alive = None;
    loop {
        let group = text[from..end].iter().rev().take(left + 1);
        let digits = group.take_while(|b| b.is_ascii_digit()).count();
        let start = end - digits;
        // A group that is too long, or that began before, is no part of a finding.
        let whole = start == 0 || !text[start - 1].is_ascii_digit();
        if digits == 0 || digits > left || !whole {
            return alive;
        }
        alive = Some(start);
        left -= digits;
        let gap = text[from..start].iter().rev().take(MAX_GAP + 1).take_while(|b| is_gap(**b));
        let gap = gap.count();
        if gap == 0 || gap > MAX_GAP {
            return alive;
        }
        end = start - gap;
    }
}

impl Run<'_> {
    /// The digits of all groups that are to be looked at.
    pub fn total(&self) -> usize {
        self.groups[self.first..].iter().map(|group| group.len()).sum()
    }

    /// The separator bytes between group `i` and the next.
    pub fn gap(&self, i: usize) -> &[u8] {
        match (self.groups.get(i), self.groups.get(i + 1)) {
            (Some(a), Some(b)) => &self.text[a.end..b.start],
            _ => &[],
        }
    }

    /// Byte range of the groups `window`.
    pub fn span(&self, window: &Range<usize>) -> Range<usize> {
        self.groups[window.start].start..self.groups[window.end - 1].end
    }

    /// The digits of the groups `window`, at most `N`; `None` when there are more.
    pub fn digits<const N: usize>(&self, window: &Range<usize>) -> Option<Digits<N>> {
        let mut digits = Digits { bytes: [0; N], len: 0 };
        for group in &self.groups[window.clone()] {
            for byte in &self.text[group.start..group.end] {
                *digits.bytes.get_mut(digits.len)? = byte - b'0';
                digits.len += 1;
            }
        }
        Some(digits)
    }

    /// True when no letter, digit, dot or dash ties the window to what stands beside it.
    pub fn isolated(&self, window: &Range<usize>) -> bool {
        let span = self.span(window);
        !tied_before(self.text, span.start) && !tied_after(self.text, span.end)
    }

    /// True when neither a letter nor a digit touches the window.
    pub fn bounded(&self, window: &Range<usize>) -> bool {
        let span = self.span(window);
        !span.start.checked_sub(1).is_some_and(|i| self.text[i].is_ascii_alphanumeric())
            && !self.text.get(span.end).is_some_and(u8::is_ascii_alphanumeric)
    }
}

/// A letter or digit before `at`, or one behind a single `-`, `.`, `_` or `/`.
pub(super) fn tied_before(text: &[u8], at: usize) -> bool {
    let alnum = |i: Option<usize>| i.is_some_and(|i| text[i].is_ascii_alphanumeric());
    let before = at.checked_sub(1);
    alnum(before)
        || (before.is_some_and(|i| matches!(text[i], b'-' | b'.' | b'_' | b'/'))
            && alnum(at.checked_sub(2)))
}

/// A letter or digit at `at`, or one behind a single `-`, `.`, `_` or `/`.
pub(super) fn tied_after(text: &[u8], at: usize) -> bool {
    let alnum = |i: usize| text.get(i).is_some_and(u8::is_ascii_alphanumeric);
    alnum(at)
        || (text.get(at).is_some_and(|b| matches!(b, b'-' | b'_' | b'/')) && alnum(at + 1))
        || (text.get(at) == Some(&b'.') && text.get(at + 1).is_some_and(u8::is_ascii_digit))
}

/// Up to `N` digits by value (0 to 9).
pub(super) struct Digits<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> std::ops::Deref for Digits<N> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The Luhn test over digit values.
pub(super) fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let d = u32::from(*d) << (i % 2);
            if d > 9 { d - 9 } else { d }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Digit values as a number; at most 19 digits.
pub(super) fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0u64, |n, d| n.wrapping_mul(10).wrapping_add(u64::from(*d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(text: &str) -> Vec<Vec<&str>> {
        let mut all = Vec::new();
        each_run(text.as_bytes(), 0, |run| {
            all.push(run.groups.iter().map(|g| &text[g.start..g.end]).collect());
        });
        all
    }

    #[test]
    fn groups_and_gaps() {
        assert_eq!(runs("call (030) 12-34, or 5"), vec![vec!["030", "12", "34"], vec!["5"]]);
        assert_eq!(runs("none"), Vec::<Vec<&str>>::new());
        assert_eq!(runs("1    2"), vec![vec!["1"], vec!["2"]]);
    }

    #[test]
    fn numbers_that_may_go_on() {
        for (text, alive) in [
            ("", None),
            ("4", Some(0)),
            ("card 4111 11", Some(5)),
            ("card 4111-", Some(5)),
            ("card 4111 - ", Some(5)),
            ("card 4111    ", None),
            ("card 4111_", Some(5)),
            ("card 4111x", None),
            ("card 4111__", None),
            ("12345678901234567890", None),
            ("7 12345678901234567890", None),
            ("11111 22222 33333 4444 55", Some(6)),
        ] {
            assert_eq!(super::alive(text.as_bytes(), 0), alive, "{text:?}");
        }
        assert_eq!(super::alive(b"4111 1111", 2), Some(5), "a group that began before is out");
    }

    #[test]
    fn luhn_digit() {
        assert!(luhn(&[7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3]));
        assert!(!luhn(&[7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 4]));
    }
}
