//! Passes events on to other systems as OCSF, from a durable cursor: a file, a syslog receiver, a
//! receiver of OTLP logs.
//!
//! Each forward runs for itself: it reads a batch from the hosts' replicas, delivers it, and only
//! then moves its cursors. So what is delivered twice, after a kill or a failure, has the same
//! `metadata.uid` twice, and nothing is left out. While a receiver is away, its batch waits in
//! memory and all else on disk.
//!
//! What this module must never do: move a cursor before its events were delivered, wait in one
//! forward for another, or say in a log what a secret is.

mod config;
mod cursor;
mod file;
mod line;
mod otlp;
mod read;
mod sink;
mod state;
mod syslog;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;

pub use config::{Begin, Forward, Otlp, Syslog, To, unique};
pub use cursor::{of as cursors, waiting};
pub use state::{Standing, States};

use super::error::CollectorError;
use super::{Change, Collector};
pub(super) use cursor::Cursor;
use read::{Batch, Source};
pub(super) use read::{SESSIONS, candidates};
use sink::{Failure, Sink};

/// Pause after a failure; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often is looked for events even when nobody says that there are some.
const LOOK: Duration = Duration::from_secs(15);
/// So long is waited for more events when some have come, so that they go together.
const GATHER: Duration = Duration::from_millis(200);

/// Runs all forwards, for as long as the collector runs; never returns.
pub async fn run(collector: Arc<Collector>) {
    let mut each = JoinSet::new();
    for forward in collector.config.forwards.clone() {
        each.spawn(again_and_again(Arc::clone(&collector), forward));
    }
    while each.join_next().await.is_some() {}
    std::future::pending().await
}

/// A mistake of ours in one forward ends neither it nor another.
async fn again_and_again(collector: Arc<Collector>, forward: Forward) {
    loop {
        let mut one = JoinSet::new();
        one.spawn(Run::new(&collector, forward.clone()).run());
        one.join_next().await;
        tracing::error!(forward = %forward.name, "it broke, and begins again at its cursor");
        collector.forwards.failed(&forward.name);
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
}

/// One forward.
struct Run {
    collector: Arc<Collector>,
    forward: Forward,
    sink: Sink,
    /// Absent while a thread reads with it.
    source: Option<Source>,
    /// The host that had its turn last.
    last: i64,
}

impl Run {
    fn new(collector: &Arc<Collector>, forward: Forward) -> Self {
        let source = Source::new(&collector.config.state, &forward);
        let sink = Sink::new(&forward);
        Self { collector: Arc::clone(collector), forward, sink, source: Some(source), last: 0 }
    }

    async fn run(mut self) {
        let mut changes = self.collector.hub.listen();
        let mut pause = FIRST_PAUSE;
        while !self.leads().await {
            tokio::time::sleep(LOOK).await;
        }
        while let Err(error) = self.begin().await {
            self.failed(&error.to_string(), pause);
            rest(&mut pause, None).await;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match self.round().await {
                Ok(more) => {
                    pause = FIRST_PAUSE;
                    if more {
                        continue;
                    }
                    let _ = tokio::time::timeout(LOOK, news(&mut changes)).await;
                    tokio::time::sleep(GATHER).await;
                }
                Err(error) => {
                    self.failed(&error.to_string(), pause);
                    rest(&mut pause, None).await;
                }
            }
        }
    }

    /// Whether this collector is the one that delivers.
    async fn leads(&self) -> bool {
        self.collector.leads(&format!("forward {}", self.forward.name)).await
    }

    fn failed(&self, why: &str, pause: Duration) {
        let forward = self.forward.name.as_str();
        tracing::warn!(forward, why, again_in = ?pause, "not forwarded");
        self.collector.forwards.failed(forward);
    }

    /// Runs on a thread what reads replicas.
    async fn reading<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&mut Source) -> T + Send + 'static,
    ) -> Result<T, CollectorError> {
        let mut source = self.source.take().ok_or(CollectorError::Stopped)?;
        let task = tokio::task::spawn_blocking(move || {
            let result = read(&mut source);
            (source, result)
        });
        match task.await {
            Ok((source, result)) => {
                self.source = Some(source);
                Ok(result)
            }
            Err(_) => {
                // It panicked: what it remembered is only a saving.
                self.source = Some(Source::new(&self.collector.config.state, &self.forward));
                Err(CollectorError::Stopped)
            }
        }
    }

    /// Decides once where a forward that is new begins.
    async fn begin(&mut self) -> Result<(), CollectorError> {
        let name = self.forward.name.clone();
        let read = move |db: &crate::collector::db::Connection| {
            let begun = cursor::is_begun(db, &name)?;
            Ok::<_, CollectorError>((begun, if begun { Vec::new() } else { cursor::hosts(db)? }))
        };
        let (begun, hosts) = self.collector.central.read(read).await?;
        if begun {
            return Ok(());
        }
        let mut cursors = Vec::new();
        if self.forward.from == Begin::End {
            for (host, fingerprint) in hosts {
                let find = move |db: &crate::collector::db::Connection| {
                    crate::collector::hosts::by_id(db, host)
                };
                if self.collector.feed.is_some()
                    && let Some(host) = self.collector.central.read(find).await?
                {
                    crate::collector::ingest::freshen(&self.collector, &host).await?;
                }
                let end = self.reading(move |source| source.end(&fingerprint)).await??;
                cursors.push((host, end));
            }
        }
        let (name, from) = (self.forward.name.clone(), self.forward.from);
        let write = move |db: &crate::collector::db::Connection| cursor::begin(db, &name, &cursors);
        self.collector.central.write::<_, CollectorError, _>(write).await?;
        tracing::info!(forward = %self.forward.name, ?from, "a new forward begins");
        Ok(())
    }

    /// Gives every host that has something its turn; whether there is more.
    async fn round(&mut self) -> Result<bool, CollectorError> {
        if !self.leads().await {
            return Ok(false);
        }
        let name = self.forward.name.clone();
        let behind = move |db: &crate::collector::db::Connection| cursor::behind(db, &name);
        let mut hosts = self.collector.central.read(behind).await?;
        // Beginning behind the one that had its turn last.
        let at = hosts.partition_point(|(host, _)| *host <= self.last);
        hosts.rotate_left(at);
        let (mut batch, mut more, mut unread) = (Batch::default(), false, None);
        for (host, fingerprint) in hosts {
            self.last = host;
            match self.fill(batch, host, fingerprint).await? {
                (filled, Ok(has_more)) => {
                    batch = filled;
                    more |= has_more;
                }
                // One host that cannot be read keeps no other waiting.
                (filled, Err(error)) => {
                    batch = filled;
                    unread = Some(error);
                }
            }
            if batch.is_full() {
                self.deliver(std::mem::take(&mut batch)).await;
            }
        }
        self.deliver(batch).await;
        match unread {
            Some(error) => Err(error),
            None => {
                self.collector.forwards.stands(&self.forward.name, more);
                Ok(more)
            }
        }
    }

    async fn fill(
        &mut self,
        mut batch: Batch,
        host: i64,
        fingerprint: String,
    ) -> Result<(Batch, Result<bool, CollectorError>), CollectorError> {
        let name = self.forward.name.clone();
        let load = move |db: &crate::collector::db::Connection| Cursor::load(db, &name, host);
        let cursor = match self.collector.central.read(load).await {
            Ok(cursor) => cursor,
            Err(error) => return Ok((batch, Err(error))),
        };
        self.collector.forwards.works(&self.forward.name);
        self.reading(move |source| {
            let before = batch.lines.len();
            let filled = source.fill(&mut batch, host, &fingerprint, cursor);
            if filled.is_err() {
                // Its cursor stays, so its events must not go.
                batch.lines.truncate(before);
                source.forget();
            }
            (batch, filled.map_err(CollectorError::from))
        })
        .await
    }

    /// Delivers a batch, however long it takes, and then moves the cursors.
    async fn deliver(&mut self, batch: Batch) {
        let mut rest_of = batch.lines.as_slice();
        let mut pause = FIRST_PAUSE;
        while !rest_of.is_empty() {
            // Another collector goes on from where the cursors are.
            if !self.leads().await {
                return;
            }
            match self.sink.send(rest_of).await {
                Ok(delivered) => {
                    self.collector.forwards.delivered(&self.forward.name, delivered);
                    rest_of = rest_of.get(delivered.lines..).unwrap_or_default();
                    pause = FIRST_PAUSE;
                }
                Err(Failure { why, wait }) => {
                    self.failed(&why, wait.unwrap_or(pause).max(FIRST_PAUSE));
                    rest(&mut pause, wait).await;
                }
            }
        }
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.move_on(&batch.cursors).await {
            self.failed(&error.to_string(), pause);
            rest(&mut pause, None).await;
        }
    }

    async fn move_on(&self, cursors: &[(i64, Cursor)]) -> Result<(), CollectorError> {
        if cursors.is_empty() {
            return Ok(());
        }
        let (name, cursors) = (self.forward.name.clone(), cursors.to_vec());
        self.collector
            .central
            .write(move |db| cursors.iter().try_for_each(|(host, c)| c.save(db, &name, *host)))
            .await
    }
}

/// Waits after a failure: longer each time, and at least as long as the receiver wants.
async fn rest(pause: &mut Duration, wanted: Option<Duration>) {
    tokio::time::sleep(wanted.unwrap_or(*pause).max(FIRST_PAUSE)).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

/// Waits until events may have come.
pub(super) async fn news(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Session(_)) | Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => return std::future::pending().await,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
