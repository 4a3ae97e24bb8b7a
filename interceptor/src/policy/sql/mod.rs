//! SQL by the server's own grammar: what a statement is, what it touches, and whether its
//! result can be masked.
//!
//! [`Analyzer`] turns a text into an [`Analysis`]: the facts rules match on, what the wire must
//! know, and the lineage of every output. [`ring`] judges lineage against masked columns. Names
//! mean what the [`Catalog`] snapshot and the search path say they mean.
//!
//! This module opens no connection and gives no verdict on rules. It must never say that it
//! understood a statement when it did not: what is not known is a problem, and a problem is a
//! refusal while columns are masked.

mod body;
pub mod catalog;
mod ddl;
mod dml;
mod expr;
mod from;
mod functions;
mod kind;
mod masked;
mod names;
mod order;
mod parse;
mod pool;
mod query;
pub mod ring;
mod scope;
mod statement;
mod template;
mod types;
mod utility;
mod visit;

pub use catalog::{Catalog, CatalogError, CatalogQuery};
pub use functions::is_harmless;
pub(super) use functions::is_listed;
pub use masked::MaskedColumns;
pub use parse::{MAX_DEPTH, MAX_TEXT};
pub use pool::{Analyzer, Context, deep_thread, on_deep_stack};
pub use types::*;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod leaks;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
