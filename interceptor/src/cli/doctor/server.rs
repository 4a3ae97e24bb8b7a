//! Ways to a PostgreSQL server that do not lead through its protected port.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::procfs::{self, ESTABLISHED, LISTEN};
use super::{Findings, Severity, hba};
use crate::config::{Config, Service, Upstream};

/// A PostgreSQL server that runs on this host.
#[derive(Debug)]
pub struct Postmaster {
    pid: u32,
    uid: u32,
    data: PathBuf,
    netns: Option<u64>,
    tcp: BTreeSet<SocketAddr>,
    unix: BTreeSet<PathBuf>,
}

/// All servers whose data directory can be seen: the process of `postmaster.pid` there.
pub fn postmasters() -> Vec<Postmaster> {
    procfs::processes().into_iter().filter_map(postmaster).collect()
}

fn postmaster(pid: u32) -> Option<Postmaster> {
    let data = procfs::working_dir(pid)?;
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    if text.lines().next()?.trim().parse() != Ok(pid) {
        return None;
    }
    let mine = procfs::sockets_of(pid);
    let name = pid.to_string();
    let listens = |t: &procfs::Tcp| t.state == LISTEN && mine.contains(&t.inode);
    Some(Postmaster {
        pid,
        uid: std::fs::metadata(format!("/proc/{pid}")).ok()?.uid(),
        netns: procfs::netns(&name),
        tcp: procfs::tcp(&name).iter().filter(|t| listens(t)).map(|t| t.local).collect(),
        unix: procfs::unix_listeners(&name, &mine),
        data,
    })
}

impl Postmaster {
    fn serves(&self, service: &Service) -> bool {
        match &service.upstream {
            Upstream::Unix { socket } => {
                let same = |p: &PathBuf| {
                    p == socket || p.canonicalize().ok() == socket.canonicalize().ok()
                };
                self.unix.iter().any(same)
            }
            Upstream::Tcp { port, .. } => self.tcp.iter().any(|a| a.port() == *port),
        }
    }

    /// pg_hba.conf: beside the data, unless the command line or postgresql.conf says otherwise.
    fn hba_file(&self) -> PathBuf {
        let arguments = procfs::arguments(self.pid);
        let given = |name: &str| {
            let prefix = format!("{name}=");
            let strip = |a: &String| {
                a.trim_start_matches("--")
                    .trim_start_matches("-c")
                    .trim()
                    .strip_prefix(&prefix)
                    .map(PathBuf::from)
            };
            arguments.iter().find_map(strip)
        };
        if let Some(hba) = given("hba_file") {
            return hba;
        }
        let config = given("config_file").unwrap_or_else(|| self.data.join("postgresql.conf"));
        let text = std::fs::read_to_string(config).unwrap_or_default();
        let value = |line: &str| {
            let line = line.split('#').next().unwrap_or_default().trim();
            let rest = line.strip_prefix("hba_file")?.trim_start().trim_start_matches('=').trim();
            Some(PathBuf::from(rest.trim_matches('\'')))
        };
        text.lines().filter_map(value).next_back().unwrap_or_else(|| self.data.join("pg_hba.conf"))
    }
}

/// Looks at the server behind one service. `captured` is the namespace the capture is in.
pub fn check(
    service: &Service,
    config: &Config,
    captured: Option<u64>,
    all: &[Postmaster],
    found: &mut Findings,
) {
    let name = &service.name;
    let Some(server) = all.iter().find(|p| p.serves(service)) else {
        // Without privilege a server's sockets cannot be seen, so its absence says nothing.
        if nix::unistd::geteuid().is_root() {
            found.add(
                Severity::Warning,
                "server",
                format!("{name}: no PostgreSQL server of this host is behind its upstream"),
                "the daemon cannot reach the service, or it runs where this command cannot see it",
                "start the server, or correct the service's `upstream`",
            );
        }
        return;
    };
    other_ports(service, config, server, captured, found);
    other_sockets(service, server, found);
    old_connections(service, config, server, found);
    hba::check(&server.hba_file(), name, found);
}

fn other_ports(
    service: &Service,
    config: &Config,
    server: &Postmaster,
    captured: Option<u64>,
    found: &mut Findings,
) {
    let name = &service.name;
    if let (Some(here), Some(there)) = (captured, server.netns)
        && here != there
        && !server.tcp.is_empty()
    {
        found.add(
            Severity::Error,
            "namespace",
            format!("{name}: the server listens in another network namespace than the capture"),
            "whoever is in that namespace, or is routed to it, reaches the server past the daemon",
            "attach the capture in the server's namespace, or let the server listen on nothing there",
        );
    }
    let protected: HashSet<u16> = config.services.iter().map(|s| s.port).collect();
    for address in server.tcp.iter().filter(|a| !protected.contains(&a.port())) {
        // The port of a TCP upstream is reached by the daemon and must not be by others.
        found.add(
            Severity::Error,
            "other-port",
            format!("{name}: the same server also listens on {address}, which is not protected"),
            if address.ip().is_loopback() {
                "every process on this host reaches the server there past the daemon"
            } else {
                "everybody who can reach this host reaches the server there past the daemon"
            },
            "make it a service of its own in the configuration, or set `listen_addresses` and `port` of the server so that it is gone",
        );
    }
}

fn other_sockets(service: &Service, server: &Postmaster, found: &mut Findings) {
    let main = match &service.upstream {
        Upstream::Unix { socket } => socket.canonicalize().ok(),
        Upstream::Tcp { .. } => None,
    };
    for path in &server.unix {
        if main.is_some() && path.canonicalize().ok() == main {
            continue;
        }
        socket_mode(service, path, found);
    }
}

/// Reports a Unix socket that everybody can open.
pub fn socket_mode(service: &Service, path: &Path, found: &mut Findings) {
    let name = &service.name;
    if path.to_string_lossy().starts_with('@') {
        found.add(
            Severity::Error,
            "unix-socket",
            format!("{name}: the server listens on the abstract socket {}", path.display()),
            "every process of this host can open it; it has no permissions",
            "take it out of `unix_socket_directories`",
        );
        return;
    }
    let Ok(meta) = std::fs::metadata(path) else { return };
    let closed = path
        .parent()
        .and_then(|d| std::fs::metadata(d).ok())
        .is_some_and(|d| d.mode() & 0o001 == 0);
    if meta.mode() & 0o002 != 0 && !closed {
        found.add(
            Severity::Warning,
            "unix-socket",
            format!(
                "{name}: everybody can open {} (mode {:04o})",
                path.display(),
                meta.mode() & 0o7777
            ),
            "only pg_hba.conf stands between a local process and the server",
            "run `interceptor setup postgres`, or set unix_socket_permissions = 0770",
        );
    }
}

/// Connections on the protected port whose server side is the server itself: they are older
/// than the capture or came past it.
fn old_connections(service: &Service, config: &Config, server: &Postmaster, found: &mut Findings) {
    let all = procfs::tcp(&server.pid.to_string());
    let daemon = super::host::daemon_uid(config);
    let exempt = |ip: std::net::IpAddr| {
        config
            .capture
            .exempt
            .iter()
            .any(|e| e.services.contains(&service.name) && e.source.contains(&ip))
    };
    let own = |t: &&procfs::Tcp| {
        matches!(service.upstream, Upstream::Tcp { .. })
            && all
                .iter()
                .any(|o| o.local == t.remote && o.remote == t.local && Some(o.uid) == daemon)
    };
    let direct: Vec<String> = all
        .iter()
        .filter(|t| t.state == ESTABLISHED && t.local.port() == service.port && t.uid == server.uid)
        .filter(|t| Some(t.uid) != daemon && !exempt(t.remote.ip()) && !own(t))
        .map(|t| t.remote.to_string())
        .collect();
    if !direct.is_empty() {
        let some = direct.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        found.add(
            Severity::Error,
            "old-connection",
            format!(
                "{}: {} connections reach the server without the daemon, from {some}",
                service.name,
                direct.len()
            ),
            "they were open before the capture and are neither judged nor recorded",
            "close them: `interceptor capture attach --destroy-existing`, or restart the clients",
        );
    }
}
