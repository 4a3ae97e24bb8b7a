//! The verdict on an SSH request, and what becomes of its output.

use jiff::Timestamp;

use super::coverage::SshCoverage;
use super::facts::{SshClass, SshFacts};
use super::matching::{exclusion, file_touched, program_touched, request_miss, variable_touched};
use super::rules::SshClasses;
use crate::policy::facts::Subject;
use crate::policy::judge::Request;
use crate::policy::load::PolicySet;
use crate::policy::matching::{Sense, subject_miss};
use crate::policy::model::{About, On, Rule};
use crate::policy::verdict::{BinaryMask, Effect, HoldTerms, RuleHit, Stream, Verdict};

impl PolicySet {
    /// Whether any rule could let a subject through with a request of a class that has to be
    /// named, now or at another time of day.
    pub fn may_let_through(&self, subject: &Subject, class: SshClass) -> bool {
        self.rules_for(&subject.service, On::Request).any(|rule| {
            rule.about != About::Sql
                && rule.can_cover()
                && rule.when.ssh.request.is_some_and(|named| named.covers() & class.bit() != 0)
                && subject_miss(rule, subject, Sense::Cover).is_none()
        })
    }

    pub(in crate::policy) fn judge_ssh(
        &self,
        subject: &Subject,
        facts: &SshFacts,
        now: Timestamp,
    ) -> Verdict {
        let coverage = SshCoverage::new(facts);
        let mut request = SshRequest { facts, coverage, binary: facts.binary };
        let verdict = self.judge_request(subject, &mut request, now);
        streamed(verdict, facts, request.binary)
    }
}

struct SshRequest<'a> {
    facts: &'a SshFacts,
    coverage: SshCoverage<'a>,
    /// Whether its output is no text, by itself or by what a rule says.
    binary: bool,
}

impl Request for SshRequest<'_> {
    const FOREIGN: About = About::Sql;

    /// A mask that names requests is about whatever may be one of them.
    fn is_masked_by(&self, rule: &Rule) -> bool {
        // What is unseen may be what the rule means.
        let meant = || self.facts.unseen.is_some() || self.matches(rule);
        rule.about == About::Either || (rule.about == About::Ssh && meant())
    }

    fn matches(&self, rule: &Rule) -> bool {
        request_miss(rule, self.facts).is_none()
    }

    fn why(&self, rule: &Rule) -> String {
        why(rule, self.facts)
    }

    fn admits(&self, rule: &Rule) -> bool {
        exclusion(rule, self.facts).is_none()
    }

    fn cover(&mut self, rule: &Rule) -> bool {
        let covers = self.coverage.add(rule);
        self.binary |= covers && rule.binary;
        covers
    }

    fn missing(&self) -> Option<String> {
        self.coverage.missing()
    }
}

/// Whether the request's output can show data at all.
fn shows(class: SshClass) -> bool {
    !matches!(class, SshClass::Env | SshClass::Pty)
}

/// Says what happens to the output: kinds of data are masked in text; what is no text is refused
/// or held instead.
fn streamed(mut verdict: Verdict, facts: &SshFacts, binary: bool) -> Verdict {
    let masks: Vec<_> = verdict.masks.iter().filter(|m| !m.kinds.is_empty()).cloned().collect();
    let Some(first) = masks.first() else { return verdict };
    if !shows(facts.class) || facts.opens_sftp() {
        return verdict;
    }
    if !binary {
        verdict.stream = Stream::Masked;
        return verdict;
    }
    let strictest = masks.iter().map(|m| m.binary).max().unwrap_or_default();
    let (effect, mask) = match strictest {
        BinaryMask::Deny => (Effect::Deny, masks.iter().find(|m| m.binary == strictest)),
        BinaryMask::Hold => (Effect::Hold, Some(first)),
    };
    let mask = mask.unwrap_or(first);
    let (rule, file) = (mask.rule.clone(), mask.file.to_string());
    let why = format!(
        "masks of rule {rule:?} apply and its output is no text, which masking would corrupt"
    );
    verdict.stream = Stream::Unmasked { why: why.clone() };
    if verdict.effect == Effect::Deny {
        return verdict;
    }
    verdict.rules.retain(|h| h.rule != rule || h.file != file || h.effect.is_some());
    let hit = RuleHit { rule, file, effect: Some(effect), why };
    if effect > verdict.effect || verdict.rules.is_empty() {
        verdict.message = None;
        verdict.rules.insert(0, hit);
    } else {
        verdict.rules.push(hit);
    }
    verdict.effect = verdict.effect.max(effect);
    if verdict.effect == Effect::Hold {
        verdict.hold.get_or_insert(HoldTerms::default());
    } else {
        verdict.hold = None;
    }
    verdict
}

/// Which facts a rule that fired is about.
fn why(rule: &Rule, facts: &SshFacts) -> String {
    let m = &rule.when.ssh;
    let mut parts = Vec::new();
    if m.request.is_some() {
        let classes: Vec<_> = facts.classes().map(|c| c.as_str()).collect();
        parts.push(format!("request is {}", classes.join(" and ")));
    }
    if m.names_programs()
        && let Some(program) = program_touched(m, facts)
    {
        parts.push(match program.name.known() {
            Some(_) => format!("runs {program}"),
            None => format!("may run it as {:?}", program.name.text),
        });
    }
    if m.names_files()
        && let Some(file) = file_touched(m, facts)
    {
        parts.push(format!("would {file}"));
    }
    if m.destinations.is_some()
        && let Some(to) = &facts.destination
    {
        parts.push(format!("leads to {to}"));
    }
    if let Some(variable) = variable_touched(m, facts) {
        parts.push(format!("sets {variable}"));
    }
    if rule.when.text.is_some() {
        parts.push("its text matches".into());
    }
    if let (Some(true), Some(what)) = (rule.when.unseen, &facts.unseen) {
        parts.push(format!("cannot see {what}"));
    }
    if parts.is_empty() {
        return "matches the request".into();
    }
    parts.join(", ")
}

/// Which key kept a rule out.
pub(in crate::policy) fn why_not(rule: &Rule, facts: &SshFacts, sense: Sense) -> String {
    if rule.about == About::Sql {
        return "is about SQL".into();
    }
    let miss = match sense {
        Sense::Strict => request_miss(rule, facts),
        Sense::Cover => exclusion(rule, facts),
    };
    if let Some(miss) = miss {
        return format!("`{miss}` does not hold");
    }
    let m = &rule.when.ssh;
    let covers = m.request.unwrap_or(SshClasses::ANY).covers();
    let key = if covers & facts.class_bits() == 0 { Some("request") } else { m.content_key() };
    match key {
        Some("request") if m.request.is_none() => {
            format!("does not name `request = \"{}\"`", facts.class)
        }
        Some(key) => format!("`{key}` has nothing of this request"),
        None => "allows nothing of this request".into(),
    }
}
