//! Who calls: the access token of a request, as a person with roles.

use std::time::SystemTime;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::{Api, Refused};
use crate::collector::Role;
use crate::collector::decisions::Person;
use crate::identity::{Claims, Code};

/// Somebody with a good token and at least one role.
pub struct Caller(pub Person);

impl FromRequestParts<Api> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refused> {
        let mut all = parts.headers.get_all(AUTHORIZATION).iter();
        let (first, second) = (all.next(), all.next());
        let token = first.and_then(|h| h.as_bytes().split_at_checked(7));
        let token = match (token, second) {
            (Some((scheme, token)), None) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
            _ => {
                let text = "send an access token: `Authorization: Bearer …`";
                return Err(Refused::new(StatusCode::UNAUTHORIZED, "TOKEN_MISSING", text));
            }
        };
        let Some(people) = &api.0.people else {
            let text = "the collector's configuration has no [login]: nobody can be known";
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "NO_LOGIN", text));
        };
        let claims = people.prove(token, SystemTime::now()).await.map_err(|refusal| {
            tracing::info!(code = refusal.code.as_str(), "an API token was refused");
            let status = match refusal.code {
                Code::KeysUnavailable => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::UNAUTHORIZED,
            };
            Refused::new(status, refusal.code.as_str(), refusal.message)
        })?;
        let person = person(api, claims);
        if person.roles.is_empty() {
            let text = "none of your groups has a role here: see [roles] in the collector's \
                        configuration, and ask for a scope that puts groups into the token";
            return Err(Refused::new(StatusCode::FORBIDDEN, "NO_ROLE", text));
        }
        Ok(Self(person))
    }
}

/// The person of an access token is its `uid`, which is the `sub` of their ID tokens.
fn person(api: &Api, claims: Claims) -> Person {
    let config = &api.0.collector.config;
    let claim = config.login.as_ref().map_or("groups", |l| l.groups_claim.as_str());
    let groups: Vec<String> = match claims.all.get(claim).and_then(|g| g.as_array()) {
        Some(list) => list.iter().filter_map(|g| g.as_str()).map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let roles = config.roles.of(groups.iter().map(String::as_str));
    let sub = claims.uid.unwrap_or_default();
    Person { issuer: claims.iss, name: claims.sub, sub, groups, roles }
}

impl Caller {
    /// Refuses somebody without a role.
    pub fn demand(&self, role: Role) -> Result<(), Refused> {
        if self.0.is(role) {
            return Ok(());
        }
        let text = "this needs a role that none of your groups has";
        Err(Refused::new(StatusCode::FORBIDDEN, "NO_ROLE", text))
    }
}
