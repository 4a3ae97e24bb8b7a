//! Masking: what must not flow out, replaced on its way to the client and to the record.
//!
//! A column is masked by a [`Method`] because a rule names it; a value is masked because a
//! detector ([`Kind`]) recognises regulated data in it. Both work on the bytes PostgreSQL
//! sends, in text and binary format, and what comes out is valid for the column's type.
//!
//! This module must never let a value through that it could not read where it was told to
//! mask: a malformed row, a wrong column count or invalid binary is an error, and the caller
//! withholds the row. It opens no socket, knows no policy, and logs no value.

mod key;
mod kind;
mod method;

pub use key::{HashKey, KeyError};
pub use kind::Kind;
pub use method::Method;
