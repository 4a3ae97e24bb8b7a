//! Tokens that are taken no more although they are good: an operator ended what they had opened,
//! or they turned up at two hosts. Asked from memory; what is to outlast the daemon is kept beside
//! the first uses ([`super::replay`]). Bounded: the oldest goes first.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use super::claims::Claims;
use super::reserve::hash_jti;

/// Most tokens that are remembered; the oldest goes first.
pub(super) const MOST: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
/// Longest name of a token.
const LONGEST: usize = 1024;

pub(super) struct Barred(Mutex<LruCache<String, ()>>);

impl Barred {
    /// With those that were kept, the oldest first.
    pub fn of(kept: Vec<String>) -> Self {
        let this = Self(Mutex::new(LruCache::new(MOST)));
        kept.iter().for_each(|token| this.add(token));
        this
    }

    pub fn add(&self, token: &str) {
        if is_name(token) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).put(token.to_owned(), ());
        }
    }

    pub fn has(&self, claims: &Claims) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !known.is_empty()
            && (known.contains(&claims.jti)
                || known.contains(&claims.token_sha256)
                || known.contains(&hash_jti(&claims.jti)))
    }
}

/// Whether this can be a token's name.
pub(super) fn is_name(token: &str) -> bool {
    token.len() <= LONGEST
}
