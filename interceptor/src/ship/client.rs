//! HTTPS towards the collector and nobody else: its own authority, this host's certificate, no
//! proxy by accident of the environment, no redirects, bounded in time.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, StatusCode};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::ShipError;
use super::identity::Identity;
use crate::collector::wire::Refused;

const CONNECT: Duration = Duration::from_secs(10);
/// An answer that is not about a batch must come within this time.
pub const ANSWER: Duration = Duration::from_secs(40);
/// Longest answer that is read.
const MAX_ANSWER: usize = 32 << 20;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client with this host's certificate.
pub fn enrolled(identity: &Identity) -> Result<Client, ShipError> {
    let wrong = |e: &dyn std::fmt::Display| {
        ShipError::Enrolment(format!("certificate or key cannot be used: {e}; enrol this host again"))
    };
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(identity.authority_pem.as_bytes());
    roots.add(authority.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    let pem = identity.client_pem.as_bytes();
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|e| wrong(&e))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(&e))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map_err(|e| wrong(&e))?, key)
        .map_err(|e| wrong(&e))?;
    build(config)
}

/// A client that believes an authority by the SHA-256 of its certificate, for enrolment.
pub fn pinned(pin: [u8; 32]) -> Result<Client, ShipError> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| ShipError::Enrolment(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider: provider() }))
        .with_no_client_auth();
    build(config)
}

fn build(mut config: ClientConfig) -> Result<Client, ShipError> {
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Client::builder()
        .tls_backend_preconfigured(config)
        .redirect(reqwest::redirect::Policy::none())
        .https_only(true)
        .no_proxy()
        .connect_timeout(CONNECT)
        .pool_max_idle_per_host(2)
        .user_agent(concat!("interceptor/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| ShipError::Enrolment(format!("cannot prepare HTTPS: {}", chain(&e))))
}

/// An error with all its reasons on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    crate::identity::https::chain(error)
}

/// Sends a request and reads its answer as JSON; a refusal is an error that says why.
pub async fn call<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, ShipError> {
    let answer = request.send().await.map_err(|e| ShipError::Away(chain(&e)))?;
    let status = answer.status();
    let body = read(answer).await?;
    if status.is_success() {
        let text = if body.is_empty() { b"null" } else { &body[..] };
        return serde_json::from_slice(text)
            .map_err(|e| ShipError::Away(format!("the collector's answer cannot be read: {e}")));
    }
    let refused = serde_json::from_slice::<Refused>(&body);
    match refused {
        Ok(refused) if status.is_client_error() => Err(ShipError::Refused(Box::new(refused))),
        Ok(refused) => Err(ShipError::Away(refused.message)),
        Err(_) if status == StatusCode::NOT_FOUND => {
            Err(ShipError::Away("the collector does not know this request: is it older?".into()))
        }
        Err(_) => Err(ShipError::Away(format!("the collector answered {status}"))),
    }
}

async fn read(mut answer: reqwest::Response) -> Result<Vec<u8>, ShipError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| ShipError::Away(chain(&e)))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(ShipError::Away("the collector's answer is too long".into()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Believes the one authority in the shown chain that has the pinned hash, and then checks the
/// chain as always.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let authority = intermediates
            .iter()
            .find(|c| Sha256::digest(c.as_ref()).as_slice() == self.pin)
            .ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|_| unknown())?
            .verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
