//! The trail of what people and hosts did at the collector: append-only, hash-chained.
//!
//! `hash_i = SHA-256(domain ‖ hash_{i-1} ‖ ts ‖ len who ‖ who ‖ … detail)`. Each signed checkpoint
//! of the log names the last step ([`super::log`]), so whoever makes all hashes anew needs the
//! signing key, and whoever takes the end away is found out by any checkpoint that was kept.

use std::collections::BTreeMap;

use crate::collector::db::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::Value;

use super::error::CollectorError;
use super::log::AuditHead;
use crate::record::chain::{self, Hash};
use crate::record::now_us;

const DOMAIN: &[u8] = b"interceptor collector audit v1\0";

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// A person, by issuer and subject; the name is for reading only.
    Person {
        /// Configured name of the issuer.
        issuer: String,
        /// Subject there.
        sub: String,
        /// As shown.
        name: String,
    },
    /// A host, by its name and fingerprint.
    Host {
        /// Name.
        name: String,
        /// Fingerprint of its record key.
        fingerprint: String,
    },
    /// Somebody at the collector's own command line.
    Operator {
        /// Operating system user.
        user: String,
    },
    /// The collector by itself.
    Collector,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// Who did it.
    pub who: &'a Who,
    /// What, as a word such as `hold.approved`.
    pub what: &'a str,
    /// On what.
    pub target: &'a str,
    /// Everything else; never a secret or an exact statement.
    pub detail: &'a Value,
}

/// Appends a step inside the caller's transaction.
pub fn append(db: &Connection, entry: &Entry<'_>) -> Result<(), CollectorError> {
    let fail = CollectorError::db;
    let (last, previous) = newest(db)?;
    let ts_us = now_us();
    let who = serde_json::to_string(entry.who).unwrap_or_default();
    // Not every database keeps this character, and the hash must be over what is kept.
    let target = &entry.target.replace('\0', "\u{2400}");
    let detail = entry.detail.to_string();
    let hash = step(&previous, ts_us, [&who, entry.what, target, &detail]);
    db.prepare_cached(
        "INSERT INTO audit (id, ts_us, who, what, target, detail, hash) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .and_then(|mut s| {
        s.execute(params![last + 1, ts_us, who, entry.what, target, detail, &hash[..]])
    })
    .map_err(fail("write the audit trail"))?;
    Ok(())
}

/// The last step, if there is one.
pub fn head(db: &Connection) -> Result<Option<AuditHead>, CollectorError> {
    let (id, hash) = newest(db)?;
    Ok(u64::try_from(id).ok().filter(|id| *id > 0).map(|id| AuditHead { id, hash }))
}

pub(super) fn newest(db: &Connection) -> Result<(i64, Hash), CollectorError> {
    let last: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
        .and_then(|mut s| s.query_row([], |r| Ok((r.get(0)?, r.get(1)?))).optional())
        .map_err(CollectorError::db("read the audit trail"))?;
    let read = |(id, hash): (i64, Vec<u8>)| Some((id, hash.try_into().ok()?));
    Ok(last.and_then(read).unwrap_or_default())
}

/// The first step whose hash is not what the ones before it make, if there is one.
pub fn verify(db: &Connection) -> Result<Option<i64>, CollectorError> {
    verify_against(db, &BTreeMap::new())
}

/// The same; also one that is another than was signed, or is missing.
pub fn verify_against(
    db: &Connection,
    signed: &BTreeMap<u64, Hash>,
) -> Result<Option<i64>, CollectorError> {
    let check = || -> crate::collector::db::Result<Option<i64>> {
        let mut portion = db.prepare(
            "SELECT id, ts_us, who, what, target, detail, hash FROM audit WHERE id >= ?1 \
             ORDER BY id LIMIT 10000",
        )?;
        let (mut previous, mut expected) = (Hash::default(), i64::MIN);
        loop {
            let mut rows = portion.query([expected])?;
            let begun = expected;
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                let text = |i| row.get::<_, String>(i);
                let (who, what, target, detail) = (text(2)?, text(3)?, text(4)?, text(5)?);
                let hash = step(&previous, row.get(1)?, [&who, &what, &target, &detail]);
                let signed = u64::try_from(id).ok().and_then(|id| signed.get(&id));
                let other = signed.is_some_and(|signed| *signed != hash);
                if other || id != expected.max(1) || row.get::<_, Vec<u8>>(6)? != hash {
                    return Ok(Some(id));
                }
                (previous, expected) = (hash, id + 1);
            }
            if expected == begun {
                // The end may have been taken away.
                let last = signed.last_key_value().and_then(|(id, _)| i64::try_from(*id).ok());
                return Ok(last.filter(|last| *last >= expected.max(1)).map(|_| expected.max(1)));
            }
        }
    };
    check().map_err(CollectorError::db("verify the audit trail"))
}

/// Makes all hashes anew, as somebody could who has the database.
#[cfg(test)]
pub fn chain_anew(db: &Connection) -> Result<Hash, CollectorError> {
    let all: Vec<(i64, i64, String, String, String, String)> = db
        .prepare("SELECT id, ts_us, who, what, target, detail FROM audit ORDER BY id")
        .and_then(|mut s| {
            s.query_map([], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?))
            })?
            .collect()
        })
        .map_err(CollectorError::db("read"))?;
    let mut previous = Hash::default();
    for (id, ts_us, who, what, target, detail) in all {
        previous = step(&previous, ts_us, [&who, &what, &target, &detail]);
        db.execute("UPDATE audit SET hash = ?2 WHERE id = ?1", params![id, &previous[..]])
            .map_err(CollectorError::db("alter"))?;
    }
    Ok(previous)
}

fn step(previous: &Hash, ts_us: i64, texts: [&str; 4]) -> Hash {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(previous);
    bytes.extend_from_slice(&ts_us.to_le_bytes());
    for text in texts {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    chain::hash(DOMAIN, &[&bytes])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::collector::Central;

    #[tokio::test]
    async fn a_changed_or_missing_step_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let central = Central::open(dir.path()).unwrap();
        for n in 0..5 {
            central
                .write(move |db| {
                    let detail = serde_json::json!({ "n": n });
                    let entry =
                        Entry { who: &Who::Collector, what: "test", target: "t", detail: &detail };
                    append(db, &entry)
                })
                .await
                .unwrap();
        }
        drop(central);
        let db = Connection::open(dir.path().join("collector.db")).unwrap();
        assert_eq!(verify(&db).unwrap(), None);
        db.execute_batch(
            "DROP TRIGGER audit_stays; DROP TRIGGER audit_keeps; \
                          UPDATE audit SET detail = '{\"n\":7}' WHERE id = 3",
        )
        .unwrap();
        assert_eq!(verify(&db).unwrap(), Some(3));
        db.execute_batch("UPDATE audit SET detail = '{\"n\":2}' WHERE id = 3").unwrap();
        assert_eq!(verify(&db).unwrap(), None);
        // What was signed is found missing or made anew, though the chain holds.
        let head = head(&db).unwrap().unwrap();
        assert_eq!(verify_against(&db, &BTreeMap::from([(head.id, head.hash)])).unwrap(), None);
        assert_eq!(verify_against(&db, &BTreeMap::from([(4, [7; 32])])).unwrap(), Some(4));
        assert_eq!(verify_against(&db, &BTreeMap::from([(9, head.hash)])).unwrap(), Some(6));
        db.execute_batch("DELETE FROM audit WHERE id = 2").unwrap();
        assert_eq!(verify(&db).unwrap(), Some(3));
    }
}
