//! The certified npm `oidc-provider` for people who log in with a browser.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::paths;
use crate::proc::{Cmd, Daemon, wait_for};
use crate::visitor::Visitor;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/issuer/people.mjs");
/// Client id of the console.
pub const CLIENT: &str = "0oa-console";
/// Secret of the console.
pub const SECRET: &str = "a secret of the console";

/// A running provider.
pub struct People {
    process: Daemon,
    issuer: String,
}

impl People {
    /// Starts it for a console at an origin, with people: id, name, groups.
    pub fn start(dir: &Path, console: &str, people: &[(&str, &str, &[&str])]) -> Result<Self> {
        Self::start_in(None, dir, console, people)
    }

    /// The same inside a network namespace.
    pub fn start_in(
        netns: Option<&str>,
        dir: &Path,
        console: &str,
        people: &[(&str, &str, &[&str])],
    ) -> Result<Self> {
        let npm = paths::npm().context("no npm packages")?;
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
        let command = Cmd::new("node").arg(SCRIPT).arg(npm).arg(given.to_string());
        let command = match netns {
            Some(netns) => command.in_netns(netns),
            None => command,
        };
        let mut process = command.daemonize(&dir.join("people.log"))?;
        let issuer = wait_for("the provider to listen", Duration::from_secs(60), || {
            process.still_runs()?;
            Ok(process.log().lines().find(|l| l.starts_with("http://")).map(str::to_owned))
        })?;
        Ok(Self { process, issuer })
    }

    /// The exact `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// What it said.
    pub fn log(&self) -> String {
        self.process.log()
    }

    fn origin(&self) -> &str {
        self.issuer.strip_suffix("/oauth2/default").unwrap_or(&self.issuer)
    }

    fn tell(&self, path: &str, body: &str) -> Result<String> {
        let url = format!("{}{path}", self.origin());
        let answer = Visitor::default().send("POST", &url, &[], body.as_bytes())?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        Ok(answer.text())
    }

    /// The next logins are this person's; the empty id brings the page back.
    pub fn next(&self, id: &str) -> Result<()> {
        self.tell("/next", id).map(drop)
    }

    /// An access token with these claims; `null` takes one away.
    pub fn mint(&self, claims: &Value) -> Result<String> {
        self.tell("/mint", &claims.to_string())
    }
}
