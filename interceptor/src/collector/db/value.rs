//! Values that go into statements.

use bytes::BytesMut;
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use rusqlite::types::{ToSqlOutput, ValueRef};

/// A value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// None.
    Null,
    /// A whole number, or 0 and 1 for a truth value.
    Int(i64),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Value::Null => ValueRef::Null,
            Value::Int(n) => ValueRef::Integer(n),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (*self, kind) {
            (Value::Null, _) => Ok(IsNull::Yes),
            (Value::Int(n), &Type::INT8) => n.to_sql(kind, out),
            (Value::Int(n), &Type::INT4) => i32::try_from(n)?.to_sql(kind, out),
            (Value::Int(n), &Type::INT2) => i16::try_from(n)?.to_sql(kind, out),
            (Value::Int(n), &Type::BOOL) => (n != 0).to_sql(kind, out),
            // PostgreSQL's texts hold no NUL: its picture stands in its place.
            (Value::Text(text), &Type::TEXT | &Type::VARCHAR | &Type::UNKNOWN) => {
                match text.contains('\0') {
                    false => text.to_sql(kind, out),
                    true => text.replace('\0', "\u{2400}").to_sql(kind, out),
                }
            }
            (Value::Blob(bytes), &Type::BYTEA) => bytes.to_sql(kind, out),
            (Value::Int(_), _) => Err(format!("a whole number is no {kind}").into()),
            (Value::Text(_), _) => Err(format!("a text is no {kind}").into()),
            (Value::Blob(_), _) => Err(format!("bytes are no {kind}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// What can be a value.
pub trait ToValue {
    /// As one.
    fn to_value(&self) -> Value<'_>;
}

macro_rules! numbers {
    ($($kind:ty),*) => {$(
        impl ToValue for $kind {
            fn to_value(&self) -> Value<'_> {
                Value::Int(i64::from(*self))
            }
        }
    )*};
}

numbers!(i64, i32, u32, u16, u8, bool);

impl ToValue for str {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl ToValue for std::borrow::Cow<'_, str> {
    fn to_value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl ToValue for Vec<u8> {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl ToValue for [u8] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Value<'_> {
        Value::Blob(self)
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, T::to_value)
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value<'_> {
        (**self).to_value()
    }
}

impl ToValue for Value<'_> {
    fn to_value(&self) -> Value<'_> {
        *self
    }
}

/// A value that is kept.
impl ToValue for rusqlite::types::Value {
    fn to_value(&self) -> Value<'_> {
        match self {
            Self::Integer(n) => Value::Int(*n),
            Self::Text(text) => Value::Text(text),
            Self::Blob(bytes) => Value::Blob(bytes),
            Self::Null | Self::Real(_) => Value::Null,
        }
    }
}

/// The values of a statement's parameters, in order.
pub trait Params {
    /// All of them.
    fn values(&self) -> Vec<Value<'_>>;
}

impl Params for [&dyn ToValue; 0] {
    fn values(&self) -> Vec<Value<'_>> {
        Vec::new()
    }
}

impl Params for &[&dyn ToValue] {
    fn values(&self) -> Vec<Value<'_>> {
        self.iter().map(|v| v.to_value()).collect()
    }
}

macro_rules! arrays {
    ($($n:literal),*) => {$(
        impl<T: ToValue> Params for [T; $n] {
            fn values(&self) -> Vec<Value<'_>> {
                self.iter().map(T::to_value).collect()
            }
        }
        impl Params for &[&dyn ToValue; $n] {
            fn values(&self) -> Vec<Value<'_>> {
                self.iter().map(|v| v.to_value()).collect()
            }
        }
    )*};
}

arrays!(1, 2, 3, 4, 5, 6);

macro_rules! tuples {
    ($(($($kind:ident $n:tt),*)),*) => {$(
        impl<$($kind: ToValue),*> Params for ($($kind,)*) {
            fn values(&self) -> Vec<Value<'_>> {
                vec![$(self.$n.to_value()),*]
            }
        }
    )*};
}

tuples!((A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3), (A 0, B 1, C 2, D 3, E 4),
    (A 0, B 1, C 2, D 3, E 4, F 5)
);

/// Values of a list.
pub struct List<T>(Vec<T>);

impl<T: ToValue> Params for List<T> {
    fn values(&self) -> Vec<Value<'_>> {
        self.0.iter().map(T::to_value).collect()
    }
}

/// The values of a list as a statement's parameters.
pub fn params_from_iter<T: ToValue>(all: impl IntoIterator<Item = T>) -> List<T> {
    List(all.into_iter().collect())
}

/// Values of any kinds as a statement's parameters.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$(&$value as &dyn $crate::collector::db::ToValue),*]
            as &[&dyn $crate::collector::db::ToValue]
    };
}
pub(crate) use params;
