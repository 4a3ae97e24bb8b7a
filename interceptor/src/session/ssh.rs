//! Judging SSH requests: from facts to what may happen, and its place in the record.
//!
//! The shape is that of SQL: a ruling is made, recorded, perhaps held, made again when a hold
//! ends, and only then something is forwarded. Facts come from `policy::ssh`; a protocol module
//! fills them in and never judges itself.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::mask::{Detectors, HashKey};
use crate::policy::ssh::SshClass;
use crate::policy::{Ask, Effect, MaskRule, SshFacts, Stream, Verdict};
use crate::record::event;

use super::hold::HeldRequest;
use super::log::{Commit, RecordError};
use super::{Admitted, Session, Waiting, rule_names};

/// What was decided about one request.
#[derive(Debug)]
pub struct Ruling {
    /// What is enforced.
    pub effect: Effect,
    /// With [`Effect::Deny`], the reason, without the session's id.
    pub denial: Option<String>,
    /// What would have been enforced, in observe mode.
    pub observed: Option<Effect>,
    /// Policy's verdict.
    pub verdict: Verdict,
    /// The names of its rules.
    pub rules: Vec<String>,
    /// Version of the policies.
    pub policy: Arc<str>,
    /// The request in words: a command line, an operation with its path.
    pub text: Arc<str>,
    /// Whether what it shows may not be changed, by its kind or because a rule says so.
    pub binary: bool,
    /// Class, for the record.
    pub class: &'static str,
    /// What approvers grant when they grant the shape.
    pub shape: String,
    /// Detectors for what it shows, when rules ask for them.
    pub detectors: Option<Arc<Detectors>>,
}

/// What sshd may be asked to forward for a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forwards {
    /// Ports and sockets, in either direction.
    pub ports: bool,
    /// X11.
    pub x11: bool,
    /// The agent's keys.
    pub agent: bool,
}

/// How a request goes on.
#[derive(Debug)]
pub enum Permit {
    /// It may be forwarded once the commit is durable.
    Granted(Commit),
    /// It may not, for this reason.
    Refused(String),
    /// It waits for a human.
    Waits(Box<Waiting>),
}

/// A request that was judged and recorded.
#[derive(Debug)]
pub struct Recorded {
    /// Its number in the session.
    pub request: u64,
    /// How it goes on.
    pub permit: Permit,
    /// The standing grant under which it runs; when it is withdrawn what runs must end.
    pub grant: Option<super::hold::GrantRef>,
}

impl Session<Admitted> {
    /// What the rules of now say about a request.
    pub fn rule_ssh(&self, facts: &SshFacts) -> Ruling {
        let policies = self.gate.policies();
        let verdict = policies.judge(self.subject(), &Ask::Ssh(facts), jiff::Timestamp::now());
        let denial = (verdict.effect == Effect::Deny).then(|| denied(&verdict));
        let observed = (!self.enforces()).then_some(verdict.effect);
        let masked = observed.is_none() && matches!(verdict.stream, Stream::Masked);
        let masks = if masked { &verdict.masks[..] } else { &[][..] };
        Ruling {
            effect: if observed.is_some() { Effect::Allow } else { verdict.effect },
            denial,
            observed,
            rules: rule_names(&verdict),
            policy: Arc::from(policies.version()),
            text: Arc::clone(&facts.text),
            binary: facts.binary || matches!(verdict.stream, Stream::Unmasked { .. }),
            class: facts.class.as_str(),
            shape: facts.shape(),
            detectors: detectors(masks, &self.gate.hash_key),
            verdict,
        }
    }

    /// What any rule of now could let this session forward.
    pub fn forwards(&self) -> Forwards {
        let (policies, all) = (self.gate.policies(), !self.enforces());
        let may = |class| all || policies.may_let_through(self.subject(), class);
        Forwards {
            ports: may(SshClass::Forward) || may(SshClass::RemoteForward),
            x11: may(SshClass::X11),
            agent: may(SshClass::AgentForward),
        }
    }

    /// Records a ruling and says how its request goes on. `ch` is the channel's number.
    pub fn permit_ssh(
        &mut self,
        ch: Option<u32>,
        via: &'static str,
        ruling: &Ruling,
    ) -> Result<Recorded, RecordError> {
        if let Some(refusal) = self.token_ended() {
            let request = self.record_ssh(ch, via, ruling, Effect::Deny)?;
            return Ok(Recorded { request, permit: Permit::Refused(refusal), grant: None });
        }
        let grant = match ruling.effect {
            Effect::Hold => self.standing_grant(&ruling.shape),
            Effect::Allow | Effect::Deny => None,
        };
        let effect = if grant.is_some() { Effect::Allow } else { ruling.effect };
        let request = self.record_ssh(ch, via, ruling, effect)?;
        if let Some(grant) = &grant {
            self.grant_used(request, grant)?;
        }
        let permit = match effect {
            Effect::Allow => Permit::Granted(self.log.commit()?),
            Effect::Deny => {
                // A refusal forwards nothing that would have to wait for the disk.
                let _ = self.log.commit()?;
                Permit::Refused(ruling.denial.clone().unwrap_or_default())
            }
            Effect::Hold => self.park_ssh(request, ruling)?,
        };
        Ok(Recorded { request, permit, grant })
    }

    fn park_ssh(&mut self, request: u64, ruling: &Ruling) -> Result<Permit, RecordError> {
        let mut timeout = self.service.hold_timeout.0;
        if let Some(shorter) = ruling.verdict.hold.as_ref().and_then(|terms| terms.timeout) {
            timeout = timeout.min(shorter);
        }
        let held = HeldRequest {
            request,
            statement: Arc::clone(&ruling.text),
            values: Vec::new(),
            shape: ruling.shape.clone(),
            rules: ruling.rules.clone(),
            message: ruling.verdict.message.clone(),
            timeout,
        };
        Ok(match self.hold(held)? {
            Ok(waiting) => Permit::Waits(Box::new(waiting)),
            Err(why) => Permit::Refused(format!(
                "HOLD_UNAVAILABLE: the request needs a human and cannot be put before one: {why}"
            )),
        })
    }

    /// Makes the verdict again for a request whose hold was granted. `None`: it may run when the
    /// commit is durable.
    pub fn permit_after_hold(&mut self, again: &Ruling) -> Result<Permit, RecordError> {
        if let Some(refusal) = self.token_ended() {
            return Ok(Permit::Refused(refusal));
        }
        if again.effect == Effect::Deny {
            return Ok(Permit::Refused(again.denial.clone().unwrap_or_default()));
        }
        Ok(Permit::Granted(self.log.commit()?))
    }

    /// Records the refusal of something for a reason that rules do not know.
    pub fn refuse_ssh(&mut self, facts: &SshFacts, why: &str) {
        let mut ruling = self.rule_ssh(facts);
        ruling.effect = Effect::Deny;
        ruling.denial = Some(why.to_owned());
        let recorded = self.record_ssh(None, "ssh", &ruling, Effect::Deny);
        if let Err(error) = recorded.and_then(|_| self.log.commit().map(drop)) {
            tracing::error!(session = %self.id(), %error, "record");
        }
    }

    fn record_ssh(
        &mut self,
        ch: Option<u32>,
        via: &'static str,
        ruling: &Ruling,
        effect: Effect,
    ) -> Result<u64, RecordError> {
        let request = self.log.next_request();
        let hmac = self.gate.hmac.request(ruling.text.as_bytes(), &[]);
        let scrubbed = self.gate.recording.scrub_text(&ruling.text).0;
        let limit = self.gate.config.record.text_bytes as usize;
        let text = cut(&scrubbed, limit);
        let shown = ruling.observed.unwrap_or(effect);
        self.log.append(&event::Request {
            n: request,
            verdict: Cow::Borrowed(shown.as_str()),
            class: Cow::Borrowed(ruling.class),
            ch,
            observed: ruling.observed.is_some_and(|e| e != Effect::Allow),
            via: Cow::Borrowed(via),
            rules: Cow::Borrowed(&ruling.rules),
            policy: Cow::Borrowed(&ruling.policy),
            code: None,
            message: ruling.denial.as_deref().map(Cow::Borrowed),
            text: Cow::Borrowed(text),
            text_bytes: (text.len() < scrubbed.len()).then_some(ruling.text.len() as u64),
            values: Cow::Borrowed(&[]),
            hmac: Cow::Owned(hmac),
            masks: Cow::Borrowed(&[]),
        })?;
        self.gate.metrics.request(&self.service.name, shown.as_str());
        Ok(request)
    }

    /// Why nothing may start any more, once the token has ended.
    fn token_ended(&self) -> Option<String> {
        let ended = self.expires_at().is_some_and(|at| at <= SystemTime::now());
        (ended && self.enforces())
            .then(|| "TOKEN_EXPIRED: the token of this session has expired; connect anew".into())
    }

    /// Time left until what runs has to end with its token, the configured grace included.
    pub fn time_left(&self) -> Option<Duration> {
        if !self.enforces() {
            return None;
        }
        let end = self.expires_at()?.checked_add(self.expiry_grace())?;
        Some(end.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Scrubs what goes into the record beside requests: values of variables, typed lines.
    pub fn scrub(&self, text: &str) -> String {
        self.gate.recording.scrub_text(text).0.into_owned()
    }
}

fn detectors(masks: &[Arc<MaskRule>], key: &Arc<HashKey>) -> Option<Arc<Detectors>> {
    let kinds = MaskRule::detectors(masks);
    (!kinds.is_empty()).then(|| Arc::new(Detectors::new(&kinds, Arc::clone(key))))
}

fn denied(verdict: &Verdict) -> String {
    let rule = verdict.deciding_rule();
    match &verdict.message {
        Some(message) => format!("denied by rule \"{rule}\": {message}"),
        None => format!("denied by rule \"{rule}\""),
    }
}

/// The longest prefix of at most `limit` bytes that ends at a character.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
    &text[..end]
}
