//! Receivers: syslog over TLS, OTLP over HTTP.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::ground::Pki;

/// What a receiver does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Reads to the end, keeps it, and closes.
    Good,
    /// Reads a little and dies.
    Dies,
    /// Reads to the end and is killed before it could do anything with it.
    Killed,
    /// Says goodbye without having read.
    Leaves,
    /// Takes the connection and never reads.
    Silent,
}

/// Messages of connections that were read to their end, as they came.
#[derive(Clone, Default)]
pub struct Inbox(pub Arc<Mutex<Vec<String>>>);

/// A syslog receiver that wants a client certificate; connections have these manners in turn,
/// and the last one from then on.
pub fn syslog(pki: &Pki, listener: TcpListener, manners: Vec<Manner>) -> (Inbox, JoinSet<()>) {
    let acceptor = acceptor(pki);
    let (inbox, mut task) = (Inbox::default(), JoinSet::new());
    let kept = inbox.clone();
    task.spawn(async move {
        let (mut standing, mut nth) = (JoinSet::new(), 0);
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let manner = manners[nth.min(manners.len() - 1)];
            nth += 1;
            standing.spawn(connection(acceptor.clone(), stream, manner, kept.clone()));
        }
    });
    (inbox, task)
}

fn acceptor(pki: &Pki) -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.path("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let chain = vec![CertificateDer::from_pem_file(pki.path("siem.test.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(pki.path("siem.test.key")).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, manner: Manner, inbox: Inbox) {
    let Ok(mut tls) = acceptor.accept(stream).await else { return };
    let mut bytes = Vec::new();
    match manner {
        Manner::Silent => std::future::pending().await,
        Manner::Dies => {
            let _ = tls.read(&mut [0; 100]).await;
        }
        Manner::Killed => {
            let _ = tls.read_to_end(&mut bytes).await;
        }
        Manner::Leaves => {
            // All of it is here, unread.
            while tls.get_ref().0.peek(&mut [0; 16 << 10]).await.is_ok_and(|n| n < 2000) {
                tokio::task::yield_now().await;
            }
            let _ = tls.shutdown().await;
        }
        Manner::Good => {
            if tls.read_to_end(&mut bytes).await.is_ok() {
                inbox.0.lock().unwrap().extend(messages(&bytes));
                let _ = tls.shutdown().await;
            }
        }
    }
}

/// Octet counting, undone.
fn messages(mut bytes: &[u8]) -> Vec<String> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').unwrap();
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        let end = space + 1 + length;
        all.push(String::from_utf8(bytes[space + 1..end].to_vec()).unwrap());
        bytes = &bytes[end..];
    }
    all
}

/// An OTLP receiver: busy at first, then one that takes no more than ten events at a time.
#[derive(Clone, Default)]
pub struct Otlp {
    pub asked: Arc<AtomicUsize>,
    pub taken: Arc<Mutex<Vec<Value>>>,
    pub headers: Arc<Mutex<Vec<HeaderMap>>>,
}

impl Otlp {
    pub async fn start() -> (Self, SocketAddr) {
        let own = Self::default();
        let routes = Router::new().route("/v1/logs", post(take)).with_state(own.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (own, address)
    }

    /// Every log record, with its resource's host.
    pub fn records(&self) -> Vec<(String, Value)> {
        let mut all = Vec::new();
        for request in self.taken.lock().unwrap().iter() {
            for resource in request["resourceLogs"].as_array().unwrap() {
                let host = &resource["resource"]["attributes"][1]["value"]["stringValue"];
                let records = resource["scopeLogs"][0]["logRecords"].as_array().unwrap();
                let host = host.as_str().unwrap();
                all.extend(records.iter().map(|r| (host.to_owned(), r.clone())));
            }
        }
        all
    }
}

async fn take(State(own): State<Otlp>, headers: HeaderMap, body: String) -> Response {
    own.headers.lock().unwrap().push(headers);
    match own.asked.fetch_add(1, Ordering::SeqCst) {
        0 => return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "2")]).into_response(),
        1 => return StatusCode::TOO_MANY_REQUESTS.into_response(),
        2 => return StatusCode::BAD_REQUEST.into_response(),
        _ => {}
    }
    let request: Value = serde_json::from_str(&body).unwrap();
    let count: usize = request["resourceLogs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["scopeLogs"][0]["logRecords"].as_array().unwrap().len())
        .sum();
    if count > 10 {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    own.taken.lock().unwrap().push(request);
    axum::Json(json!({ "partialSuccess": {} })).into_response()
}
