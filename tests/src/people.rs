//! The certified npm `oidc-provider` for people who log in with a browser.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::net::{Net, Place};
use crate::paths;
use crate::proc::{Cmd, Daemon, wait_for};
use crate::visitor::Visitor;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/issuer/people.mjs");
/// Client id of the console.
pub const CLIENT: &str = "0oa-console";
/// Secret of the console.
pub const SECRET: &str = "a secret of the console";

/// Counts issuers, each of which has a name of its own.
static ISSUERS: AtomicU32 = AtomicU32::new(0);
/// The process that serves every test which needs no network of its own: starting it is what
/// takes time. It ends with this process.
static SHARED: Mutex<Option<Arc<Process>>> = Mutex::new(None);

/// A running process.
struct Process {
    origin: String,
    _process: Daemon,
}

/// An issuer with its people.
pub struct People {
    process: Arc<Process>,
    name: String,
    issuer: String,
}

impl Process {
    fn start(log: &Path, netns: Option<&str>) -> Result<Arc<Self>> {
        let npm = paths::npm().context("no npm packages")?;
        let command = Cmd::new("node").arg(SCRIPT).arg(npm);
        let command = match netns {
            Some(netns) => command.in_netns(netns),
            None => command,
        };
        let mut process = command.daemonize(log)?;
        let origin = wait_for("the provider to listen", Duration::from_secs(60), || {
            process.still_runs()?;
            Ok(process.log().lines().find(|l| l.starts_with("http://")).map(str::to_owned))
        })?;
        Ok(Arc::new(Self { origin, _process: process }))
    }
}

impl People {
    /// Makes an issuer for a console at an origin, with people: id, name, groups.
    pub fn start(console: &str, people: &[(&str, &str, &[&str])]) -> Result<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let process = match &*shared {
            Some(process) => Arc::clone(process),
            None => {
                let log = paths::target().join("people.log");
                // An earlier process said there where it was.
                let _ = std::fs::remove_file(&log);
                Arc::clone(shared.insert(Process::start(&log, None)?))
            }
        };
        drop(shared);
        Self::at(process, console, people)
    }

    /// The same in a process of its own inside a network of a bed.
    pub fn start_in(
        net: &Net,
        place: Place,
        dir: &Path,
        console: &str,
        people: &[(&str, &str, &[&str])],
    ) -> Result<Self> {
        let process = Process::start(&dir.join("people.log"), Some(&net.name(place)))?;
        net.inside(place, || Self::at(process, console, people))
    }

    fn at(process: Arc<Process>, console: &str, people: &[(&str, &str, &[&str])]) -> Result<Self> {
        let people: serde_json::Map<String, Value> = people
            .iter()
            .map(|(id, name, groups)| ((*id).into(), json!({ "name": name, "groups": groups })))
            .collect();
        let given = json!({
            "client_id": CLIENT,
            "client_secret": SECRET,
            "redirect_uri": format!("{console}/login/callback"),
            "people": people,
        });
        let name = format!("people{}", ISSUERS.fetch_add(1, Ordering::Relaxed));
        let issuer = tell(&format!("{}/{name}", process.origin), &given.to_string())?;
        Ok(Self { process, name, issuer })
    }

    /// The exact `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Where it is.
    pub fn origin(&self) -> &str {
        &self.process.origin
    }

    fn tell(&self, what: &str, body: &str) -> Result<String> {
        tell(&format!("{}/{}/{what}", self.origin(), self.name), body)
    }

    /// The next logins are this person's; the empty id brings the page back.
    pub fn next(&self, id: &str) -> Result<()> {
        self.tell("next", id).map(drop)
    }

    /// An access token with these claims; `null` takes one away.
    pub fn mint(&self, claims: &Value) -> Result<String> {
        self.tell("mint", &claims.to_string())
    }
}

fn tell(url: &str, body: &str) -> Result<String> {
    let answer = Visitor::default().send("POST", url, &[], body.as_bytes())?;
    ensure!(answer.status == 200, "{url}: {} {}", answer.status, answer.text());
    Ok(answer.text())
}
