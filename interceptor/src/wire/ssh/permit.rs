//! From a request's facts to its permission: judged, recorded, held, judged again.
//!
//! Nothing of the request may have reached sshd before this says so.

use std::sync::Arc;

use super::acting::{Acting, Over};
use super::flow::Flow;
use crate::policy::SshFacts;
use crate::session::Waiting;
use crate::session::hold::{GrantRef, Outcome, Scope};
use crate::session::ssh::{Permit, Ruling};

/// A request that may be forwarded: its verdict is in the record.
#[derive(Debug)]
pub struct Permitted {
    /// Its number in the session.
    pub request: u64,
    /// The verdict.
    pub ruling: Ruling,
    /// The standing grant under which it runs; what runs ends when it is withdrawn.
    pub grant: Option<GrantRef>,
}

/// A request that may not.
#[derive(Debug)]
pub enum Denied {
    /// The agent is told why.
    Refused(String),
    /// The agent has gone, or the connection is over.
    Gone,
}

/// What tells the agent that its request waits.
pub trait Tell {
    /// Says it; the words are for a human.
    fn tell(&self, words: String) -> impl Future<Output = ()> + Send;
}

/// Tells nobody, where the protocol has no place for it.
#[derive(Debug)]
pub struct Silent;

impl Tell for Silent {
    async fn tell(&self, _: String) {}
}

const RECORD: &str = "RECORD_UNAVAILABLE: nothing can be recorded, so nothing is let through";

/// Asks policy and, where it says so, a human. `ch` is the channel that it is about, if there is
/// one; `flow` is watched for the agent's leaving.
pub async fn permit(
    acting: &Arc<Acting>,
    ch: impl Into<Option<u32>>,
    via: &'static str,
    facts: &SshFacts,
    flow: &Flow,
    tell: &(impl Tell + Sync),
) -> Result<Permitted, Denied> {
    let ch = ch.into();
    let asked = acting.with(|session| {
        let ruling = session.rule_ssh(facts);
        session.permit_ssh(ch, via, &ruling).map(|recorded| (ruling, recorded))
    });
    let (ruling, recorded) = match asked {
        Some(Ok(asked)) => asked,
        Some(Err(error)) => return Err(record_failed(acting, &error)),
        None => return Err(Denied::Gone),
    };
    let (request, grant) = (recorded.request, recorded.grant);
    match recorded.permit {
        Permit::Granted(commit) => {
            durable(acting, commit).await?;
            Ok(Permitted { request, ruling, grant })
        }
        Permit::Refused(why) => Err(Denied::Refused(why)),
        Permit::Waits(waiting) => {
            let grant = held(acting, *waiting, &ruling, flow, tell).await?;
            let again = acting.with(|session| {
                let again = session.rule_ssh(facts);
                session.permit_after_hold(&again).map(|permit| (again, permit))
            });
            match again {
                Some(Ok((ruling, Permit::Granted(commit)))) => {
                    durable(acting, commit).await?;
                    Ok(Permitted { request, ruling, grant })
                }
                Some(Ok((_, Permit::Refused(why)))) => Err(Denied::Refused(why)),
                Some(Ok((_, Permit::Waits(_)))) | None => Err(Denied::Gone),
                Some(Err(error)) => Err(record_failed(acting, &error)),
            }
        }
    }
}

async fn durable(acting: &Acting, commit: crate::session::log::Commit) -> Result<(), Denied> {
    commit.durable().await.map_err(|error| record_failed(acting, &error))
}

fn record_failed(acting: &Acting, error: &crate::session::log::RecordError) -> Denied {
    tracing::error!(session = %acting.id(), %error, "request refused: it cannot be recorded");
    acting.end("store", RECORD);
    Denied::Refused(RECORD.into())
}

/// Waits for a human, the agent's leaving or the connection's end, whichever comes first.
async fn held(
    acting: &Arc<Acting>,
    mut waiting: Waiting,
    ruling: &Ruling,
    flow: &Flow,
    tell: &(impl Tell + Sync),
) -> Result<Option<GrantRef>, Denied> {
    let words = match &ruling.verdict.message {
        Some(message) => format!("held for approval, id={}: {message}", waiting.id()),
        None => format!("held for approval, id={}", waiting.id()),
    };
    tell.tell(acting.words(&words)).await;
    let outcome = tokio::select! {
        outcome = waiting.decided() => Ok(outcome),
        () = flow.closed() => Err(None),
        over = acting.over() => Err(Some(over)),
    };
    let (word, by, scope, reason) = match &outcome {
        Ok(Outcome::Granted { by, scope, reason, .. }) => {
            let scope = match scope {
                Scope::Once => "once".to_owned(),
                Scope::ShapeFor(time) => format!("shape for {} s", time.as_secs()),
            };
            ("granted", Some(by.to_string()), Some(scope), reason.clone())
        }
        Ok(Outcome::Denied { by, reason }) => {
            ("denied", Some(by.to_string()), None, reason.clone())
        }
        Ok(Outcome::Unanswerable { why }) => ("denied", None, None, Some(why.clone())),
        Ok(Outcome::Expired) => ("expired", None, None, None),
        Err(_) => ("withdrawn", None, None, None),
    };
    let recorded = acting.with(|session| {
        session.hold_ended(&waiting, word, by.as_deref(), scope.as_deref(), reason.as_deref())
    });
    if let Some(Err(error)) = recorded {
        return Err(record_failed(acting, &error));
    }
    match outcome {
        Ok(Outcome::Granted { grant, .. }) => Ok(grant),
        Ok(Outcome::Denied { by, reason }) => {
            let why = reason.map(|r| format!(": {r}")).unwrap_or_default();
            Err(Denied::Refused(format!("denied by {by}{why}")))
        }
        Ok(Outcome::Unanswerable { why }) => {
            Err(Denied::Refused(format!("HOLD_DENIED: refused: {why}")))
        }
        Ok(Outcome::Expired) => Err(Denied::Refused("HOLD_EXPIRED: nobody decided in time".into())),
        Err(Some(Over { words, .. })) => Err(Denied::Refused(words)),
        Err(None) => Err(Denied::Gone),
    }
}
