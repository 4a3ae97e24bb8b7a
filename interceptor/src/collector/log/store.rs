//! The log in the central database: appended to and read inside the caller's transaction.

use std::collections::BTreeMap;

use crate::collector::db::{Connection, OptionalExtension, params};

use super::leaf::Leaf;
use super::note::{AuditHead, Checkpoint, origin};
use super::tree;
use crate::collector::audit;
use crate::collector::signing::InForce;
use crate::collector::{CollectorError, Keys};
use crate::record::chain::Hash;
use crate::record::now_us;

type Result<T> = std::result::Result<T, CollectorError>;

fn sql(action: &'static str) -> impl FnOnce(crate::collector::db::Error) -> CollectorError {
    CollectorError::db(action)
}

/// Leaves of the log.
pub fn size(db: &Connection) -> Result<u64> {
    db.prepare_cached("SELECT coalesce(max(idx) + 1, 0) FROM leaves")
        .and_then(|mut s| s.query_row([], |r| r.get::<_, i64>(0)))
        .map(|n| n.max(0) as u64)
        .map_err(sql("read the size of the log"))
}

/// Hash of the complete subtree of `2^level` leaves.
pub fn node(db: &Connection, level: u32, index: u64) -> Result<Hash> {
    let read = |statement: &str, values: &[&dyn crate::collector::db::ToValue]| {
        db.prepare_cached(statement)
            .and_then(|mut s| s.query_row(values, |r| r.get::<_, Vec<u8>>(0)).optional())
            .map_err(sql("read the log"))
    };
    let found = match level {
        0 => read("SELECT hash FROM leaves WHERE idx = ?1", &[&(index as i64)])?,
        _ => read(
            "SELECT hash FROM nodes WHERE level = ?1 AND idx = ?2",
            &[&i64::from(level), &(index as i64)],
        )?,
    };
    found.and_then(|h| h.try_into().ok()).ok_or_else(|| {
        CollectorError::Key(format!(
            "the log has no node {index} at level {level}: restore collector.db from the backup"
        ))
    })
}

/// Appends a leaf; its index. Retention counts from now on. The same session twice is the same leaf, or an error when it is
/// another one.
pub fn append(db: &Connection, host: i64, leaf: &Leaf) -> Result<u64> {
    let known: Option<(i64, Vec<u8>)> = db
        .prepare_cached("SELECT idx, entry FROM leaves WHERE host = ?1 AND number = ?2")
        .and_then(|mut s| {
            s.query_row(params![host, leaf.number as i64], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()
        })
        .map_err(sql("read the log"))?;
    let entry = leaf.encode();
    if let Some((idx, there)) = known {
        if there == entry {
            return Ok(idx as u64);
        }
        return Err(CollectorError::Key(format!(
            "session {} of host {host} stands in the log with another seal: restore the host's \
             replica from the backup, and find out who altered it",
            leaf.number
        )));
    }
    let index = size(db)?;
    let mut hash = leaf.hash();
    db.prepare_cached(
        "INSERT INTO leaves (idx, host, number, entry, hash, accepted_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )
    .and_then(|mut s| {
        let number = leaf.number as i64;
        s.execute(params![index as i64, host, number, entry, &hash[..], now_us()])
    })
    .map_err(sql("append to the log"))?;
    // Every subtree that this leaf completes.
    let (mut level, mut at) = (0, index);
    while at & 1 == 1 {
        let left = node(db, level, at - 1)?;
        hash = tree::parent(&left, &hash);
        level += 1;
        at >>= 1;
        db.prepare_cached("INSERT INTO nodes (level, idx, hash) VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![i64::from(level), at as i64, &hash[..]]))
            .map_err(sql("append to the log"))?;
    }
    Ok(index)
}

/// Whether the log or the audit trail has grown since they were signed.
pub fn is_behind(db: &Connection) -> Result<bool> {
    let Some((at, note)) = newest(db)? else {
        return Ok(size(db)? > 0 || audit::head(db)?.is_some());
    };
    let signed = Checkpoint::kept(&note).ok().and_then(|c| c.audit);
    Ok(at != size(db)? || signed != audit::head(db)?)
}

/// Where the audit trail stood at each signed checkpoint; the size of the first that none of the
/// collector's keys signed is an error.
pub fn audit_heads(
    db: &Connection,
    keys: &InForce,
) -> Result<std::result::Result<BTreeMap<u64, Hash>, u64>> {
    let all = keys.all();
    let mut heads = BTreeMap::new();
    let (mut after, mut read) = (-1, Vec::new().into_iter());
    loop {
        let Some((size, note)) = read.next() else {
            read = notes_after(db, after)?.into_iter();
            if read.len() == 0 {
                return Ok(Ok(heads));
            }
            continue;
        };
        after = size;
        match Checkpoint::verify_ours(&note, &all) {
            Ok(c) if i64::try_from(c.size) == Ok(size) => {
                heads.extend(c.audit.map(|a| (a.id, a.hash)))
            }
            _ => return Ok(Err(size.max(0).unsigned_abs())),
        }
    }
}

fn notes_after(db: &Connection, size: i64) -> Result<Vec<(i64, String)>> {
    db.prepare_cached(
        "SELECT size, note FROM log_checkpoints WHERE size > ?1 ORDER BY size LIMIT 10000",
    )
    .and_then(|mut s| s.query_map([size], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
    .map_err(sql("read the log's checkpoints"))
}

/// Signs where the log and the audit trail stand, and keeps it; the same note again when neither
/// has grown.
pub fn checkpoint(db: &Connection, keys: &Keys, console: &str) -> Result<String> {
    let (size, audit) = (size(db)?, audit::head(db)?);
    if let Some((at, note)) = newest(db)? {
        let signed = Checkpoint::kept(&note).ok().and_then(|c| c.audit);
        if at == size && signed == audit {
            return Ok(note);
        }
        trail_continues(signed, audit)?;
        if at > size {
            return Err(CollectorError::Key(format!(
                "the log has {size} leaves and {at} were signed: restore collector.db"
            )));
        }
    }
    let root = tree::root(size, &mut |level, index| node(db, level, index))?;
    let checkpoint = Checkpoint { origin: origin(console), size, root, audit };
    let note = sign(&checkpoint, &*keys.in_force(db)?)?;
    db.prepare_cached(
        "INSERT INTO log_checkpoints (size, root, ts_us, note) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (size) DO UPDATE SET ts_us = ?3, note = ?4",
    )
    .and_then(|mut s| s.execute(params![size as i64, &root[..], now_us(), note]))
    .map_err(sql("sign the log"))?;
    Ok(note)
}

/// Whether the audit trail may be one that continues what was signed; its hashes in between are for
/// [`audit::verify`].
fn trail_continues(signed: Option<AuditHead>, now: Option<AuditHead>) -> Result<()> {
    let Some(signed) = signed else { return Ok(()) };
    let last = now.map_or(0, |now| now.id);
    let same = now.is_some_and(|now| now.id > signed.id || now == signed);
    if same {
        return Ok(());
    }
    Err(CollectorError::Key(format!(
        "the audit trail has {last} steps and is not the one whose {} steps were signed: it was cut \
         or altered. Restore the database from the backup, and find out who did it; nothing is \
         signed until then",
        signed.id
    )))
}

/// A note with the signature of the key in force first, then those of the keys that sign along.
fn sign(checkpoint: &Checkpoint, keys: &InForce) -> Result<String> {
    let key = keys.key()?;
    let mut note = checkpoint.sign(keys.public(), |text| key.sign(text));
    for old in keys.along(now_us()) {
        note.push_str(&checkpoint.line(old.public(), |text| old.sign(text)));
    }
    Ok(note)
}

/// The newest signed checkpoint with its size.
pub fn newest(db: &Connection) -> Result<Option<(u64, String)>> {
    db.prepare_cached("SELECT size, note FROM log_checkpoints ORDER BY size DESC LIMIT 1")
        .and_then(|mut s| {
            s.query_row([], |r| Ok((r.get::<_, i64>(0)?.max(0) as u64, r.get(1)?))).optional()
        })
        .map_err(sql("read the log's checkpoint"))
}

/// The leaf of a session: index and bytes.
pub fn find(db: &Connection, host: i64, number: u64) -> Result<Option<(u64, Vec<u8>)>> {
    db.prepare_cached("SELECT idx, entry FROM leaves WHERE host = ?1 AND number = ?2")
        .and_then(|mut s| {
            s.query_row(params![host, number as i64], |r| {
                Ok((r.get::<_, i64>(0)?.max(0) as u64, r.get(1)?))
            })
            .optional()
        })
        .map_err(sql("look in the log"))
}

/// Path from a leaf to the root of the first `size` leaves.
pub fn inclusion(db: &Connection, index: u64, size: u64) -> Result<Vec<Hash>> {
    tree::inclusion(index, size, &mut |level, i| node(db, level, i))
}

/// Proof that the first `old` leaves are what they were.
pub fn consistency(db: &Connection, old: u64, size: u64) -> Result<Vec<Hash>> {
    tree::consistency(old, size, &mut |level, i| node(db, level, i))
}
