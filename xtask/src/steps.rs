//! Running programs: where they run, how their progress shows, how long they took.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).into()
}

/// The build directory.
pub fn target() -> PathBuf {
    let dir = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(dir)
}

/// A program that will run at the root of the repository.
pub fn command<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    command
}

/// Cargo itself, without what the cargo that started us has put into the environment about
/// this very crate.
pub fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = command(&program, args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// One of our own verbs, run as a program of its own.
pub fn xtask<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Command, String> {
    let me = std::env::current_exe().map_err(|e| format!("cannot find myself: {e}"))?;
    Ok(command(&me.to_string_lossy(), args))
}

/// The command line as one would type it.
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|a| a.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs with the output passed through.
pub fn passing(mut command: Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{}: {e}", shown(&command)))?;
    judged(&command, status)
}

/// Runs silently with a progress line when it takes longer than two seconds; the output is
/// shown when it fails.
pub fn quiet(what: &str, mut command: Command) -> Result<(), String> {
    let progress = Progress::start(what);
    let output = command.stdin(Stdio::null()).output();
    drop(progress);
    let output = output.map_err(|e| format!("{}: {e}", shown(&command)))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    judged(&command, output.status)
}

/// Whether a program is there and answers `--version` or the like.
pub fn answers(program: &str, args: &[&str]) -> bool {
    command(program, args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn judged(command: &Command, status: ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", shown(command))) }
}

/// A line that says what is going on, once it has gone on for two seconds. On a terminal it
/// counts; elsewhere it is one plain line.
pub struct Progress {
    done: Arc<AtomicBool>,
    line: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts to wait for two seconds.
    pub fn start(what: &str) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let (flag, what, begun) = (Arc::clone(&done), what.to_owned(), Instant::now());
        let line = std::thread::spawn(move || {
            let terminal = std::io::stderr().is_terminal();
            let mut shown = 0;
            while !flag.load(Ordering::Relaxed) {
                let seconds = begun.elapsed().as_secs();
                if seconds >= 2 && terminal && seconds != shown {
                    eprint!("\r  … {what} ({seconds} s)\x1b[K");
                    shown = seconds;
                } else if seconds >= 2 && !terminal && shown == 0 {
                    eprintln!("  ... {what}");
                    shown = seconds;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
            if terminal && shown > 0 {
                eprint!("\r\x1b[K");
            }
        });
        Self { done, line: Some(line) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(line) = self.line.take() {
            line.thread().unpark();
            let _ = line.join();
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Ok,
    /// Not run, and why.
    Skipped(String),
    /// Wrongly, and how.
    Failed(String),
}

/// Steps with their outcome and duration, for the table at the end. Steps may run side by side.
#[derive(Default)]
pub struct Steps {
    list: Mutex<Vec<(String, End, Duration)>>,
}

impl Steps {
    /// Runs one step and notes how it ended.
    pub fn step(&self, name: &str, work: impl FnOnce() -> Result<End, String>) -> bool {
        eprintln!("== {name}");
        let begun = Instant::now();
        let end = work().unwrap_or_else(End::Failed);
        match &end {
            End::Ok => {}
            End::Skipped(why) => eprintln!("== {name}: SKIPPED: {why}"),
            End::Failed(why) => eprintln!("== {name}: FAILED: {why}"),
        }
        let good = !matches!(end, End::Failed(_));
        if let Ok(mut list) = self.list.lock() {
            list.push((name.into(), end, begun.elapsed()));
        }
        good
    }

    /// Prints the table; an error names what failed.
    pub fn finish(self) -> Result<(), String> {
        let list = self.list.into_inner().map_err(|e| e.to_string())?;
        let width = list.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let mut failed = Vec::new();
        println!();
        for (name, end, took) in &list {
            let end = match end {
                End::Ok => "ok".into(),
                End::Skipped(why) => format!("skipped: {why}"),
                End::Failed(why) => {
                    failed.push(name.as_str());
                    format!("FAILED: {}", why.lines().next().unwrap_or_default())
                }
            };
            println!("{name:width$}  {:>7.1} s  {end}", took.as_secs_f64());
        }
        let total: Duration = list.iter().map(|(.., took)| *took).sum();
        println!("{:width$}  {:>7.1} s", "total", total.as_secs_f64());
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
    }
}
