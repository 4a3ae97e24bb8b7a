//! The command line, one file per verb.

pub mod agent;
pub mod approvals;
pub mod capture;
pub mod collector;
pub mod console;
pub mod daemon;
pub mod doctor;
pub mod policy;
mod procfs;
pub mod sessions;
pub mod setup;
pub mod ship;
mod sshd;
pub mod status;
pub mod table;
pub mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Stands on protected ports: proves who acts for whom, applies policy before a request reaches
/// the server, masks what must not flow out, records every session.
#[derive(Debug, Parser)]
#[command(name = "interceptor", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, global = true, default_value = crate::config::DEFAULT_PATH, env = "INTERCEPTOR_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve the captured connections of all configured services.
    Daemon(daemon::DaemonArgs),
    /// Attach the protected ports, detach them, show them.
    Capture(capture::CaptureArgs),
    /// Recorded sessions: list, show, replay, search, verify, export.
    Sessions(sessions::SessionsArgs),
    /// Requests that wait for a human: list, show, approve, deny.
    Approvals(approvals::ApprovalsArgs),
    /// The central service: receives records, shows them, carries approvals.
    Collector(collector::CollectorArgs),
    /// This host and its collector: enrol, status.
    Ship(ship::ShipArgs),
    /// Policies: check, test, explain, reload.
    Policy(policy::PolicyArgs),
    /// Look into a token: which checks it passes.
    Token(token::Args),
    /// On the agent's side: get tokens and carry them to protected hosts.
    Agent(agent::AgentArgs),
    /// The daemon at one glance.
    Status(status::StatusArgs),
    /// Find other ways to the protected services, and what is wrong on this host.
    Doctor(doctor::DoctorArgs),
    /// Prepare a service to be protected, or undo it.
    Setup(setup::SetupArgs),
    /// Print a shell completion script.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

/// Parses the command line and runs the verb: 0 fine, 1 refused or failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()) * 2);
        }
    };
    let serving = match &cli.verb {
        Verb::Daemon(_) => true,
        Verb::Collector(args) => args.serves(),
        _ => false,
    };
    log(serving);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Sessions have threads of their own (see session::workers).
        .worker_threads(1)
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("interceptor: {error:#}");
        ExitCode::FAILURE
    })
}

impl Cli {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.config;
        match self.verb {
            Verb::Daemon(args) => Box::pin(daemon::run(args, &config)).await,
            Verb::Capture(args) => capture::run(&args, &config),
            Verb::Sessions(args) => sessions::run(args, &config).await,
            Verb::Approvals(args) => approvals::run(args, &config).await,
            Verb::Collector(args) => Box::pin(collector::run(args)).await,
            Verb::Ship(args) => ship::run(args, &config).await,
            Verb::Policy(args) => policy::run(args, &config).await,
            Verb::Token(args) => token::run(args, &config).await,
            Verb::Agent(args) => agent::run(args).await,
            Verb::Status(args) => status::run(args, &config).await,
            Verb::Doctor(args) => doctor::run(args, &config).await,
            Verb::Setup(args) => setup::run(args, &config).await,
            Verb::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Self::command(),
                    "interceptor",
                    &mut std::io::stdout(),
                );
                Ok(ExitCode::SUCCESS)
            }
            Verb::Man { directory } => {
                std::fs::create_dir_all(&directory)?;
                clap_mangen::generate_to(Self::command(), &directory)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn log(serving: bool) {
    let filter = EnvFilter::try_from_env("INTERCEPTOR_LOG")
        .unwrap_or_else(|_| EnvFilter::new(if serving { "info" } else { "warn" }));
    // The journal stamps lines itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if journal { builder.without_time().init() } else { builder.init() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// An argument of a verb with the name of a global one would silently take its place.
    #[test]
    fn no_verb_takes_the_place_of_the_configuration() {
        fn look(command: &clap::Command, path: &str) {
            for verb in command.get_subcommands() {
                let path = format!("{path} {}", verb.get_name());
                let own =
                    verb.get_arguments().any(|a| a.get_id() == "config" && !a.is_global_set());
                assert!(!own, "{path} has an argument of its own that is called `config`");
                look(verb, &path);
            }
        }
        Cli::command().debug_assert();
        look(&Cli::command(), "interceptor");
        let line = ["interceptor", "--config", "/x.toml", "setup", "ssh", "--user", "deploy"];
        assert_eq!(Cli::try_parse_from(line).unwrap().config, Path::new("/x.toml"));
    }
}
