//! Tokens that are taken no more although they are good: an operator ended what they had opened,
//! or they turned up at two hosts. In memory only, and bounded: what is meant to last belongs
//! to the issuer, which can revoke a token.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use super::claims::Claims;
use super::reserve::hash_jti;

/// Most tokens that are remembered; the oldest goes first.
const MOST: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
/// Longest name of a token.
const LONGEST: usize = 1024;

pub(super) struct Barred(Mutex<LruCache<String, ()>>);

impl Default for Barred {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST)))
    }
}

impl Barred {
    pub fn add(&self, token: &str) {
        if token.len() <= LONGEST {
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
