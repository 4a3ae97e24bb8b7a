//! What waits for people, and deciding it.
//!
//! Who may see an exact request and who may decide it is asked of
//! [`crate::collector::decisions`]; these pages only show what comes back.

use crate::collector::db::Connection;
use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::Console;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::{Signed, Viewer};
use super::session::claims;
use super::text::{Shown, When, bytes, count};
use crate::approval::{MAX_TABLES, Scope, TableSize};
use crate::collector::decisions::{self, Choice, HoldView, Vote};
use crate::collector::holds::HoldRow;
use crate::collector::orders::{self, Fate};
use crate::collector::{CollectorError, Role};
use crate::record::now_us;
use crate::record::terminal::duration;

/// Ended requests that are listed.
const ENDED: u32 = 30;
/// What counts as the recent past of an agent.
const RECENT_US: i64 = 30 * 86_400_000_000;

#[derive(Template)]
#[template(path = "console/approvals.html")]
struct List {
    frame: Frame,
    waiting: Vec<Card>,
    ended: Vec<Card>,
    approver: bool,
}

/// A hold in a list.
struct Card {
    id: String,
    agent: Shown,
    principal: Shown,
    service: Shown,
    host: Shown,
    role: Shown,
    shape: Shown,
    rules: Vec<Shown>,
    message: Shown,
    opened: When,
    waited: String,
    left: String,
    until_ms: i64,
    needs: u32,
    approvals: u32,
    state: &'static str,
    tag: &'static str,
}

#[derive(Template)]
#[template(path = "console/approval.html")]
struct Page {
    frame: Frame,
    hold: Card,
    session: Option<String>,
    statement: Option<Shown>,
    values: Vec<Shown>,
    touched: Vec<Touched>,
    plan: Option<Shown>,
    remark: Shown,
    claims: Vec<(Shown, Shown)>,
    withheld: Option<Shown>,
    votes: Vec<Voted>,
    viewed: Vec<(Shown, When)>,
    groups: Vec<Shown>,
    history: History,
    decided: &'static str,
    /// What became of the decision on the host.
    fate: Shown,
    refused: bool,
    carried_out: bool,
    open: bool,
}

struct Voted {
    by: Shown,
    approve: bool,
    scope: String,
    reason: Shown,
    when: When,
}

/// What this agent did lately.
#[derive(Default)]
struct History {
    sessions: String,
    requests: String,
    held: String,
    denied: String,
    granted: String,
    refused: String,
    href: String,
}

/// `GET /approvals`.
pub async fn list(
    State(console): State<Console>,
    Viewer(login): Viewer,
) -> Result<Html<String>, Fault> {
    let told = console.collector().hub.told();
    let waiting = decisions::list(console.collector()).await?;
    let ended = decisions::ended(console.collector(), ENDED).await?;
    let page = List {
        frame: Frame::new("Approvals", "approvals", &login).live("approvals", told),
        waiting: waiting.iter().map(card).collect(),
        ended: ended.iter().map(card).collect(),
        approver: login.person.is(Role::Approver),
    };
    Ok(Html(page.render()?))
}

fn card(row: &HoldRow) -> Card {
    let s = &row.summary;
    let (state, tag) = match row.state.as_str() {
        "waiting" => ("waiting", "hold"),
        "granted" => ("granted", "allow"),
        "denied" => ("denied", "deny"),
        "expired" => ("expired", "deny"),
        "withdrawn" => ("withdrawn", ""),
        "refused" => ("not taken by the host", "deny"),
        _ => ("ended", ""),
    };
    let role = match s.database.as_str() {
        "" => s.role.clone(),
        database => format!("{}@{database}", s.role),
    };
    let waited = row.ended_us.map_or(s.waited_ms.saturating_mul(1000), |end| {
        u64::try_from(end - row.opened_us).unwrap_or(0)
    });
    Card {
        id: row.id.clone(),
        agent: Shown::line(&s.agent),
        principal: Shown::line(&s.principal),
        service: Shown::line(&s.service),
        host: Shown::line(&row.host_name),
        role: Shown::line(&role),
        shape: Shown::short(&s.shape, 300),
        rules: s.rules.iter().take(20).map(|r| Shown::short(r, 120)).collect(),
        message: Shown::lines(s.message.as_deref().unwrap_or_default()),
        opened: When::at(row.opened_us),
        waited: duration(waited),
        left: duration(s.remaining_ms.saturating_mul(1000)),
        until_ms: row.deadline_us / 1000,
        needs: row.needs,
        approvals: row.approvals,
        state,
        tag,
    }
}

/// What was done just now.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Done {
    done: String,
}

/// `GET /approvals/{id}`.
pub async fn show(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Path(id): Path<String>,
    Query(done): Query<Done>,
) -> Result<Html<String>, Fault> {
    let told = console.collector().hub.told();
    let view = decisions::show(console.collector(), &login.person, &id)
        .await
        .map_err(|e| Fault::from(e).of(&login))?;
    let (agent, host, name) =
        (view.row.summary.agent.clone(), view.row.host, view.row.hold.clone());
    let read = move |db: &Connection| -> Result<_, CollectorError> {
        Ok((history(db, &agent)?, orders::fate(db, host, &name)?))
    };
    let (history, fate) = console.collector().central.read(read).await?;
    let open = view.row.state == "waiting" && view.withheld.is_none() && view.statement.is_some();
    let page = Page {
        frame: Frame::new("Approval", "approvals", &login).live("approvals", told),
        hold: card(&view.row),
        session: session(&view),
        withheld: view.withheld.as_deref().map(Shown::line),
        statement: view.statement.as_ref().map(|s| Shown::whole(s)),
        values: values(&view),
        touched: touched(&view),
        plan: view.impact.as_ref().and_then(|i| i.plan.as_deref()).map(Shown::whole),
        remark: Shown::line(
            view.impact.as_ref().and_then(|i| i.remark.as_deref()).unwrap_or_default(),
        ),
        claims: claims(view.claims.as_ref()),
        votes: view.votes.iter().map(voted).collect(),
        viewed: view.viewed.iter().map(|(by, at)| (Shown::line(&by.sub), When::at(*at))).collect(),
        groups: view.groups.iter().map(|any| Shown::line(&any.join(" or "))).collect(),
        history,
        decided: match done.done.as_str() {
            "granted" => "Approved.",
            "denied" => "Denied.",
            "waiting" => "Your approval counts. Somebody else must approve it too.",
            _ => "",
        },
        refused: matches!(fate, Some(Fate::Refused(_))),
        carried_out: fate == Some(Fate::Done),
        fate: fate.map(words).unwrap_or_default(),
        open,
    };
    Ok(Html(page.render()?))
}

fn words(fate: Fate) -> Shown {
    match fate {
        Fate::Sent => Shown::line("The host has not answered yet."),
        Fate::Done => Shown::line("The host carried it out."),
        Fate::Refused(why) => Shown::line(&format!("The host did not take the decision: {why}")),
    }
}

/// Address of the session, if its id is one.
fn session(view: &HoldView) -> Option<String> {
    let id = &view.row.summary.session;
    let plain = id.len() == 26 && id.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| format!("/sessions/{id}"))
}

fn values(view: &HoldView) -> Vec<Shown> {
    let list = view.values.as_ref().map_or(&[][..], |v| v.as_slice());
    let one = |v: &Option<String>| match v {
        None => Shown::line("null"),
        Some(text) => Shown::whole(text),
    };
    list.iter().map(one).collect()
}

/// A table that the request would touch.
struct Touched {
    name: Shown,
    how: &'static str,
    rows: String,
    size: String,
}

fn touched(view: &HoldView) -> Vec<Touched> {
    let tables = view.impact.as_ref().map_or(&[][..], |i| i.tables.as_slice());
    let one = |t: &TableSize| Touched {
        name: Shown::line(&t.name),
        how: if t.written { "writes" } else { "reads" },
        rows: t.rows.map_or("unknown".into(), |n| format!("about {}", count(n))),
        size: t.bytes.map_or("none".into(), bytes),
    };
    tables.iter().take(MAX_TABLES).map(one).collect()
}

fn voted(v: &Vote) -> Voted {
    Voted {
        by: Shown::line(&v.by.name),
        approve: v.approve,
        scope: match v.scope {
            Scope::Once => "once".into(),
            Scope::ShapeFor(time) => {
                let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                format!("its shape for {}", duration(us))
            }
        },
        reason: Shown::lines(v.reason.as_deref().unwrap_or_default()),
        when: When::at(v.ts_us),
    }
}

fn history(db: &Connection, agent: &str) -> Result<History, CollectorError> {
    let since = now_us().saturating_sub(RECENT_US);
    let n = |n: i64| count(u64::try_from(n).unwrap_or(0));
    let read = || -> crate::collector::db::Result<History> {
        let mut out = db
            .prepare_cached(
                "SELECT count(*), CAST(coalesce(sum(requests), 0) AS BIGINT), \
                 CAST(coalesce(sum(held), 0) AS BIGINT), CAST(coalesce(sum(denied), 0) AS BIGINT) \
                 FROM sessions WHERE agent = ?1 AND opened_us > ?2",
            )?
            .query_row((agent, since), |r| {
                Ok(History {
                    sessions: n(r.get(0)?),
                    requests: n(r.get(1)?),
                    held: n(r.get(2)?),
                    denied: n(r.get(3)?),
                    ..History::default()
                })
            })?;
        let mut ended = db.prepare_cached(
            "SELECT state, count(*) FROM (SELECT state FROM holds WHERE opened_us > ?2 AND \
             state != 'waiting' AND agent = ?1 \
             ORDER BY opened_us DESC LIMIT 10000) AS latest GROUP BY state",
        )?;
        let (mut granted, mut refused) = (0, 0);
        for row in ended
            .query_map((agent, since), |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))?
        {
            match row? {
                (state, n) if state == "granted" => granted += n,
                (_, n) => refused += n,
            }
        }
        (out.granted, out.refused) = (n(granted), n(refused));
        Ok(out)
    };
    let mut out = read().map_err(CollectorError::db("read an agent's history"))?;
    out.href = format!("/sessions?agent={}", super::text::query(agent));
    Ok(out)
}

/// What the form says.
#[derive(Debug, Deserialize)]
pub struct Form {
    decision: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    reason: String,
}

impl Form {
    /// Nothing is approved by a word that is not `approve`.
    fn choice(&self) -> Option<Choice> {
        let approve = match self.decision.as_str() {
            "approve" => true,
            "deny" => false,
            _ => return None,
        };
        let for_seconds = match self.scope.as_str() {
            "" | "once" => None,
            seconds => Some(seconds.parse().ok()?),
        };
        let reason = self.reason.trim();
        let reason = (!reason.is_empty()).then(|| reason.to_owned());
        Some(Choice { approve, for_seconds, reason })
    }
}

/// `POST /approvals/{id}`.
pub async fn decide(
    State(console): State<Console>,
    Path(id): Path<String>,
    Signed { login, form }: Signed<Form>,
) -> Result<Response, Fault> {
    let choice = form.choice().ok_or_else(|| {
        Fault::bad("Say whether to approve or to deny. Nothing was decided.").of(&login)
    })?;
    let decided = decisions::decide(console.collector(), &login.person, &id, choice)
        .await
        .map_err(|e| Fault::from(e).of(&login))?;
    let done = match decided.state.as_str() {
        "granted" => "granted",
        "denied" => "denied",
        _ => "waiting",
    };
    let id = super::text::query(&id);
    Ok(Redirect::to(&format!("/approvals/{id}?done={done}")).into_response())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_word_approves() {
        let form = |decision: &str, scope: &str| {
            Form { decision: decision.into(), scope: scope.into(), reason: " ok ".into() }.choice()
        };
        assert!(form("approve", "once").unwrap().approve);
        assert_eq!(form("approve", "900").unwrap().for_seconds, Some(900));
        assert_eq!(form("deny", "").unwrap().reason.as_deref(), Some("ok"));
        for (decision, scope) in [("", ""), ("Approve", ""), ("true", ""), ("approve", "forever")] {
            assert!(form(decision, scope).is_none(), "{decision} {scope}");
        }
    }
}
