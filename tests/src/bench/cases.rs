//! The measurements of speed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bed::Bed;
use crate::bench::Plan;
use crate::bench::targets::{Targets, Way};
use crate::login::Login;
use crate::wire::{Raw, V3_0};

/// What is measured.
#[derive(Debug, Clone)]
pub enum Kind {
    /// `pgbench -S`.
    Select {
        /// Concurrent clients.
        clients: u32,
        /// pgbench's `-M`.
        protocol: &'static str,
    },
    /// A statement whose result is read and thrown away, again and again.
    Rows {
        /// The statement.
        sql: &'static str,
    },
}

/// One measurement, the same on every way.
#[derive(Debug, Clone)]
pub struct Case {
    /// What stands in the table.
    pub name: String,
    /// With TLS.
    pub tls: bool,
    /// What is done.
    pub kind: Kind,
}

/// What one measurement of one way gave.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Sample {
    /// Transactions, or results, per second.
    pub rate: f64,
    /// Median latency in milliseconds, where every transaction was timed.
    pub median_ms: Option<f64>,
    /// Transactions that were done.
    pub count: u64,
}

/// All samples of one case, per way in the order of rounds.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The case.
    pub name: String,
    /// Samples per way.
    pub samples: BTreeMap<String, Vec<Sample>>,
}

const SELECT: &str = "SELECT id, sensor, label, note FROM readings";
const SELECT_MASKED: &str = "SELECT id, sensor, label, email FROM readings";
const COPY: &str = "COPY readings (id, sensor, label, note) TO STDOUT";
const COPY_MASKED: &str = "COPY readings (id, sensor, label, email) TO STDOUT";

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for tls in [false, true] {
        let with = if tls { "TLS" } else { "plain" };
        for protocol in ["simple", "prepared"] {
            for clients in [1, 8] {
                let name = format!("pgbench -S {protocol} {clients} {with}");
                cases.push(Case { name, tls, kind: Kind::Select { clients, protocol } });
            }
        }
        for (what, sql) in [
            ("SELECT unmasked", SELECT),
            ("SELECT one masked", SELECT_MASKED),
            ("COPY unmasked", COPY),
            ("COPY one masked", COPY_MASKED),
        ] {
            cases.push(Case { name: format!("rows {what} {with}"), tls, kind: Kind::Rows { sql } });
        }
    }
    cases
}

/// Measures one case on every way, interleaved.
pub fn measure(targets: &Targets, case: &Case, plan: &Plan) -> Result<Outcome> {
    let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for round in 1..=plan.rounds {
        for way in Way::ALL {
            eprintln!("  {} · {way} · round {round} of {}", case.name, plan.rounds);
            let login = targets.login(way, case.tls)?;
            let sample = one(targets.bed(way), &login, case, plan)
                .with_context(|| format!("{} through {way}", case.name))?;
            samples.entry(way.to_string()).or_default().push(sample);
        }
    }
    Ok(Outcome { name: case.name.clone(), samples })
}

/// Measures one case on one way, once.
pub fn one(bed: &Bed, login: &Login, case: &Case, plan: &Plan) -> Result<Sample> {
    match case.kind {
        Kind::Select { clients, protocol } => pgbench(bed, login, clients, protocol, plan.time),
        Kind::Rows { sql } => rows(bed, login, sql, u64::from(plan.rows), plan.time),
    }
}

/// Runs `pgbench -S`.
pub fn pgbench(
    bed: &Bed,
    login: &Login,
    clients: u32,
    protocol: &str,
    time: Duration,
) -> Result<Sample> {
    let logs = bed.dir().join("pgbench");
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir(&logs)?;
    let mut cmd = bed
        .client(login, "pgbench")
        .args(["-n", "-S", "-M", protocol, "-c", &clients.to_string()])
        .args(["-j", &clients.min(2).to_string(), "-T", &time.as_secs().to_string()])
        .dir(&logs)
        .limit(time + Duration::from_secs(60));
    // Writing a line per transaction costs; with one client that is the point.
    if clients == 1 {
        cmd = cmd.arg("-l");
    }
    let out = bed.place(login, cmd).ok()?;
    let number = |label: &str| {
        out.lines()
            .find_map(|l| l.strip_prefix(label))
            .and_then(|rest| rest.split([' ', '/']).find(|w| !w.is_empty()))
            .and_then(|word| word.parse::<f64>().ok())
            .with_context(|| format!("no {label:?} in:\n{out}"))
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let count = number("number of transactions actually processed:")? as u64;
    Ok(Sample { rate: number("tps =")?, median_ms: median_of_log(&logs)?, count })
}

/// The third column of pgbench's log is the latency in microseconds.
fn median_of_log(dir: &std::path::Path) -> Result<Option<f64>> {
    let mut micros: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let text = std::fs::read_to_string(entry?.path())?;
        micros.extend(text.lines().filter_map(|l| l.split(' ').nth(2)?.parse::<u32>().ok()));
    }
    if micros.is_empty() {
        return Ok(None);
    }
    let middle = micros.len() / 2;
    let (_, median, _) = micros.select_nth_unstable(middle);
    Ok(Some(f64::from(*median) / 1000.0))
}

/// A connection by hand, with TLS or without.
pub fn connect(bed: &Bed, login: &Login) -> Result<Raw> {
    let tls = login.sslmode != "disable";
    let mut raw = if tls { Raw::tls(bed.net(), login)? } else { Raw::tcp(bed.net(), login)? };
    raw.log_in(login, V3_0, &[])?;
    Ok(raw)
}

fn rows(bed: &Bed, login: &Login, sql: &str, expected: u64, time: Duration) -> Result<Sample> {
    let mut raw = connect(bed, login)?;
    let begun = Instant::now();
    let mut count = 0_u32;
    while count == 0 || begun.elapsed() < time {
        raw.query(sql)?;
        let seen = raw.skim()?;
        ensure!(seen.rows == expected, "{} rows instead of {expected}: {}", seen.rows, seen.error);
        count += 1;
    }
    let rate = f64::from(count) / begun.elapsed().as_secs_f64();
    Ok(Sample { rate, median_ms: None, count: u64::from(count) })
}
