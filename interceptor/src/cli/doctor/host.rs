//! The host itself: kernel, clock, files and people.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use super::{Findings, Severity, procfs};
use crate::config::{Config, Mode};
use crate::control::protocol::Op;
use crate::control::{Client, ClientError, Status};

/// 2026-01-01, long before which no clock of a host with this program can be.
const EARLIEST: u64 = 1_767_225_600;

/// Version and settings of the kernel.
pub fn kernel(found: &mut Findings) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if let Some(version) = release(&text) {
        kernel_version(version, text.trim(), found);
    }
    let file = "/proc/sys/kernel/unprivileged_bpf_disabled";
    if std::fs::read_to_string(file).is_ok_and(|t| t.trim() == "0") {
        found.add(
            Severity::Warning,
            "kernel",
            "every user may load BPF programs (kernel.unprivileged_bpf_disabled = 0)",
            "agents on this host get an attack surface of the kernel they do not need",
            "sysctl -w kernel.unprivileged_bpf_disabled=1, and put it into /etc/sysctl.d",
        );
    }
}

/// Major and minor number.
pub fn release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What a kernel version means for the product.
pub fn kernel_version(version: (u32, u32), text: &str, found: &mut Findings) {
    if version < (5, 9) {
        found.add(
            Severity::Error,
            "kernel",
            format!("Linux {text} has no sk_lookup"),
            "ports cannot be captured",
            "use Linux 5.9 or newer",
        );
    } else if version < (5, 19) {
        found.add(
            Severity::Warning,
            "kernel",
            format!("Linux {text} wants CAP_BPF for every bpf(2) call"),
            "the daemon needs that capability to use its pinned maps",
            "give interceptor.service AmbientCapabilities=CAP_BPF in a drop-in",
        );
    } else if version < (6, 5) {
        found.add(
            Severity::Info,
            "kernel",
            format!("Linux {text} has no SO_PEERPIDFD"),
            "who decides a hold is told by the process's start time, which is nearly as good",
            "nothing needs to be done",
        );
    }
}

/// Whether tokens can be judged by this clock.
pub fn clock(found: &mut Findings) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    if now.map_or(true, |d| d.as_secs() < EARLIEST) {
        found.add(
            Severity::Error,
            "clock",
            "the clock stands in the past",
            "no token can be valid",
            "set the clock and run a time service",
        );
        return;
    }
    let out =
        Command::new("timedatectl").args(["show", "-p", "NTPSynchronized", "--value"]).output();
    if out.is_ok_and(|o| o.status.success() && o.stdout.starts_with(b"no")) {
        found.add(
            Severity::Warning,
            "clock",
            "the clock is not synchronised",
            "tokens are judged by it: when it drifts, good ones are refused or old ones accepted",
            "run a time service such as systemd-timesyncd or chrony",
        );
    }
}

/// The daemon's user: who owns the state directory.
pub fn daemon_uid(config: &Config) -> Option<u32> {
    std::fs::metadata(&config.paths.state).ok().map(|m| m.uid())
}

/// The state directory.
pub fn state(config: &Config, found: &mut Findings) {
    let path = &config.paths.state;
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => found.add(
            Severity::Error,
            "state",
            format!("{} is no directory", path.display()),
            "nothing can be recorded, so every request is refused",
            "move it aside",
        ),
        Ok(meta) if meta.mode() & 0o077 != 0 => found.add(
            Severity::Error,
            "state",
            format!("{} has mode {:04o}", path.display(), meta.mode() & 0o7777),
            "others can get at records, pins of tokens and the key that signs seals",
            format!("chmod 0700 {}", path.display()),
        ),
        Ok(_) => {}
        Err(e) => found.add(
            Severity::Error,
            "state",
            format!("{}: {e}", path.display()),
            "nothing can be recorded, so the daemon does not start",
            "systemd-tmpfiles --create, or make it with mode 0700 for the daemon's user",
        ),
    }
}

/// The policies, by the very check that the daemon's operator runs.
pub fn policies(config: &Path, found: &mut Findings) {
    let Ok(exe) = std::env::current_exe() else { return };
    let Ok(out) = Command::new(exe).arg("--config").arg(config).args(["policy", "check"]).output()
    else {
        return;
    };
    if !out.status.success() {
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        found.add(
            Severity::Error,
            "policy",
            text.lines().find(|l| !l.trim().is_empty()).unwrap_or("the policies are refused"),
            "the daemon keeps the rules it has; after a restart it refuses everything",
            "see `interceptor policy check`",
        );
    }
}

/// Certificates and keys shown to clients.
pub fn tls(config: &Config, found: &mut Findings) {
    let daemon = daemon_uid(config);
    for service in &config.services {
        let Some(tls) = &service.tls else { continue };
        for (what, path) in [("certificate", &tls.certificate), ("key", &tls.key)] {
            if daemon.is_some_and(|uid| procfs::may_read(uid, path))
                || (daemon.is_none() && path.exists())
            {
                continue;
            }
            let state = if path.exists() {
                "cannot be read by the daemon's user"
            } else {
                "does not exist"
            };
            found.add(
                Severity::Error,
                "tls",
                format!("{}: {what} {} {state}", service.name, path.display()),
                "clients cannot connect with TLS",
                "add the daemon's user to the file's group (on Debian: ssl-cert), or correct the path",
            );
        }
        if std::fs::metadata(&tls.key).is_ok_and(|m| m.mode() & 0o007 != 0) {
            found.add(
                Severity::Error,
                "tls",
                format!("{}: every user can read the key {}", service.name, tls.key.display()),
                "anybody on this host can pose as the database",
                format!("chmod o= {}; then make a new key", tls.key.display()),
            );
        }
        expiry(&service.name, &tls.certificate, found);
    }
}

fn expiry(service: &str, path: &Path, found: &mut Findings) {
    let Ok(pem) = std::fs::read(path) else { return };
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return };
    let Ok(certificate) = pem.parse_x509() else { return };
    let days = certificate.validity().time_to_expiration().map(|d| d.whole_days());
    if days.is_none_or(|d| d < 14) {
        found.add(
            if days.is_none() { Severity::Error } else { Severity::Warning },
            "tls",
            match days {
                Some(days) => format!("{service}: the certificate ends in {days} days"),
                None => format!("{service}: the certificate is not valid now"),
            },
            "clients that check it refuse to connect",
            format!("renew {}", path.display()),
        );
    }
}

/// Whether somebody could decide a hold.
pub fn approvers(config: &Config, found: &mut Findings) {
    if config.approvers.is_empty() {
        found.add(
            Severity::Warning,
            "approvers",
            "no approver is configured",
            "whatever a rule holds waits in vain and is refused",
            "add [[approver]] entries: an OS user or group with issuer and user id",
        );
    }
    for a in &config.approvers {
        if let Some(user) = &a.user
            && !matches!(nix::unistd::User::from_name(user), Ok(Some(_)))
        {
            no_such(found, "user", user);
        }
        if let Some(group) = &a.group {
            if !matches!(nix::unistd::Group::from_name(group), Ok(Some(_))) {
                no_such(found, "group", group);
            }
            if a.uids.is_empty() {
                found.add(
                    Severity::Warning,
                    "approvers",
                    format!("approver group {group} has no `uids`"),
                    "no member can decide: it is not known who they are at the issuer",
                    "map each member's user name to its user id in `uids`",
                );
            }
        }
    }
}

fn no_such(found: &mut Findings, kind: &str, name: &str) {
    found.add(
        Severity::Warning,
        "approvers",
        format!("approver {kind} {name} does not exist on this host"),
        "that entry lets nobody decide",
        "correct the name or make the account",
    );
}

/// Whether a daemon answers, and what it says of itself.
pub fn daemon(config: &Config, found: &mut Findings) {
    let path = config.paths.control_socket();
    let status = Client::connect(&path).and_then(|mut c| c.call::<Status>(Op::Status));
    match status {
        Ok(status) => {
            if let Some(why) = &status.record.refusing {
                found.add(
                    Severity::Error,
                    "record",
                    format!("the store refuses: {why}"),
                    "new requests are refused",
                    "make room, or raise record.max_bytes",
                );
            }
        }
        Err(ClientError::NotAllowed { .. }) => {}
        Err(e) => found.add(
            Severity::Error,
            "daemon",
            e.to_string(),
            "every connection to a protected port is refused",
            "systemctl start interceptor; see `journalctl -u interceptor` if it does not",
        ),
    }
    for s in config.services.iter().filter(|s| s.mode == Mode::Observe) {
        found.add(
            Severity::Warning,
            "observe",
            format!("{}: observe mode", s.name),
            "nothing is refused, held or masked on it",
            "set mode = \"enforce\" once the records show what you expect",
        );
    }
}
