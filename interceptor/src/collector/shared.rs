//! What collectors of one database tell each other: hints by `NOTIFY`, and the exact text of what
//! waits, sealed.
//!
//! A hint may be lost; everything that it speaks of stands in tables, and is looked for every now
//! and then without one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

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
        if db.as_ref().is_none_or(Connection::is_closed) {
            db = connect(server);
        }
        let Some(db) = &db else { continue };
        for change in group {
            let hint = Hint { from: from.to_owned(), change };
            let Ok(text) = serde_json::to_string(&hint) else { continue };
            let told = db
                .prepare_cached("SELECT 1 FROM (SELECT pg_notify(?1, ?2)) AS told")
                .and_then(|mut s| s.exists([CHANNEL, &text]));
            if let Err(error) = told {
                tracing::warn!(%error, "other collectors are not told of a change");
                break;
            }
        }
    }
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
                Ok(None) => {
                    let _ = heard.blocking_send(None);
                }
                Err(error) => {
                    tracing::warn!(%error, "nothing is heard of other collectors");
                    break;
                }
            }
        }
    }
}

/// Does what hints ask for: what they speak of is here before anybody who waits hears of it.
async fn act(collector: Arc<Collector>, mut hints: mpsc::Receiver<Option<Change>>) {
    let mut seen: HashMap<i64, Mark> = HashMap::new();
    while let Some(first) = hints.recv().await {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(next) = hints.try_recv()
        {
            group.push(next);
        }
        let looks = group.contains(&None);
        let changes: Vec<Change> = group.into_iter().flatten().collect();
        if looks || changes.iter().any(|c| matches!(c, Change::Hold(_))) {
            if let Err(error) = bring_exacts(&collector).await {
                tracing::warn!(%error, "what waits at other collectors is not known");
            }
        }
        let mut behind: BTreeSet<i64> = changes
            .iter()
            .filter_map(|c| match c {
                Change::Session(id) => Some(id >> 32),
                _ => None,
            })
            .collect();
        if looks {
            behind.extend(lagging(&collector, &mut seen).await);
            collector.bells.ring_all();
        }
        for host in behind {
            bring_host(&collector, host).await;
        }
        for change in changes {
            match &change {
                Change::Order(host) => collector.bells.ring(*host),
                Change::Policies => collector.bells.ring_all(),
                _ => {}
            }
            collector.hub.hear(change);
        }
    }
}

/// Hosts whose feed went on since it was looked at last.
async fn lagging(collector: &Arc<Collector>, seen: &mut HashMap<i64, Mark>) -> Vec<i64> {
    let this = Arc::clone(collector);
    let ends = tokio::task::spawn_blocking(move || match &this.feed {
        Some(feed) => feed.ends(),
        None => Ok(Vec::new()),
    })
    .await;
    match ends.unwrap_or(Err(CollectorError::Stopped)) {
        Ok(ends) => ends
            .into_iter()
            .filter(|(host, end)| seen.insert(*host, *end) != Some(*end))
            .map(|(host, _)| host)
            .collect(),
        Err(error) => {
            tracing::warn!(%error, "the feeds of hosts cannot be read");
            Vec::new()
        }
    }
}

async fn bring_host(collector: &Arc<Collector>, id: i64) {
    let host = match collector.central.read(move |db| hosts::by_id(db, id)).await {
        Ok(Some(host)) => host,
        Ok(None) => return,
        Err(error) => return tracing::warn!(%error, "a host cannot be looked up"),
    };
    if let Err(error) = ingest::freshen(collector, &host).await {
        tracing::warn!(%error, host = %host.name, "its replica lags");
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

/// Brings the exact texts here that other collectors got, and lets go of what has ended.
async fn bring_exacts(collector: &Arc<Collector>) -> Result<(), CollectorError> {
    let here = collector.held.marks();
    type New = Vec<(String, i64, String, Vec<u8>)>;
    let (instance, gone, new) = collector
        .central
        .read(move |db| {
            let read = || -> db::Result<(Option<String>, Vec<String>, New)> {
                let instance = db
                    .prepare_cached("SELECT instance FROM exacts_instance")?
                    .query_row([], |r| r.get(0))
                    .optional()?;
                let there: HashMap<String, i64> = db
                    .prepare_cached("SELECT id, mark FROM exacts")?
                    .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
                    .collect::<db::Result<_>>()?;
                let gone = here.keys().filter(|id| !there.contains_key(*id)).cloned().collect();
                let mut new = Vec::new();
                for (id, _) in there.iter().filter(|(id, mark)| here.get(*id) != Some(*mark)) {
                    let row = db
                        .prepare_cached("SELECT id, mark, boot, sealed FROM exacts WHERE id = ?1")?
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
    for id in gone {
        collector.held.wipe_unless_new(&id);
    }
    for (id, mark, boot, sealed) in new {
        let raise = collector
            .keys
            .open_sealed(id.as_bytes(), &sealed)
            .and_then(|text| serde_json::from_slice::<Raise>(&text).ok());
        match raise {
            Some(raise) => {
                if let Err(error) = collector.held.put(&id, raise, &boot, mark) {
                    tracing::warn!(%error, id, "what waits elsewhere cannot be shown here");
                }
            }
            None => tracing::error!(id, "what waits elsewhere was not sealed by this collector"),
        }
    }
    Ok(())
}

/// The exact texts of before were lost, or there were none yet.
fn begin_instance(db: &Connection) -> Result<String, CollectorError> {
    let new = ulid::Ulid::new().to_string();
    db.prepare_cached("INSERT INTO exacts_instance VALUES (1, ?1) ON CONFLICT DO NOTHING")
        .and_then(|mut s| s.execute([&new]))
        .and_then(|_| db.query_row("SELECT instance FROM exacts_instance", [], |r| r.get(0)))
        .map_err(CollectorError::db("begin to share what waits"))
}
