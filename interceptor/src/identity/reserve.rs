//! The question that goes beyond this host before a token's first use here: whether another
//! host has it already.
//!
//! The ledger ([`super::replay`]) knows what happened on this host alone. Where the host has a
//! collector, a first use is also reserved there, once, before it is noted in the ledger. This
//! module says what is asked and what the answers mean; who asks is given by [`Reserve`].

use std::future::Future;
use std::pin::Pin;

use sha2::{Digest, Sha256};

use super::token::hex;

/// A token that is about to be used here for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Exact `iss`.
    pub issuer: String,
    /// See [`hash_jti`].
    pub jti_hash: String,
    /// When it can no longer be used, seconds since the epoch.
    pub expires: i64,
    /// The place it comes from, see [`super::Source::key`].
    pub source: String,
    /// Name of the service.
    pub service: String,
}

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// This host has it, or nobody has to be asked.
    Ours,
    /// Nobody answered in time; the service takes it all the same, and the question is settled
    /// later.
    Later,
    /// Another host has it.
    Elsewhere,
    /// Nobody answered in time, and the service takes no token without an answer.
    Unanswered,
}

/// A reservation on its way.
pub type Reserving<'a> = Pin<Box<dyn Future<Output = Reserved> + Send + 'a>>;

/// Asks where the whole fleet is known. Bounded in time.
pub trait Reserve: Send + Sync {
    /// Reserves a token for this host.
    fn reserve(&self, token: Reservation) -> Reserving<'_>;
}

/// The form in which a token's id leaves the host: lower-case hex of its SHA-256.
pub fn hash_jti(jti: &str) -> String {
    hex(&Sha256::digest(jti.as_bytes()))
}
