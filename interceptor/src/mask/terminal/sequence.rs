//! Escape sequences: where they end, and what they do to the place where text appears.

use vte::{Params, Perform};

const ESCAPE: u8 = 0x1b;

/// The parser sees this much of a string (a title, a picture); of the rest only what can end it.
const MAX_STRING: usize = 1024;

/// What a sequence does to the place where the next character appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, or nothing yet.
    None,
    /// It is somewhere else now, or another screen.
    Elsewhere,
    /// So many columns to the right.
    Forward(u16),
    /// So many columns to the left.
    Back(u16),
}

/// Bytes that belong to a sequence.
pub(super) struct Taken {
    /// How many.
    pub length: usize,
    /// What the sequence does, when it ends there.
    pub effect: Effect,
}

/// Follows sequences through pieces of a stream.
#[derive(Default)]
pub(super) struct Sequences {
    parser: vte::Parser,
    /// Bytes of the sequence so far; 0 outside.
    length: usize,
    /// A control sequence: it ends with its first byte from `@` to `~`.
    control: bool,
    /// The byte before was an escape.
    escaped: bool,
}

impl Sequences {
    /// Whether a sequence has begun and not ended.
    pub fn inside(&self) -> bool {
        self.length > 0
    }

    /// Reads the sequence that begins, or goes on, at the front of these bytes.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Taken> {
        if !self.inside() && bytes.first() != Some(&ESCAPE) {
            return None;
        }
        let mut watch = Watch { ended: false, effect: Effect::None };
        for (at, byte) in bytes.iter().enumerate() {
            self.byte(*byte, &mut watch);
            if watch.ended {
                (self.length, self.control, self.escaped) = (0, false, false);
                return Some(Taken { length: at + 1, effect: watch.effect });
            }
        }
        Some(Taken { length: bytes.len(), effect: Effect::None })
    }

    fn byte(&mut self, byte: u8, watch: &mut Watch) {
        let ends_string = matches!(byte, 0x07 | 0x18 | 0x1a | ESCAPE | 0x9c);
        let seen = self.length < MAX_STRING || ends_string || self.escaped || self.control;
        if seen {
            self.parser.advance(watch, &[byte]);
        }
        // A control sequence with too much in it ends without a word from the parser.
        watch.ended |= self.control && (0x40..=0x7e).contains(&byte);
        if byte == ESCAPE {
            (watch.ended, self.control, self.escaped) = (false, false, true);
            self.length = 0;
        } else if std::mem::take(&mut self.escaped) {
            self.control = byte == b'[';
        }
        self.length = self.length.saturating_add(1);
    }
}

/// What the parser says about a byte.
struct Watch {
    ended: bool,
    effect: Effect,
}

impl Perform for Watch {
    fn execute(&mut self, byte: u8) {
        // Cancel and substitute break a sequence off.
        self.ended |= matches!(byte, 0x18 | 0x1a);
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], _: bool, action: char) {
        let count = params.iter().next().and_then(|p| p.first().copied()).unwrap_or(0).max(1);
        self.ended = true;
        self.effect = match (action, intermediates) {
            ('C', []) => Effect::Forward(count),
            ('D', []) => Effect::Back(count),
            (
                'A'
                | 'B'
                | 'E'..='H'
                | 'J'
                | 'L'
                | 'M'
                | 'S'
                | 'T'
                | '`'
                | 'a'
                | 'd'
                | 'e'
                | 'f'
                | 'r'
                | 's'
                | 'u',
                [],
            )
            | ('h' | 'l', [b'?']) => Effect::Elsewhere,
            _ => Effect::None,
        };
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _: bool, byte: u8) {
        self.ended = true;
        if intermediates.is_empty() && matches!(byte, b'7' | b'8' | b'c' | b'D' | b'E' | b'M') {
            self.effect = Effect::Elsewhere;
        }
    }

    fn osc_dispatch(&mut self, _: &[&[u8]], bell: bool) {
        // Without a bell an escape ended it, and begins what follows.
        self.ended |= bell;
    }

    fn unhook(&mut self) {
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Option<(usize, Effect)> {
        let whole = Sequences::default().read(bytes).map(|taken| (taken.length, taken.effect));
        // Byte by byte it ends at the same place.
        let mut sequences = Sequences::default();
        let ended = bytes.iter().enumerate().find_map(|(at, byte)| {
            let taken = sequences.read(&[*byte])?;
            (!sequences.inside()).then_some((at + 1, taken.effect))
        });
        if let Some(ended) = ended {
            assert_eq!(Some(ended), whole, "{bytes:?}");
        }
        whole
    }

    #[test]
    fn sequences_end_where_a_terminal_ends_them() {
        use Effect::{Back, Elsewhere, Forward, None as Nothing};
        for (bytes, length, effect) in [
            (&b"\x1b[0;31mred"[..], 7, Nothing),
            (b"\x1b[3Cx", 4, Forward(3)),
            (b"\x1b[Dx", 3, Back(1)),
            (b"\x1b[2;5Hx", 6, Elsewhere),
            (b"\x1b[?1049hx", 8, Elsewhere),
            (b"\x1b[?25lx", 6, Elsewhere),
            (b"\x1b[1<2mx", 6, Nothing),
            (b"\x1b(Bx", 3, Nothing),
            (b"\x1b7x", 2, Elsewhere),
            (b"\x1b]0;title\x07x", 10, Nothing),
            (b"\x1b]0;title\x1b\\x", 11, Nothing),
            (b"\x1bPq#0;2\x1b\\x", 9, Nothing),
            (b"\x1b_apc\x1b\\x", 7, Nothing),
            (b"\x1b[12\x18x", 5, Nothing),
            (b"\x1b[1\x1b[2mx", 7, Nothing),
            (b"\x1b\x1b[2mx", 5, Nothing),
        ] {
            assert_eq!(
                read(bytes),
                Some((length, effect)),
                "{:?}",
                bytes.escape_ascii().to_string()
            );
        }
        assert_eq!(read(b"plain"), None);
    }

    #[test]
    fn an_endless_string_takes_no_memory_and_still_ends() {
        let mut sequences = Sequences::default();
        assert!(sequences.read(b"\x1b]0;").is_some());
        for _ in 0..1000 {
            sequences.read(&[b'x'; 4096]);
            assert!(sequences.inside());
        }
        let end = sequences.read(b"xx\x1b\\y").unwrap();
        assert_eq!((end.length, sequences.inside()), (4, false));
    }
}
