//! The one pipeline of every protocol: prove, admit, judge, hold, record, forward.
//!
//! A session is a chain of types. [`Session<Arrived>`] knows a connection, [`Session<Proven>`] a
//! token, [`Session<Admitted>`] a verdict that lets it in; only the last can be given a service
//! credential or judge a request, since the others have no such function. Each step records
//! what it decided before it returns. A protocol module turns bytes into requests and answers
//! and calls these steps; it never touches policy or the record itself.

pub mod catalogs;
pub mod gate;
pub mod handler;
pub mod hold;
pub mod live;
pub mod log;
pub mod metrics;
pub mod policies;
mod prove;
pub mod sql;
pub mod ssh;
pub mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use ulid::Ulid;

use crate::config::{self, Mode};
use crate::identity::{self, Source};
use crate::policy::{Ask, Subject, Verdict};
use crate::record::event;

pub use crate::policy::Effect;
pub use gate::Gate;
pub use hold::Waiting;
pub use live::{Ending, Live, Marks, Target};
pub use log::Log;

/// Why a session goes no further. Already recorded; the message is for the agent.
#[derive(Debug, Clone)]
pub struct Refused {
    /// SQLSTATE-like class of the refusal.
    pub kind: RefusedKind,
    /// What the agent reads: code, reason, session id.
    pub message: String,
    /// What the agent can do about it.
    pub hint: Option<String>,
}

/// What kind of refusal it was, for a protocol to find its own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedKind {
    /// Token or proof.
    Identity,
    /// Policy.
    Policy,
    /// The service or its credential.
    Service,
    /// The record cannot be written.
    Record,
    /// Too many connections.
    Busy,
}

/// A connection of which nothing is known but where it came from.
#[derive(Debug)]
pub struct Arrived;

/// A connection whose agent is known, or one that may go without.
#[derive(Debug)]
pub struct Proven {
    who: Who,
}

/// A connection that policy let in.
#[derive(Debug)]
pub struct Admitted {
    who: Who,
    subject: Subject,
}

/// Who acts.
#[derive(Debug, Clone)]
pub enum Who {
    /// A checked token.
    Token(identity::Proven),
    /// Nobody proven: a configured passthrough, or a client without token in observe mode.
    Unproven(&'static str),
}

/// A captured connection on its way. Dropping it seals its record.
#[derive(Debug)]
pub struct Session<S> {
    gate: Arc<Gate>,
    service: Arc<config::Service>,
    source: Source,
    peer: SocketAddr,
    log: Log,
    live: Live,
    state: S,
}

impl<S> Session<S> {
    /// The session's id.
    pub fn id(&self) -> Ulid {
        self.log.id()
    }

    /// The service it came for.
    pub fn service(&self) -> &Arc<config::Service> {
        &self.service
    }

    /// What all sessions share.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Where it came from.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Its record.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Its entry in the list of running sessions.
    pub fn live(&mut self) -> &mut Live {
        &mut self.live
    }

    /// Whether verdicts bind here.
    pub fn enforces(&self) -> bool {
        self.service.mode == Mode::Enforce
    }

    /// Records an order to end that somebody should hear of.
    pub fn note_ending(&mut self, order: &Ending) {
        if *order != Ending::Conflict {
            return;
        }
        self.gate.metrics.alert("TOKEN_CONFLICT");
        tracing::warn!(session = %self.id(), source = %self.peer, code = "TOKEN_CONFLICT", "ALERT");
        let alert = event::Alert {
            code: "TOKEN_CONFLICT".into(),
            message: order.detail().unwrap_or_default().into(),
        };
        if let Err(error) = self.log.append(&alert).and_then(|()| self.log.commit().map(drop)) {
            tracing::error!(session = %self.id(), %error, "record");
        }
    }

    /// Ends the session: seals the record with the reason.
    pub fn end(self, reason: &str, detail: Option<&str>) {
        self.log.end(reason, detail);
    }

    fn map<T>(self, f: impl FnOnce(S) -> T) -> Session<T> {
        let Self { gate, service, source, peer, log, live, state } = self;
        Session { gate, service, source, peer, log, live, state: f(state) }
    }

    fn refuse(
        &mut self,
        kind: RefusedKind,
        code: &str,
        message: &str,
        hint: Option<String>,
    ) -> Refused {
        self.gate.metrics.refused(&self.service.name, code);
        let message = format!("interceptor: {code}: {message} (session {})", self.id());
        Refused { kind, message, hint }
    }

    fn record_failed(&mut self, error: &crate::record::RecordError) -> Refused {
        tracing::error!(session = %self.id(), %error, "session refused: the record cannot be written");
        self.refuse(
            RefusedKind::Record,
            "RECORD_UNAVAILABLE",
            "nothing can be recorded, so nothing is let through",
            None,
        )
    }
}

impl Session<Arrived> {
    /// Lets a connection go on without token where the configuration names its role and
    /// network, and its operating system user on loopback.
    pub fn pass_through(mut self, role: &str) -> Result<Session<Proven>, Self> {
        let address = self.source.addr.to_canonical();
        let named = self.service.passthrough.iter().any(|p| {
            p.role == role
                && p.network.contains(&address)
                && match (&p.os_user, self.source.uid) {
                    (None, _) => true,
                    (Some(name), Some(uid)) if address.is_loopback() => user_is(name, uid),
                    (Some(_), _) => false,
                }
        });
        if !named || self.log.unproven("passthrough").is_err() {
            return Err(self);
        }
        Ok(self.map(|_| Proven { who: Who::Unproven("passthrough") }))
    }

    /// Lets a connection without token go on in observe mode, and only there.
    pub fn observe(mut self) -> Result<Session<Proven>, Self> {
        if self.enforces() || self.log.unproven("observe").is_err() {
            return Err(self);
        }
        Ok(self.map(|_| Proven { who: Who::Unproven("observe") }))
    }
}

fn user_is(name: &str, uid: u32) -> bool {
    matches!(nix::unistd::User::from_name(name), Ok(Some(user)) if user.uid.as_raw() == uid)
}

impl Session<Proven> {
    /// Who was proven.
    pub fn who(&self) -> &Who {
        &self.state.who
    }

    /// Asks policy whether the connection may be opened with this role on this database.
    pub fn admit(
        mut self,
        database: &str,
        role: &str,
        client: Option<&str>,
        parameters: &[(String, String)],
        tls: Option<String>,
    ) -> Result<Session<Admitted>, (Self, Refused)> {
        let (claims, agent) = match &self.state.who {
            Who::Token(proven) => (Some(proven.claims().clone()), Some(proven.agent().clone())),
            Who::Unproven(_) => (None, None),
        };
        let subject = Subject {
            claims,
            agent,
            service: self.service.name.clone(),
            database: database.to_owned(),
            role: role.to_owned(),
            source: self.source.addr.to_canonical(),
            client: client.map(str::to_owned),
        };
        let policies = self.gate.policies();
        let verdict = policies.judge(&subject, &Ask::Connect, jiff::Timestamp::now());
        let bypass = matches!(self.state.who, Who::Unproven("passthrough"));
        let observed = !self.enforces() && verdict.effect != Effect::Allow;
        let recorded = self.log.admission(log::AdmissionFacts {
            verdict: &verdict,
            role,
            database,
            client,
            parameters,
            tls: tls.as_deref(),
            policy: policies.version(),
            observed,
        });
        if let Err(e) = recorded {
            let refused = self.record_failed(&e);
            return Err((self, refused));
        }
        if verdict.effect != Effect::Allow && !observed && !bypass {
            let rule = verdict.deciding_rule();
            let text = match &verdict.message {
                Some(message) => format!("connection denied by rule \"{rule}\": {message}"),
                None => format!("connection denied by rule \"{rule}\""),
            };
            let refused = self.refuse(
                RefusedKind::Policy,
                "CONNECT_DENIED",
                &text,
                Some(
                    "ask for a rule with on = \"connect\" that allows this role and database"
                        .into(),
                ),
            );
            return Err((self, refused));
        }
        self.live.set_target(database, role);
        self.gate.metrics.admitted(&self.service.name);
        Ok(self.map(|p| Admitted { who: p.who, subject }))
    }
}

impl Session<Admitted> {
    /// Who was proven.
    pub fn who(&self) -> &Who {
        &self.state.who
    }

    /// What rules are matched against.
    pub fn subject(&self) -> &Subject {
        &self.state.subject
    }

    /// When the token ends and with it the session.
    pub fn expires_at(&self) -> Option<SystemTime> {
        match &self.state.who {
            Who::Token(proven) => Some(proven.expires_at()),
            Who::Unproven(_) => None,
        }
    }

    /// The service credential of the role that was admitted.
    pub fn credential(&mut self) -> Result<Option<SecretString>, Refused> {
        let role = self.state.subject.role.clone();
        let service = Arc::clone(&self.service);
        let Some(settings) = service.roles.get(&role) else {
            return Err(self.refuse(
                RefusedKind::Service,
                "ROLE_UNKNOWN",
                &format!("there is no credential for role {role:?} of this service"),
                None,
            ));
        };
        let Some(reference) = &settings.password else { return Ok(None) };
        reference.read().map(Some).map_err(|error| {
            tracing::error!(session = %self.id(), %error, "service credential cannot be read");
            self.refuse(
                RefusedKind::Service,
                "CREDENTIAL_UNAVAILABLE",
                "the service credential cannot be read; the daemon's log says why",
                None,
            )
        })
    }

    /// Refuses on the service's behalf: unreachable, or its role is more than it may be.
    pub fn refuse_service(&mut self, code: &str, message: &str) -> Refused {
        self.refuse(RefusedKind::Service, code, message, None)
    }

    /// Records that the service was opened.
    pub fn record_upstream(&mut self, facts: &UpstreamFacts, took: Duration) {
        let opened = event::UpstreamOpen {
            address: facts.address.as_str().into(),
            role: facts.role.as_str().into(),
            database: facts.database.as_str().into(),
            server_pid: facts.server_pid,
            server_version: facts.server_version.as_str().into(),
            auth: "".into(),
            duration_us: micros(took),
        };
        // Durable with the first request's commit at the latest.
        if let Err(error) = self.log.append(&opened) {
            tracing::error!(session = %self.id(), %error, "record");
        }
    }

    /// Whether the passthrough of this role names the operating system user that owns the
    /// client's socket, and the kernel said it is that one.
    pub fn names_os_user(&self, role: &str) -> bool {
        self.service.passthrough.iter().any(|p| {
            p.role == role
                && match (&p.os_user, self.source.uid) {
                    (Some(name), Some(uid)) => user_is(name, uid),
                    _ => false,
                }
        })
    }

    /// The subject with another role, as after SET ROLE.
    pub fn assume_role(&mut self, role: &str) {
        if self.state.subject.role != role {
            role.clone_into(&mut self.state.subject.role);
        }
    }

    /// How long a running statement may outlive the token.
    pub fn expiry_grace(&self) -> Duration {
        self.service.expiry_grace.0
    }
}

/// What is recorded of an opened service.
#[derive(Debug)]
pub struct UpstreamFacts {
    /// Socket or address.
    pub address: String,
    /// Role.
    pub role: String,
    /// Database.
    pub database: String,
    /// Server process.
    pub server_pid: Option<i32>,
    /// Server version.
    pub server_version: String,
}

/// The names of the rules that made a verdict.
pub fn rule_names(verdict: &Verdict) -> Vec<String> {
    verdict.rules.iter().map(|hit| hit.rule.clone()).collect()
}

/// Microseconds of a duration, saturating.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The record's clock, for deadlines.
pub fn deadline_us(after: Duration) -> i64 {
    event::now_us().saturating_add(i64::try_from(after.as_micros()).unwrap_or(i64::MAX))
}
