//! `interceptor sessions`: what was recorded, for people and for programs.
//!
//! Everything that came from an agent is made safe before it reaches a terminal.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::json;

use crate::config::Config;
use crate::record::export::{self, Format};
use crate::record::ledger::Anchor;
use crate::record::reader::Hit;
use crate::record::replay::{Pace, Player, print_rows};
use crate::record::terminal::{Style, clock, columns, duration, local_time, safe, safe_lines};
use crate::record::verify::{Options, Report, verify};
use crate::record::{Filter, PublicKey, Reader, Summary, event};

/// Recorded sessions.
#[derive(Debug, Args)]
pub struct SessionsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Sessions, newest first.
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many.
        #[arg(long, short = 'n', default_value_t = 50)]
        limit: usize,
        /// Only sessions older than this number: the next page.
        #[arg(long, value_name = "NUMBER")]
        below: Option<u64>,
        /// JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// One session: claims, requests with verdicts, rows, durations, errors.
    Show {
        /// Id, beginning of an id, or number of the session.
        session: String,
        /// Show results too.
        #[arg(long)]
        rows: bool,
        /// JSON with every event.
        #[arg(long)]
        json: bool,
    },
    /// A session as it happened, with its timing.
    Replay {
        /// Id, beginning of an id, or number of the session.
        session: String,
        /// So many times faster.
        #[arg(long, default_value_t = 1.0, value_parser = speed)]
        speed: f64,
        /// Without waiting.
        #[arg(long)]
        no_wait: bool,
        /// Longest wait between two events.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        max_wait: Duration,
    },
    /// Recompute every chain, seal and checkpoint; exit status 1 on findings.
    Verify {
        /// Compare with a checkpoint that was kept elsewhere. May be repeated.
        #[arg(long, value_name = "FILE")]
        anchor: Vec<PathBuf>,
        /// The host's public key (PEM) from a safe place.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Write records, or the newest checkpoint to be kept elsewhere.
    Export {
        /// Sessions; all that the filters leave when none is named.
        sessions: Vec<String>,
        #[command(flatten)]
        which: Which,
        /// `jsonl` has everything, `ocsf` is for a SIEM.
        #[arg(long, value_enum, default_value = "jsonl")]
        format: Format,
        /// Write the newest signed checkpoint instead, for `verify --anchor`.
        #[arg(long, conflicts_with_all = ["sessions", "format"])]
        checkpoint: bool,
        /// Into a file that must not exist yet.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Find a text in statements, values, claims, agents, messages.
    Search {
        /// The text; ASCII letters match in either case.
        text: String,
        #[command(flatten)]
        which: Which,
        /// At most so many events.
        #[arg(long, short = 'n', default_value_t = 100)]
        limit: usize,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

/// Which sessions.
#[derive(Debug, Args)]
struct Which {
    /// Registered name of the agent.
    #[arg(long)]
    agent: Option<String>,
    /// On whose behalf.
    #[arg(long)]
    principal: Option<String>,
    /// Name of the service.
    #[arg(long)]
    service: Option<String>,
    /// Opened since then: `2h` ago, `2026-01-31`, `2026-01-31T12:00`, or RFC 3339.
    #[arg(long, value_parser = moment)]
    since: Option<i64>,
    /// Opened before then.
    #[arg(long, value_parser = moment)]
    until: Option<i64>,
    /// Only sessions that are open.
    #[arg(long, conflicts_with = "closed")]
    open: bool,
    /// Only sessions that are closed.
    #[arg(long)]
    closed: bool,
}

impl Which {
    fn filter(&self, limit: usize) -> Filter {
        Filter {
            agent: self.agent.clone(),
            principal: self.principal.clone(),
            service: self.service.clone(),
            since_us: self.since,
            until_us: self.until,
            open: (self.open || self.closed).then_some(self.open),
            below: None,
            limit,
        }
    }
}

/// Runs `interceptor sessions …`.
pub async fn run(args: SessionsArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(config)?;
    // SQLite and a replay's waits block: they must not hold a thread of the runtime.
    tokio::task::spawn_blocking(move || run_blocking(&args.action, &config)).await?
}

fn run_blocking(action: &Action, config: &Config) -> anyhow::Result<ExitCode> {
    let reader = Reader::of(config)?;
    for warning in reader.warnings() {
        eprintln!("interceptor: warning: {}", safe(warning));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    match act(action, &reader, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Err(e) if is_closed_pipe(&e) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn act(action: &Action, reader: &Reader, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let style = Style::detect();
    match action {
        Action::List { which, limit, below, json } => {
            let filter = Filter { below: *below, ..which.filter(*limit) };
            list(&reader.list(&filter)?, *json, style, out)?;
        }
        Action::Show { session, rows, json } => {
            let session = reader.find(session)?;
            if *json {
                show_json(reader, &session, out)?;
            } else {
                show(reader, &session, *rows, style, out)?;
            }
        }
        Action::Replay { session, speed, no_wait, max_wait } => {
            let pace =
                if *no_wait { Pace::at_once() } else { Pace { speed: *speed, longest: *max_wait } };
            replay(reader, &reader.find(session)?, pace, style, out)?;
        }
        Action::Verify { anchor, key, json } => {
            let report = verify(reader, &options(anchor, key.as_deref())?)?;
            report_verified(&report, *json, style, out)?;
            return Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Export { sessions, which, format, checkpoint, output } => {
            let mut file;
            let out: &mut dyn Write = match output {
                Some(path) => {
                    let created = std::fs::File::create_new(path)
                        .with_context(|| format!("cannot create {}", path.display()))?;
                    file = BufWriter::new(created);
                    &mut file
                }
                None => out,
            };
            export_records(reader, sessions, which, *format, *checkpoint, out)?;
        }
        Action::Search { text, which, limit, json } => {
            let hits = reader.search(text, &which.filter(*limit))?;
            found(&hits, *json, style, out)?;
            return Ok(if hits.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(
    sessions: &[Summary],
    as_json: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if as_json {
        serde_json::to_writer_pretty(&mut *out, sessions)?;
        return Ok(writeln!(out)?);
    }
    let title = [
        "SESSION",
        "OPENED",
        "FOR",
        "SERVICE",
        "AGENT",
        "PRINCIPAL",
        "ROLE@DATABASE",
        "REQUESTS",
        "DENIED",
        "HELD",
        "STATE",
    ];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    for s in sessions {
        rows.push(vec![
            s.id.clone(),
            local_time(s.opened_us),
            lasted(s),
            safe(&s.service),
            or_dash(s.agent.as_deref()),
            or_dash(s.principal.as_deref()),
            match (&s.role, &s.database) {
                (Some(role), Some(database)) => safe(&format!("{role}@{database}")),
                _ => "-".into(),
            },
            s.requests.to_string(),
            s.denied.to_string(),
            s.held.to_string(),
            safe(state(s)),
        ]);
    }
    write!(out, "{}", columns(&rows, style))?;
    Ok(())
}

fn state(s: &Summary) -> &str {
    match (&s.reason, s.seal) {
        (Some(reason), Some(_)) => reason,
        _ => "open",
    }
}

fn lasted(s: &Summary) -> String {
    let until = s.closed_us.unwrap_or_else(event::now_us);
    duration(u64::try_from(until - s.opened_us).unwrap_or(0))
}

fn or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".into(), safe)
}

fn show_json(reader: &Reader, session: &Summary, out: &mut impl Write) -> anyhow::Result<()> {
    let mut events = Vec::new();
    reader.events(session.number, 0, |e| events.push(export::plain(session, e)))?;
    serde_json::to_writer_pretty(&mut *out, &json!({ "session": session, "events": events }))?;
    Ok(writeln!(out)?)
}

fn show(
    reader: &Reader,
    s: &Summary,
    rows: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    writeln!(out, "{}", style.bold(&format!("session {} (number {})", s.id, s.number)))?;
    let agent = if s.proven { or_dash(s.agent.as_deref()) } else { "unproven".into() };
    for (name, value) in [
        ("service", format!("{} ({}) on {}", safe(&s.service), safe(&s.mode), safe(&s.host))),
        ("opened", format!("{}, {}", local_time(s.opened_us), lasted(s))),
        ("source", format!("{} to {}", safe(&s.source), safe(&s.original_dst))),
        ("agent", agent),
        ("principal", or_dash(s.principal.as_deref())),
        ("role", or_dash(s.role.as_deref())),
        ("database", or_dash(s.database.as_deref())),
        ("client", or_dash(s.client.as_deref())),
        ("state", safe(state(s))),
        (
            "requests",
            format!(
                "{}: {} allowed, {} held, {} denied, {} failed",
                s.requests, s.allowed, s.held, s.denied, s.errors
            ),
        ),
        ("results", format!("{} rows, {} values masked", s.rows, s.masked)),
    ] {
        writeln!(out, "{} {value}", style.dim(&format!("{name:>10}")))?;
    }
    let mut result = Ok(());
    reader.events(s.number, 0, |e| {
        if result.is_ok() {
            result = show_event(e, rows, style, out);
        }
    })?;
    Ok(result?)
}

fn show_event(
    e: &crate::record::StoredEvent<'_>,
    rows: bool,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let at = style.dim(&clock(e.ts_us));
    let body: serde_json::Value = serde_json::from_slice(e.body).unwrap_or_default();
    match e.kind {
        "session.open" => Ok(()),
        "identity.proven" => {
            writeln!(out, "{at} claims")?;
            let text = serde_json::to_string_pretty(&body["claims"]).unwrap_or_default();
            text.lines().try_for_each(|l| writeln!(out, "    {}", safe(l)))
        }
        "request" => {
            let rules = strings(&body["rules"]).join(", ");
            let verdict = style.verdict(word(&body["verdict"]));
            let (n, class) = (&body["n"], safe(word(&body["class"])));
            writeln!(out, "{at} #{n} {verdict} {class} [{}]", safe(&rules))?;
            for line in safe_lines(word(&body["text"])).lines() {
                writeln!(out, "    {line}")?;
            }
            let values = body["values"].as_array().map_or(&[][..], Vec::as_slice);
            for (i, value) in values.iter().enumerate() {
                writeln!(out, "    ${} = {}", i + 1, safe(&value.to_string()))?;
            }
            match body["message"].as_str() {
                Some(m) => writeln!(out, "    {}", safe(m)),
                None => Ok(()),
            }
        }
        "response" => {
            let took = duration(body["duration_us"].as_u64().unwrap_or(0));
            let (n, tag, count) = (&body["n"], safe(word(&body["tag"])), &body["rows"]);
            let masked = body["masked"].as_u64().unwrap_or(0);
            match body["error"].as_object() {
                Some(_) => {
                    let (code, text) = (&body["error"]["code"], &body["error"]["message"]);
                    let text = format!("ERROR {} {}", safe(word(code)), safe(word(text)));
                    writeln!(out, "{at} #{n} {} {took}", style.red(&text))?;
                }
                None => writeln!(out, "{at} #{n} {tag}: {count} rows, {masked} masked, {took}")?,
            }
            if rows { print_rows(out, e.data, style) } else { Ok(()) }
        }
        kind => {
            let text = safe(&String::from_utf8_lossy(e.body));
            writeln!(out, "{at} {} {text}", safe(kind))
        }
    }
}

fn word(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn strings(value: &serde_json::Value) -> Vec<&str> {
    value.as_array().map(|a| a.iter().filter_map(|v| v.as_str()).collect()).unwrap_or_default()
}

fn replay(
    reader: &Reader,
    session: &Summary,
    pace: Pace,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut player = Player::new(out, style, pace);
    let mut result = Ok(());
    reader.events(session.number, 0, |e| {
        if result.is_ok() {
            result = player.play(e);
        }
    })?;
    Ok(result?)
}

fn options(anchors: &[PathBuf], key: Option<&Path>) -> anyhow::Result<Options> {
    let mut options = Options { key: key.map(PublicKey::load).transpose()?, anchors: Vec::new() };
    for path in anchors {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read anchor {}", path.display()))?;
        let anchor: Anchor = serde_json::from_str(&text).with_context(|| {
            format!("{} is no checkpoint of `sessions export --checkpoint`", path.display())
        })?;
        options.anchors.push((path.display().to_string(), anchor));
    }
    Ok(options)
}

fn report_verified(
    report: &Report,
    as_json: bool,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if as_json {
        serde_json::to_writer_pretty(&mut *out, report)?;
        return Ok(writeln!(out)?);
    }
    for note in &report.notes {
        writeln!(out, "{} {}", style.yellow("note:"), safe(note))?;
    }
    for finding in &report.findings {
        let whose = finding.session.map(|n| format!("session {n} ")).unwrap_or_default();
        writeln!(out, "{} {whose}{}", style.red("finding:"), safe(&finding.message))?;
    }
    if report.more_findings > 0 {
        writeln!(out, "{} {} more", style.red("finding:"), report.more_findings)?;
    }
    let Report { sessions, events, ledger, open, deleted, unsigned, .. } = report;
    writeln!(
        out,
        "{sessions} sessions ({open} open), {events} events, {ledger} ledger entries, {deleted} \
         deleted by retention, {unsigned} events not signed by a checkpoint yet"
    )?;
    let verdict = if report.is_clean() {
        style.green("verified: everything is as it was signed")
    } else {
        style.red("NOT verified: the record was changed or is damaged")
    };
    Ok(writeln!(out, "{verdict}")?)
}

fn export_records(
    reader: &Reader,
    names: &[String],
    which: &Which,
    format: Format,
    checkpoint: bool,
    mut out: &mut dyn Write,
) -> anyhow::Result<()> {
    if checkpoint {
        serde_json::to_writer(&mut out, &reader.anchor()?)?;
        writeln!(out)?;
        return Ok(out.flush()?);
    }
    if names.is_empty() {
        // In portions, so that memory stays flat whatever the store holds.
        let mut filter = which.filter(500);
        loop {
            let page = reader.list(&filter)?;
            let Some(last) = page.last() else { break };
            filter.below = Some(last.number);
            for s in &page {
                export::session(reader, s, format, &mut out)?;
            }
        }
    }
    for name in names {
        export::session(reader, &reader.find(name)?, format, &mut out)?;
    }
    Ok(out.flush()?)
}

fn found(hits: &[Hit], as_json: bool, style: Style, out: &mut impl Write) -> anyhow::Result<()> {
    if as_json {
        serde_json::to_writer_pretty(&mut *out, hits)?;
        return Ok(writeln!(out)?);
    }
    for hit in hits {
        let text = match hit.body.get("text").and_then(|t| t.as_str()) {
            Some(text) => text.to_owned(),
            None => hit.body.to_string(),
        };
        let mut short: String = text.chars().take(160).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        let at = style.dim(&local_time(hit.ts_us));
        writeln!(out, "{at} {}:{} {} {}", hit.session, hit.seq, safe(&hit.kind), safe(&short))?;
    }
    Ok(())
}

fn speed(text: &str) -> Result<f64, String> {
    text.parse::<f64>()
        .ok()
        .filter(|s| s.is_finite() && *s > 0.0)
        .ok_or_else(|| "a number above zero, e.g. 4".into())
}

/// A moment in microseconds since the Unix epoch.
fn moment(text: &str) -> anyhow::Result<i64> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(event::now_us().saturating_sub(i64::try_from(ago.as_micros())?));
    }
    if let Ok(t) = text.parse::<Timestamp>() {
        return Ok(t.as_microsecond());
    }
    let local = text
        .parse::<DateTime>()
        .ok()
        .or_else(|| text.parse::<jiff::civil::Date>().ok().map(|d| d.at(0, 0, 0, 0)));
    match local.and_then(|d| d.to_zoned_datetime(TimeZone::system()).ok()) {
        Some(zoned) => Ok(zoned.timestamp().as_microsecond()),
        None => bail!("{text:?} is no time: write 2h, 2026-01-31, 2026-01-31T12:00 or RFC 3339"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_understood_and_nonsense_is_not() {
        let now = event::now_us();
        assert!((now - moment("2h").unwrap() - 7_200_000_000).abs() < 5_000_000);
        assert_eq!(moment("1970-01-01T00:00:01Z").unwrap(), 1_000_000);
        assert!(moment("2026-01-31").unwrap() < moment("2026-01-31T12:00").unwrap());
        assert!(moment("yesterday-ish").is_err());
        assert!(speed("0").is_err() && speed("nan").is_err() && speed("4").is_ok());
    }
}
