//! HTTPS from this host to its collector, with the host's certificate, and to nobody else.
//!
//! Only the authority that the host learnt when it enrolled is trusted: no other authority of
//! the machine can pass for the collector. Bounded in time and size; no redirects, no proxy.

use std::time::Duration;

use reqwest::{Certificate, Identity, Method, RequestBuilder, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::identity::https::{chain, install_crypto};

/// Largest answer that is read.
const MAX_ANSWER: usize = 8 << 20;
const CONNECT: Duration = Duration::from_secs(5);

/// Why the collector gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
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
    /// The client itself cannot be made.
    #[error("HTTPS to the collector cannot be prepared: {0}")]
    Unprepared(String),
}

impl ClientError {
    /// Whether asking again later makes sense.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Unreadable(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unprepared(_) => false,
        }
    }
}

/// The way to the collector.
#[derive(Debug, Clone)]
pub struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// To the collector at this URL. `identity_pem` is the host's certificate and private key.
    pub fn new(
        collector: &str,
        authority_pem: &[u8],
        identity_pem: &[u8],
    ) -> Result<Self, ClientError> {
        install_crypto();
        let fail = |what: String| ClientError::Unprepared(what);
        let base = Url::parse(collector).map_err(|e| fail(format!("{collector:?}: {e}")))?;
        if base.scheme() != "https" {
            return Err(fail(format!("{collector:?} must be https")));
        }
        let authority =
            Certificate::from_pem_bundle(authority_pem).map_err(|e| fail(chain(&e)))?;
        let identity = Identity::from_pem(identity_pem).map_err(|e| fail(chain(&e)))?;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .tls_certs_only(authority)
            .identity(identity)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(4)
            .user_agent(concat!("interceptor/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| fail(chain(&e)))?;
        Ok(Self { base, http })
    }

    /// Posts JSON and reads JSON.
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
        patience: Duration,
    ) -> Result<T, ClientError> {
        self.exchange(self.request(Method::POST, path)?.json(body), patience).await
    }

    /// Reads JSON.
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, ClientError> {
        self.exchange(self.request(Method::GET, path)?, patience).await
    }

    /// Takes something back.
    pub async fn delete_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
        patience: Duration,
    ) -> Result<T, ClientError> {
        self.exchange(self.request(Method::DELETE, path)?.json(body), patience).await
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, ClientError> {
        let url = self.base.join(path).map_err(|e| ClientError::Unprepared(e.to_string()))?;
        Ok(self.http.request(method, url))
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let away = |e: &reqwest::Error| ClientError::Unreachable(chain(e));
        let mut answer = request.timeout(patience).send().await.map_err(|e| away(&e))?;
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|e| away(&e))? {
            if body.len() + part.len() > MAX_ANSWER {
                return Err(ClientError::Unreadable("it is too large".into()));
            }
            body.extend_from_slice(&part);
        }
        let status = answer.status();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body);
            let message = text.chars().filter(|c| !c.is_control()).take(500).collect();
            return Err(ClientError::Refused { status: status.as_u16(), message });
        }
        serde_json::from_slice(&body).map_err(|e| ClientError::Unreadable(e.to_string()))
    }
}
