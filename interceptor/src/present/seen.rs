//! Which proofs came already: each is good once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// Most proofs that are remembered; more are refused until the oldest are too old to come again.
const MOST: usize = 16 * 1024;

/// The proofs of the last minutes.
#[derive(Debug, Default)]
pub struct Seen(Mutex<HashMap<[u8; 32], i64>>);

/// What a proof is.
#[derive(Debug, PartialEq, Eq)]
pub enum Sight {
    /// It has not come before.
    New,
    /// It has.
    Again,
    /// Nobody can tell: too many came.
    Full,
}

impl Seen {
    /// Notes a proof until it cannot be accepted any more (`until`, seconds since the epoch).
    pub fn note(&self, jkt: &str, jti: &str, until: i64, now: i64) -> Sight {
        let mut hash = Sha256::new();
        hash.update((jkt.len() as u64).to_be_bytes());
        hash.update(jkt);
        hash.update(jti);
        let id = hash.finalize().into();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains_key(&id) {
            return Sight::Again;
        }
        if seen.len() >= MOST {
            seen.retain(|_, until| *until >= now);
        }
        if seen.len() >= MOST {
            return Sight::Full;
        }
        seen.insert(id, until);
        Sight::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_once_and_a_flood_makes_nothing_new() {
        let seen = Seen::default();
        assert_eq!(seen.note("k", "1", 100, 10), Sight::New);
        assert_eq!(seen.note("k", "1", 100, 10), Sight::Again);
        assert_eq!(seen.note("l", "1", 100, 10), Sight::New);
        assert_eq!(seen.note("k1", "", 100, 10), Sight::New);
        for n in 3..MOST {
            assert_eq!(seen.note("k", &format!("n{n}"), 100, 10), Sight::New);
        }
        assert_eq!(seen.note("k", "more", 100, 10), Sight::Full);
        assert_eq!(seen.note("k", "1", 100, 10), Sight::Again, "still known");
        assert_eq!(seen.note("k", "more", 200, 101), Sight::New, "the old ones are too old");
    }
}
