//! Clients' own test-suites, run as they are: what passes against PostgreSQL has to pass
//! through the daemon, but for exceptions that are listed with their reason.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::bed::Bed;
use crate::login::Login;
use crate::paths;

/// Database that suites may fill as they like.
pub const DATABASE: &str = "suite";

/// What became of one test, and why.
pub type Outcomes = BTreeMap<String, (String, String)>;

/// What a suite is and what of it may differ.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Directory below `target/venv/suites` that holds the package.
    pub directory: String,
    /// Python package with `test_suite()`.
    pub package: String,
    /// Fewest tests that pass against PostgreSQL, lest an empty suite passes.
    pub at_least: usize,
    /// Environment of the suite; `{password}` and the like come from the login.
    pub environment: BTreeMap<String, String>,
    /// Tests that may end otherwise through the daemon.
    #[serde(default)]
    pub exception: Vec<Exception>,
}

/// Tests that end otherwise through the daemon.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exception {
    /// Their ids.
    pub tests: Vec<String>,
    /// Why that is right.
    pub reason: String,
}

impl Suite {
    /// Reads a suite's data file.
    pub fn load(text: &str) -> Result<Self> {
        toml::from_str(text).context("the suite's data file")
    }

    /// Where its package is, if it was installed.
    pub fn place(&self) -> Result<PathBuf, String> {
        let python = paths::python().ok_or("no Python drivers: run `cargo xtask setup python`")?;
        let venv = python.parent().and_then(|bin| bin.parent()).ok_or("no virtual environment")?;
        let place = venv.join("suites").join(&self.directory);
        if place.join(&self.package).is_dir() {
            Ok(place)
        } else {
            Err(format!("no {}: run `cargo xtask setup python`", place.display()))
        }
    }

    /// Runs it with a login.
    pub fn run(&self, bed: &Bed, login: &Login) -> Result<Outcomes> {
        let place = self.place().map_err(anyhow::Error::msg)?;
        let python = paths::python().context("no Python")?;
        let mut cmd = bed
            .client(login, python)
            .arg(paths::repository().join("tests/data/suites/run_unittest.py"))
            .arg(&place)
            .arg(&self.package)
            .limit(Duration::from_secs(300));
        for (name, value) in &self.environment {
            let value = value
                .replace("{host}", &login.host)
                .replace("{port}", &login.port.to_string())
                .replace("{user}", &login.user)
                .replace("{password}", &login.password)
                .replace("{database}", &login.database);
            cmd = cmd.env(name, value);
        }
        let out = bed.place(login, cmd).run()?;
        let text = out.ok()?;
        // Some suites print; the outcomes come last.
        let last = text.trim_end().lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| text.clone())
    }

    /// Compares a run through the daemon with one against PostgreSQL itself.
    pub fn compare(&self, direct: &Outcomes, through: &Outcomes) -> Result<()> {
        let passed = direct.values().filter(|(end, _)| end == "ok").count();
        ensure!(passed >= self.at_least, "only {passed} tests pass against PostgreSQL itself");
        let excepted = |id: &String| self.exception.iter().any(|e| e.tests.contains(id));
        let mut wrong = Vec::new();
        for (id, (before, _)) in direct {
            let (after, why) = match through.get(id) {
                Some((after, why)) => (after.as_str(), why.as_str()),
                None => ("not run", ""),
            };
            if before != after && !excepted(id) {
                wrong.push(format!("{id}: {before}, but {after} through the daemon\n{why}"));
            }
            if before == after && excepted(id) {
                wrong.push(format!("{id} is an exception and ends the same: take it off the list"));
            }
        }
        let unknown =
            self.exception.iter().flat_map(|e| &e.tests).filter(|t| !direct.contains_key(*t));
        wrong.extend(unknown.map(|t| format!("{t} is an exception and does not exist")));
        if !wrong.is_empty() {
            bail!("{} of {} tests\n{}", wrong.len(), direct.len(), wrong.join("\n"));
        }
        Ok(())
    }
}
