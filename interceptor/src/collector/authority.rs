//! Certificates of hosts. Of a request only its key is used; name, use and life are ours.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::FromDer;

use super::error::CollectorError;
use super::keys::Keys;
use crate::record::chain::hex;

/// How long a host's certificate lasts.
pub const HOST_DAYS: i64 = 30;
/// Longest request that is read.
const MAX_CSR: usize = 16 * 1024;

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM.
    pub pem: String,
    /// Its serial number, hex.
    pub serial: String,
    /// Its end, microseconds since the Unix epoch.
    pub until_us: i64,
}

/// Issues a certificate to the host with a fingerprint. A request that is not well-formed, not
/// signed by its own key or not for a P-256 key is refused.
pub fn issue(keys: &Keys, csr_pem: &str, fingerprint: &str) -> Result<Issued, CollectorError> {
    let wrong = |e: &dyn std::fmt::Display| {
        CollectorError::Key(format!("the certificate request cannot be used: {e}"))
    };
    if csr_pem.len() > MAX_CSR {
        return Err(wrong(&"it is too long"));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| wrong(&e))?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(wrong(&"its key is not on P-256"));
    }
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| wrong(&"no randomness from the kernel"))?;
    // A serial number is positive and its first byte is not zero.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, fingerprint);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    // An hour back, for hosts whose clock is late.
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(HOST_DAYS);
    let until_us = params.not_after.unix_timestamp().saturating_mul(1_000_000);
    let certificate =
        params.signed_by(&request.public_key, keys.issuer()).map_err(|e| wrong(&e))?;
    Ok(Issued { pem: certificate.pem(), serial: hex(&serial), until_us })
}

/// Name and serial number in a certificate, which is one of ours when TLS let it in.
pub fn read(certificate: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, parsed) =
        x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some((name, hex(parsed.raw_serial())))
}
