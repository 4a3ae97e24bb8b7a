//! Recomputes everything that the host's key signed and compares.
//!
//! Found is every change that was made without the key: altered, added, removed and reordered
//! events, sessions that are missing, cut short or listed otherwise than their events say,
//! seals that were altered, exchanged or removed. What root can still do is what the key's
//! owner can do: write another history and sign it. Against that stands an anchor, a checkpoint
//! kept elsewhere.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::{Connection, OptionalExtension};

use super::RecordError;
use super::chain::{self, Hash, hex, unhex};
use super::frame::EventFrame;
use super::keys::PublicKey;
use super::ledger::{self, Anchor, Checkpoint, Deletion, Entry, Head, Placed, Seal};
use super::reader::Reader;
use super::store::{self, event_id, hash_of};
use super::summary::Summary;
use super::tombstones::{self, Tombstone};

/// Findings beyond this are counted, not listed.
const MOST_FINDINGS: usize = 1000;

/// What `verify` is told.
#[derive(Debug, Default)]
pub struct Options {
    /// The host's public key from a safe place; the exported one is believed when absent.
    pub key: Option<PublicKey>,
    /// Checkpoints kept elsewhere, with the name of their file.
    pub anchors: Vec<(String, Anchor)>,
}

/// One thing that is not as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Number of the session, if it concerns one.
    pub session: Option<u64>,
    /// What is wrong, in words.
    pub message: String,
}

/// What was verified, and what was found.
#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    /// Sessions whose record was recomputed.
    pub sessions: u64,
    /// Events that were recomputed.
    pub events: u64,
    /// Ledger entries whose signature and place were checked.
    pub ledger: u64,
    /// Sessions that are open, or wait for the daemon to seal them.
    pub open: u64,
    /// Sessions that retention removed, each covered by a signed deletion.
    pub deleted: u64,
    /// Events of open sessions that no checkpoint signs yet.
    pub unsigned: u64,
    /// Empty when all is well.
    pub findings: Vec<Finding>,
    /// Findings that are not listed because there are too many.
    pub more_findings: u64,
    /// True statements that a reader should know: lost tails, interrupted sessions.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn find(&mut self, session: Option<u64>, message: impl Into<String>) {
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Finding { session, message: message.into() });
        } else {
            self.more_findings += 1;
        }
    }
}

/// A checkpoint whose signature is good, and where it comes from.
struct Believed {
    from: String,
    checkpoint: Checkpoint,
    /// It stands in the store, and is not an anchor.
    own: bool,
}

struct Verifier<'a> {
    db: &'a Connection,
    reader: &'a Reader,
    key: PublicKey,
    report: Report,
    seals: HashMap<u64, (u64, Seal)>,
    deletions: Vec<Deletion>,
    /// Of a replica: sessions that the collector's retention deleted.
    tombstones: HashMap<u64, Tombstone>,
    checkpoints: Vec<Believed>,
    ledger: Head,
    epoch: u64,
}

/// Verifies a host's records.
pub fn verify(reader: &Reader, options: &Options) -> Result<Report, RecordError> {
    let key = match options.key {
        Some(key) => key,
        None => reader.public_key()?,
    };
    let db = &reader.db;
    // One snapshot, so that a daemon that goes on writing does not look like a forger.
    db.execute_batch("BEGIN").map_err(RecordError::sqlite("begin to verify"))?;
    let mut v = Verifier {
        db,
        reader,
        key,
        report: Report::default(),
        seals: HashMap::new(),
        deletions: Vec::new(),
        tombstones: HashMap::new(),
        checkpoints: Vec::new(),
        ledger: Head::start(&key),
        epoch: 0,
    };
    let result = v.run(reader, options);
    let _ = db.execute_batch("COMMIT");
    result.map_err(RecordError::sqlite("verify"))?;
    Ok(v.report)
}

impl Verifier<'_> {
    fn run(&mut self, reader: &Reader, options: &Options) -> rusqlite::Result<()> {
        for d in reader.damage() {
            let message = format!(
                "journal segment {:x}: {} bytes at {} cannot be read ({})",
                d.segment, d.bytes, d.offset, d.why
            );
            if d.torn_tail {
                self.report.notes.push(message);
            } else {
                self.report.find(None, message);
            }
        }
        self.owner()?;
        self.own_checkpoints()?;
        for (name, anchor) in &options.anchors {
            self.anchor(name, anchor);
        }
        self.ledger()?;
        self.signed_numbers()?;
        self.sessions()
    }

    fn owner(&mut self) -> rusqlite::Result<()> {
        let pem: Option<String> = self
            .db
            .query_row("SELECT value FROM meta WHERE key = 'public_key'", [], |r| r.get(0))
            .optional()?;
        if pem.as_deref() != Some(&self.key.to_pem()) {
            self.report.find(None, "the store names another public key than the one believed");
        }
        Ok(())
    }

    fn own_checkpoints(&mut self) -> rusqlite::Result<()> {
        let mut s =
            self.db.prepare("SELECT idx, ts_us, body, signature FROM checkpoints ORDER BY idx")?;
        let mut rows = s.query([])?;
        let mut previous: Option<(u64, u64)> = None;
        while let Some(row) = rows.next()? {
            let (idx, ts): (i64, i64) = (row.get(0)?, row.get(1)?);
            let from = format!("checkpoint {idx}");
            let body = row.get_ref(2)?.as_bytes().unwrap_or_default();
            let signature = row.get_ref(3)?.as_bytes().unwrap_or_default();
            let Some(c) = believe(&self.key, body, signature) else {
                self.report.find(None, format!("{from} was altered: its signature is not good"));
                continue;
            };
            if c.idx != idx as u64 || c.ts_us != ts {
                self.report.find(None, format!("{from} was altered or moved"));
            }
            if previous.is_some_and(|(i, n)| c.idx != i + 1 || c.next_number < n) {
                self.report.find(None, format!("{from} does not follow the one before"));
            }
            previous = Some((c.idx, c.next_number));
            self.checkpoints.push(Believed { from, checkpoint: c, own: true });
        }
        if previous.is_none() {
            self.report.find(None, "there is no checkpoint at all");
        }
        Ok(())
    }

    fn anchor(&mut self, name: &str, anchor: &Anchor) {
        let signature = STANDARD.decode(&anchor.signature).unwrap_or_default();
        let from = format!("anchor {name}");
        if anchor.public_key != STANDARD.encode(self.key.0) {
            self.report
                .find(None, format!("{from} was signed by another key: host.key was replaced"));
            return;
        }
        match believe(&self.key, anchor.checkpoint.as_bytes(), &signature) {
            Some(checkpoint) => self.checkpoints.push(Believed { from, checkpoint, own: false }),
            None => self.report.find(None, format!("{from}: its signature is not good")),
        }
    }

    fn ledger(&mut self) -> rusqlite::Result<()> {
        let mut wanted: HashMap<u64, Vec<(String, String)>> = HashMap::new();
        for b in &self.checkpoints {
            let c = &b.checkpoint;
            let slot = wanted.entry(c.ledger).or_default();
            slot.push((b.from.clone(), c.ledger_hash.clone()));
        }
        let mut check = |head: &Head, report: &mut Report| {
            for (from, hash) in wanted.remove(&head.idx).unwrap_or_default() {
                if hash != hex(&head.hash) {
                    report.find(
                        None,
                        format!("the ledger up to {} is not what {from} signed", head.idx),
                    );
                }
            }
        };
        check(&self.ledger, &mut self.report);
        let mut s = self
            .db
            .prepare("SELECT idx, kind, number, ts_us, body, signature FROM ledger ORDER BY idx")?;
        let mut rows = s.query([])?;
        while let Some(row) = rows.next()? {
            let idx = row.get::<_, i64>(0)? as u64;
            let body = row.get_ref(4)?.as_bytes().unwrap_or_default();
            let signature = row.get_ref(5)?.as_bytes().unwrap_or_default();
            if idx != self.ledger.idx + 1 {
                let (from, to) = (self.ledger.idx + 1, idx.saturating_sub(1));
                self.report.find(None, format!("ledger entries {from} to {to} are missing"));
            }
            let placed = ledger::entry_is_signed(&self.key, body, signature)
                .then(|| serde_json::from_slice::<Placed>(body).ok())
                .flatten();
            let before =
                std::mem::replace(&mut self.ledger, Head { idx, hash: ledger::entry_hash(body) });
            check(&self.ledger, &mut self.report);
            let Some(placed) = placed else {
                self.report.find(
                    None,
                    format!("ledger entry {idx} was altered: its signature is not good"),
                );
                continue;
            };
            let number = match &placed.entry {
                Entry::Seal(s) => Some(s.number),
                _ => None,
            };
            let columns = (row.get::<_, String>(1)?, row.get::<_, Option<i64>>(2)?, row.get(3)?);
            let signed = (placed.entry.kind().to_owned(), number.map(|n| n as i64), placed.ts_us);
            if placed.idx != idx || columns != signed {
                self.report.find(None, format!("ledger entry {idx} was altered or moved"));
            } else if placed.prev != hex(&before.hash) {
                self.report
                    .find(None, format!("ledger entry {idx} does not follow the one before"));
            }
            self.report.ledger += 1;
            self.enter(placed);
        }
        for (idx, from) in
            wanted.into_iter().flat_map(|(i, l)| l.into_iter().map(move |f| (i, f.0)))
        {
            self.report.find(None, format!("{from} signed ledger entry {idx}, which is missing"));
        }
        Ok(())
    }

    fn enter(&mut self, placed: Placed) {
        match placed.entry {
            Entry::Seal(seal) => {
                let n = seal.number;
                if let Some(problem) = &seal.problem {
                    self.report.find(Some(n), format!("was found altered at a restart: {problem}"));
                }
                if let Some(lost) = &seal.lost_tail {
                    self.report.notes.push(format!("session {n}: lost tail: {lost}"));
                }
                if self.seals.insert(n, (placed.idx, seal)).is_some() {
                    self.report.find(Some(n), "has two seals");
                }
            }
            Entry::Deletion(d) => self.deletions.push(d),
            Entry::Epoch(e) => {
                if e.number != self.epoch + 1 {
                    self.report
                        .find(None, format!("epoch {} follows epoch {}", e.number, self.epoch));
                }
                self.epoch = e.number;
                if !e.clean {
                    self.report.notes.push(format!(
                        "epoch {} began after an unclean stop: {} sessions were open",
                        e.number,
                        e.open.len() + e.damaged.len()
                    ));
                }
            }
            Entry::Damage(d) => {
                let text = format!(
                    "journal segment {:x} had {} unreadable bytes at {} ({})",
                    d.segment, d.bytes, d.offset, d.why
                );
                if d.torn_tail {
                    self.report.notes.push(text);
                } else {
                    self.report.find(None, text);
                }
            }
        }
    }

    /// The events outside of every session number that was ever given.
    fn signed_numbers(&mut self) -> rusqlite::Result<()> {
        let strays: Option<i64> = self
            .db
            .query_row(
                "SELECT e.id FROM events e WHERE e.id < ?1 OR e.id >= ?2 LIMIT 1",
                [event_id(1, 0), event_id(self.next_number()?, 0)],
                |r| r.get(0),
            )
            .optional()?;
        if let Some(id) = strays {
            let number = store::number_of(id);
            self.report.find(Some(number), "has events but was never opened");
        }
        Ok(())
    }

    fn next_number(&self) -> rusqlite::Result<u64> {
        let rows: i64 =
            self.db.query_row("SELECT coalesce(max(number), 0) FROM sessions", [], |r| r.get(0))?;
        let signed = self.checkpoints.iter().map(|b| b.checkpoint.next_number).max().unwrap_or(1);
        let sealed = self.seals.keys().max().map_or(1, |n| n + 1);
        Ok(signed.max(sealed).max(rows.max(0) as u64 + 1))
    }

    fn sessions(&mut self) -> rusqlite::Result<()> {
        self.tombstones = tombstones::all(self.db)?.into_iter().map(|t| (t.number, t)).collect();
        if !self.tombstones.is_empty() {
            self.report.notes.push(format!(
                "the collector's retention deleted the events of {} sessions: `interceptor \
                 collector verify` says whether all of it was recorded",
                self.tombstones.len()
            ));
        }
        let mut heads: HashMap<u64, Vec<(u64, String, String)>> = HashMap::new();
        for b in &self.checkpoints {
            for o in &b.checkpoint.open {
                let slot = heads.entry(o.number).or_default();
                slot.push((o.seq, o.head.clone(), b.from.clone()));
            }
        }
        let last = self.checkpoints.iter().rfind(|b| b.own).map(|b| &b.checkpoint);
        let last_next = last.map_or(1, |c| c.next_number);
        let last_open: HashMap<u64, u64> =
            last.map(|c| c.open.iter().map(|o| (o.number, o.seq)).collect()).unwrap_or_default();
        for number in 1..self.next_number()? {
            let summary = Summary::load(self.db, number)?;
            let Some(summary) = summary else {
                self.absent(number)?;
                continue;
            };
            if let Some(stone) = self.tombstones.remove(&number) {
                self.buried(&summary, &stone);
                continue;
            }
            let events = self.session(&summary, heads.remove(&number).unwrap_or_default())?;
            if !self.seals.contains_key(&number) {
                self.report.open += 1;
                match last_open.get(&number) {
                    Some(seq) => self.report.unsigned += events.saturating_sub(*seq),
                    None if number < last_next => self.report.find(
                        Some(number),
                        "has no seal and did not stand open in the last checkpoint: its seal was removed",
                    ),
                    None => self.report.unsigned += events,
                }
            }
        }
        Ok(())
    }

    /// A session number without a session.
    fn absent(&mut self, number: u64) -> rusqlite::Result<()> {
        let remains: Option<i64> = self
            .db
            .prepare_cached("SELECT id FROM events WHERE id >= ?1 AND id < ?2 LIMIT 1")?
            .query_row([event_id(number, 0), event_id(number + 1, 0)], |r| r.get(0))
            .optional()?;
        let covered = self.deletions.iter().any(|d| d.covers(number));
        if !covered || !self.seals.contains_key(&number) {
            self.report.find(Some(number), "is missing");
        } else if remains.is_some() {
            self.report.find(Some(number), "was deleted by retention and yet has events");
        } else {
            self.report.deleted += 1;
        }
        Ok(())
    }

    /// A session of which the collector kept the row and the seal: its end must be the seal's.
    fn buried(&mut self, row: &Summary, stone: &Tombstone) {
        self.report.deleted += 1;
        let Some((idx, seal)) = self.seals.get(&row.number) else {
            self.report.find(Some(row.number), "was deleted by retention and has no seal");
            return;
        };
        let ends = seal.events == stone.events && seal.head == hex(&stone.head);
        if seal.session != row.id || row.seal != Some(*idx) || row.events != stone.events {
            self.report.find(Some(row.number), "was deleted by retention and its row was altered");
        } else if !ends && seal.problem.is_none() {
            let words = "was deleted by retention and did not end as it was sealed";
            self.report.find(Some(row.number), words);
        }
    }

    /// Recomputes one session; how many events it has.
    fn session(
        &mut self,
        row: &Summary,
        mut heads: Vec<(u64, String, String)>,
    ) -> rusqlite::Result<u64> {
        let number = row.number;
        let Ok(id) = ulid::Ulid::from_string(&row.id) else {
            self.report.find(Some(number), "has an altered id");
            return Ok(0);
        };
        let mut again = Summary::new(number, id);
        let mut head: Hash = chain::start(&self.key.fingerprint(), id, number);
        let mut seq = 0;
        let mut problems: Vec<String> = Vec::new();
        let read = self.reader.events(number, 0, |e| {
            if e.seq != seq + 1 {
                problems.push(format!("events {} to {} are missing", seq + 1, e.seq - 1));
            }
            seq = e.seq;
            head = chain::step(&head, e.seq, e.ts_us, e.kind, e.body, e.data);
            if hash_of(e.hash) != Some(head) {
                problems.push(format!("event {seq} was altered, added or moved"));
                // Goes on from what is stored, so that one change is one finding.
                head = hash_of(e.hash).unwrap_or(head);
            }
            heads.retain(|(at, want, from)| {
                if *at == seq && *want != hex(&head) {
                    problems.push(format!("event {seq} is not what {from} signed"));
                }
                *at != seq
            });
            again.apply(&EventFrame {
                number,
                session: id,
                seq,
                ts_us: e.ts_us,
                kind: e.kind,
                body: e.body,
                data: e.data,
                hash: head,
            });
        });
        match read {
            Ok(()) => {}
            Err(RecordError::Sqlite { source, .. }) => return Err(source),
            // What cannot be read cannot be verified, and nothing more is known of it.
            Err(e) => {
                problems.push(e.to_string());
                for problem in problems {
                    self.report.find(Some(number), problem);
                }
                return Ok(seq);
            }
        }
        for (at, _, from) in heads.iter().filter(|h| h.0 > 0) {
            problems.push(format!("events {} to {at} stand in {from} and are missing", seq + 1));
        }
        if let Some((idx, seal)) = self.seals.get(&number) {
            again.seal = Some(*idx);
            if seal.session != row.id {
                problems.push("its seal is for another session id".into());
            }
            if seal.events != seq || unhex(&seal.head) != Some(head) {
                problems.push(format!(
                    "does not end as it was sealed: {} events were, {seq} are there",
                    seal.events
                ));
            }
        }
        if problems.is_empty() && again != *row {
            problems.push("its row in the list is not what its events say".into());
        }
        self.report.sessions += 1;
        self.report.events += seq;
        problems.dedup();
        for problem in problems {
            self.report.find(Some(number), problem);
        }
        Ok(seq)
    }
}

fn believe(key: &PublicKey, body: &[u8], signature: &[u8]) -> Option<Checkpoint> {
    ledger::checkpoint_is_signed(key, body, signature)
        .then(|| serde_json::from_slice(body).ok())
        .flatten()
}
