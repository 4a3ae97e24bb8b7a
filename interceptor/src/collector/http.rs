//! HTTPS with everything bounded: connections in all and of one source, bytes of a head, and
//! time. What a request may carry and ask is the routes' matter.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Most bytes of a request's head.
const MAX_HEAD: usize = 64 * 1024;
/// Most header lines.
const MAX_HEADERS: usize = 100;
/// A head must be complete within this time; between two requests of a connection it is the
/// time that it may rest.
const HEAD: Duration = Duration::from_secs(60);
/// A small body must be there within this time.
const BODY: Duration = Duration::from_secs(30);
/// Most bytes of a small body: the largest held request, as JSON.
const MAX_WHOLE: usize = 8 << 20;
/// TLS must be agreed on within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections in all.
const MOST: usize = 10_000;
/// Connections of one source address.
const MOST_OF_ONE: usize = 256;

/// Who is at the other end of a connection; an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// The certificate it proved to have; always one of our authority.
    pub certificate: Option<CertificateDer<'static>>,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// Connections that stand, by source.
#[derive(Default)]
struct Places(Mutex<(usize, HashMap<IpAddr, usize>)>);

struct Place(Arc<Places>, IpAddr);

impl Places {
    fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Place> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = all.1.get(&source).copied().unwrap_or_default();
        if all.0 >= MOST || here >= MOST_OF_ONE {
            return None;
        }
        all.0 += 1;
        all.1.insert(source, here + 1);
        Some(Place(Arc::clone(self), source))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.0 = all.0.saturating_sub(1);
        if let Some(n) = all.1.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                all.1.remove(&self.1);
            }
        }
    }
}

/// Lets a request go on when its whole body is there: what trickles in holds nothing, and ends.
/// For routes whose bodies are small.
pub(super) async fn whole_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let read = axum::body::to_bytes(body, MAX_WHOLE);
    match tokio::time::timeout(BODY, read).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

/// What counts as one source: of IPv6 the network that one customer has.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

/// Serves until the future is dropped. Without an acceptor HTTP is spoken in the clear.
pub(super) async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, routes: Router) {
    let places = Arc::new(Places::default());
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Too many: closed at once rather than queued.
                let Some(place) = places.enter(source(address.ip())) else { continue };
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                tokio::spawn(async move {
                    connection(stream, address, acceptor, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "collector: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    routes: Router,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        return requests(stream, Peer { address, certificate: None, tls: false }, routes).await;
    };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let certificate = shown.map(|c| c.clone().into_owned());
    requests(stream, Peer { address, certificate, tls: true }, routes).await;
}

async fn requests<S>(stream: S, peer: Peer, routes: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(routes.layer(Extension(peer)));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "collector: connection ended");
    }
}
