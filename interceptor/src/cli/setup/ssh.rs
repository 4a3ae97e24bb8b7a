//! `interceptor setup ssh`: makes the authority of session certificates, lets sshd trust it for
//! chosen users and from this host only, and lets the daemon show the host's own keys.

mod door;
mod files;
mod plan;
mod secret;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::{coloured, confirmed};
use crate::cli::sshd::Sshd;
use crate::cli::table::{Paint, json, print};
use crate::config::{Config, DEFAULT_PATH, Paths, Protocol, Service, Ssh};
use crate::sshd::UserCa;
use plan::Plan;

/// What to prepare, and where.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  sudo interceptor setup ssh --user deploy --user reports --dry-run    # show, change nothing
  sudo interceptor setup ssh --user deploy --user reports
  sudo interceptor setup ssh --undo

What it does: a key that signs session certificates, which only the daemon reads; a drop-in by
which sshd trusts it for connections from this host itself, and only for the named OS users; the
host's own keys handed to the daemon by systemd. Logging in otherwise stays as it is. Every
change is shown first, checked with `sshd -t` and by trying a login before sshd is reloaded, and
taken back when a check fails. Nothing is captured: that is `interceptor capture attach`.")]
pub struct SshArgs {
    /// Configured service; needed where there are several for SSH.
    #[arg(long)]
    service: Option<String>,
    /// OS user that agents may become (the policy says which agent); repeat for more. By default
    /// those of the last run.
    #[arg(long = "user", value_name = "NAME")]
    users: Vec<String>,
    /// Allow `--user root`. What an agent does as root, no record of this host can be trusted on.
    #[arg(long)]
    allow_root: bool,
    /// Operating system user the daemon runs as.
    #[arg(long, default_value = "interceptor", value_name = "USER")]
    daemon_user: String,
    #[command(flatten)]
    sshd: Sshd,
    /// The drop-in for sshd.
    #[arg(long, default_value = "/etc/ssh/sshd_config.d/10-interceptor.conf", value_name = "FILE")]
    drop_in: PathBuf,
    /// Where the public half of the key and the principals of each user go.
    #[arg(long, default_value = "/etc/interceptor/ssh", value_name = "DIRECTORY")]
    trust_dir: PathBuf,
    /// Write no systemd drop-ins; the daemon then gets copies of the host's keys.
    #[arg(long)]
    no_systemd: bool,
    /// Directory of systemd's local units.
    #[arg(long, default_value = "/etc/systemd/system", value_name = "DIR")]
    systemd_dir: PathBuf,
    /// Take everything back.
    #[arg(long)]
    undo: bool,
    /// Show the changes and stop.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// JSON for scripts; with --dry-run or --yes.
    #[arg(long)]
    json: bool,
}

/// What the configuration says, or would say.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Name of the service.
    name: String,
    /// The port agents use.
    port: u16,
    /// Its part for SSH.
    ssh: Ssh,
    /// Where the daemon keeps its state, and the pins.
    paths: Paths,
    /// Whether it is configured already.
    configured: bool,
}

impl Wanted {
    /// Where the key of the authority is.
    fn ca_key(&self) -> PathBuf {
        UserCa::path(&self.paths, &self.ssh)
    }
}

/// For scripts.
#[derive(Debug, Serialize)]
struct Report<'a> {
    changes: Vec<plan::Shown>,
    done: bool,
    remarks: Vec<String>,
    service: &'a str,
    next: &'a [String],
}

/// Runs the verb.
pub async fn run(args: &SshArgs, config: &Path) -> anyhow::Result<ExitCode> {
    ensure!(
        !args.json || args.dry_run || args.yes,
        "--json asks nobody: give --dry-run or --yes with it"
    );
    ensure!(nix::unistd::geteuid().is_root(), "run this as root: sudo interceptor setup ssh …");
    let wanted = wanted(args, config)?;
    let plan = if args.undo { Plan::undo(args, wanted)? } else { Plan::make(args, wanted)? };
    let (service, next) = (plan.service_block(), plan.next_steps());
    let report = |done, remarks| {
        let changes = plan.shown();
        json(&Report { changes, done, remarks, service: &service, next: &next })
    };
    if args.dry_run || plan.is_empty() {
        if args.json {
            print(&(report(false, Vec::new())? + "\n"))?;
        } else {
            print(&coloured(&plan.describe(), Paint::stdout()))?;
            closing(args, &service, &next)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.json {
        print(&coloured(&plan.describe(), Paint::stdout()))?;
    }
    if !args.yes && !confirmed()? {
        print("nothing was changed\n")?;
        return Ok(ExitCode::FAILURE);
    }
    let remarks = plan.carry_out().await?;
    if args.json {
        print(&(report(true, remarks)? + "\n"))?;
    } else {
        for remark in remarks {
            print(&format!("{remark}\n"))?;
        }
        closing(args, &service, &next)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn closing(args: &SshArgs, service: &str, next: &[String]) -> anyhow::Result<()> {
    if !args.undo && !service.is_empty() {
        print(&format!("\nFor the configuration:\n\n{service}"))?;
    }
    if !next.is_empty() {
        print(&format!("\nNext:\n{}\n", next.join("\n")))?;
    }
    Ok(())
}

/// The configured SSH service; the usual one where none is configured yet.
fn wanted(args: &SshArgs, path: &Path) -> anyhow::Result<Wanted> {
    let config = match Config::load(path) {
        Ok(config) => Some(config),
        Err(_) if !path.exists() && path == Path::new(DEFAULT_PATH) => None,
        Err(e) => return Err(e).context("setup reads where the daemon keeps its state"),
    };
    let paths = config.as_ref().map(|c| c.paths.clone()).unwrap_or_default();
    let services: Vec<Service> = config
        .map(|c| c.services)
        .unwrap_or_default()
        .into_iter()
        .filter(|s| s.protocol == Protocol::Ssh)
        .filter(|s| args.service.as_ref().is_none_or(|name| s.name == *name))
        .collect();
    match &services[..] {
        [one] => Ok(Wanted {
            name: one.name.clone(),
            port: one.port,
            ssh: one.ssh.clone(),
            paths,
            configured: true,
        }),
        [] => Ok(Wanted {
            name: args.service.clone().unwrap_or_else(|| "host-ssh".into()),
            port: 22,
            ssh: Ssh::default(),
            paths,
            configured: false,
        }),
        _ => bail!("several SSH services are configured: choose one with --service"),
    }
}

#[cfg(test)]
pub(in crate::cli) mod tests;
