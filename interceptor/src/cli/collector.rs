//! `interceptor collector`: the central service that receives records, shows them, and carries
//! approvals.

mod import;
mod keys;
mod policies;
mod probe;
mod retention;
mod status;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::table::{Paint, Table, json, print, safe, span};
use crate::collector::audit::{self, Who};
use crate::collector::hosts::{self, Listed};
use crate::collector::log::{self, Checkpoint, SessionProof, VerifierKey};
use crate::collector::{Collector, CollectorError, Config, Server, codes, log_key, prove};
use crate::record::now_us;
use crate::record::terminal::local_time;

/// Arguments of `interceptor collector`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor collector init
  interceptor collector run
  interceptor collector status
  interceptor collector enrol --name db1
  interceptor collector hosts revoke db1
  interceptor collector retention --dry-run
  interceptor collector legal-hold place --principal eve@example.com --reason 'case 17'
  interceptor collector policies publish ./policies --note 'hold changes of orders'
  interceptor collector keys rotate
  interceptor collector verify --seen checkpoint.txt
  interceptor collector prove 01J9ZK > proof.json
  interceptor collector verify-proof proof.json --key collector.example.com/interceptor+…")]
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
    /// How it is, at one glance; the exit status says whether something needs a person.
    Status(status::StatusArgs),
    /// Print a one-time code with which one host enrols.
    Enrol {
        /// Name under which the host is listed.
        #[arg(long)]
        name: String,
        /// How long the code is good.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        valid_for: Duration,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// The hosts that are known.
    Hosts {
        /// JSON instead of a table.
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        verb: Option<HostsVerb>,
    },
    /// How long sessions are kept, what was deleted, what would be.
    Retention(retention::RetentionArgs),
    /// What must not be deleted: list, place, release.
    LegalHold {
        #[command(subcommand)]
        verb: retention::LegalHoldVerb,
    },
    /// The policies that hosts may take from here.
    Policies {
        /// JSON instead of text.
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        verb: policies::PoliciesVerb,
    },
    /// Which key signs the log, orders and policies: list, change it.
    Keys {
        /// JSON instead of text.
        #[arg(long, global = true)]
        json: bool,
        #[command(subcommand)]
        verb: Option<keys::KeysVerb>,
    },
    /// Bring what this collector kept in SQLite into the empty database of `[store]`.
    ///
    /// While the collector is stopped. Keys, hosts and their certificates stay as they are, so
    /// hosts go on where they were.
    Import {
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Print the proof that a sealed session stands in the log, for somebody else.
    Prove {
        /// Id of the session, or the beginning or end of it.
        session: String,
    },
    /// Check such a proof, with the log's key and nothing else.
    VerifyProof {
        /// The proof; `-` reads standard input.
        proof: PathBuf,
        /// Key of the log, as `log-key` printed it and you kept it.
        #[arg(long)]
        key: String,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Print the key of the log, for those who check proofs.
    LogKey,
    /// Recompute the log and the audit trail, and whether every deletion stands in it; exit status
    /// 1 when something was altered.
    Verify {
        /// A signed checkpoint that somebody kept, such as a host's: the log and the audit trail
        /// must continue it. May be given several times.
        #[arg(long, value_name = "FILE")]
        seen: Vec<PathBuf>,
        /// Read every object of large recordings as well.
        #[arg(long)]
        recordings: bool,
    },
}

#[derive(Debug, Subcommand)]
enum HostsVerb {
    /// All of them.
    List,
    /// Let a host in no more.
    Revoke {
        /// Its name, or the beginning of its fingerprint.
        host: String,
    },
    /// Take the mark off a host whose problem somebody looked into.
    Clear {
        /// Its name, or the beginning of its fingerprint.
        host: String,
    },
}

/// Runs a verb.
pub async fn run(args: CollectorArgs) -> anyhow::Result<ExitCode> {
    if let Verb::VerifyProof { proof, key, json } = &args.verb {
        return verify_proof(proof, key, *json);
    }
    let config = Config::load(&args.collector_config)?;
    match args.verb {
        Verb::VerifyProof { .. } => Ok(ExitCode::FAILURE),
        Verb::Status(args) => status::run(config, args).await,
        Verb::Enrol { name, valid_for, json } => enrol(config, name, valid_for, json).await,
        Verb::Hosts { json, verb } => hosts(config, verb.unwrap_or(HostsVerb::List), json).await,
        Verb::Retention(args) => retention::show(config, args).await,
        Verb::LegalHold { verb } => retention::legal_hold(config, verb).await,
        Verb::Policies { json, verb } => policies::run(config, verb, json).await,
        Verb::Keys { json, verb } => {
            keys::run(config, verb.unwrap_or(keys::KeysVerb::List), json).await
        }
        Verb::Import { json } => import::run(config, json).await,
        Verb::Prove { session } => prove(config, session).await,
        Verb::LogKey => {
            print(&format!("{}\n", log_key(&*Collector::open(config)?)))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Verify { seen, recordings } => verify(config, &seen, recordings).await,
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

fn operator() -> Who {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |u| u.name);
    Who::Operator { user }
}

async fn enrol(
    config: Config,
    name: String,
    valid_for: Duration,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        bail!("a host's name has between 1 and 128 printable characters");
    }
    let collector = Collector::open(config)?;
    let us = i64::try_from(valid_for.as_micros()).context("valid-for is too long")?;
    let kept = name.clone();
    let code = collector
        .central
        .write(move |db| {
            let (who, now) = (operator(), now_us());
            let Who::Operator { user } = &who else { return Err(CollectorError::Stopped) };
            let code = codes::make(db, &kept, user, now, now.saturating_add(us))?;
            let detail = serde_json::json!({ "valid_us": us });
            let entry =
                audit::Entry { who: &who, what: "code.made", target: &kept, detail: &detail };
            audit::append(db, &entry)?;
            Ok(code)
        })
        .await?;
    let port = collector.config.hosts.listen.port();
    let host = collector.config.hosts.names.first().cloned().unwrap_or_default();
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let (url, pin) = (format!("https://{host}:{port}"), collector.keys.authority_pin());
    if as_json {
        let all = serde_json::json!({ "collector": url, "code": code, "authority_pin": pin });
        print(&(json(&all)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "Run this on {}, within {}:\n\n  interceptor ship enrol --collector {url} \\\n      \
         --code {code} \\\n      --authority-pin {pin}\n",
        safe(&name),
        humantime::format_duration(valid_for)
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn hosts(config: Config, verb: HostsVerb, as_json: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let (name, revoke) = match verb {
        HostsVerb::List => {
            let all = collector.central.read(hosts::list).await?;
            print(&if as_json { json(&all)? + "\n" } else { table(&all) })?;
            return Ok(ExitCode::SUCCESS);
        }
        HostsVerb::Revoke { host } => (host, true),
        HostsVerb::Clear { host } => (host, false),
    };
    let host = collector
        .central
        .write(move |db| {
            let host = match hosts::find(db, &name)? {
                Ok(host) => host,
                Err(why) => return Ok(Err(why)),
            };
            if revoke {
                hosts::revoke(db, &host, &operator())?;
            } else {
                hosts::set_problem(db, &host, &operator(), None)?;
            }
            Ok::<_, CollectorError>(Ok(host))
        })
        .await?
        .map_err(anyhow::Error::msg)?;
    let what = if revoke { "Revoked" } else { "Cleared" };
    print(&format!("{what} {} ({}).\n", safe(&host.name), host.fingerprint))?;
    Ok(ExitCode::SUCCESS)
}

fn table(all: &[Listed]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "FINGERPRINT",
        "STATE",
        "EVENTS",
        "SEEN",
        "CERTIFICATE UNTIL",
        "PROBLEM",
    ]);
    for h in all {
        let state = if h.revoked_us.is_some() { "REVOKED" } else { "enrolled" };
        let seen = h.seen_us.map_or("never".into(), |us| {
            let past = u64::try_from(now_us().saturating_sub(us)).unwrap_or(0);
            format!("{} ago", span(Duration::from_micros(past)))
        });
        table.row([
            h.name.clone(),
            h.fingerprint.chars().take(16).collect(),
            state.into(),
            h.events.to_string(),
            seen,
            local_time(h.certificate_until_us),
            h.problem.clone().unwrap_or_default(),
        ]);
    }
    table.render(Paint::stdout())
}

async fn prove(config: Config, session: String) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let of = Arc::clone(&collector);
    let proof = collector
        .central
        .read(move |db| prove::session(db, &of.config.state, of.feed.as_ref(), &session))
        .await?
        .map_err(anyhow::Error::msg)?;
    print(&(json(&proof)? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn verify_proof(path: &Path, key: &str, as_json: bool) -> anyhow::Result<ExitCode> {
    let key = VerifierKey::parse(key)?;
    let mut text = String::new();
    let most = 1 << 20;
    if path == Path::new("-") {
        std::io::stdin().take(most).read_to_string(&mut text)?;
    } else {
        let file = std::fs::File::open(path);
        let file = file.with_context(|| format!("cannot read {}", path.display()))?;
        file.take(most).read_to_string(&mut text)?;
    }
    let proof: SessionProof = serde_json::from_str(&text)
        .with_context(|| format!("{} is no proof of `collector prove`", path.display()))?;
    let proven = proof.verify(&key)?;
    if as_json {
        print(&(json(&proven)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let seal = &proven.seal;
    print(&format!(
        "proved: session {} (number {}) of host {}\n        {} events, ended {:?}, sealed {}\n        \
         head {}\n        stands at place {} of {} in the log {}\n",
        safe(&seal.session),
        seal.number,
        proven.host,
        seal.events,
        seal.reason,
        local_time(proven.sealed_us),
        safe(&seal.head),
        proven.index,
        proven.size,
        safe(&key.name)
    ))?;
    Ok(ExitCode::SUCCESS)
}

async fn verify(config: Config, seen: &[PathBuf], recordings: bool) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let seen = kept(&collector, seen).await?;
    let shared = Arc::clone(&collector);
    let (log, trail, deletions) = collector
        .central
        .read(move |db| {
            let (state, feed) = (&shared.config.state, shared.feed.as_ref());
            let deletions = crate::collector::retention::check(db, state, feed)?;
            let log = prove::check_log(db)?.and_then(|size| match log_continues(db, &seen) {
                Ok(None) => Ok(size),
                Ok(Some(why)) => Err(why),
                Err(e) => Err(e.to_string()),
            });
            let mut heads = match log::store::audit_heads(db, &*shared.keys.in_force(db)?)? {
                Ok(heads) => heads,
                Err(size) => {
                    let what = format!("the checkpoint at {size} is signed by no key of ours");
                    return Ok((Err(what), audit::verify(db)?, deletions));
                }
            };
            heads.extend(seen.iter().filter_map(|c| c.audit).map(|a| (a.id, a.hash)));
            Ok::<_, CollectorError>((log, audit::verify_against(db, &heads)?, deletions))
        })
        .await?;
    let mut clean = true;
    match log {
        Ok(size) => print(&format!("log: {size} sealed sessions, every signed root is theirs\n"))?,
        Err(what) => {
            clean = false;
            print(&format!("LOG ALTERED: {what}\n"))?;
        }
    }
    match trail {
        None => print("audit trail: unaltered, as far as it was signed\n")?,
        Some(id) => {
            clean = false;
            print(&format!("AUDIT TRAIL ALTERED: at step {id}, or the end was taken away\n"))?;
        }
    }
    match deletions {
        Ok(count) => {
            print(&format!("retention: {count} sessions deleted, each in the audit trail\n"))?;
        }
        Err(what) => {
            clean = false;
            print(&format!(
                "DELETED WITHOUT RECORD: {what}, and the audit trail does not say so\n"
            ))?;
        }
    }
    if recordings {
        clean &= verify_recordings(collector).await?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checkpoints that were kept elsewhere, if a key of this collector signed them.
async fn kept(
    collector: &std::sync::Arc<Collector>,
    files: &[PathBuf],
) -> anyhow::Result<Vec<Checkpoint>> {
    let shared = std::sync::Arc::clone(collector);
    let keys = collector.central.read(move |db| shared.keys.in_force(db)).await?;
    let mut all = Vec::new();
    for path in files {
        let mut note = String::new();
        let file = std::fs::File::open(path);
        let file = file.with_context(|| format!("cannot read {}", path.display()))?;
        file.take(64 << 10).read_to_string(&mut note)?;
        let read = Checkpoint::verify_ours(&note, &keys.all());
        all.push(read.with_context(|| format!("{} counts for nothing", path.display()))?);
    }
    Ok(all)
}

/// Why the log does not continue a checkpoint that was kept.
fn log_continues(
    db: &crate::collector::db::Connection,
    seen: &[Checkpoint],
) -> Result<Option<String>, CollectorError> {
    let size = log::store::size(db)?;
    for c in seen {
        if c.size > size {
            return Ok(Some(format!("it had {} leaves and has {size}", c.size)));
        }
        let root = log::tree::root(c.size, &mut |level, at| log::store::node(db, level, at))?;
        if root != c.root {
            return Ok(Some(format!("its first {} leaves are others than were signed", c.size)));
        }
    }
    Ok(None)
}

/// Whether every object is what was put there.
async fn verify_recordings(collector: Arc<Collector>) -> anyhow::Result<bool> {
    let all = collector.central.read(hosts::list).await?;
    let look = move || crate::collector::recordings::check(&collector, &all);
    let found = tokio::task::spawn_blocking(look).await??;
    for problem in &found.problems {
        print(&format!("RECORDING: {}\n", safe(problem)))?;
    }
    let (parts, size) = (found.parts, super::table::bytes(found.bytes));
    print(&format!("recordings: {parts} objects, {size}, as they were put there\n"))?;
    Ok(found.problems.is_empty())
}

/// Takes as many open files as this process may have: a shell's limit fits no fleet.
fn raise_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    raise_files();
    crate::collector::import::is_done(&config)?;
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
