//! Tokens presented beforehand and tickets, over real TLS, with proofs that are good and proofs
//! that are not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use interceptor::agent::present::Desk;
use interceptor::agent::settings::Given;
use interceptor::agent::{AgentKey, Kind, jwt};
use interceptor::config::{Config, Service};
use interceptor::identity::{Identity, Occasion, Proven, ProvenKey, Refusal, Source};
use interceptor::present::{Parts, Presented, Server, is_ticket};
use interceptor_tests::issuer::{Client, Issuer, Mint, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVICE: &str = "host-ssh";

/// A host at which tokens can be presented, its issuer, and an agent's key.
struct Host {
    issuer: Issuer,
    config: Config,
    identity: Arc<Identity>,
    presented: Arc<Presented>,
    key: AgentKey,
    key_file: PathBuf,
    address: SocketAddr,
    events: Arc<Mutex<Vec<String>>>,
    dir: tempfile::TempDir,
}

impl Host {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("agent.key");
        let key = AgentKey::create(&key_file, Kind::P256).unwrap();
        let jwk = json!(key.jwk());
        let client = |id: &str, dpop| Client {
            id: id.into(),
            jwk: Some(jwk.clone()),
            scopes: vec!["ssh".into()],
            dpop,
            ..Client::default()
        };
        let clients = vec![client("0oa1machine", true), client("0oa2bearer", false)];
        let issuer = Issuer::start(Options { clients, ..Options::default() }).await.unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(dir.path().join("cert.pem"), own.cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), own.signing_key.serialize_pem()).unwrap();
        let config = configuration(&issuer.url(), dir.path());
        let identity = Identity::open(&config).await.unwrap();
        let presented = Arc::new(Presented::with_ticket_life(Duration::from_secs(2)));
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&events);
        let services: HashMap<_, _> =
            config.services.iter().map(|s| (s.name.clone(), Arc::new(s.clone()))).collect();
        let parts = Parts {
            identity: Arc::clone(&identity),
            presented: Arc::clone(&presented),
            services,
            notify: Box::new(move |event| {
                let word = event.refused.unwrap_or("granted");
                let alert = if event.alert { "!" } else { "" };
                heard.lock().unwrap().push(format!("{word}{alert}"));
            }),
        };
        let server = Server::new(config.present.as_ref().unwrap(), parts).unwrap();
        let address = server.address().unwrap();
        tokio::spawn(server.run());
        Self { issuer, config, identity, presented, key, key_file, address, events, dir }
    }

    fn service(&self) -> &Service {
        &self.config.services[0]
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// A token bound to the agent's key.
    fn token(&self) -> String {
        self.issuer.mint(&Mint::new(json!({"scp": ["ssh"], "cnf": {"jkt": self.key.jkt()}})))
    }

    fn proof(&self, path: &str, nonce: &str, token: &str) -> String {
        jwt::proof(&self.key, &self.url(path), Some(nonce), Some(token.as_bytes())).unwrap()
    }

    async fn nonce(&self) -> String {
        self.post("/v1/present", "", b"{}").await.nonce
    }

    async fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.send(&[request.as_bytes(), body].concat()).await
    }

    async fn send(&self, bytes: &[u8]) -> Answer {
        let mut tls = self.connect().await;
        // A request that is refused early is not read to its end.
        let _ = tls.write_all(bytes).await;
        let _ = tls.flush().await;
        let mut answer = Vec::new();
        let _ = tls.read_to_end(&mut answer).await;
        Answer::read(&String::from_utf8_lossy(&answer))
    }

    async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.dir.path().join("cert.pem")).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// `Authorization` and `DPoP` for a token with a good proof.
    async fn bound(&self, path: &str, token: &str) -> String {
        let proof = self.proof(path, &self.nonce().await, token);
        format!("Authorization: DPoP {token}\r\nDPoP: {proof}\r\n")
    }

    /// As an SSH connection proves what was presented.
    async fn prove(
        &self,
        kept: &interceptor::identity::Kept,
        source: Source,
        key: Option<&AgentKey>,
    ) -> Result<Proven, Refusal> {
        let client_key = key.map(|k| ProvenKey::Ssh(k.public()));
        let now = SystemTime::now();
        let occasion = Occasion { service: self.service(), source, client_key, now };
        self.identity.prove_kept(kept, occasion).await
    }

    fn events(&self) -> Vec<String> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }
}

fn configuration(issuer: &str, dir: &std::path::Path) -> Config {
    let d = dir.display();
    let text = format!(
        r#"
        [paths]
        state = "{d}"
        [present]
        listen = "127.0.0.1:0"
        tls = {{ certificate = "{d}/cert.pem", key = "{d}/key.pem" }}
        [[issuer]]
        name = "okta"
        url = "{issuer}"
        insecure_loopback = true
        [[agent]]
        name = "bot"
        issuer = "okta"
        cid = "0oa1machine"
        [[agent]]
        name = "other"
        issuer = "okta"
        cid = "0oa2bearer"
        [[service]]
        name = "{SERVICE}"
        protocol = "ssh"
        port = 22
        audience = "api://default"
        scope = "ssh"
        upstream = {{ host = "127.0.0.1", port = 22 }}
        [[service]]
        name = "second-ssh"
        protocol = "ssh"
        port = 2222
        audience = "api://second"
        upstream = {{ host = "127.0.0.1", port = 2222 }}
        "#
    );
    let file = dir.join("interceptor.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(&file).unwrap()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    nonce: String,
    head: String,
    body: Value,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let nonce = head.lines().find_map(|l| l.strip_prefix("dpop-nonce: ")).unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or_default();
        Self { status, nonce: nonce.to_owned(), head: head.to_owned(), body }
    }

    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("none")
    }
}

fn body() -> Vec<u8> {
    json!({ "service": SERVICE }).to_string().into_bytes()
}

/// This process, as the server's kernel sees it on loopback.
fn here() -> Source {
    let uid = Some(nix::unistd::geteuid().as_raw());
    Source { addr: "127.0.0.1".parse().unwrap(), uid }
}

fn elsewhere() -> Source {
    Source { addr: "203.0.113.9".parse().unwrap(), uid: None }
}

#[tokio::test]
async fn a_presented_token_opens_for_its_key_and_its_source() {
    let host = Host::start().await;
    let token = host.token();
    let answer = host.post("/v1/present", &host.bound("/v1/present", &token).await, &body()).await;
    assert_eq!((answer.status, &answer.body["agent"]), (200, &json!("bot")), "{answer:?}");
    assert_eq!(answer.body["jkt"], json!(host.key.jkt()));
    let find = |key: &AgentKey, service: &Service, source: &Source| {
        host.presented.find(key.public(), service, source)
    };
    let kept = find(&host.key, host.service(), &here()).expect("presented");
    let proven = host.prove(&kept, here(), Some(&host.key)).await.unwrap();
    assert_eq!(proven.agent().name, "bot");
    assert!(!proven.pinned_new(), "presenting was the first use");
    let other = AgentKey::create(&host.dir.path().join("other"), Kind::P256).unwrap();
    assert!(find(&other, host.service(), &here()).is_none(), "another key");
    assert!(find(&host.key, host.service(), &elsewhere()).is_none(), "another source");
    assert!(find(&host.key, &host.config.services[1], &here()).is_none(), "another service");
    // Every check is made again: without the key, and after the signing key was withdrawn.
    let refused = host.prove(&kept, here(), None).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "TOKEN_PROOF_REQUIRED");
    let refused = host.prove(&kept, here(), Some(&other)).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "TOKEN_PROOF_REQUIRED");
    let refused = host.prove(&kept, elsewhere(), Some(&host.key)).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "TOKEN_COPIED");
    assert_eq!(host.presented.counts(), (1, 0));
    let text = format!("{:?} {kept:?}", host.presented);
    assert!(!text.contains(&token), "a token is never kept");
}

#[tokio::test]
async fn a_proof_that_is_not_for_this_request_is_refused() {
    let host = Host::start().await;
    let token = host.token();
    let (nonce, old) = (host.nonce().await, "made-up-nonce");
    let of = |address: &str, nonce: &str, token: &str| {
        jwt::proof(&host.key, address, Some(nonce), Some(token.as_bytes())).unwrap()
    };
    let url = host.url("/v1/present");
    let other = AgentKey::create(&host.dir.path().join("other"), Kind::P256).unwrap();
    let stolen = jwt::proof(&other, &url, Some(&nonce), Some(token.as_bytes())).unwrap();
    for (name, proof, code) in [
        ("another path", of(&host.url("/v1/ticket"), &nonce, &token), "DPOP_PROOF"),
        ("another host", of("https://evil.example/v1/present", &nonce, &token), "DPOP_PROOF"),
        ("another token", of(&url, &nonce, "x.y.z"), "DPOP_PROOF"),
        ("a foreign nonce", of(&url, old, &token), "DPOP_NONCE"),
        (
            "no nonce",
            jwt::proof(&host.key, &url, None, Some(token.as_bytes())).unwrap(),
            "DPOP_NONCE",
        ),
        ("another key", stolen, "TOKEN_PROOF_REQUIRED"),
        ("no proof", "nonsense".into(), "DPOP_PROOF"),
        ("the token itself", token.clone(), "DPOP_PROOF"),
    ] {
        let headers = format!("Authorization: DPoP {token}\r\nDPoP: {proof}\r\n");
        let answer = host.post("/v1/present", &headers, &body()).await;
        assert_eq!((answer.status, answer.code()), (401, code), "{name}: {answer:?}");
        assert!(answer.head.contains("www-authenticate: DPoP error="), "{name}");
        assert!(!answer.nonce.is_empty(), "{name}");
        assert!(!format!("{answer:?}").contains(&token), "{name}");
    }
    assert_eq!(host.presented.counts(), (0, 0));
    let good = of(&url, &nonce, &token);
    let headers = format!("Authorization: DPoP {token}\r\nDPoP: {good}\r\n");
    assert_eq!(host.post("/v1/present", &headers, &body()).await.status, 200);
    host.events();
    let again = host.post("/v1/present", &headers, &body()).await;
    assert_eq!((again.status, again.code()), (401, "DPOP_REPLAYED"));
    assert_eq!(host.events(), ["DPOP_REPLAYED!"], "and somebody hears of it");
    let twice = format!("{headers}DPoP: {good}\r\n");
    assert_eq!(host.post("/v1/present", &twice, &body()).await.code(), "DPOP_PROOF");
}

#[tokio::test]
async fn tokens_are_judged_as_everywhere() {
    let host = Host::start().await;
    let cnf = json!({"jkt": host.key.jkt()});
    for (claims, code) in [
        (json!({"scp": ["x"], "cnf": cnf}), "TOKEN_SCOPE_EXCEEDED"),
        (json!({"scp": ["ssh"], "cnf": cnf, "aud": "api://x"}), "TOKEN_AUDIENCE"),
        (json!({"scp": ["ssh"], "cnf": cnf, "cid": "0oa9"}), "AGENT_UNKNOWN"),
        (json!({"scp": ["ssh"], "cnf": cnf, "exp": 1}), "TOKEN_EXPIRED"),
        (json!({"scp": ["ssh"]}), "TOKEN_UNBOUND"),
    ] {
        let token = host.issuer.mint(&Mint::new(claims.clone()));
        let headers = host.bound("/v1/present", &token).await;
        let answer = host.post("/v1/present", &headers, &body()).await;
        assert_eq!((answer.status, answer.code()), (401, code), "{claims}");
    }
    let bearer = format!("Authorization: Bearer {}\r\n", host.token());
    for path in ["/v1/present", "/v1/ticket"] {
        let answer = host.post(path, &bearer, &body()).await;
        assert_eq!(answer.code(), "TOKEN_PROOF_REQUIRED", "no downgrade at {path}");
    }
    for headers in ["", "Authorization: Basic eDp5\r\n", "Authorization: DPoP\r\n"] {
        let answer = host.post("/v1/present", headers, &body()).await;
        assert_eq!((answer.status, answer.code()), (401, "TOKEN_MISSING"), "{headers}");
    }
}

#[tokio::test]
async fn what_is_too_large_too_slow_or_not_json_costs_nothing() {
    let host = Host::start().await;
    for (wrong, status) in [
        (b"".as_slice(), 400),
        (b"{", 400),
        (br#"{"service":1}"#, 400),
        (br#"{"service":"host-ssh","more":1}"#, 400),
        (br#"{"service":"nowhere"}"#, 404),
        (&[b' '; 24 * 1024 + 1], 413),
    ] {
        assert_eq!(host.post("/v1/present", "", wrong).await.status, status);
    }
    let giant = format!("Authorization: DPoP {}\r\n", "a".repeat(40_000));
    assert!(matches!(host.post("/v1/present", &giant, &body()).await.status, 0 | 431));
    let many = "X-Filler: x\r\n".repeat(100);
    assert!(matches!(host.post("/v1/present", &many, &body()).await.status, 0 | 431));
    let get = host.send(b"GET /v1/present HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(get.status, 405);
    let elsewhere = host.post("/other", "", &body()).await;
    assert_eq!(elsewhere.status, 404);
    // Connections of one source are bounded; those that are there go on.
    let mut open = Vec::new();
    for _ in 0..16 {
        open.push(host.connect().await);
    }
    let mut late = tokio::net::TcpStream::connect(host.address).await.unwrap();
    assert_eq!(late.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed at once");
    drop(open);
}

#[tokio::test]
async fn a_source_that_asks_too_often_is_told_to_wait() {
    let host = Host::start().await;
    let mut last = 0;
    for _ in 0..80 {
        last = host.post("/v1/present", "", &body()).await.status;
        if last == 429 {
            break;
        }
        assert_eq!(last, 401);
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn a_ticket_is_good_once_here_and_not_for_long() {
    let host = Host::start().await;
    let token = host.issuer.mint(&Mint::new(json!({"scp": ["ssh"]})));
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let ticket = async || {
        let answer = host.post("/v1/ticket", &bearer, &body()).await;
        assert_eq!((answer.status, &answer.body["expires_in"]), (200, &json!(2)), "{answer:?}");
        answer.body["ticket"].as_str().unwrap().to_owned()
    };
    let first = ticket().await;
    assert!(is_ticket(first.as_bytes()) && !is_ticket(token.as_bytes()));
    let redeem = |ticket: &str, source: &Source| {
        host.presented.redeem(ticket.as_bytes(), host.service(), source)
    };
    let kept = redeem(&first, &here()).unwrap();
    assert_eq!(host.prove(&kept, here(), None).await.unwrap().agent().name, "bot");
    let again = redeem(&first, &here()).unwrap_err();
    assert_eq!((again.code.as_str(), again.alert), ("TICKET_INVALID", false));
    assert!(redeem("never-given", &here()).is_err());
    // One that is tried from elsewhere is burnt and raised.
    let stolen = ticket().await;
    let refused = redeem(&stolen, &elsewhere()).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.alert), ("TICKET_INVALID", true));
    assert!(refused.detail.unwrap().contains("203.0.113.9"));
    assert!(!refused.message.contains("203.0.113"));
    assert!(redeem(&stolen, &here()).is_err(), "burnt");
    let second = ticket().await;
    let other = host.presented.redeem(second.as_bytes(), &host.config.services[1], &here());
    assert!(other.unwrap_err().alert, "for one service");
    let late = ticket().await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(redeem(&late, &here()).is_err(), "too late");
}

#[tokio::test]
async fn a_ticket_for_a_bound_token_needs_the_key_too() {
    let host = Host::start().await;
    let token = host.token();
    let answer = host.post("/v1/ticket", &host.bound("/v1/ticket", &token).await, &body()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ticket = answer.body["ticket"].as_str().unwrap();
    let kept = host.presented.redeem(ticket.as_bytes(), host.service(), &here()).unwrap();
    let refused = host.prove(&kept, here(), None).await.unwrap_err();
    assert_eq!(refused.code.as_str(), "TOKEN_PROOF_REQUIRED");
    assert_eq!(host.prove(&kept, here(), Some(&host.key)).await.unwrap().agent().name, "bot");
}

#[tokio::test]
async fn the_helper_presents_and_gets_tickets() {
    let host = Host::start().await;
    let issuer = |id: &str| {
        let given = Given {
            issuer: Some(host.issuer.url()),
            client_id: Some(id.into()),
            key: Some(host.key_file.clone()),
            scopes: Some(vec!["ssh".into()]),
            users: Some(vec!["deploy".into()]),
            insecure_loopback: Some(true),
            ..Given::default()
        };
        interceptor::agent::Issuer::new(given.complete().unwrap()).unwrap()
    };
    let ca = host.dir.path().join("cert.pem");
    let desk = Desk::new(&host.url(""), Some(&ca)).unwrap();
    let bound = issuer("0oa1machine");
    let grant = bound.grant(true).await.unwrap();
    let answer = desk.ask("present", SERVICE, &bound, &grant).await.unwrap();
    assert_eq!(answer["jkt"], json!(host.key.jkt()));
    assert!(host.presented.find(host.key.public(), host.service(), &here()).is_some());
    let bearer = issuer("0oa2bearer");
    let grant = bearer.grant(false).await.unwrap();
    let answer = desk.ask("ticket", SERVICE, &bearer, &grant).await.unwrap();
    let ticket = answer["ticket"].as_str().unwrap();
    assert!(host.presented.redeem(ticket.as_bytes(), host.service(), &here()).is_ok());
    let error = desk.ask("ticket", "nowhere", &bearer, &grant).await.unwrap_err();
    assert!(error.to_string().contains("SERVICE_UNKNOWN"), "{error}");
}
