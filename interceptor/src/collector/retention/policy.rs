//! How long the contents of sessions are kept: `[retention]`.
//!
//! Of all rules that fit a session the longest counts, so that no rule shortens what another
//! demands; the default counts where none fits. Service and protocol are what the host says, and
//! a host that lies about them gets at least the shortest rule that fits its own name.

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Serialize};

/// Longest time, in days: a thousand years. More is a slip.
const MOST_DAYS: u32 = 365_000;
/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// How long the contents of sessions are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days after which what no rule fits is deleted; for ever when absent.
    pub days: Option<u32>,
    /// Rules; of those that fit the longest counts.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// How long some sessions are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Names of hosts, as globs; all when empty.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Services, as globs; all when empty.
    #[serde(default)]
    pub services: Vec<String>,
    /// Protocols; all when empty.
    #[serde(default)]
    pub protocols: Vec<String>,
    /// Days after which it is deleted; for ever when absent.
    pub days: Option<u32>,
}

/// What a session is, as far as rules ask.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Name of the host.
    pub host: &'a str,
    /// Name of the service.
    pub service: &'a str,
    /// Protocol of the service.
    pub protocol: &'a str,
}

/// For how long something is kept, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Term {
    /// Days.
    pub days: u32,
    /// In words: `rule 2, 90 days`.
    pub policy: String,
}

impl Retention {
    /// Whether anything is ever deleted.
    pub fn deletes(&self) -> bool {
        self.shortest().is_some()
    }

    /// Fewest days after which anything is deleted.
    pub fn shortest(&self) -> Option<u32> {
        self.rules.iter().map(|r| r.days).chain([self.days]).flatten().min()
    }

    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        let fine = |days: Option<u32>| days.is_none_or(|d| (1..=MOST_DAYS).contains(&d));
        if !fine(self.days) {
            return Err(format!("retention.days: between 1 and {MOST_DAYS}"));
        }
        for (at, rule) in self.rules.iter().enumerate() {
            let at = at + 1;
            if !fine(rule.days) {
                return Err(format!("retention.rule {at}: days is between 1 and {MOST_DAYS}"));
            }
            if rule.hosts.is_empty() && rule.services.is_empty() && rule.protocols.is_empty() {
                return Err(format!(
                    "retention.rule {at}: say hosts, services or protocols; for all sessions there \
                     is retention.days"
                ));
            }
            if let Some(p) = rule.protocols.iter().find(|p| !["postgres", "ssh"].contains(&&***p)) {
                return Err(format!("retention.rule {at}: protocol {p:?}: postgres or ssh"));
            }
        }
        self.compile().map(drop)
    }

    /// Made ready to be asked often.
    pub fn compile(&self) -> Result<Terms, String> {
        let globs = |at: usize, all: &[String]| -> Result<Vec<GlobMatcher>, String> {
            let compiled = all.iter().map(|g| Glob::new(g).map(|g| g.compile_matcher()));
            compiled.collect::<Result<_, _>>().map_err(|e| format!("retention.rule {at}: {e}"))
        };
        let rules = self.rules.iter().enumerate().map(|(at, r)| {
            Ok(Compiled {
                hosts: globs(at + 1, &r.hosts)?,
                services: globs(at + 1, &r.services)?,
                protocols: r.protocols.clone(),
                days: r.days,
            })
        });
        Ok(Terms { days: self.days, rules: rules.collect::<Result<_, String>>()? })
    }
}

struct Compiled {
    hosts: Vec<GlobMatcher>,
    services: Vec<GlobMatcher>,
    protocols: Vec<String>,
    days: Option<u32>,
}

impl Compiled {
    fn fits(&self, s: Subject<'_>) -> bool {
        let one = |globs: &[GlobMatcher], text| {
            globs.is_empty() || globs.iter().any(|g| g.is_match(text))
        };
        one(&self.hosts, s.host)
            && one(&self.services, s.service)
            && (self.protocols.is_empty() || self.protocols.iter().any(|p| p == s.protocol))
    }
}

/// The policy, ready to be asked.
pub struct Terms {
    days: Option<u32>,
    rules: Vec<Compiled>,
}

impl Terms {
    /// How long a session is kept; `None` for ever.
    pub fn of(&self, subject: Subject<'_>) -> Option<Term> {
        let fitting = self.rules.iter().enumerate().filter(|(_, r)| r.fits(subject));
        // Nothing said is longest of all.
        let longest =
            fitting.max_by_key(|(at, r)| (r.days.map_or(u32::MAX, |d| d), std::cmp::Reverse(*at)));
        match longest {
            Some((at, rule)) => rule
                .days
                .map(|days| Term { days, policy: format!("rule {}, {}", at + 1, count(days)) }),
            None => {
                self.days.map(|days| Term { days, policy: format!("default, {}", count(days)) })
            }
        }
    }
}

fn count(days: u32) -> String {
    if days == 1 { "1 day".into() } else { format!("{days} days") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(toml: &str, host: &str, service: &str, protocol: &str) -> Option<String> {
        let policy: Retention = toml::from_str(toml).unwrap();
        policy.check().unwrap();
        policy.compile().unwrap().of(Subject { host, service, protocol }).map(|t| t.policy)
    }

    #[test]
    fn the_longest_rule_that_fits_counts_and_the_default_where_none_does() {
        let toml = "days = 365\n\
                    [[rule]]\nservices = ['ci-*']\ndays = 30\n\
                    [[rule]]\nhosts = ['db*']\ndays = 90\n\
                    [[rule]]\nhosts = ['vault']\n\
                    [[rule]]\nprotocols = ['ssh']\nservices = ['ci-*', 'shell']\ndays = 1\n";
        let says = |host, service, protocol| of(toml, host, service, protocol);
        assert_eq!(says("web1", "orders", "postgres").unwrap(), "default, 365 days");
        assert_eq!(says("web1", "ci-7", "postgres").unwrap(), "rule 1, 30 days");
        assert_eq!(says("db1", "ci-7", "ssh").unwrap(), "rule 2, 90 days");
        assert_eq!(says("web1", "shell", "ssh").unwrap(), "rule 4, 1 day");
        assert_eq!(says("vault", "ci-7", "ssh"), None, "for ever is longer than all");
        assert_eq!(of("", "db1", "orders", "ssh"), None, "nothing said: for ever");
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let wrong = |toml: &str| {
            toml::from_str::<Retention>(toml)
                .map_err(|e| e.to_string())
                .and_then(|r| r.check())
                .unwrap_err()
        };
        for (toml, words) in [
            ("days = 0", "between 1 and"),
            ("days = 1.5", "invalid type"),
            ("days = '90days'", "invalid type"),
            ("days = 400000", "between 1 and"),
            ("[[rule]]\ndays = 3", "say hosts, services or protocols"),
            ("[[rule]]\nhosts = ['[']\ndays = 3", "retention.rule 1: "),
            ("[[rule]]\nprotocols = ['http']\ndays = 3", "postgres or ssh"),
            ("[[rule]]\nagents = ['x']\ndays = 3", "unknown field"),
        ] {
            let said = wrong(toml);
            assert!(said.contains(words), "{toml}: {said}");
        }
    }
}
