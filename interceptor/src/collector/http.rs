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
use sha2::{Digest, Sha256};
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
/// Connections in all: those of some thousand hosts.
const MOST: usize = 20_000;
/// Connections of one source address that show no certificate of ours.
const MOST_OF_ONE: usize = 256;
/// Connections with one certificate: a host needs a handful.
const MOST_OF_HOST: usize = 32;

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

/// Whose connection it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    /// Nobody's that is known yet.
    Address(IpAddr),
    /// SHA-256 of the certificate that it proved to have. Many hosts may come from one address,
    /// that of a balancer or of their site.
    Certificate([u8; 32]),
}

impl Source {
    fn most(&self) -> usize {
        match self {
            Self::Address(_) => MOST_OF_ONE,
            Self::Certificate(_) => MOST_OF_HOST,
        }
    }
}

/// Connections that stand, by source.
#[derive(Default)]
struct Places(Mutex<(usize, HashMap<Source, usize>)>);

struct Place(Arc<Places>, Source);

impl Places {
    fn enter(self: &Arc<Self>, source: Source) -> Option<Place> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = all.1.get(&source).copied().unwrap_or_default();
        if all.0 >= MOST || here >= source.most() {
            return None;
        }
        all.0 += 1;
        all.1.insert(source.clone(), here + 1);
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
                let source = Source::Address(source(address.ip()));
                let Some(place) = places.enter(source) else { continue };
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                tokio::spawn(async move {
                    connection(stream, address, acceptor, routes, place).await;
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
    place: Place,
) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        requests(stream, Peer { address, certificate: None, tls: false }, routes).await;
        return drop(place);
    };
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        return;
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let certificate = shown.map(|c| c.clone().into_owned());
    let place = match &certificate {
        Some(certificate) => {
            let places = Arc::clone(&place.0);
            // The address has room again for others that are not known.
            drop(place);
            places.enter(Source::Certificate(Sha256::digest(certificate).into()))
        }
        None => Some(place),
    };
    let Some(_place) = place else { return };
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_behind_one_address_are_counted_each_for_itself() {
        let places = Arc::new(Places::default());
        let balancer = || Source::Address([192, 0, 2, 1].into());
        let fleet: Vec<Place> = (0..40)
            .flat_map(|n| (0..8).map(move |_| n))
            .map(|n| {
                let place = places.enter(balancer()).unwrap();
                drop(place);
                places.enter(Source::Certificate([n; 32])).unwrap()
            })
            .collect();
        assert_eq!(fleet.len(), 320);
        let strangers: Vec<Place> =
            std::iter::from_fn(|| places.enter(balancer())).take(1_000).collect();
        assert_eq!(strangers.len(), MOST_OF_ONE);
        let greedy: Vec<Place> =
            std::iter::from_fn(|| places.enter(Source::Certificate([0; 32]))).take(1_000).collect();
        assert_eq!(greedy.len(), MOST_OF_HOST - 8);
        drop((fleet, strangers, greedy));
        assert_eq!(*places.0.lock().unwrap(), (0, HashMap::new()));
    }
}
