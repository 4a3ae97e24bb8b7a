//! What the recorder promises, tried: kills, torn files, forgers, full disks.

use std::borrow::Cow;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;

use super::event::*;
use super::reader::{Filter, Reader};
use super::verify::{Options, Report, verify};
use super::*;
use crate::config::{Durability, Record, Span};

const SMALL_SEGMENT: u64 = 64 << 10;

fn settings() -> Record {
    Record::default()
}

fn open(dir: &Path) -> std::sync::Arc<Recorder> {
    Recorder::open_with(dir, "testhost", &settings(), SMALL_SEGMENT).unwrap()
}

fn opening<'a>() -> Opening<'a> {
    Opening {
        id: ulid::Ulid::new(),
        ts_us: now_us(),
        host: "testhost".into(),
        service: "orders-db".into(),
        protocol: "postgres".into(),
        source: "10.0.0.1:4711".into(),
        original_dst: "10.0.0.2:5432".into(),
        mode: "enforce".into(),
        peer_uid: None,
    }
}

fn request(n: u64, verdict: &'static str, text: String) -> Request<'static> {
    Request {
        n,
        verdict: verdict.into(),
        class: "select".into(),
        ch: None,
        observed: false,
        via: "simple".into(),
        rules: Cow::Owned(vec!["read-orders".into()]),
        policy: "abc123".into(),
        code: None,
        message: None,
        text: text.into(),
        text_bytes: None,
        values: Cow::Borrowed(&[]),
        hmac: "00".into(),
        masks: Cow::Borrowed(&[]),
    }
}

/// One whole session with some requests; its id.
fn session(recorder: &Recorder, requests: u64) -> ulid::Ulid {
    let mut log = recorder.begin(opening()).unwrap();
    fill(&mut log, requests);
    let id = log.id();
    log.seal(&End::because("client")).unwrap();
    id
}

fn fill(log: &mut SessionLog, requests: u64) {
    for n in 1..=requests {
        let verdict = if n % 5 == 0 { "deny" } else { "allow" };
        log.record(&request(n, verdict, format!("select {n} from orders"))).unwrap();
        log.commit().unwrap().wait().unwrap();
    }
}

fn reader(dir: &Path) -> Reader {
    Reader::open(dir, &|| Ok(())).unwrap()
}

fn check(dir: &Path) -> Report {
    verify(&reader(dir), &Options::default()).unwrap()
}

fn messages(report: &Report) -> String {
    report.findings.iter().map(|f| format!("{:?} {}\n", f.session, f.message)).collect()
}

fn newest_segment(dir: &Path) -> std::path::PathBuf {
    let found = super::journal::segments(&dir.join("journal")).unwrap();
    found
        .into_values()
        .rfind(|p| p.metadata().unwrap().len() > super::journal::SEGMENT_HEADER)
        .unwrap()
}

#[test]
fn a_session_comes_back_as_it_was_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let id = session(&recorder, 10);
    recorder.flush().unwrap();
    let r = reader(dir.path());
    let s = r.find(&id.to_string()[..12]).unwrap();
    assert_eq!((s.number, s.requests, s.allowed, s.denied, s.events), (1, 10, 8, 2, 12));
    assert_eq!((s.service.as_str(), s.reason.as_deref()), ("orders-db", Some("client")));
    let mut kinds = Vec::new();
    r.events(s.number, 0, |e| kinds.push(e.kind.to_owned())).unwrap();
    assert_eq!((kinds[0].as_str(), kinds[11].as_str()), ("session.open", "session.end"));
    let health = recorder.health();
    assert_eq!((health.appended, health.stored, health.refusing), (12, 12, false));
    let report = check(dir.path());
    assert!(report.is_clean(), "{}", messages(&report));
    // The epoch and the seal.
    assert_eq!((report.sessions, report.events, report.ledger), (1, 12, 2));
}

#[test]
fn disk_durability_resolves_commits_of_many_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Record { durability: Durability::Disk, ..settings() };
    let recorder = Recorder::open_with(dir.path(), "h", &settings, SMALL_SEGMENT).unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| session(&recorder, 50));
        }
    });
    recorder.flush().unwrap();
    let health = recorder.health();
    assert_eq!((health.appended, health.stored), (208, 208));
    recorder.shutdown();
    let report = check(dir.path());
    assert!(report.is_clean() && report.events == 208, "{}", messages(&report));
}

#[test]
fn at_full_load_events_stored_equal_events_appended() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                for _ in 0..5 {
                    session(&recorder, 200);
                }
            });
        }
    });
    recorder.flush().unwrap();
    let health = recorder.health();
    assert_eq!((health.appended, health.stored), (8 * 5 * 202, 8 * 5 * 202));
    let report = check(dir.path());
    assert!(report.is_clean(), "{}", messages(&report));
    assert_eq!((report.sessions, report.events), (40, 8 * 5 * 202));
    drop(recorder);
    assert!(
        super::journal::segments(&dir.path().join("journal")).unwrap().len() <= 2,
        "consumed segments are deleted"
    );
}

#[test]
fn a_dropped_log_is_sealed_as_interrupted() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let mut log = recorder.begin(opening()).unwrap();
    log.record(&request(1, "allow", "never committed".into())).unwrap();
    drop(log);
    recorder.flush().unwrap();
    let s = reader(dir.path()).find("1").unwrap();
    assert_eq!((s.reason.as_deref(), s.events), (Some("interrupted"), 3));
    assert!(s.seal.is_some());
}

#[test]
fn two_daemons_cannot_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _one = open(dir.path());
    let e = Recorder::open_with(dir.path(), "h", &settings(), SMALL_SEGMENT).unwrap_err();
    assert!(e.to_string().contains("stop the other daemon"), "{e}");
}

#[test]
fn leftovers_of_a_shutdown_are_sealed_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let mut log = recorder.begin(opening()).unwrap();
    fill(&mut log, 3);
    recorder.shutdown();
    drop(recorder);
    log.abandon();
    let report = check(dir.path());
    assert_eq!((report.open, report.is_clean()), (1, true), "{}", messages(&report));
    drop(open(dir.path()));
    let s = reader(dir.path()).find("1").unwrap();
    assert_eq!((s.reason.as_deref(), s.seal), (Some("interrupted"), Some(3)));
    let report = check(dir.path());
    assert_eq!((report.open, report.is_clean()), (0, true), "{}", messages(&report));
}

// ---- kill -9 -------------------------------------------------------------------------------

const CHILD: &str = "INTERCEPTOR_TEST_RECORD_WRITER";

/// Not a test by itself: the process that is killed.
#[test]
fn writer_child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let recorder = open(Path::new(&dir));
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                loop {
                    let mut log = recorder.begin(opening()).unwrap();
                    for n in 1..200u64 {
                        let text = "x".repeat((n as usize * 97) % 9000);
                        log.record(&request(n, "allow", text)).unwrap();
                        let seq = log.record(&Notice {
                            n: Some(n),
                            severity: "NOTICE".into(),
                            code: "00000".into(),
                            message: "m".into(),
                            from: "server".into(),
                        });
                        let seq = seq.unwrap();
                        log.commit().unwrap().wait().unwrap();
                        let line = format!("\nack {} {seq}\n", log.id());
                        std::io::stderr().write_all(line.as_bytes()).unwrap();
                    }
                    log.seal(&End::because("client")).unwrap();
                }
            });
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9_at_any_instant() {
    let dir = tempfile::tempdir().unwrap();
    let mut acks = std::collections::HashMap::<String, u64>::new();
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["record::tests::writer_child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stderr.take().unwrap());
        let collector = std::thread::spawn(move || {
            let mut acks: Vec<(String, u64)> = Vec::new();
            for line in output.lines().map_while(Result::ok) {
                if let Some((id, seq)) = line.strip_prefix("ack ").and_then(|l| l.split_once(' '))
                    && let Ok(seq) = seq.parse()
                {
                    acks.push((id.to_owned(), seq));
                }
            }
            acks
        });
        std::thread::sleep(Duration::from_millis(60 + round * 211));
        child.kill().unwrap();
        child.wait().unwrap();
        let got = collector.join().unwrap();
        for (id, seq) in got {
            let best = acks.entry(id).or_default();
            *best = (*best).max(seq);
        }
        // Every other round a reader drains first, without a daemon; not a store whose very
        // making was cut short, of which nothing was acknowledged.
        if round % 2 == 0 && !acks.is_empty() {
            let report = check(dir.path());
            assert!(report.is_clean(), "{}", messages(&report));
        }
        let recorder = open(dir.path());
        recorder.shutdown();
        drop(recorder);
    }
    assert!(acks.values().sum::<u64>() > 100, "the writer was never heard of");
    let r = reader(dir.path());
    for (id, seq) in &acks {
        let s = r.find(id).unwrap_or_else(|e| panic!("{id}: {e}"));
        assert!(s.events >= *seq, "{id}: {seq} acknowledged, {} stored", s.events);
        assert!(s.seal.is_some(), "{id} is sealed");
    }
    let report = check(dir.path());
    assert!(report.is_clean(), "{}", messages(&report));
    assert!(
        r.list(&Filter { limit: 1000, open: Some(true), ..Filter::default() }).unwrap().is_empty()
    );
}

// ---- forgers -------------------------------------------------------------------------------

/// A store with sealed sessions, an open one in a checkpoint, and nobody writing it.
fn sample(dir: &Path) {
    let recorder = open(dir);
    for _ in 0..4 {
        session(&recorder, 6);
    }
    let mut log = recorder.begin(opening()).unwrap();
    fill(&mut log, 4);
    recorder.shutdown();
    drop(recorder);
    // What a kill leaves: no last words of the session.
    log.abandon();
}

fn sql(dir: &Path, statements: &str) {
    let db = Connection::open(dir.join("records.db")).unwrap();
    db.execute_batch(
        "DROP TRIGGER events_stay; DROP TRIGGER ledger_stays; DROP TRIGGER ledger_keeps;",
    )
    .unwrap();
    db.execute_batch(statements).unwrap();
}

#[test]
fn verify_finds_every_change_made_without_the_key() {
    let changes: &[(&str, &str)] = &[
        (
            "UPDATE events SET body = replace(body, 'orders', 'ordners') WHERE id = (2<<31)|3",
            "event 3 was altered",
        ),
        ("UPDATE events SET ts_us = ts_us + 1 WHERE id = (2<<31)|3", "event 3 was altered"),
        ("UPDATE events SET data = x'00' WHERE id = (2<<31)|3", "event 3 was altered"),
        ("UPDATE events SET kind = 'notice' WHERE id = (2<<31)|3", "event 3 was altered"),
        ("UPDATE events SET hash = zeroblob(32) WHERE id = (2<<31)|3", "event 3 was altered"),
        ("DELETE FROM events WHERE id = (2<<31)|3", "events 3 to 3 are missing"),
        (
            "DELETE FROM events WHERE id >= (2<<31)|7 AND id < 3<<31",
            "does not end as it was sealed",
        ),
        ("DELETE FROM events WHERE id >= (2<<31) AND id < 3<<31", "does not end as it was sealed"),
        (
            "UPDATE events SET id = (2<<31)|99 WHERE id = (2<<31)|3; UPDATE events SET id = (2<<31)|3 WHERE id = (2<<31)|4; UPDATE events SET id = (2<<31)|4 WHERE id = (2<<31)|99;",
            "event 3 was altered, added or moved",
        ),
        (
            "INSERT INTO events SELECT (2<<31)|9, ts_us, kind, body, data, hash FROM events WHERE id = (2<<31)|8",
            "event 9 was altered, added or moved",
        ),
        (
            "INSERT INTO events SELECT (77<<31)|1, ts_us, kind, body, data, hash FROM events WHERE id = (2<<31)|1",
            "never opened",
        ),
        ("DELETE FROM sessions WHERE number = 2", "is missing"),
        (
            "DELETE FROM sessions WHERE number = 2; DELETE FROM events WHERE id >= 2<<31 AND id < 3<<31",
            "is missing",
        ),
        (
            "DELETE FROM sessions WHERE number = 5; DELETE FROM events WHERE id >= 5<<31",
            "is missing",
        ),
        ("UPDATE sessions SET agent = 'somebody-else' WHERE number = 2", "row in the list"),
        ("UPDATE sessions SET denied = 0 WHERE number = 2", "row in the list"),
        (
            "UPDATE sessions SET id = '01ARZ3NDEKTSV4RRFFQ69G5FAV' WHERE number = 2",
            "event 1 was altered",
        ),
        ("DELETE FROM ledger WHERE idx = 2", "ledger entries 2 to 2 are missing"),
        ("DELETE FROM ledger WHERE idx = 5", "signed ledger entry 5, which is missing"),
        (
            "UPDATE ledger SET body = replace(body, '\"events\":8', '\"events\":7') WHERE idx = 2",
            "ledger entry 2 was altered",
        ),
        ("UPDATE ledger SET number = 3 WHERE idx = 2", "ledger entry 2 was altered or moved"),
        (
            "UPDATE ledger SET idx = 99 WHERE idx = 2; UPDATE ledger SET idx = 2 WHERE idx = 3; UPDATE ledger SET idx = 3 WHERE idx = 99;",
            "ledger entry 2 was altered or moved",
        ),
        (
            "UPDATE checkpoints SET body = replace(body, '\"next_number\":6', '\"next_number\":5')",
            "its signature is not good",
        ),
        ("DELETE FROM checkpoints", "no checkpoint"),
        // An open session has no seal yet: the checkpoint stands for it.
        (
            "DELETE FROM events WHERE id > (5<<31)|3; UPDATE sessions SET events = 3, requests = 2, allowed = 2 WHERE number = 5",
            "stand in checkpoint",
        ),
        ("UPDATE meta SET value = 'x' WHERE key = 'public_key'", "another public key"),
    ];
    let original = tempfile::tempdir().unwrap();
    sample(original.path());
    let report = check(original.path());
    assert!(report.is_clean() && report.open == 1, "{}", messages(&report));
    for (change, expected) in changes {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        sql(dir.path(), change);
        let report = check(dir.path());
        let found = messages(&report);
        assert!(found.contains(expected), "{change}\nfound: {found}");
    }
}

#[test]
fn a_whole_new_chain_without_the_key_is_found_in_an_open_session() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    // Everything of session 5 computed again, as only the seal or a checkpoint can tell.
    let r = reader(dir.path());
    let s = r.find("5").unwrap();
    let id = ulid::Ulid::from_string(&s.id).unwrap();
    let key = r.public_key().unwrap();
    let mut head = chain::start(&key.fingerprint(), id, 5);
    let mut rows = Vec::new();
    r.events(5, 0, |e| {
        let body = String::from_utf8(e.body.to_vec()).unwrap().replace("orders", "0rders");
        head = chain::step(&head, e.seq, e.ts_us, e.kind, body.as_bytes(), e.data);
        rows.push((e.seq, body, head));
    })
    .unwrap();
    drop(r);
    sql(dir.path(), "");
    let db = Connection::open(dir.path().join("records.db")).unwrap();
    for (seq, body, hash) in rows {
        db.execute(
            "UPDATE events SET body = ?1, hash = ?2 WHERE id = ?3",
            rusqlite::params![body, &hash[..], store::event_id(5, seq)],
        )
        .unwrap();
    }
    drop(db);
    let before = messages(&check(dir.path()));
    assert!(before.contains("is not what checkpoint"), "{before}");
    // A restart must not launder it with a seal.
    drop(open(dir.path()));
    let after = messages(&check(dir.path()));
    assert!(after.contains("found altered at a restart"), "{after}");
}

#[test]
fn an_anchor_finds_a_store_that_was_rolled_back() {
    let old = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    copy(dir.path(), old.path());
    let recorder = open(dir.path());
    session(&recorder, 3);
    recorder.shutdown();
    drop(recorder);
    let anchor = reader(dir.path()).anchor().unwrap();
    let with = |at: &Path| {
        let anchors = vec![("a.json".to_owned(), anchor.clone())];
        verify(&reader(at), &Options { key: None, anchors }).unwrap()
    };
    assert!(with(dir.path()).is_clean());
    assert!(check(old.path()).is_clean(), "nothing local can tell");
    let found = messages(&with(old.path()));
    assert!(found.contains("anchor a.json signed ledger entry"), "{found}");
    assert!(found.contains("is missing"), "{found}");
}

fn copy(from: &Path, to: &Path) {
    let ok = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(ok.success());
}

// ---- torn and damaged journals --------------------------------------------------------------

/// A killed daemon's state whose journal holds events that SQLite does not have.
fn killed(dir: &Path) -> u64 {
    let recorder = open(dir);
    let mut log = recorder.begin(opening()).unwrap();
    fill(&mut log, 20);
    recorder.flush().unwrap();
    recorder.shutdown();
    drop(recorder);
    // The drain has stopped: this goes to the journal only.
    for n in 21..=40 {
        log.record(&request(n, "allow", format!("late {n}"))).unwrap();
        log.commit().unwrap().wait().unwrap();
    }
    log.abandon();
    41
}

#[test]
fn a_torn_tail_is_cut_and_stated() {
    let dir = tempfile::tempdir().unwrap();
    let events = killed(dir.path());
    let segment = newest_segment(dir.path());
    let len = segment.metadata().unwrap().len();
    std::fs::File::options().write(true).open(&segment).unwrap().set_len(len - 7).unwrap();
    drop(open(dir.path()));
    let s = reader(dir.path()).find("1").unwrap();
    assert_eq!((s.events, s.reason.as_deref()), (events - 1 + 1, Some("interrupted")));
    let report = check(dir.path());
    let notes = report.notes.join("\n");
    assert!(notes.contains("incomplete frame") && notes.contains("lost tail"), "{notes}");
    assert!(
        dir.path()
            .join("journal")
            .read_dir()
            .unwrap()
            .any(|e| { e.unwrap().path().extension().is_some_and(|x| x == "damaged") })
    );
}

#[test]
fn flipped_bytes_anywhere_in_the_journal_are_found() {
    let original = tempfile::tempdir().unwrap();
    killed(original.path());
    let name = newest_segment(original.path());
    let bytes = std::fs::read(&name).unwrap();
    // Only what SQLite does not have yet: the late frames are at the end.
    let late = bytes.windows(7).position(|w| w == b"late 21").unwrap();
    for at in (late..bytes.len()).step_by(397) {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        std::fs::write(dir.path().join("journal").join(name.file_name().unwrap()), &bad).unwrap();
        // Before a daemon recovers it, and after.
        let before = check(dir.path());
        let noticed = !before.is_clean() || !before.notes.is_empty();
        assert!(noticed, "byte {at}: {}", messages(&before));
        drop(open(dir.path()));
        let after = check(dir.path());
        let noticed = !after.is_clean() || !after.notes.is_empty();
        assert!(noticed, "byte {at}");
        let s = reader(dir.path()).find("1").unwrap();
        assert!(s.events >= 21, "what was good is kept");
    }
}

// ---- a store that cannot take more ----------------------------------------------------------

#[test]
fn a_locked_sqlite_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    let mut log = recorder.begin(opening()).unwrap();
    let thief = Connection::open(dir.path().join("records.db")).unwrap();
    thief.execute_batch("BEGIN EXCLUSIVE").unwrap();
    fill(&mut log, 5);
    let e = recorder.flush().unwrap_err().to_string();
    assert!(e.contains("locked"), "{e}");
    assert!(recorder.refusing() && recorder.health().refusing);
    recorder.begin(opening()).unwrap_err();
    thief.execute_batch("ROLLBACK").unwrap();
    recorder.flush().unwrap();
    log.seal(&End::because("client")).unwrap();
    recorder.flush().unwrap();
    assert!(!recorder.health().refusing);
    assert_eq!(recorder.health().appended, recorder.health().stored);
    assert!(check(dir.path()).is_clean());
}

#[test]
fn a_full_store_warns_then_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Record { max_bytes: 400_000, ..settings() };
    let recorder = Recorder::open_with(dir.path(), "h", &settings, SMALL_SEGMENT).unwrap();
    let mut log = recorder.begin(opening()).unwrap();
    let mut n = 0;
    let mut warned = false;
    while !recorder.refusing() {
        n += 1;
        assert!(n < 10_000, "never refuses");
        let r = request(n, "allow", "x".repeat(2000));
        log.record(&r).unwrap();
        log.commit().unwrap().wait().unwrap();
        std::thread::sleep(Duration::from_millis(5));
        warned |= recorder.health().warning;
    }
    assert!(warned);
    let why = recorder.health().reason.unwrap();
    assert!(why.contains("max_bytes"), "{why}");
    // The running session can still say how it ended.
    log.seal(&End::because("store")).unwrap();
    recorder.flush().unwrap();
    assert!(check(dir.path()).is_clean());
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6000k", "none"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED a_full_disk_refuses: needs the privilege to mount a tmpfs");
        return;
    }
    let _unmount = Unmount(dir.path().into());
    let recorder = open(dir.path());
    let mut log = recorder.begin(opening()).unwrap();
    let ballast = dir.path().join("ballast");
    std::fs::write(&ballast, vec![1u8; 3_000_000]).unwrap();
    let mut acknowledged = 1;
    let failed = loop {
        let seq = log.record(&request(acknowledged, "allow", "y".repeat(3000)));
        match seq.and_then(|seq| log.commit().map(|_| seq)) {
            Ok(seq) => acknowledged = seq,
            Err(e) => break e.to_string(),
        }
        assert!(acknowledged < 100_000, "never full");
    };
    assert!(failed.contains("No space") || failed.contains("refusing"), "{failed}");
    assert!(recorder.refusing());
    recorder.begin(opening()).unwrap_err();
    std::fs::remove_file(&ballast).unwrap();
    let patience = std::time::Instant::now();
    while recorder.health().refusing {
        let ls = || Command::new("ls").arg("-lRs").arg(dir.path()).output().unwrap().stdout;
        assert!(
            patience.elapsed() < Duration::from_secs(15),
            "{:?} {}",
            recorder.health(),
            String::from_utf8_lossy(&ls())
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    log.commit().unwrap().wait().unwrap();
    log.seal(&End::because("store")).unwrap();
    recorder.flush().unwrap();
    assert_eq!(recorder.health().appended, recorder.health().stored);
    let s = reader(dir.path()).find("1").unwrap();
    assert!(s.events > acknowledged);
    let report = check(dir.path());
    assert!(report.is_clean(), "{}", messages(&report));
}

struct Unmount(std::path::PathBuf);
impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// ---- retention ------------------------------------------------------------------------------

#[test]
fn retention_deletes_only_what_is_sealed_and_old_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    session(&recorder, 5);
    session(&recorder, 5);
    let mut log = recorder.begin(opening()).unwrap();
    fill(&mut log, 2);
    recorder.shutdown();
    drop(recorder);
    std::thread::sleep(Duration::from_millis(20));
    let settings = Record { retain: Span(Duration::from_millis(10)), ..settings() };
    log.abandon();
    let recorder = Recorder::open_with(dir.path(), "h", &settings, SMALL_SEGMENT).unwrap();
    let patience = std::time::Instant::now();
    while reader(dir.path()).find("1").is_ok() {
        assert!(patience.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
    recorder.flush().unwrap();
    let report = check(dir.path());
    assert!(report.is_clean(), "{}", messages(&report));
    assert!(report.deleted >= 2);
    let young = tempfile::tempdir().unwrap();
    let recorder = open(young.path());
    session(&recorder, 1);
    recorder.flush().unwrap();
    assert_eq!(check(young.path()).deleted, 0);
    // Deleting by hand what retention deleted elsewhere is no excuse.
    drop(recorder);
    sql(young.path(), "DELETE FROM sessions; DELETE FROM events;");
    assert!(messages(&check(young.path())).contains("is missing"));
}

// ---- reading --------------------------------------------------------------------------------

#[test]
fn lists_are_filtered_and_searches_find_statements() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    for agent in ["billing-bot", "report-bot"] {
        let mut log = recorder.begin(opening()).unwrap();
        log.record(&IdentityProven {
            agent: agent.into(),
            principal: "alice@example.com".into(),
            issuer: "okta".into(),
            labels: Default::default(),
            claims: serde_json::json!({"groups": ["finance"]}),
            pinned_new: true,
            source_key: "10.0.0.1".into(),
            expires_at: 0,
            proven: true,
            way: Some("password".into()),
        })
        .unwrap();
        log.record(&request(1, "allow", format!("select 100% \"of_{agent}\"\n'\u{1b}[31m'")))
            .unwrap();
        log.commit().unwrap().wait().unwrap();
        if agent == "billing-bot" {
            log.seal(&End::because("client")).unwrap();
        } else {
            recorder.flush().unwrap();
            let r = reader(dir.path());
            let list = |f: Filter| r.list(&Filter { limit: 10, ..f }).unwrap().len();
            assert_eq!(list(Filter::default()), 2);
            assert_eq!(list(Filter { agent: Some("billing-bot".into()), ..Filter::default() }), 1);
            assert_eq!(list(Filter { principal: Some("bob".into()), ..Filter::default() }), 0);
            assert_eq!(list(Filter { open: Some(true), ..Filter::default() }), 1);
            assert_eq!(list(Filter { open: Some(false), ..Filter::default() }), 1);
            assert_eq!(list(Filter { since_us: Some(now_us()), ..Filter::default() }), 0);
            let hits =
                |t: &str| r.search(t, &Filter { limit: 9, ..Filter::default() }).unwrap().len();
            assert_eq!(hits("100% \"OF_"), 2);
            assert_eq!(hits("100_"), 0);
            assert_eq!(hits("finance"), 2);
            assert_eq!(hits("\u{1b}[31m"), 2);
        }
    }
}

#[test]
fn a_list_is_fast_at_many_sessions() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let many = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
    let db = Connection::open(dir.path().join("records.db")).unwrap();
    db.execute_batch(&format!(
        "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {many}) \
         INSERT INTO sessions SELECT i, printf('%026d', i), i, i + 1, 'h', 's' || (i % 7), 'postgres', \
         'enforce', 'a', 'b', 'agent' || (i % 1000), 'p' || (i % 5000), 'okta', 1, 'r', 'd', NULL, \
         1, 1, 1, 0, 0, 0, 0, 0, 0, 'client', i FROM n; COMMIT;"
    ))
    .unwrap();
    drop(db);
    let r = reader(dir.path());
    for filter in [
        Filter::default(),
        Filter { agent: Some("agent77".into()), ..Filter::default() },
        Filter { principal: Some("p4999".into()), ..Filter::default() },
        Filter { open: Some(true), ..Filter::default() },
        Filter { since_us: Some(many - 100), ..Filter::default() },
        Filter { agent: Some("nobody".into()), ..Filter::default() },
    ] {
        let filter = Filter { limit: 50, ..filter };
        let start = std::time::Instant::now();
        r.list(&filter).unwrap();
        let took = start.elapsed();
        assert!(took < Duration::from_millis(100), "{filter:?} took {took:?}");
    }
}

#[test]
fn a_running_daemon_is_asked_to_drain() {
    let dir = tempfile::tempdir().unwrap();
    for (answer, good) in [
        (r#"{"v":1,"id":1,"ok":{"events":3}}"#, true),
        (r#"{"v":1,"id":1,"error":{"code":"busy","message":"not now"}}"#, false),
        ("", false),
    ] {
        let path = dir.path().join(format!("{}.sock", answer.len()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let request: crate::control::protocol::Request = serde_json::from_str(&line).unwrap();
            assert_eq!(request.op, crate::control::protocol::Op::Drain);
            writeln!(stream, "{answer}").unwrap();
        });
        assert_eq!(super::reader::ask_daemon(&path).is_ok(), good, "{answer}");
        daemon.join().unwrap();
    }
    assert!(super::reader::ask_daemon(&dir.path().join("none.sock")).is_err());
}

// ---- what people see ------------------------------------------------------------------------

/// A session with everything that a replay knows, and escape sequences in all of it.
fn eventful(recorder: &Recorder) {
    let evil = "\u{1b}[2J\u{202e}";
    let mut log = recorder.begin(opening()).unwrap();
    log.record(&Admission {
        verdict: "allow".into(),
        role: "app".into(),
        database: "shop".into(),
        client: Some(format!("psql{evil}").into()),
        parameters: Default::default(),
        rules: Cow::Owned(vec![]),
        policy: "1".into(),
        message: None,
        tls: None,
        observed: false,
    })
    .unwrap();
    log.record(&request(1, "allow", format!("select name,\n  card from customers -- {evil}")))
        .unwrap();
    let rows: &[&[Option<&str>]] = &[&[Some("Ann"), Some("****1111")], &[Some(evil), None]];
    let data = super::rows::tests::sample(&["name", "card"], rows, "SELECT 2");
    let response = Response {
        n: 1,
        tag: "SELECT 2".into(),
        rows: 2,
        bytes: 99,
        duration_us: 1500,
        error: None,
        masked: 2,
        truncated: false,
    };
    log.append(&Event::now(&response).with_data(&data)).unwrap();
    let mut denied = request(2, "deny", "drop table customers".into());
    denied.message = Some("ask the owner first".into());
    denied.class = "ddl".into();
    log.record(&denied).unwrap();
    log.record(&request(3, "hold", "update customers set name = 'x'".into())).unwrap();
    log.record(&HoldOpen {
        n: 3,
        id: "h-7k2m9q".into(),
        rules: Cow::Owned(vec!["hold-writes".into()]),
        deadline_us: now_us(),
    })
    .unwrap();
    log.record(&HoldDecided {
        n: 3,
        id: "h-7k2m9q".into(),
        outcome: "granted".into(),
        by: Some("bob".into()),
        scope: Some("once".into()),
        reason: Some(evil.into()),
        waited_us: 2_500_000,
    })
    .unwrap();
    let failed = Response {
        error: Some(ErrorSeen { code: "23505".into(), message: evil.into() }),
        n: 3,
        ..response
    };
    log.record(&failed).unwrap();
    log.record(&Alert { code: "TOKEN_COPIED".into(), message: evil.into() }).unwrap();
    log.seal(&End::because("client")).unwrap();
    recorder.flush().unwrap();
}

#[test]
fn a_replay_shows_what_happened_and_nothing_that_acts_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    eventful(&recorder);
    let r = reader(dir.path());
    let mut out = Vec::new();
    let mut player =
        replay::Player::new(&mut out, terminal::Style::plain(), replay::Pace::at_once());
    r.events(1, 0, |e| player.play(e).unwrap()).unwrap();
    let shown = String::from_utf8(out).unwrap();
    for part in [
        "app@shop=> select name,",
        " ->   card from customers -- \\x1b[2J\\u{202e}",
        " name            | card\n-----------------+----------\n Ann             | ****1111\n",
        "SELECT 2 (1.5 ms, 2 values masked)",
        "app@shop=> drop table customers\ndeny by rule read-orders: ask the owner first",
        "held as h-7k2m9q",
        "h-7k2m9q granted by bob (once) after 2.5 s",
        "ERROR:  23505: ",
        "ALERT TOKEN_COPIED",
    ] {
        assert!(shown.contains(part), "no {part:?} in:\n{shown}");
    }
    assert!(!shown.chars().any(|c| c != '\n' && c.is_control()), "{shown:?}");
    assert!(!shown.contains('\u{202e}'));
}

#[test]
fn a_replay_keeps_the_timing() {
    let event = |seq, ts_us| StoredEvent {
        seq,
        ts_us,
        kind: "notice",
        body: br#"{"severity":"NOTICE","message":"m"}"#,
        data: &[],
        hash: &[],
    };
    for (speed, least, most) in [(4.0, 90, 400), (0.0, 0, 50)] {
        let pace = replay::Pace { speed, longest: Duration::from_secs(9) };
        let mut out = Vec::new();
        let mut player = replay::Player::new(&mut out, terminal::Style::plain(), pace);
        let start = std::time::Instant::now();
        player.play(&event(1, 1_000_000)).unwrap();
        player.play(&event(2, 1_400_000)).unwrap();
        let took = start.elapsed().as_millis();
        assert!((least..most).contains(&took), "speed {speed}: {took} ms");
    }
}

#[test]
fn exports_are_one_json_object_per_line() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = open(dir.path());
    eventful(&recorder);
    let r = reader(dir.path());
    let s = r.find("1").unwrap();
    let lines = |format| -> Vec<serde_json::Value> {
        let mut out = Vec::new();
        export::session(&r, &s, format, None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let all = lines(export::Format::Jsonl);
    assert_eq!(all.len() as u64, s.events);
    assert!(all[3]["data"].is_string() && all[3]["kind"] == "response");
    let ocsf = lines(export::Format::Ocsf);
    let seen: Vec<(u64, u64, u64)> = ocsf
        .iter()
        .map(|e| {
            let n = |k: &str| e[k].as_u64().unwrap();
            assert_eq!(n("type_uid"), n("class_uid") * 100 + n("activity_id"));
            (n("class_uid"), n("activity_id"), e["status_id"].as_u64().unwrap_or(0))
        })
        .collect();
    assert_eq!(
        seen,
        [(6005, 3, 1), (6005, 4, 1), (6005, 99, 2), (6005, 4, 2), (6003, 3, 1), (2004, 1, 0)]
    );
    assert_eq!(ocsf[1]["unmapped"]["rows"], 2);
    // Where it stands in the chain: itself, and the event before it.
    for event in &ocsf {
        let one = &event["unmapped"]["record_integrity"]["attestation_list"][0];
        let seq: usize =
            event["metadata"]["uid"].as_str().unwrap().split_once(':').unwrap().1.parse().unwrap();
        assert_eq!(one["fingerprint"]["value"], all[seq - 1]["hash"]);
        assert_eq!(one["prev_event"]["fingerprint"]["value"], all[seq - 2]["hash"]);
        assert_eq!(
            (&one["chain_uid"], &one["uid"]),
            (&all[0]["session"], &event["metadata"]["uid"])
        );
        assert_eq!(one["authority_uid"], r.public_key().unwrap().fingerprint_hex());
    }
}
