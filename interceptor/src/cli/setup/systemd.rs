//! systemd as setup meets it: the unit that a process runs in, and telling it of new files.

use std::path::Path;
use std::process::Command;

/// The unit a process runs in, if any.
pub fn unit_of(pid: u32) -> Option<String> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut units = groups.lines().flat_map(|l| l.split('/')).filter(|p| p.ends_with(".service"));
    units.next_back().map(str::to_owned)
}

/// Whether systemd runs this machine and looks at units below that directory.
pub fn reads(units: &Path) -> bool {
    units.starts_with("/etc") && Path::new("/run/systemd/system").exists()
}

/// Lets it read its units anew; a remark where that cannot be done here.
pub fn reload(said: &mut Vec<String>) {
    let reloaded = Command::new("systemctl").arg("daemon-reload").status();
    if !reloaded.is_ok_and(|s| s.success()) {
        said.push("run `systemctl daemon-reload`: it could not be run here".into());
    }
}
