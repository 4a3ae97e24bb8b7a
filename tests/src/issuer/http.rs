//! The issuer's endpoints: discovery, keys, token, introspection, revocation, and the
//! administrator's.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::extract::{Form, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use jsonwebtoken::{DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::dpop::Wrong;
use super::mint::{Mint, now};
use super::{Shared, State};

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// A client of the token endpoint, as a service app is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Client {
    /// Its client id.
    pub id: String,
    /// Its secret, for client_secret_basic and client_secret_post.
    pub secret: Option<String>,
    /// Its public key, for private_key_jwt.
    pub jwk: Option<Value>,
    /// Scopes it may ask for.
    pub scopes: Vec<String>,
    /// Claims that stand in every token it gets.
    pub claims: Map<String, Value>,
    /// Lifetime of its tokens in seconds; 300 when absent.
    pub lifetime: Option<i64>,
    /// Its tokens must be bound to a key ("Require Demonstrating Proof of Possession").
    pub dpop: bool,
}

#[derive(Clone)]
struct App {
    state: State,
    shared: Arc<Shared>,
    revoked: Arc<Mutex<BTreeSet<String>>>,
    /// Ids of client assertions that came.
    asserted: Arc<Mutex<BTreeSet<String>>>,
}

pub(super) fn serve(
    listener: TcpListener,
    state: State,
    shared: Arc<Shared>,
    tls: bool,
) -> Result<tokio::task::JoinHandle<()>> {
    let acceptor = if tls { Some(acceptor(&state.ca_file())?) } else { None };
    let app = App { state, shared, revoked: Arc::default(), asserted: Arc::default() };
    let base = "/oauth2/default";
    let router = Router::new()
        .route(&format!("{base}/.well-known/openid-configuration"), get(discovery))
        .route(&format!("{base}/.well-known/oauth-authorization-server"), get(discovery))
        .route(&format!("/.well-known/oauth-authorization-server{base}"), get(discovery))
        .route(&format!("{base}/v1/keys"), get(keys))
        .route(&format!("{base}/v1/token"), post(token))
        .route(&format!("{base}/v1/introspect"), post(introspect))
        .route(&format!("{base}/v1/revoke"), post(revoke))
        .route("/admin/mint", post(admin_mint))
        .route("/admin/rotate", post(admin_rotate))
        .layer(axum::middleware::from_fn_with_state(app.clone(), gate))
        .with_state(app);
    Ok(tokio::spawn(async move {
        let _ = match acceptor {
            None => axum::serve(listener, router).await,
            Some(acceptor) => axum::serve(TlsListener { listener, acceptor }, router).await,
        };
    }))
}

async fn gate(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    let delay = app.shared.delay_ms.load(Ordering::Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    if app.shared.down.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

async fn discovery(Extract(app): Extract<App>) -> Response {
    app.shared.discoveries.fetch_add(1, Ordering::Relaxed);
    let Ok(keys) = app.state.keys() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let url = &keys.url;
    let at = |path: &str| format!("{url}/v1/{path}");
    Json(json!({
        "issuer": url,
        "authorization_endpoint": at("authorize"),
        "token_endpoint": at("token"),
        "userinfo_endpoint": at("userinfo"),
        "jwks_uri": at("keys"),
        "introspection_endpoint": at("introspect"),
        "revocation_endpoint": at("revoke"),
        "end_session_endpoint": at("logout"),
        "response_types_supported": ["code", "token", "id_token"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "grant_types_supported": ["client_credentials"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [keys.algorithm.name()],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "token_endpoint_auth_methods_supported":
            ["client_secret_basic", "client_secret_post", "private_key_jwt"],
        "dpop_signing_alg_values_supported": ["RS256", "ES256"],
        "claims_supported": ["ver", "jti", "iss", "aud", "iat", "exp", "cid", "uid", "scp", "sub"],
        "code_challenge_methods_supported": ["S256"],
        "request_parameter_supported": true,
    }))
    .into_response()
}

async fn keys(Extract(app): Extract<App>) -> Response {
    app.shared.key_fetches.fetch_add(1, Ordering::Relaxed);
    let max_age = app.shared.max_age.load(Ordering::Relaxed);
    match app.state.published() {
        Ok(jwks) => {
            ([(header::CACHE_CONTROL, format!("max-age={max_age}, must-revalidate"))], Json(jwks))
                .into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TokenForm {
    grant_type: String,
    scope: String,
    client_id: Option<String>,
    client_secret: Option<String>,
    client_assertion_type: Option<String>,
    client_assertion: Option<String>,
    token: String,
}

fn refuse(status: StatusCode, error: &str, description: &str) -> Response {
    (status, Json(json!({"error": error, "error_description": description}))).into_response()
}

async fn token(
    Extract(app): Extract<App>,
    headers: HeaderMap,
    Form(form): Form<TokenForm>,
) -> Response {
    if form.grant_type != "client_credentials" {
        return refuse(
            StatusCode::BAD_REQUEST,
            "unsupported_grant_type",
            "The authorization grant type is not supported by the authorization server.",
        );
    }
    let Some(client) = authenticate(&app, &headers, &form) else {
        return refuse(
            StatusCode::UNAUTHORIZED,
            "invalid_client",
            "The client is not known or did not prove itself.",
        );
    };
    let scopes: Vec<&str> = form.scope.split_ascii_whitespace().collect();
    if scopes.is_empty() || scopes.iter().any(|s| !client.scopes.iter().any(|own| own == s)) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "invalid_scope",
            "One or more scopes are not configured for the authorization server resource.",
        );
    }
    let mut claims = json!({"cid": client.id, "sub": client.id, "scp": scopes});
    let jkt = match bound_to(&app, &headers, &client) {
        Ok(jkt) => jkt,
        Err(refused) => return *refused,
    };
    if let Some(jkt) = &jkt {
        claims["cnf"] = json!({ "jkt": jkt });
    }
    if let Some(map) = claims.as_object_mut() {
        map.extend(client.claims);
    }
    let mint = Mint { lifetime: client.lifetime, ..Mint::new(claims) };
    match app.state.mint(&mint) {
        Ok(token) => (
            [(header::CACHE_CONTROL, "no-cache, no-store")],
            Json(json!({
                "token_type": if jkt.is_some() { "DPoP" } else { "Bearer" },
                "expires_in": client.lifetime.unwrap_or(300),
                "access_token": token,
                "scope": scopes.join(" "),
            })),
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The key to which the token shall be bound, by the proof in the headers.
fn bound_to(
    app: &App,
    headers: &HeaderMap,
    client: &Client,
) -> Result<Option<String>, Box<Response>> {
    let address = format!("{}/v1/token", app.state.url().unwrap_or_default());
    let bad = |words: &str| Box::new(refuse(StatusCode::BAD_REQUEST, "invalid_dpop_proof", words));
    match app.shared.dpop.check(headers, &address) {
        Ok(None) if client.dpop => Err(bad("The DPoP proof JWT header is missing.")),
        Ok(jkt) => Ok(jkt),
        Err(Wrong::Proof(what)) => Err(bad(&format!("The DPoP proof is not valid: {what}."))),
        Err(Wrong::Nonce(nonce)) => {
            let words = "Authorization server requires nonce in DPoP proof.";
            let mut response = refuse(StatusCode::BAD_REQUEST, "use_dpop_nonce", words);
            if let Ok(nonce) = nonce.parse() {
                response.headers_mut().insert("dpop-nonce", nonce);
            }
            Err(Box::new(response))
        }
    }
}

/// client_secret_basic, client_secret_post or private_key_jwt.
fn authenticate(app: &App, headers: &HeaderMap, form: &TokenForm) -> Option<Client> {
    let clients = app.state.clients();
    let find = |id: &str| clients.iter().find(|c| c.id == id).cloned();
    if let Some(assertion) = &form.client_assertion {
        if form.client_assertion_type.as_deref() != Some(ASSERTION) {
            return None;
        }
        let url = app.state.url().ok()?;
        return clients.iter().find(|c| asserts(app, c, assertion, &url)).cloned();
    }
    if let Some(basic) = headers.get(header::AUTHORIZATION) {
        let encoded = basic.to_str().ok()?.strip_prefix("Basic ")?;
        let pair = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
        let (id, secret) = std::str::from_utf8(&pair).ok()?.split_once(':')?;
        return find(id).filter(|c| c.secret.as_deref() == Some(secret));
    }
    let client = find(form.client_id.as_deref()?)?;
    (client.secret.is_some() && client.secret == form.client_secret).then_some(client)
}

fn asserts(app: &App, client: &Client, assertion: &str, url: &str) -> bool {
    let verify = || -> Option<Value> {
        let jwk: jsonwebtoken::jwk::Jwk = serde_json::from_value(client.jwk.clone()?).ok()?;
        let kid = jsonwebtoken::decode_header(assertion).ok()?.kid;
        if jwk.common.key_id.is_some() && kid != jwk.common.key_id {
            return None;
        }
        let mut wanted = Validation::new(match &jwk.algorithm {
            jsonwebtoken::jwk::AlgorithmParameters::EllipticCurve(_) => {
                jsonwebtoken::Algorithm::ES256
            }
            _ => jsonwebtoken::Algorithm::RS256,
        });
        wanted.set_audience(&[url, &format!("{url}/v1/token")]);
        wanted.set_issuer(&[&client.id]);
        wanted.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        wanted.sub = Some(client.id.clone());
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(jsonwebtoken::decode::<Value>(assertion, &key, &wanted).ok()?.claims)
    };
    let Some(claims) = verify() else { return false };
    // An assertion with an id is good once.
    let new = claims["jti"].as_str().is_none_or(|jti| {
        app.asserted.lock().unwrap_or_else(PoisonError::into_inner).insert(jti.to_owned())
    });
    new && claims["exp"].as_i64().is_some_and(|exp| exp - now() <= 3600)
}

async fn introspect(
    Extract(app): Extract<App>,
    headers: HeaderMap,
    Form(form): Form<TokenForm>,
) -> Response {
    if authenticate(&app, &headers, &form).is_none() {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client", "The client is not known.");
    }
    let Some(mut claims) = own_claims(&app, &form.token) else {
        return Json(json!({"active": false})).into_response();
    };
    let revoked = app.revoked.lock().unwrap_or_else(PoisonError::into_inner);
    if claims["jti"].as_str().is_none_or(|jti| revoked.contains(jti)) {
        return Json(json!({"active": false})).into_response();
    }
    claims["active"] = json!(true);
    claims["token_type"] = json!("Bearer");
    claims["client_id"] = claims["cid"].clone();
    Json(claims).into_response()
}

async fn revoke(
    Extract(app): Extract<App>,
    headers: HeaderMap,
    Form(form): Form<TokenForm>,
) -> Response {
    if authenticate(&app, &headers, &form).is_none() {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client", "The client is not known.");
    }
    if let Some(jti) =
        own_claims(&app, &form.token).and_then(|c| Some(c["jti"].as_str()?.to_owned()))
    {
        app.revoked.lock().unwrap_or_else(PoisonError::into_inner).insert(jti);
    }
    StatusCode::OK.into_response()
}

/// The claims of a token that this issuer signed and that lives.
fn own_claims(app: &App, token: &str) -> Option<Value> {
    let keys = app.state.keys().ok()?;
    let kid = jsonwebtoken::decode_header(token).ok()?.kid?;
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(keys.jwks()).ok()?;
    let key = DecodingKey::from_jwk(set.find(&kid)?).ok()?;
    let mut wanted = Validation::new(keys.algorithm.jose());
    wanted.validate_aud = false;
    wanted.set_issuer(&[&keys.url]);
    Some(jsonwebtoken::decode::<Value>(token, &key, &wanted).ok()?.claims)
}

async fn admin_mint(Extract(app): Extract<App>, Json(mint): Json<Mint>) -> Response {
    match app.state.mint(&mint) {
        Ok(token) => token.into_response(),
        Err(e) => (StatusCode::BAD_REQUEST, format!("{e:#}")).into_response(),
    }
}

#[derive(Deserialize)]
struct Rotate {
    #[serde(default)]
    emergency: bool,
}

async fn admin_rotate(Extract(app): Extract<App>, Json(rotate): Json<Rotate>) -> Response {
    match app.state.rotate(rotate.emergency) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e:#}")).into_response(),
    }
}

struct TlsListener {
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, addr)) = self.listener.accept().await else { continue };
            let handshake = self.acceptor.accept(stream);
            if let Ok(Ok(tls)) = tokio::time::timeout(Duration::from_secs(5), handshake).await {
                return (tls, addr);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A certificate of its own for every start; clients trust it by the file.
fn acceptor(ca_file: &Path) -> Result<tokio_rustls::TlsAcceptor> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let own = rcgen::generate_simple_self_signed(names)?;
    std::fs::write(ca_file, own.cert.pem())?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der())
        .map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}
