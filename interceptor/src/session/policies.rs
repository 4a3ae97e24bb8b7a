//! The policies that are in force: this host's own files, and beside them what the centre
//! published where this host takes that.
//!
//! Either part changes by itself and whole, and requests see both as one set: whoever asks gets
//! the set of that moment, and running sessions follow at their next request. The files of this
//! host are read by a reload alone; a version of the centre joins what was read last, so that
//! half-edited files never come into force by accident of a publication.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::control::CentralStatus;
use crate::policy::{PolicyErrors, PolicySet};

/// See the module.
pub struct Policies {
    directory: PathBuf,
    running: ArcSwap<PolicySet>,
    parts: Mutex<Parts>,
    central: Mutex<Option<CentralStatus>>,
}

struct Parts {
    local: PolicySet,
    central: Option<PolicySet>,
}

impl Parts {
    fn joined(&self) -> Arc<PolicySet> {
        Arc::new(match &self.central {
            Some(central) => self.local.with_central(central),
            None => self.local.clone(),
        })
    }
}

impl Policies {
    /// Reads this host's files: all or nothing.
    pub fn open(directory: PathBuf) -> Result<Self, PolicyErrors> {
        let parts = Parts { local: PolicySet::load(&directory)?, central: None };
        Ok(Self {
            directory,
            running: ArcSwap::new(parts.joined()),
            parts: Mutex::new(parts),
            central: Mutex::new(None),
        })
    }

    /// The set in force.
    pub fn running(&self) -> Arc<PolicySet> {
        self.running.load_full()
    }

    /// Reads this host's files anew: all or nothing.
    pub fn reload(&self) -> Result<Arc<PolicySet>, PolicyErrors> {
        let local = PolicySet::load(&self.directory)?;
        Ok(self.change(|parts| parts.local = local))
    }

    /// From now on with these rules of the centre, or without any.
    pub fn set_central(&self, central: Option<PolicySet>) -> Arc<PolicySet> {
        self.change(|parts| parts.central = central)
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) -> Arc<PolicySet> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut parts);
        let joined = parts.joined();
        // Under the lock, so that of two changes the later one is in force.
        self.running.store(Arc::clone(&joined));
        joined
    }

    /// How it stands with the centre; `None` where this host takes nothing from there.
    pub fn central(&self) -> Option<CentralStatus> {
        self.central.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how it stands with the centre.
    pub fn note_central(&self, status: CentralStatus) {
        *self.central.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }
}
