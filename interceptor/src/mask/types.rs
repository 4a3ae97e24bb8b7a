//! What PostgreSQL type a column has, as far as masking cares, and constants of a type.

use bytes::{BufMut, BytesMut};

/// A column of a result or a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// OID of its type, as RowDescription says it (domains come as their base type).
    pub type_oid: u32,
    /// 0 text, 1 binary.
    pub format: i16,
    /// Its name; tells the detectors what the values are about.
    pub name: String,
    /// Whether a type that is not built in behaves as text on the wire (`citext`).
    pub text_like: bool,
}

impl Field {
    /// A column of a built-in type.
    pub fn new(type_oid: u32, format: i16, name: impl Into<String>) -> Self {
        Self { type_oid, format, name: name.into(), text_like: false }
    }

    /// The same column, of a type that behaves as text on the wire.
    #[must_use]
    pub fn text_like(mut self) -> Self {
        self.text_like = true;
        self
    }
}

/// How values of a type are read and replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Text,
    /// `char(n)`: trailing spaces mean nothing.
    Padded,
    Xml,
    Json,
    /// With a version byte in binary format.
    Jsonb,
    Bytea,
    Uuid,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Bool,
    Date,
    Timestamp,
    TimestampTz,
    Inet,
    /// `"char"`, one byte.
    Byte,
    /// Arrays of text.
    TextArray,
    /// Arrays of json or jsonb.
    JsonArray,
    /// Never holds what a detector knows: times, geometry, object identifiers.
    Opaque,
    /// Composite, range, enum and extension types: looked at, never taken apart.
    Other,
}

impl Class {
    pub fn of(field: &Field) -> Self {
        if field.text_like {
            return Self::Text;
        }
        match field.type_oid {
            19 | 25 | 705 | 1043 | 2275 => Self::Text,
            1042 => Self::Padded,
            142 => Self::Xml,
            114 => Self::Json,
            3802 => Self::Jsonb,
            17 => Self::Bytea,
            2950 => Self::Uuid,
            21 => Self::Int2,
            23 => Self::Int4,
            20 => Self::Int8,
            26 => Self::Oid,
            700 => Self::Float4,
            701 => Self::Float8,
            1700 => Self::Numeric,
            16 => Self::Bool,
            1082 => Self::Date,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            869 | 650 => Self::Inet,
            18 => Self::Byte,
            1009 | 1015 | 1014 | 1003 => Self::TextArray,
            199 | 3807 => Self::JsonArray,
            // tid xid cid, points to polygons, macaddr, time, interval, bit, reg*, uuid[],
            // arrays of booleans, small numbers, floats and times, snapshots
            22
            | 24
            | 27..=30
            | 600..=604
            | 628
            | 718
            | 774
            | 829
            | 790
            | 1083
            | 1186
            | 1266
            | 1560
            | 1562
            | 2202..=2206
            | 2278
            | 2951
            | 1000
            | 1005
            | 1021
            | 1022
            | 1115
            | 1182
            | 1183
            | 1185
            | 1187
            | 1270
            | 3220
            | 5069
            | 2970
            | 5038 => Self::Opaque,
            _ => Self::Other,
        }
    }

    /// The wire form of a constant, when this type can hold it in this format.
    pub fn constant(self, text: &str, binary: bool) -> Option<Vec<u8>> {
        let raw = || text.as_bytes().to_vec();
        let number = text.trim();
        match self {
            Self::Text | Self::Padded | Self::Xml => Some(raw()),
            Self::Json | Self::Jsonb => Some(json_constant(text, self == Self::Jsonb && binary)),
            Self::Bytea => Some(bytea_constant(&decode_bytea_text(raw()), binary)),
            Self::Uuid => uuid_bytes(number).map(|bytes| uuid_constant(bytes, binary)),
            Self::Int2 => wire(number.parse::<i16>().ok()?, i16::to_be_bytes, binary),
            Self::Int4 => wire(number.parse::<i32>().ok()?, i32::to_be_bytes, binary),
            Self::Int8 => wire(number.parse::<i64>().ok()?, i64::to_be_bytes, binary),
            Self::Oid => wire(number.parse::<u32>().ok()?, u32::to_be_bytes, binary),
            Self::Float4 => wire(finite(number)?.parse::<f32>().ok()?, f32::to_be_bytes, binary),
            Self::Float8 => wire(finite(number)?.parse::<f64>().ok()?, f64::to_be_bytes, binary),
            Self::Numeric => (!binary && is_decimal(number)).then(|| number.as_bytes().to_vec()),
            Self::Bool => bool_constant(number, binary),
            Self::Date => date_constant(number, binary),
            Self::Timestamp => timestamp_constant(number, binary),
            Self::TimestampTz => timestamptz_constant(number, binary),
            Self::Inet => inet_constant(number, binary),
            Self::Byte => (text.len() == 1 && text.is_ascii()).then(raw),
            Self::TextArray | Self::JsonArray | Self::Opaque | Self::Other => None,
        }
    }
}

fn wire<T: ToString + Copy, const N: usize>(
    value: T,
    bytes: fn(T) -> [u8; N],
    binary: bool,
) -> Option<Vec<u8>> {
    Some(if binary { bytes(value).to_vec() } else { value.to_string().into_bytes() })
}

/// Rust reads `inf` and `nan` in spellings PostgreSQL does not.
fn finite(text: &str) -> Option<&str> {
    text.bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'))
        .then_some(text)
}

fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    text.len() <= 1000 && all(whole) && all(fraction)
}

fn json_constant(text: &str, version_byte: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 3);
    if version_byte {
        out.push(1);
    }
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        out.extend_from_slice(text.as_bytes());
    } else {
        super::json::string_into(text.as_bytes(), &mut out);
    }
    out
}

/// The bytes of a bytea in text format: hexadecimal, else as they stand.
pub(super) fn decode_bytea_text(text: Vec<u8>) -> Vec<u8> {
    decode_hex(&text).unwrap_or(text)
}

/// The bytes behind `\x`; `None` when it is not that.
pub(super) fn decode_hex(text: &[u8]) -> Option<Vec<u8>> {
    let hex = text.strip_prefix(b"\\x")?;
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if hex.len() % 2 != 0 {
        return None;
    }
    hex.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// The wire form of these bytes as bytea.
pub(super) fn bytea_constant(bytes: &[u8], binary: bool) -> Vec<u8> {
    if binary {
        return bytes.to_vec();
    }
    let mut out = Vec::with_capacity(2 + bytes.len() * 2);
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    out
}

/// The sixteen bytes of a uuid in any of the spellings PostgreSQL takes.
pub(super) fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let text = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&hex, 16).ok().map(u128::to_be_bytes)
}

/// The wire form of a uuid.
pub(super) fn uuid_constant(bytes: [u8; 16], binary: bool) -> Vec<u8> {
    if binary {
        return bytes.to_vec();
    }
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        .into_bytes()
}

fn bool_constant(text: &str, binary: bool) -> Option<Vec<u8>> {
    let value = match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "yes" | "on" | "1" => true,
        "f" | "false" | "no" | "off" | "0" => false,
        _ => return None,
    };
    Some(match (binary, value) {
        (true, value) => vec![u8::from(value)],
        (false, true) => b"t".to_vec(),
        (false, false) => b"f".to_vec(),
    })
}

/// Day 0 of PostgreSQL's calendar, as a Unix day and second.
const EPOCH_DAYS: i64 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS * 86_400_000_000;

/// Years outside of this are left to PostgreSQL.
fn plain_year(year: i16) -> bool {
    (1..=9999).contains(&year)
}

fn unix_micros(datetime: jiff::civil::DateTime) -> Option<i64> {
    Some(jiff::tz::TimeZone::UTC.to_timestamp(datetime).ok()?.as_microsecond())
}

fn date_constant(text: &str, binary: bool) -> Option<Vec<u8>> {
    let date: jiff::civil::Date = text.parse().ok()?;
    if !plain_year(date.year()) || text.contains(':') {
        return None;
    }
    if !binary {
        return Some(date.to_string().into_bytes());
    }
    let days = unix_micros(date.at(0, 0, 0, 0))?.div_euclid(86_400_000_000) - EPOCH_DAYS;
    Some(i32::try_from(days).ok()?.to_be_bytes().to_vec())
}

fn timestamp_constant(text: &str, binary: bool) -> Option<Vec<u8>> {
    let datetime: jiff::civil::DateTime = text.parse().ok()?;
    if !plain_year(datetime.year()) {
        return None;
    }
    if binary {
        return Some((unix_micros(datetime)? - EPOCH_MICROS).to_be_bytes().to_vec());
    }
    Some(datetime.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string().into_bytes())
}

/// A moment with an offset; without one it is taken as UTC.
fn timestamptz_constant(text: &str, binary: bool) -> Option<Vec<u8>> {
    let moment = match text.parse::<jiff::Timestamp>() {
        Ok(moment) => moment.as_microsecond(),
        Err(_) => unix_micros(text.parse().ok()?)?,
    };
    if binary {
        return Some((moment - EPOCH_MICROS).to_be_bytes().to_vec());
    }
    let moment = jiff::Timestamp::from_microsecond(moment).ok()?;
    Some(moment.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string().into_bytes())
}

fn inet_constant(text: &str, binary: bool) -> Option<Vec<u8>> {
    if binary {
        return None;
    }
    let address: std::net::IpAddr = text.parse().ok()?;
    Some(address.to_string().into_bytes())
}

/// The digits of a numeric in binary format before its decimal point. `Ok(None)` when it is
/// not a finite number of at most 24 digits; `Err` when it is not a numeric.
pub(super) fn numeric_digits(value: &[u8]) -> Result<Option<BytesMut>, ()> {
    let field = |i: usize| -> Result<u16, ()> {
        let pair: &[u8; 2] = value.get(i * 2..i * 2 + 2).and_then(|p| p.first_chunk()).ok_or(())?;
        Ok(u16::from_be_bytes(*pair))
    };
    let (count, weight, sign) = (usize::from(field(0)?), field(1)?.cast_signed(), field(2)?);
    field(3)?;
    if value.len() != 8 + count * 2 {
        return Err(());
    }
    if !matches!(sign, 0 | 0x4000) || !(0..6).contains(&weight) {
        return Ok(None);
    }
    let mut digits = BytesMut::new();
    for i in 0..=usize::from(weight.unsigned_abs()) {
        let group = if i < count { field(4 + i)? } else { 0 };
        if group > 9999 {
            return Err(());
        }
        digits.put_slice(format!("{group:04}").as_bytes());
    }
    let zeros = digits.iter().take_while(|d| **d == b'0').count();
    Ok(Some(digits.split_off(zeros)))
}
