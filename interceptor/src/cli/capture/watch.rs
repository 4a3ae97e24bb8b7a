//! The process that gives ports back when nobody confirms: in a session of its own, or a unit of
//! its own where systemd runs, so that it outlives the terminal and the command that started it.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};

use super::guard;
use super::pending::Pending;
use super::places::Places;

/// How soon a confirmation ends the watch, and how late an undo can be.
const TICK: Duration = Duration::from_millis(200);
/// Longest wait for the watching process to stand.
const START: Duration = Duration::from_secs(5);

/// Makes sure that a process watches; to be called while the guard's lock is held, before a port
/// is captured.
pub fn arm(places: &Places) -> anyhow::Result<()> {
    if Pending::is_watched(places) == Some(true) {
        return Ok(());
    }
    let exe = std::env::current_exe().context("cannot find this very program")?;
    if Path::new("/run/systemd/system").exists() {
        let unit = format!("interceptor-capture-undo-{}", std::process::id());
        let mut command = Command::new("systemd-run");
        command.args(["--quiet", "--collect", "--unit", &unit]);
        command.args(["--property=OOMScoreAdjust=-1000", "--property=KillMode=process"]);
        command.arg("--description=interceptor: undo a capture that nobody confirms");
        command.arg("--").arg(&exe).args(["capture", "watch"]).args(places.arguments());
        let out = command.stdin(Stdio::null()).output();
        if out.is_ok_and(|o| o.status.success()) && stands(places) {
            return Ok(());
        }
        tracing::warn!("systemd-run cannot start the watch; a process of its own does instead");
    }
    Command::new(&exe)
        .args(["capture", "watch"])
        .args(places.arguments())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the process that would undo the capture")?;
    if !stands(places) {
        bail!("the process that would undo the capture does not stand: nothing was captured");
    }
    Ok(())
}

fn stands(places: &Places) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < START {
        if Pending::is_watched(places) == Some(true) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Watches until the capture is confirmed, withdrawn, or given back.
pub fn run(places: &Places) -> anyhow::Result<()> {
    // Fails where this leads a process group already, which systemd's units do: then nothing of
    // a terminal reaches it anyway.
    let _ = nix::unistd::setsid();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let Some(_held) = hold(places)? else { return Ok(()) };
    let mut last = None;
    loop {
        match Pending::read(places) {
            Ok(Some(pending)) => last = Some(pending),
            Ok(None) if last.is_none() => return Ok(()),
            Ok(None) => {
                // Decided under the lock, so that an attach never counts on a watch that ends.
                let _lock = places.lock()?;
                if Pending::read(places).is_ok_and(|p| p.is_none()) {
                    return Ok(());
                }
            }
            // A file that cannot be read shall lock nobody out: what was read before holds.
            Err(error) => tracing::warn!("{error:#}"),
        }
        let Some(pending) = &last else { bail!("the pending capture cannot be read") };
        match pending.deadline.left() {
            None | Some(Duration::ZERO) => match guard::give_back(places, Some(pending)) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    // Whoever is locked out has only us: again and again.
                    places.note(&format!("cannot undo the capture yet: {error:#}"));
                    std::thread::sleep(Duration::from_secs(1));
                }
            },
            Some(left) => std::thread::sleep(left.min(TICK)),
        }
    }
}

/// Takes the place of the one watcher; `None` when another has it. Somebody who only looks
/// whether there is one holds it for a moment.
fn hold(places: &Places) -> anyhow::Result<Option<Flock<File>>> {
    let path = places.watch();
    for _ in 0..50 {
        let file = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(Some(held)),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Ok(None)
}
