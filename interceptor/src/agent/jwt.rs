//! The two kinds of JWT that the helper signs: client assertions (RFC 7523) and DPoP proofs
//! (RFC 9449). Both are short-lived and used once.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Header;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::key::{AgentKey, KeyUseError};

/// How long a client assertion is good, seconds. Issuers allow an hour; one request needs less.
const ASSERTION_LIFE: u64 = 60;

#[derive(Serialize)]
struct Assertion<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
}

/// A client assertion for `private_key_jwt`. `kid` is the name under which the issuer knows the
/// key.
pub fn assertion(
    key: &AgentKey,
    kid: &str,
    client_id: &str,
    audience: &str,
) -> Result<String, KeyUseError> {
    let iat = now();
    let (signer, algorithm) = key.jwt();
    let mut header = Header::new(algorithm);
    header.kid = Some(kid.to_owned());
    let claims = Assertion {
        iss: client_id,
        sub: client_id,
        aud: audience,
        iat,
        exp: iat + ASSERTION_LIFE,
        jti: random()?,
    };
    jsonwebtoken::encode(&header, &claims, signer).map_err(|_| KeyUseError)
}

#[derive(Serialize)]
struct Proof<'a> {
    jti: String,
    htm: &'a str,
    htu: &'a str,
    iat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ath: Option<String>,
}

/// A DPoP proof for a POST to an address, with the server's nonce, and with the hash of the token
/// that is sent beside it.
pub fn proof(
    key: &AgentKey,
    address: &str,
    nonce: Option<&str>,
    token: Option<&[u8]>,
) -> Result<String, KeyUseError> {
    let (signer, algorithm) = key.jwt();
    let mut header = Header::new(algorithm);
    header.typ = Some("dpop+jwt".into());
    header.jwk = Some(key.jwk().clone());
    let claims = Proof {
        jti: random()?,
        htm: "POST",
        htu: address,
        iat: now(),
        nonce,
        ath: token.map(|token| URL_SAFE_NO_PAD.encode(Sha256::digest(token))),
    };
    jsonwebtoken::encode(&header, &claims, signer).map_err(|_| KeyUseError)
}

/// 128 random bits as text.
fn random() -> Result<String, KeyUseError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyUseError)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Kind;
    use crate::identity::read_proof;

    #[test]
    fn a_proof_is_what_the_daemon_reads() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::P256, Kind::Rsa] {
            let key = AgentKey::create(&dir.path().join(format!("{kind:?}")), kind).unwrap();
            let text = proof(&key, "https://h/v1/present", Some("n"), Some(b"abc")).unwrap();
            let read = read_proof(&text).unwrap();
            assert_eq!(read.jkt, key.jkt());
            assert_eq!(read.htu, "https://h/v1/present");
            assert_eq!(read.nonce.as_deref(), Some("n"));
            assert_eq!(read.ath.unwrap(), "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0");
            let again = proof(&key, "https://h/v1/present", None, None).unwrap();
            assert_ne!(read.jti, read_proof(&again).unwrap().jti);
        }
    }

    #[test]
    fn an_assertion_is_short_and_names_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let key = AgentKey::create(&dir.path().join("k"), Kind::P256).unwrap();
        let text = assertion(&key, "kid-1", "0oa1", "https://issuer/v1/token").unwrap();
        assert_eq!(jsonwebtoken::decode_header(&text).unwrap().kid.as_deref(), Some("kid-1"));
        let claims: serde_json::Value =
            jsonwebtoken::dangerous::insecure_decode_claims(&text).unwrap();
        assert_eq!((&claims["iss"], &claims["sub"]), (&"0oa1".into(), &"0oa1".into()));
        assert_eq!(claims["aud"], "https://issuer/v1/token");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
    }
}
