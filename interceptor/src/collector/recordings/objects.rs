//! The objects themselves: a folder, or a bucket of S3, behind calls that block.
//!
//! `object_store` is asynchronous and readers of records are not: it runs on threads of its own,
//! and whoever calls waits. In a folder parts are read in place; of a bucket they are fetched whole
//! into a cache of limited size. Either way a part is read only once its hash was found right.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::future::Future;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::client::{ClientOptions, HttpClient, HttpConnector};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Name;
use object_store::{Error, ObjectStore, ObjectStoreExt, RetryConfig};
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::settings::{Place, Settings};
use crate::collector::CollectorError;
use crate::identity::https::chain;
use crate::record::chain::{Hash, hex};
use crate::record::recordings::{self, MAX_PART, ObjectError, Part};

/// Bytes of fetched parts that are kept.
pub(super) const CACHE: u64 = 1 << 30;
/// Parts that are fetched at a time, each of which is in memory.
const FETCHES: usize = 4;
/// Readers that ask a place at a time, and how long another waits.
const READERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);
/// A place that did not answer is not asked again for so long.
const REST: Duration = Duration::from_secs(3);
/// No request lasts longer, with all its attempts.
const LONGEST_FETCH: Duration = Duration::from_secs(600);
/// Names the collectors that a place belongs to, and the database that knows it.
const MARK: &str = "interceptor-recordings";
/// Most bytes of that.
const MARK_BYTES: u64 = 1024;
/// Bytes that are read from a file at a time.
const BLOCK: usize = 64 << 10;
/// Most characters of a reason.
const MOST: usize = 300;

/// An open place for objects.
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Names begin with it.
    prefix: String,
    /// In words.
    words: String,
    /// Where it is a folder: that.
    folder: Option<PathBuf>,
    cache: Arc<Cache>,
    /// Readers that ask the place.
    readers: Readers,
    /// After it did not answer: until when nobody asks again.
    away: Mutex<Option<(Instant, String)>>,
    fetches: Arc<Semaphore>,
    runtime: Option<Runtime>,
}

impl Drop for Objects {
    fn drop(&mut self) {
        // Its threads are not waited for: this may be a thread that must not block.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A place in words.
pub(super) fn words(place: &Place) -> String {
    match place {
        Place::Off => "nowhere: they stay in the replicas".into(),
        Place::Folder { path, .. } => path.display().to_string(),
        Place::S3 { bucket, prefix, endpoint, .. } => {
            let at = endpoint.as_str().trim_end_matches('/');
            let slash = if prefix.is_empty() { "" } else { "/" };
            format!("s3://{bucket}{slash}{prefix} at {at}")
        }
    }
}

/// Opens S3. Nothing is asked yet.
pub(super) fn bucket(
    settings: &Settings,
    place: &Place,
) -> Result<Arc<dyn ObjectStore>, CollectorError> {
    let wrong = CollectorError::Recordings;
    let Place::S3 { bucket, endpoint, region, .. } = place else {
        return Err(wrong("url names no bucket".into()));
    };
    let (Some(id), Some(secret)) = (&settings.access_key_id, &settings.secret_access_key) else {
        return Err(wrong("access_key_id and secret_access_key are needed".into()));
    };
    let secret = secret.read()?;
    let client = crate::identity::https::object_client(endpoint, settings.ca_file.as_deref())
        .map_err(|e| wrong(format!("endpoint: {e}")))?;
    let retry = RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(20),
        ..RetryConfig::default()
    };
    let store = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region)
        .with_endpoint(endpoint.as_str().trim_end_matches('/'))
        .with_access_key_id(id)
        .with_secret_access_key(secret.expose_secret())
        .with_allow_http(endpoint.scheme() == "http")
        .with_disable_bulk_delete(true)
        .with_retry(retry)
        .with_http_connector(Connector(client))
        .build()
        .map_err(|e| wrong(chain(&e)))?;
    Ok(Arc::new(store))
}

/// Gives out our own client: no redirects, no plain HTTP beyond this machine.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// Opens a folder, making it where it may be made.
pub(super) fn folder(path: &Path, make: bool) -> Result<Arc<dyn ObjectStore>, String> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    if make && !path.exists() {
        std::fs::DirBuilder::new().mode(0o700).create(path).map_err(|e| fail(&e))?;
    }
    let meta = std::fs::metadata(path).map_err(|e| fail(&e))?;
    if !meta.is_dir() {
        return Err(fail(&"is no folder"));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(fail(&"others can look into it: chmod 0700"));
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| fail(&chain(&e)))?;
    Ok(Arc::new(store.with_fsync(true).with_automatic_cleanup(true)))
}

impl Objects {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        place: &Place,
        cache: Arc<Cache>,
    ) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(FETCHES)
            .thread_name("recordings")
            .enable_all()
            .build()
            .map_err(|e| format!("threads for recordings: {e}"))?;
        let (prefix, folder) = match place {
            Place::S3 { prefix, .. } if !prefix.is_empty() => (format!("{prefix}/"), None),
            Place::Folder { path, .. } => (String::new(), Some(path.clone())),
            _ => (String::new(), None),
        };
        Ok(Self {
            store,
            prefix,
            words: words(place),
            folder,
            cache,
            readers: Readers::default(),
            away: Mutex::default(),
            fetches: Arc::new(Semaphore::new(FETCHES)),
            runtime: Some(runtime),
        })
    }

    /// Runs something on our own threads and waits for it.
    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> object_store::Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let _ = sender.send(work.await);
            });
        }
        receiver.recv_timeout(LONGEST_FETCH).unwrap_or_else(|e| {
            Err(Error::Generic { store: "recordings", source: e.to_string().into() })
        })
    }

    fn name(&self, rest: &str) -> Name {
        Name::from(format!("{}{rest}", self.prefix))
    }

    fn failed(&self, action: &str, e: &Error) -> String {
        format!("cannot {action} {}: {}", self.words, why(e))
    }

    /// Puts a part in its place, over what may be there, and reads it back. Once it returns, the
    /// part is there to stay.
    pub(super) fn put(&self, host: &str, part: &Part, bytes: Vec<u8>) -> Result<(), String> {
        let name = self.name(&format!("{host}/{}", recordings::name(part)));
        let (store, at) = (Arc::clone(&self.store), name.clone());
        self.wait(async move { store.put(&at, Bytes::from(bytes).into()).await })
            .map_err(|e| self.failed("write into", &e))?;
        let there = self.get(name, part.bytes).map_err(|e| self.failed("read back from", &e))?;
        match there.is_some_and(|there| hash(&there) == part.sha256) {
            true => Ok(()),
            false => Err(format!("{} gives back other bytes than were put there", self.words)),
        }
    }

    /// An object of a length; none when it has another.
    fn get(&self, name: Name, length: u64) -> object_store::Result<Option<Bytes>> {
        let (store, fetches) = (Arc::clone(&self.store), Arc::clone(&self.fetches));
        self.wait(async move {
            let _place = fetches.acquire_owned().await;
            let found = store.get(&name).await?;
            if found.meta.size != length || length > MAX_PART {
                return Ok(None);
            }
            found.bytes().await.map(|b| Some(b).filter(|b| b.len() as u64 == length))
        })
    }

    /// Takes away everything of a session, also what is in the cache.
    pub(super) fn delete(&self, host: &str, number: u64) -> Result<u64, String> {
        if let Some(folder) = &self.folder {
            let gone = empty(&folder.join(host), &number.to_string());
            return gone.map_err(|e| format!("cannot delete from {}: {e}", self.words));
        }
        let below = self.name(&format!("{host}/{number}"));
        let store = Arc::clone(&self.store);
        let gone = self.wait(async move {
            let mut gone = 0;
            for object in store.list_with_delimiter(Some(&below)).await?.objects {
                match store.delete(&object.location).await {
                    Ok(()) | Err(Error::NotFound { .. }) => gone += 1,
                    Err(e) => return Err(e),
                }
            }
            Ok(gone)
        });
        self.cache.forget(host, &[number]);
        gone.map_err(|e| self.failed("delete from", &e))
    }

    /// What marks the place; none where nothing was put yet.
    pub(super) fn mark(&self) -> Result<Option<String>, String> {
        let (store, name) = (Arc::clone(&self.store), self.name(MARK));
        let found = self.wait(async move {
            let found = store.get(&name).await?;
            if found.meta.size > MARK_BYTES {
                return Ok(Bytes::new());
            }
            found.bytes().await
        });
        match found {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("read", &e)),
        }
    }

    /// Marks the place.
    pub(super) fn set_mark(&self, text: String) -> Result<(), String> {
        let (store, name) = (Arc::clone(&self.store), self.name(MARK));
        self.wait(async move { store.put(&name, Bytes::from(text).into()).await })
            .map(drop)
            .map_err(|e| self.failed("write into", &e))
    }

    /// A part as a file on this machine, whose contents were found right.
    pub(super) fn open(&self, host: &str, part: &Part) -> Result<File, ObjectError> {
        let name = format!("{host}/{}", recordings::name(part));
        let place = self.words.clone();
        let Some(_reading) = self.readers.enter() else {
            let why = "too many read from it at this moment: try again".into();
            return Err(ObjectError::Away { name, place, why });
        };
        if let Some(folder) = &self.folder {
            let read = File::open(folder.join(&name)).and_then(|file| {
                let right = is_right(&file, part)?;
                Ok((file, right))
            });
            return match read {
                Ok((file, true)) => Ok(file),
                Ok((_, false)) => Err(ObjectError::Altered { name, place }),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(self.missing(name)),
                Err(e) => Err(ObjectError::Away { name, place, why: e.to_string() }),
            };
        }
        let kept = Cache::name(host, part);
        if let Some(file) = self.cache.open(&kept, part) {
            return Ok(file);
        }
        self.rests(&name)?;
        let bytes = self.fetch(host, part).inspect_err(|e| self.rest(e))?;
        self.cache.keep(&kept, &bytes).map_err(|e| ObjectError::Away {
            name,
            place,
            why: format!("cache: {e}"),
        })
    }

    /// Refuses while the place rests.
    fn rests(&self, name: &str) -> Result<(), ObjectError> {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        match &*away {
            Some((since, why)) if since.elapsed() < REST => Err(ObjectError::Away {
                name: name.to_owned(),
                place: self.words.clone(),
                why: why.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Lets a place that did not answer rest: those who wait for it hold threads.
    fn rest(&self, error: &ObjectError) {
        if let ObjectError::Away { why, .. } = error {
            let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
            *away = Some((Instant::now(), why.clone()));
        }
    }

    /// Whether a part is there and right, past the cache.
    pub(super) fn look(&self, host: &str, part: &Part) -> Result<(), ObjectError> {
        if self.folder.is_some() {
            return self.open(host, part).map(drop);
        }
        self.fetch(host, part).map(drop)
    }

    fn fetch(&self, host: &str, part: &Part) -> Result<Bytes, ObjectError> {
        let name = format!("{host}/{}", recordings::name(part));
        let place = self.words.clone();
        match self.get(self.name(&name), part.bytes) {
            Ok(Some(bytes)) if hash(&bytes) == part.sha256 => Ok(bytes),
            Ok(_) => Err(ObjectError::Altered { name, place }),
            Err(Error::NotFound { .. }) => Err(self.missing(name)),
            Err(e) => Err(ObjectError::Away { name, place, why: why(&e) }),
        }
    }

    /// A place without its mark is another one, or one that is not mounted.
    fn missing(&self, name: String) -> ObjectError {
        let place = self.words.clone();
        match self.mark() {
            Ok(Some(_)) => ObjectError::Missing { name, place },
            Ok(None) => {
                let why = "the place has lost its mark: is it mounted?".into();
                ObjectError::Away { name, place, why }
            }
            Err(why) => ObjectError::Away { name, place, why },
        }
    }
}

/// Takes a session's directory away with every file in it: also those that a write left behind
/// which was cut off, and which no list of objects shows. On disk when this returns.
fn empty(host: &Path, number: &str) -> std::io::Result<u64> {
    let dir = host.join(number);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut gone = 0;
    for entry in entries {
        std::fs::remove_file(entry?.path())?;
        gone += 1;
    }
    std::fs::remove_dir(&dir)?;
    File::open(host)?.sync_all()?;
    Ok(gone)
}

/// In words: what a server of S3 answers has its name in the middle of much else.
fn why(e: &Error) -> String {
    let text = chain(e);
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    match code {
        Some((code, _)) => format!("it answers {}", code.chars().take(MOST).collect::<String>()),
        None => text.chars().take(MOST).collect(),
    }
}

pub(super) fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Whether a file is the part that it should be. One that cannot be read is no altered one.
fn is_right(mut file: &File, part: &Part) -> std::io::Result<bool> {
    if file.metadata()?.len() != part.bytes {
        return Ok(false);
    }
    let (mut sum, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok(sum.finalize()[..] == part.sha256),
            Ok(n) => sum.update(&block[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Readers that ask the place at a time, and how long one more waits: each holds a thread and a part
/// in memory, and a place that hangs must not take all threads there are.
#[derive(Default)]
struct Readers {
    now: Mutex<usize>,
    left: Condvar,
}

impl Readers {
    fn enter(&self) -> Option<Reading<'_>> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.left.wait_timeout_while(now, PATIENCE, |now| *now >= READERS);
        let (mut now, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *now >= READERS {
            return None;
        }
        *now += 1;
        Some(Reading(self))
    }
}

struct Reading<'r>(&'r Readers);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.saturating_sub(1);
        self.0.left.notify_one();
    }
}

/// Parts that were fetched, in a directory of our own.
pub(super) struct Cache {
    dir: PathBuf,
    most: u64,
    /// What was forgotten lately, and when: a reader that fetched it before must not bring it back.
    turn: Mutex<HashMap<String, Instant>>,
}

impl Cache {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, most: CACHE, turn: Mutex::default() }
    }

    fn name(host: &str, part: &Part) -> String {
        format!("{host}-{}-{}-{}", part.number, part.part, hex(&part.sha256))
    }

    fn open(&self, name: &str, part: &Part) -> Option<File> {
        let path = self.dir.join(name);
        let file = File::open(&path).ok()?;
        if is_right(&file, part).is_ok_and(|right| right) {
            // What was read last goes last.
            let _ = file.set_modified(SystemTime::now());
            return Some(file);
        }
        let _ = std::fs::remove_file(path);
        None
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> std::io::Result<File> {
        let forgotten = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = forgotten.keys().any(|of| name.starts_with(of));
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.make_room(bytes.len() as u64);
        let path = self.dir.join(name);
        let new = self.dir.join(format!("{name}.new"));
        std::fs::write(&new, bytes)?;
        std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        std::fs::rename(&new, &path)?;
        let file = File::open(&path)?;
        if gone {
            std::fs::remove_file(&path)?;
        }
        Ok(file)
    }

    /// Takes the longest unused away, until there is room for so many bytes.
    fn make_room(&self, bytes: u64) {
        let mut all = self.files();
        all.sort_by_key(|(_, _, used)| std::cmp::Reverse(*used));
        let mut sum: u64 = all.iter().map(|(_, length, _)| length).sum();
        while sum.saturating_add(bytes) > self.most
            && let Some((path, length, _)) = all.pop()
        {
            sum = sum.saturating_sub(length);
            let _ = std::fs::remove_file(path);
        }
    }

    /// Takes parts of sessions out.
    pub(super) fn forget(&self, host: &str, numbers: &[u64]) {
        let of: Vec<String> = numbers.iter().map(|n| format!("{host}-{n}-")).collect();
        let mut forgotten = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        forgotten.retain(|_, at| at.elapsed() < LONGEST_FETCH);
        forgotten.extend(of.iter().map(|of| (of.clone(), Instant::now())));
        for (path, _, _) in self.files() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if of.iter().any(|of| name.starts_with(of)) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    fn files(&self) -> Vec<(PathBuf, u64, SystemTime)> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let files = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok().filter(|m| m.is_file())?;
            Some((entry.path(), meta.len(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)))
        });
        files.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn part(number: u64, bytes: &[u8]) -> Part {
        Part { number, part: 0, bytes: bytes.len() as u64, sha256: hash(bytes) }
    }

    #[test]
    fn the_cache_keeps_within_its_size_and_believes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { most: 250, ..Cache::new(dir.path().join("cache")) };
        let parts: Vec<(String, Part, Vec<u8>)> = (0..4_u8)
            .map(|n| {
                let bytes = vec![n; 100];
                let part = part(u64::from(n), &bytes);
                (Cache::name("ab", &part), part, bytes)
            })
            .collect();
        let old = SystemTime::UNIX_EPOCH;
        for (n, (name, _, bytes)) in parts[..2].iter().enumerate() {
            let file = cache.keep(name, bytes).unwrap();
            file.set_modified(old + Duration::from_secs(n as u64)).unwrap();
        }
        // The first was used since: the second goes.
        assert!(cache.open(&parts[0].0, &parts[0].1).is_some());
        cache.keep(&parts[2].0, &parts[2].2).unwrap();
        assert!(cache.open(&parts[0].0, &parts[0].1).is_some());
        assert!(cache.open(&parts[1].0, &parts[1].1).is_none());
        // One that was altered is no part.
        std::fs::write(cache.dir.join(&parts[2].0), [9; 100]).unwrap();
        assert!(cache.open(&parts[2].0, &parts[2].1).is_none());
        assert!(!cache.dir.join(&parts[2].0).exists());
        // What is deleted is gone here too, and nothing else is.
        cache.keep(&parts[3].0, &parts[3].2).unwrap();
        cache.forget("ab", &[0]);
        assert!(cache.open(&parts[0].0, &parts[0].1).is_none());
        assert!(cache.open(&parts[3].0, &parts[3].1).is_some());
        // Whoever fetched it before reads it to the end, and nobody after them.
        let mut file = cache.keep(&parts[0].0, &parts[0].2).unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, parts[0].2);
        assert!(!cache.dir.join(&parts[0].0).exists());
        let meta = std::fs::metadata(cache.dir.join(&parts[3].0)).unwrap();
        assert_eq!(meta.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_cut_off_write_left_is_deleted_too() {
        let dir = tempfile::tempdir().unwrap();
        let session = dir.path().join("ab/7");
        std::fs::create_dir_all(&session).unwrap();
        for name in ["0-00", "0-00#1", "1-ff#12"] {
            std::fs::write(session.join(name), "output").unwrap();
        }
        std::fs::create_dir(dir.path().join("ab/70")).unwrap();
        assert_eq!(empty(&dir.path().join("ab"), "7").unwrap(), 3);
        assert!(!session.exists() && dir.path().join("ab/70").exists());
        assert_eq!(empty(&dir.path().join("ab"), "7").unwrap(), 0);
    }

    #[test]
    fn a_folder_that_others_can_look_into_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        assert!(folder(&path, false).unwrap_err().contains("No such file"));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        assert!(folder(&path, true).unwrap_err().contains("chmod 0700"));
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        folder(&path, false).unwrap();
        let made = dir.path().join("made");
        folder(&made, true).unwrap();
        assert_eq!(std::fs::metadata(made).unwrap().mode() & 0o777, 0o700);
    }
}
