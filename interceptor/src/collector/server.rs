//! The two listeners: one for hosts, with certificates of our own authority on both sides, and
//! one for people.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::Router;
use axum::middleware::from_fn;
use axum::routing::get;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::error::CollectorError;
use super::keys::Keys;
use super::{Collector, forward, http, link, recordings, retention, search, shared};

/// How long the listener's own certificate is good for.
const CERTIFICATE_DAYS: i64 = 30;
/// It is made anew after this time.
const RENEW: Duration = Duration::from_secs(7 * 24 * 3600);

/// A collector that listens.
pub struct Server {
    collector: Arc<Collector>,
    hosts: (TcpListener, TlsAcceptor),
    console: (TcpListener, Option<TlsAcceptor>),
    people: Router,
}

impl Server {
    /// Reads certificates and listens at both addresses.
    pub async fn new(collector: Arc<Collector>) -> Result<Self, CollectorError> {
        let config = &collector.config;
        collector.recordings.ready()?;
        let acceptor = hosts_acceptor(&collector)?;
        let hosts = (listen(config.hosts.listen).await?, acceptor);
        let console_acceptor = match &config.console.tls {
            Some(tls) => {
                let (acceptor, _) = crate::present::acceptor(tls)
                    .map_err(|e| CollectorError::Key(format!("console.tls: {e}")))?;
                Some(acceptor)
            }
            None => None,
        };
        let console = (listen(config.console.listen).await?, console_acceptor);
        let people = console_routes(&collector)?;
        Ok(Self { collector, hosts, console, people })
    }

    /// Where it listens: for hosts, for people.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.hosts.0.local_addr()?, self.console.0.local_addr()?))
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let (listener, acceptor) = self.hosts;
        tasks.spawn(http::serve(listener, Some(acceptor), host_routes(&self.collector)));
        let (listener, acceptor) = self.console;
        tasks.spawn(http::serve(listener, acceptor, self.people));
        tasks.spawn(forward::run(Arc::clone(&self.collector)));
        tasks.spawn(link::run(Arc::clone(&self.collector)));
        tasks.spawn(shared::run(Arc::clone(&self.collector)));
        tasks.spawn(search::run(Arc::clone(&self.collector)));
        tasks.spawn(recordings::run(Arc::clone(&self.collector)));
        tasks.spawn(retention::run(self.collector));
        tasks.join_all().await;
    }
}

/// What hosts may ask. Each route looks up the host behind the certificate; only enrolment does
/// without.
fn host_routes(collector: &Arc<Collector>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .merge(super::routes::routes(collector))
        .merge(link::routes(collector).layer(from_fn(http::whole_body)))
}

/// What people may ask.
fn console_routes(collector: &Arc<Collector>) -> Result<Router, CollectorError> {
    let alive = Router::new().route("/healthz", get(|| async { "ok\n" }));
    let all = alive.merge(super::api::routes(collector)?).merge(super::console::routes(collector)?);
    Ok(all.layer(from_fn(http::whole_body)).layer(from_fn(super::console::guard::headers)))
}

async fn listen(address: SocketAddr) -> Result<TcpListener, CollectorError> {
    TcpListener::bind(address).await.map_err(|source| CollectorError::Listen { address, source })
}

/// Asks for a certificate of our authority; without one only enrolment is answered.
fn hosts_acceptor(collector: &Arc<Collector>) -> Result<TlsAcceptor, CollectorError> {
    let wrong = |e: &dyn std::fmt::Display| CollectorError::Key(format!("hosts listener: {e}"));
    let mut roots = RootCertStore::empty();
    roots.add(collector.keys.authority().clone()).map_err(|e| wrong(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| wrong(&e))?;
    let own = OwnCertificate {
        collector: Arc::clone(collector),
        current: ArcSwap::from_pointee((Instant::now(), Arc::new(make(collector)?))),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(own));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificate of the hosts' listener, made anew in time.
struct OwnCertificate {
    collector: Arc<Collector>,
    current: ArcSwap<(Instant, Arc<CertifiedKey>)>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnCertificate")
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.load();
        if current.0.elapsed() > RENEW {
            match make(&self.collector) {
                Ok(new) => self.current.store(Arc::new((Instant::now(), Arc::new(new)))),
                Err(error) => tracing::error!(%error, "the listener's certificate gets old"),
            }
        }
        Some(Arc::clone(&self.current.load().1))
    }
}

fn make(collector: &Collector) -> Result<CertifiedKey, CollectorError> {
    let wrong = |e: &dyn std::fmt::Display| CollectorError::Key(format!("hosts.names: {e}"));
    let keys: &Keys = &collector.keys;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| wrong(&e))?;
    let mut params =
        CertificateParams::new(collector.config.hosts.names.clone()).map_err(|e| wrong(&e))?;
    params.distinguished_name.push(DnType::CommonName, "interceptor collector");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(1);
    params.not_after = params.not_before + time::Duration::days(CERTIFICATE_DAYS);
    let certificate = params.signed_by(&key, keys.issuer()).map_err(|e| wrong(&e))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|e| wrong(&e))?;
    // With the authority, which hosts that enrol know by its hash alone.
    let chain = vec![certificate.der().clone(), keys.authority().clone()];
    Ok(CertifiedKey::new(chain, key))
}
