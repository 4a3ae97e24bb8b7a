//! What moving promises, tried with a real store on the host's side, a real replica here, and a
//! folder or a real server of S3.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::collector::console::find::{self, Found, One};
use crate::collector::retention::legal_holds::{self, Wanted};
use crate::collector::retention::sweep;
use crate::collector::ship_tests::{
    batches, begin, config, key_of, open_host, output, session_with_output as session,
};
use crate::collector::testing::known_host;
use crate::collector::{Position, audit};
use crate::record::export::{self, Format};
use crate::record::verify::{Options, verify};
use crate::record::{End, Recorder, now_us};

const DAY_US: i64 = 86_400_000_000;
/// Bytes from which sessions are moved here.
const FROM: u64 = 10_000;

/// An event as it was read: place, time, kind, body, attachment, hash.
type Read = (u64, i64, String, Vec<u8>, Vec<u8>, Vec<u8>);

/// A host's store and a collector, without a network between them.
struct Bed {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
    recorder: Arc<Recorder>,
    collector: Arc<Collector>,
    more: String,
    host: Host,
}

/// Large sessions go into a folder that is named, as one must be where collectors share a database.
fn folder(dir: &Path) -> String {
    let path = dir.join("objects");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    format!("[recordings]\nfrom = {FROM}\nurl = 'file://{}'\n", path.display())
}

impl Bed {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let more = format!("{}{more}", folder(dir.path()));
        Self::at(dir, &more).await
    }

    async fn at(dir: tempfile::TempDir, more: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let recorder = open_host(dir.path());
        Collector::init(&config(state.path(), more)).unwrap();
        let collector = Collector::open(config(state.path(), more)).unwrap();
        let host = known_host(&collector, &key_of(dir.path())).await;
        Self { dir, state, recorder, collector, more: more.into(), host }
    }

    /// The collector dies, and another comes up on the same state.
    async fn restarted(self, more: Option<&str>) -> Self {
        let Self { dir, state, recorder, collector, more: before, host } = self;
        drop(collector);
        let more = more.unwrap_or(&before).to_owned();
        let collector = Collector::open(config(state.path(), &more)).unwrap();
        // Its leases are over by then.
        if collector.feed.is_some() {
            let over = |db: &Connection| {
                db.execute("UPDATE leases SET until_us = 1", []).map_err(CollectorError::db("end"))
            };
            collector.central.write(over).await.unwrap();
        }
        Self { dir, state, recorder, collector, more, host }
    }

    /// Everything of the host, from its first event.
    async fn ship(&self) {
        ship(&self.collector, &self.host, &self.recorder, self.dir.path()).await;
    }

    async fn pass(&self) -> Moved {
        pass(&self.collector).await.unwrap()
    }

    fn reader(&self) -> Reader {
        reader(&self.collector, &self.host)
    }

    /// The folder that is named.
    fn folder(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    /// Objects of the host, sorted, without the mark of the place.
    fn objects(&self) -> Vec<PathBuf> {
        files(&self.folder().join(&self.host.fingerprint))
    }

    /// Bytes of attachments that are in the replica.
    fn inline(&self, number: u64) -> i64 {
        inline(&self.collector, &self.host, number)
    }

    async fn number(&self, sql: &'static str) -> i64 {
        let read = move |db: &Connection| {
            db.query_row(sql, [], |r| r.get(0)).map_err(CollectorError::db("ask"))
        };
        self.collector.central.read(read).await.unwrap()
    }

    async fn found(&self, number: u64) -> Found {
        let id = (self.host.id << 32) | number as i64;
        match self.collector.central.read(move |db| find::one(db, &id.to_string())).await.unwrap() {
            One::Found(found) => *found,
            other => panic!("{other:?}"),
        }
    }

    fn findings(&self) -> Vec<String> {
        let report = verify(&self.reader(), &Options::default()).unwrap();
        report.findings.into_iter().map(|f| f.message).collect()
    }

    async fn sweep(&self, days: i64) -> Result<u64, CollectorError> {
        sweep(&self.collector, now_us() + days * DAY_US).await.map(|swept| swept.sessions)
    }
}

async fn ship(collector: &Arc<Collector>, host: &Host, recorder: &Recorder, dir: &Path) {
    recorder.flush().unwrap();
    for batch in batches(dir, &Position::default(), usize::MAX) {
        ingest::take(collector, host, batch.frames.into()).await.unwrap();
    }
}

fn reader(collector: &Arc<Collector>, host: &Host) -> Reader {
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    Reader::of_replica(&dir).unwrap().with_objects(collector.recordings.of(&host.fingerprint))
}

fn inline(collector: &Arc<Collector>, host: &Host, number: u64) -> i64 {
    let dir = Replica::directory(&collector.config.state, &host.fingerprint);
    let db = rusqlite::Connection::open(dir.join("records.db")).unwrap();
    let sql = "SELECT coalesce(sum(octet_length(data)), 0) FROM events WHERE id >> 31 = ?1";
    db.query_row(sql, [number as i64], |r| r.get(0)).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all = Vec::new();
    for entry in entries.map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all.sort();
    all
}

fn events(reader: &Reader, number: u64) -> Result<Vec<Read>, RecordError> {
    let mut all = Vec::new();
    reader.events(number, 0, |e| {
        all.push((
            e.seq,
            e.ts_us,
            e.kind.to_owned(),
            e.body.to_owned(),
            e.data.to_owned(),
            e.hash.to_owned(),
        ));
    })?;
    Ok(all)
}

fn exported(reader: &Reader, number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let session = reader.find(&number.to_string()).unwrap();
    export::session(reader, &session, Format::Jsonl, None, &mut out).unwrap();
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_large_and_sealed_is_moved_and_reads_as_before() {
    let bed = Bed::new().await;
    session(&bed.recorder, 5, 100);
    session(&bed.recorder, 60, 1_000);
    // Several parts: their size is 16 MiB.
    session(&bed.recorder, 24, 3 << 20);
    let mut open = begin(&bed.recorder);
    output(&mut open, 60, 1_000);
    bed.ship().await;
    let before: Vec<_> = (1..=4).map(|n| events(&bed.reader(), n).unwrap()).collect();
    let text = exported(&bed.reader(), 2);
    assert_eq!(bed.findings(), Vec::<String>::new());

    let moved = bed.pass().await;
    assert_eq!(moved.sessions, 2);
    assert!(moved.bytes > (16 * 3) << 20, "{moved:?}");
    let kept: Vec<bool> = (1..=4).map(|n| bed.inline(n) > 0).collect();
    assert_eq!(kept, [true, false, false, true], "small and open ones stay");
    assert_eq!(bed.objects().len(), 1 + 4);
    for object in bed.objects() {
        let name = object.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(&object).unwrap();
        assert!(name.ends_with(&crate::record::chain::hex(&objects::hash(&bytes))), "{name}");
        assert!(bytes.len() as u64 <= recordings::PART_BYTES);
    }
    for (n, before) in (1..).zip(&before) {
        let after = events(&bed.reader(), n).unwrap();
        assert_eq!(after.len(), before.len());
        assert!(after == *before, "session {n} reads otherwise");
    }
    // From the middle, and without attachments, which asks for no object.
    let mut seen = Vec::new();
    bed.reader()
        .events_until(3, 15, |e| {
            seen.push(e.data.len());
            seen.len() < 3
        })
        .unwrap();
    assert_eq!(seen, before[2][15..18].iter().map(|e| e.4.len()).collect::<Vec<_>>());
    assert!(exported(&bed.reader(), 2) == text);
    assert_eq!(bed.findings(), Vec::<String>::new());
    assert_eq!(bed.pass().await, Moved::default(), "once");
    assert_eq!(bed.number("SELECT sessions FROM recordings").await, 2);
    // The room is given back.
    let dir = Replica::directory(bed.state.path(), &bed.host.fingerprint);
    assert!(std::fs::metadata(dir.join("records.db")).unwrap().len() < 8 << 20);

    // What the host sends again is what was accepted, and nothing is stored twice.
    bed.ship().await;
    assert_eq!((bed.inline(2), bed.inline(3)), (0, 0));
    // The open one ends, and goes in its turn.
    open.seal(&End::because("client")).unwrap();
    bed.ship().await;
    assert_eq!(bed.pass().await.sessions, 1);
    let ended = events(&bed.reader(), 4).unwrap();
    assert!(ended[..before[3].len()] == before[3][..]);
    // After a restart all of it is there.
    let bed = bed.restarted(None).await;
    assert!(events(&bed.reader(), 3).unwrap() == before[2]);
    assert_eq!(bed.findings(), Vec::<String>::new());
    assert_eq!(bed.pass().await, Moved::default());
    // A reader that knows of no objects says so.
    let dir = Replica::directory(bed.state.path(), &bed.host.fingerprint);
    let blind = events(&Reader::of_replica(&dir).unwrap(), 2).unwrap_err().to_string();
    assert!(blind.contains("was not told where"), "{blind}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_large_from_the_configured_size_on() {
    let bed = Bed::new().await;
    // Two of three pieces have an attachment.
    session(&bed.recorder, 3, FROM as usize / 2 - 1);
    session(&bed.recorder, 3, FROM as usize / 2);
    bed.ship().await;
    assert_eq!(bed.pass().await.sessions, 1);
    assert_eq!((bed.inline(1), bed.inline(2)), (FROM as i64 - 2, 0));
    // A smaller one fits later, also what was looked at before.
    let more = bed.more.replace(&format!("from = {FROM}"), "from = 1");
    let bed = bed.restarted(Some(&more)).await;
    assert_eq!(bed.pass().await.sessions, 1);
    assert_eq!((bed.inline(1), bed.inline(2)), (0, 0));
    assert_eq!(bed.findings(), Vec::<String>::new());
}

/// Without `[recordings]` there is a folder below the state directory, but not with `[store]`.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_below_the_state_directory_is_used_where_nothing_is_said() {
    let bed = Bed::at(tempfile::tempdir().unwrap(), "").await;
    session(&bed.recorder, 3, 1 << 20);
    session(&bed.recorder, 3, 1 << 10);
    bed.ship().await;
    let before = events(&bed.reader(), 1).unwrap();
    let own = bed.state.path().join("recordings");
    if bed.collector.feed.is_some() {
        assert_eq!(bed.pass().await, Moved::default());
        assert!(!own.exists() && bed.inline(1) > 0);
        assert!(bed.collector.recordings.words().contains("nowhere"));
        return;
    }
    assert_eq!(bed.collector.recordings.probe(), Ok(false));
    assert_eq!(bed.pass().await.sessions, 1);
    assert_eq!(bed.collector.recordings.probe(), Ok(true));
    assert_eq!((bed.inline(1), files(&own).len()), (0, 2), "an object and the mark");
    assert_eq!(std::fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(events(&bed.reader(), 1).unwrap() == before);
    assert!(bed.inline(2) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_missing_or_altered_is_named_and_never_empty() {
    let bed = Bed::new().await;
    session(&bed.recorder, 60, 1_000);
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    let before = events(&bed.reader(), 1).unwrap();
    bed.pass().await;
    let object = bed.objects().remove(0);
    let name = object.strip_prefix(bed.folder()).unwrap().to_str().unwrap().to_owned();
    let whole = std::fs::read(&object).unwrap();
    let words = |what: &str| format!("the recording {name} in {} {what}", bed.folder().display());

    // One bit, the length, another part in its place.
    let mut bit = whole.clone();
    bit[whole.len() / 2] ^= 1;
    let other = std::fs::read(&bed.objects()[1]).unwrap();
    for bad in [bit, whole[..whole.len() - 1].to_vec(), other, Vec::new()] {
        std::fs::write(&object, bad).unwrap();
        let why = events(&bed.reader(), 1).unwrap_err().to_string();
        assert!(why.contains(&words("was altered")), "{why}");
        let found = bed.findings();
        assert!(found.len() == 1 && found[0].contains(&words("was altered")), "{found:?}");
    }
    std::fs::remove_file(&object).unwrap();
    let missing = format!("the recording {name} is missing in {}", bed.folder().display());
    let why = events(&bed.reader(), 1).unwrap_err().to_string();
    assert!(why.contains(&missing), "{why}");
    let found = bed.findings();
    assert!(found.len() == 1 && found[0].contains(&missing), "{found:?}");
    let all = bed.collector.central.read(hosts::list).await.unwrap();
    let checked = check(&bed.collector, &all).unwrap();
    assert_eq!((checked.parts, checked.problems.len()), (1, 1), "{checked:?}");
    assert!(
        checked.problems[0].contains("session 1 of db1") && checked.problems[0].contains(&missing)
    );
    // The check on the session's page, and what people are shown.
    let summary = bed.reader().find("1").unwrap();
    let sealed = sealed::session(&bed.reader(), &bed.host.key, &summary).unwrap();
    assert!(sealed.broken && sealed.problems[0].contains(&missing), "{sealed:?}");
    let shown = bed.found(1).await.reader(&bed.collector).unwrap();
    assert!(events(&shown, 1).unwrap_err().to_string().contains(&missing));
    // Bodies are there all the same, and so is the other session.
    let mut bodies = 0;
    bed.reader()
        .bodies_until(1, 0, |_| {
            bodies += 1;
            true
        })
        .unwrap();
    assert_eq!(bodies, before.len());
    events(&bed.reader(), 2).unwrap();
    // What is not mounted is away, and not missing.
    let aside = bed.dir.path().join("aside");
    std::fs::rename(bed.folder(), &aside).unwrap();
    let why = events(&bed.reader(), 1).unwrap_err().to_string();
    assert!(why.contains("cannot be read now"), "{why}");
    assert!(sealed::session(&bed.reader(), &bed.host.key, &summary).is_err());
    std::fs::rename(&aside, bed.folder()).unwrap();
    // Put back from a backup, it reads as before.
    std::fs::write(&object, whole).unwrap();
    assert!(events(&bed.reader(), 1).unwrap() == before);
    assert_eq!(bed.findings(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_it_is_as_before_or_moved() {
    let bed = Bed::new().await;
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    let before = events(&bed.reader(), 1).unwrap();

    // Behind the objects, before anything is noted.
    own_place(&bed.collector).await.unwrap();
    let (this, host, handle) = (Arc::clone(&bed.collector), bed.host.clone(), Handle::current());
    let put = tokio::task::spawn_blocking(move || put(&this, &host, 1, &handle)).await.unwrap();
    let Put::Whole(whole) = put.unwrap() else { panic!() };
    let orphans = bed.objects();
    assert_eq!(orphans.len(), 1);
    drop(whole);
    let bed = bed.restarted(None).await;
    assert!(bed.inline(1) > 0 && events(&bed.reader(), 1).unwrap() == before);

    // Behind the note, before anything goes out of the replica.
    own_place(&bed.collector).await.unwrap();
    let (this, host, handle) = (Arc::clone(&bed.collector), bed.host.clone(), Handle::current());
    let put = tokio::task::spawn_blocking(move || super::put(&this, &host, 1, &handle)).await;
    let Put::Whole(whole) = put.unwrap().unwrap() else { panic!() };
    let Whole { reader, session, parts } = *whole;
    assert_eq!(bed.objects(), orphans, "the same names");
    assert!(ingest::record(&bed.collector, &bed.host, reader, session, parts).await.unwrap());
    assert!(bed.inline(1) > 0 && events(&bed.reader(), 1).unwrap() == before);
    assert_eq!(bed.findings(), Vec::<String>::new());

    // In the middle of that.
    let step = |replica: &Replica| replica.store().shed(5_000);
    assert!(!ingest::with_replica(&bed.collector, &bed.host, step).await.unwrap());
    assert!(events(&bed.reader(), 1).unwrap() == before);
    let left = bed.inline(1);
    let bed = bed.restarted(None).await;
    shed_all(&bed.collector).await;
    assert_eq!(bed.pass().await, Moved::default());
    assert!(left > 0 && bed.inline(1) == 0);
    assert!(events(&bed.reader(), 1).unwrap() == before);
    assert_eq!(bed.findings(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_was_sealed_is_not_moved() {
    let bed = Bed::new().await;
    session(&bed.recorder, 60, 1_000);
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    let dir = Replica::directory(bed.state.path(), &bed.host.fingerprint);
    let db = rusqlite::Connection::open(dir.join("records.db")).unwrap();
    // Nothing of an event changes by accident, and no attachment goes that is nowhere else.
    for sql in [
        "UPDATE events SET body = '{}'",
        "UPDATE events SET data = x'00'",
        "UPDATE events SET data = NULL",
    ] {
        assert!(db.execute(sql, []).unwrap_err().to_string().contains("append-only"), "{sql}");
    }
    db.execute_batch(
        "DROP TRIGGER attachments_keep; \
         UPDATE events SET data = x'00' WHERE id = (SELECT min(id) FROM events WHERE data IS NOT NULL);",
    )
    .unwrap();
    drop(db);
    let bed = bed.restarted(None).await;
    assert_eq!(bed.pass().await.sessions, 1);
    assert!(bed.inline(1) > 0 && bed.inline(2) == 0);
    assert_eq!(bed.collector.recordings.state().altered, 1);
    assert!(bed.objects().iter().all(|o| o.parent().unwrap().ends_with("2")));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_deletes_the_objects_and_a_legal_hold_keeps_them() {
    let bed = Bed::with("[retention]\ndays = 30\n").await;
    session(&bed.recorder, 60, 1_000);
    session(&bed.recorder, 60, 1_000);
    session(&bed.recorder, 3, 100);
    bed.ship().await;
    bed.pass().await;
    let before = events(&bed.reader(), 1).unwrap();
    let [first, second] = <[PathBuf; 2]>::try_from(bed.objects()).unwrap();
    // An orphan of an attempt of before, cut otherwise.
    let orphan = second.with_file_name("9-00");
    std::fs::write(&orphan, b"part of it").unwrap();
    let held = bed.found(1).await.session;
    let wanted = Wanted { session: Some(held), reason: "case".into(), ..Wanted::default() };
    let place = move |db: &Connection| legal_holds::place(db, wanted, &audit::Who::Collector);
    let hold = bed.collector.central.write(place).await.unwrap();

    // While the store is away what has recordings cannot be checked against its seal, and stays; the
    // others need not wait for that.
    let aside = bed.dir.path().join("aside");
    std::fs::rename(bed.folder(), &aside).unwrap();
    assert_eq!(bed.sweep(31).await.unwrap(), 1);
    let deleted = "SELECT CAST(sum(number) AS BIGINT) FROM sessions WHERE deleted_us > 0";
    assert_eq!(bed.number(deleted).await, 3, "the third alone");
    std::fs::rename(&aside, bed.folder()).unwrap();
    bed.sweep(31).await.unwrap();
    assert_eq!(bed.number("SELECT count(*) FROM sessions WHERE purged_us > 0").await, 2);
    assert!(first.exists() && !second.exists() && !orphan.exists());
    assert!(!second.parent().unwrap().exists(), "nothing is left of it");
    assert!(events(&bed.reader(), 1).unwrap() == before);
    assert_eq!(events(&bed.reader(), 2).unwrap(), []);
    assert!(bed.found(2).await.reader(&bed.collector).is_err());
    let dir = Replica::directory(bed.state.path(), &bed.host.fingerprint);
    let db = rusqlite::Connection::open(dir.join("records.db")).unwrap();
    for table in ["recordings", "recording_parts"] {
        let sql = format!("SELECT count(*) FROM {table} WHERE number = 2");
        assert_eq!(db.query_row(&sql, [], |r| r.get::<_, i64>(0)).unwrap(), 0, "{table}");
    }
    let sql = "SELECT count(*) FROM recorded WHERE id >> 31 = 2";
    assert_eq!(db.query_row(sql, [], |r| r.get::<_, i64>(0)).unwrap(), 0);
    assert_eq!(bed.findings(), Vec::<String>::new());
    let end =
        move |db: &Connection| legal_holds::release(db, hold.id, "closed", &audit::Who::Collector);
    bed.collector.central.write(end).await.unwrap();
    assert_eq!(bed.sweep(31).await.unwrap(), 1);
    assert_eq!(bed.objects(), Vec::<PathBuf>::new());
}

/// The store goes away between the decision and the deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_waits_for_a_store_that_is_away() {
    let bed = Bed::with("[retention]\ndays = 30\n").await;
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    bed.pass().await;
    let object = bed.objects().remove(0);
    let (aside, folder) = (bed.dir.path().join("aside"), bed.folder());
    let mark = "UPDATE sessions SET deleted_us = 1, deleted_policy = 'default, 30 days'";
    let decide =
        move |db: &Connection| db.execute(mark, []).map(drop).map_err(CollectorError::db("x"));
    bed.collector.central.write(decide).await.unwrap();
    std::fs::rename(&folder, &aside).unwrap();
    let bed = bed.restarted(None).await;
    bed.sweep(0).await.unwrap();
    let purged = "SELECT count(*) FROM sessions WHERE purged_us > 0";
    assert_eq!(bed.number(purged).await, 0, "it is not gone yet");
    assert!(bed.found(1).await.reader(&bed.collector).is_err(), "and nobody is shown it");
    assert_eq!(events(&bed.reader(), 1).unwrap(), []);
    std::fs::rename(&aside, &folder).unwrap();
    assert!(object.exists());
    bed.sweep(0).await.unwrap();
    assert_eq!(bed.number(purged).await, 1);
    assert!(!object.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_away_or_anothers_keeps_nothing_from_being_accepted() {
    let bed = Bed::new().await;
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    bed.pass().await;
    let why = async |bed: &Bed| {
        session(&bed.recorder, 60, 1_000);
        bed.ship().await;
        let before = bed.objects().len();
        let why = pass(&bed.collector).await.unwrap_err().to_string();
        assert_eq!(bed.objects().len(), before, "nothing is put there");
        why
    };
    let mark = bed.folder().join("interceptor-recordings");
    let text = std::fs::read_to_string(&mark).unwrap();
    // Unmounted while it runs: the folder below is empty.
    std::fs::remove_file(&mark).unwrap();
    assert!(why(&bed).await.contains("has lost its mark"));
    // Of another collector, or another place of this one.
    let mut other: Mark = serde_json::from_str(&text).unwrap();
    other.collector = "somebody".into();
    std::fs::write(&mark, serde_json::to_string(&other).unwrap()).unwrap();
    assert!(why(&bed).await.contains("belongs to another collector"));
    let mut other: Mark = serde_json::from_str(&text).unwrap();
    other.place = ulid::Ulid::new().to_string();
    std::fs::write(&mark, serde_json::to_string(&other).unwrap()).unwrap();
    assert!(why(&bed).await.contains("is another place"));
    std::fs::write(&mark, "not ours").unwrap();
    assert!(why(&bed).await.contains("none of a collector's"));
    // As it was, all of it goes.
    std::fs::write(&mark, text).unwrap();
    assert_eq!(bed.pass().await.sessions, 4);
    assert_eq!(bed.findings(), Vec::<String>::new());
}

/// Where collectors share a database.
#[tokio::test(flavor = "multi_thread")]
async fn every_collector_follows_and_what_is_large_leaves_the_database() {
    let bed = Bed::new().await;
    if bed.collector.feed.is_none() {
        eprintln!("skipped: INTERCEPTOR_TEST_STORE names no PostgreSQL");
        return;
    }
    let second = |name: &str| {
        let state = bed.dir.path().join(name);
        std::fs::create_dir_all(&state).unwrap();
        let from = bed.state.path().join("keys");
        let copied = Command::new("cp").arg("-a").args([&from, &state]).status();
        assert!(copied.unwrap().success());
        Collector::open(Config { state, ..bed.collector.config.clone() }).unwrap()
    };
    session(&bed.recorder, 5, 100);
    session(&bed.recorder, 24, 3 << 20);
    bed.ship().await;
    let b = second("b");
    ingest::freshen(&b, &bed.host).await.unwrap();
    let before: Vec<_> = (1..=2).map(|n| events(&bed.reader(), n).unwrap()).collect();
    assert_eq!(bed.pass().await.sessions, 1);
    let size = "SELECT CAST(sum(octet_length(body)) AS BIGINT) FROM feed";
    assert!(bed.number(size).await < 1 << 20, "{}", bed.number(size).await);

    // One that followed already takes it out of its replica.
    assert!(inline(&b, &bed.host, 2) > 0);
    ingest::freshen(&b, &bed.host).await.unwrap();
    assert_eq!(pass(&b).await.unwrap(), Moved::default(), "another has the lease");
    assert_eq!(inline(&b, &bed.host, 2), 0);
    // A new one is made without any object, goes on, and has all of it once they are there.
    let aside = bed.dir.path().join("aside");
    std::fs::rename(bed.folder(), &aside).unwrap();
    let c = second("c");
    session(&bed.recorder, 2, 10);
    ship(&c, &bed.host, &bed.recorder, bed.dir.path()).await;
    std::fs::rename(&aside, bed.folder()).unwrap();
    for collector in [&bed.collector, &b, &c] {
        ingest::freshen(collector, &bed.host).await.unwrap();
        let reader = reader(collector, &bed.host);
        for (n, before) in (1..).zip(&before) {
            assert!(events(&reader, n).unwrap() == *before, "session {n}");
        }
        let report = verify(&reader, &Options::default()).unwrap();
        assert!(report.is_clean() && report.sessions == 3, "{report:?}");
    }
    // Deleted at one, it is gone from the store and at all of them.
    let burial = crate::record::tombstones::Burial { number: 2, deleted_us: 1, policy: "x".into() };
    assert_eq!(ingest::bury(&bed.collector, &bed.host, vec![burial]).await.unwrap(), [2]);
    delete(&bed.collector, &bed.host, &[2]).await.unwrap();
    assert_eq!(bed.objects(), Vec::<PathBuf>::new());
    assert_eq!(bed.number("SELECT count(*) FROM feed WHERE number = 2").await, 0);
    let d = second("d");
    for collector in [&b, &c, &d] {
        ingest::freshen(collector, &bed.host).await.unwrap();
        ingest::freshen(collector, &bed.host).await.unwrap();
        let reader = reader(collector, &bed.host);
        assert!(reader.tombstone(2).unwrap().is_some() && !reader.is_recording(2).unwrap());
        assert_eq!(events(&reader, 2).unwrap(), []);
    }
    // A folder of that name which is not the same is refused.
    let other = bed.dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o700)).unwrap();
    let mut config = Config { state: d.config.state.clone(), ..bed.collector.config.clone() };
    config.recordings.url = Some(format!("file://{}", other.display()));
    let e = Collector::open(config).unwrap();
    let why = own_place(&e).await.unwrap_err().to_string();
    assert!(why.contains("is it mounted"), "{why}");
}

// ---- S3 ----------------------------------------------------------------------------------------

/// A server of S3 that checks signatures, while this lives.
struct S3 {
    child: Child,
    port: u16,
    tls: u16,
    id: String,
    secret: String,
}

impl S3 {
    fn start(certificate: &[&Path]) -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = root.join("target/venv/bin/python");
        let there = Command::new(&python).args(["-c", "import moto.server, flask"]).output();
        if !there.is_ok_and(|out| out.status.success()) {
            eprintln!("skipped: no S3 in target/venv; `cargo xtask setup python`");
            return None;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/collector/recordings/s3.py");
        let mut child = Command::new(python)
            .arg(script)
            .args(certificate)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        let port = |key: &str| u16::try_from(said[key].as_u64().unwrap()).unwrap();
        Some(Self {
            port: port("port"),
            tls: port("tls"),
            id: text("id"),
            secret: text("secret"),
            child,
        })
    }

    fn config(&self, dir: &Path, secret: &str, port: u16) -> String {
        let file = dir.join("s3.secret");
        std::fs::write(&file, secret).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        format!(
            "[recordings]\nfrom = {FROM}\nurl = 's3://records/collector/a'\n\
             endpoint = 'http://127.0.0.1:{port}'\nallow_http = true\naccess_key_id = '{}'\n\
             secret_access_key = {{ file = {file:?} }}\n",
            self.id
        )
    }

    /// Names of all objects, asked past our own code.
    fn list(&self) -> Vec<String> {
        let ask = format!(
            "import boto3; s3 = boto3.client('s3', endpoint_url='http://127.0.0.1:{}', \
             region_name='us-east-1', aws_access_key_id='{}', aws_secret_access_key='{}'); \
             print('\\n'.join(o['Key'] for o in s3.list_objects_v2(Bucket='records').get('Contents', [])))",
            self.port, self.id, self.secret
        );
        self.python(&ask).lines().map(str::to_owned).collect()
    }

    fn python(&self, code: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut python = Command::new(root.join("target/venv/bin/python"));
        let out = python.env("NO_PROXY", "127.0.0.1").args(["-c", code]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_go_to_s3_and_come_back_from_there() {
    let Some(s3) = S3::start(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = s3.config(dir.path(), &s3.secret, s3.port) + "[retention]\ndays = 30\n";
    let bed = Bed::at(dir, &more).await;
    session(&bed.recorder, 60, 1_000);
    session(&bed.recorder, 24, 3 << 20);
    session(&bed.recorder, 5, 100);
    bed.ship().await;
    let before: Vec<_> = (1..=3).map(|n| events(&bed.reader(), n).unwrap()).collect();

    // With a wrong secret nothing is moved, it says why, and hosts are served.
    let wrong = s3.config(bed.dir.path(), "wrong", s3.port);
    let bed = bed.restarted(Some(&wrong)).await;
    let why = pass(&bed.collector).await.unwrap_err().to_string();
    assert!(
        why.contains("s3://records/collector/a") && why.contains("SignatureDoesNotMatch"),
        "{why}"
    );
    assert!(bed.collector.recordings.probe().is_err() && bed.inline(1) > 0);
    bed.ship().await;
    assert_eq!(s3.list(), Vec::<String>::new());

    let more = s3.config(bed.dir.path(), &s3.secret, s3.port) + "[retention]\ndays = 30\n";
    let bed = bed.restarted(Some(&more)).await;
    assert_eq!(bed.pass().await.sessions, 2);
    let names = s3.list();
    assert_eq!(names.len(), 1 + 1 + 4, "{names:?}");
    assert!(names.iter().all(|n| n.starts_with("collector/a/")), "{names:?}");
    assert_eq!((bed.inline(1), bed.inline(2)), (0, 0));
    for (n, before) in (1..).zip(&before) {
        assert!(events(&bed.reader(), n).unwrap() == *before, "session {n}");
    }
    assert_eq!(bed.findings(), Vec::<String>::new());

    // What was fetched is kept, and read while the server is away; an altered copy is not believed.
    let cache = bed.state.path().join("cache/recordings");
    assert_eq!(files(&cache).len(), 5);
    let away = s3.config(bed.dir.path(), &s3.secret, 1);
    let bed = bed.restarted(Some(&away)).await;
    assert!(events(&bed.reader(), 1).unwrap() == before[0]);
    let kept = files(&cache).into_iter().find(|f| f.to_str().unwrap().contains("-1-0-")).unwrap();
    std::fs::write(&kept, b"something else").unwrap();
    let why = events(&bed.reader(), 1).unwrap_err().to_string();
    assert!(why.contains("cannot be read now from s3://records/collector/a"), "{why}");
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    assert!(pass(&bed.collector).await.is_err());

    // Altered and taken away in the bucket.
    let more = s3.config(bed.dir.path(), &s3.secret, s3.port) + "[retention]\ndays = 30\n";
    let bed = bed.restarted(Some(&more)).await;
    assert_eq!(bed.pass().await.sessions, 1);
    std::fs::remove_dir_all(&cache).unwrap();
    let name = s3.list().into_iter().find(|n| n.contains("/1/0-")).unwrap();
    let ask = |what: &str| {
        s3.python(&format!(
            "import boto3; s3 = boto3.client('s3', endpoint_url='http://127.0.0.1:{}', \
             region_name='us-east-1', aws_access_key_id='{}', aws_secret_access_key='{}')\n\
             b = s3.get_object(Bucket='records', Key='{name}')['Body'].read()\n{what}",
            s3.port, s3.id, s3.secret
        ))
    };
    ask(&format!(
        "s3.put_object(Bucket='records', Key='{name}', Body=b[:-1] + bytes([b[-1] ^ 1]))"
    ));
    let why = events(&bed.reader(), 1).unwrap_err().to_string();
    assert!(why.contains("was altered"), "{why}");
    ask(&format!("s3.delete_object(Bucket='records', Key='{name}')"));
    let why = events(&bed.reader(), 1).unwrap_err().to_string();
    assert!(why.contains("is missing in s3://records/collector/a"), "{why}");
    assert!(events(&bed.reader(), 2).unwrap() == before[1]);

    // Retention: the damaged one stays as evidence, of the others nothing is left.
    bed.sweep(31).await.unwrap();
    let left: Vec<String> = s3.list().into_iter().filter(|n| !n.contains("interceptor-")).collect();
    assert_eq!(left, Vec::<String>::new(), "session 1 had only the object that is gone");
    assert_eq!(bed.number("SELECT count(*) FROM sessions WHERE purged_us > 0").await, 3);
    let kept = files(&cache);
    assert!(kept.iter().all(|f| f.to_str().unwrap().contains("-1-")), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_is_spoken_to_over_tls_that_its_authority_signed() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = (file("s3.pem", &certificate), file("s3.key", &key.serialize_pem()));
    let authority = file("ca.pem", &authority);
    let Some(s3) = S3::start(&[&certificate, &key]) else { return };
    let plain = format!("endpoint = 'http://127.0.0.1:{}'\nallow_http = true\n", s3.port);
    let secure = format!("endpoint = 'https://127.0.0.1:{}'\n", s3.tls);
    let unknown = s3.config(dir.path(), &s3.secret, s3.port).replace(&plain, &secure);
    assert!(unknown.contains("https://"));
    let known = format!("{unknown}ca_file = '{}'\n", authority.display());
    let bed = Bed::at(dir, &unknown).await;
    session(&bed.recorder, 60, 1_000);
    bed.ship().await;
    let before = events(&bed.reader(), 1).unwrap();
    let why = pass(&bed.collector).await.unwrap_err().to_string();
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    assert_eq!(s3.list(), Vec::<String>::new());
    let bed = bed.restarted(Some(&known)).await;
    assert_eq!(bed.pass().await.sessions, 1);
    assert_eq!((s3.list().len(), bed.inline(1)), (2, 0));
    assert!(events(&bed.reader(), 1).unwrap() == before);
}
