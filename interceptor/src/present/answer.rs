//! What is asked at the two endpoints, and the answers, granted or refused with a code.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::Service;
use crate::identity::{
    Kept, Occasion, PROOF_ALGORITHMS, Proof, Proven, ProvenKey, Refusal, Source, read_proof,
};

use super::check::Wrong;
use super::http::{App, Event};
use super::memory::Full;

const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// A body of either request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    /// Name of the service that is to be used.
    service: String,
}

/// A request that is not granted.
#[derive(Debug, Clone, Serialize)]
struct No {
    #[serde(skip)]
    status: StatusCode,
    /// OAuth's word for it (RFC 6750, RFC 9449).
    error: &'static str,
    /// Our own code.
    code: &'static str,
    /// What is wrong and what to do.
    message: String,
    #[serde(skip)]
    detail: Option<String>,
    #[serde(skip)]
    alert: bool,
}

impl No {
    fn new(
        status: StatusCode,
        error: &'static str,
        code: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, error, code, message: message.into(), detail: None, alert: false }
    }

    fn request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", "BAD_REQUEST", message)
    }

    fn proof(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_dpop_proof", "DPOP_PROOF", message)
    }
}

impl From<Wrong> for No {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Proof(what) => Self::proof(what),
            Wrong::Nonce => Self::new(
                StatusCode::UNAUTHORIZED,
                "use_dpop_nonce",
                "DPOP_NONCE",
                "sign the nonce of the DPoP-Nonce header and ask again",
            ),
            Wrong::Replayed => Self {
                alert: true,
                ..Self::new(
                    StatusCode::UNAUTHORIZED,
                    "invalid_dpop_proof",
                    "DPOP_REPLAYED",
                    "this proof came before: make one for every request",
                )
            },
            Wrong::Full => Full.into(),
        }
    }
}

impl From<Full> for No {
    fn from(_: Full) -> Self {
        let words = "there is no room for more: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable", "BUSY", words)
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code.as_str();
        Self {
            detail: refusal.detail,
            alert: refusal.alert,
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_token", code, refusal.message)
        }
    }
}

/// A token that was proven for a service, just now.
struct Good {
    service: Arc<Service>,
    source: Source,
    kept: Kept,
    proven: Proven,
    /// Thumbprint of the key that the token is bound to and that the proof was signed with.
    jkt: Option<String>,
}

/// `POST /v1/present`.
pub(super) async fn present(
    State(app): State<Arc<App>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let grant = |good: &Good| {
        let Some(jkt) = &good.jkt else {
            let words = "only a token that is bound to a key can be presented: use /v1/ticket, or \
                         turn DPoP on for the client";
            return Err(Refusal::unbound(words).into());
        };
        let Good { service, source, kept, proven, .. } = good;
        app.parts.presented.remember(jkt, service, source, proven, kept.clone())?;
        Ok(json!({
            "service": service.name,
            "agent": proven.agent().name,
            "jkt": jkt,
            "expires_at": proven.claims().exp,
        }))
    };
    answer(&app, source, &headers, body, "/v1/present", grant).await
}

/// `POST /v1/ticket`.
pub(super) async fn ticket(
    State(app): State<Arc<App>>,
    Extension(source): Extension<Source>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let grant = |good: &Good| {
        let Good { service, source, kept, proven, .. } = good;
        let ticket = app.parts.presented.issue(service, source, proven, kept.clone())?;
        Ok(json!({
            "service": service.name,
            "ticket": *ticket,
            "expires_in": app.parts.presented.ticket_life().as_secs(),
        }))
    };
    answer(&app, source, &headers, body, "/v1/ticket", grant).await
}

async fn answer(
    app: &App,
    source: Source,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
    path: &str,
    grant: impl FnOnce(&Good) -> Result<Value, No>,
) -> Response {
    let now = SystemTime::now();
    let service = ask(app, source, body);
    let outcome = match &service {
        Ok(service) => prove(app, service, source, headers, path, now)
            .await
            .and_then(|good| grant(&good).map(|body| (body, good))),
        Err(no) => Err(no.clone()),
    };
    let service = service.as_ref().ok().map(|s| s.name.as_str());
    // A nonce is part of every first request, not a refusal.
    let refused = outcome.as_ref().err().filter(|no| no.error != "use_dpop_nonce");
    (app.parts.notify)(&Event {
        service,
        refused: refused.map(|no| no.code),
        alert: refused.is_some_and(|no| no.alert),
    });
    let from = source.canonical();
    let mut response = match outcome {
        Ok((body, good)) => {
            let (agent, sha256) = (&good.proven.agent().name, &good.proven.claims().token_sha256);
            tracing::info!(%from, service, %agent, %sha256, path, "presented");
            Json(body).into_response()
        }
        Err(no) => {
            let (code, message, detail) = (no.code, &no.message, no.detail.as_deref());
            if no.alert {
                tracing::warn!(%from, service, code, message, detail, path, "ALERT");
            } else if no.error != "use_dpop_nonce" {
                tracing::info!(%from, service, code, message, path, "not presented");
            }
            no.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(nonce) = HeaderValue::from_str(&app.checker.nonces.current(seconds(now))) {
        headers.insert(DPOP_NONCE, nonce);
    }
    response
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let challenge = format!("DPoP error=\"{}\", algs=\"{PROOF_ALGORITHMS}\"", self.error);
        let mut response = (self.status, Json(&self)).into_response();
        if self.status == StatusCode::UNAUTHORIZED
            && let Ok(challenge) = HeaderValue::from_str(&challenge)
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The service that is asked for, by a source that may ask.
fn ask(app: &App, source: Source, body: Result<Bytes, BytesRejection>) -> Result<Arc<Service>, No> {
    if !app.pace.may_ask(source.addr) {
        let words = "too many requests from this address: wait a little";
        return Err(No::new(StatusCode::TOO_MANY_REQUESTS, "slow_down", "TOO_MANY", words));
    }
    let body = body.map_err(|rejection| No {
        status: rejection.status(),
        ..No::request("the body cannot be read: it has at most 24 KiB")
    })?;
    let ask: Ask = serde_json::from_slice(&body)
        .map_err(|_| No::request("the body is {\"service\": NAME} and nothing else"))?;
    app.parts.services.get(&ask.service).cloned().ok_or_else(|| {
        let words = "this host has no service of that name";
        No::new(StatusCode::NOT_FOUND, "invalid_target", "SERVICE_UNKNOWN", words)
    })
}

/// Checks the proof, if the scheme demands one, and then the token with all its checks.
async fn prove(
    app: &App,
    service: &Arc<Service>,
    source: Source,
    headers: &HeaderMap,
    path: &str,
    now: SystemTime,
) -> Result<Good, No> {
    let (scheme, token) = authorization(headers)?;
    let at = seconds(now);
    let proof = match scheme {
        Scheme::Bearer => None,
        Scheme::DPoP => {
            let proof = only(headers, &DPOP).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let proof = read_proof(proof).map_err(No::proof)?;
            app.checker.check(&proof, path, token, at)?;
            Some(proof)
        }
    };
    let identity = &app.parts.identity;
    let kept = identity.examine(token, service, now).await?;
    if proof.is_some() && !kept.claims().cnf {
        let words = "the token is not bound to a key: send it as Bearer, to /v1/ticket";
        return Err(Refusal::unbound(words).into());
    }
    let jkt = proof.as_ref().map(|p: &Proof| p.jkt.clone());
    let client_key = jkt.as_deref().map(ProvenKey::Jkt);
    let occasion = Occasion { service, source, client_key, now };
    let proven = identity.prove_kept(&kept, occasion).await?;
    if let Some(proof) = &proof {
        app.checker.use_up(proof, at)?;
    }
    Ok(Good { service: Arc::clone(service), source, kept, proven, jkt })
}

enum Scheme {
    DPoP,
    Bearer,
}

fn authorization(headers: &HeaderMap) -> Result<(Scheme, &[u8]), No> {
    let value = only(headers, &header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let value = value.unwrap_or_default();
    let (scheme, token) = value.split_at(value.iter().position(|b| *b == b' ').unwrap_or(0));
    let token = token.trim_ascii();
    match scheme {
        _ if token.is_empty() => {}
        s if s.eq_ignore_ascii_case(b"dpop") => return Ok((Scheme::DPoP, token)),
        s if s.eq_ignore_ascii_case(b"bearer") => return Ok((Scheme::Bearer, token)),
        _ => {}
    }
    let words = "send the access token once, as `Authorization: DPoP …` (with a DPoP header) or \
                 `Authorization: Bearer …`";
    Err(No::new(StatusCode::UNAUTHORIZED, "invalid_token", "TOKEN_MISSING", words))
}

/// The value of a header that came exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
