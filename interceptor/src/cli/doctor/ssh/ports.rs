//! Where sshd listens.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Findings, Severity};
use crate::cli::procfs;
use crate::cli::sshd::{Settings, Sshd};
use crate::config::{Config, Service, Upstream};

/// Ports of the same sshd that are not protected, and the protected one if it is not among them.
pub fn check(
    service: &Service,
    config: &Config,
    sshd: &Sshd,
    now: &Settings,
    found: &mut Findings,
) {
    let running = sshd.process(now);
    let all = match running {
        Some(pid) => listening(pid),
        // Started by systemd for each connection: what it is told is all there is to go by.
        None => now.all("listenaddress").filter_map(|a| a.parse().ok()).collect(),
    };
    let name = &service.name;
    let protected = |port: u16| config.services.iter().any(|s| s.port == port);
    for address in all.iter().filter(|a| !protected(a.port())) {
        let upstream =
            matches!(&service.upstream, Upstream::Tcp { port, .. } if *port == address.port());
        let local = address.ip().is_loopback();
        let means = match (local, upstream) {
            (true, _) => "every process of this host reaches sshd there past the daemon",
            (false, _) => "everybody who can reach this host reaches sshd there past the daemon",
        };
        let fix = if upstream {
            "let sshd listen on the protected port alone, and name that as the upstream"
        } else {
            "take it out of `Port` and `ListenAddress`, or make it a service of its own"
        };
        let what = format!("{name}: sshd also listens on {address}, which is not protected");
        found.add(Severity::Error, "other-port", what, means, fix);
    }
    if !all.is_empty() && !all.iter().any(|a| a.port() == service.port) {
        found.add(
            Severity::Warning,
            "exempt-port",
            format!("{name}: sshd does not listen on port {}", service.port),
            "exempt sources reach nothing there when they need it",
            format!("let sshd listen on port {} too", service.port),
        );
    }
    strangers(service, running, found);
}

fn listening(pid: u32) -> BTreeSet<SocketAddr> {
    let mine = procfs::sockets_of(pid);
    let listens = |t: &procfs::Tcp| t.state == procfs::LISTEN && mine.contains(&t.inode);
    procfs::tcp(&pid.to_string()).into_iter().filter(listens).map(|t| t.local).collect()
}

/// Other SSH servers of this host and network namespace.
fn strangers(service: &Service, ours: Option<u32>, found: &mut Findings) {
    let here = procfs::netns("self");
    for pid in procfs::processes() {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let comm = comm.trim();
        if Some(pid) == ours
            || !matches!(comm, "sshd" | "dropbear" | "tailscaled" | "teleport")
            || procfs::netns(&pid.to_string()) != here
        {
            continue;
        }
        for address in listening(pid).iter().filter(|a| a.port() != service.port) {
            // What an sshd session listens on are forwards that its user asked for.
            let forward =
                comm == "sshd" && ours.is_some_and(|o| procfs::ancestors(pid).contains(&o));
            found.add(
                Severity::Warning,
                if forward { "forward" } else { "other-server" },
                format!("{}: {comm} (process {pid}) listens on {address}", service.name),
                "it may be a way into this host past the daemon",
                "stop it, or make sure that it lets no agent in",
            );
        }
    }
}
