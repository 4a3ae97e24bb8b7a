//! The keys of one issuer over time: fetched once for many askers, kept on disk, refreshed before
//! they grow old, and refused when too old.
//!
//! A token names its key but never chooses the issuer, the algorithm or an address. However many
//! unknown key names arrive, the issuer is asked at a bounded rate.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use lru::LruCache;
use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tracing::{info, warn};

use crate::config;

use super::cache_file::CacheFile;
use super::fetch::{Fetcher, Published};
use super::keys::{KeySet, SigningKey};
use super::refusal::{Code, Fault, quote};

/// How often an issuer may be asked. The defaults are for production; tests shorten them.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Least time between two fetches caused by an unknown key name.
    pub unknown_key: Duration,
    /// How long a key name that a fresh set did not have is not looked for again.
    pub missing_key: Duration,
    /// Least time between attempts while there is a usable set.
    pub retry: Duration,
    /// Least time between attempts while there is none.
    pub retry_empty: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            unknown_key: Duration::from_secs(30),
            missing_key: Duration::from_secs(120),
            retry: Duration::from_secs(30),
            retry_empty: Duration::from_secs(2),
        }
    }
}

/// How things stand with one issuer.
#[derive(Debug, Clone, Serialize)]
pub struct IssuerStatus {
    /// Configured name.
    pub name: String,
    /// The exact `iss`.
    pub url: String,
    /// Keys that can check a signature.
    pub keys: usize,
    /// Seconds since the key set was fetched; none when there is none.
    pub age_s: Option<u64>,
    /// The key set is not confirmed by the issuer.
    pub offline: bool,
    /// Why the last attempt to reach the issuer failed.
    pub error: Option<String>,
}

/// Most unknown key names that are remembered.
const MISSING: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A clock that is behind by no more than this is still believed about a file's age.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

/// A key set in use.
struct Current {
    keys: KeySet,
    /// Wall clock of the fetch.
    fetched_at: SystemTime,
    /// Age when it was put into use, by the wall clock of that moment.
    age_then: Duration,
    in_use_since: Instant,
    fresh_for: Duration,
    /// Read from disk and not confirmed by the issuer since.
    from_disk: bool,
}

impl Current {
    /// The larger of wall-clock and monotonic age: a clock that jumps back makes nothing young.
    fn age(&self, now: SystemTime) -> Duration {
        let wall = now.duration_since(self.fetched_at).unwrap_or_default();
        wall.max(self.age_then.saturating_add(self.in_use_since.elapsed()))
    }
}

/// A key that may check a signature.
pub(super) struct Found {
    pub key: Arc<SigningKey>,
    /// Whether the set could not be confirmed at the issuer.
    pub offline: bool,
}

#[derive(Default)]
struct Attempts {
    last: Option<Instant>,
    last_for_unknown: Option<Instant>,
    error: Option<String>,
}

/// One issuer and its keys.
pub(super) struct IssuerKeys {
    pub config: config::Issuer,
    fetcher: Fetcher,
    file: Option<CacheFile>,
    pace: Pace,
    current: ArcSwapOption<Current>,
    attempts: Mutex<Attempts>,
    missing: Mutex<LruCache<String, Instant>>,
    flight: Arc<AsyncMutex<()>>,
}

impl IssuerKeys {
    /// Prepares an issuer and loads its keys from disk; contacts nobody.
    pub fn open(
        config: config::Issuer,
        file: Option<CacheFile>,
        pace: Pace,
    ) -> Result<Arc<Self>, String> {
        let issuer = Self {
            fetcher: Fetcher::new(&config)?,
            config,
            file,
            pace,
            current: ArcSwapOption::empty(),
            attempts: Mutex::default(),
            missing: Mutex::new(LruCache::new(MISSING)),
            flight: Arc::default(),
        };
        issuer.load_from_disk();
        Ok(Arc::new(issuer))
    }

    /// The key that a token names. Asks the issuer when the set is due or does not have the key.
    pub async fn find(self: &Arc<Self>, kid: &str, now: SystemTime) -> Result<Found, Fault> {
        if self.is_due(now) {
            self.refresh_due(now).await;
        }
        let lookup = self.lookup(kid, now);
        if !matches!(&lookup, Err(fault) if fault.code == Code::UnknownKey) {
            return lookup;
        }
        if !self.known_missing(kid) {
            self.refetch_for(kid, now).await;
        }
        match self.lookup(kid, now) {
            Err(fault) if fault.code == Code::UnknownKey && self.is_failing() => {
                Err(self.unavailable(&format!("{}, and no newer keys can be had", fault.message)))
            }
            lookup => lookup,
        }
    }

    /// Keeps the set fresh for as long as the daemon runs.
    pub async fn keep_fresh(self: Arc<Self>) {
        loop {
            let wait = self.until_due(SystemTime::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                continue;
            }
            let guard = self.flight.clone().lock_owned().await;
            let now = SystemTime::now();
            if self.is_due(now) {
                self.fetch(guard, now).await;
            } else {
                drop(guard);
            }
            tokio::time::sleep(self.pause_after_attempt(now)).await;
        }
    }

    /// What there is to say of this issuer, for `status` and `token inspect`.
    pub fn status(&self, now: SystemTime) -> IssuerStatus {
        let current = self.current.load();
        let current = current.as_ref();
        IssuerStatus {
            name: self.config.name.clone(),
            url: self.config.url.clone(),
            keys: current.map_or(0, |c| c.keys.len()),
            age_s: current.map(|c| c.age(now).as_secs()),
            offline: current.is_none_or(|c| self.is_offline(c)),
            error: lock(&self.attempts).error.clone(),
        }
    }

    fn lookup(&self, kid: &str, now: SystemTime) -> Result<Found, Fault> {
        let current = self.current.load();
        let name = quote(&self.config.name);
        let Some(current) = current.as_ref() else {
            return Err(self.unavailable(&format!("the keys of issuer {name} cannot be had")));
        };
        if current.age(now) > self.config.keys_max_stale.0 {
            return Err(self.unavailable(&format!("the keys of issuer {name} are too old")));
        }
        if let Some(key) = current.keys.find(kid) {
            return Ok(Found { key: key.clone(), offline: self.is_offline(current) });
        }
        let why = current.keys.why_unusable(kid).unwrap_or("it is not published");
        Err(Fault::new(
            Code::UnknownKey,
            format!("key {} of issuer {name} cannot be used: {why}", quote(kid)),
        ))
    }

    /// The agent learns that keys are missing; why stands in the log.
    fn unavailable(&self, what: &str) -> Fault {
        Fault::new(
            Code::KeysUnavailable,
            format!("{what}: the host cannot reach the issuer; try again or tell its operator"),
        )
    }

    fn is_offline(&self, current: &Current) -> bool {
        current.from_disk || self.is_failing()
    }

    fn is_failing(&self) -> bool {
        lock(&self.attempts).error.is_some()
    }

    fn is_due(&self, now: SystemTime) -> bool {
        self.current.load().as_ref().is_none_or(|c| c.from_disk || c.age(now) >= c.fresh_for)
    }

    /// Whether a set is there that may still be used.
    fn is_usable(&self, now: SystemTime) -> bool {
        self.current
            .load()
            .as_ref()
            .is_some_and(|c| c.age(now) <= self.config.keys_max_stale.0 && c.keys.len() > 0)
    }

    fn until_due(&self, now: SystemTime) -> Duration {
        match self.current.load().as_ref() {
            Some(c) if !c.from_disk => {
                // A tenth early: nobody has to wait for a refresh that is already under way.
                (c.fresh_for - c.fresh_for / 10).saturating_sub(c.age(now))
            }
            _ => Duration::ZERO,
        }
    }

    fn pause_after_attempt(&self, now: SystemTime) -> Duration {
        let least = Duration::from_secs(1);
        if lock(&self.attempts).error.is_none() {
            return least;
        }
        let pause = if self.is_usable(now) { self.pace.retry } else { self.pace.retry_empty };
        pause.max(least)
    }

    fn attempted_within(&self, span: Duration) -> bool {
        lock(&self.attempts).last.is_some_and(|at| at.elapsed() < span)
    }

    /// Refreshes a set that is due. While the old one is usable only one asker waits.
    async fn refresh_due(self: &Arc<Self>, now: SystemTime) {
        let usable = self.is_usable(now);
        let pause = if usable { self.pace.retry } else { self.pace.retry_empty };
        if self.attempted_within(pause) && self.flight.try_lock().is_ok() {
            return;
        }
        let guard = if usable {
            match self.flight.clone().try_lock_owned() {
                Ok(guard) => guard,
                Err(_) => return,
            }
        } else {
            self.flight.clone().lock_owned().await
        };
        if self.is_due(now) && !self.attempted_within(pause) {
            self.detached_fetch(guard, now).await;
        }
    }

    /// Looks for an unknown key name at the issuer, unless that was done a moment ago.
    async fn refetch_for(self: &Arc<Self>, kid: &str, now: SystemTime) {
        let guard = self.flight.clone().lock_owned().await;
        if self.lookup(kid, now).is_ok() || self.known_missing(kid) {
            return;
        }
        {
            let mut attempts = lock(&self.attempts);
            if attempts.last_for_unknown.is_some_and(|at| at.elapsed() < self.pace.unknown_key) {
                return;
            }
            attempts.last_for_unknown = Some(Instant::now());
        }
        if self.detached_fetch(guard, now).await && self.lookup(kid, now).is_err() {
            lock(&self.missing).put(kid.to_owned(), Instant::now());
        }
    }

    fn known_missing(&self, kid: &str) -> bool {
        lock(&self.missing).get(kid).is_some_and(|at| at.elapsed() < self.pace.missing_key)
    }

    /// Fetches in a task of its own, so that an asker who goes away cannot spoil it for others.
    async fn detached_fetch(self: &Arc<Self>, guard: OwnedMutexGuard<()>, now: SystemTime) -> bool {
        let this = self.clone();
        tokio::spawn(async move { this.fetch(guard, now).await }).await.unwrap_or(false)
    }

    async fn fetch(self: &Arc<Self>, guard: OwnedMutexGuard<()>, now: SystemTime) -> bool {
        lock(&self.attempts).last = Some(Instant::now());
        let outcome = match self.fetcher.fetch().await {
            Ok(published) => self.adopt(published, now).await,
            Err(e) => Err(e.to_string()),
        };
        let ok = outcome.is_ok();
        if let Err(error) = &outcome {
            warn!(issuer = %self.config.name, %error, "the issuer's keys cannot be fetched");
        }
        lock(&self.attempts).error = outcome.err();
        drop(guard);
        ok
    }

    /// Puts a fetched set into use as a whole: keys that are not in it any more are gone.
    async fn adopt(&self, published: Published, now: SystemTime) -> Result<(), String> {
        let keys = KeySet::read(&published.bytes, self.config.algorithm)?;
        if keys.len() == 0 {
            return Err(format!(
                "no key in the set can check {} signatures",
                super::keys::algorithm_name(self.config.algorithm)
            ));
        }
        info!(issuer = %self.config.name, keys = keys.len(), "issuer keys fetched");
        let fresh_for = published.fresh_for;
        self.current.store(Some(Arc::new(Current {
            keys,
            fetched_at: now,
            age_then: Duration::ZERO,
            in_use_since: Instant::now(),
            fresh_for,
            from_disk: false,
        })));
        let Some(file) = self.file.clone() else { return Ok(()) };
        let saved = tokio::task::spawn_blocking(move || {
            file.save(&published.bytes, now, published.fresh_for)
        });
        if let Ok(Err(error)) = saved.await {
            warn!(issuer = %self.config.name, %error, "the issuer's keys cannot be kept on disk");
        }
        Ok(())
    }

    fn load_from_disk(&self) {
        let Some(file) = &self.file else { return };
        let loaded = match file.load() {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return,
            Err(error) => {
                warn!(issuer = %self.config.name, %error, "the kept keys are not used");
                return;
            }
        };
        let now = SystemTime::now();
        let age = match now.duration_since(loaded.fetched_at) {
            Ok(age) => age,
            Err(ahead) if ahead.duration() <= CLOCK_SLACK => Duration::ZERO,
            Err(_) => {
                warn!(issuer = %self.config.name, "the kept keys are from the future: not used");
                return;
            }
        };
        if age > self.config.keys_max_stale.0 {
            info!(issuer = %self.config.name, "the kept keys are too old: not used");
            return;
        }
        match KeySet::read(&loaded.jwks, self.config.algorithm) {
            Ok(keys) => self.current.store(Some(Arc::new(Current {
                keys,
                fetched_at: loaded.fetched_at,
                age_then: age,
                in_use_since: Instant::now(),
                fresh_for: loaded.fresh_for,
                from_disk: true,
            }))),
            Err(error) => warn!(issuer = %self.config.name, %error, "the kept keys are not used"),
        }
    }
}

/// A panic elsewhere must not take the keys with it: what these locks guard stays consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
