//! What a start does: it begins an epoch in the ledger, and deals with sessions that an earlier
//! daemon left open. Their records are checked against their own chain and the last checkpoint,
//! ended with an event that says so, and sealed as interrupted.

use std::sync::Arc;

use super::RecordError;
use super::chain::{self, Hash, hex};
use super::event::{End, Event, now_us};
use super::journal::lock;
use super::ledger::{Checkpoint, Damage, Entry, Epoch, OpenHead};
use super::log::{Chain, Live};
use super::recorder::Shared;
use super::store::{Store, hash_of};

/// States the damage found in the journal, begins the epoch, and seals every session that was
/// left open. In that order, so that whoever reads the ledger knows where the records of the
/// earlier process ended before the first word of this one.
pub(super) fn begin_epoch(
    shared: &Arc<Shared>,
    store: &Store,
    checkpoint: Option<&Checkpoint>,
    damage: &[Damage],
) -> Result<(), RecordError> {
    let left = leftovers(shared, store, checkpoint)?;
    for d in damage {
        shared.enter(now_us(), Entry::Damage(d.clone()), &mut Vec::new())?;
    }
    let (whole, broken): (Vec<_>, Vec<_>) = left.iter().partition(|l| l.found.problem.is_none());
    let epoch = Epoch {
        number: store.last_epoch()?.map_or(0, |e| e.number) + 1,
        clean: left.is_empty() && damage.is_empty(),
        next_number: lock(&shared.book).next_number,
        open: whole.iter().map(|l| l.head()).collect(),
        damaged: broken.iter().map(|l| l.number).collect(),
    };
    shared.enter(now_us(), Entry::Epoch(epoch), &mut Vec::new())?;
    let torn: u64 = damage.iter().map(|d| d.bytes).sum();
    left.into_iter().try_for_each(|l| seal(shared, l, torn))
}

/// A session that was left open.
struct Leftover {
    number: u64,
    id: ulid::Ulid,
    found: Found,
}

impl Leftover {
    fn head(&self) -> OpenHead {
        OpenHead {
            number: self.number,
            session: self.id.to_string(),
            seq: self.found.seq,
            head: hex(&self.found.head),
        }
    }
}

fn leftovers(
    shared: &Arc<Shared>,
    store: &Store,
    checkpoint: Option<&Checkpoint>,
) -> Result<Vec<Leftover>, RecordError> {
    let host = shared.key.public().fingerprint();
    let mut left = Vec::new();
    for (number, id) in store.unsealed()? {
        let Ok(id) = ulid::Ulid::from_string(&id) else {
            return Err(RecordError::Contents(format!("session {number} has no valid id")));
        };
        let known = checkpoint.and_then(|c| c.open.iter().find(|o| o.number == number));
        left.push(Leftover { number, id, found: examine(store, host, number, id, known)? });
    }
    Ok(left)
}

/// Ends a session that was left open.
fn seal(shared: &Arc<Shared>, left: Leftover, torn: u64) -> Result<(), RecordError> {
    let Leftover { number, id, found } = left;
    let mut chain = Chain::new(number, id, found.seq, found.head);
    let mut lost = found.lost;
    if torn > 0 {
        lost.push(format!("{torn} unreadable bytes of the journal, perhaps of this session"));
    }
    let mut end = End::because("interrupted");
    end.detail = Some("the daemon ended before the session did".into());
    end.lost_tail = (!lost.is_empty()).then(|| lost.join("; ").into());
    chain.append(&Event::now(&end))?;
    let live = Live::new(&chain);
    lock(&shared.open).insert(number, live);
    shared.seal(&mut chain, now_us(), &end, true, found.problem)?;
    tracing::warn!(session = %id, "sealed as interrupted");
    Ok(())
}

struct Found {
    seq: u64,
    head: Hash,
    lost: Vec<String>,
    problem: Option<String>,
}

fn examine(
    store: &Store,
    host: Hash,
    number: u64,
    id: ulid::Ulid,
    known: Option<&OpenHead>,
) -> Result<Found, RecordError> {
    let mut found =
        Found { seq: 0, head: chain::start(&host, id, number), lost: vec![], problem: None };
    let mut at_checkpoint = None;
    store.each_event(number, |e| {
        let want = chain::step(&found.head, e.seq, e.ts_us, e.kind, e.body, e.data);
        if found.problem.is_none() {
            if e.seq != found.seq + 1 {
                found.problem = Some(format!("event {} is missing", found.seq + 1));
            } else if hash_of(e.hash) != Some(want) {
                found.problem = Some(format!("event {} was altered", e.seq));
            }
        }
        found.seq = e.seq;
        found.head = hash_of(e.hash).unwrap_or(want);
        if known.is_some_and(|k| k.seq == e.seq) {
            at_checkpoint = Some(found.head);
        }
    })?;
    if let Some(k) = known {
        if k.seq > found.seq {
            found.lost.push(format!(
                "events {} to {} stood in a checkpoint and are gone",
                found.seq + 1,
                k.seq
            ));
            found.problem.get_or_insert_with(|| "events of a checkpoint are missing".into());
        } else if at_checkpoint.map(|h| hex(&h)).as_deref() != Some(k.head.as_str()) {
            found.problem.get_or_insert_with(|| {
                format!("event {} differs from what a checkpoint signed", k.seq)
            });
        }
    }
    Ok(found)
}
