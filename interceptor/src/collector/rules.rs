//! Who may decide what: the collector's rules about approvals, and nothing but rules.
//!
//! Strictest wins: every rule whose services match counts. The person needs a group of each of
//! them, as many people must agree as the highest count says, and the shortest time counts.
//! Whatever the rules say, nobody decides a request of their own, directly or through an agent of
//! theirs, and an agent that belongs to nobody needs two people.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::ship::people::same_people;

/// What holds for one held request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Terms {
    /// How many different people must agree.
    pub needs: u32,
    /// A person needs one group of each of these lists.
    pub groups: Vec<Vec<String>>,
    /// Refused when nobody decides within this time.
    pub expires: Option<Duration>,
}

/// One `[[approval]]` that matches a service.
#[derive(Debug, Clone)]
pub struct Matching<'a> {
    /// Groups of which a person needs one; none means that the role suffices.
    pub groups: &'a BTreeSet<String>,
    /// How many people must agree.
    pub count: u32,
    /// How long a request waits at most.
    pub expires: Option<Duration>,
}

impl Terms {
    /// The strictest of all rules that match, for an agent with or without owner.
    pub fn of<'a>(rules: impl Iterator<Item = Matching<'a>>, owned: bool) -> Self {
        let mut terms =
            Self { needs: if owned { 1 } else { 2 }, groups: Vec::new(), expires: None };
        for rule in rules {
            terms.needs = terms.needs.max(rule.count);
            if !rule.groups.is_empty() {
                terms.groups.push(rule.groups.iter().cloned().collect());
            }
            terms.expires = match (terms.expires, rule.expires) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        terms
    }
}

/// Those whom a request concerns, each by `iss` and id.
#[derive(Debug, Clone, Default)]
pub struct Parties {
    /// The principal (`uid`, `sub`) and every actor.
    pub principals: Vec<(String, String)>,
    /// Who owns the agent.
    pub owners: Vec<(String, String)>,
}

/// Why somebody may not decide a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Barrier {
    /// Not the role.
    #[error("you are no approver: approvers come from groups named in [roles]")]
    NotApprover,
    /// Not a group that a rule asks for.
    #[error("this service needs an approver of one of these groups: {0}")]
    WrongGroup(String),
    /// Their own doing.
    #[error("you stand in the token of this request: somebody else must decide")]
    OwnRequest,
    /// Their agent's doing.
    #[error("you own the agent of this request: somebody else must decide")]
    OwnAgent,
}

impl Barrier {
    /// Stable code for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotApprover => "NOT_AN_APPROVER",
            Self::WrongGroup(_) => "WRONG_GROUP",
            Self::OwnRequest | Self::OwnAgent => "SELF_APPROVAL",
        }
    }
}

/// A person as the rules see them.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// `iss` of the login.
    pub issuer: &'a str,
    /// `sub` of the login.
    pub sub: &'a str,
    /// Groups of the login.
    pub groups: &'a [String],
    /// Whether the login gives the role.
    pub approver: bool,
}

/// Whether a person may take part in deciding a request.
pub fn may_decide(who: Candidate<'_>, parties: &Parties, terms: &Terms) -> Result<(), Barrier> {
    let me = |ids: &[(String, String)]| {
        ids.iter().any(|(issuer, id)| id == who.sub && same_people(issuer, who.issuer))
    };
    if !who.approver {
        return Err(Barrier::NotApprover);
    }
    if me(&parties.principals) {
        return Err(Barrier::OwnRequest);
    }
    if me(&parties.owners) {
        return Err(Barrier::OwnAgent);
    }
    match terms.groups.iter().find(|any| !any.iter().any(|g| who.groups.contains(g))) {
        Some(missing) => Err(Barrier::WrongGroup(missing.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OKTA: &str = "https://e.okta.com/oauth2/default";
    const ORG: &str = "https://e.okta.com";

    fn id(issuer: &str, id: &str) -> (String, String) {
        (issuer.into(), id.into())
    }

    fn parties() -> Parties {
        Parties {
            principals: vec![id(OKTA, "00u-eve"), id(OKTA, "eve@example.com"), id(OKTA, "0oa")],
            owners: vec![id(OKTA, "00u-owner")],
        }
    }

    fn check(issuer: &str, sub: &str, groups: &[&str], terms: &Terms) -> Result<(), &'static str> {
        let groups: Vec<String> = groups.iter().map(|g| (*g).into()).collect();
        let who = Candidate { issuer, sub, groups: &groups, approver: true };
        may_decide(who, &parties(), terms).map_err(|b| b.code())
    }

    #[test]
    fn nobody_decides_for_themselves_however_they_log_in() {
        let terms = Terms::of(std::iter::empty(), true);
        for (who, issuer, sub, want) in [
            ("somebody else", OKTA, "00u-ann", Ok(())),
            ("the principal", OKTA, "00u-eve", Err("SELF_APPROVAL")),
            ("the principal at another server of the org", ORG, "00u-eve", Err("SELF_APPROVAL")),
            (
                "the principal by a sub that is a name",
                OKTA,
                "eve@example.com",
                Err("SELF_APPROVAL"),
            ),
            ("the actor", OKTA, "0oa", Err("SELF_APPROVAL")),
            ("the owner", ORG, "00u-owner", Err("SELF_APPROVAL")),
            ("a namesake of another organisation", "https://o.example", "00u-eve", Ok(())),
        ] {
            assert_eq!(check(issuer, sub, &[], &terms), want, "{who}");
        }
        let stranger = Candidate { issuer: OKTA, sub: "00u-x", groups: &[], approver: false };
        assert_eq!(may_decide(stranger, &parties(), &terms), Err(Barrier::NotApprover));
    }

    #[test]
    fn of_several_rules_the_strictest_holds() {
        let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let (dba, sec, any) = (of(&["dba"]), of(&["security", "ciso"]), of(&[]));
        let minutes = |n: u64| Some(Duration::from_secs(60 * n));
        let rules = || {
            [
                Matching { groups: &dba, count: 1, expires: minutes(30) },
                Matching { groups: &sec, count: 2, expires: minutes(5) },
                Matching { groups: &any, count: 0, expires: None },
            ]
            .into_iter()
        };
        let terms = Terms::of(rules(), true);
        assert_eq!((terms.needs, terms.expires), (2, minutes(5)));
        assert_eq!(check(OKTA, "00u-ann", &["dba", "ciso"], &terms), Ok(()));
        assert_eq!(check(OKTA, "00u-ann", &["dba"], &terms), Err("WRONG_GROUP"));
        assert_eq!(check(OKTA, "00u-ann", &["security"], &terms), Err("WRONG_GROUP"));
        assert_eq!(Terms::of(rules().take(1), true).needs, 1);
        assert_eq!(Terms::of(rules().take(1), false).needs, 2, "an agent of nobody");
        assert_eq!(Terms::of(std::iter::empty(), false).needs, 2);
    }
}
