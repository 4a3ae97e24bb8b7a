//! Catalog snapshots shared by the sessions of one database.
//!
//! A snapshot is trusted for [`MAX_AGE`] and then compared by its fingerprint; a session that
//! changed the catalog itself uses one of its own until its transaction ends.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::policy::sql::Catalog;

/// How long a snapshot is used before its fingerprint is compared.
pub const MAX_AGE: Duration = Duration::from_secs(5);

/// A snapshot with what identifies it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The catalog.
    pub catalog: Arc<Catalog>,
    /// Unique among all snapshots of this process; part of every cache key.
    pub epoch: u64,
    /// What the fingerprint query said when it was taken.
    pub fingerprint: String,
    /// When it was taken or last found unchanged.
    pub checked: Instant,
}

impl Snapshot {
    /// Whether it can be used without asking the server.
    pub fn is_fresh(&self) -> bool {
        self.checked.elapsed() < MAX_AGE
    }
}

/// The newest snapshot per service and database.
#[derive(Debug, Default)]
pub struct Catalogs {
    newest: Mutex<HashMap<(String, String), Snapshot>>,
    epochs: AtomicU64,
}

/// Most databases of which a snapshot is kept.
const MAX_DATABASES: usize = 256;

impl Catalogs {
    /// The newest snapshot, fresh or not.
    pub fn newest(&self, service: &str, database: &str) -> Option<Snapshot> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.get(&(service.to_owned(), database.to_owned())).cloned()
    }

    /// The newest snapshot of every database, with its service.
    pub fn all(&self) -> Vec<((String, String), Snapshot)> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.iter().map(|(place, snapshot)| (place.clone(), snapshot.clone())).collect()
    }

    /// Makes a snapshot that only its session uses.
    pub fn private(&self, catalog: Catalog) -> Snapshot {
        Snapshot {
            catalog: Arc::new(catalog),
            epoch: self.epochs.fetch_add(1, Ordering::Relaxed) + 1,
            fingerprint: String::new(),
            checked: Instant::now(),
        }
    }

    /// Makes a snapshot the newest of its database.
    pub fn publish(
        &self,
        service: &str,
        database: &str,
        catalog: Catalog,
        fingerprint: String,
    ) -> Snapshot {
        let snapshot = Snapshot { fingerprint, ..self.private(catalog) };
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.len() >= MAX_DATABASES {
            newest.clear();
        }
        newest.insert((service.to_owned(), database.to_owned()), snapshot.clone());
        snapshot
    }

    /// Notes that the catalog was changed, so that the next user compares fingerprints.
    pub fn age(&self, service: &str, database: &str) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = newest.get_mut(&(service.to_owned(), database.to_owned())) {
            snapshot.fingerprint.clear();
            snapshot.checked = snapshot.checked.checked_sub(MAX_AGE).unwrap_or(snapshot.checked);
        }
    }

    /// Notes that the newest snapshot was found unchanged.
    pub fn confirm(&self, service: &str, database: &str, epoch: u64) -> Option<Snapshot> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = newest.get_mut(&(service.to_owned(), database.to_owned()))?;
        if snapshot.epoch != epoch {
            return None;
        }
        snapshot.checked = Instant::now();
        Some(snapshot.clone())
    }
}
