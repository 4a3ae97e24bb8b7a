//! What people do here: look at a held request, decide it, end sessions, withdraw grants.
//!
//! Everything is checked and written in one transaction, with its order for the host and its
//! step in the audit trail: a hold has exactly one outcome, however many people decide at once.
//! The host checks the decision once more before anything runs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::collector::db::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::audit::{self, Entry, Who};
use super::error::CollectorError;
use super::holds::{self, HoldRow};
use super::orders::HostId;
use super::rules::{Barrier, Candidate, may_decide};
use super::{Change, Collector, Role, webhooks};
use crate::approval::{Impact, MAX_GRANT, MAX_REASON, Scope};
use crate::record::now_us;
use crate::session::Target;
use crate::ship::wire::{By, Command};

/// A person who is logged in, or whose token was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `iss` of the login.
    pub issuer: String,
    /// `sub` of the ID token: the user id (`uid` in access tokens). Never an e-mail address.
    pub sub: String,
    /// What people call them.
    pub name: String,
    /// Groups of the login.
    pub groups: Vec<String>,
    /// What they may do.
    pub roles: BTreeSet<Role>,
}

impl Person {
    /// Whether they have a role.
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    fn by(&self) -> By {
        By { issuer: self.issuer.clone(), sub: self.sub.clone(), name: self.name.clone() }
    }

    /// As they stand in the audit trail.
    pub fn who(&self) -> Who {
        let By { issuer, sub, name } = self.by();
        Who::Person { issuer, sub, name }
    }
}

/// Why something is not done. Shown to the person.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    /// The rules say no.
    #[error(transparent)]
    Barrier(#[from] Barrier),
    /// Nothing has this name.
    #[error("there is no hold {0:?}")]
    NotFound(String),
    /// It had its one outcome.
    #[error("this request does not wait any more: it was {0}")]
    Ended(String),
    /// The exact text is not here.
    #[error("the host has not sent this request again since the collector started: wait a moment")]
    NotHere,
    /// The same person again.
    #[error("you have approved this already: somebody else must approve it too")]
    Voted,
    /// Only administrators.
    #[error("this is for administrators: they come from the groups in roles.admin")]
    NotAdmin,
    /// No such grant, host or session.
    #[error("there is no {0}")]
    Nothing(String),
    /// What was asked cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The database.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

impl DecisionError {
    /// Stable code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Barrier(barrier) => barrier.code(),
            Self::NotFound(_) | Self::Nothing(_) => "NOT_FOUND",
            Self::Ended(_) => "ENDED",
            Self::NotHere => "NOT_HERE",
            Self::Voted => "ALREADY_APPROVED",
            Self::NotAdmin => "NOT_AN_ADMIN",
            Self::Invalid(_) => "INVALID",
            Self::Store(_) => "FAILED",
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(&self) -> u16 {
        match self {
            Self::Barrier(_) | Self::NotAdmin => 403,
            Self::NotFound(_) | Self::Nothing(_) => 404,
            Self::Ended(_) | Self::Voted | Self::NotHere => 409,
            Self::Invalid(_) => 422,
            Self::Store(_) => 503,
        }
    }
}

/// What a person decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Whether it may run.
    pub approve: bool,
    /// Grant the statement's shape for this many seconds; absent means that request alone.
    #[serde(default)]
    pub for_seconds: Option<u64>,
    /// Their words; told to the agent on a denial.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What came of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The hold's name.
    pub id: String,
    /// `granted`, `denied`, or `waiting` for more people.
    pub state: String,
    /// How many have approved.
    pub approvals: u32,
    /// How many must.
    pub needs: u32,
}

/// One person's part in a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vote {
    /// Who.
    pub by: By,
    /// Whether they approved.
    pub approve: bool,
    /// How far.
    pub scope: Scope,
    /// Their words.
    pub reason: Option<String>,
    /// When, microseconds since the Unix epoch.
    pub ts_us: i64,
}

/// One hold with everything that this person may see of it.
#[derive(Clone, Serialize)]
pub struct HoldView {
    /// What everybody sees.
    #[serde(flatten)]
    pub row: HoldRow,
    /// Who has decided so far.
    pub votes: Vec<Vote>,
    /// Who has seen the exact form, and when.
    pub viewed: Vec<(By, i64)>,
    /// Groups of which an approver needs one each.
    pub groups: Vec<Vec<String>>,
    /// The exact statement; only for somebody who may decide it.
    #[serde(serialize_with = "exact")]
    pub statement: Option<Zeroizing<String>>,
    /// The exact values; only for somebody who may decide it.
    #[serde(serialize_with = "exact")]
    pub values: Option<Zeroizing<Vec<Option<String>>>>,
    /// What the token said; only for somebody who may decide it.
    pub claims: Option<Value>,
    /// What it would touch, once known; only for somebody who may decide it.
    pub impact: Option<Impact>,
    /// Why the exact form is absent.
    pub withheld: Option<String>,
}

fn exact<T: Serialize + zeroize::Zeroize, S: serde::Serializer>(
    value: &Option<Zeroizing<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.as_ref().map(|exact| &**exact).serialize(serializer)
}

impl std::fmt::Debug for HoldView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HoldView").field("row", &self.row).finish_non_exhaustive()
    }
}

/// All that wait, oldest first.
pub async fn list(collector: &Collector) -> Result<Vec<HoldRow>, CollectorError> {
    collector.central.read(HoldRow::waiting).await
}

/// The newest holds that ended.
pub async fn ended(collector: &Collector, limit: u32) -> Result<Vec<HoldRow>, CollectorError> {
    collector.central.read(move |db| HoldRow::ended(db, limit)).await
}

/// One hold. That the person saw the exact form is on record before it is given.
pub async fn show(
    collector: &Arc<Collector>,
    person: &Person,
    id: &str,
) -> Result<HoldView, DecisionError> {
    let exact = collector.held.get(id);
    let (id, person) = (id.to_owned(), person.clone());
    let there = exact.is_some();
    let (mut view, barrier) = collector
        .central
        .write(move |db| {
            let row = HoldRow::find(db, &id)?.ok_or_else(|| missing(&id))?;
            let barrier = barrier(&person, &row);
            if barrier.is_none() && there && row.state == "waiting" {
                note_view(db, &person, &row)?;
            }
            Ok::<_, DecisionError>((view(db, row)?, barrier))
        })
        .await?;
    view.withheld = barrier.map(|b| b.to_string());
    match exact {
        Some(exact) if view.withheld.is_none() && view.row.state == "waiting" => {
            view.statement = Some(Zeroizing::new(exact.statement.clone()));
            view.values = Some(Zeroizing::new(exact.values.clone()));
            view.claims = Some(exact.claims.clone());
            view.impact.clone_from(&exact.impact);
        }
        None if view.row.state == "waiting" && view.withheld.is_none() => {
            view.withheld = Some(DecisionError::NotHere.to_string());
        }
        _ => {}
    }
    Ok(view)
}

fn missing(id: &str) -> DecisionError {
    DecisionError::NotFound(id.chars().take(80).collect())
}

/// What stands between a person and a decision. A hold whose conditions cannot be read is
/// nobody's.
fn barrier(person: &Person, row: &HoldRow) -> Option<Barrier> {
    let candidate = Candidate {
        issuer: &person.issuer,
        sub: &person.sub,
        groups: &person.groups,
        approver: person.is(Role::Approver),
    };
    match &row.conditions {
        Some(c) => may_decide(candidate, &c.parties(), &c.terms).err(),
        None => Some(Barrier::NotApprover),
    }
}

fn note_view(db: &Connection, person: &Person, row: &HoldRow) -> Result<(), CollectorError> {
    let first = db
        .prepare_cached(
            "INSERT INTO viewed (hold, issuer, sub, ts_us) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT DO NOTHING",
        )
        .and_then(|mut s| s.execute(params![row.id, person.issuer, person.sub, now_us()]))
        .map_err(CollectorError::db("note who saw a hold"))?;
    if first == 1 {
        let detail = json!({});
        let entry =
            Entry { who: &person.who(), what: "hold.viewed", target: &row.id, detail: &detail };
        audit::append(db, &entry)?;
    }
    Ok(())
}

fn view(db: &Connection, row: HoldRow) -> Result<HoldView, CollectorError> {
    let votes = votes(db, &row.id)?;
    let viewed = db
        .prepare_cached("SELECT issuer, sub, ts_us FROM viewed WHERE hold = ?1 ORDER BY ts_us")
        .and_then(|mut s| {
            s.query_map([&row.id], |r| {
                let by = By { issuer: r.get(0)?, sub: r.get(1)?, name: String::new() };
                Ok((by, r.get(2)?))
            })?
            .collect()
        })
        .map_err(CollectorError::db("read who saw a hold"))?;
    let groups = row.conditions.as_ref().map(|c| c.terms.groups.clone()).unwrap_or_default();
    Ok(HoldView {
        row,
        votes,
        viewed,
        groups,
        statement: None,
        values: None,
        claims: None,
        impact: None,
        withheld: None,
    })
}

fn votes(db: &Connection, hold: &str) -> Result<Vec<Vote>, CollectorError> {
    db.prepare_cached(
        "SELECT issuer, sub, name, approve, scope, reason, ts_us FROM votes
         WHERE hold = ?1 ORDER BY ts_us",
    )
    .and_then(|mut s| {
        s.query_map([hold], |r| {
            Ok(Vote {
                by: By { issuer: r.get(0)?, sub: r.get(1)?, name: r.get(2)? },
                approve: r.get(3)?,
                scope: serde_json::from_str(&r.get::<_, String>(4)?).unwrap_or(Scope::Once),
                reason: r.get(5)?,
                ts_us: r.get(6)?,
            })
        })?
        .collect()
    })
    .map_err(CollectorError::db("read votes"))
}

/// Decides a hold, or takes part in a decision that needs more people.
pub async fn decide(
    collector: &Arc<Collector>,
    person: &Person,
    id: &str,
    choice: Choice,
) -> Result<Decided, DecisionError> {
    let scope = scope(&choice)?;
    check_reason(choice.reason.as_deref())?;
    if choice.approve && collector.held.get(id).is_none() {
        // An ended hold is told as such; one that waits cannot be read by anybody now.
        let id = id.to_owned();
        let row = collector.central.read(move |db| HoldRow::find(db, &id)).await?;
        match row {
            Some(row) if row.state == "waiting" => return Err(DecisionError::NotHere),
            _ => {}
        }
    }
    let (this, person, id) = (Arc::clone(collector), person.clone(), id.to_owned());
    let name = id.clone();
    let (decided, host) = collector
        .central
        .write(move |db| decide_in(db, &this, &person, &id, &choice, scope))
        .await?;
    if decided.state != "waiting" {
        collector.held.wipe(&name);
        collector.ordered(host);
    }
    collector.hub.tell(Change::Hold(name));
    Ok(decided)
}

fn scope(choice: &Choice) -> Result<Scope, DecisionError> {
    match choice.for_seconds {
        None => Ok(Scope::Once),
        Some(_) if !choice.approve => Ok(Scope::Once),
        Some(s) if s == 0 || s > MAX_GRANT.as_secs() => Err(DecisionError::Invalid(format!(
            "a shape can be granted for at least a second and at most {}",
            humantime::format_duration(MAX_GRANT)
        ))),
        Some(s) => Ok(Scope::ShapeFor(Duration::from_secs(s))),
    }
}

fn check_reason(reason: Option<&str>) -> Result<(), DecisionError> {
    match reason.map(|r| r.chars().count()) {
        Some(n) if n > MAX_REASON => Err(DecisionError::Invalid(format!(
            "the reason is longer than {MAX_REASON} characters: shorten it"
        ))),
        _ => Ok(()),
    }
}

fn decide_in(
    db: &Connection,
    collector: &Collector,
    person: &Person,
    id: &str,
    choice: &Choice,
    scope: Scope,
) -> Result<(Decided, i64), DecisionError> {
    let row = HoldRow::find(db, id)?.ok_or_else(|| missing(id))?;
    if row.state != "waiting" {
        return Err(DecisionError::Ended(row.state));
    }
    if row.deadline_us <= now_us() {
        return Err(DecisionError::Ended("expired".into()));
    }
    if let Some(barrier) = barrier(person, &row) {
        return Err(barrier.into());
    }
    vote(db, person, &row, choice, scope)?;
    let votes = votes(db, id)?;
    let approvals = u32::try_from(votes.iter().filter(|v| v.approve).count()).unwrap_or(u32::MAX);
    let state = match choice.approve {
        false => "denied",
        true if approvals >= row.needs => "granted",
        true => "waiting",
    };
    let detail = json!({
        "scope": scope, "reason": choice.reason, "approvals": approvals, "needs": row.needs,
        "state": state,
    });
    let what = if choice.approve { "hold.approved" } else { "hold.denied" };
    audit::append(db, &Entry { who: &person.who(), what, target: id, detail: &detail })?;
    if state != "waiting" {
        conclude(db, collector, &row, state, &votes, choice)?;
    }
    Ok((Decided { id: id.into(), state: state.into(), approvals, needs: row.needs }, row.host))
}

fn vote(
    db: &Connection,
    person: &Person,
    row: &HoldRow,
    choice: &Choice,
    scope: Scope,
) -> Result<(), DecisionError> {
    let fail = CollectorError::db;
    let scope = serde_json::to_string(&scope).unwrap_or_default();
    // Somebody who has approved may still change their mind and deny, and nothing else.
    let sql = match choice.approve {
        true => {
            "INSERT INTO votes (hold, issuer, sub, name, approve, scope, reason, ts_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING"
        }
        false => {
            "INSERT INTO votes (hold, issuer, sub, name, approve, scope, reason, ts_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (hold, issuer, sub)
             DO UPDATE SET name = ?4, approve = ?5, scope = ?6, reason = ?7, ts_us = ?8"
        }
    };
    let counted = db
        .prepare_cached(sql)
        .and_then(|mut s| {
            s.execute(params![
                row.id,
                person.issuer,
                person.sub,
                person.name,
                choice.approve,
                scope,
                choice.reason,
                now_us(),
            ])
        })
        .map_err(fail("write a vote"))?;
    if counted == 1 { Ok(()) } else { Err(DecisionError::Voted) }
}

/// The one outcome of a hold, and its order.
fn conclude(
    db: &Connection,
    collector: &Collector,
    row: &HoldRow,
    state: &str,
    votes: &[Vote],
    choice: &Choice,
) -> Result<(), DecisionError> {
    if !holds::end(db, &row.id, state)? {
        return Err(DecisionError::Ended("decided".into()));
    }
    let Some(host) = HostId::find(db, row.host)? else {
        return Err(DecisionError::Nothing("such host any more".into()));
    };
    let taking: Vec<&Vote> = votes.iter().filter(|v| v.approve == choice.approve).collect();
    let reasons: Vec<&str> = taking.iter().filter_map(|v| v.reason.as_deref()).collect();
    let reason: String = reasons.join("; ").chars().take(MAX_REASON).collect();
    let command = Command::Decide {
        hold: row.hold.clone(),
        approve: choice.approve,
        scope: narrowest(&taking),
        by: taking.iter().map(|v| v.by.clone()).collect(),
        reason: (!reason.is_empty()).then_some(reason),
    };
    collector.order(db, &host, command)?;
    let by: Vec<&str> = taking.iter().map(|v| v.by.name.as_str()).collect();
    let event = webhooks::Event::Ended { id: &row.id, host: &host.name, state, by: &by };
    webhooks::announce(db, &collector.config, &event)?;
    Ok(())
}

/// What all who approved agreed to.
fn narrowest(votes: &[&Vote]) -> Scope {
    let mut narrowest = None;
    for vote in votes {
        narrowest = Some(match (narrowest, vote.scope) {
            (None, scope) => scope,
            (Some(Scope::ShapeFor(a)), Scope::ShapeFor(b)) => Scope::ShapeFor(a.min(b)),
            _ => Scope::Once,
        });
    }
    narrowest.unwrap_or(Scope::Once)
}

/// A standing grant of some host.
#[derive(Debug, Clone, Serialize)]
pub struct GrantRow {
    /// Row of its host.
    pub host: i64,
    /// Name of its host.
    pub host_name: String,
    /// Its id on the host.
    pub grant: String,
    /// The hold that it came from.
    pub hold: String,
    /// What that hold was about.
    pub summary: Option<Value>,
    /// Who gave it.
    pub by: Value,
    /// When it ends, microseconds since the Unix epoch.
    pub until_us: i64,
}

/// All grants that stand, the next to end first.
pub async fn grants(collector: &Collector) -> Result<Vec<GrantRow>, CollectorError> {
    collector
        .central
        .read(|db| {
            db.prepare_cached(
                "SELECT g.host, coalesce(o.name, ''), g.grant_id, g.hold, h.summary, g.given_by,
                        g.until_us
                 FROM grants g LEFT JOIN hosts o ON o.id = g.host LEFT JOIN holds h ON h.id = g.hold
                 WHERE g.revoked_us IS NULL AND g.until_us > ?1 ORDER BY g.until_us",
            )
            .and_then(|mut s| {
                let json = |text: String| serde_json::from_str(&text).ok();
                s.query_map([now_us()], |r| {
                    Ok(GrantRow {
                        host: r.get(0)?,
                        host_name: r.get(1)?,
                        grant: r.get(2)?,
                        hold: r.get(3)?,
                        summary: r.get::<_, Option<String>>(4)?.and_then(json),
                        by: json(r.get(5)?).unwrap_or_default(),
                        until_us: r.get(6)?,
                    })
                })?
                .collect()
            })
            .map_err(CollectorError::db("list grants"))
        })
        .await
}

/// Withdraws a grant; what runs under it ends. For approvers and administrators.
pub async fn revoke(
    collector: &Arc<Collector>,
    person: &Person,
    host: i64,
    grant: &str,
    reason: Option<String>,
) -> Result<(), DecisionError> {
    if !person.is(Role::Approver) && !person.is(Role::Admin) {
        return Err(Barrier::NotApprover.into());
    }
    check_reason(reason.as_deref())?;
    let (this, person, grant) = (Arc::clone(collector), person.clone(), grant.to_owned());
    collector
        .central
        .write(move |db| {
            let stands: Option<i64> = db
                .prepare_cached(
                    "SELECT 1 FROM grants
                     WHERE host = ?1 AND grant_id = ?2 AND revoked_us IS NULL AND until_us > ?3",
                )
                .and_then(|mut s| {
                    s.query_row(params![host, grant, now_us()], |r| r.get(0)).optional()
                })
                .map_err(CollectorError::db("look up a grant"))?;
            let at = HostId::find(db, host)?.filter(|_| stands.is_some());
            let Some(at) = at else {
                return Err(DecisionError::Nothing("such grant that stands".into()));
            };
            let detail = json!({ "host": at.name, "reason": reason });
            let what = "grant.revoked";
            audit::append(
                db,
                &Entry { who: &person.who(), what, target: &grant, detail: &detail },
            )?;
            let by = person.by();
            this.order(db, &at, Command::RevokeGrant { grant, by, reason })?;
            Ok(())
        })
        .await?;
    collector.ordered(host);
    Ok(())
}

/// The same by the name that lists give a grant: `HOST:GRANT`.
pub async fn revoke_named(
    collector: &Arc<Collector>,
    person: &Person,
    name: &str,
    reason: Option<String>,
) -> Result<(), DecisionError> {
    let parts = name.split_once(':').and_then(|(host, grant)| Some((host.parse().ok()?, grant)));
    let Some((host, grant)) = parts else {
        return Err(DecisionError::Nothing("such grant: its name is HOST:GRANT".into()));
    };
    revoke(collector, person, host, grant, reason).await
}

/// A host that was told to end sessions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Row of the host.
    pub host: i64,
    /// Its name.
    pub name: String,
    /// Number of the order; its result says which sessions ended.
    pub seq: u64,
}

/// Ends running sessions on one host, or on all of them. For administrators.
pub async fn kill(
    collector: &Arc<Collector>,
    person: &Person,
    target: Target,
    host: Option<i64>,
    reason: Option<String>,
) -> Result<Vec<Told>, DecisionError> {
    if !person.is(Role::Admin) {
        return Err(DecisionError::NotAdmin);
    }
    check_reason(reason.as_deref())?;
    let (this, person) = (Arc::clone(collector), person.clone());
    let told: Vec<Told> = collector
        .central
        .write(move |db| {
            let hosts = match host {
                Some(id) => HostId::find(db, id)?.into_iter().collect(),
                None => HostId::all(db)?,
            };
            if hosts.is_empty() {
                return Err(DecisionError::Nothing("such host that is enrolled".into()));
            }
            let detail = json!({ "target": target, "reason": reason, "hosts": hosts.len() });
            let name = target.to_string();
            let what = "sessions.killed";
            audit::append(db, &Entry { who: &person.who(), what, target: &name, detail: &detail })?;
            let mut told = Vec::new();
            for host in hosts {
                let (target, reason) = (target.clone(), reason.clone());
                let by = person.by();
                let seq = this.order(db, &host, Command::Kill { target, by, reason })?;
                told.push(Told { host: host.id, name: host.name, seq });
            }
            Ok(told)
        })
        .await?;
    for one in &told {
        collector.ordered(one.host);
    }
    Ok(told)
}
