//! The routes and what they answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::Caller;
use super::{Api, Refused, metrics, policies};
use crate::collector::console::find::{self, Cursor, Found, Missing, Wanted};
use crate::collector::decisions::{self, Choice, DecisionError};
use crate::collector::retention::legal_holds::{self as legal, HoldError, LegalHold};
use crate::collector::{CollectorError, Role, hosts};
use crate::record::export::plain;
use crate::record::{RecordError, now_us};
use crate::session::Target;

/// What the API offers.
pub const DESCRIPTION: &str = include_str!("openapi.json");
/// Most characters of a text that is searched for.
const MAX_SEARCH: usize = 500;
/// Most events of one answer, and most bytes of them before no more are taken.
const EVENTS: usize = 1000;
const BYTES: usize = 8 << 20;

pub fn all(api: Api) -> Router {
    let mut router: Router<Api> = Router::new();
    // A path with two methods is one route.
    let paths: BTreeSet<&str> = super::ROUTES.iter().map(|(_, path)| *path).collect();
    for path in paths {
        if let Some(methods) = route(path) {
            router = router.route(path, methods);
        }
    }
    router
        .route("/metrics", get(metrics::show))
        .route("/api/{*rest}", axum::routing::any(nothing))
        .with_state(api)
}

pub(super) fn route(path: &str) -> Option<MethodRouter<Api>> {
    Some(match path {
        "/api/v1/openapi.json" => get(description),
        "/api/v1/sessions" => get(sessions),
        "/api/v1/sessions/{id}" => get(session),
        "/api/v1/sessions/{id}/events" => get(events),
        "/api/v1/sessions/{id}/kill" => post(kill),
        "/api/v1/sessions/kill" => post(kill_all),
        "/api/v1/grants" => get(grants),
        "/api/v1/grants/{id}/revoke" => post(revoke),
        "/api/v1/hosts" => get(all_hosts),
        "/api/v1/policies" => get(policies::list).merge(policies::publishing()),
        "/api/v1/policies/{version}" => get(policies::show),
        "/api/v1/policies/{version}/rollback" => post(policies::roll_back),
        "/api/v1/policies/withdraw" => post(policies::withdraw),
        "/api/v1/holds" => get(holds),
        "/api/v1/holds/{id}" => get(hold),
        "/api/v1/holds/{id}/decision" => post(decision),
        "/api/v1/legal-holds" => get(legal_holds).post(place),
        "/api/v1/legal-holds/{id}/release" => post(release),
        _ => return None,
    })
}

impl From<CollectorError> for Refused {
    fn from(e: CollectorError) -> Self {
        inside(&e)
    }
}

impl From<RecordError> for Refused {
    fn from(e: RecordError) -> Self {
        match e {
            RecordError::Contents(text) => Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", text),
            e @ RecordError::Deleted { .. } => {
                Self::new(StatusCode::GONE, "DELETED", e.to_string())
            }
            RecordError::Object(e) => {
                tracing::error!(error = %e, "a recording cannot be read");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "RECORDING", e.to_string())
            }
            e => inside(&e),
        }
    }
}

impl From<Missing> for Refused {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::None => {
                let text = "there is no such session, or its records are gone";
                Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", text)
            }
            Missing::Several(a, b) => {
                let text = format!("two hosts claim this id: ask for {a} or {b}");
                Self::new(StatusCode::CONFLICT, "SEVERAL", text)
            }
            Missing::Store(e) => e.into(),
        }
    }
}

impl From<HoldError> for Refused {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Store(e) => e.into(),
            e => {
                let status = StatusCode::from_u16(e.status()).unwrap_or(StatusCode::BAD_REQUEST);
                Self::new(status, e.code(), e.to_string())
            }
        }
    }
}

impl From<DecisionError> for Refused {
    fn from(e: DecisionError) -> Self {
        match e {
            DecisionError::Store(e) => e.into(),
            e => {
                let status = StatusCode::from_u16(e.status()).unwrap_or(StatusCode::BAD_REQUEST);
                Self::new(status, e.code(), e.to_string())
            }
        }
    }
}

/// What failed inside is for the log.
pub(super) fn inside(e: &dyn std::error::Error) -> Refused {
    tracing::error!(error = %e, "the API failed");
    let text = "the collector could not read its data: its log says why";
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", text)
}

async fn nothing() -> Refused {
    let text = "there is no such address: see /api/v1/openapi.json";
    Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", text)
}

/// `GET /api/v1/openapi.json`.
async fn description() -> Response {
    let mut answer = DESCRIPTION.into_response();
    let kind = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// What can be asked for in a list of sessions.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Asked {
    q: Option<String>,
    anywhere: bool,
    agent: Option<String>,
    principal: Option<String>,
    service: Option<String>,
    host: Option<String>,
    live: Option<bool>,
    since_us: Option<i64>,
    until_us: Option<i64>,
    before: Option<String>,
    limit: Option<usize>,
}

/// `GET /api/v1/sessions`.
async fn sessions(
    State(api): State<Api>,
    Caller(_): Caller,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refused> {
    let bad = |text: String| Refused::new(StatusCode::BAD_REQUEST, "BAD_QUERY", text);
    let Query(asked) = asked.map_err(|e| bad(e.body_text()))?;
    let before = match &asked.before {
        Some(text) => Some(Cursor::read(text).ok_or_else(|| bad("before: not a cursor".into()))?),
        None => None,
    };
    if asked.q.as_ref().is_some_and(|q| q.chars().count() > MAX_SEARCH) {
        return Err(bad(format!("q: at most {MAX_SEARCH} characters")));
    }
    let wanted = Wanted {
        text: asked.q.filter(|q| !q.is_empty()),
        anywhere: asked.anywhere,
        ids: None,
        agent: asked.agent,
        principal: asked.principal,
        service: asked.service,
        host: asked.host,
        live: asked.live,
        since_us: asked.since_us,
        until_us: asked.until_us,
        notable: false,
        before,
        limit: asked.limit.unwrap_or(find::PAGE),
    };
    let page = wanted.page(&api.0.collector).await?;
    Ok(Json(json!({
        "sessions": page.sessions,
        "next": page.next.map(|c| c.to_string()),
        "unfinished": page.unfinished,
        "behind": page.behind,
    })))
}

/// `GET /api/v1/sessions/{id}`.
async fn session(
    State(api): State<Api>,
    Caller(_): Caller,
    Path(id): Path<String>,
) -> Result<Json<Found>, Refused> {
    Ok(Json(find::session(&api.0.collector, id).await?))
}

/// Which events.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct After {
    after: u64,
    limit: Option<usize>,
}

/// `GET /api/v1/sessions/{id}/events`.
async fn events(
    State(api): State<Api>,
    Caller(_): Caller,
    Path(id): Path<String>,
    Query(asked): Query<After>,
) -> Result<Json<Value>, Refused> {
    let found = find::session(&api.0.collector, id).await?;
    let collector = Arc::clone(&api.0.collector);
    let most = asked.limit.unwrap_or(EVENTS).clamp(1, EVENTS);
    let read = tokio::task::spawn_blocking(move || -> Result<Value, Refused> {
        let reader = found.reader(&collector)?;
        let session = reader.find(&found.number.to_string())?;
        let (mut all, mut next, mut last, mut bytes) = (Vec::new(), None, asked.after, 0);
        reader.events_until(session.number, asked.after, |e| {
            if all.len() >= most || bytes > BYTES {
                next = Some(last);
                return false;
            }
            bytes += e.body.len() + e.data.len();
            all.push(plain(&session, e));
            last = e.seq;
            true
        })?;
        Ok(json!({ "events": all, "next": next }))
    });
    match read.await {
        Ok(answer) => answer.map(Json),
        Err(e) => Err(inside(&e)),
    }
}

/// Why a session is ended.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kill {
    reason: String,
}

/// `POST /api/v1/sessions/{id}/kill`.
async fn kill(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
    body: Result<Json<Kill>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refused> {
    caller.demand(Role::Admin)?;
    let Json(kill) = body.map_err(bad_body)?;
    if kill.reason.trim().is_empty() {
        let text = "reason: say in a few words why; it is recorded";
        return Err(Refused::new(StatusCode::UNPROCESSABLE_ENTITY, "INVALID", text));
    }
    let found = find::session(&api.0.collector, id).await?;
    let target = Target::Session(found.session.clone());
    let (host, reason) = (Some(found.host), Some(kill.reason));
    let told = decisions::kill(&api.0.collector, &caller.0, target, host, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "told": told }))))
}

/// Which sessions are ended on all hosts, and why.
#[derive(Debug, Deserialize)]
struct KillAll {
    #[serde(flatten)]
    target: Target,
    #[serde(default)]
    reason: Option<String>,
}

/// `POST /api/v1/sessions/kill`.
async fn kill_all(
    State(api): State<Api>,
    caller: Caller,
    body: Result<Json<KillAll>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refused> {
    caller.demand(Role::Admin)?;
    let Json(KillAll { target, reason }) = body.map_err(bad_body)?;
    let hosts = decisions::kill(&api.0.collector, &caller.0, target, None, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "hosts": hosts }))))
}

/// `GET /api/v1/grants`.
async fn grants(State(api): State<Api>, Caller(_): Caller) -> Result<Json<Value>, Refused> {
    Ok(Json(json!({ "grants": decisions::grants(&api.0.collector).await? })))
}

/// Why a grant is withdrawn.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Revoke {
    reason: Option<String>,
}

/// `POST /api/v1/grants/{id}/revoke`.
async fn revoke(
    State(api): State<Api>,
    Caller(person): Caller,
    Path(id): Path<String>,
    body: Result<Json<Revoke>, JsonRejection>,
) -> Result<(StatusCode, Json<Value>), Refused> {
    let Json(Revoke { reason }) = body.map_err(bad_body)?;
    decisions::revoke_named(&api.0.collector, &person, &id, reason).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "told": id }))))
}

pub(super) fn bad_body(e: JsonRejection) -> Refused {
    Refused::new(e.status(), "BAD_BODY", e.body_text())
}

/// `GET /api/v1/hosts`.
async fn all_hosts(State(api): State<Api>, Caller(_): Caller) -> Result<Json<Value>, Refused> {
    let hosts = api.0.collector.central.read(hosts::list).await?;
    let now = now_us();
    let with_state = hosts.iter().map(|h| {
        let mut one = serde_json::to_value(h).unwrap_or_default();
        one["state"] = json!(h.state(now));
        one
    });
    Ok(Json(json!({ "hosts": with_state.collect::<Vec<_>>() })))
}

/// `GET /api/v1/holds`.
async fn holds(State(api): State<Api>, Caller(_): Caller) -> Result<Json<Value>, Refused> {
    let waiting = decisions::list(&api.0.collector).await?;
    Ok(Json(json!({ "holds": waiting })))
}

/// `GET /api/v1/holds/{id}`.
async fn hold(
    State(api): State<Api>,
    Caller(person): Caller,
    Path(id): Path<String>,
) -> Result<Response, Refused> {
    Ok(Json(decisions::show(&api.0.collector, &person, &id).await?).into_response())
}

/// `POST /api/v1/holds/{id}/decision`.
async fn decision(
    State(api): State<Api>,
    Caller(person): Caller,
    Path(id): Path<String>,
    body: Result<Json<Choice>, JsonRejection>,
) -> Result<Response, Refused> {
    let Json(choice) = body.map_err(bad_body)?;
    Ok(Json(decisions::decide(&api.0.collector, &person, &id, choice).await?).into_response())
}

/// `GET /api/v1/legal-holds`. For administrators: whom they are about is nobody else's matter.
async fn legal_holds(
    State(api): State<Api>,
    Caller(person): Caller,
) -> Result<Json<Value>, Refused> {
    legal::demand(&person)?;
    let all = api.0.collector.central.read(legal::list).await?;
    Ok(Json(json!({ "legal_holds": all })))
}

/// `POST /api/v1/legal-holds`.
async fn place(
    State(api): State<Api>,
    Caller(person): Caller,
    body: Result<Json<legal::Wanted>, JsonRejection>,
) -> Result<(StatusCode, Json<LegalHold>), Refused> {
    legal::demand(&person)?;
    let Json(wanted) = body.map_err(bad_body)?;
    let who = person.who();
    let hold = api.0.collector.central.write(move |db| legal::place(db, wanted, &who)).await?;
    Ok((StatusCode::CREATED, Json(hold)))
}

/// Why a legal hold is released.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Release {
    reason: String,
}

/// `POST /api/v1/legal-holds/{id}/release`.
async fn release(
    State(api): State<Api>,
    Caller(person): Caller,
    Path(id): Path<String>,
    body: Result<Json<Release>, JsonRejection>,
) -> Result<Json<LegalHold>, Refused> {
    legal::demand(&person)?;
    let Json(Release { reason }) = body.map_err(bad_body)?;
    let unknown = "there is no such legal hold: see /api/v1/legal-holds";
    let unknown = || Refused::new(StatusCode::NOT_FOUND, "NOT_FOUND", unknown);
    let id: i64 = id.parse().map_err(|_| unknown())?;
    let who = person.who();
    let write = move |db: &crate::collector::db::Connection| legal::release(db, id, &reason, &who);
    Ok(Json(api.0.collector.central.write(write).await?))
}
