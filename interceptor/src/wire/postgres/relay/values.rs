//! Bind: the values of a statement's parameters, as they are shown and recorded.

use super::super::codec::{Body, CodecError};

/// A Bind message.
#[derive(Debug)]
pub struct Bound {
    /// Portal to make.
    pub portal: Box<[u8]>,
    /// Statement to bind.
    pub statement: Box<[u8]>,
    /// Values: whether binary, and the bytes; `None` is NULL.
    pub values: Vec<(bool, Option<Vec<u8>>)>,
    /// Result format codes.
    pub formats: Vec<i16>,
}

/// Reads a Bind's body.
pub fn bind(body: &[u8]) -> Result<Bound, CodecError> {
    let mut body = Body::new(b'B', body);
    let portal = body.string("portal")?.into();
    let statement = body.string("statement")?.into();
    let codes = formats(&mut body)?;
    let count = body.i16("value count")?.cast_unsigned();
    let mut values = Vec::new();
    for index in 0..usize::from(count) {
        let binary = match codes.as_slice() {
            [] => 0,
            [all] => *all,
            each => each.get(index).copied().unwrap_or(0),
        } == 1;
        values.push((binary, body.value("value")?.map(<[u8]>::to_vec)));
    }
    let formats = formats(&mut body)?;
    body.end()?;
    Ok(Bound { portal, statement, values, formats })
}

fn formats(body: &mut Body<'_>) -> Result<Vec<i16>, CodecError> {
    let count = body.i16("format count")?.cast_unsigned();
    let mut codes = Vec::new();
    for _ in 0..count {
        codes.push(body.i16("format code")?);
    }
    Ok(codes)
}

impl Bound {
    /// The values as text, by the types declared in Parse.
    pub fn shown(&self, declared: &[u32]) -> Vec<Option<String>> {
        shown(&self.values, declared)
    }
}

/// Values as text: text as it is, binary integers, floats, booleans and strings decoded by
/// their declared type, everything else as hex.
pub fn shown(values: &[(bool, Option<Vec<u8>>)], declared: &[u32]) -> Vec<Option<String>> {
    values
        .iter()
        .enumerate()
        .map(|(index, (binary, value))| {
            let value = value.as_deref()?;
            let declared = declared.get(index).copied().unwrap_or(0);
            Some(if *binary { decoded(value, declared) } else { text(value) })
        })
        .collect()
}

fn text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => hex(value),
    }
}

/// OIDs of `pg_type.dat`.
fn decoded(value: &[u8], declared: u32) -> String {
    match (declared, value) {
        (16, [flag]) => (*flag != 0).to_string(),
        (21, [a, b]) => i16::from_be_bytes([*a, *b]).to_string(),
        (23, [a, b, c, d]) => i32::from_be_bytes([*a, *b, *c, *d]).to_string(),
        (26, [a, b, c, d]) => u32::from_be_bytes([*a, *b, *c, *d]).to_string(),
        (20, v) if v.len() == 8 => {
            v.iter().fold(0i64, |n, byte| (n << 8) | i64::from(*byte)).to_string()
        }
        (700, [a, b, c, d]) => f32::from_be_bytes([*a, *b, *c, *d]).to_string(),
        (701, v) if v.len() == 8 => {
            f64::from_bits(v.iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte))).to_string()
        }
        (19 | 25 | 114 | 142 | 1042 | 1043, v) => text(v),
        // Undeclared binary values that are clean text are most likely strings.
        (0, v) if !v.is_empty() && v.iter().all(|b| (0x20..0x7f).contains(b)) => text(v),
        (_, v) => hex(v),
    }
}

fn hex(value: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(2 + value.len() * 2);
    out.push_str("\\x");
    for byte in value {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_values_are_shown_by_their_type() {
        let values = vec![
            (true, Some(7i32.to_be_bytes().to_vec())),
            (true, Some((-2i64).to_be_bytes().to_vec())),
            (true, Some(vec![0xde, 0xad])),
            (false, Some(b"it's".to_vec())),
            (false, None),
        ];
        let shown = shown(&values, &[23, 20, 17, 0, 0]);
        let shown: Vec<_> = shown.iter().map(Option::as_deref).collect();
        assert_eq!(shown, [Some("7"), Some("-2"), Some("\\xdead"), Some("it's"), None]);
    }

    #[test]
    fn a_bind_that_claims_more_than_it_has_is_refused() {
        let mut body = b"\0\0\0\0".to_vec();
        body.extend_from_slice(&2i16.to_be_bytes());
        body.extend_from_slice(&100i32.to_be_bytes());
        assert!(bind(&body).is_err());
    }
}
