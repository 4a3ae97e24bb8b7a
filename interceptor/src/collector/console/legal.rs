//! Legal holds: what retention must not delete. For administrators.

use crate::collector::db::Connection;
use askama::Template;
use axum::extract::{Path, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::Console;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::{Signed, Viewer, demand, local};
use super::text::{Shown, When, count};
use crate::collector::Role;
use crate::collector::retention::legal_holds::{self, LegalHold, MOST_COUNTED, Wanted, who_words};

#[derive(Template)]
#[template(path = "console/legal-holds.html")]
struct Page {
    frame: Frame,
    standing: Vec<Line>,
    released: Vec<Line>,
}

/// One hold on a page.
pub struct Line {
    pub id: i64,
    pub name: Shown,
    pub about: Shown,
    pub reason: Shown,
    pub keeps: String,
    pub placed: When,
    pub by: Shown,
    pub released: Option<(When, Shown, Shown)>,
}

impl Line {
    pub fn new(hold: &LegalHold) -> Self {
        let more = if hold.keeps >= MOST_COUNTED.unsigned_abs() { " or more" } else { "" };
        let released = hold.released_us.map(|us| {
            let by = hold.released_by.as_ref().map(who_words).unwrap_or_default();
            let why = hold.release_reason.as_deref().unwrap_or_default();
            (When::at(us), Shown::short(&by, 60), Shown::line(why))
        });
        Self {
            id: hold.id,
            name: Shown::short(&hold.name, 100),
            about: Shown::line(&hold.words()),
            reason: Shown::line(&hold.reason),
            keeps: format!("{}{more}", count(hold.keeps)),
            placed: When::at(hold.placed_us),
            by: Shown::short(&who_words(&hold.placed_by), 60),
            released,
        }
    }
}

/// `GET /legal-holds`.
pub async fn list(
    State(console): State<Console>,
    Viewer(login): Viewer,
) -> Result<Html<String>, Fault> {
    demand(&login, Role::Admin)?;
    let all = console.collector().central.read(legal_holds::list).await?;
    let lines = |released: bool| {
        all.iter().filter(|h| h.released_us.is_some() == released).map(Line::new).collect()
    };
    let page = Page {
        frame: Frame::new("Legal holds", "legal", &login),
        standing: lines(false),
        released: lines(true),
    };
    Ok(Html(page.render()?))
}

/// What the form to place one says; fields that are empty restrict nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Place {
    name: String,
    session: String,
    agent: String,
    principal: String,
    service: String,
    host: String,
    from: String,
    to: String,
    reason: String,
    back: String,
}

/// A day of a form, UTC: its beginning, or its last microsecond.
fn day(text: &str, end: bool) -> Result<Option<i64>, Fault> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let day = text.parse::<jiff::civil::Date>().ok();
    let day = if end { day.and_then(|d| d.tomorrow().ok()) } else { day };
    let start = day.and_then(|d| d.at(0, 0, 0, 0).to_zoned_datetime(jiff::tz::TimeZone::UTC).ok());
    let Some(start) = start else {
        return Err(Fault::bad("Write a day as 2026-01-31."));
    };
    Ok(Some(start.timestamp().as_microsecond() - i64::from(end)))
}

impl Place {
    fn wanted(self) -> Result<Wanted, Fault> {
        let (from_us, to_us) = (day(&self.from, false)?, day(&self.to, true)?);
        Ok(Wanted {
            name: self.name,
            session: Some(self.session).filter(|s| !s.is_empty()),
            agent: Some(self.agent),
            principal: Some(self.principal),
            service: Some(self.service),
            host: Some(self.host),
            from_us,
            to_us,
            reason: self.reason,
        })
    }
}

fn back(to: &str) -> Response {
    let to = if to.is_empty() { "/legal-holds" } else { local(to) };
    Redirect::to(to).into_response()
}

/// `POST /legal-holds`.
pub async fn place(
    State(console): State<Console>,
    Signed { login, form }: Signed<Place>,
) -> Result<Response, Fault> {
    demand(&login, Role::Admin)?;
    let (to, who) = (form.back.clone(), login.person.who());
    let wanted = form.wanted().map_err(|f| f.of(&login))?;
    let write = move |db: &Connection| legal_holds::place(db, wanted, &who);
    let placed = console.collector().central.write(write).await;
    placed.map_err(|e| Fault::from(e).of(&login))?;
    Ok(back(&to))
}

/// What the form to release one says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Release {
    reason: String,
    back: String,
}

/// `POST /legal-holds/{id}/release`.
pub async fn release(
    State(console): State<Console>,
    Path(id): Path<String>,
    Signed { login, form }: Signed<Release>,
) -> Result<Response, Fault> {
    demand(&login, Role::Admin)?;
    let id: i64 =
        id.parse().map_err(|_| Fault::not_found("There is no such legal hold.").of(&login))?;
    let (reason, who) = (form.reason, login.person.who());
    let write = move |db: &Connection| legal_holds::release(db, id, &reason, &who);
    let released = console.collector().central.write(write).await;
    released.map_err(|e| Fault::from(e).of(&login))?;
    Ok(back(&form.back))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn days_are_whole() {
        let us = |text, end| day(text, end).ok().flatten();
        assert_eq!(us("1970-01-02", false), Some(86_400_000_000));
        assert_eq!(us("1970-01-01", true), Some(86_399_999_999));
        assert_eq!(day(" ", true).ok(), Some(None));
        assert!(day("yesterday", false).is_err() && day("9999-12-31", true).is_err());
    }
}
