//! HTTPS with everything bounded: connections in all and of one source, bytes of a head, and
//! time, also that for which a client takes nothing of an answer. What a request may carry and ask
//! is the routes' matter.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Sleep;
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
/// A client that takes nothing of an answer for this time has left.
const STALL: Duration = Duration::from_secs(30);
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
    serve_with(listener, acceptor, routes, STALL).await;
}

async fn serve_with(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    routes: Router,
    stall: Duration,
) {
    let places = Arc::new(Places::default());
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Too many: closed at once rather than queued.
                let source = Source::Address(source(address.ip()));
                let Some(place) = places.enter(source) else { continue };
                let (acceptor, routes) = (acceptor.clone(), routes.clone());
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let stream = Moving::new(stream, stall);
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
    stream: Moving<TcpStream>,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    routes: Router,
    place: Place,
) {
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

/// A connection that ends with an error when what is written to it does not move on for a time: a
/// client that stops reading holds neither a task nor what the task holds.
struct Moving<S> {
    stream: S,
    stall: Duration,
    /// Runs while a write waits.
    waits: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Moving<S> {
    fn new(stream: S, stall: Duration) -> Self {
        Self { stream, stall, waits: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(done) = write(Pin::new(&mut self.stream), cx) {
            self.waits = None;
            return Poll::Ready(done);
        }
        let stall = self.stall;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(waits.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch(cx, |stream, cx| stream.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::mpsc;
    use tokio_util::io::ReaderStream;

    use super::*;

    /// Serves a body of some pieces, written by a task as those of downloads are; how many it could
    /// write is told when it ends.
    async fn bodies(
        pieces: usize,
        stall: Duration,
    ) -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
        let (tell, ended) = mpsc::unbounded_channel();
        let body = move || {
            let (mut writer, reader) = tokio::io::duplex(256 << 10);
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut written = 0;
                while written < pieces && writer.write_all(&[7; 64 << 10]).await.is_ok() {
                    written += 1;
                }
                let _ = tell.send(written);
            });
            async move { Body::from_stream(ReaderStream::new(reader)) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(body));
        tokio::spawn(serve_with(listener, None, routes, stall));
        (address, ended)
    }

    async fn asks(address: SocketAddr) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        client
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_holds_no_answer() {
        let (address, mut ended) = bodies(usize::MAX, Duration::from_millis(300)).await;
        let mut client = asks(address).await;
        client.read_exact(&mut [0; 1000]).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), ended.recv());
        assert!(ended.await.unwrap() > Some(0));
        // What it still finds on its way is not the whole.
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_client_that_reads_slowly_gets_all_of_it() {
        let (address, mut ended) = bodies(200, Duration::from_secs(5)).await;
        let mut client = asks(address).await;
        let (mut read, mut end, mut piece) = (0, Vec::new(), vec![0; 512 << 10]);
        while !end.ends_with(b"0\r\n\r\n") {
            let n = client.read(&mut piece).await.unwrap();
            assert!(n > 0, "{read} bytes came");
            read += n;
            end.extend_from_slice(&piece[..n]);
            end.drain(..end.len().saturating_sub(5));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(read > 200 * (64 << 10));
        assert_eq!(ended.recv().await, Some(200));
    }

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
