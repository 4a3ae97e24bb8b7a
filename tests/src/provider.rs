//! The certified npm `oidc-provider`, shaped as an Okta custom authorization server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::paths;
use crate::proc::{Cmd, Daemon, wait_for};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/issuer/provider.mjs");
const PACKAGE: &str = "oidc-provider";

/// A running provider with one client.
pub struct Provider {
    process: Daemon,
    url: String,
}

/// Its client, and what tokens it gets.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Client id.
    pub client_id: String,
    /// Public key for private_key_jwt, with `kid`, `use` and `alg`.
    pub jwk: Value,
    /// Audience of its tokens.
    pub audience: String,
    /// The scope it may ask for.
    pub scope: String,
    /// Lifetime of its tokens in seconds.
    pub lifetime: u32,
}

impl Provider {
    /// Why there can be none here.
    pub fn absent() -> Option<String> {
        let there = paths::npm().is_some_and(|n| n.join("node_modules").join(PACKAGE).exists());
        (!there).then(|| format!("no {PACKAGE}: run `cargo xtask setup console`"))
    }

    /// Starts it and waits until it listens.
    pub fn start(dir: &Path, spec: &Spec) -> Result<Self> {
        let npm = paths::npm().context("no npm packages")?;
        let given = json!({
            "client_id": spec.client_id,
            "jwk": spec.jwk,
            "audience": spec.audience,
            "scope": spec.scope,
            "lifetime": spec.lifetime,
        });
        let command = Cmd::new("node").arg(SCRIPT).arg(npm).arg(given.to_string());
        let mut process = command.daemonize(&dir.join("provider.log"))?;
        let url = wait_for("the provider to listen", Duration::from_secs(30), || {
            process.still_runs()?;
            let log = process.log();
            Ok(log.lines().find(|l| l.starts_with("http://")).map(str::to_owned))
        })?;
        Ok(Self { process, url })
    }

    /// The exact `iss`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many tokens it has given.
    pub fn tokens(&self) -> usize {
        self.process.log().lines().filter(|l| l.starts_with("token ")).count()
    }
}
