//! One session against its seal: the same sums as [`verify`](super::verify), for one session, so
//! that a page can say at once whether what it shows is what was signed.
//!
//! It does not see whether whole sessions are missing, or whether the ledger was rewritten by
//! the key's owner; that is for `verify` and for the collector's log.

use rusqlite::OptionalExtension;

use super::chain::{self, Hash, hex};
use super::ledger::{self, Entry, Placed, Seal};
use super::store::{self, hash_of};
use super::{PublicKey, Reader, RecordError, Summary};

/// Problems beyond this are not listed.
const MOST: usize = 20;

/// What was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Checked {
    /// Events whose place in the chain was computed again.
    pub events: u64,
    /// Index of the seal in the host's ledger; none while the session is open.
    pub seal: Option<u64>,
    /// Where its chain ends.
    #[serde(skip)]
    pub head: Option<Hash>,
    /// When it was sealed; microseconds since the Unix epoch.
    pub sealed_us: Option<i64>,
    /// What the seal itself says is missing.
    pub lost_tail: Option<String>,
    /// The host itself sealed it as broken, so its end may differ from the seal.
    pub reported: bool,
    /// Events are missing, or were altered, added or moved: by whoever keeps them.
    #[serde(skip)]
    pub broken: bool,
    /// What is not as it was signed; empty when all is well.
    pub problems: Vec<String>,
}

impl Checked {
    fn find(&mut self, problem: String) {
        if self.problems.len() < MOST {
            self.problems.push(problem);
        }
    }
}

/// Checks one session of a host with this key.
pub fn session(
    reader: &Reader,
    key: &PublicKey,
    session: &Summary,
) -> Result<Checked, RecordError> {
    let mut out = Checked::default();
    let Ok(id) = ulid::Ulid::from_string(&session.id) else {
        out.find("the session's id was altered".into());
        return Ok(out);
    };
    let mut head = chain::start(&key.fingerprint(), id, session.number);
    let mut seq = 0;
    let read = reader.events(session.number, 0, |e| {
        if e.seq != seq + 1 {
            out.broken = true;
            out.find(format!("events {} to {} are missing", seq + 1, e.seq.saturating_sub(1)));
        }
        seq = e.seq;
        head = chain::step(&head, e.seq, e.ts_us, e.kind, e.body, e.data);
        if hash_of(e.hash) != Some(head) {
            out.broken = true;
            out.find(format!("event {seq} was altered, added or moved"));
            head = hash_of(e.hash).unwrap_or(head);
        }
    });
    match read {
        Err(RecordError::Object(e)) if !e.is_away() => {
            out.broken = true;
            out.find(e.to_string());
            return Ok(out);
        }
        read => read?,
    }
    (out.events, out.head) = (seq, Some(head));
    match seal(reader, key, session.number)? {
        Found::None if session.seal.is_some() => out.find("its seal is missing".into()),
        Found::None => {}
        Found::Forged(idx) => out.find(format!("ledger entry {idx} is not signed by the host")),
        Found::Seal(idx, ts_us, seal) => {
            (out.seal, out.sealed_us) = (Some(idx), Some(ts_us));
            if seal.session != session.id {
                out.find("its seal is for another session".into());
            }
            if seal.events != seq || seal.head != hex(&head) {
                let words = format!("{} events were sealed, {seq} are there", seal.events);
                out.find(format!("it does not end as it was sealed: {words}"));
            }
            out.reported = seal.problem.is_some();
            if let Some(problem) = seal.problem {
                out.find(format!("it was found altered on the host: {problem}"));
            }
            out.lost_tail = seal.lost_tail;
        }
    }
    Ok(out)
}

enum Found {
    None,
    Forged(i64),
    Seal(u64, i64, Seal),
}

fn seal(reader: &Reader, key: &PublicKey, number: u64) -> Result<Found, RecordError> {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    let row: Option<(i64, String, Vec<u8>)> = reader
        .db
        .query_row(
            "SELECT idx, body, signature FROM ledger WHERE number = ?1 AND kind = 'seal'",
            [number],
            |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
        )
        .optional()
        .map_err(RecordError::sqlite("read a seal"))?;
    let Some((idx, body, signature)) = row else { return Ok(Found::None) };
    if !ledger::entry_is_signed(key, body.as_bytes(), &signature) {
        return Ok(Found::Forged(idx));
    }
    match serde_json::from_str::<Placed>(&body) {
        Ok(Placed { idx: placed, ts_us, entry: Entry::Seal(seal), .. })
            if i64::try_from(placed) == Ok(idx) && seal.number == number as u64 =>
        {
            Ok(Found::Seal(placed, ts_us, seal))
        }
        _ => Ok(Found::Forged(idx)),
    }
}

/// Number of events that a store has of a session, for whoever follows it.
pub fn last_seq(reader: &Reader, number: u64) -> Result<u64, RecordError> {
    let last: Option<i64> = reader
        .db
        .query_row(
            "SELECT max(id) FROM events WHERE id >= ?1 AND id < ?2",
            [store::event_id(number, 0), store::event_id(number + 1, 0)],
            |r| r.get(0),
        )
        .map_err(RecordError::sqlite("count events"))?;
    Ok(last.map_or(0, store::seq_of))
}
