//! The measurements of size, and the count of what was recorded.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::bed::Bed;
use crate::bench::Plan;
use crate::bench::cases::{connect, pgbench};
use crate::bench::targets::{Targets, Way, fill, token_login, with_daemon};
use crate::proc::wait_for;

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

/// What memory is taken.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// The daemon with no connection, freshly started.
    pub alone: u64,
    /// Idle TLS connections that were opened.
    pub connections: u32,
    /// More resident memory per idle TLS connection.
    pub per_connection: u64,
    /// Bytes of the large COPY.
    pub copy_bytes: u64,
    /// Before it.
    pub before_copy: u64,
    /// Most during COPY TO STDOUT.
    pub during_copy_out: u64,
    /// Most during COPY FROM STDIN.
    pub during_copy_in: u64,
}

/// Measures memory on a bed of its own.
pub fn memory(plan: &Plan) -> Result<Memory> {
    let bed = with_daemon("process")?;
    fill(&bed, &Plan { rows: 10, scale: 1, ..plan.clone() })?;
    let pid = bed.interceptor()?.process()?.pid();
    let alone = resident(pid)?;
    let login = token_login(&bed)?;
    // The first connection pays for what is made once.
    drop(connect(&bed, &login)?);
    let base = resident(pid)?;
    let mut idle = Vec::new();
    for number in 0..plan.idle {
        let mut raw = connect(&bed, &login).with_context(|| format!("connection {number}"))?;
        raw.ask("SELECT 1")?;
        idle.push(raw);
    }
    let per_connection = resident(pid)?.saturating_sub(base) / u64::from(plan.idle.max(1));
    drop(idle);
    wait_for("the idle connections to end", Duration::from_secs(30), || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app_rw'";
        Ok((bed.db().admin(left)?.trim() == "0").then_some(()))
    })?;
    let before_copy = resident(pid)?;
    let (during_copy_out, during_copy_in) =
        (copy_out(&bed, pid, plan.copy_bytes)?, copy_in(&bed, pid, plan.copy_bytes)?);
    Ok(Memory {
        alone,
        connections: plan.idle,
        per_connection,
        copy_bytes: plan.copy_bytes,
        before_copy,
        during_copy_out,
        during_copy_in,
    })
}

fn copy_out(bed: &Bed, pid: u32, bytes: u64) -> Result<u64> {
    let mut raw = connect(bed, &token_login(bed)?)?;
    raw.query(&format!(
        "COPY (SELECT repeat('x', 1000) FROM generate_series(1, {})) TO STDOUT",
        bytes / 1001
    ))?;
    watched(pid, || {
        let seen = raw.skim()?;
        ensure!(seen.error.is_empty() && seen.bytes >= bytes / 1001 * 1001, "{seen:?}");
        Ok(())
    })
}

fn copy_in(bed: &Bed, pid: u32, bytes: u64) -> Result<u64> {
    let mut raw = connect(bed, &token_login(bed)?)?;
    raw.query("COPY sink FROM STDIN")?;
    ensure!(raw.message()?.tag == b'G', "no CopyInResponse");
    let row = format!("{}\n", "x".repeat(1000));
    let block = crate::wire::encoded(b'd', row.repeat(64).as_bytes())?;
    watched(pid, || {
        for _ in 0..bytes / (1001 * 64) {
            raw.raw(&block)?;
        }
        raw.send(b'c', &[])?;
        let seen = raw.skim()?;
        ensure!(seen.error.is_empty(), "{seen:?}");
        Ok(())
    })
}

/// Does the work while looking at a process; gives back the most memory it had.
fn watched(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let (most, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(resident(pid).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(most.load(Ordering::Relaxed))
}

/// What was sent and what was stored under one durability.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    /// `process` or `disk`.
    pub durability: String,
    /// Transactions per second at 8 clients, prepared, TLS.
    pub rate: f64,
    /// Median latency of 1 client in milliseconds.
    pub median_ms: f64,
    /// Statements that pgbench sent at full load.
    pub sent: u64,
    /// Requests that stand in the record.
    pub stored: u64,
    /// Bytes of the state directory per recorded request.
    pub bytes_per_request: u64,
}

/// Counts at full load.
pub fn stored(durability: &str, plan: &Plan) -> Result<Stored> {
    let bed = with_daemon(durability)?;
    fill(&bed, &Plan { rows: 10, ..plan.clone() })?;
    let state = bed.interceptor()?.state();
    let one = pgbench(&bed, &token_login(&bed)?, 1, "prepared", plan.time)?;
    let (before, size) = (requests(&bed)?, size_of(&state)?);
    let eight = pgbench(&bed, &token_login(&bed)?, 8, "prepared", plan.time)?;
    let known = before.len();
    let mut new = requests(&bed)?.split_off(known);
    // pgbench asks for its tables on a connection of its own before it begins.
    new.sort_unstable();
    let stored: u64 = new.iter().rev().take(8).sum();
    let grown = size_of(&state)?.saturating_sub(size);
    Ok(Stored {
        durability: durability.into(),
        rate: eight.rate,
        median_ms: one.median_ms.unwrap_or_default(),
        sent: eight.count,
        stored,
        bytes_per_request: grown / stored.max(1),
    })
}

/// Requests per recorded session, oldest session first.
fn requests(bed: &Bed) -> Result<Vec<u64>> {
    let sessions = wait_for("all sessions to be closed", Duration::from_secs(60), || {
        let sessions = bed.interceptor()?.sessions()?;
        let open = sessions.iter().any(|s| s["closed_us"].is_null());
        Ok((!open).then_some(sessions))
    })?;
    Ok(sessions.iter().map(|s| s["requests"].as_u64().unwrap_or(0)).collect())
}

fn size_of(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { size_of(&entry.path())? } else { meta.len() };
    }
    Ok(sum)
}

/// TLS version and cipher of every way.
pub fn ciphers(targets: &Targets) -> Result<Vec<(String, String)>> {
    Way::ALL.iter().map(|way| Ok((way.to_string(), targets.cipher(*way)?))).collect()
}
