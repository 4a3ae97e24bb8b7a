//! The threads that serve sessions.
//!
//! Each thread drives its own set of sessions from arrival to end and never hands one to
//! another: a request then costs no wake-up between threads, which on a busy host costs more
//! than judging it does. A new session goes to the thread that has the fewest. Work that takes
//! long (large statements, files, names) must be given to other threads, for it would hold up
//! the neighbours.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};

use crate::policy::sql;

/// The threads. They last as long as the process.
#[derive(Debug)]
pub struct Workers {
    /// Never empty.
    list: Vec<Worker>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Sessions on it now.
    busy: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `threads` of them, at least one.
    pub fn start(threads: usize) -> io::Result<Self> {
        let list = (0..threads.max(1)).map(start_one).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { list })
    }

    /// Returns when every thread has taken up something new; while one hangs it does not.
    pub async fn answer(&self) {
        for worker in &self.list {
            // A runtime that is gone answers with an error: only the end of the process does that.
            let _ = worker.runtime.spawn(async {}).await;
        }
    }

    /// Runs a session to its end on the thread that has the fewest.
    pub fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let Some(worker) = self.list.iter().min_by_key(|w| w.busy.load(Ordering::Relaxed)) else {
            return;
        };
        let place = Place::take(&worker.busy);
        // In a box: a future that is awaited by another takes its room twice.
        let session = Box::pin(session);
        worker.runtime.spawn(async move {
            session.await;
            drop(place);
        });
    }
}

fn start_one(number: usize) -> io::Result<Worker> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    sql::deep_thread(format!("sessions-{number}"))
        .spawn(move || sql::on_deep_stack(|| runtime.block_on(std::future::pending::<()>())))?;
    Ok(Worker { runtime: handle, busy: Arc::default() })
}

/// A session's place in its thread's count, given back even when the session panics.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(busy: &Arc<AtomicUsize>) -> Self {
        busy.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(busy))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn sessions_are_spread_and_their_places_given_back() {
        let workers = Workers::start(2).unwrap();
        let mut ends = Vec::new();
        let mut names = Vec::new();
        for _ in 0..4 {
            let (end, ended) = oneshot::channel::<()>();
            let (tell, told) = oneshot::channel();
            workers.spawn(async move {
                let _ = tell.send(std::thread::current().name().map(str::to_owned));
                let _ = ended.await;
            });
            names.push(told.await.unwrap().unwrap());
            ends.push(end);
        }
        names.sort();
        assert_eq!(names, ["sessions-0", "sessions-0", "sessions-1", "sessions-1"]);
        drop(ends);
        while workers.list.iter().any(|w| w.busy.load(Ordering::Relaxed) > 0) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_thread_that_hangs_does_not_answer() {
        let workers = Workers::start(1).unwrap();
        workers.answer().await;
        let (go, wait) = std::sync::mpsc::channel::<()>();
        workers.spawn(async move {
            let _ = wait.recv();
        });
        let patience = std::time::Duration::from_millis(50);
        tokio::time::timeout(patience, workers.answer()).await.unwrap_err();
        drop(go);
        workers.answer().await;
    }

    #[tokio::test]
    async fn a_panic_costs_one_session_only() {
        let workers = Workers::start(1).unwrap();
        workers.spawn(async { panic!("a defect in one session") });
        let (tell, told) = oneshot::channel();
        workers.spawn(async move {
            let _ = tell.send(7);
        });
        assert_eq!(told.await, Ok(7));
        while workers.list[0].busy.load(Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
