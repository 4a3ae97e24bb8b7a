//! SSH: from a captured connection to judged, recorded and masked channels.
//!
//! ```text
//!  agent ─▶ connection (user authentication, tokens, what may be opened)
//!              └▶ acting (the admitted session, one connection to sshd)
//!                    ├▶ channel: exec, shell, subsystem      ─▶ upstream
//!                    ├▶ forward: to an address or a socket    ─▶ upstream
//!                    └▶ reverse: what sshd opens back to the agent
//! ```
//!
//! The protocol itself is `russh`'s on both legs. Before its token a connection can open one
//! session channel and set variables on it, nothing else; nothing of a request reaches sshd
//! before its verdict is in the record.

mod acting;
mod channel;
mod connection;
mod files;
mod flow;
mod forward;
mod machine;
mod permit;
mod relay;
mod reverse;
pub mod scp;
mod settings;
pub mod sftp;
mod startups;
mod tape;
#[cfg(test)]
mod testing;
mod typed;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use russh::keys::PublicKey;

use crate::capture::Captured;
use crate::config::Service;
use crate::policy::ssh::ShellAnalyzer;
use crate::session::Gate;
use crate::sshd::{self, CaError, HostKeyError, UserCa};

use connection::Connection;
use startups::Startups;

/// Threads that read commands.
const READERS: usize = 2;

/// Why an SSH service cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The host's keys cannot be read.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
    /// The authority for session certificates cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// The host's keys, as they were last read.
struct Keys {
    /// What is spoken with agents, who are shown them.
    settings: Arc<russh::server::Config>,
    /// Those that sshd must show to us.
    public: Vec<PublicKey>,
}

impl Keys {
    fn read(service: &Service) -> Result<Self, HostKeyError> {
        let keys = sshd::host_keys(&service.ssh.host_keys)?;
        Ok(Self {
            settings: Arc::new(settings::server(&keys, &service.ssh)),
            public: keys.iter().map(|k| k.key.public_key().clone()).collect(),
        })
    }
}

/// What all connections of one service share.
pub struct Parts {
    gate: Arc<Gate>,
    service: Arc<Service>,
    keys: ArcSwap<Keys>,
    ca: UserCa,
    reader: ShellAnalyzer,
    serial: AtomicU64,
    startups: Startups,
}

impl Parts {
    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }
}

/// What serves the connections of one service.
#[derive(Clone)]
pub struct Server {
    parts: Arc<Parts>,
}

impl Server {
    /// Over a service of the gate; reads the host's keys and the authority's.
    pub fn new(gate: Arc<Gate>, service: Arc<Service>) -> Result<Self, SshError> {
        let keys = Keys::read(&service)?;
        let ca = UserCa::open(&UserCa::path(&gate.config.paths, &service.ssh))?;
        let parts = Parts {
            keys: ArcSwap::from_pointee(keys),
            ca,
            reader: ShellAnalyzer::new(READERS),
            serial: AtomicU64::new(acting::first_serial()),
            startups: Startups::default(),
            gate,
            service,
        };
        Ok(Self { parts: Arc::new(parts) })
    }

    /// Reads the host's keys anew, for connections that come from now on. All or nothing: when one
    /// cannot be read, the old ones stay.
    pub fn reload(&self) {
        let service = &self.parts.service;
        match Keys::read(service) {
            Ok(keys) => {
                tracing::info!(service = %service.name, keys = keys.public.len(), "host keys read");
                self.parts.keys.store(Arc::new(keys));
            }
            Err(error) => tracing::error!(
                service = %service.name, %error, "host keys not read anew: the old ones stay"
            ),
        }
    }

    /// Serves one captured connection to its end.
    pub async fn serve(self, captured: Captured) {
        // Without a session there is no way to say why: the protocol has none before its keys.
        let Some(startup) = self.parts.startups.enter(captured.peer.ip()) else {
            self.parts.gate.metrics.refused(&self.parts.service.name, "TOO_MANY_STARTUPS");
            return;
        };
        let Ok(session) = self.parts.gate.arrive(&captured, &self.parts.service) else { return };
        Connection::serve(self.parts, session, captured.stream, startup).await;
    }
}
