//! One leaf: the seal of one session of one host, in a fixed binary form.

use crate::record::chain::{self, Hash};
use crate::record::ledger;

const DOMAIN: &[u8] = b"interceptor sealed session v1\0";
/// Bytes of an encoded leaf.
pub const LEN: usize = DOMAIN.len() + 32 + 8 + 16 + 32;

/// What a leaf states: this host sealed this session with a seal of this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Fingerprint of the host's record key.
    pub host: Hash,
    /// The host's session number.
    pub number: u64,
    /// The session.
    pub session: ulid::Ulid,
    /// Hash of the ledger entry that seals it, over its exact bytes.
    pub seal: Hash,
}

impl Leaf {
    /// The leaf for the exact bytes of a ledger entry.
    pub fn of_seal(host: Hash, number: u64, session: ulid::Ulid, entry: &[u8]) -> Self {
        Self { host, number, session, seal: ledger::entry_hash(entry) }
    }

    /// Domain, host, number (big-endian), session, hash of the seal.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LEN);
        out.extend_from_slice(DOMAIN);
        out.extend_from_slice(&self.host);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.session.to_bytes());
        out.extend_from_slice(&self.seal);
        out
    }

    /// RFC 6962 hash of the leaf.
    pub fn hash(&self) -> Hash {
        chain::hash(&[0], &[&self.encode()])
    }
}
