//! The list of sessions: live and past, of all hosts, with search.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Html;
use serde::Deserialize;

use super::Console;
use super::fault::Fault;
use super::find::{self, Cursor, Found, PAGE, Wanted};
use super::frame::Frame;
use super::guard::Viewer;
use super::text::{Shown, When, count, plain, query};
use crate::record::now_us;
use crate::record::reader::Hit;
use crate::record::terminal::duration;

/// What the form asks for.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub struct Asked {
    q: String,
    anywhere: String,
    agent: String,
    principal: String,
    service: String,
    host: String,
    state: String,
    before: String,
}

#[derive(Template)]
#[template(path = "console/sessions.html")]
struct Page {
    frame: Frame,
    asked: Texts,
    state: &'static str,
    services: Vec<Choice>,
    agents: Vec<Choice>,
    hosts: Vec<Choice>,
    rows: Vec<Line>,
    /// Address of the first page.
    newest: String,
    /// Address of the next page.
    next: Option<String>,
    /// Until when was searched, when the search is not at its end.
    unfinished: Option<When>,
    /// Events that the index of words lacks, when it is behind.
    behind: Option<String>,
    /// Address of the same question inside of words, where it is not asked so.
    anywhere: Option<String>,
    inside: bool,
    filtered: bool,
    first: bool,
}

/// The texts of the form as they go back into it.
struct Texts {
    q: String,
    principal: String,
}

struct Choice {
    value: String,
    shown: Shown,
    chosen: bool,
}

/// One session in the list.
pub struct Line {
    pub href: String,
    pub live: bool,
    pub opened: When,
    pub lasted: String,
    pub host: Shown,
    pub service: Shown,
    pub agent: Shown,
    pub proven: bool,
    pub principal: Shown,
    pub role: Shown,
    pub requests: String,
    pub held: u64,
    pub denied: u64,
    pub alerts: u64,
    pub state: Shown,
    pub observed: bool,
    pub hit: Option<(String, Shown)>,
}

fn some(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.chars().take(500).collect())
}

impl Asked {
    fn wanted(&self) -> Wanted {
        Wanted {
            text: some(&self.q),
            anywhere: !self.anywhere.is_empty(),
            agent: some(&self.agent),
            principal: some(&self.principal),
            service: some(&self.service),
            host: some(&self.host),
            live: match self.state.as_str() {
                "live" => Some(true),
                "past" => Some(false),
                _ => None,
            },
            notable: self.state == "notable",
            before: Cursor::read(&self.before),
            limit: PAGE,
            ..Wanted::default()
        }
    }

    /// The address of this question at another place of the list.
    fn href(&self, before: Option<Cursor>) -> String {
        let before = before.map(|b| b.to_string()).unwrap_or_default();
        let pairs = [
            ("q", &self.q),
            ("anywhere", &self.anywhere),
            ("agent", &self.agent),
            ("principal", &self.principal),
            ("service", &self.service),
            ("host", &self.host),
            ("state", &self.state),
            ("before", &before),
        ];
        let set = pairs.iter().filter(|(_, v)| !v.is_empty());
        let parts: Vec<String> = set.map(|(k, v)| format!("{k}={}", query(v))).collect();
        match parts.is_empty() {
            true => "/sessions".into(),
            false => format!("/sessions?{}", parts.join("&")),
        }
    }
}

/// `GET /sessions`.
pub async fn list(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Query(asked): Query<Asked>,
) -> Result<Html<String>, Fault> {
    let collector = console.collector();
    let told = collector.hub.told();
    let choices = collector.central.read(find::choices).await?;
    let page = asked.wanted().page(collector).await?;
    let state = match asked.state.as_str() {
        "live" => "live",
        "past" => "past",
        "notable" => "notable",
        _ => "",
    };
    let unfinished = page.next.filter(|_| page.unfinished).map(|c| When::at(c.opened_us()));
    let inside = !asked.anywhere.is_empty();
    let anywhere = Asked { anywhere: "1".into(), before: String::new(), ..asked.clone() };
    let anywhere = (!inside && !asked.q.trim().is_empty()).then(|| anywhere.href(None));
    let now = now_us();
    let html = Page {
        frame: Frame::new("Sessions", "sessions", &login).live("sessions", told),
        state,
        services: choices_of(choices.services, &asked.service),
        agents: choices_of(choices.agents, &asked.agent),
        hosts: choices_of(choices.hosts, &asked.host),
        rows: page.sessions.iter().map(|s| Line::new(s, now)).collect(),
        newest: asked.href(None),
        next: page.next.map(|c| asked.href(Some(c))),
        unfinished,
        behind: page.behind.map(count),
        anywhere,
        inside,
        filtered: asked.href(None) != "/sessions",
        first: asked.before.is_empty(),
        asked: Texts { q: asked.q, principal: asked.principal },
    };
    Ok(Html(html.render()?))
}

/// What can be chosen, and what was, even if there is nothing of it. A name with characters that
/// cannot be seen is not offered: an option's value cannot show them as their codes.
fn choices_of(mut all: Vec<String>, chosen: &str) -> Vec<Choice> {
    all.retain(|a| a == chosen || plain(a));
    if !chosen.is_empty() && !all.iter().any(|a| a == chosen) {
        all.push(chosen.to_owned());
    }
    let choice =
        |value: String| Choice { chosen: value == chosen, shown: Shown::short(&value, 60), value };
    all.into_iter().map(choice).collect()
}

impl Line {
    /// How a session stands in the list.
    pub fn new(s: &Found, now: i64) -> Self {
        let until = s.closed_us.unwrap_or(now);
        let role = match (s.role.as_deref(), s.database.as_deref()) {
            (Some(role), Some(db)) if !db.is_empty() => format!("{role}@{db}"),
            (Some(role), _) => role.to_owned(),
            _ => String::new(),
        };
        let state = match (&s.reason, s.live()) {
            _ if s.deleted_us.is_some() => "content deleted",
            (_, true) => "live",
            (Some(reason), _) => ended(reason),
            (None, _) => "ended",
        };
        Self {
            href: href(s),
            live: s.live(),
            opened: When::at(s.opened_us),
            lasted: duration(u64::try_from(until - s.opened_us).unwrap_or(0)),
            host: Shown::short(&s.host_name, 60),
            service: Shown::short(&s.service, 60),
            agent: Shown::or_dash(s.agent.as_deref()),
            proven: s.proven,
            principal: Shown::or_dash(s.principal.as_deref()),
            role: Shown::short(&role, 80),
            requests: count(s.requests),
            held: s.held,
            denied: s.denied,
            alerts: s.alerts,
            state: Shown::short(state, 40),
            observed: s.mode == "observe",
            hit: s.hit.as_ref().map(|h| {
                (format!("{}?after={}#e{}", href(s), h.seq.saturating_sub(1), h.seq), hit_text(h))
            }),
        }
    }
}

/// Why a session ended, in words that need no glossary.
fn ended(reason: &str) -> &str {
    match reason {
        "client" => "closed by client",
        "server" => "closed by service",
        "store" => "record lost",
        "conflict" => "token at two hosts",
        other => other,
    }
}

/// The address of a session's page: its ULID, which is checked to be one.
pub fn href(s: &Found) -> String {
    let plain = s.session.len() == 26 && s.session.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain { format!("/sessions/{}", s.session) } else { format!("/sessions/{}", s.id) }
}

fn hit_text(hit: &Hit) -> Shown {
    let text = match hit.body.get("text").and_then(|t| t.as_str()) {
        Some(text) => text.to_owned(),
        None => hit.body.to_string(),
    };
    Shown::short(&format!("{}: {text}", hit.kind), 200)
}
