//! The threads that read commands.
//!
//! Parsing recurses and backtracks, so it happens where there is stack for it and where a
//! deadline can give up on it: a command that takes too long is refused, and its thread is
//! replaced until it comes back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::facts::SshFacts;
use super::shell;

/// Stack of a reading thread. Only what is touched takes memory.
const STACK: usize = 256 << 20;

/// Longest time a command may take to be read, its turn in the queue included.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most threads beyond the wanted that may be stuck at once; then commands are refused.
const MAX_STUCK: usize = 4;

/// The shell that will read a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginShell {
    /// sh, dash or bash.
    Posix,
    /// Another one, by name or path.
    Other(String),
}

impl LoginShell {
    /// The shell of that name or path.
    pub fn from_path(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("sh" | "dash" | "bash") => Self::Posix,
            _ => Self::Other(path.to_owned()),
        }
    }

    fn foreign(&self) -> Option<&str> {
        match self {
            Self::Posix => None,
            Self::Other(name) => Some(name),
        }
    }
}

struct Job {
    command: Arc<[u8]>,
    shell: LoginShell,
    answer: oneshot::Sender<SshFacts>,
}

struct Shared {
    jobs: Mutex<Receiver<Job>>,
    wanted: usize,
    /// Threads at work, the stuck ones included.
    alive: AtomicUsize,
}

/// Reads commands.
pub struct ShellAnalyzer {
    shared: Arc<Shared>,
    jobs: Sender<Job>,
}

impl std::fmt::Debug for ShellAnalyzer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShellAnalyzer").finish_non_exhaustive()
    }
}

impl ShellAnalyzer {
    /// Starts `threads` reading threads (at least one).
    pub fn new(threads: usize) -> Self {
        let (jobs, receiver) = channel();
        let wanted = threads.max(1);
        let shared =
            Arc::new(Shared { jobs: Mutex::new(receiver), wanted, alive: AtomicUsize::new(0) });
        for _ in 0..wanted {
            spawn(&shared);
        }
        Self { shared, jobs }
    }

    /// The facts of a command that this shell will read. Never fails: what cannot be read is
    /// said to be unseen.
    pub async fn exec(&self, command: Arc<[u8]>, shell: LoginShell) -> SshFacts {
        let receiver = self.submit(command.clone(), shell);
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(facts)) => facts,
            Ok(Err(_)) => broken(&command),
            Err(_) => self.late(&command),
        }
    }

    /// The same for callers outside a runtime; blocks.
    pub fn exec_blocking(&self, command: &[u8], shell: LoginShell) -> SshFacts {
        let receiver = self.submit(command.into(), shell);
        receiver.blocking_recv().unwrap_or_else(|_| broken(command))
    }

    fn submit(&self, command: Arc<[u8]>, shell: LoginShell) -> oneshot::Receiver<SshFacts> {
        let (answer, receiver) = oneshot::channel();
        // Without a thread to read it, the job is dropped, and with it the answer.
        if self.shared.alive.load(Ordering::Relaxed) > 0 {
            drop(self.jobs.send(Job { command, shell, answer }));
        }
        receiver
    }

    /// Gives up on a command, and makes up for the thread it may hold.
    fn late(&self, command: &[u8]) -> SshFacts {
        tracing::warn!(bytes = command.len(), "a command took too long to read; it is refused");
        if self.shared.alive.load(Ordering::Relaxed) < self.shared.wanted + MAX_STUCK {
            spawn(&self.shared);
        }
        shell::refused(shell::shown(command), "a command that takes so long to read")
    }
}

fn broken(command: &[u8]) -> SshFacts {
    shell::refused(shell::shown(command), "a command that no thread could read")
}

fn spawn(shared: &Arc<Shared>) {
    let own = shared.clone();
    shared.alive.fetch_add(1, Ordering::Relaxed);
    let thread = std::thread::Builder::new().name("shell".into()).stack_size(STACK);
    let spawned = thread.spawn(move || {
        serve(&own);
        own.alive.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = spawned {
        shared.alive.fetch_sub(1, Ordering::Relaxed);
        tracing::error!(%error, "cannot start a thread that reads commands");
    }
}

/// Works until the analyzer is gone, or there are threads enough without this one.
fn serve(shared: &Shared) {
    loop {
        let job = shared.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { command, shell, answer }) = job else { return };
        // Nobody waits any more.
        if answer.is_closed() {
            continue;
        }
        drop(answer.send(shell::analyze(&command, shell.foreign())));
        if shared.alive.load(Ordering::Relaxed) > shared.wanted {
            return;
        }
    }
}
