//! Rows of the binary format: header, tuples of length-prefixed values, trailer.

use bytes::{BufMut, BytesMut};

use super::super::value::Cell;
use super::super::{Hits, MaskError};
use super::Shared;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Tuples,
    Ended,
}

#[derive(Debug)]
pub(super) struct Rows {
    shared: Shared,
    stage: Stage,
    /// Columns of the tuple at hand whose end was found.
    seen: usize,
}

const fn bad(what: &'static str) -> MaskError {
    MaskError::BadCopy { what }
}

impl Rows {
    pub fn new(shared: Shared) -> Self {
        Self { shared, stage: Stage::Header, seen: 0 }
    }

    /// True once the trailer has been seen.
    pub fn ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Where the header, the first tuple or the trailer ends; what is wrong is told as early
    /// as it can be known.
    pub fn end(&mut self, data: &[u8], searched: &mut usize) -> Result<Option<usize>, MaskError> {
        match self.stage {
            Stage::Header => header_end(data),
            Stage::Ended if data.is_empty() => Ok(None),
            Stage::Ended => Err(bad("binary copy data that ends with its trailer")),
            Stage::Tuples => self.tuple_end(data, searched),
        }
    }

    fn tuple_end(&mut self, data: &[u8], searched: &mut usize) -> Result<Option<usize>, MaskError> {
        let Some(count) = data.first_chunk::<2>() else { return Ok(None) };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            return Ok(Some(2));
        }
        let expected = self.shared.columns.len();
        let found = usize::try_from(count).map_err(|_| bad("binary copy data"))?;
        if found != expected {
            return Err(MaskError::ColumnCount { expected, found });
        }
        if *searched == 0 {
            (self.seen, *searched) = (0, 2);
        }
        while self.seen < expected {
            let Some(length) = data.get(*searched..).and_then(<[u8]>::first_chunk::<4>) else {
                return Ok(None);
            };
            let end = match i32::from_be_bytes(*length) {
                -1 => Some(*searched + 4),
                length => usize::try_from(length).ok().map(|length| *searched + 4 + length),
            };
            let end = end.ok_or(bad("binary copy data"))?;
            if end > data.len() {
                return Ok(None);
            }
            *searched = end;
            self.seen += 1;
        }
        Ok(Some(*searched))
    }

    /// Masks the header, one tuple or the trailer.
    pub fn mask(
        &mut self,
        row: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<(), MaskError> {
        if self.stage == Stage::Header {
            self.stage = Stage::Tuples;
            out.put_slice(row);
            return Ok(());
        }
        if row == (-1i16).to_be_bytes() {
            self.stage = Stage::Ended;
            out.put_slice(row);
            return Ok(());
        }
        let Shared { columns, means, scratch, .. } = &mut self.shared;
        let (mut at, mut copied) = (2, 0);
        for (index, column) in columns.iter().enumerate() {
            let start = at;
            let truncated = MaskError::Truncated { column: index };
            let Some(length) = row.get(at..).and_then(<[u8]>::first_chunk::<4>) else {
                return Err(truncated);
            };
            at += 4;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { continue };
            let value = row.get(at..at + length).ok_or(truncated)?;
            at += length;
            scratch.clear();
            let cell = column.apply(means, value, scratch, hits)?;
            if cell == Cell::Keep {
                continue;
            }
            out.put_slice(&row[copied..start]);
            copied = at;
            if cell == Cell::Null {
                out.put_i32(-1);
                continue;
            }
            let length = i32::try_from(scratch.len()).map_err(|_| bad("binary copy data"))?;
            out.put_i32(length);
            out.put_slice(scratch);
        }
        out.put_slice(&row[copied..]);
        Ok(())
    }
}

/// Signature, flags without OIDs, extension.
fn header_end(data: &[u8]) -> Result<Option<usize>, MaskError> {
    let known = data.len().min(SIGNATURE.len());
    if data[..known] != SIGNATURE[..known] {
        return Err(bad("binary copy data"));
    }
    let int = |at: usize| {
        data.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|b| u32::from_be_bytes(*b))
    };
    let (Some(flags), Some(extension)) = (int(11), int(15)) else { return Ok(None) };
    // The upper half holds what a reader must know; nothing but OIDs is defined.
    if flags >> 16 != 0 {
        return Err(bad("binary copy data without critical flags"));
    }
    let end = 19 + usize::try_from(extension).map_err(|_| bad("binary copy data"))?;
    Ok((data.len() >= end).then_some(end))
}
