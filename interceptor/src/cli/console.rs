//! The command line's side of a collector's REST interface, as a person with a token of their
//! own. The token is read from a file, since arguments and environments are seen by others.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use reqwest::{Method, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::SecretRef;
use crate::identity::https;

/// Largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the collector is, and who asks.
#[derive(Debug, Clone, Args)]
pub struct CollectorArgs {
    /// Ask the collector with this address instead of the daemon of this host.
    #[arg(long, global = true, value_name = "URL")]
    pub collector: Option<String>,
    /// File with your own access token for the collector; only you may be able to read it.
    #[arg(long, global = true, value_name = "FILE")]
    pub access_token_file: Option<PathBuf>,
    /// PEM file of more authorities that are trusted for the collector's certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// A collector that is asked with one person's token.
pub struct Console {
    base: Url,
    http: reqwest::Client,
    token: SecretString,
}

impl Console {
    /// The collector that the arguments name, if they name one.
    pub fn of(args: &CollectorArgs) -> anyhow::Result<Option<Self>> {
        let Some(url) = &args.collector else { return Ok(None) };
        let file = args.access_token_file.as_ref();
        let file =
            file.context("--collector needs --access-token-file with a token of your own")?;
        let base = Url::parse(url).with_context(|| format!("--collector {url:?}"))?;
        let http = https::client(&base, args.ca_file.as_deref(), true)
            .map_err(|e| anyhow::anyhow!("--collector: {e}"))?;
        let token = SecretRef::File { file: file.clone() }.read()?;
        Ok(Some(Self { base, http, token }))
    }

    /// Reads.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    /// Does something.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.ask(Method::POST, path, Some(body)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<T> {
        let url = self.base.join(path)?;
        let mut request = self.http.request(method, url).timeout(PATIENCE);
        request = request.bearer_auth(self.token.expose_secret());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await;
        let mut answer =
            answer.map_err(|e| anyhow::anyhow!("the collector: {}", https::chain(&e)))?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await? {
            if bytes.len() + part.len() > MAX_ANSWER {
                bail!("the collector's answer is too large");
            }
            bytes.extend_from_slice(&part);
        }
        let status = answer.status();
        if !status.is_success() {
            bail!("the collector refuses ({status}): {}", words(&bytes));
        }
        serde_json::from_slice(&bytes).context("the collector's answer cannot be read")
    }
}

/// The words of a refusal, whatever its form, safe for a terminal.
fn words(body: &[u8]) -> String {
    let said = serde_json::from_slice::<Value>(body).ok();
    let said = said.as_ref().and_then(|v| {
        let error = &v["error"];
        let text = [&error["message"], &v["message"], &v["detail"], error];
        text.into_iter().find_map(|t| t.as_str().map(str::to_owned))
    });
    let text = said.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.chars().filter(|c| !c.is_control()).take(1000).collect()
}
