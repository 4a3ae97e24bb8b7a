//! The authority and the database server's certificate of one bed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::net::{HOST_V4, HOST_V6};

/// The DNS name in the server's certificate, beside its addresses.
pub const SERVER_NAME: &str = "db.example.internal";

/// Certificate files of one bed.
pub struct Tls {
    /// What clients trust.
    pub ca: PathBuf,
    /// The database server's certificate, which the daemon shows too.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Tls {
    /// Makes an authority and a server certificate for the host's addresses.
    pub fn create(dir: &Path) -> Result<Self> {
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::default();
        ca.distinguished_name.push(DnType::CommonName, "Test bed authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca_pem = ca.self_signed(&ca_key)?.pem();

        let key = KeyPair::generate()?;
        let names = [HOST_V4, HOST_V6, "127.0.0.1", "::1", "localhost", SERVER_NAME];
        let mut leaf = CertificateParams::new(names.map(String::from).to_vec())?;
        leaf.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        let certificate = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;

        let tls = Self {
            ca: dir.join("ca.pem"),
            certificate: dir.join("server.pem"),
            key: dir.join("server.key"),
        };
        std::fs::write(&tls.ca, ca_pem)?;
        std::fs::write(&tls.certificate, certificate.pem())?;
        crate::cluster::write_private(&tls.key, key.serialize_pem().as_bytes())?;
        Ok(tls)
    }
}
