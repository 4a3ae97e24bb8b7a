//! Whether the kernel side stands as the configuration says.

use super::{Findings, Severity};
use crate::capture;
use crate::config::Config;

/// Reports on the capture; gives the inode of the network namespace it is attached to.
pub fn check(config: &Config, found: &mut Findings) -> Option<u64> {
    let status = match capture::status(&config.paths.bpffs) {
        Ok(status) => status,
        Err(e) => {
            let severity =
                if nix::unistd::geteuid().is_root() { Severity::Error } else { Severity::Info };
            found.add(
                severity,
                "capture",
                e.to_string(),
                "unless it is attached, nothing stands before the protected ports",
                "systemctl start interceptor-capture, or look as root",
            );
            return None;
        }
    };
    if status.unprotected() {
        found.add(
            Severity::Error,
            "capture",
            "the program is pinned but no longer attached",
            "connections reach the services directly",
            "run `interceptor capture attach`",
        );
    }
    for problem in &status.problems {
        found.add(
            Severity::Warning,
            "capture",
            problem.clone(),
            "the capture is not quite what this version would attach",
            "run `interceptor capture attach`",
        );
    }
    for service in &config.services {
        let (name, number) = (&service.name, service.port);
        match status.ports.iter().find(|p| p.port == number) {
            None => found.add(
                Severity::Error,
                "capture",
                format!("{name}: port {number} is configured but not captured"),
                "connections reach the service directly",
                "run `interceptor capture attach`",
            ),
            Some(port) if port.listening == Some(false) => found.add(
                Severity::Error,
                "listener",
                format!("{name}: no daemon listens for port {number}"),
                "every connection to it is refused",
                "systemctl start interceptor; see `journalctl -u interceptor` if it does not",
            ),
            Some(_) => {}
        }
    }
    let foreign = status.foreign.as_deref().unwrap_or_default();
    if !foreign.is_empty() {
        let links: Vec<_> = foreign.iter().map(|f| f.id.to_string()).collect();
        found.add(
            Severity::Error,
            "foreign-program",
            format!("other sk_lookup programs are attached here (links {})", links.join(", ")),
            "one that was attached later than ours decides in its stead and can open the ports",
            "find their owner with `bpftool link show`, detach them, then attach ours again",
        );
    }
    Some(status.netns)
}
