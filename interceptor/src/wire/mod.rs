//! Protocols: bytes to requests and answers.

pub mod postgres;
pub mod ssh;

use std::sync::Arc;

use crate::capture::Captured;
use crate::config::{Protocol, Service};
use crate::session::Gate;

/// What serves the connections of one service, whatever it speaks.
#[derive(Clone)]
pub enum Server {
    /// PostgreSQL.
    Postgres(postgres::Server),
    /// SSH.
    Ssh(ssh::Server),
}

impl Server {
    /// Over a service of the gate; reads its certificates and keys. `cancels` is shared by all
    /// PostgreSQL services.
    pub fn new(
        gate: &Arc<Gate>,
        service: &Arc<Service>,
        cancels: &Arc<postgres::cancel::CancelKeys>,
    ) -> anyhow::Result<Self> {
        let (gate, service) = (Arc::clone(gate), Arc::clone(service));
        Ok(match service.protocol {
            Protocol::Postgres => {
                Self::Postgres(postgres::Server::new(gate, service, Arc::clone(cancels))?)
            }
            Protocol::Ssh => Self::Ssh(ssh::Server::new(gate, service)?),
        })
    }

    /// Reads anew what can change on the host while the daemon runs: its SSH host keys.
    pub fn reload(&self) {
        match self {
            Self::Postgres(_) => {}
            Self::Ssh(server) => server.reload(),
        }
    }

    /// Serves one captured connection to its end.
    pub async fn serve(self, captured: Captured) {
        match self {
            Self::Postgres(server) => server.serve(captured).await,
            Self::Ssh(server) => server.serve(captured).await,
        }
    }
}
