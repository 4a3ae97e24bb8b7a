//! Several collectors over one database. These run where `INTERCEPTOR_TEST_STORE` names a server
//! (`cargo xtask test` starts one).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::replica::Position;
use super::testing::{Bed, known_host};
use super::{Collector, CollectorError, Config, Replica, hosts, ingest};
use crate::record::event::Event;
use crate::record::{End, Opening, PublicKey, Reader, Recorder, now_us};
use crate::ship::Spool;

/// A collector over PostgreSQL; none, visibly, where there is no server for it.
async fn shared_bed() -> Option<Bed> {
    if std::env::var_os("INTERCEPTOR_TEST_STORE").is_none() {
        eprintln!("skipped: INTERCEPTOR_TEST_STORE names no PostgreSQL");
        return None;
    }
    let bed = Bed::new("").await;
    assert!(bed.collector.feed.is_some(), "the store is not PostgreSQL");
    Some(bed)
}

/// A second collector: another state directory, the same keys and the same database.
fn second(bed: &Bed, name: &str) -> Arc<Collector> {
    let state = bed.dir.path().join(name);
    std::fs::create_dir_all(&state).unwrap();
    let from = bed.dir.path().join("collector/keys");
    let copied = std::process::Command::new("cp").arg("-a").args([&from, &state]).status();
    assert!(copied.unwrap().success());
    let config = Config { state, ..bed.collector.config.clone() };
    Collector::open(config).unwrap()
}

struct Recorded {
    dir: tempfile::TempDir,
    recorder: Arc<Recorder>,
}

impl Recorded {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = crate::config::Record::default();
        let recorder = Recorder::open_with(dir.path(), "db1", &settings, 1 << 20).unwrap();
        Self { dir, recorder }
    }

    fn session(&self, requests: u64) {
        let mut log = self
            .recorder
            .begin(Opening {
                id: ulid::Ulid::new(),
                ts_us: now_us(),
                host: "db1".into(),
                service: "orders".into(),
                protocol: "postgres".into(),
                source: "10.0.0.1:4711".into(),
                original_dst: "10.0.0.2:5432".into(),
                mode: "enforce".into(),
                peer_uid: None,
            })
            .unwrap();
        for n in 0..requests {
            let body = serde_json::json!({ "n": n, "verdict": "allow", "text": "select 1" });
            let event = Event { ts_us: now_us(), kind: "request", body: &body, data: &[9; 200] };
            log.append(&event).unwrap();
        }
        log.seal(&End::because("client")).unwrap();
    }

    fn key(&self) -> PublicKey {
        PublicKey::load(&self.dir.path().join("host.pub")).unwrap()
    }
}

async fn enrolled(collector: &Collector, recorded: &Recorded) -> hosts::Host {
    known_host(collector, &recorded.key()).await
}

/// Everything of a replica that may not differ between collectors.
fn contents(collector: &Collector, key: &PublicKey) -> BTreeMap<String, i64> {
    let dir = Replica::directory(&collector.config.state, &key.fingerprint_hex());
    let db = rusqlite::Connection::open(dir.join("records.db")).unwrap();
    let mut all = BTreeMap::new();
    for (name, sql) in [
        ("events", "SELECT count(*) FROM events"),
        ("sessions", "SELECT count(*) FROM sessions"),
        ("of sessions", "SELECT coalesce(sum(events), 0) FROM sessions"),
        ("seals", "SELECT count(seal) FROM sessions"),
        ("ledger", "SELECT count(*) FROM ledger"),
        ("newest checkpoint", "SELECT coalesce(max(idx), 0) FROM checkpoints"),
        ("tombstones", "SELECT count(*) FROM tombstones"),
    ] {
        all.insert(name.to_owned(), db.query_row(sql, [], |r| r.get(0)).unwrap());
    }
    all
}

/// Ships what is there, each batch to any of the collectors; some of it twice.
async fn ship(all: &[Arc<Collector>], host: &hosts::Host, recorded: &Recorded) {
    recorded.recorder.flush().unwrap();
    let mut at = Position::default();
    loop {
        let spool = Spool::open(recorded.dir.path()).unwrap();
        let Some(batch) = spool.next(&at, 16 << 10).unwrap() else { return };
        let (first, second) = {
            let mut random = rand::rng();
            (random.random_range(0..all.len()), random.random_range(0..all.len()))
        };
        let frames: bytes::Bytes = batch.frames.into();
        let standing = ingest::take(&all[first], host, frames.clone()).await.unwrap();
        if rand::random_bool(0.3) {
            let again = ingest::take(&all[second], host, frames).await.unwrap();
            assert_eq!(again.position, standing.position);
        }
        at = standing.position;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_collector_takes_the_next_batch_and_all_have_the_same() {
    let Some(bed) = shared_bed().await else { return };
    let all = [Arc::clone(&bed.collector), second(&bed, "b"), second(&bed, "c")];
    let recorded = Recorded::new();
    let host = enrolled(&all[0], &recorded).await;
    for _ in 0..3 {
        for requests in [0, 3, 40] {
            recorded.session(requests);
        }
        ship(&all, &host, &recorded).await;
    }
    let key = recorded.key();
    for collector in &all {
        ingest::freshen(collector, &host).await.unwrap();
    }
    let first = contents(&all[0], &key);
    assert_eq!((first["sessions"], first["seals"]), (9, 9));
    for collector in &all[1..] {
        assert_eq!(contents(collector, &key), first);
    }
    // One that lost its disk has all of it again, and a whole session verifies from there.
    let fresh = second(&bed, "d");
    ingest::freshen(&fresh, &host).await.unwrap();
    assert_eq!(contents(&fresh, &key), first);
    let reader =
        Reader::of_replica(&Replica::directory(&fresh.config.state, &key.fingerprint_hex()));
    let mut seen = 0;
    reader.unwrap().events(9, 0, |_| seen += 1).unwrap();
    assert_eq!(seen, 42);
    recorded.recorder.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_deletes_is_gone_everywhere_and_from_the_database() {
    let Some(bed) = shared_bed().await else { return };
    let all = [Arc::clone(&bed.collector), second(&bed, "b")];
    let recorded = Recorded::new();
    let host = enrolled(&all[0], &recorded).await;
    for requests in [5, 6, 7] {
        recorded.session(requests);
    }
    ship(&all, &host, &recorded).await;
    for collector in &all {
        ingest::freshen(collector, &host).await.unwrap();
    }
    let burial = crate::record::tombstones::Burial {
        number: 2,
        deleted_us: now_us(),
        policy: "everything, 1 day".into(),
    };
    let buried = ingest::bury(&all[1], &host, vec![burial.clone()]).await.unwrap();
    assert_eq!(buried, [2]);
    // Twice is once, at any of them.
    assert_eq!(ingest::bury(&all[0], &host, vec![burial]).await.unwrap(), [2]);
    let fresh = second(&bed, "c");
    let key = recorded.key();
    for collector in [&all[0], &all[1], &fresh] {
        ingest::with_replica(collector, &host, |r| r.store().remove_buried(1000, 1 << 20))
            .await
            .unwrap();
        ingest::freshen(collector, &host).await.unwrap();
        let there = contents(collector, &key);
        assert_eq!((there["sessions"], there["tombstones"]), (3, 1));
        assert_eq!(there["events"], there["of sessions"] - 8);
    }
    let left = |db: &super::db::Connection| {
        db.query_row("SELECT count(*) FROM feed WHERE number = 2", [], |r| r.get::<_, i64>(0))
            .map_err(CollectorError::db("look"))
    };
    assert_eq!(all[0].central.read(left).await.unwrap(), 0);
    // What comes again of it is taken and not kept; what is new goes on.
    recorded.session(1);
    ship(&[all[0].clone(), all[1].clone(), fresh.clone()], &host, &recorded).await;
    ingest::freshen(&fresh, &host).await.unwrap();
    let there = contents(&fresh, &key);
    assert_eq!((there["sessions"], there["tombstones"]), (4, 1));
    assert_eq!(there["events"], there["of sessions"] - 8);
    recorded.recorder.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_wins_over_replicas() {
    let Some(bed) = shared_bed().await else { return };
    let recorded = Recorded::new();
    let host = enrolled(&bed.collector, &recorded).await;
    recorded.session(3);
    let all = [Arc::clone(&bed.collector)];
    ship(&all, &host, &recorded).await;
    let id = host.id;
    let put_back = move |db: &super::db::Connection| {
        let undo = || -> super::db::Result<()> {
            db.execute("DELETE FROM feed WHERE host = ?1 AND at > 1", [id])?;
            let sql = "UPDATE feed_heads SET at = 1, mark = (SELECT mark FROM feed \
                       WHERE host = ?1 AND at = 1) WHERE host = ?1";
            db.execute(sql, [id])?;
            Ok(())
        };
        undo().map_err(CollectorError::db("put back"))
    };
    let before = contents(&bed.collector, &recorded.key());
    bed.collector.central.write(put_back).await.unwrap();
    ingest::freshen(&bed.collector, &host).await.unwrap();
    let after = contents(&bed.collector, &recorded.key());
    assert!(after["seals"] < before["seals"], "{after:?}");
    // The host sends what is missing again.
    ship(&all, &host, &recorded).await;
    assert_eq!(contents(&bed.collector, &recorded.key()), before);
    recorded.recorder.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_does_what_is_to_be_done_once_and_another_after_it() {
    let Some(bed) = shared_bed().await else { return };
    let b = second(&bed, "b");
    assert!(bed.collector.leads("test").await);
    assert!(!b.leads("test").await);
    assert!(b.leads("another").await);
    let over = |db: &super::db::Connection| {
        db.execute("UPDATE leases SET until_us = 1", []).map_err(CollectorError::db("end"))
    };
    b.central.write(over).await.unwrap();
    let taken = tokio::time::timeout(Duration::from_secs(20), async {
        while !b.leads("test").await {
            tokio::task::yield_now().await;
        }
    });
    taken.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_with_other_keys_is_refused() {
    let Some(bed) = shared_bed().await else { return };
    let state = bed.dir.path().join("stranger");
    let config = Config { state, ..bed.collector.config.clone() };
    let refused = Collector::init(&config).err().unwrap().to_string();
    assert!(refused.contains("copy keys/"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_seen_and_decided_at_any_collector() {
    let Some(bed) = shared_bed().await else { return };
    let host = bed.host("a").await;
    let b = second(&bed, "b");
    let task = tokio::spawn(super::shared::run(Arc::clone(&b)));
    let mut changes = b.hub.listen();
    let mut raise = super::testing::raised("h-1", Duration::from_secs(60));
    raise.statement = "UPDATE cards SET pan = '4111'".into();
    let id = super::holds::raise(&bed.collector, host.id.clone(), "boot", raise).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match changes.recv().await {
                Ok(super::Change::Hold(told)) if told == id && b.held.get(&id).is_some() => break,
                _ => {}
            }
        }
    });
    seen.await.unwrap();
    assert_eq!(b.held.get(&id).unwrap().statement, "UPDATE cards SET pan = '4111'");
    // Nothing of it can be read in the database.
    let clear = |db: &super::db::Connection| {
        db.prepare("SELECT 1 FROM exacts WHERE position('cards'::bytea IN sealed) > 0")
            .and_then(|mut s| s.exists([]))
            .map_err(CollectorError::db("look"))
    };
    assert!(!b.central.read(clear).await.unwrap());
    super::holds::withdraw(&b, host.id.clone(), "h-1", "gone".into()).await.unwrap();
    let none = |db: &super::db::Connection| {
        db.query_row("SELECT count(*) FROM exacts", [], |r| r.get::<_, i64>(0))
            .map_err(CollectorError::db("look"))
    };
    assert_eq!(b.central.read(none).await.unwrap(), 0);
    task.abort();
}

/// Ends every connection to the bed's database, as a restart of the server does.
async fn disconnect_all(bed: &Bed) {
    let server = bed.collector.central.server().unwrap().config.clone();
    let work = move || {
        let mut db = server.connect(postgres::NoTls).unwrap();
        let sql = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        assert!(!db.query(sql, &[]).unwrap().is_empty());
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

/// Several connections to the feed are open and idle after this.
async fn use_feed_at_once(collector: &Arc<Collector>) {
    let collector = Arc::clone(collector);
    let work = move || {
        let feed = collector.feed.as_ref().unwrap();
        let turns: Vec<_> = (100..104).map(|host| feed.lock(host).unwrap()).collect();
        assert_eq!(turns.len(), 4);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_server_costs_no_read_no_write_and_no_batch() {
    let Some(bed) = shared_bed().await else { return };
    let b = second(&bed, "b");
    let only = [Arc::clone(&b)];
    let recorded = Recorded::new();
    let host = enrolled(&b, &recorded).await;
    let put = |n: u32| {
        move |db: &super::db::Connection| {
            let sql = "INSERT INTO codes (hash, name, made_by, created_us, expires_us) \
                       VALUES (?1, '', '', 0, 0)";
            db.execute(sql, [n.to_le_bytes()]).map(drop).map_err(CollectorError::db("put"))
        }
    };
    let count = |db: &super::db::Connection| {
        db.query_row("SELECT count(*) FROM codes", [], |r| r.get::<_, i64>(0))
            .map_err(CollectorError::db("count"))
    };
    for n in 1..=3 {
        recorded.session(3);
        use_feed_at_once(&b).await;
        disconnect_all(&bed).await;
        ship(&only, &host, &recorded).await;
        use_feed_at_once(&b).await;
        disconnect_all(&bed).await;
        ingest::freshen(&b, &host).await.unwrap();
        disconnect_all(&bed).await;
        b.central.write(put(n)).await.unwrap();
        disconnect_all(&bed).await;
        assert_eq!(b.central.read(count).await.unwrap(), i64::from(n));
    }
    assert_eq!(contents(&b, &recorded.key())["seals"], 3);
    recorded.recorder.shutdown();
}

/// What is there in batches, in order.
fn batches(recorded: &Recorded) -> Vec<bytes::Bytes> {
    recorded.recorder.flush().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut replica = Replica::open(scratch.path(), recorded.key(), "db1").unwrap();
    let mut all: Vec<bytes::Bytes> = Vec::new();
    loop {
        let spool = Spool::open(recorded.dir.path()).unwrap();
        let Some(batch) = spool.next(&replica.position(), 2 << 10).unwrap() else { return all };
        replica.take(&batch.frames).unwrap();
        all.push(batch.frames.into());
    }
}

async fn problem(collector: &Collector, host: i64) -> Option<String> {
    let read = move |db: &super::db::Connection| {
        db.query_row("SELECT problem FROM hosts WHERE id = ?1", [host], |r| r.get(0))
            .map_err(CollectorError::db("look"))
    };
    collector.central.read(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_that_any_collector_filled_is_none_any_more() {
    let Some(bed) = shared_bed().await else { return };
    let (a, b) = (Arc::clone(&bed.collector), second(&bed, "b"));
    let recorded = Recorded::new();
    let host = enrolled(&a, &recorded).await;
    recorded.session(30);
    let all = batches(&recorded);
    assert!(all.len() > 3, "{}", all.len());
    for collector in [&a, &b] {
        ingest::take(collector, &host, all[0].clone()).await.unwrap();
    }
    assert!(ingest::take(&a, &host, all[2].clone()).await.is_err());
    let noted = problem(&a, host.id).await;
    assert!(noted.as_ref().is_some_and(|p| p.starts_with("gap: ")), "{noted:?}");
    ingest::take(&b, &host, all[1].clone()).await.unwrap();
    assert_eq!(problem(&a, host.id).await, None);
    // What is graver waits for a person.
    let owner = host.clone();
    let report = move |db: &super::db::Connection| {
        hosts::set_problem(db, &owner, &owner.who(), Some("reported: its disk is on fire"))
    };
    a.central.write(report).await.unwrap();
    for collector in [&b, &a] {
        ingest::take(collector, &host, all[2].clone()).await.unwrap();
        assert!(problem(&a, host.id).await.is_some());
    }
    recorded.recorder.shutdown();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_and_a_check_need_no_replica_that_is_up_to_date() {
    let Some(bed) = shared_bed().await else { return };
    let (lags, never) = (second(&bed, "lags"), second(&bed, "never"));
    let recorded = Recorded::new();
    let host = enrolled(&bed.collector, &recorded).await;
    recorded.session(2);
    ship(&[Arc::clone(&bed.collector)], &host, &recorded).await;
    ingest::freshen(&lags, &host).await.unwrap();
    recorded.session(3);
    ship(&[Arc::clone(&bed.collector)], &host, &recorded).await;
    let (key, log) = (recorded.key(), super::log_key(&bed.collector));
    for (collector, there) in [(&bed.collector, 2), (&lags, 1), (&never, 0)] {
        let dir = Replica::directory(&collector.config.state, &key.fingerprint_hex());
        let here = Reader::of_replica(&dir).map_or(0, |r| r.seal_of(2).unwrap().map_or(1, |_| 2));
        assert_eq!(here, there);
        for number in [1, 2] {
            let name = move |db: &super::db::Connection| {
                let sql = "SELECT session FROM sessions WHERE number = ?1";
                db.query_row(sql, [number], |r| r.get::<_, String>(0))
                    .map_err(CollectorError::db("look"))
            };
            let name = collector.central.read(name).await.unwrap();
            let of = Arc::clone(collector);
            let prove = move |db: &super::db::Connection| {
                super::prove::session(db, &of.config.state, of.feed.as_ref(), &name)
            };
            let proof = collector.central.read(prove).await.unwrap().unwrap();
            assert_eq!(proof.verify(&log).unwrap().seal.number, u64::try_from(number).unwrap());
        }
        // It is read, and nothing more.
        assert_eq!(Reader::of_replica(&dir).is_ok(), there > 0);
    }
    // A deletion that the audit trail does not name is found from everywhere.
    let burial = crate::record::tombstones::Burial {
        number: 2,
        deleted_us: now_us(),
        policy: "nobody's".into(),
    };
    ingest::bury(&bed.collector, &host, vec![burial]).await.unwrap();
    for collector in [&bed.collector, &lags, &never] {
        let of = Arc::clone(collector);
        let check = move |db: &super::db::Connection| {
            super::retention::check(db, &of.config.state, of.feed.as_ref())
        };
        let found = collector.central.read(check).await.unwrap().unwrap_err();
        assert!(found.contains("session 2"), "{found}");
    }
    recorded.recorder.shutdown();
}
