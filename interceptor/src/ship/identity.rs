//! What an enrolled host holds: its client certificate with its key, the authority it believes,
//! and the collector's own key. Key and certificate stand in one file that is exchanged whole,
//! so that a crash never leaves a key without its certificate.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use zeroize::Zeroizing;

use super::ShipError;
use crate::collector::log::VerifierKey;
use crate::record::PublicKey;

const CLIENT: &str = "client.pem";
const AUTHORITY: &str = "authority.pem";
const COLLECTOR: &str = "collector.json";

/// A key with a request for a certificate over it.
pub struct Request {
    key: KeyPair,
    /// PEM.
    pub csr_pem: String,
}

impl Request {
    /// Makes a new key.
    pub fn new() -> Result<Self, ShipError> {
        let fail = |e: rcgen::Error| ShipError::Enrolment(format!("cannot make a key: {e}"));
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(fail)?;
        let params = CertificateParams::default();
        let csr_pem = params.serialize_request(&key).and_then(|r| r.pem()).map_err(fail)?;
        Ok(Self { key, csr_pem })
    }

    /// Puts key and certificate into their file.
    pub fn keep(&self, dir: &Path, certificate_pem: &str) -> Result<(), ShipError> {
        let text = Zeroizing::new(self.key.serialize_pem() + certificate_pem);
        write(&dir.join(CLIENT), &text)
    }
}

/// The collector as it was at enrolment.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Known {
    /// Where it listens for hosts.
    pub url: String,
    /// Key that signs orders, base64.
    pub collector_key: String,
    /// Key of its log, as signed notes write it.
    pub log_key: String,
    /// Name under which it lists this host.
    pub name: String,
    /// Keys that it signed with before, oldest first, base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_keys: Vec<String>,
}

/// Everything that enrolment gave.
pub struct Identity {
    /// Key and certificate, PEM.
    pub client_pem: Zeroizing<String>,
    /// The authority, PEM.
    pub authority_pem: String,
    /// The collector.
    pub known: Known,
    /// When the certificate begins and ends.
    pub life: (SystemTime, SystemTime),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.known.name)
    }
}

impl Identity {
    /// Reads it; `None` when this host is not enrolled.
    pub fn load(dir: &Path) -> Result<Option<Self>, ShipError> {
        let client = dir.join(CLIENT);
        let Some(client_pem) = read(&client)? else { return Ok(None) };
        let wrong = |what: &str| ShipError::State {
            path: dir.into(),
            message: format!("{what}: enrol this host again"),
        };
        let authority = read(&dir.join(AUTHORITY))?.ok_or_else(|| wrong("no authority.pem"))?;
        let known = read_known(dir)?;
        let life = life(&client_pem).ok_or_else(|| wrong("client.pem holds no certificate"))?;
        Ok(Some(Self { client_pem, authority_pem: authority.to_string(), known, life }))
    }

    /// Keeps what enrolment gave; the certificate last, since it is what makes it one.
    pub fn keep(
        dir: &Path,
        request: &Request,
        known: &Known,
        authority_pem: &str,
        certificate_pem: &str,
    ) -> Result<(), ShipError> {
        write(&dir.join(AUTHORITY), authority_pem)?;
        keep_known(dir, known)?;
        request.keep(dir, certificate_pem)
    }

    /// Half of the certificate's life is over.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let (from, until) = self.life;
        let half = until.duration_since(from).unwrap_or_default() / 2;
        now >= from + half
    }

    /// The certificate has ended.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now >= self.life.1
    }

    /// The key that signs orders.
    pub fn collector_key(&self) -> Result<PublicKey, ShipError> {
        PublicKey::of_base64(&self.known.collector_key).ok_or_else(|| {
            ShipError::Enrolment("collector.json has no key: enrol this host again".into())
        })
    }

    /// The key of the log.
    pub fn log_key(&self) -> Result<VerifierKey, ShipError> {
        VerifierKey::parse(&self.known.log_key).map_err(|e| ShipError::Enrolment(e.to_string()))
    }
}

/// What is known of the collector.
pub(super) fn read_known(dir: &Path) -> Result<Known, ShipError> {
    let wrong = |what: &str| ShipError::State {
        path: dir.into(),
        message: format!("{what}: enrol this host again"),
    };
    let known = read(&dir.join(COLLECTOR))?.ok_or_else(|| wrong("no collector.json"))?;
    serde_json::from_str(&known).map_err(|e| wrong(&e.to_string()))
}

/// Keeps what is known of the collector; on disk when this returns.
pub(super) fn keep_known(dir: &Path, known: &Known) -> Result<(), ShipError> {
    let json = serde_json::to_string_pretty(known)
        .map_err(|e| ShipError::State { path: dir.into(), message: e.to_string() })?;
    write(&dir.join(COLLECTOR), &json)
}

fn life(pem: &str) -> Option<(SystemTime, SystemTime)> {
    let certificate = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
        .flatten()
        .find(|p| p.label == "CERTIFICATE")?;
    let parsed = certificate.parse_x509().ok()?;
    let at = |seconds: i64| {
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
    };
    let validity = parsed.validity();
    Some((at(validity.not_before.timestamp())?, at(validity.not_after.timestamp())?))
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, ShipError> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(ShipError::io("read", path, e)),
        Ok(meta) if meta.mode() & 0o077 != 0 => {
            let message = "can be read by others: chmod 0600 it".into();
            return Err(ShipError::State { path: path.into(), message });
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path)
        .map(|t| Some(Zeroizing::new(t)))
        .map_err(|e| ShipError::io("read", path, e))
}

fn write(path: &Path, text: &str) -> Result<(), ShipError> {
    let new = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|e| ShipError::io("write", path, e))
}
