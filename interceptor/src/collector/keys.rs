//! The collector's keys: the authority that vouches for hosts, and the key that signs the log,
//! orders and decisions.
//!
//! Both are made by `collector init` below `keys/`, readable by their owner alone. The authority
//! stays; the signing key is changed by [`super::rotation`].

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::db::Connection;
use super::error::CollectorError;
use super::signing::{Held, InForce, SigningKeys};
use crate::record::chain::hex;
use crate::record::{HostKey, PublicKey};

/// What is signed to make the key of seals.
const SEAL_DOMAIN: &[u8] = b"interceptor collector seal v1\0";
/// The authority's own certificate lasts this long; hosts pin it.
const AUTHORITY_DAYS: i64 = 3650;

/// The collector's keys.
pub struct Keys {
    authority_pem: String,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    signing: SigningKeys,
}

impl Keys {
    fn directory(state: &Path) -> PathBuf {
        state.join("keys")
    }

    /// Makes both keys; refused where there are some.
    pub fn create(state: &Path) -> Result<Self, CollectorError> {
        let dir = Self::directory(state);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|e| CollectorError::io("create", &dir, e))?;
        std::fs::set_permissions(state, Permissions::from_mode(0o700))
            .map_err(|e| CollectorError::io("close to others", state, e))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "interceptor collector authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = params.not_before + Duration::days(AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(wrong)?;
        write(&dir.join("authority.key"), &Zeroizing::new(key.serialize_pem()))?;
        write(&dir.join("authority.pem"), &certificate.pem())?;
        SigningKeys::create(&dir)?;
        Self::open(state)
    }

    /// Takes keys away that were just made and are nobody's.
    pub(super) fn forget(state: &Path) {
        if let Err(error) = std::fs::remove_dir_all(Self::directory(state)) {
            tracing::warn!(%error, "keys that belong to nothing stay");
        }
    }

    /// Reads what [`Keys::create`] made.
    pub fn open(state: &Path) -> Result<Self, CollectorError> {
        let dir = Self::directory(state);
        let authority_pem = read(&dir.join("authority.pem"), false)?;
        let key_pem = read(&dir.join("authority.key"), true)?;
        let key = KeyPair::from_pem(&key_pem).map_err(wrong)?;
        let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes())
            .map_err(|e| CollectorError::Key(format!("authority.pem: {e}")))?;
        let issuer = Issuer::from_ca_cert_pem(&authority_pem, key).map_err(wrong)?;
        let signing = SigningKeys::open(&dir)?;
        Ok(Self { authority_pem: authority_pem.to_string(), authority, issuer, signing })
    }

    /// The authority's certificate.
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// The authority's certificate.
    pub fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    /// What a host pins when it enrols: SHA-256 of the authority's certificate, hex.
    pub fn authority_pin(&self) -> String {
        use sha2::{Digest, Sha256};
        hex(&Sha256::digest(&self.authority))
    }

    /// Signs certificates.
    pub fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The signing keys that count, inside the caller's transaction.
    pub fn in_force(&self, db: &Connection) -> Result<Arc<InForce>, CollectorError> {
        self.signing.in_force(db)
    }

    /// Writes down which keys count, so that a database that was put back is found out. Not in a
    /// transaction that writes.
    pub fn remember(&self, db: &Connection) -> Result<(), CollectorError> {
        self.signing.remember(db)
    }

    /// The first signing key, by which a database knows its collectors.
    pub fn root(&self) -> &PublicKey {
        self.signing.root()
    }

    /// The signing key that was in force when the database was asked last.
    pub fn public(&self) -> PublicKey {
        *self.signing.known().public()
    }

    /// Makes a signing key that may follow the one in force; its fingerprint.
    pub fn make_signing(&self) -> Result<String, CollectorError> {
        self.signing.make().map(|public| public.fingerprint_hex())
    }

    /// Signing keys that are here and were never in force.
    pub(super) fn unused(&self, in_force: &InForce) -> Result<Vec<Held>, CollectorError> {
        self.signing.unused(in_force)
    }

    /// Deletes the private parts of the keys before the one in force; the fingerprints of those
    /// that were here. That nothing needs them is for the caller to know ([`super::rotation`]).
    pub fn delete_past(&self, in_force: &InForce) -> Result<Vec<String>, CollectorError> {
        let mut deleted = Vec::new();
        for held in in_force.past() {
            if self.signing.delete(&held.public)? {
                deleted.push(held.public.fingerprint_hex());
            }
        }
        Ok(deleted)
    }

    /// Signs with the key that was in force when the database was asked last.
    #[cfg(test)]
    pub fn sign(&self, domain: &[u8], message: &[u8]) -> [u8; 64] {
        self.signing.known().sign(domain, message).unwrap_or([0; 64])
    }

    /// Seals a text for collectors with the same keys, under a name that it is opened with.
    pub fn seal(&self, name: &[u8], text: &[u8]) -> Result<Vec<u8>, CollectorError> {
        let fail = |_| CollectorError::Key("nothing can be sealed: restart the collector".into());
        let mut sealed = text.to_vec();
        let key = Self::sealer(self.signing.known().key()?)?;
        let nonce = key.seal_in_place_append_tag(Aad::from(name), &mut sealed);
        let mut out = nonce.map_err(fail)?.as_ref().to_vec();
        out.append(&mut sealed);
        Ok(out)
    }

    /// Opens what [`Keys::seal`] made.
    pub fn open_sealed(&self, name: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce: [u8; NONCE_LEN] = nonce.try_into().ok()?;
        // Another collector may have changed its key already, or not yet.
        let known = self.signing.known();
        [known.current()].into_iter().chain(known.past().iter().rev()).find_map(|held| {
            let key = Self::sealer(held.private.as_ref()?).ok()?;
            let nonce = Nonce::assume_unique_for_key(nonce);
            let mut text = Zeroizing::new(text.to_vec());
            let length = key.open_in_place(nonce, Aad::from(name), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        })
    }

    /// AES-256-GCM with random nonces. Its key is a signature that is made nowhere else: it is
    /// always the same (RFC 8032), and only who has the signing key can make it.
    fn sealer(signing: &HostKey) -> Result<RandomizedNonceKey, CollectorError> {
        use sha2::{Digest, Sha256};
        let secret = Zeroizing::new(signing.sign(SEAL_DOMAIN));
        let key = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(*secret)));
        RandomizedNonceKey::new(&AES_256_GCM, &*key)
            .map_err(|_| CollectorError::Key("nothing can be sealed: restart the collector".into()))
    }
}

fn wrong(e: rcgen::Error) -> CollectorError {
    CollectorError::Key(format!("authority: {e}"))
}

fn write(path: &Path, text: &str) -> Result<(), CollectorError> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| CollectorError::io("create", path, e))
}

fn read(path: &Path, secret: bool) -> Result<Zeroizing<String>, CollectorError> {
    let fail = |e| CollectorError::io("read (run `interceptor collector init` first)", path, e);
    let meta = std::fs::metadata(path).map_err(fail)?;
    if secret && meta.mode() & 0o077 != 0 {
        return Err(CollectorError::Key(format!("chmod 0600 {}", path.display())));
    }
    std::fs::read_to_string(path).map(Zeroizing::new).map_err(fail)
}
