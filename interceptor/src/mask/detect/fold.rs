//! Folding of look-alikes, so that the detectors see plain ASCII.
//!
//! Full-width forms and decimal digits of other scripts become their ASCII character, odd
//! spaces and dashes become the common ones, and zero-width characters vanish. Positions in
//! the folded text lead back to the original.

use std::borrow::Cow;

/// A text as the detectors see it.
pub(super) struct Folded<'a> {
    /// Folded bytes; the original when nothing had to change.
    pub bytes: Cow<'a, [u8]>,
    /// Whether the original was valid UTF-8.
    pub utf8: bool,
    /// Where the distance between the two texts changes: (folded, original), ascending.
    steps: Vec<(usize, usize)>,
}

/// The first digit of decimal scripts beside ASCII, each followed by its other nine.
const ZEROS: [u32; 15] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66,
    0x0E50, 0x0ED0, 0xFF10,
];

enum Fold {
    Keep,
    Drop,
    To(u8),
}

fn fold_char(c: char) -> Fold {
    match c {
        '\u{00AD}'
        | '\u{200B}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{2064}'
        | '\u{2066}'..='\u{2069}'
        | '\u{FEFF}'
        | '\u{034F}'
        | '\u{180E}'
        | '\u{FE00}'..='\u{FE0F}' => Fold::Drop,
        '\u{00A0}'
        | '\u{1680}'
        | '\u{2000}'..='\u{200A}'
        | '\u{202F}'
        | '\u{205F}'
        | '\u{3000}' => Fold::To(b' '),
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{FE58}' | '\u{FE63}' => Fold::To(b'-'),
        '\u{2024}' | '\u{FE52}' | '\u{00B7}' | '\u{2022}' | '\u{3002}' => Fold::To(b'.'),
        '\u{FE6B}' => Fold::To(b'@'),
        '\u{FF01}'..='\u{FF5E}' => Fold::To(u8::try_from(c as u32 - 0xFF01 + 0x21).unwrap_or(b'?')),
        _ if (c as u32) < 0x0660 => Fold::Keep,
        _ => ZEROS
            .iter()
            .find(|zero| (**zero..**zero + 10).contains(&(c as u32)))
            .and_then(|zero| u8::try_from(c as u32 - zero).ok())
            .map_or(Fold::Keep, |digit| Fold::To(b'0' + digit)),
    }
}

impl<'a> Folded<'a> {
    /// Folds a text; anything that is not UTF-8 is looked at byte by byte as it is.
    pub fn new(original: &'a [u8]) -> Self {
        let plain = |utf8| Self { bytes: Cow::Borrowed(original), utf8, steps: Vec::new() };
        if original.is_ascii() {
            return plain(true);
        }
        let Ok(text) = std::str::from_utf8(original) else { return plain(false) };
        let changes = |c: char| !c.is_ascii() && !matches!(fold_char(c), Fold::Keep);
        let Some(first) = text.find(changes) else { return plain(true) };
        let mut bytes = Vec::with_capacity(original.len());
        let mut steps = Vec::new();
        let mut copied = 0;
        for (at, c) in text[first..].char_indices().map(|(at, c)| (at + first, c)) {
            if c.is_ascii() {
                continue;
            }
            let fold = fold_char(c);
            if matches!(fold, Fold::Keep) {
                continue;
            }
            bytes.extend_from_slice(&original[copied..at]);
            if let Fold::To(byte) = fold {
                steps.push((bytes.len(), at));
                bytes.push(byte);
            }
            copied = at + c.len_utf8();
            steps.push((bytes.len(), copied));
        }
        bytes.extend_from_slice(&original[copied..]);
        Self { bytes: Cow::Owned(bytes), utf8: true, steps }
    }

    /// Where a position of the folded text stands in the original.
    pub fn original(&self, folded: usize) -> usize {
        match self.steps.partition_point(|(f, _)| *f <= folded).checked_sub(1) {
            None => folded,
            Some(step) => {
                let (f, o) = self.steps[step];
                o + (folded - f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_and_finds_back() {
        for (original, folded) in [
            ("plain", "plain"),
            ("４１１１", "4111"),
            ("a\u{200b}b", "ab"),
            ("4111\u{a0}1111", "4111 1111"),
            ("٤١١١–x", "4111-x"),
            ("ｊｏｈｎ＠example．com", "john@example.com"),
            ("naïve 例子", "naïve 例子"),
        ] {
            let result = Folded::new(original.as_bytes());
            assert_eq!(result.bytes.as_ref(), folded.as_bytes(), "{original}");
            let mut last = 0;
            for at in 0..=folded.len() {
                let back = result.original(at);
                assert!(back >= last && back <= original.len(), "{original} {at}");
                if folded.is_char_boundary(at) {
                    assert!(original.is_char_boundary(back), "{original} {at} {back}");
                }
                last = back;
            }
            assert_eq!(result.original(folded.len()), original.len());
        }
        let result = Folded::new("x１\u{200b}２y".as_bytes());
        assert_eq!(&result.bytes[1..3], b"12");
        assert_eq!(result.original(1), 1);
        assert_eq!(result.original(3), "x１\u{200b}２".len());
    }

    #[test]
    fn bytes_that_are_not_utf8_stay() {
        let result = Folded::new(b"caf\xe9 4111");
        assert!(!result.utf8);
        assert_eq!(result.bytes.as_ref(), b"caf\xe9 4111");
    }
}
