//! What hosts ask about holds, orders and tokens. Every route lets only a host in that is known;
//! what a host sends concerns that host alone.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::Collector;
use super::error::CollectorError;
use super::holds::{self, HoldsError};
use super::hosts::Known;
use super::orders::{self, HostId};
use super::policies;
use super::rotation;
use super::tokens::{self, ReserveError};
use crate::approval::MAX_HELD_BYTES;
use crate::ship::wire::{Done, Orders, Raise, ReserveAnswer, ReserveToken, Withdrawal};

/// Longest time that a request for orders is kept open.
const POLL: Duration = Duration::from_secs(25);
/// Most bytes of a raised hold: the largest exact text, every byte escaped, and what is around.
const MAX_RAISE: usize = 6 * MAX_HELD_BYTES + (1 << 20);
/// Most bytes of any other body.
const MAX_BODY: usize = 64 << 10;

/// The routes of this part.
pub fn routes(collector: &Arc<Collector>) -> Router {
    Router::new()
        .route("/host/v1/alive", get(alive))
        .route("/host/v1/orders", get(poll))
        .route("/host/v1/orders/{seq}/done", post(done))
        .route("/host/v1/holds/{id}", delete(withdraw))
        .route("/host/v1/tokens/reserve", post(reserve))
        .merge(policies::offer::routes())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .merge(
            Router::new()
                .route("/host/v1/holds", post(raise))
                .layer(DefaultBodyLimit::max(MAX_RAISE)),
        )
        .with_state(Arc::clone(collector))
}

/// What has to run beside the routes; never returns.
pub async fn run(collector: Arc<Collector>) {
    let sweep = async {
        let mut tick = tokio::time::interval(Duration::from_secs(600));
        loop {
            tick.tick().await;
            let swept = collector
                .central
                .write(|db| {
                    tokens::sweep(db)?;
                    holds::sweep(db, Duration::from_secs(90 * 86_400))?;
                    orders::sweep(db, Duration::from_secs(30 * 86_400))
                })
                .await;
            if let Err(error) = swept {
                tracing::error!(%error, "what is old cannot be forgotten");
            }
        }
    };
    tokio::join!(
        holds::expire(Arc::clone(&collector)),
        super::webhooks::deliver(Arc::clone(&collector)),
        policies::offer::watch(Arc::clone(&collector)),
        sweep
    );
}

/// Why a host's request is refused.
enum No {
    Holds(HoldsError),
    Reserve(ReserveError),
    Store(CollectorError),
}

impl From<HoldsError> for No {
    fn from(e: HoldsError) -> Self {
        Self::Holds(e)
    }
}

impl From<ReserveError> for No {
    fn from(e: ReserveError) -> Self {
        Self::Reserve(e)
    }
}

impl From<CollectorError> for No {
    fn from(e: CollectorError) -> Self {
        Self::Store(e)
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Store(error)
            | Self::Holds(HoldsError::Store(error))
            | Self::Reserve(ReserveError::Store(error)) => {
                tracing::error!(%error, "a host's request failed");
                let message = "the collector cannot do this now: see its log".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
            }
            Self::Holds(e @ HoldsError::Ended(_)) => (StatusCode::CONFLICT, "ended", e.to_string()),
            Self::Holds(e @ HoldsError::Full) => {
                (StatusCode::TOO_MANY_REQUESTS, "busy", e.to_string())
            }
            Self::Holds(e) => (StatusCode::BAD_REQUEST, "form", e.to_string()),
            Self::Reserve(e) => (StatusCode::BAD_REQUEST, "form", e.to_string()),
        };
        (status, Json(json!({ "code": code, "message": message }))).into_response()
    }
}

pub(super) fn host_id(known: Known) -> HostId {
    let Known(host) = known;
    HostId { id: host.id, fingerprint: host.fingerprint, name: host.name }
}

async fn alive(_: Known) -> Json<Value> {
    Json(json!({}))
}

#[derive(Debug, Deserialize)]
struct Boot {
    #[serde(default)]
    boot: String,
}

async fn raise(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Query(Boot { boot }): Query<Boot>,
    Json(hold): Json<Raise>,
) -> Result<Json<Value>, No> {
    let id = holds::raise(&collector, host_id(known), &boot, hold).await?;
    Ok(Json(json!({ "id": id })))
}

async fn withdraw(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Path(hold): Path<String>,
    Json(Withdrawal { how }): Json<Withdrawal>,
) -> Result<Json<Value>, No> {
    holds::withdraw(&collector, host_id(known), &hold, how).await?;
    Ok(Json(json!({})))
}

#[derive(Debug, Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    boot: String,
    /// The start of the collector that the host knows; another is told at once.
    #[serde(default)]
    instance: String,
    /// The newest version of policies that a host knows which takes them.
    policies: Option<u64>,
    /// Fingerprint of the key whose orders the host takes.
    #[serde(default)]
    key: String,
}

/// Answers at once when there is something, else when there is, or after a while.
async fn poll(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Query(After { after, boot, instance, policies: seen, key }): Query<After>,
) -> Result<Json<Orders>, No> {
    let host = host_id(known);
    let id = host.id;
    // Listening first: what comes between looking and waiting is heard.
    let mut bell = collector.bells.listen(id);
    holds::new_boot(&collector, host, &boot).await?;
    believes(&collector, id, &key).await?;
    let until = Instant::now() + POLL;
    loop {
        let (shared, believed) = (Arc::clone(&collector), key.clone());
        let look = move |db: &_| {
            let newest = seen.map(|_| policies::newest(db)).transpose()?;
            let in_force = shared.keys.in_force(db)?;
            // One that could not check them would refuse them, and they would be over.
            let checks = believed.is_empty() || in_force.knows(&believed);
            let orders = match checks && !in_force.is_put_back() {
                true => orders::after(db, id, after)?,
                false => Vec::new(),
            };
            Ok::<_, CollectorError>((orders, newest, in_force.after(&believed)))
        };
        let (orders, newest, keys) = collector.central.read(look).await?;
        let over = Instant::now() >= until || instance != collector.held.instance();
        if !orders.is_empty() || !keys.is_empty() || over || newest > seen {
            let instance = collector.held.instance();
            return Ok(Json(Orders { instance, orders, keys, policies: newest }));
        }
        let _ = timeout_at(until, bell.changed()).await;
    }
}

/// Notes which key a host takes orders of, when that is another than before.
async fn believes(collector: &Arc<Collector>, host: i64, key: &str) -> Result<(), CollectorError> {
    let (shared, said) = (Arc::clone(collector), key.to_owned());
    let look = move |db: &_| {
        let known = shared.keys.in_force(db)?.knows(&said);
        Ok::<_, CollectorError>((known, rotation::follows(db, host)?))
    };
    let (known, noted) = collector.central.read(look).await?;
    // A host of an older version says nothing, and follows no other key than the first.
    if key.len() != 64 || !key.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    if !known && noted.as_deref() != Some(key) {
        tracing::error!(
            host,
            key,
            alert = true,
            "a host believes a signing key that is not known here, and gets no orders: was keys/ \
             put back to an earlier state?"
        );
    }
    if noted.as_deref() != Some(key) {
        let key = key.to_owned();
        collector.central.write(move |db| rotation::note_follows(db, host, &key)).await?;
    }
    Ok(())
}

async fn done(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Path(seq): Path<u64>,
    Json(result): Json<Done>,
) -> Result<Json<Value>, No> {
    let host = host_id(known);
    let changed = collector.central.write(move |db| orders::done(db, &host, seq, &result)).await?;
    if let Some(change) = changed {
        collector.hub.tell(change);
    }
    Ok(Json(json!({})))
}

async fn reserve(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Json(token): Json<ReserveToken>,
) -> Result<Json<ReserveAnswer>, No> {
    let ours = tokens::reserve(&collector, host_id(known), token).await?;
    Ok(Json(ReserveAnswer { ours }))
}
