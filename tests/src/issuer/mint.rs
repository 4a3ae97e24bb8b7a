//! Tokens as Okta makes them, and every way to spoil one.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::keys::{Keys, random};

/// Default lifetime of a minted token, seconds.
const LIFETIME: i64 = 300;

/// With what a token is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// The current key: a good signature.
    #[default]
    Current,
    /// A key that is not published, under the current key's name: a forged signature.
    Foreign,
    /// Nothing: the signature is empty (with `alg` none).
    None,
    /// HMAC with the published key as secret (with `alg` HS256).
    Hs256,
}

/// What a token shall say. Everything not given is as in a good token of a machine client.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mint {
    /// Claims to set; `null` takes one out.
    pub claims: Map<String, Value>,
    /// Header members to set; `null` takes one out.
    pub header: Map<String, Value>,
    /// With what to sign.
    pub sign: Sign,
    /// Seconds since it was issued.
    pub age: i64,
    /// Seconds from issue to expiry; 300 when absent.
    pub lifetime: Option<i64>,
}

impl Mint {
    /// A token of a machine client, with claims set or (by `null`) taken out.
    pub fn new(claims: Value) -> Self {
        Self { claims: object(claims), ..Self::default() }
    }

    /// With header members set or (by `null`) taken out.
    pub fn header(mut self, header: Value) -> Self {
        self.header = object(header);
        self
    }

    /// Signed with something else.
    pub fn sign(mut self, sign: Sign) -> Self {
        self.sign = sign;
        self
    }

    /// Issued some seconds ago.
    pub fn age(mut self, seconds: i64) -> Self {
        self.age = seconds;
        self
    }

    /// Living for some seconds.
    pub fn lifetime(mut self, seconds: i64) -> Self {
        self.lifetime = Some(seconds);
        self
    }

    pub(super) fn token(&self, keys: &Keys) -> Result<String> {
        let alg = match self.sign {
            Sign::None => "none",
            Sign::Hs256 => "HS256",
            Sign::Current | Sign::Foreign => keys.algorithm.name(),
        };
        let header = overlay(json!({"kid": keys.current().kid, "alg": alg}), &self.header);
        let iat = now() - self.age;
        let claims = json!({
            "ver": 1,
            "jti": format!("AT.{}", random()),
            "iss": keys.url,
            "aud": keys.audience,
            "iat": iat,
            "exp": iat + self.lifetime.unwrap_or(LIFETIME),
            "cid": "0oa1machine",
            "scp": [],
            "sub": "0oa1machine",
        });
        let claims = overlay(claims, &self.claims);
        sign(keys, &header.to_string(), &claims.to_string(), self.sign)
    }
}

/// Signs a header and claims exactly as they are written.
pub(super) fn sign(keys: &Keys, header: &str, claims: &str, sign: Sign) -> Result<String> {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let with = |key: &EncodingKey, alg| jsonwebtoken::crypto::sign(message.as_bytes(), key, alg);
    let signature = match sign {
        Sign::Current => with(&keys.current().signer(keys.algorithm)?, keys.algorithm.jose())?,
        Sign::Foreign => with(&keys.foreign.signer(keys.algorithm)?, keys.algorithm.jose())?,
        Sign::None => String::new(),
        Sign::Hs256 => with(
            &EncodingKey::from_secret(keys.current_jwk_text()?.as_bytes()),
            jsonwebtoken::Algorithm::HS256,
        )?,
    };
    Ok(format!("{message}.{signature}"))
}

pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not a JSON object: {other}"),
    }
}

fn overlay(mut base: Value, changes: &Map<String, Value>) -> Value {
    if let Some(map) = base.as_object_mut() {
        for (name, value) in changes {
            match value {
                Value::Null => map.remove(name),
                value => map.insert(name.clone(), value.clone()),
            };
        }
    }
    base
}
