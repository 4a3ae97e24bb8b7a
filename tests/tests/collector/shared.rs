//! Several collectors over one PostgreSQL database, behind something that spreads connections as
//! a load balancer does: any of them may be killed at any moment, and so may the host.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use interceptor_tests::cluster::Server;
use nix::sys::signal::Signal;

use super::*;

/// A PostgreSQL for collectors, on a Unix socket alone.
struct Database {
    process: Daemon,
    sockets: PathBuf,
}

impl Database {
    fn start(dir: &Path) -> Result<Self> {
        let (data, sockets) = (dir.join("pg"), dir.join("s"));
        for one in [&data, &sockets] {
            std::fs::create_dir_all(one)?;
            Cmd::new("chown").arg("postgres:postgres").arg(one).ok()?;
        }
        for above in dir.ancestors().take_while(|d| *d != Path::new("/tmp")) {
            std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755))?;
        }
        let bin = Server::debian()?.bin;
        let as_owner = |cmd: Cmd| cmd.as_user("postgres", "postgres");
        let init = Cmd::new(bin.join("initdb")).args(["-A", "trust", "-U", "collector"]);
        as_owner(init.arg("-D").arg(&data)).ok()?;
        let me = Self::again(dir)?;
        me.psql("postgres", "CREATE DATABASE interceptor")?;
        Ok(me)
    }

    /// On a directory that is there.
    fn again(dir: &Path) -> Result<Self> {
        let (data, sockets) = (dir.join("pg"), dir.join("s"));
        let bin = Server::debian()?.bin;
        let run = Cmd::new(bin.join("postgres")).arg("-D").arg(&data).arg("-k").arg(&sockets);
        let run = run.args(["-c", "listen_addresses=", "-c", "max_connections=200"]);
        let process = run.as_user("postgres", "postgres").daemonize(&dir.join("postgres.log"))?;
        let me = Self { process: process.ends_with(Signal::SIGINT), sockets };
        wait_for("PostgreSQL to answer", SOON, || {
            Ok(me.psql("postgres", "SELECT 1").is_ok().then_some(()))
        })?;
        Ok(me)
    }

    fn psql(&self, database: &str, sql: &str) -> Result<String> {
        Cmd::new("psql")
            .args(["-U", "collector", "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-h"])
            .arg(&self.sockets)
            .args(["-c", sql])
            .ok()
    }

    /// `[store]` for it.
    fn section(&self) -> String {
        let sockets = self.sockets.display().to_string().replace('/', "%2F");
        format!("\n[store]\nurl = \"postgresql://collector@{sockets}/interceptor\"\n")
    }

    /// Ends it as a crash does: what was not on disk is gone.
    fn crash(self) {
        drop(self.process.ends_with(Signal::SIGQUIT));
    }
}

/// Spreads connections over those who listen.
struct Balancer {
    port: u16,
}

impl Balancer {
    fn start(to: Vec<u16>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (to, turn) = (Arc::new(to), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (to, first) = (Arc::clone(&to), turn.fetch_add(1, Ordering::Relaxed));
                std::thread::spawn(move || {
                    let server = (0..to.len()).find_map(|n| {
                        TcpStream::connect(("127.0.0.1", to[(first + n) % to.len()])).ok()
                    });
                    if let Some(server) = server {
                        both_ways(client, server);
                    }
                });
            }
        });
        Ok(Self { port })
    }
}

fn both_ways(a: TcpStream, b: TcpStream) {
    let pair = [(a.try_clone(), b.try_clone()), (Ok(b), Ok(a))];
    for (from, to) in pair {
        std::thread::spawn(move || {
            if let (Ok(mut from), Ok(mut to)) = (from, to) {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            }
        });
    }
}

/// So many collectors over one database; hosts reach them at the balancer's port alone.
fn collectors(dir: &Path, database: &Database, count: usize) -> Result<(Vec<Collector>, Balancer)> {
    let mut all: Vec<Collector> = Vec::new();
    for n in 0..count {
        let own = dir.join(format!("c{n}"));
        all.push(Collector::create_with(&own, &database.section(), all.first())?);
    }
    let port = |c: &Collector| c.url.rsplit(':').next().and_then(|p| p.parse().ok());
    let balancer = Balancer::start(all.iter().filter_map(port).collect())?;
    for one in &mut all {
        one.start()?;
        let listens = format!("http://localhost:{}/healthz", one.console);
        wait_for(&listens, SOON, || {
            Ok(TcpStream::connect(("127.0.0.1", one.console)).is_ok().then_some(()))
        })
        .with_context(|| one.log())?;
    }
    Ok((all, balancer))
}

fn enrol_at(collector: &Collector, balancer: &Balancer, host: &Host, name: &str) -> Result<()> {
    let code = collector.code(name)?;
    let get = |what: &str| code[what].as_str().unwrap_or_default().to_owned();
    let url = format!("https://127.0.0.1:{}", balancer.port);
    let (code, pin) = (get("code"), get("authority_pin"));
    let args = ["ship", "enrol", "--collector", &url, "--code", &code, "--authority-pin", &pin];
    host.cli(args)?.ok()?;
    Ok(())
}

/// How many events there are to be.
fn wanted() -> u64 {
    std::env::var("INTERCEPTOR_TEST_SHARED_EVENTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000)
}

#[test]
fn two_collectors_over_one_database_are_killed_and_everything_arrives_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let database = Database::start(dir.path())?;
    let (mut all, balancer) = collectors(dir.path(), &database, 2)?;
    let url = format!("https://127.0.0.1:{}", balancer.port);
    let mut host = Host::create(dir.path(), "writer", &url)?;
    enrol_at(&all[0], &balancer, &host, "writer")?;
    let wanted = wanted();
    host.start(wanted)?;
    let (begun, mut kills) = (Instant::now(), 0);
    loop {
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(100..1200)));
        match rand::rng().random_range(0..4) {
            n @ (0 | 1) => {
                all[n].kill();
                all[n].start()?;
            }
            2 => {
                // Both gone for a moment.
                all.iter_mut().for_each(Collector::kill);
                all.iter_mut().try_for_each(Collector::start)?;
            }
            _ => {
                host.kill();
                host.start(wanted)?;
            }
        }
        kills += 1;
        let recorded: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
        if (recorded >= wanted && kills >= 15) || begun.elapsed() > Duration::from_secs(240) {
            assert!(recorded >= wanted, "only {recorded} events after {kills} kills");
            break;
        }
    }
    host.seals_all()?;
    let (sessions, events) = assert_shipped(&all[0], &host)?;
    // The other follows, and both say the same of the log that they share.
    assert_eq!(assert_shipped(&all[1], &host)?, (sessions, events));
    wait_for("the index to have everything", SOON, || {
        Ok((all[1].hosts()?[0]["events"] == events).then_some(()))
    })?;
    for one in &all {
        assert_eq!(one.hosts()?[0]["problem"], Value::Null);
        let log = one.cli(["verify"])?.ok()?;
        assert!(log.contains(&format!("log: {sessions} sealed sessions")), "{log} of {sessions}");
    }
    let twice = "SELECT count(*) FROM (SELECT 1 FROM leaves GROUP BY host, number \
                 HAVING count(*) > 1) AS twice";
    assert_eq!(database.psql("interceptor", twice)?.trim(), "0");
    eprintln!("{events} events in {sessions} sessions over {kills} kills");
    Ok(())
}

#[test]
fn a_collector_that_lost_its_disk_has_everything_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let database = Database::start(dir.path())?;
    let (mut all, balancer) = collectors(dir.path(), &database, 1)?;
    let url = format!("https://127.0.0.1:{}", balancer.port);
    let mut host = Host::create(dir.path(), "writer", &url)?;
    enrol_at(&all[0], &balancer, &host, "writer")?;
    host.start(2_000)?;
    let before = assert_shipped(&all[0], &host)?;
    all[0].kill();
    std::fs::remove_dir_all(all[0].dir.join("state/hosts"))?;
    all[0].start()?;
    let after = assert_shipped(&all[0], &host)?;
    assert!(after.1 >= before.1, "{before:?} {after:?}");
    all[0].cli(["verify"])?.ok()?;
    Ok(())
}

/// The database goes away in the middle of the work: nothing is acknowledged that it does not
/// have, and all goes on when it is back.
#[test]
fn a_database_that_crashes_loses_nothing_that_was_acknowledged() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut database = Some(Database::start(dir.path())?);
    let (all, balancer) = match &database {
        Some(database) => collectors(dir.path(), database, 2)?,
        None => anyhow::bail!("no database"),
    };
    let url = format!("https://127.0.0.1:{}", balancer.port);
    let mut host = Host::create(dir.path(), "writer", &url)?;
    enrol_at(&all[0], &balancer, &host, "writer")?;
    host.start(8_000)?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(300..1500)));
        if let Some(old) = database.take() {
            old.crash();
        }
        database = Some(Database::again(dir.path())?);
    }
    let (_, events) = assert_shipped(&all[0], &host)?;
    assert!(events >= 8_000, "{events}");
    assert_shipped(&all[1], &host)?;
    all[1].cli(["verify"])?.ok()?;
    Ok(())
}

/// From SQLite to PostgreSQL while the host records: it is told nothing, and loses nothing.
#[test]
fn a_collector_moves_from_sqlite_to_postgresql_and_its_host_goes_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let database = Database::start(dir.path())?;
    let mut first = Collector::create(&dir.path().join("c0"), None)?;
    first.start()?;
    let mut host = Host::create(dir.path(), "writer", &first.url)?;
    first.enrol("writer", |args| host.cli(args.iter().copied())?.run())?;
    host.start(6_000)?;
    wait_for("the first events", SOON, || {
        Ok((first.hosts()?[0]["events"].as_u64() > Some(500)).then_some(()))
    })?;
    let config = std::fs::read_to_string(&first.config)? + &database.section();
    std::fs::write(&first.config, config)?;
    // The collector runs, and goes on with what it has.
    let refused = first.cli(["import"])?.run()?;
    assert!(!refused.success() && refused.all().contains("stop the collector"), "{refused}");
    first.kill();
    let forgotten = first.cli(["run"])?.limit(SOON).run()?;
    assert!(!forgotten.success() && forgotten.all().contains("collector import"), "{forgotten}");
    let brought: Value = serde_json::from_str(&first.cli(["import", "--json"])?.ok()?)?;
    assert_eq!((&brought["hosts"], &brought["before"]), (&1.into(), &false.into()), "{brought}");
    assert!(brought["events"].as_u64() > Some(500), "{brought}");
    first.start()?;
    let mut second =
        Collector::create_with(&dir.path().join("c1"), &database.section(), Some(&first))?;
    second.start()?;
    wait_for("everything to be recorded", SOON, || {
        let recorded: u64 = host.sessions()?.values().map(|(_, events)| events).sum();
        Ok((recorded >= 6_000).then_some(()))
    })?;
    host.seals_all()?;
    let all = assert_shipped(&first, &host)?;
    assert_eq!(assert_shipped(&second, &host)?, all);
    for one in [&first, &second] {
        assert_eq!(one.hosts()?[0]["problem"], Value::Null);
        let log = one.cli(["verify"])?.ok()?;
        assert!(log.contains(&format!("log: {} sealed sessions", all.0)), "{log} of {all:?}");
    }
    Ok(())
}
