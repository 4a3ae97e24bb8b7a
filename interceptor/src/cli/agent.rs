//! `interceptor agent`: the helper on the agent's side.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::table::print;
use crate::agent::present::Desk;
use crate::agent::settings::{Given, directory};
use crate::agent::{AgentKey, Grant, Issuer, Keeper, Kind, Settings, Socket, run};

/// Gets tokens for an agent and carries them to protected hosts.
#[derive(Debug, Args)]
#[command(after_help = "\
Once:
  interceptor agent key                     # prints the public key to register at the issuer
  cat > ~/.config/interceptor/agent.toml <<END
  issuer = \"https://example.okta.com/oauth2/default\"
  client_id = \"0oa1billing\"
  scopes = [\"host-ssh.connect\"]
  users = [\"deploy\"]
  END

Then:
  interceptor agent run -- ssh db1 uptime
  interceptor agent run -- rsync -a out/ deploy@db1:/srv/out/
  interceptor agent serve --socket ~/.ssh/interceptor.sock &
  SSH_AUTH_SOCK=~/.ssh/interceptor.sock sftp deploy@db1

It needs no root and no daemon. Every setting of the file is also a flag (--client-id) and an
environment variable (INTERCEPTOR_AGENT_CLIENT_ID); secrets are files.")]
pub struct AgentArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the agent's key and print its public part.
    Key(KeyArgs),
    /// Serve an ssh-agent socket with an always fresh certificate, until it is ended.
    Serve(ServeArgs),
    /// Run a command that finds the socket by SSH_AUTH_SOCK.
    Run(RunArgs),
    /// Get a token and show it.
    Token(TokenArgs),
    /// Present a bound token to a protected host: its key then opens SSH by itself.
    Present(DeskArgs),
    /// Get a one-time ticket from a protected host, to be used as the password within 60 seconds.
    Ticket(DeskArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor agent key                          # a P-256 key at ~/.config/interceptor/agent.key
  interceptor agent key --type rsa --key ./bot.key
  interceptor agent key --show --json | jq .jwk  # the public key of the one that is there")]
struct KeyArgs {
    /// File for the private key, mode 0600; never overwritten.
    #[arg(long, value_name = "FILE", env = "INTERCEPTOR_AGENT_KEY")]
    key: Option<PathBuf>,
    /// What kind of key.
    #[arg(long = "type", value_enum, default_value_t)]
    kind: Kind,
    /// Show the key that is there, and make none.
    #[arg(long)]
    show: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    given: Given,
    /// Settings file.
    #[arg(long, value_name = "FILE", env = "INTERCEPTOR_AGENT_SETTINGS")]
    settings: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor agent serve --socket ~/.ssh/interceptor.sock
  interceptor agent serve --socket /run/bot/agent.sock --json

The socket's path is printed as a line for the shell, or as JSON.")]
struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// Where the socket stands; by default in a new private directory.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Offer the key by itself too, after the certificate.
    #[arg(long)]
    plain_key: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor agent run -- ssh db1 uptime
  interceptor agent run --user deploy -- git clone deploy@db1:/srv/repo.git

The exit status is the command's own; 128 and its number when a signal ended it.")]
struct RunArgs {
    #[command(flatten)]
    common: Common,
    /// Offer the key by itself too, after the certificate.
    #[arg(long)]
    plain_key: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor agent token                        # what the issuer gave, without the token itself
  PGPASSWORD=\"$(interceptor agent token --raw --unbound)\" psql -h db1 orders

A bound token opens PostgreSQL only beside a TLS client certificate of the same key.")]
struct TokenArgs {
    #[command(flatten)]
    common: Common,
    /// Print the token and nothing else.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Ask for a token that is not bound to the key.
    #[arg(long)]
    unbound: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor agent present --at https://db1.example.com:8443 --service host-ssh
  SSH_ASKPASS_REQUIRE=force SSH_ASKPASS=./ticket.sh ssh db1   # ticket.sh: interceptor agent ticket --raw …")]
struct DeskArgs {
    #[command(flatten)]
    common: Common,
    /// The protected host's address for this.
    #[arg(long, value_name = "URL")]
    at: String,
    /// Name of the service there.
    #[arg(long, value_name = "NAME")]
    service: String,
    /// More certificate authorities (PEM) for that host.
    #[arg(long, value_name = "FILE")]
    at_ca: Option<PathBuf>,
    /// Use a token that is not bound to the key (tickets only).
    #[arg(long)]
    unbound: bool,
    /// Print the ticket and nothing else.
    #[arg(long, conflicts_with = "json")]
    raw: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How long the first token may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the verb.
pub async fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Key(args) => key(&args),
        Verb::Serve(args) => serve(args).await,
        Verb::Run(args) => run_command(args).await,
        Verb::Token(args) => token(args).await,
        Verb::Present(args) => desk(args, "present").await,
        Verb::Ticket(args) => desk(args, "ticket").await,
    }
}

impl Common {
    fn complete(self) -> anyhow::Result<Settings> {
        let named = self.settings.is_some();
        let path = self.settings.or_else(|| Some(directory()?.join("agent.toml")));
        let file = match path {
            Some(path) => Given::read(&path, named).map_err(anyhow::Error::msg)?,
            None => Given::default(),
        };
        self.given.or(file).complete().map_err(anyhow::Error::msg)
    }

    fn issuer(self) -> anyhow::Result<Arc<Issuer>> {
        Ok(Arc::new(Issuer::new(self.complete()?)?))
    }
}

fn key(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let path = match &args.key {
        Some(path) => path.clone(),
        None => directory().context("no home directory: give --key FILE")?.join("agent.key"),
    };
    let key = if args.show {
        AgentKey::load(&path)?
    } else {
        make_directory(&path)?;
        AgentKey::create(&path, args.kind)?
    };
    let jwk = public_jwk(&key)?;
    let ssh = key.public().to_openssh()?;
    let text = if args.json {
        let all = json!({ "file": path, "thumbprint": key.jkt(), "jwk": jwk, "ssh": ssh });
        serde_json::to_string_pretty(&all)? + "\n"
    } else {
        format!(
            "file        {}\nthumbprint  {}\nssh         {ssh}\n\nRegister this public key for the client at the issuer:\n{}\n",
            path.display(),
            key.jkt(),
            serde_json::to_string_pretty(&jwk)?,
        )
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The public key as an issuer wants it.
fn public_jwk(key: &AgentKey) -> anyhow::Result<Value> {
    let mut jwk = serde_json::to_value(key.jwk())?;
    jwk["kid"] = json!(key.jkt());
    jwk["use"] = json!("sig");
    jwk["alg"] = json!(if jwk["kty"] == "EC" { "ES256" } else { "RS256" });
    Ok(jwk)
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("create {}", directory.display()))
}

/// The agent, running: a socket and what serves it.
struct Agent {
    socket: Arc<Socket>,
    tasks: tokio::task::JoinSet<()>,
    first: Arc<crate::agent::Credential>,
}

async fn start(common: Common, path: Option<&Path>, plain_key: bool) -> anyhow::Result<Agent> {
    let issuer = common.issuer()?;
    let keeper = Keeper::start(Arc::clone(&issuer), PATIENCE).await?;
    let current = keeper.current();
    let first = current.borrow().clone().context("no token")?;
    let socket = Arc::new(Socket::new(path)?);
    let key = Arc::new(AgentKey::load(&issuer.settings().key)?);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keeper.run());
    let served = Arc::clone(&socket);
    tasks.spawn(async move { served.serve(key, current, plain_key).await });
    Ok(Agent { socket, tasks, first })
}

impl Agent {
    /// Ends what serves the socket, so that it can be removed.
    async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let agent = start(args.common, args.socket.as_deref(), args.plain_key).await?;
    let path = agent.socket.path();
    let text = if args.json {
        let claims = &agent.first.grant.claims;
        json!({ "socket": path, "sub": claims["sub"], "expires_at": claims["exp"] }).to_string()
    } else {
        format!("SSH_AUTH_SOCK={}; export SSH_AUTH_SOCK;", shell_word(&path.to_string_lossy()))
    };
    print(&(text + "\n"))?;
    std::io::stdout().flush()?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    agent.stop().await;
    Ok(ExitCode::SUCCESS)
}

async fn run_command(args: RunArgs) -> anyhow::Result<ExitCode> {
    let agent = start(args.common, None, args.plain_key).await?;
    let outcome = run::run(&args.command, agent.socket.path()).await;
    agent.stop().await;
    Ok(ExitCode::from(outcome?))
}

async fn token(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let issuer = args.common.issuer()?;
    let grant = issuer.grant(!args.unbound).await?;
    if args.raw {
        print(&format!("{}\n", grant.token.expose_secret()))?;
    } else if args.json {
        print(&(serde_json::to_string_pretty(&described(&grant))? + "\n"))?;
    } else {
        let lines = described(&grant);
        let lines = lines.as_object().into_iter().flatten();
        let text: String = lines.map(|(name, value)| format!("{name:<14} {value}\n")).collect();
        print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A token in words, without the token.
fn described(grant: &Grant) -> Value {
    let expires = grant.expires_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "token_sha256": crate::identity::hash_token(grant.token.expose_secret().as_bytes()),
        "bound": grant.bound,
        "expires_at": expires.as_secs(),
        "lifetime_s": grant.lifetime.as_secs(),
        "claims": grant.claims,
    })
}

async fn desk(args: DeskArgs, what: &str) -> anyhow::Result<ExitCode> {
    if args.unbound && what == "present" {
        bail!("only a bound token can be presented: use `interceptor agent ticket --unbound`");
    }
    if args.raw && what == "present" {
        bail!("presenting gives nothing to print: leave --raw out");
    }
    let issuer = args.common.issuer()?;
    let desk = Desk::new(&args.at, args.at_ca.as_deref())?;
    let grant = issuer.grant(!args.unbound).await?;
    let answer = desk.ask(what, &args.service, &issuer, &grant).await?;
    let text = match (what, args.raw, args.json) {
        (_, _, true) => answer.to_string(),
        (_, true, _) => answer["ticket"].as_str().context("no ticket in the answer")?.to_owned(),
        ("ticket", ..) => format!(
            "ticket      {}\nfor         {} seconds, once, from this host\n{}",
            answer["ticket"].as_str().context("no ticket in the answer")?,
            answer["expires_in"],
            if grant.bound { "with        the agent's key (its token is bound)" } else { "" },
        ),
        _ => format!("presented   for {} until {}", args.service, answer["expires_at"]),
    };
    print(&(text.trim_end().to_owned() + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// A word that a shell reads as it is.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_word() {
        assert_eq!(shell_word("/run/user/1000/a.sock"), "/run/user/1000/a.sock");
        assert_eq!(shell_word("/tmp/a b'; rm"), r"'/tmp/a b'\''; rm'");
    }
}
