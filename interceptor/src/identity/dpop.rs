//! The form and the signature of a DPoP proof (RFC 9449): a JWT that a client signs with its
//! own key to show, with every request, that it holds it.
//!
//! What a proof is for (method, address, token) and whether it came before is judged by who
//! serves the request; here it only becomes known what the holder of the key has said.

use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::strict;
use super::token::is_identifier;

/// Largest proof that is looked at.
pub const MAX_PROOF: usize = 4096;
/// Signature algorithms with which a proof may be signed.
pub const PROOF_ALGORITHMS: &str = "ES256 ES384 EdDSA RS256";

/// Members of a JWK that only a private or a shared key has.
const PRIVATE: &[&str] = &["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
/// Members of a JWK that make up its thumbprint.
const NUMBERS: &[&str] = &["x", "y", "n", "e"];

/// What the holder of a key has said and signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// RFC 7638 thumbprint of the key.
    pub jkt: String,
    /// The proof's own id.
    pub jti: String,
    /// Method of the request.
    pub htm: String,
    /// Address of the request.
    pub htu: String,
    /// When it was made, seconds since the epoch.
    pub iat: i64,
    /// Hash of the access token beside it.
    pub ath: Option<String>,
    /// What the server gave to be signed.
    pub nonce: Option<String>,
}

/// Reads a proof and checks its signature with the key inside it. The error says what is wrong
/// and is safe to show.
pub fn read_proof(proof: &str) -> Result<Proof, &'static str> {
    if proof.len() > MAX_PROOF {
        return Err("the proof is larger than 4096 bytes");
    }
    let mut segments = proof.split('.');
    let (Some(header), Some(claims), Some(_), None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        return Err("the proof is no JWT");
    };
    let header = object(header).ok_or("the proof's header is not strict JSON")?;
    let claims = object(claims).ok_or("the proof's claims are not strict JSON")?;
    if header.get("typ").and_then(Value::as_str) != Some("dpop+jwt") {
        return Err("the proof's typ is not dpop+jwt");
    }
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err("the proof's header demands an extension");
    }
    let (jwk, algorithm) = key(&header)?;
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "the proof's jwk is no usable key")?;
    let mut wanted = Validation::new(algorithm);
    wanted.required_spec_claims.clear();
    wanted.validate_exp = false;
    wanted.validate_aud = false;
    jsonwebtoken::decode::<IgnoredAny>(proof, &key, &wanted)
        .map_err(|_| "the proof is not signed by the key in it")?;
    Ok(Proof {
        jkt: jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| "the proof's jwk has no name")?,
        jti: text(&claims, "jti").ok_or("the proof has no usable jti")?,
        htm: text(&claims, "htm").ok_or("the proof has no htm")?,
        htu: text(&claims, "htu").ok_or("the proof has no htu")?,
        iat: claims.get("iat").and_then(Value::as_i64).ok_or("the proof has no iat")?,
        ath: text(&claims, "ath"),
        nonce: text(&claims, "nonce"),
    })
}

/// The public key in a proof's header, and the algorithm that goes with it.
fn key(header: &Map<String, Value>) -> Result<(Jwk, Algorithm), &'static str> {
    let algorithm = match header.get("alg").and_then(Value::as_str) {
        Some("ES256") => Algorithm::ES256,
        Some("ES384") => Algorithm::ES384,
        Some("EdDSA") => Algorithm::EdDSA,
        Some("RS256") => Algorithm::RS256,
        _ => return Err("the proof's alg is none of ES256, ES384, EdDSA, RS256"),
    };
    let jwk = header.get("jwk").ok_or("the proof's header has no jwk")?;
    let members = jwk.as_object().ok_or("the proof's jwk is no object")?;
    if PRIVATE.iter().any(|name| members.contains_key(*name)) {
        return Err("the proof's jwk holds a private key: it is burnt, make a new one");
    }
    // One encoding per number, or one key would have several names.
    let canonical = |name: &&str| {
        members.get(*name).is_none_or(|v| v.as_str().and_then(strict::base64url).is_some())
    };
    if !NUMBERS.iter().all(canonical) {
        return Err("the proof's jwk is not in base64url without padding");
    }
    let jwk =
        serde_json::from_value(jwk.clone()).map_err(|_| "the proof's jwk is no usable key")?;
    Ok((jwk, algorithm))
}

fn object(segment: &str) -> Option<Map<String, Value>> {
    strict::object(&strict::base64url(segment)?).ok()
}

fn text(map: &Map<String, Value>, name: &str) -> Option<String> {
    map.get(name).and_then(Value::as_str).filter(|s| is_identifier(s)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::EncodingKey;
    use proptest::prelude::*;
    use serde_json::json;

    fn signed(header: &Value, claims: &Value, key: &EncodingKey, alg: Algorithm) -> String {
        let b = |v: &Value| strict::to_base64url(v.to_string().as_bytes());
        let message = format!("{}.{}", b(header), b(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, alg).unwrap();
        format!("{message}.{signature}")
    }

    fn ec() -> (EncodingKey, Value) {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap());
        (key, jwk.unwrap())
    }

    fn claims() -> Value {
        json!({"jti": "1", "htm": "POST", "htu": "https://x/v1/present", "iat": 7, "ath": "h"})
    }

    #[test]
    fn a_proof_says_what_its_key_signed() {
        let (key, jwk) = ec();
        let header = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk});
        let proof = read_proof(&signed(&header, &claims(), &key, Algorithm::ES256)).unwrap();
        let want: Jwk = serde_json::from_value(jwk).unwrap();
        assert_eq!(proof.jkt, want.thumbprint(ThumbprintHash::SHA256).unwrap());
        assert_eq!((proof.htm.as_str(), proof.iat, proof.nonce), ("POST", 7, None));
        assert_eq!(proof.ath.as_deref(), Some("h"));
    }

    #[test]
    fn whatever_is_not_exactly_a_proof_is_refused() {
        let (key, jwk) = ec();
        let (_, other) = ec();
        let base = json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk});
        let with = |name: &str, value: Value| {
            let mut changed = base.clone();
            changed[name] = value;
            changed
        };
        let mut private = jwk.clone();
        private["d"] = json!("AAAA");
        let mut padded = jwk.clone();
        padded["x"] = json!(format!("{}=", jwk["x"].as_str().unwrap()));
        for header in [
            with("typ", json!("JWT")),
            with("typ", json!(null)),
            with("alg", json!("HS256")),
            with("alg", json!("none")),
            with("alg", json!("RS256")),
            with("alg", json!("ES384")),
            with("crit", json!(["x"])),
            with("jwk", json!(null)),
            with("jwk", json!({"kty": "oct", "k": "AAAA"})),
            with("jwk", other),
            with("jwk", private),
            with("jwk", padded),
        ] {
            let proof = signed(&header, &claims(), &key, Algorithm::ES256);
            assert!(read_proof(&proof).is_err(), "{header}");
        }
        for name in ["jti", "htm", "htu", "iat"] {
            let mut missing = claims();
            missing.as_object_mut().unwrap().remove(name);
            assert!(read_proof(&signed(&base, &missing, &key, Algorithm::ES256)).is_err());
        }
        let good = signed(&base, &claims(), &key, Algorithm::ES256);
        assert!(read_proof(&good).is_ok());
        let (message, signature) = good.rsplit_once('.').unwrap();
        for bad in [
            String::new(),
            "a.b".into(),
            format!("{good}.x"),
            format!("{message}."),
            format!("{message}.{}", strict::to_base64url(&[0; 64])),
            format!("{}.{signature}", message.replacen('e', "f", 1)),
            "a".repeat(MAX_PROOF + 1),
        ] {
            assert!(read_proof(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
            let _ = read_proof(&text);
        }
    }
}
