//! The host's ledger and its checkpoints: what the host's key signs.
//!
//! Ledger entries are numbered from 1 without a gap and each carries the hash of the one
//! before, so that none can be taken out, exchanged or moved. Most entries are seals of
//! sessions; deletions by retention and damage found in the journal stand there too. The exact
//! bytes that were signed are kept, so no canonical form is needed. Checkpoints sign the
//! ledger's head, the next session number and the heads of the open sessions.

use serde::{Deserialize, Serialize};

use super::chain::{self, Hash, hex};
use super::keys::{HostKey, PublicKey};

const LEDGER: &[u8] = b"interceptor ledger v1\0";
const CHECKPOINT: &[u8] = b"interceptor checkpoint v1\0";

/// An entry with its place in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// Version of this form.
    pub v: u32,
    /// Counts entries from 1.
    pub idx: u64,
    /// Hash of the entry before, hex.
    pub prev: String,
    /// Fingerprint of the host's key, hex.
    pub host: String,
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// What is stated.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What a ledger entry states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Entry {
    /// A session's record is complete.
    Seal(Seal),
    /// Retention removed sessions.
    Deletion(Deletion),
    /// Bytes of the journal could not be read.
    Damage(Damage),
    /// The store was opened by a new process.
    Epoch(Epoch),
}

impl Entry {
    /// The name of the variant as it is stored.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Seal(_) => "seal",
            Self::Deletion(_) => "deletion",
            Self::Damage(_) => "damage",
            Self::Epoch(_) => "epoch",
        }
    }
}

/// A session's record is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// The session.
    pub session: String,
    /// The host's gap-free session number.
    pub number: u64,
    /// How many events it has.
    pub events: u64,
    /// Hash of the last one, hex.
    pub head: String,
    /// Why the session ended.
    pub reason: String,
    /// It did not end in order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// Data whose record was lost, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_tail: Option<String>,
    /// Something was wrong with the record when it was sealed after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Retention removed the events of sessions; their seals stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// First and last number of each run of session numbers.
    pub numbers: Vec<(u64, u64)>,
    /// Events that were removed with them.
    pub events: u64,
    /// Sessions that closed before this were old enough; microseconds since the Unix epoch.
    pub before_us: i64,
}

impl Deletion {
    /// Whether a session number is among those removed.
    pub fn covers(&self, number: u64) -> bool {
        self.numbers.iter().any(|(a, b)| (*a..=*b).contains(&number))
    }

    /// Puts ascending numbers into runs.
    pub fn runs(numbers: &[u64]) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for n in numbers {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == *n => *last = *n,
                _ => runs.push((*n, *n)),
            }
        }
        runs
    }
}

/// Bytes of the journal that could not be read; kept aside in a `.damaged` file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// Segment of the journal.
    pub segment: u64,
    /// Where it begins.
    pub offset: u64,
    /// How much was left out.
    pub bytes: u64,
    /// What was wrong.
    pub why: String,
    /// At the very end and incomplete, as a write that never finished leaves it: nothing that
    /// was acknowledged is missing, unless somebody cut the file.
    pub torn_tail: bool,
}

/// A new process opened the store. It stands before anything that process writes, so that what
/// an earlier process could still have written is bounded: to the sessions in `open`, which get
/// a last event and a seal, and to nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Counts epochs from 1. Stores older than this entry begin with it when they first see it.
    pub number: u64,
    /// Nothing was left open and no byte of the journal was unreadable.
    pub clean: bool,
    /// The number that the next session gets: sessions below belong to earlier epochs.
    pub next_number: u64,
    /// Sessions that were left open, and where their records end.
    pub open: Vec<OpenHead>,
    /// Sessions that were left open and whose record is not whole; their seals say more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<u64>,
}

/// Where the ledger stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Index of the last entry; 0 before the first.
    pub idx: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Before the first entry.
    pub fn start(key: &PublicKey) -> Self {
        Self { idx: 0, hash: chain::hash(LEDGER, &[&key.fingerprint()]) }
    }

    /// Makes the next entry: its bytes, its signature, and where the ledger stands then.
    pub fn next(
        &self,
        key: &HostKey,
        ts_us: i64,
        entry: Entry,
    ) -> Result<(Vec<u8>, [u8; 64], Self), serde_json::Error> {
        let placed = Placed {
            v: 1,
            idx: self.idx + 1,
            prev: hex(&self.hash),
            host: key.public().fingerprint_hex(),
            ts_us,
            entry,
        };
        let body = serde_json::to_vec(&placed)?;
        let signature = key.sign(&[LEDGER, &body].concat());
        let head = Self { idx: placed.idx, hash: entry_hash(&body) };
        Ok((body, signature, head))
    }
}

/// Hash of an entry's exact bytes.
pub fn entry_hash(body: &[u8]) -> Hash {
    chain::hash(LEDGER, &[body])
}

/// Whether a ledger entry was signed by this key.
pub fn entry_is_signed(key: &PublicKey, body: &[u8], signature: &[u8]) -> bool {
    key.verify(&[LEDGER, body].concat(), signature)
}

/// Whether a checkpoint was signed by this key.
pub fn checkpoint_is_signed(key: &PublicKey, body: &[u8], signature: &[u8]) -> bool {
    key.verify(&[CHECKPOINT, body].concat(), signature)
}

/// What a checkpoint signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Version of this form.
    pub v: u32,
    /// Counts checkpoints from 1.
    pub idx: u64,
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// Fingerprint of the host's key, hex.
    pub host: String,
    /// Name of the host.
    pub name: String,
    /// The number that the next session gets: all below exist.
    pub next_number: u64,
    /// Index of the ledger's last entry.
    pub ledger: u64,
    /// Its hash, hex.
    pub ledger_hash: String,
    /// The sessions that were open.
    pub open: Vec<OpenHead>,
}

/// An open session in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenHead {
    /// The host's session number.
    pub number: u64,
    /// The session.
    pub session: String,
    /// Events it had.
    pub seq: u64,
    /// Hash of the last one, hex.
    pub head: String,
}

impl Checkpoint {
    /// Its bytes and signature.
    pub fn sign(&self, key: &HostKey) -> Result<(Vec<u8>, [u8; 64]), serde_json::Error> {
        let body = serde_json::to_vec(self)?;
        let signature = key.sign(&[CHECKPOINT, &body].concat());
        Ok((body, signature))
    }
}

/// A checkpoint as it is kept elsewhere (`sessions export --checkpoint`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Anchor {
    /// The exact text that was signed.
    pub checkpoint: String,
    /// Ed25519, base64.
    pub signature: String,
    /// The host's public key, base64.
    pub public_key: String,
}
