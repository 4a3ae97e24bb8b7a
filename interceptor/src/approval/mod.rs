//! Holds and grants: requests that wait for a human, and the time-bound answers.
//!
//! [`Approvals`] is the one registry of a daemon. A session puts a request on hold and waits
//! on the [`Hold`]; an operator sees it over the control socket and decides. This module must
//! never let a request decide about itself: whoever stands in the token, owns the agent or
//! sits inside a captured session is refused ([`who`]).
//!
//! Everything here lives in memory only. A daemon that restarts has no holds and no grants,
//! so that what was granted before is asked again: it fails closed.

mod authority;
mod grant;
mod hold;
mod impact;
mod who;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::config::Config;

pub use authority::Authority;
pub use grant::{GrantKey, GrantRef, GrantSummary};
pub use impact::{Impact, MAX_PLAN, MAX_TABLES, TableSize};

pub use hold::{Exact, Hold, HoldAsk, HoldDetail, HoldError, HoldSummary};
pub use who::{Accounts, Decider, Peer, Seat, SessionProcess, SystemAccounts};

use grant::Grants;
use hold::Held;
use who::{Deciders, SessionProcesses};

/// Most requests held at a time on one host.
pub const MAX_HOLDS: usize = 1000;
/// Most requests one session may hold at a time.
pub const MAX_HOLDS_PER_SESSION: usize = 4;
/// Largest exact text with its values that is held: an approver must be able to read it.
pub const MAX_HELD_BYTES: usize = 1 << 20;
/// Most bytes of exact texts held at a time on one host.
pub const MAX_HELD_BYTES_TOTAL: usize = 64 << 20;
/// Longest time for which a statement shape can be granted.
pub const MAX_GRANT: Duration = Duration::from_secs(24 * 3600);
/// Longest reason, in characters.
pub const MAX_REASON: usize = 1000;
/// How many decisions are remembered so that a late decider is told what happened.
const REMEMBERED: usize = 256;

/// What an approver decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may run.
    pub approve: bool,
    /// How far an approval reaches; meaningless for a denial.
    pub scope: Scope,
    /// The decider's words; recorded, and told to the agent on a denial.
    pub reason: Option<String>,
}

/// How far an approval reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// That request alone.
    Once,
    /// The same statement shape, agent, service, database and role for this long.
    ShapeFor(Duration),
}

/// How a hold ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A human let it run. The caller judges it anew before it forwards anything.
    Granted {
        /// Who decided.
        by: Decider,
        /// How far it reaches.
        scope: Scope,
        /// The standing grant that came of it, when the scope is a shape.
        grant: Option<GrantRef>,
        /// The decider's words.
        reason: Option<String>,
    },
    /// A human refused it.
    Denied {
        /// Who decided.
        by: Decider,
        /// The decider's words.
        reason: Option<String>,
    },
    /// Nobody decided in time: refused.
    Expired,
    /// Nobody can be asked any more: refused.
    Unanswerable {
        /// Why, for the agent and the record.
        why: String,
    },
}

impl Outcome {
    /// One word for records and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Granted { .. } => "granted",
            Self::Denied { .. } | Self::Unanswerable { .. } => "denied",
            Self::Expired => "expired",
        }
    }
}

/// Why a decision, or a look at a held request, is refused. Shown to the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// Root has no person behind it.
    #[error(
        "root without a login user cannot decide: log in as yourself and use sudo, so that the decision has a name"
    )]
    NoLogin,
    /// A process of one user claims the login of another, which an unprivileged process can do.
    #[error(
        "this process runs as uid {process} on the login of uid {login}: decide from your own session, or through sudo as root"
    )]
    LoginMismatch {
        /// User of the process.
        process: u32,
        /// User of the login.
        login: u32,
    },
    /// The operating system does not know the user.
    #[error("uid {0} is no user of this host")]
    UnknownUser(u32),
    /// The user is no approver.
    #[error(
        "user {user:?} is no approver on this host: add an [[approver]] entry with its issuer and user id"
    )]
    Unmapped {
        /// The user's name.
        user: String,
    },
    /// The user's group approves but nothing says who the user is at the issuer.
    #[error(
        "user {user:?} is in the approver group {group:?} but has no user id: add it to that entry's `uids`"
    )]
    UnmappedInGroup {
        /// The user's name.
        user: String,
        /// The group.
        group: String,
    },
    /// The process descends from a session that the daemon captured.
    #[error("a process inside a captured session cannot decide")]
    InsideSession,
    /// The decider is the principal or an actor of the request.
    #[error("{issuer}/{id} stands in the token of this request: somebody else must decide")]
    OwnRequest {
        /// Issuer's configured name.
        issuer: String,
        /// The shared identity.
        id: String,
    },
    /// The decider owns the agent.
    #[error("{issuer}/{id} owns the agent of this request: somebody else must decide")]
    OwnAgent {
        /// Issuer's configured name.
        issuer: String,
        /// The owner's user id.
        id: String,
    },
    /// The agent runs under the decider's own operating system user.
    #[error(
        "the request comes from a process of your own user {user:?}: somebody else must decide"
    )]
    OwnUser {
        /// The user's name.
        user: String,
    },
    /// One person alone, for an agent that belongs to nobody.
    #[error(
        "the agent of this request has no owner in the registry: two people must decide together"
    )]
    NoOwner,
    /// The host leaves its decisions to the collector.
    #[error("requests of this host are decided at {0}")]
    AtCollector(String),
    /// Nothing waits under that id.
    #[error("no request waits under {id:?}{}: see `interceptor approvals list`", was.as_ref().map(|w| format!(" (it {w})")).unwrap_or_default())]
    NotFound {
        /// The id asked for.
        id: String,
        /// How it ended, when that is still known.
        was: Option<String>,
    },
    /// No grant stands under that id.
    #[error("no grant stands under {0:?}: see `interceptor approvals grants`")]
    NoGrant(String),
    /// The decision itself cannot be used.
    #[error("{0}")]
    Invalid(String),
}

impl DecideError {
    /// Stable code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoLogin => "NO_LOGIN_USER",
            Self::LoginMismatch { .. } => "LOGIN_MISMATCH",
            Self::UnknownUser(_) => "UNKNOWN_USER",
            Self::Unmapped { .. } | Self::UnmappedInGroup { .. } => "NOT_AN_APPROVER",
            Self::InsideSession => "INSIDE_SESSION",
            Self::OwnRequest { .. } | Self::OwnAgent { .. } | Self::OwnUser { .. } => {
                "SELF_APPROVAL"
            }
            Self::NoOwner => "TWO_NEEDED",
            Self::AtCollector(_) => "AT_COLLECTOR",
            Self::NotFound { .. } | Self::NoGrant(_) => "NOT_FOUND",
            Self::Invalid(_) => "INVALID",
        }
    }
}

/// The registry of held requests and standing grants of one daemon.
pub struct Approvals {
    deciders: arc_swap::ArcSwap<Deciders>,
    accounts: Box<dyn Accounts>,
    state: Mutex<State>,
    grants: Grants,
    sessions: SessionProcesses,
    authority: arc_swap::ArcSwap<Authority>,
    /// Bumped at every change of the set of holds; carries nothing about them.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    holds: HashMap<String, Held>,
    /// Sum of the exact bytes in `holds`.
    bytes: usize,
    /// Ids that ended lately, oldest first, and how.
    ended: VecDeque<(String, String)>,
}

impl State {
    /// Takes a hold out; dropping it wipes the exact text.
    fn take(&mut self, id: &str, how: impl Into<String>) -> Option<Held> {
        let held = self.holds.remove(id)?;
        self.bytes = self.bytes.saturating_sub(held.bytes());
        if self.ended.len() >= REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back((id.to_owned(), how.into()));
        Some(held)
    }

    fn missing(&self, id: &str) -> DecideError {
        let was = self.ended.iter().rev().find(|(e, _)| e == id).map(|(_, how)| how.clone());
        DecideError::NotFound { id: id.chars().take(64).collect(), was }
    }
}

impl Approvals {
    /// An empty registry with the configured approvers and this host's accounts.
    pub fn new(config: &Config) -> Arc<Self> {
        Self::with_accounts(config, Box::new(SystemAccounts))
    }

    /// As [`Approvals::new`], with another source of accounts.
    pub fn with_accounts(config: &Config, accounts: Box<dyn Accounts>) -> Arc<Self> {
        Arc::new(Self {
            deciders: arc_swap::ArcSwap::from_pointee(Deciders::new(&config.approvers)),
            accounts,
            state: Mutex::default(),
            grants: Grants::default(),
            sessions: SessionProcesses::default(),
            authority: arc_swap::ArcSwap::from_pointee(Authority::Host),
            changed: watch::channel(0).0,
        })
    }

    /// Takes over changed approvers; holds and grants stay.
    pub fn reconfigure(&self, config: &Config) {
        self.deciders.store(Arc::new(Deciders::new(&config.approvers)));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bump(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Puts a request on hold. Refused when too many wait, or when it is too large to be
    /// shown to a human: the caller then denies the request.
    pub fn hold(self: &Arc<Self>, ask: HoldAsk) -> Result<Hold, HoldError> {
        let (sender, receiver) = oneshot::channel();
        let deadline = ask.deadline;
        let held = Held::new(ask, sender)?;
        let id = {
            let mut state = self.state();
            // Under the lock, so that nothing comes in after everything was refused.
            if let Authority::Nobody { collector } = self.authority.load().as_ref() {
                return Err(HoldError::NobodyToAsk(collector.clone()));
            }
            if state.holds.len() >= MAX_HOLDS {
                return Err(HoldError::HostFull(MAX_HOLDS));
            }
            let session = &held.summary.session;
            let same = state.holds.values().filter(|h| h.summary.session == *session).count();
            if same >= MAX_HOLDS_PER_SESSION {
                return Err(HoldError::SessionFull(MAX_HOLDS_PER_SESSION));
            }
            if state.bytes + held.bytes() > MAX_HELD_BYTES_TOTAL {
                return Err(HoldError::HostFull(state.holds.len()));
            }
            let id = hold::fresh_id("h", |id| {
                state.holds.contains_key(id) || state.ended.iter().any(|(e, _)| e == id)
            });
            state.bytes += held.bytes();
            state.holds.insert(id.clone(), held.named(&id));
            id
        };
        self.bump();
        Ok(Hold::new(self.clone(), id, deadline, receiver))
    }

    /// Adds what a held statement would touch, if it still waits and that is not told yet.
    pub fn describe(&self, id: &str, impact: Impact) {
        {
            let mut state = self.state();
            let size = impact.bytes();
            if state.bytes + size > MAX_HELD_BYTES_TOTAL {
                return;
            }
            let Some(held) = state.holds.get_mut(id) else { return };
            if !held.describe(impact) {
                return;
            }
            state.bytes += size;
        }
        self.bump();
    }

    /// Whether is known what a waiting statement would touch.
    pub fn is_described(&self, id: &str) -> bool {
        self.state().holds.get(id).is_some_and(Held::is_described)
    }

    /// Takes a hold back without a decision. `true` when it still waited.
    fn withdraw(&self, id: &str, how: &str) -> bool {
        let taken = self.state().take(id, how).is_some();
        if taken {
            self.bump();
        }
        taken
    }

    /// All that waits, oldest first, without any exact text.
    pub fn list(&self) -> Vec<HoldSummary> {
        let now = Instant::now();
        let mut all: Vec<_> = self.state().holds.values().map(|h| h.summary_at(now)).collect();
        all.sort_by(|a, b| (a.opened_us, &a.id).cmp(&(b.opened_us, &b.id)));
        all
    }

    /// How a hold ended, where that was lately.
    pub fn ended(&self, id: &str) -> Option<String> {
        self.state().ended.iter().rev().find(|(e, _)| e == id).map(|(_, how)| how.clone())
    }

    /// How many requests wait.
    pub fn held(&self) -> usize {
        self.state().holds.len()
    }

    /// A receiver whose value changes whenever the set of holds does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// One held request. The exact statement and values are in it only when this decider may
    /// decide it; otherwise `withheld` says why not.
    pub fn show(&self, id: &str, decider: &Decider) -> Result<HoldDetail, DecideError> {
        let state = self.state();
        let held = state.holds.get(id).ok_or_else(|| state.missing(id))?;
        let allowed = held.parties.may_decide(decider);
        let allowed = self.authority.load().admits(decider).and(allowed);
        Ok(held.detail(Instant::now(), allowed.err()))
    }

    /// Decides one held request. Exactly one decision wins; later ones are told how it ended.
    pub fn decide(
        &self,
        id: &str,
        decider: &Decider,
        decision: Decision,
    ) -> Result<Outcome, DecideError> {
        decision.check()?;
        let outcome = {
            let mut state = self.state();
            let held = state.holds.get(id).ok_or_else(|| state.missing(id))?;
            if held.deadline <= Instant::now() {
                return Err(DecideError::NotFound { id: id.into(), was: Some("expired".into()) });
            }
            self.authority.load().admits(decider)?;
            match decision.approve {
                true => held.parties.may_approve(decider)?,
                false => held.parties.may_decide(decider)?,
            }
            let outcome = self.outcome(held, decider, decision)?;
            let how = format!("was {} by {}", outcome.as_str(), decider.user);
            if let Some(held) = state.take(id, how) {
                held.answer(outcome.clone());
            }
            outcome
        };
        self.bump();
        tracing::info!(hold = id, outcome = outcome.as_str(), by = %decider, "hold decided");
        Ok(outcome)
    }

    fn outcome(
        &self,
        held: &Held,
        by: &Decider,
        decision: Decision,
    ) -> Result<Outcome, DecideError> {
        let (by, reason) = (by.clone(), decision.reason);
        if !decision.approve {
            return Ok(Outcome::Denied { by, reason });
        }
        let grant = match decision.scope {
            Scope::Once => None,
            Scope::ShapeFor(time) => {
                Some(self.grants.add(held.grant_key(), &by, time, reason.clone())?)
            }
        };
        Ok(Outcome::Granted { by, scope: decision.scope, grant, reason })
    }

    /// The standing grant that covers a request now, if any. `principal_ids` and `owners` are
    /// those of the new request: a grant never serves the person who gave it.
    pub fn standing_grant(
        &self,
        key: &GrantKey,
        principal_ids: &[(String, String)],
        owners: &[(String, String)],
    ) -> Option<GrantRef> {
        self.grants.find(key, principal_ids, owners)
    }

    /// All standing grants, the next to end first.
    pub fn grants(&self) -> Vec<GrantSummary> {
        self.grants.list()
    }

    /// Withdraws a grant: later requests hold again and sessions that run under it are told.
    pub fn revoke(&self, id: &str, by: &str) -> Result<GrantSummary, DecideError> {
        let summary = self.grants.revoke(id)?;
        tracing::info!(grant = id, by, "grant withdrawn");
        Ok(summary)
    }

    /// Who a peer of the control socket is, as an approver. Asks the host's account database
    /// and may block: call it off the runtime's own threads.
    pub fn identify(&self, peer: &Peer) -> Result<Decider, DecideError> {
        if self.sessions.contains(peer.pid) {
            return Err(DecideError::InsideSession);
        }
        self.deciders.load().resolve(peer, &*self.accounts)
    }

    /// Declares a process to be inside a captured session until the guard is dropped; neither
    /// it nor its descendants can decide.
    pub fn session_process(&self, pid: u32) -> SessionProcess {
        self.sessions.register(pid)
    }
}

impl Decision {
    fn check(&self) -> Result<(), DecideError> {
        if self.reason.as_ref().is_some_and(|r| r.chars().count() > MAX_REASON) {
            return Err(DecideError::Invalid(format!(
                "the reason is longer than {MAX_REASON} characters: shorten it"
            )));
        }
        match self.scope {
            Scope::ShapeFor(t) if self.approve && (t.is_zero() || t > MAX_GRANT) => {
                Err(DecideError::Invalid(format!(
                    "a shape can be granted for more than nothing and at most {}",
                    humantime::format_duration(MAX_GRANT)
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Microseconds since the Unix epoch.
fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
