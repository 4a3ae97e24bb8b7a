//! PostgreSQL: from a captured connection to a relayed, judged and recorded session.
//!
//! The order is fixed by types: bytes are read and capped ([`startup`]), a token proves the
//! agent and policy admits it ([`crate::session`]), the service credential opens the upstream
//! ([`upstream`]), and only then requests are relayed ([`relay`]). Whatever fails before that
//! answers the agent in the protocol's own words and closes.

pub mod cancel;
pub mod codec;
pub mod passthrough;
pub mod relay;
pub mod scrub;
pub mod startup;
pub mod stream;
pub mod tls;
pub mod upstream;

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::capture::Captured;
use crate::config::Service;
use crate::identity::{self, ProvenKey, Way};
use crate::session::{Admitted, Arrived, Gate, Proven, Refused, RefusedKind, Session, sql};

use cancel::{CancelKey, CancelKeys};
use codec::Report;
use relay::io::Io;
use relay::{Relay, Start};
use startup::{Opening, Startup};
use stream::ClientStream;
use upstream::{Upstream, UpstreamError};

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
            return end_with(
                session,
                startup.stream,
                "28000",
                "no user name in the startup packet",
            )
            .await;
        };
        let session = match session.pass_through(&user) {
            Ok(proven) => return passthrough::serve(proven, startup, self.gate.pins()).await,
            Err(session) => session,
        };
        if startup.parameter("replication").is_some_and(|v| !is_off(v)) {
            let words = "REPLICATION_REFUSED: replication streams unmasked data; \
                         [[service.passthrough]] is the way for standbys and backup jobs";
            return end_with(session, startup.stream, "42501", words).await;
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
                    let own = if identity::is_token(&token) { zeroize::Zeroizing::default() } else { token };
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
                let _ = match &refusal {
                    Refusal::Own(refused) => {
                        tell(&mut startup.stream, refused).await;
                        Ok(())
                    }
                    Refusal::Server(body) => {
                        let mut out = BytesMut::new();
                        codec::message(&mut out, b'E', |out| out.extend_from_slice(body));
                        startup.stream.write_all(&out).await
                    }
                };
                let _ = startup.stream.shutdown().await;
                session.end("refused", Some(&refusal.words()));
            }
        }
    }

    /// Opens the service as the admitted role, and learns what names mean there.
    async fn open(
        &self,
        session: &mut Session<Admitted>,
        startup: &Startup,
        user: &str,
        database: &str,
    ) -> Result<Ready, Refusal> {
        let prefix = session.id().to_string();
        let parameters = upstream_parameters(startup, user, database, &prefix)
            .map_err(|why| Refusal::Own(session.refuse_service("PARAMETER_REFUSED", &why)))?;
        let password = match &startup.relayed_password {
            Some(own) => std::str::from_utf8(own).ok().map(|p| p.to_owned().into()),
            None => session.credential().map_err(Refusal::Own)?,
        };
        let began = std::time::Instant::now();
        let opened = async {
            let stream =
                upstream::connect(&self.service, self.gate.pins().map(Arc::as_ref)).await?;
            Upstream::start(stream, &parameters, password.as_ref()).await
        }
        .await;
        let mut service = match opened {
            Ok(service) => service,
            Err(UpstreamError::Refused(body)) => return Err(Refusal::Server(body)),
            Err(error) => {
                tracing::error!(session = %session.id(), service = %self.service.name, %error, "service cannot be opened");
                let refused = session.refuse_service(
                    "SERVICE_UNAVAILABLE",
                    "the service cannot be reached; the daemon's log says why",
                );
                return Err(Refusal::Own(refused));
            }
        };
        if startup.relayed_password.is_some() && !service.checked_password {
            // The server trusts the daemon's connection: whoever came without a token would come
            // in without anything.
            let why = "the server asks this connection for no password, so the client's own \
                       cannot be relayed; give the client a token, or the service a TCP upstream";
            return Err(Refusal::Own(session.refuse_service("NOT_AUTHENTICATED", why)));
        }
        session.record_upstream(
            &service_facts(&self.service, &service, user, database),
            began.elapsed(),
        );
        self.check_role(session, &mut service, user).await?;
        let ready = relay::ready_judge(session, &mut service).await;
        let (judge, snapshot, settings) = ready.map_err(|fault| {
            tracing::error!(session = %session.id(), %fault, "service cannot be judged");
            Refusal::Own(session.refuse_service("SERVICE_UNREADABLE", &fault.to_string()))
        })?;
        let judge = self.check_parameters(session, startup, judge).await?;
        let Some(encoding) = sql::canonical_encoding(&settings.encoding) else {
            let why = format!("client_encoding {} can hide ASCII in its bytes", settings.encoding);
            return Err(Refusal::Own(session.refuse_service("ENCODING_REFUSED", &why)));
        };
        Ok(Ready { service, judge, snapshot, settings, encoding, prefix })
    }

    /// A role that could read or change anything is refused unless the service allows it.
    async fn check_role(
        &self,
        session: &mut Session<Admitted>,
        service: &mut Upstream,
        user: &str,
    ) -> Result<(), Refusal> {
        match relay::excess_privilege(session, service, user).await {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(Refusal::Own(session.refuse_service("ROLE_TOO_POWERFUL", &why))),
            Err(error) => {
                Err(Refusal::Own(session.refuse_service("ROLE_UNKNOWN", &error.to_string())))
            }
        }
    }

    /// Startup parameters are settings: each is judged as the SET that it is.
    async fn check_parameters(
        &self,
        session: &mut Session<Admitted>,
        startup: &Startup,
        mut judge: sql::Judge,
    ) -> Result<sql::Judge, Refusal> {
        for (name, value) in settings_of(startup) {
            if HARMLESS.iter().any(|h| h.eq_ignore_ascii_case(&name)) {
                continue;
            }
            let text =
                format!("SET \"{}\" TO '{}'", name.replace('"', "\"\""), value.replace('\'', "''"));
            let ruling =
                judge.rule(session, &Arc::from(text), &relay::prepared::Held::default()).await;
            if ruling.effect != crate::session::Effect::Allow {
                let why = match &ruling.denial {
                    Some(denial) => format!("startup parameter {name:?}: {}", denial.message),
                    None => {
                        format!("startup parameter {name:?} needs a human and cannot wait for one")
                    }
                };
                return Err(Refusal::Own(session.refuse_service("PARAMETER_REFUSED", &why)));
            }
        }
        Ok(judge)
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

/// What the relay starts with.
struct Ready {
    service: Upstream,
    judge: sql::Judge,
    snapshot: crate::session::catalogs::Snapshot,
    settings: relay::Settings,
    encoding: &'static encoding_rs::Encoding,
    prefix: String,
}

/// Why the service was not opened.
enum Refusal {
    Own(Refused),
    Server(Vec<u8>),
}

impl Refusal {
    fn words(&self) -> String {
        match self {
            Self::Own(refused) => refused.message.clone(),
            Self::Server(body) => codec::report_field(body, b'M').unwrap_or_default(),
        }
    }
}

/// Settings that no policy needs to judge: they change how values look, not what is read.
const HARMLESS: &[&str] = &[
    "application_name",
    "datestyle",
    "timezone",
    "intervalstyle",
    "extra_float_digits",
    "bytea_output",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "geqo",
    "jit",
    "client_min_messages",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "tcp_keepalives_idle",
    "default_transaction_isolation",
    "default_transaction_read_only",
];

/// All settings in a startup packet: its parameters and those inside `options`.
fn settings_of(startup: &Startup) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => settings.extend(options(value).unwrap_or_default()),
            _ => settings.push((name.clone(), value.clone())),
        }
    }
    settings
}

/// The `-c name=value` and `--name=value` of an `options` parameter, split as the server does
/// (spaces, backslash escapes). `None` for anything else.
pub fn options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--") {
            Some(long) => long.to_owned(),
            None if word == "-c" => words.next()?,
            None => word.strip_prefix("-c")?.to_owned(),
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

fn upstream_parameters(
    startup: &Startup,
    user: &str,
    database: &str,
    prefix: &str,
) -> Result<Vec<(String, String)>, String> {
    let mut parameters =
        vec![("user".to_owned(), user.to_owned()), ("database".to_owned(), database.to_owned())];
    let own = startup.parameter("application_name").unwrap_or_default();
    parameters.push(("application_name".into(), relay::application_name(prefix, own)));
    for (name, value) in &startup.parameters {
        if matches!(name.as_str(), "user" | "database" | "application_name" | "replication") {
            continue;
        }
        if name == "options" {
            let inner =
                options(value).ok_or("`options` may hold only -c name=value and --name=value")?;
            // One by one, and never `application_name`, which carries the session's id.
            let inner =
                inner.into_iter().filter(|(n, _)| !n.eq_ignore_ascii_case("application_name"));
            parameters.extend(inner);
        } else {
            parameters.push((name.clone(), value.clone()));
        }
    }
    Ok(parameters)
}

fn service_facts(
    service: &Service,
    upstream: &Upstream,
    user: &str,
    database: &str,
) -> crate::session::UpstreamFacts {
    let address = match &service.upstream {
        crate::config::Upstream::Unix { socket } => socket.display().to_string(),
        crate::config::Upstream::Tcp { host, port, .. } => format!("{host}:{port}"),
    };
    crate::session::UpstreamFacts {
        address,
        role: user.to_owned(),
        database: database.to_owned(),
        server_pid: upstream.key.as_ref().and_then(|key| i32::try_from(key.pid).ok()),
        server_version: upstream
            .parameters
            .iter()
            .find(|(n, _)| n == "server_version")
            .map(|(_, v)| v.clone())
            .unwrap_or_default(),
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

fn is_off(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "off" | "false" | "no" | "0" | "")
}

fn sqlstate(kind: RefusedKind) -> &'static str {
    match kind {
        RefusedKind::Identity => "28P01",
        RefusedKind::Policy => "42501",
        RefusedKind::Service => "08004",
        RefusedKind::Record => "57P03",
        RefusedKind::Busy => "53300",
    }
}

async fn tell(stream: &mut ClientStream, refused: &Refused) {
    let mut report = Report::fatal(sqlstate(refused.kind), refused.message.clone());
    report.hint.clone_from(&refused.hint);
    let _ = startup::write_report(stream, &report).await;
    let _ = stream.shutdown().await;
}

async fn refuse<S>(
    session: Session<S>,
    stream: &mut ClientStream,
    code: &'static str,
    words: &str,
) {
    let message = format!("interceptor: {words} (session {})", session.id());
    let _ = startup::write_report(stream, &Report::fatal(code, message.clone())).await;
    let _ = stream.shutdown().await;
    session.end("refused", Some(&message));
}

async fn end_with<S>(
    session: Session<S>,
    mut stream: ClientStream,
    code: &'static str,
    words: &str,
) {
    refuse(session, &mut stream, code, words).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_the_server_splits_them() {
        let split = options(r"-c search_path=a,b --statement-timeout=5 -cwork_mem=1\ MB").unwrap();
        let expected = [("search_path", "a,b"), ("statement_timeout", "5"), ("work_mem", "1 MB")];
        assert_eq!(split.len(), expected.len());
        for ((n, v), (en, ev)) in split.iter().zip(expected) {
            assert_eq!((n.as_str(), v.as_str()), (en, ev));
        }
        assert!(options("-O").is_none());
        assert!(options("-c").is_none());
    }
}
