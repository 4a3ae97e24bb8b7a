//! The hosts that are known: enrolment, who is at the other end of a connection, revocation.
//!
//! A host is its record key; a certificate stands for it while it is not expired, was issued to
//! it, and the host is not revoked. All three are looked up for every request.

use std::sync::Arc;

use crate::collector::db::{Connection, OptionalExtension, Row, params};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::audit::{self, Who};
use super::authority::{self, Issued};
use super::error::CollectorError;
use super::http::Peer;
use super::policies::hosts::OnHost;
use super::refuse::Refuse;
use super::wire::{self, ENROL_DOMAIN};
use super::{Change, Collector, codes};
use crate::record::{PublicKey, now_us};

/// A host that said nothing for so long is away.
const AWAY_US: i64 = 45_000_000;

/// A host that is known.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its row.
    pub id: i64,
    /// Name under which it was enrolled.
    pub name: String,
    /// Fingerprint of its record key, hex.
    pub fingerprint: String,
    /// Its record key.
    pub key: PublicKey,
}

impl Host {
    /// As the audit trail names it.
    pub fn who(&self) -> Who {
        Who::Host { name: self.name.clone(), fingerprint: self.fingerprint.clone() }
    }
}

/// A host with what is known of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Listed {
    /// Id at the collector.
    pub id: i64,
    /// Name.
    pub name: String,
    /// Fingerprint of the key that signs its records.
    pub fingerprint: String,
    /// When it enrolled; microseconds since the Unix epoch.
    pub enrolled_us: i64,
    /// When it was revoked, if it was.
    pub revoked_us: Option<i64>,
    /// When its certificate ends.
    pub certificate_until_us: i64,
    /// When it was last heard of.
    pub seen_us: Option<i64>,
    /// Version of its daemon.
    pub version: Option<String>,
    /// Last entry of its ledger that has come.
    pub ledger_idx: i64,
    /// Events that have come.
    pub events: i64,
    /// Why its records were refused, if they were.
    pub problem: Option<String>,
    /// What it said last, with its lag.
    pub status: Option<serde_json::Value>,
    /// Sessions of it that run.
    pub live: i64,
    /// Policies from here, as it said last.
    pub policies: OnHost,
}

impl Listed {
    /// `up`, `away`, `revoked`, `new`.
    pub fn state(&self, now: i64) -> &'static str {
        match (self.revoked_us, self.seen_us) {
            (Some(_), _) => "revoked",
            (None, None) => "new",
            (None, Some(seen)) if now.saturating_sub(seen) > AWAY_US => "away",
            _ => "up",
        }
    }
}

/// The host behind a request: an extractor that lets nobody else in.
#[derive(Debug, Clone)]
pub struct Known(pub Host);

impl FromRequestParts<Arc<Collector>> for Known {
    type Rejection = Refuse;

    async fn from_request_parts(
        parts: &mut Parts,
        collector: &Arc<Collector>,
    ) -> Result<Self, Refuse> {
        let certificate = parts.extensions.get::<Peer>().and_then(|peer| peer.certificate.as_ref());
        let named = certificate.and_then(authority::read);
        let (name, serial) = named.ok_or_else(Refuse::no_certificate)?;
        let found = collector
            .central
            .read(move |db| behind(db, &name, &serial).map_err(Refuse::from))
            .await?;
        match found {
            Some((host, None)) => Ok(Self(host)),
            Some((host, Some(_))) => Err(Refuse::revoked(&host.name)),
            None => Err(Refuse::unknown()),
        }
    }
}

/// The host that a certificate was issued to, and when it was revoked.
fn behind(
    db: &Connection,
    fingerprint: &str,
    serial: &str,
) -> Result<Option<(Host, Option<i64>)>, CollectorError> {
    db.prepare_cached(
        "SELECT h.id, h.name, h.fingerprint, h.public_key, h.revoked_us FROM hosts h \
         JOIN certificates c ON c.host = h.id \
         WHERE h.fingerprint = ?1 AND c.serial = ?2 AND c.until_us > ?3",
    )
    .and_then(|mut s| {
        let found = s.query_row(params![fingerprint, serial, now_us()], |r| {
            Ok((host(r)?, r.get("revoked_us")?))
        });
        found.optional()
    })
    .map_err(CollectorError::db("look for a host"))
}

fn host(r: &Row<'_>) -> crate::collector::db::Result<Host> {
    let key: Vec<u8> = r.get("public_key")?;
    let key = PublicKey(key.try_into().map_err(|_| crate::collector::db::Error::Contents)?);
    Ok(Host { id: r.get("id")?, name: r.get("name")?, fingerprint: r.get("fingerprint")?, key })
}

/// Enrols a host that shows a code and proves its record key. The code is used up by the first
/// well-formed request that shows it.
pub async fn enrol(
    collector: &Arc<Collector>,
    request: wire::Enrol,
) -> Result<(Host, Issued, PublicKey), Refuse> {
    let key = PublicKey::of_base64(&request.record_key)
        .ok_or_else(|| Refuse::form("record_key is no Ed25519 key"))?;
    let proof = STANDARD.decode(&request.proof).unwrap_or_default();
    if !key.verify(&[ENROL_DOMAIN, &request.signed()].concat(), &proof) {
        return Err(Refuse::form("proof is not signed by record_key"));
    }
    if request.version.len() > 64 || request.name.len() > 256 {
        return Err(Refuse::form("name or version is too long"));
    }
    let fingerprint = key.fingerprint_hex();
    let issued = authority::issue(&collector.keys, &request.csr_pem, &fingerprint)
        .map_err(|e| Refuse::form(&e.to_string()))?;
    let (certificate, shared) = (issued.clone(), Arc::clone(collector));
    let enrolled = collector
        .central
        .write(move |db| {
            let now = now_us();
            let Some(name) = codes::redeem(db, &request.code, now)? else {
                return Ok(None);
            };
            let host = upsert(db, &name, &key, &request.version, now)?;
            // A new beginning: what was issued before is worth nothing.
            db.execute("DELETE FROM certificates WHERE host = ?1", [host.id])
                .map_err(CollectorError::db("forget old certificates"))?;
            keep(db, host.id, &certificate)?;
            let detail = json!({ "own_name": request.name, "serial": certificate.serial });
            let entry = audit::Entry {
                who: &host.who(),
                what: "host.enrolled",
                target: &host.name,
                detail: &detail,
            };
            audit::append(db, &entry)?;
            let in_force = shared.keys.in_force(db)?;
            // A host must not begin with a key that was left.
            in_force.check()?;
            let signing = *in_force.public();
            Ok::<_, CollectorError>(Some((host, signing)))
        })
        .await?;
    let (host, signing) = enrolled.ok_or_else(Refuse::code)?;
    collector.hub.tell(Change::Host(host.id));
    Ok((host, issued, signing))
}

fn upsert(
    db: &Connection,
    name: &str,
    key: &PublicKey,
    version: &str,
    now: i64,
) -> Result<Host, CollectorError> {
    db.query_row(
        "INSERT INTO hosts (fingerprint, name, public_key, enrolled_us, serial, \
         certificate_until_us, version) VALUES (?1, ?2, ?3, ?4, '', 0, ?5) \
         ON CONFLICT (fingerprint) DO UPDATE SET name = ?2, enrolled_us = ?4, revoked_us = NULL, \
         version = ?5 RETURNING id, name, fingerprint, public_key",
        params![key.fingerprint_hex(), name, &key.0[..], now, version],
        host,
    )
    .map_err(CollectorError::db("enrol a host"))
}

/// Issues a new certificate to a host that is known.
///
/// The certificate that it came with must still stand when the new one is kept: a request may have
/// begun before the host was revoked, and enrolled again without it.
pub async fn renew(
    collector: &Arc<Collector>,
    host: &Host,
    serial: String,
    csr_pem: &str,
) -> Result<Issued, Refuse> {
    let issued = authority::issue(&collector.keys, csr_pem, &host.fingerprint)
        .map_err(|e| Refuse::form(&e.to_string()))?;
    let (id, certificate) = (host.id, issued.clone());
    let fingerprint = host.fingerprint.clone();
    collector
        .central
        .write(move |db| match behind(db, &fingerprint, &serial)? {
            Some((_, None)) => keep(db, id, &certificate).map_err(Refuse::from),
            _ => Err(Refuse::unknown()),
        })
        .await?;
    Ok(issued)
}

/// Most certificates of a host that are kept in mind.
const KEPT: i64 = 8;

pub(super) fn keep(db: &Connection, host: i64, issued: &Issued) -> Result<(), CollectorError> {
    let write = || -> crate::collector::db::Result<()> {
        db.execute(
            "INSERT INTO certificates (serial, host, issued_us, until_us) VALUES (?1, ?2, ?3, ?4)",
            params![issued.serial, host, now_us(), issued.until_us],
        )?;
        db.execute(
            "DELETE FROM certificates WHERE host = ?1 AND serial NOT IN (SELECT serial FROM \
             certificates WHERE host = ?1 ORDER BY issued_us DESC LIMIT ?2)",
            params![host, KEPT],
        )?;
        db.execute(
            "UPDATE hosts SET serial = ?2, certificate_until_us = ?3 WHERE id = ?1",
            params![host, issued.serial, issued.until_us],
        )?;
        Ok(())
    };
    write().map_err(CollectorError::db("keep a certificate"))
}

/// All hosts by name, those that are revoked last.
pub fn list(db: &Connection) -> Result<Vec<Listed>, CollectorError> {
    let read = || -> crate::collector::db::Result<Vec<Listed>> {
        db.prepare_cached(&format!(
            "SELECT h.id, h.name, h.fingerprint, h.enrolled_us, h.revoked_us, \
             h.certificate_until_us, h.seen_us, h.version, h.ledger_idx, h.events, h.problem, \
             h.status, (SELECT count(*) FROM sessions s WHERE s.host = h.id AND s.closed_us IS \
             NULL AND s.sealed IS NULL), {} FROM hosts h LEFT JOIN host_policies p \
             ON p.host = h.id ORDER BY h.revoked_us IS NOT NULL, h.name, h.id",
            OnHost::COLUMNS
        ))?
        .query_map([], |r| {
            let status: Option<String> = r.get(11)?;
            Ok(Listed {
                id: r.get(0)?,
                name: r.get(1)?,
                fingerprint: r.get(2)?,
                enrolled_us: r.get(3)?,
                revoked_us: r.get(4)?,
                certificate_until_us: r.get(5)?,
                seen_us: r.get(6)?,
                version: r.get(7)?,
                ledger_idx: r.get(8)?,
                events: r.get(9)?,
                problem: r.get(10)?,
                status: status.and_then(|s| serde_json::from_str(&s).ok()),
                live: r.get(12)?,
                policies: OnHost::read(r, 13)?,
            })
        })?
        .collect()
    };
    read().map_err(CollectorError::db("list hosts"))
}

/// The host of a row.
pub fn by_id(db: &Connection, id: i64) -> Result<Option<Host>, CollectorError> {
    db.prepare_cached("SELECT id, name, fingerprint, public_key FROM hosts WHERE id = ?1")
        .and_then(|mut s| s.query_row([id], host).optional())
        .map_err(CollectorError::db("look for a host"))
}

/// The one host with this name, or whose fingerprint begins so.
pub fn find(db: &Connection, name: &str) -> Result<Result<Host, String>, CollectorError> {
    let found: Vec<Host> = db
        .prepare(
            "SELECT id, name, fingerprint, public_key FROM hosts WHERE name = ?1 \
             OR (length(CAST(?1 AS TEXT)) >= 8 \
             AND substr(fingerprint, 1, CAST(length(CAST(?1 AS TEXT)) AS INTEGER)) = ?1) LIMIT 2",
        )
        .and_then(|mut s| s.query_map([name], host)?.collect())
        .map_err(CollectorError::db("look for a host"))?;
    let mut found = found.into_iter();
    Ok(match (found.next(), found.next()) {
        (Some(host), None) => Ok(host),
        (None, _) => Err(format!("no host is called {name:?}: see `interceptor collector hosts`")),
        _ => Err(format!("several hosts are called {name:?}: name one by its fingerprint")),
    })
}

/// Lets a host in no more, from the next request on.
pub fn revoke(db: &Connection, host: &Host, by: &Who) -> Result<(), CollectorError> {
    db.execute(
        "UPDATE hosts SET revoked_us = ?2 WHERE id = ?1 AND revoked_us IS NULL",
        params![host.id, now_us()],
    )
    .map_err(CollectorError::db("revoke a host"))?;
    let detail = json!({ "fingerprint": host.fingerprint });
    let entry = audit::Entry { who: by, what: "host.revoked", target: &host.name, detail: &detail };
    audit::append(db, &entry)
}

/// Marks what is wrong with what a host ships, or that it was looked into.
pub fn set_problem(
    db: &Connection,
    host: &Host,
    by: &Who,
    problem: Option<&str>,
) -> Result<(), CollectorError> {
    let changed = db
        .execute(
            "UPDATE hosts SET problem = ?2 WHERE id = ?1 AND problem IS DISTINCT FROM ?2",
            params![host.id, problem],
        )
        .map_err(CollectorError::db("mark a host"))?;
    if changed == 0 {
        return Ok(());
    }
    let detail = json!({ "problem": problem });
    let what = if problem.is_some() { "host.problem" } else { "host.cleared" };
    audit::append(db, &audit::Entry { who: by, what, target: &host.name, detail: &detail })
}
