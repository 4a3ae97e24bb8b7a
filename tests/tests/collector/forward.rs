//! Forwarding to real receivers: a file, Debian's rsyslog, and OTLP as its published schema reads
//! it, with kills of either side.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use interceptor_tests::bed::{installed, skipped};
use interceptor_tests::{paths, proc};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;

use super::*;

/// Kinds of events that become OCSF events: in every session, and beside those in sessions of SSH.
const FORWARDED: [&str; 8] = [
    "identity.proven",
    "identity.refused",
    "admission",
    "request",
    "response",
    "hold.decided",
    "alert",
    "channel.exit",
];
const FORWARDED_SSH: [&str; 2] = ["file.done", "session.end"];

// ---- what is there and what came ----------------------------------------------------------------

/// `metadata.uid` of everything that a host recorded and that becomes an OCSF event.
fn expected(host: &Host) -> Result<BTreeSet<String>> {
    let reader = host.reader()?;
    let mut all = BTreeSet::new();
    for s in reader.list(&Filter { limit: 1_000_000, ..Filter::default() })? {
        reader.events(s.number, 0, |e| {
            let ssh = s.protocol == "ssh" && FORWARDED_SSH.contains(&e.kind);
            if ssh || FORWARDED.contains(&e.kind) {
                all.insert(format!("{}:{}", s.id, e.seq));
            }
        })?;
    }
    Ok(all)
}

/// OCSF events that came, by `metadata.uid`: what came twice says the same.
#[derive(Default)]
struct Came {
    events: BTreeMap<String, String>,
    repeats: usize,
    /// Lines that were cut short, by a kill of who wrote them.
    cut: usize,
}

impl Came {
    fn of<T: AsRef<str>>(lines: impl IntoIterator<Item = T>) -> Self {
        let mut came = Self::default();
        for line in lines {
            came.take(line.as_ref());
        }
        came
    }

    fn take(&mut self, line: &str) {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            self.cut += 1;
            return;
        };
        let uid = event["metadata"]["uid"].as_str().unwrap().to_owned();
        match self.events.get(&uid) {
            Some(before) => {
                assert_eq!(before, line, "{uid} says something else");
                self.repeats += 1;
            }
            None => {
                self.events.insert(uid, line.to_owned());
            }
        }
    }

    fn uids(&self) -> BTreeSet<String> {
        self.events.keys().cloned().collect()
    }
}

fn lines(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

impl Collector {
    fn forward(&self, text: &str) -> Result<()> {
        let mut config = std::fs::read_to_string(&self.config)?;
        write!(config, "\n[[forward]]\n{text}\n")?;
        Ok(std::fs::write(&self.config, config)?)
    }

    /// A metric of a forward, as Prometheus reads it; none while the collector does not answer.
    fn metric(&self, name: &str, forward: &str) -> Option<u64> {
        let mut http = TcpStream::connect(("127.0.0.1", self.console)).ok()?;
        let get = format!(
            "GET /metrics HTTP/1.1\r\nhost: localhost:{}\r\nconnection: close\r\n\r\n",
            self.console
        );
        http.write_all(get.as_bytes()).ok()?;
        let mut text = String::new();
        http.read_to_string(&mut text).ok()?;
        let begin = format!("interceptor_collector_forward_{name}{{forward=\"{forward}\",");
        let line = text.lines().find(|line| line.starts_with(&begin))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Waits until a new forward has delivered so many events.
    fn delivers(&self, forward: &str, events: usize) -> Result<()> {
        wait_for(&format!("{events} events of forward {forward}"), SOON, || {
            let all = self.metric("events_total", forward);
            Ok((all == Some(events as u64)).then_some(()))
        })
        .with_context(|| self.log())?;
        self.delivered(forward)
    }

    /// Waits until a forward that has begun has delivered everything.
    fn delivered(&self, forward: &str) -> Result<()> {
        wait_for(&format!("forward {forward} to be through"), SOON, || {
            Ok((self.metric("waiting_events", forward) == Some(0)).then_some(()))
        })
        .with_context(|| self.log())
    }
}

// ---- what is recorded ---------------------------------------------------------------------------

/// A collector and an enrolled host that has shipped so many events.
fn shipped(dir: &Path, events: u64) -> Result<(Collector, Host)> {
    let mut collector = Collector::create(dir, None)?;
    let mut host = Host::create(dir, "writer", &collector.url)?;
    collector.start()?;
    collector.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    record_every_kind(&host)?;
    host.start(events)?;
    wait_for("the events", SOON, || {
        let all: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
        Ok((all >= events).then_some(()))
    })?;
    host.kill();
    // Seals what the kill left open, and ships the rest.
    host.start(0)?;
    wait_for("the last seals", SOON, || {
        let open = Filter { open: Some(true), limit: 1, ..Filter::default() };
        Ok(host.reader()?.list(&open)?.is_empty().then_some(()))
    })?;
    assert_shipped(&collector, &host)?;
    Ok((collector, host))
}

/// Sessions with every kind of event that becomes an OCSF event, as the daemon records them.
fn record_every_kind(host: &Host) -> Result<()> {
    let config = interceptor::config::Config::load(&host.config)?;
    let recorder = Recorder::open(&config)?;
    let proven = json!({ "agent": "billing-bot", "principal": "eve@example.com", "issuer": "okta",
        "labels": { "team": "billing" }, "claims": { "uid": "00u1", "cid": "0oa1", "none": null },
        "pinned_new": true, "source_key": "10.0.0.1", "expires_at": 1_900_000_000, "proven": true,
        "way": "password" });
    let postgres = [
        ("identity.proven", proven.clone()),
        (
            "admission",
            json!({ "verdict": "allow", "role": "app_ro", "database": "orders",
            "client": "psql", "rules": ["reads"], "policy": "1" }),
        ),
        (
            "request",
            json!({ "n": 1, "verdict": "allow", "class": "select", "via": "simple",
            "text": "select name from übersicht\n\u{1b}[2J" }),
        ),
        (
            "response",
            json!({ "n": 1, "tag": "SELECT 2", "rows": 2, "bytes": 10,
            "duration_us": 3000, "masked": 1 }),
        ),
        (
            "request",
            json!({ "n": 2, "verdict": "hold", "class": "ddl", "rules": ["ddl"],
            "message": "a human decides", "text": "drop table x" }),
        ),
        (
            "hold.decided",
            json!({ "n": 2, "id": "H1", "outcome": "granted", "by": "mallory",
            "scope": "once", "waited_us": 2_000_000 }),
        ),
        ("response", json!({ "n": 2, "error": { "code": "42P01", "message": "no table x" } })),
        (
            "request",
            json!({ "n": 3, "verdict": "deny", "class": "update", "code": "42501",
            "message": "not here", "text": "update x set a = 1" }),
        ),
        // Longer than an event may be, and than most receivers would take.
        (
            "request",
            json!({ "n": 4, "verdict": "allow", "class": "insert",
            "text": format!("insert into x values ('{}')", "é".repeat(200_000)) }),
        ),
        ("response", json!({ "n": 77, "tag": "SELECT 0" })),
        ("alert", json!({ "code": "TOKEN_COPIED", "message": "used at two places" })),
    ];
    let refused = [(
        "identity.refused",
        json!({ "code": "TOKEN_EXPIRED", "message": "too old", "alert": true }),
    )];
    let ssh = [
        ("identity.proven", proven),
        (
            "admission",
            json!({ "verdict": "allow", "role": "deploy", "database": "",
            "client": "OpenSSH_9.2" }),
        ),
        (
            "request",
            json!({ "n": 1, "verdict": "allow", "class": "exec", "ch": 0,
            "text": "uptime" }),
        ),
        ("channel.exit", json!({ "ch": 0, "n": 1, "status": 3, "duration_us": 5000 })),
        (
            "request",
            json!({ "n": 2, "verdict": "allow", "class": "sftp", "ch": 1,
            "text": "open /etc/motd" }),
        ),
        (
            "file.done",
            json!({ "n": 2, "ch": 1, "op": "read", "path": "/etc/motd", "bytes": 9,
            "sha256": "ab".repeat(32), "complete": true }),
        ),
        (
            "request",
            json!({ "n": 3, "verdict": "deny", "class": "sftp", "ch": 1,
            "text": "hardlnk /x" }),
        ),
        (
            "request",
            json!({ "n": 4, "verdict": "deny", "class": "forward", "ch": 2,
            "message": "no forwards", "text": "10.0.0.3:80" }),
        ),
        ("request", json!({ "n": 5, "verdict": "allow", "class": "shell", "ch": 3, "text": "" })),
        ("channel.exit", json!({ "ch": 3, "n": 5, "signal": "KILL" })),
        ("alert", json!({ "code": "KEY_CHANGED", "message": "another key" })),
    ];
    for (protocol, events) in [("postgres", &postgres[..]), ("postgres", &refused), ("ssh", &ssh)] {
        let mut log = recorder.begin(Opening {
            id: ulid::Ulid::new(),
            ts_us: now_us(),
            host: "writer".into(),
            service: "orders-db".into(),
            protocol: protocol.into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        })?;
        for (kind, body) in events {
            log.append(&Event { ts_us: now_us(), kind, body, data: b"rows" })?;
        }
        log.seal(&End::because("client"))?;
    }
    recorder.shutdown();
    Ok(())
}

// ---- receivers ----------------------------------------------------------------------------------

/// An authority and what it signed.
struct Pki {
    dir: PathBuf,
}

impl Pki {
    fn create(dir: PathBuf, names: &[&str]) -> Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "test authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
        let issuer = Issuer::new(ca, ca_key);
        for name in names {
            let key = KeyPair::generate()?;
            let mut leaf = CertificateParams::new(vec![(*name).to_owned()])?;
            leaf.distinguished_name.push(DnType::CommonName, *name);
            std::fs::write(dir.join(format!("{name}.pem")), leaf.signed_by(&key, &issuer)?.pem())?;
            std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(Self { dir })
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

/// Debian's rsyslog as docs/collector.md sets it up.
struct Rsyslog {
    dir: PathBuf,
    port: u16,
    process: Option<Daemon>,
}

impl Rsyslog {
    fn missing() -> Option<String> {
        let driver = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"]
            .iter()
            .any(|dir| Path::new(dir).join("rsyslog/lmnsd_ossl.so").exists());
        let there = driver && (installed("rsyslogd") || Path::new("/usr/sbin/rsyslogd").exists());
        (!there).then(|| "needs rsyslog with rsyslog-openssl: run `cargo xtask setup`".into())
    }

    fn create(dir: &Path) -> Result<Self> {
        let dir = dir.join("rsyslog");
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, port: free_port()?, process: None })
    }

    fn out(&self) -> PathBuf {
        self.dir.join("ocsf.log")
    }

    /// Starts it, taking events only of clients that this authority knows.
    fn start(&mut self, pki: &Pki, clients: &Pki) -> Result<()> {
        let config = self.dir.join("rsyslog.conf");
        std::fs::write(
            &config,
            format!(
                r#"global(
    workDirectory="{d}"
    maxMessageSize="300k"
    defaultNetstreamDriverCAFile="{ca}"
    defaultNetstreamDriverCertFile="{certificate}"
    defaultNetstreamDriverKeyFile="{key}"
)
module(
    load="imtcp"
    streamDriver.Name="ossl" streamDriver.Mode="1" streamDriver.AuthMode="x509/name"
    permittedPeer=["collector.test"]
)
input(type="imtcp" port="{port}" ruleset="ocsf")
template(name="whole" type="string"
    string="%pri% %hostname% %app-name% %procid% %msgid% %structured-data% %timereported:::date-rfc3339% %msg%\n")
ruleset(name="ocsf" queue.type="Direct") {{
    action(type="omfile" file="{out}" template="whole")
}}
"#,
                d = self.dir.display(),
                ca = clients.path("ca.pem").display(),
                certificate = pki.path("siem.test.pem").display(),
                key = pki.path("siem.test.key").display(),
                port = self.port,
                out = self.out().display(),
            ),
        )?;
        let pid = self.dir.join("pid");
        let _ = std::fs::remove_file(&pid);
        let program = if installed("rsyslogd") { "rsyslogd" } else { "/usr/sbin/rsyslogd" };
        let rsyslog = Cmd::new(program).arg("-n").arg("-f").arg(&config).arg("-i").arg(&pid);
        self.process = Some(rsyslog.daemonize(&self.dir.join("rsyslog.log"))?);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("rsyslog.log")).unwrap_or_default()
    }

    /// Checks what it understood of each message, and takes out the events.
    fn came(&self) -> Came {
        let mut came = Came::default();
        for line in lines(&self.out()) {
            let parts: Vec<&str> = line.splitn(8, ' ').collect();
            match parts[..] {
                [pri, "writer", "interceptor", "-", class, "-", time, event]
                    if event.ends_with('}') && serde_json::from_str::<Value>(event).is_ok() =>
                {
                    let read: Value = serde_json::from_str(event).unwrap();
                    assert_eq!(class, read["class_uid"].to_string());
                    // Facility 13, severity by that of the event.
                    let severity = read["severity_id"].as_u64().unwrap();
                    let wanted = 13 * 8 + [6, 6, 5, 4, 3][usize::try_from(severity).unwrap()];
                    assert_eq!(pri, wanted.to_string(), "{event}");
                    assert!(time.starts_with("20"), "{time}");
                    came.take(event);
                }
                _ => came.cut += 1,
            }
        }
        came
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        self.kill();
    }
}

fn siem(rsyslog: &Rsyslog, pki: &Pki) -> String {
    format!(
        "name = 'siem'\nto = 'syslog'\nfrom = 'start'\naddress = '127.0.0.1:{}'\nca_file = {:?}\n\
         server_name = 'siem.test'\nclient = {{ certificate = {:?}, key = {:?} }}\n",
        rsyslog.port,
        pki.path("ca.pem"),
        pki.path("collector.test.pem"),
        pki.path("collector.test.key"),
    )
}

fn archive(path: &Path) -> String {
    format!("name = 'archive'\nto = 'file'\npath = {path:?}\nfrom = 'start'\n")
}

// ---- tests --------------------------------------------------------------------------------------

#[test]
fn a_collector_that_is_killed_while_it_writes_a_file_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut collector, host) = shipped(dir.path(), 20_000)?;
    let expected = expected(&host)?;
    let path = dir.path().join("ocsf.jsonl");
    collector.forward(&archive(&path))?;
    let mut in_the_middle = 0;
    collector.kill();
    while in_the_middle < 6 {
        let before = size(&path);
        collector.start()?;
        // At once while the batch is written, or a little later.
        let begun = Instant::now();
        while size(&path) == before {
            assert!(begun.elapsed() < SOON, "nothing more is written\n{}", collector.log());
            std::thread::yield_now();
        }
        if rand::rng().random_bool(0.5) {
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..40)));
        }
        collector.kill();
        if Came::of(lines(&path)).events.len() >= expected.len() {
            break;
        }
        in_the_middle += 1;
    }
    collector.start()?;
    collector.delivered("archive")?;
    let came = Came::of(lines(&path));
    assert!(came.uids() == expected, "{} of {}", came.events.len(), expected.len());
    assert!(in_the_middle >= 3, "it was killed only {in_the_middle} times while it wrote");
    assert!(came.repeats > 0, "no kill came between a batch and its cursor");
    assert!(came.cut <= in_the_middle, "{} lines are no event", came.cut);
    // What is through stays through.
    let length = size(&path);
    collector.kill();
    collector.start()?;
    collector.delivered("archive")?;
    assert_eq!(size(&path), length);
    eprintln!(
        "{} events over {in_the_middle} kills, {} repeats, {} cut lines",
        came.events.len(),
        came.repeats,
        came.cut
    );
    Ok(())
}

#[test]
fn rsyslog_gets_every_event_whole_though_it_is_killed_meanwhile() -> Result<()> {
    if let Some(why) = Rsyslog::missing() {
        skipped(&why);
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (mut collector, host) = shipped(dir.path(), 20_000)?;
    let expected = expected(&host)?;
    let pki = Pki::create(dir.path().join("pki"), &["siem.test", "collector.test"])?;
    let mut rsyslog = Rsyslog::create(dir.path())?;
    let path = dir.path().join("ocsf.jsonl");
    collector.forward(&siem(&rsyslog, &pki))?;
    collector.forward(&archive(&path))?;

    // One that does not know this client: in TLS 1.3 it says so when it was sent things already.
    let others = Pki::create(dir.path().join("others"), &[])?;
    rsyslog.start(&pki, &others)?;
    collector.kill();
    collector.start()?;
    collector.delivers("archive", expected.len())?;
    wait_for("refusals", SOON, || {
        Ok(collector.metric("failures_total", "siem").is_some_and(|n| n >= 2).then_some(()))
    })
    .with_context(|| format!("{}\n{}", collector.log(), rsyslog.log()))?;
    assert_eq!(collector.metric("failing", "siem"), Some(1));
    assert_eq!(collector.metric("events_total", "siem"), Some(0));
    assert!(collector.metric("waiting_events", "siem") > Some(20_000));
    assert_eq!(size(&rsyslog.out()), 0);

    // Killed at once when something more comes, so while it reads a batch, or a little later.
    rsyslog.kill();
    let mut in_the_middle = 0;
    while in_the_middle < 8 {
        let before = size(&rsyslog.out());
        rsyslog.start(&pki, &pki)?;
        let begun = Instant::now();
        while size(&rsyslog.out()) == before {
            let logs = || format!("{}\n{}", collector.log(), rsyslog.log());
            assert!(begun.elapsed() < SOON, "nothing more comes\n{}", logs());
            std::thread::yield_now();
        }
        if in_the_middle % 2 == 1 {
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..1_000)));
        }
        rsyslog.kill();
        if rsyslog.came().events.len() >= expected.len() {
            break;
        }
        in_the_middle += 1;
    }
    rsyslog.start(&pki, &pki)?;
    collector.delivered("siem")?;
    let (came, kept) = (rsyslog.came(), Came::of(lines(&path)));
    assert!(came.uids() == expected, "{} of {}", came.events.len(), expected.len());
    assert!(came.events == kept.events, "both receivers have the same, byte for byte");
    assert!(in_the_middle >= 3, "it was killed only {in_the_middle} times");
    assert!(came.repeats > 0, "no kill came in the middle of a batch");
    assert!(came.cut <= in_the_middle, "{} lines are no message", came.cut);
    let longest = came.events.values().map(String::len).max().unwrap();
    assert!((128 << 10..=256 << 10).contains(&longest), "{longest}");
    eprintln!(
        "{} events over {in_the_middle} kills, {} repeats, {} cut lines",
        came.events.len(),
        came.repeats,
        came.cut
    );
    Ok(())
}

#[test]
fn published_schemas_know_our_otlp_and_our_ocsf() -> Result<()> {
    let python = match paths::python() {
        Some(python)
            if Cmd::new(&python).args(["-c", "import ocsf_json_schema"]).run()?.success() =>
        {
            python
        }
        _ => {
            skipped("needs Python with the schemas: run `cargo xtask setup python`");
            return Ok(());
        }
    };
    let data = paths::repository().join("tests/data/forward");
    let dir = tempfile::tempdir()?;
    let (mut collector, host) = shipped(dir.path(), 3_000)?;
    let expected = expected(&host)?;
    let (port, out, path) =
        (free_port()?, dir.path().join("otlp.jsonl"), dir.path().join("ocsf.jsonl"));
    let receiver = Cmd::new(&python).arg(data.join("otlp.py")).arg(port.to_string()).arg(&out);
    let receiver = receiver.daemonize(&dir.path().join("otlp.log"))?;
    let token = dir.path().join("token");
    interceptor_tests::cluster::write_private(&token, b"Bearer s3cret\n")?;
    collector.forward(&format!(
        "name = 'otel'\nto = 'otlp'\nfrom = 'start'\nurl = 'http://127.0.0.1:{port}/v1/logs'\n\
         headers = {{ authorization = {{ file = {token:?} }} }}\n"
    ))?;
    collector.forward(&archive(&path))?;
    collector.kill();
    collector.start()?;
    collector.delivers("otel", expected.len()).with_context(|| receiver.log())?;
    collector.delivers("archive", expected.len())?;
    assert_eq!(collector.metric("rejected_total", "otel"), Some(0));

    let mut came = Came::default();
    for line in lines(&out) {
        let record: Value = serde_json::from_str(&line)?;
        let body = record["body"].as_str().unwrap();
        came.take(body);
        let event: Value = serde_json::from_str(body)?;
        assert_eq!(
            record["resource"],
            json!({ "service.name": "interceptor", "host.name": "writer" })
        );
        assert_eq!(
            record["attributes"],
            json!({ "log.record.uid": event["metadata"]["uid"],
                "ocsf.class_uid": event["class_uid"] })
        );
        assert_eq!(record["time_ns"].as_i64().unwrap() / 1_000_000, event["time"]);
        let severity = [0, 9, 10, 13, 17][event["severity_id"].as_u64().unwrap() as usize];
        assert_eq!(record["severity"], severity);
    }
    let kept = Came::of(lines(&path));
    assert!(came.uids() == expected, "{} of {}", came.events.len(), expected.len());
    assert!(came.events == kept.events && came.cut + kept.cut == 0);

    // Every kind of event as the schema of OCSF wants it.
    let types: BTreeSet<u64> = kept
        .events
        .values()
        .map(|e| serde_json::from_str::<Value>(e).unwrap()["type_uid"].as_u64().unwrap())
        .collect();
    let wanted = [
        100_102, 100_114, 100_199, 100_701, 100_702, 200_401, 300_201, 400_701, 400_702, 400_705,
        600_303, 600_502, 600_503, 600_504, 600_505, 600_599,
    ];
    assert_eq!(types, wanted.into());
    let check = proc::Cmd::new(&python).arg(data.join("ocsf.py")).stdin(std::fs::read(&path)?);
    let said: Value = serde_json::from_str(&check.ok()?)?;
    assert_eq!(said["events"], expected.len());
    assert_eq!(said["wrong"], json!({}), "{said:#}");
    Ok(())
}
