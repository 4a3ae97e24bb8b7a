//! What shipping promises, tried with real stores on both sides: nothing lost, nothing twice,
//! nothing altered, and nobody who is not enrolled.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::hosts::Host;
use super::log::{VerifierKey, tree};
use super::replica::{Position, Refusal, Replica, Taken};
use super::*;
use crate::config::{Record, Ship, Span};
use crate::control::protocol::{Answer, Drained, LiveSession, PolicyStatus, Status};
use crate::record::chain;
use crate::record::event::{Event, Opening};
use crate::record::frame::{self, Frame, Parsed};
use crate::record::ledger::{Entry, Epoch, Head, Seal};
use crate::record::verify::{Options, verify};
use crate::record::{End, HostKey, PublicKey, Reader, Recorder, SessionLog, now_us};
use crate::ship::{Batch, Shipper, Spool};

pub(super) fn open_host(dir: &Path) -> Arc<Recorder> {
    Recorder::open_with(dir, "db1", &Record::default(), 64 << 10).unwrap()
}

pub(super) fn begin(recorder: &Recorder) -> SessionLog {
    let opening = Opening {
        id: ulid::Ulid::new(),
        ts_us: now_us(),
        host: "db1".into(),
        service: "orders-db".into(),
        protocol: "postgres".into(),
        source: "10.0.0.1:4711".into(),
        original_dst: "10.0.0.2:5432".into(),
        mode: "enforce".into(),
        peer_uid: None,
    };
    recorder.begin(opening).unwrap()
}

pub(super) fn fill(log: &mut SessionLog, events: u64) {
    for n in 0..events {
        let body = json!({ "n": n, "verdict": "allow", "text": format!("select {n} from orders") });
        let event = Event { ts_us: now_us(), kind: "request", body: &body, data: b"rows" };
        log.append(&event).unwrap();
    }
    log.commit().unwrap().wait().unwrap();
}

pub(super) fn session(recorder: &Recorder, events: u64) -> u64 {
    let mut log = begin(recorder);
    fill(&mut log, events);
    let number = log.number();
    log.seal(&End::because("client")).unwrap();
    number
}

/// Output of a program: pieces of so many bytes, each another.
pub(super) fn output(log: &mut SessionLog, pieces: u64, bytes: usize) {
    for n in 0..pieces {
        let body = json!({ "n": n, "ch": 0, "stream": "out", "bytes": bytes });
        let data: Vec<u8> = (0..bytes).map(|i| (i as u64 * 31 + n) as u8).collect();
        let kind = if n % 3 == 2 { "request" } else { "channel.data" };
        let data = if n % 3 == 2 { &[][..] } else { &data };
        log.append(&Event { ts_us: now_us(), kind, body: &body, data }).unwrap();
    }
    log.commit().unwrap().wait().unwrap();
}

/// A sealed session of such output; its number.
pub(super) fn session_with_output(recorder: &Recorder, pieces: u64, bytes: usize) -> u64 {
    let mut log = begin(recorder);
    output(&mut log, pieces, bytes);
    let number = log.number();
    log.seal(&End::because("client")).unwrap();
    number
}

pub(super) fn key_of(dir: &Path) -> PublicKey {
    PublicKey::load(&dir.join("host.pub")).unwrap()
}

fn replica(collector: &Path, host: &Path) -> Replica {
    Replica::open(collector, key_of(host), "db1").unwrap()
}

/// All that waits at a host, in batches of so many bytes.
pub(super) fn batches(host: &Path, from: &Position, bytes: usize) -> Vec<Batch> {
    let spool = Spool::open(host).unwrap();
    let (mut at, mut all) = (from.clone(), Vec::new());
    while let Some(batch) = spool.next(&at, bytes).unwrap() {
        at = batch.after.clone();
        all.push(batch);
    }
    all
}

/// Ships all that waits; events that arrived.
fn ship(host: &Path, replica: &mut Replica, bytes: usize) -> u64 {
    let mut events = 0;
    for batch in batches(host, &replica.position(), bytes) {
        events += replica.take(&batch.frames).unwrap().events;
        assert_eq!(replica.position(), batch.after);
    }
    events
}

/// Every frame of some bytes: where it begins and ends.
pub(super) fn frames(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut at, mut all) = (0, Vec::new());
    while at < bytes.len() {
        let Parsed::Whole(_, len) = frame::parse(&bytes[at..]) else { panic!("no frame at {at}") };
        all.push(at..at + len);
        at += len;
    }
    all
}

pub(super) fn whole(host: &Path) -> Vec<u8> {
    let mut all = batches(host, &Position::default(), usize::MAX);
    assert_eq!(all.len(), 1);
    all.remove(0).frames
}

/// The same event with another body; with `rehash` as one that continues its chain.
pub(super) fn altered(
    bytes: &[u8],
    range: &std::ops::Range<usize>,
    previous: Option<chain::Hash>,
) -> Vec<u8> {
    let Parsed::Whole(Frame::Event(e), _) = frame::parse(&bytes[range.clone()]) else { panic!() };
    let body = String::from_utf8(e.body.to_vec()).unwrap().replace("orders", "0rders");
    let hash = previous
        .map_or(e.hash, |p| chain::step(&p, e.seq, e.ts_us, e.kind, body.as_bytes(), e.data));
    let mut out = Vec::new();
    frame::begin_event(&mut out, e.number, e.session, e.seq, e.ts_us, e.kind);
    out.extend_from_slice(body.as_bytes());
    frame::finish_event(&mut out, 0, e.kind, e.data, &hash);
    out
}

pub(super) fn refused(result: Result<Taken, Refusal>) -> String {
    match result {
        Err(Refusal::Altered(what)) => format!("altered: {what}"),
        Err(Refusal::Gap(what)) => format!("gap: {what}"),
        other => panic!("{other:?}"),
    }
}

pub(super) fn is_clean(state: &Path, host: &Path) {
    let dir = Replica::directory(state, &key_of(host).fingerprint_hex());
    let report = verify(&Reader::of_replica(&dir).unwrap(), &Options::default()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn what_was_recorded_arrives_once_in_batches_of_every_size() {
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    for n in 0..20 {
        session(&recorder, n);
    }
    let mut open = begin(&recorder);
    fill(&mut open, 30);
    recorder.flush().unwrap();
    for bytes in [1, 700, 5_000, usize::MAX] {
        let state = tempfile::tempdir().unwrap();
        let mut replica = replica(state.path(), host.path());
        assert_eq!(ship(host.path(), &mut replica, bytes), 20 * 2 + 190 + 31);
        assert_eq!(replica.events(), 261);
        is_clean(state.path(), host.path());
        // The same again, whole: nothing twice, and it stands where it stood.
        let before = replica.position();
        assert_eq!(before.sessions.len(), 1);
        assert_eq!(replica.take(&whole(host.path())).unwrap().events, 0);
        assert_eq!(replica.position(), before);
        drop(replica);
        let again = self::replica(state.path(), host.path());
        assert_eq!((again.position(), again.events()), (before, 261), "as it was, from disk");
    }
    // It goes on, and the rest arrives.
    let state = tempfile::tempdir().unwrap();
    let mut replica = replica(state.path(), host.path());
    ship(host.path(), &mut replica, 2_000);
    fill(&mut open, 5);
    open.seal(&End::because("client")).unwrap();
    recorder.shutdown();
    assert_eq!(ship(host.path(), &mut replica, 2_000), 6);
    assert!(replica.position().sessions.is_empty());
    is_clean(state.path(), host.path());
}

#[test]
fn gaps_and_alterations_are_refused_whole() {
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    session(&recorder, 6);
    session(&recorder, 6);
    recorder.shutdown();
    let good = whole(host.path());
    let parts = frames(&good);
    let state = tempfile::tempdir().unwrap();
    let mut replica = replica(state.path(), host.path());
    let event = |range: &std::ops::Range<usize>| match frame::parse(&good[range.clone()]) {
        Parsed::Whole(Frame::Event(e), _) => Some((e.number, e.seq)),
        _ => None,
    };
    let place = |number, seq| parts.iter().position(|r| event(r) == Some((number, seq))).unwrap();
    let with =
        |at: usize, new: Vec<u8>| [&good[..parts[at].start], &new, &good[parts[at].end..]].concat();
    let at = place(1, 3);
    // A changed body, with and without a hash that fits it.
    let what = refused(replica.take(&with(at, altered(&good, &parts[at], None))));
    assert_eq!(what, "altered: event 3 of session 1 does not continue its chain: it was altered");
    let Parsed::Whole(Frame::Event(before), _) = frame::parse(&good[parts[at - 1].clone()]) else {
        panic!()
    };
    let what = refused(replica.take(&with(at, altered(&good, &parts[at], Some(before.hash)))));
    assert!(what.starts_with("altered: event 4 of session 1 does not continue"), "{what}");
    // A whole chain computed again is caught by its seal.
    let mut rechained = good[..parts[place(1, 2)].start].to_vec();
    let Parsed::Whole(Frame::Event(first), _) = frame::parse(&good[parts[place(1, 1)].clone()])
    else {
        panic!()
    };
    let mut head = first.hash;
    for seq in 2..=8 {
        let new = altered(&good, &parts[place(1, seq)], Some(head));
        let Parsed::Whole(Frame::Event(e), _) = frame::parse(&new) else { panic!() };
        head = e.hash;
        rechained.extend_from_slice(&new);
    }
    rechained.extend_from_slice(&good[parts[place(1, 8)].end..]);
    let what = refused(replica.take(&rechained));
    assert_eq!(what, "altered: the seal of session 1 is over other events than were shipped");
    // An event left out, a ledger entry left out, the last events left out.
    let what = refused(replica.take(&with(at, Vec::new())));
    assert!(what.starts_with("gap: event 4 of session 1 comes, and only 2"), "{what}");
    let seal = place(1, 8) + 1;
    let what = refused(replica.take(&with(seal, Vec::new())));
    assert!(what.starts_with("gap: ledger entry 3 comes, and the ledger ends at 1"), "{what}");
    let what = refused(replica.take(&with(place(2, 8), Vec::new())));
    assert_eq!(what, "gap: the seal of session 2 is over 8 events, 7 are here");
    // Bytes that are no frame, and a frame cut short.
    let mut torn = good.clone();
    torn[parts[at].start + 30] ^= 1;
    assert!(refused(replica.take(&torn)).contains("checksum differs"));
    assert!(refused(replica.take(&good[..good.len() - 1])).contains("ends inside a frame"));
    // Nothing of all that stayed, and the good one is taken.
    assert_eq!((replica.position(), replica.events()), (Position::default(), 0));
    assert_eq!(replica.take(&good).unwrap().events, 16);
    // What is here cannot be exchanged afterwards, nor added to.
    let what = refused(replica.take(&altered(&good, &parts[at], None)));
    assert!(what.contains("is not the one that was accepted before"), "{what}");
    let what = refused(replica.take(&altered(&good, &parts[at], Some(before.hash))));
    assert!(what.contains("is not the one that was accepted before"), "{what}");
    is_clean(state.path(), host.path());
}

#[test]
fn another_hosts_key_signs_nothing_here() {
    let (host, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&host, &other] {
        let recorder = open_host(dir.path());
        session(&recorder, 2);
        recorder.shutdown();
    }
    let state = tempfile::tempdir().unwrap();
    let mut replica = replica(state.path(), host.path());
    let foreign = whole(other.path());
    for range in frames(&foreign) {
        let what = refused(replica.take(&foreign[range]));
        assert!(what.starts_with("altered: ") || what.starts_with("gap: "), "{what}");
    }
    assert_eq!((replica.position(), replica.events()), (Position::default(), 0));
}

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    assert!(
        std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success()
    );
}

#[test]
fn after_a_kill_an_epoch_lets_in_last_words_and_nothing_else() {
    let host = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    session(&recorder, 3);
    let mut left = begin(&recorder);
    fill(&mut left, 4);
    recorder.flush().unwrap();
    let mut replica = replica(state.path(), host.path());
    ship(host.path(), &mut replica, usize::MAX);
    let before = tempfile::tempdir().unwrap();
    // Four more events that are not shipped before the kill.
    fill(&mut left, 4);
    let (number, id) = (left.number(), left.id());
    recorder.shutdown();
    drop(recorder);
    left.abandon();
    copy(host.path(), before.path());

    let recorder = open_host(host.path());
    session(&recorder, 1);
    recorder.shutdown();
    drop(recorder);
    // 4 left out, its last words, a session of 3 events.
    assert_eq!(ship(host.path(), &mut replica, 300), 4 + 1 + 3);
    is_clean(state.path(), host.path());
    assert!(replica.position().sessions.is_empty());

    // A host put back to before that begins its second epoch again: another history.
    let recorder = open_host(before.path());
    session(&recorder, 1);
    recorder.shutdown();
    drop(recorder);
    let what = refused(replica.take(&whole(before.path())));
    assert!(what.contains("was accepted before"), "{what}");

    // An event of an epoch that ended, made with the right chain.
    let state = tempfile::tempdir().unwrap();
    let mut replica = self::replica(state.path(), before.path());
    let all = whole(before.path());
    let until = frames(&all)
        .into_iter()
        .find(|r| matches!(frame::parse(&all[r.clone()]),
            Parsed::Whole(Frame::Ledger(s), _) if s.body.windows(18).any(|w| w == b"\"kind\":\"epoch\",\"nu" )
                && s.body.windows(10).any(|w| w == b"\"number\":2")))
        .unwrap();
    replica.take(&all[..until.end]).unwrap();
    let head = replica.store().session_head(number).unwrap().unwrap();
    let mut late = Vec::new();
    frame::begin_event(&mut late, number, id, head.seq + 1, 5, "request");
    late.extend_from_slice(b"{}");
    let hash = chain::step(&head.hash, head.seq + 1, 5, "request", b"{}", b"");
    frame::finish_event(&mut late, 0, "request", b"", &hash);
    let what = refused(replica.take(&late));
    assert!(what.contains("is of an epoch that has ended"), "{what}");
    let mut new = Vec::new();
    frame::begin_event(&mut new, 2, ulid::Ulid::new(), 1, 5, "session.open");
    new.extend_from_slice(b"{}");
    frame::finish_event(&mut new, 0, "session.open", b"", &[0; 32]);
    assert!(refused(replica.take(&new)).starts_with("altered: "));
    // The rest of the honest history goes on.
    replica.take(&all).unwrap();
    is_clean(state.path(), before.path());
}

#[test]
fn a_host_that_lost_what_was_shipped_is_found() {
    let host = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let old = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    let mut left = begin(&recorder);
    fill(&mut left, 4);
    recorder.flush().unwrap();
    copy(host.path(), old.path());
    fill(&mut left, 4);
    recorder.flush().unwrap();
    let mut replica = replica(state.path(), host.path());
    ship(host.path(), &mut replica, usize::MAX);
    recorder.shutdown();
    left.abandon();
    // The machine comes back as it was some events ago.
    let _ = std::fs::remove_file(old.path().join("records.lock"));
    let recorder = open_host(old.path());
    recorder.shutdown();
    let spool = Spool::open(old.path()).unwrap();
    let batch = spool.next(&replica.position(), usize::MAX).unwrap().unwrap();
    let what = refused(replica.take(&batch.frames));
    assert!(what.contains("the host was put back to an earlier state"), "{what}");
}

#[test]
fn a_ledger_from_before_there_were_epochs_is_taken() {
    let host = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let key = HostKey::open(host.path()).unwrap();
    let fingerprint = key.public().fingerprint();
    let id = ulid::Ulid::new();
    let mut batch = Vec::new();
    let mut head = chain::start(&fingerprint, id, 1);
    for (seq, kind) in [(1, "session.open"), (2, "session.end")] {
        let at = batch.len();
        frame::begin_event(&mut batch, 1, id, seq, 7, kind);
        batch.extend_from_slice(b"{}");
        head = chain::step(&head, seq, 7, kind, b"{}", b"");
        frame::finish_event(&mut batch, at, kind, b"", &head);
    }
    let mut ledger = Head::start(key.public());
    let mut enter = |batch: &mut Vec<u8>, entry| {
        let (body, signature, next) = ledger.next(&key, 8, entry).unwrap();
        batch.extend_from_slice(&frame::ledger(&body, &signature));
        ledger = next;
    };
    let seal = |number, id: ulid::Ulid, events, head: &chain::Hash| {
        Entry::Seal(Seal {
            session: id.to_string(),
            number,
            events,
            head: chain::hex(head),
            reason: "client".into(),
            interrupted: false,
            lost_tail: None,
            problem: None,
        })
    };
    enter(&mut batch, seal(1, id, 2, &head));
    // Session 2 was deleted before there was a collector.
    let gone = seal(2, ulid::Ulid::new(), 5, &[1; 32]);
    enter(&mut batch, gone);
    let epoch = Epoch { number: 1, clean: true, next_number: 3, open: vec![], damaged: vec![] };
    enter(&mut batch, Entry::Epoch(epoch));
    let mut replica = replica(state.path(), host.path());
    let what = refused(replica.take(&batch));
    assert_eq!(what, "gap: the seal of session 2 comes, and the session is not here");
    assert!(replica.begin(2).unwrap(), "the first contact");
    assert!(!replica.begin(99).unwrap(), "only once");
    assert_eq!(replica.take(&batch).unwrap().events, 2);
    assert_eq!(replica.position().ledger, 3);
}

#[test]
fn retention_waits_for_the_collector() {
    let host = tempfile::tempdir().unwrap();
    let settings = Record { retain: Span(std::time::Duration::ZERO), ..Record::default() };
    let open = |ack| Recorder::open_shipping(host.path(), "db1", &settings, 64 << 10, ack).unwrap();
    let deleted = || {
        let db = crate::record::store::open_read_only(host.path()).unwrap();
        let left: i64 = db.query_row("SELECT count(*) FROM sessions", [], |r| r.get(0)).unwrap();
        3 - left
    };
    let recorder = open(0);
    for _ in 0..3 {
        session(&recorder, 2);
    }
    recorder.shutdown();
    drop(recorder);
    // Each start lets retention run once; the entries are 1 epoch, 2 to 4 seals.
    for (acknowledged, gone) in [(0, 0), (1, 0), (3, 2), (u64::MAX, 3)] {
        let recorder = open(acknowledged);
        recorder.flush().unwrap();
        recorder.shutdown();
        assert_eq!(deleted(), gone, "acknowledged {acknowledged}");
    }
}

// ---- over the network --------------------------------------------------------------------------

pub(super) struct Running {
    pub(super) collector: Arc<Collector>,
    pub(super) url: String,
    task: tokio::task::JoinHandle<()>,
    pub(super) state: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn config(state: &Path, more: &str) -> Config {
    let text = format!(
        "state = {:?}\norigin = \"http://localhost:1\"\n[hosts]\nlisten = \"127.0.0.1:0\"\n\
         names = [\"127.0.0.1\", \"localhost\"]\n[console]\nlisten = \"127.0.0.1:0\"\n{more}\n{}",
        state.display(),
        super::testing::store(state)
    );
    toml::from_str(&text).unwrap()
}

pub(super) async fn run() -> Running {
    run_with("").await
}

pub(super) async fn run_with(more: &str) -> Running {
    let state = tempfile::tempdir().unwrap();
    Collector::init(&config(state.path(), more)).unwrap();
    let collector = Collector::open(config(state.path(), more)).unwrap();
    let server = Server::new(Arc::clone(&collector)).await.unwrap();
    let url = format!("https://{}", server.addresses().unwrap().0);
    Running { collector, url, task: tokio::spawn(server.run()), state }
}

impl Running {
    pub(super) async fn code(&self, name: &str) -> String {
        let (name, now) = (name.to_owned(), now_us());
        let write = move |db: &crate::collector::db::Connection| {
            codes::make(db, &name, "t", now, now + 60_000_000)
        };
        self.collector.central.write(write).await.unwrap()
    }

    pub(super) async fn host(&self, name: &str) -> Host {
        let name = name.to_owned();
        let find = move |db: &crate::collector::db::Connection| hosts::find(db, &name);
        self.collector.central.read(find).await.unwrap().unwrap()
    }
}

pub(super) fn host_config(dir: &Path, url: &str) -> (crate::config::Config, Ship) {
    let text = format!("[host]\nname = \"db1\"\n[paths]\nstate = {:?}\n", dir.display());
    (toml::from_str(&text).unwrap(), Ship::at(url.to_owned()))
}

pub(super) async fn enrol(running: &Running, dir: &Path, code: &str) -> Result<String, String> {
    let (config, ship) = host_config(dir, &running.url);
    let pin = running.collector.keys.authority_pin();
    crate::ship::enrol(&config, &ship, code, &pin).await.map_err(|e| e.to_string())
}

pub(super) fn client(dir: &Path) -> reqwest::Client {
    let identity = crate::ship::Identity::load(&dir.join("ship")).unwrap().unwrap();
    crate::ship::client::enrolled(&identity).unwrap()
}

pub(super) async fn post(
    running: &Running,
    client: &reqwest::Client,
    frames: Vec<u8>,
) -> (u16, String) {
    let answer = client
        .post(format!("{}/host/v1/batch", running.url))
        .header("content-type", wire::FRAMES)
        .body(frames)
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_enrols_ships_renews_and_is_revoked() {
    let running = run().await;
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    for _ in 0..5 {
        session(&recorder, 10);
    }
    recorder.flush().unwrap();
    let code = running.code("db1").await;
    let (config, ship) = host_config(host.path(), &running.url);
    // Another authority than the pinned one is not told the code.
    let wrong = crate::ship::enrol(&config, &ship, &code, &"00".repeat(32)).await.unwrap_err();
    assert!(wrong.to_string().contains("away"), "{wrong}");
    assert!(
        enrol(&running, host.path(), "AAAAAA-AAAAAA").await.unwrap_err().contains("wrong, used")
    );
    assert_eq!(enrol(&running, host.path(), &code).await.unwrap(), "db1");
    assert!(enrol(&running, host.path(), &code).await.unwrap_err().contains("wrong, used"));

    let http = client(host.path());
    let frames = whole(host.path());
    let (status, body) = post(&running, &http, frames.clone()).await;
    assert_eq!(status, 200, "{body}");
    let standing: wire::Standing = serde_json::from_str(&body).unwrap();
    let key = VerifierKey::parse(&log_key(&running.collector).to_string()).unwrap();
    let first = log::Checkpoint::verify(standing.log.as_deref().unwrap(), &key).unwrap();
    assert_eq!(first.size, 5);
    // The same again changes nothing; the index has it once.
    assert_eq!(post(&running, &http, frames.clone()).await.0, 200);
    let rows = running
        .collector
        .central
        .read(|db| {
            db.query_row(
                "SELECT count(*), CAST(sum(events) AS BIGINT), count(sealed), \
                 CAST(sum(leaf) AS BIGINT) FROM sessions",
                [],
                |r| {
                    Ok((
                        r.get::<_, i64>(0)?,
                        r.get::<_, i64>(1)?,
                        r.get::<_, i64>(2)?,
                        r.get::<_, i64>(3)?,
                    ))
                },
            )
            .map_err(CollectorError::db("count"))
        })
        .await
        .unwrap();
    assert_eq!(rows, (5, 60, 5, 10));
    is_clean(running.state.path(), host.path());

    // An alteration is refused, written down, and marks the host.
    let ranges = self::frames(&frames);
    let (status, body) = post(&running, &http, altered(&frames, &ranges[2], None)).await;
    assert_eq!(status, 422, "{body}");
    let (status, body) = post(&running, &http, b"xxxxxxxxxxxxxxxxxxxxx".to_vec()).await;
    assert_eq!(status, 422, "{body}");
    let listed = running.collector.central.read(hosts::list).await.unwrap();
    assert!(listed[0].problem.as_deref().unwrap().starts_with("altered: "), "{listed:?}");

    // Renewal: the new certificate works, and the one before still does.
    let request = json!({ "csr_pem": csr() });
    let renew = http.post(format!("{}/host/v1/renew", running.url)).json(&request);
    assert_eq!(renew.send().await.unwrap().status(), 200);
    assert_eq!(post(&running, &http, frames.clone()).await.0, 200);

    // A third party checks one session with nothing but the log's key.
    session(&recorder, 1);
    recorder.flush().unwrap();
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
    let dir = Replica::directory(running.state.path(), &key_of(host.path()).fingerprint_hex());
    let id = Reader::of_replica(&dir).unwrap().find("3").unwrap().id;
    let state = running.state.path().to_owned();
    let proof = running
        .collector
        .central
        .read(move |db| prove::session(db, &state, None, &id))
        .await
        .unwrap()
        .unwrap();
    let proven = proof.verify(&key).unwrap();
    assert_eq!((proven.seal.number, proven.size), (3, 6));
    let mut bad = proof.clone();
    bad.seal = bad.seal.replace("\"events\":12", "\"events\":11");
    assert!(bad.verify(&key).unwrap_err().to_string().contains("altered"));
    let mut bad = proof.clone();
    bad.index = 1;
    assert!(bad.verify(&key).unwrap_err().to_string().contains("does not stand"));
    let log = running.collector.central.read(prove::check_log).await.unwrap();
    assert_eq!(log, Ok(6));

    // The host proves the same for all its sessions, and that the log was only appended to.
    let reader = Reader::open(host.path(), &|| Ok(())).unwrap();
    let proved = crate::ship::prove(&config, &ship, &reader).await.unwrap();
    assert_eq!((proved.sessions, proved.size, proved.findings.len()), (6, 6, 0));
    let again = crate::ship::prove(&config, &ship, &reader).await.unwrap();
    assert_eq!((again.before, again.size), (6, 6));
    let memory = crate::ship::Memory::open(&host.path().join("ship")).unwrap();
    let mut seen = memory.log().unwrap().unwrap();
    (seen.size, seen.root) = (5, chain::hex(&tree::empty()));
    memory.saw_log(&seen).unwrap();
    let e = crate::ship::prove(&config, &ship, &reader).await.unwrap_err().to_string();
    assert!(e.contains("the log was rewritten"), "{e}");

    // Revoked: from the next request on.
    let known = running.host("db1").await;
    let by = audit::Who::Collector;
    let revoke = move |db: &crate::collector::db::Connection| hosts::revoke(db, &known, &by);
    running.collector.central.write(revoke).await.unwrap();
    let (status, body) = post(&running, &http, frames).await;
    assert_eq!((status, body.contains("revoked")), (403, true), "{body}");
    // A new code lets it in again; certificates from before stay worthless.
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 403);
    assert_eq!(post(&running, &client(host.path()), whole(host.path())).await.0, 200);
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_and_missing_certificates_let_nobody_in() {
    let running = run().await;
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    session(&recorder, 1);
    recorder.flush().unwrap();
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    let frames = whole(host.path());

    // Without a certificate.
    let pin = chain::unhex(&running.collector.keys.authority_pin()).unwrap();
    let bare = crate::ship::client::pinned(pin).unwrap();
    let (status, body) = post(&running, &bare, frames.clone()).await;
    assert_eq!(status, 401, "{body}");

    // With one of another collector's authority, for the same host.
    let other = self::run().await;
    let pem = running.collector.keys.authority_pem().to_owned();
    let fingerprint = key_of(host.path()).fingerprint_hex();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request =
        rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let forged = authority::issue(&other.collector.keys, &request, &fingerprint).unwrap();
    let ship = host.path().join("ship");
    let keep = std::fs::read(ship.join("client.pem")).unwrap();
    std::fs::write(ship.join("client.pem"), key.serialize_pem() + &forged.pem).unwrap();
    assert_eq!(std::fs::read_to_string(ship.join("authority.pem")).unwrap(), pem);
    let send = client(host.path())
        .post(format!("{}/host/v1/batch", running.url))
        .header("content-type", wire::FRAMES)
        .body(frames.clone())
        .send()
        .await;
    assert!(send.is_err(), "the handshake fails: {send:?}");

    // With one of our authority that was never given to this host.
    let stray = authority::issue(&running.collector.keys, &request, &fingerprint).unwrap();
    std::fs::write(ship.join("client.pem"), key.serialize_pem() + &stray.pem).unwrap();
    let (status, body) = post(&running, &client(host.path()), frames.clone()).await;
    assert_eq!(status, 403, "{body}");
    std::fs::write(ship.join("client.pem"), keep).unwrap();
    assert_eq!(post(&running, &client(host.path()), frames).await.0, 200);

    // Somebody else's record key needs its own proof.
    let mut request = wire::Enrol {
        code: running.code("db2").await,
        csr_pem: csr(),
        record_key: key_of(host.path()).to_base64(),
        name: "db2".into(),
        version: "1".into(),
        proof: String::new(),
    };
    let thief = tempfile::tempdir().unwrap();
    let thief = HostKey::open(thief.path()).unwrap();
    let signed = [wire::ENROL_DOMAIN, &request.signed()].concat();
    request.proof = STANDARD.encode(thief.sign(&signed));
    let send = bare.post(format!("{}/host/v1/enrol", running.url)).json(&request).send();
    assert_eq!(send.await.unwrap().status(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_a_crash_left_behind_catches_up() {
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    for _ in 0..4 {
        session(&recorder, 2);
    }
    recorder.flush().unwrap();
    let running = run().await;
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    // Taken by the replica, and then the collector died.
    let mut replica = replica(running.state.path(), host.path());
    replica.take(&whole(host.path())).unwrap();
    drop(replica);
    let http = client(host.path());
    let standing: wire::Standing = http
        .get(format!("{}/host/v1/position", running.url))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(standing.position.ledger, 5);
    let key = log_key(&running.collector);
    let log = log::Checkpoint::verify(standing.log.as_deref().unwrap(), &key).unwrap();
    assert_eq!(log.size, 4);
    let counted = running
        .collector
        .central
        .read(|db| {
            db.query_row("SELECT CAST(sum(events) AS BIGINT), count(leaf) FROM sessions", [], |r| {
                Ok((r.get::<_, i64>(0)?, r.get::<_, i64>(1)?))
            })
            .map_err(CollectorError::db("count"))
        })
        .await
        .unwrap();
    assert_eq!(counted, (16, 4));
}

struct Quiet;

impl crate::control::ControlHandler for Quiet {
    fn status(&self) -> Answer<'_, Status> {
        Box::pin(async { Ok(Status { version: "9.9.9".into(), ..Status::default() }) })
    }
    fn drain(&self) -> Answer<'_, Drained> {
        Box::pin(async { Ok(Drained::default()) })
    }
    fn policy_reload(&self) -> Answer<'_, PolicyStatus> {
        Box::pin(async { Ok(PolicyStatus::default()) })
    }
    fn live_sessions(&self) -> Answer<'_, Vec<LiveSession>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn kill(
        &self,
        _: crate::session::Target,
        _: String,
    ) -> Answer<'_, crate::control::protocol::Killed> {
        Box::pin(async { Ok(crate::control::protocol::Killed::default()) })
    }
    fn metrics(&self) -> Answer<'_, String> {
        Box::pin(async { Ok(String::new()) })
    }
}

async fn soon(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done().await {
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_thread_ships_renews_and_says_how_far_it_is() {
    let running = run().await;
    let host = tempfile::tempdir().unwrap();
    let (mut config, ship) = host_config(host.path(), &running.url);
    config.ship = Some(ship);
    let recorder = Recorder::open(&config).unwrap();
    for _ in 0..3 {
        session(&recorder, 50);
    }
    // One that is open, so that the collector's answers name it.
    let mut open = begin(&recorder);
    fill(&mut open, 5);
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    // A certificate whose life is half over.
    let ship = host.path().join("ship");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let now = time::OffsetDateTime::now_utc();
    let life = (now - time::Duration::hours(2), now + time::Duration::hours(1));
    let fingerprint = key_of(host.path()).fingerprint_hex();
    let request = request.pem().unwrap();
    let old = authority::issue_for(&running.collector.keys, &request, &fingerprint, life).unwrap();
    std::fs::write(ship.join("client.pem"), key.serialize_pem() + &old.pem).unwrap();
    let id = running.host("db1").await.id;
    running.collector.central.write(move |db| hosts::keep(db, id, &old)).await.unwrap();

    let shipping =
        Shipper::start(&config, Arc::clone(&recorder), Arc::new(Quiet)).unwrap().unwrap();
    soon("all events to arrive", async || {
        let listed = running.collector.central.read(hosts::list).await.unwrap();
        listed[0].events == 162 && listed[0].version.as_deref() == Some("9.9.9")
    })
    .await;
    let identity = crate::ship::Identity::load(&ship).unwrap().unwrap();
    let days = |n: u64| std::time::SystemTime::now() + std::time::Duration::from_secs(n * 86_400);
    assert!(
        !identity.is_due(days(14)) && identity.is_due(days(16)),
        "renewed: {:?}",
        identity.life
    );
    assert!(!identity.is_over(days(29)) && identity.is_over(days(31)));
    soon("the state to say so", async || {
        let s = shipping.status();
        s.connected && s.waiting_events == 0 && s.acknowledged_ledger == 4
    })
    .await;
    assert_eq!(shipping.status().shipped_events, 162);
    // Acknowledged and going on: the open session grows and ends.
    fill(&mut open, 5);
    open.seal(&End::because("client")).unwrap();
    soon("the rest to arrive", async || {
        let listed = running.collector.central.read(hosts::list).await.unwrap();
        listed[0].events == 168 && shipping.status().acknowledged_ledger == 5
    })
    .await;
    is_clean(running.state.path(), host.path());
}
