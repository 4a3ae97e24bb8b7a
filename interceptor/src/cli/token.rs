//! `interceptor token`: what the daemon would say of a token, and why.
//!
//! A token is read from a file or from standard input, never from an argument, where every user
//! of the host could see it; it is wiped after use and never printed.

use std::io::{IsTerminal, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::identity::{Inspection, Inspector, MAX_TOKEN, Source, StepState};

/// Looks at access tokens.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Says for each service whether it would accept a token, and which check fails.
    ///
    /// The token is read from standard input or a file, never from an argument. Nothing is
    /// used up: the token is not pinned to a source.
    Inspect(Inspect),
}

#[derive(Debug, clap::Args)]
struct Inspect {
    /// File with the token; standard input when absent or `-`.
    file: Option<PathBuf>,
    /// Only this service.
    #[arg(long)]
    service: Option<String>,
    /// Judge the agent's address set as if the token came from here.
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb with the host's configuration. Exit status 1: no service would accept the token.
pub async fn run(args: Args, config: &Path) -> anyhow::Result<ExitCode> {
    let Verb::Inspect(args) = args.verb;
    let config = Config::load(config)?;
    if let Some(name) = &args.service
        && !config.services.iter().any(|s| s.name == *name)
    {
        bail!("no service {name:?} in the configuration");
    }
    let token = read_token(args.file.as_deref())?;
    // Only who could be the daemon may touch its key-set files.
    let keep = nix::unistd::access(&config.paths.state, nix::unistd::AccessFlags::W_OK).is_ok()
        && std::fs::metadata(&config.paths.state).is_ok_and(|m| {
            std::os::unix::fs::MetadataExt::uid(&m) == nix::unistd::geteuid().as_raw()
        });
    let inspector = Inspector::new(config, keep)?;
    let source = args.source.map(|addr| Source { addr, uid: None });
    let found = inspector.inspect(&token, args.service.as_deref(), source, SystemTime::now()).await;
    let out = &mut std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &found)?;
        writeln!(out)?;
    } else {
        print(out, &found)?;
    }
    Ok(if found.accepted_anywhere() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn read_token(file: Option<&Path>) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // One buffer that never moves: growth would leave copies behind.
    let mut token = Zeroizing::new(Vec::with_capacity(MAX_TOKEN + 16));
    let most = (MAX_TOKEN + 3) as u64;
    match file.filter(|f| *f != Path::new("-")) {
        Some(file) => {
            let open = std::fs::File::open(file).with_context(|| file.display().to_string())?;
            open.take(most).read_to_end(&mut token)?;
        }
        None => {
            if std::io::stdin().is_terminal() {
                eprintln!("paste the token, then press Ctrl-D:");
            }
            std::io::stdin().lock().take(most).read_to_end(&mut token)?;
        }
    }
    while token.last().is_some_and(u8::is_ascii_whitespace) {
        token.pop();
    }
    Ok(token)
}

fn print(out: &mut impl Write, found: &Inspection) -> std::io::Result<()> {
    writeln!(out, "token    sha256 {} ({} bytes)", found.token_sha256, found.bytes)?;
    if let Some(header) = &found.header {
        let parts: Vec<_> = header.iter().map(|(k, v)| format!("{k} {v}")).collect();
        writeln!(out, "header   {}", parts.join(", "))?;
    }
    writeln!(out, "proven   {}", if found.verified { "yes" } else { "no: do not believe it" })?;
    writeln!(out, "agent    {}", found.agent.as_deref().unwrap_or("none registered"))?;
    if let Some(claims) = &found.claims {
        writeln!(out, "claims")?;
        for (name, value) in claims {
            let when = match name.as_str() {
                "iat" | "exp" | "nbf" | "auth_time" => at(value),
                _ => String::new(),
            };
            // Debug form of the name: an unproven token may try to write to the terminal.
            writeln!(out, "  {:<12} {value}{when}", name.escape_debug().to_string())?;
        }
    }
    for issuer in found.issuers.iter() {
        if let Some(error) = &issuer.error {
            writeln!(out, "issuer   {}: {error}", issuer.name)?;
        }
    }
    for service in &found.services {
        let verdict = if service.accepted { "accepted" } else { "refused" };
        writeln!(out, "service  {}: {verdict}", service.service)?;
        for step in &service.steps {
            let sign = match step.state {
                StepState::Passed => "ok",
                StepState::Failed => "FAIL",
                StepState::NotChecked => "-",
            };
            let code = step.code.map(|c| format!("{c}: ")).unwrap_or_default();
            let words = step.message.as_deref().unwrap_or_default();
            writeln!(
                out,
                "{}",
                format!("  {sign:<4} {:<11} {code}{words}", step.check).trim_end()
            )?;
        }
    }
    Ok(())
}

fn at(value: &Value) -> String {
    value
        .as_i64()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map(|t| format!("  ({t})"))
        .unwrap_or_default()
}
