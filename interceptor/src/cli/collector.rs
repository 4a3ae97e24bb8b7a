//! `interceptor collector`: the central service that receives records, shows them, and carries
//! approvals.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::collector::{Collector, Config, Server};

/// Arguments of `interceptor collector`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor collector init
  interceptor collector run")]
pub struct CollectorArgs {
    /// The collector's configuration.
    #[arg(long, global = true, default_value = crate::collector::DEFAULT_PATH,
          env = "INTERCEPTOR_COLLECTOR_CONFIG")]
    collector_config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

impl CollectorArgs {
    /// Whether it goes on until it is stopped.
    pub(super) fn serves(&self) -> bool {
        matches!(self.verb, Verb::Run)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the state directory with its keys.
    Init,
    /// Serve hosts and people.
    Run,
}

/// Runs a verb.
pub async fn run(args: CollectorArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.collector_config)?;
    match args.verb {
        Verb::Init => {
            let keys = Collector::init(&config)?;
            println!("State        {}", config.state.display());
            println!("Authority    SHA-256 {}", keys.authority_pin());
            println!("Signing key  {}", keys.public().fingerprint_hex());
            println!("Back up {}/keys: without it no host comes in again.", config.state.display());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run => serve(config).await,
    }
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let server = Server::new(collector).await?;
    let (hosts, console) = server.addresses()?;
    tracing::info!(%hosts, %console, "collecting");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    tokio::select! {
        () = server.run() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    Ok(ExitCode::SUCCESS)
}
