//! What the benchmark measures, against what, and how it is written down.

pub mod cases;
pub mod collector;
pub mod memory;
pub mod report;
pub mod ssh;
pub mod targets;

use std::time::Duration;

/// How long and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Interleaved rounds of every case.
    pub rounds: u32,
    /// How long each measurement lasts.
    pub time: Duration,
    /// Rows of the large table.
    pub rows: u32,
    /// Scale of pgbench's tables.
    pub scale: u32,
    /// Idle connections for the memory measurement.
    pub idle: u32,
    /// Bytes of the large COPY.
    pub copy_bytes: u64,
    /// Bytes of the large file that is sent over SSH.
    pub ssh_bytes: u64,
    /// Idle SSH sessions for the memory measurement.
    pub ssh_idle: u32,
    /// Held statements that are approved at the collector.
    pub holds: u32,
    /// Statements of each measurement of the CPU time of shipping.
    pub shipped: u32,
    /// Only cases whose name contains this.
    pub only: Option<String>,
}

impl Plan {
    /// What stands in the README: at least five rounds of at least ten seconds.
    pub fn full() -> Self {
        Self {
            rounds: 5,
            time: Duration::from_secs(10),
            rows: 1_000_000,
            scale: 10,
            idle: 1_000,
            copy_bytes: 1 << 30,
            ssh_bytes: 1536 << 20,
            ssh_idle: 200,
            holds: 200,
            shipped: 40_000,
            only: None,
        }
    }

    /// A smoke test of the benchmark itself; its numbers mean nothing.
    pub fn quick() -> Self {
        Self {
            rounds: 1,
            time: Duration::from_secs(1),
            rows: 20_000,
            scale: 1,
            idle: 20,
            copy_bytes: 16 << 20,
            ssh_bytes: 16 << 20,
            ssh_idle: 10,
            holds: 3,
            shipped: 2_000,
            only: None,
        }
    }

    /// Whether a case is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
    }
}
