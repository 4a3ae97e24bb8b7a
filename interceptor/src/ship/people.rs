//! Who the people of the collector are, in the words of this host.
//!
//! A host knows issuers by their configured names, the collector by `iss`. All authorization
//! servers of one Okta organisation share their users, so that two issuers count as the same
//! when scheme, host and port are: a person must not escape the rule about requests of their
//! own by logging in at the next server of the same organisation.

use std::collections::BTreeSet;

use reqwest::Url;

use super::wire::{By, MAX_NAME};
use crate::approval::{Decider, Seat};
use crate::config::Issuer;

/// Most people in one decision.
const MAX_PEOPLE: usize = 16;

/// Why a decision has nobody behind it that this host could judge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeopleError {
    /// Nobody, or a crowd.
    #[error("a decision has between 1 and {MAX_PEOPLE} people behind it, not {0}")]
    Number(usize),
    /// A login at an issuer that tells nothing about the tokens of this host.
    #[error(
        "people log in at {0}, which shares no users with any [[issuer]] of this host: nobody could tell whether a request is their own"
    )]
    UnknownIssuer(String),
}

/// Whether two issuers share their users.
pub fn same_people(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match (Url::parse(a), Url::parse(b)) {
        (Ok(a), Ok(b)) => a.origin() == b.origin() && a.origin().is_tuple(),
        _ => false,
    }
}

/// The people of one decision as a decider of this host.
pub fn decider(by: &[By], issuers: &[Issuer]) -> Result<Decider, PeopleError> {
    if by.is_empty() || by.len() > MAX_PEOPLE {
        return Err(PeopleError::Number(by.len()));
    }
    let mut people: Vec<&By> = Vec::new();
    let mut identities = BTreeSet::new();
    for person in by {
        let known: Vec<_> =
            issuers.iter().filter(|i| same_people(&i.url, &person.issuer)).collect();
        if known.is_empty() {
            return Err(PeopleError::UnknownIssuer(person.issuer.chars().take(200).collect()));
        }
        identities.extend(known.iter().map(|i| (i.name.clone(), person.sub.clone())));
        let same = |p: &&By| p.sub == person.sub && same_people(&p.issuer, &person.issuer);
        if people.iter().find(|p| same(p)).is_none() {
            people.push(person);
        }
    }
    let names: Vec<String> = people.iter().map(|p| printable(&p.name, &p.sub)).collect();
    Ok(Decider {
        user: names.join(" and "),
        identities: identities.into_iter().collect(),
        seat: Seat::Collector { people: people.len() },
    })
}

/// A name for a line of text; it proves nothing, and may be empty or meant to mislead.
fn printable(name: &str, sub: &str) -> String {
    let name = if name.trim().is_empty() { sub } else { name };
    name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(issuer: &str, sub: &str, name: &str) -> By {
        By { issuer: issuer.into(), sub: sub.into(), name: name.into() }
    }

    fn issuers() -> Vec<Issuer> {
        let toml = "[[issuer]]\nname='okta'\nurl='https://e.okta.com/oauth2/a'\n\
                    [[issuer]]\nname='okta-b'\nurl='https://e.okta.com/oauth2/b'\n\
                    [[issuer]]\nname='other'\nurl='https://id.example.net/'\n";
        toml::from_str::<crate::config::Config>(toml).unwrap().issuers
    }

    #[test]
    fn a_person_is_the_same_at_every_server_of_an_organisation() {
        let d = decider(&[by("https://e.okta.com", "00u1", "Ann\u{1b}[2J")], &issuers()).unwrap();
        let ids: Vec<_> = d.identities.iter().map(|(i, s)| format!("{i}/{s}")).collect();
        assert_eq!(ids, ["okta/00u1", "okta-b/00u1"]);
        assert_eq!(d.to_string(), "Ann[2J (okta/00u1, okta-b/00u1) at the collector");
        assert!(!same_people("https://e.okta.com", "https://e.okta.com.evil.example"));
        assert!(!same_people("https://e.okta.com", "http://e.okta.com"));
        assert!(!same_people("urn:a", "urn:b"));
    }

    #[test]
    fn one_person_twice_is_one_and_strangers_are_nobody() {
        let (a, b) = ("https://e.okta.com/oauth2/a", "https://e.okta.com/oauth2/b");
        let twice = decider(&[by(a, "00u1", "Ann"), by(b, "00u1", "Bob")], &issuers()).unwrap();
        assert_eq!(twice.seat, Seat::Collector { people: 1 });
        let two = decider(&[by(a, "00u1", "Ann"), by(a, "00u2", "")], &issuers()).unwrap();
        assert_eq!((two.user.as_str(), two.seat), ("Ann and 00u2", Seat::Collector { people: 2 }));
        let stranger = decider(&[by("https://x.example", "00u1", "")], &issuers()).unwrap_err();
        assert!(matches!(stranger, PeopleError::UnknownIssuer(_)));
        assert_eq!(decider(&[], &issuers()), Err(PeopleError::Number(0)));
    }
}
