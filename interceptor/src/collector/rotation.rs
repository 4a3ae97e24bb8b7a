//! Changing the signing key.
//!
//! One transaction writes the succession, and signs anew with the key after whatever is still to
//! be believed: orders that hosts have not carried out, and the policies of the centre. The log is
//! signed by what signs it whenever the audit trail has grown. From then on the key before counts for nothing, but that it signs the log along for
//! a while: for those who check the log and have only it.
//!
//! What this module must never do: sign anew what the key before did not sign.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;

use super::Keys;
use super::audit::{self, Entry, Who};
use super::db::{Connection, OptionalExtension, params};
use super::error::CollectorError;
use super::signing::{Held, InForce};
use crate::record::{PublicKey, now_us};
use crate::ship::bundle::Bundle;
use crate::ship::succession::{self, Succession};
use crate::ship::wire::order_message;

pub(super) use super::signing::chain;

/// Why the key is not changed. Shown to the person.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// There is none to change to.
    #[error(
        "no new key is here: make one with `interceptor collector keys new`, copy its directory \
         below keys/signing/ to the other collectors of this database, then rotate"
    )]
    NoKey,
    /// There are several.
    #[error(
        "several new keys are here: say which with --to, by the beginning of its fingerprint: {0}"
    )]
    Several(String),
    /// It does not occur.
    #[error("no new key begins with {0:?}: see `interceptor collector keys`")]
    NoSuchKey(String),
    /// The old key still signs along.
    #[error("an old key signs the log along until then: wait, or end that with --now")]
    Along,
    /// The database knows all changes.
    #[error("the database knows every change of the signing key: there is nothing to restore")]
    Whole,
    /// The database or the keys.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

/// How the key is changed.
#[derive(Debug, Clone)]
pub struct How {
    /// Who does it.
    pub who: Who,
    /// How long the key before signs the log along, in microseconds.
    pub overlap_us: i64,
    /// Beginning of the fingerprint of the key after; the one that is here when absent.
    pub to: Option<String>,
}

/// What a change did.
#[derive(Debug, Clone, Serialize)]
pub struct Rotated {
    /// Its number.
    pub number: u64,
    /// Fingerprint of the key before.
    pub from: String,
    /// Fingerprint of the key after.
    pub to: String,
    /// Until when the key before signs the log along; microseconds since the Unix epoch.
    pub along_until_us: i64,
    /// What was signed anew, and what was not.
    #[serde(flatten)]
    pub again: Again,
    /// Hosts that never said that they follow the key before: of an older version, or away.
    pub silent_hosts: u64,
}

/// What was signed anew.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Again {
    /// Orders.
    pub orders: u64,
    /// What the key before had not signed, and is therefore worth nothing now: it was altered.
    pub altered: Vec<String>,
}

/// Changes the key, inside the caller's transaction.
pub fn rotate(db: &Connection, keys: &Keys, how: &How) -> Result<Rotated, RotateError> {
    let before = keys.in_force(db)?;
    let old = before.key()?;
    let after = choose(keys.unused(&before)?, how.to.as_deref())?;
    let new = after.private.as_ref().ok_or(RotateError::NoKey)?;
    let now = now_us();
    let number = before.number() + 1;
    let it = Succession {
        v: 1,
        number,
        from: before.public().to_base64(),
        to: after.public.to_base64(),
        issued_us: now,
    };
    let body = serde_json::to_string(&it)
        .map_err(|e| CollectorError::Key(format!("a succession cannot be written: {e}")))?;
    let message = succession::message(&body);
    let (by_old, by_new) = (old.sign(&message), new.sign(&message));
    let until = now.saturating_add(how.overlap_us.max(0));
    insert(db, number, (&body, &by_old, &by_new), until)?;
    let again = again(db, before.public(), &*keys.in_force(db)?)?;
    let (from, to) = (before.public().fingerprint_hex(), after.public.fingerprint_hex());
    let silent_hosts = silent(db, &from)?;
    let rotated = Rotated { number, from, to, along_until_us: until, again, silent_hosts };
    let detail = serde_json::to_value(&rotated).unwrap_or_default();
    let target = format!("signing key {}", rotated.to);
    let entry = Entry { who: &how.who, what: "keys.rotated", target: &target, detail: &detail };
    audit::append(db, &entry)?;
    Ok(rotated)
}

/// Puts successions that were seen into a database that lacks them, since it was put back.
pub fn restore(db: &Connection, keys: &Keys, who: &Who) -> Result<Again, RotateError> {
    let in_force = keys.in_force(db)?;
    let (before, steps) = in_force.missing().ok_or(RotateError::Whole)?;
    in_force.here()?;
    for step in steps {
        let (it, ..) = step.signed.read().map_err(|e| CollectorError::Key(e.to_string()))?;
        let signature = |text: &str| STANDARD.decode(text).unwrap_or_default();
        let (by_old, by_new) = (signature(&step.signed.by_old), signature(&step.signed.by_new));
        insert(db, it.number, (&step.signed.body, &by_old, &by_new), 0)?;
    }
    let before = *before;
    let again = again(db, &before, &*keys.in_force(db)?)?;
    let detail = json!({ "successions": steps.len(), "again": again });
    let target = format!("signing key {}", in_force.public().fingerprint_hex());
    audit::append(db, &Entry { who, what: "keys.restored", target: &target, detail: &detail })?;
    Ok(again)
}

fn insert(
    db: &Connection,
    number: u64,
    (body, by_old, by_new): (&str, &[u8], &[u8]),
    along_until_us: i64,
) -> Result<(), CollectorError> {
    db.prepare_cached(
        "INSERT INTO successions (number, body, by_old, by_new, along_until_us) \
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut s| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        s.execute(params![number, body, by_old, by_new, along_until_us])
    })
    .map(drop)
    .map_err(CollectorError::db("write which key signs"))
}

/// Signs with the key in force what is still to be believed and the key before had signed.
fn again(db: &Connection, before: &PublicKey, now: &InForce) -> Result<Again, CollectorError> {
    let mut again = Again::default();
    policies(db, before, now, &mut again)?;
    orders(db, before, now, &mut again)?;
    // Exact texts of what waits are sealed with the key before, and hosts raise them again.
    if let Connection::Postgres(_) = db {
        db.execute_batch("DELETE FROM exacts; DELETE FROM exacts_instance")
            .map_err(CollectorError::db("forget exact texts"))?;
    }
    Ok(again)
}

fn choose(mut unused: Vec<Held>, to: Option<&str>) -> Result<Held, RotateError> {
    if let Some(to) = to {
        let wanted = to.to_ascii_lowercase();
        unused.retain(|k| !wanted.is_empty() && k.public.fingerprint_hex().starts_with(&wanted));
        if unused.is_empty() {
            return Err(RotateError::NoSuchKey(to.chars().take(80).collect()));
        }
    }
    match <[Held; 1]>::try_from(unused) {
        Ok([one]) => Ok(one),
        Err(none) if none.is_empty() => Err(RotateError::NoKey),
        Err(several) => {
            let names = several.iter().map(|k| k.public.fingerprint_hex());
            Err(RotateError::Several(names.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// The newest policies.
fn policies(
    db: &Connection,
    before: &PublicKey,
    now: &InForce,
    again: &mut Again,
) -> Result<(), CollectorError> {
    let Some((version, body, signature)) = super::policies::newest_signed(db)? else {
        return Ok(());
    };
    let message = Bundle::message(&body);
    if !before.verify(&message, &signature) {
        again.altered.push(format!("version {version} of the policies"));
        return Ok(());
    }
    let signature = now.key()?.sign(&message);
    let number = i64::try_from(now.number()).unwrap_or(i64::MAX);
    db.prepare_cached(
        "UPDATE successions SET policies = ?2, policies_signature = ?3 WHERE number = ?1",
    )
    .and_then(|mut s| s.execute(params![number, version, &signature[..]]))
    .map(drop)
    .map_err(CollectorError::db("sign policies anew"))
}

/// Orders that hosts may still carry out. One that was altered is over.
fn orders(
    db: &Connection,
    before: &PublicKey,
    now: &InForce,
    again: &mut Again,
) -> Result<(), CollectorError> {
    let key = now.key()?;
    let open: Vec<(i64, i64, String, Vec<u8>)> = db
        .prepare_cached(
            "SELECT host, seq, body, signature FROM orders \
             WHERE done_us IS NULL AND expires_us > ?1",
        )
        .and_then(|mut s| {
            s.query_map([now_us()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?.collect()
        })
        .map_err(CollectorError::db("read orders"))?;
    for (host, seq, body, signature) in open {
        let message = order_message(&body);
        if !before.verify(&message, &signature) {
            again.altered.push(format!("order {seq}"));
            let why = json!({ "result": "refused", "error": "the key before had not signed it" });
            db.prepare_cached(
                "UPDATE orders SET done_us = ?3, result = ?4 WHERE host = ?1 AND seq = ?2",
            )
            .and_then(|mut s| s.execute(params![host, seq, now_us(), why.to_string()]))
            .map_err(CollectorError::db("end an altered order"))?;
            continue;
        }
        again.orders += 1;
        let signature = key.sign(&message);
        db.prepare_cached("UPDATE orders SET signature = ?3 WHERE host = ?1 AND seq = ?2")
            .and_then(|mut s| s.execute(params![host, seq, &signature[..]]))
            .map_err(CollectorError::db("sign orders anew"))?;
    }
    Ok(())
}

/// Ends, inside the caller's transaction, that old keys sign the log along: `now`, or because
/// their time is over. Their private parts may be deleted once that is on disk.
pub fn end_along(db: &Connection, keys: &Keys, who: &Who, now: bool) -> Result<(), RotateError> {
    let in_force = keys.in_force(db)?;
    // Without the key in force here the old ones may be all that there is.
    in_force.key()?;
    let at = now_us();
    let along = in_force.steps().iter().any(|s| s.along_until_us > at);
    if along && !now {
        return Err(RotateError::Along);
    }
    db.prepare_cached("UPDATE successions SET along_until_us = ?1 WHERE along_until_us > ?1")
        .and_then(|mut s| s.execute([at]))
        .map_err(CollectorError::db("end an overlap of keys"))?;
    let past: Vec<_> = in_force.past().iter().map(|k| k.public.fingerprint_hex()).collect();
    let detail = json!({ "keys": past, "overlap_ended": along });
    let entry = Entry { who, what: "keys.retired", target: "old signing keys", detail: &detail };
    audit::append(db, &entry)?;
    Ok(())
}

/// One signing key, as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Fingerprint.
    pub fingerprint: String,
    /// `in force`, `signs the log along`, `old` or `new`.
    pub state: &'static str,
    /// Since when it was in force; unknown of the first. Microseconds since the Unix epoch.
    pub since_us: Option<i64>,
    /// Until when it signs the log along.
    pub along_until_us: Option<i64>,
    /// Its private part is here.
    pub here: bool,
    /// Hosts that take orders of it.
    pub hosts: u64,
}

/// All keys, oldest first.
pub fn list(db: &Connection, keys: &Keys) -> Result<Vec<Listed>, CollectorError> {
    let in_force = keys.in_force(db)?;
    let now = now_us();
    let row = |held: &Held, state| -> Result<Listed, CollectorError> {
        let fingerprint = held.public.fingerprint_hex();
        let hosts = followers(db, &fingerprint)?;
        let here = held.private.is_some();
        Ok(Listed { fingerprint, state, since_us: None, along_until_us: None, here, hosts })
    };
    let since = |at: usize| {
        let step = at.checked_sub(1).and_then(|at| in_force.steps().get(at));
        step.and_then(|s| s.signed.read().ok()).map(|(it, ..)| it.issued_us)
    };
    let mut all = Vec::new();
    for (at, (held, step)) in in_force.past().iter().zip(in_force.steps()).enumerate() {
        let along = step.along_until_us > now;
        let state = if along { "signs the log along" } else { "old" };
        let along_until_us = along.then_some(step.along_until_us);
        all.push(Listed { since_us: since(at), along_until_us, ..row(held, state)? });
    }
    let current = row(in_force.current(), "in force")?;
    all.push(Listed { since_us: since(in_force.past().len()), ..current });
    for held in keys.unused(&in_force)? {
        all.push(row(&held, "new")?);
    }
    Ok(all)
}

/// Hosts that are let in and have not said that they take orders of this key.
pub(super) fn silent(db: &Connection, fingerprint: &str) -> Result<u64, CollectorError> {
    counted(db, "follows IS DISTINCT FROM ?1", fingerprint)
}

fn followers(db: &Connection, fingerprint: &str) -> Result<u64, CollectorError> {
    counted(db, "follows = ?1", fingerprint)
}

fn counted(db: &Connection, which: &str, fingerprint: &str) -> Result<u64, CollectorError> {
    db.prepare_cached(&format!("SELECT count(*) FROM hosts WHERE {which} AND revoked_us IS NULL"))
        .and_then(|mut s| s.query_row([fingerprint], |r| r.get::<_, i64>(0)))
        .map(|n| n.max(0).unsigned_abs())
        .map_err(CollectorError::db("count hosts"))
}

/// Which key a host takes orders of, as the database has it.
pub fn follows(db: &Connection, host: i64) -> Result<Option<String>, CollectorError> {
    db.prepare_cached("SELECT follows FROM hosts WHERE id = ?1")
        .and_then(|mut s| s.query_row([host], |r| r.get(0)).optional())
        .map(Option::flatten)
        .map_err(CollectorError::db("read which key a host follows"))
}

/// Notes which key a host takes orders of.
pub fn note_follows(db: &Connection, host: i64, key: &str) -> Result<(), CollectorError> {
    db.prepare_cached("UPDATE hosts SET follows = ?2 WHERE id = ?1 AND follows IS DISTINCT FROM ?2")
        .and_then(|mut s| s.execute(params![host, key]))
        .map(drop)
        .map_err(CollectorError::db("note which key a host follows"))
}
