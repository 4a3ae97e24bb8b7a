//! Fetching an issuer's discovery document and key set: bounded in bytes and time, without
//! redirects, and never away from the issuer's own origin.

use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openidconnect::core::CoreProviderMetadata;
use openidconnect::http::header::CACHE_CONTROL;
use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse, IssuerUrl};
use reqwest::{Client, Url};

use crate::config;

use super::https::{self, chain};

/// Most bytes of one answer.
const MAX_BYTES: usize = 256 * 1024;
/// How long a key set is fresh when the issuer says nothing.
const DEFAULT_FRESH: Duration = Duration::from_secs(3600);
/// Bounds within which the issuer's word on freshness is honoured.
const FRESH: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// A key set as it was published.
pub(super) struct Published {
    pub bytes: Vec<u8>,
    pub fresh_for: Duration,
}

/// Fetches from one issuer and from nobody else.
pub(super) struct Fetcher {
    client: Client,
    issuer: IssuerUrl,
    origin: Url,
}

/// Why a fetch failed; the text names the address and the reason.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct FetchError(String);

impl FetchError {
    fn new(what: impl Display) -> Self {
        Self(what.to_string())
    }
}

impl Fetcher {
    /// Prepares the client; reads the CA file, contacts nobody.
    pub fn new(issuer: &config::Issuer) -> Result<Self, String> {
        let origin = Url::parse(&issuer.url).map_err(|e| format!("url: {e}"))?;
        let client = https::client(&origin, issuer.ca_file.as_deref(), issuer.insecure_loopback)?;
        Ok(Self {
            client,
            issuer: IssuerUrl::new(issuer.url.clone()).map_err(|e| format!("url: {e}"))?,
            origin,
        })
    }

    /// Discovers the issuer and fetches its key set.
    pub async fn fetch(&self) -> Result<Published, FetchError> {
        let http =
            Http { client: self.client.clone(), origin: self.origin.clone(), last: Arc::default() };
        CoreProviderMetadata::discover_async(self.issuer.clone(), &http)
            .await
            .map_err(|e| FetchError::new(chain(&e)))?;
        let last = http.last.lock().unwrap_or_else(PoisonError::into_inner).take();
        last.ok_or_else(|| FetchError::new("nothing was fetched"))
    }
}

/// The transport that discovery uses; keeps the last answer, which is the key set, as it came.
struct Http {
    client: Client,
    origin: Url,
    last: Arc<Mutex<Option<Published>>>,
}

impl<'c> AsyncHttpClient<'c> for Http {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        let (client, origin, last) = (self.client.clone(), self.origin.clone(), self.last.clone());
        Box::pin(async move {
            let answer = get(&client, &origin, &request.uri().to_string()).await?;
            *last.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Published { bytes: answer.body().clone(), fresh_for: freshness(&answer) });
            Ok(answer)
        })
    }
}

async fn get(client: &Client, origin: &Url, url: &str) -> Result<HttpResponse, FetchError> {
    let url = Url::parse(url).map_err(FetchError::new)?;
    if url.origin() != origin.origin() {
        return Err(FetchError::new(format!(
            "{url} is not at the issuer's own address {}: refused",
            origin.origin().ascii_serialization()
        )));
    }
    let at = |e: &dyn Display| FetchError::new(format!("{url}: {e}"));
    let sent = client.get(url.clone()).header("accept", "application/json").send().await;
    let mut answer = sent.map_err(|e| FetchError::new(chain(&e)))?;
    if answer.content_length().is_some_and(|n| n > MAX_BYTES as u64) {
        return Err(at(&format!("answer larger than {MAX_BYTES} bytes")));
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| at(&chain(&e)))? {
        if body.len() + chunk.len() > MAX_BYTES {
            return Err(at(&format!("answer larger than {MAX_BYTES} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    let mut out = HttpResponse::new(body);
    *out.status_mut() = answer.status();
    *out.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(out)
}

/// How long an answer may be used, within our own bounds.
fn freshness(answer: &HttpResponse) -> Duration {
    let control = answer.headers().get_all(CACHE_CONTROL);
    let directives: Vec<String> = control
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|d| d.trim().to_ascii_lowercase())
        .collect();
    let said = if directives.iter().any(|d| d == "no-store" || d == "no-cache") {
        Duration::ZERO
    } else {
        directives
            .iter()
            .find_map(|d| d.strip_prefix("max-age=")?.trim_matches('"').parse().ok())
            .map_or(DEFAULT_FRESH, Duration::from_secs)
    };
    said.clamp(FRESH.0, FRESH.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuers_word_on_freshness_counts_within_bounds() {
        for (header, seconds) in [
            (None, 3600),
            (Some("max-age=600"), 600),
            (Some("public, Max-Age=600, must-revalidate"), 600),
            (Some("max-age=5"), 60),
            (Some("max-age=999999"), 3600),
            (Some("max-age=nonsense"), 3600),
            (Some("no-cache, no-store"), 60),
        ] {
            let mut answer = HttpResponse::new(Vec::new());
            if let Some(text) = header {
                answer.headers_mut().insert(CACHE_CONTROL, text.parse().unwrap());
            }
            assert_eq!(freshness(&answer).as_secs(), seconds, "{header:?}");
        }
    }
}
