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
/// It is renewed when so much of it is over.
const RENEW: Duration = Duration::from_secs(5);

/// The leases that this collector has, and when it asked for them.
pub struct Leases {
    holder: String,
    held: Mutex<HashMap<String, Instant>>,
}

impl Default for Leases {
    fn default() -> Self {
        Self { holder: ulid::Ulid::new().to_string(), held: Mutex::default() }
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

    fn note(&self, name: &str, asked: Option<Instant>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match asked {
            Some(asked) => drop(held.insert(name.to_owned(), asked)),
            None => drop(held.remove(name)),
        }
    }
}

impl Collector {
    /// Whether this collector is to do the work of this name now.
    pub(super) async fn leads(&self, name: &str) -> bool {
        if self.feed.is_none() || self.leases.age(name).is_some_and(|age| age < RENEW) {
            return true;
        }
        let asked = Instant::now();
        let (own, holder) = (name.to_owned(), self.leases.holder.clone());
        let leads = self.central.write(move |db| take(db, &own, &holder)).await;
        let leads = leads.unwrap_or_else(|error| {
            tracing::warn!(%error, name, "the lease cannot be renewed");
            self.leases.age(name).is_some_and(|age| age < LIFE)
        });
        self.leases.note(name, leads.then_some(asked));
        leads
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
