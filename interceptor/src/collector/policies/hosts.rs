//! What hosts say of the policies that they took from here.

use crate::collector::db::{Connection, Row, params};
use serde::Serialize;
use serde_json::json;

use crate::collector::audit::{self, Entry};
use crate::collector::error::CollectorError;
use crate::collector::orders::HostId;
use crate::control::CentralStatus;
use crate::record::now_us;
use crate::ship::bundle::Report;

/// Longest reason that is kept, in characters.
const MAX_ERROR: usize = 4000;

/// What a host said last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OnHost {
    /// Whether it takes policies from here; otherwise its own files are alone in force.
    pub takes: bool,
    /// What it has of them; its clock counts.
    #[serde(flatten)]
    pub status: CentralStatus,
    /// When it said so.
    pub reported_us: Option<i64>,
}

impl OnHost {
    /// Columns of [`OnHost::read`].
    pub const COLUMNS: &str = "p.takes, p.version, p.in_force, p.sha256, p.rules, p.since_us, p.error, p.refused, \
         p.reported_us";

    /// From a row that may have none.
    pub fn read(r: &Row<'_>, first: usize) -> crate::collector::db::Result<Self> {
        let number = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        Ok(Self {
            takes: r.get::<_, Option<bool>>(first)?.unwrap_or_default(),
            status: CentralStatus {
                version: number(r.get(first + 1)?).unwrap_or(0),
                in_force: r.get::<_, Option<bool>>(first + 2)?.unwrap_or_default(),
                sha256: r.get::<_, Option<String>>(first + 3)?.unwrap_or_default(),
                rules: number(r.get(first + 4)?).unwrap_or(0),
                since_us: r.get(first + 5)?,
                error: r.get(first + 6)?,
                refused: number(r.get(first + 7)?),
            },
            reported_us: r.get(first + 8)?,
        })
    }

    /// In a few words.
    pub fn words(&self) -> String {
        match (self.takes, self.status.version, self.status.in_force) {
            (false, ..) => "local only".into(),
            (true, 0, _) => "local only, no version yet".into(),
            (true, version, true) => format!("version {version}"),
            (true, version, false) => format!("local only, withdrawn by version {version}"),
        }
    }
}

/// Notes what a host said, and in the audit trail what changed by it. Whether anything did.
pub fn report(db: &Connection, host: &HostId, said: Report) -> Result<bool, CollectorError> {
    let takes = said.central.is_some();
    let s = clean(said.central.unwrap_or_default());
    let row = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let before = of(db, host.id)?;
    db.prepare_cached(
        "INSERT INTO host_policies (host, reported_us, takes, version, in_force, \
         sha256, rules, since_us, error, refused) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
         ON CONFLICT (host) DO UPDATE SET reported_us = ?2, takes = ?3, version = ?4, \
         in_force = ?5, sha256 = ?6, rules = ?7, since_us = ?8, error = ?9, refused = ?10",
    )
    .and_then(|mut q| {
        q.execute(params![
            host.id,
            now_us(),
            takes,
            row(s.version),
            s.in_force,
            s.sha256,
            row(s.rules),
            s.since_us,
            s.error,
            s.refused.map(row)
        ])
    })
    .map_err(CollectorError::db("note a host's policies"))?;
    let after = of(db, host.id)?;
    let same = OnHost { reported_us: before.reported_us, ..after.clone() } == before;
    if same {
        return Ok(false);
    }
    let (was, is) = (&before.status, &after.status);
    let what = match (&is.error, was.error != is.error) {
        (Some(_), true) => "policies.refused",
        _ => "policies.on-host",
    };
    let detail = json!({
        "takes": after.takes, "version": is.version, "in_force": is.in_force,
        "sha256": is.sha256, "refused": is.refused, "error": is.error,
    });
    let entry = Entry { who: &host.who(), what, target: &host.name, detail: &detail };
    audit::append(db, &entry)?;
    Ok(true)
}

/// What a host sends is bounded and shown to people.
fn clean(status: CentralStatus) -> CentralStatus {
    let digest = |c: &char| c.is_ascii_hexdigit();
    let plain = |c: &char| !c.is_control() || *c == '\n';
    CentralStatus {
        sha256: status.sha256.chars().filter(digest).take(64).collect(),
        error: status.error.map(|e| e.chars().filter(plain).take(MAX_ERROR).collect()),
        ..status
    }
}

fn of(db: &Connection, host: i64) -> Result<OnHost, CollectorError> {
    let sql = format!(
        "SELECT {} FROM (SELECT CAST(?1 AS BIGINT) AS id) h LEFT JOIN host_policies p ON p.host = h.id",
        OnHost::COLUMNS
    );
    db.prepare_cached(&sql)
        .and_then(|mut s| s.query_row([host], |r| OnHost::read(r, 0)))
        .map_err(CollectorError::db("read a host's policies"))
}
