//! How many events a collector takes durably in a second: into a replica alone, and over HTTPS
//! with mutual TLS, index and log. Prints; it is no criterion bench, since each run writes
//! hundreds of megabytes once.
//!
//! `cargo bench -p interceptor --bench ingest [-- EVENTS [HOSTS]]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor::collector::{Collector, Config, Position, Replica, Server, codes, wire};
use interceptor::config::{Record, Ship};
use interceptor::record::event::Event;
use interceptor::record::{End, Opening, PublicKey, Recorder, now_us};
use interceptor::ship::{Identity, Spool, client};

/// What two cores must take: over HTTPS, checked, indexed, in the log and on disk.
const TARGET: f64 = 20_000.0;
/// Bytes of a batch, as the daemon ships.
const BATCH: usize = 2 << 20;

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let events = numbers.first().copied().unwrap_or(200_000);
    let hosts = numbers.get(1).copied().unwrap_or(2).max(1);
    let dir = tempfile::tempdir()?;
    let begun = Instant::now();
    let made: Vec<PathBuf> =
        (0..hosts).map(|n| host(dir.path(), n, events / hosts)).collect::<Result<_>>()?;
    println!("{events} events on {hosts} hosts made in {:.1?}", begun.elapsed());
    let host = made.first().context("no host")?;
    replica(dir.path(), host)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(network(dir.path(), &made))
}

/// A host that recorded sessions of 100 requests and answers.
fn host(dir: &Path, n: u64, events: u64) -> Result<PathBuf> {
    let dir = dir.join(format!("host{n}"));
    std::fs::create_dir_all(&dir)?;
    let recorder = Recorder::open_with(&dir, "bench", &Record::default(), 32 << 20)?;
    let text = "SELECT abalance FROM pgbench_accounts WHERE aid = $1;";
    for _ in 0..events / 200 {
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
        for n in 0..99 {
            let request = serde_json::json!({ "n": n, "verdict": "allow", "class": "select",
                "via": "extended", "rules": ["read"], "policy": "3f2a91c07d55", "text": text,
                "hmac": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" });
            let response = serde_json::json!({ "n": n, "tag": "SELECT 1", "rows": 1, "bytes": 31,
                "duration_us": 117, "masked": 0 });
            let (ts_us, data) = (now_us(), &[][..]);
            log.append(&Event { ts_us, kind: "request", body: &request, data })?;
            log.append(&Event { ts_us, kind: "response", body: &response, data: &[7; 64] })?;
        }
        log.commit()?.wait()?;
        log.seal(&End::because("client"))?;
    }
    recorder.flush()?;
    recorder.shutdown();
    Ok(dir)
}

fn replica(dir: &Path, host: &Path) -> Result<()> {
    let key = PublicKey::load(&host.join("host.pub"))?;
    let mut replica = Replica::open(&dir.join("alone"), key, "bench")?;
    let spool = Spool::open(host)?;
    let (mut at, mut events, mut reading) = (Position::default(), 0, Duration::ZERO);
    let begun = Instant::now();
    loop {
        let start = Instant::now();
        let Some(batch) = spool.next(&at, BATCH)? else { break };
        reading += start.elapsed();
        events += replica.take(&batch.frames)?.events;
        at = replica.position();
    }
    let taking = begun.elapsed() - reading;
    rate("spool alone", events, reading);
    rate("replica alone", events, taking);
    Ok(())
}

fn rate(what: &str, events: u64, time: Duration) {
    println!("{what:<28} {:>9.0} events/s", events as f64 / time.as_secs_f64());
}

async fn network(dir: &Path, hosts: &[PathBuf]) -> Result<()> {
    let config: Config = toml::from_str(&format!(
        "state = \"{}/central\"\norigin = \"http://localhost:1\"\n[hosts]\n\
         listen = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\"]\n[console]\nlisten = \"127.0.0.1:0\"\n",
        dir.display()
    ))?;
    Collector::init(&config)?;
    let collector = Collector::open(config)?;
    let server = Server::new(Arc::clone(&collector)).await?;
    let url = format!("https://{}", server.addresses()?.0);
    let task = tokio::spawn(server.run());
    for host in hosts {
        let now = now_us();
        let code = collector
            .central
            .write(move |db| codes::make(db, "bench", "bench", now, now + 60_000_000))
            .await?;
        let config: interceptor::config::Config =
            toml::from_str(&format!("[paths]\nstate = \"{}\"\n", host.display()))?;
        let pin = collector.keys.authority_pin();
        interceptor::ship::enrol(&config, &Ship::at(url.clone()), &code, &pin).await?;
    }
    let begun = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for host in hosts {
        all.spawn(ship(host.clone(), url.clone()));
    }
    let mut events = 0;
    while let Some(shipped) = all.join_next().await {
        events += shipped??;
    }
    let time = begun.elapsed();
    rate("over HTTPS, on disk", events, time);
    let met = events as f64 / time.as_secs_f64() >= TARGET;
    println!("target ≥ {TARGET:.0} events/s: {}", if met { "met" } else { "MISSED" });
    task.abort();
    Ok(())
}

async fn ship(host: PathBuf, url: String) -> Result<u64> {
    let identity = Identity::load(&host.join("ship"))?.context("not enrolled")?;
    let http = client::enrolled(&identity)?;
    let (mut at, mut events) = (Position::default(), 0);
    loop {
        let from = host.clone();
        let position = at.clone();
        let batch = tokio::task::spawn_blocking(move || {
            Spool::open(&from).and_then(|spool| spool.next(&position, BATCH))
        });
        let Some(batch) = batch.await?? else { return Ok(events) };
        let post = http
            .post(format!("{url}/host/v1/batch"))
            .header("content-type", wire::FRAMES)
            .body(batch.frames);
        let standing: wire::Standing = client::call(post).await?;
        (at, events) = (standing.position, events + batch.events);
    }
}
