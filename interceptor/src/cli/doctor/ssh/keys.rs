//! The keys that the daemon needs: its authority's, and the host's own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Findings, Severity};
use crate::cli::doctor::host::daemon_uid;
use crate::cli::procfs;
use crate::cli::sshd::Settings;
use crate::config::{Config, Service};
use crate::sshd::{self, UserCa};

/// Where systemd puts what `LoadCredential=` names, and the drop-in that names it.
const CREDENTIALS: &str = "/run/credentials/interceptor.service";
const DROP_IN: &str = "/etc/systemd/system/interceptor.service.d/50-ssh.conf";

/// The key that signs session certificates.
pub fn authority(service: &Service, config: &Config, daemon: Option<u32>, found: &mut Findings) {
    let path = UserCa::path(&config.paths, &service.ssh);
    let (name, fix) = (&service.name, "run `interceptor setup ssh`");
    let owner = fs::metadata(&path).map(|m| m.uid()).map_err(|e| e.kind());
    // The directory is the daemon's alone: without privilege nothing is known.
    if owner == Err(std::io::ErrorKind::PermissionDenied) {
        return;
    }
    match UserCa::open(&path) {
        Err(error) => found.add(
            Severity::Error,
            "ca-key",
            format!("{name}: {error}"),
            "the daemon can make no session certificate, or others can make theirs",
            fix,
        ),
        Ok(_) if owner.is_ok_and(|uid| daemon.is_some_and(|d| d != uid)) => found.add(
            Severity::Error,
            "ca-key",
            format!("{name}: {} is not the daemon's", path.display()),
            "the daemon cannot read it, or somebody else can make session certificates",
            fix,
        ),
        Ok(_) => {}
    }
}

/// The host's own keys: without them every agent is warned of another host.
pub fn host_keys(service: &Service, config: &Config, now: &Settings, found: &mut Findings) {
    let daemon = daemon_uid(config);
    let handed = fs::read_to_string(DROP_IN).unwrap_or_default();
    for path in sshd::paths(&service.ssh.host_keys) {
        let name = path.file_name().unwrap_or_default();
        let credential = Path::new(CREDENTIALS).join(name);
        let reads = |p: &Path| daemon.is_none_or(|uid| procfs::may_read(uid, p));
        let named = handed.contains(&format!("LoadCredential={}:", name.to_string_lossy()));
        if !(credential.exists() || named || reads(&path)) {
            found.add(
                Severity::Error,
                "host-key",
                format!("{}: the daemon cannot read {}", service.name, path.display()),
                "it cannot show agents the host's own key, and does not start",
                "run `interceptor setup ssh`, which lets systemd hand it over",
            );
        }
        stale(service, &path, now, found);
    }
}

/// A copy of a key that sshd has changed since.
fn stale(service: &Service, path: &Path, now: &Settings, found: &mut Findings) {
    let original = now.all("hostkey").map(Path::new).find(|p| p.file_name() == path.file_name());
    let Some(original) = original.filter(|p| *p != path) else { return };
    if let (Ok(copy), Ok(key)) = (fs::read(path), fs::read(original))
        && copy != key
    {
        found.add(
            Severity::Error,
            "host-key",
            format!("{}: {} is no longer {}", service.name, path.display(), original.display()),
            "agents meet another key than those whom sshd meets itself",
            "run `interceptor setup ssh` again, then restart the daemon",
        );
    }
}
