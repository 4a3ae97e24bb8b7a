//! The agent's key: one file, P-256 or RSA (Okta's DPoP knows no EdDSA), used for JWTs and for
//! SSH.
//!
//! Every private operation goes through aws-lc.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding,
    RsaKeyPair,
};
use jsonwebtoken::jwk::{CommonParameters, Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm as JwtAlgorithm, EncodingKey};
use russh::keys::signature::{self, Signer};
use russh::keys::ssh_encoding::Encode;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{Mpint, Signature};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey, pkcs8};
use zeroize::Zeroizing;

/// Largest key file: an RSA key of 8192 bits takes about 7 KiB.
const MAX_FILE: u64 = 64 * 1024;

/// What kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Kind {
    /// ECDSA on P-256: small, fast, what issuers recommend.
    #[default]
    #[value(name = "p256")]
    P256,
    /// RSA of 3072 bits, for issuers that know no ECDSA.
    #[value(name = "rsa")]
    Rsa,
}

/// Why a key cannot be used. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {message}")]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What to change.
        message: String,
    },
}

/// A private key in memory.
pub struct AgentKey {
    signer: Private,
    jwt: EncodingKey,
    jwk: Jwk,
    jkt: String,
    public: PublicKey,
}

enum Private {
    P256(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl fmt::Debug for AgentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentKey").field("jkt", &self.jkt).finish_non_exhaustive()
    }
}

impl AgentKey {
    /// Makes a key and writes it into a new file, mode 0600, as PKCS#8 PEM.
    pub fn create(path: &Path, kind: Kind) -> Result<Self, KeyError> {
        let unfit = |message: &str| KeyError::Unfit { path: path.into(), message: message.into() };
        let der = generate(kind).map_err(|_| unfit("no key can be made: no randomness"))?;
        let key = Self::from_pkcs8(&der).map_err(|e| unfit(&e))?;
        let pem = pem(&der);
        let fail = |source| KeyError::Io { path: path.into(), source };
        let mut file =
            File::options().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
        Ok(key)
    }

    /// Reads a key file: PKCS#8, SEC1, PKCS#1 or OpenSSH's own format, without passphrase. Refuses
    /// one that others can read.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let fail = |source| KeyError::Io { path: path.into(), source };
        let unfit = |message: String| KeyError::Unfit { path: path.into(), message };
        let file = File::open(path).map_err(fail)?;
        let meta = file.metadata().map_err(fail)?;
        if !meta.is_file() || meta.len() > MAX_FILE {
            return Err(unfit("this is no key file".into()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(unfit(format!(
                "mode {:04o} lets others use it: chmod 0600 {}",
                meta.mode() & 0o7777,
                path.display()
            )));
        }
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE).read_to_string(&mut text).map_err(fail)?;
        Self::from_text(&text).map_err(unfit)
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let key = russh::keys::decode_secret_key(text, None)
            .map_err(|e| format!("no private key that can be used: {e}"))?;
        let pkcs8 = pkcs8::encode_pkcs8(&key).map(Zeroizing::new);
        Self::new(&key, &pkcs8.map_err(|e| e.to_string())?)
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, String> {
        let key = pkcs8::decode_pkcs8(der, None).map_err(|e| e.to_string())?;
        Self::new(&key, der)
    }

    fn new(key: &PrivateKey, der: &[u8]) -> Result<Self, String> {
        let pem = pem(der);
        let (signer, jwt, algorithm) = match key.algorithm() {
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => (
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)
                    .map(Private::P256)
                    .map_err(|e| e.to_string())?,
                EncodingKey::from_ec_pem(pem.as_bytes()),
                JwtAlgorithm::ES256,
            ),
            Algorithm::Rsa { .. } => (
                RsaKeyPair::from_pkcs8(der).map(Private::Rsa).map_err(|e| e.to_string())?,
                EncodingKey::from_rsa_pem(pem.as_bytes()),
                JwtAlgorithm::RS256,
            ),
            other => {
                return Err(format!(
                    "a key of kind {other} cannot be bound to a token: make a P-256 or RSA key \
                     with `interceptor agent key`"
                ));
            }
        };
        let jwt = jwt.map_err(|e| e.to_string())?;
        let mut jwk = Jwk::from_encoding_key(&jwt, algorithm).map_err(|e| e.to_string())?;
        jwk.common = CommonParameters::default();
        let jkt = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|e| e.to_string())?;
        let mut public = key.public_key().clone();
        public.set_comment("");
        Ok(Self { signer, jwt, jwk, jkt, public })
    }

    /// Its RFC 7638 thumbprint: the `cnf.jkt` of tokens that are bound to it.
    pub fn jkt(&self) -> &str {
        &self.jkt
    }

    /// The public key as a JWK, with nothing in it but the key.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The public key of SSH.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What JWTs are signed with.
    pub(super) fn jwt(&self) -> (&EncodingKey, JwtAlgorithm) {
        match self.signer {
            Private::P256(_) => (&self.jwt, JwtAlgorithm::ES256),
            Private::Rsa(_) => (&self.jwt, JwtAlgorithm::RS256),
        }
    }

    /// An SSH signature. An RSA key signs with the hash that is asked for; SHA-1 is not offered.
    pub(super) fn sign(&self, data: &[u8], hash: HashAlg) -> Result<Signature, KeyUseError> {
        let rng = SystemRandom::new();
        let (algorithm, bytes) = match &self.signer {
            Private::P256(key) => {
                let fixed = key.sign(&rng, data).map_err(|_| KeyUseError)?;
                (self.public.algorithm(), ecdsa_blob(fixed.as_ref())?)
            }
            Private::Rsa(key) => {
                let padding: &'static dyn RsaEncoding = match hash {
                    HashAlg::Sha256 => &RSA_PKCS1_SHA256,
                    HashAlg::Sha512 => &RSA_PKCS1_SHA512,
                    _ => return Err(KeyUseError),
                };
                let mut bytes = vec![0; key.public_modulus_len()];
                key.sign(padding, &rng, data, &mut bytes).map_err(|_| KeyUseError)?;
                (Algorithm::Rsa { hash: Some(hash) }, bytes)
            }
        };
        Signature::new(algorithm, bytes).map_err(|_| KeyUseError)
    }
}

/// The key could not sign.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the key cannot sign this")]
pub struct KeyUseError;

/// Certificates are signed by their own key.
impl Signer<Signature> for AgentKey {
    fn try_sign(&self, message: &[u8]) -> signature::Result<Signature> {
        self.sign(message, HashAlg::Sha512).map_err(signature::Error::from_source)
    }
}

impl From<&AgentKey> for KeyData {
    fn from(key: &AgentKey) -> Self {
        key.public.key_data().clone()
    }
}

/// The two halves of a signature as RFC 5656 §3.1.2 wants them.
fn ecdsa_blob(fixed: &[u8]) -> Result<Vec<u8>, KeyUseError> {
    let (r, s) = fixed.split_at_checked(32).ok_or(KeyUseError)?;
    let mut out = Vec::with_capacity(74);
    for half in [r, s] {
        Mpint::from_positive_bytes(half).encode(&mut out).map_err(|_| KeyUseError)?;
    }
    Ok(out)
}

fn generate(kind: Kind) -> Result<Zeroizing<Vec<u8>>, aws_lc_rs::error::Unspecified> {
    Ok(Zeroizing::new(match kind {
        Kind::P256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?
            .to_pkcs8v1()?
            .as_ref()
            .to_vec(),
        Kind::Rsa => {
            let key = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa3072)?;
            let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der()?;
            der.as_ref().to_vec()
        }
    }))
}

fn pem(der: &[u8]) -> Zeroizing<String> {
    use base64::Engine;
    let mut body = Zeroizing::new(String::with_capacity(der.len() * 2));
    base64::engine::general_purpose::STANDARD.encode_string(der, &mut body);
    let mut out = Zeroizing::new(String::with_capacity(body.len() + body.len() / 32 + 80));
    out.push_str("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(std::str::from_utf8(line).unwrap_or_default());
        out.push('\n');
    }
    out.push_str("-----END PRIVATE KEY-----\n");
    out
}

impl FromStr for AgentKey {
    type Err = String;

    /// From the text of a key file.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_text(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ssh_thumbprint;
    use russh::keys::signature::Verifier;
    use russh::keys::ssh_key::LineEnding;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_made_key_is_private_and_reads_back_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::P256, Kind::Rsa] {
            let path = dir.path().join(format!("{kind:?}"));
            let made = AgentKey::create(&path, kind).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
            let read = AgentKey::load(&path).unwrap();
            assert_eq!(made.jkt(), read.jkt());
            assert_eq!(ssh_thumbprint(read.public()).unwrap(), read.jkt());
            assert!(AgentKey::create(&path, kind).is_err(), "never overwritten");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
            assert!(AgentKey::load(&path).unwrap_err().to_string().contains("chmod 0600"));
        }
    }

    #[test]
    fn signatures_are_good_by_the_libraries_that_will_check_them() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, hash) in [
            (Kind::P256, HashAlg::Sha512),
            (Kind::Rsa, HashAlg::Sha256),
            (Kind::Rsa, HashAlg::Sha512),
        ] {
            let path = dir.path().join(format!("{kind:?}{hash:?}"));
            let key = AgentKey::create(&path, kind).unwrap();
            for n in 0..8 {
                let data = format!("message {n}");
                let signature = key.sign(data.as_bytes(), hash).unwrap();
                key.public().key_data().verify(data.as_bytes(), &signature).unwrap();
            }
        }
    }

    #[test]
    fn keys_of_other_tools_are_read_and_other_kinds_are_not() {
        let mut rng = russh::keys::key::safe_rng();
        let mut random = |kind| PrivateKey::random(&mut rng, kind).unwrap();
        let openssh = |key: &PrivateKey| key.to_openssh(LineEnding::LF).unwrap();
        let p256 = random(Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 });
        let key: AgentKey = openssh(&p256).parse().unwrap();
        assert_eq!(key.public().key_data(), p256.public_key().key_data());
        for other in [Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 }] {
            let error = AgentKey::from_text(&openssh(&random(other))).unwrap_err();
            assert!(error.contains("P-256 or RSA"), "{error}");
        }
        assert!(AgentKey::from_text("nonsense").is_err());
    }
}
