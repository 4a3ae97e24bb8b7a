//! The collector: how soon people see what waits, how soon a decision is done, and how much CPU
//! time shipping costs the daemon of a host.
//!
//! Everything is real: a daemon with PostgreSQL behind it, enrolled at a collector process, and a
//! person who is logged in at its console. All of it runs on the two cores that are measured.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;
use serde_json::Value;

use crate::bed::{Bed, Spec};
use crate::bench::Plan;
use crate::bench::targets::{daemon_spec, fill, token_login};
use crate::central::{Central, ORIGIN, page};
use crate::net::Place;
use crate::proc::wait_for;
use crate::tokens::Claims;
use crate::visitor::Visitor;
use crate::wire::Raw;

/// Most milliseconds at the 95th percentile, from the client to the console and back again.
pub const HOLD_MS: f64 = 200.0;
/// Most of the CPU time per statement that shipping may add.
pub const SHIPPING: f64 = 0.05;
/// Long enough for a loaded machine; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(60);
/// Without a word for so long nothing of an earlier sample is on its way any more.
const QUIET: Duration = Duration::from_millis(150);
/// Clients of pgbench while CPU time is counted.
const CLIENTS: u32 = 8;
/// The names, for the filter.
pub const HOLDS: &str = "collector holds";
/// Beginning of the names of the two ways to send statements.
pub const SHIP: &str = "collector shipping";
/// Pairs of each round of the plan: short ones, so that both of a pair find the same machine.
const PAIRS: u32 = 3;
/// pgbench's `-M` that are measured.
pub const PROTOCOLS: [&str; 2] = ["simple", "prepared"];
/// The rules of the bed whose statements are held: one table asks, its twin does not.
const RULES: &str = "\
[[rule]]\nname = \"agents-connect\"\non = \"connect\"\neffect = \"allow\"\n
[[rule]]\nname = \"ask\"\neffect = \"hold\"\nstatement = \"update\"\nwrites = [\"orders\"]\n
[[rule]]\nname = \"plain\"\neffect = \"allow\"\nstatement = \"update\"\nwrites = [\"twin\"]\n";

/// What was measured of the collector.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Holds and decisions.
    pub holds: Option<Holds>,
    /// CPU time of the daemon, per way to send statements.
    pub shipping: Vec<Shipping>,
}

/// One number for each held statement, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Holds {
    /// From the client's send until the console's page shows the request.
    pub seen_ms: Vec<f64>,
    /// From the approval in the console until the client has its answer.
    pub done_ms: Vec<f64>,
    /// The same statement on a table that needs no approval.
    pub plain_ms: Vec<f64>,
}

impl Holds {
    /// Median of what the statement itself takes.
    pub fn plain(&self) -> f64 {
        at(&self.plain_ms, 50)
    }
}

/// CPU time of the daemon in microseconds per statement, one number per round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Shipping {
    /// pgbench's `-M`.
    pub protocol: &'static str,
    /// Statements of each round.
    pub statements: u64,
    /// Without a collector.
    pub without_us: Vec<f64>,
    /// Enrolled at one; everything shipped and acknowledged.
    pub with_us: Vec<f64>,
    /// Of that, what the thread that ships used itself.
    pub ship_us: Vec<f64>,
}

/// A percentile by rank.
pub fn at(numbers: &[f64], percent: usize) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or(f64::NAN)
}

/// The console's stream of words that something changed, as its page listens to it.
struct Words(Receiver<()>);

impl Words {
    fn listen(bed: &Bed, who: &Visitor) -> Result<Self> {
        let url = format!("{ORIGIN}/live/approvals");
        let stream = bed.net().inside(Place::Host, || who.stream(&url))?;
        let (sender, words) = channel();
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().context("no answer")??;
        ensure!(first.contains(" 200 "), "{url}: {first}");
        std::thread::spawn(move || {
            // Ends with the connection, or when nobody wants to hear any more.
            for line in lines.map_while(|l: std::io::Result<String>| l.ok()) {
                if line.starts_with("event: ") && sender.send(()).is_err() {
                    break;
                }
            }
        });
        let me = Self(words);
        me.next().context("no greeting")?;
        Ok(me)
    }

    fn next(&self) -> Result<()> {
        self.0.recv_timeout(SOON).context("the console says nothing")
    }

    fn until_quiet(&self) {
        while self.0.recv_timeout(QUIET).is_ok() {}
    }
}

/// Holds statements, sees them in the console as its page does, and approves them there.
pub fn holds(plan: &Plan) -> Result<Holds> {
    let mut spec = Spec::default().policies(&[("holds.toml", RULES)]);
    spec.daemon.get_or_insert_default().start = false;
    let mut bed = Bed::with(spec)?;
    bed.db().admin(
        "CREATE TABLE twin AS SELECT * FROM orders; GRANT SELECT, UPDATE ON twin TO app_rw",
    )?;
    let central = Central::start(&bed, &[("00u-ann", "Ann Approver", &["approvers"])])?;
    central.join(&mut bed, "bed")?;
    let mut ann = central.log_in(&bed, "00u-ann")?;
    let login = bed.login_with("app_rw", &Claims::reporter().lasting(3500))?;
    let mut raw = Raw::ready(bed.net(), &login)?;
    let words = Words::listen(&bed, &ann)?;
    let mut all = Holds::default();
    // The first pays for what is made once.
    for n in 0..=plan.holds {
        let plain = plain(&mut raw, n)?;
        let (seen, path) = seen(&bed, &mut ann, &mut raw, &words, n)?;
        let done = approved(&bed, &mut ann, &mut raw, &path)?;
        words.until_quiet();
        if n > 0 {
            all.plain_ms.push(plain);
            all.seen_ms.push(seen);
            all.done_ms.push(done);
        }
    }
    Ok(all)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn plain(raw: &mut Raw, n: u32) -> Result<f64> {
    let begun = Instant::now();
    let answer = raw.ask(&format!("UPDATE twin SET status = 's{n}' WHERE id = 11"))?;
    let time = ms(begun);
    ensure!(answer.iter().any(|m| m.tag == b'C'), "{answer:?}");
    Ok(time)
}

/// Sends a statement; how long until the page of requests shows it, and where it is decided.
fn seen(
    bed: &Bed,
    ann: &mut Visitor,
    raw: &mut Raw,
    words: &Words,
    n: u32,
) -> Result<(f64, String)> {
    let begun = Instant::now();
    raw.query(&format!("UPDATE orders SET status = 's{n}' WHERE id = 11"))?;
    loop {
        words.next()?;
        let list = page(bed, ann, "/approvals")?.text();
        let link = list.split("class=\"hold\" href=\"").nth(1);
        if let Some(path) = link.and_then(|t| t.split('"').next()) {
            return Ok((ms(begun), path.to_owned()));
        }
    }
}

/// Approves a request in the console; how long until its client has the answer.
fn approved(bed: &Bed, ann: &mut Visitor, raw: &mut Raw, path: &str) -> Result<f64> {
    let csrf = wait_for("the form", SOON, || {
        let shown = page(bed, ann, path)?;
        Ok(shown.csrf().filter(|_| shown.text().contains("name=\"decision\"")))
    })?;
    let url = format!("{ORIGIN}{path}");
    let form = [("csrf", &*csrf), ("decision", "approve"), ("reason", "")];
    // The answer may be at the client before it is at the person.
    let (answer, said) = std::thread::scope(|scope| {
        let person = scope.spawn(|| {
            bed.net().inside(Place::Host, || {
                let begun = Instant::now();
                Ok((begun, ann.post(&url, &form)?))
            })
        });
        let answer = raw.until_ready().map(|messages| (Instant::now(), messages));
        (answer, person.join())
    });
    let (end, messages) = answer?;
    let Ok(said) = said else { bail!("the person panicked") };
    let (begun, said) = said?;
    ensure!(said.status == 303, "{}: {}", said.status, said.text());
    ensure!(messages.iter().any(|m| m.tag == b'C'), "{messages:?}");
    Ok(end.saturating_duration_since(begun).as_secs_f64() * 1000.0)
}

/// Two beds, one enrolled at a collector.
pub struct Shippers {
    without: Bed,
    with: Bed,
    central: Central,
}

impl Shippers {
    /// Builds both, with pgbench's tables.
    pub fn build(plan: &Plan) -> Result<Self> {
        let small = Plan { rows: 10, ..plan.clone() };
        let without = Bed::with(daemon_spec("process"))?;
        fill(&without, &small)?;
        let mut spec = daemon_spec("process");
        spec.daemon.get_or_insert_default().start = false;
        let mut with = Bed::with(spec)?;
        fill(&with, &small)?;
        let central = Central::start(&with, &[])?;
        central.join(&mut with, "bed")?;
        Ok(Self { without, with, central })
    }

    /// Events that the collector has of the host.
    fn arrived(&self) -> Result<u64> {
        let out = self.central.cli(&["hosts", "--json"])?.ok()?;
        let hosts: Value = serde_json::from_str(&out)?;
        hosts[0]["events"].as_u64().with_context(|| out.clone())
    }

    /// Measures one protocol, in pairs whose order turns.
    pub fn measure(&self, protocol: &'static str, plan: &Plan) -> Result<Shipping> {
        let each = plan.shipped.div_ceil(CLIENTS);
        let statements = u64::from(each) * u64::from(CLIENTS);
        let mut all = Shipping { protocol, statements, ..Shipping::default() };
        // The first of each pays for what is made once.
        self.one(false, protocol, each.min(500))?;
        self.one(true, protocol, each.min(500))?;
        let pairs = plan.rounds * PAIRS;
        for pair in 0..pairs {
            eprintln!("  {SHIP} {protocol} · pair {} of {pairs}", pair + 1);
            for ships in [pair % 2 == 0, pair % 2 == 1] {
                let (us, ship) = self.one(ships, protocol, each)?;
                if ships {
                    all.with_us.push(us);
                    all.ship_us.push(ship);
                } else {
                    all.without_us.push(us);
                }
            }
        }
        Ok(all)
    }

    /// Microseconds of CPU time per statement, with everything that comes after it: of the whole
    /// daemon, and of its thread that ships.
    fn one(&self, ships: bool, protocol: &str, each: u32) -> Result<(f64, f64)> {
        let bed = if ships { &self.with } else { &self.without };
        let pid = bed.interceptor()?.process()?.pid();
        let login = token_login(bed)?;
        let statements = u64::from(each) * u64::from(CLIENTS);
        let before = if ships { self.arrived()? } else { 0 };
        settled(pid)?;
        let begun = (cpu(pid)?, cpu_of(pid, "ship")?);
        let cmd = bed
            .client(&login, "pgbench")
            .args(["-n", "-S", "-M", protocol, "-c", &CLIENTS.to_string(), "-j", "2"])
            .args(["-t", &each.to_string()])
            .limit(Duration::from_secs(600));
        let out = bed.place(&login, cmd).ok()?;
        let all = format!("actually processed: {statements}/{statements}");
        ensure!(out.contains(&all), "no {all:?} in:\n{out}");
        settled(pid)?;
        if ships {
            // A request and its answer.
            wait_for("everything to be shipped", Duration::from_secs(300), || {
                let there = self.arrived()? >= before + 2 * statements;
                settled(pid)?;
                Ok(there.then_some(()))
            })?;
        }
        let used = cpu(pid)?.saturating_sub(begun.0);
        let ship = cpu_of(pid, "ship")?.saturating_sub(begun.1);
        let us = |time: Duration| time.as_secs_f64() * 1e6 / statements as f64;
        Ok((us(used), us(ship)))
    }
}

/// Waits until a daemon does nothing any more.
fn settled(pid: u32) -> Result<()> {
    let (mut since, mut last) = (Instant::now(), cpu(pid)?);
    wait_for("the daemon to come to rest", Duration::from_secs(300), || {
        // What it does by the clock alone is less than that.
        let now = cpu(pid)?;
        if since.elapsed() < Duration::from_secs(1) {
            return Ok(None);
        }
        let rests = now.saturating_sub(last) <= Duration::from_millis(20);
        (since, last) = (Instant::now(), now);
        Ok(rests.then_some(()))
    })
}

/// CPU time of a process, in user and in kernel mode.
pub fn cpu(pid: u32) -> Result<Duration> {
    ticks(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?).map(|(_, time)| time)
}

/// The same of its threads of a name; none is no error.
fn cpu_of(pid: u32, name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile does not count.
        let Ok(stat) = std::fs::read_to_string(thread?.path().join("stat")) else { continue };
        let (found, time) = ticks(&stat)?;
        if found == name {
            sum += time;
        }
    }
    Ok(sum)
}

/// Name and CPU time in a `stat` of procfs.
fn ticks(stat: &str) -> Result<(&str, Duration)> {
    // A name may hold anything, and ends with the last parenthesis.
    let (before, rest) = stat.rsplit_once(')').context("no name")?;
    let (_, name) = before.split_once('(').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<u64> { Ok(fields.get(at).context("too short")?.parse()?) };
    let a_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|n| u32::try_from(n).ok());
    let a_second = a_second.filter(|n| *n > 0).context("no clock ticks")?;
    Ok((name, Duration::from_secs(ticks(11)? + ticks(12)?) / a_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((at(&hundred, 50), at(&hundred, 95), at(&hundred, 100)), (50.0, 95.0, 100.0));
        assert_eq!(at(&[7.0], 95), 7.0);
        assert!(at(&[], 95).is_nan());
    }

    #[test]
    fn names_hold_anything() {
        let stat = "7 (a) b ( c)) S 1 7 7 0 -1 1 2 3 4 5 300 50 0 0 20 0 1 0 9";
        assert_eq!(ticks(stat).unwrap(), ("a) b ( c)", Duration::from_millis(3500)));
    }

    #[test]
    fn this_process_has_used_time() {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(60) {
            std::hint::black_box(0);
        }
        assert!(cpu(std::process::id()).unwrap() > Duration::ZERO);
    }
}
