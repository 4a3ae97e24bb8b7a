//! What hosts may ask. Each route but enrolment lets only a host in that is known ([`Known`]).

use std::sync::Arc;

use crate::collector::db::params;
use axum::extract::{DefaultBodyLimit, Extension, Query, State};
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::error::CollectorError;
use super::hosts::{self, Known};
use super::http::whole_body;
use super::log::{self, VerifierKey};
use super::refuse::Refuse;
use super::wire::{
    AskProofs, Enrol, Enrolled, Inclusion, LogStanding, MOST_PROOFS, Renew, Renewed, Report,
};
use super::{Change, Collector, Peer, authority, ingest, retention};
use crate::record::{PublicKey, now_us};

/// Most bytes of a body that is no batch.
const MAX_BODY: usize = 256 * 1024;
/// Most characters of a version.
const MAX_VERSION: usize = 64;
/// Clocks may differ by this before it is said.
const SKEW_US: i64 = 60_000_000;

/// The routes of this part.
pub fn routes(collector: &Arc<Collector>) -> Router {
    Router::new()
        .route("/host/v1/enrol", post(enrol))
        .route("/host/v1/renew", post(renew))
        .route("/host/v1/position", get(ingest::position))
        .route("/host/v1/status", post(status))
        .route("/host/v1/log", get(log_standing))
        .route("/host/v1/log/proofs", post(proofs))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(whole_body))
        .route("/host/v1/batch", post(ingest::batch))
        .with_state(Arc::clone(collector))
}

/// The key of this collector's log.
pub fn log_key(collector: &Collector) -> VerifierKey {
    log_key_of(collector, collector.keys.public())
}

fn log_key_of(collector: &Collector, key: PublicKey) -> VerifierKey {
    VerifierKey { name: log::note::origin(&collector.config.origin), key }
}

async fn enrol(
    State(collector): State<Arc<Collector>>,
    Json(request): Json<Enrol>,
) -> Result<Json<Enrolled>, Refuse> {
    let (host, issued, key) = hosts::enrol(&collector, request).await?;
    tracing::info!(host = %host.name, fingerprint = %host.fingerprint, "enrolled");
    Ok(Json(Enrolled {
        certificate_pem: issued.pem,
        authority_pem: collector.keys.authority_pem().to_owned(),
        collector_key: key.to_base64(),
        log_key: log_key_of(&collector, key).to_string(),
        name: host.name,
    }))
}

async fn renew(
    State(collector): State<Arc<Collector>>,
    Known(host): Known,
    Extension(peer): Extension<Peer>,
    Json(request): Json<Renew>,
) -> Result<Json<Renewed>, Refuse> {
    let shown = peer.certificate.as_ref().and_then(authority::read);
    let (_, serial) = shown.ok_or_else(Refuse::no_certificate)?;
    let issued = hosts::renew(&collector, &host, serial, &request.csr_pem).await?;
    Ok(Json(Renewed { certificate_pem: issued.pem }))
}

async fn status(
    State(collector): State<Arc<Collector>>,
    Known(host): Known,
    Json(report): Json<Report>,
) -> Result<(), Refuse> {
    let now = now_us();
    let skew = report.now_us.saturating_sub(now);
    if skew.abs() > SKEW_US {
        tracing::warn!(host = %host.name, seconds = skew / 1_000_000, "a host's clock differs");
    }
    let mut status = serde_json::to_value(&report).unwrap_or_default();
    status["skew_us"] = skew.into();
    let id = host.id;
    let version: String = report.status.version.chars().take(MAX_VERSION).collect();
    collector
        .central
        .write(move |db| {
            db.prepare_cached(
                "UPDATE hosts SET status = ?2, version = ?3, seen_us = ?4 WHERE id = ?1",
            )
            .and_then(|mut s| s.execute(params![id, status.to_string(), version, now]))
            .map(drop)
            .map_err(CollectorError::db("note a host's status"))
        })
        .await?;
    collector.hub.tell(Change::Host(host.id));
    Ok(())
}

#[derive(Debug, serde::Deserialize)]
struct Since {
    #[serde(default)]
    from: u64,
    /// Fingerprint of the key that the host believes.
    #[serde(default)]
    key: String,
}

async fn log_standing(
    State(collector): State<Arc<Collector>>,
    _: Known,
    Query(Since { from, key }): Query<Since>,
) -> Result<Json<LogStanding>, Refuse> {
    let shared = Arc::clone(&collector);
    let standing = collector
        .central
        .write(move |db| {
            let checkpoint = log::store::checkpoint(db, &shared.keys, &shared.config.origin)?;
            let size = log::store::size(db)?;
            let consistency = log::store::consistency(db, from, size)?;
            let consistency = log::proof::write_path(&consistency);
            let keys = shared.keys.in_force(db)?.after(&key);
            Ok::<_, CollectorError>(LogStanding { checkpoint, consistency, keys })
        })
        .await?;
    Ok(Json(standing))
}

async fn proofs(
    State(collector): State<Arc<Collector>>,
    Known(host): Known,
    Json(ask): Json<AskProofs>,
) -> Result<Json<Vec<Inclusion>>, Refuse> {
    if ask.numbers.len() > MOST_PROOFS {
        return Err(Refuse::form("too many sessions at a time"));
    }
    let found = collector
        .central
        .read(move |db| {
            let size = ask.size.min(log::store::size(db)?);
            let mut found = Vec::with_capacity(ask.numbers.len());
            for number in ask.numbers {
                let place = log::store::find(db, host.id, number)?;
                let Some((index, _)) = place.filter(|(index, _)| *index < size) else { continue };
                let path = log::store::inclusion(db, index, size)?;
                let path = log::proof::write_path(&path);
                let deleted_us = retention::deleted_us(db, host.id, number)?;
                found.push(Inclusion { number, index, path, deleted_us });
            }
            Ok::<_, CollectorError>(found)
        })
        .await?;
    Ok(Json(found))
}
