//! Policies that hosts may take from here: every version, and which host has which.

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Html;

use super::Console;
use super::fault::Fault;
use super::frame::Frame;
use super::guard::Viewer;
use super::text::{Shown, When};
use crate::collector::CollectorError;
use crate::collector::hosts::{self, Listed};
use crate::collector::policies::{self, Version};

#[derive(Template)]
#[template(path = "console/policies.html")]
struct Page {
    frame: Frame,
    newest: Option<u64>,
    versions: Vec<Row>,
    hosts: Vec<OnHost>,
    /// Hosts that take the newest version and have it, of those that take any.
    current: usize,
    takes: usize,
}

/// One version.
struct Row {
    number: u64,
    when: When,
    by: Shown,
    what: Shown,
    rules: u64,
    sha256: Shown,
    note: Shown,
}

/// One host.
struct OnHost {
    name: Shown,
    words: Shown,
    behind: bool,
    since: Option<When>,
    error: Shown,
}

/// `GET /policies`.
pub async fn list(
    State(console): State<Console>,
    Viewer(login): Viewer,
) -> Result<Html<String>, Fault> {
    let told = console.collector().hub.told();
    let look = |db: &crate::collector::db::Connection| {
        Ok::<_, CollectorError>((policies::list(db)?, hosts::list(db)?))
    };
    let (versions, all) = console.collector().central.read(look).await?;
    let newest = versions.first().map(|v| v.version);
    let known: Vec<&Listed> = all.iter().filter(|h| h.revoked_us.is_none()).collect();
    let taking = || known.iter().filter(|h| h.policies.takes);
    let page = Page {
        frame: Frame::new("Policies", "policies", &login).live("policies", told),
        newest,
        current: taking().filter(|h| Some(h.policies.status.version) == newest).count(),
        takes: taking().count(),
        versions: versions.iter().map(row).collect(),
        hosts: known.iter().map(|h| on_host(h, newest)).collect(),
    };
    Ok(Html(page.render()?))
}

fn row(v: &Version) -> Row {
    let what = match v.content_of {
        Some(of) => format!("{} to {of}", v.what),
        None => v.what.clone(),
    };
    Row {
        number: v.version,
        when: When::at(v.published_us),
        by: Shown::short(&v.by_words(), 60),
        what: Shown::line(&what),
        rules: v.rules,
        sha256: Shown::line(&v.sha256.chars().take(16).collect::<String>()),
        note: Shown::line(v.note.as_deref().unwrap_or_default()),
    }
}

fn on_host(h: &Listed, newest: Option<u64>) -> OnHost {
    let p = &h.policies;
    OnHost {
        name: Shown::line(&h.name),
        words: Shown::line(&p.words()),
        behind: p.takes && newest.is_some_and(|newest| p.status.version != newest),
        since: p.status.since_us.filter(|_| p.takes).map(When::at),
        error: Shown::lines(p.status.error.as_deref().unwrap_or_default()),
    }
}

#[derive(Template)]
#[template(path = "console/policy.html")]
struct One {
    frame: Frame,
    version: Row,
    files: Vec<File>,
}

struct File {
    name: Shown,
    text: Shown,
}

/// `GET /policies/{version}`.
pub async fn show(
    State(console): State<Console>,
    Viewer(login): Viewer,
    Path(number): Path<u64>,
) -> Result<Html<String>, Fault> {
    let found = console.collector().central.read(move |db| policies::show(db, number)).await?;
    let Some((version, files)) = found else {
        return Err(Fault::not_found("There is no such version of policies.").of(&login));
    };
    let file = |f: &crate::ship::bundle::File| File {
        name: Shown::line(&f.name),
        text: Shown::whole(&f.text),
    };
    let page = One {
        frame: Frame::new(&format!("Policies, version {number}"), "policies", &login),
        version: row(&version),
        files: files.iter().flatten().map(file).collect(),
    };
    Ok(Html(page.render()?))
}
