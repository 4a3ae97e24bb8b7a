//! Following: server-sent events that a small script listens to.
//!
//! A page says what it wants to hear of. It gets either the word that something changed, upon
//! which it fetches itself again, or the new entries of a session as they are on its page. Who
//! follows is asked for again and again: a login that ends takes its followers with it.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;

use super::fault::Fault;
use super::find::{self, Found};
use super::guard::{Viewer, look};
use super::logins;
use super::session::fragment;
use super::{Console, blocking};
use crate::collector::Change;

/// Without a word for so long, one is sent: a connection that broke is noticed, and a change
/// that nobody told of is seen.
const BEAT: Duration = Duration::from_secs(15);
/// A followed session is looked at so often at least.
const LOOK: Duration = Duration::from_secs(2);
/// Changes closer together than this are one.
const CALM: Duration = Duration::from_millis(40);
/// Longest time that a connection is kept; the script comes again.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// Bytes that wait for a slow reader.
const WINDOW: usize = 256 * 1024;

/// From where on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct From {
    after: u64,
}

fn place(console: &Console) -> Result<OwnedSemaphorePermit, Fault> {
    Arc::clone(&console.followers).try_acquire_owned().map_err(|_| {
        let text = "Too many people follow something now. Reload the page instead.";
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, text)
    })
}

fn stream(reader: DuplexStream) -> Response {
    let mut answer = Body::from_stream(ReaderStream::new(reader)).into_response();
    let kind = HeaderValue::from_static("text/event-stream");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

/// `GET /live/{kind}`: a word whenever something of this kind changed.
pub async fn changes(
    State(console): State<Console>,
    Viewer(_): Viewer,
    Path(kind): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let wanted: fn(&Change) -> bool = match kind.as_str() {
        "sessions" => |c| matches!(c, Change::Session(_)),
        "approvals" => |c| matches!(c, Change::Hold(_)),
        "hosts" => |c| matches!(c, Change::Host(_)),
        "policies" => |c| matches!(c, Change::Host(_) | Change::Policies),
        _ => return Err(Fault::not_found("There are sessions, approvals, hosts and policies.")),
    };
    let place = place(&console)?;
    let hub = console.collector().hub.listen();
    // The page says at which count it was made.
    let hello =
        format!("retry: 1000\n\nevent: hello\ndata: {}\n\n", console.collector().hub.told());
    let (mut writer, reader) = tokio::io::duplex(WINDOW);
    tokio::spawn(async move {
        let mut hub = hub;
        let end = Instant::now() + LONGEST;
        let mut said = writer.write_all(hello.as_bytes()).await;
        while said.is_ok() && Instant::now() < end {
            let changed = wait(&mut hub, wanted, BEAT).await;
            if !still_there(&console, &headers).await {
                break;
            }
            let word: &[u8] = match changed {
                Some(true) => b"event: changed\ndata:\n\n",
                Some(false) => b": still here\n\n",
                None => break,
            };
            said = writer.write_all(word).await;
        }
        drop(place);
    });
    Ok(stream(reader))
}

/// Waits for a change. `false`: none came in time. `None`: the collector stops.
async fn wait(
    hub: &mut Receiver<Change>,
    wanted: impl Fn(&Change) -> bool,
    most: Duration,
) -> Option<bool> {
    let until = Instant::now() + most;
    loop {
        match tokio::time::timeout_at(until, hub.recv()).await {
            Err(_) => return Some(false),
            Ok(Ok(change)) if wanted(&change) => break,
            // Whoever was too slow to hear has to look.
            Ok(Err(RecvError::Lagged(_))) => break,
            Ok(Err(RecvError::Closed)) => return None,
            Ok(Ok(_)) => {}
        }
    }
    tokio::time::sleep(CALM).await;
    *hub = hub.resubscribe();
    Some(true)
}

async fn still_there(console: &Console, headers: &HeaderMap) -> bool {
    matches!(look(headers, console).await, Ok(Some((login, _))) if logins::sees(&login.person))
}

/// `GET /sessions/{id}/follow?after=N`: the session's new entries, as HTML of its page.
pub async fn follow(
    State(console): State<Console>,
    Viewer(_): Viewer,
    Path(name): Path<String>,
    Query(from): Query<From>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let found = find::session(console.collector(), name).await?;
    let place = place(&console)?;
    // A browser that comes again says what it saw last.
    let seen = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let after = seen.and_then(|v| v.parse().ok()).unwrap_or(from.after);
    let (writer, reader) = tokio::io::duplex(WINDOW);
    tokio::spawn(async move {
        let mut follower = Follower { console, headers, found, after, writer };
        if let Err(error) = follower.run().await {
            tracing::debug!(%error, "a follower left");
        }
        drop(place);
    });
    Ok(stream(reader))
}

struct Follower {
    console: Console,
    headers: HeaderMap,
    found: Found,
    after: u64,
    writer: DuplexStream,
}

impl Follower {
    async fn run(&mut self) -> std::io::Result<()> {
        let mut hub = self.console.collector().hub.listen();
        let end = Instant::now() + LONGEST;
        let mut checked = Instant::now();
        self.writer.write_all(b"retry: 1000\n\n").await?;
        while Instant::now() < end {
            self.send_new().await?;
            if !self.goes_on().await {
                self.send_new().await?;
                return self.writer.write_all(b"event: ended\ndata:\n\n").await;
            }
            let id = self.found.id;
            if wait(&mut hub, |c| *c == Change::Session(id), LOOK).await.is_none() {
                break;
            }
            if checked.elapsed() > BEAT {
                if !still_there(&self.console, &self.headers).await {
                    break;
                }
                self.writer.write_all(b": still here\n\n").await?;
                checked = Instant::now();
            }
        }
        Ok(())
    }

    async fn goes_on(&mut self) -> bool {
        match find::session(self.console.collector(), self.found.id.to_string()).await {
            Ok(found) => found.live(),
            Err(_) => false,
        }
    }

    async fn send_new(&mut self) -> std::io::Result<()> {
        loop {
            let collector = Arc::clone(self.console.collector());
            let (found, after) = (self.found.clone(), self.after);
            let made = blocking(move || {
                let (fragment, last) = fragment(&collector, &found, after)?;
                let html =
                    if fragment.entries.is_empty() { String::new() } else { fragment.render()? };
                Ok((html, last))
            });
            let Ok((html, last)) = made.await else { return Ok(()) };
            if last == after {
                return Ok(());
            }
            self.after = last;
            if html.is_empty() {
                continue;
            }
            let mut text = format!("id: {last}\nevent: entries\n");
            for line in html.lines() {
                text.push_str("data: ");
                text.push_str(line);
                text.push('\n');
            }
            text.push('\n');
            self.writer.write_all(text.as_bytes()).await?;
        }
    }
}
