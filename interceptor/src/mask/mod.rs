//! Masking: what must not flow out, replaced on its way to the client and to the record.
//!
//! A column is masked by a [`Method`] because a rule names it; a value is masked because a
//! detector ([`Kind`]) recognises regulated data in it. Both work on the bytes PostgreSQL
//! sends, in text and binary format, and what comes out is valid for the column's type.
//!
//! This module must never let a value through that it could not read where it was told to
//! mask: a malformed row, a wrong column count or invalid binary is an error, and the caller
//! withholds the row. It opens no socket, knows no policy, and logs no value.

mod array;
mod copy;
mod detect;
mod error;
mod hits;
mod json;
mod key;
mod kind;
mod method;
mod row;
mod statement;
mod stream;
mod terminal;
mod text;
mod types;
mod value;

pub use copy::{CopyFormat, CopyPlan, CsvFormat, DEFAULT_ROW_LIMIT, TextFormat};
pub use detect::{Context, Detectors, Finding};
pub use error::MaskError;
pub use hits::Hits;
pub use key::{HashKey, KeyError};
pub use kind::Kind;
pub use method::Method;
pub use row::{Head, RowPlan, Tail};
pub use statement::{LiteralMask, scrub_statement};
pub use stream::{MAX_HELD, StreamMasker};
pub use terminal::TerminalMasker;
pub use text::{HASH_PREFIX, REDACTED};
pub use types::Field;
