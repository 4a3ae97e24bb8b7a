//! What a third party is given: that a session's seal stands in the log, checkable with the
//! log's key and nothing else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::leaf::Leaf;
use super::note::{Checkpoint, NoteError, VerifierKey};
use super::tree;
use crate::record::PublicKey;
use crate::record::chain::{Hash, hex, unhex};
use crate::record::ledger::{Entry, Placed, Seal, entry_is_signed};
use crate::ship::succession::SignedSuccession;

/// A session's seal, its place in the log, and the signed checkpoint it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionProof {
    /// Version of this form.
    pub v: u32,
    /// The host's public record key, base64.
    pub host_key: String,
    /// The exact ledger entry that seals the session.
    pub seal: String,
    /// The host's signature of it, base64.
    pub seal_signature: String,
    /// Place in the log.
    pub index: u64,
    /// Hashes from the leaf to the root, hex.
    pub path: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
    /// How the log's keys followed one another: a key from before a change leads to the one that
    /// signed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SignedSuccession>,
}

/// What a proof proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proven {
    /// Fingerprint of the host's key.
    pub host: String,
    /// What the host sealed.
    pub seal: Seal,
    /// When, by the host's clock; microseconds since the Unix epoch.
    pub sealed_us: i64,
    /// Place in the log.
    pub index: u64,
    /// Leaves the log had.
    pub size: u64,
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// It cannot be read.
    #[error("the proof cannot be read: {0}")]
    Form(String),
    /// The seal is not the host's.
    #[error("the seal is not signed by the host's key: it was altered")]
    Seal,
    /// The checkpoint is not the log's.
    #[error(transparent)]
    Checkpoint(#[from] NoteError),
    /// The path does not lead to the signed root.
    #[error("the seal does not stand at place {0} of the signed log: it was altered or taken out")]
    Inclusion(u64),
}

impl SessionProof {
    /// Checks everything offline. Whether `host_key` is that of the host one means, and the
    /// events those of the seal (`sessions verify`), is for the reader to compare.
    pub fn verify(&self, log: &VerifierKey) -> Result<Proven, ProofError> {
        let form = |what: &str| ProofError::Form(what.into());
        if self.v != 1 {
            return Err(form("it is of another version"));
        }
        let key = PublicKey::of_base64(&self.host_key)
            .ok_or_else(|| form("host_key is no Ed25519 key"))?;
        let signature = STANDARD.decode(&self.seal_signature).unwrap_or_default();
        if !entry_is_signed(&key, self.seal.as_bytes(), &signature) {
            return Err(ProofError::Seal);
        }
        let placed: Placed =
            serde_json::from_str(&self.seal).map_err(|e| ProofError::Form(e.to_string()))?;
        let Entry::Seal(seal) = placed.entry else { return Err(form("it holds no seal")) };
        if placed.host != key.fingerprint_hex() {
            return Err(ProofError::Seal);
        }
        let session = ulid::Ulid::from_string(&seal.session)
            .map_err(|_| form("the session has no valid id"))?;
        let leaf = Leaf::of_seal(key.fingerprint(), seal.number, session, self.seal.as_bytes());
        let checkpoint = Checkpoint::verify_any(&self.checkpoint, &log.following(&self.keys)?)?;
        let path = read_path(&self.path).ok_or_else(|| form("path is no list of hashes"))?;
        let (size, root) = (checkpoint.size, &checkpoint.root);
        if !tree::includes(&leaf.hash(), self.index, size, &path, root) {
            return Err(ProofError::Inclusion(self.index));
        }
        let (host, sealed_us) = (placed.host, placed.ts_us);
        Ok(Proven { host, seal, sealed_us, index: self.index, size })
    }
}

/// Hashes as they stand in JSON.
pub fn write_path(path: &[Hash]) -> Vec<String> {
    path.iter().map(|h| hex(h)).collect()
}

/// The other way round.
pub fn read_path(path: &[String]) -> Option<Vec<Hash>> {
    if path.len() > tree::MAX_PATH {
        return None;
    }
    path.iter().map(|h| unhex(h)).collect()
}
