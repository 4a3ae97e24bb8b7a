//! Steps one after another, their output passed through, and how long each took.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::run::{Result, find, output, root};

/// Cargo at the root of the repository, without what the cargo that started us has put into
/// the environment about this very crate: it would make build scripts run again.
pub fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs with the output passed through.
pub fn passing(command: &mut Command) -> Result<()> {
    let shown: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let shown = shown.join(" ");
    let status = command.status().map_err(|e| format!("{shown}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{shown}: {status}")) }
}

/// One of the workspace's programs as root, through sudo for those who are not.
pub fn as_root(program: &std::path::Path) -> Result<Command> {
    let mut command = if is_root() {
        Command::new(program)
    } else if find("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("--preserve-env=PATH,CARGO_TARGET_DIR,RUST_LOG").arg(program);
        sudo
    } else {
        return Err("network namespaces and eBPF need root: run as root, or install sudo".into());
    };
    command.current_dir(root());
    Ok(command)
}

/// Whether we are root.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).as_deref() == Some("0")
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
pub struct Steps {
    list: Mutex<Vec<(String, End, Duration)>>,
    begun: Instant,
}

impl Default for Steps {
    fn default() -> Self {
        Self { list: Mutex::default(), begun: Instant::now() }
    }
}

impl Steps {
    /// Runs one step and notes how it ended.
    pub fn step(&self, name: &str, work: impl FnOnce() -> Result<End>) -> bool {
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
    pub fn finish(self) -> Result<()> {
        let total = self.begun.elapsed();
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
        println!("{:width$}  {:>7.1} s", "total", total.as_secs_f64());
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
    }
}
