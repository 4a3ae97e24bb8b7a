//! One held request: what is asked, what an approver sees, and the wait for the answer.
//!
//! The exact statement and values exist here only while the request waits. They are wiped
//! when the hold ends, whatever way it ends, and never reach a log or `Debug`.

use std::fmt;
use std::sync::Arc;

use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;
use ulid::Ulid;
use zeroize::Zeroizing;

use super::impact::Impact;
use super::who::Parties;
use super::{Approvals, DecideError, GrantKey, MAX_HELD_BYTES, Outcome, now_us};

/// What a session asks to be held.
pub struct HoldAsk {
    /// The session.
    pub session: Ulid,
    /// Configured name of the service.
    pub service: String,
    /// Database of the session.
    pub database: String,
    /// Database role of the session.
    pub role: String,
    /// Registered name of the agent.
    pub agent: String,
    /// Principal as shown to people (`sub`).
    pub principal: String,
    /// Issuer and id of the principal and of every actor; none of them may decide.
    pub principal_ids: Vec<(String, String)>,
    /// Issuer and user id of the agent's owners; none of them may decide.
    pub owners: Vec<(String, String)>,
    /// Operating system user that owns the agent's socket, where the kernel tells (loopback);
    /// that user cannot decide.
    pub peer_uid: Option<u32>,
    /// What the token said, for approvers.
    pub claims: serde_json::Value,
    /// The exact statement.
    pub statement: Arc<str>,
    /// The exact values, in order; `None` is NULL.
    pub values: Vec<Option<String>>,
    /// Normalised statement without literals, for grants and lists.
    pub shape: String,
    /// Rules that asked for the hold.
    pub rules: Vec<String>,
    /// The rule's words for people.
    pub message: Option<String>,
    /// When it is refused for want of a decision.
    pub deadline: Instant,
}

impl fmt::Debug for HoldAsk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldAsk")
            .field("session", &self.session)
            .field("service", &self.service)
            .field("agent", &self.agent)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Why a request cannot be held; the caller denies it with this message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// The host holds as many as it may.
    #[error("{0} requests already wait for approval on this host: try again later")]
    HostFull(usize),
    /// The session holds as many as it may.
    #[error("{0} requests of this session already wait for approval")]
    SessionFull(usize),
    /// Nobody could read it.
    #[error(
        "the statement and its values have {0} bytes, more than an approver can be shown ({MAX_HELD_BYTES}): split it"
    )]
    TooLarge(usize),
    /// The people who decide cannot be reached.
    #[error(
        "the collector at {0}, where people decide, cannot be reached, and nobody on this host decides in its place: try again later"
    )]
    NobodyToAsk(String),
}

/// What a list shows of a held request: nothing of its exact text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldSummary {
    /// Short id to decide by.
    pub id: String,
    /// The session.
    pub session: String,
    /// Configured name of the service.
    pub service: String,
    /// Database of the session.
    pub database: String,
    /// Database role of the session.
    pub role: String,
    /// Registered name of the agent.
    pub agent: String,
    /// Principal as shown to people.
    pub principal: String,
    /// Statement without literals.
    pub shape: String,
    /// Rules that asked for the hold.
    pub rules: Vec<String>,
    /// The rule's words for people.
    pub message: Option<String>,
    /// When it was held, microseconds since the Unix epoch.
    pub opened_us: i64,
    /// Milliseconds it has waited.
    pub waited_ms: u64,
    /// Milliseconds until it is refused.
    pub remaining_ms: u64,
}

/// One held request in full.
#[derive(Clone, Serialize, Deserialize)]
pub struct HoldDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: HoldSummary,
    /// The exact statement; absent for somebody who may not decide it.
    pub statement: Option<String>,
    /// The exact values; absent for somebody who may not decide it.
    pub values: Option<Vec<Option<String>>>,
    /// What it would touch; absent while it is looked for, and for somebody who may not decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impact: Option<Impact>,
    /// Why the exact form is absent.
    pub withheld: Option<String>,
}

impl fmt::Debug for HoldDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldDetail").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// A held request with everything that people elsewhere need to decide it. Never to a log, and
/// wiped when it goes.
#[derive(Clone)]
pub struct Exact {
    /// What a list shows.
    pub summary: HoldSummary,
    /// The exact statement.
    pub statement: Zeroizing<String>,
    /// The exact values.
    pub values: Zeroizing<Vec<Option<String>>>,
    /// Issuer's configured name and id of the principal and of every actor.
    pub principal_ids: Vec<(String, String)>,
    /// Issuer's configured name and user id of the agent's owners.
    pub owners: Vec<(String, String)>,
    /// What the token said.
    pub claims: serde_json::Value,
    /// What it would touch, once that is known.
    pub impact: Option<Impact>,
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exact").field("summary", &self.summary).finish_non_exhaustive()
    }
}

/// The registry's side of a hold.
pub(super) struct Held {
    pub(super) summary: HoldSummary,
    pub(super) parties: Parties,
    pub(super) deadline: Instant,
    opened: Instant,
    statement: Zeroizing<String>,
    values: Zeroizing<Vec<Option<String>>>,
    claims: serde_json::Value,
    impact: Option<Impact>,
    answer: oneshot::Sender<Outcome>,
}

impl Held {
    pub(super) fn new(
        mut ask: HoldAsk,
        answer: oneshot::Sender<Outcome>,
    ) -> Result<Self, HoldError> {
        let values = Zeroizing::new(std::mem::take(&mut ask.values));
        let size = ask.statement.len() + values.iter().flatten().map(String::len).sum::<usize>();
        if size > MAX_HELD_BYTES {
            return Err(HoldError::TooLarge(size));
        }
        Ok(Self {
            statement: Zeroizing::new(ask.statement.to_string()),
            values,
            claims: ask.claims,
            impact: None,
            parties: Parties {
                principal_ids: ask.principal_ids,
                owners: ask.owners,
                peer_uid: ask.peer_uid,
            },
            deadline: ask.deadline,
            opened: Instant::now(),
            answer,
            summary: HoldSummary {
                id: String::new(),
                session: ask.session.to_string(),
                service: ask.service,
                database: ask.database,
                role: ask.role,
                agent: ask.agent,
                principal: ask.principal,
                shape: ask.shape,
                rules: ask.rules,
                message: ask.message,
                opened_us: now_us(),
                waited_ms: 0,
                remaining_ms: 0,
            },
        })
    }

    pub(super) fn named(mut self, id: &str) -> Self {
        self.summary.id = id.to_owned();
        self
    }

    pub(super) fn bytes(&self) -> usize {
        self.statement.len()
            + self.values.iter().flatten().map(String::len).sum::<usize>()
            + self.impact.as_ref().map_or(0, Impact::bytes)
    }

    /// Adds what it would touch; once only.
    pub(super) fn describe(&mut self, impact: Impact) -> bool {
        let new = self.impact.is_none();
        self.impact.get_or_insert(impact);
        new
    }

    pub(super) fn is_described(&self) -> bool {
        self.impact.is_some()
    }

    pub(super) fn grant_key(&self) -> GrantKey {
        let s = &self.summary;
        GrantKey {
            shape: s.shape.clone(),
            agent: s.agent.clone(),
            service: s.service.clone(),
            database: s.database.clone(),
            role: s.role.clone(),
        }
    }

    pub(super) fn summary_at(&self, now: Instant) -> HoldSummary {
        let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        HoldSummary {
            waited_ms: ms(now.saturating_duration_since(self.opened)),
            remaining_ms: ms(self.deadline.saturating_duration_since(now)),
            ..self.summary.clone()
        }
    }

    pub(super) fn detail(&self, now: Instant, withheld: Option<DecideError>) -> HoldDetail {
        let open = withheld.is_none();
        HoldDetail {
            summary: self.summary_at(now),
            statement: open.then(|| self.statement.to_string()),
            values: open.then(|| self.values.to_vec()),
            impact: open.then(|| self.impact.clone()).flatten(),
            withheld: withheld.map(|e| e.to_string()),
        }
    }

    pub(super) fn exact(&self, now: Instant) -> Exact {
        Exact {
            summary: self.summary_at(now),
            statement: self.statement.clone(),
            values: self.values.clone(),
            principal_ids: self.parties.principal_ids.clone(),
            owners: self.parties.owners.clone(),
            claims: self.claims.clone(),
            impact: self.impact.clone(),
        }
    }

    /// Hands the answer over; the exact text is wiped as `self` goes.
    pub(super) fn answer(self, outcome: Outcome) {
        // The session may have gone in this instant: then nobody runs anything.
        let _ = self.answer.send(outcome);
    }
}

/// A request that waits. Dropping it withdraws the request.
pub struct Hold {
    approvals: Arc<Approvals>,
    id: String,
    deadline: Instant,
    answer: oneshot::Receiver<Outcome>,
    ended: Option<Outcome>,
}

impl Hold {
    pub(super) fn new(
        approvals: Arc<Approvals>,
        id: String,
        deadline: Instant,
        answer: oneshot::Receiver<Outcome>,
    ) -> Self {
        Self { approvals, id, deadline, answer, ended: None }
    }

    /// The short id that people decide by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for the decision or the deadline. May be dropped and called again; once ended it
    /// keeps giving the same outcome.
    pub async fn decided(&mut self) -> Outcome {
        if let Some(outcome) = &self.ended {
            return outcome.clone();
        }
        let outcome = match tokio::time::timeout_at(self.deadline, &mut self.answer).await {
            Ok(Ok(outcome)) => outcome,
            // The registry let go of it without an answer: nobody granted it.
            Ok(Err(_)) => Outcome::Expired,
            Err(_) if self.approvals.withdraw(&self.id, "expired") => Outcome::Expired,
            // A decision came in the same instant and won.
            Err(_) => self.answer.try_recv().unwrap_or(Outcome::Expired),
        };
        self.ended = Some(outcome.clone());
        outcome
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.approvals.withdraw(&self.id, "was withdrawn");
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A short id that people can type: no letters that look like digits.
pub(super) fn fresh_id(prefix: &str, taken: impl Fn(&str) -> bool) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    loop {
        let mut rng = rand::rng();
        let tail: String =
            (0..7).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
        let id = format!("{prefix}-{tail}");
        if !taken(&id) {
            return id;
        }
    }
}
