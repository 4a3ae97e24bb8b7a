//! The proof of one session for a third party, put together from the log and the replica. Where
//! several collectors share a database, the replica here may lag or not be there at all: what it
//! lacks is read in the host's feed.

use std::path::Path;

use crate::collector::db::{self, Connection};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::CollectorError;
use super::feed::{Feed, Kind, Mark};
use super::log::{self, SessionProof};
use super::replica::Replica;
use super::rotation;
use crate::record::frame::{self, Frame, Parsed};
use crate::record::ledger::{Entry, Placed, entry_is_signed};
use crate::record::{PublicKey, Reader, RecordError};

/// A seal's exact bytes, and its signature.
type Sealed = (String, Vec<u8>);

/// The proof of the session with this id, or the beginning or end of one; in words why there is
/// none.
pub fn session(
    db: &Connection,
    state: &Path,
    feed: Option<&Feed>,
    name: &str,
) -> Result<Result<SessionProof, String>, CollectorError> {
    let id = name.to_ascii_uppercase();
    if id.len() < 4 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(Err(format!("{name:?} is no session id")));
    }
    let found: Vec<(i64, i64, Vec<u8>, String)> = db
        .prepare(
            "SELECT s.host, s.number, h.public_key, s.session FROM sessions s \
             JOIN hosts h ON h.id = s.host \
             WHERE s.session LIKE CAST(?1 AS TEXT) || '%' \
             OR s.session LIKE '%' || CAST(?1 AS TEXT) LIMIT 2",
        )
        .and_then(|mut s| {
            s.query_map([&id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))?.collect()
        })
        .map_err(CollectorError::db("look for a session"))?;
    let (host, number, key) = match &found[..] {
        [] => return Ok(Err(format!("no session {name:?} is here"))),
        [(host, number, key, _)] => (*host, number.max(&0).unsigned_abs(), key),
        _ => return Ok(Err(format!("several sessions fit {name:?}: write more of its id"))),
    };
    let Ok(key) = <[u8; 32]>::try_from(&key[..]).map(PublicKey) else {
        return Ok(Err("the host's key cannot be read".into()));
    };
    let Some((index, _)) = log::store::find(db, host, number)? else {
        return Ok(Err(format!("session {name:?} is not sealed yet, so it is not in the log")));
    };
    let Some((size, checkpoint)) = log::store::newest(db)?.filter(|(size, _)| *size > index) else {
        return Ok(Err("the log is not signed yet: try again".into()));
    };
    let path = log::store::inclusion(db, index, size)?;
    let dir = Replica::directory(state, &key.fingerprint_hex());
    let (seal, followed) = in_replica(&dir, number, feed.is_some())?;
    let seal = match (seal, feed) {
        (None, Some(feed)) => in_feed(feed, host, &key, number, followed)?,
        (seal, _) => seal,
    };
    let Some((seal, signature)) = seal else {
        return Ok(Err("the replica has no seal of it: restore it from the backup".into()));
    };
    Ok(Ok(SessionProof {
        v: 1,
        host_key: key.to_base64(),
        seal,
        seal_signature: STANDARD.encode(signature),
        index,
        path: log::proof::write_path(&path),
        checkpoint,
        keys: rotation::chain(db)?,
    }))
}

/// A seal that a replica has, and how far that followed its feed.
fn in_replica(
    dir: &Path,
    number: u64,
    may_lack: bool,
) -> Result<(Option<Sealed>, Mark), CollectorError> {
    let reader = match Reader::of_replica(dir) {
        Err(RecordError::Contents(_)) if may_lack => return Ok((None, Mark::default())),
        reader => reader?,
    };
    let seal = reader.seal_of(number)?.map(|(_, seal, signature)| (seal, signature));
    let (at, mark) = reader.followed()?;
    Ok((seal, Mark { at, mark }))
}

/// A seal that stands in a host's feed behind what a replica has of it.
fn in_feed(
    feed: &Feed,
    host: i64,
    key: &PublicKey,
    number: u64,
    followed: Mark,
) -> Result<Option<Sealed>, CollectorError> {
    // A replica that followed another feed tells nothing of this one.
    let mut at = if feed.knows(host, followed)? { followed.at } else { 0 };
    loop {
        let rows = feed.after_of(host, at, Kind::Ledger)?;
        let Some(last) = rows.last() else { return Ok(None) };
        at = last.mark.at;
        for row in &rows {
            let mut rest = &row.body[..];
            while let Parsed::Whole(frame, length) = frame::parse(rest) {
                rest = rest.get(length..).unwrap_or_default();
                let Frame::Ledger(signed) = frame else { continue };
                let is_it = serde_json::from_slice::<Placed>(signed.body).is_ok_and(
                    |placed| matches!(placed.entry, Entry::Seal(seal) if seal.number == number),
                );
                if is_it && entry_is_signed(key, signed.body, signed.signature) {
                    let seal = String::from_utf8_lossy(signed.body).into_owned();
                    return Ok(Some((seal, signed.signature.to_vec())));
                }
            }
        }
    }
}

/// How many leaves stand in the log, and whether its nodes and signed roots agree with them.
pub fn check_log(db: &Connection) -> Result<Result<u64, String>, CollectorError> {
    let size = log::store::size(db)?;
    let mut portion = db
        .prepare("SELECT idx, entry, hash FROM leaves WHERE idx >= ?1 ORDER BY idx LIMIT 10000")
        .map_err(CollectorError::db("read the log"))?;
    // Complete subtrees from the left, as they stand after each leaf.
    let mut stack: Vec<(u32, crate::record::chain::Hash)> = Vec::new();
    let mut at = 0u64;
    let mut read: std::vec::IntoIter<(i64, Vec<u8>, Vec<u8>)> = Vec::new().into_iter();
    loop {
        if read.len() == 0 {
            let next = portion
                .query_map([at as i64], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
                .and_then(Iterator::collect::<db::Result<Vec<_>>>);
            read = next.map_err(CollectorError::db("read the log"))?.into_iter();
        }
        let Some((idx, entry, hash)) = read.next() else { break };
        let own = log::tree::leaf(&entry);
        if idx as u64 != at || hash != own {
            return Ok(Err(format!("leaf {at} was altered or is missing")));
        }
        stack.push((0, own));
        while let [.., (a, left), (b, right)] = &stack[..]
            && a == b
        {
            let merged = (a + 1, log::tree::parent(left, right));
            stack.truncate(stack.len() - 2);
            stack.push(merged);
        }
        at += 1;
        if let Some(root) = signed_root(db, at)? {
            let mut all = stack.iter().rev().map(|(_, h)| *h);
            let last = all.next().unwrap_or_else(log::tree::empty);
            let own = all.fold(last, |right, left| log::tree::parent(&left, &right));
            if root != own {
                return Ok(Err(format!("the signed root of {at} leaves is not theirs")));
            }
        }
    }
    if at != size {
        return Ok(Err(format!("{size} leaves are counted and {at} are there")));
    }
    Ok(Ok(size))
}

fn signed_root(db: &Connection, size: u64) -> Result<Option<Vec<u8>>, CollectorError> {
    use crate::collector::db::OptionalExtension;
    db.prepare_cached("SELECT root FROM log_checkpoints WHERE size = ?1")
        .and_then(|mut s| s.query_row([size as i64], |r| r.get(0)).optional())
        .map_err(CollectorError::db("read the log's checkpoints"))
}
