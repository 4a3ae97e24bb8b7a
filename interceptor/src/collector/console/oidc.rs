//! The console's side of OpenID Connect: code flow with PKCE, state and nonce.
//!
//! It talks to the issuer and to nobody else: no redirects are followed, answers are bounded,
//! and every address that discovery names must be at the issuer's own origin. What comes out is
//! an ID token whose signature, issuer, audience, time and nonce were checked.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openidconnect::core::{
    CoreAuthDisplay, CoreAuthPrompt, CoreAuthenticationFlow, CoreErrorResponseType,
    CoreGenderClaim, CoreJsonWebKey, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm,
    CoreProviderMetadata, CoreRevocableToken, CoreRevocationErrorResponse,
    CoreTokenIntrospectionResponse, CoreTokenType,
};
use openidconnect::{
    AdditionalClaims, AsyncHttpClient, AuthorizationCode, Client, ClientId, ClientSecret,
    CsrfToken, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, IdTokenFields, IssuerUrl, Nonce, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, Scope, StandardErrorResponse, StandardTokenResponse,
};
use reqwest::Url;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::collector::{CollectorError, Login};
use crate::identity::https::{self, chain};

/// How long what discovery said is used.
const FRESH: Duration = Duration::from_secs(60);
/// Most bytes of one answer.
const MAX_BYTES: usize = 256 * 1024;
/// Most groups of a person that are looked at, and longest name of one.
const MAX_GROUPS: usize = 500;

/// Claims beside the standard ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Extra {
    #[serde(flatten)]
    all: Map<String, Value>,
}

impl AdditionalClaims for Extra {}

type Fields = IdTokenFields<
    Extra,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type Answer = StandardTokenResponse<Fields, CoreTokenType>;
type Relying = Client<
    Extra,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Answer,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Why somebody cannot log in. Shown to them; says nothing about secrets.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LoginError(String);

/// A login that has begun: where the browser goes, and what must be remembered.
#[derive(Debug)]
pub struct Begun {
    /// The issuer's page.
    pub url: String,
    /// Comes back with the code.
    pub state: String,
    /// Must stand in the ID token.
    pub nonce: String,
    /// Proves that the code is ours.
    pub verifier: String,
}

/// Who logged in.
#[derive(Debug, Clone)]
pub struct Who {
    /// The user's id at the issuer.
    pub sub: String,
    /// Name for people.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// The issuer at which people log in.
pub struct Provider {
    settings: Login,
    issuer: IssuerUrl,
    redirect: RedirectUrl,
    secret: Option<ClientSecret>,
    http: Http,
    known: Mutex<Option<(Instant, Arc<Relying>)>>,
}

impl Provider {
    /// Reads the secret and prepares the client; contacts nobody.
    pub fn new(settings: &Login, console: &str) -> Result<Self, CollectorError> {
        let wrong = |e: &dyn std::fmt::Display| CollectorError::Key(format!("login.issuer: {e}"));
        let origin = Url::parse(&settings.issuer).map_err(|e| wrong(&e))?;
        let client =
            https::client(&origin, settings.ca_file.as_deref(), true).map_err(|e| wrong(&e))?;
        let secret = match &settings.client_secret {
            Some(secret) => Some(ClientSecret::new(secret.read()?.expose_secret().to_owned())),
            None => None,
        };
        Ok(Self {
            issuer: IssuerUrl::new(settings.issuer.clone()).map_err(|e| wrong(&e))?,
            redirect: RedirectUrl::new(format!("{console}/login/callback"))
                .map_err(|e| wrong(&e))?,
            settings: settings.clone(),
            secret,
            http: Http { client, origin },
            known: Mutex::default(),
        })
    }

    /// The exact issuer, as `iss` says it (RFC 9207).
    pub fn issuer(&self) -> &str {
        self.issuer.as_str()
    }

    async fn relying(&self) -> Result<Arc<Relying>, LoginError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, relying)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            let _ = at;
            return Ok(relying);
        }
        let metadata = CoreProviderMetadata::discover_async(self.issuer.clone(), &self.http)
            .await
            .map_err(|e| LoginError(format!("the issuer cannot be reached: {}", chain(&e))))?;
        let authorize = metadata.authorization_endpoint().url().origin();
        if authorize != self.http.origin.origin() {
            return Err(LoginError("the issuer sends people to another site: refused".into()));
        }
        let client = Client::from_provider_metadata(
            metadata,
            ClientId::new(self.settings.client_id.clone()),
            self.secret.clone(),
        );
        let relying: Arc<Relying> = Arc::new(client.set_redirect_uri(self.redirect.clone()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), Arc::clone(&relying)));
        Ok(relying)
    }

    /// Begins a login.
    pub async fn begin(&self) -> Result<Begun, LoginError> {
        let relying = self.relying().await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let random = || CsrfToken::new_random_len(32);
        let mut request = relying.authorize_url(flow, random, || Nonce::new_random_len(32));
        for scope in self.settings.scopes.iter().filter(|s| *s != "openid") {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        let (url, state, nonce) = request.set_pkce_challenge(challenge).url();
        Ok(Begun {
            url: url.into(),
            state: state.into_secret(),
            nonce: nonce.secret().clone(),
            verifier: verifier.into_secret(),
        })
    }

    /// Exchanges the code and checks the ID token.
    pub async fn finish(
        &self,
        code: String,
        verifier: String,
        nonce: String,
    ) -> Result<Who, LoginError> {
        let relying = self.relying().await?;
        let answer = relying
            .exchange_code(AuthorizationCode::new(code))
            .map_err(|e| LoginError(format!("the issuer names no token address: {e}")))?
            .set_pkce_verifier(PkceCodeVerifier::new(verifier))
            .request_async(&self.http)
            .await
            .map_err(|e| LoginError(format!("the issuer refused the login: {}", chain(&e))))?;
        let token = answer
            .extra_fields()
            .id_token()
            .ok_or_else(|| LoginError("the issuer gave no ID token".into()))?;
        // Never `none`, never a MAC with the client's secret.
        let accepted = [
            CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
            CoreJwsSigningAlgorithm::EcdsaP256Sha256,
        ];
        let judge = relying.id_token_verifier().set_allowed_algs(accepted);
        let claims = token
            .claims(&judge, &Nonce::new(nonce))
            .map_err(|e| LoginError(format!("the issuer's ID token is not good: {}", chain(&e))))?;
        let sub = claims.subject().as_str().to_owned();
        let named = claims
            .name()
            .and_then(|n| n.get(None))
            .map(|n| n.as_str())
            .or_else(|| claims.preferred_username().map(|n| n.as_str()));
        Ok(Who {
            name: named.unwrap_or(&sub).chars().take(200).collect(),
            groups: groups(&claims.additional_claims().all, &self.settings.groups_claim),
            sub,
        })
    }
}

fn groups(all: &Map<String, Value>, claim: &str) -> Vec<String> {
    let list = all.get(claim).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names = list.iter().filter_map(Value::as_str).filter(|g| g.len() <= 1000);
    names.take(MAX_GROUPS).map(str::to_owned).collect()
}

/// Talks to the issuer only.
struct Http {
    client: reqwest::Client,
    origin: Url,
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = LoginError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, LoginError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

impl Http {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, LoginError> {
        let fail = |e: &dyn std::fmt::Display| LoginError(e.to_string());
        let url = Url::parse(&request.uri().to_string()).map_err(|e| fail(&e))?;
        if url.origin() != self.origin.origin() {
            return Err(LoginError(format!("{url} is not at the issuer's own address: refused")));
        }
        let (parts, body) = request.into_parts();
        let sent = self.client.request(parts.method, url).headers(parts.headers).body(body);
        let mut answer = sent.send().await.map_err(|e| LoginError(chain(&e)))?;
        let mut whole = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|e| LoginError(chain(&e)))? {
            if whole.len() + piece.len() > MAX_BYTES {
                return Err(LoginError(format!("an answer is larger than {MAX_BYTES} bytes")));
            }
            whole.extend_from_slice(&piece);
        }
        let mut out = HttpResponse::new(whole);
        *out.status_mut() = answer.status();
        *out.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(out)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_are_texts_of_the_named_claim_only() {
        let all = json!({"groups": ["a", 1, {"x": "b"}, "c"], "roles": ["d"], "one": "e"});
        let all = all.as_object().unwrap();
        assert_eq!(groups(all, "groups"), ["a", "c"]);
        assert_eq!(groups(all, "roles"), ["d"]);
        assert!(groups(all, "one").is_empty() && groups(all, "none").is_empty());
    }
}
