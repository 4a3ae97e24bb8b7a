//! The signing key of the collector, as this host believes it now.
//!
//! It comes with the enrolment, and changes only to one that the key before has named
//! ([`super::succession`]). What was followed is on disk before it counts, so that no older key is
//! believed again after a restart.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use super::ShipError;
use super::identity::{self, Identity};
use super::succession::{self, SignedSuccession, SuccessionError};
use crate::collector::log::VerifierKey;
use crate::record::PublicKey;

/// Why the collector's new key is not believed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The successions prove nothing.
    #[error("{0}: the key that was believed stays")]
    Succession(#[from] SuccessionError),
    /// It cannot be kept.
    #[error("the collector's new key cannot be kept, and is not believed: {0}")]
    Keep(#[from] ShipError),
}

/// The key that is believed, and those that were before it.
#[derive(Debug)]
pub struct Trusted {
    /// Directory of shipping; none where nothing is kept.
    dir: Option<PathBuf>,
    state: RwLock<State>,
}

#[derive(Debug, Clone)]
struct State {
    current: PublicKey,
    past: Vec<PublicKey>,
}

impl Trusted {
    /// What stands in the identity of an enrolled host.
    pub fn of(dir: &Path, identity: &Identity) -> Result<Self, ShipError> {
        let past =
            identity.known.past_keys.iter().filter_map(|k| PublicKey::of_base64(k)).collect();
        let state = State { current: identity.collector_key()?, past };
        Ok(Self { dir: Some(dir.into()), state: RwLock::new(state) })
    }

    /// One key that nothing is kept of.
    pub fn key(current: PublicKey) -> Self {
        let state = State { current, past: Vec::new() };
        Self { dir: None, state: RwLock::new(state) }
    }

    /// One key, which is kept in `collector.json` of a directory.
    #[cfg(test)]
    pub fn kept(dir: &Path, current: PublicKey) -> Self {
        Self { dir: Some(dir.into()), ..Self::key(current) }
    }

    fn read(&self) -> State {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key that is believed.
    pub fn current(&self) -> PublicKey {
        self.state.read().unwrap_or_else(PoisonError::into_inner).current
    }

    /// Whether a key with this fingerprint is believed, or was once.
    pub fn knew(&self, fingerprint: &str) -> bool {
        let state = self.read();
        state.past.iter().chain([&state.current]).any(|k| k.fingerprint_hex() == fingerprint)
    }

    /// The key that is believed, then those before it: for what stands on this host's own disk
    /// since it was checked.
    pub fn all(&self) -> Vec<PublicKey> {
        let state = self.read();
        let mut all = vec![state.current];
        all.extend(state.past.iter().rev());
        all
    }

    /// Believes the last of the keys that follow the current one; whether it changed. Blocks until
    /// that is on disk.
    pub fn follow(&self, chain: &[SignedSuccession]) -> Result<bool, FollowError> {
        // Several tasks may be told at a time.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let keys = succession::follow(&state.current, chain)?;
        let Some((newest, between)) = keys.split_last() else { return Ok(false) };
        if let Some(at) = keys.iter().position(|key| state.past.contains(key)) {
            return Err(SuccessionError::Order(at as u64 + 1).into());
        }
        let mut next = state.clone();
        next.past.push(state.current);
        next.past.extend(between);
        next.current = *newest;
        if let Some(dir) = &self.dir {
            // This host may have been enrolled anew meanwhile.
            let mut known = identity::read_known(dir)?;
            if known.collector_key != state.current.to_base64() {
                let message = "this host was enrolled anew: restart its daemon".to_owned();
                return Err(ShipError::State { path: dir.clone(), message }.into());
            }
            known.collector_key = newest.to_base64();
            known.past_keys = next.past.iter().map(PublicKey::to_base64).collect();
            let log = VerifierKey::parse(&known.log_key)
                .map_err(|e| ShipError::Enrolment(e.to_string()))?;
            known.log_key = VerifierKey { key: *newest, ..log }.to_string();
            identity::keep_known(dir, &known)?;
        }
        tracing::warn!(
            before = state.current.fingerprint_hex(),
            now = newest.fingerprint_hex(),
            "the collector signs with another key, which the one before has named"
        );
        *state = next;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::identity::Known;
    use super::super::succession::tests::{key, signed};
    use super::*;

    #[test]
    fn what_was_followed_is_kept_and_the_key_before_counts_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c, thief) = (key(), key(), key(), key());
        let log = VerifierKey { name: "c.example/interceptor".into(), key: *a.public() };
        let known = Known {
            url: "https://c.example:8444".into(),
            collector_key: a.public().to_base64(),
            log_key: log.to_string(),
            name: "db1".into(),
            past_keys: Vec::new(),
        };
        identity::keep_known(dir.path(), &known).unwrap();
        let state = State { current: *a.public(), past: Vec::new() };
        let trusted = Trusted { dir: Some(dir.path().into()), state: RwLock::new(state) };
        let chain = [signed(1, &a, &b), signed(2, &b, &c)];
        assert!(trusted.follow(&chain).unwrap());
        assert!(!trusted.follow(&chain).unwrap(), "once");
        assert!(!trusted.follow(&[signed(1, &a, &thief)]).unwrap());
        for (number, back) in [(3, &a), (3, &b)] {
            trusted.follow(&[signed(number, &c, back)]).unwrap_err();
        }
        assert_eq!(trusted.current(), *c.public());
        assert_eq!(trusted.all(), [*c.public(), *b.public(), *a.public()]);
        assert!(trusted.knew(&a.public().fingerprint_hex()));
        assert!(!trusted.knew(&thief.public().fingerprint_hex()));
        let text = std::fs::read_to_string(dir.path().join("collector.json")).unwrap();
        let kept: Known = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.collector_key, c.public().to_base64());
        assert_eq!(VerifierKey::parse(&kept.log_key).unwrap().key, *c.public());
        assert_eq!(kept.past_keys.len(), 2);
        // Enrolled anew while the daemon runs: what it believes does not overwrite that.
        let anew = Known { collector_key: thief.public().to_base64(), ..kept };
        identity::keep_known(dir.path(), &anew).unwrap();
        let refused = trusted.follow(&[signed(3, &c, &key())]).unwrap_err();
        assert!(refused.to_string().contains("enrolled anew"), "{refused}");
    }

    #[test]
    fn a_key_that_cannot_be_kept_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (key(), key());
        let state = State { current: *a.public(), past: Vec::new() };
        let missing = dir.path().join("missing");
        let trusted = Trusted { dir: Some(missing), state: RwLock::new(state) };
        let refused = trusted.follow(&[signed(1, &a, &b)]);
        assert!(matches!(refused, Err(FollowError::Keep(_))));
        assert_eq!(trusted.current(), *a.public());
    }
}
