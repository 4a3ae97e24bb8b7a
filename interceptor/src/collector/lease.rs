//! What only one collector of a shared database does at a time: a forward, a sweep of retention,
//! the delivery of webhooks. Whoever has the lease goes on with it; when its collector is gone,
//! another has it after a while. Where the database is not shared there is nobody else.
//!
//! A lease keeps work from being done twice, as a rule; what is done under it must bear that it is,
//! since a collector may stand still for longer than its lease.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Collector;
use super::db::{Connection, params};
use super::error::CollectorError;

/// How long a lease lasts without being renewed.
const LIFE: Duration = Duration::from_secs(15);
/// One that another has is asked for again after this time.
const AGAIN: Duration = Duration::from_secs(2);
/// It is renewed when so much of it is over.
const RENEW: Duration = Duration::from_secs(5);

/// The leases that this collector has, and when it asked for them.
pub struct Leases {
    holder: String,
    held: Mutex<HashMap<String, Instant>>,
    /// Those that another has, and when that was said.
    refused: Mutex<HashMap<String, Instant>>,
}

impl Default for Leases {
    fn default() -> Self {
        Self {
            holder: ulid::Ulid::new().to_string(),
            held: Mutex::default(),
            refused: Mutex::default(),
        }
    }
}

impl Leases {
    /// Names this process among the collectors of its database.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    fn age(&self, name: &str) -> Option<Duration> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(name).map(Instant::elapsed)
    }

    /// Whether another had it a moment ago.
    fn is_refused(&self, name: &str) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get(name).is_some_and(|asked| asked.elapsed() < AGAIN)
    }

    fn note(&self, name: &str, asked: Instant, leads: bool) {
        let (mut there, mut gone) = (&self.held, &self.refused);
        if !leads {
            std::mem::swap(&mut there, &mut gone);
        }
        let lock = |map: &Mutex<HashMap<String, Instant>>, asked: Option<Instant>| {
            let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
            match asked {
                Some(asked) => drop(map.insert(name.to_owned(), asked)),
                None => drop(map.remove(name)),
            }
        };
        lock(there, Some(asked));
        lock(gone, None);
    }
}

impl Collector {
    /// Whether this collector is to do the work of this name now.
    pub(super) async fn leads(&self, name: &str) -> bool {
        if self.feed.is_none() || self.leases.age(name).is_some_and(|age| age < RENEW) {
            return true;
        }
        if self.leases.is_refused(name) {
            return false;
        }
        let asked = Instant::now();
        let (own, holder) = (name.to_owned(), self.leases.holder.clone());
        match self.central.write(move |db| take(db, &own, &holder)).await {
            Ok(leads) => {
                self.leases.note(name, asked, leads);
                leads
            }
            Err(error) => {
                tracing::warn!(%error, name, "the lease cannot be renewed");
                self.leases.age(name).is_some_and(|age| age < LIFE)
            }
        }
    }
}

/// By the database's clock, so that those of the collectors may differ.
fn take(db: &Connection, name: &str, holder: &str) -> Result<bool, CollectorError> {
    let life = i64::try_from(LIFE.as_micros()).unwrap_or(i64::MAX);
    db.prepare_cached(
        "INSERT INTO leases AS l (name, holder, until_us) \
         VALUES (?1, ?2, CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT) + ?3) \
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_us = excluded.until_us \
         WHERE l.holder = excluded.holder OR l.until_us + ?3 < excluded.until_us",
    )
    .and_then(|mut s| s.execute(params![name, holder, life]))
    .map(|taken| taken == 1)
    .map_err(CollectorError::db("take a lease"))
}
