//! Whether a rule holds for a request.
//!
//! There are two readings, and each is the cautious one for its purpose. [`Sense::Strict`] is for
//! rules that hold, deny, mask or limit: one matching table is enough, what is unknown may
//! match, and a negation holds unless its opposite certainly does. [`Sense::Cover`] is for rules
//! that let through: what is unknown does not match, and a negation holds only when nothing of
//! what it excludes can be there.

use std::net::IpAddr;

use jiff::Timestamp;

use super::condition::{Condition, Truth};
use super::facts::{SqlFacts, StatementClass, Subject};
use super::model::{Classes, Matchers, Rule};
use super::pattern::{ColumnPattern, NamePattern, Pattern};

/// For which purpose a rule is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sense {
    Strict,
    Cover,
}

/// The key of a rule that did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Miss {
    pub key: &'static str,
    pub negated: bool,
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.negated { write!(f, "not.{}", self.key) } else { f.write_str(self.key) }
    }
}

/// What of the subject a rule does not fit, leaving time aside.
pub(super) fn subject_miss(rule: &Rule, subject: &Subject, sense: Sense) -> Option<Miss> {
    let miss = |negated| move |key| Miss { key, negated };
    side(&rule.when, false, subject, sense)
        .map(miss(false))
        .or_else(|| side(&rule.not, true, subject, sense).map(miss(true)))
}

/// What of the time or the token's age a rule does not fit.
pub(super) fn time_miss(
    rule: &Rule,
    subject: &Subject,
    now: Timestamp,
    sense: Sense,
) -> Option<Miss> {
    for (m, negated) in [(&rule.when, false), (&rule.not, true)] {
        if let Some(window) = &m.window
            && !holds(window.contains(now).into(), negated, sense)
        {
            return Some(Miss { key: "hours", negated });
        }
        if let Some(age) = m.age {
            let truth = match &subject.claims {
                Some(claims) => age.holds(claims.iat, now).into(),
                None => Truth::Unknown,
            };
            if !holds(truth, negated, sense) {
                return Some(Miss { key: "token_age", negated });
            }
        }
    }
    None
}

fn holds(truth: Truth, negated: bool, sense: Sense) -> bool {
    match (negated, sense) {
        (false, _) => truth == Truth::Yes,
        (true, Sense::Strict) => truth != Truth::Yes,
        (true, Sense::Cover) => truth == Truth::No,
    }
}

/// A key, its patterns, and the value they are about.
type Word<'a> = (&'static str, &'a Option<Vec<Pattern>>, Option<&'a str>);

fn side(m: &Matchers, negated: bool, s: &Subject, sense: Sense) -> Option<&'static str> {
    let ok = |truth| holds(truth, negated, sense);
    let agent = s.agent.as_deref();
    let claims = s.claims.as_deref();
    let words: [Word<'_>; 6] = [
        ("service", &m.service, Some(&s.service)),
        ("role", &m.role, Some(&s.role)),
        ("database", &m.database, Some(&s.database)),
        ("agent", &m.agent, agent.map(|a| a.name.as_str())),
        ("principal", &m.principal, claims.map(|c| c.principal())),
        ("issuer", &m.issuer, claims.map(|c| c.issuer.as_str())),
    ];
    for (key, patterns, value) in words {
        if let Some(patterns) = patterns
            && !ok(word(patterns, value))
        {
            return Some(key);
        }
    }
    if let Some(networks) = &m.source {
        let source = s.source.to_canonical();
        if !ok(networks.iter().any(|n| contains(n, source)).into()) {
            return Some("source");
        }
    }
    if let Some(patterns) = &m.actors {
        let truth = match claims {
            None => Truth::Unknown,
            Some(c) => c.act.iter().any(|a| patterns.iter().any(|p| p.matches(&a.sub))).into(),
        };
        if !ok(truth) {
            return Some("actors");
        }
    }
    let label = |name: &str, c: &Condition| {
        c.test_str(agent.and_then(|a| a.labels.get(name)).map(String::as_str))
    };
    if !all_of(&m.labels, negated, sense, label) {
        return Some("labels");
    }
    let claim = |path: &str, c: &Condition| c.test(claims.and_then(|c| c.lookup(path)));
    (!all_of(&m.claims, negated, sense, claim)).then_some("claims")
}

fn contains(network: &ipnet::IpNet, source: IpAddr) -> bool {
    match (network, source) {
        (ipnet::IpNet::V4(n), IpAddr::V4(a)) => n.contains(&a),
        (ipnet::IpNet::V6(n), IpAddr::V6(a)) => n.contains(&a),
        // A mapped network means the IPv4 network it maps.
        (ipnet::IpNet::V6(n), IpAddr::V4(a)) => n.contains(&a.to_ipv6_mapped()),
        (ipnet::IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

fn word(patterns: &[Pattern], value: Option<&str>) -> Truth {
    value.map_or(Truth::Unknown, |v| patterns.iter().any(|p| p.matches(v)).into())
}

/// All conditions must hold; negated, a rule that lets through wants each to fail, and any other
/// is content when one does.
fn all_of(
    conditions: &[(String, Condition)],
    negated: bool,
    sense: Sense,
    test: impl Fn(&str, &Condition) -> Truth,
) -> bool {
    let one = |(name, c): &(String, Condition)| holds(test(name, c), negated, sense);
    if negated && sense == Sense::Strict {
        conditions.is_empty() || conditions.iter().any(one)
    } else {
        conditions.iter().all(one)
    }
}

/// What of the request a rule does not fit, in the strict reading.
pub(super) fn request_miss(rule: &Rule, facts: &SqlFacts) -> Option<Miss> {
    positive_miss(&rule.when, facts)
        .map(|key| Miss { key, negated: false })
        .or_else(|| unseen_miss(rule, facts))
        .or_else(|| negative_miss(&rule.not, facts).map(|key| Miss { key, negated: true }))
}

fn positive_miss(m: &Matchers, f: &SqlFacts) -> Option<&'static str> {
    let miss = |key: &'static str, fits: bool| (!fits).then_some(key);
    miss("statement", m.statement.is_none_or(|c| c.touches(f)))
        .or_else(|| scalar_miss(m, f, false))
        .or_else(|| miss("commands", m.commands.as_ref().is_none_or(|p| command(p, f))))
        .or_else(|| miss("settings", m.settings.as_ref().is_none_or(|p| setting(p, f))))
        .or_else(|| LISTS.iter().copied().find(|key| !touches(key, m, f)))
}

/// In the strict reading a negation holds unless everything certainly is what it names.
fn negative_miss(m: &Matchers, f: &SqlFacts) -> Option<&'static str> {
    let inside = |c: Classes| f.unseen.is_none() && f.class_bits() & !c.covers(f) == 0;
    if m.statement.is_some_and(inside) {
        return Some("statement");
    }
    let all = |items: &[String], patterns: &[Pattern]| {
        !items.is_empty() && items.iter().all(|i| patterns.iter().any(|p| p.matches(i)))
    };
    if m.commands.as_ref().is_some_and(|p| all(&f.commands, p)) {
        return Some("commands");
    }
    if m.settings.as_ref().is_some_and(|p| all(&f.settings, p)) {
        return Some("settings");
    }
    scalar_miss(m, f, true).or_else(|| LISTS.iter().copied().find(|key| certainly(key, m, f)))
}

/// What a rule that lets through excludes and the request may contain, or a condition on the
/// request as a whole that fails.
pub(super) fn exclusion(rule: &Rule, f: &SqlFacts) -> Option<Miss> {
    if let Some(key) = scalar_miss(&rule.when, f, false) {
        return Some(Miss { key, negated: false });
    }
    let m = &rule.not;
    let found = if m.statement.is_some_and(|c| c.touches(f)) {
        Some("statement")
    } else if m.commands.as_ref().is_some_and(|p| command(p, f)) {
        Some("commands")
    } else if m.settings.as_ref().is_some_and(|p| setting(p, f)) {
        Some("settings")
    } else {
        scalar_miss(m, f, true)
            .or_else(|| LISTS.iter().copied().find(|key| present(key, m) && touches(key, m, f)))
    };
    found.map(|key| Miss { key, negated: true })
}

fn scalar_miss(m: &Matchers, f: &SqlFacts, negated: bool) -> Option<&'static str> {
    if m.without_where.is_some_and(|want| (want == f.without_where) == negated) {
        return Some("without_where");
    }
    if m.text.as_ref().is_some_and(|r| r.is_match(&f.text) == negated) {
        return Some("text");
    }
    None
}

/// The strict reading of `unseen`; in a rule that lets through it is for coverage to say.
fn unseen_miss(rule: &Rule, f: &SqlFacts) -> Option<Miss> {
    let is = f.unseen.is_some();
    if rule.when.unseen.is_some_and(|want| want != is) {
        return Some(Miss { key: "unseen", negated: false });
    }
    rule.not.unseen.is_some_and(|want| want == is).then_some(Miss { key: "unseen", negated: true })
}

const LISTS: [&str; 5] = ["tables", "reads", "writes", "columns", "functions"];

fn present(key: &str, m: &Matchers) -> bool {
    match key {
        "tables" => m.tables.is_some(),
        "reads" => m.reads.is_some(),
        "writes" => m.writes.is_some(),
        "columns" => m.columns.is_some(),
        _ => m.functions.is_some(),
    }
}

/// Whether any name of the request may be one the list names; an empty list names "none".
fn touches(key: &str, m: &Matchers, f: &SqlFacts) -> bool {
    let names = |patterns: &Option<Vec<NamePattern>>, lists: [&[super::Name]; 2]| {
        patterns.as_ref().is_none_or(|patterns| {
            let mut all = lists.iter().flat_map(|l| l.iter());
            if patterns.is_empty() {
                all.next().is_none()
            } else {
                all.any(|n| patterns.iter().any(|p| p.may_match(n)))
            }
        })
    };
    match key {
        "tables" => names(&m.tables, [&f.tables_read, &f.tables_written]),
        "reads" => names(&m.reads, [&f.tables_read, &[]]),
        "writes" => names(&m.writes, [&f.tables_written, &[]]),
        "columns" => m.columns.as_ref().is_none_or(|patterns: &Vec<ColumnPattern>| {
            let mut all = f.columns_read.iter().chain(&f.columns_written);
            if patterns.is_empty() {
                all.next().is_none()
            } else {
                all.any(|c| patterns.iter().any(|p| p.may_match(c)))
            }
        }),
        _ => names(&m.functions, [&f.functions, &[]]),
    }
}

/// Whether there are names and each certainly is one the list names.
fn certainly(key: &str, m: &Matchers, f: &SqlFacts) -> bool {
    if f.unseen.is_some() {
        return false;
    }
    let names = |patterns: &Option<Vec<NamePattern>>, lists: [&[super::Name]; 2]| {
        patterns.as_ref().is_some_and(|patterns| {
            let mut all = lists.iter().flat_map(|l| l.iter()).peekable();
            all.peek().is_some() != patterns.is_empty()
                && all.all(|n| patterns.iter().any(|p| p.must_match(n)))
        })
    };
    match key {
        "tables" => names(&m.tables, [&f.tables_read, &f.tables_written]),
        "reads" => names(&m.reads, [&f.tables_read, &[]]),
        "writes" => names(&m.writes, [&f.tables_written, &[]]),
        "columns" => m.columns.as_ref().is_some_and(|patterns| {
            let mut all = f.columns_read.iter().chain(&f.columns_written).peekable();
            all.peek().is_some() != patterns.is_empty()
                && all.all(|c| patterns.iter().any(|p| p.must_match(c)))
        }),
        _ => names(&m.functions, [&f.functions, &[]]),
    }
}

/// Any command that fits; a statement whose command is not known may be any.
fn command(patterns: &[Pattern], f: &SqlFacts) -> bool {
    use StatementClass as C;
    if f.commands.is_empty() {
        let many = [C::Ddl, C::Utility, C::Copy, C::Fastpath, C::Replication, C::Unknown];
        return patterns.is_empty() || many.iter().any(|c| f.class_bits() & c.bit() != 0);
    }
    f.commands.iter().any(|c| patterns.iter().any(|p| p.matches(c)))
}

/// Any parameter that fits; a `SET` of nothing known may be any.
fn setting(patterns: &[Pattern], f: &SqlFacts) -> bool {
    if f.settings.is_empty() {
        let sets = f.class_bits() & StatementClass::Set.bit() != 0;
        return patterns.is_empty() || (sets && f.roles_assumed.is_empty());
    }
    f.settings.iter().any(|s| patterns.iter().any(|p| p.matches(s)))
}
