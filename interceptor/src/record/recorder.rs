//! The recorder of a running daemon: begins sessions, seals them, signs checkpoints, and says
//! whether it can take more.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use super::RecordError;
use super::chain::{self, Hash, hex};
use super::consume::{Consumer, Pass};
use super::drain::Drain;
use super::event::{End, Event, Opening, now_us};
use super::frame;
use super::journal::{Journal, lock};
use super::keys::HostKey;
use super::ledger::{Checkpoint, Entry, Head, OpenHead, Seal};
use super::log::{Chain, Commit, Live, SessionLog};
use super::recover;
use super::store::Store;
use crate::config::{Config, Record};

/// Size at which the journal goes on in a new segment.
const SEGMENT_BYTES: u64 = 32 << 20;
/// How long another process may hold the store while this one starts.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Everything that the logs of sessions, the drain thread and the recorder share.
pub(super) struct Shared {
    pub state: PathBuf,
    pub journal: Journal,
    pub key: HostKey,
    pub host: String,
    pub settings: Record,
    pub book: Mutex<Book>,
    pub open: Mutex<HashMap<u64, Arc<Live>>>,
    pub orphans: Mutex<Vec<Orphan>>,
    pub appended: AtomicU64,
    pub stored: AtomicU64,
    /// Ledger entries up to here are safe at the collector; all of them where none is configured.
    pub acknowledged: AtomicU64,
    pub refusing: AtomicBool,
    pub condition: Mutex<Condition>,
    pub flush: Mutex<Flush>,
    pub wake: Condvar,
    fingerprint: Hash,
    _lock: Flock<File>,
}

/// What must change together when a session begins, a seal or a checkpoint is written.
pub(super) struct Book {
    pub next_number: u64,
    pub ledger: Head,
    pub checkpoint: u64,
}

/// A session that could not be sealed when it ended; tried again later.
pub(super) struct Orphan {
    chain: Chain,
    reason: String,
    interrupted: bool,
}

/// What the drain found out about the store.
#[derive(Default)]
pub(super) struct Condition {
    pub bytes: u64,
    pub backlog: u64,
    pub store_failing: Option<String>,
    pub damage: Option<String>,
}

/// Requests to drain everything now.
#[derive(Default)]
pub(super) struct Flush {
    pub wanted: u64,
    pub done: u64,
    pub error: Option<String>,
    pub stop: bool,
}

/// Whether the recorder can take more.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Health {
    /// Bytes of store and journal.
    pub bytes: u64,
    /// Most bytes they may take.
    pub max_bytes: u64,
    /// `bytes / max_bytes`.
    pub fraction: f64,
    /// More than 80 % is used.
    pub warning: bool,
    /// New requests must be refused.
    pub refusing: bool,
    /// Why, in words that say what to do.
    pub reason: Option<String>,
    /// Bytes of the journal that SQLite does not have yet.
    pub backlog_bytes: u64,
    /// Events acknowledged since the recorder was opened.
    pub appended: u64,
    /// Of these, events in SQLite.
    pub stored: u64,
    /// Sessions that are open.
    pub open_sessions: usize,
}

/// The recorder. One per state directory at a time.
pub struct Recorder {
    shared: Arc<Shared>,
    drain: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorder({})", self.shared.state.display())
    }
}

impl Recorder {
    /// Takes the store lock, brings what the journal holds into SQLite, seals what was left
    /// open as interrupted, and starts the drain.
    pub fn open(config: &Config) -> Result<Arc<Self>, RecordError> {
        // Before the collector's first word in this process nothing counts as acknowledged.
        let acknowledged = if config.ship.is_some() { 0 } else { u64::MAX };
        let (state, record) = (&config.paths.state, &config.record);
        Self::open_shipping(state, &config.host_name(), record, SEGMENT_BYTES, acknowledged)
    }

    /// The same without a whole configuration.
    pub fn open_with(
        state: &Path,
        host: &str,
        settings: &Record,
        segment_bytes: u64,
    ) -> Result<Arc<Self>, RecordError> {
        Self::open_shipping(state, host, settings, segment_bytes, u64::MAX)
    }

    /// The same, and retention deletes only what stands in the ledger up to `acknowledged` or
    /// what [`Recorder::acknowledge`] names later.
    pub fn open_shipping(
        state: &Path,
        host: &str,
        settings: &Record,
        segment_bytes: u64,
        acknowledged: u64,
    ) -> Result<Arc<Self>, RecordError> {
        let store_lock = lock_store(state, LOCK_WAIT)?;
        let key = HostKey::open(state)?;
        let mut store = Store::open(state, settings.durability)?;
        store.claim(key.public(), host)?;
        let dir = state.join("journal");
        let mut consumer = Consumer::new(&dir, *key.public(), &store)?;
        let mut found = Pass::default();
        consumer.run(&mut store, None, &mut found)?;
        let durable = settings.durability == crate::config::Durability::Disk;
        let journal = Journal::open(&dir, segment_bytes, durable)?;
        let last = store.last_checkpoint(key.public())?;
        let next = store.next_number()?.max(last.as_ref().map_or(1, |c| c.next_number));
        let shared = Arc::new(Shared {
            state: state.into(),
            journal,
            host: host.into(),
            settings: settings.clone(),
            book: Mutex::new(Book {
                next_number: next,
                ledger: store.ledger_head(key.public())?,
                checkpoint: last.as_ref().map_or(0, |c| c.idx),
            }),
            open: Mutex::default(),
            orphans: Mutex::default(),
            appended: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            acknowledged: AtomicU64::new(acknowledged),
            refusing: AtomicBool::new(false),
            condition: Mutex::default(),
            flush: Mutex::default(),
            wake: Condvar::new(),
            fingerprint: key.public().fingerprint(),
            key,
            _lock: store_lock,
        });
        recover::begin_epoch(&shared, &store, last.as_ref(), &found.damage)?;
        shared.checkpoint()?;
        let mut drain = Drain::new(Arc::clone(&shared), store, consumer);
        drain.catch_up()?;
        let thread = std::thread::Builder::new()
            .name("record-drain".into())
            .spawn(move || drain.run())
            .map_err(|e| RecordError::io("start the drain of", state, e))?;
        Ok(Arc::new(Self { shared, drain: Mutex::new(Some(thread)) }))
    }

    /// Begins the record of a session. Its number and opening are acknowledged when this
    /// returns.
    pub fn begin(&self, opening: Opening<'_>) -> Result<SessionLog, RecordError> {
        let shared = &self.shared;
        if let Some(why) = shared.hard_reason() {
            return Err(RecordError::Refusing(why));
        }
        let mut book = lock(&shared.book);
        let number = book.next_number;
        let start = chain::start(&shared.fingerprint, opening.id, number);
        let mut chain = Chain::new(number, opening.id, 0, start);
        chain.append(&Event::at(opening.ts_us, &opening))?;
        let live = Live::new(&chain);
        // The commit that a session does before it forwards anything covers this write too.
        drop(shared.write(&mut chain, &live)?);
        book.next_number += 1;
        lock(&shared.open).insert(number, Arc::clone(&live));
        drop(book);
        Ok(SessionLog::new(Arc::clone(shared), live, chain))
    }

    /// Brings everything acknowledged so far into SQLite.
    pub fn flush(&self) -> Result<(), RecordError> {
        let shared = &self.shared;
        let mut flush = lock(&shared.flush);
        flush.wanted += 1;
        let mine = flush.wanted;
        shared.wake.notify_all();
        let until = Instant::now() + Duration::from_secs(30);
        while flush.done < mine {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || flush.stop {
                return Err(RecordError::Refusing("the drain does not answer".into()));
            }
            flush = shared
                .wake
                .wait_timeout(flush, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        match &flush.error {
            None => Ok(()),
            Some(why) => Err(RecordError::Refusing(why.clone())),
        }
    }

    /// Whether new requests must be refused. One atomic load, for every request.
    pub fn refusing(&self) -> bool {
        self.shared.refusing.load(Ordering::Relaxed)
    }

    /// The state of the store.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// The collector has everything up to this ledger entry on its disk: retention may delete
    /// the sessions that are sealed there. Goes back where the collector did: what it lost must
    /// stay here until it has it again.
    pub fn acknowledge(&self, ledger: u64) {
        self.shared.acknowledged.store(ledger, Ordering::Relaxed);
    }

    /// Signs with the host's key, for a purpose whose domain the message begins with.
    pub fn sign(&self, domain: &[u8], message: &[u8]) -> [u8; 64] {
        self.shared.key.sign(&[domain, message].concat())
    }

    /// The host's public key.
    pub fn public_key(&self) -> super::PublicKey {
        *self.shared.key.public()
    }

    /// Drains, signs a last checkpoint, and stops the threads. Sessions that are still open
    /// are sealed as interrupted by the next start.
    pub fn shutdown(&self) {
        let thread = lock(&self.drain).take();
        if let Some(thread) = thread {
            lock(&self.shared.flush).stop = true;
            self.shared.wake.notify_all();
            let _ = thread.join();
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    /// Writes a session's buffer to the journal.
    pub fn write(&self, chain: &mut Chain, live: &Live) -> Result<Commit, RecordError> {
        let written = self.journal.write(&chain.buffer).inspect_err(|_| self.refuse())?;
        live.advance(chain);
        self.appended.fetch_add(chain.written(), Ordering::Relaxed);
        Ok(self.journal.sync(written).map_or(Commit::Done, Commit::Pending))
    }

    /// A commit of everything that is in the journal.
    pub fn sync_all(&self) -> Commit {
        self.journal.sync_current().map_or(Commit::Done, Commit::Pending)
    }

    /// Writes what a session still has, and its seal, in one write.
    pub fn seal(
        &self,
        chain: &mut Chain,
        ts_us: i64,
        end: &End<'_>,
        interrupted: bool,
        problem: Option<String>,
    ) -> Result<(), RecordError> {
        let entry = Entry::Seal(Seal {
            session: chain.id.to_string(),
            number: chain.number,
            events: chain.seq,
            head: hex(&chain.head),
            reason: end.reason.to_string(),
            interrupted,
            lost_tail: end.lost_tail.as_deref().map(str::to_owned),
            problem,
        });
        self.enter(ts_us, entry, &mut chain.buffer)?;
        self.appended.fetch_add(chain.written(), Ordering::Relaxed);
        lock(&self.open).remove(&chain.number);
        Ok(())
    }

    /// Writes a ledger entry behind the frames in `before`, which stay when it fails.
    pub fn enter(&self, ts_us: i64, entry: Entry, before: &mut Vec<u8>) -> Result<(), RecordError> {
        let mut book = lock(&self.book);
        let (body, signature, head) = book
            .ledger
            .next(&self.key, ts_us, entry)
            .map_err(|e| RecordError::Contents(format!("ledger entry: {e}")))?;
        let at = before.len();
        before.extend_from_slice(&frame::ledger(&body, &signature));
        match self.journal.write(before) {
            Ok(written) => {
                book.ledger = head;
                drop(self.journal.sync(written));
                Ok(())
            }
            Err(e) => {
                before.truncate(at);
                self.refuse();
                Err(e)
            }
        }
    }

    /// Signs where everything stands.
    pub fn checkpoint(&self) -> Result<(), RecordError> {
        let mut book = lock(&self.book);
        let mut open: Vec<OpenHead> = lock(&self.open)
            .values()
            .map(|live| {
                let (seq, head) = *lock(&live.head);
                let session = live.id.to_string();
                OpenHead { number: live.number, session, seq, head: hex(&head) }
            })
            .collect();
        open.sort_by_key(|o| o.number);
        let checkpoint = Checkpoint {
            v: 1,
            idx: book.checkpoint + 1,
            ts_us: now_us(),
            host: self.key.public().fingerprint_hex(),
            name: self.host.clone(),
            next_number: book.next_number,
            ledger: book.ledger.idx,
            ledger_hash: hex(&book.ledger.hash),
            open,
        };
        let (body, signature) = checkpoint
            .sign(&self.key)
            .map_err(|e| RecordError::Contents(format!("checkpoint: {e}")))?;
        let written = self
            .journal
            .write(&frame::checkpoint(&body, &signature))
            .inspect_err(|_| self.refuse())?;
        drop(self.journal.sync(written));
        book.checkpoint += 1;
        Ok(())
    }

    /// Keeps a session that could not be sealed, to try again.
    pub fn adopt(&self, chain: Chain, end: &End<'_>, interrupted: bool) {
        let reason = end.reason.to_string();
        lock(&self.orphans).push(Orphan { chain, reason, interrupted });
    }

    /// Tries again to seal what could not be sealed.
    pub fn seal_orphans(&self) {
        let mut left = Vec::new();
        for mut orphan in std::mem::take(&mut *lock(&self.orphans)) {
            let end = End::because(&orphan.reason);
            let sealed = self.seal(&mut orphan.chain, now_us(), &end, orphan.interrupted, None);
            if sealed.is_err() {
                left.push(orphan);
            }
        }
        lock(&self.orphans).append(&mut left);
    }

    fn refuse(&self) {
        self.refusing.store(true, Ordering::Relaxed);
    }

    /// Why nothing at all can be recorded.
    fn hard_reason(&self) -> Option<String> {
        let condition = lock(&self.condition);
        let over = condition.bytes > self.settings.max_bytes / 20 * 21;
        drop(condition);
        if !over && !self.refusing.load(Ordering::Relaxed) {
            return None;
        }
        match self.reason() {
            Some((why, hard)) if hard || over => Some(why),
            _ => None,
        }
    }

    /// Why requests must be refused, and whether even the refusal cannot be recorded.
    pub fn reason(&self) -> Option<(String, bool)> {
        if let Some(why) = self.journal.failing() {
            let dir = self.state.join("journal");
            return Some((format!("the journal in {} fails: {why}", dir.display()), true));
        }
        let condition = lock(&self.condition);
        if let Some(why) = &condition.store_failing {
            return Some((why.clone(), true));
        }
        if let Some(why) = &condition.damage {
            return Some((why.clone(), true));
        }
        let max = self.settings.max_bytes;
        if condition.bytes >= max {
            let shipping = self.acknowledged.load(Ordering::Relaxed) != u64::MAX;
            let what = if shipping {
                "and what is older than record.retain has not reached the collector: see \
                 `interceptor ship status`, or raise max_bytes"
            } else {
                "and nothing in it is older than record.retain: raise max_bytes or export and \
                 shorten retain"
            };
            return Some((
                format!("the store has reached record.max_bytes ({max} bytes) {what}"),
                false,
            ));
        }
        None
    }

    pub fn health(&self) -> Health {
        let reason = self.reason().map(|(why, _)| why);
        let condition = lock(&self.condition);
        let max_bytes = self.settings.max_bytes;
        let fraction = condition.bytes as f64 / max_bytes.max(1) as f64;
        Health {
            bytes: condition.bytes,
            max_bytes,
            fraction,
            warning: fraction >= 0.8,
            refusing: reason.is_some(),
            reason,
            backlog_bytes: condition.backlog,
            appended: self.appended.load(Ordering::Relaxed),
            stored: self.stored.load(Ordering::Relaxed),
            open_sessions: lock(&self.open).len(),
        }
    }
}

/// Takes the lock that only one writer of a state directory may hold.
pub(crate) fn lock_store(state: &Path, wait: Duration) -> Result<Flock<File>, RecordError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|e| RecordError::io("create", state, e))?;
    let path = state.join("records.lock");
    let until = Instant::now() + wait;
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| RecordError::io("open", &path, e))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return Err(RecordError::Locked(path)),
        }
    }
}
