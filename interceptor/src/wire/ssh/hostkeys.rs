//! The host's own SSH keys, so that an agent sees the host it knows.
//!
//! The daemon offers the keys that the host's sshd offers, host certificates included, and
//! expects the same keys of sshd on its own connection to it. Nothing here ever makes a key: a
//! host without readable keys is a host that cannot be served.

use std::path::{Path, PathBuf};

use russh::keys::ssh_key::{Algorithm, Certificate, PrivateKey, PublicKey};

use crate::config;

/// Where sshd keeps its keys unless told otherwise.
const DEFAULT_DIR: &str = "/etc/ssh";

/// Largest file that is read as a key or certificate. Bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why the host's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// A key file cannot be read.
    #[error("host key {path}: {message}; `interceptor setup ssh` makes host keys readable")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// There is none.
    #[error("no host key in {0}: name them in service.ssh.host_keys")]
    None(PathBuf),
}

/// The host's keys and certificates.
#[derive(Clone)]
pub struct HostKeys {
    /// Never empty; in the order in which they are offered.
    pub keys: Vec<PrivateKey>,
    /// Host certificates of those keys.
    pub certificates: Vec<Certificate>,
    /// Public halves of all of them, which sshd must show on our own connection to it.
    pub public: Vec<PublicKey>,
}

impl std::fmt::Debug for HostKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostKeys({} keys, {} certificates)", self.keys.len(), self.certificates.len())
    }
}

impl HostKeys {
    /// Reads the keys that a service names, or those of the host's sshd.
    pub fn load(settings: &config::Ssh) -> Result<Self, HostKeyError> {
        let paths = if settings.host_keys.is_empty() {
            default_paths(Path::new(DEFAULT_DIR))
        } else {
            settings.host_keys.clone()
        };
        let mut keys = Vec::new();
        let mut certificates = Vec::new();
        for path in &paths {
            let key = read_key(path)?;
            if let Some(certificate) = read_certificate(path)?
                && certificate.public_key() == key.public_key().key_data()
            {
                certificates.push(certificate);
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err(HostKeyError::None(DEFAULT_DIR.into()));
        }
        let public: Vec<PublicKey> = keys.iter().map(|k| k.public_key().clone()).collect();
        // An RSA key is used only where there is no other: signing with it cannot be made to take
        // the same time for every message (RUSTSEC-2023-0071).
        let rsa = |key: &PrivateKey| matches!(key.algorithm(), Algorithm::Rsa { .. });
        if !keys.iter().all(rsa) {
            keys.retain(|key| !rsa(key));
            certificates.retain(|c| !matches!(c.algorithm(), Algorithm::Rsa { .. }));
        }
        Ok(Self { keys, certificates, public })
    }
}

/// sshd's order of preference: Ed25519, ECDSA, RSA.
fn default_paths(dir: &Path) -> Vec<PathBuf> {
    ["ed25519", "ecdsa", "rsa"]
        .iter()
        .map(|kind| dir.join(format!("ssh_host_{kind}_key")))
        .filter(|path| path.exists())
        .collect()
}

fn read_small(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > MAX_FILE {
        return Err(format!("larger than {MAX_FILE} bytes: not a key"));
    }
    std::fs::read_to_string(path).map_err(|e| e.to_string())
}

fn read_key(path: &Path) -> Result<PrivateKey, HostKeyError> {
    let fail = |message: String| HostKeyError::Unreadable { path: path.into(), message };
    let text = zeroize::Zeroizing::new(read_small(path).map_err(fail)?);
    russh::keys::decode_secret_key(&text, None).map_err(|e| fail(e.to_string()))
}

/// The certificate beside a key, `KEY-cert.pub`.
fn read_certificate(key: &Path) -> Result<Option<Certificate>, HostKeyError> {
    let mut name = key.as_os_str().to_owned();
    name.push("-cert.pub");
    let path = PathBuf::from(name);
    if !path.exists() {
        return Ok(None);
    }
    let fail = |message: String| HostKeyError::Unreadable { path: path.clone(), message };
    let text = read_small(&path).map_err(fail)?;
    let certificate = Certificate::from_openssh(&text).map_err(|e| fail(e.to_string()))?;
    Ok(certificate.cert_type().is_host().then_some(certificate))
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::LineEnding;

    use super::*;

    fn write(dir: &Path, name: &str, algorithm: Algorithm) -> PathBuf {
        let key = PrivateKey::random(&mut russh::keys::ssh_key::rand_core::UnwrapErr(russh::keys::ssh_key::getrandom::SysRng), algorithm).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, key.to_openssh(LineEnding::LF).unwrap()).unwrap();
        path
    }

    #[test]
    fn keys_are_offered_in_order_and_a_host_without_any_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let first = write(dir.path(), "ssh_host_ed25519_key", Algorithm::Ed25519);
        assert_eq!(default_paths(dir.path()), [first.clone()]);
        let settings = config::Ssh { host_keys: vec![first], ..config::Ssh::default() };
        let keys = HostKeys::load(&settings).unwrap();
        assert_eq!((keys.keys.len(), keys.certificates.len()), (1, 0));
        let missing = dir.path().join("none");
        let settings = config::Ssh { host_keys: vec![missing], ..config::Ssh::default() };
        let error = HostKeys::load(&settings).unwrap_err().to_string();
        assert!(error.contains("setup ssh"), "{error}");
    }
}
