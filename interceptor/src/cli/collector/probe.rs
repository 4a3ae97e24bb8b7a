//! Asks the listeners of the collector on this machine whether they answer, and how they are.
//!
//! Nothing secret is sent: what is asked for is open to every program on this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::collector::overview::ends;
use crate::collector::{Config, Keys};

/// A listener must answer within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// Most bytes of an answer that are read: metrics of some ten thousand hosts.
const MOST: u64 = 16 << 20;

/// One listener.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Probe {
    /// Where it was asked.
    pub address: String,
    /// Whether it answered as it should.
    pub answers: bool,
    /// Why not.
    pub error: Option<String>,
    /// When the certificate ends that it shows; microseconds since the Unix epoch.
    pub certificate_until_us: Option<i64>,
}

/// How a listener is spoken to.
struct Listener {
    address: SocketAddr,
    tls: Option<(ClientConfig, ServerName<'static>)>,
}

/// An answer.
struct Answer {
    status: u16,
    body: String,
    certificate: Option<CertificateDer<'static>>,
}

/// The listener for hosts: as a host does, its certificate is checked against the authority.
pub async fn hosts(config: &Config, keys: &Keys) -> Probe {
    let name = config.hosts.names.first().cloned().unwrap_or_default();
    let tls = checked(keys).and_then(|tls| Ok((tls, server_name(&name)?)));
    let address = here(config.hosts.listen);
    match tls {
        Ok(tls) => probe(&Listener { address, tls: Some(tls) }).await.0,
        Err(why) => Probe { address: address.to_string(), error: Some(why), ..Probe::default() },
    }
}

/// The listener for people, and the certificate that it shows.
pub async fn console(config: &Config) -> (Probe, Option<CertificateDer<'static>>) {
    match people(config) {
        Ok(listener) => probe(&listener).await,
        Err(why) => {
            let address = here(config.console.listen).to_string();
            (Probe { address, error: Some(why), ..Probe::default() }, None)
        }
    }
}

/// The metrics of the process that runs; only a listener on a loopback address gives them to us.
pub async fn metrics(config: &Config) -> Option<String> {
    let listener = people(config).ok()?;
    if !listener.address.ip().is_loopback() {
        return None;
    }
    let answer = ask(&listener, "/metrics").await.ok()?;
    (answer.status == 200).then_some(answer.body)
}

fn people(config: &Config) -> Result<Listener, String> {
    let address = here(config.console.listen);
    let tls = match &config.console.tls {
        None => None,
        Some(_) => Some((unchecked()?, server_name(&address.ip().to_string())?)),
    };
    Ok(Listener { address, tls })
}

/// Where something that listens everywhere is reached from this machine.
fn here(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|e| format!("{name:?} is no name: {e}"))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn checked(keys: &Keys) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add(keys.authority().clone()).map_err(|e| e.to_string())?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn unchecked() -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let shown = Arc::new(Shown(provider()));
    Ok(builder.dangerous().with_custom_certificate_verifier(shown).with_no_client_auth())
}

async fn probe(listener: &Listener) -> (Probe, Option<CertificateDer<'static>>) {
    let mut probe = Probe { address: listener.address.to_string(), ..Probe::default() };
    match ask(listener, "/healthz").await {
        Ok(answer) => {
            probe.answers = answer.status == 200 && answer.body == "ok\n";
            if !probe.answers {
                probe.error = Some(format!(
                    "something else listens there: it answers with status {}",
                    answer.status
                ));
            }
            probe.certificate_until_us = answer.certificate.as_ref().and_then(ends);
            (probe, answer.certificate)
        }
        Err(why) => {
            probe.error = Some(why);
            (probe, None)
        }
    }
}

async fn ask(listener: &Listener, path: &str) -> Result<Answer, String> {
    let asked = async {
        let tcp = TcpStream::connect(listener.address).await.map_err(|e| e.to_string())?;
        let Some((config, name)) = &listener.tls else { return exchange(tcp, path).await };
        let connector = TlsConnector::from(Arc::new(config.clone()));
        let tls = connector.connect(name.clone(), tcp).await.map_err(|e| format!("TLS: {e}"))?;
        let shown = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
        let certificate = shown.map(|c| c.clone().into_owned());
        Ok(Answer { certificate, ..exchange(tls, path).await? })
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

/// HTTP/1.0, whose answer ends with the connection.
async fn exchange<S>(mut stream: S, path: &str) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let read = stream.take(MOST).read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes);
    let whole = text.split_once("\r\n\r\n");
    // Who ends a connection without ending TLS has said everything all the same.
    let Some((head, body)) = whole else {
        return Err(read.map_or_else(|e| e.to_string(), |_| "its answer is no HTTP".into()));
    };
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or("its answer is no HTTP")?;
    Ok(Answer { status, body: body.to_owned(), certificate: None })
}

/// Takes every certificate: it is looked at, and not relied on. Whoever shows it has its key.
#[derive(Debug)]
struct Shown(Arc<CryptoProvider>);

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
