//! The key that a client proved on its connection, named so that it can be compared with what a
//! token is bound to (`cnf`, RFC 7800) and with what first used it.

use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
    EllipticCurveKeyType, Jwk, RSAKeyParameters, RSAKeyType, ThumbprintHash,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::claims::Claims;
use super::refusal::{Code, Fault};
use super::strict::to_base64url;
use super::token::hex;

const OID_EC_P256: &str = "1.2.840.10045.3.1.7";
const OID_EC_P384: &str = "1.2.840.10045.3.1.34";
const OID_EC_P384_SECG: &str = "1.3.132.0.34";

/// The proven client key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    /// RFC 7638 thumbprint, or `spki-sha256:…` for a kind of key that has none here.
    pub name: String,
}

impl Proof {
    /// Names the key in a DER SubjectPublicKeyInfo.
    pub fn of(spki: &[u8]) -> Self {
        let name = thumbprint(spki)
            .unwrap_or_else(|| format!("spki-sha256:{}", hex(&Sha256::digest(spki))));
        Self { name }
    }
}

/// The RFC 7638 SHA-256 thumbprint of the key in a DER SubjectPublicKeyInfo, if it is an RSA,
/// P-256 or P-384 key.
pub fn thumbprint(spki: &[u8]) -> Option<String> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let algorithm = match info.parsed().ok()? {
        PublicKey::RSA(rsa) => AlgorithmParameters::RSA(RSAKeyParameters {
            key_type: RSAKeyType::RSA,
            n: to_base64url(minimal(rsa.modulus)),
            e: to_base64url(minimal(rsa.exponent)),
        }),
        PublicKey::EC(point) => {
            let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
            let (curve, width) = match curve.as_str() {
                OID_EC_P256 => (EllipticCurve::P256, 32),
                OID_EC_P384 | OID_EC_P384_SECG => (EllipticCurve::P384, 48),
                _ => return None,
            };
            let coordinates = point.data().strip_prefix(&[4])?;
            if coordinates.len() != 2 * width {
                return None;
            }
            let (x, y) = coordinates.split_at(width);
            AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
                key_type: EllipticCurveKeyType::EC,
                curve,
                x: to_base64url(x),
                y: to_base64url(y),
            })
        }
        _ => return None,
    };
    let jwk = Jwk { common: CommonParameters::default(), algorithm };
    jwk.thumbprint(ThumbprintHash::SHA256).ok()
}

fn minimal(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|b| **b == 0).count();
    &integer[zeros..]
}

/// A token that is bound to a key is good only in the hands of that key. Bindings that cannot
/// be checked here refuse too: there is no downgrade to a bearer token.
pub(super) fn check(claims: &Claims, proof: Option<&Proof>) -> Result<(), Fault> {
    let Some(cnf) = claims.all.get("cnf") else { return Ok(()) };
    let required = |what: &str| Err(Fault::new(Code::ProofRequired, what));
    let jkt = match cnf.as_object() {
        Some(map) if map.len() == 1 => map.get("jkt").and_then(Value::as_str),
        _ => None,
    };
    let Some(jkt) = jkt else {
        return required(
            "the token is bound in a way that cannot be checked here; only cnf.jkt is supported",
        );
    };
    match proof {
        Some(proof) if proof.name == jkt => Ok(()),
        Some(_) => required(
            "the token is bound to another key than that of the client certificate on this \
             connection: use a certificate made with the token's key",
        ),
        None => required(
            "the token is bound to a key: connect over TLS with a client certificate made with \
             that key (for libpq ~/.postgresql/postgresql.crt and .key)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use serde_json::json;

    fn der(pem: &str) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(pem).unwrap()
    }

    /// The RSA key of RFC 7638 §3.1 as SubjectPublicKeyInfo.
    fn rfc7638_spki() -> Vec<u8> {
        let n = super::super::strict::base64url(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        )
        .unwrap();
        fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
            let mut out = vec![tag];
            match body.len() {
                n if n < 128 => out.push(n as u8),
                n => out.extend([0x82, (n >> 8) as u8, n as u8]),
            }
            out.extend(body);
            out
        }
        let modulus = tlv(2, &[&[0], n.as_slice()].concat());
        let key = tlv(0x30, &[modulus, tlv(2, &[1, 0, 1])].concat());
        let oid = der("MA0GCSqGSIb3DQEBAQUA");
        let bits = tlv(3, &[&[0], key.as_slice()].concat());
        tlv(0x30, &[oid, bits].concat())
    }

    #[test]
    fn the_thumbprint_is_that_of_the_standard() {
        assert_eq!(
            thumbprint(&rfc7638_spki()).unwrap(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn an_elliptic_key_has_a_thumbprint_and_rubbish_has_none() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let first = thumbprint(&spki).unwrap();
        assert_eq!(first.len(), 43);
        assert_eq!(Proof::of(&spki).name, first);
        for end in 0..spki.len() {
            assert!(thumbprint(&spki[..end]).is_none());
        }
        assert!(thumbprint(&[spki.clone(), vec![0]].concat()).is_none());
        assert!(Proof::of(b"rubbish").name.starts_with("spki-sha256:"));
    }

    #[test]
    fn a_bound_token_needs_exactly_its_key() {
        let proof = Proof { name: "T".into() };
        for (cnf, proof, ok) in [
            (json!({"jkt": "T"}), Some(&proof), true),
            (json!({"jkt": "U"}), Some(&proof), false),
            (json!({"jkt": "T"}), None, false),
            (json!({"x5t#S256": "T"}), Some(&proof), false),
            (json!({"jkt": "T", "x5t#S256": "T"}), Some(&proof), false),
            (json!({}), Some(&proof), false),
            (json!(null), Some(&proof), false),
            (json!("T"), Some(&proof), false),
        ] {
            let all = json!({"cnf": cnf}).as_object().unwrap().clone();
            let claims = Claims { all, cnf: true, ..Claims::default() };
            assert_eq!(check(&claims, proof).is_ok(), ok, "{cnf}");
        }
        assert!(check(&Claims::default(), None).is_ok());
    }
}
