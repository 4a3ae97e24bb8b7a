//! The recorder's two keys: the host's Ed25519 key that signs seals and checkpoints, and the
//! key of the HMACs that stand beside scrubbed texts.
//!
//! Both are created on first use with mode 0600 in the state directory and are refused when
//! others can read them. `Debug` never prints them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::RecordError;
use super::chain::{self, Hash, hex};

/// SubjectPublicKeyInfo before the 32 bytes of an Ed25519 key (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The key that signs this host's seals and checkpoints.
pub struct HostKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKey({})", self.public.fingerprint_hex())
    }
}

impl HostKey {
    /// Loads `host.key` from the state directory, creating it (and `host.pub`) when absent.
    pub fn open(state: &Path) -> Result<Self, RecordError> {
        let path = state.join("host.key");
        let pem = load_or_create(&path, || {
            let doc = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new())
                .map_err(|_| RecordError::key(&path, "no randomness from the kernel"))?;
            Ok(Zeroizing::new(pem("PRIVATE KEY", doc.as_ref()).into_bytes()))
        })?;
        let key = Self::read(&path, &pem)?;
        key.export(&state.join("host.pub"))?;
        Ok(key)
    }

    /// Loads `host.key` from a directory, and makes nothing.
    pub fn load(state: &Path) -> Result<Self, RecordError> {
        let path = state.join("host.key");
        let pem = load_or_create(&path, || {
            Err(RecordError::io("read", &path, std::io::ErrorKind::NotFound.into()))
        })?;
        Self::read(&path, &pem)
    }

    fn read(path: &Path, pem: &[u8]) -> Result<Self, RecordError> {
        let der = unpem("PRIVATE KEY", pem)
            .ok_or_else(|| RecordError::key(path, "is no PEM PKCS#8 private key"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| RecordError::key(path, "holds no Ed25519 key"))?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Self { pair, public: PublicKey(public) })
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// The public part.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    fn export(&self, path: &Path) -> Result<(), RecordError> {
        let text = self.public.to_pem();
        if std::fs::read_to_string(path).is_ok_and(|t| t == text) {
            return Ok(());
        }
        std::fs::write(path, text).map_err(|e| RecordError::io("write", path, e))
    }
}

/// The public part of a [`HostKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// SHA-256 of the key: the host's identity in chains, seals and checkpoints.
    pub fn fingerprint(&self) -> Hash {
        chain::hash(b"interceptor host key v1\0", &[&self.0])
    }

    /// The fingerprint in hexadecimal.
    pub fn fingerprint_hex(&self) -> String {
        hex(&self.fingerprint())
    }

    /// Whether a signature is this host's.
    pub fn verify(&self, message: &[u8], sig: &[u8]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, self.0).verify(message, sig).is_ok()
    }

    /// PEM that OpenSSL reads.
    pub fn to_pem(&self) -> String {
        pem("PUBLIC KEY", &[&SPKI[..], &self.0].concat())
    }

    /// As it stands in JSON.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The other way round.
    pub fn of_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// Reads a PEM file.
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let text = std::fs::read(path).map_err(|e| RecordError::io("read", path, e))?;
        unpem("PUBLIC KEY", &text)
            .and_then(|der| der.strip_prefix(&SPKI[..]).and_then(|k| k.try_into().ok()))
            .map(Self)
            .ok_or_else(|| RecordError::key(path, "is no PEM Ed25519 public key"))
    }
}

/// The key of the HMAC-SHA-256 that stands beside a scrubbed text or value.
///
/// With it an auditor who holds the exact text can show that it is the one that ran; without
/// it the record gives no way to guess short values.
pub struct HmacKey(hmac::Key);

impl std::fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HmacKey(redacted)")
    }
}

impl HmacKey {
    /// Loads `record-hmac.key` from the state directory, creating it when absent.
    pub fn open(state: &Path) -> Result<Self, RecordError> {
        let path = state.join("record-hmac.key");
        let bytes = load_or_create(&path, || {
            let mut key = Zeroizing::new(vec![0; 32]);
            aws_lc_rs::rand::fill(&mut key)
                .map_err(|_| RecordError::key(&path, "no randomness from the kernel"))?;
            Ok(key)
        })?;
        if bytes.len() != 32 {
            return Err(RecordError::key(&path, "is not 32 bytes long"));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// HMAC of an exact text with its exact values, hexadecimal. `None` is SQL null and
    /// differs from the empty value.
    pub fn request(&self, text: &[u8], values: &[Option<&[u8]>]) -> String {
        let mut c = hmac::Context::with_key(&self.0);
        c.update(&(text.len() as u64).to_le_bytes());
        c.update(text);
        for value in values {
            match value {
                None => c.update(&u64::MAX.to_le_bytes()),
                Some(v) => {
                    c.update(&(v.len() as u64).to_le_bytes());
                    c.update(v);
                }
            }
        }
        hex(c.sign().as_ref())
    }
}

/// Reads a key file that only its owner may read, or creates it.
fn load_or_create(
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, RecordError>,
) -> Result<Zeroizing<Vec<u8>>, RecordError> {
    match File::open(path) {
        Ok(mut file) => {
            let meta = file.metadata().map_err(|e| RecordError::io("read", path, e))?;
            if meta.mode() & 0o077 != 0 {
                return Err(RecordError::key(path, "can be read by others: chmod 0600 it"));
            }
            let mut bytes = Zeroizing::new(Vec::new());
            (&mut file)
                .take(64 * 1024)
                .read_to_end(&mut bytes)
                .map_err(|e| RecordError::io("read", path, e))?;
            Ok(bytes)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let bytes = make()?;
            create(path, &bytes)?;
            Ok(bytes)
        }
        Err(e) => Err(RecordError::io("read", path, e)),
    }
}

/// Writes a key under another name first, so that a crash never leaves half a key.
fn create(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let _ = std::fs::remove_file(&new);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::hard_link(&new, path)?;
        std::fs::remove_file(&new)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|e| RecordError::io("create", path, e))
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).filter_map(|c| std::str::from_utf8(c).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn unpem(label: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let body = text
        .strip_prefix(&format!("-----BEGIN {label}-----"))?
        .strip_suffix(&format!("-----END {label}-----"))?;
    let body: Zeroizing<String> = Zeroizing::new(body.split_whitespace().collect());
    STANDARD.decode(body.as_bytes()).ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let a = HostKey::open(dir.path()).unwrap();
        let b = HostKey::open(dir.path()).unwrap();
        assert_eq!(a.public(), b.public());
        let exported = PublicKey::load(&dir.path().join("host.pub")).unwrap();
        assert!(exported.verify(b"m", &b.sign(b"m")));
        assert!(!exported.verify(b"n", &b.sign(b"m")));
        let mode = std::fs::metadata(dir.path().join("host.key")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(
            dir.path().join("host.key"),
            std::fs::Permissions::from_mode(0o640),
        )
        .unwrap();
        let e = HostKey::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains("chmod 0600"), "{e}");
    }

    #[test]
    fn the_hmac_tells_null_from_empty_and_borders_apart() {
        let dir = tempfile::tempdir().unwrap();
        let key = HmacKey::open(dir.path()).unwrap();
        let all = [
            key.request(b"ab", &[]),
            key.request(b"a", &[Some(b"b")]),
            key.request(b"a", &[None]),
            key.request(b"a", &[Some(b"")]),
            key.request(b"a", &[]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(HmacKey::open(dir.path()).unwrap().request(b"ab", &[]), all[0]);
        assert_eq!(format!("{key:?}"), "HmacKey(redacted)");
    }
}
