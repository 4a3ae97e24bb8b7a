//! `interceptor capture`: attaching, detaching and showing the kernel side.
//!
//! The privileged verb. It runs once at boot and after a change of the configured ports; the
//! daemon itself never needs what this needs.

pub mod caller;
mod guard;
pub mod pending;
pub mod places;
mod watch;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use serde::Serialize;

use crate::capture::{
    self, AttachOptions, AttachReport, CaptureError, Outcome, PortStatus, Status,
};
use crate::config::{Config, Paths};
use guard::Guard;
use pending::Pending;
use places::Places;

/// Arguments of `interceptor capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Protect the configured ports; until a daemon serves them they refuse connections.
    Attach(AttachArgs),
    /// Keep the capture of an SSH port: to be run from an SSH session that began after it.
    Confirm,
    /// Give the ports that wait to be confirmed back now.
    Undo,
    /// Stop protecting: every port reaches its service directly again.
    Detach(DirArgs),
    /// Show what is protected, by whom it is served, and what the kernel counted.
    Status(StatusArgs),
    /// Give the ports that wait to be confirmed back when the time is over.
    #[command(hide = true)]
    Watch(Places),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor capture attach --owner interceptor
      protect the ports of all configured services; the daemon runs as `interceptor`
  interceptor capture attach --close-existing
      also close connections that were open before
  interceptor capture attach --netns /run/netns/db
      protect the ports of another network namespace

An SSH port is captured for good only when you are logged in from one of its exempt sources, or
when an earlier capture with the same exempt sources was confirmed. Otherwise it is undone after
two minutes, unless `interceptor capture confirm` is run from a session that began meanwhile.

Running it again is safe: it upgrades the program and updates ports and exempt sources in place.")]
struct AttachArgs {
    #[command(flatten)]
    pins: DirArgs,
    /// Network namespace to protect, as a file (default: the caller's own).
    #[arg(long, value_name = "FILE")]
    netns: Option<PathBuf>,
    /// eBPF object to load instead of the one built in.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// User the daemon runs as; gets the maps it needs.
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Close connections to the protected ports that did not come through the daemon.
    #[arg(long)]
    close_existing: bool,
    /// Keep an SSH port captured although no way in was shown. Only with a console at hand.
    #[arg(long)]
    no_confirm: bool,
    /// Time to confirm the capture of an SSH port, between 1s and 10m.
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = wait)]
    undo_after: Duration,
}

fn wait(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    let fits = (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&time);
    if fits { Ok(time) } else { Err("between 1s and 10m".into()) }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor capture detach
  interceptor capture detach --dir /sys/fs/bpf/interceptor
      needs no configuration")]
struct DirArgs {
    /// Directory of the pins (default: `paths.bpffs` of the configuration).
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor capture status
  interceptor capture status --json | jq '.ports[] | select(.listening == false)'

The exit status is 1 when nothing is attached or something is wrong with it.")]
struct StatusArgs {
    #[command(flatten)]
    pins: DirArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb. Exit status 1 means refused or, for `status`, that something is wrong.
pub fn run(args: &CaptureArgs, config_path: &Path) -> anyhow::Result<ExitCode> {
    run_to(&mut std::io::stdout().lock(), args, config_path)
}

fn run_to(
    out: &mut impl Write,
    args: &CaptureArgs,
    config_path: &Path,
) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Attach(a) => {
            let config = Config::load(config_path)?;
            let guard = Guard { no_confirm: a.no_confirm, undo_after: a.undo_after };
            let (report, lines) = guard::attach(&config, options(a, &config)?, guard)?;
            print_report(out, &report)?;
            print_lines(out, &lines)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Confirm => {
            print_lines(out, &guard::confirm(&places(config_path)?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Undo => {
            print_lines(out, &guard::give_back(&places(config_path)?, None)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Watch(places) => {
            watch::run(places)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Detach(a) => {
            let dir = directory(a, config_path)?;
            capture::detach(&dir)?;
            if let Ok(places) = places(config_path) {
                guard::withdraw(&places)?;
            }
            writeln!(out, "Detached; the ports reach their services directly.")?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status(a) => {
            let waiting = Waiting::look(&places(config_path).unwrap_or_else(|_| {
                // With a broken configuration the pins can still be looked at.
                Places::of(&Paths::default())
            }));
            show(out, a, &directory(&a.pins, config_path)?, &waiting)
        }
    }
}

/// Where the guard keeps its state.
fn places(config_path: &Path) -> anyhow::Result<Places> {
    if !config_path.exists() {
        return Ok(Places::of(&Paths::default()));
    }
    Ok(Places::of(&Config::load(config_path)?.paths))
}

fn print_lines(out: &mut impl Write, lines: &[String]) -> anyhow::Result<()> {
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// What waits to be confirmed, for those who look.
#[derive(Debug, Default, Serialize)]
pub struct Waiting {
    /// The capture that waits.
    pub pending: Option<Pending>,
    /// For people.
    pub lines: Vec<String>,
}

impl Waiting {
    /// Looks; what cannot be read is said.
    pub fn look(places: &Places) -> Self {
        match Pending::read(places) {
            Ok(None) => Self::default(),
            Ok(Some(pending)) => Self { lines: pending.lines(places), pending: Some(pending) },
            Err(error) => Self { pending: None, lines: vec![format!("{error:#}")] },
        }
    }
}

/// Where the pins are. The configuration is read only if needed: detaching must be possible
/// with a broken one.
fn directory(args: &DirArgs, config_path: &Path) -> anyhow::Result<PathBuf> {
    if let Some(dir) = &args.dir {
        return Ok(dir.clone());
    }
    if !config_path.exists() {
        return Ok(Paths::default().bpffs);
    }
    let config = Config::load(config_path).context("to go without it, name the pins by `--dir`")?;
    Ok(config.paths.bpffs)
}

fn options(args: &AttachArgs, config: &Config) -> anyhow::Result<AttachOptions> {
    Ok(AttachOptions {
        dir: args.pins.dir.clone().unwrap_or_else(|| config.paths.bpffs.clone()),
        ports: config.services.iter().map(|s| s.port).collect(),
        exempt: exempt(config),
        netns: args.netns.clone(),
        object: args.object.clone(),
        destroy_existing: args.close_existing,
        owner: args.owner.as_deref().map(user).transpose()?,
        keep_existing: Vec::new(),
    })
}

fn exempt(config: &Config) -> Vec<(IpNet, Vec<u16>)> {
    let ports = |names: &[String]| {
        config.services.iter().filter(|s| names.contains(&s.name)).map(|s| s.port).collect()
    };
    config.capture.exempt.iter().map(|e| (e.source, ports(&e.services))).collect()
}

fn user(name: &str) -> anyhow::Result<(u32, u32)> {
    match nix::unistd::User::from_name(name)? {
        Some(u) => Ok((u.uid.as_raw(), u.gid.as_raw())),
        None => bail!("--owner {name}: no such user; create it first (systemd-sysusers does)"),
    }
}

fn print_report(out: &mut impl Write, report: &AttachReport) -> anyhow::Result<()> {
    let what = match report.outcome {
        Outcome::Created => "Attached",
        Outcome::Replaced => "Attached anew (what was pinned had no effect)",
        Outcome::Upgraded => "Upgraded",
        Outcome::Updated => "Updated",
        Outcome::Unchanged => "Already attached",
    };
    writeln!(out, "{what}; protected ports: {}", list(&report.ports))?;
    if !report.removed.is_empty() {
        writeln!(out, "No longer protected: {}", list(&report.removed))?;
    }
    if report.closed > 0 {
        writeln!(out, "Closed {} older connection(s)", report.closed)?;
    }
    Ok(())
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

fn show(
    out: &mut impl Write,
    args: &StatusArgs,
    dir: &Path,
    waiting: &Waiting,
) -> anyhow::Result<ExitCode> {
    let status = match capture::status(dir) {
        Ok(status) => status,
        Err(e @ CaptureError::NotAttached { .. }) if args.json => {
            let answer = serde_json::json!({ "attached": false, "error": e.to_string() });
            writeln!(out, "{answer:#}")?;
            return Ok(ExitCode::FAILURE);
        }
        Err(e) => return Err(e.into()),
    };
    if args.json {
        let mut answer = serde_json::to_value(&status)?;
        answer["attached"] = (!status.unprotected()).into();
        answer["waiting"] = serde_json::to_value(&waiting.pending)?;
        writeln!(out, "{answer:#}")?;
    } else {
        print_status(out, &status)?;
        for line in &waiting.lines {
            writeln!(out, "WAITS: {line}")?;
        }
    }
    Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_status(out: &mut impl Write, status: &Status) -> anyhow::Result<()> {
    writeln!(out, "Pins {}, network namespace {}", status.dir.display(), status.netns)?;
    writeln!(out, "Program {}", status.program_tag)?;
    writeln!(
        out,
        "\n{:>5}  {:<9}  {:>10}  {:>10}  {:>10}  {:>10}",
        "PORT", "STATE", "STEERED", "REFUSED", "EXEMPT", "UPSTREAM"
    )?;
    for p in &status.ports {
        let PortStatus { port, steered, refused, exempt, own, .. } = p;
        let state = match p.listening {
            Some(true) => "served",
            Some(false) => "refusing",
            None => "unknown",
        };
        writeln!(
            out,
            "{port:>5}  {state:<9}  {steered:>10}  {refused:>10}  {exempt:>10}  {own:>10}"
        )?;
    }
    for e in &status.exempt {
        writeln!(out, "Exempt: {} reaches port {} directly", e.source, e.port)?;
    }
    for problem in &status.problems {
        writeln!(out, "PROBLEM: {problem}")?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CaptureArgs,
    }

    fn said(line: &str, config: &Path) -> (String, anyhow::Result<ExitCode>) {
        let line = Line::try_parse_from(format!("capture {line}").split(' ')).unwrap();
        let mut out = Vec::new();
        let code = run_to(&mut out, &line.args, config);
        (String::from_utf8(out).unwrap(), code)
    }

    #[test]
    fn the_configuration_becomes_ports_and_exempt_sources() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("interceptor.toml");
        let service = |name: &str, port: u16| {
            format!(
                "[[service]]\nname='{name}'\nprotocol='postgres'\nport={port}\naudience='{name}'\n\
                 plaintext_loopback=true\nupstream={{socket='/x'}}\n"
            )
        };
        let exempt = "[[capture.exempt]]\nsource='10.0.0.0/8'\nservices=['b']\n";
        let text = format!("{}{}{exempt}", service("a", 5432), service("b", 5433));
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&file).unwrap();
        let line = Line::try_parse_from(["capture", "attach", "--owner", "root"]).unwrap();
        let Verb::Attach(args) = &line.args.verb else { panic!("{line:?}") };
        let options = options(args, &config).unwrap();
        assert_eq!(options.dir, Path::new("/sys/fs/bpf/interceptor"));
        assert_eq!(options.ports, [5432, 5433]);
        assert_eq!(options.exempt, [("10.0.0.0/8".parse().unwrap(), vec![5433])]);
        assert_eq!(options.owner, Some((0, 0)));
    }

    #[test]
    fn a_host_without_capture_is_told_what_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let (pins, none) = (dir.path().join("pins"), dir.path().join("none.toml"));
        let line = format!("--dir {}", pins.display());
        for verb in ["detach", "status"] {
            let (_, error) = said(&format!("{verb} {line}"), &none);
            let error = error.unwrap_err().to_string();
            assert!(error.contains("interceptor capture attach"), "{verb}: {error}");
        }
        let (out, code) = said(&format!("status --json {line}"), &none);
        assert_eq!(code.unwrap(), ExitCode::FAILURE);
        let out: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(out["attached"], false);
    }

    #[test]
    fn an_unknown_owner_is_an_error() {
        let error = user("no-such-user-here").unwrap_err().to_string();
        assert!(error.contains("no such user"), "{error}");
    }
}
