//! Moves frames from the journal's segments into SQLite.
//!
//! The position up to which the journal is consumed is committed together with the rows, so a
//! frame is stored exactly once however often the process dies. Bytes that are no frames are
//! left out, reported as [`Damage`], and their segment is kept aside: never thrown away.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::RecordError;
use super::frame::{self, EventFrame, Frame, Parsed};
use super::journal::{self, Position, SEGMENT_HEADER};
use super::keys::PublicKey;
use super::ledger::Damage;
use super::store::Store;

const OTHER_EVENT: &str = "another event stands in its place";

/// Most bytes read and committed at a time.
const BATCH: usize = 1 << 20;

/// Reads the journal behind what is consumed.
pub struct Consumer {
    dir: PathBuf,
    key: PublicKey,
    at: Position,
    file: Option<(u64, File)>,
    buffer: Vec<u8>,
    damaged: BTreeSet<u64>,
    strict: bool,
    careful: bool,
    stopped: bool,
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    /// Events that were stored.
    pub events: u64,
    /// Bytes that were left out.
    pub damage: Vec<Damage>,
}

/// Events with their place in the buffer and the length of their frames.
type Run<'a> = Vec<(usize, usize, EventFrame<'a>)>;

/// What follows in a segment.
enum Step {
    /// Go on with the next frame.
    On,
    /// The bytes at hand are used up.
    More,
}

impl Consumer {
    /// Goes on where the store stopped.
    pub fn new(journal: &Path, key: PublicKey, store: &Store) -> Result<Self, RecordError> {
        Ok(Self {
            dir: journal.into(),
            key,
            at: store.consumed()?,
            file: None,
            buffer: Vec::new(),
            damaged: BTreeSet::new(),
            strict: false,
            careful: false,
            stopped: false,
        })
    }

    /// Stops before the first damage instead of leaving it out: only a recorder, which can
    /// state it in the ledger, may do that.
    pub fn strict(self) -> Self {
        Self { strict: true, ..self }
    }

    /// After a failure: small batches, and room is made after each, so that a store on a full
    /// disk can work itself free.
    pub fn set_careful(&mut self, careful: bool) {
        self.careful = careful;
    }

    /// Consumes everything before `end`; `None` means to the end of the last segment, which
    /// nobody writes any more.
    /// What was done before an error stands in `pass` too.
    pub fn run(
        &mut self,
        store: &mut Store,
        end: Option<Position>,
        pass: &mut Pass,
    ) -> Result<(), RecordError> {
        while !self.stopped && self.advance(end)? {
            self.make_room(store)?;
            let before = self.at;
            let mut damage = Vec::new();
            let result = store.begin().and_then(|()| {
                let events = self.batch(store, end, &mut damage)?;
                store.commit(self.at)?;
                Ok(events)
            });
            match result {
                Ok(events) => {
                    pass.events += events;
                    pass.damage.append(&mut damage);
                }
                Err(e) => {
                    store.rollback();
                    self.at = before;
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Where the disk is nearly full, what is in the store twice must go before more comes: a
    /// write-ahead log that there is no room to bring home never shrinks again.
    fn make_room(&mut self, store: &Store) -> Result<(), RecordError> {
        self.careful |= store.is_tight(BATCH as u64);
        if self.careful {
            store.shrink_wal();
            self.reclaim(store)?;
        }
        Ok(())
    }

    /// Whether there is something to read; steps to the next segment where one is finished.
    fn advance(&mut self, end: Option<Position>) -> Result<bool, RecordError> {
        loop {
            if end.is_some_and(|end| self.at >= end) {
                return Ok(false);
            }
            let Some(limit) = self.limit(end)? else {
                let next = journal::segments(&self.dir)?
                    .range(self.at.segment + 1..)
                    .next()
                    .map(|(i, _)| *i)
                    .filter(|i| end.is_none_or(|end| *i <= end.segment));
                let Some(next) = next else { return Ok(false) };
                self.at = Position { segment: next, offset: 0 };
                continue;
            };
            if self.at.offset < limit {
                return Ok(true);
            }
            let last = journal::segments(&self.dir)?.range(self.at.segment + 1..).next().is_none();
            if last {
                return Ok(false);
            }
            self.file = None;
            let next = journal::segments(&self.dir)?
                .range(self.at.segment + 1..)
                .next()
                .map_or(self.at.segment + 1, |(i, _)| *i);
            self.at = Position { segment: next, offset: 0 };
        }
    }

    /// Where the current segment's acknowledged bytes end; `None` when it does not exist.
    fn limit(&mut self, end: Option<Position>) -> Result<Option<u64>, RecordError> {
        let segment = self.at.segment;
        let path = journal::segment_path(&self.dir, segment);
        if self.file.as_ref().is_none_or(|(i, _)| *i != segment) {
            match File::open(&path) {
                Ok(file) => self.file = Some((segment, file)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(RecordError::io("open", &path, e)),
            }
        }
        if let Some(end) = end.filter(|end| end.segment == segment) {
            return Ok(Some(end.offset));
        }
        let Some((_, file)) = &self.file else { return Ok(None) };
        let meta = file.metadata().map_err(|e| RecordError::io("read", &path, e))?;
        Ok(Some(meta.len()))
    }

    /// Stores the frames of one buffer of one segment.
    fn batch(
        &mut self,
        store: &mut Store,
        end: Option<Position>,
        damage: &mut Vec<Damage>,
    ) -> Result<u64, RecordError> {
        let limit = self.limit(end)?.unwrap_or(self.at.offset);
        let mut bytes = std::mem::take(&mut self.buffer);
        let mut events = 0;
        let mut wanted = if self.careful { BATCH / 32 } else { BATCH };
        let result = loop {
            let available = self.fill(&mut bytes, limit, wanted)?;
            let whole = self.at.offset + available as u64 >= limit;
            let mut used = 0;
            if self.at.offset == 0 {
                used = self.segment_header(&bytes, damage);
            }
            let outcome = self.frames(store, &bytes, &mut used, whole, &mut events, damage);
            self.at.offset += used as u64;
            match outcome {
                Err(e) => break Err(e),
                // A frame larger than the buffer: read as much as it claims.
                Ok(Step::More) if used == 0 && !whole => wanted = wanted.saturating_mul(4),
                Ok(_) => break Ok(events),
            }
        };
        if bytes.capacity() > 2 * BATCH {
            bytes = Vec::new();
        }
        self.buffer = bytes;
        result
    }

    fn fill(&self, bytes: &mut Vec<u8>, limit: u64, wanted: usize) -> Result<usize, RecordError> {
        let Some((segment, file)) = &self.file else { return Ok(0) };
        let left = limit.saturating_sub(self.at.offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
        bytes.resize(want, 0);
        file.read_exact_at(bytes, self.at.offset)
            .map_err(|e| RecordError::io("read", &journal::segment_path(&self.dir, *segment), e))?;
        Ok(want)
    }

    fn segment_header(&mut self, bytes: &[u8], damage: &mut Vec<Damage>) -> usize {
        if !journal::header_is_good(bytes, self.at.segment) {
            let torn = (bytes.len() as u64) < SEGMENT_HEADER;
            self.report(damage, 0, bytes.len().min(32) as u64, "segment header", torn);
            if self.stopped {
                return 0;
            }
        }
        bytes.len().min(SEGMENT_HEADER as usize)
    }

    fn frames(
        &mut self,
        store: &mut Store,
        bytes: &[u8],
        used: &mut usize,
        whole: bool,
        events: &mut u64,
        damage: &mut Vec<Damage>,
    ) -> Result<Step, RecordError> {
        let mut run = Run::new();
        let outcome = loop {
            if *used >= bytes.len() || self.stopped {
                break Step::On;
            }
            match frame::parse(&bytes[*used..]) {
                Parsed::Whole(Frame::Event(event), len) if !self.strict => {
                    run.push((*used, len, event));
                    *used += len;
                }
                Parsed::Whole(frame, len) => {
                    self.store_run(store, &mut run, events, damage)?;
                    if let Some(why) = self.take(store, &frame, events)? {
                        self.report(damage, *used, len as u64, why, false);
                    }
                    if !self.stopped {
                        *used += len;
                    }
                }
                Parsed::Short(_) if !whole => break Step::More,
                other => {
                    let (why, torn) = match other {
                        Parsed::Damaged { why, .. } => (why, false),
                        _ => ("incomplete frame", true),
                    };
                    let next = resync(&bytes[*used..]);
                    if next.is_none() && !whole {
                        // The damage may end behind this buffer; do not guess before it is read.
                        if *used > 0 || bytes.len() < frame::MAX_PAYLOAD {
                            break Step::More;
                        }
                    }
                    let skipped = next.unwrap_or(bytes.len() - *used);
                    let torn = torn && next.is_none() && self.is_last_segment()?;
                    self.report(damage, *used, skipped as u64, why, torn);
                    if !self.stopped {
                        *used += skipped;
                    }
                }
            }
        };
        self.store_run(store, &mut run, events, damage)?;
        Ok(outcome)
    }

    /// Stores events that follow each other, session by session: those of one session lie
    /// together in the store, so that most of them find their page at hand.
    fn store_run(
        &mut self,
        store: &mut Store,
        run: &mut Run<'_>,
        events: &mut u64,
        damage: &mut Vec<Damage>,
    ) -> Result<(), RecordError> {
        run.sort_by_key(|(.., event)| (event.number, event.seq));
        for (at, len, event) in run.drain(..) {
            *events += 1;
            if !store.event(&event)? {
                self.report(damage, at, len as u64, OTHER_EVENT, false);
            }
        }
        Ok(())
    }

    fn is_last_segment(&self) -> Result<bool, RecordError> {
        Ok(journal::segments(&self.dir)?.range(self.at.segment + 1..).next().is_none())
    }

    fn take(
        &self,
        store: &mut Store,
        frame: &Frame<'_>,
        events: &mut u64,
    ) -> Result<Option<&'static str>, RecordError> {
        Ok(match frame {
            Frame::Event(e) => {
                *events += 1;
                (!store.event(e)?).then_some(OTHER_EVENT)
            }
            Frame::Ledger(s) => {
                (!store.ledger(&self.key, s)?).then_some("ledger entry without valid signature")
            }
            Frame::Checkpoint(s) => {
                (!store.checkpoint(s)?).then_some("checkpoint that cannot be read")
            }
        })
    }

    fn report(
        &mut self,
        damage: &mut Vec<Damage>,
        at: usize,
        bytes: u64,
        why: &str,
        torn_tail: bool,
    ) {
        let offset = self.at.offset + at as u64;
        tracing::error!(segment = self.at.segment, offset, bytes, why, "journal is damaged");
        self.damaged.insert(self.at.segment);
        self.stopped = self.strict;
        damage.push(Damage { segment: self.at.segment, offset, bytes, why: why.into(), torn_tail });
    }

    /// Deletes the segments that are wholly consumed, after SQLite has them on disk. Damaged
    /// ones are kept under another name.
    pub fn reclaim(&mut self, store: &Store) -> Result<(), RecordError> {
        let all = journal::segments(&self.dir)?;
        let done: Vec<_> = all.range(..self.at.segment).collect();
        if done.is_empty() {
            return Ok(());
        }
        store.sync()?;
        for (index, path) in done {
            let gone = if self.damaged.remove(index) {
                std::fs::rename(path, path.with_extension("damaged"))
            } else {
                std::fs::remove_file(path)
            };
            gone.map_err(|e| RecordError::io("remove", path, e))?;
        }
        Ok(())
    }

    /// Bytes of the journal that are not consumed yet.
    pub fn backlog(&self, end: Position) -> u64 {
        if end.segment == self.at.segment {
            return end.offset.saturating_sub(self.at.offset);
        }
        let files = journal::segments(&self.dir).unwrap_or_default();
        files
            .range(self.at.segment..)
            .map(|(_, path)| std::fs::metadata(path).map_or(0, |m| m.len()))
            .sum::<u64>()
            .saturating_sub(self.at.offset)
    }
}

/// Where the next whole frame begins behind damaged bytes.
fn resync(bytes: &[u8]) -> Option<usize> {
    (1..bytes.len().saturating_sub(frame::HEADER)).find(|at| {
        matches!(bytes[at + frame::HEADER], 1..=3)
            && matches!(frame::parse(&bytes[*at..]), Parsed::Whole(..))
    })
}
