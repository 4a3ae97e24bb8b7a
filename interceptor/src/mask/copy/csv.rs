//! Rows of the CSV format: quoted and bare fields, newlines inside quotes.

use bytes::{BufMut, BytesMut};

use super::super::value::Cell;
use super::super::{Hits, MaskError};
use super::{CsvFormat, Shared};

#[derive(Debug)]
pub(super) struct Rows {
    format: CsvFormat,
    shared: Shared,
    header: bool,
    /// State of the search for the end of a row.
    quoted: bool,
    escaped: bool,
}

const FORMAT: MaskError = MaskError::BadCopy { what: "CSV copy data" };

/// One field of a row.
struct Parsed {
    end: usize,
    /// Some of it stands in quotes; it is never NULL then.
    quoted: bool,
}

impl Rows {
    pub fn new(format: CsvFormat, shared: Shared) -> Result<Self, MaskError> {
        let reserved = |byte: u8| matches!(byte, b'\n' | b'\r') || !byte.is_ascii();
        if format.delimiter == format.quote
            || [format.delimiter, format.quote, format.escape].into_iter().any(reserved)
        {
            return Err(MaskError::UnsupportedCopy {
                what: "delimiter and quote are not distinct",
            });
        }
        let header = format.header;
        Ok(Self { format, shared, header, quoted: false, escaped: false })
    }

    /// Where the first row ends, behind its newline. `searched` bytes hold no end; the state
    /// behind them is kept.
    pub fn end(&mut self, data: &[u8], searched: &mut usize) -> Option<usize> {
        if *searched == 0 {
            (self.quoted, self.escaped) = (false, false);
        }
        let CsvFormat { quote, escape, .. } = self.format;
        while let Some(byte) = data.get(*searched) {
            *searched += 1;
            if self.escaped {
                self.escaped = false;
                if *byte == quote || *byte == escape {
                    continue;
                }
            }
            if self.quoted && *byte == escape && escape != quote {
                self.escaped = true;
            } else if *byte == quote {
                // A doubled quote closes and opens again.
                self.quoted = !self.quoted;
            } else if *byte == b'\n' && !self.quoted {
                return Some(*searched);
            }
        }
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
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if columns.is_empty() && line.is_empty() {
            out.put_slice(row);
            return Ok(());
        }
        let (mut at, mut copied, mut count) = (0, 0, 0);
        loop {
            let Parsed { end, quoted } = parse(&self.format, line, at, plain)?;
            let column = columns
                .get(count)
                .ok_or(MaskError::ColumnCount { expected: columns.len(), found: count + 1 })?;
            let null = !quoted && line[at..end] == *self.format.null;
            if !column.is_keep() && !null {
                scratch.clear();
                let cell = column.apply(means, plain, scratch, hits)?;
                if cell != Cell::Keep {
                    out.put_slice(&line[copied..at]);
                    copied = end;
                }
                match cell {
                    Cell::Keep => {}
                    Cell::Null => out.put_slice(&self.format.null),
                    Cell::New => {
                        let forced = self.format.force_quote.get(count).copied().unwrap_or(false);
                        let alone = columns.len() == 1;
                        emit(&self.format, scratch, forced || quoted, alone, out);
                    }
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

/// Reads the field that begins at `start`; its value goes to `plain`.
fn parse(
    format: &CsvFormat,
    line: &[u8],
    start: usize,
    plain: &mut Vec<u8>,
) -> Result<Parsed, MaskError> {
    let CsvFormat { delimiter, quote, escape, .. } = *format;
    plain.clear();
    let (mut at, mut inside, mut quoted) = (start, false, false);
    while let Some(byte) = line.get(at).copied() {
        at += 1;
        if !inside {
            if byte == delimiter {
                return Ok(Parsed { end: at - 1, quoted });
            }
            if byte == quote {
                (inside, quoted) = (true, true);
            } else {
                plain.push(byte);
            }
        } else if byte == escape && line.get(at).is_some_and(|b| *b == quote || *b == escape) {
            plain.push(line[at]);
            at += 1;
        } else if byte == quote {
            inside = false;
        } else {
            plain.push(byte);
        }
    }
    if inside { Err(FORMAT) } else { Ok(Parsed { end: at, quoted }) }
}

/// Writes a value as the server would; always quoted where it could be misread.
fn emit(format: &CsvFormat, value: &[u8], quoted: bool, alone: bool, out: &mut BytesMut) {
    let CsvFormat { delimiter, quote, escape, .. } = *format;
    let special = |b: &u8| *b == delimiter || *b == quote || matches!(b, b'\n' | b'\r');
    let quoted =
        quoted || value.iter().any(special) || value == format.null || (alone && value == b"\\.");
    if !quoted {
        return out.put_slice(value);
    }
    out.put_u8(quote);
    for byte in value {
        if *byte == quote || *byte == escape {
            out.put_u8(escape);
        }
        out.put_u8(*byte);
    }
    out.put_u8(quote);
}
