//! The bundle of policies that is in force, on this host's disk.
//!
//! It stands there signed as it came, with the newest version that was ever seen, so that it is
//! in force again after a restart, for days without the collector, and nothing older is taken
//! then either. It is exchanged whole, and on disk before it is in force.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bundle::{Bundle, BundleError, MAX_BUNDLE, SignedBundle};
use super::trusted::Trusted;
use super::{Identity, ShipError};
use crate::config::Config;
use crate::policy::PolicySet;
use crate::record::now_us;

const FILE: &str = "policies.json";
/// Largest file that is read: the signed text, escaped, and what is around.
const MAX_FILE: u64 = 2 * MAX_BUNDLE as u64 + 4096;

/// What stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OnDisk {
    /// Fingerprint of the collector's key.
    collector: String,
    /// The newest version that was seen, in force or not.
    seen: u64,
    /// When the bundle was taken, microseconds since the Unix epoch.
    since_us: i64,
    /// The newest that was taken.
    bundle: Option<SignedBundle>,
}

/// A bundle that is kept, checked.
#[derive(Debug, Clone)]
pub struct InForce {
    /// What it says.
    pub bundle: Bundle,
    /// Its rules; none when it withdrew what was before.
    pub policies: Option<PolicySet>,
    /// When this host took it.
    pub since_us: i64,
}

/// What is kept of the centre's policies.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    collector: Arc<Trusted>,
    seen: u64,
    signed: Option<SignedBundle>,
    since_us: i64,
    taken: u64,
}

impl Kept {
    /// Reads what is kept below a state directory of shipping. What cannot be used is an error:
    /// it may hold denies, so nobody goes on as if it had not been there. What another collector
    /// published ended with the enrolment there.
    pub fn open(dir: &Path, collector: Arc<Trusted>) -> Result<(Self, Option<InForce>), ShipError> {
        let path = dir.join(FILE);
        let mut kept = Self { path, collector, seen: 0, signed: None, since_us: 0, taken: 0 };
        let Some(text) = read(&kept.path)? else { return Ok((kept, None)) };
        let unusable = |why: String| ShipError::State {
            path: kept.path.clone(),
            message: format!(
                "the policies of the centre cannot be used: {why}. To run on this host's own \
                 files alone, set ship.central_policies = false"
            ),
        };
        let disk: OnDisk = serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        if !kept.collector.knew(&disk.collector) {
            tracing::warn!(
                path = %kept.path.display(),
                "the policies that are kept here are of another collector, and not in force"
            );
            return Ok((kept, None));
        }
        let Some(signed) = disk.bundle else {
            kept.seen = disk.seen;
            return Ok((kept, None));
        };
        // It was checked when it came, perhaps with a key of then.
        let mut read = Err(BundleError::Forged);
        for key in kept.collector.all() {
            read = Bundle::read(&signed, &key);
            if read != Err(BundleError::Forged) {
                break;
            }
        }
        let bundle = read.map_err(|e| unusable(e.to_string()))?;
        let policies = bundle.policies().map_err(|e| unusable(e.to_string()))?;
        kept.seen = disk.seen.max(bundle.version);
        kept.taken = bundle.version;
        kept.since_us = disk.since_us;
        kept.signed = Some(signed);
        let in_force = InForce { bundle, policies, since_us: kept.since_us };
        Ok((kept, Some(in_force)))
    }

    /// What is kept for a host with this configuration; nothing where it takes no policies from
    /// the centre, or is not enrolled.
    pub fn of(config: &Config) -> Result<Option<(Self, Option<InForce>)>, ShipError> {
        let Some(ship) = config.ship.as_ref().filter(|s| s.central_policies) else {
            return Ok(None);
        };
        let dir = ship.state(&config.paths);
        match Identity::load(&dir)? {
            Some(identity) => {
                let collector = Arc::new(Trusted::of(&dir, &identity)?);
                Self::open(&dir, collector).map(Some)
            }
            None => {
                if dir.join(FILE).exists() {
                    tracing::warn!(
                        "policies of the centre are kept here and not in force: this host is not \
                         enrolled"
                    );
                }
                Ok(None)
            }
        }
    }

    /// Who publishes.
    pub fn collector(&self) -> &Arc<Trusted> {
        &self.collector
    }

    /// The newest version that was taken; 0 before the first.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Checks what the collector offers, whole: who signed it, its number, and every rule.
    /// That it was seen is kept, so that nothing older is taken later.
    pub fn check(&mut self, signed: &SignedBundle) -> Result<InForce, (Option<u64>, BundleError)> {
        let bundle = Bundle::read(signed, &self.collector.current()).map_err(|e| (None, e))?;
        let version = bundle.version;
        if version <= self.taken || version < self.seen {
            return Err((Some(version), BundleError::Old { version, seen: self.seen }));
        }
        self.seen = version;
        match bundle.policies() {
            Ok(policies) => Ok(InForce { bundle, policies, since_us: now_us() }),
            Err(errors) => Err((Some(version), errors.into())),
        }
    }

    /// Keeps one that was checked. It is on disk when this returns without an error.
    pub fn take(&mut self, signed: &SignedBundle, checked: &InForce) -> Result<(), ShipError> {
        let disk = OnDisk {
            collector: self.collector.current().fingerprint_hex(),
            seen: self.seen.max(checked.bundle.version),
            since_us: checked.since_us,
            bundle: Some(signed.clone()),
        };
        write(&self.path, &disk)?;
        self.signed = disk.bundle;
        self.since_us = checked.since_us;
        self.taken = checked.bundle.version;
        Ok(())
    }

    /// Keeps that a version was seen which is not taken.
    pub fn note_seen(&self) -> Result<(), ShipError> {
        let disk = OnDisk {
            collector: self.collector.current().fingerprint_hex(),
            seen: self.seen,
            since_us: self.since_us,
            bundle: self.signed.clone(),
        };
        write(&self.path, &disk)
    }
}

fn read(path: &Path) -> Result<Option<String>, ShipError> {
    let fail = |e| ShipError::io("read", path, e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail(e)),
    };
    if file.metadata().map_err(fail)?.mode() & 0o022 != 0 {
        let message = "can be written by others: chmod 0600 it".into();
        return Err(ShipError::State { path: path.into(), message });
    }
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(fail)?;
    Ok(Some(text))
}

fn write(path: &Path, disk: &OnDisk) -> Result<(), ShipError> {
    let write = || -> std::io::Result<()> {
        let aside = path.with_extension("new");
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(&serde_json::to_vec(disk)?)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        match path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|e| ShipError::io("write", path, e))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::bundle::File as Rules;
    use super::*;
    use crate::record::HostKey;

    fn trusted(key: &HostKey) -> Arc<Trusted> {
        Arc::new(Trusted::key(*key.public()))
    }

    fn signed(key: &HostKey, version: u64, text: &str) -> SignedBundle {
        let files = vec![Rules { name: "a.toml".into(), text: text.into() }];
        let body = serde_json::to_string(&Bundle::new(version, 1, Some(files))).unwrap();
        let signature = STANDARD.encode(key.sign(&Bundle::message(&body)));
        SignedBundle { body, signature }
    }

    #[test]
    fn what_was_seen_counts_after_a_restart_though_it_was_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        let open = || Kept::open(dir.path(), trusted(&key)).unwrap();
        let (mut kept, in_force) = open();
        assert!(in_force.is_none());
        let first = signed(&key, 1, "");
        let checked = kept.check(&first).unwrap();
        kept.take(&first, &checked).unwrap();
        let broken = signed(&key, 3, "[[rule]]");
        assert!(matches!(kept.check(&broken), Err((Some(3), BundleError::Policies(_)))));
        kept.note_seen().unwrap();

        let (mut kept, in_force) = open();
        assert_eq!(in_force.unwrap().bundle.version, 1, "what was in force stays");
        let held_back = kept.check(&signed(&key, 2, "")).unwrap_err();
        assert_eq!(held_back, (Some(2), BundleError::Old { version: 2, seen: 3 }));
        // The refused one may be taken by a newer program that understands it.
        assert!(matches!(kept.check(&broken), Err((Some(3), BundleError::Policies(_)))));
        let mended = signed(&key, 4, "");
        let checked = kept.check(&mended).unwrap();
        kept.take(&mended, &checked).unwrap();
        assert_eq!(open().0.taken(), 4);
    }

    #[test]
    fn nothing_is_in_force_that_the_disk_does_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        let (mut kept, _) = Kept::open(dir.path(), trusted(&key)).unwrap();
        kept.path = dir.path().join("missing/policies.json");
        let first = signed(&key, 1, "");
        let checked = kept.check(&first).unwrap();
        assert!(matches!(kept.take(&first, &checked), Err(ShipError::Io { .. })));
        assert_eq!(kept.taken(), 0);
        // Nor is anything believed that others could have written.
        let path = dir.path().join(FILE);
        fs::write(&path, "{}").unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(&path, open).unwrap();
        let error = Kept::open(dir.path(), trusted(&key)).unwrap_err().to_string();
        assert!(error.contains("chmod 0600"), "{error}");
    }
}
