//! People at a collector decide what waits on real hosts, end what runs there, and see to it that
//! one token is for one host.
//!
//! The collector runs in this process, outside of the beds' networks; each bed reaches it by a
//! way through its own loopback that a test can cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use interceptor::collector::decisions::{self, Choice};
use interceptor::collector::{Change, Collector, Config, Person, Server};
use interceptor::session::Target;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::live::Live;
use interceptor_tests::net::Place;
use interceptor_tests::proc::wait_for;
use interceptor_tests::skip_unless_possible;
use interceptor_tests::story::session_that;
use interceptor_tests::tokens::{Claims, Issuer, url};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(20);
const SQL: &str = "UPDATE orders SET status = 'touched' WHERE id = 11;";
/// Where a host finds the collector.
const PORT: u16 = 8444;

/// A collector in this process.
struct Fleet {
    collector: Arc<Collector>,
    address: SocketAddr,
    runtime: Runtime,
    _dir: tempfile::TempDir,
}

/// A host's way to the collector; gone when dropped.
struct Way(Runtime);

impl Drop for Way {
    fn drop(&mut self) {
        let runtime = std::mem::replace(
            &mut self.0,
            // Nothing runs on it; the old one is ended with all its connections.
            match tokio::runtime::Builder::new_current_thread().build() {
                Ok(empty) => empty,
                Err(_) => return,
            },
        );
        runtime.shutdown_background();
    }
}

impl Fleet {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = format!(
            "state = '{}'\norigin = 'http://127.0.0.1:1'\n\
             [hosts]\nlisten = '127.0.0.1:0'\nnames = ['127.0.0.1']\n\
             [console]\nlisten = '127.0.0.1:0'\n\
             [login]\nname = 'okta'\nissuer = '{}'\nclient_id = 'console'\n\
             [roles]\napprover = ['approvers']\nadmin = ['admins']\n",
            dir.path().join("collector").display(),
            url(),
        );
        let file = dir.path().join("collector.toml");
        std::fs::write(&file, config)?;
        let config = Config::load(&file)?;
        Collector::init(&config)?;
        let runtime = Runtime::new()?;
        let collector = Collector::open(config)?;
        let (server, address) = runtime.block_on(async {
            let server = Server::new(Arc::clone(&collector)).await?;
            let address = server.addresses()?.0;
            anyhow::Ok((server, address))
        })?;
        runtime.spawn(server.run());
        Ok(Self { collector, address, runtime, _dir: dir })
    }

    /// Opens a way from the host's loopback to the collector.
    fn way(&self, bed: &Bed) -> Result<Way> {
        let listener = bed
            .net()
            .inside(Place::Host, || Ok(std::net::TcpListener::bind(("127.0.0.1", PORT))?))?;
        listener.set_nonblocking(true)?;
        let to = self.address;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        drop(guard);
        runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(to).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Ok(Way(runtime))
    }

    /// A bed whose host is enrolled here, with its daemon up.
    fn host(&self, name: &str, settings: &str, service: &str) -> Result<(Bed, Way)> {
        let mut bed = self.bed(name, settings, service)?;
        let way = self.way(&bed)?;
        self.enrol(&bed, name)?;
        bed.interceptor_mut()?.start()?;
        Ok((bed, way))
    }

    /// A bed that is told of the collector, and whose daemon is not up yet.
    fn bed(&self, _name: &str, settings: &str, service: &str) -> Result<Bed> {
        let mut spec = Spec::default()
            .config(&format!("[ship]\ncollector = \"https://127.0.0.1:{PORT}\"\n{settings}"))
            .service(|s| s.settings = service.into());
        spec.daemon.get_or_insert_default().start = false;
        Bed::with(spec)
    }

    fn enrol(&self, bed: &Bed, name: &str) -> Result<()> {
        let (name, now) = (name.to_owned(), interceptor::record::now_us());
        let make = self.collector.central.write(move |db| {
            interceptor::collector::codes::make(db, &name, "test", now, now + 600_000_000)
        });
        let code = self.runtime.block_on(make)?;
        let pin = self.collector.keys.authority_pin();
        let enrol = ["ship", "enrol", "--code", &code, "--authority-pin", &pin];
        bed.interceptor()?.cli(enrol).ok()?;
        Ok(())
    }

    fn person(&self, sub: &str, groups: &[&str]) -> Person {
        Person {
            issuer: url(),
            sub: sub.into(),
            name: format!("Name of {sub}"),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            roles: self.collector.config.roles.of(groups.iter().copied()),
        }
    }

    fn approver(&self) -> Person {
        self.person("00u-ann", &["approvers"])
    }

    /// The one hold that waits, once its exact text is here.
    fn next_hold(&self) -> Result<String> {
        let mut changes = self.collector.hub.listen();
        let found = async {
            loop {
                let all = decisions::list(&self.collector).await?;
                if let Some(row) = all.first().filter(|r| self.collector.held.get(&r.id).is_some())
                {
                    return anyhow::Ok(row.id.clone());
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), changes.recv()).await;
            }
        };
        self.runtime
            .block_on(async { tokio::time::timeout(SOON, found).await })
            .context("no hold came to the collector")?
    }

    fn decide(&self, who: &Person, id: &str, choice: Choice) -> Result<String> {
        let decided = self.runtime.block_on(decisions::decide(&self.collector, who, id, choice));
        Ok(decided.map(|d| d.state)?)
    }

    fn kill(&self, target: Target) -> Result<()> {
        let admin = self.person("00u-adm", &["admins"]);
        let reason = Some("runs wild".into());
        let told = self.runtime.block_on(decisions::kill(
            &self.collector,
            &admin,
            target,
            None,
            reason,
        ))?;
        if told.is_empty() { bail!("no host was told") } else { Ok(()) }
    }
}

fn yes() -> Choice {
    Choice { approve: true, ..Choice::default() }
}

fn touched(bed: &Bed) -> Result<bool> {
    Ok(bed.db().admin("SELECT status FROM orders WHERE id = 11")?.trim() == "touched")
}

fn psql(bed: &Bed) -> Result<Live> {
    bed.live_psql(&bed.login("app_rw")?)
}

#[test]
fn people_at_the_collector_decide_what_waits_on_a_host() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (bed, _way) = fleet.host("a", "", "")?;
    let mut psql = psql(&bed)?;
    psql.send(SQL)?;
    let id = fleet.next_hold()?;
    let ann = fleet.approver();
    let seen = fleet.runtime.block_on(decisions::show(&fleet.collector, &ann, &id))?;
    assert!(seen.statement.is_some_and(|s| s.contains("status = 'touched'")));
    assert_eq!(seen.claims.context("claims")?["uid"], "00u-alice");
    let alice = fleet.person("00u-alice", &["approvers"]);
    let own = fleet.runtime.block_on(decisions::decide(&fleet.collector, &alice, &id, yes()));
    assert_eq!(own.err().map(|e| e.code()), Some("SELF_APPROVAL"));
    // The people of the host are sent there.
    let local = id.split(':').nth(1).context("the hold's own id")?;
    let here = bed.interceptor()?.approve(local)?;
    assert!(!here.success() && here.all().contains("decided at https://127.0.0.1"), "{here}");
    let no = Choice { reason: Some("not today".into()), ..Choice::default() };
    assert_eq!(fleet.decide(&ann, &id, no)?, "denied");
    psql.expect("not today", SOON)?;
    assert!(!touched(&bed)?);

    psql.send(SQL)?;
    let id = fleet.next_hold()?;
    assert_eq!(fleet.decide(&ann, &id, yes())?, "granted");
    psql.expect("UPDATE 1", SOON)?;
    assert!(touched(&bed)?);
    let session = session_that(&bed, "touched")?;
    let shown = bed.interceptor()?.session(&session)?.to_string();
    assert!(shown.contains("Name of 00u-ann (okta/00u-ann) at the collector"), "{shown}");
    Ok(())
}

#[test]
fn a_withdrawn_grant_ends_what_runs_under_it() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (bed, _way) = fleet.host("a", "", "")?;
    let mut psql = psql(&bed)?;
    psql.send(SQL)?;
    let id = fleet.next_hold()?;
    let hour = Choice { approve: true, for_seconds: Some(3600), reason: None };
    let ann = fleet.approver();
    assert_eq!(fleet.decide(&ann, &id, hour)?, "granted");
    psql.expect("UPDATE 1", SOON)?;
    let grant = wait_for("the grant at the collector", SOON, || {
        let all = fleet.runtime.block_on(decisions::grants(&fleet.collector))?;
        Ok(all.into_iter().next())
    })?;
    let admin = bed.db().admin_tool("psql").args(["-X", "-At"]);
    let admin = admin.as_user("postgres", "postgres").in_netns(&bed.net().name(Place::Host));
    let mut locker = Live::start(&admin)?;
    locker.ask("BEGIN; UPDATE orders SET total = 1 WHERE id = 12;", SOON)?;
    psql.send("UPDATE orders SET status = 'under-a-grant' WHERE id = 12;")?;
    wait_for("the statement to wait for the lock", SOON, || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        Ok((bed.db().admin(waits)?.trim() == "1").then_some(()))
    })?;
    let revoked = decisions::revoke(&fleet.collector, &ann, grant.host, &grant.grant, None);
    fleet.runtime.block_on(revoked)?;
    psql.expect("canceling statement due to user request", SOON)?;
    Ok(())
}

#[test]
fn sessions_end_from_the_collector_and_from_the_command_line() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (bed, _way) = fleet.host("a", "", "")?;
    let mut one = psql(&bed)?;
    one.ask("SELECT 'here';", SOON)?;
    fleet.kill(Target::Principal("00u-alice".into()))?;
    let interceptor = bed.interceptor()?;
    let ended = wait_for("the end in the record", SOON, || {
        let all = interceptor.sessions()?;
        Ok(all.into_iter().find(|s| s.to_string().contains("killed")))
    })?;
    // psql reads only when it is given something to do.
    one.send("SELECT 1;")?;
    one.expect("KILLED: the session was ended by an operator", SOON)?;
    let id = ended["id"].as_str().or(ended["session"].as_str()).context("an id")?.to_owned();
    let shown = interceptor.session(&id)?.to_string();
    assert!(shown.contains("00u-adm") && shown.contains("runs wild"), "{shown}");

    // A token that is ended is not taken again.
    let login = bed.login("app_rw")?;
    let mut two = bed.live_psql(&login)?;
    two.ask("SELECT 'here';", SOON)?;
    let shown = interceptor.cli(["sessions", "kill", "--token", "nobody-has-this"]).run()?;
    assert!(!shown.success(), "{shown}");
    let hash = interceptor::identity::hash_token(login.password.as_bytes());
    interceptor.cli(["sessions", "kill", "--token", &hash, "--reason", "a test"]).ok()?;
    two.send("SELECT 1;")?;
    two.expect("KILLED", SOON)?;
    let again = bed.psql(&login, "SELECT 1")?;
    assert!(!again.success() && again.all().contains("TOKEN_BARRED"), "{again}");
    assert!(bed.psql(&bed.login("app_rw")?, "SELECT 1")?.success());
    Ok(())
}

/// A bed that takes the tokens of another bed's issuer.
fn same_issuer(bed: &mut Bed, of: &Bed) -> Result<Issuer> {
    bed.issuer_mut()?.process().stop();
    for file in std::fs::read_dir(of.dir().join("issuer"))? {
        let file = file?;
        std::fs::copy(file.path(), bed.dir().join("issuer").join(file.file_name()))?;
    }
    Issuer::start(bed.dir(), bed.net())
}

#[test]
fn one_token_is_not_used_at_two_hosts() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (a, _way) = fleet.host("a", "local_approvers = true", "reserve = \"allow\"")?;
    let mut b = fleet.bed("b", "local_approvers = true", "reserve = \"allow\"")?;
    let way = fleet.way(&b)?;
    fleet.enrol(&b, "b")?;
    let _issuer = same_issuer(&mut b, &a)?;
    b.interceptor_mut()?.start()?;
    let login =
        |bed: &Bed, token: &str| interceptor_tests::login::Login::new("app_rw", token, &bed.tls.ca);

    let token = a.token(&Claims::reporter())?;
    // The daemon may still be on its first way to the collector.
    let first = a.psql(&login(&a, &token), "SELECT 'in'")?;
    assert!(first.success(), "{first}");
    assert!(a.psql(&login(&a, &token), "SELECT 'in'")?.success(), "again at the same host");
    let refused = wait_for("the second host to refuse", SOON, || {
        let out = b.psql(&login(&b, &token), "SELECT 'in'")?;
        Ok((!out.success()).then_some(out))
    })?;
    let said = refused.all();
    assert!(said.contains("TOKEN_COPIED") || said.contains("TOKEN_BARRED"), "{refused}");

    // Taken at both while one is cut off: both end when it comes out.
    drop(way);
    let token = a.token(&Claims::reporter())?;
    let mut at_a = a.live_psql(&login(&a, &token))?;
    at_a.ask("SELECT 'here';", SOON)?;
    let mut at_b = b.live_psql(&login(&b, &token))?;
    at_b.ask("SELECT 'here';", SOON)?;
    let _way = fleet.way(&b)?;
    for (session, bed) in [(&mut at_a, &a), (&mut at_b, &b)] {
        wait_for("the session to end", SOON, || {
            let live = bed.interceptor()?.sessions()?;
            Ok(live.iter().any(|s| s.to_string().contains("conflict")).then_some(()))
        })?;
        session.send("SELECT 1;")?;
        session.expect("TOKEN_COPIED", SOON)?;
    }
    Ok(())
}

#[test]
fn while_the_collector_is_away_local_approvers_decide_or_nobody() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let off = "reserve = \"off\"";
    let (with, way_with) = fleet.host("with", "local_approvers = true", off)?;
    let (without, way_without) = fleet.host("without", "local_approvers = false", off)?;
    let mut waits = psql(&without)?;
    waits.send(SQL)?;
    fleet.next_hold()?;
    drop((way_with, way_without));
    waits.expect("cannot be reached", SOON)?;
    waits.send(SQL)?;
    waits.expect("HOLD_UNAVAILABLE", SOON)?;
    assert!(!touched(&without)?);

    let mut psql = psql(&with)?;
    psql.send(SQL)?;
    let interceptor = with.interceptor()?;
    let id = interceptor.next_hold(SOON)?;
    wait_for("the local approver to be let", SOON, || {
        Ok(interceptor.approve(&id)?.success().then_some(()))
    })?;
    psql.expect("UPDATE 1", SOON)?;
    assert!(touched(&with)?);

    Ok(())
}

#[test]
fn when_the_collector_is_back_people_there_decide_again() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (without, way) = fleet.host("without", "local_approvers = false", "reserve = \"off\"")?;
    let mut waits = psql(&without)?;
    waits.send(SQL)?;
    fleet.next_hold()?;
    drop(way);
    waits.expect("cannot be reached", SOON)?;
    let _way = fleet.way(&without)?;
    wait_for("a hold to be taken", SOON, || {
        let answer = waits.ask("SELECT 'alive';", SOON)?;
        assert!(answer.contains("alive"), "{answer}");
        waits.send(SQL)?;
        let held = interceptor_tests::proc::wait_for("a hold", Duration::from_secs(2), || {
            Ok(without.interceptor()?.holds()?.first().cloned())
        });
        Ok(held.ok())
    })?;
    let id = fleet.next_hold()?;
    assert_eq!(fleet.decide(&fleet.approver(), &id, yes())?, "granted");
    waits.expect("UPDATE 1", SOON)?;
    Ok(())
}

/// Median and 95th percentile in milliseconds.
fn percentiles(mut all: Vec<Duration>) -> (f64, f64) {
    all.sort();
    let at = |p: usize| all[(all.len() - 1) * p / 100].as_secs_f64() * 1000.0;
    (at(50), at(95))
}

#[test]
fn a_hold_is_seen_and_a_decision_done_at_once() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (bed, _way) = fleet.host("a", "", "")?;
    let mut psql = psql(&bed)?;
    psql.ask("SELECT 'ready';", SOON)?;
    let ann = fleet.approver();
    let (mut seen, mut done) = (Vec::new(), Vec::new());
    for n in 0..40 {
        let mut changes = fleet.collector.hub.listen();
        let began = Instant::now();
        psql.send(&format!("UPDATE orders SET status = 's{n}' WHERE id = 11;"))?;
        let id = fleet.runtime.block_on(async {
            loop {
                if let Change::Hold(id) = changes.recv().await?
                    && fleet.collector.held.get(&id).is_some()
                {
                    return anyhow::Ok(id);
                }
            }
        })?;
        seen.push(began.elapsed());
        let began = Instant::now();
        assert_eq!(fleet.decide(&ann, &id, yes())?, "granted");
        psql.expect("UPDATE 1", SOON)?;
        done.push(began.elapsed());
    }
    let ((seen50, seen95), (done50, done95)) = (percentiles(seen), percentiles(done));
    println!("statement sent to hold at the collector: median {seen50:.1} ms, p95 {seen95:.1} ms");
    println!("approval to the answer of the service:   median {done50:.1} ms, p95 {done95:.1} ms");
    assert!(seen95 < 200.0 && done95 < 200.0, "{seen95} {done95}");
    Ok(())
}

/// Publishes a file of rules as a person at the collector's machine does: by another process.
fn publish(fleet: &Fleet, bed: &Bed, verb: &[&str]) -> Result<String> {
    let file = fleet._dir.path().join("collector.toml");
    let file = file.to_str().context("a path")?;
    let args = ["collector", "--collector-config", file, "policies"];
    let out = bed.interceptor()?.cli(args.iter().chain(verb).copied()).ok()?;
    Ok(out.to_string())
}

/// Waits until the daemon says that it has a version.
fn has_version(bed: &Bed, version: u64) -> Result<serde_json::Value> {
    wait_for("a version of the centre", SOON, || {
        let status = bed.interceptor()?.json(["status"])?;
        let central = status["policy"]["central"].clone();
        Ok((central["version"] == version).then_some(central))
    })
}

#[test]
fn policies_of_the_centre_are_in_force_beside_the_hosts_own() -> Result<()> {
    skip_unless_possible!();
    let fleet = Fleet::start()?;
    let (mut bed, way) = fleet.host("a", "central_policies = true", "")?;
    let mut psql = psql(&bed)?;
    psql_says(&mut psql, "CREATE TABLE made_here (i int);", "default-deny")?;

    let dir = fleet._dir.path().join("fleet");
    std::fs::create_dir(&dir)?;
    std::fs::write(
        dir.join("fleet.toml"),
        "[[rule]]\nname = \"all\"\neffect = \"allow\"\nstatement = \"any\"\n\n\
         [[rule]]\nname = \"no-payments\"\neffect = \"deny\"\ntables = \"payments\"\n",
    )?;
    let test = "[[case]]\nname = \"payments\"\nfacts = { class = \"select\", tables_read = \
                [{ schema = \"public\", name = \"payments\" }] }\nexpect = \"deny\"\n";
    std::fs::write(dir.join("fleet.test.toml"), test)?;
    let shown = dir.to_str().context("a path")?;
    publish(&fleet, &bed, &["publish", shown, "--note", "a test"])?;
    assert_eq!(has_version(&bed, 1)?["in_force"], true);
    // The session that runs follows at its next statement; what the host denies stays denied.
    psql.send("CREATE TABLE made_here (i int);")?;
    psql.expect("CREATE TABLE", SOON)?;
    psql_says(&mut psql, "DROP TABLE made_here;", "never-drop")?;
    psql_says(&mut psql, "SELECT count(*) FROM payments;", "no-payments")?;
    let interceptor = bed.interceptor()?;
    let explain = ["policy", "explain", "--service", "orders-db", "--role", "app_rw"];
    let ask = |statement: &'static str| {
        let args = explain.into_iter().chain(["--database", "shop", "--statement", statement]);
        interceptor.cli(args).run().map(|out| out.all())
    };
    let told = ask("DELETE FROM payments")?;
    assert!(told.contains("deny, by no-payments of central:1/fleet.toml"), "{told}");
    assert!(told.contains("central:1/fleet.toml:6"), "{told}");
    let told = ask("UPDATE orders SET total = 1 WHERE id = 1")?;
    assert!(told.contains("hold, by ask-before-orders-change"), "{told}");
    let check = interceptor.cli(["policy", "check"]).run()?.all();
    assert!(check.contains("from the centre: version 1 with 2 rules"), "{check}");

    // It is in force without the collector, after a restart too.
    drop(way);
    bed.interceptor_mut()?.stop();
    bed.interceptor_mut()?.start()?;
    assert_eq!(has_version(&bed, 1)?["rules"], 2);
    let told = bed.interceptor()?.cli(["status"]).run()?.all();
    assert!(told.contains("central    version 1, 2 rules"), "{told}");

    // Withdrawn, the host's own rules are alone again.
    let _way = fleet.way(&bed)?;
    publish(&fleet, &bed, &["withdraw"])?;
    assert_eq!(has_version(&bed, 2)?["in_force"], false);
    // And back, under a new number.
    publish(&fleet, &bed, &["rollback", "1", "--note", "it was right"])?;
    assert_eq!(has_version(&bed, 3)?["in_force"], true);
    let shown = publish(&fleet, &bed, &["show", "3"])?;
    assert!(shown.contains("no-payments") && shown.contains("it was right"), "{shown}");
    let listed = publish(&fleet, &bed, &["list"])?;
    for wanted in ["rolled-back to 1", "withdrawn", "a test", "version 3"] {
        assert!(listed.contains(wanted), "{wanted} in\n{listed}");
    }
    Ok(())
}

/// A statement that is refused with some words.
fn psql_says(psql: &mut Live, sql: &str, words: &str) -> Result<()> {
    psql.send(sql)?;
    psql.expect("ERROR", SOON)?;
    psql.expect(words, SOON).map(drop)
}
