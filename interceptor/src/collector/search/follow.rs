//! Following the replicas: what hosts shipped goes into the index, in bounded portions.
//!
//! Only what the replica has on its disk is read, one snapshot a portion. A session's newest
//! events may stay out until there are enough of them for a document: a search looks at them in
//! the replica.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::Index;
use super::store::{self, Document};
use super::words::Gathered;
use crate::collector::db;
use crate::collector::forward::{self, Cursor};
use crate::collector::index::session_id;
use crate::collector::replica::Replica;
use crate::collector::{Collector, CollectorError};
use crate::record::store::{each_body_until, open_read_only};
use crate::record::tombstones::is_buried;
use crate::record::{RecordError, Store};

/// Most events of a document: a search reads so many to see whether one of them fits.
const EVENTS: u64 = 256;
/// A document with so many bytes of words takes no further event.
const BYTES: usize = 256 << 10;
/// So many new events of a session that goes on make a document.
const ENOUGH: u64 = 32;
/// Most events and bytes of words of a portion.
const PORTION_EVENTS: u64 = 20_000;
const PORTION_BYTES: usize = 16 << 20;
/// How often is looked even when nobody says that there is something.
const LOOK: Duration = Duration::from_secs(15);
/// So long is waited for more events when some have come.
const GATHER: Duration = Duration::from_millis(500);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(30);
/// Longest rest behind a portion while hosts ship.
const REST: Duration = Duration::from_secs(1);

/// Follows the replicas for as long as the collector runs; never returns.
pub async fn run(collector: Arc<Collector>) {
    let mut changes = collector.hub.listen();
    loop {
        match round(&collector).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = tokio::time::timeout(LOOK, forward::news(&mut changes)).await;
                tokio::time::sleep(GATHER).await;
            }
            Err(error) => {
                tracing::error!(%error, again_in = ?PAUSE, "the search index does not go on");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Gives every host that has something a portion; whether there is more.
pub(super) async fn round(collector: &Arc<Collector>) -> Result<bool, CollectorError> {
    let hosts = collector.central.read(hosts).await?;
    let cursors =
        on_thread(collector, |index, _| index.write(|_, all| Ok((all.clone(), None)))).await??;
    let (mut more, mut failed) = (false, None);
    for (host, fingerprint, events) in hosts {
        if cursors.get(&host).map_or(0, Cursor::passed) == events {
            continue;
        }
        let (told, begun) = (collector.hub.told(), Instant::now());
        let work = move |index: &Index, collector: &Collector| {
            let dir = Replica::directory(&collector.config.state, &fingerprint);
            index.write(|db, cursors| {
                let portion = portion(db, &dir, host, cursors.get(&host))?;
                let more = portion.as_ref().is_some_and(|p| p.more);
                Ok((more, portion.map(|p| (host, p.cursor))))
            })
        };
        match on_thread(collector, work).await? {
            Ok(has_more) => more |= has_more,
            // One host that cannot be read keeps no other waiting.
            Err(error) => failed = Some(error),
        }
        // Acceptance comes first: half of the time is left to it.
        if collector.hub.told() != told {
            tokio::time::sleep(begun.elapsed().min(REST)).await;
        }
    }
    failed.map_or(Ok(more), Err)
}

/// Runs what blocks on a thread for it.
async fn on_thread<T: Send + 'static>(
    collector: &Arc<Collector>,
    work: impl FnOnce(&Index, &Collector) -> T + Send + 'static,
) -> Result<T, CollectorError> {
    let collector = Arc::clone(collector);
    tokio::task::spawn_blocking(move || work(&collector.search, &collector))
        .await
        .map_err(|_| CollectorError::Stopped)
}

/// All hosts: id, fingerprint and events.
pub(super) fn hosts(db: &db::Connection) -> Result<Vec<(i64, String, u64)>, CollectorError> {
    db.prepare_cached("SELECT id, fingerprint, events FROM hosts ORDER BY id")
        .and_then(|mut s| {
            s.query_map([], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get::<_, i64>(2)?.max(0).unsigned_abs()))
            })?
            .collect()
        })
        .map_err(CollectorError::db("list hosts"))
}

/// What was indexed.
struct Portion {
    cursor: Cursor,
    more: bool,
}

/// Indexes a portion of one host; nothing when nothing has come from it yet.
fn portion(
    db: &Connection,
    dir: &std::path::Path,
    host: i64,
    cursor: Option<&Cursor>,
) -> Result<Option<Portion>, CollectorError> {
    let index = CollectorError::sqlite;
    let replica = |e| CollectorError::from(RecordError::sqlite("read a replica to index it")(e));
    if !Store::path(dir).exists() {
        return Ok(None);
    }
    let records = open_read_only(dir)?;
    // One snapshot: what comes meanwhile is for the next portion.
    let records = records.unchecked_transaction().map_err(replica)?;
    let step = db.unchecked_transaction().map_err(index("begin to index"))?;
    let mut work = Work {
        host,
        replica: &records,
        cursor: cursor.cloned().unwrap_or_default(),
        documents: Vec::new(),
        events: 0,
        bytes: 0,
    };
    let all = forward::candidates(&records, &mut work.cursor).map_err(replica)?;
    let crowded = all.len() >= forward::SESSIONS;
    let least = if crowded { 1 } else { ENOUGH };
    let mut more = crowded;
    for one in all {
        if work.events >= PORTION_EVENTS || work.bytes >= PORTION_BYTES {
            more = true;
            break;
        }
        let at = work.cursor.events(one.number);
        if at < one.events && is_buried(&records, one.number).map_err(replica)? {
            work.cursor.advance(one.number, one.events);
        } else if at < one.events && (one.sealed || one.events - at >= least) {
            work.session(&step, one.number).map_err(replica)?;
        }
        let now = work.cursor.events(one.number);
        if now < one.events {
            more |= now > at;
        } else if one.sealed {
            work.cursor.finish(one.number, one.number);
        }
    }
    let Work { cursor, documents, .. } = work;
    let full = store::add(&step, documents).map_err(index("index events"))?;
    if full > 0 {
        tracing::error!(
            host,
            full,
            "more sessions opened within seconds than the search index has \
            room for: every search reads these in the replica"
        );
    }
    store::note(&step, host, &cursor)
        .and_then(|()| step.commit())
        .map_err(index("write the search index"))?;
    Ok(Some(Portion { cursor, more }))
}

/// A portion while it is put together.
struct Work<'a> {
    host: i64,
    replica: &'a Connection,
    cursor: Cursor,
    documents: Vec<Document>,
    events: u64,
    bytes: usize,
}

impl Work<'_> {
    /// Makes documents of what a session has behind the cursor, as far as the portion goes.
    fn session(&mut self, index: &Connection, number: u64) -> rusqlite::Result<()> {
        let session = session_id(self.host, number);
        let opened_us: i64 = self
            .replica
            .prepare_cached("SELECT opened_us FROM sessions WHERE number = ?1")?
            .query_row([session & i64::from(u32::MAX)], |r| r.get(0))
            .optional()?
            .unwrap_or(0);
        let before = self.cursor.events(number);
        let mut behind = before;
        if before > 0 && store::has_moved(index, session, opened_us)? {
            // Its host says another time now: all that is here of it goes there.
            store::remove(index, self.replica, session, number)?;
            behind = 0;
        }
        let (mut gathered, mut last) = (Gathered::default(), behind);
        let mut documents = Vec::new();
        let (mut events, mut bytes) = (self.events, self.bytes);
        each_body_until(self.replica, number, behind, |e| {
            gathered.event(e.body);
            last = e.seq;
            events += 1;
            if last - behind >= EVENTS || gathered.len() >= BYTES {
                bytes += gathered.len();
                let words = std::mem::take(&mut gathered).into_words();
                documents.push(Document { session, opened_us, span: (behind, last), words });
                behind = last;
            }
            last < before || events < PORTION_EVENTS && bytes < PORTION_BYTES
        })?;
        if last > behind {
            bytes += gathered.len();
            let words = gathered.into_words();
            documents.push(Document { session, opened_us, span: (behind, last), words });
        }
        (self.events, self.bytes) = (events, bytes);
        self.documents.append(&mut documents);
        if last > before {
            self.cursor.advance(number, last);
        }
        Ok(())
    }
}
