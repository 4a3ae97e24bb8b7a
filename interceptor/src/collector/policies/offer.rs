//! What hosts ask about policies, and the look-out for what another process did: versions that
//! were published (`interceptor collector policies`), another signing key.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::{Json, Router, routing::get};
use serde::Deserialize;
use serde_json::{Value, json};

use super::hosts;
use crate::collector::hosts::Known;
use crate::collector::refuse::Refuse;
use crate::collector::{Change, Collector, CollectorError, log};
use crate::ship::bundle::{Offer, Report};

/// How often is looked for a version that somebody published.
const LOOK: Duration = Duration::from_secs(1);

/// The routes of this part.
pub fn routes() -> Router<Arc<Collector>> {
    Router::new().route("/host/v1/policies", get(offer).post(report))
}

#[derive(Debug, Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
    /// Fingerprint of the key that the host believes.
    #[serde(default)]
    key: String,
}

async fn offer(
    State(collector): State<Arc<Collector>>,
    _: Known,
    Query(After { after, key }): Query<After>,
) -> Result<Json<Offer>, Refuse> {
    let shared = Arc::clone(&collector);
    let look = move |db: &_| super::offer(db, &shared.keys, after, &key);
    let offer = collector.central.read(look).await?;
    Ok(Json(offer))
}

async fn report(
    State(collector): State<Arc<Collector>>,
    known: Known,
    Json(said): Json<Report>,
) -> Result<Json<Value>, Refuse> {
    let host = crate::collector::link::host_id(known);
    let id = host.id;
    if collector.central.write(move |db| hosts::report(db, &host, said)).await? {
        collector.hub.tell(Change::Host(id));
    }
    Ok(Json(json!({})))
}

/// Tells hosts of versions that another process published, and of another key; signs what the audit
/// trail has got. Never returns.
pub async fn watch(collector: Arc<Collector>) {
    let mut known = None;
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let shared = Arc::clone(&collector);
        let look = move |db: &_| {
            shared.keys.remember(db)?;
            let number = shared.keys.in_force(db)?.number();
            let behind = log::store::is_behind(db)?;
            Ok::<_, CollectorError>(((super::newest(db)?, number), behind))
        };
        match collector.central.read(look).await {
            Ok((newest, behind)) => {
                if behind {
                    collector.sign_log().await.unwrap_or_else(|error| {
                        tracing::error!(%error, "the log and the audit trail cannot be signed");
                    });
                }
                if known.is_some_and(|k| k != newest) {
                    collector.published();
                }
                known = Some(newest);
            }
            Err(error) => tracing::error!(%error, "the newest policies cannot be looked for"),
        }
    }
}
