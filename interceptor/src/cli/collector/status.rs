//! `interceptor collector status`: how the collector is, at one glance.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use super::super::table::{Paint, bytes, json, print, safe, span};
use super::probe::{self, Probe};
use crate::collector::overview::{self, Disk, Overview};
use crate::collector::{Collector, Config};
use crate::record::now_us;
use crate::record::terminal::local_time;

/// Something needs a person.
const LOOK: u8 = 1;
/// The collector does not run, or does not answer.
const DOWN: u8 = 3;
/// A host that was not heard of for so long is missed.
const MISSED_US: i64 = 10 * 60 * SECOND;
/// Certificates that end within this time should have been renewed.
const AUTHORITY_US: i64 = 90 * DAY;
const CONSOLE_US: i64 = 14 * DAY;
const HOST_US: i64 = 7 * DAY;
/// A sweep comes every hour.
const SWEEP_US: i64 = 3 * 3600 * SECOND;
/// Attempts after which a webhook's receiver is taken for away: about two minutes.
const TRIES: u64 = 6;
/// Free room below this share, or below so many bytes, is little.
const FREE_PERCENT: u64 = 5;
const FREE_BYTES: u64 = 1 << 30;
/// Names that are written out; more are counted.
const NAMED: usize = 5;
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status:
  0  it runs, and nothing needs a person
  1  something needs a person: the lines at the top, `needs_a_person` in JSON
  2  the command line is wrong
  3  it does not run or does not answer

Examples:
  interceptor collector status
  interceptor collector status --json | jq -r '.needs_a_person[]'
  interceptor collector status >/dev/null || systemctl status interceptor-collector")]
pub(super) struct StatusArgs {
    /// JSON for scripts.
    #[arg(long)]
    json: bool,
}

/// Everything that is told.
#[derive(Debug, Clone, Default, Serialize)]
struct Status {
    /// What must not be overlooked, gravest first.
    needs_a_person: Vec<String>,
    /// Both listeners answer.
    running: bool,
    /// Version of the process that runs; unknown when it does not say.
    version: Option<String>,
    /// Version of this program.
    installed: &'static str,
    console: Probe,
    hosts_listener: Probe,
    /// What holds the truth.
    store: &'static str,
    state: String,
    disk: Option<Disk>,
    certificates: Certificates,
    /// The process that runs has the signing key; unknown when it does not say.
    signs: Option<bool>,
    recordings: Recordings,
    /// Forwards whose last attempt failed; unknown when the process does not say.
    failing_forwards: Option<Vec<String>>,
    #[serde(flatten)]
    overview: Option<Overview>,
}

/// Where attachments of large sessions go.
#[derive(Debug, Clone, Default, Serialize)]
struct Recordings {
    /// In words.
    place: String,
    /// Whether anything is moved at all.
    moves: bool,
    /// Whether it answers; and whether anything was put there yet.
    answers: bool,
    used: bool,
    /// Why it does not answer.
    error: Option<String>,
    /// The last attempt to move something failed; unknown when the process does not say.
    failing: Option<bool>,
}

impl Recordings {
    fn words(&self, overview: &Overview) -> String {
        let moved = &overview.moved;
        let size = u64::try_from(moved.bytes).unwrap_or(0);
        let moved = format!("{} sessions, {}", moved.sessions, bytes(size));
        match (self.moves, self.answers, self.used) {
            (false, _, _) => self.place.clone(),
            (true, false, _) => format!("in {}, DOES NOT ANSWER: {moved}", self.place),
            (true, true, false) => format!("in {}, not used yet", self.place),
            (true, true, true) => format!("in {}, answers: {moved}", self.place),
        }
    }
}

/// When certificates end; microseconds since the Unix epoch.
#[derive(Debug, Clone, Default, Serialize)]
struct Certificates {
    authority_until_us: Option<i64>,
    /// As it is served.
    console_until_us: Option<i64>,
    /// The file has another one than is served: it takes a restart.
    console_file_differs: bool,
}

/// Runs the verb.
pub(super) async fn run(config: Config, args: StatusArgs) -> anyhow::Result<ExitCode> {
    let status = gather(config).await?;
    let paint = Paint::stdout();
    print(&if args.json { json(&status)? + "\n" } else { render(&status, now_us(), paint) })?;
    Ok(code(&status))
}

fn code(s: &Status) -> ExitCode {
    match (s.running, s.needs_a_person.is_empty()) {
        (false, _) => DOWN.into(),
        (true, false) => LOOK.into(),
        (true, true) => ExitCode::SUCCESS,
    }
}

async fn gather(config: Config) -> anyhow::Result<Status> {
    let (console, shown) = probe::console(&config).await;
    let mut status = Status {
        installed: env!("CARGO_PKG_VERSION"),
        store: if config.store.is_some() { "postgresql" } else { "sqlite" },
        state: config.state.display().to_string(),
        ..Status::default()
    };
    status.certificates.console_until_us = console.certificate_until_us;
    if let (Some(tls), Some(shown)) = (&config.console.tls, &shown) {
        let file = CertificateDer::from_pem_file(&tls.certificate).ok();
        status.certificates.console_file_differs = file.is_some_and(|file| file != *shown);
    }
    if console.answers
        && let Some(metrics) = probe::metrics(&config).await
    {
        status.version =
            labels(&metrics, "info").next().and_then(|(l, _)| l.get("version").cloned());
        status.signs = labels(&metrics, "signs").next().map(|(_, value)| value == "1");
        let failing = labels(&metrics, "forward_failing").filter(|(_, value)| *value != "0");
        status.failing_forwards =
            Some(failing.filter_map(|(l, _)| l.get("forward").cloned()).collect());
        status.recordings.failing = value(&metrics, "recordings_failing").map(|v| v != "0");
    }
    status.console = console;
    // A database that is not there is not made by asking for it.
    let there = config.state.join("collector.db");
    if config.store.is_none()
        && let Err(e) = std::fs::metadata(&there)
    {
        status.needs_a_person.push(format!(
            "THE STATE CANNOT BE READ: {}: {e}; are you root, or is this the first start \
             (`interceptor collector init`)?",
            there.display()
        ));
        return Ok(status);
    }
    let collector = Collector::open(config)?;
    status.hosts_listener = probe::hosts(&collector.config, &collector.keys).await;
    status.running = status.console.answers && status.hosts_listener.answers;
    status.certificates.authority_until_us = overview::ends(collector.keys.authority());
    probe_recordings(&mut status.recordings, &collector).await;
    let (now, shared) = (now_us(), std::sync::Arc::clone(&collector));
    let read = collector.central.read(move |db| overview::read(db, &shared, now)).await;
    match read {
        Ok(overview) => status.overview = Some(overview),
        Err(e) => status.needs_a_person.push(format!("THE STORE CANNOT BE READ: {e}")),
    }
    match overview::disk(&collector.config.state) {
        Ok(disk) => status.disk = Some(disk),
        Err(e) => status.needs_a_person.push(e.to_string()),
    }
    let more = alarms(&status, now);
    status.needs_a_person.extend(more);
    Ok(status)
}

async fn probe_recordings(out: &mut Recordings, collector: &std::sync::Arc<Collector>) {
    let recordings = std::sync::Arc::clone(&collector.recordings);
    (out.place, out.moves) = (recordings.words(), recordings.moves());
    if !out.moves {
        return;
    }
    let probed = tokio::task::spawn_blocking(move || recordings.probe()).await;
    match probed.unwrap_or_else(|e| Err(e.to_string())) {
        Ok(used) => (out.answers, out.used) = (true, used),
        Err(why) => out.error = Some(why),
    }
}

/// The value of a metric of the collector that has no labels.
fn value<'a>(metrics: &'a str, name: &str) -> Option<&'a str> {
    metrics.lines().find_map(|line| {
        line.strip_prefix("interceptor_collector_")?.strip_prefix(name)?.strip_prefix(' ')
    })
}

/// Samples of one metric of the collector: labels and value.
fn labels<'a>(
    metrics: &'a str,
    name: &'a str,
) -> impl Iterator<Item = (BTreeMap<String, String>, &'a str)> {
    metrics.lines().filter_map(move |line| {
        let rest = line.strip_prefix("interceptor_collector_")?.strip_prefix(name)?;
        let (labels, value) = rest.strip_prefix('{')?.rsplit_once("} ")?;
        let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
        let map = pairs.map(|(k, v)| (k.into(), v.trim_end_matches('"').into())).collect();
        Some((map, value))
    })
}

/// What must not be overlooked, gravest first.
fn alarms(s: &Status, now: i64) -> Vec<String> {
    let mut all = Vec::new();
    for (what, probe) in [("HOSTS", &s.hosts_listener), ("PEOPLE", &s.console)] {
        if let Some(why) = &probe.error {
            all.push(format!("NOTHING ANSWERS {what} AT {}: {why}", probe.address));
        }
    }
    if let Some(disk) = s.disk.filter(is_short) {
        all.push(format!(
            "THE DISK IS NEARLY FULL: {} free; when it is full nothing is taken any more",
            bytes(disk.free)
        ));
    }
    if let Some(o) = &s.overview {
        of_records(&mut all, o, now);
        of_hosts(&mut all, o, now);
    }
    if s.signs == Some(false) && s.overview.as_ref().is_some_and(|o| o.signing.here) {
        all.push(format!(
            "THE RUNNING COLLECTOR CANNOT SIGN, though the key is here: its user must own and read \
             all of {}/keys",
            s.state
        ));
    }
    for name in s.failing_forwards.iter().flatten() {
        all.push(format!("forward {name} fails; the collector's log says why"));
    }
    if let Some(why) = &s.recordings.error {
        all.push(format!("THE RECORDINGS IN {} CANNOT BE REACHED: {why}", s.recordings.place));
    } else if s.recordings.failing == Some(true) {
        all.push("recordings are not moved; the collector's log says why".into());
    }
    of_certificates(&mut all, s, now);
    if s.version.as_deref().is_some_and(|v| v != s.installed) {
        let version = s.version.as_deref().unwrap_or_default();
        all.push(format!(
            "version {version} runs and {} is installed: restart the collector",
            s.installed
        ));
    }
    all
}

fn is_short(disk: &Disk) -> bool {
    disk.free < FREE_BYTES || disk.free.saturating_mul(100) < disk.size.saturating_mul(FREE_PERCENT)
}

fn of_records(all: &mut Vec<String>, o: &Overview, now: i64) {
    if o.log.signed != o.log.size {
        all.push(format!(
            "THE LOG HAS {} SESSIONS AND {} ARE SIGNED: run `interceptor collector verify`",
            o.log.size, o.log.signed
        ));
    }
    let signing = &o.signing;
    if signing.put_back {
        all.push(
            "THE DATABASE WAS PUT BACK to before a change of the signing key, and nothing is \
             signed: run `interceptor collector keys restore`"
                .into(),
        );
    }
    if !signing.here {
        all.push(format!(
            "NOTHING CAN BE SIGNED: the signing key is {key} and is not here; copy \
             keys/signing/{key} from the collector that made it",
            key = signing.key
        ));
    }
    if signing.to_retire > 0 {
        all.push(format!(
            "{} old signing keys sign nothing any more: run `interceptor collector keys retire`",
            signing.to_retire
        ));
    }
    if o.retention.altered > 0 {
        all.push(format!(
            "{} OLD SESSIONS ARE NOT AS THEY WERE SEALED, and stay: run `interceptor collector \
             verify`, and see the log",
            o.retention.altered
        ));
    }
    let swept = o.retention.swept_us.map(|us| now.saturating_sub(us));
    if o.retention.configured && swept.is_some_and(|age| age > SWEEP_US) {
        all.push(format!(
            "retention last ran {}: see the collector's log",
            ago(o.retention.swept_us, now)
        ));
    }
    if o.deliveries.tries >= TRIES {
        all.push(format!(
            "{} messages for webhooks fail, one of them {} times: see the collector's log",
            o.deliveries.failed, o.deliveries.tries
        ));
    }
}

fn of_hosts(all: &mut Vec<String>, o: &Overview, now: i64) {
    for (name, why) in o.hosts.problems.iter().take(NAMED) {
        all.push(format!(
            "HOST {name}: {why}; look into it, then `interceptor collector hosts clear {name}`"
        ));
    }
    if let Some(more) = o.hosts.problems.len().checked_sub(NAMED).filter(|n| *n > 0) {
        all.push(format!("{more} more hosts with problems: `interceptor collector hosts`"));
    }
    for (name, why) in o.hosts.full.iter().take(NAMED) {
        all.push(format!("the store of host {name} {why}"));
    }
    let missed = o.hosts.away.iter().filter(|(_, seen)| now.saturating_sub(*seen) > MISSED_US);
    let missed: Vec<String> =
        missed.map(|(name, seen)| format!("{name} (since {})", local_time(*seen))).collect();
    if !missed.is_empty() {
        all.push(format!("not heard of: {}", listed(&missed)));
    }
    for (name, why) in o.hosts.refuse_policies.iter().take(NAMED) {
        all.push(format!("host {name} refuses the newest policies: {why}"));
    }
    if let Some((name, until)) = &o.hosts.certificate
        && until.saturating_sub(now) < HOST_US
    {
        all.push(format!(
            "the certificate of host {name} {}: it renews by itself while it reaches us",
            end(*until, now)
        ));
    }
}

fn of_certificates(all: &mut Vec<String>, s: &Status, now: i64) {
    let soon = |until: Option<i64>, within| until.filter(|u| u.saturating_sub(now) < within);
    if let Some(until) = soon(s.certificates.console_until_us, CONSOLE_US) {
        all.push(format!("the console's certificate {}: renew it, and restart", end(until, now)));
    }
    if s.certificates.console_file_differs {
        all.push("the console shows another certificate than is in its file: restart".into());
    }
    if let Some(until) = soon(s.certificates.authority_until_us, AUTHORITY_US) {
        all.push(format!("the authority {}: all hosts must be enrolled anew", end(until, now)));
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn time(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

fn ago(us: Option<i64>, now: i64) -> String {
    us.map_or("never".into(), |us| format!("{} ago", span(time(now.saturating_sub(us)))))
}

fn end(until: i64, now: i64) -> String {
    match until.saturating_sub(now) {
        left if left > 0 => format!("ends in {}", span(time(left))),
        over => format!("ENDED {} ago", span(time(over.saturating_neg()))),
    }
}

fn render(s: &Status, now: i64, paint: Paint) -> String {
    let mut out = String::new();
    for alarm in &s.needs_a_person {
        let _ = writeln!(out, "{}", paint.bad(&safe(alarm)));
    }
    let version = s.version.as_deref().unwrap_or("of unknown version");
    let state = match s.running {
        true => format!("collector {} runs", safe(version)),
        false => "THE COLLECTOR DOES NOT RUN AS IT SHOULD".into(),
    };
    let state = if s.running { paint.good(&state) } else { paint.bad(&state) };
    let _ = writeln!(out, "{state}");
    for (label, p) in [("hosts at", &s.hosts_listener), ("people at", &s.console)] {
        if !p.address.is_empty() {
            let word = if p.answers { "answers" } else { "DOES NOT ANSWER" };
            line(&mut out, label, &format!("{}, {word}", p.address));
        }
    }
    if let Some(o) = &s.overview {
        of_overview(&mut out, s, o, now);
    }
    for (label, until) in [
        ("authority", s.certificates.authority_until_us),
        ("console TLS", s.certificates.console_until_us),
    ] {
        if let Some(until) = until {
            line(&mut out, label, &end(until, now));
        }
    }
    let disk = s.disk.map_or_else(
        || "unknown".into(),
        |d| format!("{} used, {} of {} free", bytes(d.used), bytes(d.free), bytes(d.size)),
    );
    let place = match s.store {
        "sqlite" => format!("sqlite in {}", s.state),
        shared => format!("{shared}, replicas in {}", s.state),
    };
    line(&mut out, "store", &format!("{place}: {disk}"));
    out
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "{label:<12} {}", safe(text));
}

fn of_overview(out: &mut String, s: &Status, o: &Overview, now: i64) {
    let h = &o.hosts;
    line(
        out,
        "hosts",
        &format!(
            "{} enrolled: {} up, {} away, {} new; {} with problems, {} behind, {} revoked",
            h.enrolled,
            h.up,
            h.away.len(),
            h.new.len(),
            h.problems.len(),
            h.behind.len(),
            h.revoked
        ),
    );
    if !h.behind.is_empty() {
        let all: Vec<String> =
            h.behind.iter().map(|(name, events)| format!("{name} by {events} events")).collect();
        line(out, "behind", &listed(&all));
    }
    line(
        out,
        "events",
        &format!("{}, of {} sessions, {} live", o.events, o.sessions.all, o.sessions.live),
    );
    let holds = match o.holds.waiting {
        0 => "none".into(),
        n => format!(
            "{n}, the oldest raised {}, the next {}",
            ago(o.holds.oldest_us, now),
            o.holds.next_end_us.map(|us| end(us, now)).unwrap_or_default()
        ),
    };
    line(out, "waiting", &holds);
    line(
        out,
        "log",
        &format!(
            "{} sealed sessions, {} signed {}",
            o.log.size,
            o.log.signed,
            ago(o.log.signed_us, now)
        ),
    );
    let k = &o.signing;
    let since = k.since_us.map(|us| format!(", since {}", local_time(us))).unwrap_or_default();
    let along = k.along_until_us.map(|us| format!(", an old one along until {}", local_time(us)));
    let behind = match k.behind {
        0 => String::new(),
        n => format!(", {n} hosts have not said that they follow it"),
    };
    let key: String = k.key.chars().take(16).collect();
    line(out, "signing key", &format!("{key}{since}{}{behind}", along.unwrap_or_default()));
    for f in &o.forwards {
        let failing = s.failing_forwards.as_ref().map(|all| all.contains(&f.name));
        let word = match failing {
            Some(true) => ", FAILS",
            Some(false) => "",
            None => ", whether it fails is not known",
        };
        line(out, "forward", &format!("{} ({}): {} events behind{word}", f.name, f.to, f.waiting));
    }
    let d = &o.deliveries;
    line(
        out,
        "webhooks",
        &format!("{} messages wait, {} of them after a failure", d.waiting, d.failed),
    );
    let r = &o.retention;
    let policy = match r.configured {
        true => format!("swept {}, {} sessions deleted", ago(r.swept_us, now), r.deleted),
        false => "everything is kept".into(),
    };
    line(out, "retention", &format!("{policy}, {} legal holds", r.legal_holds));
    line(out, "recordings", &s.recordings.words(o));
    let p = &o.policies;
    let central = match p.version {
        0 => "none published".into(),
        v => format!("version {v}, on {} of {} hosts that take them", p.current, p.hosts),
    };
    line(out, "policies", &central);
    if let Some((name, until)) = &h.certificate {
        line(out, "host TLS", &format!("the first, of {name}, {}", end(*until, now)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000 * SECOND;

    fn well() -> Status {
        let answers = |address: &str| Probe {
            address: address.into(),
            answers: true,
            certificate_until_us: Some(NOW + 60 * DAY),
            ..Probe::default()
        };
        let mut overview = Overview { events: 4711, ..Overview::default() };
        overview.hosts.enrolled = 2;
        overview.hosts.up = 2;
        overview.hosts.certificate = Some(("db1".into(), NOW + 20 * DAY));
        overview.signing = overview::Signing {
            key: "ab".repeat(32),
            here: true,
            following: 2,
            ..overview::Signing::default()
        };
        overview.log = overview::Log { size: 7, signed: 7, signed_us: Some(NOW - 61 * SECOND) };
        overview.forwards.push(overview::Forwarding {
            name: "siem".into(),
            to: "syslog",
            waiting: 12,
        });
        overview.retention.configured = true;
        overview.retention.swept_us = Some(NOW - 600 * SECOND);
        Status {
            running: true,
            version: Some(env!("CARGO_PKG_VERSION").into()),
            installed: env!("CARGO_PKG_VERSION"),
            console: answers("127.0.0.1:8443"),
            hosts_listener: answers("127.0.0.1:8444"),
            store: "sqlite",
            state: "/var/lib/interceptor-collector".into(),
            disk: Some(Disk { used: 5 << 20, free: 50 << 30, size: 100 << 30 }),
            certificates: Certificates {
                authority_until_us: Some(NOW + 3000 * DAY),
                console_until_us: Some(NOW + 60 * DAY),
                console_file_differs: false,
            },
            recordings: Recordings {
                place: "/srv/recordings".into(),
                moves: true,
                answers: true,
                used: true,
                error: None,
                failing: Some(false),
            },
            failing_forwards: Some(Vec::new()),
            overview: Some(overview),
            ..Status::default()
        }
    }

    #[test]
    fn a_collector_that_is_well_raises_no_alarm() {
        let s = well();
        assert!(alarms(&s, NOW).is_empty(), "{:?}", alarms(&s, NOW));
        let text = render(&s, NOW, Paint::plain());
        for want in [
            "runs\n",
            "hosts        2 enrolled: 2 up, 0 away",
            "4711, of 0 sessions",
            "7 sealed sessions, 7 signed 1m 01s ago",
            "siem (syslog): 12 events behind\n",
            "swept 10m 00s ago",
            "50.0 GiB of 100.0 GiB free",
            "recordings   in /srv/recordings, answers: 0 sessions",
        ] {
            assert!(text.contains(want), "{want} in\n{text}");
        }
        assert_eq!(format!("{:?}", code(&s)), format!("{:?}", ExitCode::SUCCESS));
    }

    #[test]
    fn whatever_needs_a_person_is_said_first() {
        type Change = fn(&mut Status, &mut Overview);
        let cases: [(Change, &str); 21] = [
            (|s, _| s.console.error = Some("Connection refused".into()), "NOTHING ANSWERS PEOPLE"),
            (|s, _| s.hosts_listener.error = Some("x".into()), "NOTHING ANSWERS HOSTS"),
            (|s, _| s.disk = Some(Disk { free: 9, size: 10, used: 1 }), "NEARLY FULL"),
            (|_, o| o.log.signed = 6, "7 SESSIONS AND 6 ARE SIGNED"),
            (|_, o| o.signing.put_back = true, "THE DATABASE WAS PUT BACK"),
            (|_, o| o.signing.here = false, "NOTHING CAN BE SIGNED"),
            (|s, _| s.signs = Some(false), "THE RUNNING COLLECTOR CANNOT SIGN"),
            (|_, o| o.signing.to_retire = 1, "keys retire"),
            (|_, o| o.retention.altered = 2, "2 OLD SESSIONS ARE NOT"),
            (|_, o| o.retention.swept_us = Some(NOW - DAY), "retention last ran 1d 00h ago"),
            (|_, o| o.deliveries.tries = 6, "webhooks fail"),
            (
                |_, o| o.hosts.problems.push(("db2".into(), "altered: x".into())),
                "HOST db2: altered",
            ),
            (|_, o| o.hosts.full.push(("db2".into(), "is 90 % full".into())), "db2 is 90 % full"),
            (|_, o| o.hosts.away.push(("db3".into(), NOW - DAY)), "not heard of: db3"),
            (|_, o| o.hosts.certificate = Some(("db1".into(), NOW + DAY)), "host db1 ends in 1d"),
            (|s, _| s.failing_forwards = Some(vec!["siem".into()]), "forward siem fails"),
            (|s, _| s.certificates.console_until_us = Some(NOW - DAY), "ENDED 1d 00h ago"),
            (|s, _| s.certificates.console_file_differs = true, "another certificate"),
            (|s, _| s.version = Some("0.0.1".into()), "version 0.0.1 runs"),
            (
                |s, _| s.recordings.error = Some("No such file".into()),
                "THE RECORDINGS IN /srv/recordings CANNOT BE REACHED: No such file",
            ),
            (|s, _| s.recordings.failing = Some(true), "recordings are not moved"),
        ];
        for (change, want) in cases {
            let (mut s, mut o) = (well(), well().overview.unwrap());
            change(&mut s, &mut o);
            s.overview = Some(o);
            s.needs_a_person = alarms(&s, NOW);
            let text = render(&s, NOW, Paint::plain());
            assert!(text.lines().next().unwrap().contains(want), "{want} first in\n{text}");
            assert_eq!(format!("{:?}", code(&s)), format!("{:?}", ExitCode::from(LOOK)));
        }
        // Away for a moment, as everything is that restarts.
        let (mut s, mut o) = (well(), well().overview.unwrap());
        o.hosts.away.push(("db3".into(), NOW - 60 * SECOND));
        s.overview = Some(o);
        assert!(alarms(&s, NOW).is_empty());
    }

    #[test]
    fn what_hosts_say_cannot_move_the_cursor() {
        let mut s = well();
        let mut o = s.overview.take().unwrap();
        o.hosts.problems.push(("db\u{1b}[2J".into(), "x\ny".into()));
        s.overview = Some(o);
        s.needs_a_person = alarms(&s, NOW);
        assert!(!render(&s, NOW, Paint::plain()).contains('\u{1b}'));
    }

    #[test]
    fn metrics_are_read_back() {
        let text = "# HELP x\ninterceptor_collector_info{version=\"1.2\"} 1\n\
                    interceptor_collector_forward_failing{forward=\"a\",to=\"file\"} 1\n\
                    interceptor_collector_forward_failing{forward=\"b\",to=\"otlp\"} 0\n\
                    interceptor_collector_recordings_failing 1\n";
        assert_eq!(value(text, "recordings_failing"), Some("1"));
        assert_eq!(value(text, "recordings"), None);
        let info: Vec<_> = labels(text, "info").collect();
        assert_eq!(info[0].0["version"], "1.2");
        let failing: Vec<_> = labels(text, "forward_failing").collect();
        assert_eq!((failing.len(), failing[0].1, &*failing[1].0["forward"]), (2, "1", "b"));
    }
}
