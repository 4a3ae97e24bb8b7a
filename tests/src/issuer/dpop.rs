//! DPoP at the token endpoint, as Okta does it: a nonce is always demanded, and tokens are bound
//! to the proof's key.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use jsonwebtoken::jwk::ThumbprintHash;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use super::keys::random;
use super::mint::now;

/// The issuer's nonces and the proofs it has seen.
pub(super) struct Dpop {
    nonces: Mutex<Vec<String>>,
    seen: Mutex<BTreeSet<String>>,
}

/// Why a proof is not taken.
pub(super) enum Wrong {
    /// Sign this nonce.
    Nonce(String),
    /// Something else.
    Proof(&'static str),
}

impl Default for Dpop {
    fn default() -> Self {
        Self { nonces: Mutex::new(vec![random()]), seen: Mutex::default() }
    }
}

impl Dpop {
    /// Hands out another nonce from now on; old ones are not taken any more.
    pub fn rotate(&self) {
        *self.nonces.lock().unwrap_or_else(PoisonError::into_inner) = vec![random()];
    }

    fn nonce(&self) -> String {
        let nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.last().cloned().unwrap_or_default()
    }

    /// The thumbprint of the key of the proof in these headers; none without a proof.
    pub fn check(&self, headers: &HeaderMap, address: &str) -> Result<Option<String>, Wrong> {
        let mut proofs = headers.get_all("dpop").iter();
        let proof = match (proofs.next(), proofs.next()) {
            (None, _) => return Ok(None),
            (Some(proof), None) => proof.to_str().map_err(|_| Wrong::Proof("not ASCII"))?,
            _ => return Err(Wrong::Proof("more than one proof")),
        };
        let header = jsonwebtoken::decode_header(proof).map_err(|_| Wrong::Proof("no JWT"))?;
        if header.typ.as_deref() != Some("dpop+jwt") {
            return Err(Wrong::Proof("typ"));
        }
        if !matches!(header.alg, Algorithm::ES256 | Algorithm::RS256) {
            return Err(Wrong::Proof("alg"));
        }
        let jwk = header.jwk.ok_or(Wrong::Proof("jwk"))?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| Wrong::Proof("jwk"))?;
        let mut wanted = Validation::new(header.alg);
        wanted.required_spec_claims.clear();
        wanted.validate_exp = false;
        wanted.validate_aud = false;
        let claims = jsonwebtoken::decode::<Value>(proof, &key, &wanted);
        let claims = claims.map_err(|_| Wrong::Proof("signature"))?.claims;
        if claims["htm"] != "POST" || claims["htu"] != address {
            return Err(Wrong::Proof("htm or htu"));
        }
        if claims["iat"].as_i64().is_none_or(|iat| (iat - now()).abs() > 60) {
            return Err(Wrong::Proof("iat"));
        }
        if claims["nonce"].as_str() != Some(&self.nonce()) {
            return Err(Wrong::Nonce(self.nonce()));
        }
        let jti = claims["jti"].as_str().ok_or(Wrong::Proof("jti"))?;
        if !self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(jti.to_owned()) {
            return Err(Wrong::Proof("jti came before"));
        }
        jwk.thumbprint(ThumbprintHash::SHA256).map(Some).map_err(|_| Wrong::Proof("jwk"))
    }
}
