//! Where the requests of this host are decided: here, or at the collector.
//!
//! A host with a collector leaves its decisions to the people there, whose rules (groups, two
//! persons) this host does not know. Local approvers step in only while the collector is away,
//! and only where the configuration says so; otherwise nobody decides and nothing is held.

use super::hold::Exact;
use super::{Approvals, DecideError, Decider, Instant, Outcome, Seat};

/// Who decides the requests of this host now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// There is no collector: the approvers of this host.
    Host,
    /// People at the collector.
    Collector {
        /// Its address, for messages.
        collector: String,
    },
    /// The approvers of this host, while the collector is away. What it still sends counts.
    HostMeanwhile {
        /// Its address, for messages.
        collector: String,
    },
    /// Nobody: the collector is away, and nobody here may decide in its place.
    Nobody {
        /// Its address, for messages.
        collector: String,
    },
}

impl Authority {
    pub(super) fn admits(&self, decider: &Decider) -> Result<(), DecideError> {
        match (self, &decider.seat) {
            (Self::Host, Seat::Collector { .. }) => {
                Err(DecideError::Invalid("this host takes no decisions of a collector".into()))
            }
            (Self::Collector { collector } | Self::Nobody { collector }, Seat::Host { .. }) => {
                Err(DecideError::AtCollector(collector.clone()))
            }
            _ => Ok(()),
        }
    }
}

impl Approvals {
    /// Says who decides from now on. Where that is nobody, what waits is refused at once.
    pub fn set_authority(&self, authority: Authority) {
        let why = match &authority {
            Authority::Nobody { collector } => {
                Some(super::HoldError::NobodyToAsk(collector.clone()).to_string())
            }
            _ => None,
        };
        self.authority.store(std::sync::Arc::new(authority));
        let Some(why) = why else { return };
        let waiting: Vec<_> = {
            let mut state = self.state();
            let ids: Vec<String> = state.holds.keys().cloned().collect();
            let how = "was refused: the collector was away";
            ids.iter().filter_map(|id| state.take(id, how)).collect()
        };
        if waiting.is_empty() {
            return;
        }
        for held in waiting {
            held.answer(Outcome::Unanswerable { why: why.clone() });
        }
        self.bump();
    }

    /// Ends a hold as if its time were over. `true` when it still waited.
    pub fn expire(&self, id: &str) -> bool {
        let held = self.state().take(id, "expired");
        let waited = held.is_some();
        if let Some(held) = held {
            held.answer(Outcome::Expired);
            self.bump();
        }
        waited
    }

    /// Who decides now.
    pub fn authority(&self) -> Authority {
        self.authority.load().as_ref().clone()
    }

    /// A held request in full, for the people at the collector.
    pub fn exact(&self, id: &str) -> Option<Exact> {
        self.state().holds.get(id).map(|held| held.exact(Instant::now()))
    }
}
