//! A person at the collector, however they came: by a login or by an access token.

use std::collections::BTreeSet;

use super::audit::Who;
use super::{Config, Role};

/// A person: known by issuer and user id, never by name or address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Configured name of the issuer.
    pub issuer: String,
    /// User id there: `sub` of an ID token, `uid` of an access token.
    pub sub: String,
    /// Name for people.
    pub name: String,
    /// Groups as the issuer said them.
    pub groups: BTreeSet<String>,
    /// What the groups come to here.
    pub roles: BTreeSet<Role>,
}

impl Person {
    /// A person with the roles that the configuration gives these groups.
    pub fn new(
        config: &Config,
        issuer: &str,
        sub: &str,
        name: &str,
        groups: impl IntoIterator<Item = String>,
    ) -> Self {
        let groups: BTreeSet<String> = groups.into_iter().collect();
        let roles = config.roles.of(groups.iter().map(String::as_str));
        Self { issuer: issuer.into(), sub: sub.into(), name: name.into(), groups, roles }
    }

    /// Whether the person has a role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether the person sees sessions: every role does.
    pub fn sees(&self) -> bool {
        !self.roles.is_empty()
    }

    /// As the audit trail names them.
    pub fn who(&self) -> Who {
        Who::Person {
            issuer: self.issuer.clone(),
            sub: self.sub.clone(),
            name: self.name.clone(),
        }
    }
}
