//! A collector with one host's records, and people who log in.

use std::borrow::Cow;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use interceptor::collector::{Change, Collector, CollectorError, Config, Server};
use interceptor::config::Record;
use interceptor::record::{Filter, Reader, Recorder, now_us};
use interceptor_tests::people::{CLIENT, People, SECRET};
use interceptor_tests::visitor::{Answer, Visitor};
use serde_json::{Value, json};

/// Id, name and groups of everybody.
const EVERYBODY: [(&str, &str, &[&str]); 7] = [
    ("00u-vera", "Vera Viewer", &["viewers"]),
    ("00u-ann", "Ann Approver", &["approvers"]),
    ("00u-bea", "Bea Approver", &["approvers"]),
    ("00u-cyd", "Cyd Approver", &["approvers"]),
    ("00u-eve", "Eve Principal", &["approvers"]),
    ("00u-ada", "Ada Admin", &["admins", "viewers"]),
    ("00u-nob", "Nobody <b>", &["others"]),
];

/// A collector that runs.
pub struct Ground {
    pub people: People,
    pub collector: Arc<Collector>,
    pub origin: String,
    pub recorder: Arc<Recorder>,
    pub host: i64,
    store: PathBuf,
    server: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.server.abort();
        self.recorder.shutdown();
    }
}

/// Nothing to test with: says so and returns true.
pub fn nothing() -> bool {
    let there = interceptor_tests::provider::Provider::absent();
    if let Some(why) = &there {
        interceptor_tests::bed::skipped(why);
    }
    there.is_some()
}

impl Ground {
    /// `None`, and said so, where there is nothing to test with.
    pub async fn new() -> Option<Self> {
        Self::with("").await
    }

    /// With more lines of configuration.
    pub async fn with(more: &str) -> Option<Self> {
        if nothing() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let origin = format!("http://127.0.0.1:{port}");
        let people = People::start(&origin, &EVERYBODY).unwrap();
        let config = write_config(dir.path(), &origin, people.issuer(), more);
        let config = Config::load(&config).unwrap();
        Collector::init(&config).unwrap();
        let collector = Collector::open(config).unwrap();
        let server = Server::new(Arc::clone(&collector)).await.unwrap();
        let server = tokio::spawn(server.run());
        let store = dir.path().join("db1");
        let recorder = Recorder::open_with(&store, "db1", &Record::default(), 1 << 20).unwrap();
        let key = recorder.public_key();
        let hosts = dir.path().join("state/hosts");
        std::fs::create_dir_all(&hosts).unwrap();
        std::os::unix::fs::symlink(&store, hosts.join(key.fingerprint_hex())).unwrap();
        let host = enrol(&collector, &key.fingerprint_hex(), key.0).await;
        Some(Self { people, collector, origin, recorder, host, store, server, _dir: dir })
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// Somebody's browser, logged in.
    pub fn log_in(&self, id: &str) -> Visitor {
        let mut visitor = Visitor::default();
        let answer = self.log_in_with(&mut visitor, id, "/");
        assert!(
            answer.status == 200 || answer.status == 403,
            "{} {}",
            answer.status,
            answer.text()
        );
        visitor
    }

    pub fn log_in_with(&self, visitor: &mut Visitor, id: &str, next: &str) -> Answer {
        self.people.next(id).unwrap();
        visitor.visit(&self.url(&format!("/login?next={next}"))).unwrap()
    }

    /// An access token of a person for the REST API.
    pub fn token(&self, id: &str, change: Value) -> String {
        let (_, name, groups) = EVERYBODY.iter().find(|(i, ..)| *i == id).unwrap();
        let mut claims = json!({
            "aud": self.origin, "sub": format!("{name}@example.com"), "uid": id, "groups": groups,
        });
        for (name, value) in change.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        self.people.mint(&claims).unwrap()
    }

    pub fn ask(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Answer {
        let bearer = format!("Bearer {token}");
        let mut headers = vec![("Authorization", bearer.as_str())];
        if body.is_some() {
            headers.push(("Content-Type", "application/json"));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        Visitor::default().send(method, &self.url(path), &headers, body.as_bytes()).unwrap()
    }

    /// The host's replica, for whoever alters it.
    pub fn replica(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.store.join("records.db")).unwrap()
    }

    /// Hosts that are not well: one away, one revoked, one that never came.
    pub async fn other_hosts(&self) {
        let write = |db: &interceptor::collector::db::Connection| -> Result<(), CollectorError> {
            let (now, hour) = (now_us(), 3_600_000_000_i64);
            for (name, seen, revoked, until, problem) in [
                ("web1", Some(now - 3 * hour), None, now + 48 * hour, Some("entry 7 was altered")),
                ("old", Some(now - 400 * hour), Some(now - hour), now + 300 * hour, None),
                ("fresh", None, None, now + 720 * hour, None),
            ] {
                db.execute(
                    "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
                     certificate_until_us, seen_us, revoked_us, problem) \
                     VALUES (?1, ?1, randomblob(32), ?2, ?1, ?3, ?4, ?5, ?6)",
                    (name, now - 500 * hour, until, seen, revoked, problem),
                )
                .unwrap();
            }
            Ok(())
        };
        self.collector.central.write(write).await.unwrap();
    }

    /// Brings what was recorded into the index, as shipping does.
    pub async fn index(&self) {
        self.recorder.flush().unwrap();
        let reader = Reader::of_replica(&self.store).unwrap();
        let all = reader.list(&Filter { limit: 10_000, ..Filter::default() }).unwrap();
        let host = self.host;
        let ids = all.iter().map(|s| host << 32 | s.number as i64).collect::<Vec<_>>();
        let write =
            move |db: &interceptor::collector::db::Connection| -> Result<(), CollectorError> {
                for s in &all {
                    let mut row = serde_json::to_value(s).unwrap();
                    row["key"] = json!(host << 32 | s.number as i64);
                    row["host_id"] = json!(host);
                    db.execute(INDEX, [row.to_string()]).unwrap();
                }
                // A search begins with how many events a host has sent.
                let all = "UPDATE hosts SET events = (SELECT sum(events) FROM sessions \
                           WHERE host = ?1) WHERE id = ?1";
                db.execute(all, [host]).unwrap();
                Ok(())
            };
        self.collector.central.write(write).await.unwrap();
        for id in ids {
            self.collector.hub.tell(Change::Session(id));
        }
    }
}

const INDEX: &str = "INSERT OR REPLACE INTO sessions (id, host, number, session, opened_us, closed_us, \
    service, protocol, mode, source, original_dst, agent, principal, issuer, proven, role, \
    database, client, events, requests, allowed, held, denied, errors, rows, masked, alerts, \
    reason, sealed) SELECT j->>'key', j->>'host_id', j->>'number', j->>'id', j->>'opened_us', \
    j->>'closed_us', j->>'service', j->>'protocol', j->>'mode', j->>'source', \
    j->>'original_dst', j->>'agent', j->>'principal', j->>'issuer', j->>'proven', j->>'role', \
    j->>'database', j->>'client', j->>'events', j->>'requests', j->>'allowed', j->>'held', \
    j->>'denied', j->>'errors', j->>'rows', j->>'masked', j->>'alerts', j->>'reason', \
    j->>'seal' FROM (SELECT ?1 AS j)";

async fn enrol(collector: &Collector, fingerprint: &str, key: [u8; 32]) -> i64 {
    let status = json!({
        "version": "0.1.0", "host": "db1", "uptime_s": 7200, "live_sessions": 1,
        "services": [
            {"name": "orders-db", "protocol": "postgres", "port": 5432, "mode": "enforce",
             "listening": true, "live": 1, "steered": 1204, "refused": 3, "exempt": 17},
            {"name": "host-ssh", "protocol": "ssh", "port": 22, "mode": "enforce",
             "listening": false},
        ],
        "policy": {"version": "3f9c1a", "rules": 12},
        "record": {"bytes": 52_000_000, "max_bytes": 10_000_000_000u64, "durability": "disk"},
    });
    let status = json!({ "status": status, "lag_events": 0, "now_us": now_us(), "skew_us": 0 });
    let (fingerprint, status) = (fingerprint.to_owned(), status.to_string());
    let write = move |db: &interceptor::collector::db::Connection| -> Result<i64, CollectorError> {
        let now = now_us();
        let id = db.query_row(
            "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
             certificate_until_us, seen_us, version, status) \
             VALUES (?1, 'db1', ?2, ?3, '1', ?4, ?3, '0.1.0', ?5) RETURNING id",
            (fingerprint, key, now, now + 30 * 86_400_000_000, status),
            |r| r.get(0),
        );
        Ok(id.unwrap())
    };
    collector.central.write(write).await.unwrap()
}

fn write_config(dir: &std::path::Path, origin: &str, issuer: &str, more: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let secret = dir.join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let listen = origin.strip_prefix("http://").unwrap();
    let text = format!(
        "state = {:?}\norigin = '{origin}'\n\
         [hosts]\nlisten = '127.0.0.1:0'\nnames = ['localhost']\n\
         [console]\nlisten = '{listen}'\n\
         [login]\nname = 'okta'\nissuer = '{issuer}'\nclient_id = '{CLIENT}'\n\
         client_secret = {{ file = {secret:?} }}\n\
         [roles]\nviewer = ['viewers']\napprover = ['approvers']\nadmin = ['admins']\n\
         [[agent]]\nname = 'billing-bot'\nissuer = 'okta'\ncid = '0oa-billing'\n\
         owners = ['00u-bea']\n{more}\n",
        dir.join("state"),
    );
    let file = dir.join("collector.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A text that some fixture needs owned.
pub fn own<'a>(text: &str) -> Cow<'a, str> {
    Cow::Owned(text.to_owned())
}
