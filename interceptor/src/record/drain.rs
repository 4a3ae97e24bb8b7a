//! The thread that drains the journal into SQLite and looks after the store.
//!
//! It polls instead of being woken, so that a commit costs no wake-up: what is acknowledged is
//! safe in the journal already. It also signs the checkpoint every ten seconds, measures the
//! store, retries what failed, and lets retention delete.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::RecordError;
use super::consume::{Consumer, Pass};
use super::event::now_us;
use super::journal::lock;
use super::ledger::{Deletion, Entry};
use super::recorder::Shared;
use super::store::Store;

/// Rarer passes store more at a time, which costs SQLite less for each event.
const POLL: Duration = Duration::from_millis(200);
const MEASURE: Duration = Duration::from_secs(1);
const CHECKPOINT: Duration = Duration::from_secs(10);
/// An unchanged host signs less often.
const CHECKPOINT_IDLE: Duration = Duration::from_secs(300);
const RETENTION: Duration = Duration::from_secs(60);
/// SQLite may fall behind by this much before requests are refused.
const MAX_BACKLOG: u64 = 1 << 30;
/// Events that one deletion removes, so that the drain is never away for long.
const DELETE_EVENTS: u64 = 20_000;

/// The drain.
pub(super) struct Drain {
    shared: Arc<Shared>,
    store: Store,
    consumer: Consumer,
    measured: Option<Instant>,
    signed: Instant,
    signed_state: (u64, u64, u64),
    retained: Option<Instant>,
}

impl Drain {
    pub fn new(shared: Arc<Shared>, store: Store, consumer: Consumer) -> Self {
        Self {
            shared,
            store,
            consumer,
            measured: None,
            signed: Instant::now(),
            signed_state: (0, 0, 0),
            retained: None,
        }
    }

    /// Until shutdown.
    pub fn run(mut self) {
        loop {
            let flush = self.wait();
            let result = self.catch_up();
            if let Err(e) = &result {
                tracing::error!(error = %e, "records cannot be stored; requests are refused");
            }
            self.look_after();
            self.answer(flush, result.err().map(|e| e.to_string()));
            if lock(&self.shared.flush).stop {
                break;
            }
        }
        self.shared.seal_orphans();
        let _ = self.shared.checkpoint();
        let _ = self.catch_up();
        let _ = self.consumer.reclaim(&self.store);
        let _ = self.store.sync();
        self.shared.wake.notify_all();
    }

    fn wait(&self) -> u64 {
        let mut flush = lock(&self.shared.flush);
        if flush.done == flush.wanted && !flush.stop {
            flush = self
                .shared
                .wake
                .wait_timeout(flush, POLL)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        flush.wanted
    }

    fn answer(&self, wanted: u64, error: Option<String>) {
        let mut flush = lock(&self.shared.flush);
        if flush.done < wanted {
            flush.done = wanted;
            flush.error = error;
            self.shared.wake.notify_all();
        }
    }

    /// Stores everything that is acknowledged now.
    pub fn catch_up(&mut self) -> Result<(), RecordError> {
        let end = self.shared.journal.end();
        let mut pass = Pass::default();
        let result = self.consumer.run(&mut self.store, Some(end), &mut pass);
        self.shared.stored.fetch_add(pass.events, Ordering::Relaxed);
        self.consumer.set_careful(result.is_err());
        let mut condition = lock(&self.shared.condition);
        condition.store_failing = result.as_ref().err().map(ToString::to_string);
        if let Some(d) = pass.damage.first() {
            condition.damage = Some(format!(
                "the journal was damaged at byte {} of segment {:x} ({}): run `interceptor \
                 sessions verify`, check the disk, restart the daemon",
                d.offset, d.segment, d.why
            ));
        }
        drop(condition);
        for damage in pass.damage {
            let _ = self.shared.enter(now_us(), Entry::Damage(damage), &mut Vec::new());
        }
        result
    }

    fn look_after(&mut self) {
        self.shared.journal.probe();
        self.shared.seal_orphans();
        if self.measured.is_none_or(|t| t.elapsed() >= MEASURE) {
            self.measured = Some(Instant::now());
            self.reclaim_and_measure();
        }
        if self.signed.elapsed() >= CHECKPOINT {
            let state = self.state();
            if state != self.signed_state || self.signed.elapsed() >= CHECKPOINT_IDLE {
                match self.shared.checkpoint() {
                    Ok(()) => {
                        self.signed = Instant::now();
                        self.signed_state = state;
                    }
                    Err(e) => tracing::error!(error = %e, "checkpoint failed"),
                }
            }
        }
        if self.retained.is_none_or(|t| t.elapsed() >= RETENTION) {
            match self.retain() {
                Ok(true) => {}
                Ok(false) => self.retained = Some(Instant::now()),
                Err(e) => {
                    self.retained = Some(Instant::now());
                    tracing::error!(error = %e, "retention failed");
                }
            }
        }
        let refusing = self.shared.reason().is_some();
        self.shared.refusing.store(refusing, Ordering::Relaxed);
    }

    /// Changes whenever there is something new to sign.
    fn state(&self) -> (u64, u64, u64) {
        let book = lock(&self.shared.book);
        (book.next_number, book.ledger.idx, self.shared.appended.load(Ordering::Relaxed))
    }

    fn reclaim_and_measure(&mut self) {
        let reclaimed = self.consumer.reclaim(&self.store);
        let end = self.shared.journal.end();
        let backlog = self.consumer.backlog(end);
        let bytes = self.store.bytes();
        let mut condition = lock(&self.shared.condition);
        condition.backlog = backlog;
        match (reclaimed, bytes) {
            (Ok(()), Ok(bytes)) => condition.bytes = bytes + backlog,
            (Err(e), _) | (_, Err(e)) => condition.store_failing = Some(e.to_string()),
        }
        if backlog > MAX_BACKLOG {
            condition.store_failing =
                Some(format!("SQLite is {backlog} bytes behind the journal: see the disk's load"));
        }
    }

    /// Deletes a portion of what is old enough; whether there may be more.
    fn retain(&mut self) -> Result<bool, RecordError> {
        let age = i64::try_from(self.shared.settings.retain.0.as_micros()).unwrap_or(i64::MAX);
        let before_us = now_us().saturating_sub(age);
        let (numbers, events) = {
            let acknowledged = self.shared.acknowledged.load(Ordering::Relaxed);
            self.store.sealed_before(before_us, DELETE_EVENTS, acknowledged)?
        };
        if numbers.is_empty() {
            return Ok(false);
        }
        let deletion = Deletion { numbers: Deletion::runs(&numbers), events, before_us };
        self.shared.enter(now_us(), Entry::Deletion(deletion), &mut Vec::new())?;
        self.catch_up()?;
        Ok(true)
    }
}
