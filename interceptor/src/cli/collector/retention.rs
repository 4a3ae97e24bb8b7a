//! `interceptor collector retention` and `legal-hold`: what went, what would go, what must stay.

use std::process::ExitCode;

use crate::collector::db::Connection;
use clap::{Args, Subcommand};

use super::super::sessions::moment;
use super::super::table::{Paint, Table, json, print, safe};
use super::operator;
use crate::collector::retention::legal_holds::{self, LegalHold, MOST_COUNTED, Wanted, who_words};
use crate::collector::retention::{self, Preview, Standing};
use crate::collector::{Collector, Config};
use crate::record::now_us;
use crate::record::terminal::local_time;

#[derive(Debug, Args)]
pub(super) struct RetentionArgs {
    /// What the next sweep would delete, by host and rule.
    #[arg(long)]
    dry_run: bool,
    /// JSON for scripts; with --dry-run it names the sessions.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum LegalHoldVerb {
    /// Those that stand, and those that were released.
    List {
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Keep sessions, whatever retention says, until it is released.
    Place(PlaceArgs),
    /// Let go; retention counts again.
    Release {
        /// Its number.
        id: i64,
        /// Why; recorded.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Everything that is said must fit; sessions that come later fall under it too.

Examples:
  interceptor collector legal-hold place --session 01J9ZK3V7Q8M2N4P6R8T0V2X4Z --reason 'case 17'
  interceptor collector legal-hold place --agent billing-bot --from 2026-01-01 --reason 'case 18'")]
pub(super) struct PlaceArgs {
    /// What people call it, such as a case number.
    #[arg(long, default_value = "")]
    name: String,
    /// One session, by its id.
    #[arg(long, conflicts_with_all = ["agent", "principal", "service", "host", "from", "to"])]
    session: Option<String>,
    /// Sessions of this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Sessions for this principal.
    #[arg(long)]
    principal: Option<String>,
    /// Sessions of this service.
    #[arg(long)]
    service: Option<String>,
    /// Sessions on this host: its name, or the beginning of its fingerprint.
    #[arg(long)]
    host: Option<String>,
    /// Sessions that ended then or later: `2026-01-31`, `2026-01-31T12:00`, RFC 3339, `2h` ago.
    #[arg(long, value_parser = moment)]
    from: Option<i64>,
    /// Sessions that began until then.
    #[arg(long, value_parser = moment)]
    to: Option<i64>,
    /// Why; recorded.
    #[arg(long)]
    reason: String,
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

pub(super) async fn show(config: Config, args: RetentionArgs) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    let policy = collector.config.retention.clone();
    if args.dry_run {
        let look = move |db: &Connection| retention::preview(db, &policy, now_us());
        let preview = collector.central.read(look).await?;
        print(&if args.json { json(&preview)? + "\n" } else { would_go(&preview) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let standing = collector.central.read(retention::standing).await?;
    if args.json {
        let all = serde_json::json!({ "policy": policy, "standing": standing });
        print(&(json(&all)? + "\n"))?;
    } else {
        print(&stands(&policy, &standing))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn would_go(p: &Preview) -> String {
    let mut table = Table::new(&["HOST", "RULE", "SESSIONS", "EVENTS"]);
    for g in &p.groups {
        let counts = (g.sessions.to_string(), g.events.to_string());
        table.row([g.host.clone(), g.policy.clone(), counts.0, counts.1]);
    }
    let list = if p.groups.is_empty() { String::new() } else { table.render(Paint::stdout()) };
    format!(
        "{list}{} sessions with {} events would be deleted now; {} more are old enough and under a \
         legal hold.\n",
        p.sessions, p.events, p.held
    )
}

fn stands(policy: &retention::Retention, s: &Standing) -> String {
    let days = |days: Option<u32>| days.map_or("for ever".into(), |d| format!("{d} days"));
    let mut out = format!("default        {}\n", days(policy.days));
    for (at, rule) in policy.rules.iter().enumerate() {
        let mut what = Vec::new();
        for (name, list) in
            [("hosts", &rule.hosts), ("services", &rule.services), ("protocols", &rule.protocols)]
        {
            if !list.is_empty() {
                what.push(format!("{name} {}", list.join(", ")));
            }
        }
        let what = safe(&what.join("; "));
        out += &format!("{:<14} {} for {what}\n", format!("rule {}", at + 1), days(rule.days));
    }
    let at = |us: Option<i64>, none: &str| us.map_or(none.to_owned(), local_time);
    out += &format!(
        "deleted        {} sessions, {} events, {} bytes\noldest kept    {}\nlast sweep     {}\n\
         legal holds    {}\n",
        s.sessions,
        s.events,
        s.bytes,
        at(s.oldest_us, "nothing"),
        at(s.swept_us, "never"),
        s.legal_holds
    );
    if s.pending > 0 {
        out +=
            &format!("pending        {} sessions are deleted and not all taken out\n", s.pending);
    }
    if s.altered > 0 {
        out += &format!(
            "ALTERED        {} old sessions are not as they were sealed, and stay: see \
             `interceptor collector hosts`\n",
            s.altered
        );
    }
    out
}

pub(super) async fn legal_hold(config: Config, verb: LegalHoldVerb) -> anyhow::Result<ExitCode> {
    let collector = Collector::open(config)?;
    match verb {
        LegalHoldVerb::List { json: as_json } => {
            let all = collector.central.read(legal_holds::list).await?;
            print(&if as_json { json(&all)? + "\n" } else { table(&all) })?;
        }
        LegalHoldVerb::Place(args) => {
            let as_json = args.json;
            let place = move |db: &Connection| legal_holds::place(db, args.wanted(), &operator());
            let hold = collector.central.write(place).await?;
            if as_json {
                print(&(json(&hold)? + "\n"))?;
            } else {
                let kept = kept(&hold);
                print(&format!("Placed legal hold {}: it keeps {kept} now.\n", hold.id))?;
            }
        }
        LegalHoldVerb::Release { id, reason } => {
            let release = move |db: &Connection| legal_holds::release(db, id, &reason, &operator());
            collector.central.write(release).await?;
            print(&format!("Released legal hold {id}: retention counts again.\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl PlaceArgs {
    fn wanted(self) -> Wanted {
        Wanted {
            name: self.name,
            session: self.session,
            agent: self.agent,
            principal: self.principal,
            service: self.service,
            host: self.host,
            from_us: self.from,
            to_us: self.to,
            reason: self.reason,
        }
    }
}

fn kept(hold: &LegalHold) -> String {
    match hold.keeps {
        1 => "1 session".into(),
        n if n >= MOST_COUNTED.unsigned_abs() => format!("{n} sessions or more"),
        n => format!("{n} sessions"),
    }
}

fn table(all: &[LegalHold]) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "HOLDS", "KEEPS", "PLACED", "BY", "REASON", "RELEASED"]);
    for h in all {
        let released = match (h.released_us, &h.released_by) {
            (Some(us), Some(by)) => {
                let why = h.release_reason.as_deref().unwrap_or_default();
                format!("{} by {}: {why}", local_time(us), who_words(by))
            }
            _ => String::new(),
        };
        table.row([
            h.id.to_string(),
            h.name.clone(),
            h.words(),
            if h.released_us.is_some() { "-".into() } else { h.keeps.to_string() },
            local_time(h.placed_us),
            who_words(&h.placed_by),
            h.reason.clone(),
            released,
        ]);
    }
    table.render(Paint::stdout())
}
