//! `interceptor sessions`: what was recorded, for people and for programs.
//!
//! Everything that came from an agent is made safe before it reaches a terminal.

mod kill;
mod show;
mod verified;

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::config::Config;
use crate::record::export::{self, Format};
use crate::record::reader::Hit;
use crate::record::replay::{Pace, Player, first_terminal};
use crate::record::terminal::{Style, local_time, safe};
use crate::record::verify::verify;
use crate::record::{Filter, Reader, Summary, event};

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
    /// One session: claims, requests with verdicts, what became of them, files.
    Show {
        /// Id, beginning of an id, or number of the session.
        session: String,
        /// Show results and output too.
        #[arg(long)]
        rows: bool,
        /// JSON with every event.
        #[arg(long)]
        json: bool,
    },
    /// A session as it happened, with its timing; a terminal as a terminal.
    Replay {
        /// Id, beginning of an id, or number of the session.
        session: String,
        /// Of an SSH session only this channel; when none is named, the first that has a
        /// terminal, or else all of them, one after the other.
        #[arg(long, value_name = "N")]
        channel: Option<u32>,
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
        /// Ask the collector too: every session that it acknowledged must stand in its log as it
        /// was sealed here, and the log must continue the one that was seen before.
        #[arg(long)]
        collector: bool,
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
        /// `jsonl` has everything, `ocsf` is for a SIEM, `asciicast` plays one SSH session.
        #[arg(long, value_enum, default_value = "jsonl")]
        format: Format,
        /// With `asciicast`: this channel; when none is named, as with `replay`.
        #[arg(long, value_name = "N")]
        channel: Option<u32>,
        /// Write the newest signed checkpoint instead, for `verify --anchor`.
        #[arg(long, conflicts_with_all = ["sessions", "format"])]
        checkpoint: bool,
        /// Into a file that must not exist yet.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// End running sessions on this host, or with --collector on every host.
    Kill(kill::KillArgs),
    /// Find a text in statements, commands, output, values, claims, agents, messages.
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
    if let Action::Kill(args) = args.action {
        return kill::run(args, config).await;
    }
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
    match act(action, config, &reader, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?)) {
        Err(e) if is_closed_pipe(&e) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

fn is_closed_pipe(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn act(
    action: &Action,
    config: &Config,
    reader: &Reader,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let style = Style::detect();
    match action {
        Action::List { which, limit, below, json } => {
            let filter = Filter { below: *below, ..which.filter(*limit) };
            show::list(&reader.list(&filter)?, *json, style, out)?;
        }
        Action::Show { session, rows, json } => {
            let session = reader.find(session)?;
            if *json {
                show::json(reader, &session, out)?;
            } else {
                show::text(reader, &session, *rows, style, out)?;
            }
        }
        Action::Replay { session, channel, speed, no_wait, max_wait } => {
            let pace =
                if *no_wait { Pace::at_once() } else { Pace { speed: *speed, longest: *max_wait } };
            replay(reader, &reader.find(session)?, *channel, pace, style, out)?;
        }
        Action::Verify { anchor, key, collector, json } => {
            let report = verify(reader, &verified::options(anchor, key.as_deref())?)?;
            let mut clean = report.is_clean();
            let mut proved = None;
            if *collector {
                let ship =
                    config.ship.as_ref().context("no collector is configured: see [ship]")?;
                let asked = crate::ship::prove(config, ship, reader);
                let answer = tokio::runtime::Handle::current().block_on(asked)?;
                clean &= answer.findings.is_empty();
                proved = Some(answer);
            }
            verified::report(&report, proved.as_ref(), *json, style, out)?;
            return Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Action::Export { sessions, which, format, channel, checkpoint, output } => {
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
            if *checkpoint {
                return checkpoint_to(reader, out);
            }
            export_records(reader, sessions, which, *format, *channel, out)?;
        }
        Action::Search { text, which, limit, json } => {
            let filter = which.filter(*limit);
            let mut hits = reader.search(text, &filter)?;
            hits.extend(reader.search_output(text, &filter)?);
            hits.sort_by_key(|hit| (std::cmp::Reverse(hit.number), hit.seq));
            hits.truncate(*limit);
            found(&hits, *json, style, out)?;
            return Ok(if hits.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        // Asked of the daemon or the collector, before any record is opened.
        Action::Kill(_) => bail!("`kill` needs no record"),
    }
    Ok(ExitCode::SUCCESS)
}

fn replay(
    reader: &Reader,
    session: &Summary,
    channel: Option<u32>,
    pace: Pace,
    style: Style,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let channel = match channel {
        None => first_terminal(reader, session)?,
        named => named,
    };
    let mut player = Player::new(out, style, pace).only(channel);
    let mut result = Ok(());
    reader.events(session.number, 0, |e| {
        if result.is_ok() {
            result = player.play(e);
        }
    })?;
    // However it went, the operator gets the terminal back.
    Ok(result.and(player.finish())?)
}

fn checkpoint_to(reader: &Reader, mut out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    serde_json::to_writer(&mut out, &reader.anchor()?)?;
    writeln!(out)?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn export_records(
    reader: &Reader,
    names: &[String],
    which: &Which,
    format: Format,
    channel: Option<u32>,
    mut out: &mut dyn Write,
) -> anyhow::Result<()> {
    if format == Format::Asciicast && names.len() != 1 {
        bail!("an asciicast holds one session: name it");
    }
    if names.is_empty() {
        // In portions, so that memory stays flat whatever the store holds.
        let mut filter = which.filter(500);
        loop {
            let page = reader.list(&filter)?;
            let Some(last) = page.last() else { break };
            filter.below = Some(last.number);
            for s in &page {
                export::session(reader, s, format, channel, &mut out)?;
            }
        }
    }
    for name in names {
        export::session(reader, &reader.find(name)?, format, channel, &mut out)?;
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
pub(super) fn moment(text: &str) -> anyhow::Result<i64> {
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
