//! `interceptor sessions verify --collector`: that the sessions which this host sealed stand in
//! the collector's log, and that the log only ever grew since it was looked at last.

use serde::Serialize;

use super::client::{self, ANSWER};
use super::{Identity, Memory, SeenLog, ShipError};
use crate::collector::log::{Checkpoint, Leaf, proof, tree};
use crate::collector::wire::{AskProofs, Inclusion, LogStanding, MOST_PROOFS};
use crate::config::{Config, Ship};
use crate::record::Reader;
use crate::record::chain::{Hash, hex, unhex};
use crate::record::ledger::{Entry, Placed};

/// What was proved.
#[derive(Debug, Default, Serialize)]
pub struct Proved {
    /// Leaves of the log.
    pub size: u64,
    /// Leaves it had when this host looked last; all of them are what they were.
    pub before: u64,
    /// Sessions of this host that stand in it as they were sealed.
    pub sessions: u64,
    /// Sessions that the collector does not have yet.
    pub waiting: u64,
    /// Of those that stand: the contents of so many were deleted by the collector's retention.
    pub deleted: u64,
    /// Which, and when; the first thousand.
    pub deletions: Vec<Deletion>,
    /// Empty when all is well.
    pub findings: Vec<String>,
}

/// A session whose contents the collector's retention deleted, as the collector says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    /// Number of the session.
    pub number: u64,
    /// When; microseconds since the Unix epoch.
    pub deleted_us: i64,
}

/// Findings and deletions beyond this are not listed.
const MOST_FINDINGS: usize = 1000;

/// Proves it for all sealed sessions in the store of a reader.
pub async fn prove(config: &Config, ship: &Ship, reader: &Reader) -> Result<Proved, ShipError> {
    let dir = ship.state(&config.paths);
    let identity = Identity::load(&dir)?
        .ok_or_else(|| ShipError::Enrolment("this host is not enrolled".into()))?;
    let memory = Memory::open(&dir)?;
    let http = client::enrolled(&identity)?;
    let url = &identity.known.url;
    let before = memory.log()?;
    let (log, standing) = {
        let from = before.as_ref().map_or(0, |b| b.size);
        let known = identity.collector_key()?;
        let path = format!("/host/v1/log?from={from}&key={}", known.fingerprint_hex());
        let get = http.get(format!("{url}{path}")).timeout(ANSWER);
        let standing: LogStanding = client::call(get).await?;
        let key = identity.log_key()?;
        let log = key
            .following(&standing.keys)
            .and_then(|keys| {
                // What a key signs that was left proves nothing.
                let newest = keys.last().unwrap_or(&key);
                Checkpoint::verify(&standing.checkpoint, newest)
            })
            .map_err(|e| ShipError::Log(e.to_string()))?;
        (log, standing)
    };
    continues(before.as_ref(), &log, &standing)?;
    let mut proved =
        Proved { size: log.size, before: before.map_or(0, |b| b.size), ..Proved::default() };
    let acknowledged = memory.acknowledged()?.position.ledger;
    let host = reader.public_key()?.fingerprint();
    let mut at = 0;
    loop {
        let seals = reader.seals_after(at, MOST_PROOFS)?;
        let Some((last, ..)) = seals.last() else { break };
        at = *last;
        let numbers = seals.iter().map(|(_, number, _)| *number).collect();
        let ask = AskProofs { size: log.size, numbers };
        let post = http.post(format!("{url}/host/v1/log/proofs")).timeout(ANSWER).json(&ask);
        let found: Vec<Inclusion> = client::call(post).await?;
        for (idx, number, body) in &seals {
            let inclusion = found.iter().find(|i| i.number == *number);
            match inclusion {
                Some(i) if stands(host, *number, body, i, &log) => {
                    proved.sessions += 1;
                    deletion(&mut proved, i);
                }
                Some(_) => find(
                    &mut proved,
                    format!("session {number} stands in the log otherwise than it was sealed here"),
                ),
                None if *idx <= acknowledged => find(
                    &mut proved,
                    format!("session {number} was acknowledged and is not in the log"),
                ),
                None => proved.waiting += 1,
            }
        }
    }
    memory.saw_log(&SeenLog { size: log.size, root: hex(&log.root), note: standing.checkpoint })?;
    Ok(proved)
}

fn deletion(proved: &mut Proved, inclusion: &Inclusion) {
    let Some(deleted_us) = inclusion.deleted_us else { return };
    proved.deleted += 1;
    if proved.deletions.len() < MOST_FINDINGS {
        proved.deletions.push(Deletion { number: inclusion.number, deleted_us });
    }
}

fn find(proved: &mut Proved, what: String) {
    if proved.findings.len() < MOST_FINDINGS {
        proved.findings.push(what);
    }
}

/// The log must begin with what was seen before.
fn continues(
    before: Option<&SeenLog>,
    log: &Checkpoint,
    standing: &LogStanding,
) -> Result<(), ShipError> {
    let Some(before) = before else { return Ok(()) };
    audit_continues(before, log)?;
    let path = proof::read_path(&standing.consistency);
    let root = unhex(&before.root);
    let (Some(path), Some(root)) = (path, root) else {
        return Err(ShipError::Log("the proof of consistency cannot be read".into()));
    };
    if tree::extends(before.size, &root, log.size, &log.root, &path) {
        return Ok(());
    }
    Err(ShipError::Log(format!(
        "it had {} leaves and now has {} that do not begin with them: the log was rewritten. Keep \
         ship.db and this checkpoint as evidence:\n{}\n{}",
        before.size, log.size, before.note, standing.checkpoint
    )))
}

/// So must the audit trail, as far as its last step shows.
fn audit_continues(before: &SeenLog, log: &Checkpoint) -> Result<(), ShipError> {
    let Some(then) = Checkpoint::kept(&before.note).ok().and_then(|c| c.audit) else {
        return Ok(());
    };
    let continues = match log.audit {
        Some(now) if now.id == then.id => now.hash == then.hash,
        Some(now) => now.id > then.id,
        None => false,
    };
    if continues {
        return Ok(());
    }
    Err(ShipError::Log(format!(
        "the collector's audit trail had {} steps and does not continue them: it was cut or made \
         anew. Keep ship.db as evidence, and ask there for `interceptor collector verify --seen` \
         with this checkpoint:\n{}",
        then.id, before.note
    )))
}

fn stands(host: Hash, number: u64, body: &str, inclusion: &Inclusion, log: &Checkpoint) -> bool {
    let Ok(Placed { entry: Entry::Seal(seal), .. }) = serde_json::from_str(body) else {
        return false;
    };
    let (Ok(session), Some(path)) =
        (ulid::Ulid::from_string(&seal.session), proof::read_path(&inclusion.path))
    else {
        return false;
    };
    let leaf = Leaf::of_seal(host, number, session, body.as_bytes());
    tree::includes(&leaf.hash(), inclusion.index, log.size, &path, &log.root)
}
