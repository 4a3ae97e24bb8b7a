//! The index against the replicas: what it finds is what reading everything finds, it follows
//! what comes, and keeps nothing of what retention deleted.

use std::borrow::Cow;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;

use super::*;
use crate::collector::ship_tests::{key_of, open_host, whole};
use crate::collector::{Config, ingest, retention};
use crate::record::event::{Body, Event, IdentityProven, Opening, now_us};
use crate::record::{End, Recorder, SessionLog};

/// Hosts' stores and a collector, without a network between them.
struct Bed {
    state: tempfile::TempDir,
    collector: Arc<Collector>,
    hosts: Vec<(tempfile::TempDir, Arc<Recorder>, Host)>,
}

const DAY_US: i64 = 86_400_000_000;

impl Bed {
    async fn new(hosts: usize) -> Self {
        let state = tempfile::tempdir().unwrap();
        let config: Config = toml::from_str(&format!(
            "state = '{}'\norigin = 'http://127.0.0.1:1'\n[hosts]\nlisten = '127.0.0.1:0'\n\
             names = ['127.0.0.1']\n[console]\nlisten = '127.0.0.1:0'\n[retention]\ndays = 30\n",
            state.path().display()
        ))
        .unwrap();
        Collector::init(&config).unwrap();
        let collector = Collector::open(config).unwrap();
        let mut bed = Self { state, collector, hosts: Vec::new() };
        for n in 1..=hosts {
            bed.host(n as i64).await;
        }
        bed
    }

    async fn host(&mut self, id: i64) {
        let dir = tempfile::tempdir().unwrap();
        let recorder = open_host(dir.path());
        let key = key_of(dir.path());
        let (fingerprint, public) = (key.fingerprint_hex(), key.0.to_vec());
        let add = move |db: &crate::collector::db::Connection| {
            db.execute(
                "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
                 certificate_until_us) VALUES (?1, ?2, ?3, 0, '', 0)",
                crate::collector::db::params![fingerprint, format!("db{id}"), public],
            )
            .map_err(CollectorError::db("add a host"))?;
            Ok::<_, CollectorError>(crate::collector::hosts::by_id(db, id)?.unwrap())
        };
        let host = self.collector.central.write(add).await.unwrap();
        self.hosts.push((dir, recorder, host));
    }

    /// Everything of all hosts, from its first event.
    async fn ship(&self) {
        for (dir, recorder, host) in &self.hosts {
            recorder.flush().unwrap();
            ingest::take(&self.collector, host, whole(dir.path()).into()).await.unwrap();
        }
    }

    /// All that the index takes now.
    async fn index(&self) {
        while follow::round(&self.collector).await.unwrap() {}
    }

    fn begin(&self, host: usize, opened_us: i64, agent: &str) -> SessionLog {
        let opening = Opening {
            id: ulid::Ulid::new(),
            ts_us: opened_us,
            host: "db".into(),
            service: if opened_us % 3 == 0 { "orders-db" } else { "shell" }.into(),
            protocol: "postgres".into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        };
        let mut log = self.hosts[host].1.begin(opening).unwrap();
        let proven = IdentityProven {
            agent: agent.to_owned().into(),
            principal: Cow::Owned(format!("{agent}@example.com")),
            issuer: "okta".into(),
            labels: Default::default(),
            claims: json!({ "jti": format!("AT.{opened_us}") }),
            pinned_new: false,
            source_key: "10.0.0.1".into(),
            expires_at: 0,
            proven: true,
            way: None,
        };
        let body = serde_json::to_value(&proven).unwrap();
        log.append(&Event { ts_us: opened_us, kind: IdentityProven::KIND, body: &body, data: b"" })
            .unwrap();
        log
    }

    fn says(log: &mut SessionLog, text: &str, verdict: &str) {
        let body = json!({ "n": 1, "verdict": verdict, "text": text, "hmac": "00ff" });
        log.append(&Event { ts_us: now_us(), kind: "request", body: &body, data: b"" }).unwrap();
    }

    fn session(&self, host: usize, opened_us: i64, agent: &str, texts: &[String]) -> u64 {
        let mut log = self.begin(host, opened_us, agent);
        for text in texts {
            Self::says(&mut log, text, if text.contains("drop") { "deny" } else { "allow" });
        }
        log.commit().unwrap().wait().unwrap();
        let number = log.number();
        log.seal(&End::because("client")).unwrap();
        number
    }

    async fn page(&self, wanted: Wanted) -> Page {
        wanted.page(&self.collector).await.unwrap()
    }

    /// All pages: ids, with the place of each hit.
    async fn all(&self, mut wanted: Wanted, limit: usize) -> Vec<(i64, u64)> {
        let mut all = Vec::new();
        loop {
            wanted.limit = limit;
            let page = self.page(wanted.clone()).await;
            assert!(page.behind.is_none() && !page.unfinished, "{wanted:?}");
            assert!(page.sessions.len() <= limit);
            all.extend(page.sessions.iter().map(|f| (f.id, f.hit.as_ref().unwrap().seq)));
            match page.next {
                Some(next) => wanted.before = Some(next),
                None => return all,
            }
        }
    }

    async fn found(&self, text: &str) -> usize {
        self.all(words(text), 50).await.len()
    }

    /// What reading every session finds.
    async fn scanned(&self, wanted: &Wanted) -> Vec<(i64, u64)> {
        let query = Query::read(wanted.text.as_deref().unwrap()).unwrap();
        let rows = Wanted { limit: 500, ..wanted.clone() };
        let rows = rows.portion(&self.collector, 10_000).await.unwrap();
        let mut all = Vec::new();
        for row in rows.into_iter().filter(|row| row.deleted_us.is_none()) {
            let reader = row.reader(&self.collector).unwrap();
            let mut hit = None;
            reader
                .events_until(row.number, 0, |e| {
                    hit = query.fits(e.body).then_some(e.seq);
                    hit.is_none()
                })
                .unwrap();
            all.extend(hit.map(|seq| (row.id, seq)));
        }
        all
    }

    /// Whether a word stands in the file or in its log.
    fn holds(&self, word: &str) -> bool {
        ["search.db", "search.db-wal"].iter().any(|name| {
            let bytes = std::fs::read(self.state.path().join(name)).unwrap_or_default();
            bytes.windows(word.len()).any(|w| w == word.as_bytes())
        })
    }
}

fn words(text: &str) -> Wanted {
    Wanted { text: Some(text.into()), limit: 50, ..Wanted::default() }
}

fn one_of<T>(runner: &mut TestRunner, all: &[T]) -> T
where
    T: Clone + std::fmt::Debug + 'static,
{
    proptest::sample::select(all.to_vec()).new_tree(runner).unwrap().current()
}

fn number(runner: &mut TestRunner, below: u64) -> u64 {
    (0..below).new_tree(runner).unwrap().current()
}

const WORDS: [&str; 14] = [
    "select",
    "drop",
    "customer_cards",
    "cards",
    "10.0.0.7",
    "10.0.0.71",
    "alice@example.com",
    "rm -rf /srv",
    "Größe",
    "a",
    "\"quoted\"",
    "100%_",
    "x-y",
    "tab\tline\n",
];

/// Sessions with random texts, at times that are often the same.
fn corpus(bed: &Bed, runner: &mut TestRunner, sessions: u64) {
    for _ in 0..sessions {
        let host = number(runner, bed.hosts.len() as u64) as usize;
        let opened_us = (number(runner, 40) as i64 - 3) * 1_500_000 + number(runner, 2) as i64;
        let agent = one_of(runner, &["billing-bot", "deploy-bot", "other"]);
        let long = number(runner, 10) == 0;
        let texts: Vec<String> = (0..number(runner, if long { 600 } else { 6 }))
            .map(|_| {
                let said: Vec<&str> =
                    (0..number(runner, 4)).map(|_| one_of(runner, &WORDS)).collect();
                said.join(one_of(runner, &[" ", "", ",", " * "]))
            })
            .collect();
        bed.session(host, opened_us, agent, &texts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_finds_what_reading_everything_finds() {
    let bed = Bed::new(3).await;
    let mut runner = TestRunner::default();
    corpus(&bed, &mut runner, 120);
    bed.ship().await;
    // Nothing is indexed and there is no file: everything is read.
    let page = bed.page(words("select")).await;
    assert!(page.behind.is_some_and(|n| n > 100), "{:?}", page.behind);
    bed.index().await;
    assert_eq!(behind(&bed.collector).await.unwrap(), 0);
    // Then more that is not, sealed and going on.
    corpus(&bed, &mut runner, 30);
    let mut open = bed.begin(0, 1_500_000, "billing-bot");
    Bed::says(&mut open, "select cards", "allow");
    open.commit().unwrap().wait().unwrap();
    bed.ship().await;
    for round in 0..150 {
        if round == 75 {
            bed.index().await;
            assert!(behind(&bed.collector).await.unwrap() < 10);
        }
        let mut text: Vec<&str> =
            (0..=number(&mut runner, 2)).map(|_| one_of(&mut runner, &WORDS)).collect();
        if number(&mut runner, 4) == 0 {
            text = vec![one_of(&mut runner, &["cust*", "sel*", "AT.1*", "allow", "10.0*", "gr*"])];
        }
        let text = text.join(one_of(&mut runner, &[" ", "_", " * "]));
        if Query::read(&text).is_none() {
            continue;
        }
        let some = |runner: &mut TestRunner, all: &[&'static str]| {
            (number(runner, 4) == 0).then(|| one_of(runner, all).to_owned())
        };
        let time = |runner: &mut TestRunner| {
            (number(runner, 4) == 0).then(|| number(runner, 60) as i64 * 1_000_000)
        };
        let wanted = Wanted {
            agent: some(&mut runner, &["billing-bot", "nobody"]),
            service: some(&mut runner, &["orders-db", "shell"]),
            host: some(&mut runner, &["db1", "db2"]),
            principal: some(&mut runner, &["deploy-bot@example.com"]),
            since_us: time(&mut runner),
            until_us: time(&mut runner),
            notable: number(&mut runner, 5) == 0,
            live: (number(&mut runner, 6) == 0).then_some(round % 2 == 0),
            ..words(&text)
        };
        let limit = 1 + number(&mut runner, 30) as usize;
        assert_eq!(bed.all(wanted.clone(), limit).await, bed.scanned(&wanted).await, "{wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_walks_in_steps_when_many_fit() {
    let bed = Bed::new(2).await;
    let mut runner = TestRunner::default();
    for n in 0..700 {
        let opened_us = number(&mut runner, 300) as i64 * 1_000_000;
        bed.session(n % 2, opened_us, "billing-bot", &[format!("select common from t{}", n % 7)]);
    }
    bed.ship().await;
    bed.index().await;
    for text in ["common", "common from t3", "from t3 common"] {
        let wanted = Wanted { agent: Some("billing-bot".into()), ..words(text) };
        assert_eq!(bed.all(wanted.clone(), 60).await, bed.scanned(&wanted).await, "{text}");
    }
    assert_eq!(bed.found("common").await, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_whole_unless_asked_otherwise() {
    let bed = Bed::new(1).await;
    bed.session(0, 5, "billing-bot", &["SELECT * FROM public.customer_cards".into()]);
    bed.ship().await;
    bed.index().await;
    for (text, there) in [
        ("customer_cards", 1),
        ("CARDS", 1),
        ("cards*", 1),
        ("custom*", 1),
        ("SELECT *", 1),
        ("billing-bot@example.com", 1),
        ("AT.5", 1),
        ("custom", 0),
        ("ustomer_cards", 0),
        // Sums and names of fields are no texts.
        ("00ff", 0),
        ("hmac", 0),
    ] {
        assert_eq!(bed.found(text).await, there, "{text}");
        let anywhere = Wanted { anywhere: true, ..words(text) };
        let inside = !text.ends_with("s*") && !text.ends_with("m*");
        assert_eq!(bed.page(anywhere).await.sessions.len(), usize::from(inside), "{text}");
    }
    // Without any word in it, a text is looked for as it is.
    assert_eq!(bed.page(words(".*")).await.sessions.len(), 0);
    assert_eq!(bed.page(words("\" \"")).await.sessions.len(), 0);
    assert_eq!(bed.page(words(" * ")).await.sessions.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_what_retention_deleted() {
    let bed = Bed::new(1).await;
    let many: Vec<String> = (0..700).map(|n| format!("select zebraquagga{n} from zoo")).collect();
    bed.session(0, 5, "billing-bot", &many);
    bed.session(0, 6, "billing-bot", &["select okapiquagga from zoo".into()]);
    let mut open = bed.begin(0, 7, "billing-bot");
    Bed::says(&mut open, "select antelope from zoo", "allow");
    open.commit().unwrap().wait().unwrap();
    bed.ship().await;
    bed.index().await;
    assert_eq!(bed.found("zoo").await, 3);
    assert!(bed.holds("ebraquagga") && bed.holds("kapiquagga"));

    retention::sweep(&bed.collector, now_us() + 31 * DAY_US).await.unwrap();
    assert!(!bed.holds("ebraquagga") && !bed.holds("kapiquagga") && !bed.holds("uagga"));
    bed.collector.search.let_go();
    assert_eq!(bed.found("zoo").await, 1, "the open one");
    assert_eq!(bed.found("zebraquagga1").await, 0);
    // What comes again is acknowledged, and not indexed.
    bed.ship().await;
    bed.index().await;
    assert!(!bed.holds("uagga"));
    // Nor when it is made anew.
    bed.collector.search.discard().unwrap();
    bed.index().await;
    assert!(!bed.holds("uagga"));
    assert_eq!(bed.found("zoo").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_out_takes_the_index_with_it() {
    let bed = Bed::new(1).await;
    bed.session(0, 5, "billing-bot", &["select zebraquagga from zoo".into()]);
    bed.session(0, 6, "billing-bot", &["select okapi from zoo".into()]);
    bed.ship().await;
    bed.index().await;
    // As if an event had gone before its words did.
    let host = &bed.hosts[0].2;
    let dir = Replica::directory(bed.state.path(), &host.fingerprint);
    Connection::open(dir.join("records.db"))
        .unwrap()
        .execute("DELETE FROM events WHERE id > (1 << 31) + 2 AND id < 2 << 31", [])
        .unwrap();
    forget(&bed.collector, host, &[1]).await.unwrap();
    assert!(!bed.state.path().join("search.db").exists());
    bed.index().await;
    assert_eq!((bed.found("okapi").await, bed.found("zebraquagga").await), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_made_anew_when_it_is_gone_damaged_or_of_another_version() {
    let bed = Bed::new(1).await;
    bed.session(0, 5, "billing-bot", &["select okapi from zoo".into()]);
    bed.ship().await;
    bed.index().await;
    let file = bed.state.path().join("search.db");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    for harm in 0..3 {
        // The collector stops; something happens to the file; another starts.
        *bed.collector.search.writer.lock().unwrap() = None;
        bed.collector.search.set(None);
        bed.collector.search.let_go();
        match harm {
            0 => std::fs::remove_file(&file).unwrap(),
            1 => std::fs::write(&file, vec![7; 8192]).unwrap(),
            _ => Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap(),
        }
        let page = bed.page(words("okapi")).await;
        assert_eq!((page.sessions.len(), page.behind.is_some()), (1, true), "{harm}");
        bed.index().await;
        assert_eq!(bed.found("okapi").await, 1, "{harm}");
    }
    // Stopped and started without harm it goes on where it stood.
    *bed.collector.search.writer.lock().unwrap() = None;
    bed.collector.search.set(None);
    bed.index().await;
    assert_eq!(bed.found("okapi").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_says_another_time_moves() {
    let bed = Bed::new(1).await;
    for n in 0..5 {
        bed.session(0, n * DAY_US, "billing-bot", &["select okapi from zoo".into()]);
    }
    let mut open = bed.begin(0, 9 * DAY_US, "billing-bot");
    Bed::says(&mut open, "select okapi again", "allow");
    for _ in 0..40 {
        Bed::says(&mut open, "select more", "allow");
    }
    open.commit().unwrap().wait().unwrap();
    bed.ship().await;
    bed.index().await;
    let wanted = words("okapi");
    assert_eq!(bed.all(wanted.clone(), 2).await, bed.scanned(&wanted).await);
    let body = json!({ "id": ulid::Ulid::new().to_string(), "ts_us": 2 * DAY_US + 7, "host": "db",
        "service": "orders-db", "protocol": "postgres", "source": "", "original_dst": "",
        "mode": "enforce" });
    open.append(&Event { ts_us: 1, kind: "session.open", body: &body, data: b"" }).unwrap();
    for _ in 0..40 {
        Bed::says(&mut open, "select more", "allow");
    }
    open.commit().unwrap().wait().unwrap();
    bed.ship().await;
    bed.index().await;
    assert_eq!(bed.all(wanted.clone(), 2).await, bed.scanned(&wanted).await);
    assert_eq!(bed.found("okapi").await, 6);
}
