//! Orders for hosts: numbered, signed, kept until they are done.
//!
//! An order is issued inside the transaction that decides it, so that there is none without its
//! reason and no reason without its order. The host learns of it by the poll that it keeps open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::collector::db::{Connection, OptionalExtension, params};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::sync::watch;

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::{Change, Collector, Keys};
use crate::record::now_us;
use crate::ship::wire::{Command, Done, ORDER_DOMAIN, Order, SignedOrder};

/// A decision is worth nothing any more after this time.
pub const LIFE: Duration = Duration::from_secs(300);
/// What takes something away is worth doing for longer: a host that was cut off, or whose clock
/// is wrong, must not go on for that.
pub const LIFE_OF_ENDINGS: Duration = Duration::from_secs(24 * 3600);

/// How long an order is good for.
fn life(command: &Command) -> Duration {
    match command {
        Command::Decide { .. } | Command::Expire { .. } => LIFE,
        Command::Kill { .. } | Command::RevokeGrant { .. } | Command::Conflict { .. } => {
            LIFE_OF_ENDINGS
        }
    }
}
/// Most orders in one answer.
const MOST: i64 = 100;

/// A host, as far as orders go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostId {
    /// Its row.
    pub id: i64,
    /// Fingerprint of its record key.
    pub fingerprint: String,
    /// Its name.
    pub name: String,
}

impl HostId {
    /// The host with this row, if it is enrolled and not revoked.
    pub fn find(db: &Connection, id: i64) -> Result<Option<Self>, CollectorError> {
        db.prepare_cached(
            "SELECT id, fingerprint, name FROM hosts WHERE id = ?1 AND revoked_us IS NULL",
        )
        .and_then(|mut s| s.query_row([id], Self::read).optional())
        .map_err(CollectorError::db("look up a host"))
    }

    /// All hosts that are enrolled and not revoked.
    pub fn all(db: &Connection) -> Result<Vec<Self>, CollectorError> {
        db.prepare_cached("SELECT id, fingerprint, name FROM hosts WHERE revoked_us IS NULL")
            .and_then(|mut s| s.query_map([], Self::read)?.collect())
            .map_err(CollectorError::db("list hosts"))
    }

    fn read(row: &crate::collector::db::Row<'_>) -> crate::collector::db::Result<Self> {
        Ok(Self { id: row.get(0)?, fingerprint: row.get(1)?, name: row.get(2)? })
    }

    /// As it stands in the audit trail.
    pub fn who(&self) -> Who {
        Who::Host { name: self.name.clone(), fingerprint: self.fingerprint.clone() }
    }
}

/// Tells hosts that keep a request open that there is an order for them. One bell for each, since
/// thousands of them would otherwise wake at every change of anything.
#[derive(Default)]
pub struct Bells(Mutex<HashMap<i64, watch::Sender<u64>>>);

impl Bells {
    /// Hears every ring from now on.
    pub fn listen(&self, host: i64) -> watch::Receiver<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(host).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    /// There may be something for everybody.
    pub(super) fn ring_all(&self) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(|bell| bell.send_modify(|n| *n += 1));
    }

    pub(super) fn ring(&self, host: i64) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bell) = all.get(&host) {
            bell.send_modify(|n| *n += 1);
        }
    }
}

/// Writes an order for a host, and gives its number. Inside the caller's transaction; the caller
/// calls [`Collector::ordered`] once that is on disk.
pub fn issue(
    db: &Connection,
    keys: &Keys,
    host: &HostId,
    command: Command,
) -> Result<u64, CollectorError> {
    let fail = CollectorError::db;
    let last: i64 = db
        .prepare_cached("SELECT coalesce(max(seq), 0) FROM orders WHERE host = ?1")
        .and_then(|mut s| s.query_row([host.id], |r| r.get(0)))
        .map_err(fail("number an order"))?;
    let issued_us = now_us();
    // Never below the clock: a collector that was put back to an earlier state would begin again
    // with numbers that its hosts have seen, and they would take none of its orders.
    let number = last.saturating_add(1).max(issued_us);
    let seq = u64::try_from(number).unwrap_or(1);
    let life = i64::try_from(life(&command).as_micros()).unwrap_or(i64::MAX);
    let order = Order {
        v: 1,
        host: host.fingerprint.clone(),
        seq,
        issued_us,
        expires_us: issued_us.saturating_add(life),
        order: command,
    };
    let body = serde_json::to_string(&order)
        .map_err(|e| CollectorError::Key(format!("an order cannot be written: {e}")))?;
    let signature = keys.in_force(db)?.sign(ORDER_DOMAIN, body.as_bytes())?;
    db.prepare_cached(
        "INSERT INTO orders (host, seq, ts_us, body, signature, expires_us, hold)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut s| {
        let hold = order.order.hold();
        let expires = order.expires_us;
        s.execute(params![host.id, number, issued_us, body, &signature[..], expires, hold])
    })
    .map_err(fail("write an order"))?;
    Ok(seq)
}

/// The orders of a host that come after a number and are still good, oldest first.
pub fn after(db: &Connection, host: i64, after: u64) -> Result<Vec<SignedOrder>, CollectorError> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    db.prepare_cached(
        "SELECT seq, body, signature FROM orders WHERE host = ?1 AND seq > ?2 AND done_us IS NULL
         AND expires_us > ?4 ORDER BY seq LIMIT ?3",
    )
    .and_then(|mut s| {
        s.query_map(params![host, after, MOST, now_us()], |row| {
            Ok(SignedOrder {
                seq: u64::try_from(row.get::<_, i64>(0)?).unwrap_or(0),
                body: row.get(1)?,
                signature: STANDARD.encode(row.get::<_, Vec<u8>>(2)?),
            })
        })?
        .collect()
    })
    .map_err(CollectorError::db("read orders"))
}

/// Notes what became of an order. A second report of the same changes nothing.
pub fn done(
    db: &Connection,
    host: &HostId,
    seq: u64,
    result: &Done,
) -> Result<Option<Change>, CollectorError> {
    let fail = CollectorError::db;
    let number = i64::try_from(seq).unwrap_or(i64::MAX);
    let words = serde_json::to_string(result).unwrap_or_default();
    let body: Option<String> = db
        .prepare_cached(
            "UPDATE orders SET done_us = ?3, result = ?4
             WHERE host = ?1 AND seq = ?2 AND done_us IS NULL RETURNING body",
        )
        .and_then(|mut s| {
            s.query_row(params![host.id, number, now_us(), words], |r| r.get(0)).optional()
        })
        .map_err(fail("note the end of an order"))?;
    let Some(body) = body else { return Ok(None) };
    let order: Order = serde_json::from_str(&body)
        .map_err(|e| CollectorError::Key(format!("an order of ours cannot be read: {e}")))?;
    let detail = json!({ "seq": seq, "order": order.order, "result": result });
    let entry = Entry { who: &host.who(), what: "order.done", target: &host.name, detail: &detail };
    audit::append(db, &entry)?;
    effect(db, host, &order.order, result)
}

/// What became of the last order about a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The host has not answered.
    Sent,
    /// The host carried it out.
    Done,
    /// The host did not, and says why.
    Refused(String),
}

/// What became of the last order to a host about one of its holds.
pub fn fate(db: &Connection, host: i64, hold: &str) -> Result<Option<Fate>, CollectorError> {
    let answer: Option<Option<String>> = db
        .prepare_cached(
            "SELECT result FROM orders WHERE host = ?1 AND hold = ?2
             ORDER BY seq DESC LIMIT 1",
        )
        .and_then(|mut s| s.query_row(params![host, hold], |r| r.get(0)).optional())
        .map_err(CollectorError::db("read what became of an order"))?;
    Ok(answer.map(|answer| match answer {
        None => Fate::Sent,
        Some(words) => match serde_json::from_str::<Done>(&words).unwrap_or_default().error {
            Some(error) => Fate::Refused(error),
            None => Fate::Done,
        },
    }))
}

/// What the host's answer changes here.
fn effect(
    db: &Connection,
    host: &HostId,
    command: &Command,
    result: &Done,
) -> Result<Option<Change>, CollectorError> {
    let fail = CollectorError::db;
    match command {
        Command::Decide { hold, by, .. } => {
            let id = super::holds::name(host.id, hold);
            if result.error.is_some() {
                db.prepare_cached("UPDATE holds SET state = 'refused' WHERE id = ?1")
                    .and_then(|mut s| s.execute([&id]))
                    .map_err(fail("note a refused decision"))?;
            }
            if let (Some(grant), Some(seconds)) = (&result.grant, result.grant_seconds) {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                let until = now_us().saturating_add(seconds.saturating_mul(1_000_000));
                let by = serde_json::to_string(by).unwrap_or_default();
                db.prepare_cached(
                    "INSERT INTO grants (host, grant_id, hold, given_by, until_us)
                     VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (host, grant_id) DO UPDATE SET
                     hold = ?3, given_by = ?4, until_us = ?5, revoked_us = NULL",
                )
                .and_then(|mut s| s.execute(params![host.id, grant, id, by, until]))
                .map_err(fail("note a grant"))?;
            }
            Ok(Some(Change::Hold(id)))
        }
        // One that the host did not withdraw stands, and stands in the list.
        Command::RevokeGrant { .. } if result.error.is_some() => Ok(Some(Change::Host(host.id))),
        Command::RevokeGrant { grant, .. } => {
            db.prepare_cached(
                "UPDATE grants SET revoked_us = ?3
                 WHERE host = ?1 AND grant_id = ?2 AND revoked_us IS NULL",
            )
            .and_then(|mut s| s.execute(params![host.id, grant, now_us()]))
            .map_err(fail("note the end of a grant"))?;
            Ok(Some(Change::Host(host.id)))
        }
        Command::Kill { .. } | Command::Conflict { .. } | Command::Expire { .. } => Ok(None),
    }
}

/// Deletes orders that are long over. Returns how many.
pub fn sweep(db: &Connection, keep: Duration) -> Result<usize, CollectorError> {
    let keep = i64::try_from(keep.as_micros()).unwrap_or(i64::MAX);
    // The highest number of each host stays, so that numbers never begin again.
    db.prepare_cached(
        "DELETE FROM orders WHERE ts_us < ?1
         AND seq < (SELECT max(o.seq) FROM orders o WHERE o.host = orders.host)",
    )
    .and_then(|mut s| s.execute([now_us().saturating_sub(keep)]))
    .map_err(CollectorError::db("forget old orders"))
}

impl Collector {
    /// An order for this host is on disk.
    pub(super) fn ordered(&self, host: i64) {
        self.bells.ring(host);
        self.hub.tell(Change::Order(host));
    }

    /// Issues one order to a host, inside the caller's transaction.
    pub(super) fn order(
        &self,
        db: &Connection,
        host: &HostId,
        command: Command,
    ) -> Result<u64, CollectorError> {
        issue(db, &self.keys, host, command)
    }
}
