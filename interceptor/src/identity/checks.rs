//! The checks on a token whose signature is good: time, audience, scope, agent, source, proof.
//!
//! They stand in one table so that the daemon, which stops at the first that fails, and
//! `interceptor token inspect`, which shows all of them, can never disagree.

use std::sync::Arc;

use crate::config;

use super::claims::{Claims, agent_identity};
use super::proof;
use super::refusal::{Code, Fault, quote};
use super::source::Source;

/// Everything that a check may look at.
pub(super) struct Subject<'a> {
    pub claims: &'a Claims,
    pub issuer: &'a config::Issuer,
    pub service: &'a config::Service,
    pub agent: Option<&'a Arc<config::Agent>>,
    /// Seconds since the epoch.
    pub now: i64,
    pub source: Option<&'a Source>,
    /// Name of the client key that was proven.
    pub proof: Option<&'a str>,
    /// The agent for which that key is registered.
    pub key_agent: Option<&'a Arc<config::Agent>>,
}

/// One check.
pub(super) struct Check {
    /// What it is called in `token inspect`.
    pub name: &'static str,
    /// Whether it can be judged only on a connection.
    pub on_connection: bool,
    pub run: fn(&Subject<'_>) -> Result<(), Fault>,
}

/// All checks, in the order in which they decide.
pub(super) const CHECKS: &[Check] = &[
    Check { name: "kind", on_connection: false, run: kind },
    Check { name: "expiry", on_connection: false, run: expiry },
    Check { name: "not before", on_connection: false, run: not_before },
    Check { name: "lifetime", on_connection: false, run: lifetime },
    Check { name: "age", on_connection: false, run: age },
    Check { name: "audience", on_connection: false, run: audience },
    Check { name: "scope", on_connection: false, run: scope },
    Check { name: "agent", on_connection: false, run: agent },
    Check { name: "source", on_connection: true, run: source },
    Check {
        name: "proof",
        on_connection: true,
        run: |s| proof::check(s.claims, s.proof, s.service.protocol),
    },
    Check { name: "key's owner", on_connection: true, run: key_owner },
];

/// Runs all checks and stops at the first that fails.
pub(super) fn run(subject: &Subject<'_>) -> Result<(), Fault> {
    CHECKS.iter().try_for_each(|check| (check.run)(subject))
}

fn fail(code: Code, message: String) -> Result<(), Fault> {
    Err(Fault::new(code, message))
}

/// Okta's prefixes of `jti` tell an access token from its siblings.
fn kind(s: &Subject<'_>) -> Result<(), Fault> {
    let jti = s.claims.jti.as_str();
    let other = match () {
        () if jti.starts_with("ID.") => "an ID token",
        () if jti.starts_with("IDAAG.") => "an identity assertion",
        () => return Ok(()),
    };
    fail(Code::WrongType, format!("this is {other}: use the access token"))
}

fn expiry(s: &Subject<'_>) -> Result<(), Fault> {
    if s.now < s.claims.exp.saturating_add(seconds(s.issuer.leeway)) {
        return Ok(());
    }
    let ago = s.now.saturating_sub(s.claims.exp);
    fail(Code::Expired, format!("the token expired {ago} s ago: get a new one"))
}

fn not_before(s: &Subject<'_>) -> Result<(), Fault> {
    let latest = s.now.saturating_add(seconds(s.issuer.leeway));
    let begin = s.claims.iat.max(s.claims.nbf.unwrap_or(0));
    if begin <= latest {
        return Ok(());
    }
    let ahead = begin.saturating_sub(s.now);
    fail(Code::NotYet, format!("the token begins {ahead} s from now: check this host's clock"))
}

fn lifetime(s: &Subject<'_>) -> Result<(), Fault> {
    let (life, most) = (s.claims.exp.saturating_sub(s.claims.iat), seconds(s.issuer.max_lifetime));
    if life <= 0 {
        return fail(Code::BadClaim, "the token expires before it is issued".into());
    }
    if life <= most {
        return Ok(());
    }
    fail(
        Code::TooLong,
        format!(
            "the token lives {life} s; at most {most} s are accepted from this issuer: shorten \
             the access token lifetime in its access policy"
        ),
    )
}

fn age(s: &Subject<'_>) -> Result<(), Fault> {
    let age = s.now.saturating_sub(s.claims.iat);
    let most = match s.service.max_token_age {
        Some(own) => seconds(own).min(seconds(s.issuer.max_age)),
        None => seconds(s.issuer.max_age),
    };
    if age <= most {
        return Ok(());
    }
    fail(
        Code::Stale,
        format!("the token was issued {age} s ago; this service accepts {most} s: get a new one"),
    )
}

fn audience(s: &Subject<'_>) -> Result<(), Fault> {
    if s.claims.aud == s.service.audience {
        return Ok(());
    }
    fail(
        Code::WrongAudience,
        format!(
            "the token is for {}, this service wants {}",
            quote(&s.claims.aud),
            quote(&s.service.audience)
        ),
    )
}

fn scope(s: &Subject<'_>) -> Result<(), Fault> {
    match &s.service.scope {
        Some(wanted) if !s.claims.scopes.contains(wanted) => fail(
            Code::ScopeExceeded,
            format!(
                "the token has no scope {}, which this service demands: ask for it",
                quote(wanted)
            ),
        ),
        _ => Ok(()),
    }
}

fn agent(s: &Subject<'_>) -> Result<(), Fault> {
    if s.agent.is_some() {
        return Ok(());
    }
    fail(
        Code::UnknownAgent,
        format!(
            "no agent is registered for issuer {} and {}: add an [[agent]] to the configuration",
            quote(&s.claims.issuer),
            agent_identity(s.claims)
        ),
    )
}

fn source(s: &Subject<'_>) -> Result<(), Fault> {
    let (Some(agent), Some(source)) = (s.agent, s.source) else { return Ok(()) };
    if source.allowed_for(agent) {
        return Ok(());
    }
    fail(
        Code::SourceNotAllowed,
        format!(
            "agent {} may not come from {}: its address set is `sources` in the configuration",
            quote(&agent.name),
            source.canonical()
        ),
    )
}

/// A registered key speaks for its own agent only.
fn key_owner(s: &Subject<'_>) -> Result<(), Fault> {
    match (s.key_agent, s.agent) {
        (Some(owner), Some(agent)) if owner.name != agent.name => fail(
            Code::ForeignKey,
            format!(
                "the key of this connection is registered for another agent than {}, whose token \
                 came: use that agent's own key",
                quote(&agent.name)
            ),
        ),
        _ => Ok(()),
    }
}

fn seconds(span: config::Span) -> i64 {
    i64::try_from(span.0.as_secs()).unwrap_or(i64::MAX)
}
