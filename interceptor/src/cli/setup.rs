//! `interceptor setup`: prepares a service so that nobody reaches it but the daemon, and
//! undoes that.
//!
//! Every change is shown first, is marked as ours in the file it stands in, keeps the file
//! before, is checked by the server and by trying, and is taken back when the check fails.

mod block;
mod change;
mod plan;
mod server;
mod ssh;
mod systemd;

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use super::table::{Paint, print};
use crate::config::{Config, DEFAULT_PATH, Service, Upstream};
use plan::Plan;

/// Prepare a service to be protected, or undo it.
#[derive(Debug, Args)]
pub struct SetupArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Close PostgreSQL's Unix socket to all but the daemon and the server's own user.
    Postgres(Box<PostgresArgs>),
    /// Let sshd trust the daemon's session certificates for chosen users.
    Ssh(Box<ssh::SshArgs>),
}

/// What to prepare, and where.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:
  sudo interceptor setup postgres                      # the one configured service
  sudo interceptor setup postgres --service orders-db --role app --role reports
  sudo interceptor setup postgres --dry-run            # show, change nothing
  sudo interceptor setup postgres --undo

What it does: first lines in pg_hba.conf that let only mapped OS users in through the Unix
socket; a map in pg_ident.conf from the daemon's OS user to the named roles (and of the
server's own user to its superuser role, which it could take anyway); roles that are missing,
without privileges; socket mode 0770 now and in postgresql.conf; systemd drop-ins so that the
server starts only behind the capture. TCP lines stay as they are: the port is captured.")]
pub struct PostgresArgs {
    /// Configured service; needed where there are several.
    #[arg(long)]
    service: Option<String>,
    /// Database role that agents use through the daemon; repeat for more. By default those of
    /// the configured service.
    #[arg(long = "role", value_name = "NAME")]
    roles: Vec<String>,
    /// Operating system user the daemon runs as.
    #[arg(long, default_value = "interceptor", value_name = "USER")]
    daemon_user: String,
    /// Data directory of the running server, instead of the configured socket.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// pg_hba.conf, where the server does not say.
    #[arg(long, value_name = "FILE")]
    hba: Option<PathBuf>,
    /// pg_ident.conf, where the server does not say.
    #[arg(long, value_name = "FILE")]
    ident: Option<PathBuf>,
    /// postgresql.conf, where the server does not say.
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// Directory of the server's Unix socket, where it has several.
    #[arg(long, value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// Leave mode and settings of the Unix socket as they are.
    #[arg(long)]
    keep_socket_mode: bool,
    /// Shut out the server's own OS user too: only the daemon can connect.
    #[arg(long)]
    no_admin: bool,
    /// Refuse TCP as well; exempt sources then reach the server no more.
    #[arg(long)]
    reject_tcp: bool,
    /// systemd unit of the server, instead of the one it runs in; repeat for more.
    #[arg(long = "unit", value_name = "UNIT")]
    units: Vec<String>,
    /// Write no systemd drop-ins.
    #[arg(long, conflicts_with = "units")]
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
}

/// Runs the verb.
pub async fn run(args: SetupArgs, config: &Path) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Postgres(args) => {
            let service = service(&args, config)?;
            postgres(&args, service.as_ref())
        }
        Verb::Ssh(args) => ssh::run(&args, config).await,
    }
}

/// The configured service, where one is needed or there.
fn service(args: &PostgresArgs, config: &Path) -> anyhow::Result<Option<Service>> {
    let named = args.service.is_some() || args.data_dir.is_none();
    let config = match Config::load(config) {
        Ok(config) => config,
        Err(_) if !named && config == Path::new(DEFAULT_PATH) => return Ok(None),
        Err(e) => return Err(e).context("give --data-dir to do without a configuration"),
    };
    let mut found: Vec<_> = config
        .services
        .into_iter()
        .filter(|s| args.service.as_ref().is_none_or(|name| s.name == *name))
        .collect();
    match (found.len(), &args.service) {
        (1, _) => Ok(found.pop()),
        (0, Some(name)) => bail!("no service {name:?} is configured"),
        _ if !named => Ok(None),
        (0, None) => bail!("no service is configured: give --data-dir"),
        _ => bail!("several services are configured: choose one with --service"),
    }
}

fn postgres(args: &PostgresArgs, service: Option<&Service>) -> anyhow::Result<ExitCode> {
    let server = locate(args, service)?;
    let plan =
        if args.undo { Plan::undo(args, server)? } else { Plan::make(args, service, server)? };
    if plan.is_empty() {
        print(if args.undo {
            "nothing of setup is there: nothing to undo\n"
        } else {
            "everything is set up already: nothing to do\n"
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&coloured(&plan.describe(), Paint::stdout()))?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !confirmed()? {
        print("nothing was changed\n")?;
        return Ok(ExitCode::FAILURE);
    }
    for note in plan.carry_out()? {
        print(&format!("{note}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn locate(args: &PostgresArgs, service: Option<&Service>) -> anyhow::Result<server::Server> {
    let mut server = match (&args.data_dir, service.map(|s| &s.upstream)) {
        (Some(data), _) => server::Server::of_data_dir(data)?,
        (None, Some(Upstream::Unix { socket })) => server::Server::of_socket(socket)?,
        _ => bail!("the service is reached over TCP: give --data-dir of the server on this host"),
    };
    if let Some(dir) = &args.socket_dir {
        server.socket_dir = dir.clone();
    }
    ensure!(
        server.socket().exists(),
        "no socket at {}: is the server running?",
        server.socket().display()
    );
    Ok(server)
}

fn confirmed() -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    ensure!(stdin.is_terminal(), "nobody can be asked here: read the changes and give --yes");
    print!("\nMake these changes? [y/N] ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn coloured(text: &str, paint: Paint) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let line = match line.as_bytes().first() {
            _ if line.starts_with("+++") || line.starts_with("---") => paint.strong(line),
            Some(b'+') => paint.good(line),
            Some(b'-') => paint.bad(line),
            Some(b'@') => paint.faint(line),
            _ => line.to_owned(),
        };
        let _ = writeln!(out, "{line}");
    }
    out
}

#[cfg(test)]
pub(super) use ssh::tests as ssh_bed;
#[cfg(test)]
pub(super) mod tests;
