//! Getting a token: `client_credentials` with `private_key_jwt`, bound to the agent's key by DPoP
//! unless a bearer token is asked for.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::identity::https;

use super::jwt;
use super::key::{AgentKey, KeyError, KeyUseError};
use super::settings::{Audience, Settings};

/// Most bytes of an answer.
const MAX_ANSWER: usize = 128 * 1024;
const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    /// A setting cannot be used.
    #[error("{0}")]
    Settings(String),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key cannot sign.
    #[error(transparent)]
    Sign(#[from] KeyUseError),
    /// The issuer did not answer, or not in its own language.
    #[error("issuer {issuer}: {message}")]
    Issuer {
        /// Its URL.
        issuer: String,
        /// What happened.
        message: String,
    },
    /// The issuer refused.
    #[error("the issuer refused: {error}{}", in_brackets(.description))]
    Refused {
        /// OAuth's code.
        error: String,
        /// Its words.
        description: String,
    },
}

fn in_brackets(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

impl GrantError {
    /// Whether asking again later can help.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Issuer { .. } => true,
            Self::Refused { error, .. } => {
                matches!(error.as_str(), "temporarily_unavailable" | "server_error" | "slow_down")
            }
            Self::Settings(_) | Self::Key(_) | Self::Sign(_) => false,
        }
    }
}

/// A token, as the issuer gave it.
pub struct Grant {
    /// The raw token.
    pub token: SecretString,
    /// Whether it is bound to our key.
    pub bound: bool,
    /// Its claims, as far as we look at our own token; the issuer's signature is for others.
    pub claims: Value,
    /// Its `exp`.
    pub expires_at: SystemTime,
    /// From its `iat` to its `exp`.
    pub lifetime: Duration,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant").field("bound", &self.bound).field("claims", &self.claims).finish()
    }
}

/// An issuer, and who we are there.
pub struct Issuer {
    settings: Settings,
    client: Client,
    url: Url,
    key: AgentKey,
    client_key: Option<AgentKey>,
    /// The token endpoint, once discovered, and the nonce that the issuer gave last.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    endpoint: Option<Url>,
    nonce: Option<String>,
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    token_endpoint: Url,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Refusal {
    error: String,
    error_description: String,
}

impl Issuer {
    /// Reads the keys and prepares HTTPS; contacts nobody.
    pub fn new(settings: Settings) -> Result<Self, GrantError> {
        let bad = |what: String| GrantError::Settings(format!("issuer: {what}"));
        let url = Url::parse(&settings.issuer).map_err(|e| bad(e.to_string()))?;
        let client = https::client(&url, settings.ca_file.as_deref(), settings.insecure_loopback)
            .map_err(bad)?;
        let key = AgentKey::load(&settings.key)?;
        let other = settings.client_key != settings.key;
        let client_key = other.then(|| AgentKey::load(&settings.client_key)).transpose()?;
        Ok(Self { settings, client, url, key, client_key, known: Mutex::default() })
    }

    /// The key that tokens are bound to.
    pub fn key(&self) -> &AgentKey {
        &self.key
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Gets a token: bound to our key, or a bearer token.
    pub async fn grant(&self, bound: bool) -> Result<Grant, GrantError> {
        let mut known = self.known.lock().await;
        let endpoint = match &known.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => self.discover().await?,
        };
        known.endpoint = Some(endpoint.clone());
        // Once without a nonce or with an old one, once with the one that came back.
        for last in [false, true] {
            let nonce = known.nonce.clone();
            let answer = self.ask(&endpoint, bound, nonce.as_deref()).await?;
            let given = answer.headers().get(DPOP_NONCE).and_then(|v| v.to_str().ok());
            if let Some(given) = given {
                known.nonce = Some(given.to_owned());
            }
            let status = answer.status();
            let body = self.body(answer).await?;
            if status == StatusCode::OK {
                return self.read(&body, bound);
            }
            let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
            if refusal.error == "use_dpop_nonce" && !last && known.nonce != nonce {
                continue;
            }
            // The endpoint may have moved: it is looked for again next time.
            known.endpoint = None;
            return Err(if refusal.error.is_empty() {
                self.fail(format!("{endpoint} answered {status}"))
            } else {
                let words = |text: &str| -> String {
                    text.chars().filter(|c| !c.is_control()).take(400).collect()
                };
                GrantError::Refused {
                    error: words(&refusal.error),
                    description: words(&refusal.error_description),
                }
            });
        }
        Err(self.fail("it demands a nonce but gives none".into()))
    }

    fn fail(&self, message: String) -> GrantError {
        GrantError::Issuer { issuer: self.settings.issuer.clone(), message }
    }

    /// Finds the token endpoint, which must be at the issuer's own address: assertions are for
    /// nobody else.
    async fn discover(&self) -> Result<Url, GrantError> {
        let base = self.settings.issuer.trim_end_matches('/');
        let address = format!("{base}/.well-known/openid-configuration");
        let sent = self.client.get(&address).header("accept", "application/json").send().await;
        let answer = sent.map_err(|e| self.fail(https::chain(&e)))?;
        if answer.status() != StatusCode::OK {
            return Err(self.fail(format!("{address} answered {}", answer.status())));
        }
        let body = self.body(answer).await?;
        let found: Discovery = serde_json::from_slice(&body)
            .map_err(|e| self.fail(format!("{address} is no discovery document: {e}")))?;
        if found.issuer != self.settings.issuer {
            let other: String = found.issuer.escape_debug().take(200).collect();
            return Err(self.fail(format!("it calls itself {other}: use exactly that URL")));
        }
        if found.token_endpoint.origin() != self.url.origin() {
            return Err(self.fail("its token endpoint is at another address: refused".into()));
        }
        Ok(found.token_endpoint)
    }

    async fn ask(
        &self,
        endpoint: &Url,
        bound: bool,
        nonce: Option<&str>,
    ) -> Result<Response, GrantError> {
        let s = &self.settings;
        let client_key = self.client_key.as_ref().unwrap_or(&self.key);
        let kid = s.key_id.as_deref().unwrap_or(client_key.jkt());
        let audience = match s.audience {
            Audience::TokenEndpoint => endpoint.as_str(),
            Audience::Issuer => &s.issuer,
        };
        let assertion = jwt::assertion(client_key, kid, &s.client_id, audience)?;
        let scopes = s.scopes.join(" ");
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", &s.client_id),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", &assertion),
        ];
        if !scopes.is_empty() {
            form.push(("scope", &scopes));
        }
        if let Some(resource) = &s.resource {
            form.push(("resource", resource));
        }
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("application/json"));
        if bound {
            let proof = jwt::proof(&self.key, endpoint.as_str(), nonce, None)?;
            let proof = HeaderValue::from_str(&proof).map_err(|_| KeyUseError)?;
            headers.insert(DPOP, proof);
        }
        let sent = self.client.post(endpoint.clone()).headers(headers).form(&form).send().await;
        sent.map_err(|e| self.fail(https::chain(&e)))
    }

    async fn body(&self, mut answer: Response) -> Result<zeroize::Zeroizing<Vec<u8>>, GrantError> {
        let mut body = zeroize::Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(|e| self.fail(https::chain(&e)))? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(self.fail(format!("an answer larger than {MAX_ANSWER} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn read(&self, body: &[u8], bound: bool) -> Result<Grant, GrantError> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|_| self.fail("its answer holds no access token".into()))?;
        let token = SecretString::from(answer.access_token);
        let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(token.expose_secret())
            .map_err(|_| {
                self.fail(
                    "its access token is no JWT: use a custom authorization server (its issuer \
                     ends in /oauth2/default or /oauth2/<id>)"
                        .into(),
                )
            })?;
        let ours = claims["cnf"]["jkt"].as_str() == Some(self.key.jkt());
        if bound && !(ours && answer.token_type.eq_ignore_ascii_case("dpop")) {
            return Err(self.fail(
                "its token is not bound to our key: turn DPoP on for this client (Okta: Require \
                 Demonstrating Proof of Possession)"
                    .into(),
            ));
        }
        let second = |name: &str| claims[name].as_u64();
        let (Some(iat), Some(exp)) = (second("iat"), second("exp")) else {
            return Err(self.fail("its token says not when it ends".into()));
        };
        let expires_at = UNIX_EPOCH + Duration::from_secs(exp.min(u64::from(u32::MAX)));
        let lifetime = Duration::from_secs(exp.saturating_sub(iat));
        Ok(Grant { token, bound: ours, claims, expires_at, lifetime })
    }
}
