//! Folding of look-alikes, so that the detectors see plain ASCII.
//!
//! Full-width forms and decimal digits of other scripts become their ASCII character, odd
//! spaces and dashes become the common ones, and zero-width characters vanish. Positions in
//! the folded text lead back to the original.

use std::borrow::Cow;
use std::ops::Range;

/// A text as the detectors see it.
pub(in crate::mask) struct Folded<'a> {
    /// Folded bytes; the original when nothing had to change.
    pub bytes: Cow<'a, [u8]>,
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
    fn plain(original: &'a [u8]) -> Self {
        Self { bytes: Cow::Borrowed(original), steps: Vec::new() }
    }

    /// Folds a text; anything that is not UTF-8 is looked at byte by byte as it is.
    pub fn new(original: &'a [u8]) -> Self {
        if original.is_ascii() || std::str::from_utf8(original).is_err() {
            return Self::plain(original);
        }
        Self::lossy(original, 0).0
    }

    /// Folds what is UTF-8 in a piece of a longer text and leaves every other byte as it is.
    /// Also tells where `from`, a place between two characters, stands in the folded text.
    pub fn lossy(original: &'a [u8], from: usize) -> (Self, usize) {
        if original.is_ascii() {
            return (Self::plain(original), from);
        }
        let mut folder = Folder { original, bytes: Vec::new(), steps: Vec::new(), copied: 0 };
        folder.piece(0..from);
        let folded_from = folder.bytes.len() + (from - folder.copied);
        folder.piece(from..original.len());
        if folder.steps.is_empty() {
            return (Self::plain(original), from);
        }
        folder.bytes.extend_from_slice(&original[folder.copied..]);
        (Self { bytes: Cow::Owned(folder.bytes), steps: folder.steps }, folded_from)
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

/// A text being folded.
struct Folder<'a> {
    original: &'a [u8],
    bytes: Vec<u8>,
    steps: Vec<(usize, usize)>,
    /// The original up to here is in `bytes`.
    copied: usize,
}

impl Folder<'_> {
    fn piece(&mut self, piece: Range<usize>) {
        let mut start = piece.start;
        for chunk in self.original[piece].utf8_chunks() {
            for (at, c) in chunk.valid().char_indices().filter(|(_, c)| !c.is_ascii()) {
                self.char(start + at, c);
            }
            start += chunk.valid().len() + chunk.invalid().len();
        }
    }

    fn char(&mut self, at: usize, c: char) {
        let fold = fold_char(c);
        if matches!(fold, Fold::Keep) {
            return;
        }
        self.bytes.extend_from_slice(&self.original[self.copied..at]);
        if let Fold::To(byte) = fold {
            self.steps.push((self.bytes.len(), at));
            self.bytes.push(byte);
        }
        self.copied = at + c.len_utf8();
        self.steps.push((self.bytes.len(), self.copied));
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
        assert_eq!(result.bytes.as_ref(), b"caf\xe9 4111");
        let text = [b"\xff", "４１".as_bytes()].concat();
        assert_eq!(Folded::new(&text).bytes.as_ref(), text);
    }

    #[test]
    fn a_piece_is_folded_where_it_can_be() {
        let text = [b"\xff", "４\u{200b}１ é２".as_bytes(), b"\xc3"].concat();
        let from = "_４\u{200b}".len();
        let (result, folded_from) = Folded::lossy(&text, from);
        assert_eq!(result.bytes.as_ref(), [b"\xff41 ", "é2".as_bytes(), b"\xc3"].concat());
        assert_eq!((folded_from, result.original(folded_from)), (2, from));
        assert_eq!(result.original(result.bytes.len()), text.len());
        let (result, folded_from) = Folded::lossy("né ça".as_bytes(), 4);
        assert_eq!((result.bytes.as_ref(), folded_from), ("né ça".as_bytes(), 4));
    }
}
