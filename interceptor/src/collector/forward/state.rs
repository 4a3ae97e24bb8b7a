//! How the forwards are, for metrics. In memory alone: the truth is in the cursors.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::config::Forward;
use super::sink::Delivered;

/// How one forward is.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Events that were delivered since the collector started.
    pub delivered: u64,
    /// Events among them that the receiver refused for good.
    pub rejected: u64,
    /// Attempts that failed since the collector started.
    pub failures: u64,
    /// Whether the last attempt failed.
    pub failing: bool,
    /// Since when it has something that is not delivered.
    pub behind_since: Option<Instant>,
}

/// How all forwards are, by name.
#[derive(Debug, Default)]
pub struct States(Mutex<BTreeMap<String, Standing>>);

impl States {
    fn at(&self, forward: &str, change: impl FnOnce(&mut Standing)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(forward.to_owned()).or_default());
    }

    /// It has something to deliver.
    pub(super) fn works(&self, forward: &str) {
        self.at(forward, |s| {
            s.behind_since.get_or_insert_with(Instant::now);
        });
    }

    /// It delivered events.
    pub(super) fn delivered(&self, forward: &str, delivered: Delivered) {
        self.at(forward, |s| {
            if s.failing {
                tracing::info!(forward, "forwarded again");
            }
            s.delivered += delivered.lines as u64;
            s.rejected += delivered.rejected;
            s.failing = false;
        });
    }

    /// An attempt failed.
    pub(super) fn failed(&self, forward: &str) {
        self.at(forward, |s| {
            s.failures += 1;
            s.failing = true;
        });
    }

    /// A round went through, with or without more to deliver.
    pub(super) fn stands(&self, forward: &str, more: bool) {
        self.at(forward, |s| {
            s.failing = false;
            if !more {
                s.behind_since = None;
            }
        });
    }

    /// How a forward is now.
    pub fn of(&self, forward: &Forward) -> Standing {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&forward.name).cloned().unwrap_or_default()
    }
}
