//! Why a verdict is what it is: every rule, whether it took part, and if not, which key stood
//! in the way.

use jiff::Timestamp;
use serde::Serialize;

use super::facts::{Ask, SqlFacts, Subject};
use super::judge::miss;
use super::load::PolicySet;
use super::matching::{Sense, exclusion, request_miss};
use super::model::{About, Classes, On, Rule};
use super::ssh;
use super::verdict::{DEFAULT_DENY, Effect, Verdict};

/// A verdict with what every rule had to say.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// Every rule of the set that is about this kind of request, those that took part first.
    pub rules: Vec<RuleNote>,
}

/// What one rule had to say.
#[derive(Debug, Clone, Serialize)]
pub struct RuleNote {
    /// Its name.
    pub rule: String,
    /// The file it stands in.
    pub file: String,
    /// The line it begins on.
    pub line: usize,
    /// Its effect; none when it only masks or limits.
    pub effect: Option<Effect>,
    /// Whether it took part in the verdict.
    pub matched: bool,
    /// Why, or why not.
    pub why: String,
}

impl PolicySet {
    /// The verdict, and for every rule why it took part or which key kept it out.
    pub fn explain(&self, subject: &Subject, ask: &Ask<'_>, now: Timestamp) -> Explanation {
        let verdict = self.judge(subject, ask, now);
        let on = match ask {
            Ask::Connect => On::Connect,
            Ask::Sql(_) | Ask::Ssh(_) => On::Request,
        };
        let mut rules: Vec<RuleNote> = Vec::new();
        for hit in verdict.rules.iter().filter(|h| h.rule != DEFAULT_DENY) {
            let is = |r: &&Rule| r.name == hit.rule && *r.file == *hit.file;
            let line = self.rules.iter().find(is).map_or(0, |r| r.line);
            rules.push(RuleNote {
                rule: hit.rule.clone(),
                file: hit.file.clone(),
                line,
                effect: hit.effect,
                matched: true,
                why: hit.why.clone(),
            });
        }
        for rule in self.rules.iter().filter(|r| r.on == on) {
            if rules.iter().any(|n| n.rule == rule.name && *n.file == *rule.file) {
                continue;
            }
            rules.push(RuleNote {
                rule: rule.name.clone(),
                file: rule.file.to_string(),
                line: rule.line,
                effect: rule.effect,
                matched: false,
                why: why_not(rule, subject, ask, now),
            });
        }
        Explanation { verdict, rules }
    }
}

fn why_not(rule: &Rule, subject: &Subject, ask: &Ask<'_>, now: Timestamp) -> String {
    let sense = if rule.effect == Some(Effect::Allow) { Sense::Cover } else { Sense::Strict };
    if let Some(miss) = miss(rule, subject, now, sense) {
        return format!("`{miss}` does not hold");
    }
    match ask {
        Ask::Connect => "does not match".into(),
        Ask::Sql(facts) => sql_why_not(rule, facts, sense),
        Ask::Ssh(facts) => ssh::why_not(rule, facts, sense),
    }
}

fn sql_why_not(rule: &Rule, facts: &SqlFacts, sense: Sense) -> String {
    if rule.about == About::Ssh {
        return "is about SSH".into();
    }
    let request = match sense {
        Sense::Strict => request_miss(rule, facts),
        Sense::Cover => exclusion(rule, facts),
    };
    if let Some(miss) = request {
        return format!("`{miss}` does not hold");
    }
    let m = &rule.when;
    let covers = m.statement.unwrap_or(Classes::ANY).covers(facts);
    let key = if covers & facts.class_bits() == 0 { Some("statement") } else { m.names_key() };
    match key {
        Some(key) => format!("`{key}` has nothing of this statement"),
        None => "allows nothing of this statement".into(),
    }
}
