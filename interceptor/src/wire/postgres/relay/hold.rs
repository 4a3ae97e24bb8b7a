//! A request that waits for a human: put before one, decided, judged again.
//!
//! The held message stays at the front of the agent's buffer, unforwarded. A human's yes never
//! overrides a denial that the policies of now would give.

use std::sync::Arc;

use crate::session::Effect;
use crate::session::hold::{GrantRef, HeldRequest, Outcome, Scope, Waiting};
use crate::session::sql::{Denial, Ruling};

use super::super::codec::Report;
use super::super::impact;
use super::permit::{Permit, denial_of};
use super::{Fault, Relay};

/// A hold that the agent's next message waits for.
#[derive(Debug)]
pub(super) struct Parked {
    pub waiting: Waiting,
    /// The text that is held.
    pub text: Arc<str>,
}

/// A decision on the message at the front of the agent's buffer, made while it was parked.
#[derive(Debug)]
pub(super) struct Decided {
    pub text: Arc<str>,
    pub request: u64,
    /// `None`: granted.
    pub denial: Option<Denial>,
}

impl Relay {
    /// Puts the request before a human. `Some`: that is not possible, and it is refused.
    pub(super) fn park(
        &mut self,
        ruling: &Ruling,
        text: &Arc<str>,
        request: u64,
        values: Vec<Option<String>>,
    ) -> Result<Option<Permit>, Fault> {
        let service = self.session.service();
        let mut timeout = if self.status == b'I' {
            service.hold_timeout.0
        } else {
            service.hold_timeout_in_transaction.0
        };
        if let Some(shorter) = ruling.verdict.hold.as_ref().and_then(|terms| terms.timeout) {
            timeout = timeout.min(shorter);
        }
        let held = HeldRequest {
            request,
            statement: Arc::clone(text),
            values,
            shape: ruling.shape(),
            rules: ruling.rules.clone(),
            message: ruling.verdict.message.clone(),
            timeout,
        };
        let waiting = match self.session.hold(held)? {
            Ok(waiting) => waiting,
            Err(hint) => {
                let why =
                    "HOLD_UNAVAILABLE: the request needs a human and cannot be put before one";
                return Ok(Some(Permit::Refused(Denial::new("42501", "hold", why).hint(&hint))));
            }
        };
        let words = match &ruling.verdict.message {
            Some(message) => format!("held for approval, id={}: {message}", waiting.id()),
            None => format!("held for approval, id={}", waiting.id()),
        };
        if self.service_pass == 0 {
            Report::notice(self.words(&words)).write(&mut self.io.to_client);
        }
        self.look_at_impact(waiting.id(), ruling);
        self.parked = Some(Parked { waiting, text: Arc::clone(text) });
        Ok(None)
    }

    /// Finds out beside all else what the held request would touch, for those who decide.
    fn look_at_impact(&self, hold: &str, ruling: &Ruling) {
        let subject = self.session.subject();
        let question = impact::Question {
            service: Arc::clone(self.session.service()),
            pins: self.session.gate().pins().cloned(),
            role: subject.role.clone(),
            database: subject.database.clone(),
            path: self.path.clone(),
            application: format!("{}: what a held statement would touch", self.session.id()),
            text: Arc::clone(&ruling.text),
            analysis: Arc::clone(&ruling.analysis),
        };
        let (approvals, hold) = (Arc::clone(&self.session.gate().approvals), hold.to_owned());
        tokio::spawn(async move {
            approvals.describe(&hold, impact::look(&question).await);
        });
    }

    /// A human decided, or nobody did in time.
    pub(super) fn unpark(&mut self, outcome: &Outcome) -> Result<(), Fault> {
        let Some(parked) = self.parked.take() else { return Ok(()) };
        let id = parked.waiting.id().to_owned();
        let denial = match outcome {
            Outcome::Granted { by, scope, reason, grant, .. } => {
                self.grant.clone_from(grant);
                let scope = match scope {
                    Scope::Once => "once".to_owned(),
                    Scope::ShapeFor(time) => format!("shape for {} s", time.as_secs()),
                };
                self.session.hold_ended(
                    &parked.waiting,
                    "granted",
                    Some(&by.to_string()),
                    Some(&scope),
                    reason.as_deref(),
                )?;
                None
            }
            Outcome::Denied { by, reason } => {
                self.session.hold_ended(
                    &parked.waiting,
                    "denied",
                    Some(&by.to_string()),
                    None,
                    reason.as_deref(),
                )?;
                let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
                Some(format!("HOLD_DENIED: hold {id} was denied{why}"))
            }
            Outcome::Expired => {
                self.session.hold_ended(&parked.waiting, "expired", None, None, None)?;
                Some(format!("HOLD_EXPIRED: nobody decided hold {id} in time"))
            }
            Outcome::Unanswerable { why } => {
                self.session.hold_ended(&parked.waiting, "denied", None, None, Some(why))?;
                Some(format!("HOLD_DENIED: hold {id} was refused: {why}"))
            }
        };
        self.keep_decision(parked, denial.map(|message| Denial::new("42501", "hold", message)));
        Ok(())
    }

    /// Keeps what was decided for the message at the front of the buffer.
    pub(super) fn keep_decision(&mut self, parked: Parked, denial: Option<Denial>) {
        let (text, request) = (parked.text, parked.waiting.request);
        self.decided = Some(Decided { text, request, denial });
    }
}

/// The verdict is made again when a hold ends, so that a policy that changed or a token that
/// expired meanwhile still denies.
pub(super) fn after_hold(ruling: &Ruling, decided: Decided) -> Permit {
    if let Some(denial) = decided.denial {
        return Permit::Refused(denial);
    }
    if ruling.effect == Effect::Deny {
        return Permit::Refused(denial_of(ruling));
    }
    Permit::Granted(decided.request)
}

pub(super) async fn decided(parked: &mut Option<Parked>) -> Outcome {
    match parked {
        Some(parked) => parked.waiting.decided().await,
        None => std::future::pending().await,
    }
}

/// Whether a grant was withdrawn, once it no longer stands.
pub(super) async fn withdrawn(grant: &mut Option<GrantRef>) -> bool {
    match grant {
        Some(grant) => grant.withdrawn().await,
        None => std::future::pending().await,
    }
}
