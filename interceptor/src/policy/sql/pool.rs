//! The threads that parse, and the memory of what they found.
//!
//! Syntax trees are decoded, walked and dropped only on threads that have the stack for it: on
//! these, where callers wait without blocking, or for a short text on the caller's own thread
//! where that is deep too ([`on_deep_stack`]), since waking another costs more than the work.
//! A panic here is a refusal for that text. What is remembered is parsing and resolution, never
//! a verdict.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context as Digest, SHA256};
use lru::LruCache;
use tokio::sync::oneshot;

use super::catalog::Catalog;
use super::parse::{self, MAX_TEXT};
use super::statement;
use super::template::Template;
use super::types::{Analysis, SqlError};

/// Stack of a parsing thread: twice what the deepest tree needs that the C side hands over
/// (10,000 nested messages). Only what is touched takes memory.
pub(super) const STACK: usize = 512 << 20;

/// Texts up to this many bytes are analysed by the caller, where its stack is deep: they can
/// neither hold it up for long nor touch much of its stack, which it would not give back.
pub(super) const SHORT_TEXT: usize = 1 << 10;

/// Stack of threads that analyse short texts only: more than the deepest of them needs in a
/// build without optimisation (46 MiB). Reserved, not resident; where the kernel does not
/// overcommit, as PostgreSQL advises, what is reserved counts.
const SHORT_STACK: usize = 64 << 20;

thread_local! {
    static DEEP: Cell<bool> = const { Cell::new(false) };
}

/// A thread with the stack that short texts need; its body runs inside [`on_deep_stack`].
pub fn deep_thread(name: String) -> std::thread::Builder {
    std::thread::Builder::new().name(name).stack_size(SHORT_STACK)
}

/// Declares that the calling thread was made by [`deep_thread`], so that short texts may be
/// analysed on it.
pub fn on_deep_stack<T>(body: impl FnOnce() -> T) -> T {
    DEEP.set(true);
    let result = body();
    DEEP.set(false);
    result
}

/// Bytes the memory of analyses may take, estimated.
const CACHE_BYTES: usize = 64 << 20;

/// Texts longer than this are analysed anew each time.
const CACHE_TEXT: usize = 256 << 10;

/// How names resolve for a session at this moment.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The catalog; without one, names are taken as written.
    pub catalog: Option<Arc<Catalog>>,
    /// The effective search path, implicit schemas included, as `current_schemas(true)` gives it.
    pub search_path: Vec<String>,
    /// Identifies the catalog among all catalogs of all services of the process.
    pub epoch: u64,
}

type Key = [u8; 32];
type Answer = Result<Arc<Analysis>, SqlError>;

struct Job {
    text: Arc<str>,
    context: Arc<Context>,
    answer: oneshot::Sender<Answer>,
}

struct Cache {
    entries: LruCache<Key, (Arc<Analysis>, usize)>,
    /// By frame: an analysis that carries over, and the numbers of its text.
    frames: LruCache<Key, Arc<Frame>>,
    bytes: usize,
}

struct Frame {
    analysis: Arc<Analysis>,
    numbers: Vec<Range<usize>>,
}

/// Frames that are remembered.
const FRAMES: NonZeroUsize = match NonZeroUsize::new(4096) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};

struct Shared {
    cache: Mutex<Cache>,
    jobs: Mutex<Receiver<Job>>,
    limit: usize,
    /// Threads at work; with none left every text is refused.
    alive: AtomicUsize,
}

impl Shared {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Analyses SQL texts.
pub struct Analyzer {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
}

impl std::fmt::Debug for Analyzer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Analyzer").finish_non_exhaustive()
    }
}

impl Analyzer {
    /// Starts `threads` parsing threads (at least one).
    pub fn new(threads: usize) -> Self {
        Self::with_text_limit(threads, MAX_TEXT)
    }

    /// The same with another limit on the length of a text.
    pub fn with_text_limit(threads: usize, limit: usize) -> Self {
        let (jobs, receiver) = channel();
        let cache =
            Cache { entries: LruCache::unbounded(), frames: LruCache::new(FRAMES), bytes: 0 };
        let shared = Arc::new(Shared {
            cache: Mutex::new(cache),
            jobs: Mutex::new(receiver),
            limit,
            alive: AtomicUsize::new(0),
        });
        for _ in 0..threads.max(1) {
            spawn(shared.clone());
        }
        Self { shared, jobs }
    }

    /// What is already known about a text; costs a hash and a short lock.
    pub(super) fn cached(&self, text: &Arc<str>, context: &Context) -> Option<Arc<Analysis>> {
        if text.len() > CACHE_TEXT {
            return None;
        }
        if text.len() <= SHORT_TEXT
            && let Some(template) = Template::of(text)
        {
            let key = key(&template.frame, context);
            let frame = self.shared.cache().frames.get(&key).cloned();
            let applied =
                frame.and_then(|f| template.apply(&f.analysis, &f.numbers, text)).map(Arc::new);
            if applied.is_some() {
                return applied;
            }
        }
        let key = key(text.as_bytes(), context);
        self.shared.cache().entries.get(&key).map(|(analysis, _)| analysis.clone())
    }

    /// Analyses a text.
    pub async fn analyze(&self, text: Arc<str>, context: Arc<Context>) -> Answer {
        if let Some(known) = self.cached(&text, &context) {
            return Ok(known);
        }
        if text.len() <= SHORT_TEXT && DEEP.get() {
            parse::check_text(&text, self.shared.limit)?;
            return caught(&self.shared, &text, &context).unwrap_or_else(|| Err(broken()));
        }
        self.submit(text, context)?.await.unwrap_or_else(|_| Err(broken()))
    }

    /// The same for callers outside a runtime; blocks.
    pub fn analyze_blocking(&self, text: &str, context: Arc<Context>) -> Answer {
        let text = Arc::from(text);
        if let Some(known) = self.cached(&text, &context) {
            return Ok(known);
        }
        self.submit(text, context)?.blocking_recv().unwrap_or_else(|_| Err(broken()))
    }

    fn submit(
        &self,
        text: Arc<str>,
        context: Arc<Context>,
    ) -> Result<oneshot::Receiver<Answer>, SqlError> {
        parse::check_text(&text, self.shared.limit)?;
        if self.shared.alive.load(Ordering::Relaxed) == 0 {
            return Err(broken());
        }
        let (answer, receiver) = oneshot::channel();
        self.jobs.send(Job { text, context, answer }).map_err(|_| broken())?;
        Ok(receiver)
    }
}

fn broken() -> SqlError {
    SqlError::Unsupported("its analysis failed inside; this is a defect, report the text".into())
}

fn spawn(shared: Arc<Shared>) {
    let own = shared.clone();
    shared.alive.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::Builder::new().name("sql".into()).stack_size(STACK);
    let spawned = thread.spawn(move || {
        serve(&own);
        own.alive.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        shared.alive.fetch_sub(1, Ordering::Relaxed);
        tracing::error!(%error, "cannot start a parsing thread; is address space limited?");
    }
}

/// Works until the analyzer is gone, or a panic asks for a fresh thread.
fn serve(shared: &Arc<Shared>) {
    loop {
        let job = shared.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { text, context, answer }) = job else { return };
        match caught(shared, &text, &context) {
            // A deep tree has touched much stack, which only the end of the thread gives back.
            Some(result @ Err(SqlError::TooDeep { .. })) => {
                spawn(shared.clone());
                drop(answer.send(result));
                return;
            }
            Some(result) => drop(answer.send(result)),
            None => {
                spawn(shared.clone());
                drop(answer.send(Err(broken())));
                return;
            }
        }
    }
}

/// [`work`], with nothing where it panicked.
fn caught(shared: &Shared, text: &Arc<str>, context: &Context) -> Option<Answer> {
    let result = catch_unwind(AssertUnwindSafe(|| work(shared, text, context)));
    if result.is_err() {
        tracing::error!("an analysis panicked; the text is refused");
    }
    result.ok()
}

fn work(shared: &Shared, text: &Arc<str>, context: &Context) -> Answer {
    let analysis = Arc::new(analyze_here(text, context)?);
    let template = if text.len() <= SHORT_TEXT { Template::of(text) } else { None };
    match template {
        Some(template) if template.carries(&analysis) => {
            let frame = Frame { analysis: Arc::clone(&analysis), numbers: template.numbers };
            shared.cache().frames.put(key(&template.frame, context), Arc::new(frame));
        }
        _ if text.len() <= CACHE_TEXT => {
            let weight = weight(text, &analysis);
            remember(shared, key(text.as_bytes(), context), &analysis, weight);
        }
        _ => {}
    }
    Ok(analysis)
}

/// Analyses on the calling thread, which must have the stack for it.
pub(super) fn analyze_here(text: &Arc<str>, context: &Context) -> Result<Analysis, SqlError> {
    let parsed = parse::parse(text)?;
    statement::analyze(text, &parsed, context)
}

/// A rough size of an analysis in memory.
fn weight(text: &str, analysis: &Analysis) -> usize {
    let parts: usize = analysis
        .statements
        .iter()
        .map(|s| {
            let l = &s.lineage;
            1024 + s.shape.len()
                + 64 * s.literals.len()
                + 200 * (l.uses.len() + l.problems.len() + l.relations.len())
                + 200 * l.outputs.as_ref().map_or(1, Vec::len)
                + 100 * (s.facts.columns_read.len() + s.facts.functions.len())
        })
        .sum();
    256 + 2 * text.len() + 2 * parts
}

fn remember(shared: &Shared, key: Key, analysis: &Arc<Analysis>, weight: usize) {
    let mut cache = shared.cache();
    cache.bytes += weight;
    if let Some((_, old)) = cache.entries.push(key, (analysis.clone(), weight)).map(|(_, v)| v) {
        cache.bytes -= old;
    }
    while cache.bytes > CACHE_BYTES {
        let Some((_, (_, old))) = cache.entries.pop_lru() else { break };
        cache.bytes -= old;
    }
}

fn key(text: &[u8], context: &Context) -> Key {
    let mut hash = Digest::new(&SHA256);
    hash.update(&context.epoch.to_le_bytes());
    hash.update(&[u8::from(context.catalog.is_some())]);
    for schema in &context.search_path {
        hash.update(&(schema.len() as u64).to_le_bytes());
        hash.update(schema.as_bytes());
    }
    hash.update(&u64::MAX.to_le_bytes());
    hash.update(text);
    let mut key = Key::default();
    key.copy_from_slice(hash.finish().as_ref());
    key
}
