//! What the daemon would say of a token, for every service at once, without using it: no source,
//! no proof and no first use, and nothing is written.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::Config;

use super::checks::{CHECKS, Subject};
use super::refusal::{Code, Fault, IdentityError};
use super::token::{self, hash_token};
use super::verify::Verifier;
use super::{IssuerStatus, Pace, Source, epoch_seconds};

/// Inspects tokens.
pub struct Inspector {
    config: Config,
    verifier: Verifier,
}

/// All that can be said of one token.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// SHA-256 of the token, hex: by this it is found in records.
    pub token_sha256: String,
    /// Its length in bytes.
    pub bytes: usize,
    /// `alg`, `kid` and `typ` of its header, when it has the form of a token.
    pub header: Option<Map<String, Value>>,
    /// Its claims, whether proven or not.
    pub claims: Option<Map<String, Value>>,
    /// Whether the signature was checked and is good.
    pub verified: bool,
    /// Name of the registered agent.
    pub agent: Option<String>,
    /// How things stand with the configured issuers.
    pub issuers: Vec<IssuerStatus>,
    /// One answer per service.
    pub services: Vec<ServiceInspection>,
}

impl Inspection {
    /// Whether any service would accept the token.
    pub fn accepted_anywhere(&self) -> bool {
        self.services.iter().any(|s| s.accepted)
    }
}

/// What one service would say.
#[derive(Debug, Serialize)]
pub struct ServiceInspection {
    /// Its name.
    pub service: String,
    /// Whether every check that can be made here passes.
    pub accepted: bool,
    /// The checks in their order; the first that fails decides.
    pub steps: Vec<Step>,
}

impl ServiceInspection {
    /// The failure that the agent would see.
    pub fn first_failure(&self) -> Option<&Step> {
        self.steps.iter().find(|s| s.state == StepState::Failed)
    }
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Step {
    /// What was checked.
    pub check: &'static str,
    /// How it went.
    pub state: StepState,
    /// The refusal's code when it failed.
    pub code: Option<Code>,
    /// The refusal's words when it failed, or why it was not checked.
    pub message: Option<String>,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// It passes.
    Passed,
    /// It fails.
    Failed,
    /// It can be judged only on a connection.
    NotChecked,
}

impl Inspector {
    /// Prepares the issuers; contacts nobody. With `keep`, key sets are read from and written
    /// to the state directory, as the daemon does.
    pub fn new(config: Config, keep: bool) -> Result<Self, IdentityError> {
        let verifier = Verifier::open(&config, Pace::default(), keep)?;
        Ok(Self { config, verifier })
    }

    /// Checks a token against every service, or the named one.
    pub async fn inspect(
        &self,
        token: &[u8],
        service: Option<&str>,
        source: Option<Source>,
        now: SystemTime,
    ) -> Inspection {
        let parsed = token::parse(token);
        let mut out = Inspection {
            token_sha256: hash_token(token),
            bytes: token.len(),
            header: parsed.as_ref().ok().map(|p| header(&p.header)),
            claims: parsed.ok().map(|p| p.claims),
            verified: false,
            agent: None,
            issuers: Vec::new(),
            services: Vec::new(),
        };
        if let Ok((verified, _)) = self.verifier.verify(token, None, now).await {
            out.verified = true;
            out.agent = self.verifier.agent(&verified.claims).map(|a| a.name.clone());
        }
        for s in &self.config.services {
            if service.is_none_or(|name| name == s.name) {
                let steps = self.steps(token, s, source, now).await;
                let accepted = steps.iter().all(|step| step.state != StepState::Failed);
                out.services.push(ServiceInspection { service: s.name.clone(), accepted, steps });
            }
        }
        out.issuers = self.verifier.issuers().iter().map(|i| i.status(now)).collect();
        out
    }

    async fn steps(
        &self,
        token: &[u8],
        service: &crate::config::Service,
        source: Option<Source>,
        now: SystemTime,
    ) -> Vec<Step> {
        let verified = match self.verifier.verify(token, Some(service), now).await {
            Err(fault) => return vec![step("signature", Err(fault))],
            Ok((verified, _)) => verified,
        };
        let subject = Subject {
            claims: &verified.claims,
            issuer: &verified.issuer.config,
            service,
            agent: self.verifier.agent(&verified.claims),
            now: epoch_seconds(now),
            source: source.as_ref(),
            proof: None,
            key_agent: None,
        };
        let mut steps = vec![step("signature", Ok(()))];
        steps.extend(CHECKS.iter().map(|check| {
            let outcome = (check.run)(&subject);
            let known = check.name == "source" && source.is_some();
            if check.on_connection && !known {
                return not_checked(check.name, outcome.err());
            }
            step(check.name, outcome)
        }));
        steps.push(not_checked("first use", None));
        steps
    }
}

fn header(header: &token::Header) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("alg".into(), header.alg.clone().into());
    map.insert("kid".into(), header.kid.clone().into());
    if let Some(typ) = &header.typ {
        map.insert("typ".into(), typ.clone().into());
    }
    map
}

fn step(check: &'static str, outcome: Result<(), Fault>) -> Step {
    match outcome {
        Ok(()) => Step { check, state: StepState::Passed, code: None, message: None },
        Err(fault) => Step {
            check,
            state: StepState::Failed,
            code: Some(fault.code),
            message: Some(fault.message),
        },
    }
}

fn not_checked(check: &'static str, would_need: Option<Fault>) -> Step {
    let message = match would_need {
        Some(fault) => fault.message,
        None => "judged on the connection".to_owned(),
    };
    Step { check, state: StepState::NotChecked, code: None, message: Some(message) }
}
