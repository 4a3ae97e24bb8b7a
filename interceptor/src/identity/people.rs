//! Access tokens of people, for an audience that is no service of any host.
//!
//! The same verification and the same checks as for agents, without what belongs to agents: no
//! registry, no source, no ledger of first uses. What agents hold is refused by more than its
//! audience: a token that says who acts for whom, one of a machine, one of a registered agent,
//! and one that is bound to a key, which nothing here proves.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde_json::json;

use super::checks::{CHECKS, Subject};
use super::claims::Claims;
use super::epoch_seconds;
use super::issuer::Pace;
use super::refusal::{Code, Fault, IdentityError, Refusal};
use super::verify::Verifier;
use crate::config::{self, Config};

/// Checks that do not concern people.
const OF_AGENTS: [&str; 3] = ["agent", "source", "key's owner"];

/// Whose tokens are taken, and for what.
#[derive(Debug, Clone)]
pub struct Audience {
    /// Name of the issuer, for messages.
    pub issuer: String,
    /// The exact `iss`.
    pub url: String,
    /// More authorities for fetching its keys.
    pub ca_file: Option<std::path::PathBuf>,
    /// The single `aud` that tokens must carry.
    pub audience: String,
    /// Client ids of agents: their tokens are never a person's.
    pub agents: BTreeSet<String>,
}

/// Checks people's access tokens.
pub struct People {
    verifier: Verifier,
    service: config::Service,
    agents: BTreeSet<String>,
}

impl People {
    /// Prepares the issuer; contacts nobody.
    pub fn new(wanted: &Audience) -> Result<Self, IdentityError> {
        let fail =
            |message: String| IdentityError::Issuer { issuer: wanted.issuer.clone(), message };
        // An audience in the words of a host's configuration, so that the checks are the same.
        let config: Config = serde_json::from_value(json!({
            "issuer": [{
                "name": wanted.issuer, "url": wanted.url, "ca_file": wanted.ca_file,
                "insecure_loopback": true,
            }],
            "service": [{
                "name": "collector", "protocol": "ssh", "port": 1,
                "audience": wanted.audience, "upstream": { "host": "127.0.0.1", "port": 1 },
            }],
        }))
        .map_err(|e| fail(e.to_string()))?;
        let service = config.services.first().cloned();
        let service = service.ok_or_else(|| fail("no audience".into()))?;
        let verifier = Verifier::open(&config, Pace::default(), false)?;
        Ok(Self { verifier, service, agents: wanted.agents.clone() })
    }

    /// The claims of a good token. `uid` is there: it says which person.
    pub async fn prove(&self, token: &[u8], now: SystemTime) -> Result<Claims, Refusal> {
        let (verified, _) = self.verifier.verify(token, Some(&self.service), now).await?;
        let claims = verified.claims.clone();
        let subject = Subject {
            claims: &claims,
            issuer: &verified.issuer.config,
            service: &self.service,
            agent: None,
            now: epoch_seconds(now),
            source: None,
            proof: None,
            key_agent: None,
        };
        let of_people = CHECKS.iter().filter(|c| !OF_AGENTS.contains(&c.name));
        for check in of_people {
            (check.run)(&subject)?;
        }
        self.person(&claims)?;
        Ok(claims)
    }

    fn person(&self, claims: &Claims) -> Result<(), Fault> {
        let refuse = |what: &str| {
            let words =
                format!("{what}: here people act for themselves, with a token of their own");
            Err(Fault::new(Code::WrongType, words))
        };
        if !claims.act.is_empty() || claims.all.contains_key("act") {
            return refuse("the token is of somebody who acts for another");
        }
        if claims.uid.is_none() {
            return refuse("the token is of a machine (it has no uid)");
        }
        if claims.cid.as_ref().is_some_and(|cid| self.agents.contains(cid)) {
            return refuse("the token was issued to a registered agent");
        }
        Ok(())
    }
}
