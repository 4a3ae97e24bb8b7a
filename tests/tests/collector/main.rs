//! Shipping between real processes: a collector, hosts that write, kills of either at random
//! moments, days offline, and what the operator's commands say of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forward;
mod recordings;
mod shared;
mod status;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor::control::ControlHandler;
use interceptor::control::protocol::{
    Answer, ControlError, Drained, LiveSession, PolicyStatus, Status,
};
use interceptor::record::event::{Event, now_us};
use interceptor::record::verify::{Options, verify};
use interceptor::record::{End, Filter, Opening, Reader, Recorder, SessionLog};
use interceptor::ship::Shipper;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::paths::program;
use interceptor_tests::proc::{Cmd, Daemon, Output, wait_for};
use interceptor_tests::skip_unless_possible;
use rand::Rng;
use serde_json::Value;

/// Long enough for a loaded machine; nothing waits for it to pass.
const SOON: Duration = Duration::from_secs(60);
const WRITER: &str = "INTERCEPTOR_TEST_WRITER";
const EVENTS: &str = "INTERCEPTOR_TEST_EVENTS";
/// Bytes of each event's attachment.
const DATA: &str = "INTERCEPTOR_TEST_DATA";

// ---- a host that writes, as a process of its own ------------------------------------------------

struct Quiet;

impl ControlHandler for Quiet {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async { Ok(Status { version: "test".into(), ..Status::default() }) })
    }
    fn drain(&self) -> Answer<'_, Drained> {
        Box::pin(async { Ok(Drained::default()) })
    }
    fn policy_reload(&self) -> Answer<'_, PolicyStatus> {
        Box::pin(async { Err(ControlError::failed("no policies here")) })
    }
    fn live_sessions(&self) -> Answer<'_, Vec<LiveSession>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn kill(
        &self,
        _: interceptor::session::Target,
        _: String,
    ) -> Answer<'_, interceptor::control::protocol::Killed> {
        Box::pin(async { Ok(interceptor::control::protocol::Killed::default()) })
    }
    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async { Ok(String::new()) })
    }
}

fn begin(recorder: &Recorder) -> Option<SessionLog> {
    recorder
        .begin(Opening {
            id: ulid::Ulid::new(),
            ts_us: now_us(),
            host: "writer".into(),
            service: "orders-db".into(),
            protocol: "postgres".into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        })
        .ok()
}

/// Not a test: what the writer's process runs. Writes sessions of different lengths, several at
/// a time, and ships them, until so many events are recorded; then it only ships.
#[test]
fn writer_child() {
    let Some(config) = std::env::var_os(WRITER) else { return };
    let wanted: u64 = std::env::var(EVENTS).unwrap().parse().unwrap();
    let config = interceptor::config::Config::load(Path::new(&config)).unwrap();
    let recorder = Recorder::open(&config).unwrap();
    let shipping =
        Shipper::start(&config, Arc::clone(&recorder), Arc::new(Quiet)).unwrap().unwrap();
    std::thread::spawn(move || {
        let mut said = None;
        loop {
            let status = shipping.status();
            let now = (status.connected, status.problem);
            if said.as_ref() != Some(&now) {
                eprintln!("connected: {}, problem: {:?}", now.0, now.1);
                said = Some(now);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let data = std::env::var(DATA).map_or(0, |bytes| bytes.parse().unwrap());
    let data: Vec<u8> = (0..data).map(|n: usize| n as u8).collect();
    let spool = interceptor::ship::Spool::open(&config.paths.state).unwrap();
    let have = spool.waiting(&interceptor::ship::Position::default()).unwrap().events;
    let mut left = wanted.saturating_sub(have);
    let mut open: Vec<(SessionLog, u64)> = Vec::new();
    while left > 0 || !open.is_empty() {
        while open.len() < 5 && left > 0 {
            let events = rand::rng().random_range(0..200);
            open.push((begin(&recorder).unwrap(), events));
        }
        let at = rand::rng().random_range(0..open.len());
        let (log, events) = &mut open[at];
        for n in 0..rand::rng().random_range(1..20) {
            let body = serde_json::json!({ "n": n, "verdict": "allow", "class": "select",
                "text": "select 1" });
            let event = Event { ts_us: now_us(), kind: "request", body: &body, data: &data };
            log.append(&event).unwrap();
            *events = events.saturating_sub(1);
            left = left.saturating_sub(1);
        }
        log.commit().unwrap().wait().unwrap();
        if *events == 0 || left == 0 {
            let (log, _) = open.swap_remove(at);
            log.seal(&End::because("client")).unwrap();
        }
    }
    loop {
        std::thread::park();
    }
}

/// A host: its directory, its configuration, its writing process when it runs.
struct Host {
    dir: PathBuf,
    config: PathBuf,
    process: Option<Daemon>,
}

impl Host {
    fn create(dir: &Path, name: &str, url: &str) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(dir.join("state"))?;
        let config = dir.join("interceptor.toml");
        std::fs::write(
            &config,
            format!(
                "[host]\nname = {name:?}\n[paths]\nstate = \"{d}/state\"\nrun = \"{d}/run\"\n\
                 policies = \"{d}/policies\"\n[ship]\ncollector = {url:?}\n",
                d = dir.display()
            ),
        )?;
        Ok(Self { dir, config, process: None })
    }

    fn start(&mut self, events: u64) -> Result<()> {
        self.start_with(events, 0)
    }

    /// With an attachment of so many bytes to each event.
    fn start_with(&mut self, events: u64, data: usize) -> Result<()> {
        let me = std::env::current_exe()?;
        let writer = Cmd::new(me)
            .args(["writer_child", "--exact", "--nocapture"])
            .env(WRITER, &self.config)
            .env(EVENTS, events.to_string())
            .env(DATA, data.to_string());
        self.process = Some(writer.daemonize(&self.dir.join("writer.log"))?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// What the last kills left open is sealed by a start; then nothing is written any more.
    fn seals_all(&mut self) -> Result<()> {
        self.kill();
        self.start(0)?;
        wait_for("the last seals", SOON, || {
            let open =
                self.reader()?.list(&Filter { open: Some(true), limit: 1, ..Filter::default() })?;
            Ok(open.is_empty().then_some(()))
        })
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Cmd> {
        Ok(Cmd::new(program("interceptor")?).arg("--config").arg(&self.config).args(args))
    }

    fn reader(&self) -> Result<Reader> {
        Ok(Reader::open(&self.state(), &|| Ok(()))?)
    }

    /// Sessions with their events, by number.
    fn sessions(&self) -> Result<BTreeMap<u64, (String, u64)>> {
        // Right after its start there is nothing yet.
        self.reader().map_or_else(|_| Ok(BTreeMap::new()), |reader| sessions(&reader))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("writer.log")).unwrap_or_default()
    }
}

fn sessions(reader: &Reader) -> Result<BTreeMap<u64, (String, u64)>> {
    let all = reader.list(&Filter { limit: 1_000_000, ..Filter::default() })?;
    Ok(all.into_iter().map(|s| (s.number, (s.id, s.events))).collect())
}

// ---- the collector ------------------------------------------------------------------------------

struct Collector {
    dir: PathBuf,
    config: PathBuf,
    url: String,
    console: u16,
    netns: Option<String>,
    process: Option<Daemon>,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Collector {
    fn create(dir: &Path, netns: Option<String>) -> Result<Self> {
        let me = Self::configured(dir, netns, "")?;
        me.cli(["init"])?.ok()?;
        Ok(me)
    }

    /// With more configuration; one that has another's keys, where there is another.
    fn create_with(dir: &Path, more: &str, first: Option<&Self>) -> Result<Self> {
        let me = Self::configured(dir, None, more)?;
        match first {
            None => drop(me.cli(["init"])?.ok()?),
            Some(first) => {
                let state = me.dir.join("state");
                std::fs::create_dir_all(&state)?;
                Cmd::new("cp").arg("-a").arg(first.dir.join("state/keys")).arg(&state).ok()?;
            }
        }
        Ok(me)
    }

    fn configured(dir: &Path, netns: Option<String>, more: &str) -> Result<Self> {
        let dir = dir.join("collector");
        std::fs::create_dir_all(&dir)?;
        let (hosts, console) = (free_port()?, free_port()?);
        let config = dir.join("collector.toml");
        std::fs::write(
            &config,
            format!(
                "state = \"{d}/state\"\norigin = \"http://localhost:{console}\"\n\
                 [hosts]\nlisten = \"127.0.0.1:{hosts}\"\nnames = [\"127.0.0.1\"]\n\
                 [console]\nlisten = \"127.0.0.1:{console}\"\n{more}",
                d = dir.display()
            ),
        )?;
        let url = format!("https://127.0.0.1:{hosts}");
        Ok(Self { dir, config, url, console, netns, process: None })
    }

    fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Cmd> {
        let cmd = Cmd::new(program("interceptor")?)
            .arg("collector")
            .arg("--collector-config")
            .arg(&self.config)
            .args(args);
        Ok(match &self.netns {
            Some(netns) => cmd.in_netns(netns),
            None => cmd,
        })
    }

    fn start(&mut self) -> Result<()> {
        self.process = Some(self.cli(["run"])?.daemonize(&self.dir.join("collector.log"))?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn code(&self, name: &str) -> Result<Value> {
        let out = self.cli(["enrol", "--name", name, "--json"])?.ok()?;
        Ok(serde_json::from_str(&out)?)
    }

    /// Enrols as an operator does, and waits for the collector to listen.
    fn enrol(&self, name: &str, ship: impl Fn(&[&str]) -> Result<Output>) -> Result<()> {
        let code = self.code(name)?;
        let get = |what: &str| code[what].as_str().unwrap_or_default().to_owned();
        let (url, code, pin) = (get("collector"), get("code"), get("authority_pin"));
        assert_eq!(url, self.url);
        let args = ["ship", "enrol", "--collector", &url, "--code", &code, "--authority-pin", &pin];
        wait_for("the enrolment", SOON, || {
            let out = ship(&args)?;
            if out.success() {
                return Ok(Some(()));
            }
            anyhow::ensure!(out.all().contains("away"), "{out}");
            Ok(None)
        })
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("collector.log")).unwrap_or_default()
    }

    fn hosts(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.cli(["hosts", "--json"])?.ok()?)?)
    }

    /// The replica of the host with this public key.
    fn replica(&self, host_state: &Path) -> Result<Reader> {
        let key = interceptor::record::PublicKey::load(&host_state.join("host.pub"))?;
        let dir = interceptor::collector::Replica::directory(
            &self.dir.join("state"),
            &key.fingerprint_hex(),
        );
        Ok(Reader::of_replica(&dir)?)
    }
}

/// Everything that a host recorded stands in its replica, once and verified.
fn assert_shipped(collector: &Collector, host: &Host) -> Result<(u64, u64)> {
    let shipped = wait_for("the replica to have everything", SOON, || {
        let here = host.sessions()?;
        let Ok(replica) = collector.replica(&host.state()) else { return Ok(None) };
        Ok((sessions(&replica)? == here && !here.is_empty()).then_some((here, replica)))
    });
    let (here, replica) = shipped.with_context(|| {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!("collector:\n{}\nhost:\n{}\n", tail(collector.log()), tail(host.log()))
    })?;
    let report = verify(&replica, &Options::default())?;
    assert!(report.is_clean(), "{:#?}", report.findings);
    assert_eq!(report.sessions, here.len() as u64);
    let events: u64 = here.values().map(|(_, events)| events).sum();
    assert_eq!(report.events, events);
    Ok((report.sessions, events))
}

// ---- tests --------------------------------------------------------------------------------------

#[test]
fn killed_at_random_on_either_side_everything_arrives_once() -> Result<()> {
    let wanted = 100_000;
    let dir = tempfile::tempdir()?;
    let mut collector = Collector::create(dir.path(), None)?;
    let mut host = Host::create(dir.path(), "writer", &collector.url)?;
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.start(wanted)?;
    let begun = Instant::now();
    let mut kills = 0;
    loop {
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(30..700)));
        if rand::rng().random_bool(0.5) {
            collector.kill();
            collector.start()?;
        } else {
            host.kill();
            host.start(wanted)?;
        }
        kills += 1;
        let all: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
        if (all >= wanted && kills >= 20) || begun.elapsed() > Duration::from_secs(180) {
            assert!(all >= wanted, "only {all} events after {kills} kills");
            break;
        }
    }
    host.seals_all()?;
    let (sessions, events) = assert_shipped(&collector, &host)?;
    let listed = wait_for("the index to have everything", SOON, || {
        let listed = collector.hosts()?.remove(0);
        Ok((listed["events"] == events).then_some(listed))
    })?;
    assert_eq!(listed["problem"], Value::Null, "{listed}");
    let log = collector.cli(["verify"])?.ok()?;
    assert!(log.contains(&format!("log: {sessions} sealed sessions")), "{log} of {sessions}");
    eprintln!("{events} events in {sessions} sessions over {kills} kills");
    Ok(())
}

#[test]
fn a_host_goes_on_after_days_offline() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut collector = Collector::create(dir.path(), None)?;
    let mut host = Host::create(dir.path(), "writer", &collector.url)?;
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.start(2_000)?;
    wait_for("the first events", SOON, || {
        Ok(collector
            .replica(&host.state())
            .ok()
            .filter(|r| sessions(r).is_ok_and(|s| !s.is_empty())))
    })?;
    collector.kill();
    host.kill();
    // Written while nobody listens, over several lives of the host.
    for events in [5_000, 9_000, 12_000] {
        host.start(events)?;
        wait_for("events offline", SOON, || {
            let all: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
            Ok((all >= events).then_some(()))
        })?;
        host.kill();
    }
    let out = host.cli(["ship", "status"])?.run()?;
    assert!(!out.success() && out.stdout.contains("NOT SHIPPING"), "{out}");
    host.start(0)?;
    collector.start()?;
    let (_, events) = assert_shipped(&collector, &host)?;
    assert!(events >= 12_000);
    Ok(())
}

#[test]
fn a_revoked_host_ships_nothing_more_and_keeps_everything() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut collector = Collector::create(dir.path(), None)?;
    let mut host = Host::create(dir.path(), "writer", &collector.url)?;
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.start(500)?;
    assert_shipped(&collector, &host)?;
    collector.cli(["hosts", "revoke", "writer"])?.ok()?;
    host.kill();
    host.start(3_000)?;
    wait_for("events that nobody takes", SOON, || {
        let all: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
        Ok((all >= 3_000).then_some(()))
    })?;
    let before: u64 = sessions(&collector.replica(&host.state())?)?.values().map(|s| s.1).sum();
    assert!(before < 1_500, "{before}");
    assert!(!collector.hosts()?[0]["revoked_us"].is_null());
    // A new code, and all of it arrives.
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.kill();
    host.start(0)?;
    let (_, events) = assert_shipped(&collector, &host)?;
    assert!(events >= 3_000);
    Ok(())
}

#[test]
fn a_protected_host_ships_and_its_sessions_can_be_proved() -> Result<()> {
    skip_unless_possible!();
    // A machine that runs other tests too may not reserve a token in time.
    let mut bed =
        Bed::with(Spec::default().service(|s| s.settings = "reserve = \"allow\"".into()))?;
    let dir = bed.dir().join("central");
    let netns = bed.net().name(interceptor_tests::net::Place::Host);
    let mut collector = Collector::create(&dir, Some(netns))?;
    collector.start()?;
    collector.enrol("bed", |args| bed.interceptor()?.cli(args.iter().copied()).run())?;
    bed.interceptor_mut()?.stop();
    let config = bed.interceptor()?.config().to_owned();
    let mut text = std::fs::read_to_string(&config)?;
    text.push_str(&format!("\n[ship]\ncollector = {:?}\n", collector.url));
    std::fs::write(&config, text)?;
    bed.interceptor_mut()?.start()?;
    for n in 0..3 {
        let out = bed.psql(&bed.login("app_ro")?, &format!("SELECT {n} + 40"))?;
        assert!(out.success(), "{out}");
    }
    let state = bed.interceptor()?.state();
    let id = wait_for("sealed sessions at the collector", SOON, || {
        let Ok(replica) = collector.replica(&state) else { return Ok(None) };
        let closed = Filter { open: Some(false), limit: 10, ..Filter::default() };
        let list = replica.list(&closed)?;
        Ok((list.len() >= 3).then(|| list[0].id.clone()))
    })?;
    let host = bed.interceptor()?;
    let status = host.cli(["status"]).ok()?;
    assert!(status.contains("collector  https://127.0.0.1:"), "{status}");
    let status = host.cli(["ship", "status"]).ok()?;
    assert!(status.contains("state         shipping"), "{status}");
    let metrics = host.json(["ship", "status"])?;
    assert!(metrics["shipped_events"].as_u64().unwrap_or(0) > 6, "{metrics}");
    let verified = host.cli(["sessions", "verify", "--collector"]).ok()?;
    assert!(verified.contains("proved: the collector has what it acknowledged"), "{verified}");
    // For somebody else, who has the log's key and no network.
    let key = collector.cli(["log-key"])?.ok()?;
    let proof = wait_for("the proof", SOON, || {
        let out = collector.cli(["prove", &id])?.run()?;
        Ok(out.success().then_some(out.stdout))
    })?;
    let file = bed.dir().join("proof.json");
    std::fs::write(&file, &proof)?;
    let check = |file: &Path| {
        Cmd::new(program("interceptor")?)
            .args(["collector", "verify-proof"])
            .arg(file)
            .args(["--key", key.trim()])
            .run()
    };
    let out = check(&file)?;
    assert!(out.success() && out.stdout.contains(&format!("proved: session {id}")), "{out}");
    std::fs::write(&file, proof.replace("\\\"events\\\":", "\\\"events\\\":1"))?;
    let out = check(&file)?;
    assert!(!out.success() && out.stderr.contains("altered"), "{out}");
    // The key is changed while both run: what was kept goes on, and the host follows.
    let listed = || -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&collector.cli(["keys", "--json"])?.ok()?)?)
    };
    let first = listed()?[0]["fingerprint"].clone();
    let said = collector.cli(["keys", "rotate", "--overlap", "0s"])?.ok()?;
    assert!(said.contains("hosts learn it with their next question"), "{said}");
    let second = collector.cli(["log-key"])?.ok()?;
    assert!(second != key && said.contains(second.trim()), "{said}");
    let keys = wait_for("the host follows the new key", SOON, || {
        let all = listed()?;
        Ok((all[1]["hosts"] == 1).then_some(all))
    })?;
    assert_eq!((&keys[0]["fingerprint"], keys[0]["state"].as_str()), (&first, Some("old")));
    assert_eq!((keys[0]["hosts"].as_u64(), keys[1]["state"].as_str()), (Some(0), Some("in force")));
    let host = bed.interceptor()?;
    let verified = host.cli(["sessions", "verify", "--collector"]).ok()?;
    assert!(verified.contains("proved: the collector has what it acknowledged"), "{verified}");
    let later = collector.cli(["prove", &id])?.ok()?;
    std::fs::write(&file, &later)?;
    assert!(check(&file)?.success(), "a key from before leads to the new one");
    std::fs::write(&file, &proof)?;
    assert!(check(&file)?.success(), "a proof from before");
    let retired = collector.cli(["keys", "retire"])?.ok()?;
    assert!(retired.contains(first.as_str().context("a fingerprint")?), "{retired}");
    // The record of the host as the auditor reads it at the collector.
    let replica = collector.replica(&state).context("the replica")?;
    let report = verify(&replica, &Options::default())?;
    assert!(report.is_clean(), "{:#?}", report.findings);
    Ok(())
}
