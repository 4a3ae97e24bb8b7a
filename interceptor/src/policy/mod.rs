//! Rules, matching and verdicts.

pub mod sql;
