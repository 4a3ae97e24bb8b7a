//! A collector with forwards, hosts that record and ship, and receivers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::collector::forward::{Standing, waiting};
use crate::collector::testing::{Bed, Host};
use crate::collector::{CollectorError, Position, wire};
use crate::config::Record;
use crate::record::event::{Event, Opening};
use crate::record::{End, Recorder, SessionLog, now_us};
use crate::ship::Spool;

/// Waits until something is so.
pub async fn soon(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A host that records, and ships when it is told to.
pub struct Shipping {
    pub host: Host,
    dir: PathBuf,
    name: String,
    recorder: Option<Arc<Recorder>>,
}

impl Shipping {
    pub async fn new(bed: &Bed, name: &str) -> Self {
        let host = bed.host(name).await;
        let dir = bed.dir.path().join(name);
        let recorder = Recorder::open_with(&dir, name, &Record::default(), 1 << 20).unwrap();
        Self { host, dir, name: name.into(), recorder: Some(recorder) }
    }

    /// A session with its identity, so far.
    pub fn begin(&self, protocol: &str) -> SessionLog {
        let opening = Opening {
            id: ulid::Ulid::new(),
            ts_us: now_us(),
            host: self.name.as_str().into(),
            service: "orders-db".into(),
            protocol: protocol.into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        };
        let mut log = self.recorder.as_ref().unwrap().begin(opening).unwrap();
        let who = json!({ "agent": "billing-bot", "principal": "eve@example.com",
            "issuer": "okta", "claims": { "uid": "00u1", "cid": "0oa1" } });
        append(&mut log, "identity.proven", &who);
        log
    }

    /// A whole session with so many requests and answers.
    pub fn session(&self, requests: u64) {
        let mut log = self.begin("postgres");
        for n in 1..=requests {
            request(&mut log, n);
        }
        log.seal(&End::because("client")).unwrap();
    }

    /// Ships all that is recorded; what is there already is taken once.
    pub async fn ship(&self, bed: &Bed) {
        self.recorder.as_ref().unwrap().flush().unwrap();
        let spool = Spool::open(&self.dir).unwrap();
        let (client, mut at) = (self.host.client(bed), Position::default());
        while let Some(batch) = spool.next(&at, 64 << 10).unwrap() {
            let answer = client
                .post(format!("https://{}/host/v1/batch", bed.address))
                .header("content-type", wire::FRAMES)
                .body(batch.frames)
                .send()
                .await
                .unwrap();
            let status = answer.status();
            assert!(status.is_success(), "{status}: {}", answer.text().await.unwrap());
            at = batch.after;
        }
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.shutdown();
        }
    }
}

pub fn append(log: &mut SessionLog, kind: &str, body: &Value) {
    log.append(&Event { ts_us: now_us(), kind, body, data: b"rows" }).unwrap();
}

/// A request that is allowed, and its answer.
pub fn request(log: &mut SessionLog, n: u64) {
    let asked = json!({ "n": n, "verdict": "allow", "class": "select",
        "text": format!("select {n} from \u{00fc}bersicht") });
    append(log, "request", &asked);
    append(log, "response", &json!({ "n": n, "rows": 2, "bytes": 10, "duration_us": 3000 }));
}

pub fn standing(bed: &Bed, forward: &str) -> Standing {
    let all = &bed.collector.config.forwards;
    bed.collector.forwards.of(all.iter().find(|f| f.name == forward).unwrap())
}

/// Events that a forward has not delivered.
pub async fn left(bed: &Bed, forward: &str) -> i64 {
    let forward = forward.to_owned();
    let count = move |db: &crate::collector::db::Connection| {
        let begun: bool = db
            .query_row("SELECT count(*) FROM forwards WHERE name = ?1", [&forward], |r| r.get(0))
            .map_err(CollectorError::db("test"))?;
        if begun { waiting(db, &forward) } else { Ok(-1) }
    };
    bed.collector.central.read::<_, CollectorError, _>(count).await.unwrap()
}

/// Everything that came, by `metadata.uid`: what came twice must say the same.
#[derive(Default)]
pub struct Seen {
    pub by_uid: BTreeMap<String, Value>,
    pub repeats: usize,
    texts: BTreeMap<String, String>,
}

impl Seen {
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut seen = Self::default();
        lines.into_iter().for_each(|line| seen.take(line));
        seen
    }

    pub fn take(&mut self, line: &str) {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let uid = value["metadata"]["uid"].as_str().unwrap().to_owned();
        if let Some(before) = self.texts.get(&uid) {
            assert_eq!(before, line, "the same event says something else");
            self.repeats += 1;
        }
        self.texts.insert(uid.clone(), line.to_owned());
        self.by_uid.insert(uid, value);
    }

    pub fn classes(&self) -> BTreeSet<u64> {
        self.by_uid.values().map(|v| v["class_uid"].as_u64().unwrap()).collect()
    }
}

/// An authority and what it signed, as files.
pub struct Pki {
    pub dir: tempfile::TempDir,
    ca: CertificateParams,
    key: KeyPair,
}

impl Pki {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, ca, key }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub fn issue(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let issuer = Issuer::from_params(&self.ca, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        std::fs::write(self.path(&format!("{name}.pem")), pem).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}
