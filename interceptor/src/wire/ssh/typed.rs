//! What is typed at a terminal, kept only if the terminal showed it.
//!
//! Whether a terminal echoes is the program's secret: passwords are typed with it off. So input
//! waits a moment for its echo. What came back is kept; what did not is counted and forgotten,
//! and no hash of it is kept either, since a short secret can be guessed from one.

use std::time::Duration;

use tokio::time::Instant;

use super::tape::{Sum, Tape};
use crate::session::log::RecordError;

/// How long input waits for its echo.
const PATIENCE: Duration = Duration::from_millis(100);

/// Most bytes that wait.
const MAX_PENDING: usize = 16 << 10;

/// The input side of a terminal.
#[derive(Debug)]
pub struct Typed {
    tape: Tape,
    pending: Vec<u8>,
    /// What the terminal showed since the first pending byte, printable characters only.
    shown: Vec<u8>,
    since: Option<Instant>,
}

/// Printable characters, without control characters and escape sequences.
fn printable(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            0x1b => match rest.peek() {
                // CSI and SS3: parameters, then one final byte (ECMA-48, section 5.4).
                Some(b'[' | b'O') => {
                    rest.next();
                    for byte in rest.by_ref() {
                        if (0x40..=0x7e).contains(&byte) {
                            break;
                        }
                    }
                }
                Some(_) => drop(rest.next()),
                None => {}
            },
            0x20..=0x7e | 0x80.. => out.push(byte),
            _ => {}
        }
    }
    out
}

impl Typed {
    /// Over an empty tape.
    pub fn new(tape: Tape) -> Self {
        Self { tape, pending: Vec::new(), shown: Vec::new(), since: None }
    }

    /// Input came.
    pub fn typed(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        if self.pending.is_empty() && printable(bytes).is_empty() {
            // Keys alone hold no secret.
            return self.tape.push(bytes);
        }
        if self.pending.len() + bytes.len() > MAX_PENDING {
            self.give_up()?;
        }
        self.since.get_or_insert_with(Instant::now);
        self.pending.extend_from_slice(bytes);
        Ok(())
    }

    /// The terminal showed something.
    pub fn shown(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let room = MAX_PENDING.saturating_sub(self.shown.len());
        self.shown.extend(printable(&bytes[..bytes.len().min(room)]));
        if !self.shown.starts_with(&printable(&self.pending)) {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.shown.clear();
        self.since = None;
        self.tape.push(&pending)
    }

    /// When something has to be done at the latest.
    pub fn due(&self) -> Option<Instant> {
        let echo = self.since.map(|since| since + PATIENCE);
        echo.into_iter().chain(self.tape.due()).min()
    }

    /// Does it.
    pub fn write(&mut self) -> Result<(), RecordError> {
        if self.since.is_some_and(|since| since + PATIENCE <= Instant::now()) {
            self.give_up()?;
        }
        self.tape.write()
    }

    fn give_up(&mut self) -> Result<(), RecordError> {
        let count = self.pending.len();
        zeroize::Zeroize::zeroize(&mut self.pending);
        self.shown.clear();
        self.since = None;
        if count == 0 { Ok(()) } else { self.tape.redact(count) }
    }

    /// Says what the input came to.
    pub fn finish(mut self) -> Result<Sum, RecordError> {
        self.give_up()?;
        self.tape.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn keys_and_colours_are_not_printable() {
        assert_eq!(printable(b"\x1b[Als\x1b[1;31m -l\r\x1bOP\x7f"), b"ls -l");
        assert_eq!(printable(b"\x1b"), b"");
        assert_eq!(printable(b"\x1b[12"), b"");
    }
}
