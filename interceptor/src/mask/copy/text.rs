//! Rows of the text format: lines of delimited fields with backslash escapes.

use bytes::{BufMut, BytesMut};

use super::super::value::Cell;
use super::super::{Hits, MaskError};
use super::{Shared, TextFormat};

#[derive(Debug)]
pub(super) struct Rows {
    format: TextFormat,
    shared: Shared,
    header: bool,
}

const FORMAT: MaskError = MaskError::BadCopy { what: "text copy data" };

impl Rows {
    pub fn new(format: TextFormat, shared: Shared) -> Result<Self, MaskError> {
        if matches!(format.delimiter, b'\\' | b'\n' | b'\r')
            || format.delimiter.is_ascii_lowercase()
            || format.delimiter.is_ascii_digit()
            || format.delimiter == b'.'
            || !format.delimiter.is_ascii()
        {
            return Err(MaskError::UnsupportedCopy { what: "delimiter can be part of an escape" });
        }
        let header = format.header;
        Ok(Self { format, shared, header })
    }

    /// Where the first row ends, behind its newline. `searched` bytes hold no end.
    pub fn end(&self, data: &[u8], searched: &mut usize) -> Option<usize> {
        while let Some(at) = memchr::memchr(b'\n', data.get(*searched..)?) {
            let at = *searched + at;
            *searched = at + 1;
            // An escaped newline belongs to the value.
            let backslashes = data[..at].iter().rev().take_while(|b| **b == b'\\').count();
            if backslashes % 2 == 0 {
                return Some(at + 1);
            }
        }
        *searched = data.len();
        None
    }

    /// Masks one row, newline included.
    pub fn mask(
        &mut self,
        row: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<(), MaskError> {
        if std::mem::take(&mut self.header) {
            out.put_slice(row);
            return Ok(());
        }
        let Shared { columns, means, scratch, plain } = &mut self.shared;
        let line = row.strip_suffix(b"\n").ok_or(FORMAT)?;
        let (mut at, mut copied, mut count) = (0, 0, 0);
        // A table without columns has empty lines.
        if columns.is_empty() && line.is_empty() {
            out.put_slice(row);
            return Ok(());
        }
        let mut ends = Ends::new(line, self.format.delimiter);
        loop {
            let end = ends.next();
            let field = &line[at..end];
            let column = columns
                .get(count)
                .ok_or(MaskError::ColumnCount { expected: columns.len(), found: count + 1 })?;
            if !column.is_keep() && field != self.format.null {
                scratch.clear();
                let cell = column.apply(means, unescape(field, plain), scratch, hits)?;
                if cell != Cell::Keep {
                    out.put_slice(&line[copied..at]);
                    copied = end;
                }
                match cell {
                    Cell::Keep => {}
                    Cell::Null => out.put_slice(&self.format.null),
                    Cell::New => escape(scratch, &self.format, out),
                }
            }
            count += 1;
            if end == line.len() {
                break;
            }
            at = end + 1;
        }
        if count != columns.len() {
            return Err(MaskError::ColumnCount { expected: columns.len(), found: count });
        }
        out.put_slice(&row[copied..]);
        Ok(())
    }
}

/// Where the fields of a line end, one after the other, in one walk over the line.
struct Ends<'l> {
    line: &'l [u8],
    found: memchr::Memchr2<'l>,
    delimiter: u8,
}

impl<'l> Ends<'l> {
    fn new(line: &'l [u8], delimiter: u8) -> Self {
        Self { line, found: memchr::memchr2_iter(delimiter, b'\\', line), delimiter }
    }

    /// The end of the next field; the line's own end when there is no further delimiter.
    fn next(&mut self) -> usize {
        let mut unescaped = 0;
        for at in self.found.by_ref() {
            if at < unescaped {
                continue;
            }
            if self.line[at] == self.delimiter {
                return at;
            }
            unescaped = at + 2;
        }
        self.line.len()
    }
}

/// The value behind a field, as `COPY FROM` reads it: the field itself where nothing is escaped,
/// else in `plain`.
fn unescape<'v>(field: &'v [u8], plain: &'v mut Vec<u8>) -> &'v [u8] {
    if memchr::memchr(b'\\', field).is_none() {
        return field;
    }
    plain.clear();
    let mut rest = field;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        plain.extend_from_slice(&rest[..at]);
        let Some((byte, after)) = rest[at + 1..].split_first() else {
            plain.push(b'\\');
            return plain;
        };
        rest = after;
        match byte {
            b'b' => plain.push(8),
            b'f' => plain.push(12),
            b'n' => plain.push(b'\n'),
            b'r' => plain.push(b'\r'),
            b't' => plain.push(b'\t'),
            b'v' => plain.push(11),
            b'0'..=b'7' => {
                let (code, used) = number(*byte, rest, 8, 2);
                plain.push(code);
                rest = &rest[used..];
            }
            b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
                let (code, used) = number(b'0', rest, 16, 2);
                plain.push(code);
                rest = &rest[used..];
            }
            other => plain.push(*other),
        }
    }
    plain.extend_from_slice(rest);
    plain
}

/// Reads up to `more` further digits; returns the low eight bits and how many were read.
fn number(first: u8, rest: &[u8], radix: u32, more: usize) -> (u8, usize) {
    let digit = |byte: u8| char::from(byte).to_digit(radix);
    let mut value = digit(first).unwrap_or(0);
    let mut used = 0;
    for byte in rest.iter().take(more) {
        let Some(next) = digit(*byte) else { break };
        value = value * radix + next;
        used += 1;
    }
    (value.to_le_bytes()[0], used)
}

/// Writes a value as the server would, and so that it is not taken for NULL.
fn escape(value: &[u8], format: &TextFormat, out: &mut BytesMut) {
    let start = out.len();
    // Control characters, the backslash and the delimiter; most values have none of them.
    let mut clean = value;
    if let Some(at) = value.iter().position(|b| *b < 14 || *b == b'\\' || *b == format.delimiter) {
        clean = &value[..at];
    }
    out.put_slice(clean);
    for byte in &value[clean.len()..] {
        let letter = match byte {
            8 => b'b',
            12 => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            11 => b'v',
            b'\\' => b'\\',
            byte if *byte == format.delimiter => *byte,
            byte => {
                out.put_u8(*byte);
                continue;
            }
        };
        out.put_slice(&[b'\\', letter]);
    }
    if out[start..] == *format.null && !value.is_empty() {
        out.truncate(start);
        out.put_slice(format!("\\x{:02x}", value[0]).as_bytes());
        escape(&value[1..], &TextFormat { null: Vec::new(), ..format.clone() }, out);
    }
}
