//! Finding sessions of all hosts.
//!
//! Who, where and when come from the central index. Words are looked up in the index of words
//! ([`search`]); a text that stands anywhere in a word is looked for in the replicas, in the newest
//! sessions first and for a limited time; the answer says how far it came, so that the next page
//! goes on from there.
//!
//! [`search`]: crate::collector::search

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::collector::db::{Connection, OptionalExtension, Row, params_from_iter};
use rusqlite::types::Value;
use tokio::sync::Semaphore;

use crate::collector::retention::legal_holds;
use crate::collector::{Collector, CollectorError, search};
use crate::record::reader::Hit;
use crate::record::{Reader, RecordError};

/// Most sessions of one page.
pub const PAGE: usize = 50;
/// Sessions of the index that are looked into at a time.
const PORTION: usize = 200;
/// How long one page looks into replicas.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Searches at a time; the next one waits.
static SEARCHES: Semaphore = Semaphore::const_new(2);

/// A row of the index.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Found {
    /// Host and number in one.
    pub id: i64,
    /// Id of the host at the collector.
    pub host: i64,
    /// Name of the host.
    pub host_name: String,
    /// Number of the session on its host.
    pub number: u64,
    /// ULID.
    pub session: String,
    /// Microseconds since the Unix epoch.
    pub opened_us: i64,
    /// Absent while it runs.
    pub closed_us: Option<i64>,
    /// Name of the service.
    pub service: String,
    /// `postgres` or `ssh`.
    pub protocol: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Address of the client.
    pub source: String,
    /// Registered agent.
    pub agent: Option<String>,
    /// On whose behalf.
    pub principal: Option<String>,
    /// A token proved it.
    pub proven: bool,
    /// Role at the service.
    pub role: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// Events that have come.
    pub events: u64,
    /// Requests.
    pub requests: u64,
    /// Of them held.
    pub held: u64,
    /// Of them denied.
    pub denied: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Values that were masked.
    pub masked: u64,
    /// Alerts.
    pub alerts: u64,
    /// Why it ended.
    pub reason: Option<String>,
    /// Index of its seal in the host's ledger.
    pub sealed: Option<i64>,
    /// Its leaf in the collector's log.
    pub leaf: Option<i64>,
    /// When retention deleted its contents; microseconds since the Unix epoch.
    pub deleted_us: Option<i64>,
    /// By which rule.
    pub deleted_policy: Option<String>,
    /// A legal hold keeps it.
    pub legal_hold: bool,
    /// Where a searched text stands.
    pub hit: Option<Hit>,
    /// The host's fingerprint: names its replica.
    #[serde(skip)]
    fingerprint: String,
}

static COLUMNS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "s.id, s.host, h.name, s.number, s.session, s.opened_us, s.closed_us, \
     s.service, s.protocol, s.mode, s.source, s.agent, s.principal, s.proven, s.role, \
     s.database, s.events, s.requests, s.held, s.denied, s.errors, s.masked, s.alerts, \
     s.reason, s.sealed, s.leaf, h.fingerprint, s.deleted_us, s.deleted_policy, \
     s.deleted_us IS NULL AND {}",
        legal_holds::held()
    )
});

impl Found {
    fn from_row(r: &Row<'_>) -> crate::collector::db::Result<Self> {
        let count = |i: usize| r.get::<_, i64>(i).map(|n| u64::try_from(n).unwrap_or(0));
        Ok(Self {
            id: r.get(0)?,
            host: r.get(1)?,
            host_name: r.get(2)?,
            number: count(3)?,
            session: r.get(4)?,
            opened_us: r.get(5)?,
            closed_us: r.get(6)?,
            service: r.get(7)?,
            protocol: r.get(8)?,
            mode: r.get(9)?,
            source: r.get(10)?,
            agent: r.get(11)?,
            principal: r.get(12)?,
            proven: r.get(13)?,
            role: r.get(14)?,
            database: r.get(15)?,
            events: count(16)?,
            requests: count(17)?,
            held: count(18)?,
            denied: count(19)?,
            errors: count(20)?,
            masked: count(21)?,
            alerts: count(22)?,
            reason: r.get(23)?,
            sealed: r.get(24)?,
            leaf: r.get(25)?,
            hit: None,
            fingerprint: r.get(26)?,
            deleted_us: r.get(27)?,
            deleted_policy: r.get(28)?,
            legal_hold: r.get(29)?,
        })
    }

    /// Whether it still runs, as far as the collector knows.
    pub fn live(&self) -> bool {
        self.closed_us.is_none() && self.sealed.is_none()
    }

    /// Opens the replica it is in, to read this session as it stands now: whole, or, where
    /// retention deleted it, not at all.
    pub fn reader(&self, collector: &Collector) -> Result<Reader, RecordError> {
        if let (Some(deleted_us), policy) = (self.deleted_us, &self.deleted_policy) {
            let policy = policy.clone().unwrap_or_default();
            return Err(RecordError::Deleted { deleted_us, policy });
        }
        let reader = self.replica(collector)?;
        reader.pin()?;
        match reader.tombstone(self.number)? {
            None => Ok(reader),
            Some(t) => Err(RecordError::Deleted { deleted_us: t.deleted_us, policy: t.policy }),
        }
    }

    fn replica(&self, collector: &Collector) -> Result<Reader, RecordError> {
        let reader = Reader::of_replica(&replica(collector, &self.fingerprint))?;
        Ok(reader.with_objects(collector.recordings.of(&self.fingerprint)))
    }
}

/// Where the replica of a host is. The fingerprint is our own, from the database.
fn replica(collector: &Collector, fingerprint: &str) -> PathBuf {
    let plain: String = fingerprint.chars().filter(char::is_ascii_alphanumeric).collect();
    collector.config.state.join("hosts").join(plain)
}

/// Where a page begins: behind this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    opened_us: i64,
    id: i64,
}

impl Cursor {
    /// Reads `opened.id`.
    pub fn read(text: &str) -> Option<Self> {
        let (opened, id) = text.split_once('.')?;
        Some(Self { opened_us: opened.parse().ok()?, id: id.parse().ok()? })
    }

    fn behind(found: &Found) -> Self {
        Self { opened_us: found.opened_us, id: found.id }
    }

    /// Behind all that opened at a time or later.
    pub fn before(opened_us: i64) -> Self {
        Self { opened_us, id: 0 }
    }

    /// Until where was searched.
    pub fn opened_us(self) -> i64 {
        self.opened_us
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.opened_us, self.id)
    }
}

/// Which sessions are wanted. Empty fields do not restrict.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Text in statements, commands, claims, messages.
    pub text: Option<String>,
    /// Look for the text anywhere, in words and in what stands between texts: in the replicas.
    pub anywhere: bool,
    /// Only these, by their number at the collector.
    pub ids: Option<Vec<i64>>,
    /// Registered agent.
    pub agent: Option<String>,
    /// Principal.
    pub principal: Option<String>,
    /// Service.
    pub service: Option<String>,
    /// Name of the host.
    pub host: Option<String>,
    /// Only those that run, or only those that ended.
    pub live: Option<bool>,
    /// Opened at or after.
    pub since_us: Option<i64>,
    /// Opened before.
    pub until_us: Option<i64>,
    /// Only with something held, denied or alarming.
    pub notable: bool,
    /// Where the page begins.
    pub before: Option<Cursor>,
    /// Most sessions.
    pub limit: usize,
}

/// A page of sessions.
#[derive(Debug, Default)]
pub struct Page {
    /// Newest first.
    pub sessions: Vec<Found>,
    /// Where the next page begins; none when there is none.
    pub next: Option<Cursor>,
    /// The search took too long to look at everything: the next page goes on.
    pub unfinished: bool,
    /// Events that the index of words does not have yet, when so many are missing that the
    /// replicas were read instead.
    pub behind: Option<u64>,
}

impl Wanted {
    fn sql(&self, limit: usize) -> (String, Vec<Value>) {
        let mut clause = String::from("TRUE");
        let mut values: Vec<Value> = Vec::new();
        for (column, value) in [
            ("s.agent =", &self.agent),
            ("s.principal =", &self.principal),
            ("s.service =", &self.service),
            ("h.name =", &self.host),
        ] {
            if let Some(value) = value {
                values.push(Value::Text(value.clone()));
                clause.push_str(&format!(" AND {column} ?{}", values.len()));
            }
        }
        for (column, value) in [("s.opened_us >=", self.since_us), ("s.opened_us <", self.until_us)]
        {
            if let Some(value) = value {
                values.push(Value::Integer(value));
                clause.push_str(&format!(" AND {column} ?{}", values.len()));
            }
        }
        match self.live {
            Some(true) => clause.push_str(" AND s.closed_us IS NULL AND s.sealed IS NULL"),
            Some(false) => {
                clause.push_str(" AND (s.closed_us IS NOT NULL OR s.sealed IS NOT NULL)")
            }
            None => {}
        }
        if self.notable {
            clause.push_str(" AND (s.held > 0 OR s.denied > 0 OR s.alerts > 0)");
        }
        if let Some(at) = self.before {
            values.push(Value::Integer(at.opened_us));
            values.push(Value::Integer(at.id));
            let n = values.len();
            clause.push_str(&format!(" AND (s.opened_us, s.id) < (?{}, ?{n})", n - 1));
        }
        // Those that are named first, whatever else restricts them.
        let (mut first, mut from) = (String::new(), "sessions");
        if let Some(ids) = &self.ids {
            first.push_str("WITH named AS MATERIALIZED (SELECT * FROM sessions WHERE id IN (");
            for (i, id) in ids.iter().enumerate() {
                // Numbers of ours; writing into a text does not fail.
                let _ = write!(first, "{}{id}", if i == 0 { "" } else { "," });
            }
            first.push_str(")) ");
            from = "named";
        }
        let sql = format!(
            "{first}SELECT {} FROM {from} s JOIN hosts h ON h.id = s.host WHERE {clause} \
             ORDER BY s.opened_us DESC, s.id DESC LIMIT {limit}",
            *COLUMNS
        );
        (sql, values)
    }

    fn index(&self, db: &Connection, limit: usize) -> Result<Vec<Found>, CollectorError> {
        let (sql, values) = self.sql(limit);
        db.prepare_cached(&sql)
            .and_then(|mut s| s.query_map(params_from_iter(values), Found::from_row)?.collect())
            .map_err(CollectorError::db("list sessions"))
    }

    /// A page.
    pub async fn page(self, collector: &Arc<Collector>) -> Result<Page, CollectorError> {
        let limit = self.limit.clamp(1, 500);
        match self.text.clone() {
            Some(text) => {
                let Ok(_place) = SEARCHES.acquire().await else {
                    return Err(CollectorError::Stopped);
                };
                let query = search::Query::read(&text).filter(|_| !self.anywhere);
                match query {
                    Some(query) => search::page(self, collector, query, limit).await,
                    None => {
                        let look = move |reader: &Reader, found: &Found| {
                            reader.first_hit(found.number, &text)
                        };
                        self.scan_all(collector, limit, look).await
                    }
                }
            }
            None => {
                let mut sessions = self.portion(collector, limit + 1).await?;
                let more = sessions.len() > limit;
                sessions.truncate(limit);
                let next = sessions.last().filter(|_| more).map(Cursor::behind);
                Ok(Page { sessions, next, ..Page::default() })
            }
        }
    }

    /// Rows of the index, newest first.
    pub async fn portion(
        &self,
        collector: &Arc<Collector>,
        limit: usize,
    ) -> Result<Vec<Found>, CollectorError> {
        let this = self.clone();
        collector.central.read(move |db| this.index(db, limit)).await
    }

    /// The central database is read in portions and let go between them; the replicas are read
    /// where it may block, a few searches at a time.
    pub async fn scan_all(
        mut self,
        collector: &Arc<Collector>,
        limit: usize,
        look: impl Fn(&Reader, &Found) -> Result<Option<Hit>, RecordError> + Clone + Send + 'static,
    ) -> Result<Page, CollectorError> {
        let until = Instant::now() + PATIENCE;
        let mut page = Page { next: self.before, ..Page::default() };
        loop {
            self.before = page.next;
            let portion = self.portion(collector, PORTION).await?;
            let last = portion.len() < PORTION;
            let full;
            (page, full) = scan(collector, page, portion, limit, until, look.clone()).await?;
            if full {
                page.unfinished = page.sessions.len() < limit;
                return Ok(page);
            }
            if last {
                page.next = None;
                return Ok(page);
            }
        }
    }
}

/// Looks into the replicas of some sessions, newest first. True when the page is full or its time
/// is over.
pub async fn scan(
    collector: &Arc<Collector>,
    mut page: Page,
    portion: Vec<Found>,
    limit: usize,
    until: Instant,
    look: impl Fn(&Reader, &Found) -> Result<Option<Hit>, RecordError> + Send + 'static,
) -> Result<(Page, bool), CollectorError> {
    let collector = Arc::clone(collector);
    let work = move || {
        let mut readers: HashMap<i64, Option<Reader>> = HashMap::new();
        for mut found in portion {
            if page.sessions.len() >= limit || Instant::now() > until {
                return Ok((page, true));
            }
            page.next = Some(Cursor::behind(&found));
            if found.deleted_us.is_some() {
                continue;
            }
            let reader =
                readers.entry(found.host).or_insert_with(|| found.replica(&collector).ok());
            let Some(reader) = reader else { continue };
            if let Some(hit) = look(reader, &found)? {
                found.hit = Some(hit);
                page.sessions.push(found);
            }
        }
        Ok((page, false))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CollectorError::Stopped))
}

/// One session by its ULID or its number at the collector.
pub fn one(db: &Connection, name: &str) -> Result<One, CollectorError> {
    let fail = CollectorError::db;
    if let Ok(id) = name.parse::<i64>() {
        let sql = format!(
            "SELECT {} FROM sessions s JOIN hosts h ON h.id = s.host WHERE s.id = ?1",
            *COLUMNS
        );
        let found = db
            .prepare_cached(&sql)
            .and_then(|mut s| s.query_row([id], Found::from_row).optional())
            .map_err(fail("find a session"))?;
        return Ok(found.map_or(One::None, |f| One::Found(Box::new(f))));
    }
    if name.len() != 26 || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(One::None);
    }
    let sql = format!(
        "SELECT {} FROM sessions s JOIN hosts h ON h.id = s.host \
         WHERE s.session = ?1 ORDER BY s.id LIMIT 2",
        *COLUMNS
    );
    let mut all: Vec<Found> = db
        .prepare_cached(&sql)
        .and_then(|mut s| s.query_map([name.to_ascii_uppercase()], Found::from_row)?.collect())
        .map_err(fail("find a session"))?;
    match (all.pop(), all.pop()) {
        (Some(found), None) => Ok(One::Found(Box::new(found))),
        (Some(b), Some(a)) => Ok(One::Several(a.id, b.id)),
        (None, _) => Ok(One::None),
    }
}

/// Why a name gives no session.
#[derive(Debug)]
pub enum Missing {
    /// There is none.
    None,
    /// Two hosts claim the same id; their numbers tell them apart.
    Several(i64, i64),
    /// It cannot be looked up.
    Store(CollectorError),
}

impl From<CollectorError> for Missing {
    fn from(e: CollectorError) -> Self {
        Self::Store(e)
    }
}

/// The session that somebody asks for by its ULID or its number at the collector.
pub async fn session(collector: &Collector, name: String) -> Result<Found, Missing> {
    match collector.central.read(move |db| one(db, &name)).await? {
        One::Found(found) => Ok(*found),
        One::None => Err(Missing::None),
        One::Several(a, b) => Err(Missing::Several(a, b)),
    }
}

/// What stands under a name.
#[derive(Debug)]
pub enum One {
    /// Nothing.
    None,
    /// One session.
    Found(Box<Found>),
    /// Two hosts claim the same id; their numbers tell them apart.
    Several(i64, i64),
}

/// What can be chosen from, most used first.
pub fn choices(db: &Connection) -> Result<Choices, CollectorError> {
    let list = |sql: &str| -> crate::collector::db::Result<Vec<String>> {
        db.prepare_cached(sql)?.query_map([], |r| r.get(0))?.collect()
    };
    // Loose index scans: each step jumps to the next value, however many sessions have it.
    let jump = |column: &str| {
        list(&format!(
            "WITH RECURSIVE v(x) AS (SELECT min({column}) FROM sessions UNION ALL \
             SELECT (SELECT min({column}) FROM sessions WHERE {column} > v.x) FROM v \
             WHERE v.x IS NOT NULL) SELECT x FROM v WHERE x IS NOT NULL LIMIT 200"
        ))
    };
    let read = || -> crate::collector::db::Result<Choices> {
        Ok(Choices {
            services: jump("service")?,
            agents: jump("agent")?,
            hosts: list("SELECT DISTINCT name FROM hosts ORDER BY name LIMIT 500")?,
        })
    };
    read().map_err(CollectorError::db("list services"))
}

/// What can be chosen from.
#[derive(Debug, Clone, Default)]
pub struct Choices {
    /// Names of services.
    pub services: Vec<String>,
    /// Names of agents.
    pub agents: Vec<String>,
    /// Names of hosts.
    pub hosts: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back() {
        let cursor = Cursor { opened_us: 17, id: (3 << 32) | 9 };
        assert_eq!(Cursor::read(&cursor.to_string()), Some(cursor));
        for bad in ["", "1", "a.b", "1.2.3", "1.", ".1"] {
            assert_eq!(Cursor::read(bad), None, "{bad}");
        }
    }
}
