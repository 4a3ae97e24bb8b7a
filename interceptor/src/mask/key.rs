//! The key of keyed hashes: one file per host, made once, never shown.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const FILE_NAME: &str = "mask.key";

/// Why the hash key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error(
        "cannot use the mask key {path}: {source}; make its directory accessible to the daemon's user"
    )]
    Io {
        /// The key file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Others than the owner can read or change the file.
    #[error(
        "the mask key {path} has mode {mode:04o}; run `chmod 600` on it and consider it known to others"
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold a key.
    #[error(
        "the mask key {path} is not {KEY_BYTES} bytes; restore it, or move it away to get a new one (hashes will differ from earlier ones)"
    )]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
}

/// The key for [`Method::Hash`](super::Method::Hash): HMAC-SHA-256, truncated to 128 bits.
///
/// Equal values give equal hashes as long as the key lives. `Debug` never prints it.
pub struct HashKey {
    key: hmac::Key,
}

impl HashKey {
    /// Uses these bytes as key.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, bytes) }
    }

    /// Reads the key from the state directory, making it on first use (mode 0600, complete
    /// and on disk before its name exists).
    ///
    /// # Errors
    /// When the file cannot be read or made, is readable by others, or is not a key.
    pub fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(FILE_NAME);
        match Self::read(&path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(state_dir, &path)
                    .map_err(|source| KeyError::Io { path: path.clone(), source })?;
                Self::read(&path)
            }
            other => other,
        }
    }

    fn read(path: &Path) -> Result<Self, KeyError> {
        let io_error = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_CLOEXEC)
            .open(path)
            .map_err(io_error)?;
        let mode = file.metadata().map_err(io_error)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let mut bytes = Zeroizing::new([0u8; KEY_BYTES + 1]);
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read(&mut bytes[filled..]).map_err(io_error)? {
                0 => break,
                n => filled += n,
            }
        }
        match (filled, bytes.first_chunk::<KEY_BYTES>()) {
            (KEY_BYTES, Some(key)) => Ok(Self::from_bytes(key)),
            _ => Err(KeyError::Malformed { path: path.to_owned() }),
        }
    }

    /// The keyed hash of a value, 128 bits.
    pub fn digest(&self, value: &[u8]) -> [u8; 16] {
        let tag = hmac::sign(&self.key, value);
        let mut out = [0u8; 16];
        for (to, from) in out.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        out
    }
}

impl std::fmt::Debug for HashKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// Writes a fresh key under a temporary name and links it to its own, so that of two
/// processes starting at once both read the same key.
fn create(dir: &Path, path: &Path) -> io::Result<()> {
    let mut bytes = Zeroizing::new([0u8; KEY_BYTES]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice())
        .map_err(|_| io::Error::other("no randomness from the system"))?;
    let temporary = dir.join(format!(".{FILE_NAME}.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let linked = file
        .write_all(bytes.as_slice())
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => File::open(dir)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = HashKey::open(dir.path()).unwrap().digest(b"alice");
        assert_eq!(HashKey::open(dir.path()).unwrap().digest(b"alice"), first);
        assert_ne!(HashKey::open(dir.path()).unwrap().digest(b"bob"), first);
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        let other = tempfile::tempdir().unwrap();
        assert_ne!(HashKey::open(other.path()).unwrap().digest(b"alice"), first);
    }

    #[test]
    fn refuses_exposed_short_and_linked_files() {
        let dir = tempfile::tempdir().unwrap();
        HashKey::open(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(HashKey::open(dir.path()), Err(KeyError::Exposed { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for length in [0, 31, 33] {
            std::fs::write(&path, vec![7u8; length]).unwrap();
            assert!(matches!(HashKey::open(dir.path()), Err(KeyError::Malformed { .. })));
        }
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(matches!(HashKey::open(dir.path()), Err(KeyError::Io { .. })));
    }

    #[test]
    fn debug_hides_the_key() {
        assert_eq!(format!("{:?}", HashKey::from_bytes(&[0xab; 32])), "HashKey(..)");
    }
}
