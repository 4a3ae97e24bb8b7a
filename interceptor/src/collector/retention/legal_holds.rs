//! Legal holds: what must stay, whatever retention says, until somebody lets it go.
//!
//! A hold names a session, or everything that fits its filter. It is not copied onto sessions: it
//! is asked when something is to be deleted, in the transaction that decides it, so that sessions
//! which come later fall under it and no deletion passes a hold that was placed before it.
//!
//! A filter's times are met by what the host says of a session *or* by when it came here: whoever
//! owns a host cannot move a session out of a hold with a wrong clock.

use crate::collector::db::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::approval::MAX_REASON;
use crate::collector::audit::{self, Who};
use crate::collector::error::CollectorError;
use crate::collector::{Role, console::find, hosts};
use crate::record::now_us;

/// Most characters of a name or of a filter's text.
const MAX_TEXT: usize = 300;
/// Most holds that stand at a time.
const MOST: i64 = 10_000;
/// Most holds of a list.
const MOST_LISTED: i64 = 500;
/// What a hold keeps is counted no further.
pub const MOST_COUNTED: i64 = 10_000;

/// Whether a hold `l` keeps the session `s` of host `h`, as SQL.
const FITS: &str = "l.released_us IS NULL \
     AND (l.session IS NULL OR l.session = s.id) \
     AND (l.agent IS NULL OR l.agent = s.agent) \
     AND (l.principal IS NULL OR l.principal = s.principal) \
     AND (l.service IS NULL OR l.service = s.service) \
     AND (l.host IS NULL OR l.host_id = s.host OR l.host = h.name OR l.host = h.fingerprint) \
     AND ((coalesce(l.to_us, 9223372036854775807) >= s.opened_us \
           AND coalesce(l.from_us, -9223372036854775807) <= coalesce(s.closed_us, 9223372036854775807)) \
       OR (coalesce(l.to_us, 9223372036854775807) >= coalesce(s.arrived_us, 0) \
           AND coalesce(l.from_us, -9223372036854775807) <= coalesce((SELECT accepted_us FROM leaves \
               WHERE idx = s.leaf), 9223372036854775807)))";

/// Whether a session `s` of host `h` is under any legal hold, as SQL.
pub fn held() -> String {
    format!("EXISTS (SELECT 1 FROM legal_holds l WHERE {FITS})")
}

/// What somebody wants to hold, and why.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    /// What people call it, such as a case number.
    pub name: String,
    /// One session, by its id.
    pub session: Option<String>,
    /// Sessions of this agent.
    pub agent: Option<String>,
    /// Sessions for this principal.
    pub principal: Option<String>,
    /// Sessions of this service.
    pub service: Option<String>,
    /// Sessions on this host: its name, or the beginning of its fingerprint.
    pub host: Option<String>,
    /// Sessions that ended then or later; microseconds since the Unix epoch.
    pub from_us: Option<i64>,
    /// Sessions that began until then.
    pub to_us: Option<i64>,
    /// Why; recorded.
    pub reason: String,
}

/// A legal hold.
#[derive(Debug, Clone, Serialize)]
pub struct LegalHold {
    /// Its number.
    pub id: i64,
    /// What people call it.
    pub name: String,
    /// The one session that it is about, by its id.
    pub session: Option<String>,
    /// Agent.
    pub agent: Option<String>,
    /// Principal.
    pub principal: Option<String>,
    /// Service.
    pub service: Option<String>,
    /// Host, as it was named.
    pub host: Option<String>,
    /// From when.
    pub from_us: Option<i64>,
    /// Until when.
    pub to_us: Option<i64>,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub placed_by: Value,
    /// When; microseconds since the Unix epoch.
    pub placed_us: i64,
    /// Who released it.
    pub released_by: Option<Value>,
    /// When.
    pub released_us: Option<i64>,
    /// Why.
    pub release_reason: Option<String>,
    /// Sessions that it keeps now, at most [`MOST_COUNTED`].
    pub keeps: u64,
}

impl LegalHold {
    /// What it is about, in words.
    pub fn words(&self) -> String {
        let texts = [
            ("session", &self.session),
            ("agent", &self.agent),
            ("principal", &self.principal),
            ("service", &self.service),
            ("host", &self.host),
        ];
        let mut all: Vec<String> = texts
            .iter()
            .filter_map(|(name, text)| text.as_ref().map(|t| format!("{name} {t}")))
            .collect();
        for (word, us) in [("from", self.from_us), ("to", self.to_us)] {
            all.extend(us.map(|us| format!("{word} {}", moment(us))));
        }
        all.join(", ")
    }
}

/// Who it was, in a few words.
pub fn who_words(who: &Value) -> String {
    let inner = who.as_object().and_then(|o| o.values().next());
    let name = inner.and_then(|v| v["name"].as_str().or_else(|| v["user"].as_str()));
    name.or_else(|| who.as_str()).unwrap_or("?").to_owned()
}

fn moment(us: i64) -> String {
    match jiff::Timestamp::from_microsecond(us) {
        Ok(t) => t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => us.to_string(),
    }
}

/// Why a legal hold is not placed or released.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// What was asked cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// There is none.
    #[error("there is no legal hold {0}: see the list of legal holds")]
    None(i64),
    /// Somebody was faster.
    #[error("legal hold {0} was released already")]
    Released(i64),
    /// Retention was faster.
    #[error("the content of this session was deleted by retention: there is nothing to hold")]
    Deleted,
    /// The person has not the role.
    #[error("legal holds are for administrators")]
    NotAnAdmin,
    /// The database.
    #[error(transparent)]
    Store(#[from] CollectorError),
}

impl HoldError {
    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Invalid(_) => 422,
            Self::None(_) => 404,
            Self::Released(_) => 409,
            Self::Deleted => 410,
            Self::NotAnAdmin => 403,
            Self::Store(_) => 500,
        }
    }

    /// Stable code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID",
            Self::None(_) => "NOT_FOUND",
            Self::Released(_) => "RELEASED",
            Self::Deleted => "DELETED",
            Self::NotAnAdmin => "NOT_AN_ADMIN",
            Self::Store(_) => "FAILED",
        }
    }
}

/// Whether a person may place and release; asked here, wherever they come from.
pub fn demand(person: &crate::collector::Person) -> Result<(), HoldError> {
    if person.is(Role::Admin) { Ok(()) } else { Err(HoldError::NotAnAdmin) }
}

fn invalid<T>(words: impl Into<String>) -> Result<T, HoldError> {
    Err(HoldError::Invalid(words.into()))
}

fn reason(text: &str) -> Result<String, HoldError> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > MAX_REASON {
        return invalid(format!(
            "reason: say why, in at most {MAX_REASON} characters; it is recorded"
        ));
    }
    Ok(text.to_owned())
}

/// An empty text of a form restricts nothing.
fn filter(what: &str, text: Option<String>) -> Result<Option<String>, HoldError> {
    let text = text.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
    if text.as_ref().is_some_and(|t| t.chars().count() > MAX_TEXT) {
        return invalid(format!("{what}: at most {MAX_TEXT} characters"));
    }
    Ok(text)
}

/// Places a hold; it keeps from the moment that this is committed.
pub fn place(db: &Connection, wanted: Wanted, by: &Who) -> Result<LegalHold, HoldError> {
    let why = reason(&wanted.reason)?;
    let name = filter("name", Some(wanted.name))?.unwrap_or_default();
    let (agent, principal) =
        (filter("agent", wanted.agent)?, filter("principal", wanted.principal)?);
    let (service, host) = (filter("service", wanted.service)?, filter("host", wanted.host)?);
    let session = match filter("session", wanted.session)? {
        Some(name) => Some(one_session(db, &name)?),
        None => None,
    };
    let filtered = agent.is_some() || principal.is_some() || service.is_some() || host.is_some();
    let timed = wanted.from_us.is_some() || wanted.to_us.is_some();
    if session.is_some() && (filtered || timed) {
        return invalid("name either one session, or a filter");
    }
    if session.is_none() && !filtered && !timed {
        return invalid(
            "say what to hold: a session, an agent, a principal, a service, a host, or a time",
        );
    }
    if let (Some(from), Some(to)) = (wanted.from_us, wanted.to_us)
        && from > to
    {
        return invalid("from is after to: nothing would be held");
    }
    let host_id = match &host {
        Some(name) => known_host(db, name)?,
        None => None,
    };
    if standing(db).map_err(CollectorError::db("count legal holds"))? >= MOST {
        return invalid(format!(
            "{MOST} legal holds stand: use filters in place of single sessions"
        ));
    }
    let who = serde_json::to_string(by).unwrap_or_default();
    let place = db.query_row(
        "INSERT INTO legal_holds (name, session, agent, principal, service, host, host_id, \
         from_us, to_us, reason, placed_by, placed_us) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) RETURNING id",
        params![
            name,
            session,
            agent,
            principal,
            service,
            host,
            host_id,
            wanted.from_us,
            wanted.to_us,
            why,
            who,
            now_us()
        ],
        |r| r.get::<_, i64>(0),
    );
    let id = place.map_err(CollectorError::db("place a legal hold"))?;
    let hold = get(db, id)?.ok_or(HoldError::None(id))?;
    note(db, by, "legal_hold.placed", &hold, &hold.reason)?;
    Ok(hold)
}

/// Releases a hold: from then on retention counts again.
pub fn release(db: &Connection, id: i64, why: &str, by: &Who) -> Result<LegalHold, HoldError> {
    let why = reason(why)?;
    let hold = get(db, id)?.ok_or(HoldError::None(id))?;
    if hold.released_us.is_some() {
        return Err(HoldError::Released(id));
    }
    // Noted while it still counts what it keeps.
    note(db, by, "legal_hold.released", &hold, &why)?;
    db.execute(
        "UPDATE legal_holds SET released_by = ?2, released_us = ?3, release_reason = ?4 \
         WHERE id = ?1",
        params![id, serde_json::to_string(by).unwrap_or_default(), now_us(), why],
    )
    .map_err(CollectorError::db("release a legal hold"))?;
    get(db, id)?.ok_or(HoldError::None(id))
}

fn note(
    db: &Connection,
    by: &Who,
    what: &str,
    hold: &LegalHold,
    reason: &str,
) -> Result<(), HoldError> {
    let detail = json!({
        "id": hold.id, "name": hold.name, "session": hold.session, "agent": hold.agent,
        "principal": hold.principal, "service": hold.service, "host": hold.host,
        "from_us": hold.from_us, "to_us": hold.to_us, "reason": reason, "keeps": hold.keeps,
    });
    let target = format!("legal hold {}", hold.id);
    Ok(audit::append(db, &audit::Entry { who: by, what, target: &target, detail: &detail })?)
}

fn one_session(db: &Connection, name: &str) -> Result<i64, HoldError> {
    match find::one(db, name)? {
        find::One::Found(found) if found.deleted_us.is_some() => Err(HoldError::Deleted),
        find::One::Found(found) => Ok(found.id),
        find::One::None => invalid(format!("no session {name:?} is here: write its whole id")),
        find::One::Several(a, b) => {
            invalid(format!("two hosts claim session {name:?}: name it as {a} or {b}"))
        }
    }
}

/// The row of the host, when one alone has this name. A name of no host is a slip; one of several
/// holds all of them.
fn known_host(db: &Connection, name: &str) -> Result<Option<i64>, HoldError> {
    match hosts::find(db, name)? {
        Ok(host) => Ok(Some(host.id)),
        Err(why) => {
            let named = db
                .prepare("SELECT 1 FROM hosts WHERE name = ?1")
                .and_then(|mut s| s.exists([name]))
                .map_err(CollectorError::db("look for a host"))?;
            if named { Ok(None) } else { invalid(why) }
        }
    }
}

const COLUMNS: &str = "l.id, l.name, (SELECT session FROM sessions WHERE id = l.session), l.agent, \
         l.principal, l.service, l.host, l.from_us, l.to_us, l.reason, l.placed_by, l.placed_us, \
         l.released_by, l.released_us, l.release_reason";

fn from_row(r: &Row<'_>) -> crate::collector::db::Result<LegalHold> {
    let who = |i: usize| -> crate::collector::db::Result<Option<Value>> {
        let text: Option<String> = r.get(i)?;
        Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
    };
    Ok(LegalHold {
        id: r.get(0)?,
        name: r.get(1)?,
        session: r.get(2)?,
        agent: r.get(3)?,
        principal: r.get(4)?,
        service: r.get(5)?,
        host: r.get(6)?,
        from_us: r.get(7)?,
        to_us: r.get(8)?,
        reason: r.get(9)?,
        placed_by: who(10)?.unwrap_or_default(),
        placed_us: r.get(11)?,
        released_by: who(12)?,
        released_us: r.get(13)?,
        release_reason: r.get(14)?,
        keeps: 0,
    })
}

/// Sessions that a hold keeps now; counted no further than [`MOST_COUNTED`].
fn count_kept(db: &Connection, hold: &LegalHold) -> Result<u64, CollectorError> {
    if hold.released_us.is_some() {
        return Ok(0);
    }
    // What narrows is there for the index alone: whether it fits is said in one place.
    let narrow = [
        (hold.session.is_some(), "s.id = l.session"),
        (hold.agent.is_some(), "s.agent = l.agent"),
        (hold.principal.is_some(), "s.principal = l.principal"),
        (hold.service.is_some(), "s.service = l.service"),
        (
            hold.host.is_some(),
            "s.host IN (SELECT id FROM hosts WHERE id = l.host_id OR name = l.host \
             OR fingerprint = l.host)",
        ),
    ];
    let narrow: String =
        narrow.iter().filter(|(set, _)| *set).map(|(_, sql)| format!(" AND {sql}")).collect();
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM legal_holds l CROSS JOIN sessions s JOIN hosts h \
         ON h.id = s.host WHERE l.id = ?1 AND s.deleted_us IS NULL{narrow} AND {FITS} LIMIT ?2) AS kept"
    );
    db.prepare_cached(&sql)
        .and_then(|mut s| s.query_row(params![hold.id, MOST_COUNTED], |r| r.get::<_, i64>(0)))
        .map(|n| n.max(0).unsigned_abs())
        .map_err(CollectorError::db("count what a legal hold keeps"))
}

fn read(db: &Connection, sql: &str, value: i64) -> Result<Vec<LegalHold>, CollectorError> {
    let mut all: Vec<LegalHold> = db
        .prepare_cached(sql)
        .and_then(|mut s| s.query_map([value], from_row)?.collect())
        .map_err(CollectorError::db("read legal holds"))?;
    for hold in &mut all {
        hold.keeps = count_kept(db, hold)?;
    }
    Ok(all)
}

/// One hold.
pub fn get(db: &Connection, id: i64) -> Result<Option<LegalHold>, CollectorError> {
    let sql = format!("SELECT {COLUMNS} FROM legal_holds l WHERE l.id = ?1");
    Ok(read(db, &sql, id)?.pop())
}

/// Those that stand, then those that were released, each newest first.
pub fn list(db: &Connection) -> Result<Vec<LegalHold>, CollectorError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM legal_holds l ORDER BY l.released_us IS NOT NULL, l.id DESC LIMIT ?1"
    );
    read(db, &sql, MOST_LISTED)
}

/// Those that keep a session.
pub fn of_session(db: &Connection, id: i64) -> Result<Vec<LegalHold>, CollectorError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM sessions s JOIN hosts h ON h.id = s.host CROSS JOIN legal_holds l \
         WHERE s.id = ?1 AND {FITS} ORDER BY l.id LIMIT 100"
    );
    read(db, &sql, id)
}

/// Legal holds that stand.
pub fn standing(db: &Connection) -> crate::collector::db::Result<i64> {
    db.prepare_cached("SELECT count(*) FROM legal_holds WHERE released_us IS NULL")?
        .query_row([], |r| r.get(0))
}
