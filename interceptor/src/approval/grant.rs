//! Standing grants: the answer "yes, and the same again until then".
//!
//! A grant covers one statement shape of one agent in one place. It ends by time, by
//! withdrawal, or with the daemon; it never outlives any of them and never serves the person
//! who gave it.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{DecideError, Decider, hold::fresh_id, now_us};

/// Most grants that stand at a time.
const MAX_GRANTS: usize = 1000;

/// What a grant covers: all of it must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantKey {
    /// Normalised statement without literals.
    pub shape: String,
    /// Registered name of the agent.
    pub agent: String,
    /// Configured name of the service.
    pub service: String,
    /// Database of the session.
    pub database: String,
    /// Database role of the session.
    pub role: String,
}

/// A grant as people see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GrantSummary {
    /// Short id to withdraw it by.
    pub id: String,
    /// What it covers.
    #[serde(flatten)]
    pub key: GrantKey,
    /// Who gave it.
    pub by: Decider,
    /// The giver's words.
    pub reason: Option<String>,
    /// When it was given, microseconds since the Unix epoch.
    pub given_us: i64,
    /// Milliseconds until it ends.
    pub remaining_ms: u64,
    /// How many requests it has let run.
    pub used: u64,
}

/// A session's hold on a grant: who gave it, and a bell that rings when it is withdrawn.
#[derive(Clone)]
pub struct GrantRef {
    id: String,
    by: Decider,
    until: Instant,
    withdrawn: watch::Receiver<bool>,
}

impl GrantRef {
    /// Short id, for the record.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Who gave it, for the record.
    pub fn by(&self) -> &Decider {
        &self.by
    }

    /// Whether it still holds at this instant.
    pub fn stands(&self) -> bool {
        // A registry that is gone has withdrawn everything.
        self.withdrawn.has_changed().is_ok()
            && !*self.withdrawn.borrow()
            && Instant::now() < self.until
    }

    /// Resolves to true when the grant is withdrawn, and to false when its time has ended.
    pub async fn withdrawn(&mut self) -> bool {
        self.withdrawn.wait_for(|gone| *gone).await.is_ok()
    }
}

impl fmt::Debug for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrantRef({} by {})", self.id, self.by)
    }
}

struct Grant {
    id: String,
    key: GrantKey,
    by: Decider,
    reason: Option<String>,
    given_us: i64,
    until: Instant,
    used: u64,
    withdrawn: watch::Sender<bool>,
}

impl Grant {
    fn summary(&self, now: Instant) -> GrantSummary {
        let left = self.until.saturating_duration_since(now).as_millis();
        GrantSummary {
            id: self.id.clone(),
            key: self.key.clone(),
            by: self.by.clone(),
            reason: self.reason.clone(),
            given_us: self.given_us,
            remaining_ms: u64::try_from(left).unwrap_or(u64::MAX),
            used: self.used,
        }
    }

    fn reference(&self) -> GrantRef {
        GrantRef {
            id: self.id.clone(),
            by: self.by.clone(),
            until: self.until,
            withdrawn: self.withdrawn.subscribe(),
        }
    }
}

/// All standing grants. Few, so a list is searched.
#[derive(Default)]
pub(super) struct Grants(Mutex<Vec<Grant>>);

impl Grants {
    /// The grants that still stand; those whose time is over are forgotten here.
    fn standing(&self) -> MutexGuard<'_, Vec<Grant>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        all.retain(|g| g.until > now);
        all
    }

    pub(super) fn add(
        &self,
        key: GrantKey,
        by: &Decider,
        time: Duration,
        reason: Option<String>,
    ) -> Result<GrantRef, DecideError> {
        let mut all = self.standing();
        if all.len() >= MAX_GRANTS {
            return Err(DecideError::Invalid(format!(
                "{MAX_GRANTS} grants already stand: withdraw some, or approve this request alone"
            )));
        }
        let grant = Grant {
            id: fresh_id("g", |id| all.iter().any(|g| g.id == id)),
            key,
            by: by.clone(),
            reason,
            given_us: now_us(),
            until: Instant::now() + time,
            used: 0,
            withdrawn: watch::channel(false).0,
        };
        let reference = grant.reference();
        all.push(grant);
        Ok(reference)
    }

    pub(super) fn find(
        &self,
        key: &GrantKey,
        principal_ids: &[(String, String)],
        owners: &[(String, String)],
    ) -> Option<GrantRef> {
        let mut all = self.standing();
        let grant = all
            .iter_mut()
            .find(|g| g.key == *key && !g.by.is_any_of(principal_ids) && !g.by.is_any_of(owners))?;
        grant.used += 1;
        Some(grant.reference())
    }

    pub(super) fn list(&self) -> Vec<GrantSummary> {
        let now = Instant::now();
        let mut all: Vec<_> = self.standing().iter().map(|g| g.summary(now)).collect();
        all.sort_by(|a, b| (a.remaining_ms, &a.id).cmp(&(b.remaining_ms, &b.id)));
        all
    }

    pub(super) fn revoke(&self, id: &str) -> Result<GrantSummary, DecideError> {
        let mut all = self.standing();
        let at = all
            .iter()
            .position(|g| g.id == id)
            .ok_or_else(|| DecideError::NoGrant(id.chars().take(64).collect()))?;
        let grant = all.swap_remove(at);
        grant.withdrawn.send_replace(true);
        Ok(grant.summary(Instant::now()))
    }
}
