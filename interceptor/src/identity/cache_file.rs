//! The last good key set of an issuer on disk, so that a restart does not depend on the issuer.
//!
//! The file holds public keys only, but whoever can write it can sign tokens: it lives in the
//! state directory, and one that others could write is ignored.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::token::hex;

/// Largest file that is read back.
const MAX_FILE: u64 = 1024 * 1024;

/// What is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// The issuer's URL: a file of another issuer of the same name is not used.
    url: String,
    /// Seconds since the epoch.
    fetched_at: u64,
    fresh_for_s: u64,
    jwks: String,
}

/// A key set read back from disk.
pub(super) struct Loaded {
    pub jwks: Vec<u8>,
    pub fetched_at: SystemTime,
    pub fresh_for: Duration,
}

/// One issuer's file.
#[derive(Debug, Clone)]
pub(super) struct CacheFile {
    path: PathBuf,
    url: String,
}

impl CacheFile {
    /// `STATE/keys/NAME.json`; a name that is no plain file name is hashed.
    pub fn new(state: &Path, issuer_name: &str, url: &str) -> Self {
        let plain = !issuer_name.is_empty()
            && issuer_name.len() <= 64
            && !issuer_name.starts_with('.')
            && issuer_name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        let stem = if plain {
            issuer_name.to_owned()
        } else {
            hex(&Sha256::digest(issuer_name.as_bytes()))
        };
        Self { path: state.join("keys").join(format!("{stem}.json")), url: url.to_owned() }
    }

    /// Reads the file; `None` when there is none for this issuer.
    pub fn load(&self) -> io::Result<Option<Loaded>> {
        let meta = match std::fs::symlink_metadata(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta?,
        };
        if !meta.is_file() || meta.permissions().mode() & 0o022 != 0 || meta.len() > MAX_FILE {
            return Err(io::Error::other("not a plain file that only its owner can write"));
        }
        let kept: Kept = serde_json::from_slice(&std::fs::read(&self.path)?)?;
        if kept.url != self.url {
            return Ok(None);
        }
        let fetched_at = UNIX_EPOCH
            .checked_add(Duration::from_secs(kept.fetched_at))
            .ok_or_else(|| io::Error::other("its fetch time is no time"))?;
        Ok(Some(Loaded {
            jwks: kept.jwks.into_bytes(),
            fetched_at,
            fresh_for: Duration::from_secs(kept.fresh_for_s),
        }))
    }

    /// Replaces the file in one step: a reader sees the old set or the new one.
    pub fn save(&self, jwks: &[u8], fetched_at: SystemTime, fresh_for: Duration) -> io::Result<()> {
        let kept = Kept {
            url: self.url.clone(),
            fetched_at: fetched_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            fresh_for_s: fresh_for.as_secs(),
            jwks: String::from_utf8(jwks.to_vec()).map_err(io::Error::other)?,
        };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let draft = self.path.with_extension("json.new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.path)?;
        std::fs::File::open(dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_comes_back_as_it_was_and_only_for_its_issuer() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(dir.path(), "okta", "https://a/");
        assert!(file.load().unwrap().is_none());
        let then = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        file.save(b"{\"keys\":[]}", then, Duration::from_secs(60)).unwrap();
        let loaded = file.load().unwrap().unwrap();
        assert_eq!(loaded.jwks, b"{\"keys\":[]}");
        assert_eq!((loaded.fetched_at, loaded.fresh_for), (then, Duration::from_secs(60)));
        assert!(CacheFile::new(dir.path(), "okta", "https://b/").load().unwrap().is_none());
    }

    #[test]
    fn a_file_that_others_can_write_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = CacheFile::new(dir.path(), "okta", "https://a/");
        file.save(b"{}", SystemTime::now(), Duration::ZERO).unwrap();
        let mode = |m| std::fs::set_permissions(&file.path, PermissionsExt::from_mode(m)).unwrap();
        mode(0o666);
        assert!(file.load().is_err());
        mode(0o600);
        std::fs::write(&file.path, b"{").unwrap();
        assert!(file.load().is_err());
    }

    #[test]
    fn no_issuer_name_leaves_the_directory() {
        let state = Path::new("/state");
        for name in ["../../etc/passwd", "a/b", ".hidden", "", "ü"] {
            let path = CacheFile::new(state, name, "u").path;
            assert_eq!(path.parent(), Some(Path::new("/state/keys")), "{name}");
        }
        let path = CacheFile::new(state, "okta-prod", "u").path;
        assert_eq!(path, Path::new("/state/keys/okta-prod.json"));
    }
}
