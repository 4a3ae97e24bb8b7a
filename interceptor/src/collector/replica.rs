//! A host's replica: its own store, continued event by event from what it ships.
//!
//! Nothing is believed: every event must continue its session's chain, every ledger entry and
//! checkpoint must be signed by the host's record key and continue the one before, and all must
//! agree with what is already here. What is here already is accepted again and stored once. A
//! batch is taken whole or not at all, and when [`Replica::take`] returns it is on disk.
//!
//! Sessions that the collector's own retention deleted have left a tombstone: what comes again of
//! them is acknowledged, and not stored.
//!
//! What this module must never do: store an event behind a gap, exchange one that is there, or
//! follow a host's deletions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::feed::{FramePlace, Kind, Mark, Row, Stone};
use crate::record::chain::{self, Hash, hex, unhex};
use crate::record::frame::{self, EventFrame, Frame, Parsed, Signed};
use crate::record::heads::SessionHead;
use crate::record::ledger::{self, Checkpoint, Entry, Epoch, Head, OpenHead, Placed, Seal};
use crate::record::recordings::{self, Recorded};
use crate::record::store::MAX_SEQ;
use crate::record::tombstones::Burial;
use crate::record::{PublicKey, Reader, RecordError, Store, Summary};

/// Kinds of the first and the last event of every record.
const FIRST: &str = "session.open";
const LAST: &str = "session.end";
/// Most sessions of one host: ids in the index hold 31 bits of the number.
const MAX_NUMBER: u64 = (1 << 31) - 1;

/// Where a replica stands: what the host ships next begins behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// Last ledger entry that is here.
    pub ledger: u64,
    /// Last checkpoint that is here.
    pub checkpoint: u64,
    /// Events of each session that is not sealed here.
    pub sessions: BTreeMap<u64, u64>,
}

/// Why a batch is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Something before it is missing here. The host goes on from [`Replica::position`].
    #[error("{0}")]
    Gap(String),
    /// It contradicts its signature, its chain, or what is here.
    #[error("{0}")]
    Altered(String),
    /// It cannot be stored now.
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn gap<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Gap(what.into()))
}

fn altered<T>(what: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Altered(what.into()))
}

/// What a batch brought.
#[derive(Debug, Default)]
pub struct Taken {
    /// Events that were not here before.
    pub events: u64,
    /// Sessions that changed.
    pub touched: BTreeSet<u64>,
    /// What the host itself reports as broken.
    pub problems: Vec<String>,
    /// Frames that were not here before: their place in the batch, and the session of an event.
    pub fresh: Vec<FramePlace>,
}

/// The open replica of one host.
pub struct Replica {
    store: Store,
    key: PublicKey,
    fingerprint: Hash,
    /// Ledger entries up to here may seal sessions whose events are gone: they were deleted
    /// before the host was enrolled.
    base: u64,
    ledger: Head,
    checkpoint: u64,
    /// Every session number below is known.
    complete: u64,
    epoch: Option<Epoch>,
    heads: HashMap<u64, SessionHead>,
    /// The host reported damage to its journal: session numbers may be missing.
    damaged: bool,
    events: u64,
    /// How far it followed the host's feed; at its beginning where there is none.
    followed: Mark,
    _lock: Flock<File>,
}

impl Replica {
    /// Where a host's replica lives.
    pub fn directory(state: &Path, fingerprint: &str) -> PathBuf {
        state.join("hosts").join(fingerprint)
    }

    /// Opens the replica of the host with this record key, making it when there is none.
    pub fn open(state: &Path, key: PublicKey, name: &str) -> Result<Self, RecordError> {
        let dir = Self::directory(state, &key.fingerprint_hex());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|source| RecordError::Io { action: "create", path: dir.clone(), source })?;
        let lock = crate::record::lock_store(&dir, std::time::Duration::from_secs(10))?;
        let store = Store::open_replica(&dir)?;
        store.claim(&key, name)?;
        export_key(&dir, &key)?;
        let mut replica = Self {
            base: store.remembered("ship_base")?,
            events: store.count_events()?,
            followed: Self::read_followed(&store)?,
            damaged: store.has_damage()?,
            fingerprint: key.fingerprint(),
            ledger: Head::start(&key),
            store,
            key,
            checkpoint: 0,
            complete: 1,
            epoch: None,
            heads: HashMap::new(),
            _lock: lock,
        };
        replica.reload()?;
        Ok(replica)
    }

    /// Puts a replica aside, where a person finds it: it may be the only copy of what the database
    /// lost. It must be closed. Where it is now.
    pub fn put_aside(state: &Path, key: &PublicKey) -> Result<String, RecordError> {
        let dir = Self::directory(state, &key.fingerprint_hex());
        let aside = dir.join(format!("put-aside-{}", ulid::Ulid::new()));
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| RecordError::Io { action, path, source }
        };
        std::fs::DirBuilder::new().mode(0o700).create(&aside).map_err(io("create", &aside))?;
        for name in ["records.db", "records.db-wal", "records.db-shm"] {
            let path = dir.join(name);
            if path.exists() {
                std::fs::rename(&path, aside.join(name)).map_err(io("put aside", &path))?;
            }
        }
        Ok(aside.display().to_string())
    }

    /// Those of some sessions that have a tombstone.
    pub fn buried_of(&self, numbers: &[u64]) -> Result<Vec<u64>, RecordError> {
        let mut buried = Vec::new();
        for number in numbers {
            if self.store.tombstone(*number)?.is_some() {
                buried.push(*number);
            }
        }
        Ok(buried)
    }

    /// Deletes the events of sessions that have a tombstone.
    pub fn remove_buried(&mut self) -> Result<(), RecordError> {
        while !self.store.remove_buried(20_000, 64 << 20)?.finished {}
        while self.store.reclaim(1_000)? {}
        self.store.shrink_wal();
        Ok(())
    }

    /// The host's first contact: sessions sealed up to this ledger entry may have no events,
    /// since retention took them before there was a collector. Counts once, and only while
    /// nothing is here; whether it did.
    pub fn begin(&mut self, ledger: u64) -> Result<bool, RecordError> {
        if self.ledger.idx > 0 || !self.heads.is_empty() || self.store.remembered("ship_begun")? > 0
        {
            return Ok(false);
        }
        self.store.begin()?;
        let set = self
            .store
            .remember("ship_begun", 1)
            .and_then(|()| self.store.remember("ship_base", ledger))
            .and_then(|()| self.store.commit(Default::default()));
        if let Err(e) = set {
            self.store.rollback();
            return Err(e);
        }
        self.base = ledger;
        Ok(true)
    }

    /// Everything that is kept beside the store, read from it again.
    fn reload(&mut self) -> Result<(), RecordError> {
        self.ledger = self.store.ledger_head(&self.key)?;
        self.epoch = self.store.last_epoch()?;
        self.checkpoint = self.store.newest_checkpoint()?.map_or(0, |(idx, _)| idx);
        self.complete = self.store.remembered("complete_below")?.max(1);
        self.heads.clear();
        for (number, _) in self.store.unsealed()? {
            if let Some(head) = self.store.session_head(number)? {
                self.heads.insert(number, head);
            }
        }
        Ok(())
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        let open = self.heads.iter().filter(|(_, h)| !h.sealed);
        Position {
            ledger: self.ledger.idx,
            checkpoint: self.checkpoint,
            sessions: open.map(|(n, h)| (*n, h.seq)).collect(),
        }
    }

    /// Where the ledger stands.
    pub fn ledger(&self) -> Head {
        self.ledger
    }

    /// Events in it.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Reads the store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Rows of sessions as they stand.
    pub fn summaries(&self, numbers: &BTreeSet<u64>) -> Result<Vec<Summary>, RecordError> {
        let all = numbers.iter().map(|n| self.store.summary_of(*n));
        all.filter_map(Result::transpose).collect()
    }

    /// Takes a batch of whole frames: all of it, on disk, or nothing.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Taken, Refusal> {
        self.take_after(bytes, |_| Ok(None))
    }

    /// The same; what is new is first given to somebody else, and is taken only when they have it.
    /// They say where the host's feed ends with it.
    pub fn take_after(
        &mut self,
        bytes: &[u8],
        first: impl FnOnce(&Taken) -> Result<Option<Mark>, RecordError>,
    ) -> Result<Taken, Refusal> {
        let mut taken = Taken::default();
        self.store.begin()?;
        let mut followed = self.followed;
        let result = self.frames(bytes, &mut taken).and_then(|()| {
            self.store.remember("complete_below", self.complete)?;
            if let Some(end) = first(&taken)? {
                self.remember_followed(end)?;
                followed = end;
            }
            Ok(self.store.commit(Default::default())?)
        });
        if result.is_ok() {
            self.followed = followed;
        }
        match result {
            Ok(()) => {
                self.events += taken.events;
                self.heads.retain(|_, head| !head.sealed);
                Ok(taken)
            }
            Err(refusal) => {
                self.store.rollback();
                self.reload()?;
                Err(refusal)
            }
        }
    }

    fn frames(&mut self, bytes: &[u8], taken: &mut Taken) -> Result<(), Refusal> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (frame, len) = match frame::parse(rest) {
                Parsed::Whole(frame, len) => (frame, len),
                Parsed::Short(_) => return altered("the batch ends inside a frame"),
                Parsed::Damaged { why, .. } => {
                    return altered(format!("the batch holds something that is no frame: {why}"));
                }
            };
            let (number, new) = match frame {
                Frame::Event(event) => (Some(event.number), self.event(&event, taken)?),
                Frame::Ledger(signed) => (None, self.entry(&signed, taken)?),
                Frame::Checkpoint(signed) => (None, self.checkpoint(&signed, taken)?),
            };
            if new {
                taken.fresh.push((number, at..at + len));
            }
            rest = &rest[len..];
        }
        Ok(())
    }

    fn head(&mut self, number: u64) -> Result<Option<SessionHead>, RecordError> {
        if let Some(head) = self.heads.get(&number) {
            return Ok(Some(*head));
        }
        let head = self.store.session_head(number)?;
        if let Some(head) = head {
            self.heads.insert(number, head);
        }
        Ok(head)
    }

    // ---- the feed, where collectors share a database ---------------------------------------

    /// How far it followed the host's feed.
    pub fn followed(&self) -> Mark {
        self.followed
    }

    /// It has what its feed has up to there: the feed was made from it.
    pub fn now_follows(&mut self, end: Mark) -> Result<(), RecordError> {
        self.store.begin()?;
        let noted =
            self.remember_followed(end).and_then(|()| self.store.commit(Default::default()));
        if let Err(e) = noted {
            self.store.rollback();
            return Err(e);
        }
        self.followed = end;
        Ok(())
    }

    /// What its host said at the first contact ([`Replica::begin`]), if it did.
    pub fn began(&self) -> Result<Option<u64>, RecordError> {
        Ok((self.store.remembered("ship_begun")? > 0).then_some(self.base))
    }

    fn read_followed(store: &Store) -> Result<Mark, RecordError> {
        Ok(Mark { at: store.remembered("feed_at")? as i64, mark: store.noted_number("feed_mark")? })
    }

    fn remember_followed(&self, end: Mark) -> Result<(), RecordError> {
        self.store.remember("feed_at", end.at.max(0).unsigned_abs())?;
        self.store.note_number("feed_mark", end.mark)
    }

    /// Takes rows of the feed: they were checked by the collector that accepted them, and whoever
    /// verifies a session checks them again. Which sessions changed.
    pub fn follow(&mut self, rows: &[Row]) -> Result<BTreeSet<u64>, RecordError> {
        let Some(end) = rows.last().map(|row| row.mark) else { return Ok(BTreeSet::new()) };
        let mut touched = BTreeSet::new();
        self.store.begin()?;
        let result = rows
            .iter()
            .try_for_each(|row| self.follow_one(row, &mut touched))
            .and_then(|()| self.store.remember("complete_below", self.complete))
            .and_then(|()| self.remember_followed(end))
            .and_then(|()| self.store.commit(Default::default()));
        if let Err(e) = result {
            self.store.rollback();
            self.reload()?;
            return Err(e);
        }
        self.followed = end;
        if rows.iter().any(|row| row.kind == Kind::Stones) {
            self.events = self.store.count_events()?;
        }
        self.base = self.store.remembered("ship_base")?;
        self.reload()?;
        Ok(touched)
    }

    fn follow_one(&mut self, row: &Row, touched: &mut BTreeSet<u64>) -> Result<(), RecordError> {
        let fingerprint = hex(&self.fingerprint);
        let strange = || {
            RecordError::Contents(format!(
                "row {} of the feed of host {} was never written by a collector: find out who                  altered the database",
                row.mark.at, fingerprint
            ))
        };
        match row.kind {
            Kind::Emptied => {}
            Kind::Began => {
                let ledger = <[u8; 8]>::try_from(&row.body[..]).map_err(|_| strange())?;
                self.store.remember("ship_begun", 1)?;
                self.store.remember("ship_base", u64::from_le_bytes(ledger))?;
            }
            Kind::Events | Kind::Ledger => {
                let mut rest = &row.body[..];
                while !rest.is_empty() {
                    let Parsed::Whole(frame, len) = frame::parse(rest) else {
                        return Err(strange());
                    };
                    rest = &rest[len..];
                    self.follow_frame(&frame, touched)?;
                }
            }
            Kind::Recorded => {
                let recorded = Recorded::decode(&row.body).ok_or_else(strange)?;
                touched.insert(recorded.part.number);
                if self.store.tombstone(recorded.part.number)?.is_none() {
                    self.events += self.store.record(&recorded)?;
                }
            }
            Kind::Stones => {
                let stones: Vec<Stone> =
                    serde_json::from_slice(&row.body).map_err(|_| strange())?;
                for stone in stones {
                    let head = unhex(&stone.head).ok_or_else(strange)?;
                    touched.insert(stone.summary.number);
                    let end = (stone.events, head);
                    self.store.lay(&stone.summary, stone.deleted_us, &stone.policy, end)?;
                }
            }
        }
        Ok(())
    }

    fn follow_frame(
        &mut self,
        frame: &Frame<'_>,
        touched: &mut BTreeSet<u64>,
    ) -> Result<(), RecordError> {
        match frame {
            Frame::Event(e) => {
                // Of a session that retention deleted nothing comes back.
                if self.store.tombstone(e.number)?.is_none() {
                    self.store.event(e)?;
                    self.events += 1;
                }
                touched.insert(e.number);
            }
            Frame::Ledger(signed) => {
                let Ok(placed) = serde_json::from_slice::<Placed>(signed.body) else {
                    return Ok(());
                };
                match &placed.entry {
                    Entry::Damage(_) => self.damaged = true,
                    Entry::Seal(seal) => {
                        touched.insert(seal.number);
                    }
                    _ => {}
                }
                self.store.enter(placed, signed)?;
            }
            Frame::Checkpoint(signed) => {
                let Ok(c) = serde_json::from_slice::<Checkpoint>(signed.body) else {
                    return Ok(());
                };
                if c.idx != self.store.newest_checkpoint()?.map_or(0, |(idx, _)| idx) + 1 {
                    self.store.forget_checkpoints()?;
                }
                self.store.checkpoint(signed)?;
                self.complete = self.complete.max(c.next_number);
            }
        }
        Ok(())
    }

    /// What would be left of sealed sessions that are to be deleted; those that are not sealed
    /// here, or have gone, are left out.
    pub fn stones(&self, wanted: &[Burial]) -> Result<Vec<Stone>, RecordError> {
        let mut stones = Vec::new();
        for burial in wanted {
            if self.store.tombstone(burial.number)?.is_some() {
                continue;
            }
            let Some(head) = self.store.session_head(burial.number)? else { continue };
            let Some(summary) = self.store.summary_of(burial.number)? else { continue };
            if head.sealed {
                stones.push(Stone {
                    summary,
                    deleted_us: burial.deleted_us,
                    policy: burial.policy.clone(),
                    events: head.seq,
                    head: hex(&head.hash),
                });
            }
        }
        Ok(stones)
    }

    // ---- recordings ------------------------------------------------------------------------

    /// Notes that the attachments of a sealed session are in objects, as another connection reads
    /// the session: all of its parts or none. False where it was deleted meanwhile.
    pub fn record(
        &mut self,
        reader: &Reader,
        session: &Summary,
        parts: &[recordings::Placed],
    ) -> Result<bool, RecordError> {
        if self.store.tombstone(session.number)?.is_some() {
            return Ok(false);
        }
        self.store.begin()?;
        let result = parts
            .iter()
            .try_for_each(|part| {
                let recorded = reader.recorded(session, part)?;
                self.store.record(&recorded).map(drop)
            })
            .and_then(|()| self.store.commit(Default::default()));
        if let Err(e) = result {
            self.store.rollback();
            self.reload()?;
            return Err(e);
        }
        Ok(true)
    }

    // ---- events ----------------------------------------------------------------------------

    /// Whether it was not here before; so with what follows.
    fn event(&mut self, e: &EventFrame<'_>, taken: &mut Taken) -> Result<bool, Refusal> {
        let at = format!("event {} of session {}", e.seq, e.number);
        if e.number == 0 || e.number > MAX_NUMBER || e.seq == 0 || e.seq > MAX_SEQ {
            return altered(format!("{at} has an impossible number"));
        }
        if e.kind.len() > frame::MAX_KIND {
            return altered(format!("the kind of {at} is longer than any host writes"));
        }
        let head = self.head(e.number)?;
        if let Some(h) = &head
            && h.id != e.session
        {
            return altered(format!("{at} names session {}, here it is {}", e.session, h.id));
        }
        let previous = match head {
            Some(h) if e.seq <= h.seq => return self.again(e, &at).map(|()| false),
            Some(h) if e.seq == h.seq + 1 => {
                self.may_go_on(e, &h, &at)?;
                h.hash
            }
            Some(h) => return gap(format!("{at} comes, and only {} events are here", h.seq)),
            None => self.may_begin(e, &at)?,
        };
        if chain::step(&previous, e.seq, e.ts_us, e.kind, e.body, e.data) != e.hash {
            return altered(format!("{at} does not continue its chain: it was altered"));
        }
        if !self.store.event(e)? {
            return altered(format!("{at} is not the one that is here"));
        }
        let head = SessionHead { id: e.session, seq: e.seq, hash: e.hash, sealed: false };
        self.heads.insert(e.number, head);
        taken.events += 1;
        taken.touched.insert(e.number);
        Ok(true)
    }

    /// The chain's beginning, when this event may begin a session.
    fn may_begin(&self, e: &EventFrame<'_>, at: &str) -> Result<Hash, Refusal> {
        if e.seq != 1 {
            return gap(format!("{at} comes, and the session is not here"));
        }
        if e.kind != FIRST {
            return altered(format!("{at} is {:?} and begins a session", e.kind));
        }
        if self.store.knows(e.number)? {
            return altered(format!("{at} comes after the session was sealed without it"));
        }
        if let Some(epoch) = &self.epoch
            && e.number < epoch.next_number
        {
            return altered(format!("{at} is of an epoch that has ended"));
        }
        Ok(chain::start(&self.fingerprint, e.session, e.number))
    }

    /// Whether a session that is here may get this event.
    fn may_go_on(&self, e: &EventFrame<'_>, head: &SessionHead, at: &str) -> Result<(), Refusal> {
        if head.sealed {
            return altered(format!("{at} comes after its seal"));
        }
        let Some(epoch) = self.epoch.as_ref().filter(|epoch| e.number < epoch.next_number) else {
            return Ok(());
        };
        let left = epoch.open.iter().find(|o| o.number == e.number).map(|o| o.seq);
        let left = left == Some(head.seq) || epoch.damaged.contains(&e.number);
        if left && e.kind == LAST {
            return Ok(());
        }
        altered(format!("{at} ({:?}) is of an epoch that has ended", e.kind))
    }

    /// An event that is here already must be the very same. Of a session that retention deleted
    /// nothing is stored again; its beginning and its end must be what they were.
    fn again(&self, e: &EventFrame<'_>, at: &str) -> Result<(), Refusal> {
        if let Some(stone) = self.store.tombstone(e.number)? {
            let start = chain::start(&self.fingerprint, e.session, e.number);
            let first = e.seq == 1;
            let begins = || chain::step(&start, 1, e.ts_us, e.kind, e.body, e.data) == e.hash;
            if (first && !begins()) || (e.seq == stone.events && e.hash != stone.head) {
                return altered(format!("{at} is not the one that was accepted before"));
            }
            return Ok(());
        }
        let previous = match e.seq {
            1 => Some(chain::start(&self.fingerprint, e.session, e.number)),
            seq => self.store.event_hash(e.number, seq - 1)?,
        };
        let there = self.store.event_hash(e.number, e.seq)?;
        let own = previous.map(|p| chain::step(&p, e.seq, e.ts_us, e.kind, e.body, e.data));
        if there.is_some() && there == own && there == Some(e.hash) {
            return Ok(());
        }
        altered(format!("{at} is not the one that was accepted before"))
    }

    // ---- ledger ----------------------------------------------------------------------------

    fn entry(&mut self, signed: &Signed<'_>, taken: &mut Taken) -> Result<bool, Refusal> {
        if !ledger::entry_is_signed(&self.key, signed.body, signed.signature) {
            return altered("a ledger entry is not signed by the host's key");
        }
        let Ok(placed) = serde_json::from_slice::<Placed>(signed.body) else {
            return altered("a ledger entry is of a kind that this collector does not know");
        };
        let at = format!("ledger entry {}", placed.idx);
        if placed.host != hex(&self.fingerprint) {
            return altered(format!("{at} names another host"));
        }
        if placed.idx <= self.ledger.idx {
            let there = self.store.ledger_entry(placed.idx)?;
            return match there {
                Some((body, _)) if body.as_bytes() == signed.body => Ok(false),
                _ => altered(format!("{at} is not the one that was accepted before")),
            };
        }
        if placed.idx != self.ledger.idx + 1 {
            return gap(format!("{at} comes, and the ledger ends at {}", self.ledger.idx));
        }
        if placed.prev != hex(&self.ledger.hash) {
            return altered(format!("{at} does not continue the ledger: its history was changed"));
        }
        match &placed.entry {
            Entry::Seal(seal) => self.seal(placed.idx, seal, taken)?,
            Entry::Epoch(epoch) => self.epoch(epoch)?,
            Entry::Damage(d) => {
                self.damaged = true;
                if !d.torn_tail {
                    taken.problems.push(format!("its journal was damaged: {}", d.why));
                }
            }
            Entry::Deletion(_) => {}
        }
        self.ledger = Head { idx: placed.idx, hash: ledger::entry_hash(signed.body) };
        self.store.enter(placed, signed)?;
        Ok(true)
    }

    fn seal(&mut self, idx: u64, seal: &Seal, taken: &mut Taken) -> Result<(), Refusal> {
        let at = format!("the seal of session {}", seal.number);
        if seal.number == 0 || seal.number > MAX_NUMBER {
            return altered(format!("{at} has an impossible number"));
        }
        if ulid::Ulid::from_string(&seal.session).is_err() {
            return altered(format!("{at} names no session"));
        }
        let Some(head) = self.head(seal.number)? else {
            if self.store.knows(seal.number)? {
                return altered(format!("{at} comes a second time"));
            }
            if let Some(problem) = &seal.problem {
                let words = format!("session {} never came: {problem}", seal.number);
                taken.problems.push(words);
                return Ok(());
            }
            if idx <= self.base {
                return Ok(());
            }
            return gap(format!("{at} comes, and the session is not here"));
        };
        if head.sealed {
            return altered(format!("{at} comes a second time"));
        }
        if head.id.to_string() != seal.session {
            return altered(format!("{at} names session {}, here it is {}", seal.session, head.id));
        }
        if let Some(problem) = &seal.problem {
            taken.problems.push(format!("session {} was found altered: {problem}", seal.number));
        } else if head.seq < seal.events {
            return gap(format!("{at} is over {} events, {} are here", seal.events, head.seq));
        } else if head.seq > seal.events || unhex(&seal.head) != Some(head.hash) {
            return altered(format!("{at} is over other events than were shipped"));
        }
        self.heads.insert(seal.number, SessionHead { sealed: true, ..head });
        taken.touched.insert(seal.number);
        Ok(())
    }

    /// A new process at the host: it must know of everything that is open here, and where that
    /// ended. A host that was put back to an earlier state does not.
    fn epoch(&mut self, epoch: &Epoch) -> Result<(), Refusal> {
        let at = format!("epoch {}", epoch.number);
        let before = self.epoch.as_ref().map_or(0, |e| e.number);
        if epoch.number != before + 1 {
            return altered(format!("{at} follows epoch {before}"));
        }
        for open in &epoch.open {
            self.open_head(open, &at, true)?;
        }
        let mut here: Vec<u64> =
            self.heads.iter().filter(|(_, h)| !h.sealed).map(|(n, _)| *n).collect();
        here.sort_unstable();
        for number in here {
            let named = epoch.open.iter().any(|o| o.number == number);
            if !named && !epoch.damaged.contains(&number) {
                return altered(format!("{at} does not know session {number}, which was shipped"));
            }
            if number >= epoch.next_number {
                return altered(format!("{at} would give number {number} a second time"));
            }
        }
        self.epoch = Some(epoch.clone());
        Ok(())
    }

    /// Whether a session stands here where the host says it stood; `exactly` there, or beyond.
    fn open_head(&mut self, open: &OpenHead, by: &str, exactly: bool) -> Result<(), Refusal> {
        let at = format!("{by}: session {}", open.number);
        let Some(head) = self.head(open.number)? else {
            return gap(format!("{at} is not here"));
        };
        if head.seq < open.seq {
            return gap(format!("{at} has {} events there, {} here", open.seq, head.seq));
        }
        if exactly && head.seq > open.seq {
            return altered(format!(
                "{at} has {} events there, {} here: the host was put back to an earlier state",
                open.seq, head.seq
            ));
        }
        // Of a deleted session only the end is known.
        let hash = match self.store.tombstone(open.number)? {
            Some(_) if open.seq < head.seq => unhex(&open.head),
            Some(_) => Some(head.hash),
            None => self.store.event_hash(open.number, open.seq)?,
        };
        if head.id.to_string() != open.session || hash.is_none() || hash != unhex(&open.head) {
            return altered(format!("{at} is another there"));
        }
        Ok(())
    }

    // ---- checkpoints -----------------------------------------------------------------------

    fn checkpoint(&mut self, signed: &Signed<'_>, taken: &mut Taken) -> Result<bool, Refusal> {
        if !ledger::checkpoint_is_signed(&self.key, signed.body, signed.signature) {
            return altered("a checkpoint is not signed by the host's key");
        }
        let Ok(c) = serde_json::from_slice::<Checkpoint>(signed.body) else {
            return altered("a checkpoint cannot be read");
        };
        let at = format!("checkpoint {}", c.idx);
        if c.host != hex(&self.fingerprint) {
            return altered(format!("{at} names another host"));
        }
        if c.idx <= self.checkpoint {
            return Ok(false);
        }
        if c.ledger > self.ledger.idx {
            return gap(format!("{at} is over {} ledger entries", c.ledger));
        }
        let there = match c.ledger {
            0 => Some(Head::start(&self.key).hash),
            idx => self.store.ledger_entry(idx)?.map(|(b, _)| ledger::entry_hash(b.as_bytes())),
        };
        if there.is_none() || there != unhex(&c.ledger_hash) {
            return altered(format!("{at} is over another ledger"));
        }
        for open in &c.open {
            if !self.sealed_broken(open.number)? {
                self.open_head(open, &at, false)?;
            }
        }
        while self.complete < c.next_number && self.store.knows(self.complete)? {
            self.complete += 1;
        }
        if self.complete < c.next_number {
            let text = format!("{at}: session {} is not here", self.complete);
            if !self.damaged {
                return gap(text);
            }
            taken.problems.push(text);
            self.complete = c.next_number;
        }
        if c.idx != self.checkpoint + 1 {
            self.store.forget_checkpoints()?;
        }
        self.store.checkpoint(signed)?;
        self.checkpoint = c.idx;
        Ok(true)
    }

    /// Whether the host itself sealed a session as broken, or deleted it before it was enrolled.
    fn sealed_broken(&self, number: u64) -> Result<bool, RecordError> {
        let Some((idx, body, _)) = self.store.seal_of(number)? else { return Ok(false) };
        let broken = serde_json::from_str::<Placed>(&body)
            .is_ok_and(|p| matches!(p.entry, Entry::Seal(s) if s.problem.is_some()));
        Ok(broken || (idx <= self.base && !self.store.has_session(number)?))
    }
}

/// Readers of a store look for the public key beside it.
fn export_key(dir: &Path, key: &PublicKey) -> Result<(), RecordError> {
    let path = dir.join("host.pub");
    let text = key.to_pem();
    if std::fs::read_to_string(&path).is_ok_and(|t| t == text) {
        return Ok(());
    }
    std::fs::write(&path, text).map_err(|source| RecordError::Io { action: "write", path, source })
}
