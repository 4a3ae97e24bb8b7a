//! What was masked, in numbers: never a value.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Kind;

/// Counts of what masking changed. Holds no values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Hits {
    /// Values replaced because a rule names their column (NULLs are not counted).
    pub masked: u64,
    /// Findings of the detectors, by [`Kind::index`].
    #[serde(serialize_with = "by_name")]
    found: [u64; Kind::COUNT],
    /// Findings of the detectors by column index.
    columns: BTreeMap<u16, u64>,
}

fn by_name<S: serde::Serializer>(
    found: &[u64; Kind::COUNT],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        Kind::ALL.iter().zip(found).filter(|(_, n)| **n > 0).map(|(kind, n)| (kind.as_str(), n)),
    )
}

impl Hits {
    /// True when nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.masked == 0 && self.found.iter().all(|n| *n == 0)
    }

    /// Findings of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.found[kind.index()]
    }

    /// Findings of all kinds.
    pub fn found(&self) -> u64 {
        self.found.iter().sum()
    }

    /// Findings of the detectors by column index.
    pub fn columns(&self) -> &BTreeMap<u16, u64> {
        &self.columns
    }

    /// Counts one finding.
    pub(super) fn add(&mut self, kind: Kind) {
        self.found[kind.index()] += 1;
    }

    /// Attributes findings made since `before` to a column.
    pub(super) fn attribute(&mut self, column: usize, before: u64) {
        let new = self.found() - before;
        if new > 0 {
            *self.columns.entry(u16::try_from(column).unwrap_or(u16::MAX)).or_default() += new;
        }
    }

    /// Adds the counts of another batch.
    pub fn merge(&mut self, other: &Self) {
        self.masked += other.masked;
        for (to, from) in self.found.iter_mut().zip(other.found) {
            *to += from;
        }
        for (column, n) in &other.columns {
            *self.columns.entry(*column).or_default() += n;
        }
    }
}

impl std::ops::AddAssign for Hits {
    fn add_assign(&mut self, other: Self) {
        self.merge(&other);
    }
}
