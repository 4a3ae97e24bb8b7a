//! Checkpoints of the log as C2SP signed notes (`tlog-checkpoint`, `signed-note`), which other
//! tools read and witnesses can countersign.
//!
//! ```text
//! collector.example.com/interceptor
//! 4711
//! 9Hq…=
//! audit 812 mXc…=
//!
//! — collector.example.com/interceptor 4xZ…=
//! ```
//!
//! Behind the root may stand `audit`, the number of the last step of the audit trail and its hash,
//! as an extension line: so whoever keeps a checkpoint keeps the collector to its audit trail too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::record::PublicKey;
use crate::record::chain::{self, Hash};
use crate::ship::succession::{self, SignedSuccession, SuccessionError};

/// Ed25519 in signed notes.
const ED25519: u8 = 1;
/// How the extension line about the audit trail begins.
const AUDIT: &str = "audit ";
/// Longest note that is read.
const MAX_NOTE: usize = 16 * 1024;

/// A signed statement of where the log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root of these leaves.
    pub root: Hash,
    /// Where the collector's audit trail stood.
    pub audit: Option<AuditHead>,
}

/// The last step of the audit trail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// Its number.
    pub id: u64,
    /// Its hash, over all before it.
    pub hash: Hash,
}

/// The key that a log's checkpoints are checked with: name and Ed25519 key, as one line
/// `name+hash+key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    /// Name of the log.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is no checkpoint.
    #[error("this is no signed checkpoint: {0}")]
    Form(&'static str),
    /// It is another log's.
    #[error("the checkpoint is of the log {found:?}, the key is of {wanted:?}")]
    Origin {
        /// Name in the note.
        found: String,
        /// Name in the key.
        wanted: String,
    },
    /// The key did not sign it.
    #[error("the checkpoint is not signed by this key: do not trust it, and keep it as evidence")]
    Signature,
    /// How its keys followed one another cannot be believed.
    #[error(transparent)]
    Keys(#[from] SuccessionError),
    /// The key's text is none.
    #[error(
        "{0:?} is no key of a log: it reads name+hash+key, as `interceptor collector log-key` prints it"
    )]
    Key(String),
}

/// The name under which a collector's log goes: its origin without the scheme.
pub fn origin(console: &str) -> String {
    let name = console.split_once("://").map_or(console, |(_, rest)| rest);
    let name: String =
        name.chars().map(|c| if c == '+' || c.is_whitespace() { '-' } else { c }).collect();
    format!("{name}/interceptor")
}

impl VerifierKey {
    fn hash(&self) -> [u8; 4] {
        let tail = [&[b'\n', ED25519][..], &self.key.0].concat();
        let full = chain::hash(self.name.as_bytes(), &[&tail]);
        [full[0], full[1], full[2], full[3]]
    }

    /// This key, and those that followed it: a checkpoint that one of them signed is the log's.
    pub fn following(&self, chain: &[SignedSuccession]) -> Result<Vec<Self>, NoteError> {
        let after = succession::follow(&self.key, chain)?;
        let mut all = vec![self.clone()];
        all.extend(after.into_iter().map(|key| Self { name: self.name.clone(), key }));
        Ok(all)
    }

    /// Reads `name+hash+key`.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let text = text.trim();
        let fail = || NoteError::Key(text.chars().take(120).collect());
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(fail());
        };
        let bytes = STANDARD.decode(key).map_err(|_| fail())?;
        let key = match bytes.split_first() {
            Some((&ED25519, key)) => PublicKey(key.try_into().map_err(|_| fail())?),
            _ => return Err(fail()),
        };
        let parsed = Self { name: name.into(), key };
        if name.is_empty() || chain::hex(&parsed.hash()) != hash {
            return Err(fail());
        }
        Ok(parsed)
    }
}

impl std::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = STANDARD.encode([&[ED25519][..], &self.key.0].concat());
        write!(f, "{}+{}+{key}", self.name, chain::hex(&self.hash()))
    }
}

impl Checkpoint {
    fn text(&self) -> String {
        let head = format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root));
        match &self.audit {
            Some(at) => format!("{head}{AUDIT}{} {}\n", at.id, STANDARD.encode(at.hash)),
            None => head,
        }
    }

    /// The note, signed.
    pub fn sign(&self, key: &PublicKey, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
        format!("{}\n{}", self.text(), self.line(key, sign))
    }

    /// The line of one more signature, to be put behind a note.
    pub fn line(&self, key: &PublicKey, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
        let verifier = VerifierKey { name: self.origin.clone(), key: *key };
        let signature = [&verifier.hash()[..], &sign(self.text().as_bytes())].concat();
        format!("\u{2014} {} {}\n", self.origin, STANDARD.encode(signature))
    }

    /// Reads a note that was verified before it was kept.
    pub fn kept(note: &str) -> Result<Self, NoteError> {
        Self::split(note).map(|(checkpoint, ..)| checkpoint)
    }

    /// Reads a note that one of these keys of ours signed, whatever name the log had then.
    pub fn verify_ours(note: &str, keys: &[PublicKey]) -> Result<Self, NoteError> {
        let name = note.lines().next().unwrap_or_default();
        let named = |key: &PublicKey| VerifierKey { name: name.to_owned(), key: *key };
        Self::verify_any(note, &keys.iter().map(named).collect::<Vec<_>>())
    }

    /// Reads a note that one of these keys signed.
    pub fn verify_any(note: &str, keys: &[VerifierKey]) -> Result<Self, NoteError> {
        let mut last = Err(NoteError::Signature);
        // The newest signs it, as a rule.
        for key in keys.iter().rev() {
            last = Self::verify(note, key);
            if last != Err(NoteError::Signature) {
                break;
            }
        }
        last
    }

    /// Reads a note and believes it only when this key signed it. Signatures of others
    /// (witnesses) are passed over.
    pub fn verify(note: &str, key: &VerifierKey) -> Result<Self, NoteError> {
        let (checkpoint, text, signatures) = Self::split(note)?;
        if checkpoint.origin != key.name {
            return Err(NoteError::Origin { found: checkpoint.origin, wanted: key.name.clone() });
        }
        let signed = signatures.lines().any(|line| {
            let Some((name, signature)) =
                line.strip_prefix("\u{2014} ").and_then(|l| l.split_once(' '))
            else {
                return false;
            };
            let bytes = STANDARD.decode(signature).unwrap_or_default();
            let Some((hash, signature)) = bytes.split_first_chunk::<4>() else { return false };
            name == key.name && *hash == key.hash() && key.key.verify(text.as_bytes(), signature)
        });
        if signed { Ok(checkpoint) } else { Err(NoteError::Signature) }
    }

    fn split(note: &str) -> Result<(Self, &str, &str), NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::Form("it is too long"));
        }
        let at = note.rfind("\n\n").ok_or(NoteError::Form("it has no signature"))?;
        let (text, signatures) = (&note[..=at], &note[at + 2..]);
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Form("it has fewer than three lines"));
        };
        let canonical = size.parse::<u64>().ok().filter(|n| n.to_string() == size);
        let size = canonical.ok_or(NoteError::Form("its size is no number"))?;
        let root = STANDARD
            .decode(root)
            .ok()
            .and_then(|r| r.try_into().ok())
            .ok_or(NoteError::Form("its root is no SHA-256"))?;
        let audit = lines.find_map(|line| line.strip_prefix(AUDIT)).map(|line| {
            let (id, hash) = line.split_once(' ')?;
            let hash = STANDARD.decode(hash).ok()?.try_into().ok()?;
            Some(AuditHead { id: id.parse().ok()?, hash })
        });
        let audit = match audit {
            Some(None) => return Err(NoteError::Form("its line about the audit trail is none")),
            Some(head) => head,
            None => None,
        };
        Ok((Self { origin: origin.into(), size, root, audit }, text, signatures))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::record::HostKey;

    fn key() -> (tempfile::TempDir, HostKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        (dir, key)
    }

    #[test]
    fn a_checkpoint_is_believed_only_with_its_key_and_unaltered() {
        let (_dir, key) = key();
        let origin = origin("https://collector.example.com:8443");
        assert_eq!(origin, "collector.example.com:8443/interceptor");
        let checkpoint = Checkpoint {
            origin: origin.clone(),
            size: 7,
            root: [3; 32],
            audit: Some(AuditHead { id: 9, hash: [4; 32] }),
        };
        let note = checkpoint.sign(key.public(), |m| key.sign(m));
        let verifier = VerifierKey { name: origin, key: *key.public() };
        let again = VerifierKey::parse(&verifier.to_string()).unwrap();
        assert_eq!(Checkpoint::verify(&note, &again).unwrap(), checkpoint);
        let witnessed = format!("{note}\u{2014} witness.example AAAAAAAA\n");
        assert_eq!(Checkpoint::verify(&witnessed, &again).unwrap(), checkpoint);
        let bare = Checkpoint { audit: None, ..checkpoint.clone() };
        let note_without = bare.sign(key.public(), |m| key.sign(m));
        assert_eq!(Checkpoint::verify(&note_without, &again).unwrap(), bare);
        for (from, to) in [("\n7\n", "\n8\n"), ("AwMD", "BwMD"), ("audit 9", "audit 8")] {
            let bad = note.replace(from, to);
            assert_eq!(Checkpoint::verify(&bad, &again), Err(NoteError::Signature));
        }
        let (_other_dir, other) = self::key();
        let foreign = checkpoint.sign(other.public(), |m| other.sign(m));
        assert_eq!(Checkpoint::verify(&foreign, &again), Err(NoteError::Signature));
        let elsewhere = VerifierKey { name: "x".into(), ..again };
        assert!(matches!(Checkpoint::verify(&note, &elsewhere), Err(NoteError::Origin { .. })));
        assert!(Checkpoint::verify("", &elsewhere).is_err());
    }

    #[test]
    fn the_key_of_the_specification_is_read() {
        // From the signed-note specification (also in Go's sumdb/note).
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let key = VerifierKey::parse(text).unwrap();
        assert_eq!((key.name.as_str(), key.to_string().as_str()), ("PeterNeumann", text));
        assert!(VerifierKey::parse(&text.replace("c74f20a3", "c74f20a4")).is_err());
    }
}
