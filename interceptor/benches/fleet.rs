//! What many hosts at once cost a collector: each with a certificate of its own, a request for
//! orders that it keeps open, a report every ten seconds, and from time to time a session that
//! ended. The collector is the real program in a process of its own, so that its processor time
//! and memory can be read; the hosts are light ones in this process. Prints; it is no criterion
//! bench.
//!
//! `cargo bench -p interceptor --bench fleet [-- HOSTS [SECONDS [URL OF A POSTGRESQL DATABASE]]]`

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use interceptor::collector::wire::{ENROL_DOMAIN, Enrol, Enrolled, FRAMES, Report, Standing};
use interceptor::collector::{Collector, Config, Position, codes};
use interceptor::config::Record;
use interceptor::record::event::Event;
use interceptor::record::{End, HostKey, Opening, Recorder, now_us};
use interceptor::ship::Spool;
use rcgen::{CertificateParams, KeyPair};
use tokio::task::JoinSet;

/// As the daemon does.
const REPORT: Duration = Duration::from_secs(10);
/// One host ends a session this often.
const SESSION: Duration = Duration::from_secs(20);
/// Before anything is measured.
const WARM: Duration = Duration::from_secs(22);
/// Events of a session.
const EVENTS: u64 = 20;
/// Hosts that enrol, or are made, at a time.
const AT_A_TIME: usize = 8;

/// A light host: its certificate, and what it will ship.
struct Host {
    http: reqwest::Client,
    dir: PathBuf,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    batches: std::sync::Mutex<Vec<Duration>>,
    events: AtomicU64,
    polls: AtomicU64,
    reports: AtomicU64,
    errors: AtomicU64,
    /// The first that were seen, each once.
    words: std::sync::Mutex<std::collections::BTreeSet<String>>,
}

fn main() -> Result<()> {
    // Another may be there already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let number = |at: usize, default| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(default);
    let (hosts, seconds) = (number(0, 200u64), number(1, 20u64));
    let store = words.iter().find(|w| w.starts_with("postgres"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(hosts, Duration::from_secs(seconds), store.map(String::as_str)))
}

async fn run(count: u64, time: Duration, store: Option<&str>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (process, url, collector) = start(dir.path(), store)?;
    let process = Arc::new(process);
    let begun = Instant::now();
    let hosts = enrolled(count, dir.path(), &url, &collector).await?;
    let took = begun.elapsed();
    println!(
        "{count} hosts enrolled in {took:.1?}, {:.0} a second",
        count as f64 / took.as_secs_f64()
    );
    let sessions = (time + WARM).as_secs() / SESSION.as_secs() + 1;
    let begun = Instant::now();
    record(&hosts, sessions).await?;
    println!("{} sessions recorded in {:.1?}", count * sessions, begun.elapsed());
    let idle = process.memory()?;
    let seen = Arc::new(Seen::default());
    let until = Instant::now() + WARM + time;
    let mut tasks = JoinSet::new();
    for (n, host) in hosts.into_iter().enumerate() {
        let host = Arc::new(host);
        // Spread over the time, as hosts are that began at different moments.
        let offset = SESSION.mul_f64(n as f64 / count as f64);
        tasks.spawn(polling(Arc::clone(&host), url.clone(), Arc::clone(&seen), until, offset));
        tasks.spawn(reporting(Arc::clone(&host), url.clone(), Arc::clone(&seen), until, offset));
        tasks.spawn(shipping(host, url.clone(), Arc::clone(&seen), until, offset));
    }
    // All are connected and have shipped once, then the measured time.
    tokio::time::sleep(WARM).await;
    let (cpu, begun) = (process.cpu()?, Instant::now());
    let before = seen.events.load(Ordering::Relaxed);
    seen.batches.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clear();
    tokio::time::sleep_until((begun + time).into()).await;
    let (used, wall) = (process.cpu()? - cpu, begun.elapsed());
    let events = seen.events.load(Ordering::Relaxed) - before;
    print(&seen, count, events, used, wall, (idle, process.memory()?))?;
    tasks.abort_all();
    Ok(())
}

fn print(
    seen: &Seen,
    hosts: u64,
    events: u64,
    used: Duration,
    wall: Duration,
    (idle, busy): (u64, u64),
) -> Result<()> {
    let mut batches = seen.batches.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clone();
    ensure!(!batches.is_empty(), "no batch was taken");
    batches.sort();
    let at = |share: f64| batches[((batches.len() - 1) as f64 * share) as usize];
    let seconds = wall.as_secs_f64();
    println!(
        "{hosts} hosts: {:.0} batches and {:.0} events/s, {:.1} % of one processor, {:.1} MiB \
         ({:.1} KiB a host more than at rest)",
        batches.len() as f64 / seconds,
        events as f64 / seconds,
        100.0 * used.as_secs_f64() / seconds,
        busy as f64 / f64::from(1 << 20),
        busy.saturating_sub(idle) as f64 / 1024.0 / hosts as f64,
    );
    println!(
        "a batch is acknowledged after {:.1?} (median), {:.1?} (p95), {:.1?} (p99), {:.1?} (longest)",
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    );
    println!(
        "polls answered {}, reports {}, failures {}",
        seen.polls.load(Ordering::Relaxed),
        seen.reports.load(Ordering::Relaxed),
        seen.errors.load(Ordering::Relaxed)
    );
    let words = seen.words.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    words.iter().for_each(|word| println!("  {word}"));
    Ok(())
}

/// The collector's process; it ends with this.
struct Process(Child);

impl Process {
    fn cpu(&self) -> Result<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let rest = text.rsplit_once(')').context("stat")?.1;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        // USER_HZ is 100 on every Linux that we run on.
        Ok(Duration::from_millis(10 * ticks))
    }

    fn memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id()))?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, store: Option<&str>) -> Result<(Process, String, Arc<Collector>)> {
    let port = || Ok::<_, anyhow::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let (hosts, console) = (port()?, port()?);
    let store = store.map(|url| format!("[store]\nurl = '{url}'\n")).unwrap_or_default();
    let text = format!(
        "state = '{}/central'\norigin = 'http://localhost:1'\n[hosts]\nlisten = '{hosts}'\n\
         names = ['127.0.0.1']\n[console]\nlisten = '{console}'\n{store}",
        dir.display()
    );
    let file = dir.join("collector.toml");
    std::fs::write(&file, &text)?;
    let config: Config = toml::from_str(&text)?;
    Collector::init(&config)?;
    let child = Command::new(env!("CARGO_BIN_EXE_interceptor"))
        .args(["collector", "--collector-config"])
        .arg(&file)
        .arg("run")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("collector.log"))?)
        .spawn()?;
    let process = Process(child);
    let until = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(hosts).is_err() {
        if Instant::now() > until {
            bail!("{}", std::fs::read_to_string(dir.join("collector.log"))?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((process, format!("https://{hosts}"), Collector::open(config)?))
}

async fn enrolled(
    count: u64,
    dir: &Path,
    url: &str,
    collector: &Arc<Collector>,
) -> Result<Vec<Host>> {
    let mut made = Vec::new();
    let mut tasks = JoinSet::new();
    for n in 0..count {
        if tasks.len() >= AT_A_TIME
            && let Some(host) = tasks.join_next().await
        {
            made.push(host??);
        }
        let (dir, url) = (dir.join(format!("host{n}")), url.to_owned());
        tasks.spawn(enrol(n, dir, url, Arc::clone(collector)));
    }
    while let Some(host) = tasks.join_next().await {
        made.push(host??);
    }
    Ok(made)
}

async fn enrol(n: u64, dir: PathBuf, url: String, collector: Arc<Collector>) -> Result<Host> {
    std::fs::create_dir_all(&dir)?;
    let key = HostKey::open(&dir)?;
    let now = now_us();
    let name = format!("host{n}");
    let own = name.clone();
    let make = move |db: &_| codes::make(db, &own, "bench", now, now + 600_000_000);
    let code = collector.central.write(make).await?;
    let tls = KeyPair::generate()?;
    let mut request = Enrol {
        code,
        csr_pem: CertificateParams::default().serialize_request(&tls)?.pem()?,
        record_key: key.public().to_base64(),
        name,
        version: "bench".into(),
        proof: String::new(),
    };
    let proof = key.sign(&[ENROL_DOMAIN, &request.signed()].concat());
    request.proof = STANDARD.encode(proof);
    let authority = reqwest::Certificate::from_pem(collector.keys.authority_pem().as_bytes())?;
    let builder = || reqwest::Client::builder().tls_certs_only([authority.clone()]).no_proxy();
    let answer = builder().build()?.post(format!("{url}/host/v1/enrol")).json(&request).send();
    let enrolled: Enrolled = answer.await?.error_for_status()?.json().await?;
    let pem = enrolled.certificate_pem + &tls.serialize_pem();
    let http = builder().identity(reqwest::Identity::from_pem(pem.as_bytes())?).build()?;
    Ok(Host { http, dir })
}

/// Each host records its sessions beforehand: recording is not what is measured.
async fn record(hosts: &[Host], sessions: u64) -> Result<()> {
    let mut tasks = JoinSet::new();
    for host in hosts {
        if tasks.len() >= AT_A_TIME
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let dir = host.dir.clone();
        tasks.spawn_blocking(move || record_one(&dir, sessions));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn record_one(dir: &Path, sessions: u64) -> Result<()> {
    let recorder = Recorder::open_with(dir, "bench", &Record::default(), 1 << 20)?;
    for _ in 0..sessions {
        let mut log = recorder.begin(Opening {
            id: ulid::Ulid::new(),
            ts_us: now_us(),
            host: "bench".into(),
            service: "orders-db".into(),
            protocol: "postgres".into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        })?;
        for n in 2..EVENTS {
            let body = serde_json::json!({ "n": n, "verdict": "allow", "class": "select",
                "via": "extended", "rules": ["read"], "policy": "3f2a91c07d55",
                "text": "SELECT abalance FROM pgbench_accounts WHERE aid = $1;" });
            log.append(&Event { ts_us: now_us(), kind: "request", body: &body, data: &[7; 64] })?;
        }
        log.seal(&End::because("client"))?;
    }
    recorder.flush()?;
    recorder.shutdown();
    Ok(())
}

async fn polling(host: Arc<Host>, url: String, seen: Arc<Seen>, until: Instant, offset: Duration) {
    tokio::time::sleep(offset / 2).await;
    let mut instance = String::new();
    while Instant::now() < until {
        let path = format!("{url}/host/v1/orders?after=0&boot=b&instance={instance}");
        let answer = async {
            let answer = host.http.get(path).send().await?.error_for_status()?;
            answer.json::<serde_json::Value>().await
        };
        match answer.await {
            Ok(orders) => {
                orders["instance"].as_str().unwrap_or_default().clone_into(&mut instance);
                seen.polls.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => failed(&seen, "orders", &e).await,
        }
    }
}

async fn reporting(
    host: Arc<Host>,
    url: String,
    seen: Arc<Seen>,
    until: Instant,
    offset: Duration,
) {
    tokio::time::sleep(offset / 2).await;
    while Instant::now() < until {
        let report = Report { now_us: now_us(), ..Report::default() };
        let sent = host.http.post(format!("{url}/host/v1/status")).json(&report).send().await;
        match sent.and_then(reqwest::Response::error_for_status) {
            Ok(_) => drop(seen.reports.fetch_add(1, Ordering::Relaxed)),
            Err(e) => failed(&seen, "report", &e).await,
        }
        tokio::time::sleep(REPORT).await;
    }
}

/// Ships one session, waits, ships the next.
async fn shipping(host: Arc<Host>, url: String, seen: Arc<Seen>, until: Instant, offset: Duration) {
    let mut at = Position::default();
    tokio::time::sleep(offset).await;
    while Instant::now() < until {
        let (dir, from) = (host.dir.clone(), at.clone());
        // About a session: what is in it, and the seal.
        let next = move || Spool::open(&dir).and_then(|spool| spool.next(&from, 6_000));
        let Ok(Ok(batch)) = tokio::task::spawn_blocking(next).await else {
            return failed(&seen, "spool", &"cannot be read").await;
        };
        let Some(batch) = batch else { return };
        let post = host.http.post(format!("{url}/host/v1/batch")).header("content-type", FRAMES);
        let begun = Instant::now();
        let answer = async {
            let answer = post.body(batch.frames).send().await?.error_for_status()?;
            answer.json::<Standing>().await
        };
        match answer.await {
            Ok(standing) => {
                at = standing.position;
                if let Ok(mut all) = seen.batches.lock() {
                    all.push(begun.elapsed());
                }
                seen.events.fetch_add(batch.events, Ordering::Relaxed);
            }
            Err(e) => failed(&seen, "batch", &e).await,
        }
        tokio::time::sleep(SESSION).await;
    }
}

async fn failed(seen: &Seen, what: &str, error: &(dyn std::fmt::Debug + Sync)) {
    if let Ok(mut words) = seen.words.lock()
        && words.len() < 5
    {
        words.insert(format!("{what}: {error:?}").chars().take(400).collect());
    }
    seen.errors.fetch_add(1, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
}
