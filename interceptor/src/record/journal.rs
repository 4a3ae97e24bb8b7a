//! The journal: checksummed frames in append-only segment files, shared by all sessions.
//!
//! [`Journal::write`] puts whole frames behind the last good byte with one `pwrite`, so what
//! it acknowledged survives `kill -9`. A failed or short write is undone and reported; the
//! bytes are the caller's again. [`Journal::sync`] hands out futures that one thread resolves
//! after a common `fdatasync`. The journal deletes nothing by itself.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::RecordError;

const MAGIC: &[u8; 8] = b"icptjrn1";
/// Bytes before the first frame: magic, index, CRC of both, zeroes.
pub const SEGMENT_HEADER: u64 = 32;

/// A place in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Index of the segment.
    pub segment: u64,
    /// Byte in it.
    pub offset: u64,
}

/// The open journal of a running recorder.
pub struct Journal {
    dir: PathBuf,
    segment_bytes: u64,
    durable: bool,
    current: Mutex<Current>,
    group: Arc<Group>,
    syncer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

struct Current {
    file: Arc<File>,
    at: Position,
    failing: Option<String>,
}

impl Journal {
    /// Starts a new segment behind all that exist.
    pub fn open(dir: &Path, segment_bytes: u64, durable: bool) -> Result<Self, RecordError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .create(dir)
            .map_err(|e| RecordError::io("create", dir, e))?;
        let next = segments(dir)?.last_key_value().map_or(1, |(i, _)| i + 1);
        let file = create_segment(dir, next, durable)?;
        let group = Arc::new(Group::default());
        let syncer = durable
            .then(|| {
                let group = Arc::clone(&group);
                std::thread::Builder::new()
                    .name("record-sync".into())
                    .spawn(move || group.run())
                    .map_err(|e| RecordError::io("start a thread for", dir, e))
            })
            .transpose()?;
        Ok(Self {
            dir: dir.into(),
            segment_bytes,
            durable,
            current: Mutex::new(Current {
                file: Arc::new(file),
                at: Position { segment: next, offset: SEGMENT_HEADER },
                failing: None,
            }),
            group,
            syncer: Mutex::new(syncer),
        })
    }

    /// Appends whole frames. After `Ok` they survive the death of this process.
    pub fn write(&self, frames: &[u8]) -> Result<Written, RecordError> {
        let mut current = lock(&self.current);
        if current.at.offset >= self.segment_bytes {
            self.rotate(&mut current)?;
        }
        if let Err(e) = current.file.write_all_at(frames, current.at.offset) {
            let _ = current.file.set_len(current.at.offset);
            current.failing = Some(e.to_string());
            return Err(RecordError::io("write", &self.path(current.at.segment), e));
        }
        current.at.offset += frames.len() as u64;
        current.failing = None;
        Ok(Written { file: Arc::clone(&current.file) })
    }

    /// A future that resolves when what was written is on disk; `None` where only the process
    /// may die.
    pub fn sync(&self, written: Written) -> Option<Pending> {
        self.durable.then(|| self.group.join(written.file))
    }

    /// The same for whatever was written last.
    pub fn sync_current(&self) -> Option<Pending> {
        self.durable.then(|| self.group.join(Arc::clone(&lock(&self.current).file)))
    }

    /// Behind the last acknowledged frame.
    pub fn end(&self) -> Position {
        lock(&self.current).at
    }

    /// Why the last write failed, if it did.
    pub fn failing(&self) -> Option<String> {
        lock(&self.current).failing.clone()
    }

    /// After a failure, tries whether there is room again.
    pub fn probe(&self) {
        use nix::fcntl::{FallocateFlags, fallocate};
        let mut current = lock(&self.current);
        if current.failing.is_some() {
            let at = i64::try_from(current.at.offset).unwrap_or(i64::MAX);
            let room = 64 * 1024;
            match fallocate(&*current.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, room) {
                Ok(()) => current.failing = None,
                Err(e) => current.failing = Some(e.to_string()),
            }
        }
    }

    /// Where a segment lives.
    pub fn path(&self, segment: u64) -> PathBuf {
        segment_path(&self.dir, segment)
    }

    fn rotate(&self, current: &mut Current) -> Result<(), RecordError> {
        let next = current.at.segment + 1;
        if self.durable {
            current
                .file
                .sync_data()
                .map_err(|e| RecordError::io("sync", &self.path(current.at.segment), e))?;
        }
        let file = create_segment(&self.dir, next, self.durable).inspect_err(|e| {
            current.failing = Some(e.to_string());
        })?;
        current.file = Arc::new(file);
        current.at = Position { segment: next, offset: SEGMENT_HEADER };
        Ok(())
    }

    /// Ends the sync thread after everything that waits is on disk.
    pub fn stop(&self) {
        self.group.stop();
        if let Some(thread) = lock(&self.syncer).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Proof of a write, to be exchanged for a [`Pending`].
pub struct Written {
    file: Arc<File>,
}

/// Resolves when a commit is on disk.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<(), String>>);

impl Pending {
    /// Waits outside of an async runtime.
    pub fn wait_blocking(self) -> Result<(), RecordError> {
        answer(self.0.blocking_recv())
    }
}

impl std::future::Future for Pending {
    type Output = Result<(), RecordError>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(answer)
    }
}

fn answer(got: Result<Result<(), String>, oneshot::error::RecvError>) -> Result<(), RecordError> {
    match got {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(RecordError::Refusing(format!("fdatasync of the journal: {why}"))),
        Err(_) => Err(RecordError::Refusing("the recorder has shut down".into())),
    }
}

/// A commit that waits for its file to be on disk.
type Waiter = (Arc<File>, oneshot::Sender<Result<(), String>>);

/// Commits that wait for the same `fdatasync`.
#[derive(Default)]
struct Group {
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Default)]
struct Waiting {
    list: Vec<Waiter>,
    stop: bool,
}

impl Group {
    fn join(&self, file: Arc<File>) -> Pending {
        let (done, wait) = oneshot::channel();
        let mut waiting = lock(&self.waiting);
        if !waiting.stop {
            let first = waiting.list.is_empty();
            waiting.list.push((file, done));
            if first {
                self.wake.notify_one();
            }
        }
        Pending(wait)
    }

    fn stop(&self) {
        lock(&self.waiting).stop = true;
        self.wake.notify_one();
    }

    fn run(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.list.is_empty() && !waiting.stop {
                waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            let list = std::mem::take(&mut waiting.list);
            let stop = waiting.stop;
            drop(waiting);
            resolve(list);
            if stop {
                return;
            }
        }
    }
}

fn resolve(list: Vec<Waiter>) {
    let mut synced: Vec<(Arc<File>, Result<(), String>)> = Vec::with_capacity(1);
    for (file, done) in list {
        let known = synced.iter().find(|(f, _)| Arc::ptr_eq(f, &file)).map(|(_, r)| r.clone());
        let result = known.unwrap_or_else(|| {
            let result = file.sync_data().map_err(|e| e.to_string());
            synced.push((file, result.clone()));
            result
        });
        let _ = done.send(result);
    }
}

/// The segments in a directory, by index.
pub fn segments(dir: &Path) -> Result<BTreeMap<u64, PathBuf>, RecordError> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(RecordError::io("read", dir, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| RecordError::io("read", dir, e))?.path();
        let index = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_suffix(".seg"))
            .and_then(|n| u64::from_str_radix(n, 16).ok());
        if let Some(index) = index {
            found.insert(index, path);
        }
    }
    Ok(found)
}

/// Where a segment lives.
pub fn segment_path(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("{index:016x}.seg"))
}

/// Whether a segment's header is whole and its own.
pub fn header_is_good(bytes: &[u8], index: u64) -> bool {
    bytes.get(..SEGMENT_HEADER as usize) == Some(&header(index)[..])
}

fn header(index: u64) -> [u8; SEGMENT_HEADER as usize] {
    let mut out = [0; SEGMENT_HEADER as usize];
    out[..8].copy_from_slice(MAGIC);
    out[8..16].copy_from_slice(&index.to_le_bytes());
    let crc = crc32c::crc32c(&out[..16]);
    out[16..20].copy_from_slice(&crc.to_le_bytes());
    out
}

fn create_segment(dir: &Path, index: u64, durable: bool) -> Result<File, RecordError> {
    let path = segment_path(dir, index);
    let make = || -> std::io::Result<File> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        if let Err(e) = file.write_all_at(&header(index), 0) {
            let _ = std::fs::remove_file(&path);
            return Err(e);
        }
        if durable {
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        }
        Ok(file)
    };
    make().map_err(|e| RecordError::io("create", &path, e))
}

/// A poisoned lock still guards consistent data here: every critical section leaves it so.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
