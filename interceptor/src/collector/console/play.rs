//! The player: a terminal as it was, a database session as a timeline.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;

use super::assets;
use super::fault::Fault;
use super::find::{self, Found};
use super::frame::Frame;
use super::guard::{Viewer, WithPlayer};
use super::sessions::{Line, href};
use super::text::{Shown, When};
use super::timeline::verdict;
use super::{Console, blocking};
use crate::collector::Collector;
use crate::record::event::{ChannelOpen, ChannelPty, HoldDecided, Request, Response as Answered};
use crate::record::terminal::duration;
use crate::record::{Body, now_us};

/// Most requests on a timeline.
const MOST: usize = 500;
/// Width of the timeline's picture.
const WIDTH: u64 = 1000;

/// What is to be played.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Which {
    channel: Option<u32>,
}

#[derive(Template)]
#[template(path = "console/play.html")]
struct Terminal {
    frame: Frame,
    line: Line,
    id: String,
    cast: String,
    channels: Vec<Channel>,
    player: Option<(&'static str, &'static str, &'static str)>,
}

struct Channel {
    ch: u32,
    kind: Shown,
    terminal: bool,
    chosen: bool,
}

#[derive(Template)]
#[template(path = "console/timeline.html")]
struct Database {
    frame: Frame,
    line: Line,
    id: String,
    marks: Vec<Mark>,
    total: String,
    more: bool,
}

/// One request on the timeline.
struct Mark {
    n: u64,
    seq: u64,
    when: When,
    since: String,
    verdict: &'static str,
    text: Shown,
    took: String,
    /// Begin and width in the picture.
    x: u64,
    width: u64,
    start_us: i64,
    end_us: i64,
    outcome: Shown,
}

/// `GET /sessions/{id}/play`.
pub async fn show(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Path(name): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Fault> {
    let found =
        find::session(console.collector(), name).await.map_err(|m| Fault::from(m).of(&login))?;
    let collector = Arc::clone(console.collector());
    let frame = Frame::new("Replay", "sessions", &login);
    let line = Line::new(&found, now_us());
    let id = href(&found).trim_start_matches("/sessions/").to_owned();
    if found.protocol != "ssh" {
        let read = blocking(move || marks(&collector, &found)).await;
        let (marks, more) = read.map_err(|f| f.of(&login))?;
        let total = marks.iter().map(|m| m.end_us).max().unwrap_or(0);
        let total = duration(u64::try_from(total).unwrap_or(0));
        let page = Database { frame, line, id, marks, total, more };
        return Ok(Html(page.render()?).into_response());
    }
    let channels = blocking(move || channels(&collector, &found, which.channel)).await;
    let channels = channels.map_err(|f| f.of(&login))?;
    let cast = match which.channel {
        Some(ch) => format!("/sessions/{id}/download/asciicast?channel={ch}"),
        None => format!("/sessions/{id}/download/asciicast"),
    };
    let page = Terminal { frame, line, id, cast, channels, player: assets::player() };
    let mut answer = Html(page.render()?).into_response();
    answer.extensions_mut().insert(WithPlayer);
    Ok(answer)
}

fn channels(
    collector: &Collector,
    found: &Found,
    chosen: Option<u32>,
) -> Result<Vec<Channel>, Fault> {
    let reader = found.reader(collector)?;
    let mut all: Vec<Channel> = Vec::new();
    reader.bodies_until(found.number, 0, |e| {
        match e.kind {
            ChannelOpen::KIND => {
                if let Ok(open) = serde_json::from_slice::<ChannelOpen<'_>>(e.body) {
                    let kind = Shown::short(&open.kind, 60);
                    let chosen = chosen == Some(open.ch);
                    all.push(Channel { ch: open.ch, kind, terminal: false, chosen });
                }
            }
            ChannelPty::KIND => {
                if let Ok(pty) = serde_json::from_slice::<ChannelPty<'_>>(e.body)
                    && let Some(channel) = all.iter_mut().find(|c| c.ch == pty.ch)
                {
                    channel.terminal = true;
                }
            }
            _ => {}
        }
        all.len() < 100
    })?;
    if chosen.is_none()
        && let Some(first) = all.iter().position(|c| c.terminal)
    {
        all[first].chosen = true;
    }
    Ok(all)
}

fn marks(collector: &Collector, found: &Found) -> Result<(Vec<Mark>, bool), Fault> {
    let reader = found.reader(collector)?;
    let mut all: Vec<Mark> = Vec::new();
    let mut more = false;
    reader.bodies_until(found.number, 0, |e| {
        let at = e.ts_us.saturating_sub(found.opened_us).max(0);
        let mut settle = |n: u64, end: i64, words: String| {
            if let Some(mark) = all.iter_mut().rev().find(|m| m.n == n) {
                mark.end_us = end.max(mark.start_us);
                mark.outcome = Shown::short(&words, 120);
            }
        };
        match e.kind {
            Request::KIND => {
                let Ok(r) = serde_json::from_slice::<Request<'_>>(e.body) else { return true };
                if all.len() >= MOST {
                    more = true;
                    return false;
                }
                all.push(Mark {
                    n: r.n,
                    seq: e.seq,
                    when: When::at(e.ts_us),
                    since: format!("+{}", duration(u64::try_from(at).unwrap_or(0))),
                    verdict: verdict(&r.verdict),
                    text: Shown::short(&r.text, 300),
                    took: String::new(),
                    x: 0,
                    width: 0,
                    start_us: at,
                    end_us: at,
                    outcome: Shown::line(r.message.as_deref().unwrap_or_default()),
                });
            }
            Answered::KIND => {
                let Ok(r) = serde_json::from_slice::<Answered<'_>>(e.body) else { return true };
                let words = match &r.error {
                    Some(error) => format!("{} {}", error.code, error.message),
                    None => format!("{} rows, {} masked", r.rows, r.masked),
                };
                settle(r.n, at, words);
            }
            HoldDecided::KIND => {
                let Ok(h) = serde_json::from_slice::<HoldDecided<'_>>(e.body) else { return true };
                let by = h.by.map(|b| format!(" by {b}")).unwrap_or_default();
                settle(h.n, at, format!("{}{by}", h.outcome));
            }
            _ => {}
        }
        true
    })?;
    place(&mut all);
    Ok((all, more))
}

/// Where each request stands in the picture.
fn place(all: &mut [Mark]) {
    let total = all.iter().map(|m| m.end_us).max().unwrap_or(0).max(1).unsigned_abs();
    for mark in all {
        let (start, end) = (mark.start_us.unsigned_abs(), mark.end_us.unsigned_abs());
        mark.x = (start * WIDTH / total).min(WIDTH - 4);
        mark.width = ((end - start) * WIDTH / total).clamp(4, WIDTH - mark.x);
        mark.took = duration(end - start);
    }
}
