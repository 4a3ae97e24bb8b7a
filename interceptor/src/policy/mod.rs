//! Rules, matching and verdicts.
//!
//! Rules are TOML files in a directory, loaded all or nothing. Every rule that matches a
//! request takes part in its verdict; the strictest effect wins, the order of rules and files
//! never matters, and what no rule allows is denied. This module reads files and judges; it
//! must never reach for a connection, a clock of its own or a store.

mod central;
mod check;
mod classify;
mod condition;
mod coverage;
mod explain;
pub mod facts;
mod judge;
mod load;
mod matching;
mod model;
pub mod pattern;
mod rule;
pub mod sql;
pub mod ssh;
pub mod testing;
mod text;
mod time;
pub mod verdict;

pub use central::source_name;
pub use check::Warning;
pub use explain::{Explanation, RuleNote};
pub use facts::{Ask, ColumnName, Name, SqlFacts, SshClass, SshFacts, StatementClass, Subject};
pub use load::{MAX_FILE, MAX_RULES, PolicySet, Source, read_directory, read_source};
pub use pattern::{ColumnPattern, NamePattern, Pattern};
pub use text::{PolicyError, PolicyErrors};
pub use verdict::{
    BinaryMask, DEFAULT_DENY, Effect, HoldTerms, Limits, MASKING, MaskRule, RuleHit, Stream,
    Verdict,
};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
