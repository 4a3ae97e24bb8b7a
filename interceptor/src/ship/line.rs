//! HTTPS between this host and its collector, as far as holds, orders and tokens go: one JSON
//! question, one JSON answer, bounded in time and size.
//!
//! The line knows the way before the host is enrolled; until then every question fails like one
//! to a collector that is away.

use std::time::Duration;

use arc_swap::ArcSwapOption;
use reqwest::{Method, RequestBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::identity::https::chain;

/// Largest answer that is read.
pub(super) const MAX_ANSWER: usize = 8 << 20;

/// Why the collector gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// There is no certificate to show.
    #[error("this host is not enrolled at its collector: run `interceptor ship enrol`")]
    NotEnrolled,
    /// It cannot be reached, or did not answer in time.
    #[error("the collector cannot be reached: {0}")]
    Unreachable(String),
    /// It answered with a refusal.
    #[error("the collector refuses ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// What it answered makes no sense.
    #[error("the collector's answer cannot be read: {0}")]
    Unreadable(String),
}

impl LineError {
    /// Whether it answers, and has no room now.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { status: 429, .. })
    }

    /// Whether the same question may be answered later.
    pub fn is_away(&self) -> bool {
        match self {
            Self::NotEnrolled | Self::Unreachable(_) | Self::Unreadable(_) => true,
            // A host that is not known (any more) has nobody who decides for it either.
            Self::Refused { status, .. } => *status >= 500 || matches!(status, 401 | 403),
        }
    }
}

/// The way to the collector.
#[derive(Debug)]
pub struct Line {
    base: String,
    http: ArcSwapOption<reqwest::Client>,
}

impl Line {
    /// To the collector at this URL (`https://name:port`), without a certificate yet.
    pub fn new(collector: &str) -> Self {
        let base = collector.trim_end_matches('/').to_owned();
        Self { base, http: ArcSwapOption::empty() }
    }

    /// From now on with this client, which has the host's certificate.
    pub fn connect(&self, http: reqwest::Client) {
        self.http.store(Some(std::sync::Arc::new(http)));
    }

    /// Where the collector is.
    pub fn collector(&self) -> &str {
        &self.base
    }

    /// Posts JSON and reads JSON.
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
        patience: Duration,
    ) -> Result<T, LineError> {
        exchange(self.request(Method::POST, path)?.json(body), patience).await
    }

    /// Reads JSON.
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, LineError> {
        exchange(self.request(Method::GET, path)?, patience).await
    }

    /// Takes something back.
    pub async fn delete_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
        patience: Duration,
    ) -> Result<T, LineError> {
        exchange(self.request(Method::DELETE, path)?.json(body), patience).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, LineError> {
        let http = self.http.load();
        let http = http.as_ref().ok_or(LineError::NotEnrolled)?;
        Ok(http.request(method, format!("{}{path}", self.base)))
    }
}

async fn exchange<T: DeserializeOwned>(
    request: RequestBuilder,
    patience: Duration,
) -> Result<T, LineError> {
    let away = |e: &reqwest::Error| LineError::Unreachable(chain(e));
    let mut answer = request.timeout(patience).send().await.map_err(|e| away(&e))?;
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|e| away(&e))? {
        if body.len() + part.len() > MAX_ANSWER {
            return Err(LineError::Unreadable("it is too large".into()));
        }
        body.extend_from_slice(&part);
    }
    let status = answer.status();
    if !status.is_success() {
        let text = String::from_utf8_lossy(&body);
        let message = text.chars().filter(|c| !c.is_control()).take(500).collect();
        return Err(LineError::Refused { status: status.as_u16(), message });
    }
    serde_json::from_slice(&body).map_err(|e| LineError::Unreadable(e.to_string()))
}
