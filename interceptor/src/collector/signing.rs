//! The keys that sign the log, orders, and policies of the centre: which one is in force, and
//! those that were before it.
//!
//! The first is made with the collector (`keys/host.key`), each further one below `keys/signing/`,
//! in a directory that is called by its fingerprint. Which of them is in force stands in the
//! database, as successions that the keys themselves signed; so whoever can write there can make
//! no other key count. It is looked for in the transaction that signs: collectors that share a
//! database change their key at one moment.
//!
//! The successions that were seen stand in `keys/successions.json` too. A database that has fewer
//! was put back, or somebody took them out: nothing is signed until they are in it again.
//!
//! What this module must never do: sign with a key that is not in force any more, but for the log
//! while the old key signs along.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::db::Connection;
use super::error::CollectorError;
use crate::record::{HostKey, PublicKey};
use crate::ship::succession::{self, SignedSuccession};

const PRIVATE: &str = "host.key";
const PUBLIC: &str = "host.pub";
/// Directory of the keys after the first.
const FURTHER: &str = "signing";
/// The successions that were seen, as JSON.
const SEEN: &str = "successions.json";

/// A key, and what is here of it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) public: PublicKey,
    /// Nothing where it was deleted, or is another collector's alone.
    pub(super) private: Option<Arc<HostKey>>,
    /// Why it is here and cannot be used.
    why: Option<String>,
}

/// One succession as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) signed: SignedSuccession,
    /// The key before signs the log along until then.
    pub(super) along_until_us: i64,
}

/// Which keys count at one moment.
pub struct InForce {
    steps: Vec<Step>,
    /// So many of them the database has. Fewer than all: nothing may be signed.
    in_database: usize,
    current: Held,
    /// Keys before it, oldest first; one for each step.
    past: Vec<Held>,
}

impl InForce {
    /// The key that signs.
    pub fn public(&self) -> &PublicKey {
        &self.current.public
    }

    /// How many keys were before it.
    pub fn number(&self) -> u64 {
        self.steps.len() as u64
    }

    /// The database lacks successions that were seen.
    pub fn is_put_back(&self) -> bool {
        self.in_database < self.steps.len()
    }

    /// All keys, the one in force last.
    pub fn all(&self) -> Vec<PublicKey> {
        self.past.iter().chain([&self.current]).map(|k| k.public).collect()
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn current(&self) -> &Held {
        &self.current
    }

    pub(super) fn past(&self) -> &[Held] {
        &self.past
    }

    /// What the database lacks, behind the key that it believes to be in force.
    pub(super) fn missing(&self) -> Option<(&PublicKey, &[Step])> {
        let before = self.past.get(self.in_database)?;
        Some((&before.public, self.steps.get(self.in_database..)?))
    }

    /// The key in force, whatever the database knows.
    pub(super) fn here(&self) -> Result<&Arc<HostKey>, CollectorError> {
        self.current.private.as_ref().ok_or_else(|| {
            let fingerprint = self.public().fingerprint_hex();
            CollectorError::Key(match &self.current.why {
                Some(why) => format!("the signing key {fingerprint} is here and unusable: {why}"),
                None => format!(
                    "the signing key is {fingerprint} now and is not here: copy \
                     keys/{FURTHER}/{fingerprint} from the collector that made it; until then \
                     nothing can be signed"
                ),
            })
        })
    }

    /// The key in force, for signing.
    pub(super) fn key(&self) -> Result<&Arc<HostKey>, CollectorError> {
        if self.is_put_back() {
            return Err(CollectorError::Key(format!(
                "the database knows {} changes of the signing key, and there were {}: it was put \
                 back to an earlier state. Nothing is signed until `interceptor collector keys \
                 restore` was run",
                self.in_database,
                self.steps.len()
            )));
        }
        self.here()
    }

    /// Whether this collector can sign.
    pub fn check(&self) -> Result<(), CollectorError> {
        self.key().map(drop)
    }

    /// Signs under a domain, so that no signature can be taken for one of another kind.
    pub fn sign(&self, domain: &[u8], message: &[u8]) -> Result<[u8; 64], CollectorError> {
        Ok(self.key()?.sign(&[domain, message].concat()))
    }

    /// Keys that sign the log along with the one in force.
    pub fn along(&self, now_us: i64) -> Vec<Arc<HostKey>> {
        let here = self.past.iter().zip(&self.steps).filter(|(_, s)| s.along_until_us > now_us);
        here.filter_map(|(held, _)| held.private.clone()).collect()
    }

    /// The successions that lead on from a key; none when it is in force, or was never one of ours.
    pub fn after(&self, fingerprint: &str) -> Vec<SignedSuccession> {
        let at = self.past.iter().position(|k| k.public.fingerprint_hex() == fingerprint);
        let from = at.unwrap_or(self.steps.len());
        self.steps.iter().skip(from).map(|s| s.signed.clone()).collect()
    }

    /// Whether a key is in force, or was.
    pub fn knows(&self, fingerprint: &str) -> bool {
        let mut all = self.past.iter().chain([&self.current]);
        all.any(|k| k.public.fingerprint_hex() == fingerprint)
    }
}

/// The signing keys of a collector.
pub(super) struct SigningKeys {
    /// `keys/` of the state directory.
    dir: PathBuf,
    root: PublicKey,
    known: ArcSwap<InForce>,
    /// As `keys/successions.json` has them.
    seen: Mutex<Vec<SignedSuccession>>,
}

impl SigningKeys {
    /// Makes the first.
    pub(super) fn create(dir: &Path) -> Result<(), CollectorError> {
        HostKey::open(dir)?;
        Ok(())
    }

    /// Reads what is below `keys/`. Until the database is asked, the first is in force.
    pub(super) fn open(dir: &Path) -> Result<Self, CollectorError> {
        let first = held(dir)?.ok_or_else(|| {
            CollectorError::Key(format!(
                "{} is missing: put it back from the backup; a new one would break the log",
                dir.join(PUBLIC).display()
            ))
        })?;
        let (dir, root) = (dir.to_owned(), first.public);
        let seen = Mutex::new(read_seen(&dir)?);
        let known = InForce { steps: Vec::new(), in_database: 0, current: first, past: Vec::new() };
        Ok(Self { dir, root, known: ArcSwap::from_pointee(known), seen })
    }

    /// The first key, by which the collector's database knows it.
    pub(super) fn root(&self) -> &PublicKey {
        &self.root
    }

    /// What was in force when the database was asked last.
    pub(super) fn known(&self) -> Arc<InForce> {
        self.known.load_full()
    }

    fn seen(&self) -> Vec<SignedSuccession> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is in force, inside the caller's transaction.
    pub(super) fn in_force(&self, db: &Connection) -> Result<Arc<InForce>, CollectorError> {
        let (mut steps, seen) = (steps(db)?, self.seen());
        let in_database = steps.len();
        let agree = steps.iter().zip(&seen).all(|(there, seen)| there.signed == *seen);
        for signed in seen.into_iter().skip(in_database) {
            steps.push(Step { signed, along_until_us: 0 });
        }
        let known = self.known();
        let same = known.steps == steps && known.in_database == in_database;
        if same && agree && known.current.private.is_some() {
            return Ok(known);
        }
        let signed: Vec<_> = steps.iter().map(|s| s.signed.clone()).collect();
        let after = succession::follow(&self.root, &signed).unwrap_or_default();
        if !agree || after.len() != steps.len() {
            return Err(CollectorError::Key(
                "the successions of signing keys in the database are not those of the keys in \
                 keys/: they were altered, or keys/ is another collector's"
                    .into(),
            ));
        }
        let mut past = Vec::with_capacity(after.len());
        let mut current = self.read(&self.root);
        for public in &after {
            past.push(current);
            current = self.read(public);
        }
        let now = Arc::new(InForce { steps, in_database, current, past });
        // A snapshot from before a change is right for its own transaction alone.
        if now.steps.len() >= known.steps.len() {
            self.known.store(Arc::clone(&now));
        }
        Ok(now)
    }

    /// Writes down the successions of the database, outside of any transaction that could still be
    /// undone: one that lacks them later was put back.
    pub(super) fn remember(&self, db: &Connection) -> Result<(), CollectorError> {
        let in_force = self.in_force(db)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if in_force.steps.len() <= seen.len() {
            return Ok(());
        }
        let all: Vec<_> = in_force.steps.iter().map(|s| s.signed.clone()).collect();
        let json =
            serde_json::to_vec_pretty(&all).map_err(|e| CollectorError::Key(e.to_string()))?;
        let path = self.dir.join(SEEN);
        let aside = path.with_extension(format!("{}.new", std::process::id()));
        let write = || -> std::io::Result<()> {
            let _ = std::fs::remove_file(&aside);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
            file.write_all(&json)?;
            file.sync_all()?;
            self.give(&aside)?;
            std::fs::rename(&aside, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|e| CollectorError::io("write", &path, e))?;
        *seen = all;
        Ok(())
    }

    fn directory(&self, public: &PublicKey) -> PathBuf {
        match *public == self.root {
            true => self.dir.clone(),
            false => self.dir.join(FURTHER).join(public.fingerprint_hex()),
        }
    }

    /// A key that cannot be read is no reason to do nothing at all.
    fn read(&self, public: &PublicKey) -> Held {
        let none = |why| Held { public: *public, private: None, why };
        match held(&self.directory(public)) {
            Ok(Some(held)) if held.public == *public => held,
            Ok(_) => none(None),
            Err(e) => none(Some(e.to_string())),
        }
    }

    /// What root makes is the collector's: whoever owns `keys/` owns it.
    fn give(&self, path: &Path) -> std::io::Result<()> {
        let owner = std::fs::metadata(&self.dir)?;
        if nix::unistd::geteuid().as_raw() == owner.uid() {
            return Ok(());
        }
        lchown(path, Some(owner.uid()), Some(owner.gid()))
    }

    /// Makes a key that may follow the one in force; on disk when this returns.
    pub(super) fn make(&self) -> Result<PublicKey, CollectorError> {
        let all = self.dir.join(FURTHER);
        let new = all.join("new");
        // What a crash left half made was nobody's.
        if new.exists() {
            std::fs::remove_dir_all(&new).map_err(|e| CollectorError::io("remove", &new, e))?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&new)
            .map_err(|e| CollectorError::io("create", &new, e))?;
        let public = *HostKey::open(&new)?.public();
        let place = self.directory(&public);
        let keep = || -> std::io::Result<()> {
            for path in [&all, &new, &new.join(PRIVATE), &new.join(PUBLIC)] {
                self.give(path)?;
            }
            File::open(&new)?.sync_all()?;
            std::fs::rename(&new, &place)?;
            File::open(&all)?.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        keep().map_err(|e| CollectorError::io("create", &place, e))?;
        Ok(public)
    }

    /// Keys below `keys/signing/` that are here and were never in force.
    pub(super) fn unused(&self, in_force: &InForce) -> Result<Vec<Held>, CollectorError> {
        let all = self.dir.join(FURTHER);
        let fail = |e| CollectorError::io("read", &all, e);
        let entries = match std::fs::read_dir(&all) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(fail(e)),
        };
        let mut unused = Vec::new();
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let Some(found) = held(&entry.path())? else { continue };
            let fingerprint = found.public.fingerprint_hex();
            let named = entry.file_name().to_str() == Some(fingerprint.as_str());
            if named && found.private.is_some() && !in_force.knows(&fingerprint) {
                unused.push(found);
            }
        }
        unused.sort_by_key(|k| k.public.fingerprint_hex());
        Ok(unused)
    }

    /// Deletes the private part of a key. That it was ours stays known.
    pub(super) fn delete(&self, public: &PublicKey) -> Result<bool, CollectorError> {
        let dir = self.directory(public);
        let remove = |name: &str| match std::fs::remove_file(dir.join(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        };
        let delete = || -> std::io::Result<bool> {
            let there = remove(PRIVATE)?;
            // A crash while it was made may have left a second name of it.
            remove("host.key.new")?;
            if dir.exists() {
                File::open(&dir)?.sync_all()?;
            }
            Ok(there)
        };
        delete().map_err(|e| CollectorError::io("delete the private key in", &dir, e))
    }
}

/// The key in a directory, read with all its checks, never made.
fn held(dir: &Path) -> Result<Option<Held>, CollectorError> {
    let there = |name: &str| {
        let path = dir.join(name);
        path.try_exists().map_err(|e| CollectorError::io("read", &path, e))
    };
    if there(PRIVATE)? {
        let key = Arc::new(HostKey::load(dir)?);
        return Ok(Some(Held { public: *key.public(), private: Some(key), why: None }));
    }
    if there(PUBLIC)? {
        let public = PublicKey::load(&dir.join(PUBLIC))?;
        return Ok(Some(Held { public, private: None, why: None }));
    }
    Ok(None)
}

fn read_seen(dir: &Path) -> Result<Vec<SignedSuccession>, CollectorError> {
    let path = dir.join(SEEN);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CollectorError::io("read", &path, e)),
    };
    serde_json::from_slice(&text).map_err(|e| {
        CollectorError::Key(format!("{}: {e}: put it back from the backup", path.display()))
    })
}

/// How the keys followed one another, as the database has it; not believed yet.
fn steps(db: &Connection) -> Result<Vec<Step>, CollectorError> {
    db.prepare_cached(
        "SELECT body, by_old, by_new, along_until_us FROM successions ORDER BY number",
    )
    .and_then(|mut s| {
        s.query_map([], |r| {
            let signature = |bytes: Vec<u8>| STANDARD.encode(bytes);
            Ok(Step {
                signed: SignedSuccession {
                    body: r.get(0)?,
                    by_old: signature(r.get(1)?),
                    by_new: signature(r.get(2)?),
                },
                along_until_us: r.get(3)?,
            })
        })?
        .collect()
    })
    .map_err(CollectorError::db("read which key signs"))
}

/// The same as they travel in proofs.
pub(super) fn chain(db: &Connection) -> Result<Vec<SignedSuccession>, CollectorError> {
    Ok(steps(db)?.into_iter().map(|s| s.signed).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// `sudo interceptor collector keys rotate` beside a service with a user of its own.
    #[test]
    fn what_root_makes_belongs_to_whoever_owns_the_keys() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        SigningKeys::create(dir.path()).unwrap();
        let (nobody, group) = (65_534, 65_534);
        std::os::unix::fs::chown(dir.path(), Some(nobody), Some(group)).unwrap();
        let keys = SigningKeys::open(dir.path()).unwrap();
        let public = keys.make().unwrap();
        let all = dir.path().join(FURTHER);
        let own = all.join(public.fingerprint_hex());
        for path in [&all, &own, &own.join(PRIVATE), &own.join(PUBLIC)] {
            let meta = std::fs::metadata(path).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (nobody, group), "{}", path.display());
            assert_eq!(meta.mode() & 0o022, 0, "{}", path.display());
        }
        assert!(!all.join("new").exists());
    }
}
