//! The nonces that proofs must contain: unforgeable, remembered by nobody, and new every minute.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// How long a nonce is handed out; it is accepted for as long again.
pub const TURN: Duration = Duration::from_secs(60);

/// Makes and recognises nonces. Its key lives as long as the daemon.
pub struct Nonces {
    key: Zeroizing<[u8; 32]>,
}

impl Nonces {
    /// With a new key; fails where the machine has no randomness.
    pub fn new() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(key.as_mut_slice())?;
        Ok(Self { key })
    }

    /// The nonce of this moment (seconds since the epoch).
    pub fn current(&self, now: i64) -> String {
        self.of_turn(turn(now))
    }

    /// Whether a nonce is of this turn or the one before.
    pub fn accepts(&self, nonce: &str, now: i64) -> bool {
        let turn = turn(now);
        let is = |turn| nonce.as_bytes().ct_eq(self.of_turn(turn).as_bytes());
        bool::from(is(turn) | is(turn - 1))
    }

    fn of_turn(&self, turn: i64) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.key.as_slice()) else {
            // Not reached: HMAC takes keys of any length. An empty nonce is never accepted.
            return String::new();
        };
        mac.update(b"dpop-nonce");
        mac.update(&turn.to_be_bytes());
        URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..24])
    }
}

fn turn(now: i64) -> i64 {
    now.div_euclid(TURN.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_lives_for_its_turn_and_the_next() {
        let nonces = Nonces::new().unwrap();
        let now = 1_000_000_020;
        let nonce = nonces.current(now);
        assert_eq!(nonce.len(), 32);
        for (later, good) in [(0, true), (59, true), (99, true), (120, false), (-60, false)] {
            assert_eq!(nonces.accepts(&nonce, now + later), good, "{later}");
        }
        assert_ne!(nonce, nonces.current(now + 60));
        assert!(!nonces.accepts("", now) && !nonces.accepts(&nonce[1..], now));
        assert!(!Nonces::new().unwrap().accepts(&nonce, now), "another daemon's");
    }
}
