//! Recorded text on a page.
//!
//! Everything that comes from a session or a token is hostile: it may hold markup, control
//! characters, or characters that reorder what a person reads. It reaches a template only as
//! [`Shown`], which is HTML already and in which nothing acts: markup is escaped, and a
//! character that cannot be seen stands as its code inside `<span class="ctl">`, so that it
//! cannot be taken for the same code typed out.

use std::fmt::{self, Write};

use crate::record::terminal::acts;

/// Longest text on one line, in characters.
pub const LINE: usize = 400;
/// Longest text of several lines, in characters.
pub const BLOCK: usize = 64 * 1024;

/// Text that is safe on a page.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    /// A text on one line.
    pub fn line(text: &str) -> Self {
        Self::cut(text, false, LINE)
    }

    /// A text that may have lines and tabs.
    pub fn lines(text: &str) -> Self {
        Self::cut(text, true, BLOCK)
    }

    /// A text of several lines without an end: what somebody decides must be there in full.
    pub fn whole(text: &str) -> Self {
        Self::cut(text, true, usize::MAX)
    }

    /// A text on one line with a length of its own.
    pub fn short(text: &str, most: usize) -> Self {
        Self::cut(text, false, most)
    }

    /// A text or a dash.
    pub fn or_dash(text: Option<&str>) -> Self {
        match text {
            Some(text) if !text.is_empty() => Self::line(text),
            _ => Self("–".into()),
        }
    }

    fn cut(text: &str, lines: bool, most: usize) -> Self {
        let mut out = String::with_capacity(text.len().min(BLOCK) + 16);
        let mut chars = text.chars();
        for c in chars.by_ref().take(most) {
            one(&mut out, c, lines);
        }
        if chars.next().is_some() {
            out.push_str("<span class=\"ctl\">…</span>");
        }
        Self(out)
    }

    /// Bytes that it has on a page.
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to see.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn one(out: &mut String, c: char, lines: bool) {
    match c {
        '\n' | '\t' if lines => out.push(c),
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '"' => out.push_str("&quot;"),
        '\'' => out.push_str("&#39;"),
        '\n' => code(out, format_args!("\\n")),
        '\t' => code(out, format_args!("\\t")),
        '\r' => code(out, format_args!("\\r")),
        c if (c as u32) < 0x100 && c.is_control() => {
            code(out, format_args!("\\x{:02x}", c as u32));
        }
        c if c.is_control() || acts(c) => code(out, format_args!("\\u{{{:x}}}", c as u32)),
        c => out.push(c),
    }
}

fn code(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = write!(out, "<span class=\"ctl\">{text}</span>");
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Nothing in it needs escaping again.
impl askama::filters::HtmlSafe for Shown {}

/// Whether every character of a text on one line can be seen as it is.
pub fn plain(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || acts(c))
}

/// A time for a page: in words, and exact for machines and scripts.
#[derive(Debug, Clone, Default)]
pub struct When {
    /// RFC 3339, UTC.
    pub exact: String,
    /// `2026-01-31 12:00:00`, UTC.
    pub words: String,
    /// `12:00:00.123`, UTC.
    pub clock: String,
}

impl When {
    /// From microseconds since the Unix epoch.
    pub fn at(us: i64) -> Self {
        match jiff::Timestamp::from_microsecond(us) {
            Ok(t) => Self {
                exact: t.to_string(),
                words: t.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                clock: t.strftime("%H:%M:%S%.3f").to_string(),
            },
            Err(_) => Self { exact: us.to_string(), words: us.to_string(), clock: us.to_string() },
        }
    }
}

/// How long ago something was, roughly.
pub fn ago(us: i64, now_us: i64) -> String {
    let seconds = now_us.saturating_sub(us).max(0) / 1_000_000;
    match seconds {
        0..2 => "just now".into(),
        2..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A number with thin spaces between thousands.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(d);
    }
    out
}

/// A size in bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A value inside a query of a URL.
pub fn query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(b as char);
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_page() {
        let ctl = |code: &str| format!("<span class=\"ctl\">{code}</span>");
        for (raw, shown) in [
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;".to_owned()),
            ("\" onx='1'", "&quot; onx=&#39;1&#39;".to_owned()),
            ("&lt;", "&amp;lt;".to_owned()),
            ("a\x1b[2J", format!("a{}[2J", ctl("\\x1b"))),
            ("a\u{202e}b", format!("a{}b", ctl("\\u{202e}"))),
            ("a\u{2066}b\u{200b}", format!("a{}b{}", ctl("\\u{2066}"), ctl("\\u{200b}"))),
            ("a\nb", format!("a{}b", ctl("\\n"))),
            ("\0", ctl("\\x00")),
            ("größe ✓ 名", "größe ✓ 名".to_owned()),
            // Typed out, the same code does not look like the character.
            ("\\x1b", "\\x1b".to_owned()),
        ] {
            assert_eq!(Shown::line(raw).to_string(), shown, "{raw:?}");
        }
        assert_eq!(Shown::lines("a\n\tb<").to_string(), "a\n\tb&lt;");
        let long = Shown::short(&"<".repeat(9), 3).to_string();
        assert_eq!(long, format!("&lt;&lt;&lt;{}", ctl("…")));
    }

    #[test]
    fn queries_and_numbers_are_written_as_they_should_be() {
        assert_eq!(query("a b&c=ü/"), "a%20b%26c%3D%C3%BC%2F");
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(count),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!(When::at(0).exact, "1970-01-01T00:00:00Z");
        assert_eq!(When::at(i64::MAX).words, i64::MAX.to_string());
        assert_eq!(ago(0, 300_000_000), "5 min ago");
        assert_eq!(bytes(1536), "1.5 KiB");
    }
}
