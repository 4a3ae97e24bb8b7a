//! Recorded text on a terminal.
//!
//! What an agent sent is hostile: it may hold escape sequences that rewrite the screen, or
//! characters that reorder what a person reads. Nothing recorded is printed without
//! [`safe`] or [`safe_lines`].

use std::fmt::Write;
use std::io::IsTerminal;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A text on one line, with everything that acts on a terminal written out.
pub fn safe(text: &str) -> String {
    escape(text, false)
}

/// A text that may have lines and tabs; everything else is as with [`safe`].
pub fn safe_lines(text: &str) -> String {
    escape(text, true)
}

fn escape(text: &str, lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' if lines => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if (c as u32) < 0x100 && c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c if c.is_control() || acts(c) => {
                let _ = write!(out, "\\u{{{:x}}}", c as u32);
            }
            c => out.push(c),
        }
    }
    out
}

/// Characters that are not seen themselves but change how others are seen.
pub fn acts(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Colours, where there is somebody to see them.
#[derive(Debug, Clone, Copy)]
pub struct Style(bool);

impl Style {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub fn detect() -> Self {
        let no = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self(std::io::stdout().is_terminal() && !no && !dumb)
    }

    /// Never colours.
    pub fn plain() -> Self {
        Self(false)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// For titles. The text must be safe already, as with the others.
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }
    /// For what is secondary.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
    /// For what was refused or is wrong.
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }
    /// For what passed.
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }
    /// For what waits or should be looked at.
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }
    /// By verdict or outcome.
    pub fn verdict(self, word: &str) -> String {
        let text = safe(word);
        match word {
            "allow" | "granted" => self.green(&text),
            "hold" => self.yellow(&text),
            _ => self.red(&text),
        }
    }
}

/// A time in the local zone, to the second.
pub fn local_time(ts_us: i64) -> String {
    zoned(ts_us, "%Y-%m-%d %H:%M:%S")
}

/// A time of day in the local zone, to the millisecond.
pub fn clock(ts_us: i64) -> String {
    zoned(ts_us, "%H:%M:%S%.3f")
}

fn zoned(ts_us: i64, format: &str) -> String {
    Timestamp::from_microsecond(ts_us).map_or_else(
        |_| ts_us.to_string(),
        |t| t.to_zoned_datetime(TimeZone::system()).strftime(format).to_string(),
    )
}

/// A length of time for people.
pub fn duration(us: u64) -> String {
    let seconds = us / 1_000_000;
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Lays out rows of safe cells in columns; the first row is the title.
pub fn columns(rows: &[Vec<String>], style: Style) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for (n, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        out.push_str(&if n == 0 { style.dim(line) } else { line.to_owned() });
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_on_a_terminal_gets_through() {
        for (raw, shown) in [
            ("\x1b[2Jselect\x07", "\\x1b[2Jselect\\x07"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}31m", "\\x9b31m"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("größe ✓ 名", "größe ✓ 名"),
        ] {
            assert_eq!(safe(raw), shown);
        }
        assert_eq!(safe_lines("a\n\tb\x1b"), "a\n\tb\\x1b");
        assert_eq!(Style::plain().red("x"), "x");
    }

    #[test]
    fn durations_are_readable() {
        let all = [5, 1_500, 2_000_000, 61_000_000, 3_700_000_000].map(duration);
        assert_eq!(all, ["5 µs", "1.5 ms", "2.0 s", "1m01s", "1h01m"]);
    }
}
