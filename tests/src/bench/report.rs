//! The results as tables for people and as JSON for programs.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::bench::cases::{Outcome, Sample};
use crate::bench::collector::{self, Figures, Holds, Shipping};
use crate::bench::memory::{Memory, Stored};
use crate::bench::ssh::Ssh;
use crate::bench::targets::Way;
use crate::paths;
use crate::proc::Cmd;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// When, in UTC.
    pub date: String,
    /// On what.
    pub machine: String,
    /// Rounds and seconds.
    pub plan: String,
    /// TLS version and cipher per way.
    pub ciphers: Vec<(String, String)>,
    /// Speed.
    pub results: Vec<Outcome>,
    /// Size.
    pub memory: Option<Memory>,
    /// Record.
    pub stored: Vec<Stored>,
    /// SSH.
    pub ssh: Ssh,
    /// The collector.
    pub collector: Figures,
}

/// Median, least and most of some numbers.
pub fn spread(numbers: &[f64]) -> (f64, f64, f64) {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 0) => f64::midpoint(*upper, sorted[middle - 1]),
        (Some(upper), _) => *upper,
        (None, _) => f64::NAN,
    };
    (
        median,
        sorted.first().copied().unwrap_or(f64::NAN),
        sorted.last().copied().unwrap_or(f64::NAN),
    )
}

impl Report {
    /// What the machine is, by its own words.
    pub fn machine() -> String {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu
            .lines()
            .find_map(|l| l.strip_prefix("model name"))
            .map_or("unknown processor", |l| l.trim_start_matches(['\t', ' ', ':']));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = Cmd::new("uname").arg("-r").ok().unwrap_or_default();
        format!("{cores} × {model}, Linux {}", kernel.trim())
    }

    /// The whole report as Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!("Measured {} on {} ({}).\n\n", self.date, self.machine, self.plan);
        if !self.ciphers.is_empty() {
            out.push_str("TLS as psql sees it:");
            for (way, cipher) in &self.ciphers {
                let _ = write!(out, " {way} {cipher};");
            }
            out.push_str(
                "\nUpstream: direct and HAProxy TCP on loopback; pgbouncer and interceptor the \
                 Unix socket. Clients dial 127.0.0.1. interceptor runs with policy, recording \
                 (durability `process`) and one masked column in reach.\n\n",
            );
        }
        if !self.results.is_empty() {
            self.speeds(&mut out);
            self.latencies(&mut out);
        }
        self.sizes(&mut out);
        self.over_ssh(&mut out);
        if let Some(holds) = &self.collector.holds {
            approvals(&mut out, holds);
        }
        if !self.collector.shipping.is_empty() {
            shipping(&mut out, &self.collector.shipping);
        }
        out
    }

    fn speeds(&self, out: &mut String) {
        out.push_str(
            "| case | direct | HAProxy | pgbouncer | interceptor | of direct | of HAProxy | of pgbouncer |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for result in &self.results {
            let _ = write!(out, "| {} |", result.name);
            for way in Way::ALL {
                let rates: Vec<f64> = of(result, way).iter().map(|s| s.rate).collect();
                let _ = write!(
                    out,
                    " {:.*} |",
                    usize::from(spread(&rates).0 < 100.0) * 3,
                    spread(&rates).0
                );
            }
            for way in [Way::Direct, Way::Haproxy, Way::Pgbouncer] {
                let ratios: Vec<f64> = of(result, Way::Interceptor)
                    .iter()
                    .zip(of(result, way))
                    .map(|(ours, theirs)| ours.rate / theirs.rate)
                    .collect();
                let (median, least, most) = spread(&ratios);
                let _ = write!(out, " {median:.2} ({least:.2}–{most:.2}) |");
            }
            out.push('\n');
        }
        out.push_str(
            "\nTransactions (or whole results) per second; ratios are the median of interleaved \
             pairs with minimum and maximum, higher is better.\n\n",
        );
    }

    fn latencies(&self, out: &mut String) {
        let timed: Vec<_> = self
            .results
            .iter()
            .filter(|r| of(r, Way::Direct).iter().any(|s| s.median_ms.is_some()))
            .collect();
        if timed.is_empty() {
            return;
        }
        out.push_str(
            "| added median latency, 1 client | HAProxy | pgbouncer | interceptor |\n|---|---:|---:|---:|\n",
        );
        for result in timed {
            let _ = write!(out, "| {} |", result.name);
            for way in [Way::Haproxy, Way::Pgbouncer, Way::Interceptor] {
                let added: Vec<f64> = of(result, way)
                    .iter()
                    .zip(of(result, Way::Direct))
                    .filter_map(|(through, direct)| Some(through.median_ms? - direct.median_ms?))
                    .collect();
                let (median, least, most) = spread(&added);
                let _ = write!(out, " {median:+.3} ms ({least:+.3}–{most:+.3}) |");
            }
            out.push('\n');
        }
        out.push('\n');
    }

    fn sizes(&self, out: &mut String) {
        if let Some(m) = &self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let _ = writeln!(
                out,
                "| memory | |\n|---|---:|\n| daemon alone | {:.1} MiB |\n\
                 | per idle TLS connection, of {} | {:.1} KiB |\n\
                 | before a COPY of {:.0} MiB | {:.1} MiB |\n| most during COPY TO | {:.1} MiB |\n\
                 | most during COPY FROM | {:.1} MiB |\n",
                mib(m.alone),
                m.connections,
                m.per_connection as f64 / 1024.0,
                mib(m.copy_bytes),
                mib(m.before_copy),
                mib(m.during_copy_out),
                mib(m.during_copy_in)
            );
        }
        if !self.stored.is_empty() {
            out.push_str(
                "| durability | TPS, 8 clients, prepared, TLS | median, 1 client | statements sent \
                 | stored | bytes each |\n|---|---:|---:|---:|---:|---:|\n",
            );
            for s in &self.stored {
                let _ = writeln!(
                    out,
                    "| {} | {:.0} | {:.3} ms | {} | {} | {} |",
                    s.durability, s.rate, s.median_ms, s.sent, s.stored, s.bytes_per_request
                );
            }
        }
    }

    fn over_ssh(&self, out: &mut String) {
        if !self.ssh.pairs.is_empty() {
            out.push_str(
                "| SSH | direct | interceptor | of direct | added |\n|---|---:|---:|---:|---:|\n",
            );
        }
        for pairs in &self.ssh.pairs {
            let both = || pairs.through.iter().zip(&pairs.direct);
            let ratio = spread(&both().map(|(t, d)| t / d).collect::<Vec<_>>());
            let added = spread(&both().map(|(t, d)| t - d).collect::<Vec<_>>());
            let added = match pairs.unit {
                "ms" => format!("{:+.3} ms ({:+.3}–{:+.3})", added.0, added.1, added.2),
                _ => String::new(),
            };
            let digits = usize::from(pairs.unit == "ms") * 2;
            let _ = writeln!(
                out,
                "| {} | {:.digits$} {unit} | {:.digits$} {unit} | {:.2} ({:.2}–{:.2}) | {added} |",
                pairs.name,
                spread(&pairs.direct).0,
                spread(&pairs.through).0,
                ratio.0,
                ratio.1,
                ratio.2,
                unit = pairs.unit,
            );
        }
        if !self.ssh.pairs.is_empty() {
            out.push_str(
                "\nOpenSSH's client on 127.0.0.1, key exchange curve25519-sha256 on both ways; \
                 medians of interleaved pairs with minimum and maximum. Of times lower is better, \
                 of rates higher.\n\n",
            );
        }
        if let Some(d) = &self.ssh.downloads {
            let (median, least, most) = spread(&d.rates);
            let _ = writeln!(
                out,
                "{} downloads of {} MiB: {median:.0} MiB/s ({least:.0}–{most:.0}), the longest pause \
                 {:.0} ms.\n",
                d.count,
                d.bytes >> 20,
                d.pause_ms
            );
        }
        if let Some((count, bytes)) = self.ssh.idle {
            let kib = bytes as f64 / 1024.0;
            let _ = writeln!(out, "Each of {count} idle SSH sessions takes {kib:.0} KiB.");
        }
    }

    /// Writes JSON and Markdown below `target/bench`.
    pub fn save(&self) -> Result<PathBuf> {
        let dir = paths::target().join("bench");
        std::fs::create_dir_all(&dir)?;
        let name = self.date.replace([' ', ':'], "-");
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_vec_pretty(self)?)?;
        std::fs::write(file.with_extension("md"), self.markdown())?;
        Ok(file)
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn approvals(out: &mut String, holds: &Holds) {
    let _ = writeln!(
        out,
        "| collector, {} held statements | median | p95 | most | target |\n|---|---:|---:|---:|---:|",
        holds.seen_ms.len()
    );
    let plain = holds.plain();
    let beyond: Vec<f64> = holds.done_ms.iter().map(|ms| ms - plain).collect();
    let limit = collector::HOLD_MS;
    for (what, numbers) in [
        ("sent → shown by the console's page", &holds.seen_ms),
        ("approved there → answered to the client", &holds.done_ms),
        ("… less the statement's own time", &beyond),
    ] {
        let p95 = collector::at(numbers, 95);
        let _ = writeln!(
            out,
            "| {what} | {:.1} ms | {p95:.1} ms | {:.1} ms | p95 < {limit:.0} ms: {} |",
            collector::at(numbers, 50),
            collector::at(numbers, 100),
            verdict(p95 < limit)
        );
    }
    let _ = writeln!(
        out,
        "\nThe statement itself, where nobody is asked: median {plain:.2} ms. The page is fetched \
         when the console's stream says so, as its script does.\n"
    );
}

fn shipping(out: &mut String, all: &[Shipping]) {
    out.push_str(
        "| daemon's CPU time per statement | without a collector | shipping to one | of it the thread \
         that ships | more | target |\n|---|---:|---:|---:|---:|---:|\n",
    );
    for s in all {
        let both = s.with_us.iter().zip(&s.without_us);
        let more = spread(&both.map(|(with, without)| with / without - 1.0).collect::<Vec<_>>());
        let _ = writeln!(
            out,
            "| pgbench -S {}, 8 clients, TLS, {} statements | {:.1} µs | {:.1} µs \
             | {:.1} µs | {:+.1} % ({:+.1}–{:+.1}) | ≤ {:.0} %: {} |",
            s.protocol,
            s.statements,
            spread(&s.without_us).0,
            spread(&s.with_us).0,
            spread(&s.ship_us).0,
            more.0 * 100.0,
            more.1 * 100.0,
            more.2 * 100.0,
            collector::SHIPPING * 100.0,
            verdict(more.0 <= collector::SHIPPING)
        );
    }
    out.push_str(
        "\nMedians of interleaved pairs with minimum and maximum; counted until everything is \
         recorded, shipped and acknowledged.\n\n",
    );
}

fn of(result: &Outcome, way: Way) -> &[Sample] {
    result.samples.get(&way.to_string()).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_median_of_even_and_odd_counts() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert!(spread(&[]).0.is_nan());
    }
}
