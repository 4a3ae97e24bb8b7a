//! The host's own keys, which agents expect to meet: read from where sshd has them, or from the
//! systemd credentials by which the daemon's user gets at them.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::{Certificate, PrivateKey, decode_secret_key};
use zeroize::Zeroizing;

/// Where sshd has its keys unless it is told otherwise.
pub const DIRECTORY: &str = "/etc/ssh";
/// How the names of host keys begin, as files and as systemd credentials.
pub const CREDENTIAL_PREFIX: &str = "ssh_host_";
/// An RSA key of 16384 bits takes 13 KiB.
const LARGEST: u64 = 64 * 1024;

/// Why a host key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("host key {}: {message}", path.display())]
pub struct HostKeyError {
    /// The file.
    pub path: PathBuf,
    /// What to do.
    pub message: String,
}

/// One host key, with its certificate where the host has one.
pub struct HostKey {
    /// The file it came from.
    pub path: PathBuf,
    /// The key.
    pub key: PrivateKey,
    /// From `<path>-cert.pub`.
    pub certificate: Option<Certificate>,
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.key.algorithm();
        f.debug_struct("HostKey").field("path", &self.path).field("kind", &kind).finish()
    }
}

/// The files of the host's keys, in the order in which they are offered: the configured ones, or
/// all that the directory has. Where systemd handed the daemon a credential of the same name,
/// that stands in for the file, which only root reads.
pub fn paths(configured: &[PathBuf]) -> Vec<PathBuf> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    paths_in(configured, Path::new(DIRECTORY), credentials.as_deref())
}

fn paths_in(configured: &[PathBuf], etc: &Path, credentials: Option<&Path>) -> Vec<PathBuf> {
    let mut found = match configured {
        [] => all_in(etc),
        given => given.to_vec(),
    };
    if configured.is_empty() && found.is_empty() {
        found = credentials.map(all_in).unwrap_or_default();
    }
    let stand_in = |path: PathBuf| {
        let name = path.file_name()?;
        let handed = credentials?.join(name);
        handed.exists().then_some(handed)
    };
    found.into_iter().map(|p| stand_in(p.clone()).unwrap_or(p)).collect()
}

/// Names such as `ssh_host_ed25519_key`, sorted.
fn all_in(dir: &Path) -> Vec<PathBuf> {
    let is_key = |name: &OsStr| {
        name.to_str().is_some_and(|n| n.starts_with(CREDENTIAL_PREFIX) && n.ends_with("_key"))
    };
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let mut all: Vec<_> =
        entries.flatten().filter(|e| is_key(&e.file_name())).map(|e| e.path()).collect();
    all.sort();
    all
}

/// Reads the host's keys, see [`paths`]. None at all is an error: without them every agent would
/// be warned of another host.
pub fn host_keys(configured: &[PathBuf]) -> Result<Vec<HostKey>, HostKeyError> {
    let paths = paths(configured);
    if paths.is_empty() {
        let message = "there is none: run `ssh-keygen -A`, or name them in service.ssh.host_keys";
        return Err(HostKeyError { path: DIRECTORY.into(), message: message.into() });
    }
    paths.iter().map(|path| read(path, configured)).collect()
}

fn read(path: &Path, configured: &[PathBuf]) -> Result<HostKey, HostKeyError> {
    let fail = |message: String| HostKeyError { path: path.into(), message };
    let hint = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "{e}; `interceptor setup ssh` lets systemd hand it to the daemon (LoadCredential)"
        ),
        _ => e.to_string(),
    };
    let mut file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| fail(hint(e)))?;
    let meta = file.metadata().map_err(|e| fail(e.to_string()))?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(fail("is no key file".into()));
    }
    // systemd's credentials are read-only files of their own file system; sshd's rule for all else.
    if meta.mode() & 0o007 != 0 {
        return Err(fail(format!("mode {:04o} lets everybody read it", meta.mode() & 0o7777)));
    }
    let mut text = Zeroizing::new(String::with_capacity(LARGEST as usize));
    (&mut file).take(LARGEST).read_to_string(&mut text).map_err(|e| fail(e.to_string()))?;
    let key = decode_secret_key(&text, None).map_err(|e| fail(format!("no private key: {e}")))?;
    Ok(HostKey { certificate: certificate(path, configured, &key), path: path.into(), key })
}

/// The host certificate beside the key, or beside the key that a credential stands in for.
fn certificate(path: &Path, configured: &[PathBuf], key: &PrivateKey) -> Option<Certificate> {
    let name = path.file_name()?.to_str()?;
    let original = configured.iter().find(|p| p.file_name() == path.file_name());
    let dir = original.map_or(Path::new(DIRECTORY), |p| p.parent().unwrap_or(Path::new("/")));
    [path.parent()?, dir].iter().find_map(|dir| {
        let text = std::fs::read_to_string(dir.join(format!("{name}-cert.pub"))).ok()?;
        let certificate = Certificate::from_openssh(text.trim()).ok()?;
        (certificate.public_key() == key.public_key().key_data()).then_some(certificate)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key_file(dir: &Path, name: &str, mode: u32) -> PathBuf {
        let key = super::super::new_session_key().unwrap();
        let path = dir.join(name);
        let text = key.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap();
        std::fs::write(&path, text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_credential_stands_in_for_the_file_of_its_name() {
        let (etc, handed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a = key_file(etc.path(), "ssh_host_ecdsa_key", 0o600);
        let b = key_file(etc.path(), "ssh_host_ed25519_key", 0o600);
        std::fs::write(etc.path().join("ssh_host_ed25519_key.pub"), "").unwrap();
        std::fs::write(etc.path().join("sshd_config"), "").unwrap();
        assert_eq!(paths_in(&[], etc.path(), None), [&*a, &*b]);
        let stand_in = key_file(handed.path(), "ssh_host_ed25519_key", 0o440);
        let handed = Some(handed.path());
        assert_eq!(paths_in(&[], etc.path(), handed), [&*a, &*stand_in]);
        assert_eq!(paths_in(&[b], etc.path(), handed), [&*stand_in]);
        let nowhere = etc.path().join("none");
        assert_eq!(paths_in(&[], &nowhere, handed), [stand_in]);
    }

    #[test]
    fn a_key_is_read_with_its_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let path = key_file(dir.path(), "ssh_host_ed25519_key", 0o600);
        assert!(host_keys(std::slice::from_ref(&path)).unwrap()[0].certificate.is_none());
        let ca = key_file(dir.path(), "ca", 0o600);
        let public = dir.path().join("ssh_host_ed25519_key.pub");
        let key = &host_keys(std::slice::from_ref(&path)).unwrap()[0].key;
        std::fs::write(&public, key.public_key().to_openssh().unwrap()).unwrap();
        let signed = std::process::Command::new("ssh-keygen")
            .args(["-q", "-h", "-I", "host", "-n", "db1", "-s"])
            .args([&ca, &public])
            .status();
        if !signed.is_ok_and(|s| s.success()) {
            eprintln!("SKIPPED: no ssh-keygen");
            return;
        }
        let keys = host_keys(&[path]).unwrap();
        assert_eq!(keys[0].certificate.as_ref().unwrap().key_id(), "host");
        assert!(!format!("{keys:?}").contains("PRIVATE"));
    }

    /// Its secret begins with a zero byte, as in one of 256: the file has 31 bytes of it.
    #[test]
    fn a_short_secret_is_a_key_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ssh_host_ecdsa_key");
        std::fs::write(&path, include_str!("testdata/short_ecdsa_key")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let keys = host_keys(&[path]).unwrap();
        let public = keys[0].key.public_key().to_openssh().unwrap();
        assert!(public.starts_with("ecdsa-sha2-nistp256 "), "{public}");
        let signed = russh::keys::signature::Signer::try_sign(&keys[0].key, b"exchange").unwrap();
        russh::keys::signature::Verifier::verify(keys[0].key.public_key(), b"exchange", &signed)
            .unwrap();
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let open = key_file(dir.path(), "open", 0o644);
        let text = dir.path().join("text");
        std::fs::write(&text, "no key").unwrap();
        std::fs::set_permissions(&text, std::fs::Permissions::from_mode(0o600)).unwrap();
        for (path, want) in
            [(open, "everybody"), (text, "no private key"), (dir.path().join("none"), "No such")]
        {
            let error = host_keys(&[path]).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
