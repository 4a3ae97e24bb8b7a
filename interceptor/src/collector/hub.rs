//! Tells those who wait that something changed. Only a hint: the truth is in the database, and
//! whoever misses a change finds it there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{broadcast, mpsc};

/// Changes that a slow listener may have missed before it is told so.
const BACKLOG: usize = 1024;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// To other collectors.
    outlet: OnceLock<mpsc::Sender<Change>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            told: AtomicU64::new(0),
            outlet: OnceLock::new(),
        }
    }
}

impl Hub {
    /// Tells all who listen, here and at other collectors.
    pub fn tell(&self, change: Change) {
        if let Some(outlet) = self.outlet.get() {
            // Where it is full, the others look for themselves.
            let _ = outlet.try_send(change.clone());
        }
        self.hear(change);
    }

    /// What is told here from now on, for other collectors. Only the first who asks gets it.
    pub(super) fn outlet(&self, most: usize) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel(most);
        let _ = self.outlet.set(sender);
        receiver
    }

    /// Tells all who listen here.
    pub(super) fn hear(&self, change: Change) {
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
