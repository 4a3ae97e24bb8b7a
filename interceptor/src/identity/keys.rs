//! One issuer's published keys: which of them may check a signature, and the check itself.

use std::collections::HashMap;
use std::sync::Arc;

use jsonwebtoken::{DecodingKey, Validation};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::config::{Algorithm, Issuer};

use super::refusal::{Code, Fault, quote};
use super::strict;
use super::token::is_identifier;

/// Most keys that are read from one set.
const MAX_KEYS: usize = 64;

/// One usable public key.
pub(super) struct SigningKey {
    key: DecodingKey,
    /// Tells whether a key of the same name is still the same key.
    pub digest: [u8; 32],
}

/// The usable keys of a set, by `kid`, and why the others are not usable.
#[derive(Default)]
pub(super) struct KeySet {
    usable: HashMap<String, Arc<SigningKey>>,
    unusable: HashMap<String, &'static str>,
}

impl KeySet {
    /// Reads a JWK set. Keys that cannot check the pinned algorithm are set aside, not fatal:
    /// issuers publish encryption keys and newer kinds beside the one that matters.
    pub fn read(bytes: &[u8], algorithm: Algorithm) -> Result<Self, String> {
        let set = strict::object(bytes).map_err(|e| format!("the key set is not JSON: {e}"))?;
        let keys = match set.get("keys") {
            Some(Value::Array(keys)) if keys.len() <= MAX_KEYS => keys,
            Some(Value::Array(_)) => return Err(format!("more than {MAX_KEYS} keys in the set")),
            _ => return Err("the key set has no list `keys`".into()),
        };
        let mut out = Self::default();
        for key in keys.iter().filter_map(Value::as_object) {
            let Some(kid) = text(key, "kid").filter(|kid| is_identifier(kid)) else { continue };
            match read_key(key, algorithm) {
                Err(why) => {
                    out.unusable.insert(kid.to_owned(), why);
                }
                Ok(read) => {
                    if out.usable.insert(kid.to_owned(), Arc::new(read)).is_some() {
                        out.unusable.insert(kid.to_owned(), "its kid is published twice");
                    }
                }
            }
        }
        let Self { usable, unusable } = &mut out;
        unusable.retain(|kid, why| {
            if *why == "its kid is published twice" {
                usable.remove(kid);
            }
            !usable.contains_key(kid)
        });
        Ok(out)
    }

    pub fn find(&self, kid: &str) -> Option<&Arc<SigningKey>> {
        self.usable.get(kid)
    }

    /// Why a published key cannot be used, if it is one of those.
    pub fn why_unusable(&self, kid: &str) -> Option<&'static str> {
        self.unusable.get(kid).copied()
    }

    /// How many keys can check a signature.
    pub fn len(&self) -> usize {
        self.usable.len()
    }
}

fn text<'a>(key: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    key.get(name).and_then(Value::as_str)
}

fn read_key(key: &Map<String, Value>, algorithm: Algorithm) -> Result<SigningKey, &'static str> {
    let (kty, alg) = match algorithm {
        Algorithm::RS256 => ("RSA", "RS256"),
        Algorithm::ES256 => ("EC", "ES256"),
    };
    if text(key, "kty") != Some(kty) {
        return Err("its kty is not that of the pinned algorithm");
    }
    if text(key, "use") != Some("sig") {
        return Err("its use is not sig");
    }
    if key.get("alg").is_some_and(|a| a.as_str() != Some(alg)) {
        return Err("its alg is not the pinned algorithm");
    }
    if key.get("key_ops").is_some_and(|ops| {
        !ops.as_array().is_some_and(|list| list.iter().any(|op| op.as_str() == Some("verify")))
    }) {
        return Err("its key_ops do not include verify");
    }
    let part =
        |name| text(key, name).and_then(strict::base64url).ok_or("its numbers are not base64url");
    let (key, material) = match algorithm {
        Algorithm::RS256 => {
            let (n, e) = (part("n")?, part("e")?);
            let bits = bits(&n);
            if !(2048..=8192).contains(&bits) {
                return Err("its modulus is not of 2048 to 8192 bits");
            }
            if e.len() > 8 || e.last().is_none_or(|b| b & 1 == 0) || e == [1] {
                return Err("its exponent is not usable");
            }
            (
                DecodingKey::from_rsa_raw_components(&n, &e),
                [b"rsa".as_slice(), &n, b"/", &e].concat(),
            )
        }
        Algorithm::ES256 => {
            if text(key, "crv") != Some("P-256") {
                return Err("its curve is not P-256");
            }
            let (x, y) = (part("x")?, part("y")?);
            if x.len() != 32 || y.len() != 32 {
                return Err("its point is not on P-256");
            }
            let point = [[4].as_slice(), &x, &y].concat();
            (DecodingKey::from_ec_der(&point), [b"ec".as_slice(), &point].concat())
        }
    };
    Ok(SigningKey { key, digest: Sha256::digest(material).into() })
}

fn bits(integer: &[u8]) -> usize {
    let zeros = integer.iter().take_while(|b| **b == 0).count();
    match integer.get(zeros) {
        Some(first) => (integer.len() - zeros) * 8 - first.leading_zeros() as usize,
        None => 0,
    }
}

/// The name of a pinned algorithm.
pub(super) fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
    }
}

impl SigningKey {
    /// Checks the signature with the issuer's pinned algorithm. Times are not looked at here:
    /// they are judged by the caller's clock.
    pub fn verify(&self, token: &[u8], issuer: &Issuer) -> Result<(), Fault> {
        let mut pinned = Validation::new(match issuer.algorithm {
            Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
        });
        pinned.set_issuer(&[&issuer.url]);
        pinned.set_required_spec_claims(&["iss"]);
        pinned.validate_exp = false;
        pinned.validate_aud = false;
        match jsonwebtoken::decode::<IgnoredAny>(token, &self.key, &pinned) {
            Ok(_) => Ok(()),
            Err(e) => Err(Fault::new(
                Code::BadSignature,
                match e.kind() {
                    jsonwebtoken::errors::ErrorKind::InvalidSignature => format!(
                        "the token's signature is not by the key it names of issuer {}",
                        quote(&issuer.name)
                    ),
                    _ => "the token's signature cannot be checked".to_owned(),
                },
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rsa(changes: Value) -> Value {
        let n = strict::to_base64url(&[0xff; 256]);
        let mut key =
            json!({"kid": "k", "kty": "RSA", "use": "sig", "alg": "RS256", "e": "AQAB", "n": n});
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => key.as_object_mut().unwrap().remove(name),
                value => key.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        key
    }

    fn read(keys: Value) -> KeySet {
        KeySet::read(json!({ "keys": keys }).to_string().as_bytes(), Algorithm::RS256).unwrap()
    }

    #[test]
    fn only_signature_keys_of_the_pinned_algorithm_are_used() {
        for good in [json!({}), json!({"alg": null}), json!({"key_ops": ["verify"]})] {
            assert!(read(json!([rsa(good.clone())])).find("k").is_some(), "{good}");
        }
        for bad in [
            json!({"kty": "EC"}),
            json!({"kty": "oct"}),
            json!({"kty": null}),
            json!({"use": "enc"}),
            json!({"use": null}),
            json!({"alg": "RS512"}),
            json!({"alg": "HS256"}),
            json!({"alg": 1}),
            json!({"key_ops": ["encrypt"]}),
            json!({"n": strict::to_base64url(&[0xff; 128])}),
            json!({"n": "=="}),
            json!({"n": null}),
            json!({"e": "AA"}),
            json!({"e": "AQ"}),
            json!({"e": null}),
        ] {
            let set = read(json!([rsa(bad.clone())]));
            assert!(set.find("k").is_none() && set.why_unusable("k").is_some(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_nobodys() {
        let other = rsa(json!({"n": strict::to_base64url(&[0xfe; 256])}));
        let set = read(json!([rsa(json!({})), other]));
        assert!(set.find("k").is_none());
        let set = read(json!([rsa(json!({"use": "enc"})), rsa(json!({}))]));
        assert!(set.find("k").is_some() && set.why_unusable("k").is_none());
    }

    #[test]
    fn rubbish_is_no_key_set() {
        for bad in ["", "[]", "{}", r#"{"keys":1}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(KeySet::read(bad.as_bytes(), Algorithm::RS256).is_err(), "{bad}");
        }
        let many = json!({"keys": vec![json!({}); 65]}).to_string();
        assert!(KeySet::read(many.as_bytes(), Algorithm::RS256).is_err());
        assert_eq!(read(json!([1, "x", {"kid": 1}, {"kid": "a\nb"}])).len(), 0);
    }
}
