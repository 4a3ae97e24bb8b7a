//! One column of a plan: what happens to each of its values.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};

use super::array;
use super::types::{self, Class, Field};
use super::{Context, Detectors, HashKey, Hits, MaskError, Method, text};

/// What became of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    /// It stays as it is.
    Keep,
    /// It is NULL now.
    Null,
    /// Its new form was appended.
    New,
}

/// What happens to the values of a column.
#[derive(Debug)]
enum Action {
    Keep,
    Null,
    /// The same bytes for every value.
    Constant(Vec<u8>),
    /// Hash or partial of a text.
    Text(Method),
    Json(Method),
    ByteaHash,
    UuidHash,
    Scan(Context),
}

/// One column of a plan.
#[derive(Debug)]
pub(super) struct Column {
    action: Action,
    class: Class,
    binary: bool,
    index: usize,
}

/// What all columns of a plan share.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub key: Arc<HashKey>,
    pub detectors: Option<Arc<Detectors>>,
}

/// Compiles one column for each field.
pub(super) fn compile(
    fields: &[Field],
    masks: &[(usize, Method)],
    detectors: Option<&Detectors>,
) -> Result<Vec<Column>, MaskError> {
    let mut methods: Vec<Option<Method>> = vec![None; fields.len()];
    for (index, method) in masks {
        let slot = methods
            .get_mut(*index)
            .ok_or(MaskError::NoSuchColumn { column: *index, columns: fields.len() })?;
        *slot = Some(match slot.take() {
            Some(other) => Method::stricter(other, method.clone()),
            None => method.clone(),
        });
    }
    let scan = detectors.is_some_and(|d| !d.is_empty());
    if scan && !super::detect::ready() {
        return Err(MaskError::DetectorsBroken);
    }
    fields
        .iter()
        .zip(methods)
        .enumerate()
        .map(|(index, (field, method))| Column::new(index, field, method, scan))
        .collect()
}

impl Column {
    fn new(
        index: usize,
        field: &Field,
        method: Option<Method>,
        scan: bool,
    ) -> Result<Self, MaskError> {
        let binary = match field.format {
            0 => false,
            1 => true,
            format => return Err(MaskError::UnknownFormat { column: index, format }),
        };
        let class = Class::of(field);
        let action = match method {
            Some(method) => action(class, binary, method),
            None if scan && can_hold_findings(class) => Action::Scan(Context::named(&field.name)),
            None => Action::Keep,
        };
        Ok(Self { action, class, binary, index })
    }

    /// True when values pass unseen.
    pub fn is_keep(&self) -> bool {
        matches!(self.action, Action::Keep)
    }

    /// True when this value certainly stays as it is: the column is not looked at, or no
    /// detector could find anything in bytes of these classes.
    pub fn passes(&self, means: &Means, value: &[u8]) -> bool {
        match (&self.action, self.class) {
            (Action::Keep, _) => true,
            (Action::Scan(context), Class::Text | Class::Padded | Class::Xml | Class::Other) => {
                means.detectors.as_ref().is_none_or(|d| !d.worth_it(value, context))
            }
            _ => false,
        }
    }

    /// Masks or scans one value that is not NULL; a new form is appended to `out`.
    pub fn apply(
        &self,
        means: &Means,
        value: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<Cell, MaskError> {
        let cell = match &self.action {
            Action::Keep => return Ok(Cell::Keep),
            Action::Scan(context) => {
                let Some(detectors) = &means.detectors else { return Ok(Cell::Keep) };
                let before = hits.found();
                let cell = self.scan(detectors, context, value, out, hits)?;
                hits.attribute(self.index, before);
                return Ok(cell);
            }
            Action::Null => Cell::Null,
            Action::Constant(bytes) => {
                out.put_slice(bytes);
                Cell::New
            }
            Action::Text(method) => {
                let value =
                    if self.class == Class::Padded { value.trim_ascii_end() } else { value };
                text::mask_into(method, &means.key, value, out);
                Cell::New
            }
            Action::Json(method) => self.json(method, means, value, out)?,
            Action::ByteaHash => self.bytea_hash(means, value, out),
            Action::UuidHash => self.uuid_hash(means, value, out)?,
        };
        hits.masked += 1;
        Ok(cell)
    }

    fn bad(&self, what: &'static str) -> MaskError {
        MaskError::BadValue { column: self.index, what }
    }

    /// The JSON text of a value: a jsonb in binary format begins with its version, 1.
    fn json_text<'v>(&self, value: &'v [u8]) -> Result<&'v [u8], MaskError> {
        if self.class == Class::Jsonb && self.binary {
            return value.strip_prefix(&[1]).ok_or_else(|| self.bad("binary jsonb of version 1"));
        }
        Ok(value)
    }

    fn version_byte(&self, out: &mut BytesMut) {
        if self.class == Class::Jsonb && self.binary {
            out.put_u8(1);
        }
    }

    /// Hash or partial of a JSON value: a string, or `null` where there is no string to keep
    /// a part of.
    fn json(
        &self,
        method: &Method,
        means: &Means,
        value: &[u8],
        out: &mut BytesMut,
    ) -> Result<Cell, MaskError> {
        let json = self.json_text(value)?;
        let mut masked = Vec::new();
        if *method == Method::Hash {
            text::hash_into(&means.key, json, &mut masked);
        } else {
            let Ok(string) = serde_json::from_slice::<String>(json) else {
                self.version_byte(out);
                out.put_slice(b"null");
                return Ok(Cell::New);
            };
            text::mask_into(method, &means.key, string.as_bytes(), &mut masked);
        }
        self.version_byte(out);
        super::json::string_into(&masked, out);
        Ok(Cell::New)
    }

    fn bytea_hash(&self, means: &Means, value: &[u8], out: &mut BytesMut) -> Cell {
        let hash = if self.binary {
            means.key.digest(value)
        } else {
            means.key.digest(&types::decode_bytea_text(value.to_vec()))
        };
        out.put_slice(&types::bytea_constant(&hash, self.binary));
        Cell::New
    }

    /// A uuid of version 8 (custom) made of the hash.
    fn uuid_hash(
        &self,
        means: &Means,
        value: &[u8],
        out: &mut BytesMut,
    ) -> Result<Cell, MaskError> {
        let bytes = if self.binary {
            <[u8; 16]>::try_from(value).map_err(|_| self.bad("binary uuid"))?
        } else {
            std::str::from_utf8(value)
                .ok()
                .and_then(types::uuid_bytes)
                .ok_or_else(|| self.bad("uuid text"))?
        };
        let mut hash = means.key.digest(&bytes);
        hash[6] = hash[6] & 0x0f | 0x80;
        hash[8] = hash[8] & 0x3f | 0x80;
        out.put_slice(&types::uuid_constant(hash, self.binary));
        Ok(Cell::New)
    }

    /// Looks for regulated data in a value.
    fn scan(
        &self,
        detectors: &Detectors,
        context: &Context,
        value: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Result<Cell, MaskError> {
        match self.class {
            Class::Json | Class::Jsonb => {
                let json = self.json_text(value)?;
                let Some(scrubbed) = super::json::scrub(detectors, json, context, hits) else {
                    return Ok(Cell::Keep);
                };
                self.version_byte(out);
                out.put_slice(&scrubbed);
                Ok(Cell::New)
            }
            Class::Bytea => Ok(self.scan_bytea(detectors, context, value, out, hits)),
            Class::TextArray | Class::JsonArray => {
                let scan = array::Scan { detectors, context, json: self.class == Class::JsonArray };
                if !self.binary {
                    return Ok(scan.literal(value, out, hits));
                }
                scan.binary(value, out, hits).ok_or_else(|| self.bad("binary array"))
            }
            Class::Int4 | Class::Int8 | Class::Numeric => {
                self.scan_number(detectors, context, value, hits)
            }
            Class::Other => Ok(null_if(detectors.scrub_bytes(value, context, hits).is_some())),
            _ => Ok(replace(detectors, context, value, out, hits)),
        }
    }

    /// A number that is a card number (or whatever its column's name makes it) becomes NULL.
    fn scan_number(
        &self,
        detectors: &Detectors,
        context: &Context,
        value: &[u8],
        hits: &mut Hits,
    ) -> Result<Cell, MaskError> {
        let digits = match (self.class, self.binary) {
            (_, false) => {
                let whole = value.split(|b| *b == b'.').next().unwrap_or(value);
                BytesMut::from(whole)
            }
            (Class::Int8, true) => {
                let bytes = value.try_into().map_err(|_| self.bad("binary bigint"))?;
                BytesMut::from(i64::from_be_bytes(bytes).to_string().as_bytes())
            }
            (Class::Int4, true) => {
                let bytes = value.try_into().map_err(|_| self.bad("binary integer"))?;
                BytesMut::from(i32::from_be_bytes(bytes).to_string().as_bytes())
            }
            (_, true) => match types::numeric_digits(value) {
                Err(()) => return Err(self.bad("binary numeric")),
                Ok(None) => return Ok(Cell::Keep),
                Ok(Some(digits)) => digits,
            },
        };
        Ok(null_if(detectors.scrub_bytes(&digits, context, hits).is_some()))
    }

    /// Bytes that are text are looked at as text.
    fn scan_bytea(
        &self,
        detectors: &Detectors,
        context: &Context,
        value: &[u8],
        out: &mut BytesMut,
        hits: &mut Hits,
    ) -> Cell {
        let decoded = if self.binary { None } else { types::decode_hex(value) };
        let bytes = decoded.as_deref().unwrap_or(value);
        if std::str::from_utf8(bytes).is_err() {
            return Cell::Keep;
        }
        match detectors.scrub_bytes(bytes, context, hits) {
            None => Cell::Keep,
            Some(scrubbed) if scrubbed.null => Cell::Null,
            Some(scrubbed) => {
                out.put_slice(&types::bytea_constant(&scrubbed.bytes, self.binary));
                Cell::New
            }
        }
    }
}

fn null_if(found: bool) -> Cell {
    if found { Cell::Null } else { Cell::Keep }
}

/// Scrubs a text in place.
fn replace(
    detectors: &Detectors,
    context: &Context,
    value: &[u8],
    out: &mut BytesMut,
    hits: &mut Hits,
) -> Cell {
    match detectors.scrub_bytes(value, context, hits) {
        None => Cell::Keep,
        Some(scrubbed) if scrubbed.null => Cell::Null,
        Some(scrubbed) => {
            out.put_slice(&scrubbed.bytes);
            Cell::New
        }
    }
}

/// The types the detectors look into.
fn can_hold_findings(class: Class) -> bool {
    matches!(
        class,
        Class::Text
            | Class::Padded
            | Class::Xml
            | Class::Json
            | Class::Jsonb
            | Class::Bytea
            | Class::Int4
            | Class::Int8
            | Class::Numeric
            | Class::TextArray
            | Class::JsonArray
            | Class::Other
    )
}

/// What a method does to values of a class.
fn action(class: Class, binary: bool, method: Method) -> Action {
    let constant = |text: &str| class.constant(text, binary).map_or(Action::Null, Action::Constant);
    match (method, class) {
        (Method::Null, _) => Action::Null,
        (Method::Fixed(text), _) => constant(&text),
        (Method::Redact, Class::Text | Class::Padded | Class::Xml | Class::Json | Class::Jsonb) => {
            constant(text::REDACTED)
        }
        (Method::Redact, Class::Bytea) => constant(text::REDACTED),
        // Part of a markup is not markup.
        (Method::Partial { .. }, Class::Xml) => constant(text::REDACTED),
        (Method::Partial { .. }, Class::Bytea) => constant(text::REDACTED),
        (method, Class::Text | Class::Padded | Class::Xml) => Action::Text(method),
        (method, Class::Json | Class::Jsonb) => Action::Json(method),
        (Method::Hash, Class::Bytea) => Action::ByteaHash,
        (Method::Hash, Class::Uuid) => Action::UuidHash,
        (Method::Redact | Method::Hash | Method::Partial { .. }, _) => Action::Null,
    }
}
