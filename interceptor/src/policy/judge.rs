//! The verdict: all matching rules, the strictest effect.

use std::sync::Arc;

use jiff::Timestamp;

use super::coverage::Coverage;
use super::facts::{Ask, SqlFacts, Subject};
use super::load::PolicySet;
use super::matching::{Miss, Sense, exclusion, request_miss, subject_miss, time_miss};
use super::model::{About, On, Rule};
use super::verdict::{DEFAULT_DENY, Effect, HoldTerms, Limits, MaskRule, RuleHit, Stream, Verdict};

impl PolicySet {
    /// What the rules say about a request at a moment.
    pub fn judge(&self, subject: &Subject, ask: &Ask<'_>, now: Timestamp) -> Verdict {
        match ask {
            Ask::Connect => self.judge_connect(subject, now),
            Ask::Ssh(facts) => self.judge_ssh(subject, facts, now),
            Ask::Sql(facts) => {
                let mut verdict = self.judge_sql(subject, facts, now);
                for role in &facts.roles_assumed {
                    // Assuming a role takes what connecting as it takes.
                    let as_role = Subject { role: role.clone(), ..subject.clone() };
                    let mut connect = self.judge_connect(&as_role, now);
                    for hit in &mut connect.rules {
                        hit.why = format!("role {role}: {}", hit.why);
                    }
                    verdict = verdict.combine(connect);
                }
                verdict
            }
        }
    }

    /// All masks of rules whose conditions on the subject and the time hold.
    pub fn mask_rules(&self, subject: &Subject, now: Timestamp) -> Vec<Arc<MaskRule>> {
        self.rules_for(&subject.service, On::Request)
            .filter(|rule| !rule.masks.is_empty() && masks_apply(rule, subject, now))
            .flat_map(|rule| rule.masks.iter().cloned())
            .collect()
    }

    /// The masks of all rules about a service, whoever they are for.
    pub fn all_mask_rules(&self, service: &str) -> Vec<Arc<MaskRule>> {
        self.rules_for(service, On::Request).flat_map(|rule| rule.masks.iter().cloned()).collect()
    }

    fn judge_connect(&self, subject: &Subject, now: Timestamp) -> Verdict {
        let mut draft = Draft::default();
        let mut covered = false;
        for rule in self.rules_for(&subject.service, On::Connect) {
            let Some(effect) = rule.effect else { continue };
            draft.note_time(rule, subject);
            let fires = effect > Effect::Allow && miss(rule, subject, now, Sense::Strict).is_none();
            if fires {
                draft.fire(rule, "matches the connection".into());
            }
            let may = fires || effect == Effect::Allow;
            if may && rule.can_cover() && miss(rule, subject, now, Sense::Cover).is_none() {
                covered = true;
                draft.cover(rule, "allows the connection");
            }
        }
        let missing = (!covered).then(|| {
            format!("no rule allows connecting as {} to {}", subject.role, subject.database)
        });
        draft.finish(missing)
    }

    fn judge_sql(&self, subject: &Subject, facts: &SqlFacts, now: Timestamp) -> Verdict {
        let mut request = SqlRequest { facts, coverage: Coverage::new(facts) };
        self.judge_request(subject, &mut request, now)
    }

    /// The verdict on one request by the rules that speak of its protocol.
    pub(super) fn judge_request<R: Request>(
        &self,
        subject: &Subject,
        request: &mut R,
        now: Timestamp,
    ) -> Verdict {
        let mut draft = Draft::default();
        for rule in self.rules_for(&subject.service, On::Request) {
            if !rule.masks.is_empty() {
                draft.note_time(rule, subject);
                if request.is_masked_by(rule) && masks_apply(rule, subject, now) {
                    draft.masks.extend(rule.masks.iter().cloned());
                    if rule.effect.is_none() {
                        draft.fire(rule, "masks for this subject".into());
                    }
                }
            }
            if rule.about == R::FOREIGN {
                continue;
            }
            let masks_only = rule.effect.is_none() && !rule.masks.is_empty();
            let strict = rule.effect != Some(Effect::Allow) && !masks_only;
            let mut fires = false;
            if strict && request.matches(rule) {
                draft.note_time(rule, subject);
                fires = miss(rule, subject, now, Sense::Strict).is_none();
                if fires {
                    draft.fire(rule, request.why(rule));
                }
            }
            // A rule that holds lets through only what it has held.
            if (fires || rule.effect == Some(Effect::Allow))
                && rule.can_cover()
                && request.admits(rule)
                && subject_miss(rule, subject, Sense::Cover).is_none()
            {
                draft.note_time(rule, subject);
                if time_miss(rule, subject, now, Sense::Cover).is_none() && request.cover(rule) {
                    draft.cover(rule, "allows what it names");
                }
            }
        }
        draft.finish(request.missing())
    }
}

/// A request as rules see it.
pub(super) trait Request {
    /// What a rule speaks of that is never about this.
    const FOREIGN: About;
    /// Whether the masks of a rule are about this request too.
    fn is_masked_by(&self, rule: &Rule) -> bool {
        rule.about != Self::FOREIGN
    }
    /// Whether a rule fires in the strict reading.
    fn matches(&self, rule: &Rule) -> bool;
    /// Which facts a rule that fired is about.
    fn why(&self, rule: &Rule) -> String;
    /// Whether a rule that lets through excludes nothing of it.
    fn admits(&self, rule: &Rule) -> bool;
    /// Takes what such a rule covers; false when that is nothing.
    fn cover(&mut self, rule: &Rule) -> bool;
    /// What no rule has covered, in words.
    fn missing(&self) -> Option<String>;
}

struct SqlRequest<'a> {
    facts: &'a SqlFacts,
    coverage: Coverage<'a>,
}

impl Request for SqlRequest<'_> {
    const FOREIGN: About = About::Ssh;

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
        self.coverage.add(rule)
    }

    fn missing(&self) -> Option<String> {
        self.coverage.missing()
    }
}

/// What of subject or time a rule does not fit.
pub(super) fn miss(rule: &Rule, subject: &Subject, now: Timestamp, sense: Sense) -> Option<Miss> {
    subject_miss(rule, subject, sense).or_else(|| time_miss(rule, subject, now, sense))
}

fn masks_apply(rule: &Rule, subject: &Subject, now: Timestamp) -> bool {
    miss(rule, subject, now, Sense::Strict).is_none()
}

/// A verdict in the making.
#[derive(Default)]
struct Draft<'r> {
    fired: Vec<(&'r Rule, String)>,
    covering: Vec<(&'r Rule, &'static str)>,
    masks: Vec<Arc<MaskRule>>,
    timed: bool,
}

impl<'r> Draft<'r> {
    /// A rule that could matter at another moment forbids keeping the verdict.
    fn note_time(&mut self, rule: &Rule, subject: &Subject) {
        self.timed |= rule.timed()
            && (subject_miss(rule, subject, Sense::Strict).is_none()
                || subject_miss(rule, subject, Sense::Cover).is_none());
    }

    fn fire(&mut self, rule: &'r Rule, why: String) {
        self.fired.push((rule, why));
    }

    fn cover(&mut self, rule: &'r Rule, why: &'static str) {
        self.covering.push((rule, why));
    }

    fn finish(self, missing: Option<String>) -> Verdict {
        let Self { mut fired, covering, masks, timed } = self;
        let strictest = fired.iter().filter_map(|(r, _)| r.effect).max();
        let default = missing.filter(|_| strictest != Some(Effect::Deny));
        let effect = match (strictest, &default) {
            (Some(Effect::Deny), _) | (_, Some(_)) => Effect::Deny,
            (Some(effect), None) => effect,
            (None, None) => Effect::Allow,
        };
        let hit = |rule: &Rule, why: String| RuleHit {
            rule: rule.name.clone(),
            file: rule.file.to_string(),
            effect: rule.effect,
            why,
        };
        let mut rules = Vec::with_capacity(fired.len() + covering.len() + 1);
        if let Some(why) = default.clone() {
            rules.push(RuleHit {
                rule: DEFAULT_DENY.into(),
                file: String::new(),
                effect: Some(Effect::Deny),
                why,
            });
        }
        let mut limits = Limits::default();
        let mut timeout: Option<std::time::Duration> = None;
        let message = fired
            .iter()
            .find(|(r, _)| r.effect == Some(effect) && r.message.is_some() && default.is_none())
            .and_then(|(r, _)| r.message.clone());
        for (rule, _) in &fired {
            limits = limits.strictest(rule.limits);
            if rule.effect == Some(Effect::Hold) {
                timeout = match (timeout, rule.timeout) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        for (rule, why) in covering {
            limits = limits.strictest(rule.limits);
            if !fired.iter().any(|(r, _)| std::ptr::eq(*r, rule)) {
                fired.push((rule, why.into()));
            }
        }
        // Deny before hold before the rest; within that by name, since rules are sorted so.
        fired.sort_by_key(|(r, _)| std::cmp::Reverse(r.effect));
        rules.extend(fired.into_iter().map(|(rule, why)| hit(rule, why)));
        Verdict {
            effect,
            rules,
            masks,
            message,
            limits,
            hold: (effect == Effect::Hold).then_some(HoldTerms { timeout }),
            cacheable: !timed,
            stream: Stream::Plain,
        }
    }
}

/// Which facts a rule that fired is about.
fn why(rule: &Rule, facts: &SqlFacts) -> String {
    let m = &rule.when;
    let mut parts = Vec::new();
    if m.statement.is_some() {
        let classes: Vec<_> = facts.classes().map(|c| c.as_str()).collect();
        parts.push(format!("statement is {}", classes.join(" and ")));
    }
    if m.commands.is_some()
        && let Some(command) = facts.commands.first()
    {
        parts.push(format!("command is {}", command.to_uppercase()));
    }
    let lists = [
        (&m.tables, "touches", [&facts.tables_written, &facts.tables_read]),
        (&m.writes, "writes", [&facts.tables_written, &facts.tables_written]),
        (&m.reads, "reads", [&facts.tables_read, &facts.tables_read]),
        (&m.functions, "calls", [&facts.functions, &facts.functions]),
    ];
    for (patterns, verb, names) in lists {
        let found = patterns
            .iter()
            .flatten()
            .find_map(|p| names.iter().flat_map(|l| l.iter()).find(|n| p.may_match(n)));
        if let Some(name) = found {
            parts.push(format!("{verb} {name}"));
        }
    }
    let columns = || facts.columns_read.iter().chain(&facts.columns_written);
    if let Some(column) =
        m.columns.iter().flatten().find_map(|p| columns().find(|c| p.may_match(c)))
    {
        parts.push(format!("uses column {column}"));
    }
    if m.without_where == Some(true) {
        parts.push("has no WHERE".into());
    }
    if m.text.is_some() {
        parts.push("its text matches".into());
    }
    if let (Some(true), Some(what)) = (m.unseen, &facts.unseen) {
        parts.push(format!("cannot see {what}"));
    }
    if parts.is_empty() {
        return "matches the request".into();
    }
    parts.join(", ")
}
