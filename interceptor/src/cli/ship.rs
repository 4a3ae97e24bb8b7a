//! `interceptor ship`: this host's way to its collector.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::approvals::control_socket;
use super::table::{json, print, safe, span};
use crate::config::{Config, Ship};
use crate::control::protocol::Op;
use crate::control::{Client, ShipStatus, Status};
use crate::record::now_us;
use crate::record::terminal::local_time;
use crate::ship::{Identity, Memory, Spool};

/// This host and its collector.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  interceptor ship enrol --collector https://collector.example.com:8444 \\
      --code 7Q2M4K-… --authority-pin 3f9a…
  interceptor ship status")]
pub struct ShipArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this host known to a collector, with what `interceptor collector enrol` printed.
    Enrol {
        /// Where the collector listens for hosts; as configured in `[ship]` when absent.
        #[arg(long)]
        collector: Option<String>,
        /// The one-time code; `-` reads it from standard input.
        #[arg(long)]
        code: String,
        /// SHA-256 of the collector's authority, hexadecimal.
        #[arg(long, value_name = "SHA256")]
        authority_pin: String,
    },
    /// How far the collector has this host's records.
    Status {
        /// JSON for scripts.
        #[arg(long)]
        json: bool,
    },
}

/// Runs a verb.
pub async fn run(args: ShipArgs, path: &Path) -> anyhow::Result<ExitCode> {
    let config = Config::load(path)?;
    match args.verb {
        Verb::Enrol { collector, code, authority_pin } => {
            let ship = settings(&config, collector)?;
            let code = if code == "-" { std::io::read_to_string(std::io::stdin())? } else { code };
            let name = crate::ship::enrol(&config, &ship, &code, &authority_pin).await?;
            let mut text = format!("Enrolled at {} as {name}.\n", ship.collector);
            if config.ship.is_none() {
                let _ = write!(
                    text,
                    "Add this to {} and restart the daemon:\n\n[ship]\ncollector = {:?}\n",
                    path.display(),
                    ship.collector
                );
            }
            print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status { json } => status(&config, path, json),
    }
}

fn settings(config: &Config, collector: Option<String>) -> anyhow::Result<Ship> {
    let configured = config.ship.clone();
    match (configured, collector) {
        (Some(ship), Some(url)) => Ship { collector: url, ..ship }.checked(),
        (Some(ship), None) => Ok(ship),
        (None, Some(url)) => Ship::at(url).checked(),
        (None, None) => Err("name the collector with --collector".into()),
    }
    .map_err(anyhow::Error::msg)
}

fn status(config: &Config, path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let ship = config.ship.as_ref().context("no collector is configured: see [ship]")?;
    let asked = control_socket(path)
        .and_then(|socket| Ok(Client::connect(&socket)?.call::<Status>(Op::Status)?));
    let (status, running) = match asked {
        Ok(Status { ship: Some(status), .. }) => (status, true),
        _ => (from_disk(config, ship)?, false),
    };
    if as_json {
        print(&(json(&status)? + "\n"))?;
    } else {
        print(&render(&status, running))?;
    }
    Ok(ExitCode::from(u8::from(!running || status.problem.is_some())))
}

/// What is known without the daemon.
fn from_disk(config: &Config, ship: &Ship) -> anyhow::Result<ShipStatus> {
    let dir = ship.state(&config.paths);
    let mut status = ShipStatus { collector: ship.collector.clone(), ..ShipStatus::default() };
    status.problem = Some("the daemon does not answer".into());
    if let Some(identity) = Identity::load(&dir)? {
        status.enrolled = true;
        let until = identity.life.1.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        status.certificate_until_us = i64::try_from(until.as_micros()).ok();
    }
    if dir.join("ship.db").exists() {
        let acknowledged = Memory::open(&dir)?.acknowledged()?;
        let waiting = Spool::open(&config.paths.state)?.waiting(&acknowledged.position)?;
        status.waiting_events = waiting.events;
        status.oldest_us = waiting.oldest_us;
        status.acknowledged_ledger = acknowledged.position.ledger;
        status.acknowledged_us = (acknowledged.at_us > 0).then_some(acknowledged.at_us);
    }
    Ok(status)
}

fn ago(us: i64) -> String {
    let past = u64::try_from(now_us().saturating_sub(us)).unwrap_or(0);
    format!("{} ago", span(Duration::from_micros(past)))
}

/// One line for `interceptor status`.
pub(super) fn line(s: &ShipStatus) -> String {
    let acknowledged = s.acknowledged_us.map_or("nothing acknowledged yet".into(), |us| {
        format!("acknowledged {}", ago(us))
    });
    format!("{}: {} events behind, {acknowledged}", safe(&s.collector), s.waiting_events)
}

fn render(s: &ShipStatus, running: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "collector     {}", safe(&s.collector));
    let state = match (&s.problem, s.connected, s.enrolled) {
        (Some(why), ..) => format!("NOT SHIPPING: {}", safe(why)),
        (None, true, _) => "shipping".into(),
        (None, false, true) => "connecting".into(),
        (None, false, false) => "not enrolled".into(),
    };
    let _ = writeln!(out, "state         {state}");
    let oldest = s.oldest_us.map_or(String::new(), |us| {
        format!(", of sessions that opened since {}", local_time(us))
    });
    let _ = writeln!(out, "behind        {} events{oldest}", s.waiting_events);
    let acknowledged = s.acknowledged_us.map_or("nothing yet".into(), |us| {
        format!("ledger entry {}, {}", s.acknowledged_ledger, ago(us))
    });
    let _ = writeln!(out, "acknowledged  {acknowledged}");
    if let Some(until) = s.certificate_until_us {
        let _ = writeln!(out, "certificate   until {}", local_time(until));
    }
    if running {
        let _ = writeln!(
            out,
            "since start   {} events in {} batches, {} failures",
            s.shipped_events, s.batches, s.errors
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_does_not_ship_says_so() {
        let mut s = ShipStatus {
            collector: "https://c.example:8444".into(),
            enrolled: true,
            connected: true,
            waiting_events: 7,
            acknowledged_us: Some(now_us()),
            acknowledged_ledger: 3,
            ..ShipStatus::default()
        };
        let text = render(&s, true);
        assert!(text.contains("state         shipping") && text.contains("7 events"), "{text}");
        assert!(text.contains("ledger entry 3"), "{text}");
        s.problem = Some("the collector is away\u{1b}[2J".into());
        let text = render(&s, true);
        assert!(text.contains("NOT SHIPPING: the collector is away"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(line(&s).contains("7 events behind, acknowledged"));
    }
}
