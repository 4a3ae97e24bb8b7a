//! The trail of what people and hosts did at the collector: append-only, hash-chained.
//!
//! `hash_i = SHA-256(domain ‖ hash_{i-1} ‖ ts ‖ len who ‖ who ‖ … detail)`. Nothing
//! signs the head yet: a change in the middle is found, one by whoever owns the database and
//! makes all hashes anew, or takes the end away, is not.

use crate::collector::db::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::Value;

use super::error::CollectorError;
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

/// Hash of the last step; zeros before the first.
pub fn head(db: &Connection) -> Result<Hash, CollectorError> {
    newest(db).map(|(_, hash)| hash)
}

fn newest(db: &Connection) -> Result<(i64, Hash), CollectorError> {
    let last: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT id, hash FROM audit ORDER BY id DESC LIMIT 1")
        .and_then(|mut s| s.query_row([], |r| Ok((r.get(0)?, r.get(1)?))).optional())
        .map_err(CollectorError::db("read the audit trail"))?;
    let read = |(id, hash): (i64, Vec<u8>)| Some((id, hash.try_into().ok()?));
    Ok(last.and_then(read).unwrap_or_default())
}

/// The first step whose hash is not what the ones before it make, if there is one.
pub fn verify(db: &Connection) -> Result<Option<i64>, CollectorError> {
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
                if id != expected.max(1) || row.get::<_, Vec<u8>>(6)? != hash {
                    return Ok(Some(id));
                }
                (previous, expected) = (hash, id + 1);
            }
            if expected == begun {
                return Ok(None);
            }
        }
    };
    check().map_err(CollectorError::db("verify the audit trail"))
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
        db.execute_batch("DELETE FROM audit WHERE id = 2").unwrap();
        assert_eq!(verify(&db).unwrap(), Some(3));
    }
}
