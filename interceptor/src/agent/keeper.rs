//! Keeps a token and its certificate fresh: a new one well before the old one ends, with patience
//! towards an issuer that does not answer, and nothing at all rather than something expired.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use russh::keys::Certificate;
use tokio::sync::watch;

use super::certificate::{CertificateError, certificate};
use super::grant::{Grant, GrantError, Issuer};

/// Shortest and longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A new token is fetched when this much of the old one's life is left, but not more than…
const EARLY: f64 = 0.25;
/// … this much.
const EARLIEST: Duration = Duration::from_secs(300);

/// A token and the certificate that carries it.
#[derive(Debug)]
pub struct Credential {
    /// The token.
    pub grant: Grant,
    /// The certificate.
    pub certificate: Certificate,
}

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// No token.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// No certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl KeepError {
    fn may_pass(&self) -> bool {
        matches!(self, Self::Grant(e) if e.may_pass())
    }
}

/// Fetches and refreshes.
pub struct Keeper {
    issuer: Arc<Issuer>,
    current: watch::Sender<Option<Arc<Credential>>>,
}

impl Keeper {
    /// Gets the first credential. An issuer that does not answer is asked again until `patience`
    /// is over; one that refuses is believed.
    pub async fn start(issuer: Arc<Issuer>, patience: Duration) -> Result<Self, KeepError> {
        let give_up = tokio::time::Instant::now() + patience;
        let mut failures = 0;
        loop {
            match fetch(&issuer).await {
                Ok(credential) => {
                    let (current, _) = watch::channel(Some(Arc::new(credential)));
                    return Ok(Self { issuer, current });
                }
                Err(e) if e.may_pass() && tokio::time::Instant::now() < give_up => {
                    tracing::warn!(error = %e, "no token yet");
                    tokio::time::sleep(pause(failures)).await;
                    failures += 1;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// What is good now; none while nothing is.
    pub fn current(&self) -> watch::Receiver<Option<Arc<Credential>>> {
        self.current.subscribe()
    }

    /// Keeps it fresh; never returns.
    pub async fn run(self) {
        let mut failures: u32 = 0;
        loop {
            let now = self.current.borrow().clone();
            let wait = match &now {
                Some(credential) if failures == 0 => until_refresh(&credential.grant),
                _ => pause(failures.saturating_sub(1)),
            };
            self.wait(wait, now.as_deref()).await;
            match fetch(&self.issuer).await {
                Ok(credential) => {
                    failures = 0;
                    self.current.send_replace(Some(Arc::new(credential)));
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, failures, "no new token");
                }
            }
        }
    }

    /// Waits, and withdraws a credential that ends meanwhile.
    async fn wait(&self, span: Duration, credential: Option<&Credential>) {
        let end = credential.map(|c| left(c.grant.expires_at)).filter(|left| *left < span);
        if let Some(end) = end {
            tokio::time::sleep(end).await;
            self.current.send_replace(None);
            tokio::time::sleep(span.saturating_sub(end)).await;
        } else {
            tokio::time::sleep(span).await;
        }
    }
}

async fn fetch(issuer: &Issuer) -> Result<Credential, KeepError> {
    let grant = issuer.grant(true).await?;
    let settings = issuer.settings();
    let made = certificate(
        issuer.key(),
        &grant.token,
        &settings.users,
        &settings.client_id,
        grant.expires_at,
    )?;
    Ok(Credential { grant, certificate: made })
}

fn left(until: SystemTime) -> Duration {
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Early enough that nobody meets an old token, a little different each time.
fn until_refresh(grant: &Grant) -> Duration {
    let early = grant.lifetime.mul_f64(EARLY * rand::rng().random_range(0.8..1.2)).min(EARLIEST);
    left(grant.expires_at).saturating_sub(early).max(PAUSE.0)
}

/// Twice as long after every failure, a little different each time.
fn pause(failures: u32) -> Duration {
    let base = PAUSE.0.saturating_mul(1 << failures.min(6)).min(PAUSE.1);
    base.mul_f64(rand::rng().random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_met_with_growing_patience() {
        let ms = |n| pause(n).as_millis();
        assert!((750..=1250).contains(&ms(0)));
        assert!((6000..=10_000).contains(&ms(3)));
        assert!((45_000..=75_000).contains(&ms(40)));
    }

    #[test]
    fn a_token_is_renewed_before_its_end() {
        let grant = |life: u64| Grant {
            token: "t".into(),
            bound: true,
            claims: serde_json::Value::Null,
            expires_at: SystemTime::now() + Duration::from_secs(life),
            lifetime: Duration::from_secs(life),
        };
        for (life, from, to) in [(300, 205, 241), (3600, 3295, 3301), (0, 1, 2)] {
            let wait = until_refresh(&grant(life)).as_secs();
            assert!((from..=to).contains(&wait), "{life}: {wait}");
        }
    }
}
