//! A session's record as the pipeline writes it.
//!
//! Every method that precedes a forwarding returns only after the event would survive what
//! `record.durability` promises. What is written here has been scrubbed by the caller: no token,
//! no credential, no governed value.

use std::borrow::Cow;

use serde_json::{Map, Value};
use ulid::Ulid;

use crate::identity;
use crate::policy::Verdict;
use crate::record::event::Event;
use crate::record::{Body, SessionLog};

pub use crate::record::{Commit, RecordError, event};

use super::rule_names;

/// The record of one running session. Dropping it without [`Log::end`] seals it as interrupted.
#[derive(Debug)]
pub struct Log {
    inner: Option<SessionLog>,
    id: Ulid,
    requests: u64,
    /// Bytes from the agent, for the end.
    pub bytes_in: u64,
    /// Bytes to the agent, for the end.
    pub bytes_out: u64,
    dirty: bool,
    broken: bool,
}

/// What is recorded of an admission.
#[derive(Debug)]
pub struct AdmissionFacts<'a> {
    /// Policy's verdict.
    pub verdict: &'a Verdict,
    /// Role asked for.
    pub role: &'a str,
    /// Database asked for.
    pub database: &'a str,
    /// The client's own name.
    pub client: Option<&'a str>,
    /// Startup parameters.
    pub parameters: &'a [(String, String)],
    /// TLS version and cipher.
    pub tls: Option<&'a str>,
    /// Version of the policies.
    pub policy: &'a str,
    /// Not enforced.
    pub observed: bool,
}

impl Log {
    /// Over a record that was just opened.
    pub fn new(inner: SessionLog, id: Ulid) -> Self {
        Self {
            inner: Some(inner),
            id,
            requests: 0,
            bytes_in: 0,
            bytes_out: 0,
            dirty: false,
            broken: false,
        }
    }

    /// The session's id.
    pub fn id(&self) -> Ulid {
        self.id
    }

    /// Numbers the next request, from 1.
    pub fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    /// Whether something was appended and not yet committed.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether the record failed and the session has to end.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Appends an event; durable only after [`Log::commit`].
    pub fn append<B: Body>(&mut self, body: &B) -> Result<(), RecordError> {
        self.append_with(body, &[])
    }

    /// Appends an event with an attachment.
    pub fn append_with<B: Body>(&mut self, body: &B, data: &[u8]) -> Result<(), RecordError> {
        let Some(inner) = self.inner.as_mut() else { return Ok(()) };
        self.dirty = true;
        let appended = inner.append(&Event::now(body).with_data(data));
        self.broken |= appended.is_err();
        appended.map(|_| ())
    }

    /// Makes everything appended survive what the configuration promises. With
    /// `durability = "disk"` the caller awaits the returned commit before it forwards.
    pub fn commit(&mut self) -> Result<Commit, RecordError> {
        self.dirty = false;
        let Some(inner) = self.inner.as_mut() else { return Ok(Commit::Done) };
        let committed = inner.commit();
        self.broken |= committed.is_err();
        committed
    }

    fn append_now<B: Body>(&mut self, body: &B) -> Result<(), RecordError> {
        self.append(body)?;
        self.commit_early()
    }

    /// Commits what precedes nothing that is forwarded: the relay awaits the durability of the
    /// first request, and with it of everything before.
    fn commit_early(&mut self) -> Result<(), RecordError> {
        match self.commit()? {
            Commit::Done | Commit::Pending(_) => Ok(()),
        }
    }

    /// The token was good.
    pub fn identity(
        &mut self,
        proven: &identity::Proven,
        source_key: String,
        way: identity::Way,
    ) -> Result<(), RecordError> {
        let claims = proven.claims();
        let agent = proven.agent();
        self.append_now(&event::IdentityProven {
            agent: Cow::Borrowed(&agent.name),
            principal: Cow::Borrowed(claims.principal()),
            issuer: Cow::Borrowed(&claims.issuer),
            labels: agent.labels.clone(),
            claims: serde_json::to_value(claims.as_ref()).unwrap_or(Value::Null),
            pinned_new: proven.pinned_new(),
            source_key: Cow::Owned(source_key),
            expires_at: claims.exp,
            proven: true,
            way: Some(Cow::Borrowed(way.as_str())),
        })
    }

    /// Nobody was proven, and the configuration lets the connection go on.
    pub fn unproven(&mut self, why: &'static str) -> Result<(), RecordError> {
        self.append_now(&event::IdentityProven {
            agent: Cow::Borrowed(why),
            principal: Cow::Borrowed("unproven"),
            issuer: Cow::Borrowed(""),
            labels: std::collections::BTreeMap::new(),
            claims: Value::Null,
            pinned_new: false,
            source_key: Cow::Borrowed(""),
            expires_at: 0,
            proven: false,
            way: None,
        })
    }

    /// The token was refused.
    pub fn identity_refused(
        &mut self,
        refusal: &identity::Refusal,
        observed: bool,
    ) -> Result<(), RecordError> {
        let claims =
            refusal.claims.as_ref().and_then(|claims| serde_json::to_value(claims.as_ref()).ok());
        self.append(&event::IdentityRefused {
            code: Cow::Borrowed(refusal.code.as_str()),
            message: Cow::Borrowed(&refusal.message),
            claims,
            alert: refusal.alert,
            observed,
        })?;
        if refusal.alert {
            // What the agent must not learn stands only here.
            let message = match &refusal.detail {
                Some(detail) => Cow::Owned(format!("{}; {detail}", refusal.message)),
                None => Cow::Borrowed(refusal.message.as_str()),
            };
            self.append(&event::Alert { code: Cow::Borrowed(refusal.code.as_str()), message })?;
        }
        self.commit_early()
    }

    /// Policy's word on the connection.
    pub fn admission(&mut self, facts: AdmissionFacts<'_>) -> Result<(), RecordError> {
        let rules = rule_names(facts.verdict);
        let parameters: Map<String, Value> = facts
            .parameters
            .iter()
            .map(|(name, value)| (name.clone(), Value::String(value.clone())))
            .collect();
        self.append_now(&event::Admission {
            verdict: Cow::Borrowed(facts.verdict.effect.as_str()),
            role: Cow::Borrowed(facts.role),
            database: Cow::Borrowed(facts.database),
            client: facts.client.map(Cow::Borrowed),
            parameters,
            rules: Cow::Borrowed(&rules),
            policy: Cow::Borrowed(facts.policy),
            message: facts.verdict.message.as_deref().map(Cow::Borrowed),
            tls: facts.tls.map(Cow::Borrowed),
            observed: facts.observed,
        })
    }

    /// Seals the record with the reason of the end.
    pub fn end(mut self, reason: &str, detail: Option<&str>) {
        let Some(inner) = self.inner.take() else { return };
        let end = event::SessionEnd {
            reason: Cow::Borrowed(reason),
            detail: detail.map(Cow::Borrowed),
            requests: self.requests,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            lost_tail: None,
        };
        if let Err(error) = inner.seal(&end) {
            tracing::error!(session = %self.id, %error, "session could not be sealed; the next start seals it as interrupted");
        }
    }
}
