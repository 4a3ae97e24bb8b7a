//! What waits on all hosts: raised by a host, kept until its end, shown without exact text.
//!
//! The exact statement and its values are in memory only ([`Exacts`]) and are wiped when the
//! hold ends. A collector that starts anew has none of them; the hosts raise what waits again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::collector::db::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::orders::HostId;
use super::rules::{Matching, Parties, Terms};
use super::{Change, Collector, Config, shared, webhooks};
use crate::approval::{HoldSummary, Impact, MAX_HELD_BYTES};
use crate::record::now_us;
use crate::ship::wire::{Command, Raise};

/// Most bytes of exact texts that are kept at a time, of all hosts.
const MOST_BYTES: usize = 512 << 20;
/// Most holds of one host at a time, as on the host itself.
const MOST_OF_ONE: i64 = crate::approval::MAX_HOLDS as i64;
/// Longest time that a host may let a request wait.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A text that came so recently may not be shared yet.
const ON_ITS_WAY: Duration = Duration::from_secs(30);
/// How often holds that nobody decided are ended.
const SWEEP: Duration = Duration::from_millis(500);

/// The exact forms of what waits, by the hold's name.
pub struct Exacts {
    /// Drawn anew when the others are gone, so that hosts see it.
    instance: Mutex<String>,
    kept: Mutex<HashMap<String, Kept>>,
}

struct Kept {
    since: Instant,
    /// Drawn for this form of it.
    mark: i64,
    raise: Arc<Raise>,
    boot: String,
    bytes: usize,
}

impl Default for Exacts {
    fn default() -> Self {
        Self { instance: Mutex::new(ulid::Ulid::new().to_string()), kept: Mutex::default() }
    }
}

impl Exacts {
    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of these texts, as hosts know it.
    pub fn instance(&self) -> String {
        self.instance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// They are shared with other collectors, and so is their life.
    pub(super) fn set_instance(&self, instance: String) {
        *self.instance.lock().unwrap_or_else(PoisonError::into_inner) = instance;
    }

    /// The names of all, with what was drawn for each.
    pub(super) fn marks(&self) -> HashMap<String, i64> {
        self.kept().iter().map(|(id, k)| (id.clone(), k.mark)).collect()
    }

    /// Lets go of one that is not shared, unless it has just come and is on its way there.
    pub(super) fn wipe_unless_new(&self, id: &str) {
        let mut kept = self.kept();
        if kept.get(id).is_some_and(|k| k.since.elapsed() > ON_ITS_WAY) {
            kept.remove(id);
        }
    }

    pub(super) fn put(
        &self,
        id: &str,
        raise: Raise,
        boot: &str,
        mark: i64,
    ) -> Result<Arc<Raise>, HoldsError> {
        let exact =
            raise.statement.len() + raise.values.iter().flatten().map(String::len).sum::<usize>();
        let around = (&raise.hold, &raise.principal_ids, &raise.owners, &raise.claims);
        let around = serde_json::to_vec(&around).map_or(usize::MAX, |text| text.len());
        if exact > MAX_HELD_BYTES || around > MAX_HELD_BYTES {
            return Err(HoldsError::TooLarge);
        }
        let impact = raise.impact.as_ref().map_or(0, Impact::bytes);
        if impact > MAX_HELD_BYTES {
            return Err(HoldsError::TooLarge);
        }
        let bytes = exact + around + impact + raise.values.len() * size_of::<Option<String>>();
        let mut kept = self.kept();
        let others: usize = kept.iter().filter(|(k, _)| *k != id).map(|(_, k)| k.bytes).sum();
        if others + bytes > MOST_BYTES {
            return Err(HoldsError::Full);
        }
        let (since, raise, boot) = (Instant::now(), Arc::new(raise), boot.to_owned());
        let exact = Arc::clone(&raise);
        kept.insert(id.into(), Kept { since, mark, raise, boot, bytes });
        Ok(exact)
    }

    /// The exact form, while the request waits.
    pub fn get(&self, id: &str) -> Option<Arc<Raise>> {
        self.kept().get(id).map(|k| Arc::clone(&k.raise))
    }

    /// Lets go of it; it is wiped when nobody looks at it any more.
    pub fn wipe(&self, id: &str) {
        self.kept().remove(id);
    }

    /// What a host raised in an earlier life.
    fn of_earlier(&self, host: i64, boot: &str) -> Vec<String> {
        let prefix = format!("{host}:");
        let kept = self.kept();
        let old = kept.iter().filter(|(id, k)| id.starts_with(&prefix) && k.boot != boot);
        old.map(|(id, _)| id.clone()).collect()
    }
}

/// Why a host's hold is not taken.
#[derive(Debug, thiserror::Error)]
pub enum HoldsError {
    /// Too large to be read by a person.
    #[error(
        "the statement and its values, or what is told about them, are larger than {MAX_HELD_BYTES} bytes"
    )]
    TooLarge,
    /// Too many wait.
    #[error("too many requests wait for people: try again later")]
    Full,
    /// It ended already.
    #[error("this hold has ended: {0}")]
    Ended(String),
    /// Not a name that a host gives.
    #[error("no hold has such an id")]
    BadName,
    /// The database.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

/// The name of a host's hold among all hosts.
pub fn name(host: i64, hold: &str) -> String {
    format!("{host}:{hold}")
}

/// Whom a hold concerns, and by which terms it is decided; kept beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conditions {
    /// `iss` and id of the principal and every actor.
    pub principals: Vec<(String, String)>,
    /// `iss` and user id of the owners.
    pub owners: Vec<(String, String)>,
    /// How it is decided.
    pub terms: Terms,
}

impl Conditions {
    /// For the rules.
    pub fn parties(&self) -> Parties {
        Parties { principals: self.principals.clone(), owners: self.owners.clone() }
    }
}

/// One hold as it stands in the table.
#[derive(Debug, Clone, Serialize)]
pub struct HoldRow {
    /// Its name among all hosts.
    pub id: String,
    /// Row of its host.
    pub host: i64,
    /// Name of its host.
    pub host_name: String,
    /// Its id on the host.
    pub hold: String,
    /// What a list shows.
    pub summary: HoldSummary,
    /// When it came here, microseconds since the Unix epoch.
    pub opened_us: i64,
    /// When it is refused for want of a decision.
    pub deadline_us: i64,
    /// How many people must agree.
    pub needs: u32,
    /// `waiting`, `granted`, `denied`, `expired`, `withdrawn`, or `refused` where the host did
    /// not take the decision.
    pub state: String,
    /// When it ended.
    pub ended_us: Option<i64>,
    /// How many have approved.
    pub approvals: u32,
    /// Whom it concerns; not for everybody.
    #[serde(skip)]
    pub conditions: Option<Conditions>,
}

impl HoldRow {
    const COLUMNS: &'static str = "h.id, h.host, coalesce(o.name, ''), h.hold, h.summary, h.opened_us, h.deadline_us, h.needs,
         h.state, h.ended_us, (SELECT count(*) FROM votes v WHERE v.hold = h.id AND v.approve <> 0),
         h.parties FROM holds h LEFT JOIN hosts o ON o.id = h.host";

    fn read(row: &Row<'_>) -> crate::collector::db::Result<Option<Self>> {
        // A summary of another version is left out rather than shown half.
        let Ok(summary) = serde_json::from_str::<HoldSummary>(&row.get::<_, String>(4)?) else {
            return Ok(None);
        };
        let (opened_us, deadline_us) = (row.get(5)?, row.get(6)?);
        let now = now_us();
        let ms = |from: i64, to: i64| u64::try_from((to - from) / 1000).unwrap_or(0);
        Ok(Some(Self {
            id: row.get(0)?,
            host: row.get(1)?,
            host_name: row.get(2)?,
            hold: row.get(3)?,
            summary: HoldSummary {
                waited_ms: ms(opened_us, now),
                remaining_ms: ms(now, deadline_us),
                ..summary
            },
            opened_us,
            deadline_us,
            needs: row.get(7)?,
            state: row.get(8)?,
            ended_us: row.get(9)?,
            approvals: row.get(10)?,
            conditions: serde_json::from_str(&row.get::<_, String>(11)?).ok(),
        }))
    }

    /// One hold.
    pub fn find(db: &Connection, id: &str) -> Result<Option<Self>, CollectorError> {
        let sql = format!("SELECT {} WHERE h.id = ?1", Self::COLUMNS);
        db.prepare_cached(&sql)
            .and_then(|mut s| s.query_row([id], Self::read).optional())
            .map(Option::flatten)
            .map_err(CollectorError::db("read a hold"))
    }

    /// All that wait, oldest first.
    pub fn waiting(db: &Connection) -> Result<Vec<Self>, CollectorError> {
        let sql = format!(
            "SELECT {} WHERE h.state = 'waiting' AND h.deadline_us > ?1 ORDER BY h.opened_us LIMIT 10000",
            Self::COLUMNS
        );
        Self::all(db, &sql, now_us())
    }

    /// The newest that ended.
    pub fn ended(db: &Connection, limit: u32) -> Result<Vec<Self>, CollectorError> {
        let sql = format!(
            "SELECT {} WHERE h.state != 'waiting' ORDER BY h.opened_us DESC LIMIT ?1",
            Self::COLUMNS
        );
        Self::all(db, &sql, i64::from(limit))
    }

    fn all(db: &Connection, sql: &str, parameter: i64) -> Result<Vec<Self>, CollectorError> {
        let read = || -> crate::collector::db::Result<Vec<Option<Self>>> {
            db.prepare_cached(sql)?.query_map([parameter], Self::read)?.collect()
        };
        let rows = read().map_err(CollectorError::db("list holds"))?;
        Ok(rows.into_iter().flatten().collect())
    }
}

/// Takes a hold that a host raises. The same hold again brings its exact text back and changes
/// nothing else.
pub async fn raise(
    collector: &Arc<Collector>,
    host: HostId,
    boot: &str,
    raise: Raise,
) -> Result<String, HoldsError> {
    if !is_name(&raise.hold.id) {
        return Err(HoldsError::BadName);
    }
    let id = name(host.id, &raise.hold.id);
    let conditions = conditions(&collector.config, &raise);
    let summary = raise.hold.clone();
    // In memory first: whoever hears of the hold can look at it.
    let new = collector.held.get(&id).is_none();
    let mark = rand::random();
    let exact = collector.held.put(&id, raise, boot, mark)?;
    let (this, row, boot) = (Arc::clone(collector), id.clone(), boot.to_owned());
    let taken = collector
        .central
        .write(move |db| {
            insert(db, &this.config, &host, &row, &summary, &conditions)?;
            Ok(shared::put_exact(db, &this, (&row, mark), &boot, &exact)?)
        })
        .await;
    match taken {
        Ok(()) => {
            collector.hub.tell(Change::Hold(id.clone()));
            Ok(id)
        }
        Err(error) => {
            // Raised anew it may be there already: then its text stays for those who decide.
            if new || matches!(error, HoldsError::Ended(_)) {
                collector.held.wipe(&id);
            }
            Err(error)
        }
    }
}

fn insert(
    db: &Connection,
    config: &Config,
    host: &HostId,
    id: &str,
    summary: &HoldSummary,
    conditions: &Conditions,
) -> Result<(), HoldsError> {
    let fail = CollectorError::db;
    if let Some(known) = HoldRow::find(db, id)? {
        return if known.state == "waiting" { Ok(()) } else { Err(HoldsError::Ended(known.state)) };
    }
    let waiting: i64 = db
        .prepare_cached("SELECT count(*) FROM holds WHERE host = ?1 AND state = 'waiting'")
        .and_then(|mut s| s.query_row([host.id], |r| r.get(0)))
        .map_err(fail("count holds"))?;
    if waiting >= MOST_OF_ONE {
        return Err(HoldsError::Full);
    }
    let now = now_us();
    let mut wait = Duration::from_millis(summary.remaining_ms).min(LONGEST);
    wait = conditions.terms.expires.map_or(wait, |most| wait.min(most));
    let deadline = now.saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX));
    let text = |value: serde_json::Result<String>| value.unwrap_or_default();
    db.prepare_cached(
        "INSERT INTO holds (id, host, hold, session, opened_us, deadline_us, summary, parties, needs, state,
         agent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'waiting', ?10)",
    )
    .and_then(|mut s| {
        s.execute(params![
            id,
            host.id,
            summary.id,
            summary.session,
            now,
            deadline,
            text(serde_json::to_string(summary)),
            text(serde_json::to_string(conditions)),
            conditions.terms.needs,
            summary.agent,
        ])
    })
    .map_err(fail("write a hold"))?;
    let detail = json!({
        "session": summary.session, "service": summary.service, "agent": summary.agent,
        "principal": summary.principal, "rules": summary.rules, "needs": conditions.terms.needs,
    });
    let entry = Entry { who: &host.who(), what: "hold.raised", target: id, detail: &detail };
    audit::append(db, &entry)?;
    webhooks::announce(db, config, &webhooks::Event::Raised { id, host: &host.name, summary })?;
    Ok(())
}

/// Deletes requests that ended long ago, with who saw and decided them; the audit trail keeps
/// both. Returns how many.
pub fn sweep(db: &Connection, keep: Duration) -> Result<usize, CollectorError> {
    let before = now_us().saturating_sub(i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
    let delete = |table: &str, column: &str| {
        let sql = format!(
            "DELETE FROM {table} WHERE {column} IN \
             (SELECT id FROM holds WHERE state <> 'waiting' AND ended_us < ?1)"
        );
        let deleted = db.prepare_cached(&sql).and_then(|mut s| s.execute([before]));
        deleted.map_err(CollectorError::db("forget old requests"))
    };
    delete("votes", "hold")?;
    delete("viewed", "hold")?;
    delete("holds", "id")
}

/// By which rules a hold is decided, and who is out of the question.
fn conditions(config: &Config, raise: &Raise) -> Conditions {
    let mut owners = raise.owners.clone();
    // People log in at one issuer only: an owner's id counts there, whatever the hosts call it.
    if let Some(login) = &config.login {
        let registered = config.agents.iter().filter(|a| a.name == raise.hold.agent);
        let ids = registered.flat_map(|a| &a.owners);
        owners.extend(ids.map(|id| (login.issuer.clone(), id.clone())));
    }
    owners.sort();
    owners.dedup();
    let matching = config.approvals.iter().filter(|a| {
        let rules = &raise.hold.rules;
        fits(&a.services, std::slice::from_ref(&raise.hold.service)) && fits(&a.rules, rules)
    });
    let matching = matching.map(|a| Matching {
        groups: &a.groups,
        count: a.count,
        expires: a.expires.map(|s| s.0),
    });
    // The host asks for two people by the owners that it knows; fewer here would decide nothing.
    let terms = Terms::of(matching, !raise.owners.is_empty());
    Conditions { principals: raise.principal_ids.clone(), owners, terms }
}

/// Whether one of the names fits one of the globs; no glob fits all, and so does a broken one,
/// since a rule that asks for more must not fall away.
fn fits(globs: &[String], names: &[String]) -> bool {
    globs.is_empty()
        || globs.iter().any(|glob| match globset::Glob::new(glob) {
            Ok(glob) => {
                let matcher = glob.compile_matcher();
                names.iter().any(|name| matcher.is_match(name))
            }
            Err(_) => true,
        })
}

fn is_name(hold: &str) -> bool {
    (1..=64).contains(&hold.len())
        && hold.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Takes a hold back that ended on its host.
pub async fn withdraw(
    collector: &Arc<Collector>,
    host: HostId,
    hold: &str,
    how: String,
) -> Result<(), CollectorError> {
    let id = name(host.id, hold);
    let state = if how == "expired" { "expired" } else { "withdrawn" };
    close(collector, host.who(), vec![id], state, how).await
}

/// A host has started anew: what it raised before does not wait any more.
pub async fn new_boot(
    collector: &Arc<Collector>,
    host: HostId,
    boot: &str,
) -> Result<(), CollectorError> {
    let old = collector.held.of_earlier(host.id, boot);
    if old.is_empty() {
        return Ok(());
    }
    close(collector, host.who(), old, "withdrawn", "the host has started anew".into()).await
}

async fn close(
    collector: &Arc<Collector>,
    who: Who,
    ids: Vec<String>,
    state: &'static str,
    how: String,
) -> Result<(), CollectorError> {
    let how: String = how.chars().filter(|c| !c.is_control()).take(500).collect();
    let all = ids.clone();
    let closed: Vec<String> = collector
        .central
        .write(move |db| {
            let mut closed = Vec::new();
            for id in all {
                if !end(db, &id, state)? {
                    continue;
                }
                let detail = json!({ "how": how });
                let what = format!("hold.{state}");
                audit::append(db, &Entry { who: &who, what: &what, target: &id, detail: &detail })?;
                closed.push(id);
            }
            Ok::<_, CollectorError>(closed)
        })
        .await?;
    for id in ids {
        collector.held.wipe(&id);
    }
    for id in closed {
        collector.hub.tell(Change::Hold(id));
    }
    Ok(())
}

/// Gives a hold its one end. False when it had one.
pub(super) fn end(db: &Connection, id: &str, state: &str) -> Result<bool, CollectorError> {
    db.prepare_cached(
        "UPDATE holds SET state = ?2, ended_us = ?3 WHERE id = ?1 AND state = 'waiting'",
    )
    .and_then(|mut s| s.execute(params![id, state, now_us()]))
    .map(|n| n == 1)
    .map_err(CollectorError::db("end a hold"))
    .and_then(|ended| shared::wipe_exact(db, id).map(|()| ended))
}

/// Ends what nobody decided in time, for as long as the collector runs; never returns.
pub async fn expire(collector: Arc<Collector>) {
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let due = collector.central.read(late).await;
        let over = match due {
            Ok(due) if due.is_empty() => continue,
            Ok(due) => expire_those(&collector, due).await,
            Err(error) => Err(error),
        };
        if let Err(error) = over {
            tracing::error!(%error, "holds that are over cannot be ended");
        }
    }
}

fn late(db: &Connection) -> Result<Vec<(String, i64, String)>, CollectorError> {
    db.prepare_cached(
        "SELECT id, host, hold FROM holds WHERE state = 'waiting' AND deadline_us <= ?1 LIMIT 500",
    )
    .and_then(|mut s| s.query_map([now_us()], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?.collect())
    .map_err(CollectorError::db("look for holds that are over"))
}

async fn expire_those(
    collector: &Arc<Collector>,
    due: Vec<(String, i64, String)>,
) -> Result<(), CollectorError> {
    let (this, all) = (Arc::clone(collector), due.clone());
    collector
        .central
        .write(move |db| {
            for (id, host, hold) in all {
                if !end(db, &id, "expired")? {
                    continue;
                }
                let detail = json!({});
                let entry = Entry {
                    who: &Who::Collector,
                    what: "hold.expired",
                    target: &id,
                    detail: &detail,
                };
                audit::append(db, &entry)?;
                if let Some(host) = HostId::find(db, host)? {
                    this.order(db, &host, Command::Expire { hold })?;
                }
            }
            Ok::<_, CollectorError>(())
        })
        .await?;
    for (id, host, _) in due {
        collector.held.wipe(&id);
        collector.hub.tell(Change::Hold(id));
        collector.ordered(host);
    }
    Ok(())
}
