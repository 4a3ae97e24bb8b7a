//! Retention at the collector: which contents go when, what a legal hold keeps, and how a deletion
//! is carried out so that it is always recorded and never looks like tampering.
//!
//! Age counts from when the collector took the session's seal ([`log::store::append`]), by its own
//! clock: a host's times are the words of whoever owns the host. Only sealed sessions whose seal
//! stands in the log go, and only their events: the row, the seal, the ledger and the log stay, so
//! every proof holds afterwards.
//!
//! The order, each step on disk before the next:
//! 1. The chain is computed once more. What is not as it was sealed stays: it is evidence.
//! 2. One transaction of the central database asks the legal holds, marks the sessions and writes
//!    them into the audit trail. From here on nobody is shown their contents.
//! 3. The replica gets tombstones, and the search index forgets the words.
//! 4. Events go, in small transactions, and the replica is let go between them; then the objects of
//!    sessions whose attachments were moved. A store that is away is asked again with the next
//!    sweep.
//! 5. The central database notes that they are gone.
//!
//! Killed in between, the next sweep goes on at step 3 with whatever step 2 marked.
//!
//! What this module must never do: delete what step 2 did not record, delete an open session, or
//! delete past a legal hold.
//!
//! [`log::store::append`]: super::log::store::append

mod feeds;
pub mod legal_holds;
mod policy;
mod sweep;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::collector::db::{Connection, OptionalExtension};
use serde::Serialize;
use serde_json::{Value, json};

use super::audit::{self, Who};
use super::feed::Feed;
use super::{Collector, CollectorError};
use crate::record::now_us;

pub use policy::{Retention, Rule};
pub use sweep::{Group, Preview, preview, sweep};

/// How often is looked for what is old.
const EVERY: Duration = Duration::from_secs(3600);

/// Sweeps again and again; never returns.
pub async fn run(collector: Arc<Collector>) {
    let policy = collector.config.retention.clone();
    let note = move |db: &Connection| note_policy(db, &policy);
    if let Err(error) = collector.central.write(note).await {
        tracing::error!(%error, "the retention policy cannot be written down: nothing is deleted");
        return std::future::pending().await;
    }
    // A shared database says itself what is deleted, and replicas follow it.
    if collector.feed.is_none()
        && let Err(error) = sweep::find_restored(&collector).await
    {
        tracing::error!(%error, "whether deleted sessions came back cannot be told");
    }
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if !collector.leads("retention").await {
            continue;
        }
        match sweep(&collector, now_us()).await {
            Ok(swept) if swept.sessions > 0 || swept.altered > 0 => {
                let sweep::Swept { sessions, events, bytes, altered } = swept;
                tracing::info!(sessions, events, bytes, altered, "retention");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "retention failed: it goes on at the next sweep"),
        }
    }
}

/// A policy that differs from the one before goes into the audit trail, before it deletes anything.
fn note_policy(db: &Connection, policy: &Retention) -> Result<(), CollectorError> {
    let sql = CollectorError::db;
    let now = serde_json::to_string(policy).unwrap_or_default();
    let before: String = db
        .query_row("SELECT policy FROM retention", [], |r| r.get(0))
        .map_err(sql("read the retention policy"))?;
    if before == now || (before.is_empty() && *policy == Retention::default()) {
        return Ok(());
    }
    db.execute("UPDATE retention SET policy = ?1", [&now])
        .map_err(sql("note the retention policy"))?;
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let detail = json!({ "before": read(&before), "now": read(&now) });
    let who = Who::Collector;
    let entry =
        audit::Entry { who: &who, what: "retention.policy", target: "retention", detail: &detail };
    audit::append(db, &entry)
}

/// What retention did, and what stands.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Standing {
    /// Sessions whose contents were deleted.
    pub sessions: i64,
    /// Events of them.
    pub events: i64,
    /// Bytes of these events; what was deleted just before a crash may be missing.
    pub bytes: i64,
    /// Sessions that are marked and whose events are not all gone yet.
    pub pending: i64,
    /// Sessions that are old enough and stay because they are not as they were sealed.
    pub altered: i64,
    /// When the last sweep ended; microseconds since the Unix epoch.
    pub swept_us: Option<i64>,
    /// When the oldest seal was taken whose session is kept.
    pub oldest_us: Option<i64>,
    /// Legal holds that stand.
    pub legal_holds: i64,
}

/// What retention did, and what stands.
pub fn standing(db: &Connection) -> Result<Standing, CollectorError> {
    let read = || -> crate::collector::db::Result<Standing> {
        let mut all = db.query_row(
            "SELECT sessions, events, bytes, kept, swept_us, (SELECT count(*) FROM sessions \
             WHERE deleted_us IS NOT NULL AND purged_us IS NULL), (SELECT accepted_us FROM leaves \
             WHERE idx = (SELECT min(leaf) FROM sessions WHERE deleted_us IS NULL \
             AND leaf IS NOT NULL)) FROM retention",
            [],
            |r| {
                Ok(Standing {
                    sessions: r.get(0)?,
                    events: r.get(1)?,
                    bytes: r.get(2)?,
                    altered: r.get(3)?,
                    swept_us: r.get(4)?,
                    pending: r.get(5)?,
                    oldest_us: r.get(6)?,
                    legal_holds: 0,
                })
            },
        )?;
        all.legal_holds = legal_holds::standing(db)?;
        Ok(all)
    };
    read().map_err(CollectorError::db("read what retention did"))
}

/// How many sessions are marked as deleted, or what of it the audit trail does not say. Where
/// collectors share a database, also what the replicas here did not follow yet.
pub fn check(
    db: &Connection,
    state: &std::path::Path,
    feed: Option<&Feed>,
) -> Result<Result<u64, String>, CollectorError> {
    let there = sweep::check(db, state)?;
    match (feed, there) {
        (Some(feed), Ok(count)) => Ok(feeds::check(db, feed)?.map(|()| count)),
        (_, there) => Ok(there),
    }
}

/// When the contents of a host's session were deleted.
pub fn deleted_us(db: &Connection, host: i64, number: u64) -> Result<Option<i64>, CollectorError> {
    db.prepare_cached("SELECT deleted_us FROM sessions WHERE id = ?1")
        .and_then(|mut s| {
            s.query_row([super::index::session_id(host, number)], |r| r.get(0)).optional()
        })
        .map(Option::flatten)
        .map_err(CollectorError::db("read a deletion"))
}
