//! What the central database knows of hosts' sessions: rows derived from the replicas, and the
//! log's leaves. Written after the replica is on disk; whatever a crash kept from being written
//! is written when the replica is opened next.

use crate::collector::db::{self, Connection, params};

use super::error::CollectorError;
use super::hosts::{self, Host};
use super::keys::Keys;
use super::log::{self, Leaf};
use super::replica::Replica;
use crate::record::ledger::{Entry, Head, Placed};
use crate::record::{RecordError, Summary, now_us};

/// How the problem of a host begins of which something is missing.
pub const GAP: &str = "gap: ";
/// Rows and seals that are written at a time.
const PORTION: usize = 1000;

/// A session's row in the index.
pub fn session_id(host: i64, number: u64) -> i64 {
    (host << 32) | number as i64
}

/// What is to be written of one host.
#[derive(Debug)]
pub struct Update {
    /// Rows as they stand.
    pub summaries: Vec<Summary>,
    /// Seals: place in the ledger, session number, exact bytes.
    pub seals: Vec<(u64, u64, String)>,
    /// Seals up to this ledger entry are in `seals` or were written before.
    pub logged: u64,
    /// With the last portion: where the replica's ledger stands, and its events. The index
    /// lags while it does not say the same.
    pub standing: Option<(Head, u64)>,
}

/// Writes an update; the log's newest signed checkpoint.
pub fn write(
    db: &Connection,
    keys: &Keys,
    console: &str,
    host: &Host,
    update: &Update,
) -> Result<String, CollectorError> {
    for summary in &update.summaries {
        upsert(db, host.id, summary)?;
    }
    for (idx, number, body) in &update.seals {
        let leaf = leaf(host, *number, body)
            .ok_or_else(|| CollectorError::Key(format!("seal {idx} of {} is none", host.name)))?;
        let place = log::store::append(db, host.id, &leaf)?;
        db.prepare_cached("UPDATE sessions SET leaf = ?2 WHERE id = ?1")
            .and_then(|mut s| s.execute(params![session_id(host.id, *number), place as i64]))
            .map_err(CollectorError::db("index a seal"))?;
    }
    let problem = stand(db, host, update).map_err(CollectorError::db("note a host's position"))?;
    // A gap that was filled, by whichever collector, is none any more; everything else waits for a
    // person.
    if update.standing.is_some() && problem.is_some_and(|p| p.starts_with(GAP)) {
        hosts::set_problem(db, host, &host.who(), None)?;
    }
    log::store::checkpoint(db, keys, console)
}

/// Where the host stands. Another collector may have written what came after this: an older state
/// does not take its place. The host's problem, when it has one.
fn stand(db: &Connection, host: &Host, update: &Update) -> db::Result<Option<String>> {
    if let Some((head, events)) = update.standing {
        let alone = matches!(db, Connection::Sqlite(_));
        db.prepare_cached(
            "UPDATE hosts SET ledger_idx = ?2, ledger_hash = ?3, events = ?4 WHERE id = ?1 \
             AND (?5 = 1 OR (events <= ?4 AND ledger_idx <= ?2))",
        )?
        .execute(params![
            host.id,
            head.idx as i64,
            head.hash.to_vec(),
            events as i64,
            i64::from(alone)
        ])?;
    }
    db.prepare_cached(
        "UPDATE hosts SET logged_idx = CASE WHEN logged_idx < ?2 THEN ?2 ELSE logged_idx END, \
         seen_us = ?3 WHERE id = ?1 RETURNING problem",
    )?
    .query_row(params![host.id, update.logged as i64, now_us()], |r| r.get(0))
}

fn leaf(host: &Host, number: u64, body: &str) -> Option<Leaf> {
    let placed: Placed = serde_json::from_str(body).ok()?;
    let Entry::Seal(seal) = placed.entry else { return None };
    let session = ulid::Ulid::from_string(&seal.session).ok()?;
    (seal.number == number)
        .then(|| Leaf::of_seal(host.key.fingerprint(), number, session, body.as_bytes()))
}

fn upsert(db: &Connection, host: i64, s: &Summary) -> Result<(), CollectorError> {
    let n = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    db.prepare_cached(
        "INSERT INTO sessions (id, host, number, session, opened_us, closed_us, service, protocol, \
         mode, source, original_dst, agent, principal, issuer, proven, role, database, client, \
         events, requests, allowed, held, denied, errors, rows, masked, alerts, reason, sealed, \
         arrived_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, \
         ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30) \
         ON CONFLICT (id) DO UPDATE SET opened_us = ?5, closed_us = ?6, service = ?7, \
         protocol = ?8, mode = ?9, source = ?10, original_dst = ?11, agent = ?12, \
         principal = ?13, issuer = ?14, proven = ?15, role = ?16, database = ?17, client = ?18, \
         events = ?19, requests = ?20, allowed = ?21, held = ?22, denied = ?23, errors = ?24, \
         rows = ?25, masked = ?26, alerts = ?27, reason = ?28, sealed = ?29 \
         WHERE sessions.events <= ?19 AND (sessions.sealed IS NULL OR ?29 IS NOT NULL)",
    )
    .and_then(|mut statement| {
        statement.execute(params![
            session_id(host, s.number),
            host,
            n(s.number),
            s.id,
            s.opened_us,
            s.closed_us,
            s.service,
            s.protocol,
            s.mode,
            s.source,
            s.original_dst,
            s.agent,
            s.principal,
            s.issuer,
            s.proven,
            s.role,
            s.database,
            s.client,
            n(s.events),
            n(s.requests),
            n(s.allowed),
            n(s.held),
            n(s.denied),
            n(s.errors),
            n(s.rows),
            n(s.masked),
            n(s.alerts),
            s.reason,
            s.seal.map(n),
            now_us(),
        ])
    })
    .map(drop)
    .map_err(CollectorError::db("index a session"))
}

/// What the index lacks of a replica, portion by portion, for one that may lag.
pub fn lagging(
    replica: &Replica,
    mut logged: u64,
    mut take: impl FnMut(Update) -> Result<(), CollectorError>,
) -> Result<(), CollectorError> {
    let mut number = 0;
    loop {
        let summaries = replica.store().summaries_after(number, PORTION)?;
        let Some(last) = summaries.last() else { break };
        number = last.number;
        take(Update { summaries, seals: Vec::new(), logged: 0, standing: None })?;
    }
    loop {
        let seals = replica.store().seals_after(logged, PORTION)?;
        let Some((last, ..)) = seals.last() else { break };
        logged = *last;
        take(Update { summaries: Vec::new(), seals, logged, standing: None })?;
    }
    take(Update {
        summaries: Vec::new(),
        seals: Vec::new(),
        logged: replica.ledger().idx,
        standing: Some((replica.ledger(), replica.events())),
    })
}

/// What a batch changed.
pub fn after_batch(
    replica: &Replica,
    touched: &std::collections::BTreeSet<u64>,
    logged: u64,
) -> Result<Update, RecordError> {
    Ok(Update {
        summaries: replica.summaries(touched)?,
        seals: replica.store().seals_after(logged, usize::MAX >> 1)?,
        logged: replica.ledger().idx,
        standing: Some((replica.ledger(), replica.events())),
    })
}
