//! A collector and hosts for tests, in this process and with real HTTPS between them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use ulid::Ulid;

use super::log::VerifierKey;
use super::orders::HostId;
use super::wire::{ENROL_DOMAIN, Enrol};
use super::{Collector, CollectorError, Person, Role, Server, codes, holds, hosts};
use crate::approval::{Approvals, HoldAsk, HoldSummary};
use crate::control::CentralStatus;
use crate::identity::Identity;
use crate::record::{HostKey, PublicKey, now_us};
use crate::session::live::Registry;
use crate::session::policies::Policies;
use crate::ship::centre::{Centre, apply};
use crate::ship::kept::Kept;
use crate::ship::line::Line;
use crate::ship::link::Link;
use crate::ship::orders::OrderBook;
use crate::ship::remote::Remote;
use crate::ship::trusted::Trusted;
use crate::ship::wire::Raise;

/// `iss` of everybody.
pub const OKTA: &str = "https://e.okta.com/oauth2/default";

/// `[store]` for a collector with this state directory: a database of its own at the server that
/// `INTERCEPTOR_TEST_STORE` names (a URL without a database), so that every test of the collector
/// can be run on PostgreSQL as well; nothing where it names none.
pub fn store(state: &std::path::Path) -> String {
    let Ok(server) = std::env::var("INTERCEPTOR_TEST_STORE") else { return String::new() };
    let name: String = state.display().to_string().to_lowercase();
    let name: String = name.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let url = format!("{server}/{name}");
    let admin = format!("{server}/postgres");
    let made = std::thread::spawn(move || {
        let mut db = postgres::Client::connect(&admin, postgres::NoTls).unwrap();
        let there = db.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).unwrap();
        if there.is_empty() {
            db.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        }
    });
    made.join().unwrap();
    format!("[store]\nurl = '{url}'\n")
}

/// A host that a collector knows, without a certificate: for what needs no network.
pub async fn known_host(collector: &Collector, key: &PublicKey) -> hosts::Host {
    let (fingerprint, public) = (key.fingerprint_hex(), key.0.to_vec());
    let add = move |db: &super::db::Connection| {
        let id: i64 = db
            .query_row(
                "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
                 certificate_until_us) VALUES (?1, 'db1', ?2, 0, '', 0) RETURNING id",
                super::db::params![fingerprint, public],
                |r| r.get(0),
            )
            .map_err(CollectorError::db("add a host"))?;
        Ok::<_, CollectorError>(hosts::by_id(db, id)?.unwrap())
    };
    collector.central.write(add).await.unwrap()
}

/// A collector that serves while this lives.
pub struct Bed {
    pub collector: Arc<Collector>,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    serving: Serving,
}

/// What the collector runs on. It ends as a process does: with every connection.
struct Serving(Option<Runtime>);

impl Serving {
    fn start() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Self(Some(builder.worker_threads(2).enable_all().build().unwrap()))
    }

    fn end(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

impl Bed {
    pub async fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open(dir, more, true, "127.0.0.1:0").await
    }

    async fn open(dir: tempfile::TempDir, more: &str, first: bool, listen: &str) -> Self {
        let config = format!(
            "state = '{}'\norigin = 'http://127.0.0.1:1'\n\
             [hosts]\nlisten = '{listen}'\nnames = ['127.0.0.1']\n\
             [console]\nlisten = '127.0.0.1:0'\n\
             [login]\nname = 'okta'\nissuer = '{OKTA}'\nclient_id = 'console'\n\
             [roles]\napprover = ['approvers']\nadmin = ['admins']\n{more}\n{}",
            dir.path().join("collector").display(),
            store(&dir.path().join("collector"))
        );
        let config: super::Config = toml::from_str(&config).unwrap();
        if first {
            Collector::init(&config).unwrap();
        }
        let collector = Collector::open(config).unwrap();
        let serving = Serving::start();
        let runtime = serving.0.as_ref().unwrap();
        let shared = Arc::clone(&collector);
        let (ready, address) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            // The port of one that has just ended may not be free yet.
            let server = loop {
                match Server::new(Arc::clone(&shared)).await {
                    Ok(server) => break server,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            };
            ready.send(server.addresses().unwrap().0).unwrap();
            server.run().await;
        });
        let address = address.await.unwrap();
        Self { collector, address, dir, serving }
    }

    /// The collector dies; what comes back is a new one with the same state and address.
    pub async fn restarted(mut self, more: &str) -> Self {
        let address = self.address.to_string();
        self.stop();
        let Self { dir, .. } = self;
        Self::open(dir, more, false, &address).await
    }

    pub fn stop(&mut self) {
        self.serving.end();
    }

    /// A host that is enrolled, with a certificate.
    pub async fn host(&self, name: &str) -> Host {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        let key = HostKey::open(&dir).unwrap();
        let tls = KeyPair::generate().unwrap();
        let csr_pem = CertificateParams::default().serialize_request(&tls).unwrap().pem().unwrap();
        let (row_name, now) = (name.to_owned(), now_us());
        let made = move |db: &crate::collector::db::Connection| {
            codes::make(db, &row_name, "test", now, now + 60_000_000)
        };
        let code = self.collector.central.write(made).await.unwrap();
        let mut request = Enrol {
            code,
            csr_pem,
            record_key: key.public().to_base64(),
            name: name.into(),
            version: "test".into(),
            proof: String::new(),
        };
        let proof = key.sign(&[ENROL_DOMAIN, &request.signed()].concat());
        request.proof = STANDARD.encode(proof);
        let (host, issued, key) = hosts::enrol(&self.collector, request).await.unwrap();
        let pem = issued.pem + &tls.serialize_pem();
        let id = HostId { id: host.id, fingerprint: host.fingerprint, name: host.name };
        let trusted = Arc::new(Trusted::key(key));
        let (link, parts, running) = (JoinSet::new(), None, None);
        Host { id, dir, pem, link, parts, takes: false, running, trusted }
    }
}

/// A protected host without its sessions.
pub struct Host {
    pub id: HostId,
    dir: std::path::PathBuf,
    pem: String,
    link: JoinSet<()>,
    parts: Option<Arc<Remote>>,
    takes: bool,
    running: Option<Arc<Policies>>,
    /// Which key of the collector it believes; outlives its daemon.
    pub trusted: Arc<Trusted>,
}

const HOST: &str = "[[issuer]]\nname = 'okta'\nurl = 'https://e.okta.com/oauth2/default'\n";

impl Host {
    /// HTTPS with this host's certificate.
    pub fn client(&self, bed: &Bed) -> reqwest::Client {
        let authority = bed.collector.keys.authority_pem().as_bytes();
        let authority = reqwest::Certificate::from_pem_bundle(authority).unwrap();
        let identity = reqwest::Identity::from_pem(self.pem.as_bytes()).unwrap();
        reqwest::Client::builder()
            .tls_certs_only(authority)
            .identity(identity)
            .no_proxy()
            .build()
            .unwrap()
    }

    pub fn line(&self, bed: &Bed) -> Arc<Line> {
        let line = Line::new(&format!("https://{}", bed.address));
        line.connect(self.client(bed));
        Arc::new(line)
    }

    /// Starts its line to the collector.
    pub async fn connect(&mut self, bed: &Bed, local_approvers: bool) -> Arc<Remote> {
        let state = self.dir.join("state");
        let toml = format!("{HOST}[paths]\nstate = '{}'\n", state.display());
        let config: crate::config::Config = toml::from_str(&toml).unwrap();
        let remote = Arc::new(Remote {
            approvals: Approvals::new(&config),
            live: Arc::new(Registry::default()),
            identity: Identity::open(&config).await.unwrap(),
            config: Arc::new(config),
        });
        self.parts = Some(Arc::clone(&remote));
        let (policies, kept) = self.policies();
        let line = self.line(bed);
        let takes = kept.is_some();
        let centre = Centre::new(Arc::clone(&line), policies, takes, Box::new(|_| {}));
        let link = Link::new(line, Arc::clone(&remote), centre, local_approvers);
        let book =
            OrderBook::open(&self.dir, Arc::clone(&self.trusted), &self.id.fingerprint).unwrap();
        self.link.spawn(link.run(book, kept));
        remote
    }

    /// Its own rules are these from the next start on, and it takes those of the centre.
    pub fn takes(&mut self, rules: &str) {
        let dir = self.dir.join("policies");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("own.toml"), rules).unwrap();
        self.takes = true;
    }

    /// Its policies as they are after a start: with what is kept on disk.
    fn policies(&mut self) -> (Arc<Policies>, Option<Kept>) {
        let dir = self.dir.join("policies");
        std::fs::create_dir_all(&dir).unwrap();
        let policies = Arc::new(Policies::open(dir).unwrap());
        let kept = self.takes.then(|| Kept::open(&self.dir, Arc::clone(&self.trusted)).unwrap());
        let kept = kept.map(|(kept, in_force)| {
            policies.note_central(CentralStatus::default());
            if let Some(in_force) = in_force {
                apply(&policies, &in_force);
            }
            kept
        });
        self.running = Some(Arc::clone(&policies));
        (policies, kept)
    }

    /// The policies in force; those of a start without a collector where none was connected.
    pub fn running(&mut self) -> Arc<Policies> {
        if self.running.is_none() {
            self.policies();
        }
        Arc::clone(self.running.as_ref().unwrap())
    }

    /// The daemon stops; what is on disk stays.
    pub fn stop(&mut self) {
        self.link = JoinSet::new();
        (self.parts, self.running) = (None, None);
    }

    /// From now on it keeps which key it believes in a file, as an enrolled host does; which one.
    pub fn keeps_keys(&mut self) -> std::path::PathBuf {
        let current = self.trusted.current();
        let log = VerifierKey { name: "c.example/interceptor".into(), key: current };
        let known = serde_json::json!({ "url": "", "name": "a", "log_key": log.to_string(),
            "collector_key": current.to_base64() });
        let file = self.dir.join("collector.json");
        std::fs::write(&file, known.to_string()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
        self.trusted = Arc::new(Trusted::kept(&self.dir, current));
        file
    }

    /// Where it keeps what came from the collector.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }
}

/// A person with these groups.
pub fn person(bed: &Bed, sub: &str, groups: &[&str]) -> Person {
    let roles = bed.collector.config.roles.of(groups.iter().copied());
    Person {
        issuer: OKTA.into(),
        sub: sub.into(),
        name: format!("Name of {sub}"),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        roles,
    }
}

/// An approver.
pub fn approver(bed: &Bed, sub: &str) -> Person {
    let person = person(bed, sub, &["approvers"]);
    assert!(person.is(Role::Approver));
    person
}

/// A request of Eve's through an agent of the owner's.
pub fn ask(wait: Duration) -> HoldAsk {
    let id = |x: &str| ("okta".to_owned(), x.to_owned());
    HoldAsk {
        session: Ulid::new(),
        service: "orders-db".into(),
        database: "shop".into(),
        role: "app".into(),
        agent: "billing-bot".into(),
        principal: "eve@example.com".into(),
        principal_ids: vec![id("00u-eve"), id("eve@example.com"), id("0oa-billing")],
        owners: vec![id("00u-owner")],
        peer_uid: None,
        claims: json!({ "sub": "eve@example.com" }),
        statement: "UPDATE cards SET number = '4111111111111111'".into(),
        values: vec![Some("s3cret".into()), None],
        shape: "UPDATE cards SET number = $1".into(),
        rules: vec!["hold-writes".into()],
        message: None,
        deadline: tokio::time::Instant::now() + wait,
    }
}

/// The same as a host raises it.
pub fn raised(hold: &str, wait: Duration) -> Raise {
    let ask = ask(wait);
    let url = |ids: Vec<(String, String)>| {
        ids.into_iter().map(|(_, id)| (OKTA.to_owned(), id)).collect::<Vec<_>>()
    };
    Raise {
        hold: HoldSummary {
            id: hold.into(),
            session: ask.session.to_string(),
            service: ask.service,
            database: ask.database,
            role: ask.role,
            agent: ask.agent,
            principal: ask.principal,
            shape: ask.shape,
            rules: ask.rules,
            message: None,
            opened_us: now_us(),
            waited_ms: 0,
            remaining_ms: u64::try_from(wait.as_millis()).unwrap(),
        },
        statement: ask.statement.to_string(),
        values: ask.values,
        principal_ids: url(ask.principal_ids),
        owners: url(ask.owners),
        claims: ask.claims,
        impact: None,
    }
}

/// Puts a request before the people of the collector.
pub async fn waits(bed: &Bed, host: &Host, raise: Raise) -> String {
    holds::raise(&bed.collector, host.id.clone(), "boot", raise).await.unwrap()
}
