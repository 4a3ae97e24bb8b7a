//! Deletions as they stand in the feeds of a database that several collectors share. The replicas
//! beside a program may lag, or not be there.

use super::sweep::recorded;
use crate::collector::CollectorError;
use crate::collector::db::{self, Connection};
use crate::collector::feed::{Feed, Kind, Stone};

/// Whether every session that was deleted stands in the audit trail; which one does not.
pub(super) fn check(db: &Connection, feed: &Feed) -> Result<Result<(), String>, CollectorError> {
    let recorded = recorded(db).map_err(CollectorError::db("read the audit trail"))?;
    let hosts: Vec<(i64, String)> = db
        .prepare("SELECT id, fingerprint FROM hosts ORDER BY id")
        .and_then(|mut s| s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
        .map_err(CollectorError::db("list hosts"))?;
    for (id, host) in hosts {
        let mut at = 0;
        loop {
            let rows = feed.after_of(id, at, Kind::Stones)?;
            let Some(last) = rows.last() else { break };
            at = last.mark.at;
            for row in &rows {
                let strange = |_| CollectorError::db("read deletions")(db::Error::Contents);
                let stones: Vec<Stone> = serde_json::from_slice(&row.body).map_err(strange)?;
                for number in stones.iter().map(|stone| stone.summary.number) {
                    if !recorded.contains(&(host.clone(), number)) {
                        let what =
                            format!("the events of session {number} of host {host} are gone");
                        return Ok(Err(what));
                    }
                }
            }
        }
    }
    Ok(Ok(()))
}
