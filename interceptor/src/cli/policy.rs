//! `interceptor policy`: check rules, run their tests, explain a verdict, reload.
//!
//! All but `reload` work on files alone and need neither daemon nor database.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::table::{Paint, Table, json, print, safe};
use crate::config::{self, Config, Paths};
use crate::control::Client;
use crate::control::protocol::{Op, PolicyStatus};
use crate::identity::{Claims, MAX_TOKEN};
use crate::policy::ssh::testing::Asked;
use crate::policy::ssh::{ForwardKind, Home, LoginShell, ShellAnalyzer};
use crate::policy::testing::{
    Classify, Outcome, SqlClassifier, claims_from, plain_agent, read_catalog, read_tests,
};
use crate::policy::{
    Ask, Effect, Explanation, PolicySet, SshFacts, Stream, Subject, Warning, read_source,
};
use crate::ship::kept::{InForce, Kept};
use crate::sshd::{Account, login_shell as login_shell_of};

/// Policies: check, test, explain, reload.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor policy check
  interceptor policy test ./policies
  interceptor policy explain --service orders-db --role app --database orders \\
      --agent reporter --claims claims.json --statement 'SELECT email FROM customers'
  interceptor policy explain --service host-ssh --role ops --exec 'systemctl restart shop'
  interceptor policy explain --service host-ssh --role ops --sftp write /srv/in/report
  interceptor policy reload")]
pub struct PolicyArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Read every rule, and tell what is wrong or probably not meant.
    ///
    /// Exit status 1: the set cannot be used (or, with --strict, has warnings).
    Check {
        /// The directory; the configured one when absent.
        directory: Option<PathBuf>,
        /// Warnings count as failures.
        #[arg(long)]
        strict: bool,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Run the tests (`*.test.toml`) that stand beside the rules.
    Test {
        /// The directory; the configured one when absent.
        directory: Option<PathBuf>,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Say what the verdict on a statement or an SSH request would be, and why.
    ///
    /// Exit status 1: it would be denied.
    Explain(Box<ExplainArgs>),
    /// Make the running daemon read its policies anew.
    Reload {
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// The service.
    #[arg(long)]
    service: String,
    /// The database role, or the OS user.
    #[arg(long)]
    role: String,
    /// The database; SSH has none.
    #[arg(long, default_value = "")]
    database: String,
    /// The statement; without one or any of the next, the connection itself is judged.
    #[arg(long, group = "asked")]
    statement: Option<String>,
    /// A command by SSH.
    #[arg(long, group = "asked", value_name = "COMMAND")]
    exec: Option<String>,
    /// The login shell that will read the command; the user's on this host when absent, else sh.
    #[arg(long, requires = "exec", value_name = "SHELL")]
    login_shell: Option<String>,
    /// The home directory of the OS user; looked up on this host when absent.
    #[arg(long, value_name = "DIRECTORY")]
    home: Option<String>,
    /// An operation by sftp on one path or two: `read /srv/x`, `rename /srv/x /srv/y`.
    #[arg(long, group = "asked", num_args = 2..=3, value_names = ["OPERATION", "PATH", "TO"])]
    sftp: Option<Vec<String>>,
    /// A forward: `host:port` or `unix:/path`.
    #[arg(long, group = "asked", value_name = "DESTINATION")]
    forward: Option<String>,
    /// A port or socket that the host listens on.
    #[arg(long, group = "asked", value_name = "DESTINATION")]
    remote_forward: Option<String>,
    /// An environment variable.
    #[arg(long, group = "asked", value_name = "NAME")]
    variable: Option<String>,
    /// A subsystem.
    #[arg(long, group = "asked", value_name = "NAME")]
    subsystem: Option<String>,
    /// Any other SSH request: shell, pty, x11, agent-forward, unknown.
    #[arg(long, group = "asked", value_name = "CLASS")]
    request: Option<String>,
    /// File with a claim set in JSON; `-` is standard input.
    #[arg(long, conflicts_with = "token")]
    claims: Option<PathBuf>,
    /// File with an access token; `-` is standard input. Its claims are read, not proven.
    #[arg(long)]
    token: Option<PathBuf>,
    /// Name of the issuer, for claims and for tokens of an issuer that is not configured.
    #[arg(long, default_value = "okta")]
    issuer: String,
    /// Registered agent; found by the claims when absent.
    #[arg(long)]
    agent: Option<String>,
    /// A label of the agent, beside its registered ones.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Where the connection comes from.
    #[arg(long, default_value = "127.0.0.1")]
    source: IpAddr,
    /// The moment; now when absent.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// File whose `[catalog]` describes the tables, as in test files.
    #[arg(long)]
    catalog: Option<PathBuf>,
    /// Directory of policies; the configured one when absent.
    #[arg(long)]
    policies: Option<PathBuf>,
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Runs the verb.
pub async fn run(args: PolicyArgs, config: &Path) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Check { directory, strict, json } => check(directory, config, strict, json),
        // The analysis blocks on threads of its own.
        Verb::Test { directory, json } => {
            let config = config.to_owned();
            tokio::task::spawn_blocking(move || test(directory, &config, json)).await?
        }
        Verb::Explain(args) => {
            let config = config.to_owned();
            tokio::task::spawn_blocking(move || explain(*args, &config)).await?
        }
        Verb::Reload { json } => reload(config, json),
    }
}

/// The configuration when it is there; only `reload` cannot do without.
fn optional_config(path: &Path) -> anyhow::Result<Option<Config>> {
    if path.exists() { Ok(Some(Config::load(path)?)) } else { Ok(None) }
}

fn directory(given: Option<PathBuf>, config: Option<&Config>) -> PathBuf {
    given.unwrap_or_else(|| {
        config.map_or_else(|| Paths::default().policies, |c| c.paths.policies.clone())
    })
}

/// What is in force beside the files: policies that this host took from the centre. A directory
/// that was named is looked at by itself.
fn central(named: bool, config: Option<&Config>) -> anyhow::Result<Option<InForce>> {
    let Some(config) = config.filter(|_| !named) else { return Ok(None) };
    let kept = Kept::of(config).context(
        "policies of the centre are in force here too: run this as root, or name a directory to \
         look at its files alone",
    )?;
    Ok(kept.and_then(|(_, in_force)| in_force))
}

/// Files and what came from the centre, as one.
fn joined(local: PolicySet, central: Option<&InForce>) -> PolicySet {
    match central.and_then(|c| c.policies.as_ref()) {
        Some(central) => local.with_central(central),
        None => local,
    }
}

/// What came from the centre, in a few words.
fn origin(central: &InForce) -> String {
    let version = central.bundle.version;
    match &central.policies {
        Some(policies) => format!(
            "version {version} with {} rules, SHA-256 {:.16}…, taken {}",
            policies.len(),
            central.bundle.sha256,
            crate::record::terminal::local_time(central.since_us)
        ),
        None => format!("withdrawn by version {version}"),
    }
}

#[derive(Serialize)]
struct Checked {
    version: Option<String>,
    /// Version of the centre whose rules are among these.
    central: Option<u64>,
    #[serde(skip)]
    centre: Option<String>,
    rules: usize,
    errors: Vec<String>,
    warnings: Vec<Warning>,
}

fn check(
    given: Option<PathBuf>,
    config: &Path,
    strict: bool,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let config = optional_config(config)?;
    let central = central(given.is_some(), config.as_ref());
    let directory = directory(given, config.as_ref());
    let mut checked = Checked {
        version: None,
        central: None,
        centre: None,
        rules: 0,
        errors: vec![],
        warnings: vec![],
    };
    let central = central.unwrap_or_else(|error| {
        checked.errors.push(format!("{error:#}"));
        None
    });
    match PolicySet::load(&directory) {
        Err(errors) => checked.errors.extend(errors.0.iter().map(ToString::to_string)),
        Ok(local) => {
            let set = joined(local, central.as_ref());
            checked.central = set.central_version();
            checked.centre = central.as_ref().map(origin);
            let (services, agents) = names(config.as_ref());
            checked.version = Some(set.version().to_owned());
            checked.rules = set.len();
            checked.warnings = set.warnings(&services, &agents);
        }
    }
    if let Err(errors) = read_tests(&directory) {
        checked.errors.extend(errors.0.iter().map(ToString::to_string));
    }
    if as_json {
        print(&json(&checked)?)?;
    } else {
        print(&told(&checked, &directory, Paint::stdout()))?;
    }
    let failed = !checked.errors.is_empty() || (strict && !checked.warnings.is_empty());
    Ok(ExitCode::from(u8::from(failed)))
}

fn told(checked: &Checked, directory: &Path, paint: Paint) -> String {
    let mut out = String::new();
    for error in &checked.errors {
        out.push_str(&format!("{} {}\n", paint.bad("error:"), safe(error)));
    }
    for warning in &checked.warnings {
        out.push_str(&format!("{} {}\n", paint.warn("warning:"), safe(&warning.to_string())));
    }
    match &checked.version {
        Some(version) if checked.errors.is_empty() => out.push_str(&format!(
            "{}: {} rules, version {version}, {} warnings\n",
            directory.display(),
            checked.rules,
            checked.warnings.len()
        )),
        _ => out.push_str(&format!("{}: cannot be used\n", directory.display())),
    }
    if let Some(centre) = &checked.centre {
        out.push_str(&format!("from the centre: {centre}\n"));
    }
    out
}

fn names(config: Option<&Config>) -> (Vec<String>, Vec<String>) {
    config.map_or_else(Default::default, |c| {
        (
            c.services.iter().map(|s| s.name.clone()).collect(),
            c.agents.iter().map(|a| a.name.clone()).collect(),
        )
    })
}

fn test(given: Option<PathBuf>, config: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let directory = match given {
        Some(directory) => directory,
        None => self::directory(None, optional_config(config)?.as_ref()),
    };
    let set = PolicySet::load(&directory)?;
    let files = read_tests(&directory)?;
    let classifier = SqlClassifier::new();
    let outcomes: Vec<Outcome> = files.iter().flat_map(|f| f.run(&set, &classifier)).collect();
    let failed = outcomes.iter().filter(|o| o.failure.is_some()).count();
    if as_json {
        print(&json(&outcomes)?)?;
    } else {
        let paint = Paint::stdout();
        for o in &outcomes {
            if let Some(failure) = &o.failure {
                let place = format!("{}:{}: {}", o.file, o.line, o.name);
                print(&format!("{} {}: {}\n", paint.bad("failed"), safe(&place), safe(failure)))?;
            }
        }
        let files = files.len();
        let passed = outcomes.len() - failed;
        print(&format!("{passed} passed, {failed} failed, in {files} files\n"))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

#[derive(Serialize)]
struct Explained {
    statement: Option<String>,
    /// What was found in an SSH request.
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<SshFacts>,
    #[serde(flatten)]
    explanation: Explanation,
}

fn explain(args: ExplainArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let config = optional_config(config)?;
    let central = central(args.policies.is_some(), config.as_ref())?;
    let local = PolicySet::load(&directory(args.policies.clone(), config.as_ref()))?;
    let set = joined(local, central.as_ref());
    let now = args.at.unwrap_or_else(Timestamp::now);
    let subject = subject(&args, config.as_ref(), now)?;
    let mut all = Vec::new();
    match (&args.statement, asked(&args).map_err(anyhow::Error::msg)?) {
        (_, Some(asked)) => {
            let facts = asked.facts(&ShellAnalyzer::new(1), home(&args)?.as_ref());
            all.push(Explained {
                statement: Some(format!("{} {}", facts.class, facts.text)),
                explanation: set.explain(&subject, &Ask::Ssh(&facts), now),
                facts: Some(facts),
            });
        }
        (None, None) => all.push(Explained {
            statement: None,
            facts: None,
            explanation: set.explain(&subject, &Ask::Connect, now),
        }),
        (Some(text), None) => {
            let tables = match &args.catalog {
                Some(path) => read_catalog(&read_source(path)?)?,
                None => Vec::new(),
            };
            let sql = SqlClassifier::new();
            let found = sql.classify(text, &tables).map_err(anyhow::Error::msg)?;
            if found.is_empty() {
                bail!("the statement is empty");
            }
            let masks = set.mask_rules(&subject, now);
            let mut shapes = sql.shapes(text, &tables, &masks).map_err(anyhow::Error::msg)?;
            shapes.resize(found.len(), None);
            all.extend(found.iter().zip(shapes).map(|(facts, refused)| {
                let mut explanation = set.explain(&subject, &Ask::Sql(facts), now);
                if let Some(why) = refused {
                    explanation.verdict.deny_shape(why);
                }
                Explained { statement: Some(facts.text.to_string()), facts: None, explanation }
            }));
        }
    }
    if args.json {
        print(&json(&all)?)?;
    } else {
        for one in &all {
            print(&shown(one, Paint::stdout()))?;
        }
        if let Some(central) = &central {
            print(&format!("from the centre: {}\n", origin(central)))?;
        }
    }
    let denied = all.iter().any(|e| e.explanation.verdict.effect == Effect::Deny);
    Ok(ExitCode::from(u8::from(denied)))
}

/// The home directory that paths of an SSH request are seen from, as the daemon would know it.
fn home(args: &ExplainArgs) -> anyhow::Result<Option<Home>> {
    match &args.home {
        Some(path) => match Home::new(path) {
            Some(home) => Ok(Some(home)),
            None => bail!("--home {path:?}: write a plain absolute path"),
        },
        None => Ok(Account::of(&args.role).as_ref().and_then(Account::home)),
    }
}

fn login_shell(args: &ExplainArgs) -> LoginShell {
    let looked_up = || login_shell_of(&args.role).map(|path| path.display().to_string());
    let path = args.login_shell.clone().or_else(looked_up);
    LoginShell::from_path(path.as_deref().unwrap_or("sh"))
}

/// The SSH request that is asked about.
fn asked(args: &ExplainArgs) -> Result<Option<Asked>, String> {
    let words = args.sftp.as_deref().and_then(<[String]>::split_first);
    Ok(if let Some(command) = &args.exec {
        Some(Asked::Exec(command.clone(), login_shell(args)))
    } else if let Some((operation, paths)) = words {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        Some(Asked::sftp(operation, &paths)?)
    } else if let Some(to) = &args.forward {
        Some(Asked::forward(ForwardKind::Local, to)?)
    } else if let Some(to) = &args.remote_forward {
        Some(Asked::forward(ForwardKind::Remote, to)?)
    } else if let Some(name) = &args.variable {
        Some(Asked::variable(name))
    } else if let Some(name) = &args.subsystem {
        Some(Asked::subsystem(name))
    } else if let Some(class) = &args.request {
        Some(Asked::request(class)?)
    } else {
        None
    })
}

/// What was found in a request, a line for each.
fn seen(facts: &SshFacts) -> String {
    let mut out = String::new();
    let mut say = |what: String| out.push_str(&format!("  {}\n", safe(&what)));
    for program in &facts.programs {
        let args: Vec<_> = program.args.iter().map(|a| a.text.as_str()).collect();
        say(format!("runs {program} {}", args.join(" ")));
    }
    for file in &facts.files {
        say(format!("would {file}"));
    }
    if facts.home.is_none() && !facts.files.is_empty() {
        say("does not know the home directory of the user: no such user on this host; see --home"
            .into());
    }
    for name in &facts.variables {
        say(format!("sets {name}"));
    }
    if let Some(what) = &facts.unseen {
        say(format!("cannot see {what}"));
    }
    out
}

fn shown(one: &Explained, paint: Paint) -> String {
    let verdict = &one.explanation.verdict;
    let mut out = String::new();
    if let Some(text) = &one.statement {
        out.push_str(&format!("{}\n", paint.strong(&safe(text))));
    }
    if let Some(facts) = &one.facts {
        out.push_str(&seen(facts));
    }
    let effect = verdict.effect.as_str();
    let effect = match verdict.effect {
        Effect::Allow => paint.good(effect),
        Effect::Hold => paint.warn(effect),
        Effect::Deny => paint.bad(effect),
    };
    out.push_str(&format!("{effect}, by {}", verdict.deciding_rule()));
    if let Some(hit) = verdict.rules.first() {
        if !hit.file.is_empty() {
            out.push_str(&format!(" of {}", safe(&hit.file)));
        }
        out.push_str(&format!(": {}", safe(&hit.why)));
    }
    out.push('\n');
    if let Some(message) = &verdict.message {
        out.push_str(&format!("message: {}\n", safe(message)));
    }
    let limits = [
        ("rows", verdict.limits.rows),
        ("bytes", verdict.limits.bytes),
        ("seconds", verdict.limits.seconds),
    ];
    for (what, limit) in limits {
        if let Some(limit) = limit {
            out.push_str(&format!("limit: {limit} {what}\n"));
        }
    }
    for mask in &verdict.masks {
        let columns = mask.columns.iter().map(|c| c.as_str().to_owned());
        let kinds = mask.kinds.iter().map(|k| format!("{k} found in text"));
        let what: Vec<_> = columns.chain(kinds).collect();
        out.push_str(&safe(&format!(
            "mask: {} by {} ({}, {})",
            what.join(", "),
            mask.method,
            mask.rule,
            mask.file
        )));
        out.push('\n');
    }
    match &verdict.stream {
        Stream::Plain => {}
        Stream::Masked => out.push_str("output: masked\n"),
        Stream::Unmasked { why } => out.push_str(&format!("output: not masked; {}\n", safe(why))),
    }
    let mut table = Table::new(&["", "RULE", "EFFECT", "WHERE", "WHY"]);
    for note in &one.explanation.rules {
        table.row([
            if note.matched { "*" } else { "" },
            &note.rule,
            note.effect.map_or("-", Effect::as_str),
            &format!("{}:{}", note.file, note.line),
            &note.why,
        ]);
    }
    out.push_str(&table.render(paint));
    out
}

fn subject(args: &ExplainArgs, config: Option<&Config>, now: Timestamp) -> anyhow::Result<Subject> {
    let claims = claims(args, config, now)?;
    let agent = agent(args, config, claims.as_ref())?;
    Ok(Subject {
        claims: claims.map(Arc::new),
        agent: agent.map(Arc::new),
        service: args.service.clone(),
        database: args.database.clone(),
        role: args.role.clone(),
        source: args.source,
        client: None,
    })
}

fn agent(
    args: &ExplainArgs,
    config: Option<&Config>,
    claims: Option<&Claims>,
) -> anyhow::Result<Option<config::Agent>> {
    let registered = config.map(|c| c.agents.as_slice()).unwrap_or_default();
    let mut agent = match (&args.agent, claims) {
        (Some(name), _) => registered
            .iter()
            .find(|a| a.name == *name)
            .cloned()
            .or_else(|| Some(plain_agent(name, Default::default()))),
        (None, Some(claims)) => registered
            .iter()
            .find(|a| {
                a.issuer == claims.issuer
                    && match claims.act.first() {
                        Some(actor) => a.act_sub.as_deref() == Some(&actor.sub),
                        None => a.cid.is_some() && a.cid == claims.cid,
                    }
            })
            .cloned(),
        (None, None) => None,
    };
    if !args.labels.is_empty() {
        let agent = agent.get_or_insert_with(|| plain_agent("agent", Default::default()));
        agent.labels.extend(args.labels.iter().cloned());
    }
    Ok(agent)
}

fn claims(
    args: &ExplainArgs,
    config: Option<&Config>,
    now: Timestamp,
) -> anyhow::Result<Option<Claims>> {
    let (text, is_token) = match (&args.claims, &args.token) {
        (Some(path), _) => (input(path)?, false),
        (_, Some(path)) => (input(path)?, true),
        (None, None) => return Ok(None),
    };
    let set = if is_token { payload(text.trim())? } else { text };
    let value: serde_json::Value =
        serde_json::from_str(&set).context("the claims are no JSON object")?;
    let serde_json::Value::Object(set) = value else { bail!("the claims are no JSON object") };
    let issuer = set
        .get("iss")
        .and_then(|iss| iss.as_str())
        .and_then(|iss| config?.issuers.iter().find(|i| i.url == iss))
        .map_or(args.issuer.clone(), |i| i.name.clone());
    claims_from(set, &issuer, now.as_second()).map(Some).map_err(anyhow::Error::msg)
}

fn payload(token: &str) -> anyhow::Result<String> {
    use base64::Engine as _;
    let mut parts = token.split('.');
    let (Some(_), Some(body), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        bail!("this is no JSON web token: three parts with dots between them");
    };
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(body)
        .context("the middle of the token is no base64")?;
    String::from_utf8(bytes).context("the middle of the token is no text")
}

/// A file, or standard input for `-`, within bounds.
fn input(path: &Path) -> anyhow::Result<String> {
    let limit = u64::try_from(MAX_TOKEN.max(64 << 10))?;
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .take(limit)
            .read_to_string(&mut text)?;
    }
    Ok(text)
}

fn reload(config: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let paths = match optional_config(config)? {
        Some(config) => config.paths,
        None => Paths::default(),
    };
    let mut client = Client::connect(&paths.control_socket())?;
    let status: PolicyStatus = client.call(Op::PolicyReload)?;
    if as_json {
        print(&json(&status)?)?;
    } else if let Some(error) = &status.reload_error {
        print(&format!("{}\n", safe(error)))?;
    } else {
        print(&format!("{} rules, version {}\n", status.rules, safe(&status.version)))?;
    }
    Ok(ExitCode::from(u8::from(status.reload_error.is_some())))
}
