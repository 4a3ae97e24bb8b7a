//! Who acts, for whom, and since when: the checks on an agent's OIDC access token.
//!
//! [`Identity::prove`] is the only way to a [`Proven`]: every check has passed and the token's
//! first use is on disk. A raw token is looked at and forgotten; its SHA-256 and its claims are
//! what stays. Nothing here speaks a wire protocol, writes records or judges a request.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::config::{self, Config};

mod barred;
mod cache_file;
mod checks;
mod claims;
mod client_key;
mod dpop;
mod fetch;
pub(crate) mod https;
mod inspect;
mod issuer;
mod keys;
mod people;
mod proof;
mod refusal;
mod replay;
mod reserve;
mod source;
mod strict;
mod token;
mod verify;
mod way;

pub use claims::{Actor, Claims, MAX_ACTORS};
pub use client_key::{ProvenKey, ssh_thumbprint, thumbprint};
pub use dpop::{MAX_PROOF, PROOF_ALGORITHMS, Proof, read_proof};
pub use inspect::{Inspection, Inspector, ServiceInspection, Step, StepState};
pub use issuer::{IssuerStatus, Pace};
pub use people::{Audience, People};
pub use refusal::{Code, IdentityError, Refusal};
pub use reserve::{Reservation, Reserve, Reserved, Reserving, hash_jti};
pub use source::Source;
pub use token::{MAX_TOKEN, hash_token, is_token};
pub use way::Way;

use barred::Barred;
use replay::{Ledger, Outcome, Use};
use russh::keys::PublicKey;
use verify::{Verified, Verifier};

/// Name of the extension of an OpenSSH user certificate that holds an access token. Who makes
/// such certificates (`interceptor agent`) and who reads them agree on it here.
pub const CERTIFICATE_EXTENSION: &str = "okta-at@interceptor";

/// How often the ledger of first uses is swept.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// The identity side of a daemon.
pub struct Identity {
    verifier: Verifier,
    ledger: Arc<Ledger>,
    /// Asked before a first use, where the host has a collector.
    fleet: OnceLock<Arc<dyn Reserve>>,
    barred: Barred,
}

/// A token as an agent presented it.
pub struct Presented<'a> {
    /// The raw token; the caller wipes it afterwards.
    pub token: &'a [u8],
    /// The service on whose port it came.
    pub service: &'a config::Service,
    /// Where it came from.
    pub source: Source,
    /// The client's key, proven on this very connection.
    pub client_key: Option<ProvenKey<'a>>,
    /// The clock by which the token is judged.
    pub now: SystemTime,
}

impl<'a> Presented<'a> {
    fn occasion(&self) -> Occasion<'a> {
        let Self { service, source, client_key, now, .. } = *self;
        Occasion { service, source, client_key, now }
    }
}

/// Where and when a token is used, whatever the token is.
#[derive(Debug, Clone, Copy)]
pub struct Occasion<'a> {
    /// The service on whose port it is used.
    pub service: &'a config::Service,
    /// Where the connection comes from.
    pub source: Source,
    /// The client's key, proven on this very connection.
    pub client_key: Option<ProvenKey<'a>>,
    /// The clock by which the token is judged.
    pub now: SystemTime,
}

/// What a token said whose signature was good: its claims and hashes, never the token itself.
/// It proves nobody; [`Identity::prove_kept`] runs every check again.
#[derive(Clone)]
pub struct Kept(Arc<Verified>);

impl Kept {
    /// The claims, without what belongs to a moment or a connection.
    pub fn claims(&self) -> &Claims {
        &self.0.claims
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("token_sha256", &self.0.claims.token_sha256).finish()
    }
}

impl fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presented")
            .field("token", &format_args!("[{} bytes]", self.token.len()))
            .field("service", &self.service.name)
            .field("source", &self.source)
            .field("client_key", &self.client_key.is_some())
            .field("now", &self.now)
            .finish()
    }
}

/// A proven identity: all checks passed. Only [`Identity::prove`] makes one.
#[derive(Debug, Clone)]
pub struct Proven {
    claims: Arc<Claims>,
    agent: Arc<config::Agent>,
    first_use: bool,
}

impl Proven {
    /// The claims as they were at this instant.
    pub fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// The registered agent.
    pub fn agent(&self) -> &Arc<config::Agent> {
        &self.agent
    }

    /// The token's `exp`, without leeway.
    pub fn expires_at(&self) -> SystemTime {
        let exp = u64::try_from(self.claims.exp).unwrap_or(0);
        UNIX_EPOCH.checked_add(Duration::from_secs(exp)).unwrap_or(UNIX_EPOCH)
    }

    /// Whether this was the token's first use, which pinned it to its source.
    pub fn pinned_new(&self) -> bool {
        self.first_use
    }
}

impl Identity {
    /// Prepares the issuers and opens the ledger. Contacts nobody: an issuer that is down
    /// delays no start.
    pub async fn open(config: &Config) -> Result<Arc<Self>, IdentityError> {
        Self::open_with(config, Pace::default()).await
    }

    /// The same with another pace of asking issuers.
    pub async fn open_with(config: &Config, pace: Pace) -> Result<Arc<Self>, IdentityError> {
        let ledger = Ledger::open(&config.paths.state)?;
        let verifier = Verifier::open(config, pace, true)?;
        let kept = ledger.barred(epoch_seconds(SystemTime::now()));
        let kept = kept.map_err(|message| IdentityError::State {
            path: config.paths.state.join("tokens.db"),
            message,
        })?;
        let (fleet, barred) = (OnceLock::new(), Barred::of(kept));
        Ok(Arc::new(Self { verifier, ledger, fleet, barred }))
    }

    /// From now on a token is reserved there before its first use here. Once, before the first
    /// connection is served.
    pub fn reserve_at(&self, fleet: Arc<dyn Reserve>) {
        let _ = self.fleet.set(fleet);
    }

    /// Takes a token no more: by its `jti`, or the SHA-256 of the token or of its `jti`. At once,
    /// and in memory alone: [`Identity::keep_barred`] makes it last.
    pub fn bar(&self, token: &str) {
        self.barred.add(token);
    }

    /// Keeps a barred token so beyond the end of the daemon, for as long as any token of now can
    /// be good. Blocks while it goes to the disk: what the token opened is ended before.
    pub fn keep_barred(&self, token: &str) {
        if !barred::is_name(token) {
            return;
        }
        let seconds = |span: config::Span| i64::try_from(span.0.as_secs()).unwrap_or(i64::MAX);
        let longest = self.verifier.issuers().iter().map(|issuer| {
            // It may begin a leeway from now, and is taken for a leeway after its end.
            let leeway = seconds(issuer.config.leeway).saturating_mul(2);
            seconds(issuer.config.max_lifetime).saturating_add(leeway)
        });
        let now = epoch_seconds(SystemTime::now());
        let until = now.saturating_add(longest.max().unwrap_or_default());
        if let Err(error) = self.ledger.bar(token, until) {
            warn!(%error, "a token that was ended is taken again after a restart of the daemon");
        }
    }

    /// Refuses a token that was barred since it was proven. To be asked once its session can be
    /// found by those who end sessions: from then on a bar and an end reach it.
    pub fn still_good(&self, proven: &Proven) -> Result<(), Refusal> {
        match self.barred_fault(&proven.claims) {
            None => Ok(()),
            Some(fault) => {
                Err(Refusal { claims: Some(proven.claims.clone()), ..Refusal::from(fault) })
            }
        }
    }

    fn barred_fault(&self, claims: &Claims) -> Option<refusal::Fault> {
        let words = "what this token had opened was ended on purpose: get a new token";
        self.barred.has(claims).then(|| refusal::Fault::new(Code::Barred, words))
    }

    /// Checks a token for a service and pins it to its source. The first use is durable before
    /// this returns `Ok`.
    pub async fn prove(&self, presented: Presented<'_>) -> Result<Proven, Refusal> {
        let Presented { token, service, now, .. } = presented;
        let (verified, offline) = self.verifier.verify(token, Some(service), now).await?;
        self.settle(&verified, offline, presented.occasion()).await
    }

    /// Checks a token's form and signature only, for a use that follows.
    pub async fn examine(
        &self,
        token: &[u8],
        service: &config::Service,
        now: SystemTime,
    ) -> Result<Kept, Refusal> {
        let (verified, _) = self.verifier.verify(token, Some(service), now).await?;
        Ok(Kept(verified))
    }

    /// Proves by a token that was examined before, at whatever moment and on whatever connection:
    /// every check is made as if the token had come now.
    pub async fn prove_kept(&self, kept: &Kept, at: Occasion<'_>) -> Result<Proven, Refusal> {
        let offline = self.verifier.still_good(&kept.0, at.service, at.now).await?;
        self.settle(&kept.0, offline, at).await
    }

    /// The agent for which an SSH key is registered. That key proves no token: such a connection
    /// is nobody's until one came.
    pub fn agent_of_key(&self, key: &PublicKey) -> Option<&Arc<config::Agent>> {
        self.verifier.agent_of_key(key)
    }

    /// Judges claims whose signature is good, and pins their token.
    async fn settle(
        &self,
        verified: &Verified,
        offline: bool,
        occasion: Occasion<'_>,
    ) -> Result<Proven, Refusal> {
        let Occasion { service, source, client_key, now } = occasion;
        let at = epoch_seconds(now);
        let proof = client_key.map(|key| key.name());
        let mut claims = verified.claims.clone();
        claims.age_at_use_s = at.saturating_sub(claims.iat);
        claims.offline = offline;
        claims.pop = proof.clone();
        let claims = Arc::new(claims);
        let agent = self.verifier.agent(&claims);
        let refuse = |fault: refusal::Fault| {
            // A bound token beside the wrong key is in the wrong hands.
            let beside = proof.as_deref().filter(|_| fault.code == Code::ProofRequired);
            Refusal {
                alert: beside.is_some(),
                detail: beside.map(|key| proof::misplaced(&claims, key)),
                claims: Some(claims.clone()),
                ..Refusal::from(fault)
            }
        };
        checks::run(&checks::Subject {
            claims: &claims,
            issuer: &verified.issuer.config,
            service,
            agent,
            now: at,
            source: Some(&source),
            proof: proof.as_deref(),
            key_agent: client_key.and_then(|key| self.verifier.agent_of_proven(key)),
        })
        .map_err(refuse)?;
        let Some(agent) = agent else {
            return Err(refuse(refusal::Fault::new(Code::UnknownAgent, "no such agent")));
        };
        let leeway = i64::try_from(verified.issuer.config.leeway.0.as_secs()).unwrap_or(i64::MAX);
        let usage = Use {
            iss: claims.iss.clone(),
            jti: claims.jti.clone(),
            source: source.key(agent),
            client_key: claims.pop.clone(),
            now: at,
            expires: claims.exp.saturating_add(leeway),
        };
        if let Some(fault) = self.barred_fault(&claims) {
            return Err(refuse(fault));
        }
        self.reserve(&usage, service, &claims).await?;
        let first_use = self.pin(usage, &claims).await?;
        Ok(Proven { claims, agent: agent.clone(), first_use })
    }

    /// Reserves a token at the fleet before it is noted here, so that a refused one leaves
    /// nothing behind and an answer that was late is asked for again.
    async fn reserve(
        &self,
        usage: &Use,
        service: &config::Service,
        claims: &Arc<Claims>,
    ) -> Result<(), Refusal> {
        let Some(fleet) = self.fleet.get() else { return Ok(()) };
        if self.ledger.knows(usage).await {
            return Ok(());
        }
        let reservation = Reservation {
            issuer: usage.iss.clone(),
            jti_hash: hash_jti(&usage.jti),
            expires: usage.expires,
            source: usage.source.clone(),
            service: service.name.clone(),
        };
        let (code, message, detail, alert) = match fleet.reserve(reservation).await {
            Reserved::Ours | Reserved::Later => return Ok(()),
            Reserved::Elsewhere => (
                Code::Copied,
                "this token was first used at another host and is good only there: get a token of \
                 your own",
                "the collector says that another host has this token",
                true,
            ),
            Reserved::Unanswered => (
                Code::Unreserved,
                "it could not be made sure in time that this token is used here alone: try again, \
                 or tell the host's operator that its collector does not answer",
                "the collector did not answer in time",
                false,
            ),
        };
        let (message, detail) = (message.to_owned(), Some(detail.to_owned()));
        Err(Refusal { code, message, detail, claims: Some(claims.clone()), alert })
    }

    async fn pin(&self, usage: Use, claims: &Arc<Claims>) -> Result<bool, Refusal> {
        let (here, here_key) = (usage.source.clone(), usage.client_key.clone());
        let refusal = |code, message: &str, detail, alert| Refusal {
            code,
            message: message.to_owned(),
            detail: Some(detail),
            claims: Some(claims.clone()),
            alert,
        };
        match self.ledger.note(usage).await {
            Ok(Outcome::First) => Ok(true),
            Ok(Outcome::Again) => Ok(false),
            Ok(Outcome::Elsewhere(pin)) => Err(refusal(
                Code::Copied,
                "this token was first used from elsewhere and is good only there: get a token of \
                 your own",
                format!(
                    "first used at {} from {} with client key {}; now from {here} with client \
                     key {}",
                    pin.used_at,
                    pin.source,
                    pin.client_key.as_deref().unwrap_or("none"),
                    here_key.as_deref().unwrap_or("none"),
                ),
                true,
            )),
            Err(error) => {
                warn!(%error, "the ledger of first uses cannot be written");
                Err(refusal(
                    Code::Store,
                    "the host cannot note the use of this token: try again or tell its operator",
                    error,
                    true,
                ))
            }
        }
    }

    /// How things stand with every issuer.
    pub fn issuers(&self, now: SystemTime) -> Vec<IssuerStatus> {
        self.verifier.issuers().iter().map(|issuer| issuer.status(now)).collect()
    }

    /// Keeps key sets fresh and the ledger small for as long as the daemon runs; never returns.
    pub async fn refresh_keys(self: Arc<Self>) {
        let mut tasks = tokio::task::JoinSet::new();
        for issuer in self.verifier.issuers() {
            tasks.spawn(issuer.clone().keep_fresh());
        }
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        loop {
            tick.tick().await;
            let ledger = self.ledger.clone();
            let now = epoch_seconds(SystemTime::now());
            let swept = tokio::task::spawn_blocking(move || ledger.sweep(now)).await;
            if let Ok(Err(error)) = swept {
                warn!(%error, "the ledger of first uses cannot be swept");
            }
        }
    }
}

fn epoch_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
