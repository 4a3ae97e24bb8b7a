//! What is allowed to be written but probably not meant.

use serde::Serialize;

use super::load::PolicySet;
use super::model::{About, Matchers, On, Rule};
use super::ssh;
use super::verdict::Effect;

/// Something `policy check` tells, though the set can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The file.
    pub file: String,
    /// The line on which the rule begins.
    pub line: usize,
    /// The rule.
    pub rule: String,
    /// What is probably not meant, and what to write instead.
    pub message: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: rule {:?}: {}", self.file, self.line, self.rule, self.message)
    }
}

/// Claims that only tokens of a user carry.
const USER_CLAIMS: [&str; 3] = ["groups", "uid", "auth_time"];

impl PolicySet {
    /// Looks at every rule on its own, and at the set.
    ///
    /// `services` and `agents` are the names this host knows; a rule that names none of them
    /// is told. Leave them empty where they are not known.
    pub fn warnings(&self, services: &[String], agents: &[String]) -> Vec<Warning> {
        let mut found = Vec::new();
        for rule in &self.rules {
            let mut say = |message: String| {
                found.push(Warning {
                    file: rule.file.to_string(),
                    line: rule.line,
                    rule: rule.name.clone(),
                    message,
                });
            };
            if let Some(claim) = user_claim(&rule.when) {
                say(format!(
                    "no machine token can ever meet it, since those carry no `{claim}`; if agents \
                     that act for themselves are meant too, give them a rule of their own with \
                     `labels`"
                ));
            }
            if let Some(claim) =
                user_claim(&rule.not).filter(|_| rule.effect == Some(Effect::Allow))
            {
                say(format!(
                    "no machine token can ever meet it: in an allow, `not` holds only where \
                     `{claim}` is there and differs; use `labels` for machines"
                ));
            }
            if let Some(name) = unknown(rule.when.service.as_deref(), services) {
                say(format!("no service of this host is called {name:?}"));
            }
            if let Some(name) = unknown(rule.when.agent.as_deref(), agents) {
                say(format!("no registered agent is called {name:?}"));
            }
            say_unsafe(rule, &mut say);
        }
        self.nobody_connects(&mut found);
        self.same_names(&mut found);
        found.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
        found
    }

    /// A name that stands here and in the centre: allowed, since neither side may keep the other
    /// from being loaded, but hard to read in a record.
    fn same_names(&self, found: &mut Vec<Warning>) {
        let of_host = |name: &str| self.rules.iter().find(|r| !r.central && r.name == name);
        for rule in self.rules.iter().filter(|r| r.central) {
            let Some(own) = of_host(&rule.name) else { continue };
            found.push(Warning {
                file: own.file.to_string(),
                line: own.line,
                rule: own.name.clone(),
                message: format!(
                    "{}:{} from the centre has the same name; both are in force",
                    rule.file, rule.line
                ),
            });
        }
    }

    fn nobody_connects(&self, found: &mut Vec<Warning>) {
        if !self.is_empty() && !self.rules.iter().any(|r| r.on == On::Connect && r.can_cover()) {
            found.push(Warning {
                file: self.rules.first().map(|r| r.file.to_string()).unwrap_or_default(),
                line: 0,
                rule: String::new(),
                message: "no rule with on = \"connect\" allows anyone in".into(),
            });
        }
    }
}

fn user_claim(m: &Matchers) -> Option<&str> {
    m.claims.iter().find_map(|(path, condition)| {
        let absent = condition.test(None) == super::condition::Truth::Yes;
        USER_CLAIMS.into_iter().find(|claim| path == claim && !absent)
    })
}

fn unknown<'p>(
    patterns: Option<&'p [super::pattern::Pattern]>,
    known: &[String],
) -> Option<&'p str> {
    if known.is_empty() {
        return None;
    }
    patterns?
        .iter()
        .find(|p| !known.iter().any(|name| p.matches(name)))
        .map(super::pattern::Pattern::as_str)
}

fn say_unsafe(rule: &Rule, say: &mut impl FnMut(String)) {
    if rule.effect == Some(Effect::Allow)
        && rule.when.text.is_some()
        && rule.when.statement.is_none()
        && rule.when.tables.is_none()
        && rule.about != About::Ssh
    {
        say("allows by text alone, which says little of what a statement does; add `statement` \
             and `tables`"
            .into());
    }
    if rule.effect == Some(Effect::Deny) && !rule.masks.is_empty() {
        say("masks what it denies; drop `masks` or the effect".into());
    }
    if rule.effect != Some(Effect::Deny)
        && rule.effect.is_some()
        && rule.when.unseen == Some(true)
        && rule.when.statement.is_none()
        && rule.when.ssh.request.is_none()
    {
        let key = if rule.about == About::Ssh { "request" } else { "statement" };
        say(format!("lets through whatever cannot be seen, of every class; add `{key}`"));
    }
    if rule.can_cover() {
        ssh::say_unsafe(&rule.when.ssh, rule.when.text.is_some(), say);
    }
}
