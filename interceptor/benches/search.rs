//! How fast a text is found among many events: makes hosts' replicas and the central index, lets
//! the index of words be built, and asks a stated list of searches as the console does, cold (page
//! cache dropped, new connections) and warm. Prints; it is no criterion bench, since its state is
//! gigabytes that are made once.
//!
//! `cargo bench -p interceptor --bench search [-- EVENTS [HOSTS]]`
//!
//! State is made below `SEARCH_DIR`, or where temporary files go: about 0.3 KB an event, and
//! twice a host's share while that host is made. While `SEARCH_MARK` names a file, it exists during
//! the searches.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor::collector::search::{self, Page, Wanted};
use interceptor::collector::{Collector, Config, Position, Replica, Server, codes, wire};
use interceptor::config::{Record, Ship};
use interceptor::record::event::Event;
use interceptor::record::{End, Opening, PublicKey, Recorder, SessionLog, now_us};
use interceptor::ship::{Identity, Spool, client};
use serde_json::json;

/// Bytes of a batch, as the daemon ships.
const BATCH: usize = 2 << 20;
/// Time over which sessions are spread.
const MONTH_US: u64 = 30 * 86_400 * 1_000_000;
/// Runs of each search that are warm.
const RUNS: usize = 9;

const AGENTS: [&str; 12] = [
    "billing-bot",
    "deploy-bot",
    "report-bot",
    "support-bot",
    "etl-nightly",
    "fraud-check",
    "inventory-sync",
    "mail-sender",
    "backup-bot",
    "schema-bot",
    "search-indexer",
    "oncall-helper",
];
const TABLES: [&str; 14] = [
    "orders",
    "order_items",
    "customers",
    "customer_cards",
    "invoices",
    "payments",
    "refunds",
    "products",
    "stock_levels",
    "shipments",
    "audit_log",
    "sessions",
    "accounts",
    "events",
];
const PROGRAMS: [&str; 12] = [
    "systemctl status nginx",
    "journalctl -u postgresql --since today",
    "df -h /var/lib",
    "ls -la /srv/www",
    "tail -n 200 /var/log/nginx/access.log",
    "git -C /srv/app pull --ff-only",
    "docker ps --all",
    "kubectl get pods -n shop",
    "cat /etc/hostname",
    "uptime",
    "rsync -a /srv/www/ backup:/srv/www/",
    "python3 /opt/jobs/reconcile.py --day",
];

/// One search: its name, and what the console is asked.
struct Search {
    name: &'static str,
    wanted: fn(Times) -> Wanted,
    /// Which page is measured, from 1.
    page: usize,
}

/// The time that sessions cover.
#[derive(Clone, Copy)]
struct Times {
    from_us: i64,
    to_us: i64,
}

impl Times {
    fn day(self, n: i64) -> i64 {
        self.from_us + n * 86_400 * 1_000_000
    }
}

fn text(text: &str) -> Wanted {
    Wanted { text: Some(text.into()), limit: 50, ..Wanted::default() }
}

fn by(agent: &str, words: &str) -> Wanted {
    Wanted { agent: Some(agent.into()), ..text(words) }
}

const SEARCHES: [Search; 20] = [
    Search { name: "rare word", wanted: |_| text("quagga"), page: 1 },
    Search { name: "word of hardly any session", wanted: |_| text("xylophone7"), page: 1 },
    Search { name: "common word", wanted: |_| text("select"), page: 1 },
    Search { name: "common word, page 2", wanted: |_| text("select"), page: 2 },
    Search { name: "name of a table", wanted: |_| text("customer_cards"), page: 1 },
    Search { name: "two words", wanted: |_| text("DROP TABLE"), page: 1 },
    Search { name: "phrase", wanted: |_| text("FROM customers WHERE email ="), page: 1 },
    Search {
        name: "phrase of common words, nowhere",
        wanted: |_| text("where select from"),
        page: 1,
    },
    Search { name: "e-mail address", wanted: |_| text("user4711@example.com"), page: 1 },
    Search { name: "IP address of a client", wanted: |_| text("10.7.3.19"), page: 1 },
    Search { name: "IP address, nowhere", wanted: |_| text("10.0.0.255"), page: 1 },
    Search { name: "path in a command", wanted: |_| text("rm -rf /srv"), page: 1 },
    Search { name: "number in a statement", wanted: |_| text("id = 123456"), page: 1 },
    Search { name: "beginning of a word", wanted: |_| text("reconcil*"), page: 1 },
    Search { name: "nowhere", wanted: |_| text("nosuchword"), page: 1 },
    Search { name: "agent + word", wanted: |_| by("billing-bot", "refunds"), page: 1 },
    Search {
        name: "principal + word + two days",
        wanted: |t| Wanted {
            principal: Some("user77@example.com".into()),
            since_us: Some(t.day(12)),
            until_us: Some(t.day(14)),
            ..text("payments")
        },
        page: 1,
    },
    Search {
        name: "denied only + word",
        wanted: |_| Wanted { notable: true, ..text("customer_cards") },
        page: 1,
    },
    Search {
        name: "service + word, until day 10",
        wanted: |t| Wanted {
            service: Some("shell".into()),
            until_us: Some(t.day(10)),
            ..text("nginx")
        },
        page: 1,
    },
    Search {
        name: "host + rare word + oldest day",
        wanted: |t| Wanted {
            host: Some("host1".into()),
            until_us: Some(t.day(1)),
            ..text("quagga")
        },
        page: 1,
    },
];

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let events = numbers.first().copied().unwrap_or(200_000);
    let hosts = numbers.get(1).copied().unwrap_or(8).max(1);
    let dir = match std::env::var_os("SEARCH_DIR") {
        Some(base) => tempfile::tempdir_in(base)?,
        None => tempfile::tempdir()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(bench(dir.path(), events, hosts))
}

async fn bench(dir: &Path, events: u64, hosts: u64) -> Result<()> {
    let to_us = now_us();
    let times = Times { from_us: to_us - MONTH_US as i64, to_us };
    let (collector, made) = state(dir, times, events, hosts).await?;
    let built = Instant::now();
    let task = tokio::spawn(search::run(Arc::clone(&collector)));
    while search::behind(&collector).await? > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = built.elapsed();
    task.abort();
    let replicas = size(&dir.join("central/hosts"))?;
    let index = collector.search.bytes();
    println!(
        "index of words: {made} events in {took:.1?}, {:.0} events/s, {} MB beside {} MB of \
         replicas and {} MB of central database",
        made as f64 / took.as_secs_f64(),
        index >> 20,
        replicas >> 20,
        std::fs::metadata(dir.join("central/collector.db"))?.len() >> 20
    );
    let mark = std::env::var_os("SEARCH_MARK").map(PathBuf::from);
    if let Some(mark) = &mark {
        std::fs::write(mark, "search bench")?;
    }
    let measured = measure(dir, collector, times).await;
    if let Some(mark) = &mark {
        std::fs::remove_file(mark)?;
    }
    measured
}

async fn measure(dir: &Path, made: Arc<Collector>, times: Times) -> Result<()> {
    drop(made);
    let config = config(dir)?;
    println!(
        "\n| search | found | cold ms | warm median ms | warm max ms |\n|---|--:|--:|--:|--:|"
    );
    for search in &SEARCHES {
        // A collector of its own: new connections, nothing remembered.
        let collector = Collector::open(config.clone())?;
        let task = tokio::spawn(search::run(Arc::clone(&collector)));
        while search::behind(&collector).await? > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        task.abort();
        let mut wanted = (search.wanted)(times);
        for _ in 1..search.page {
            wanted.before = ask(&collector, &wanted).await?.1.next;
        }
        collector.search.let_go();
        cold()?;
        let (cold, page) = ask(&collector, &wanted).await?;
        ensure!(page.behind.is_none(), "the index is behind");
        let mut warm = Vec::new();
        for _ in 0..RUNS {
            warm.push(ask(&collector, &wanted).await?.0);
        }
        warm.sort_unstable();
        let more = if page.next.is_some() { "+" } else { "" };
        let late = if page.unfinished { " (unfinished)" } else { "" };
        println!(
            "| {} | {}{more}{late} | {:.1} | {:.1} | {:.1} |",
            search.name,
            page.sessions.len(),
            ms(cold),
            ms(warm[RUNS / 2]),
            ms(warm[RUNS - 1])
        );
    }
    Ok(())
}

async fn ask(collector: &Arc<Collector>, wanted: &Wanted) -> Result<(Duration, Page)> {
    let wanted = wanted.clone();
    let begun = Instant::now();
    let page = wanted.page(collector).await?;
    Ok((begun.elapsed(), page))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Drops the page cache; what is not allowed is said once.
fn cold() -> Result<()> {
    std::process::Command::new("sync").status().context("sync")?;
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        eprintln!("the page cache cannot be dropped: cold is not cold");
    }
    Ok(())
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { size(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

fn config(dir: &Path) -> Result<Config> {
    Ok(toml::from_str(&format!(
        "state = \"{}/central\"\norigin = \"http://localhost:1\"\n[hosts]\n\
         listen = \"127.0.0.1:0\"\nnames = [\"127.0.0.1\"]\n[console]\nlisten = \"127.0.0.1:0\"\n",
        dir.display()
    ))?)
}

/// The collector's state: each host records, enrols, and its replica takes what it recorded; then
/// it asks where it stands, by which the collector indexes the sessions. How many events.
async fn state(dir: &Path, times: Times, events: u64, hosts: u64) -> Result<(Arc<Collector>, u64)> {
    let config = config(dir)?;
    Collector::init(&config)?;
    let collector = Collector::open(config.clone())?;
    let server = Server::new(Arc::clone(&collector)).await?;
    let url = format!("https://{}", server.addresses()?.0);
    let begun = Instant::now();
    let (mut made, mut sessions) = (0, 0);
    let mut clients = Vec::new();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let serving = tokio::spawn(server.run());
    for n in 0..hosts {
        let host = dir.join(format!("host{n}"));
        let (path, seed, central) = (host.clone(), random.next(), dir.join("central"));
        let name = format!("host{n}");
        let work = move || -> Result<(u64, u64)> {
            let sessions = record(&path, &name, times, events / hosts, Random(seed))?;
            Ok((take(&central, &path, &name)?, sessions))
        };
        let (events, of_host) = tokio::task::spawn_blocking(work).await??;
        made += events;
        sessions += of_host;
        let now = now_us();
        let name = format!("host{n}");
        let code = collector
            .central
            .write(move |db| codes::make(db, &name, "bench", now, now + 60_000_000))
            .await?;
        let config: interceptor::config::Config =
            toml::from_str(&format!("[paths]\nstate = \"{}\"\n", host.display()))?;
        let pin = collector.keys.authority_pin();
        interceptor::ship::enrol(&config, &Ship::at(url.clone()), &code, &pin).await?;
        let identity = Identity::load(&host.join("ship"))?.context("not enrolled")?;
        clients.push(client::enrolled(&identity)?);
        std::fs::remove_dir_all(&host)?;
        println!("host{n}: {events} events after {:.0?}", begun.elapsed());
    }
    for http in clients {
        let get = http.get(format!("{url}/host/v1/position"));
        let _: wire::Standing = client::call(get).await?;
    }
    serving.abort();
    let _ = serving.await;
    // What it indexed meanwhile goes: that is measured apart.
    drop(collector);
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(dir.join(format!("central/search.db{end}")));
    }
    let collector = Collector::open(config)?;
    println!(
        "{made} events in {sessions} sessions on {hosts} hosts made in {:.0?}",
        begun.elapsed()
    );
    Ok((collector, made))
}

fn take(central: &Path, host: &Path, name: &str) -> Result<u64> {
    let key = PublicKey::load(&host.join("host.pub"))?;
    let mut replica = Replica::open(central, key, name)?;
    let spool = Spool::open(host)?;
    let (mut at, mut events) = (Position::default(), 0);
    while let Some(batch) = spool.next(&at, BATCH)? {
        events += replica.take(&batch.frames)?.events;
        at = replica.position();
    }
    Ok(events)
}

/// A host that recorded sessions of all kinds over a month; how many.
fn record(dir: &Path, name: &str, times: Times, events: u64, mut random: Random) -> Result<u64> {
    std::fs::create_dir_all(dir)?;
    let recorder = Recorder::open_with(dir, name, &Record::default(), 32 << 20)?;
    let (mut made, mut sessions) = (0, 0);
    while made < events {
        let at = (times.to_us - times.from_us) as f64 * (made as f64 / events as f64);
        let mut session = Session::begin(&recorder, name, times.from_us + at as i64, random)?;
        if session.shell {
            session.shell()?
        } else {
            session.database()?
        }
        random = session.random;
        made += session.events + 2;
        sessions += 1;
        session.log.seal(&End::because("client"))?;
    }
    recorder.flush()?;
    recorder.shutdown();
    Ok(sessions)
}

struct Session {
    log: SessionLog,
    shell: bool,
    at_us: i64,
    n: u64,
    events: u64,
    random: Random,
}

impl Session {
    fn begin(recorder: &Recorder, name: &str, at_us: i64, mut random: Random) -> Result<Self> {
        let shell = random.below(10) >= 7;
        let source = format!(
            "10.{}.{}.{}:{}",
            random.below(8),
            random.below(6),
            random.below(250),
            1024 + random.below(60_000)
        );
        let (service, protocol, port) = match (shell, random.below(3)) {
            (true, _) => ("shell", "ssh", 22),
            (_, 0) => ("orders-db", "postgres", 5432),
            (_, 1) => ("crm-db", "postgres", 5433),
            _ => ("warehouse", "postgres", 5434),
        };
        let log = recorder.begin(Opening {
            id: ulid::Ulid::new(),
            ts_us: at_us,
            host: name.into(),
            service: service.into(),
            protocol: protocol.into(),
            source: source.as_str().into(),
            original_dst: format!("10.0.0.2:{port}").into(),
            mode: "enforce".into(),
            peer_uid: None,
        })?;
        let mut session = Self { log, shell, at_us, n: 0, events: 0, random };
        let agent = AGENTS[session.random.below(AGENTS.len() as u64) as usize];
        let user = session.random.below(5_000);
        let token = format!("AT.{:016x}{:016x}", session.random.next(), session.random.next());
        session.event("identity.proven", &json!({
            "agent": agent, "principal": format!("user{user}@example.com"), "issuer": "okta",
            "labels": { "team": "shop" }, "source_key": source, "proven": true, "way": "password",
            "claims": { "iss": "https://example.okta.com/oauth2/default", "aud": "interceptor",
                "sub": format!("user{user}@example.com"), "cid": format!("0oa{agent}"),
                "jti": token,
                "groups": ["everyone", "agents"] },
        }), &[])?;
        session.event("admission", &json!({
            "verdict": "allow", "role": "app", "database": "shop", "client": "psycopg",
            "rules": ["connect"], "policy": "3f2a91c07d55", "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
        }), &[])?;
        Ok(session)
    }

    fn event(&mut self, kind: &str, body: &serde_json::Value, data: &[u8]) -> Result<()> {
        self.at_us += 1 + self.random.below(50_000) as i64;
        self.events += 1;
        self.log.append(&Event { ts_us: self.at_us, kind, body, data })?;
        Ok(())
    }

    fn asks(&mut self, class: &str, verdict: &str, text: &str) -> Result<()> {
        self.n += 1;
        let (a, b) = (self.random.next(), self.random.next());
        let hmac = format!("{a:016x}{b:016x}{a:016x}{b:016x}");
        self.event(
            "request",
            &json!({
                "n": self.n, "verdict": verdict, "class": class, "via": "extended",
                "rules": ["read"], "policy": "3f2a91c07d55", "text": text, "hmac": hmac,
            }),
            &[],
        )
    }

    /// A session at a database: statements and answers.
    fn database(&mut self) -> Result<()> {
        for _ in 0..10 + self.random.below(100) {
            let text = self.statement();
            let denied = text.starts_with("DROP");
            let class = if text.starts_with("SELECT") { "select" } else { "update" };
            self.asks(class, if denied { "deny" } else { "allow" }, &text)?;
            let rows = self.random.below(20);
            let duration_us = 100 + self.random.below(9_000);
            self.event(
                "response",
                &json!({
                    "n": self.n, "tag": format!("SELECT {rows}"), "rows": rows, "bytes": rows * 31,
                    "duration_us": duration_us, "masked": 0,
                }),
                &[7; 48],
            )?;
        }
        Ok(())
    }

    fn statement(&mut self) -> String {
        let r = &mut self.random;
        let table = TABLES[r.below(TABLES.len() as u64) as usize];
        let (id, user) = (r.below(2_000_000), r.below(5_000));
        match r.below(100_000) {
            0 => format!("SELECT * FROM {table} WHERE note = 'quagga'"),
            1..=30 => format!("DROP TABLE {table}"),
            31..=33 => format!("SELECT xylophone{} FROM instruments", r.below(200)),
            34..=9_999 => {
                format!("SELECT id, name FROM customers WHERE email = 'user{user}@example.com'")
            }
            10_000..=29_999 => {
                format!("UPDATE {table} SET status = 'done', updated_at = now() WHERE id = {id}")
            }
            30_000..=39_999 => format!(
                "INSERT INTO {table} (id, amount, note) VALUES ({id}, {}.{}, 'ref {:x}')",
                r.below(5_000),
                r.below(100),
                r.below(1 << 40)
            ),
            40_000..=59_999 => format!("SELECT count(*) FROM {table} WHERE created_at > $1"),
            _ => format!("SELECT * FROM {table} WHERE id = {id} ORDER BY created_at DESC LIMIT 20"),
        }
    }

    /// A session at a shell: commands, what they printed, how they ended.
    fn shell(&mut self) -> Result<()> {
        self.event("channel.open", &json!({ "ch": 0, "kind": "session" }), &[])?;
        let mut offset = 0;
        for _ in 0..3 + self.random.below(25) {
            let text = match self.random.below(2_000) {
                0 => format!("rm -rf /srv/releases/{}", self.random.below(1 << 30)),
                1..=150 => format!("grep -r order{} /var/log/app", self.random.below(1 << 20)),
                n => {
                    format!("{} {}", PROGRAMS[n as usize % PROGRAMS.len()], self.random.below(500))
                }
            };
            self.asks("exec", "allow", &text)?;
            let output = [b'.'; 400];
            self.event(
                "channel.data",
                &json!({
                    "ch": 0, "stream": "out", "offset": offset, "bytes": output.len(),
                }),
                &output,
            )?;
            offset += output.len();
            self.event("channel.exit", &json!({ "ch": 0, "n": self.n, "status": 0 }), &[])?;
        }
        Ok(())
    }
}

/// Numbers that are the same at every run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}
