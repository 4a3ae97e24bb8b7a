//! Asking a protected host to take a token before the connection comes, or to give a ticket for
//! it: for SSH clients that can use neither certificates nor long passwords.

use std::path::Path;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, Url};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::identity::https;

use super::grant::{Grant, Issuer};
use super::jwt;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024;
const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// A protected host's address for this.
pub struct Desk {
    client: Client,
    url: Url,
}

/// Why it was not done; for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DeskError(String);

impl Desk {
    /// Prepares HTTPS; contacts nobody.
    pub fn new(url: &str, ca_file: Option<&Path>) -> Result<Self, DeskError> {
        let url = Url::parse(url).map_err(|e| DeskError(format!("{url}: {e}")))?;
        let client = https::client(&url, ca_file, false).map_err(DeskError)?;
        Ok(Self { client, url })
    }

    /// `present` or `ticket`, for a service by name. A bound token goes with a proof.
    pub async fn ask(
        &self,
        what: &str,
        service: &str,
        issuer: &Issuer,
        grant: &Grant,
    ) -> Result<Value, DeskError> {
        let bad = |e: &dyn std::fmt::Display| DeskError(format!("{}: {e}", self.url));
        let address = self.url.join(&format!("/v1/{what}")).map_err(|e| bad(&e))?;
        let body = json!({ "service": service });
        let mut nonce: Option<String> = None;
        loop {
            let headers = headers(issuer, grant, &address, nonce.as_deref());
            let headers = headers.ok_or_else(|| bad(&"the key cannot sign this"))?;
            let sent = self.client.post(address.clone()).headers(headers).json(&body).send().await;
            let answer = sent.map_err(|e| bad(&https::chain(&e)))?;
            let given = answer.headers().get(DPOP_NONCE).and_then(|v| v.to_str().ok());
            let given = given.map(str::to_owned);
            let (good, value) = (answer.status().is_success(), read(answer).await);
            let value = value.ok_or_else(|| bad(&"its answer is not JSON"))?;
            if good {
                return Ok(value);
            }
            let word = |name: &str| value[name].as_str().unwrap_or("?").escape_debug().to_string();
            if word("error") == "use_dpop_nonce" && nonce.is_none() && given.is_some() {
                nonce = given;
                continue;
            }
            return Err(bad(&format!("{}: {}", word("code"), word("message"))));
        }
    }
}

fn headers(
    issuer: &Issuer,
    grant: &Grant,
    address: &Url,
    nonce: Option<&str>,
) -> Option<HeaderMap> {
    let token = grant.token.expose_secret();
    let scheme = if grant.bound { "DPoP" } else { "Bearer" };
    let mut authorization = HeaderValue::from_str(&format!("{scheme} {token}")).ok()?;
    authorization.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, authorization);
    if grant.bound {
        let proof = jwt::proof(issuer.key(), address.as_str(), nonce, Some(token.as_bytes()));
        headers.insert(DPOP, HeaderValue::from_str(&proof.ok()?).ok()?);
    }
    Some(headers)
}

async fn read(mut answer: Response) -> Option<Value> {
    let mut body = zeroize::Zeroizing::new(Vec::new());
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).ok()
}
