//! Tells those who wait that something changed. Only a hint: the truth is in the database, and
//! whoever misses a change finds it there.

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
}

/// Where changes are told.
#[derive(Debug)]
pub struct Hub(broadcast::Sender<Change>);

impl Default for Hub {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Hub {
    /// Tells all who listen.
    pub fn tell(&self, change: Change) {
        // Nobody listening is fine.
        let _ = self.0.send(change);
    }

    /// Listens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }
}
