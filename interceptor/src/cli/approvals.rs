//! `interceptor approvals`: look at what waits for a human, and decide.

mod remote;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::console::{CollectorArgs, Console};
use super::table::{Paint, Table, bytes, cut, json, json_line, print, safe, safe_block, span};
use crate::approval::{GrantSummary, HoldDetail, HoldSummary, Impact, Scope};
use crate::config::{Config, ConfigError, DEFAULT_PATH, Paths};
use crate::control::Client;
use crate::control::protocol::{Decided, Held, Op};

/// Look at requests that wait for a human, and decide.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  interceptor approvals list
  interceptor approvals show h-7k2m9qa
  interceptor approvals approve h-7k2m9qa --reason 'ticket 4711'
  interceptor approvals approve h-7k2m9qa --for 30m
  interceptor approvals deny h-7k2m9qa --reason 'wrong table'
  interceptor approvals grants
  interceptor approvals revoke g-x81s0cd
  interceptor approvals list --collector https://collector.example.com --access-token-file ~/token

On a host you decide as the person who logged in; sudo keeps that, a plain root shell has nobody.
Nobody decides about a request of their own, of an agent they own, or of their own OS user.")]
pub struct ApprovalsArgs {
    #[command(flatten)]
    collector: CollectorArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// What waits now.
    List {
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
        /// Go on, and print each new request as it comes (with --json, one line each).
        #[arg(long)]
        wait: bool,
    },
    /// One request with its exact statement and values.
    Show {
        /// Its id.
        id: String,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Let it run.
    Approve {
        /// Its id.
        id: String,
        /// Let the same statement shape of this agent run for this long, at most 24h.
        #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
        /// Why; recorded.
        #[arg(long)]
        reason: Option<String>,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Refuse it.
    Deny {
        /// Its id.
        id: String,
        /// Why; recorded and told to the agent.
        #[arg(long)]
        reason: Option<String>,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// What was granted for a time and still stands.
    Grants {
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Withdraw a grant: the next such request waits again.
    Revoke {
        /// The grant's id.
        id: String,
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the verb.
pub async fn run(args: ApprovalsArgs, config: &Path) -> anyhow::Result<ExitCode> {
    if let Some(console) = Console::of(&args.collector)? {
        return remote::run(&console, args.verb).await;
    }
    let mut client = Client::connect(&control_socket(config)?)?;
    let paint = Paint::stdout();
    match args.verb {
        Verb::List { json: as_json, wait: true } => follow(&mut client, as_json, paint)?,
        Verb::List { json: as_json, wait: false } => {
            let held: Held = client.call(Op::ApprovalsList { after: None })?;
            show(&held.holds, as_json, || list(&held.holds, paint))?;
        }
        Verb::Show { id, json: as_json } => {
            let detail: HoldDetail = client.call(Op::ApprovalsShow { id })?;
            show(&detail, as_json, || describe(&detail, paint))?;
        }
        Verb::Approve { id, time, reason, json: as_json } => {
            decide(&mut client, id, true, time, reason, as_json)?;
        }
        Verb::Deny { id, reason, json: as_json } => {
            decide(&mut client, id, false, None, reason, as_json)?;
        }
        Verb::Grants { json: as_json } => {
            let all: Vec<GrantSummary> = client.call(Op::ApprovalsGrants)?;
            show(&all, as_json, || grants(&all, paint))?;
        }
        Verb::Revoke { id, json: as_json } => {
            let gone: GrantSummary = client.call(Op::ApprovalsRevoke { id })?;
            show(&gone, as_json, || {
                format!(
                    "{} is withdrawn: such requests of {} wait again\n",
                    gone.id, gone.key.agent
                )
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The control socket of the configured daemon. A user who may approve need not be able to
/// read the configuration: then it is where it is by default.
pub fn control_socket(config: &Path) -> anyhow::Result<PathBuf> {
    match Config::load(config) {
        Ok(config) => Ok(config.paths.control_socket()),
        Err(ConfigError::Read { .. }) if config == Path::new(DEFAULT_PATH) => {
            Ok(Paths::default().control_socket())
        }
        Err(e) => Err(e).context("the configuration says where the daemon listens"),
    }
}

fn show(
    value: &impl Serialize,
    as_json: bool,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    if as_json { print(&(json(value)? + "\n")) } else { print(&text()) }
}

fn decide(
    client: &mut Client,
    id: String,
    approve: bool,
    time: Option<Duration>,
    reason: Option<String>,
    as_json: bool,
) -> anyhow::Result<()> {
    let for_seconds = time.map(|t| t.as_secs());
    let done: Decided = client.call(Op::ApprovalsDecide { id, approve, for_seconds, reason })?;
    show(&done, as_json, || told(&done))
}

fn told(done: &Decided) -> String {
    let mut out =
        format!("{} {} by {}\n", safe(&done.id), done.outcome, safe(&done.by.to_string()));
    if let (Some(Scope::ShapeFor(time)), Some(grant)) = (done.scope, &done.grant) {
        let _ = writeln!(
            out,
            "the same shape may run for {}; `interceptor approvals revoke {grant}` ends that",
            span(time)
        );
    }
    out
}

fn list(holds: &[HoldSummary], paint: Paint) -> String {
    if holds.is_empty() {
        return "nothing waits\n".into();
    }
    let mut table =
        Table::new(&["ID", "LEFT", "SERVICE", "AGENT", "FOR", "RULES", "STATEMENT (NO VALUES)"]);
    for h in holds {
        table.row([
            h.id.clone(),
            span(Duration::from_millis(h.remaining_ms)),
            format!("{}/{}", h.service, h.database),
            cut(&h.agent, 24),
            cut(&h.principal, 32),
            cut(&h.rules.join(", "), 32),
            cut(&h.shape, 72),
        ]);
    }
    table.render(paint) + "\n`interceptor approvals show ID` shows the exact statement\n"
}

fn describe(detail: &HoldDetail, paint: Paint) -> String {
    let h = &detail.summary;
    let mut out = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "{:<10} {}", format!("{name}:"), safe(value));
    };
    field("id", &h.id);
    field("session", &h.session);
    field("service", &format!("{}, database {}, role {}", h.service, h.database, h.role));
    field("agent", &h.agent);
    field("for", &h.principal);
    field("rules", &h.rules.join(", "));
    if let Some(message) = &h.message {
        field("message", message);
    }
    field("waited", &span(Duration::from_millis(h.waited_ms)));
    field("left", &span(Duration::from_millis(h.remaining_ms)));
    if let Some(why) = &detail.withheld {
        let _ = writeln!(out, "\n{} {}", paint.warn("not shown to you:"), safe(why));
        return out;
    }
    let statement = detail.statement.as_deref().unwrap_or_default();
    let _ = writeln!(out, "\n{}", paint.strong("statement"));
    // Indented, so that no line of it can pass for one of ours.
    for line in safe_block(statement).split('\n') {
        let _ = writeln!(out, "  │ {line}");
    }
    for (n, value) in detail.values.iter().flatten().enumerate() {
        let value = value.as_deref().map_or("NULL".into(), |v| format!("'{}'", safe(v)));
        let _ = writeln!(out, "  ${} = {value}", n + 1);
    }
    if let Some(impact) = &detail.impact {
        touched(&mut out, impact, paint);
    }
    out
}

/// What it would touch: tables with their size, and the plan.
fn touched(out: &mut String, impact: &Impact, paint: Paint) {
    let _ = writeln!(out, "\n{}", paint.strong("it would touch"));
    for t in &impact.tables {
        let how = if t.written { "writes" } else { "reads " };
        let rows = t.rows.map_or("unknown".into(), |n| format!("about {n}"));
        let size = t.bytes.map_or("no size".into(), bytes);
        let _ = writeln!(out, "  {how} {}: {rows} rows, {size}", safe(&t.name));
    }
    for line in impact.plan.iter().flat_map(|plan| plan.split('\n')) {
        let _ = writeln!(out, "  │ {}", safe(line));
    }
    if let Some(remark) = &impact.remark {
        let _ = writeln!(out, "  {}", safe(remark));
    }
}

fn grants(all: &[GrantSummary], paint: Paint) -> String {
    if all.is_empty() {
        return "no grant stands\n".into();
    }
    let mut table =
        Table::new(&["ID", "LEFT", "SERVICE", "AGENT", "BY", "USED", "STATEMENT (NO VALUES)"]);
    for g in all {
        table.row([
            g.id.clone(),
            span(Duration::from_millis(g.remaining_ms)),
            format!("{}/{}", g.key.service, g.key.database),
            cut(&g.key.agent, 24),
            g.by.to_string(),
            g.used.to_string(),
            cut(&g.key.shape, 72),
        ]);
    }
    table.render(paint)
}

/// Prints what waits and then each new request, until interrupted or the daemon goes.
fn follow(client: &mut Client, as_json: bool, paint: Paint) -> anyhow::Result<()> {
    let mut known: HashSet<String> = HashSet::new();
    let mut after = None;
    loop {
        let held: Held = client.call(Op::ApprovalsList { after })?;
        let fresh: Vec<_> = held.holds.iter().filter(|h| !known.contains(&h.id)).cloned().collect();
        for h in &fresh {
            if as_json {
                print(&(json_line(h)? + "\n"))?;
            }
        }
        if !as_json && !fresh.is_empty() {
            print(&list(&fresh, paint))?;
        }
        known = held.holds.into_iter().map(|h| h.id).collect();
        after = Some(held.revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::approval::TableSize;

    fn summary() -> HoldSummary {
        HoldSummary {
            id: "h-7k2m9qa".into(),
            session: "01J0000000000000000000000A".into(),
            service: "orders-db".into(),
            database: "shop".into(),
            role: "app".into(),
            agent: "billing-bot".into(),
            principal: "eve\x1b[2J@example.com".into(),
            shape: "UPDATE orders SET paid = $1".into(),
            rules: vec!["hold-writes".into()],
            message: None,
            opened_us: 0,
            waited_ms: 2000,
            remaining_ms: 58_000,
        }
    }

    #[test]
    fn a_list_names_what_waits_and_cannot_be_repainted() {
        assert_eq!(list(&[], Paint::plain()), "nothing waits\n");
        let text = list(&[summary()], Paint::plain());
        for want in ["h-7k2m9qa", "58s", "orders-db/shop", "billing-bot", "eve\\u{1b}[2J@"] {
            assert!(text.contains(want), "{want} in {text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn show_gives_the_exact_text_line_by_line_or_says_why_not() {
        let mut detail = HoldDetail {
            summary: summary(),
            statement: Some("UPDATE orders\nSET paid = $1 --\x1b]0;x\x07".into()),
            values: Some(vec![Some("it's\n".into()), None]),
            impact: Some(Impact {
                tables: vec![TableSize {
                    name: "public.orders\x1b".into(),
                    written: true,
                    rows: Some(3000),
                    bytes: None,
                }],
                plan: Some("Update on orders\n  ->  Seq Scan on orders".into()),
                remark: Some("no\nmore".into()),
            }),
            withheld: None,
        };
        let text = describe(&detail, Paint::plain());
        for want in [
            "  │ UPDATE orders\n  │ SET paid = $1 --\\u{1b}]0;x\\u{7}\n",
            "$1 = 'it's\\n'",
            "$2 = NULL",
            "  writes public.orders\\u{1b}: about 3000 rows, no size\n",
            "  │ Update on orders\n  │   ->  Seq Scan on orders\n",
            "  no\\nmore\n",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        detail =
            HoldDetail { statement: None, values: None, withheld: Some("no".into()), ..detail };
        let text = describe(&detail, Paint::plain());
        assert!(text.contains("not shown to you: no") && !text.contains("SET paid"));
    }

    #[test]
    fn without_a_daemon_the_message_says_how_to_start_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Client::connect(&dir.path().join("control.sock")).err().unwrap();
        assert!(error.to_string().contains("systemctl start interceptor"), "{error}");
    }
}
