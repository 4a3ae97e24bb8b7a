//! What collectors of one database tell each other: hints by `NOTIFY`, and the exact text of what
//! waits, sealed.
//!
//! A hint may be lost; everything that it speaks of stands in tables, and is looked for every now
//! and then without one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::db::{self, Connection, OptionalExtension, params};
use super::error::CollectorError;
use super::feed::Mark;
use super::store::Server;
use super::{Change, Collector, hosts, ingest};
use crate::ship::wire::Raise;

/// The channel of `NOTIFY`.
const CHANNEL: &str = "interceptor";
/// Hints that may wait to be told; more are left out.
const BACKLOG: usize = 4096;
/// Hints that are told at a time.
const GROUP: usize = 500;
/// How often is looked without a hint.
const LOOK: Duration = Duration::from_secs(1);
/// Replicas that follow their feeds at a time.
static FOLLOWING: Semaphore = Semaphore::const_new(4);
/// Before a connection is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// A hint on its way.
#[derive(Debug, Serialize, Deserialize)]
struct Hint {
    /// Who tells it.
    from: String,
    change: Change,
}

/// Tells and hears as long as the collector runs; for ever silent where the database is its own.
pub async fn run(collector: Arc<Collector>) {
    if collector.feed.is_none() {
        return std::future::pending().await;
    }
    let (heard, hints) = mpsc::channel(BACKLOG);
    let own = collector.hub.outlet(BACKLOG);
    // The threads end with the collector, so they must not keep it.
    let Some(server) = collector.central.server().cloned() else { return };
    let from = collector.leases.holder().to_owned();
    thread("notify", {
        let (server, from) = (server.clone(), from.clone());
        move || tell_all(&server, &from, own)
    });
    thread("listen", move || listen_all(&server, &from, &heard));
    act(collector, hints).await;
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(work) {
        tracing::error!(%error, "other collectors are told nothing: they look for themselves");
    }
}

fn connect(server: &Server) -> Option<Connection> {
    match db::connect(server) {
        Ok(db) => Some(db),
        Err(error) => {
            tracing::warn!(%error, "the database of [store] cannot be reached");
            std::thread::sleep(PAUSE);
            None
        }
    }
}

/// Until the hub is gone.
fn tell_all(server: &Server, from: &str, mut own: mpsc::Receiver<Change>) {
    let mut db = None;
    while let Some(first) = own.blocking_recv() {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = own.try_recv()
        {
            if !group.contains(&next) {
                group.push(next);
            }
        }
        for change in group {
            let hint = Hint { from: from.to_owned(), change };
            let Ok(text) = serde_json::to_string(&hint) else { continue };
            if !tell(server, &mut db, &text) {
                break;
            }
        }
    }
}

/// Whether it is told. On a new connection when the server has ended the old one, which shows only
/// now.
fn tell(server: &Server, open: &mut Option<Connection>, hint: &str) -> bool {
    for _ in 0..2 {
        if open.is_none() {
            *open = connect(server);
        }
        let Some(db) = open else { return false };
        let told = db
            .prepare_cached("SELECT 1 FROM (SELECT pg_notify(?1, ?2)) AS told")
            .and_then(|mut s| s.exists([CHANNEL, hint]));
        let Err(error) = told else { return true };
        if !db.is_closed() {
            tracing::warn!(%error, "other collectors are not told of a change");
            return false;
        }
        *open = None;
    }
    false
}

/// Until nobody hears it.
fn listen_all(server: &Server, own: &str, heard: &mpsc::Sender<Option<Change>>) {
    while !heard.is_closed() {
        let Some(db) = connect(server) else { continue };
        if db.execute_batch(&format!("LISTEN {CHANNEL}")).is_err() {
            continue;
        }
        // Whatever was told before is looked for.
        let _ = heard.blocking_send(None);
        let Connection::Postgres(open) = &db else { return };
        while !heard.is_closed() && !db.is_closed() {
            match open.notified(LOOK) {
                Ok(Some(text)) => match serde_json::from_str::<Hint>(&text) {
                    Ok(hint) if hint.from != own => {
                        let _ = heard.blocking_send(Some(hint.change));
                    }
                    _ => {}
                },
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "nothing is heard of other collectors");
                    break;
                }
            }
        }
    }
}

/// Does what hints ask for, and looks for itself every now and then.
async fn act(collector: Arc<Collector>, mut hints: mpsc::Receiver<Option<Change>>) {
    let mut followed = Followed::default();
    let mut rung = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut group = Vec::new();
        tokio::select! {
            first = hints.recv() => match first {
                Some(first) => group.push(first),
                None => return,
            },
            _ = tick.tick() => group.push(None),
            Some((host, end)) = followed.next() => {
                for change in followed.done(&collector, host, end) {
                    collector.hub.hear(change);
                }
                continue;
            }
        }
        while group.len() < GROUP
            && let Ok(next) = hints.try_recv()
        {
            group.push(next);
        }
        let looks = group.contains(&None);
        let changes: Vec<Change> = group.into_iter().flatten().collect();
        if looks || changes.iter().any(|c| matches!(c, Change::Hold(_))) {
            match bring_exacts(&collector).await {
                // Also those whose hint was lost.
                Ok(changed) => changed.into_iter().for_each(|c| collector.hub.hear(c)),
                Err(error) => {
                    tracing::warn!(%error, "what waits at other collectors is not known");
                }
            }
        }
        if looks {
            ring(&collector, &mut rung).await;
            for (host, end) in ends(&collector).await {
                followed.lags(&collector, host, end);
            }
        }
        for change in changes {
            match &change {
                // Whoever looks at the session finds it here.
                Change::Session(id) => {
                    followed.hears(&collector, id >> 32, change);
                    continue;
                }
                Change::Order(host) => collector.bells.ring(*host),
                Change::Policies => collector.bells.ring_all(),
                _ => {}
            }
            collector.hub.hear(change);
        }
    }
}

/// Hosts whose replicas are brought up to their feeds, a few at a time.
#[derive(Default)]
struct Followed {
    tasks: JoinSet<Option<Mark>>,
    /// Which host each of them is about.
    hosts: HashMap<tokio::task::Id, i64>,
    /// What is told when a host's replica is there; those that are under way are in it.
    waiting: HashMap<i64, Vec<Change>>,
    /// What came while a host was under way.
    again: HashMap<i64, Vec<Change>>,
    /// How far replicas are.
    seen: HashMap<i64, Mark>,
}

impl Followed {
    async fn next(&mut self) -> Option<(i64, Option<Mark>)> {
        let (task, end) = match self.tasks.join_next_with_id().await {
            Some(Ok((task, end))) => (task, end),
            Some(Err(panicked)) => (panicked.id(), None),
            None => std::future::pending().await,
        };
        self.hosts.remove(&task).map(|host| (host, end))
    }

    /// A feed ends there.
    fn lags(&mut self, collector: &Arc<Collector>, host: i64, end: Mark) {
        if self.seen.get(&host) != Some(&end) {
            self.begin(collector, host, Some(end));
        }
    }

    fn hears(&mut self, collector: &Arc<Collector>, host: i64, change: Change) {
        // One that is under way may have looked before this came.
        let under_way = self.waiting.contains_key(&host);
        self.begin(collector, host, None);
        let told = if under_way { &mut self.again } else { &mut self.waiting };
        let told = told.entry(host).or_default();
        if told.len() < GROUP && !told.contains(&change) {
            told.push(change);
        }
    }

    fn begin(&mut self, collector: &Arc<Collector>, host: i64, end: Option<Mark>) {
        if self.waiting.contains_key(&host) {
            return;
        }
        self.waiting.insert(host, Vec::new());
        let collector = Arc::clone(collector);
        let task = self.tasks.spawn(async move {
            let Ok(_place) = FOLLOWING.acquire().await else { return None };
            bring_host(&collector, host, end).await
        });
        self.hosts.insert(task.id(), host);
    }

    /// What may be told now. What came meanwhile begins anew.
    fn done(&mut self, collector: &Arc<Collector>, host: i64, end: Option<Mark>) -> Vec<Change> {
        if let Some(end) = end {
            self.seen.insert(host, end);
        }
        let told = self.waiting.remove(&host).unwrap_or_default();
        for change in self.again.remove(&host).unwrap_or_default() {
            self.hears(collector, host, change);
        }
        told
    }
}

/// Rings hosts for which there is a newer order than they were rung for.
async fn ring(collector: &Arc<Collector>, rung: &mut HashMap<i64, i64>) {
    let newest = |db: &Connection| {
        db.prepare_cached("SELECT host, max(seq) FROM orders WHERE done_us IS NULL GROUP BY host")
            .and_then(|mut s| s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
            .map_err(CollectorError::db("look for orders"))
    };
    let newest: Result<Vec<(i64, i64)>, CollectorError> = collector.central.read(newest).await;
    match newest {
        Ok(newest) => {
            for (host, seq) in newest {
                if rung.insert(host, seq) != Some(seq) {
                    collector.bells.ring(host);
                }
            }
        }
        Err(error) => tracing::warn!(%error, "orders of other collectors are not known"),
    }
}

/// Where every host's feed ends.
async fn ends(collector: &Arc<Collector>) -> Vec<(i64, Mark)> {
    let this = Arc::clone(collector);
    let ends = tokio::task::spawn_blocking(move || match &this.feed {
        Some(feed) => feed.ends(),
        None => Ok(Vec::new()),
    })
    .await;
    ends.unwrap_or(Err(CollectorError::Stopped)).unwrap_or_else(|error| {
        tracing::warn!(%error, "the feeds of hosts cannot be read");
        Vec::new()
    })
}

/// Brings a replica up to its feed; the given end, when it is surely there.
async fn bring_host(collector: &Arc<Collector>, id: i64, end: Option<Mark>) -> Option<Mark> {
    let host = match collector.central.read(move |db| hosts::by_id(db, id)).await {
        Ok(host) => host?,
        Err(error) => {
            tracing::warn!(%error, "a host cannot be looked up");
            return None;
        }
    };
    match ingest::freshen(collector, &host).await {
        Ok(()) => end,
        Err(error) => {
            tracing::warn!(%error, host = %host.name, "its replica lags");
            None
        }
    }
}

// ---- exact texts of what waits -----------------------------------------------------------------

/// Puts the exact text of a hold where other collectors find it, inside the caller's transaction.
pub fn put_exact(
    db: &Connection,
    collector: &Collector,
    (id, mark): (&str, i64),
    boot: &str,
    raise: &Raise,
) -> Result<(), CollectorError> {
    if collector.feed.is_none() {
        return Ok(());
    }
    let text = zeroize::Zeroizing::new(
        serde_json::to_vec(raise).map_err(|e| CollectorError::Key(e.to_string()))?,
    );
    let sealed = collector.keys.seal(id.as_bytes(), &text)?;
    db.prepare_cached(
        "INSERT INTO exacts (id, mark, boot, sealed) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (id) DO UPDATE SET mark = ?2, boot = ?3, sealed = ?4",
    )
    .and_then(|mut s| s.execute(params![id, mark, boot, sealed]))
    .map(drop)
    .map_err(CollectorError::db("pass on what waits"))
}

/// Wipes the exact text of a hold that ended, inside the caller's transaction.
pub fn wipe_exact(db: &Connection, id: &str) -> Result<(), CollectorError> {
    match db {
        Connection::Sqlite(_) => Ok(()),
        Connection::Postgres(_) => db
            .execute("DELETE FROM exacts WHERE id = ?1", [id])
            .map(drop)
            .map_err(CollectorError::db("wipe what waited")),
    }
}

/// Brings the exact texts here that other collectors got, and lets go of what has ended. The holds
/// that changed by it.
async fn bring_exacts(collector: &Arc<Collector>) -> Result<Vec<Change>, CollectorError> {
    let here = collector.held.marks();
    /// Id, mark, life of the host, sealed text.
    type New = Vec<(String, i64, String, Vec<u8>)>;
    /// Life of the texts; those that are gone, and whether they ended; new ones.
    type There = (Option<String>, Vec<(String, bool)>, New);
    let (instance, gone, new) = collector
        .central
        .read(move |db| {
            let read = || -> db::Result<There> {
                let instance = db
                    .prepare_cached("SELECT instance FROM exacts_instance")?
                    .query_row([], |r| r.get(0))
                    .optional()?;
                let there: HashMap<String, i64> = db
                    .prepare_cached("SELECT id, mark FROM exacts")?
                    .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
                    .collect::<db::Result<_>>()?;
                let mut gone = Vec::new();
                for id in here.keys().filter(|id| !there.contains_key(*id)) {
                    let state: Option<String> = db
                        .prepare_cached("SELECT state FROM holds WHERE id = ?1")?
                        .query_row([id], |r| r.get(0))
                        .optional()?;
                    gone.push((id.clone(), state.is_some_and(|state| state != "waiting")));
                }
                let mut new = Vec::new();
                for (id, _) in there.iter().filter(|(id, mark)| here.get(*id) != Some(*mark)) {
                    let row = db
                        .prepare_cached(
                            "SELECT e.id, e.mark, e.boot, e.sealed FROM exacts e \
                             JOIN holds h ON h.id = e.id WHERE e.id = ?1 AND h.state = 'waiting'",
                        )?
                        .query_row([id], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
                        .optional()?;
                    new.extend(row);
                }
                Ok((instance, gone, new))
            };
            read().map_err(CollectorError::db("look for what waits elsewhere"))
        })
        .await?;
    let instance = match instance {
        Some(instance) => instance,
        None => collector.central.write(begin_instance).await?,
    };
    collector.held.set_instance(instance);
    let mut changed = Vec::new();
    for (id, ended) in gone {
        if ended {
            collector.held.wipe(&id);
            changed.push(Change::Hold(id));
        } else {
            collector.held.wipe_unless_new(&id);
        }
    }
    for (id, mark, boot, sealed) in new {
        let raise = collector
            .keys
            .open_sealed(id.as_bytes(), &sealed)
            .and_then(|text| serde_json::from_slice::<Raise>(&text).ok());
        match raise {
            Some(raise) => match collector.held.put(&id, raise, &boot, mark) {
                Ok(_) => changed.push(Change::Hold(id)),
                Err(error) => {
                    tracing::warn!(%error, id, "what waits elsewhere cannot be shown here");
                }
            },
            None => tracing::error!(id, "what waits elsewhere was not sealed by this collector"),
        }
    }
    Ok(changed)
}

/// The exact texts of before were lost, or there were none yet.
fn begin_instance(db: &Connection) -> Result<String, CollectorError> {
    let new = ulid::Ulid::new().to_string();
    db.prepare_cached("INSERT INTO exacts_instance VALUES (1, ?1) ON CONFLICT DO NOTHING")
        .and_then(|mut s| s.execute([&new]))
        .and_then(|_| db.query_row("SELECT instance FROM exacts_instance", [], |r| r.get(0)))
        .map_err(CollectorError::db("begin to share what waits"))
}
