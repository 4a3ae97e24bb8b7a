//! Where the guard keeps what it must not forget: beside the daemon's directories, not in them,
//! since the daemon's user owns those and must be able neither to confirm nor to undo a capture.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Paths;

/// Root's directories of the guard: `/run/interceptor-capture`, `/var/lib/interceptor-capture`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct Places {
    /// What ends with the machine's run: the capture that waits to be confirmed.
    #[arg(long = "run-dir", value_name = "DIRECTORY")]
    run: PathBuf,
    /// What outlives it: what was confirmed, and the guard's own log.
    #[arg(long = "state-dir", value_name = "DIRECTORY")]
    state: PathBuf,
}

impl Places {
    /// Beside the configured directories of the daemon.
    pub fn of(paths: &Paths) -> Self {
        let beside = |dir: &Path| {
            let mut name = dir.as_os_str().to_owned();
            name.push("-capture");
            PathBuf::from(name)
        };
        Self { run: beside(&paths.run), state: beside(&paths.state) }
    }

    /// The capture that waits to be confirmed.
    pub fn pending(&self) -> PathBuf {
        self.run.join("pending.json")
    }

    /// Held locked by the process that will undo it.
    pub fn watch(&self) -> PathBuf {
        self.run.join("watch")
    }

    /// What was confirmed.
    pub fn confirmed(&self) -> PathBuf {
        self.state.join("confirmed.json")
    }

    /// Who attached, confirmed and undid, and when.
    pub fn log(&self) -> PathBuf {
        self.state.join("log")
    }

    /// As arguments of the watching process.
    pub fn arguments(&self) -> [&std::ffi::OsStr; 4] {
        ["--run-dir".as_ref(), self.run.as_ref(), "--state-dir".as_ref(), self.state.as_ref()]
    }

    /// Makes the directories, and lets one attach, confirm or undo run at a time.
    pub fn lock(&self) -> anyhow::Result<Flock<File>> {
        for dir in [&self.run, &self.state] {
            own_directory(dir)?;
        }
        let path = self.run.join("lock");
        let file = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .with_context(|| format!("cannot lock {}", path.display()))
    }

    /// Writes one line into the guard's log, which nobody but root can write, and into the
    /// system's. What cannot be logged is still done: this is about not being locked out.
    pub fn note(&self, what: &str) {
        let who = std::env::var("SUDO_USER").unwrap_or_default();
        let uid = nix::unistd::getuid();
        let who = if who.is_empty() { format!("uid {uid}") } else { format!("uid {uid} ({who})") };
        let line = format!("{} {who}: {what}", jiff::Timestamp::now()).replace(['\n', '\r'], " ");
        let file = File::options().create(true).append(true).mode(0o644).open(self.log());
        if let Err(error) = file.and_then(|mut f| writeln!(f, "{line}")) {
            tracing::warn!(%error, "the guard's log cannot be written");
        }
        // Facility auth, severity warning.
        let message = format!("<36>interceptor[{}]: {what}", std::process::id());
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.set_nonblocking(true);
            let _ = socket.send_to(message.as_bytes(), "/dev/log");
        }
    }

    /// The last line of the guard's log.
    pub fn last_note(&self) -> Option<String> {
        Some(fs::read_to_string(self.log()).ok()?.lines().last()?.to_owned())
    }
}

/// Makes a directory that only root changes; refuses one that somebody else could.
fn own_directory(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let what = || format!("cannot make {}", dir.display());
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o755).create(dir).with_context(what)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755)).with_context(what)?;
    }
    let meta = fs::metadata(dir).with_context(what)?;
    ensure!(
        meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o022 == 0,
        "{}: must belong to root and be writable by nobody else",
        dir.display()
    );
    Ok(())
}

/// Reads a file of ours; `None` when it is not there.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_str(&text).map(Some).with_context(|| path.display().to_string())
}

/// Replaces a file of ours in one step.
pub fn write(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    let aside = path.with_extension("new");
    let mut file = File::options();
    let mut file =
        file.write(true).create(true).truncate(true).mode(0o644).open(&aside).with_context(what)?;
    file.set_permissions(Permissions::from_mode(0o644)).with_context(what)?;
    file.write_all(&serde_json::to_vec_pretty(value)?).with_context(what)?;
    file.sync_all().with_context(what)?;
    fs::rename(&aside, path).with_context(what)
}

/// Removes a file of ours; one that is not there is fine.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
