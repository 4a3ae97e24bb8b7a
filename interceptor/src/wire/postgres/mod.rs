//! PostgreSQL: from a captured connection to a relayed, judged and recorded session.
//!
//! The order is fixed by types: bytes are read and capped ([`startup`]), a token proves the
//! agent and policy admits it ([`crate::session`]), the service credential opens the upstream
//! (`open`, [`upstream`]), and only then requests are relayed ([`relay`]). Whatever fails before
//! that answers the agent in the protocol's own words and closes (`refusal`).

pub mod cancel;
pub mod codec;
mod impact;
mod open;
mod parameters;
pub mod passthrough;
mod refusal;
pub mod relay;
pub mod scrub;
pub mod startup;
pub mod stream;
pub mod tls;
pub mod upstream;

pub use parameters::options;

use std::sync::Arc;

use bytes::BufMut;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::capture::Captured;
use crate::config::Service;
use crate::identity::{self, ProvenKey, Way};
use crate::session::{Admitted, Arrived, Gate, Proven, Refused, Session};

use cancel::{CancelKey, CancelKeys};
use codec::Report;
use open::Ready;
use parameters::is_off;
use refusal::{refuse, sqlstate, tell};
use relay::io::Io;
use relay::{Relay, Start};
use startup::{Opening, Startup};

/// What serves the connections of one service.
#[derive(Clone)]
pub struct Server {
    gate: Arc<Gate>,
    service: Arc<Service>,
    tls: Option<TlsAcceptor>,
    keys: Arc<CancelKeys>,
}

impl Server {
    /// Over a service of the gate; reads the service's certificate and key.
    pub fn new(
        gate: Arc<Gate>,
        service: Arc<Service>,
        keys: Arc<CancelKeys>,
    ) -> Result<Self, tls::TlsError> {
        let tls = service.tls.as_ref().map(tls::acceptor).transpose()?;
        Ok(Self { gate, service, tls, keys })
    }

    /// Serves one captured connection to its end.
    pub async fn serve(self, captured: Captured) {
        let session = match self.gate.arrive(&captured, &self.service) {
            Ok(session) => session,
            Err(refused) => return self.turn_away(captured, &refused).await,
        };
        let _ = captured.stream.set_nodelay(true);
        let opening = startup::open(captured.stream, self.tls.as_ref());
        match tokio::time::timeout(self.service.startup_timeout.0, opening).await {
            Ok(Ok(Opening::Startup(startup))) => self.session(session, *startup).await,
            Ok(Ok(Opening::Cancel { pid, secret })) => {
                self.keys.cancel(pid, &secret);
                session.end("cancel", None);
            }
            Ok(Err(error)) => session.end("refused", Some(&error.to_string())),
            Err(_) => session.end("refused", Some("start-up took too long")),
        }
    }

    /// Answers in the protocol, without a session, and closes.
    async fn turn_away(self, captured: Captured, refused: &Refused) {
        let turn = async {
            if let Ok(Opening::Startup(mut startup)) =
                startup::open(captured.stream, self.tls.as_ref()).await
            {
                let report = Report::fatal(sqlstate(refused.kind), refused.message.clone());
                let _ = startup::write_report(&mut startup.stream, &report).await;
                let _ = startup.stream.shutdown().await;
            }
        };
        let _ = tokio::time::timeout(self.service.startup_timeout.0, turn).await;
    }

    async fn session(self, session: Session<Arrived>, mut startup: Startup) {
        let Some(user) = startup.parameter("user").filter(|u| !u.is_empty()).map(str::to_owned)
        else {
            let words = "no user name in the startup packet";
            return refuse(session, &mut startup.stream, "28000", words).await;
        };
        let session = match session.pass_through(&user) {
            Ok(proven) => return passthrough::serve(proven, startup, self.gate.pins()).await,
            Err(session) => session,
        };
        if startup.parameter("replication").is_some_and(|v| !is_off(v)) {
            let words = "REPLICATION_REFUSED: replication streams unmasked data; \
                         [[service.passthrough]] is the way for standbys and backup jobs";
            return refuse(session, &mut startup.stream, "42501", words).await;
        }
        let limit = self.service.startup_timeout.0;
        let proving = self.prove(session, &mut startup);
        let session = match tokio::time::timeout(limit, proving).await {
            Ok(Some(proven)) => proven,
            Ok(None) | Err(_) => return,
        };
        Box::pin(self.proven(session, startup, user)).await;
    }

    /// Asks for the token and proves it. `None`: the agent was told why not.
    async fn prove(
        &self,
        session: Session<Arrived>,
        startup: &mut Startup,
    ) -> Option<Session<Proven>> {
        let tls = startup.stream.tls();
        let local = self.service.plaintext_loopback && startup::is_loopback(session.peer().ip());
        if tls.is_none() && !local && session.enforces() {
            let words = "TLS_REQUIRED: a token is only taken over TLS; connect with sslmode=require \
                         or stricter";
            refuse(session, &mut startup.stream, "28000", words).await;
            return None;
        }
        let token = match startup::ask_password(&mut startup.stream).await {
            Ok(token) => token,
            Err(error) => {
                let words = format!("TOKEN_MISSING: {error}; give the token as the password");
                refuse(session, &mut startup.stream, "28P01", &words).await;
                return None;
            }
        };
        let key = tls.as_ref().and_then(|tls| tls.client_key.as_deref()).map(ProvenKey::Spki);
        match session.prove(&token, key, Way::Password).await {
            Ok(proven) => Some(proven),
            Err((session, refused)) => match session.observe() {
                Ok(unproven) => {
                    // A token that was refused is not a password, and is never forwarded.
                    let own = if identity::is_token(&token) {
                        zeroize::Zeroizing::default()
                    } else {
                        token
                    };
                    startup.relayed_password = Some(own);
                    Some(unproven)
                }
                Err(session) => {
                    tell(&mut startup.stream, &refused).await;
                    session.end("refused", Some(&refused.message));
                    None
                }
            },
        }
    }

    async fn proven(self, session: Session<Proven>, mut startup: Startup, user: String) {
        let database = startup.parameter("database").unwrap_or(&user).to_owned();
        let client = startup.parameter("application_name").map(str::to_owned);
        let tls = startup.stream.tls().map(|tls| format!("{} {}", tls.version, tls.cipher));
        let admitted = session.admit(&database, &user, client.as_deref(), &startup.parameters, tls);
        let mut session = match admitted {
            Ok(session) => session,
            Err((session, refused)) => {
                tell(&mut startup.stream, &refused).await;
                return session.end("refused", Some(&refused.message));
            }
        };
        match self.open(&mut session, &startup, &user, &database).await {
            Ok(ready) => self.relay(session, startup, ready).await,
            Err(refusal) => {
                refusal.tell(&mut startup.stream).await;
                session.end("refused", Some(&refusal.words()));
            }
        }
    }

    async fn relay(self, session: Session<Admitted>, startup: Startup, ready: Ready) {
        let Ready { service, judge, snapshot, settings, encoding, prefix } = ready;
        let (sender, cancels) = mpsc::channel(4);
        // Poolers that give no process id still get a key of their own.
        let pid = service.key.as_ref().map_or_else(rand::random::<u32>, |key| key.pid);
        let key = self.keys.issue(pid, startup.version, sender);
        let mut io = Io::new(startup.stream, service);
        greet(&mut io, &key, &prefix);
        let own_catalog = settings.has_temporary();
        let relay = Relay::new(Start {
            session,
            io,
            judge,
            snapshot,
            path: settings.path,
            encoding,
            prefix,
            own_catalog,
        });
        relay.run(cancels).await;
        drop(key);
    }
}

/// AuthenticationOk, the server's parameters, our key, ReadyForQuery.
fn greet(io: &mut Io, key: &CancelKey, prefix: &str) {
    let out = &mut io.to_client;
    codec::message(out, b'R', |out| out.put_u32(0));
    for (name, value) in &io.service.parameters {
        codec::parameter_status(out, name, &scrub::parameter(name, value, prefix, false));
    }
    codec::message(out, b'K', |out| {
        out.put_u32(key.pid);
        out.extend_from_slice(&key.secret);
    });
    codec::message(out, b'Z', |out| out.put_u8(b'I'));
}
