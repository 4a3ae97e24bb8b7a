//! What a collector kept in SQLite, and what stands in the database of `[store]` afterwards.
//!
//! Those that need a server run where `INTERCEPTOR_TEST_STORE` names one (`cargo xtask test` does).

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::collector::hosts::Host;
use crate::collector::ship_tests::{
    batches, begin, config, key_of, open_host, output, session_with_output as session,
};
use crate::collector::testing::known_host;
use crate::collector::{Config, Position, Replica, ingest, log, prove, recordings, rotation};
use crate::record::tombstones::Burial;
use crate::record::verify::{Options, verify};
use crate::record::{Reader, Recorder, SessionLog};

/// Without a server: a table that is added and not brought would be lost without a word.
#[test]
fn every_table_is_brought() {
    let state = tempfile::tempdir().unwrap();
    drop(crate::collector::Central::open(state.path()).unwrap());
    let db = rusqlite::Connection::open(state.path().join("collector.db")).unwrap();
    let mut names = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        .unwrap();
    let names = names.query_map([], |r| r.get::<_, String>(0)).unwrap();
    let there: BTreeSet<String> = names.map(Result::unwrap).collect();
    let brought: BTreeSet<String> = tables::ALL.iter().map(|t| (*t).to_owned()).collect();
    assert_eq!(there, brought);
}

/// A collector on SQLite with a past, and what it becomes.
struct Old {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
    recorder: Arc<Recorder>,
    /// With `[store]`.
    new: Config,
    collector: Arc<Collector>,
    host: Host,
    /// A session that is not sealed.
    open: SessionLog,
}

fn who() -> Who {
    Who::Operator { user: "root".into() }
}

async fn ship(collector: &Arc<Collector>, host: &Host, recorder: &Recorder, dir: &Path) {
    recorder.flush().unwrap();
    for batch in batches(dir, &Position::default(), 64 << 10) {
        ingest::take(collector, host, batch.frames.into()).await.unwrap();
    }
}

impl Old {
    /// None, visibly, where there is no server for what it is to become.
    async fn new() -> Option<Self> {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let objects = dir.path().join("objects");
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&objects)
            .unwrap();
        let more = format!("[recordings]\nfrom = 10000\nurl = 'file://{}'\n", objects.display());
        let new = config(state.path(), &more);
        if new.store.is_none() {
            eprintln!("skipped: INTERCEPTOR_TEST_STORE names no PostgreSQL");
            return None;
        }
        let config = Config { store: None, ..new.clone() };
        Collector::init(&config).unwrap();
        let collector = Collector::open(config).unwrap();
        let recorder = open_host(dir.path());
        let host = known_host(&collector, &key_of(dir.path())).await;
        Replica::open(state.path(), host.key, &host.name).unwrap().begin(0).unwrap();
        // Small ones, one that is deleted, one whose attachments are in three objects, one that
        // is moved and deleted, and one that goes on.
        for pieces in [0, 3, 40] {
            session(&recorder, pieces, 100);
        }
        session(&recorder, 24, 3 << 20);
        session(&recorder, 9, 10_000);
        let mut open = begin(&recorder);
        output(&mut open, 5, 50);
        ship(&collector, &host, &recorder, dir.path()).await;
        assert_eq!(recordings::pass(&collector).await.unwrap().sessions, 2);
        let old = Self { dir, state, recorder, new, collector, host, open };
        old.bury(&[2, 5]).await;
        old.rotate().await;
        Some(old)
    }

    /// As retention does.
    async fn bury(&self, numbers: &[u64]) {
        let stone = |number: &u64| Burial { number: *number, deleted_us: 7, policy: "x".into() };
        let stones = numbers.iter().map(stone).collect();
        assert_eq!(ingest::bury(&self.collector, &self.host, stones).await.unwrap(), numbers);
        let remove = |r: &Replica| r.store().remove_buried(1000, 64 << 20).map(drop);
        ingest::with_replica(&self.collector, &self.host, remove).await.unwrap();
        let (host, numbers) = (self.host.id, numbers.to_vec());
        let note = move |db: &Connection| {
            for number in &numbers {
                let id = (host << 32) | *number as i64;
                db.execute("UPDATE sessions SET deleted_us = 7, purged_us = 8 WHERE id = ?1", [id])
                    .map_err(CollectorError::db("note"))?;
            }
            Ok::<_, CollectorError>(())
        };
        self.collector.central.write(note).await.unwrap();
    }

    async fn rotate(&self) {
        let shared = Arc::clone(&self.collector);
        shared.keys.make_signing().unwrap();
        let how = rotation::How { who: who(), overlap_us: 60_000_000, to: None };
        let rotate = move |db: &Connection| rotation::rotate(db, &shared.keys, &how).map(drop);
        self.collector.central.write(rotate).await.unwrap();
        self.collector.sign_log().await.unwrap();
        let shared = Arc::clone(&self.collector);
        self.collector.central.read(move |db| shared.keys.remember(db)).await.unwrap();
    }

    /// Another collector over the same database.
    fn second(&self, name: &str) -> Arc<Collector> {
        let state = self.dir.path().join(name);
        std::fs::create_dir_all(&state).unwrap();
        let from = self.state.path().join("keys");
        let copied = std::process::Command::new("cp").arg("-a").args([&from, &state]).status();
        assert!(copied.unwrap().success());
        Collector::open(Config { state, ..self.new.clone() }).unwrap()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.state.path().join(name)
    }
}

/// Everything of a replica that may not differ: events with their attachments, rows, tombstones.
fn contents(collector: &Collector, host: &Host) -> Vec<String> {
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    let objects = collector.recordings.of(&host.fingerprint);
    let reader = Reader::of_replica(&dir).unwrap().with_objects(objects);
    let report = verify(&reader, &Options::default()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let mut all: Vec<String> =
        reader.tombstones().unwrap().into_iter().map(|stone| format!("{stone:?}")).collect();
    for number in 1..=6 {
        let summary = reader.find(&number.to_string()).unwrap();
        all.push(serde_json::to_string(&summary).unwrap());
        let each = |e: &crate::record::StoredEvent<'_>| {
            all.push(format!("{} {} {:?} {:?}", e.seq, e.kind, e.hash, blake3::hash(e.data)));
        };
        reader.events(number, 0, each).unwrap();
    }
    all
}

fn import(collector: &Arc<Collector>) -> Result<Imported, CollectorError> {
    let this = Arc::clone(collector);
    std::thread::spawn(move || run(&this, &who(), &mut |_| {})).join().unwrap()
}

async fn number(collector: &Collector, sql: &'static str) -> i64 {
    let read = move |db: &Connection| {
        db.query_row(sql, [], |r| r.get(0)).map_err(CollectorError::db("ask"))
    };
    collector.central.read(read).await.unwrap()
}

/// That the log and the audit trail are what was signed; how many seals are in the log.
async fn verified(collector: &Arc<Collector>) -> u64 {
    let shared = Arc::clone(collector);
    let look = move |db: &Connection| {
        let size = prove::check_log(db)?.unwrap();
        let heads = log::store::audit_heads(db, &*shared.keys.in_force(db)?)?.unwrap();
        assert!(!heads.is_empty());
        assert_eq!(audit::verify_against(db, &heads)?, None);
        Ok::<_, CollectorError>(size)
    };
    collector.central.read(look).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_is_there_afterwards_and_hosts_go_on() {
    let Some(mut old) = Old::new().await else { return };
    let before = contents(&old.collector, &old.host);
    let ids = number(&old.collector, "SELECT max(id) FROM audit").await;
    assert_eq!(verified(&old.collector).await, 5);
    drop(std::mem::replace(&mut old.collector, Collector::open(old.new.clone()).unwrap()));

    let imported = import(&old.collector).unwrap();
    assert_eq!((imported.hosts, imported.sessions, imported.before), (1, 6, false));
    assert!(!old.file("collector.db").exists() && old.file("collector.db.imported").exists());
    old.collector.sign_log().await.unwrap();
    assert_eq!(verified(&old.collector).await, 5);
    assert_eq!(number(&old.collector, "SELECT max(id) FROM audit").await, ids + 1);

    assert_eq!(number(&old.collector, "SELECT count(*) FROM feed WHERE kind = 3").await, 1);

    // The replica that was here goes on, and another collector makes the same one.
    let b = old.second("b");
    for collector in [&old.collector, &b] {
        ingest::freshen(collector, &old.host).await.unwrap();
        assert_eq!(contents(collector, &old.host), before);
    }
    assert_eq!(
        number(&b, "SELECT CAST(sum(events) AS BIGINT) FROM hosts").await,
        i64::try_from(imported.events + 5 + 11).unwrap(),
        "the host's events are counted with those that are deleted"
    );

    // The host ships on, to either, and nothing of what was deleted comes back.
    output(&mut old.open, 2, 10);
    session(&old.recorder, 4, 100);
    ship(&b, &old.host, &old.recorder, old.dir.path()).await;
    session(&old.recorder, 4, 100);
    ship(&old.collector, &old.host, &old.recorder, old.dir.path()).await;
    for collector in [&old.collector, &b] {
        ingest::freshen(collector, &old.host).await.unwrap();
        let dir = Replica::directory(&collector.config.state, &old.host.fingerprint);
        let reader = Reader::of_replica(&dir).unwrap();
        assert_eq!(reader.find("6").unwrap().events, 1 + 7);
        assert_eq!(reader.find("8").unwrap().events, 6);
        assert!(reader.tombstone(2).unwrap().is_some());
    }
    assert_eq!(number(&b, "SELECT count(*) FROM hosts WHERE problem IS NOT NULL").await, 0);
    old.collector.sign_log().await.unwrap();
    assert_eq!(verified(&b).await, 7);
    let key = key_of(tempfile_host().path());
    assert!(known_host(&b, &key).await.id > old.host.id);
}

/// A host that nobody knows.
fn tempfile_host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    open_host(dir.path()).shutdown();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_or_taken_is_left_alone() {
    let Some(old) = Old::new().await else { return };
    let new = Collector::open(old.new.clone()).unwrap();
    // The old collector runs.
    let why = import(&new).unwrap_err().to_string();
    assert!(why.contains("in use") && why.contains("systemctl stop"), "{why}");
    let Old { dir, state, recorder, new: config, collector, host, open } = old;
    drop(collector);

    // Its recordings are nowhere that the new one is told of, or elsewhere.
    let nowhere = Config { recordings: recordings::Settings::default(), ..config.clone() };
    let why = import(&Collector::open(nowhere).unwrap()).unwrap_err().to_string();
    assert!(why.contains("[recordings] url"), "{why}");
    let mut elsewhere = config.clone();
    let other = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o700)).tempdir();
    let other = other.unwrap();
    elsewhere.recordings.url = Some(format!("file://{}", other.path().display()));
    let why = import(&Collector::open(elsewhere).unwrap()).unwrap_err().to_string();
    assert!(why.contains("is it mounted"), "{why}");

    // One that was cut off has left rows that nobody reads.
    let cut = |db: &Connection| {
        db.execute_batch(
            "INSERT INTO feed VALUES (-1, 1, 1, 1, 1, 'cut off'), (-7, 1, 1, 1, 1, 'cut off'); \
             INSERT INTO feed_heads VALUES (-1, 1, 1), (-7, 1, 1)",
        )
        .map_err(CollectorError::db("cut"))
    };
    new.central.write(cut).await.unwrap();
    import(&new).unwrap();
    assert_eq!(number(&new, "SELECT count(*) FROM feed_heads").await, 1);
    ingest::freshen(&new, &host).await.unwrap();
    assert_eq!(number(&new, "SELECT count(*) FROM hosts WHERE problem IS NOT NULL").await, 0);

    // It cannot be served from SQLite again, nor imported twice.
    let again = Config { store: None, ..config.clone() };
    let why = Collector::open(again).err().unwrap().to_string();
    assert!(why.contains("is in that database now"), "{why}");
    let why = import(&new).unwrap_err().to_string();
    assert!(why.contains("nothing to take"), "{why}");
    // Only the renaming was not done.
    let file = |name: &str| state.path().join(name);
    let back = || std::fs::rename(file("collector.db.imported"), file("collector.db")).unwrap();
    back();
    assert!(import(&new).unwrap().before);
    assert!(!file("collector.db").exists());
    // Somebody went back and lived on: that past is another.
    back();
    drop(new);
    let lived = Collector::open(Config { store: None, ..config.clone() }).unwrap();
    lived.sign_log().await.unwrap();
    session(&recorder, 1, 10);
    ship(&lived, &host, &recorder, dir.path()).await;
    drop(lived);
    let new = Collector::open(config).unwrap();
    let why = import(&new).unwrap_err().to_string();
    assert!(why.contains("needs an empty one") && file("collector.db").exists(), "{why}");
    drop(open);
}

/// The disk below a replica lost something: the rest comes, and a person hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_left_out_and_named() {
    let Some(mut old) = Old::new().await else { return };
    drop(std::mem::replace(&mut old.collector, Collector::open(old.new.clone()).unwrap()));
    let dir = Replica::directory(old.state.path(), &old.host.fingerprint);
    let db = rusqlite::Connection::open(dir.join("records.db")).unwrap();
    // The twentieth event of the third session, and the last of one whose attachments are in objects.
    for (number, seq) in [(3_i64, 20), (4, 26)] {
        let id = number << 31 | seq;
        assert_eq!(db.execute("DELETE FROM events WHERE id = ?1", [id]).unwrap(), 1);
    }
    drop(db);
    let imported = import(&old.collector).unwrap();
    let [less] = &imported.incomplete[..] else { panic!("{imported:?}") };
    // With the end, the sessions have 42 and 26; the second has all of its parts or none.
    assert_eq!((less.host.as_str(), less.of - less.brought), ("db1", 42 - 19 + 26));
    let problem = number(&old.collector, "SELECT count(*) FROM hosts WHERE problem IS NOT NULL");
    assert_eq!(problem.await, 1);
    // What is whole is whole everywhere, and the host goes on.
    let b = old.second("b");
    session(&old.recorder, 4, 100);
    old.recorder.flush().unwrap();
    ingest::freshen(&b, &old.host).await.unwrap();
    let at = ingest::with_replica(&b, &old.host, |r| Ok(r.position())).await.unwrap();
    for batch in batches(old.dir.path(), &at, 64 << 10) {
        ingest::take(&b, &old.host, batch.frames.into()).await.unwrap();
    }
    let reader = Reader::of_replica(&Replica::directory(&b.config.state, &old.host.fingerprint));
    let reader = reader.unwrap();
    let mut seen = 0;
    reader.events(7, 0, |_| seen += 1).unwrap();
    assert_eq!(seen, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_which_something_stands_is_refused() {
    let Some(old) = Old::new().await else { return };
    let new = Collector::open(old.new.clone()).unwrap();
    known_host(&new, &key_of(tempfile_host().path())).await;
    let Old { collector, state, .. } = old;
    drop(collector);
    let why = import(&new).unwrap_err().to_string();
    assert!(why.contains("needs an empty one"), "{why}");
    assert!(state.path().join("collector.db").exists());
    assert_eq!(number(&new, "SELECT count(*) FROM feed").await, 0);
}
