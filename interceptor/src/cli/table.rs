//! How commands print: tables, colours on a terminal only, and text that an agent chose made
//! harmless.
//!
//! Whatever comes from outside goes through [`safe`] or [`safe_block`] before it reaches a
//! terminal: an escape sequence in a statement must not redraw what an approver reads.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

/// One line of foreign text: control, formatting and direction characters made visible.
pub fn safe(text: &str) -> String {
    escape(text, |_| false)
}

/// Foreign text of several lines: newlines and tabs stay, all else as [`safe`].
pub fn safe_block(text: &str) -> String {
    escape(text, |c| c == '\n' || c == '\t')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if keep(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if deceives(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

/// Characters that move, hide or reorder what stands around them.
fn deceives(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// JSON of a value, safe to look at in a terminal.
pub fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(tame(&serde_json::to_string_pretty(value)?))
}

/// The same on one line.
pub fn json_line(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(tame(&serde_json::to_string(value)?))
}

fn tame(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Such characters stand only inside strings, where the escape means the same.
        if c != '\n' && deceives(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Prints to standard output. A reader that has gone (`| head`) ends the command quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// Colours when standard output is a terminal and `NO_COLOR` is not set.
    pub fn stdout() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self(!refused && !dumb && std::io::stdout().is_terminal())
    }

    /// Never colours.
    pub const fn plain() -> Self {
        Self(false)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Something is wrong.
    pub fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }
    /// Something needs a look.
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
    /// Something is well.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }
    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.with("1", text)
    }
    /// Less important.
    pub fn faint(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// Columns of left-aligned text, two spaces apart.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row; every cell is made [`safe`].
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl AsRef<str>>) {
        self.rows.push(cells.into_iter().map(|c| safe(c.as_ref())).collect());
    }

    /// Whether there is nothing below the headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The table as text.
    pub fn render(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |n: usize| {
            self.rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for (n, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            let line = line.trim_end();
            out.push_str(&if n == 0 { paint.strong(line) } else { line.to_owned() });
            out.push('\n');
        }
        out
    }
}

/// At most `most` characters, the cut shown.
pub fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A length of time for people: its two largest units.
pub fn span(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_move_the_cursor_or_turn_around() {
        for (text, want) in [
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("x\ny\tz\r", "x\\ny\\tz\\r"),
            ("\u{202e}evil\u{9b}", "\\u{202e}evil\\u{9b}"),
            ("zero\u{200b}width \u{e0041}", "zero\\u{200b}width \\u{e0041}"),
            ("Grüße 漢字", "Grüße 漢字"),
        ] {
            assert_eq!(safe(text), want);
        }
        assert_eq!(safe_block("a\n\tb\x07"), "a\n\tb\\u{7}");
    }

    #[test]
    fn json_is_safe_to_look_at_and_says_the_same() {
        let value = "a\x1b\u{202e}\u{9b}\u{e0041}\n";
        let text = json(&value).unwrap();
        assert!(!text.chars().any(|c| c != '\n' && deceives(c)), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }

    #[test]
    fn columns_line_up_and_plain_is_plain() {
        let mut t = Table::new(&["ID", "WHAT"]);
        t.row(["h-1", "x"]);
        t.row(["h-22222", "two\nlines"]);
        assert_eq!(t.render(Paint::plain()), "ID       WHAT\nh-1      x\nh-22222  two\\nlines\n");
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (s, want) in [(5, "5s"), (65, "1m 05s"), (7260, "2h 01m"), (90_000, "1d 01h")] {
            assert_eq!(span(Duration::from_secs(s)), want);
        }
        assert_eq!((bytes(5), bytes(3 << 20)), ("5 B".into(), "3.0 MiB".into()));
    }
}
