//! `interceptor sessions kill`: ends running sessions, on this host or on all of them.

use std::path::Path;
use std::process::ExitCode;

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use crate::cli::approvals::control_socket;
use crate::cli::console::Console;
use crate::cli::table::{json as pretty, print, safe};
use crate::control::Client;
use crate::control::protocol::{Killed, Op};
use crate::session::Target;

/// Which sessions end, and why.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true)))]
#[command(after_help = "Examples:
  interceptor sessions kill --session 01J8Z7Q2M4T8V5N3K6R9WXYABC --reason 'wrong database'
  interceptor sessions kill --agent billing-bot
  interceptor sessions kill --principal ann@example.com
  interceptor sessions kill --token 6f1ed002ab5595859014ebf0951522d9...
  interceptor sessions kill --agent billing-bot --collector https://collector.example.com \\
      --access-token-file ~/token

A token that is ended this way is not taken again on the host; an agent or a principal
may come back with the next token, until a policy or the issuer says otherwise.")]
pub struct KillArgs {
    /// The session with this id.
    #[arg(long, group = "which", value_name = "ID")]
    session: Option<String>,
    /// All sessions of the agent with this registered name.
    #[arg(long, group = "which", value_name = "NAME")]
    agent: Option<String>,
    /// All sessions on behalf of this `sub` or user id.
    #[arg(long, group = "which", value_name = "ID")]
    principal: Option<String>,
    /// All sessions of the token with this `jti`, or with this SHA-256 (of the token or its `jti`).
    #[arg(long, group = "which", value_name = "JTI|SHA256")]
    token: Option<String>,
    /// Why; recorded.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    collector: crate::cli::console::CollectorArgs,
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

impl KillArgs {
    fn target(&self) -> Option<Target> {
        let session = self.session.clone().map(Target::Session);
        let agent = self.agent.clone().map(Target::Agent);
        let principal = self.principal.clone().map(Target::Principal);
        session.or(agent).or(principal).or(self.token.clone().map(Target::Token))
    }
}

/// Runs the verb. Status 1 when nothing was running that could be ended.
pub async fn run(args: KillArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let Some(target) = args.target() else { anyhow::bail!("say which sessions") };
    if let Some(console) = Console::of(&args.collector)? {
        let mut body = serde_json::to_value(&target)?;
        body["reason"] = json!(args.reason);
        let sent: Value = console.post("/api/v1/sessions/kill", &body).await?;
        let hosts = sent["hosts"].as_array().map_or(0, Vec::len);
        let text = format!("{hosts} hosts are told to end {}\n", safe(&target.to_string()));
        print(&if args.json { pretty(&sent)? + "\n" } else { text })?;
        return Ok(if hosts == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let socket = control_socket(config)?;
    let (target, reason) = (target.clone(), args.reason.clone());
    let op = Op::SessionsKill { target, reason };
    let killed: Killed =
        tokio::task::spawn_blocking(move || Client::connect(&socket)?.call(op)).await??;
    let text = match killed.sessions.len() {
        0 => "no such session is running\n".to_owned(),
        n => format!("{n} ended: {}\n", safe(&killed.sessions.join(", "))),
    };
    print(&if args.json { pretty(&killed)? + "\n" } else { text })?;
    Ok(if killed.sessions.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
