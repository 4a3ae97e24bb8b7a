//! What a held statement would touch, for those who decide: tables with their size, and the plan.
//!
//! It comes after the hold, from the service's own catalog. It helps to decide and proves nothing:
//! sizes are estimates, and nothing is let through or refused by them. A plan shows constants, so
//! it is treated as the exact text is.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Most tables that are told.
pub const MAX_TABLES: usize = 50;
/// Most bytes of a plan; what is longer is cut at a line.
pub const MAX_PLAN: usize = 32 << 10;

/// What a held statement would touch.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Impact {
    /// Tables and views that it names, those it writes first; at most [`MAX_TABLES`].
    pub tables: Vec<TableSize>,
    /// What `EXPLAIN` says, a line each, joined by newlines; it was not run.
    pub plan: Option<String>,
    /// Why something is missing.
    pub remark: Option<String>,
}

/// One relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSize {
    /// Schema and name.
    pub name: String,
    /// Whether the statement writes it.
    pub written: bool,
    /// Rows, as the server last estimated; absent where it never did.
    pub rows: Option<u64>,
    /// Bytes on disk with indexes and partitions; absent for what has none, such as a view.
    pub bytes: Option<u64>,
}

impl Impact {
    /// One of which nothing is known, and why.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self { tables: Vec::new(), plan: None, remark: Some(why.into()) }
    }

    /// Its size in memory, bytes.
    pub fn bytes(&self) -> usize {
        self.plan.as_ref().map_or(0, String::len)
            + self.remark.as_ref().map_or(0, String::len)
            + self.tables.iter().map(|t| size_of::<TableSize>() + t.name.len()).sum::<usize>()
    }
}

impl fmt::Debug for Impact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Impact").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Zeroize for Impact {
    fn zeroize(&mut self) {
        self.plan.zeroize();
        self.remark.zeroize();
    }
}

impl Drop for Impact {
    fn drop(&mut self) {
        self.zeroize();
    }
}
