//! Masking of `COPY … TO STDOUT` in its three formats.
//!
//! The stream comes in pieces of any size; at most one row is held. What goes out is in the
//! same format and can be read by `COPY … FROM`. Columns that stay are copied byte for byte.

mod binary;
mod csv;
mod text;

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::value::{self, Column, Means};
use super::{Detectors, Field, HashKey, Hits, MaskError, Method};

/// The format of a copy with its options, as the server applies them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyFormat {
    /// `FORMAT text`
    Text(TextFormat),
    /// `FORMAT csv`
    Csv(CsvFormat),
    /// `FORMAT binary`
    Binary,
}

/// Options of the text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFormat {
    /// `DELIMITER`, a tab unless said otherwise.
    pub delimiter: u8,
    /// `NULL`, `\N` unless said otherwise.
    pub null: Vec<u8>,
    /// `HEADER`: the first line names the columns.
    pub header: bool,
}

impl Default for TextFormat {
    fn default() -> Self {
        Self { delimiter: b'\t', null: b"\\N".to_vec(), header: false }
    }
}

/// Options of the CSV format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvFormat {
    /// `DELIMITER`, a comma unless said otherwise.
    pub delimiter: u8,
    /// `QUOTE`, a double quote unless said otherwise.
    pub quote: u8,
    /// `ESCAPE`, the quote unless said otherwise.
    pub escape: u8,
    /// `NULL`, empty unless said otherwise.
    pub null: Vec<u8>,
    /// `HEADER`: the first line names the columns.
    pub header: bool,
    /// `FORCE_QUOTE`, by column; missing columns are not forced.
    pub force_quote: Vec<bool>,
}

impl Default for CsvFormat {
    fn default() -> Self {
        Self {
            delimiter: b',',
            quote: b'"',
            escape: b'"',
            null: Vec::new(),
            header: false,
            force_quote: Vec::new(),
        }
    }
}

/// Most bytes of one row that are held, unless said otherwise.
pub const DEFAULT_ROW_LIMIT: usize = 16 * 1024 * 1024;

/// What happens to one copy stream. Made for one stream, used once.
#[derive(Debug)]
pub struct CopyPlan {
    rows: Rows,
    noop: bool,
    limit: usize,
    /// The beginning of a row whose end is not here yet.
    pending: BytesMut,
    /// How much of `pending` was searched for the end of the row.
    searched: usize,
    finished: bool,
}

/// The columns and what they share.
#[derive(Debug)]
struct Shared {
    columns: Vec<Column>,
    means: Means,
    /// Holds one masked value.
    scratch: BytesMut,
    /// Holds one value without its escapes.
    plain: Vec<u8>,
}

#[derive(Debug)]
enum Rows {
    Text(text::Rows),
    Csv(csv::Rows),
    Binary(binary::Rows),
}

impl CopyPlan {
    /// Plans the masking of a copy with these columns; their own `format` does not matter. A
    /// row may have at most `limit` bytes.
    ///
    /// # Errors
    /// When a mask names a column that is not there, or the options contradict each other.
    pub fn compile(
        columns: &[Field],
        masks: &[(usize, Method)],
        detectors: Option<Arc<Detectors>>,
        key: Arc<HashKey>,
        format: CopyFormat,
        limit: usize,
    ) -> Result<Self, MaskError> {
        let code = i16::from(format == CopyFormat::Binary);
        let fields: Vec<Field> =
            columns.iter().map(|field| Field { format: code, ..field.clone() }).collect();
        let columns = value::compile(&fields, masks, detectors.as_deref())?;
        let noop = columns.iter().all(Column::is_keep);
        let shared = Shared {
            columns,
            means: Means { key, detectors },
            scratch: BytesMut::new(),
            plain: Vec::new(),
        };
        let rows = match format {
            CopyFormat::Text(format) => Rows::Text(text::Rows::new(format, shared)?),
            CopyFormat::Csv(format) => Rows::Csv(csv::Rows::new(format, shared)?),
            CopyFormat::Binary => Rows::Binary(binary::Rows::new(shared)),
        };
        let pending = BytesMut::new();
        Ok(Self { rows, noop, limit, pending, searched: 0, finished: false })
    }

    /// True when the stream passes as it is.
    pub fn is_noop(&self) -> bool {
        self.noop
    }

    /// Takes the payload of the next CopyData and appends what may be sent: zero or more
    /// whole rows. What was masked is added to `hits`.
    ///
    /// # Errors
    /// When the data is not in the announced format or a row is longer than the limit. Rows
    /// appended before the bad one are good; nothing may follow them.
    pub fn push(
        &mut self,
        chunk: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<(), MaskError> {
        if self.noop {
            out.extend_from_slice(chunk);
            return Ok(());
        }
        if self.pending.is_empty() {
            // Servers send whole rows; those are never copied aside.
            let used = self.whole_rows(chunk, out, hits)?;
            if used < chunk.len() {
                self.pending.extend_from_slice(&chunk[used..]);
            }
        } else {
            self.pending.extend_from_slice(chunk);
            let pending = self.pending.split();
            let used = self.whole_rows(&pending, out, hits)?;
            self.pending = pending;
            self.pending.advance(used);
        }
        self.check_limit()
    }

    fn check_limit(&self) -> Result<(), MaskError> {
        if self.pending.len() > self.limit {
            return Err(MaskError::RowTooLarge { limit: self.limit });
        }
        Ok(())
    }

    /// Masks the whole rows at the beginning of `data`; returns how much that was.
    fn whole_rows(
        &mut self,
        data: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<usize, MaskError> {
        let mut used = 0;
        loop {
            let rest = &data[used..];
            let end = match &mut self.rows {
                Rows::Text(rows) => rows.end(rest, &mut self.searched),
                Rows::Csv(rows) => rows.end(rest, &mut self.searched),
                Rows::Binary(rows) => rows.end(rest, &mut self.searched)?,
            };
            let Some(end) = end else { return Ok(used) };
            self.searched = 0;
            if end > self.limit {
                return Err(MaskError::RowTooLarge { limit: self.limit });
            }
            let row = &rest[..end];
            let mark = out.len();
            let result = match &mut self.rows {
                Rows::Text(rows) => rows.mask(row, out, hits),
                Rows::Csv(rows) => rows.mask(row, out, hits),
                Rows::Binary(rows) => rows.mask(row, out, hits),
            };
            if let Err(error) = result {
                out.truncate(mark);
                return Err(error);
            }
            used += end;
        }
    }

    /// The stream has ended well.
    ///
    /// # Errors
    /// When it ended inside a row, or called twice.
    pub fn finish(&mut self) -> Result<(), MaskError> {
        if !self.pending.is_empty() || self.finished {
            return Err(MaskError::BadCopy { what: "copy data that ends with a whole row" });
        }
        if let (Rows::Binary(rows), false) = (&self.rows, self.noop)
            && !rows.ended()
        {
            return Err(MaskError::BadCopy { what: "binary copy data with a trailer" });
        }
        self.finished = true;
        Ok(())
    }
}

#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tests;
