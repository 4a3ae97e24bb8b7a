//! From bytes to claims whose signature is good, and from claims to their registered agent.
//!
//! A token that was verified before is recognised by its hash and not verified again, as long as
//! the key that signed it is still published. Everything that depends on time, service or source
//! is judged at every use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use lru::LruCache;
use russh::keys::PublicKey;
use russh::keys::ssh_key::public::KeyData;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{self, Config};

use super::cache_file::CacheFile;
use super::claims::Claims;
use super::client_key::ProvenKey;
use super::issuer::{IssuerKeys, Pace};
use super::keys::algorithm_name;
use super::refusal::{Code, Fault, IdentityError, quote};
use super::token::{self, Parsed, hex};

/// Bytes of tokens whose claims are remembered.
const MAX_REMEMBERED: usize = 4 * 1024 * 1024;

/// Verifies tokens of all configured issuers.
pub(super) struct Verifier {
    issuers: Vec<Arc<IssuerKeys>>,
    by_cid: HashMap<(String, String), Arc<config::Agent>>,
    by_actor: HashMap<(String, String), Arc<config::Agent>>,
    by_key: HashMap<KeyData, Arc<config::Agent>>,
    seen: Mutex<Seen>,
}

/// A token whose signature was good. The claims carry no moment: age, offline and proof are set
/// at each use.
pub(super) struct Verified {
    pub claims: Claims,
    pub issuer: Arc<IssuerKeys>,
    key: [u8; 32],
    size: usize,
}

struct Seen {
    tokens: LruCache<[u8; 32], Arc<Verified>>,
    bytes: usize,
}

impl Seen {
    fn remember(&mut self, id: [u8; 32], verified: Arc<Verified>) {
        self.bytes += verified.size;
        if let Some((_, old)) = self.tokens.push(id, verified) {
            self.bytes -= old.size;
        }
        while self.bytes > MAX_REMEMBERED {
            let Some((_, old)) = self.tokens.pop_lru() else { break };
            self.bytes -= old.size;
        }
    }
}

impl Verifier {
    /// Prepares all issuers; contacts nobody. With `keep` their key sets live in the state
    /// directory.
    pub fn open(config: &Config, pace: Pace, keep: bool) -> Result<Self, IdentityError> {
        let issuers = config
            .issuers
            .iter()
            .map(|issuer| {
                let state = &config.paths.state;
                let file = keep.then(|| CacheFile::new(state, &issuer.name, &issuer.url));
                IssuerKeys::open(issuer.clone(), file, pace).map_err(|message| {
                    IdentityError::Issuer { issuer: issuer.name.clone(), message }
                })
            })
            .collect::<Result<_, _>>()?;
        let (mut by_cid, mut by_actor) = (HashMap::new(), HashMap::new());
        let mut by_key = HashMap::new();
        for agent in &config.agents {
            let shared = Arc::new(agent.clone());
            for key in &agent.ssh_keys {
                by_key.insert(key.0.key_data().clone(), shared.clone());
            }
            if let Some(cid) = &agent.cid {
                by_cid.insert((agent.issuer.clone(), cid.clone()), shared.clone());
            }
            if let Some(actor) = &agent.act_sub {
                by_actor.insert((agent.issuer.clone(), actor.clone()), shared);
            }
        }
        let seen = Mutex::new(Seen { tokens: LruCache::unbounded(), bytes: 0 });
        Ok(Self { issuers, by_cid, by_actor, by_key, seen })
    }

    pub fn issuers(&self) -> &[Arc<IssuerKeys>] {
        &self.issuers
    }

    /// The registered agent of a token: its outermost actor if it has one, else its client.
    /// A delegated token never falls back to its client.
    pub fn agent(&self, claims: &Claims) -> Option<&Arc<config::Agent>> {
        let (registry, id) = match (claims.act.first(), &claims.cid) {
            (Some(actor), _) => (&self.by_actor, &actor.sub),
            (None, Some(cid)) => (&self.by_cid, cid),
            (None, None) => return None,
        };
        registry.get(&(claims.issuer.clone(), id.clone()))
    }

    /// The agent for which an SSH key is registered.
    pub fn agent_of_key(&self, key: &PublicKey) -> Option<&Arc<config::Agent>> {
        self.by_key.get(key.key_data())
    }

    /// The same of a proven key of any kind.
    pub fn agent_of_proven(&self, key: ProvenKey<'_>) -> Option<&Arc<config::Agent>> {
        match key {
            ProvenKey::Ssh(key) => self.agent_of_key(key),
            ProvenKey::Spki(_) | ProvenKey::Jkt(_) => None,
        }
    }

    /// Whether what was verified before still is: its issuer is accepted here and the key that
    /// signed it is still published. `true`: the issuer's keys could not be confirmed lately.
    pub async fn still_good(
        &self,
        known: &Verified,
        service: &config::Service,
        now: SystemTime,
    ) -> Result<bool, Fault> {
        accepts(Some(service), &known.issuer.config)?;
        let found = known.issuer.find(&known.claims.kid, now).await?;
        if found.key.digest == known.key {
            return Ok(found.offline);
        }
        let issuer = quote(&known.issuer.config.name);
        let words = format!("the key that signed the token is not published by {issuer} any more");
        Err(Fault::new(Code::UnknownKey, words))
    }

    /// Checks form and signature, and that the service accepts the issuer. `true` beside the
    /// result: the issuer's keys could not be confirmed lately.
    pub async fn verify(
        &self,
        token: &[u8],
        service: Option<&config::Service>,
        now: SystemTime,
    ) -> Result<(Arc<Verified>, bool), Fault> {
        let id =
            if token.len() <= token::MAX_TOKEN { Sha256::digest(token).into() } else { [0; 32] };
        if let Some(known) = self.recall(&id) {
            accepts(service, &known.issuer.config)?;
            let found = known.issuer.find(&known.claims.kid, now).await?;
            if found.key.digest == known.key {
                return Ok((known, found.offline));
            }
        }
        let parsed = token::parse(token)?;
        let issuer = self.issuer_of(&parsed)?;
        accepts(service, &issuer.config)?;
        let pinned = algorithm_name(issuer.config.algorithm);
        if parsed.header.alg != pinned {
            return Err(Fault::new(
                Code::WrongAlgorithm,
                format!(
                    "the token is signed with {}; {pinned} is pinned for issuer {}",
                    parsed.header.alg,
                    quote(&issuer.config.name)
                ),
            ));
        }
        let found = issuer.find(&parsed.header.kid, now).await?;
        found.key.verify(token, &issuer.config)?;
        let mut claims = Claims::read(&issuer.config.name, parsed.claims)?;
        claims.kid = parsed.header.kid;
        claims.token_sha256 = hex(&id);
        let verified = Arc::new(Verified {
            claims,
            issuer: issuer.clone(),
            key: found.key.digest,
            size: token.len(),
        });
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remember(id, verified.clone());
        Ok((verified, found.offline))
    }

    fn recall(&self, id: &[u8; 32]) -> Option<Arc<Verified>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).tokens.get(id).cloned()
    }

    /// The issuer is the one whose configured URL is exactly the token's `iss`.
    fn issuer_of(&self, parsed: &Parsed) -> Result<&Arc<IssuerKeys>, Fault> {
        let iss = match parsed.claims.get("iss") {
            Some(Value::String(iss)) => iss,
            _ => return Err(Fault::new(Code::BadClaim, "the token's claim iss is missing")),
        };
        self.issuers.iter().find(|i| i.config.url == *iss).ok_or_else(|| {
            Fault::new(
                Code::UnknownIssuer,
                format!("the token is from {}, {}", quote(iss), self.hint(iss)),
            )
        })
    }

    fn hint(&self, iss: &str) -> String {
        let near = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
        for issuer in &self.issuers {
            let (name, url) = (quote(&issuer.config.name), issuer.config.url.as_str());
            if near(iss, url) {
                return format!("which differs from issuer {name} by a slash at the end only");
            }
            if url.strip_prefix(iss.trim_end_matches('/')).is_some_and(|r| r.starts_with('/')) {
                return format!(
                    "the org authorization server, whose tokens are not accepted: ask issuer \
                     {name} at {url} for a token"
                );
            }
        }
        "which is no configured issuer".to_owned()
    }
}

fn accepts(service: Option<&config::Service>, issuer: &config::Issuer) -> Result<(), Fault> {
    match service {
        Some(s) if !s.issuers.is_empty() && !s.issuers.contains(&issuer.name) => Err(Fault::new(
            Code::UnknownIssuer,
            format!("this service does not accept tokens of issuer {}", quote(&issuer.name)),
        )),
        _ => Ok(()),
    }
}
