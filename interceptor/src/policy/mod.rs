//! Rules, matching and verdicts.
//!
//! Rules are TOML files in a directory, loaded all or nothing. Every rule that matches a
//! request takes part in its verdict; the strictest effect wins, the order of rules and files
//! never matters, and what no rule allows is denied. This module reads files and judges; it
//! must never reach for a connection, a clock of its own or a store.

pub mod facts;
pub mod pattern;
pub mod sql;
pub mod verdict;

pub use facts::{Ask, ColumnName, Name, SqlFacts, StatementClass, Subject};
pub use pattern::{ColumnPattern, NamePattern, Pattern};
pub use verdict::{DEFAULT_DENY, Effect, HoldTerms, Limits, MaskRule, RuleHit, Verdict};
