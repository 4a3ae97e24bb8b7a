//! A local OIDC issuer that answers as an Okta custom authorization server does.
//!
//! It mints good tokens, and on purpose bad ones: that is why it must never be reachable from
//! anywhere but loopback. All its state is one directory, so that the server, the library and the
//! command line work on the same keys.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

mod dpop;
mod http;
mod keys;
mod mint;

pub use http::Client;
pub use keys::Algorithm;
pub use mint::{Mint, Sign};

use keys::Keys;

/// How an issuer is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Loopback address; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Serve https with a certificate of its own (see [`Issuer::ca_file`]).
    pub tls: bool,
    /// What tokens are signed with.
    pub algorithm: Algorithm,
    /// Where keys and clients live; a temporary directory when absent.
    pub state: Option<PathBuf>,
    /// Default audience of minted tokens, as one custom server has one audience.
    pub audience: String,
    /// Clients known to the token endpoint.
    pub clients: Vec<Client>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: false,
            algorithm: Algorithm::RS256,
            state: None,
            audience: "api://default".to_owned(),
            clients: Vec::new(),
        }
    }
}

/// A running issuer; it stops when dropped.
pub struct Issuer {
    state: State,
    shared: Arc<Shared>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    _temporary: Option<tempfile::TempDir>,
}

/// What tests turn and read while the issuer runs.
#[derive(Default)]
pub(crate) struct Shared {
    down: AtomicBool,
    max_age: AtomicU64,
    discoveries: AtomicU64,
    key_fetches: AtomicU64,
    delay_ms: AtomicU64,
    dpop: dpop::Dpop,
}

impl Issuer {
    /// Starts an issuer and returns when it listens.
    pub async fn start(options: Options) -> Result<Self> {
        if !options.listen.ip().is_loopback() {
            bail!("{}: an issuer that mints bad tokens listens on loopback only", options.listen);
        }
        let (dir, temporary) = match options.state {
            Some(dir) => (dir, None),
            None => {
                let temporary = tempfile::tempdir()?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let listener = tokio::net::TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let address = listener.local_addr()?;
        let scheme = if options.tls { "https" } else { "http" };
        let url = format!("{scheme}://{address}/oauth2/default");
        let state = State::create(&dir, &url, &options.audience, options.algorithm)?;
        for client in options.clients {
            state.register(client)?;
        }
        let shared = Arc::new(Shared::default());
        shared.max_age.store(3600, Ordering::Relaxed);
        let task = http::serve(listener, state.clone(), shared.clone(), options.tls)?;
        Ok(Self { state, shared, address, task, _temporary: temporary })
    }

    /// The exact `iss`.
    pub fn url(&self) -> String {
        self.state.url().unwrap_or_default()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate that clients must trust, when it serves https.
    pub fn ca_file(&self) -> PathBuf {
        self.state.ca_file()
    }

    /// Mints a token, good or bad.
    pub fn mint(&self, mint: &Mint) -> String {
        self.state.mint(mint).unwrap_or_else(|e| panic!("cannot mint: {e:#}"))
    }

    /// Signs a header and claims exactly as written.
    pub fn mint_raw(&self, header: &str, claims: &str, sign: Sign) -> String {
        self.state.mint_raw(header, claims, sign).unwrap_or_else(|e| panic!("cannot mint: {e:#}"))
    }

    /// The name of the key that signs now.
    pub fn kid(&self) -> String {
        self.state.keys().map(|k| k.current().kid.clone()).unwrap_or_default()
    }

    /// Signs with a new key from now on; with `emergency` the old ones are withdrawn at once.
    pub fn rotate(&self, emergency: bool) {
        self.state.rotate(emergency).unwrap_or_else(|e| panic!("cannot rotate: {e:#}"));
    }

    /// Makes another key set stand at `/v1/keys`, whatever it is; `None` goes back.
    pub fn publish(&self, jwks: Option<&Value>) {
        self.state.publish(jwks).unwrap_or_else(|e| panic!("cannot publish: {e:#}"));
    }

    /// Answers every request with 503 while `true`.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::Relaxed);
    }

    /// `max-age` of the key set.
    pub fn set_max_age(&self, seconds: u64) {
        self.shared.max_age.store(seconds, Ordering::Relaxed);
    }

    /// Delays every answer.
    pub fn set_delay(&self, delay: std::time::Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Hands out another DPoP nonce; proofs with the old one are sent back.
    pub fn rotate_nonce(&self) {
        self.shared.dpop.rotate();
    }

    /// Makes a client known to the token endpoint, or replaces it.
    pub fn register(&self, client: Client) {
        self.state.register(client).unwrap_or_else(|e| panic!("cannot register: {e:#}"));
    }

    /// How often the key set was fetched.
    pub fn key_fetches(&self) -> u64 {
        self.shared.key_fetches.load(Ordering::Relaxed)
    }

    /// How often discovery was asked.
    pub fn discoveries(&self) -> u64 {
        self.shared.discoveries.load(Ordering::Relaxed)
    }

    /// Waits until the server ends, which it does not by itself.
    pub async fn serve_forever(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The directory with keys and clients.
#[derive(Debug, Clone)]
pub struct State {
    dir: Arc<PathBuf>,
}

impl State {
    /// Opens the directory of an issuer that was started before.
    pub fn open(dir: &Path) -> Result<Self> {
        let state = Self { dir: Arc::new(dir.to_owned()) };
        state.keys().with_context(|| format!("no issuer lives in {}", dir.display()))?;
        Ok(state)
    }

    fn create(dir: &Path, url: &str, audience: &str, algorithm: Algorithm) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let state = Self { dir: Arc::new(dir.to_owned()) };
        let keys = match state.keys() {
            // A restart keeps its keys; only the address may be another.
            Ok(mut keys) if keys.algorithm == algorithm => {
                keys.url = url.to_owned();
                keys.audience = audience.to_owned();
                keys
            }
            _ => Keys::generate(url, audience, algorithm)?,
        };
        state.save("keys.json", &keys)?;
        Ok(state)
    }

    /// Mints a token with the current key.
    pub fn mint(&self, mint: &Mint) -> Result<String> {
        mint.token(&self.keys()?)
    }

    /// Signs a header and claims exactly as written.
    pub fn mint_raw(&self, header: &str, claims: &str, sign: Sign) -> Result<String> {
        mint::sign(&self.keys()?, header, claims, sign)
    }

    /// Signs with a new key from now on; with `emergency` the old ones are withdrawn.
    pub fn rotate(&self, emergency: bool) -> Result<()> {
        let mut keys = self.keys()?;
        keys.rotate(emergency)?;
        self.save("keys.json", &keys)
    }

    /// Makes a client known to the token endpoint, or replaces it.
    pub fn register(&self, client: Client) -> Result<()> {
        let mut clients = self.clients();
        clients.retain(|c| c.id != client.id);
        clients.push(client);
        self.save("clients.json", &clients)
    }

    fn publish(&self, jwks: Option<&Value>) -> Result<()> {
        match jwks {
            Some(jwks) => self.save("published.json", jwks),
            None => Ok(std::fs::remove_file(self.dir.join("published.json"))?),
        }
    }

    fn published(&self) -> Result<Value> {
        match std::fs::read(self.dir.join("published.json")) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(_) => Ok(self.keys()?.jwks()),
        }
    }

    fn url(&self) -> Result<String> {
        Ok(self.keys()?.url)
    }

    fn keys(&self) -> Result<Keys> {
        Ok(serde_json::from_slice(&std::fs::read(self.dir.join("keys.json"))?)?)
    }

    fn clients(&self) -> Vec<Client> {
        std::fs::read(self.dir.join("clients.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    fn save(&self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let mut draft = tempfile::NamedTempFile::new_in(&*self.dir)?;
        serde_json::to_writer_pretty(&mut draft, value)?;
        draft.persist(self.dir.join(name))?;
        Ok(())
    }
}
