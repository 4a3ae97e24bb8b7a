//! TLS of the address where tokens are presented: certificate and key from files, nothing of the
//! client.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::ServerTls;

/// The acceptor, and the certificate that names us.
pub fn acceptor(tls: &ServerTls) -> Result<(TlsAcceptor, CertificateDer<'static>), String> {
    let fail = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(&tls.certificate)
        .map_err(|e| fail(&tls.certificate, &e))?
        .collect::<Result<_, _>>()
        .map_err(|e| fail(&tls.certificate, &e))?;
    let own = chain.first().cloned();
    let own = own.ok_or_else(|| fail(&tls.certificate, &"no certificate in it"))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| fail(&tls.key, &e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|e| format!("certificate and key: {e}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), own))
}
