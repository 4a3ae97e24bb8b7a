//! A page of sessions in which a text stands, word by word.
//!
//! The index proposes sessions moment by moment, newest first; the central database says who,
//! where and when, and puts them in order; the replicas say whether the text is there and where.
//! Where the other fields leave few sessions, these are asked of the index instead. Sessions of
//! which the index lacks something are looked at as well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::store::{self, Cursors, Span};
use super::words::Query;
use super::{Index, follow};
use crate::collector::console::find::{self, Cursor, Found, PATIENCE, Page, Wanted};
use crate::collector::db;
use crate::collector::forward;
use crate::collector::index::session_id;
use crate::collector::{Collector, CollectorError};
use crate::record::reader::Hit;
use crate::record::store::MAX_SEQ;
use crate::record::{Reader, RecordError};

/// So few sessions of the other fields are asked of the index one by one.
const FEW: usize = 500;
/// Sessions that the index proposes at a time, first and at most.
const FIRST: usize = 100;
const MOST: usize = 2_000;
/// The stretch of time that the index looks at first; it grows while that is quick.
const STRETCH_US: i64 = 86_400_000_000;
/// What is quick.
const QUICK: Duration = Duration::from_millis(40);
/// Sessions of which the index lacks something; with more, it is behind and not asked.
const TAILS: usize = 2_000;
/// Open sessions that are looked at for that.
const LOOKED: usize = 20_000;

/// Events in which a text may stand, by session.
type Spans = BTreeMap<i64, Vec<Span>>;

/// A page of sessions in which a text stands.
pub async fn page(
    wanted: Wanted,
    collector: &Arc<Collector>,
    query: Query,
    limit: usize,
) -> Result<Page, CollectorError> {
    match tails(collector).await? {
        Some(tails) => match Walk::new(&wanted, collector, &query, limit, tails).page().await? {
            Some(page) => Ok(page),
            None => without(wanted, collector, query, limit).await,
        },
        None => without(wanted, collector, query, limit).await,
    }
}

/// The same from the replicas alone.
async fn without(
    wanted: Wanted,
    collector: &Arc<Collector>,
    query: Query,
    limit: usize,
) -> Result<Page, CollectorError> {
    let look =
        move |reader: &Reader, found: &Found| look(reader, found.number, &[(0, MAX_SEQ)], &query);
    let behind = super::behind(collector).await?;
    Ok(Page { behind: Some(behind), ..wanted.scan_all(collector, limit, look).await? })
}

fn look(
    reader: &Reader,
    number: u64,
    spans: &[Span],
    query: &Query,
) -> Result<Option<Hit>, RecordError> {
    for span in spans {
        let hit = reader.first_hit_of(number, *span, query.text(), |body| query.fits(body))?;
        if hit.is_some() {
            return Ok(hit);
        }
    }
    Ok(None)
}

/// What the index lacks, by session; nothing when that is too much, or there is no index.
async fn tails(collector: &Arc<Collector>) -> Result<Option<Spans>, CollectorError> {
    let Some(cursors) = collector.search.cursors() else { return Ok(None) };
    // How far it is was read first: what is indexed meanwhile is looked at twice.
    let lacking = collector.central.read(move |db| lacking(db, &cursors)).await?;
    let Some(mut tails) = lacking else { return Ok(None) };
    let read = |db: &Connection| store::unplaced(db, TAILS + 1);
    let Some(unplaced) = on_index(collector, read).await? else { return Ok(None) };
    if unplaced.len() > TAILS {
        return Ok(None);
    }
    for (session, span) in unplaced {
        tails.entry(session).or_default().push(span);
    }
    Ok(Some(tails))
}

fn lacking(db: &db::Connection, cursors: &Cursors) -> Result<Option<Spans>, CollectorError> {
    let none = forward::Cursor::default();
    let (mut tails, mut looked) = (Spans::new(), 0);
    for (host, _, events) in follow::hosts(db)? {
        let cursor = cursors.get(&host).unwrap_or(&none);
        if cursor.passed() == events {
            continue;
        }
        for (first, last) in cursor.rest() {
            let sessions = numbers(db, host, first, last, LOOKED - looked + 1)?;
            looked += sessions.len();
            for (number, events) in sessions {
                let at = cursor.events(number);
                if at < events {
                    tails.insert(session_id(host, number), vec![(at, MAX_SEQ)]);
                }
            }
            if looked > LOOKED || tails.len() > TAILS {
                return Ok(None);
            }
        }
    }
    Ok(Some(tails))
}

fn numbers(
    db: &db::Connection,
    host: i64,
    first: u64,
    last: u64,
    most: usize,
) -> Result<Vec<(u64, u64)>, CollectorError> {
    db.prepare_cached(
        "SELECT number, events FROM sessions WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3",
    )
    .and_then(|mut s| {
        let ids = db::params![session_id(host, first), session_id(host, last), most as i64];
        let count = |n: i64| n.max(0).unsigned_abs();
        s.query_map(ids, |r| Ok((count(r.get(0)?), count(r.get(1)?))))?.collect()
    })
    .map_err(CollectorError::db("look for what is not indexed"))
}

async fn on_index<T: Send + 'static>(
    collector: &Arc<Collector>,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<Option<T>, CollectorError> {
    let shared = Arc::clone(collector);
    let work = move || Index::read(&shared.search, read);
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CollectorError::Stopped))
}

/// A search on its way.
struct Walk<'a> {
    wanted: &'a Wanted,
    collector: &'a Arc<Collector>,
    query: &'a Query,
    limit: usize,
    until: Instant,
    tails: Spans,
    page: Page,
}

impl<'a> Walk<'a> {
    fn new(
        wanted: &'a Wanted,
        collector: &'a Arc<Collector>,
        query: &'a Query,
        limit: usize,
        tails: Spans,
    ) -> Self {
        let page = Page { next: wanted.before, ..Page::default() };
        let until = Instant::now() + PATIENCE;
        Self { wanted, collector, query, limit, until, tails, page }
    }

    /// The page; nothing when the index is gone meanwhile.
    async fn page(mut self) -> Result<Option<Page>, CollectorError> {
        if is_narrow(self.wanted) {
            let few = self.wanted.portion(self.collector, FEW + 1).await?;
            if few.len() <= FEW {
                return self.of_few(few).await;
            }
        }
        let mut tailed = self.of_tails().await?;
        let (mut most, mut below, mut stretch) = (FIRST, self.below(), STRETCH_US);
        loop {
            let (expression, since) = (self.query.expression(), self.since());
            let read = move |db: &Connection| {
                store::candidates(db, &expression, (since, below), stretch, most)
            };
            let begun = Instant::now();
            let Some(found) = on_index(self.collector, read).await? else { return Ok(None) };
            stretch = match begun.elapsed() < QUICK {
                true => stretch.saturating_mul(4),
                false => (stretch / 2).max(STRETCH_US / 1024),
            };
            let ids: Vec<i64> = found.sessions.keys().copied().collect();
            let mut rows = self.rows(ids).await?;
            // Those that the index lacks and that belong between these.
            let since = found.since_us.unwrap_or(i64::MIN);
            let split = tailed.partition_point(|row| row.opened_us >= since);
            let older = tailed.split_off(split);
            for row in std::mem::replace(&mut tailed, older) {
                if !found.sessions.contains_key(&row.id) {
                    rows.push(row);
                }
            }
            // One whose host says another time now is behind, and comes at that one.
            rows.retain(|row| row.opened_us >= since);
            rows.sort_by_key(|row| std::cmp::Reverse((row.opened_us, row.id)));
            if self.look(rows, found.sessions).await? {
                return Ok(Some(self.stopped()));
            }
            match found.since_us {
                None => return Ok(Some(self.ended())),
                Some(since) => {
                    below = since;
                    self.page.next = Some(Cursor::before(since));
                }
            }
            if Instant::now() > self.until {
                return Ok(Some(self.stopped()));
            }
            most = (most * 2).min(MOST);
        }
    }

    /// The last sessions that the other fields leave.
    async fn of_few(mut self, few: Vec<Found>) -> Result<Option<Page>, CollectorError> {
        let (expression, ids) = (self.query.expression(), few.iter().map(|f| f.id).collect());
        let ids: Vec<i64> = ids;
        let read = move |db: &Connection| store::among(db, &expression, &ids);
        let Some(found) = on_index(self.collector, read).await? else { return Ok(None) };
        let fits = |row: &Found| found.contains_key(&row.id) || self.tails.contains_key(&row.id);
        let rows = few.into_iter().filter(fits).collect();
        let full = self.look(rows, found).await?;
        Ok(Some(if full { self.stopped() } else { self.ended() }))
    }

    fn stopped(self) -> Page {
        let unfinished = self.page.sessions.len() < self.limit;
        Page { unfinished, ..self.page }
    }

    fn ended(self) -> Page {
        Page { next: None, ..self.page }
    }

    /// Looks into the replicas; true when the page is full or its time is over.
    async fn look(&mut self, rows: Vec<Found>, mut spans: Spans) -> Result<bool, CollectorError> {
        for row in &rows {
            if let Some(tail) = self.tails.get(&row.id) {
                spans.entry(row.id).or_default().extend(tail);
            }
        }
        spans.values_mut().for_each(|all| all.sort_unstable());
        let query = self.query.clone();
        let look = move |reader: &Reader, found: &Found| {
            let spans = spans.get(&found.id).map_or(&[][..], Vec::as_slice);
            look(reader, found.number, spans, &query)
        };
        let page = std::mem::take(&mut self.page);
        let full;
        (self.page, full) =
            find::scan(self.collector, page, rows, self.limit, self.until, look).await?;
        Ok(full)
    }

    /// Rows of sessions that are wanted otherwise as well.
    async fn rows(&self, ids: Vec<i64>) -> Result<Vec<Found>, CollectorError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let most = ids.len();
        let named = Wanted { ids: Some(ids), ..self.wanted.clone() };
        named.portion(self.collector, most).await
    }

    async fn of_tails(&self) -> Result<Vec<Found>, CollectorError> {
        self.rows(self.tails.keys().copied().collect()).await
    }

    /// All that is wanted opened before this time.
    fn below(&self) -> i64 {
        let page = self.wanted.before.map_or(i64::MAX, |at| at.opened_us().saturating_add(1));
        page.min(self.wanted.until_us.unwrap_or(i64::MAX))
    }

    fn since(&self) -> i64 {
        self.wanted.since_us.unwrap_or(i64::MIN)
    }
}

/// Whether other fields than the text may leave few sessions.
fn is_narrow(wanted: &Wanted) -> bool {
    wanted.agent.is_some()
        || wanted.principal.is_some()
        || wanted.service.is_some()
        || wanted.host.is_some()
        || wanted.live.is_some()
        || wanted.since_us.is_some()
        || wanted.until_us.is_some()
        || wanted.notable
}
