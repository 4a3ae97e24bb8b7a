//! The keys that sign the log, orders, and policies of the centre: which one is in force, and
//! those that were before it.
//!
//! The first is made with the collector (`keys/host.key`), each further one below `keys/signing/`,
//! in a directory that is called by its fingerprint. Which of them is in force stands in the
//! database, as successions that the keys themselves signed; so whoever can write there can make
//! no other key count. It is looked for in the transaction that signs: collectors that share a
//! database change their key at one moment.
//!
//! What this module must never do: sign with a key that is not in force any more, but for the log
//! while the old key signs along.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

/// A key, and what is here of it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) public: PublicKey,
    /// Nothing where it was deleted, or is another collector's alone.
    pub(super) private: Option<Arc<HostKey>>,
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
    current: Held,
    /// Keys before it, oldest first.
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

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    pub(super) fn current(&self) -> &Held {
        &self.current
    }

    pub(super) fn past(&self) -> &[Held] {
        &self.past
    }

    pub(super) fn key(&self) -> Result<&Arc<HostKey>, CollectorError> {
        self.current.private.as_ref().ok_or_else(|| {
            let fingerprint = self.public().fingerprint_hex();
            CollectorError::Key(format!(
                "the signing key is {fingerprint} now and is not here: copy keys/{FURTHER}/{fingerprint} \
                 from the collector that made it; until then nothing can be signed"
            ))
        })
    }

    /// Whether the key in force is here, so that this collector can sign.
    pub fn check_here(&self) -> Result<(), CollectorError> {
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
        let known = InForce { steps: Vec::new(), current: first, past: Vec::new() };
        Ok(Self { dir, root, known: ArcSwap::from_pointee(known) })
    }

    /// The first key, by which the collector's database knows it.
    pub(super) fn root(&self) -> &PublicKey {
        &self.root
    }

    /// What was in force when the database was asked last.
    pub(super) fn known(&self) -> Arc<InForce> {
        self.known.load_full()
    }

    /// What is in force, inside the caller's transaction.
    pub(super) fn in_force(&self, db: &Connection) -> Result<Arc<InForce>, CollectorError> {
        let steps = steps(db)?;
        let known = self.known();
        if known.steps == steps && known.current.private.is_some() {
            return Ok(known);
        }
        let signed: Vec<_> = steps.iter().map(|s| s.signed.clone()).collect();
        let altered = || {
            CollectorError::Key(
                "the successions of signing keys in the database are not those of the keys in \
                 keys/: they were altered, or keys/ is another collector's"
                    .into(),
            )
        };
        let after = succession::follow(&self.root, &signed).map_err(|_| altered())?;
        if after.len() != steps.len() {
            return Err(altered());
        }
        let mut past = Vec::with_capacity(after.len());
        let mut current = self.read(&self.root)?;
        for public in &after {
            past.push(current);
            current = self.read(public)?;
        }
        let now = Arc::new(InForce { steps, current, past });
        // A snapshot from before a change is right for its own transaction alone.
        if now.steps.len() >= known.steps.len() {
            self.known.store(Arc::clone(&now));
        }
        Ok(now)
    }

    fn directory(&self, public: &PublicKey) -> PathBuf {
        match *public == self.root {
            true => self.dir.clone(),
            false => self.dir.join(FURTHER).join(public.fingerprint_hex()),
        }
    }

    fn read(&self, public: &PublicKey) -> Result<Held, CollectorError> {
        let found = held(&self.directory(public))?;
        Ok(found.filter(|h| h.public == *public).unwrap_or(Held { public: *public, private: None }))
    }

    /// Makes a key that may follow the one in force.
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
        std::fs::rename(&new, &place)
            .and_then(|()| std::fs::File::open(&all)?.sync_all())
            .map_err(|e| CollectorError::io("create", &place, e))?;
        Ok(public)
    }

    /// Keys below `keys/signing/` that are here and were never in force.
    pub(super) fn unused(&self, in_force: &InForce) -> Result<Vec<Held>, CollectorError> {
        let all = self.dir.join(FURTHER);
        let fail = |e| CollectorError::io("read", &all, e);
        let entries = match std::fs::read_dir(&all) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
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
        let path = self.directory(public).join(PRIVATE);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(CollectorError::io("delete", &path, e)),
        }
    }
}

/// The key in a directory. One that is there is read with all its checks, never made.
fn held(dir: &Path) -> Result<Option<Held>, CollectorError> {
    if dir.join(PRIVATE).exists() {
        let key = Arc::new(HostKey::open(dir)?);
        return Ok(Some(Held { public: *key.public(), private: Some(key) }));
    }
    if dir.join(PUBLIC).exists() {
        let public = PublicKey::load(&dir.join(PUBLIC))?;
        return Ok(Some(Held { public, private: None }));
    }
    Ok(None)
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
