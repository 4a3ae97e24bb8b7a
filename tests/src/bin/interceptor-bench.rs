//! Measures the daemon beside a direct connection, HAProxy and pgbouncer.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use interceptor_tests::bed::cannot_run;
use interceptor_tests::bench::Plan;
use interceptor_tests::bench::cases::{all, measure};
use interceptor_tests::bench::collector::{self, Shippers};
use interceptor_tests::bench::memory::{ciphers, memory, stored};
use interceptor_tests::bench::report::Report;
use interceptor_tests::bench::ssh::{self, SshTargets};
use interceptor_tests::bench::targets::Targets;
use interceptor_tests::proc::Cmd;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Measures speed, memory and recording.
#[derive(Parser)]
struct Options {
    /// One short round with little data: tests the benchmark, measures nothing.
    #[arg(long)]
    quick: bool,
    /// Interleaved rounds of every case.
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of every measurement.
    #[arg(long)]
    seconds: Option<u64>,
    /// Only cases whose name contains this; beside them there are `memory`, `stored`, and for
    /// SSH (all of it: `ssh`) `ssh downloads` and `ssh idle`, and for the collector (all of it:
    /// `collector`) `collector holds`, `collector shipping simple` and `… prepared`.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    if let Some(why) = cannot_run() {
        bail!("{why}");
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard)?;
    let mut plan = if options.quick { Plan::quick() } else { Plan::full() };
    plan.rounds = options.rounds.unwrap_or(plan.rounds);
    plan.time = options.seconds.map_or(plan.time, std::time::Duration::from_secs);
    plan.only.clone_from(&options.only);
    let date = Cmd::new("date").args(["-u", "+%Y-%m-%d %H:%M"]).ok()?;
    let mut report = Report {
        date: date.trim().into(),
        machine: Report::machine(),
        plan: format!("{} round(s) of {} s", plan.rounds, plan.time.as_secs()),
        ..Report::default()
    };
    let cases: Vec<_> = all().into_iter().filter(|c| plan.wants(&c.name)).collect();
    if !cases.is_empty() {
        eprintln!("building two beds and filling them");
        let targets = Targets::build(&plan)?;
        report.ciphers = ciphers(&targets)?;
        for case in &cases {
            report.results.push(measure(&targets, case, &plan)?);
        }
    }
    if plan.wants("memory") {
        eprintln!("  memory");
        report.memory = Some(memory(&plan)?);
    }
    if plan.wants("stored") {
        for durability in ["process", "disk"] {
            eprintln!("  stored with durability {durability}");
            report.stored.push(stored(durability, &plan)?);
        }
    }
    over_ssh(&plan, &mut report)?;
    with_collector(&plan, &mut report)?;
    let file = report.save()?;
    println!("{}\nwritten to {}", report.markdown(), file.display());
    let whole = report.stored.iter().all(|s| s.sent == s.stored);
    if !whole {
        eprintln!("bench: not every statement that was sent is in the record");
    }
    Ok(whole)
}

fn over_ssh(plan: &Plan, report: &mut Report) -> Result<()> {
    let cases: Vec<_> = ssh::all().into_iter().filter(|c| plan.wants(&c.name)).collect();
    let (downloads, idle) = (plan.wants("ssh downloads"), plan.wants("ssh idle"));
    if cases.is_empty() && !downloads && !idle {
        return Ok(());
    }
    if let Some(why) = interceptor_tests::bed::cannot_ssh() {
        bail!("{why}");
    }
    eprintln!("building two beds with an sshd");
    let targets = SshTargets::build(plan)?;
    for case in &cases {
        report.ssh.pairs.push(ssh::measure(&targets, case, plan)?);
    }
    if idle {
        eprintln!("  ssh idle");
        report.ssh.idle = Some(ssh::idle(&targets, plan)?);
    }
    if downloads {
        report.ssh.downloads = Some(ssh::downloads(&targets, plan)?);
    }
    Ok(())
}

fn with_collector(plan: &Plan, report: &mut Report) -> Result<()> {
    let protocols: Vec<_> = collector::PROTOCOLS
        .into_iter()
        .filter(|p| plan.wants(&format!("{} {p}", collector::SHIP)))
        .collect();
    let holds = plan.wants(collector::HOLDS);
    if (holds || !protocols.is_empty()) && interceptor_tests::paths::npm().is_none() {
        bail!("no npm packages: run `cargo xtask setup console`");
    }
    if holds {
        eprintln!("  {}", collector::HOLDS);
        report.collector.holds = Some(collector::holds(plan)?);
    }
    if !protocols.is_empty() {
        eprintln!("building two beds, one with a collector");
        let shippers = Shippers::build(plan)?;
        for protocol in protocols {
            report.collector.shipping.push(shippers.measure(protocol, plan)?);
        }
    }
    Ok(())
}
