//! Forwards: connections that the host makes for the agent (RFC 4254, section 7.2; OpenSSH
//! PROTOCOL, section 2.4). Those that it makes back to the agent are in `reverse`.
//!
//! A forward to a protected port or socket of this host is never made, whatever rules say: it
//! would be a way around the daemon. Names are resolved here and the address goes to sshd, so
//! that what was judged is what is reached.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf};

use super::acting::{Acting, Place};
use super::channel::note;
use super::flow::{Flow, Taker};
use super::permit::{Denied, Permitted, Silent, permit};
use super::relay::Relay;
use super::upstream::UpstreamChannel;
use crate::config::{Config, Upstream as UpstreamConfig};
use crate::policy::SshFacts;
use crate::policy::ssh::{self, Destination, ForwardKind};
use crate::session::log::event;

/// Time for resolving a name.
const RESOLVE_TIME: Duration = Duration::from_secs(5);

/// Longest host name or path. Bytes.
pub const MAX_TARGET: usize = 1024;

/// Where a forward leads.
#[derive(Debug, Clone)]
pub enum Target {
    /// To a host and port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// To a Unix socket.
    Unix {
        /// Its path.
        path: String,
    },
}

impl Target {
    fn facts(&self) -> SshFacts {
        let to = match self {
            Self::Tcp { host, port } => {
                Destination::Tcp { host: host.clone(), port: u32::from(*port) }
            }
            Self::Unix { path } => Destination::Unix(path.clone()),
        };
        ssh::forward(ForwardKind::Local, to)
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "direct-tcpip",
            Self::Unix { .. } => "direct-streamlocal@openssh.com",
        }
    }
}

/// A refusal with its reason, which the client shows.
fn denied(words: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code: 1, reason: words }
}

/// Judges a forward, opens it, and relays it to its end.
pub async fn run(
    place: Place,
    flow: Arc<Flow>,
    write: ChannelWriteHalf<Msg>,
    reply: ChannelOpenHandle,
    target: Target,
) {
    let _taker = Taker(Arc::clone(&flow));
    let acting = Arc::clone(&place.acting);
    let ch = acting.next_channel();
    let facts = target.facts();
    let opened = event::ChannelOpen {
        ch,
        kind: Cow::Borrowed(target.kind()),
        detail: Some(Cow::Borrowed(&facts.text)),
    };
    note(&acting, &opened);
    match open(&acting, ch, &target, &facts, &flow).await {
        Ok((upstream, permitted)) => {
            reply.accept().await;
            Relay::of_bytes(acting, ch, flow, write, upstream, permitted).run().await;
        }
        Err(failure) => reply.reject(failure).await,
    }
    drop(place);
}

async fn open(
    acting: &Arc<Acting>,
    ch: u32,
    target: &Target,
    facts: &SshFacts,
    flow: &Flow,
) -> Result<(UpstreamChannel, Permitted), ChannelOpenFailure> {
    let refuse = |why: &str| {
        acting.with(|session| session.refuse_ssh(facts, why));
        denied(acting.words(why))
    };
    let address = match target {
        Target::Tcp { host, port } => match resolve(host, *port).await {
            Some(address) if is_protected(&acting.parts.gate.config, address) => {
                return Err(refuse("FORWARD_PROTECTED: it leads to a protected port of this host"));
            }
            Some(address) => Some(address),
            None => return Err(ChannelOpenFailure::ConnectFailed),
        },
        Target::Unix { path } if is_protected_socket(&acting.parts.gate.config, path) => {
            return Err(refuse("FORWARD_PROTECTED: it leads to a protected socket of this host"));
        }
        Target::Unix { .. } => None,
    };
    let permitted = match permit(acting, ch, "forward", facts, flow, &Silent).await {
        Ok(permitted) => permitted,
        Err(Denied::Refused(why)) => return Err(denied(acting.words(&why))),
        Err(Denied::Gone) => return Err(ChannelOpenFailure::AdministrativelyProhibited),
    };
    let failed = |error: String| {
        tracing::warn!(session = %acting.id(), error, "forward not opened");
        ChannelOpenFailure::ConnectFailed
    };
    let upstream = acting.upstream().await.map_err(failed)?;
    let opened = match (target, address) {
        (_, Some(address)) => upstream.direct_tcpip(address, acting.peer).await,
        (Target::Unix { path }, None) => upstream.direct_streamlocal(path).await,
        (Target::Tcp { .. }, None) => return Err(ChannelOpenFailure::ConnectFailed),
    };
    Ok((opened.map_err(|e| failed(e.to_string()))?, permitted))
}

async fn resolve(host: &str, port: u16) -> Option<SocketAddr> {
    if host.len() > MAX_TARGET {
        return None;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(SocketAddr::new(address.to_canonical(), port));
    }
    let found = tokio::time::timeout(RESOLVE_TIME, tokio::net::lookup_host((host, port))).await;
    let first = found.ok()?.ok()?.next()?;
    Some(SocketAddr::new(first.ip().to_canonical(), port))
}

/// Whether an address is this host's own and the port one that is protected.
fn is_protected(config: &Config, to: SocketAddr) -> bool {
    is_protected_port(config, to.port()) && is_own(to.ip())
}

/// Whether a port of this host is a service's, or that of the server behind one.
pub fn is_protected_port(config: &Config, port: u16) -> bool {
    config.services.iter().any(|s| {
        s.port == port
            || matches!(&s.upstream, UpstreamConfig::Tcp { port: own, .. } if *own == port)
    })
}

/// Whether an address is one of this host. When the kernel cannot say, it is.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return true };
    all.filter_map(|i| {
        let storage = i.address?;
        storage
            .as_sockaddr_in()
            .map(|a| IpAddr::V4(a.ip()))
            .or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    })
    .any(|own| own.to_canonical() == address)
}

/// Whether a path is a service's socket or one of the daemon's own, links followed; a path that
/// nobody could tell apart from one is.
pub fn is_protected_socket(config: &Config, path: &str) -> bool {
    if path.len() > MAX_TARGET || !path.starts_with('/') {
        return true;
    }
    // What is not there yet has a directory that is.
    let real = |path: &Path| {
        path.canonicalize()
            .or_else(|error| {
                let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(error);
                };
                Ok(dir.canonicalize()?.join(name))
            })
            .unwrap_or_else(|_: std::io::Error| path.to_owned())
    };
    let asked = real(Path::new(path));
    let services = config.services.iter().any(|s| match &s.upstream {
        UpstreamConfig::Unix { socket } => real(socket) == asked,
        UpstreamConfig::Tcp { .. } => false,
    });
    services
        || [&config.paths.run, &config.paths.state].iter().any(|dir| asked.starts_with(real(dir)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        toml::from_str(
            "[[service]]\nname='db'\nprotocol='postgres'\nport=5432\naudience='a'\n\
             plaintext_loopback=true\nupstream={socket='/tmp/.s.PGSQL.5432'}\n\
             [[service]]\nname='ssh'\nprotocol='ssh'\nport=22\naudience='b'\n\
             upstream={host='127.0.0.1',port=2222}\n",
        )
        .unwrap()
    }

    #[test]
    fn protected_ports_of_this_host_are_known_in_every_spelling() {
        for (to, protected) in [
            ("127.0.0.1:5432", true),
            ("127.9.9.9:22", true),
            ("0.0.0.0:22", true),
            ("[::1]:5432", true),
            ("[::ffff:127.0.0.1]:5432", true),
            ("127.0.0.1:2222", true),
            ("127.0.0.1:8080", false),
            ("192.0.2.1:5432", false),
        ] {
            assert_eq!(is_protected(&config(), to.parse().unwrap()), protected, "{to}");
        }
    }

    #[test]
    fn protected_sockets_are_known_behind_links() {
        for (path, protected) in [
            ("/tmp/.s.PGSQL.5432", true),
            ("/tmp/../tmp/.s.PGSQL.5432", true),
            ("/tmp/../tmp/.s.PGSQL.5433", false),
            ("/run/interceptor/control.sock", true),
            ("relative", true),
            ("/run/other.sock", false),
        ] {
            assert_eq!(is_protected_socket(&config(), path), protected, "{path}");
        }
    }
}
