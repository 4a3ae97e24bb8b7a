//! A recorded terminal on another terminal: what may act on it, and what it says.
//!
//! What an agent's program printed is hostile. A terminal obeys sequences that write to the
//! clipboard, that make it type (reports of its title, its state, its version), that change what
//! the operator's own keys do, or that hang it. So nothing is passed on because it is harmless
//! as far as anybody knows: every sequence is parsed, and only those that move, colour, erase or
//! scroll are written anew.

use std::io::Write as _;

use vte::{Params, ParamsIter, Parser, Perform};

/// Bytes without a word from the parser after which a string is thrown away.
const MAX_STRING: usize = 64 << 10;

/// A parser that no string can fill.
#[derive(Default)]
struct Bounded {
    parser: Parser,
    /// Bytes since the parser last said something.
    silent: usize,
    /// Inside a string that is thrown away.
    dropping: bool,
}

impl Bounded {
    fn push(&mut self, bytes: &[u8], watch: &mut impl Watch) {
        for piece in bytes.chunks(MAX_STRING / 16) {
            let mut piece = piece;
            if self.dropping {
                let ends = |b: &u8| matches!(b, 0x07 | 0x18 | 0x1a | 0x1b | 0x9c);
                let Some(end) = piece.iter().position(ends) else { continue };
                piece = &piece[end..];
                self.dropping = false;
            }
            let before = watch.said();
            self.parser.advance(watch, piece);
            self.silent = if watch.said() == before { self.silent + piece.len() } else { 0 };
            if self.silent > MAX_STRING {
                *self = Self { dropping: true, ..Self::default() };
            }
        }
    }
}

/// A performer that counts what it hears.
trait Watch: Perform {
    fn said(&self) -> u64;
}

/// Passes on what a terminal may be shown.
#[derive(Default)]
pub struct Screen {
    parser: Bounded,
    shown: Shown,
}

/// What goes on, and what has to be undone at the end.
#[derive(Default)]
struct Shown {
    out: Vec<u8>,
    said: u64,
    alternate: bool,
    margins: bool,
}

impl Screen {
    /// Takes recorded bytes; gives those that may be shown.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.parser.push(bytes, &mut self.shown);
        std::mem::take(&mut self.shown.out)
    }

    /// What brings the terminal back to where a prompt can stand.
    pub fn reset(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if std::mem::take(&mut self.shown.margins) {
            out.extend_from_slice(b"\x1b7\x1b[r\x1b8");
        }
        if std::mem::take(&mut self.shown.alternate) {
            out.extend_from_slice(b"\x1b[?1049l");
        }
        out.extend_from_slice(b"\x1b[0m\x1b(B\x0f\x1b[?25h\x1b[?7h\x1b[4l");
        out
    }
}

impl Watch for Shown {
    fn said(&self) -> u64 {
        self.said
    }
}

/// Parameters as they are written, subparameters behind colons.
fn parameters(params: ParamsIter<'_>) -> String {
    let one = |subs: &[u16]| subs.iter().map(u16::to_string).collect::<Vec<_>>().join(":");
    let text = params.map(one).collect::<Vec<_>>().join(";");
    // None is read as zero, and is the same as zero wherever it passes.
    if text == "0" { String::new() } else { text }
}

/// Private modes that only change the picture: wrapping, blinking and the cursor's look, the
/// other screen. Not those that report the mouse, the focus or pasted text, or change keys.
const MODES: &[u16] = &[5, 6, 7, 12, 25, 47, 1047, 1048, 1049];

/// A count that keeps no terminal busy.
const MAX_COUNT: u16 = 4096;

impl Perform for Shown {
    fn print(&mut self, c: char) {
        self.said += 1;
        // An 8-bit control in UTF-8 is one all the same.
        if !c.is_control() {
            self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }

    fn execute(&mut self, byte: u8) {
        self.said += 1;
        if matches!(byte, 0x08..=0x0f) {
            self.out.push(byte);
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], ignore: bool, action: char) {
        self.said += 1;
        let small = || params.iter().flatten().all(|n| *n <= MAX_COUNT);
        let passes = match (intermediates, action) {
            ([], '@' | 'A'..='M' | 'P' | 'S' | 'T' | 'X' | 'Z' | '`' | 'a' | 'd' | 'e' | 'f') => {
                small()
            }
            ([], 'b') => params.iter().flatten().all(|n| *n <= 512),
            ([], 'm' | 'g' | 's' | 'u') => true,
            ([], 'r') => {
                self.margins = true;
                small()
            }
            ([], 'h' | 'l') => params.iter().all(|p| p == [4]),
            ([b'?'], 'h' | 'l') => {
                let known = params.iter().flatten().all(|mode| MODES.contains(mode));
                if known && params.iter().flatten().any(|mode| matches!(mode, 47 | 1047 | 1049)) {
                    self.alternate = action == 'h';
                }
                known
            }
            ([b'?'], 'J' | 'K') => true,
            _ => false,
        };
        if passes && !ignore {
            let private = if intermediates == b"?" { "?" } else { "" };
            let _ = write!(self.out, "\x1b[{private}{}{action}", parameters(params.iter()));
        }
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], ignore: bool, byte: u8) {
        self.said += 1;
        let passes = match intermediates {
            [] => matches!(byte, b'7' | b'8' | b'D' | b'E' | b'H' | b'M'),
            // Line drawing and back.
            [b'(' | b')'] => matches!(byte, b'0' | b'B'),
            _ => false,
        };
        if passes && !ignore {
            self.out.push(0x1b);
            self.out.extend_from_slice(intermediates);
            self.out.push(byte);
        }
    }

    fn osc_dispatch(&mut self, _: &[&[u8]], _: bool) {
        self.said += 1;
    }

    fn put(&mut self, _: u8) {
        self.said += 1;
    }
}

/// Reads the text off a stream: what is printed, line by line, without what acts.
#[derive(Default)]
pub struct Text {
    parser: Bounded,
    read: Read,
}

#[derive(Default)]
struct Read {
    text: String,
    said: u64,
}

impl Text {
    /// Takes recorded bytes; gives the text in them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.parser.push(bytes, &mut self.read);
        std::mem::take(&mut self.read.text)
    }
}

impl Watch for Read {
    fn said(&self) -> u64 {
        self.said
    }
}

impl Perform for Read {
    fn print(&mut self, c: char) {
        self.said += 1;
        self.text.push(c);
    }

    fn execute(&mut self, byte: u8) {
        self.said += 1;
        match byte {
            b'\n' | b'\t' => self.text.push(char::from(byte)),
            0x08 => drop(self.text.pop()),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, _: &Params, _: &[u8], _: bool, action: char) {
        self.said += 1;
        // What stands somewhere else is another line.
        if matches!(action, 'H' | 'f' | 'E' | 'F') {
            self.text.push('\n');
        }
    }

    fn esc_dispatch(&mut self, _: &[u8], _: bool, _: u8) {
        self.said += 1;
    }

    fn osc_dispatch(&mut self, _: &[&[u8]], _: bool) {
        self.said += 1;
    }

    fn put(&mut self, _: u8) {
        self.said += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(bytes: &[u8]) -> String {
        String::from_utf8(Screen::default().push(bytes)).unwrap()
    }

    #[test]
    fn the_picture_passes() {
        for text in [
            "plain größe ✓\r\n\ttab\x08",
            "\x1b[1;31mred\x1b[m \x1b[38:2:1:2:3mx",
            "\x1b[2;5H\x1b[2J\x1b[K\x1b[3A\x1b[10@\x1b[1;20r\x1b[s\x1b[u",
            "\x1b[?25l\x1b[?25h\x1b[?1049h\x1b[?7l\x1b[4h",
            "\x1b7\x1b8\x1bM\x1b(0lqk\x1b(B",
        ] {
            assert_eq!(shown(text.as_bytes()), text);
        }
    }

    #[test]
    fn what_acts_on_the_operator_does_not() {
        for (text, left) in [
            ("a\x1b]52;c;cm0gLXJmIC8=\x07b", "ab"),
            ("a\x1b]52;c;cm0gLXJmIC8=\x1b\\b", "ab"),
            ("a\x1b]0;title\x07b", "ab"),
            ("a\x1b]8;;http://x\x07b", "ab"),
            ("a\x1b]1337;File=:AAAA\x07b", "ab"),
            ("a\x1b[21tb", "ab"),
            ("a\x1b[6nb\x1b[?6n\x1b[cb\x1b[>c\x1b[=c\x1bZ", "abb"),
            ("a\x1b[>qb\x1b[?1$pb\x1b[x", "abb"),
            ("a\x1bPq#0;2;0;0;0~-\x1b\\b", "ab"),
            ("a\x1bP$q m\x1b\\b\x1bP+q544e\x1b\\", "ab"),
            ("a\x1b_payload\x1b\\b\x1b^pm\x1b\\\x1bXsos\x1b\\", "ab"),
            ("a\x1b[?1000h\x1b[?1004h\x1b[?2004h\x1b[?1hb\x1b=\x1b[>4;2m", "ab"),
            ("a\x05b\x07\0\x7f", "ab"),
            ("a\u{9b}6nb\u{90}x\u{9c}", "a6nbx"),
            ("a\x1b[65535Lb\x1b[9999b", "ab"),
            ("a\x1bcb\x1b#8", "ab"),
            ("a\x1b[?25;1000hb", "ab"),
        ] {
            assert_eq!(shown(text.as_bytes()), left, "{:?}", text);
        }
    }

    #[test]
    fn strings_take_no_memory_and_end() {
        let mut screen = Screen::default();
        assert_eq!(screen.push(b"a\x1b]52;c;"), b"a");
        for _ in 0..100 {
            assert_eq!(screen.push(&[b'x'; 10_000]), b"");
            assert!(screen.parser.silent <= MAX_STRING + MAX_STRING / 16);
        }
        assert_eq!(screen.push(b"xxx\x07b"), b"b");
    }

    #[test]
    fn the_end_undoes_what_was_done() {
        let mut screen = Screen::default();
        screen.push(b"\x1b[?1049h\x1b[2;10r\x1b[31m");
        let reset = String::from_utf8(screen.reset()).unwrap();
        assert!(
            reset.contains("\x1b[?1049l") && reset.contains("\x1b[r") && reset.contains("\x1b[0m")
        );
        assert!(!String::from_utf8(screen.reset()).unwrap().contains("1049"));
    }

    #[test]
    fn text_is_read_off() {
        let mut text = Text::default();
        assert_eq!(text.push(b"\x1b[1mca\x1b[0mrd\r\nx\x08y\x1b]0;t\x07\xff"), "card\ny\u{fffd}");
        assert_eq!(text.push("é".as_bytes().split_at(1).0), "");
        assert_eq!(text.push("é".as_bytes().split_at(1).1), "é");
    }

    proptest! {
        #[test]
        fn what_passes_passes_again_and_holds_no_string(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), Just(0x1b), Just(b'['), Just(b']'), Just(b'P'), Just(b'?')],
                0..200,
            ),
        ) {
            let once = Screen::default().push(&bytes);
            prop_assert_eq!(&Screen::default().push(&once), &once);
            for (at, _) in once.iter().enumerate().filter(|(_, b)| **b == 0x1b) {
                prop_assert!(matches!(once[at + 1], b'[' | b'(' | b')' | b'7' | b'8' | b'D' | b'E' | b'H' | b'M'));
            }
        }
    }
}
