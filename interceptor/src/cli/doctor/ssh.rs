//! Ways to the host's sshd that do not lead through the daemon, and what keeps the daemon from
//! sshd.

mod keys;
mod ports;
mod settings;

use super::host::daemon_uid;
use super::{Findings, Severity};
use crate::capture;
use crate::cli::capture::places::Places;
use crate::cli::capture::{Waiting, caller};
use crate::cli::sshd::Sshd;
use crate::config::{Config, Service};

/// Looks at sshd behind one service.
pub fn check(service: &Service, config: &Config, found: &mut Findings) {
    check_with(&Sshd::default(), service, config, found);
}

fn check_with(sshd: &Sshd, service: &Service, config: &Config, found: &mut Findings) {
    waiting(config, found);
    exempt(service, config, found);
    keys::authority(service, config, daemon_uid(config), found);
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    if !sshd.program.exists() {
        found.add(
            Severity::Error,
            "sshd",
            format!("{}: {} is not there", service.name, sshd.program.display()),
            "the daemon brings agents to this host's own sshd, and there is none",
            "install openssh-server",
        );
        return;
    }
    match sshd.settings(None) {
        Ok(all) => {
            keys::host_keys(service, config, &all, found);
            ports::check(service, config, sshd, &all, found);
            settings::check(service, config, sshd, &all, found);
        }
        Err(error) => found.add(
            Severity::Error,
            "sshd",
            format!("{}: {error:#}", service.name),
            "it would not start again, and nobody gets in",
            "mend its configuration: `sshd -t` says where",
        ),
    }
    old_logins(service, config, found);
}

/// A capture that nobody has confirmed.
fn waiting(config: &Config, found: &mut Findings) {
    for line in Waiting::look(&Places::of(&config.paths)).lines {
        found.add(
            Severity::Warning,
            "capture-waits",
            line,
            "unless somebody shows that there is a way in, the port will be as it was before",
            "log in anew and run `interceptor capture confirm`",
        );
    }
}

/// The operator's way in when all else fails.
fn exempt(service: &Service, config: &Config, found: &mut Findings) {
    let name = &service.name;
    let ours: Vec<_> = config.capture.exempt.iter().filter(|e| e.services.contains(name)).collect();
    if ours.is_empty() {
        found.add(
            Severity::Warning,
            "no-exempt",
            format!("{name}: no source is exempt"),
            "when the daemon does not run, nobody reaches sshd but by a console",
            "exempt the network from which this host is administered",
        );
    }
    for e in ours {
        let all = e.source.prefix_len() == 0;
        let local = e.source.contains(&std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST))
            || e.source.contains(&std::net::IpAddr::from(std::net::Ipv6Addr::LOCALHOST));
        if all || local {
            found.add(
                Severity::Error,
                "exempt",
                format!("{name}: {} is exempt", e.source),
                if all {
                    "everybody reaches sshd past the daemon"
                } else {
                    "every process of this host reaches sshd past the daemon"
                },
                "exempt only the network from which this host is administered",
            );
        }
    }
}

/// People who are logged in past the daemon and from no exempt source.
fn old_logins(service: &Service, config: &Config, found: &mut Findings) {
    let Ok(live) = capture::connections(None, service.port) else { return };
    let exempt = |ip: &std::net::IpAddr| {
        let mut all = config.capture.exempt.iter().filter(|e| e.services.contains(&service.name));
        all.any(|e| e.source.contains(ip))
    };
    let past: Vec<_> = live
        .iter()
        .filter(|c| !exempt(&c.remote.ip()) && caller::is_login(c))
        .filter(|c| !capture::is_upstream(&config.paths.bpffs, c.remote, c.local).unwrap_or(false))
        .map(|c| c.remote.to_string())
        .collect();
    if !past.is_empty() {
        let some = past.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        found.add(
            Severity::Error,
            "old-connection",
            format!("{}: {} logins past the daemon, from {some}", service.name, past.len()),
            "they began before the capture and are neither judged nor recorded",
            "close them: `interceptor capture attach --close-existing`",
        );
    }
}

#[cfg(test)]
mod tests;
