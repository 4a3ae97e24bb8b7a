//! The lines by which a source says what comes.

/// Longest line, with its end. The smallest buffer of a sink that is in use holds 2048 bytes,
/// and takes what does not fit for the next line.
pub(super) const MAX_LINE: usize = 2000;

/// One line of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// `T`: times of what comes next.
    Times,
    /// `C`: a file.
    File { mode: u32, size: u64, name: Vec<u8> },
    /// `D`: a directory; what comes is in it.
    Enter { mode: u32, name: Vec<u8> },
    /// `E`: its end.
    Leave,
    /// A warning, which takes no answer.
    Warning,
    /// An error after which nothing comes.
    Fatal,
}

/// Decodes a line without its end, more strictly than sinks do.
pub(super) fn parse(line: &[u8]) -> Result<Line, &'static str> {
    match line.split_first() {
        Some((b'T', rest)) => times(rest),
        Some((b'C', rest)) => {
            let (mode, size, name) = entry(rest)?;
            Ok(Line::File { mode, size, name })
        }
        Some((b'D', rest)) => {
            let (mode, _, name) = entry(rest)?;
            Ok(Line::Enter { mode, name })
        }
        Some((b'E', [])) => Ok(Line::Leave),
        Some((1, _)) => Ok(Line::Warning),
        Some((2, _)) => Ok(Line::Fatal),
        _ => Err("a line of no known kind"),
    }
}

/// `MODE SIZE NAME`.
fn entry(rest: &[u8]) -> Result<(u32, u64, Vec<u8>), &'static str> {
    let mut parts = rest.splitn(3, |byte| *byte == b' ');
    let (mode, size, name) = (parts.next(), parts.next(), parts.next());
    let mode = mode
        .filter(|mode| mode.len() == 4)
        .and_then(|mode| number(mode, 8))
        .and_then(|mode| u32::try_from(mode).ok())
        .ok_or("a mode is not four octal digits")?;
    let size = size
        .and_then(|size| number(size, 10))
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or("a size is no number")?;
    let name = name.ok_or("a name is missing")?;
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err("a name is no name of a file");
    }
    Ok((mode, size, name.to_vec()))
}

/// `SECONDS MICROSECONDS SECONDS MICROSECONDS`.
fn times(rest: &[u8]) -> Result<Line, &'static str> {
    let parts: Vec<_> = rest.split(|byte| *byte == b' ').map(|part| number(part, 10)).collect();
    if parts.len() == 4 && parts.iter().all(Option::is_some) {
        Ok(Line::Times)
    } else {
        Err("times are not four numbers")
    }
}

/// Digits alone: no sign and no spaces.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_source() {
        assert_eq!(
            parse(b"C0644 12 a name with spaces"),
            Ok(Line::File { mode: 0o644, size: 12, name: b"a name with spaces".to_vec() })
        );
        assert_eq!(parse(b"D0755 0 d"), Ok(Line::Enter { mode: 0o755, name: b"d".to_vec() }));
        assert_eq!(parse(b"T1700000000 0 1700000000 0"), Ok(Line::Times));
        assert_eq!(parse(b"E"), Ok(Line::Leave));
        assert_eq!(parse(b"\x01scp: x: No such file"), Ok(Line::Warning));
        assert_eq!(parse(b"\x02lost"), Ok(Line::Fatal));
    }

    #[test]
    fn what_a_sink_might_read_otherwise_is_refused() {
        for line in [
            &b"C0644 12 ../x"[..],
            b"C0644 12 ..",
            b"C0644 12 .",
            b"C0644 12 ",
            b"C0644 12",
            b"C0644 12 a\0b",
            b"C0644 -1 a",
            b"C0644 +1 a",
            b"C0644 0x1 a",
            b"C0644 9223372036854775808 a",
            b"C0644 99999999999999999999 a",
            b"C0844 1 a",
            b"C00644 1 a",
            b"C644 1 a",
            b"C0644  1 a",
            b"D0755 0 a/b",
            b"E trailing",
            b"T1 2 3",
            b"T1 2 3 4 5",
            b"T1 2 3 x",
            b"",
            b"X",
            b" C0644 1 a",
        ] {
            assert!(parse(line).is_err(), "{:?}", line.escape_ascii().to_string());
        }
    }
}
