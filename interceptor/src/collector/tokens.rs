//! Which host a token is used on: the first that asks has it.
//!
//! A host that had to take a token before it got an answer says so. If another host has it by
//! then, the token is in two hands: both hosts end what it opened.

use std::sync::Arc;

use crate::collector::db::{Connection, params};
use serde_json::json;

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::orders::HostId;
use super::{Collector, webhooks};
use crate::record::now_us;
use crate::ship::wire::{Command, ReserveToken};

/// Longest life of a reservation: a token that says more is kept no longer.
const LONGEST_US: i64 = 48 * 3600 * 1_000_000;
/// Longest text of an issuer or a place.
const LONGEST_TEXT: usize = 2048;

/// Why a reservation is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Not what a host asks.
    #[error("no token can be called that")]
    Unreadable,
    /// The database.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

/// Whether the token is this host's. Durable before it is answered.
pub async fn reserve(
    collector: &Arc<Collector>,
    host: HostId,
    token: ReserveToken,
) -> Result<bool, ReserveError> {
    let hex = token.jti_hash.len() == 64
        && token.jti_hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex || token.issuer.len() > LONGEST_TEXT || token.source.len() > LONGEST_TEXT {
        return Err(ReserveError::Unreadable);
    }
    let this = Arc::clone(collector);
    let (ours, told) =
        collector.central.write(move |db| reserve_in(db, &this, &host, &token)).await?;
    if let Some(other) = told {
        collector.ordered(other);
    }
    Ok(ours)
}

fn reserve_in(
    db: &Connection,
    collector: &Collector,
    host: &HostId,
    token: &ReserveToken,
) -> Result<(bool, Option<i64>), ReserveError> {
    let fail = CollectorError::db;
    let expires = token.expires_us.min(now_us().saturating_add(LONGEST_US));
    db.prepare_cached(
        "INSERT INTO tokens (issuer, jti_hash, host, source, expires_us)
         VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
    )
    .and_then(|mut s| {
        s.execute(params![token.issuer, token.jti_hash, host.id, token.source, expires])
    })
    .map_err(fail("reserve a token"))?;
    let (owner, source): (i64, String) = db
        .prepare_cached("SELECT host, source FROM tokens WHERE issuer = ?1 AND jti_hash = ?2")
        .and_then(|mut s| {
            s.query_row(params![token.issuer, token.jti_hash], |r| Ok((r.get(0)?, r.get(1)?)))
        })
        .map_err(fail("look up a token"))?;
    if owner == host.id {
        return Ok((true, None));
    }
    let other = HostId::find(db, owner)?;
    let first = other.as_ref().map_or("a host that is gone", |h| h.name.as_str());
    tracing::warn!(
        first,
        second = host.name,
        issuer = token.issuer,
        jti_hash = token.jti_hash,
        taken = token.taken,
        "ALERT: a token turned up at two hosts"
    );
    let detail = json!({
        "issuer": token.issuer, "first": first, "first_source": source, "second": host.name,
        "second_source": token.source, "taken": token.taken,
    });
    let what = "token.conflict";
    let entry = Entry { who: &Who::Collector, what, target: &token.jti_hash, detail: &detail };
    audit::append(db, &entry)?;
    let event = webhooks::Event::Conflict { first, second: &host.name };
    webhooks::announce(db, &collector.config, &event)?;
    // A host that only asked has let nobody in; the first use stays good then.
    match other.filter(|_| token.taken) {
        Some(other) => {
            let (issuer, jti_hash) = (token.issuer.clone(), token.jti_hash.clone());
            collector.order(db, &other, Command::Conflict { issuer, jti_hash })?;
            Ok((false, Some(other.id)))
        }
        None => Ok((false, None)),
    }
}

/// Forgets tokens that are dead.
pub fn sweep(db: &Connection) -> Result<usize, CollectorError> {
    db.prepare_cached("DELETE FROM tokens WHERE expires_us < ?1")
        .and_then(|mut s| s.execute([now_us()]))
        .map_err(CollectorError::db("forget dead tokens"))
}
