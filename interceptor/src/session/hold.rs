//! Holding a request for a human: from the verdict to the answer.
//!
//! The exact statement and values travel only inside the hold; the record has their scrubbed
//! form and the decider.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::approval::{GrantKey, Hold, HoldAsk};
use crate::config::Agent;
use crate::record::RecordError;
use crate::record::event;

use super::{Admitted, Session, Who, deadline_us, micros};

/// A request that waits, or why it cannot be put before a human.
pub type Parking = Result<Waiting, String>;

pub use crate::approval::{GrantRef, Outcome, Scope};

/// A request that waits.
#[derive(Debug)]
pub struct Waiting {
    hold: Hold,
    /// The request's number.
    pub request: u64,
    since: Instant,
}

/// What a held request is shown with.
#[derive(Debug)]
pub struct HeldRequest {
    /// The request's number.
    pub request: u64,
    /// The exact statement.
    pub statement: Arc<str>,
    /// The exact values; `None` is NULL.
    pub values: Vec<Option<String>>,
    /// The statement's shape, for grants.
    pub shape: String,
    /// Rules that hold it.
    pub rules: Vec<String>,
    /// The rules' message.
    pub message: Option<String>,
    /// How long to wait at most.
    pub timeout: Duration,
}

impl Waiting {
    /// The hold's id, as approvers see it.
    pub fn id(&self) -> &str {
        self.hold.id()
    }

    /// Waits for the decision.
    pub async fn decided(&mut self) -> Outcome {
        self.hold.decided().await
    }
}

fn owners(agent: &Agent) -> Vec<(String, String)> {
    agent.owners.iter().map(|uid| (agent.issuer.clone(), uid.clone())).collect()
}

impl Session<Admitted> {
    /// The standing grant that covers a request of this shape.
    pub fn standing_grant(&self, shape: &str) -> Option<GrantRef> {
        let Who::Token(proven) = self.who() else { return None };
        let agent = proven.agent();
        let key = GrantKey {
            shape: shape.to_owned(),
            agent: agent.name.clone(),
            service: self.service.name.clone(),
            database: self.subject().database.clone(),
            role: self.subject().role.clone(),
        };
        self.gate.approvals.standing_grant(&key, &proven.claims().principal_ids(), &owners(agent))
    }

    /// Records the grant under which a request runs that would have waited.
    pub fn grant_used(&mut self, request: u64, grant: &GrantRef) -> Result<(), RecordError> {
        self.log.append(&event::HoldDecided {
            n: request,
            id: Cow::Borrowed(grant.id()),
            outcome: Cow::Borrowed("granted"),
            by: Some(Cow::Owned(grant.by().to_string())),
            scope: Some(Cow::Borrowed("standing grant")),
            reason: None,
            waited_us: 0,
        })
    }

    /// Puts a request before the approvers. Nothing of it may be forwarded before the answer.
    pub fn hold(&mut self, held: HeldRequest) -> Result<Parking, RecordError> {
        let Who::Token(proven) = self.who().clone() else {
            return Ok(Err("the session has no proven agent".into()));
        };
        let claims = proven.claims();
        let agent = proven.agent();
        let rules = held.rules.clone();
        let deadline = deadline_us(held.timeout);
        let ask = HoldAsk {
            session: self.id(),
            service: self.service.name.clone(),
            database: self.subject().database.clone(),
            role: self.subject().role.clone(),
            agent: agent.name.clone(),
            principal: claims.principal().to_owned(),
            principal_ids: claims.principal_ids(),
            owners: owners(agent),
            peer_uid: self.source.uid,
            claims: serde_json::to_value(claims.as_ref()).unwrap_or_default(),
            statement: held.statement,
            values: held.values,
            shape: held.shape,
            rules: held.rules,
            message: held.message,
            deadline: tokio::time::Instant::now() + held.timeout,
        };
        let hold = match self.gate.approvals.hold(ask) {
            Ok(hold) => hold,
            Err(error) => return Ok(Err(error.to_string())),
        };
        self.log.append(&event::HoldOpen {
            n: held.request,
            id: Cow::Borrowed(hold.id()),
            rules: Cow::Borrowed(&rules),
            deadline_us: deadline,
        })?;
        // The hold itself waits for a human; the request is awaited before it is forwarded.
        let _ = self.log.commit()?;
        Ok(Ok(Waiting { hold, request: held.request, since: Instant::now() }))
    }

    /// Records how a hold ended.
    pub fn hold_ended(
        &mut self,
        waiting: &Waiting,
        outcome: &str,
        by: Option<&str>,
        scope: Option<&str>,
        reason: Option<&str>,
    ) -> Result<(), RecordError> {
        self.log.append(&event::HoldDecided {
            n: waiting.request,
            id: Cow::Borrowed(waiting.hold.id()),
            outcome: Cow::Borrowed(outcome),
            by: by.map(Cow::Borrowed),
            scope: scope.map(Cow::Borrowed),
            reason: reason.map(Cow::Borrowed),
            waited_us: micros(waiting.since.elapsed()),
        })
    }
}
