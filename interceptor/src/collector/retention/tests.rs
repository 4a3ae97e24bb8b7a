//! What retention promises, tried with a real store on the host's side and a real replica here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::collector::db::Connection;
use serde_json::json;

use super::legal_holds::{self, HoldError, LegalHold, Wanted};
use super::policy::DAY_US;
use super::sweep::{self, Swept};
use super::*;
use crate::collector::console::find::{self, Found, One};
use crate::collector::hosts::{self, Host};
use crate::collector::ship_tests::{
    altered, begin, client, config, enrol, fill, frames, host_config, is_clean, key_of, open_host,
    post, run_with, session, whole,
};
use crate::collector::testing::known_host;
use crate::collector::{Refuse, Replica, audit, ingest, log_key, prove};
use crate::record::event::{Body, Event, IdentityProven, Opening};
use crate::record::{End, Reader, RecordError, Recorder};

const MONTH: &str = "[retention]\ndays = 30\n";

/// A host's store and a collector, without a network between them.
struct Bed {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
    recorder: Arc<Recorder>,
    collector: Arc<Collector>,
    more: String,
    host: Host,
}

impl Bed {
    async fn new(more: &str) -> Self {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let recorder = open_host(dir.path());
        Collector::init(&config(state.path(), more)).unwrap();
        let collector = Collector::open(config(state.path(), more)).unwrap();
        let host = known_host(&collector, &key_of(dir.path())).await;
        Self { dir, state, recorder, collector, more: more.into(), host }
    }

    /// The collector dies, and another comes up on the same state.
    fn restarted(self) -> Self {
        let Self { dir, state, recorder, collector, more, host } = self;
        assert_eq!(Arc::strong_count(&collector), 1);
        drop(collector);
        let collector = Collector::open(config(state.path(), &more)).unwrap();
        Self { dir, state, recorder, collector, more, host }
    }

    async fn take(&self, frames: Vec<u8>) -> Result<(), Refuse> {
        ingest::take(&self.collector, &self.host, frames.into()).await.map(drop)
    }

    /// Everything of the host, from its first event.
    async fn ship(&self) {
        self.recorder.flush().unwrap();
        self.take(whole(self.dir.path())).await.unwrap();
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, CollectorError> + Send + 'static,
    ) -> T {
        self.collector.central.read(read).await.unwrap()
    }

    async fn number(&self, sql: &'static str) -> i64 {
        self.read(move |db| db.query_row(sql, [], |r| r.get(0)).map_err(CollectorError::db("ask")))
            .await
    }

    async fn sweep(&self, days: i64) -> Swept {
        sweep(&self.collector, now_us() + days * DAY_US).await.unwrap()
    }

    async fn found(&self, number: u64) -> Found {
        let id = (self.host.id << 32) | number as i64;
        match self.read(move |db| find::one(db, &id.to_string())).await {
            One::Found(found) => *found,
            other => panic!("{other:?}"),
        }
    }

    fn replica(&self) -> PathBuf {
        Replica::directory(self.state.path(), &self.host.fingerprint)
    }

    fn reader(&self) -> Reader {
        Reader::of_replica(&self.replica()).unwrap()
    }

    /// Events of a session that the replica has.
    fn events(&self, number: u64) -> u64 {
        let mut events = 0;
        self.reader().events(number, 0, |_| events += 1).unwrap();
        events
    }

    async fn place(&self, wanted: Wanted) -> Result<LegalHold, HoldError> {
        let place = move |db: &Connection| legal_holds::place(db, wanted, &Who::Collector);
        self.collector.central.write(place).await
    }

    async fn release(&self, id: i64) -> Result<LegalHold, HoldError> {
        let end = move |db: &Connection| legal_holds::release(db, id, "closed", &Who::Collector);
        self.collector.central.write(end).await
    }

    /// Whatever happened, both sides verify: nothing looks altered, every deletion is recorded.
    async fn is_sound(&self) {
        is_clean(self.state.path(), self.dir.path());
        let state = self.state.path().to_owned();
        let (log, trail, deletions) = self
            .read(move |db| {
                Ok((prove::check_log(db)?, audit::verify(db)?, check(db, &state, None)?))
            })
            .await;
        assert!(log.is_ok(), "{log:?}");
        assert_eq!(trail, None);
        let marked = self.number("SELECT count(*) FROM sessions WHERE deleted_us > 0").await;
        assert_eq!(deletions, Ok(marked as u64));
    }
}

/// A sealed session of somebody; its number.
fn session_of(recorder: &Recorder, service: &str, agent: &str, opened_us: i64) -> u64 {
    let opening = Opening {
        id: ulid::Ulid::new(),
        ts_us: opened_us,
        host: "db1".into(),
        service: service.to_owned().into(),
        protocol: "postgres".into(),
        source: "10.0.0.1:4711".into(),
        original_dst: "10.0.0.2:5432".into(),
        mode: "enforce".into(),
        peer_uid: None,
    };
    let mut log = recorder.begin(opening).unwrap();
    let proven = IdentityProven {
        agent: agent.to_owned().into(),
        principal: Cow::Owned(format!("owner-of-{agent}")),
        issuer: "okta".into(),
        labels: BTreeMap::new(),
        claims: json!({}),
        pinned_new: false,
        source_key: "10.0.0.1".into(),
        expires_at: 0,
        proven: true,
        way: None,
    };
    let body = serde_json::to_value(&proven).unwrap();
    let event = Event { ts_us: opened_us + 1, kind: IdentityProven::KIND, body: &body, data: b"" };
    log.append(&event).unwrap();
    let number = log.number();
    log.seal(&End::because("client")).unwrap();
    number
}

fn why(reason: &str) -> Wanted {
    Wanted { reason: reason.into(), ..Wanted::default() }
}

fn some(text: &str) -> Option<String> {
    Some(text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_sealed_and_old_goes_and_all_proofs_stay() {
    let bed = Bed::new(MONTH).await;
    for _ in 0..3 {
        session(&bed.recorder, 20);
    }
    let mut open = begin(&bed.recorder);
    fill(&mut open, 5);
    bed.ship().await;
    let id = bed.found(2).await.session.clone();
    assert_eq!(bed.sweep(29).await, Swept::default());
    let preview = bed
        .read(|db| {
            sweep::preview(db, &toml::from_str("days = 30").unwrap(), now_us() + 31 * DAY_US)
        })
        .await;
    assert_eq!((preview.sessions, preview.events, preview.held), (3, 66, 0));
    assert_eq!(preview.groups[0].policy, "default, 30 days");

    let swept = bed.sweep(31).await;
    assert_eq!((swept.sessions, swept.events, swept.altered), (3, 66, 0));
    assert!(swept.bytes > 60 * 20, "{swept:?}");
    assert_eq!(bed.sweep(31).await, Swept::default(), "nothing is left to do");
    assert_eq!((bed.events(1), bed.events(4)), (0, 6), "the open one is whole");
    bed.is_sound().await;
    assert_eq!(bed.number("SELECT count(*) FROM sessions WHERE purged_us > 0").await, 3);

    // The room is given back.
    let db = rusqlite::Connection::open(bed.replica().join("records.db")).unwrap();
    let pragma = |name| db.pragma_query_value(None, name, |r| r.get::<_, i64>(0)).unwrap();
    assert_eq!((pragma("auto_vacuum"), pragma("freelist_count")), (2, 0));
    drop(db);
    // Its contents are nowhere on the disk, and it says so.
    for file in ["records.db", "records.db-wal"] {
        let bytes = std::fs::read(bed.replica().join(file)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("select 19 from orders"), "{file}");
    }
    let found = bed.found(2).await;
    assert_eq!(found.deleted_policy.as_deref(), Some("default, 30 days"));
    let refused = found.reader(&bed.collector).err().unwrap();
    assert!(refused.to_string().contains("was deleted by retention on 20"), "{refused}");

    // The audit trail names each.
    let detail = bed
        .read(|db| {
            db.query_row("SELECT detail FROM audit WHERE what = 'retention.deleted'", [], |r| {
                r.get::<_, String>(0)
            })
            .map_err(CollectorError::db("read"))
        })
        .await;
    let detail: serde_json::Value = serde_json::from_str(&detail).unwrap();
    assert_eq!((&detail["count"], &detail["events"]), (&json!(3), &json!(66)));
    assert_eq!(detail["sessions"][1]["session"], id);

    // A third party's proof of a deleted session holds.
    let state = bed.state.path().to_owned();
    let proof = bed.read(move |db| prove::session(db, &state, None, &id)).await.unwrap();
    assert_eq!(proof.verify(&log_key(&bed.collector)).unwrap().seal.number, 2);

    // The open one ends, and goes in its own time.
    open.seal(&End::because("client")).unwrap();
    bed.ship().await;
    assert_eq!(bed.sweep(31).await.sessions, 1);
    bed.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_clock_makes_nothing_old() {
    let bed = Bed::new(MONTH).await;
    // It says that this was in 1970.
    session_of(&bed.recorder, "orders-db", "billing-bot", 1);
    bed.ship().await;
    assert_eq!(bed.found(1).await.opened_us, 1);
    assert_eq!(bed.sweep(29).await.sessions, 0);
    // Nor does what it sends again later count anew.
    bed.ship().await;
    assert_eq!(bed.sweep(31).await.sessions, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_legal_hold_keeps_stays_until_it_is_released() {
    let bed = Bed::new(MONTH).await;
    let now = now_us();
    session_of(&bed.recorder, "orders-db", "billing-bot", now);
    session_of(&bed.recorder, "orders-db", "other-bot", now);
    session_of(&bed.recorder, "shell", "third-bot", now);
    bed.ship().await;
    let first = bed.found(1).await.session.clone();

    let by_session = bed.place(Wanted { session: Some(first), ..why("case 17") }).await.unwrap();
    let by_agent = bed.place(Wanted { agent: some("other-bot"), ..why("case 18") }).await.unwrap();
    assert_eq!((by_session.keeps, by_agent.keeps), (1, 1));
    assert!(bed.found(1).await.legal_hold && !bed.found(3).await.legal_hold);
    assert_eq!(bed.sweep(31).await.sessions, 1, "the third alone");
    assert_eq!((bed.events(1), bed.events(2), bed.events(3)), (3, 3, 0));

    // A session that comes later falls under it too.
    session_of(&bed.recorder, "orders-db", "other-bot", now);
    bed.ship().await;
    assert_eq!(bed.sweep(3000).await.sessions, 0);
    let kept = bed.read(|db| legal_holds::of_session(db, (1 << 32) | 4)).await;
    assert_eq!((kept.len(), kept[0].id), (1, by_agent.id));
    let preview = bed
        .read(|db| {
            sweep::preview(db, &toml::from_str("days = 30").unwrap(), now_us() + 31 * DAY_US)
        })
        .await;
    assert_eq!((preview.sessions, preview.held), (0, 3));

    // One of two that keep a session is not enough to let it go.
    let by_service =
        bed.place(Wanted { service: some("orders-db"), ..why("case 19") }).await.unwrap();
    assert_eq!(by_service.keeps, 3);
    let released = bed.release(by_agent.id).await.unwrap();
    assert_eq!(released.release_reason.as_deref(), Some("closed"));
    assert!(matches!(bed.release(by_agent.id).await, Err(HoldError::Released(_))));
    assert_eq!(bed.sweep(31).await.sessions, 0);
    bed.release(by_service.id).await.unwrap();
    assert_eq!(bed.sweep(31).await.sessions, 2);
    bed.release(by_session.id).await.unwrap();
    assert_eq!(bed.sweep(31).await.sessions, 1);
    bed.is_sound().await;
    let told = bed
        .number(
            "SELECT count(*) FROM audit WHERE what LIKE 'legal_hold.%' AND detail LIKE '%case 1%'",
        )
        .await;
    assert_eq!(told, 3);
    assert_eq!(bed.number("SELECT count(*) FROM audit WHERE what LIKE 'legal_hold.%'").await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_of_host_principal_and_time_hold_what_a_lying_host_would_move_out() {
    let bed = Bed::new(MONTH).await;
    let now = now_us();
    // Now, as it is; and one that says it was in 1970.
    session_of(&bed.recorder, "orders-db", "billing-bot", now);
    session_of(&bed.recorder, "orders-db", "billing-bot", 1);
    bed.ship().await;
    let wanted: [(Wanted, u64); 7] = [
        (Wanted { host: some("db1"), ..why("x") }, 2),
        (Wanted { host: some(&bed.host.fingerprint[..12]), ..why("x") }, 2),
        (Wanted { principal: some("owner-of-billing-bot"), ..why("x") }, 2),
        (Wanted { principal: some("owner-of-billing-bot"), service: some("shell"), ..why("x") }, 0),
        (Wanted { from_us: Some(now - DAY_US), to_us: Some(now + DAY_US), ..why("x") }, 2),
        (Wanted { to_us: Some(DAY_US), ..why("x") }, 1),
        (Wanted { from_us: Some(now + DAY_US), ..why("x") }, 0),
    ];
    for (wanted, keeps) in wanted {
        let said = format!("{wanted:?}");
        let hold = bed.place(wanted).await.unwrap();
        assert_eq!(hold.keeps, keeps, "{said}");
        let preview = bed
            .read(|db| {
                sweep::preview(db, &toml::from_str("days = 1").unwrap(), now_us() + 2 * DAY_US)
            })
            .await;
        assert_eq!(preview.held, keeps, "{said}");
        bed.release(hold.id).await.unwrap();
    }
    for (wanted, words) in [
        (why("x"), "say what to hold"),
        (Wanted { agent: some(" "), ..why("x") }, "say what to hold"),
        (Wanted { agent: some("a"), ..why("  ") }, "say why"),
        (Wanted { host: some("db7"), ..why("x") }, "no host is called"),
        (Wanted { session: some("01J"), ..why("x") }, "no session"),
        (Wanted { session: some("4294967297"), agent: some("a"), ..why("x") }, "either one"),
        (Wanted { from_us: Some(5), to_us: Some(4), ..why("x") }, "from is after to"),
        (Wanted { agent: Some("a".repeat(301)), ..why("x") }, "at most 300"),
    ] {
        let refused = bed.place(wanted).await.unwrap_err();
        assert!(matches!(refused, HoldError::Invalid(_)), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    // What is gone cannot be held any more.
    assert_eq!(bed.sweep(31).await.sessions, 2);
    let late = bed.place(Wanted { session: some("4294967297"), ..why("x") }).await;
    assert!(matches!(late, Err(HoldError::Deleted)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_forward_has_not_passed_on_stays_however_old() {
    let more = format!("{MONTH}[[forward]]\nname = 'siem'\nto = 'file'\npath = '/nowhere/x'\n");
    let bed = Bed::new(&more).await;
    session(&bed.recorder, 3);
    session(&bed.recorder, 3);
    bed.ship().await;
    // It has not begun, or is away.
    assert_eq!(bed.sweep(31).await.sessions, 0);
    let behind_the_first = r#"{"done":[[1,1]],"open":{"2":4}}"#;
    let stands = move |db: &Connection| {
        let sql = "INSERT INTO forward_cursors (forward, host, cursor, passed) \
                   VALUES ('siem', 1, ?1, 0)";
        db.execute(sql, [behind_the_first]).map_err(CollectorError::db("stand"))
    };
    bed.collector.central.write(stands).await.unwrap();
    assert_eq!(bed.sweep(31).await.sessions, 1);
    assert_eq!((bed.events(1), bed.events(2)), (0, 5));
    let all = |db: &Connection| {
        let sql = r#"UPDATE forward_cursors SET cursor = '{"done":[],"open":{"2":5}}'"#;
        db.execute(sql, []).map_err(CollectorError::db("stand"))
    };
    bed.collector.central.write(all).await.unwrap();
    assert_eq!(bed.sweep(31).await.sessions, 1);
    bed.is_sound().await;
}

/// What stands between the steps: killed after each, and going on.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_nothing_goes_unrecorded_or_looks_altered() {
    for killed_after in ["decide", "bury", "some", "remove"] {
        let bed = Bed::new(MONTH).await;
        for _ in 0..4 {
            session(&bed.recorder, 30);
        }
        bed.ship().await;
        let now = now_us() + 31 * DAY_US;
        let old = bed.read(move |db| sweep::portion(db, -1, now)).await;
        let terms = sweep::compiled(&bed.collector.config.retention).unwrap();
        let old = sweep::old_by_host(old, &terms, now).remove(&bed.host.id).unwrap();
        assert_eq!(sweep::decide(&bed.collector, &bed.host, old, now).await.unwrap(), 4);
        let (collector, host) = (&bed.collector, &bed.host);
        if killed_after != "decide" {
            let marked = bed.read(|db| sweep::marked(db, 1)).await;
            assert_eq!(sweep::bury(collector, host, marked).await.unwrap(), [1, 2, 3, 4]);
        }
        if killed_after == "some" {
            let some = |r: &Replica| r.store().remove_buried(40, u64::MAX);
            let removed = ingest::with_replica(collector, host, some).await.unwrap();
            assert_eq!((removed.events, removed.finished), (40, false));
            assert_eq!((bed.events(1), bed.events(2), bed.events(3)), (0, 24, 32));
        }
        if killed_after == "remove" {
            assert_eq!(sweep::remove(collector, host).await.unwrap().events, 128);
        }
        let bed = bed.restarted();
        bed.is_sound().await;
        for number in 1..=4 {
            let read = bed.found(number).await.reader(&bed.collector);
            assert!(matches!(read, Err(RecordError::Deleted { .. })), "{killed_after}");
        }
        // The host sends everything again, before the deletion has gone on.
        bed.ship().await;
        bed.is_sound().await;
        let swept = bed.sweep(31).await;
        assert_eq!(swept.sessions, 0, "{killed_after}: decided once");
        let left = match killed_after {
            // Who follows a feed goes on with a deletion by itself.
            _ if bed.collector.feed.is_some() && killed_after != "decide" => 0,
            "remove" => 0,
            "some" => 88,
            _ => 128,
        };
        assert_eq!(swept.events, left, "{killed_after}");
        let open = bed.number("SELECT count(*) FROM sessions WHERE purged_us IS NULL").await;
        assert_eq!(open, 0, "{killed_after}");
        assert_eq!((1..=4).map(|n| bed.events(n)).sum::<u64>(), 0);
        let entries = "SELECT count(*) FROM audit WHERE what = 'retention.deleted'";
        assert_eq!(bed.number(entries).await, 1, "{killed_after}");
        bed.is_sound().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_nobody_recorded_is_found() {
    let bed = Bed::new(MONTH).await;
    session(&bed.recorder, 3);
    session(&bed.recorder, 3);
    bed.ship().await;
    let burial =
        crate::record::tombstones::Burial { number: 1, deleted_us: 5, policy: "mine".into() };
    let bury = move |r: &Replica| r.store().bury(&[burial]);
    ingest::with_replica(&bed.collector, &bed.host, bury).await.unwrap();
    let remove = |r: &Replica| r.store().remove_buried(100, u64::MAX);
    ingest::with_replica(&bed.collector, &bed.host, remove).await.unwrap();
    let state = bed.state.path().to_owned();
    let found = bed.read(move |db| check(db, &state, None)).await.unwrap_err();
    assert!(found.starts_with("the events of session 1 of host"), "{found}");
    // The database refuses what no retention may do.
    let bad = bed
        .collector
        .central
        .write(|db| {
            db.execute("UPDATE sessions SET sealed = NULL WHERE number = 2", [])
                .and_then(|_| db.execute("UPDATE sessions SET deleted_us = 1 WHERE number = 2", []))
                .map(drop)
                .map_err(CollectorError::db("cheat"))
        })
        .await;
    assert!(format!("{bad:?}").contains("sealed sessions only"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_was_sealed_stays_as_evidence() {
    let bed = Bed::new(MONTH).await;
    session(&bed.recorder, 3);
    session(&bed.recorder, 3);
    bed.ship().await;
    let db = rusqlite::Connection::open(bed.replica().join("records.db")).unwrap();
    db.execute_batch(
        "DROP TRIGGER events_keep; \
         UPDATE events SET body = replace(body, 'orders', '0rders') WHERE id = (1 << 31) + 3",
    )
    .unwrap();
    drop(db);
    let swept = bed.sweep(31).await;
    assert_eq!((swept.sessions, swept.altered), (1, 1));
    assert_eq!((bed.events(1), bed.events(2)), (5, 0));
    let listed = bed.read(hosts::list).await;
    let problem = listed[0].problem.as_deref().unwrap();
    assert!(problem.contains("retention keeps them: 1"), "{problem}");
    bed.sweep(31).await;
    let said = "SELECT count(*) FROM audit WHERE what = 'host.problem'";
    assert_eq!(bed.number(said).await, 1, "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_again_after_its_deletion_is_acknowledged_and_not_stored() {
    let bed = Bed::new(MONTH).await;
    session(&bed.recorder, 6);
    session(&bed.recorder, 6);
    bed.ship().await;
    assert_eq!(bed.sweep(31).await.sessions, 2);
    let bed = bed.restarted();
    let good = whole(bed.dir.path());
    bed.take(good.clone()).await.unwrap();
    assert_eq!((bed.events(1), bed.events(2)), (0, 0));
    let parts = frames(&good);
    // Its beginning and its end are still known.
    let event = |seq: u64| {
        let is = |r: &std::ops::Range<usize>| {
            use crate::record::frame::{Frame, Parsed, parse};
            matches!(parse(&good[r.clone()]),
                Parsed::Whole(Frame::Event(e), _) if (e.number, e.seq) == (1, seq))
        };
        parts.iter().position(is).unwrap()
    };
    let mut other_end = good[parts[event(8)].clone()].to_vec();
    {
        use crate::record::frame::{self, Frame, Parsed};
        let Parsed::Whole(Frame::Event(e), _) = frame::parse(&good[parts[event(8)].clone()]) else {
            panic!()
        };
        for (seq, hash) in [(8, [7; 32]), (9, [7; 32])] {
            let mut out = Vec::new();
            frame::begin_event(&mut out, 1, e.session, seq, e.ts_us, e.kind);
            out.extend_from_slice(e.body);
            frame::finish_event(&mut out, 0, e.kind, e.data, &hash);
            other_end = out;
            assert!(bed.take(other_end.clone()).await.is_err(), "event {seq}");
        }
    }
    drop(other_end);
    // A first event with another body.
    let first = altered_first(&good, &parts[event(1)]);
    assert!(bed.take(first).await.is_err());
    // The session after them is taken as ever.
    session(&bed.recorder, 2);
    bed.ship().await;
    assert_eq!(bed.events(3), 4);
    bed.is_sound().await;
}

fn altered_first(good: &[u8], range: &std::ops::Range<usize>) -> Vec<u8> {
    use crate::record::frame::{self, Frame, Parsed};
    let same = altered(good, range, None);
    let Parsed::Whole(Frame::Event(e), _) = frame::parse(&same) else { panic!() };
    let body = String::from_utf8(e.body.to_vec()).unwrap().replace("enforce", "observe");
    let mut out = Vec::new();
    frame::begin_event(&mut out, 1, e.session, 1, e.ts_us, e.kind);
    out.extend_from_slice(body.as_bytes());
    frame::finish_event(&mut out, 0, e.kind, e.data, &e.hash);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_with_an_old_backup_of_a_replica_goes_again() {
    let bed = Bed::new(MONTH).await;
    session(&bed.recorder, 6);
    session(&bed.recorder, 6);
    bed.ship().await;
    let backup = tempfile::tempdir().unwrap();
    let file = backup.path().join("records.db");
    rusqlite::Connection::open(bed.replica().join("records.db"))
        .unwrap()
        .execute("VACUUM INTO ?1", [file.to_str().unwrap()])
        .unwrap();
    assert_eq!(bed.sweep(31).await.sessions, 2);
    let replica = bed.replica();
    let bed = {
        let Bed { dir, state, recorder, collector, more, host } = bed;
        drop(collector);
        for name in ["records.db", "records.db-wal", "records.db-shm"] {
            let _ = std::fs::remove_file(replica.join(name));
        }
        std::fs::copy(&file, replica.join("records.db")).unwrap();
        let collector = Collector::open(config(state.path(), &more)).unwrap();
        Bed { dir, state, recorder, collector, more, host }
    };
    assert_eq!((bed.events(1), bed.events(2)), (8, 8));
    let read = bed.found(1).await.reader(&bed.collector);
    assert!(matches!(read, Err(RecordError::Deleted { .. })), "not shown all the same");
    sweep::find_restored(&bed.collector).await.unwrap();
    let swept = bed.sweep(31).await;
    // A shared database has already told it what was deleted.
    let again = if bed.collector.feed.is_some() { 0 } else { 16 };
    assert_eq!((swept.sessions, swept.events), (0, again));
    assert_eq!((bed.events(1), bed.events(2)), (0, 0));
    bed.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_written_down_before_it_counts() {
    let bed = Bed::new(MONTH).await;
    let policy = bed.collector.config.retention.clone();
    for policy in [Retention::default(), policy.clone(), policy] {
        let note = move |db: &Connection| note_policy(db, &policy);
        bed.collector.central.write(note).await.unwrap();
    }
    let said = "SELECT count(*) FROM audit WHERE what = 'retention.policy' AND detail LIKE '%30%'";
    assert_eq!(bed.number(said).await, 1);
    assert_eq!(bed.number("SELECT count(*) FROM audit").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_own_proof_says_what_was_deleted_when() {
    let running = run_with(MONTH).await;
    let host = tempfile::tempdir().unwrap();
    let recorder = open_host(host.path());
    session(&recorder, 4);
    session(&recorder, 4);
    recorder.flush().unwrap();
    let code = running.code("db1").await;
    enrol(&running, host.path(), &code).await.unwrap();
    let http = client(host.path());
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
    let (settings, ship) = host_config(host.path(), &running.url);
    let reader = Reader::open(host.path(), &|| Ok(())).unwrap();
    crate::ship::prove(&settings, &ship, &reader).await.unwrap();
    let place = |db: &Connection| {
        let wanted = Wanted { session: some("4294967297"), ..why("case 17") };
        legal_holds::place(db, wanted, &Who::Collector)
    };
    running.collector.central.write(place).await.unwrap();
    let then = now_us() + 31 * DAY_US;
    assert_eq!(sweep(&running.collector, then).await.unwrap().sessions, 1);

    // The host ships the same again over the network, and asks whether all is as it should be.
    assert_eq!(post(&running, &http, whole(host.path())).await.0, 200);
    let proved = crate::ship::prove(&settings, &ship, &reader).await.unwrap();
    assert_eq!((proved.sessions, proved.findings.len(), proved.deleted), (2, 0, 1));
    assert_eq!((proved.deletions[0].number, proved.deletions[0].deleted_us), (2, then));
    is_clean(running.state.path(), host.path());
    let known = running.host("db1").await;
    let standing = running.collector.central.read(standing).await.unwrap();
    assert_eq!((standing.sessions, standing.pending, standing.legal_holds), (1, 0, 1));
    assert!(standing.oldest_us.is_some_and(|us| us > 0) && standing.bytes > 0, "{known:?}");
}
