//! The two endpoints over HTTPS, with everything bounded: connections, requests and bytes of a
//! source, and time.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension};
use axum::routing::post;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::capture;
use crate::config::{self, Service};
use crate::identity::{Identity, Source};

use super::answer::{present, ticket};
use super::check::Checker;
use super::memory::Presented;
use super::nonce::Nonces;
use super::origin::Origins;
use super::pace::Pace;
use super::tls;

/// Most bytes of a body.
const MAX_BODY: usize = 24 * 1024;
/// Most bytes of a request's head: a token, a proof, and little else.
const MAX_HEAD: usize = 32 * 1024;
/// Most header lines.
const MAX_HEADERS: usize = 32;
/// A head must be complete within this time.
const HEAD: Duration = Duration::from_secs(5);
/// A connection ends after this time, whatever it does.
const CONNECTION: Duration = Duration::from_secs(20);

/// Why tokens cannot be presented here.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("present.listen = {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Certificate, key or addresses cannot be used.
    #[error("present: {0}")]
    Config(String),
}

/// What an answer stands on.
pub struct Parts {
    /// Checks tokens.
    pub identity: Arc<Identity>,
    /// Remembers what was presented.
    pub presented: Arc<Presented>,
    /// The services that tokens may be presented for, by name.
    pub services: HashMap<String, Arc<Service>>,
    /// Hears of every answer, for metrics and alerts.
    pub notify: Box<dyn Fn(&Event<'_>) + Send + Sync>,
}

/// What became of a request.
#[derive(Debug)]
pub struct Event<'a> {
    /// The service it was for, where it is one of ours.
    pub service: Option<&'a str>,
    /// The code of a refusal; none when it was granted.
    pub refused: Option<&'a str>,
    /// Somebody should look.
    pub alert: bool,
}

/// What all connections share.
pub(super) struct App {
    pub parts: Parts,
    pub checker: Checker,
    pub pace: Arc<Pace>,
}

/// Listens; serves when it is run.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    app: Arc<App>,
}

impl Server {
    /// Reads certificate and key and listens.
    pub fn new(config: &config::Present, parts: Parts) -> Result<Self, StartError> {
        let (acceptor, certificate) = tls::acceptor(&config.tls).map_err(StartError::Config)?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let listener = std::net::TcpListener::bind(config.listen).map_err(listen)?;
        listener.set_nonblocking(true).map_err(listen)?;
        let listener = TcpListener::from_std(listener).map_err(listen)?;
        let port = listener.local_addr().map_err(listen)?.port();
        let origins = Origins::new(&config.urls, &certificate, port).map_err(StartError::Config)?;
        let nonces = Nonces::new()
            .map_err(|_| StartError::Config("this machine has no randomness".into()))?;
        let checker = Checker::new(origins, nonces);
        let app = Arc::new(App { parts, checker, pace: Arc::default() });
        Ok(Self { listener, acceptor, app })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // Too many: closed at once rather than queued.
                    let Some(place) = self.app.pace.enter(peer.ip()) else { continue };
                    let (app, acceptor) = (Arc::clone(&self.app), self.acceptor.clone());
                    tokio::spawn(async move {
                        let _ =
                            tokio::time::timeout(CONNECTION, serve(app, acceptor, stream, peer))
                                .await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "present: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(app: Arc<App>, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr) {
    // Who owns the other end is asked while it is there; see `Source::key`.
    let uid = stream.local_addr().ok().and_then(|here| capture::peer_uid(peer, here));
    let source = Source { addr: peer.ip(), uid };
    let Ok(tls) = acceptor.accept(stream).await else { return };
    let router = Router::new()
        .route("/v1/present", post(present))
        .route("/v1/ticket", post(ticket))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(Extension(source))
        .with_state(app);
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(2 * MAX_HEAD)
        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(router))
        .await;
}
