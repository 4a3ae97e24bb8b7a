//! Tells those who wait that something changed. Only a hint: the truth is in the database, and
//! whoever misses a change finds it there.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::broadcast;

/// Changes that a slow listener may have missed before it is told so.
const BACKLOG: usize = 1024;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A session is new, went on, or ended: its row in the index.
    Session(i64),
    /// A hold was raised, decided or withdrawn.
    Hold(String),
    /// A host came, went or reported.
    Host(i64),
    /// There is an order for a host.
    Order(i64),
    /// A version of policies was published.
    Policies,
}

/// Where changes are told.
#[derive(Debug)]
pub struct Hub {
    sender: broadcast::Sender<Change>,
    told: AtomicU64,
}

impl Default for Hub {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), told: AtomicU64::new(0) }
    }
}

impl Hub {
    /// Tells all who listen.
    pub fn tell(&self, change: Change) {
        // Counted first: whoever listens and then reads the count misses nothing.
        self.told.fetch_add(1, Ordering::SeqCst);
        // Nobody listening is fine.
        let _ = self.sender.send(change);
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Change> {
        self.sender.subscribe()
    }

    /// How many changes were told so far: who looked at the database at another count may have
    /// missed something.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::SeqCst)
    }
}
