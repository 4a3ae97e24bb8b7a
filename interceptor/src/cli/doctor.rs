//! `interceptor doctor`: looks for what is wrong on this host, above all for ways to a
//! protected service that do not lead through the daemon.
//!
//! It only reads. What it cannot see for want of privilege it says.

mod capture;
mod hba;
mod host;
mod server;
mod ssh;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::procfs;
use super::table::{Paint, json, print, safe};
use crate::config::{Config, Protocol, Upstream};

/// Find other ways to the protected services, and what is wrong on this host.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo interceptor doctor
  sudo interceptor doctor --json | jq '.[] | select(.severity == \"error\")'

The exit status is 1 when there is an error. It only reads; as root it sees more.")]
pub struct DoctorArgs {
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The protection has a hole, or nothing works.
    Error,
    /// Weaker than it should be, or soon a problem.
    Warning,
    /// Good to know.
    Info,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Stable name of the check.
    pub check: &'static str,
    /// What was found.
    pub what: String,
    /// What that means.
    pub means: String,
    /// What to do.
    pub fix: String,
}

/// Findings as they come.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        check: &'static str,
        what: impl Into<String>,
        means: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let (what, means, fix) = (what.into(), means.into(), fix.into());
        self.0.push(Finding { severity, check, what, means, fix });
    }
}

/// Runs the verb.
pub async fn run(args: DoctorArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let mut found = examine(config);
    found.sort_by_key(|f| f.severity);
    if args.json {
        print(&(json(&found)? + "\n"))?;
    } else {
        print(&render(&found, Paint::stdout()))?;
    }
    let failed = found.iter().any(|f| f.severity == Severity::Error);
    Ok(ExitCode::from(u8::from(failed)))
}

fn examine(path: &Path) -> Vec<Finding> {
    let mut found = Findings::default();
    if !nix::unistd::geteuid().is_root() {
        found.add(
            Severity::Info,
            "privilege",
            "not run as root",
            "sockets of other users, pins and foreign programs cannot be seen",
            "run `sudo interceptor doctor`",
        );
    }
    host::kernel(&mut found);
    host::clock(&mut found);
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(e) => {
            found.add(
                Severity::Error,
                "config",
                e.to_string(),
                "the daemon does not start, so every protected port is refused",
                "mend the file; then run this again, for the rest could not be checked",
            );
            return found.0;
        }
    };
    host::state(&config, &mut found);
    host::policies(path, &mut found);
    host::tls(&config, &mut found);
    host::approvers(&config, &mut found);
    host::daemon(&config, &mut found);
    let captured = capture::check(&config, &mut found);
    let postmasters = server::postmasters();
    for service in config.services.iter().filter(|s| s.protocol == Protocol::Ssh) {
        ssh::check(service, &config, &mut found);
    }
    for service in config.services.iter().filter(|s| s.protocol == Protocol::Postgres) {
        server::check(service, &config, captured, &postmasters, &mut found);
        if let Upstream::Unix { socket } = &service.upstream {
            server::socket_mode(service, socket, &mut found);
        }
    }
    found.0
}

fn render(found: &[Finding], paint: Paint) -> String {
    let mut out = String::new();
    for f in found {
        let label = match f.severity {
            Severity::Error => paint.bad("error  "),
            Severity::Warning => paint.warn("warning"),
            Severity::Info => paint.faint("info   "),
        };
        let _ = writeln!(out, "{label}  {} [{}]", safe(&f.what), f.check);
        let _ = writeln!(out, "         means: {}", safe(&f.means));
        let _ = writeln!(out, "         fix:   {}\n", safe(&f.fix));
    }
    let count = |s| found.iter().filter(|f| f.severity == s).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let line = format!("{errors} errors, {warnings} warnings");
    let _ = writeln!(out, "{}", if errors > 0 { paint.bad(&line) } else { paint.good(&line) });
    out
}

#[cfg(test)]
mod tests;
