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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::policy::Source;

    fn central(version: u64, text: &str) -> PolicySet {
        PolicySet::central(version, &[Source { name: "c.toml".into(), text: text.into() }]).unwrap()
    }

    #[test]
    fn each_part_changes_by_itself_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own.toml");
        let rule = |name: &str| format!("[[rule]]\nname='{name}'\neffect='deny'\n");
        std::fs::write(&own, rule("a")).unwrap();
        let policies = Policies::open(dir.path().to_owned()).unwrap();
        let alone = policies.running().version().to_owned();
        policies.set_central(Some(central(1, &rule("a"))));
        assert_eq!(policies.running().version(), format!("{alone}+central.1"));
        assert_eq!(policies.running().len(), 2);

        // Files that are being edited come into force by a reload alone.
        std::fs::write(&own, "[[rule]]\nname='half").unwrap();
        policies.set_central(Some(central(2, &rule("b"))));
        assert_eq!(policies.running().version(), format!("{alone}+central.2"));
        assert!(policies.reload().is_err());
        assert_eq!(policies.running().version(), format!("{alone}+central.2"));

        // A name that the centre has too is no reason against it.
        std::fs::write(&own, rule("b") + &rule("c")).unwrap();
        assert_eq!(policies.reload().unwrap().len(), 3);
        policies.set_central(None);
        assert_eq!(policies.running().len(), 2);
        assert!(!policies.running().version().contains("central"));
    }
}
