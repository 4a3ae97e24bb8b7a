//! Opening the service for an admitted agent: with its own credential, as the admitted role, and
//! far enough to know what names mean there.
//!
//! A role that could do more than the service allows, a parameter that policy denies, or an
//! encoding that cannot be judged closes the connection before the agent has asked anything.

use std::sync::Arc;

use crate::config::{self, Service};
use crate::session::catalogs::Snapshot;
use crate::session::{Admitted, Effect, Session, UpstreamFacts, sql};

use super::parameters::{HARMLESS, settings_of, upstream_parameters};
use super::refusal::Refusal;
use super::startup::Startup;
use super::upstream::{self, Upstream, UpstreamError};
use super::{Server, relay};

/// What the relay starts with.
pub(super) struct Ready {
    pub service: Upstream,
    pub judge: sql::Judge,
    pub snapshot: Snapshot,
    pub settings: relay::Settings,
    pub encoding: &'static encoding_rs::Encoding,
    pub prefix: String,
}

impl Server {
    /// Opens the service as the admitted role, and learns what names mean there.
    pub(super) async fn open(
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
            if ruling.effect != Effect::Allow {
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
}

fn service_facts(
    service: &Service,
    upstream: &Upstream,
    user: &str,
    database: &str,
) -> UpstreamFacts {
    let address = match &service.upstream {
        config::Upstream::Unix { socket } => socket.display().to_string(),
        config::Upstream::Tcp { host, port, .. } => format!("{host}:{port}"),
    };
    UpstreamFacts {
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
