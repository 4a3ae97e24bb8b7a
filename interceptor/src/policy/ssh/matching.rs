//! Whether a rule holds for an SSH request; the readings are those of `policy::matching`.

use super::facts::{Argument, FileUse, Program, SshFacts};
use super::pattern::PathPattern;
use super::rules::SshMatchers;
use crate::policy::matching::Miss;
use crate::policy::model::{Matchers, Rule};

/// What of the request a rule does not fit, in the strict reading.
pub(super) fn request_miss(rule: &Rule, facts: &SshFacts) -> Option<Miss> {
    touches_miss(&rule.when, facts)
        .map(|key| Miss { key, negated: false })
        .or_else(|| unseen_miss(rule, facts))
        .or_else(|| certain_miss(&rule.not, facts).map(|key| Miss { key, negated: true }))
}

/// What a rule that lets through excludes and the request may contain, or a condition on the
/// request as a whole that fails.
pub(super) fn exclusion(rule: &Rule, facts: &SshFacts) -> Option<Miss> {
    if text_miss(&rule.when, facts, false) {
        return Some(Miss { key: "text", negated: false });
    }
    let (m, ssh) = (&rule.not, &rule.not.ssh);
    let parts = ssh.keys();
    let key = if text_miss(m, facts, true) {
        Some("text")
    } else {
        parts.into_iter().find(|key| touches(key, ssh, facts))
    };
    key.map(|key| Miss { key, negated: true })
}

fn text_miss(m: &Matchers, facts: &SshFacts, negated: bool) -> bool {
    m.text.as_ref().is_some_and(|r| r.is_match(&facts.text) == negated)
}

fn touches_miss(m: &Matchers, facts: &SshFacts) -> Option<&'static str> {
    if text_miss(m, facts, false) {
        return Some("text");
    }
    m.ssh.keys().into_iter().find(|key| !touches(key, &m.ssh, facts))
}

/// Whether anything of the request may be what the key names.
fn touches(key: &str, m: &SshMatchers, facts: &SshFacts) -> bool {
    match key {
        "request" => m.request.is_some_and(|c| c.touches(facts)),
        "programs" | "arguments" => program_touched(m, facts).is_some(),
        "paths" | "operations" => file_touched(m, facts).is_some(),
        "destinations" => {
            let patterns = m.destinations.iter().flatten();
            facts.destination.as_ref().is_some_and(|d| patterns.into_iter().any(|p| p.may_match(d)))
        }
        _ => variable_touched(m, facts).is_some(),
    }
}

/// The first program that may be one the rule means.
pub(super) fn program_touched<'f>(m: &SshMatchers, facts: &'f SshFacts) -> Option<&'f Program> {
    facts.programs.iter().find(|program| {
        m.programs.as_ref().is_none_or(|ps| ps.iter().any(|p| p.may_match(program)))
            && m.arguments.as_ref().is_none_or(|patterns| match patterns.as_slice() {
                [] => program.args.is_empty(),
                patterns => program
                    .args
                    .iter()
                    .any(|a| a.known().is_none_or(|text| patterns.iter().any(|p| p.matches(text)))),
            })
    })
}

/// The first use of a file that may be one the rule means.
pub(super) fn file_touched<'f>(m: &SshMatchers, facts: &'f SshFacts) -> Option<&'f FileUse> {
    let home = facts.home.as_ref();
    let may = |p: &PathPattern, file: &FileUse| p.may_match(file, home, m.below);
    facts.files.iter().find(|file| {
        m.operations.is_none_or(|ops| ops & file.op.bit() != 0)
            && m.paths.as_ref().is_none_or(|ps| ps.iter().any(|p| may(p, file)))
    })
}

pub(super) fn variable_touched<'f>(m: &SshMatchers, facts: &'f SshFacts) -> Option<&'f String> {
    let patterns = m.variables.as_ref()?;
    facts.variables.iter().find(|v| patterns.iter().any(|p| p.matches(v)))
}

/// In the strict reading a negation holds unless everything certainly is what it names.
fn certain_miss(m: &Matchers, facts: &SshFacts) -> Option<&'static str> {
    if text_miss(m, facts, true) {
        return Some("text");
    }
    let ssh = &m.ssh;
    let parts = ssh.keys();
    if parts.is_empty() || facts.unseen.is_some() {
        return None;
    }
    parts.into_iter().find(|key| certainly(key, ssh, facts))
}

fn certainly(key: &str, m: &SshMatchers, facts: &SshFacts) -> bool {
    match key {
        "request" => m.request.is_some_and(|c| facts.class_bits() & !c.covers() == 0),
        "programs" | "arguments" => {
            !facts.programs.is_empty() && facts.programs.iter().all(|p| program_meant(m, p))
        }
        "paths" | "operations" => {
            !facts.files.is_empty() && facts.files.iter().all(|f| file_meant(m, f))
        }
        "destinations" => facts
            .destination
            .as_ref()
            .is_some_and(|d| m.destinations.iter().flatten().any(|p| p.must_match(d))),
        _ => {
            let patterns = m.variables.as_deref().unwrap_or_default();
            !facts.variables.is_empty()
                && facts.variables.iter().all(|v| patterns.iter().any(|p| p.matches(v)))
        }
    }
}

/// Whether the rule certainly means this program with these arguments.
pub(super) fn program_meant(m: &SshMatchers, program: &Program) -> bool {
    let argument = |a: &Argument, patterns: &[crate::policy::Pattern]| {
        a.known().is_some_and(|text| patterns.iter().any(|p| p.matches(text)))
    };
    m.programs.as_ref().is_none_or(|ps| ps.iter().any(|p| p.must_match(program)))
        && m.arguments
            .as_ref()
            .is_none_or(|patterns| program.args.iter().all(|a| argument(a, patterns)))
}

/// Whether the rule certainly means this use of a file.
pub(super) fn file_meant(m: &SshMatchers, file: &FileUse) -> bool {
    m.operations.is_none_or(|ops| ops & file.op.bit() != 0)
        && m.paths.as_ref().is_none_or(|ps| ps.iter().any(|p| p.must_match(file)))
}

/// The strict reading of `unseen`; in a rule that lets through it is for coverage to say.
fn unseen_miss(rule: &Rule, facts: &SshFacts) -> Option<Miss> {
    let is = facts.unseen.is_some();
    if rule.when.unseen.is_some_and(|want| want != is) {
        return Some(Miss { key: "unseen", negated: false });
    }
    rule.not.unseen.is_some_and(|want| want == is).then_some(Miss { key: "unseen", negated: true })
}
