//! The hosts that are known: who is at the other end of a connection.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use rusqlite::OptionalExtension;

use super::error::CollectorError;
use super::{Collector, Peer};

/// A host that is known.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its row.
    pub id: i64,
    /// Name under which it was enrolled.
    pub name: String,
    /// Fingerprint of its record key, hex.
    pub fingerprint: String,
}

/// The host behind a request: an extractor that lets nobody else in.
#[derive(Debug, Clone)]
pub struct Known(pub Host);

impl FromRequestParts<Arc<Collector>> for Known {
    type Rejection = StatusCode;

    async fn from_request_parts(
        parts: &mut Parts,
        collector: &Arc<Collector>,
    ) -> Result<Self, StatusCode> {
        let shown = parts.extensions.get::<Peer>().and_then(|peer| peer.certificate.as_ref());
        let certificate = shown.ok_or(StatusCode::UNAUTHORIZED)?;
        let (_, read) =
            x509_parser::parse_x509_certificate(certificate).map_err(|_| StatusCode::FORBIDDEN)?;
        let serial = crate::record::chain::hex(read.raw_serial());
        let found = collector
            .central
            .read(move |db| {
                db.prepare_cached(
                    "SELECT id, name, fingerprint FROM hosts
                     WHERE serial = ?1 AND revoked_us IS NULL",
                )
                .and_then(|mut s| {
                    s.query_row([serial], |r| {
                        Ok(Host { id: r.get(0)?, name: r.get(1)?, fingerprint: r.get(2)? })
                    })
                    .optional()
                })
                .map_err(CollectorError::sqlite("look for a host"))
            })
            .await;
        match found {
            Ok(Some(host)) => Ok(Self(host)),
            Ok(None) => Err(StatusCode::FORBIDDEN),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}
