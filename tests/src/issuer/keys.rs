//! Signing keys of the local issuer and their rotation.

use anyhow::{Context, Result};
use jsonwebtoken::EncodingKey;
use jsonwebtoken::jwk::Jwk;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What tokens are signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Algorithm {
    /// RSA with SHA-256, what Okta uses.
    #[value(name = "RS256")]
    RS256,
    /// ECDSA on P-256.
    #[value(name = "ES256")]
    ES256,
}

impl Algorithm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
        }
    }

    pub(super) fn jose(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::RS256 => jsonwebtoken::Algorithm::RS256,
            Self::ES256 => jsonwebtoken::Algorithm::ES256,
        }
    }

    fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Self::RS256 => &rcgen::PKCS_RSA_SHA256,
            Self::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        }
    }
}

/// One signing key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Key {
    pub kid: String,
    pem: String,
}

impl Key {
    pub fn generate(algorithm: Algorithm) -> Result<Self> {
        let pem = rcgen::KeyPair::generate_for(algorithm.rcgen())?.serialize_pem();
        Ok(Self { kid: random(), pem })
    }

    pub fn signer(&self, algorithm: Algorithm) -> Result<EncodingKey> {
        Ok(match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(self.pem.as_bytes())?,
            Algorithm::ES256 => EncodingKey::from_ec_pem(self.pem.as_bytes())?,
        })
    }

    pub fn jwk(&self, algorithm: Algorithm) -> Result<Value> {
        let jwk = Jwk::from_encoding_key(&self.signer(algorithm)?, algorithm.jose())?;
        let mut jwk = serde_json::to_value(jwk)?;
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(algorithm.name());
        Ok(jwk)
    }
}

/// The issuer's description and keys, as they stand in its directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Keys {
    pub url: String,
    pub audience: String,
    pub algorithm: Algorithm,
    /// Published, newest last; the newest signs.
    keys: Vec<Key>,
    /// Never published: signs what is to be refused.
    pub foreign: Key,
}

impl Keys {
    pub fn generate(url: &str, audience: &str, algorithm: Algorithm) -> Result<Self> {
        Ok(Self {
            url: url.to_owned(),
            audience: audience.to_owned(),
            algorithm,
            keys: vec![Key::generate(algorithm)?],
            foreign: Key::generate(algorithm)?,
        })
    }

    pub fn current(&self) -> &Key {
        self.keys.last().unwrap_or(&self.foreign)
    }

    pub fn rotate(&mut self, emergency: bool) -> Result<()> {
        if emergency {
            self.keys.clear();
        }
        self.keys.push(Key::generate(self.algorithm)?);
        Ok(())
    }

    pub fn jwks(&self) -> Value {
        let keys: Vec<_> = self.keys.iter().filter_map(|k| k.jwk(self.algorithm).ok()).collect();
        json!({ "keys": keys })
    }

    /// The published JWK of the current key as text: the "secret" of an algorithm confusion.
    pub fn current_jwk_text(&self) -> Result<String> {
        Ok(self.current().jwk(self.algorithm).context("no JWK")?.to_string())
    }
}

/// A random name, as Okta's ids look.
pub(super) fn random() -> String {
    use base64::Engine;
    let mut bytes = [0u8; 24];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        panic!("no randomness");
    }
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
