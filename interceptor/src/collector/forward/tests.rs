//! Other systems get every event that they want, also after kills, and when they were away.

mod ground;
mod receivers;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::collector::testing::Bed;
use crate::record::End;
use crate::record::store::event_id;
use ground::{Pki, Seen, Shipping, append, left, request, soon, standing};
use receivers::{Manner, Otlp, syslog};

fn archive(path: &Path, more: &str) -> String {
    format!("[[forward]]\nname = 'archive'\nto = 'file'\npath = {path:?}\n{more}\n")
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn seen(path: &Path) -> Seen {
    let all = lines(path);
    Seen::of(all.iter().map(String::as_str))
}

/// OCSF events of a session with so many requests: its identity, each request, each answer.
fn expected(requests: usize) -> usize {
    1 + 2 * requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_every_event_once_and_its_place_in_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    let bed = Bed::new(&archive(&path, "from = 'start'")).await;
    let (a, b) = (Shipping::new(&bed, "a").await, Shipping::new(&bed, "b").await);
    a.session(3);
    b.session(2);
    let mut open = a.begin("postgres");
    request(&mut open, 1);
    open.commit().unwrap().wait().unwrap();
    let mut ssh = b.begin("ssh");
    append(
        &mut ssh,
        "request",
        &json!({ "n": 1, "verdict": "allow", "class": "exec",
        "ch": 0, "text": "uptime" }),
    );
    append(&mut ssh, "channel.exit", &json!({ "ch": 0, "n": 1, "status": 3 }));
    ssh.seal(&End::because("client")).unwrap();
    a.ship(&bed).await;
    b.ship(&bed).await;
    let first = expected(3) + expected(2) + expected(1) + 4;
    soon("the first events", async || seen(&path).by_uid.len() == first).await;

    // An open session goes on, and a line that was cut short stays a line of its own.
    request(&mut open, 2);
    open.seal(&End::because("client")).unwrap();
    a.ship(&bed).await;
    soon("the rest", async || seen(&path).by_uid.len() == first + 2).await;
    soon("the cursor", async || left(&bed, "archive").await == 0).await;
    let all = seen(&path);
    assert_eq!(all.repeats, 0);
    assert_eq!(all.classes(), [1007, 3002, 4007, 6005].into());
    assert_eq!(standing(&bed, "archive").delivered as usize, first + 2);

    for event in all.by_uid.values() {
        let uid = event["metadata"]["uid"].as_str().unwrap();
        let (session, seq) = uid.split_once(':').unwrap();
        let one = &event["unmapped"]["record_integrity"]["attestation_list"][0];
        assert_eq!((&one["uid"], &one["chain_uid"]), (&json!(uid), &json!(session)));
        assert_eq!(one["fingerprint"]["value"].as_str().unwrap().len(), 64);
        assert_eq!(one["authority_uid"].as_str().unwrap().len(), 64);
        // The event before stands there too, when it has an OCSF event of its own.
        let before = format!("{session}:{}", seq.parse::<u64>().unwrap() - 1);
        assert_eq!(one["prev_event"]["uid"], before.as_str());
        if let Some(before) = all.by_uid.get(&before) {
            let hash = &before["unmapped"]["record_integrity"]["attestation_list"][0];
            assert_eq!(one["prev_event"]["fingerprint"], hash["fingerprint"]);
        }
        assert_eq!(event["actor"]["user"]["uid"], "00u1", "{event}");
    }
    let answer = all.by_uid.values().find(|e| e["unmapped"]["answer"] == true).unwrap();
    assert!(answer["duration"].is_number());
    let exits: Vec<&Value> = all.by_uid.values().filter(|e| e["type_uid"] == 100_702).collect();
    assert_eq!(exits.len(), 1);
    assert_eq!(exits[0]["exit_code"], 3);
    assert_eq!(exits[0]["process"]["cmd_line"], "uptime");
    assert_eq!(exits[0]["status_id"], 2);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.is_ascii() && text.contains("\\u00fcbersicht"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_may_be_rotated_deleted_and_full_of_half_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    std::fs::write(&path, "{\"half\":").unwrap();
    let bed = Bed::new(&archive(&path, "from = 'start'")).await;
    let a = Shipping::new(&bed, "a").await;
    a.session(2);
    a.ship(&bed).await;
    soon("the first session", async || lines(&path).len() == 1 + expected(2)).await;
    assert_eq!(lines(&path)[0], "{\"half\":");
    // A batch that is taken away before its cursor has moved comes again.
    let through = async || soon("the cursor", async || left(&bed, "archive").await == 0).await;
    through().await;

    let rotated = dir.path().join("ocsf.jsonl.1");
    std::fs::rename(&path, &rotated).unwrap();
    a.session(1);
    a.ship(&bed).await;
    soon("the second, in a new file", async || seen(&path).by_uid.len() == expected(1)).await;
    assert_eq!(lines(&rotated).len(), 1 + expected(2));
    through().await;

    std::fs::remove_file(&path).unwrap();
    a.session(3);
    a.ship(&bed).await;
    soon("the third, in a new file", async || seen(&path).by_uid.len() == expected(3)).await;
    through().await;

    // Nobody chooses by a link what is written, and it goes on when that is over.
    let mine = dir.path().join("mine");
    std::fs::write(&mine, "").unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&mine, &path).unwrap();
    a.session(1);
    a.ship(&bed).await;
    soon("a failure", async || standing(&bed, "archive").failing).await;
    assert_eq!(std::fs::read(&mine).unwrap(), b"");
    assert!(left(&bed, "archive").await > 0);
    std::fs::remove_file(&path).unwrap();
    soon("the fourth", async || seen(&path).by_uid.len() == expected(1)).await;
    soon("the end", async || !standing(&bed, "archive").failing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_repeat_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    let config = archive(&path, "from = 'start'");
    let mut bed = Bed::new(&config).await;
    let a = Shipping::new(&bed, "a").await;
    let mut open = a.begin("postgres");
    request(&mut open, 1);
    open.commit().unwrap().wait().unwrap();
    // Killed whenever something more was written, with its cursor or without.
    for _ in 0..4 {
        let before = lines(&path).len();
        for _ in 0..15 {
            a.session(100);
        }
        a.ship(&bed).await;
        soon("more lines", async || lines(&path).len() > before).await;
        bed = bed.restarted(&config).await;
    }
    request(&mut open, 2);
    open.seal(&End::because("client")).unwrap();
    a.ship(&bed).await;
    let all = 60 * expected(100) + expected(2);
    soon("all events", async || seen(&path).by_uid.len() == all).await;
    soon("the cursor", async || left(&bed, "archive").await == 0).await;
    // The cursor stands: after another start nothing comes twice.
    let length = lines(&path).len();
    let bed = bed.restarted(&config).await;
    a.session(1);
    a.ship(&bed).await;
    soon("the last", async || seen(&path).by_uid.len() == all + expected(1)).await;
    assert_eq!(lines(&path).len(), length + expected(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_forward_begins_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    let bed = Bed::new("").await;
    let a = Shipping::new(&bed, "a").await;
    a.session(5);
    let mut open = a.begin("postgres");
    request(&mut open, 1);
    open.commit().unwrap().wait().unwrap();
    a.ship(&bed).await;

    let config = archive(&path, "classes = ['datastore_activity']");
    let bed = bed.restarted(&config).await;
    soon("its beginning", async || left(&bed, "archive").await == 0).await;
    request(&mut open, 2);
    open.seal(&End::because("client")).unwrap();
    a.session(1);
    a.ship(&bed).await;
    // A host that comes later is new as a whole.
    let b = Shipping::new(&bed, "b").await;
    b.session(1);
    b.ship(&bed).await;
    soon("what is new", async || seen(&path).by_uid.len() == 2 + 2 + 2).await;
    soon("the cursor", async || left(&bed, "archive").await == 0).await;
    let all = seen(&path);
    assert_eq!((all.by_uid.len(), all.classes()), (6, [6005].into()));
    // Who the open session was is known, though that event was not passed on.
    assert!(all.by_uid.values().all(|e| e["actor"]["user"]["uid"] == "00u1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_deleted_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    let bed = Bed::new("").await;
    let a = Shipping::new(&bed, "a").await;
    a.session(3);
    a.session(1);
    a.ship(&bed).await;
    // As retention leaves it: the row, the seal and a tombstone.
    let replicas = std::fs::read_dir(bed.collector.config.state.join("hosts")).unwrap();
    for replica in replicas {
        let store = crate::record::Store::path(&replica.unwrap().path());
        let db = rusqlite::Connection::open(store).unwrap();
        db.execute_batch(
            "INSERT INTO tombstones (number, deleted_us, policy, events, head)
             SELECT number, 1, 'old', events, zeroblob(32) FROM sessions WHERE number = 1;",
        )
        .unwrap();
        let gone = db.execute("DELETE FROM events WHERE id < ?1", [event_id(2, 0)]).unwrap();
        assert!(gone > 6, "{gone}");
    }
    let bed = bed.restarted(&archive(&path, "from = 'start'")).await;
    soon("the cursor", async || left(&bed, "archive").await == 0).await;
    assert_eq!(seen(&path).by_uid.len(), expected(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_host_wrote_is_no_silent_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocsf.jsonl");
    let config = archive(&path, "from = 'start'\nclasses = ['authentication']");
    let bed = Bed::new(&config).await;
    let a = Shipping::new(&bed, "a").await;
    let mut log = a.begin("postgres");
    append(&mut log, "request", &json!({ "number": 1, "statement": "select 1" }));
    append(&mut log, "response", &json!({ "number": 1 }));
    append(&mut log, "admission", &json!({ "verdict": "allow", "role": "r", "database": "d" }));
    append(&mut log, "of.tomorrow", &json!({}));
    log.seal(&End::because("client")).unwrap();
    a.ship(&bed).await;
    soon("the cursor", async || left(&bed, "archive").await == 0).await;
    let all = seen(&path);
    assert_eq!(all.classes(), [0, 3002].into());
    let unread: Vec<&Value> = all.by_uid.values().filter(|e| e["class_uid"] == 0).collect();
    let said: Vec<_> = unread.iter().map(|e| (&e["activity_name"], &e["type_uid"])).collect();
    assert_eq!(said, [(&json!("request"), &json!(99)), (&json!("response"), &json!(99))]);
    assert!(unread[0]["unmapped"]["body"].as_str().unwrap().contains("select 1"));
}

fn siem(pki: &Pki, port: u16, name: &str) -> String {
    format!(
        "[[forward]]\nname = 'siem'\nto = 'syslog'\nfrom = 'start'\naddress = '127.0.0.1:{port}'\n\
         ca_file = {:?}\nserver_name = '{name}'\nclient = {{ certificate = {:?}, key = {:?} }}\n",
        pki.path("ca.pem"),
        pki.path("collector.test.pem"),
        pki.path("collector.test.key"),
    )
}

/// A port that nobody listens on.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn pki() -> Pki {
    let pki = Pki::new();
    pki.issue("siem.test");
    pki.issue("collector.test");
    pki
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syslog_receiver_that_is_away_or_dies_gets_everything_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (pki, path, port) = (pki(), dir.path().join("ocsf.jsonl"), free_port().await);
    let config = siem(&pki, port, "siem.test") + &archive(&path, "from = 'start'");
    let bed = Bed::new(&config).await;
    let a = Shipping::new(&bed, "a").await;
    for _ in 0..3 {
        a.session(20);
    }
    a.ship(&bed).await;
    // It is away: the other one gets everything meanwhile, and this one's cursor stays.
    soon("a failure", async || standing(&bed, "siem").failures > 0).await;
    let all = 3 * expected(20);
    soon("the file", async || seen(&path).by_uid.len() == all).await;
    assert!(left(&bed, "siem").await > 0 && standing(&bed, "siem").failing);
    assert_eq!(standing(&bed, "siem").delivered, 0);

    // It comes back, dies while it reads, and comes back again.
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let manners = vec![Manner::Dies, Manner::Dies, Manner::Good];
    let (inbox, _receiver) = syslog(&pki, listener, manners);
    soon("its cursor", async || left(&bed, "siem").await == 0).await;
    assert!(!standing(&bed, "siem").failing && standing(&bed, "siem").failures >= 3);
    let messages = inbox.0.lock().unwrap().clone();
    assert_eq!(messages.len(), all);
    let mut got = Seen::default();
    for message in &messages {
        // <PRI>VERSION TIMESTAMP HOSTNAME APP-NAME PROCID MSGID SD MSG
        let parts: Vec<&str> = message.splitn(8, ' ').collect();
        assert_eq!((parts[0], parts[2], parts[3]), ("<110>1", "a", "interceptor"), "{message}");
        assert_eq!((parts[4], parts[6]), ("-", "-"));
        parts[1].parse::<jiff::Timestamp>().unwrap();
        got.take(parts[7]);
    }
    let uids = |seen: &Seen| seen.by_uid.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(uids(&got), uids(&seen(&path)), "both say the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syslog_receiver_with_another_name_or_that_does_not_read_gets_no_cursor() {
    let pki = pki();
    for (name, manner) in [
        ("other.test", Manner::Good),
        ("siem.test", Manner::Silent),
        ("siem.test", Manner::Killed),
        ("siem.test", Manner::Leaves),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (inbox, _receiver) = syslog(&pki, listener, vec![manner]);
        let bed = Bed::new(&siem(&pki, port, name)).await;
        let a = Shipping::new(&bed, "a").await;
        a.session(1);
        a.ship(&bed).await;
        soon("a failure", async || standing(&bed, "siem").failures > 0).await;
        assert_eq!(standing(&bed, "siem").delivered, 0);
        assert!(left(&bed, "siem").await > 0);
        assert!(inbox.0.lock().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_of_tcp_is_enough_where_the_operator_says_so() {
    let pki = pki();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_, _receiver) = syslog(&pki, listener, vec![Manner::Killed]);
    let bed = Bed::new(&(siem(&pki, port, "siem.test") + "acknowledge = 'close'\n")).await;
    let a = Shipping::new(&bed, "a").await;
    a.session(1);
    a.ship(&bed).await;
    soon("its cursor", async || left(&bed, "siem").await == 0).await;
    assert_eq!(standing(&bed, "siem").failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_otlp_receiver_is_left_alone_as_it_wants_and_gets_everything() {
    let (receiver, address) = Otlp::start().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "Bearer s3cret\n").unwrap();
    let config = format!(
        "[[forward]]\nname = 'otel'\nto = 'otlp'\nfrom = 'start'\n\
         url = 'http://{address}/v1/logs'\n\
         headers = {{ authorization = {{ file = {:?} }} }}\n",
        secret.path()
    );
    let bed = Bed::new(&config).await;
    let (a, b) = (Shipping::new(&bed, "a").await, Shipping::new(&bed, "b").await);
    a.session(20);
    b.session(20);
    a.ship(&bed).await;
    b.ship(&bed).await;
    let asked = || receiver.asked.load(std::sync::atomic::Ordering::SeqCst);
    soon("the first request", async || asked() >= 1).await;
    let begun = Instant::now();
    soon("the second", async || asked() >= 2).await;
    assert!(begun.elapsed() > Duration::from_millis(1500), "Retry-After is kept");
    soon("its cursor", async || left(&bed, "otel").await == 0).await;

    let records = receiver.records();
    let mut got = Seen::default();
    for (host, record) in &records {
        let line = record["body"]["stringValue"].as_str().unwrap();
        got.take(line);
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["device"]["hostname"], host.as_str());
        let (uid, class) = (&record["attributes"][0], &record["attributes"][1]);
        assert_eq!(uid["key"], "log.record.uid");
        assert_eq!(uid["value"]["stringValue"], event["metadata"]["uid"]);
        assert_eq!(class["value"]["intValue"], event["class_uid"].to_string());
        let nanos: i64 = record["timeUnixNano"].as_str().unwrap().parse().unwrap();
        assert_eq!(nanos / 1_000_000, event["time"].as_i64().unwrap());
        assert_eq!(record["severityNumber"], 9);
    }
    assert_eq!((got.by_uid.len(), got.repeats), (2 * expected(20), 0));
    let headers = receiver.headers.lock().unwrap();
    assert!(headers.iter().all(|h| h["authorization"] == "Bearer s3cret"));
    assert!(headers.iter().all(|h| h["content-type"] == "application/json"));
    let now = standing(&bed, "otel");
    assert_eq!((now.failing, now.rejected, now.delivered), (false, 0, 2 * 41));
}
