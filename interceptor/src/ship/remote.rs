//! Carrying out what the collector orders: decisions, ends of sessions, withdrawn grants.
//!
//! An order says what people want. Whether they may is judged here once more, by the same rules
//! as for the people of this host: nobody decides a request of their own.

use std::sync::Arc;

use super::people;
use super::wire::{By, Command, Done, Order};
use crate::approval::{Approvals, DecideError, Decision, Outcome, Scope};
use crate::config::Config;
use crate::identity::Identity;
use crate::session::Ending;
use crate::session::live::{Registry, Target};

/// What orders act on.
pub struct Remote {
    /// The configuration of the host.
    pub config: Arc<Config>,
    /// Holds and grants.
    pub approvals: Arc<Approvals>,
    /// Running sessions.
    pub live: Arc<Registry>,
    /// Where ended tokens are barred.
    pub identity: Arc<Identity>,
}

impl Remote {
    /// Does what an accepted order says. Never fails: what cannot be done is told in the answer.
    /// Blocks where something is to last.
    pub fn carry_out(&self, order: &Order) -> Done {
        let done = match &order.order {
            Command::Decide { hold, approve, scope, by, reason } => {
                let decision =
                    Decision { approve: *approve, scope: *scope, reason: reason.clone() };
                self.decide(hold, by, decision)
            }
            Command::Expire { hold } => match self.approvals.expire(hold) {
                true => Ok(Done { result: "expired".into(), ..Done::default() }),
                false => Err("nothing waits under that id".into()),
            },
            Command::Kill { target, by, reason } => Ok(self.kill(target, &who(by, reason))),
            Command::RevokeGrant { grant, by, reason } => self.revoke(grant, &who(by, reason)),
            Command::Conflict { issuer, jti_hash } => {
                let sessions = self.conflict(issuer, jti_hash);
                Ok(Done { result: "ended".into(), sessions: listed(sessions), ..Done::default() })
            }
        };
        done.unwrap_or_else(|error| {
            tracing::warn!(seq = order.seq, error, "an order of the collector is refused");
            Done { result: "refused".into(), error: Some(error), ..Done::default() }
        })
    }

    fn decide(&self, hold: &str, by: &[By], decision: Decision) -> Result<Done, String> {
        let decider = people::decider(by, &self.config.issuers).map_err(|e| e.to_string())?;
        let told = |e: DecideError| format!("{}: {e}", e.code());
        let outcome = self.approvals.decide(hold, &decider, decision).map_err(told)?;
        let mut done = Done { result: outcome.as_str().into(), ..Done::default() };
        if let Outcome::Granted { scope: Scope::ShapeFor(time), grant: Some(grant), .. } = outcome {
            done.grant = Some(grant.id().to_owned());
            done.grant_seconds = Some(time.as_secs());
        }
        Ok(done)
    }

    fn kill(&self, target: &Target, who: &str) -> Done {
        if let Target::Token(token) = target {
            self.identity.bar(token);
        }
        let sessions = self.live.end_those(target, &Ending::Killed(who.into()));
        if let Target::Token(token) = target {
            self.identity.keep_barred(token);
        }
        tracing::info!(%target, by = who, ended = sessions.len(), "sessions ended by the collector");
        Done { result: "ended".into(), sessions: listed(sessions), ..Done::default() }
    }

    fn revoke(&self, grant: &str, who: &str) -> Result<Done, String> {
        match self.approvals.revoke(grant, who) {
            // It ended before, or with the daemon that gave it.
            Ok(_) | Err(DecideError::NoGrant(_)) => {}
            Err(e) => return Err(e.to_string()),
        }
        Ok(Done { result: "revoked".into(), ..Done::default() })
    }

    /// Ends what a token opened that another host has too, and takes it no more. Blocks.
    pub fn conflict(&self, issuer: &str, jti_hash: &str) -> Vec<String> {
        self.identity.bar(jti_hash);
        let ended = self.live.end_token(issuer, jti_hash, &Ending::Conflict);
        self.identity.keep_barred(jti_hash);
        tracing::warn!(issuer, jti_hash, sessions = ?ended, "ALERT: a token is in use at two hosts");
        ended
    }
}

/// As many as an answer may hold; how many there were stands in the log.
fn listed(mut sessions: Vec<String>) -> Vec<String> {
    sessions.truncate(500);
    sessions
}

fn who(by: &By, reason: &Option<String>) -> String {
    let why = reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    let text = format!("{by} at the collector{why}");
    text.chars().filter(|c| !c.is_control()).take(2000).collect()
}
