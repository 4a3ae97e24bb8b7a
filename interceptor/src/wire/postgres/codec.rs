//! Message framing of the PostgreSQL frontend/backend protocol, version 3 (manual, "Message
//! Formats"): headers, bounded fields, and the few messages that we write ourselves.
//!
//! Nothing here allocates by a length that the other side claims, and nothing here knows what
//! a message means.

use bytes::{Buf, BufMut, BytesMut};

/// Bytes of a message header: type and length.
pub const HEADER: usize = 5;

/// Largest startup packet, as in the server (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP: usize = 10_000;

/// Largest message that is collected rather than streamed: statements, Bind, errors. Bytes.
pub const MAX_COLLECTED: usize = 64 << 20;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The length word is smaller than itself or larger than the type allows.
    #[error("message {tag:?} has length {length}, which its type does not allow")]
    Length {
        /// The message's type byte.
        tag: char,
        /// The length word as sent.
        length: u32,
    },
    /// A field runs past the message, a string has no end, or bytes are left over.
    #[error("message {tag:?} is malformed: {what}")]
    Malformed {
        /// The message's type byte.
        tag: char,
        /// Which field.
        what: &'static str,
    },
    /// The type byte is not one of the protocol's.
    #[error("unknown message type {tag:?}")]
    Unknown {
        /// The type byte.
        tag: char,
    },
}

/// A message's type and the length of its body in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Type byte.
    pub tag: u8,
    /// Bytes after the length word.
    pub body: usize,
}

impl Header {
    /// The header at the start of `bytes`, if five bytes are there.
    pub fn peek(bytes: &[u8]) -> Result<Option<Self>, CodecError> {
        let [tag, a, b, c, d, ..] = bytes else { return Ok(None) };
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        // The server's own ceiling for any message is 1 GiB (MaxAllocSize).
        if !(4..=0x3fff_ffff).contains(&length) {
            return Err(CodecError::Length { tag: char::from(*tag), length });
        }
        Ok(Some(Self { tag: *tag, body: length as usize - 4 }))
    }

    /// Header and body together, in bytes.
    pub fn total(&self) -> usize {
        HEADER + self.body
    }
}

/// A reader over one message's body that never reads past it.
#[derive(Debug)]
pub struct Body<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    /// Over `body`, the bytes after the length word.
    pub fn new(tag: u8, body: &'a [u8]) -> Self {
        Self { tag, rest: body }
    }

    fn malformed(&self, what: &'static str) -> CodecError {
        CodecError::Malformed { tag: char::from(self.tag), what }
    }

    /// A NUL-terminated string, without its NUL.
    pub fn string(&mut self, what: &'static str) -> Result<&'a [u8], CodecError> {
        let end = memchr::memchr(0, self.rest).ok_or_else(|| self.malformed(what))?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(text)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, CodecError> {
        let (first, rest) = self.rest.split_first().ok_or_else(|| self.malformed(what))?;
        self.rest = rest;
        Ok(*first)
    }

    /// An Int16.
    pub fn i16(&mut self, what: &'static str) -> Result<i16, CodecError> {
        let bytes = self.take(2, what)?;
        Ok(i16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// An Int32.
    pub fn i32(&mut self, what: &'static str) -> Result<i32, CodecError> {
        let bytes = self.take(4, what)?;
        Ok(i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// An Int32 that counts or names something unsigned (an OID).
    pub fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        Ok(self.i32(what)?.cast_unsigned())
    }

    /// Exactly `n` bytes.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        if n > self.rest.len() {
            return Err(self.malformed(what));
        }
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        Ok(taken)
    }

    /// A length-prefixed value; `-1` is NULL.
    pub fn value(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, CodecError> {
        match self.i32(what)? {
            -1 => Ok(None),
            n => {
                let n = usize::try_from(n).map_err(|_| self.malformed(what))?;
                self.take(n, what).map(Some)
            }
        }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Refuses bytes that are left over.
    pub fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed("bytes after its end")) }
    }
}

/// Appends a message: the type, then what `fill` writes, with the length put in afterwards.
pub fn message(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    fill(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a NUL-terminated string; a NUL inside ends it, as it would for the reader.
pub fn put_string(out: &mut BytesMut, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.put_u8(0);
}

/// How bad an error is (manual, "Error and Notice Message Fields").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
    /// Information only.
    Notice,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Notice => "NOTICE",
        }
    }
}

/// An error or notice of our own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How bad it is.
    pub severity: Severity,
    /// SQLSTATE, five characters.
    pub code: &'static str,
    /// The primary message.
    pub message: String,
    /// What the reader can do.
    pub hint: Option<String>,
}

impl Report {
    /// An ERROR.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), hint: None }
    }

    /// A FATAL.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, code, message: message.into(), hint: None }
    }

    /// A NOTICE.
    pub fn notice(message: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, code: "00000", message: message.into(), hint: None }
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Appends the ErrorResponse or NoticeResponse.
    pub fn write(&self, out: &mut BytesMut) {
        let tag = if self.severity == Severity::Notice { b'N' } else { b'E' };
        message(out, tag, |out| {
            for (field, text) in [
                (b'S', self.severity.as_str()),
                (b'V', self.severity.as_str()),
                (b'C', self.code),
                (b'M', self.message.as_str()),
            ] {
                out.put_u8(field);
                put_string(out, text.as_bytes());
            }
            if let Some(hint) = &self.hint {
                out.put_u8(b'H');
                put_string(out, hint.as_bytes());
            }
            out.put_u8(0);
        });
    }
}

/// Appends a simple Query.
pub fn query(out: &mut BytesMut, text: &[u8]) {
    message(out, b'Q', |out| put_string(out, text));
}

/// Appends a Parse without parameter types.
pub fn parse(out: &mut BytesMut, name: &[u8], text: &[u8]) {
    message(out, b'P', |out| {
        put_string(out, name);
        put_string(out, text);
        out.put_u16(0);
    });
}

/// Appends a Bind without parameters, all results in text.
pub fn bind(out: &mut BytesMut, portal: &[u8], statement: &[u8]) {
    message(out, b'B', |out| {
        put_string(out, portal);
        put_string(out, statement);
        out.put_u16(0);
        out.put_u16(0);
        out.put_u16(0);
    });
}

/// Appends a Describe (`D`) or Close (`C`) of a statement (`S`) or portal (`P`).
pub fn target(out: &mut BytesMut, tag: u8, kind: u8, name: &[u8]) {
    message(out, tag, |out| {
        out.put_u8(kind);
        put_string(out, name);
    });
}

/// Appends an Execute without row limit.
pub fn execute(out: &mut BytesMut, portal: &[u8]) {
    message(out, b'E', |out| {
        put_string(out, portal);
        out.put_u32(0);
    });
}

/// Appends a message without body: Sync, Flush, Terminate.
pub fn bare(out: &mut BytesMut, tag: u8) {
    message(out, tag, |_| {});
}

/// Appends a ParameterStatus.
pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_string(out, name.as_bytes());
        put_string(out, value.as_bytes());
    });
}

/// One column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Column name as sent.
    pub name: Vec<u8>,
    /// Table's OID, or 0.
    pub table: u32,
    /// Column's number in that table, or 0.
    pub attnum: i16,
    /// Type's OID.
    pub type_oid: u32,
    /// 0 text, 1 binary.
    pub format: i16,
}

/// Most columns that a result can have (`MaxTupleAttributeNumber`).
const MAX_COLUMNS: i16 = 1664;

/// The columns of a RowDescription's body.
pub fn row_description(body: &[u8]) -> Result<Vec<Field>, CodecError> {
    let mut body = Body::new(b'T', body);
    let count = body.i16("column count")?;
    if !(0..=MAX_COLUMNS).contains(&count) {
        return Err(CodecError::Malformed { tag: 'T', what: "column count" });
    }
    let mut fields = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
    for _ in 0..count {
        let name = body.string("column name")?.to_vec();
        let table = body.u32("table")?;
        let attnum = body.i16("column number")?;
        let type_oid = body.u32("type")?;
        body.i16("type length")?;
        body.i32("type modifier")?;
        let format = body.i16("format")?;
        fields.push(Field { name, table, attnum, type_oid, format });
    }
    body.end()?;
    Ok(fields)
}

/// The values of a DataRow's body, borrowed.
pub fn data_row(body: &[u8]) -> Result<Vec<Option<&[u8]>>, CodecError> {
    let mut body = Body::new(b'D', body);
    let count = body.i16("column count")?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(body.value("value")?);
    }
    body.end()?;
    Ok(values)
}

/// The fields of an ErrorResponse's or NoticeResponse's body.
pub fn report_fields(body: &[u8]) -> Result<Vec<(u8, &[u8])>, CodecError> {
    let mut body = Body::new(b'E', body);
    let mut fields = Vec::new();
    loop {
        match body.u8("field type")? {
            0 => break,
            kind => fields.push((kind, body.string("field")?)),
        }
        if fields.len() > 64 {
            return Err(CodecError::Malformed { tag: 'E', what: "more than 64 fields" });
        }
    }
    body.end()?;
    Ok(fields)
}

/// One field of [`report_fields`], as text.
pub fn report_field(body: &[u8], kind: u8) -> Option<String> {
    let fields = report_fields(body).ok()?;
    let (_, text) = fields.into_iter().find(|(k, _)| *k == kind)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Splits one whole message off the front of `buffer`, if it is there, refusing larger than
/// `limit` bytes of body.
pub fn split_message(
    buffer: &mut BytesMut,
    limit: usize,
) -> Result<Option<(u8, BytesMut)>, CodecError> {
    let Some(header) = Header::peek(buffer)? else { return Ok(None) };
    if header.body > limit {
        return Err(CodecError::Length {
            tag: char::from(header.tag),
            length: u32::try_from(header.body + 4).unwrap_or(u32::MAX),
        });
    }
    if buffer.len() < header.total() {
        return Ok(None);
    }
    let mut whole = buffer.split_to(header.total());
    whole.advance(HEADER);
    Ok(Some((header.tag, whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_outside_the_protocol_are_refused() {
        for length in [0u32, 3, 0x4000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            assert!(Header::peek(&bytes).is_err(), "{length}");
        }
        assert_eq!(Header::peek(b"Q\0\0\0").unwrap(), None);
    }

    #[test]
    fn a_report_can_be_read_back() {
        let mut out = BytesMut::new();
        Report::error("42501", "no").hint("ask").write(&mut out);
        let (tag, body) = split_message(&mut out, 1000).unwrap().unwrap();
        assert_eq!(tag, b'E');
        assert_eq!(report_field(&body, b'C').as_deref(), Some("42501"));
        assert_eq!(report_field(&body, b'H').as_deref(), Some("ask"));
        assert!(out.is_empty());
    }

    #[test]
    fn values_cannot_run_past_their_message() {
        let mut body = Vec::new();
        body.extend_from_slice(&1i16.to_be_bytes());
        body.extend_from_slice(&100i32.to_be_bytes());
        body.extend_from_slice(b"short");
        assert!(data_row(&body).is_err());
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_collected() {
        let mut buffer = BytesMut::from(&b"Q\x00\x10\x00\x00"[..]);
        assert!(matches!(split_message(&mut buffer, 1000), Err(CodecError::Length { .. })));
    }
}
