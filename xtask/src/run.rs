//! Running other programs, quietly unless they take long or fail.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What went wrong, for the reader of the terminal.
pub type Result<T> = std::result::Result<T, String>;

/// The directory of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Where cargo builds into.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs a command to its end. What it prints is shown only if it fails; what takes longer than
/// two seconds says so, and again every half minute.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{what}: {}: {e}", name(command)))?;
    let (begun, (sender, lines)) = (Instant::now(), channel::<Vec<u8>>());
    for mut pipe in [
        child.stdout.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
        child.stderr.take().map(|p| Box::new(p) as Box<dyn std::io::Read + Send>),
    ]
    .into_iter()
    .flatten()
    {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let (mut output, mut next) = (Vec::new(), Duration::from_secs(2));
    loop {
        match lines.recv_timeout(next.saturating_sub(begun.elapsed())) {
            Ok(bytes) => output.extend(bytes),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if begun.elapsed() >= next {
            println!("{what} … {} s", begun.elapsed().as_secs());
            std::io::stdout().flush().ok();
            next += Duration::from_secs(30);
        }
    }
    let status = child.wait().map_err(|e| format!("{what}: {e}"))?;
    if status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output);
    let tail: Vec<&str> = output.lines().rev().take(40).collect();
    let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(format!("{what}: {} failed ({status})\n{tail}", name(command)))
}

/// What a command prints, if it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let out = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A command as root: itself, or through sudo.
pub fn as_root(program: &str) -> Command {
    if output(Command::new("id").arg("-u")).as_deref() == Some("0") {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    }
}

/// The program of that name on the path, or in cargo's own directory of programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home: OsString| PathBuf::from(home).join(".cargo"))
    });
    let own = cargo.map(|c| c.join("bin"));
    std::env::split_paths(&path).chain(own).map(|d| d.join(program)).find(|p| p.is_file())
}

fn name(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
