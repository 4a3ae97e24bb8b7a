//! Masking of result rows: DataRow messages in text and binary format.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::value::{self, Cell, Column, Means};
use super::{Detectors, Field, HashKey, Hits, MaskError, Method};

/// What happens to each row of one result. Compiled once, applied to every row.
#[derive(Debug)]
pub struct RowPlan {
    columns: Vec<Column>,
    /// One past the last column that does not pass unseen.
    governed: usize,
    means: Means,
}

/// How far [`RowPlan::apply_head`] came.
#[derive(Debug)]
pub enum Head {
    /// The bytes so far end before the last masked or scanned column.
    NeedMore,
    /// A message header and the masked head were appended.
    Done {
        /// Bytes of the body that are dealt with; what follows is sent on as it is.
        consumed: usize,
        /// What was masked.
        hits: Hits,
        /// Checks what follows while it streams by.
        tail: Tail,
    },
}

/// Checks the columns behind the last masked one while they stream by.
#[derive(Debug)]
pub struct Tail {
    /// Index of the next column, of `columns`.
    column: usize,
    columns: usize,
    /// Bytes of the current value still to come.
    value: usize,
    /// Bytes of the next length, as far as they are here.
    length: [u8; 4],
    filled: usize,
}

impl RowPlan {
    /// Plans the masking of rows with these fields. A column named twice gets the stricter
    /// method; columns without a method are scanned when there are detectors.
    ///
    /// # Errors
    /// When a mask names a column that is not there, or a format code does not exist.
    pub fn compile(
        fields: &[Field],
        masks: &[(usize, Method)],
        detectors: Option<Arc<Detectors>>,
        key: Arc<HashKey>,
    ) -> Result<Self, MaskError> {
        let columns = value::compile(fields, masks, detectors.as_deref())?;
        let governed = columns.iter().rposition(|c| !c.is_keep()).map_or(0, |i| i + 1);
        Ok(Self { columns, governed, means: Means { key, detectors } })
    }

    /// True when every row passes as it is.
    pub fn is_noop(&self) -> bool {
        self.governed == 0
    }

    /// Index of the last masked or scanned column; rows need to be held only up to its end.
    pub fn last_column(&self) -> usize {
        self.governed.saturating_sub(1)
    }

    /// Masks one row. `body` is the DataRow without its type and length, from the column
    /// count on; a complete message is appended to `out`.
    ///
    /// # Errors
    /// When the row is malformed or a value is not of its type. Nothing is appended then, and
    /// the row must not be sent.
    pub fn apply(&self, body: &[u8], out: &mut BytesMut) -> Result<Hits, MaskError> {
        let mark = out.len();
        let result = self.rewrite(body, out, mark);
        if result.is_err() {
            out.truncate(mark);
        }
        result
    }

    fn rewrite(&self, body: &[u8], out: &mut BytesMut, mark: usize) -> Result<Hits, MaskError> {
        let mut hits = Hits::default();
        let end = self.rewrite_until(self.columns.len(), body, out, &mut hits)?;
        if end != body.len() {
            return Err(MaskError::Trailing { extra: body.len() - end });
        }
        patch_length(out, mark, 0)?;
        Ok(hits)
    }

    /// Masks a row of which only the beginning is here; `body_len` is the length of the whole
    /// body. Once the last masked column is complete, a message header with the right length
    /// and the masked head are appended, and the rest can be streamed unchanged.
    ///
    /// # Errors
    /// As [`RowPlan::apply`].
    pub fn apply_head(
        &self,
        head: &[u8],
        body_len: usize,
        out: &mut BytesMut,
    ) -> Result<Head, MaskError> {
        let mark = out.len();
        let mut hits = Hits::default();
        let result = match self.rewrite_until(self.governed, head, out, &mut hits) {
            Ok(consumed) => body_len
                .checked_sub(consumed)
                .ok_or(MaskError::Truncated { column: self.governed })
                .and_then(|rest| patch_length(out, mark, rest))
                .map(|()| Head::Done {
                    consumed,
                    hits,
                    tail: Tail {
                        column: self.governed,
                        columns: self.columns.len(),
                        value: 0,
                        length: [0; 4],
                        filled: 0,
                    },
                }),
            Err(MaskError::Truncated { .. }) if head.len() < body_len => {
                out.truncate(mark);
                return Ok(Head::NeedMore);
            }
            Err(error) => Err(error),
        };
        if result.is_err() {
            out.truncate(mark);
        }
        result
    }

    /// Appends header, column count and the first `until` columns; returns where they end in
    /// the body. Columns that stay are copied in runs.
    fn rewrite_until(
        &self,
        until: usize,
        body: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<usize, MaskError> {
        let count = body
            .first_chunk::<2>()
            .and_then(|bytes| usize::try_from(i16::from_be_bytes(*bytes)).ok())
            .ok_or(MaskError::Truncated { column: 0 })?;
        if count != self.columns.len() {
            return Err(MaskError::ColumnCount { expected: self.columns.len(), found: count });
        }
        out.reserve(5 + body.len() + 32);
        out.put_slice(b"D\0\0\0\0");
        let (mut at, mut copied) = (2, 0);
        for (index, column) in self.columns.iter().take(until).enumerate() {
            let start = at;
            let truncated = MaskError::Truncated { column: index };
            let Some(length) = body.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
                return Err(truncated);
            };
            let length = i32::from_be_bytes(*length);
            at += 4;
            if length == -1 {
                continue;
            }
            let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
            let Some((value, end)) = end.and_then(|end| Some((body.get(at..end)?, end))) else {
                return Err(truncated);
            };
            at = end;
            if column.passes(&self.means, value) {
                continue;
            }
            let before = out.len();
            out.put_slice(&body[copied..start]);
            let slot = out.len();
            out.put_slice(&[0; 4]);
            match column.apply(&self.means, value, out, hits)? {
                Cell::Keep => {
                    out.truncate(before);
                    continue;
                }
                Cell::Null => {
                    out.truncate(slot);
                    out.put_slice(&(-1i32).to_be_bytes());
                }
                Cell::New => {
                    let length = i32::try_from(out.len() - slot - 4)
                        .map_err(|_| MaskError::RowTooLarge { limit: MAX_MESSAGE })?;
                    out[slot..slot + 4].copy_from_slice(&length.to_be_bytes());
                }
            }
            copied = at;
        }
        out.put_slice(&body[copied..at]);
        Ok(at)
    }
}

const MAX_MESSAGE: usize = i32::MAX as usize;

/// Writes the length of the message that begins at `mark` and continues for `rest` bytes.
fn patch_length(out: &mut BytesMut, mark: usize, rest: usize) -> Result<(), MaskError> {
    let length = i32::try_from(out.len() - mark - 1 + rest)
        .map_err(|_| MaskError::RowTooLarge { limit: MAX_MESSAGE })?;
    out[mark + 1..mark + 5].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

impl Tail {
    /// Looks at the next bytes of the body.
    ///
    /// # Errors
    /// When they are not columns of a row; the connection can only be ended then.
    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), MaskError> {
        while !chunk.is_empty() {
            if self.value > 0 {
                let skip = self.value.min(chunk.len());
                self.value -= skip;
                chunk = &chunk[skip..];
                continue;
            }
            if self.column == self.columns {
                return Err(MaskError::Trailing { extra: chunk.len() });
            }
            self.length[self.filled] = chunk[0];
            self.filled += 1;
            chunk = &chunk[1..];
            if self.filled == 4 {
                self.filled = 0;
                self.value = match i32::from_be_bytes(self.length) {
                    -1 => 0,
                    length => usize::try_from(length)
                        .map_err(|_| MaskError::Truncated { column: self.column })?,
                };
                self.column += 1;
            }
        }
        Ok(())
    }

    /// The body has ended.
    ///
    /// # Errors
    /// When a column is missing or not complete.
    pub fn finish(&self) -> Result<(), MaskError> {
        if self.value > 0 || self.filled > 0 || self.column < self.columns {
            return Err(MaskError::Truncated { column: self.column });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
