//! Cancel keys of our own: what BackendKeyData tells the agent, and which session a
//! CancelRequest means.
//!
//! A cancel connection carries nothing but its key, so the key is all that identifies it. The
//! process id is the server's own, as clients show it; the secret is ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use subtle::ConstantTimeEq;
use tokio::sync::mpsc;

use super::startup::Version;

#[derive(Debug)]
struct Target {
    secret: Vec<u8>,
    cancels: mpsc::Sender<()>,
}

/// The keys of all running sessions.
#[derive(Debug, Default)]
pub struct CancelKeys {
    // Server processes are few per id: two services can have the same one.
    targets: Mutex<HashMap<u32, Vec<Target>>>,
}

/// A session's key; cancelling ends with dropping it.
#[derive(Debug)]
pub struct CancelKey {
    keys: Arc<CancelKeys>,
    /// The server's process id.
    pub pid: u32,
    /// Our secret: 4 bytes before protocol 3.2, 32 from then on.
    pub secret: Vec<u8>,
}

impl CancelKeys {
    /// Makes a key for a session that hears of cancels through `cancels`.
    pub fn issue(
        self: &Arc<Self>,
        pid: u32,
        version: Version,
        cancels: mpsc::Sender<()>,
    ) -> CancelKey {
        let mut secret = vec![0u8; if version >= Version::V3_2 { 32 } else { 4 }];
        rand::Rng::fill(&mut rand::rng(), secret.as_mut_slice());
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let target = Target { secret: secret.clone(), cancels };
        targets.entry(pid).or_default().push(target);
        CancelKey { keys: Arc::clone(self), pid, secret }
    }

    /// Tells the session with this key that its statement is to be cancelled. Nobody learns
    /// whether there was one.
    pub fn cancel(&self, pid: u32, secret: &[u8]) {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        for target in targets.get(&pid).into_iter().flatten() {
            if bool::from(target.secret.as_slice().ct_eq(secret)) {
                let _ = target.cancels.try_send(());
            }
        }
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        let mut targets = self.keys.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = targets.get_mut(&self.pid) {
            list.retain(|target| target.secret != self.secret);
            if list.is_empty() {
                targets.remove(&self.pid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_cancels() {
        let keys = Arc::new(CancelKeys::default());
        let (sender, mut receiver) = mpsc::channel(1);
        let key = keys.issue(77, Version::V3_2, sender);
        assert_eq!(key.secret.len(), 32);
        keys.cancel(77, &key.secret[..31]);
        keys.cancel(78, &key.secret);
        keys.cancel(77, &[0; 32]);
        assert!(receiver.try_recv().is_err());
        keys.cancel(77, &key.secret);
        assert!(receiver.try_recv().is_ok());
        let secret = key.secret.clone();
        drop(key);
        keys.cancel(77, &secret);
        assert!(receiver.try_recv().is_err());
    }
}
