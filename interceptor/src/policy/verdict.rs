//! What the rules say about one request.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pattern::ColumnPattern;
use crate::mask;

/// The rule that stands in a verdict when no rule of a file decided it.
pub const DEFAULT_DENY: &str = "default-deny";
/// What denies when masked columns stand where they may not, in the place of a rule's name.
pub const MASKING: &str = "masking";

/// What happens to a request; the greater is the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It goes through.
    Allow,
    /// It waits for a human.
    Hold,
    /// It is refused.
    Deny,
}

impl Effect {
    /// The name rules and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Hold => "hold",
            Self::Deny => "deny",
        }
    }
}

impl std::fmt::Display for Effect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rule that took part in a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleHit {
    /// Its name.
    pub rule: String,
    /// The file it stands in; empty for the default.
    pub file: String,
    /// Its effect; none for a rule that only masks or limits.
    pub effect: Option<Effect>,
    /// Why it took part, in words for a human.
    pub why: String,
}

/// Bounds on what a request may do; absent means unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Limits {
    /// Rows returned.
    pub rows: Option<u64>,
    /// Bytes returned.
    pub bytes: Option<u64>,
    /// Seconds it may run.
    pub seconds: Option<u64>,
}

impl Limits {
    /// The smaller of each bound.
    pub fn strictest(self, other: Self) -> Self {
        Self {
            rows: smaller(self.rows, other.rows),
            bytes: smaller(self.bytes, other.bytes),
            seconds: smaller(self.seconds, other.seconds),
        }
    }
}

fn smaller<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How a held request waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct HoldTerms {
    /// The longest wait; the service's own when absent.
    pub timeout: Option<Duration>,
}

/// What becomes of a request whose output cannot be masked; the greater is the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BinaryMask {
    /// It waits for a human, and then runs unmasked.
    Hold,
    /// It is refused.
    #[default]
    Deny,
}

impl BinaryMask {
    fn is_deny(&self) -> bool {
        *self == Self::Deny
    }
}

/// What becomes of the output of an SSH request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// No mask looks for kinds of data; it passes as it is.
    #[default]
    Plain,
    /// Kinds of data must be masked in it.
    Masked,
    /// They should be, and cannot; if it runs at all, it passes as it is.
    Unmasked {
        /// In words for a human.
        why: String,
    },
}

impl Stream {
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }

    /// Of two requests that go together: what masks less stands for both.
    fn combine(self, other: Self) -> Self {
        match (self, other) {
            (unmasked @ Self::Unmasked { .. }, _) | (_, unmasked @ Self::Unmasked { .. }) => {
                unmasked
            }
            (Self::Masked, _) | (_, Self::Masked) => Self::Masked,
            (Self::Plain, Self::Plain) => Self::Plain,
        }
    }
}

/// What one rule masks by one method.
#[derive(Debug, Clone, Serialize)]
pub struct MaskRule {
    /// The rule's name.
    pub rule: String,
    /// The file it stands in.
    pub file: Arc<str>,
    /// The columns it names.
    pub columns: Vec<ColumnPattern>,
    /// The kinds of data it has looked for in results.
    pub kinds: Vec<mask::Kind>,
    /// How they are masked.
    pub method: mask::Method,
    /// What becomes of output that cannot be masked.
    #[serde(skip_serializing_if = "BinaryMask::is_deny")]
    pub binary: BinaryMask,
}

impl MaskRule {
    /// The method for one column when several rules mask it: the strictest of those that name
    /// it; `None` when none does.
    pub fn method_for(
        rules: &[Arc<Self>],
        column: &super::facts::ColumnName,
    ) -> Option<mask::Method> {
        rules
            .iter()
            .filter(|r| r.columns.iter().any(|p| p.may_match(column)))
            .map(|r| r.method.clone())
            .reduce(mask::Method::stricter)
    }

    /// The kinds to look for and the strictest method for each, in a stable order.
    pub fn detectors(rules: &[Arc<Self>]) -> Vec<(mask::Kind, mask::Method)> {
        let mut found = std::collections::BTreeMap::new();
        for rule in rules {
            for kind in &rule.kinds {
                let method = match found.remove(kind) {
                    Some(other) => mask::Method::stricter(other, rule.method.clone()),
                    None => rule.method.clone(),
                };
                found.insert(*kind, method);
            }
        }
        found.into_iter().collect()
    }
}

/// What the rules say about one request.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// What happens.
    pub effect: Effect,
    /// The rules that took part, those that decided first.
    pub rules: Vec<RuleHit>,
    /// What must be masked in the answer.
    pub masks: Vec<Arc<MaskRule>>,
    /// What the deciding rule tells the agent.
    pub message: Option<String>,
    /// The strictest of all bounds.
    pub limits: Limits,
    /// How it waits, when it is held.
    pub hold: Option<HoldTerms>,
    /// False when a rule that could matter depends on the time or the token's age.
    pub cacheable: bool,
    /// What becomes of the output of an SSH request.
    #[serde(skip_serializing_if = "Stream::is_plain")]
    pub stream: Stream,
}

impl Verdict {
    /// The verdict for two requests that go together: the stricter wins, everything else adds
    /// up.
    pub fn combine(self, other: Self) -> Self {
        let (first, second) =
            if other.effect > self.effect { (other, self) } else { (self, other) };
        let hold = (first.effect == Effect::Hold).then(|| HoldTerms {
            timeout: smaller(
                first.hold.and_then(|h| h.timeout),
                second.hold.and_then(|h| h.timeout),
            ),
        });
        let mut rules = first.rules;
        for hit in second.rules {
            if !rules.iter().any(|r| r.rule == hit.rule && r.file == hit.file) {
                rules.push(hit);
            }
        }
        let mut masks = first.masks;
        for mask in second.masks {
            if !masks.iter().any(|m| Arc::ptr_eq(m, &mask)) {
                masks.push(mask);
            }
        }
        let message = match (first.message, second.message) {
            (Some(a), _) => Some(a),
            (None, b) if first.effect == second.effect => b,
            _ => None,
        };
        Self {
            effect: first.effect,
            rules,
            masks,
            message,
            limits: first.limits.strictest(second.limits),
            hold,
            cacheable: first.cacheable && second.cacheable,
            stream: first.stream.combine(second.stream),
        }
    }

    /// Denies since masked columns are in reach and a part of the statement could show them.
    pub fn deny_shape(&mut self, why: String) {
        if self.effect == Effect::Deny {
            return;
        }
        let effect = Some(Effect::Deny);
        self.rules.insert(0, RuleHit { rule: MASKING.into(), file: String::new(), effect, why });
        self.effect = Effect::Deny;
        self.message = None;
        self.hold = None;
    }

    /// Name of the rule that decided, for messages to the agent.
    pub fn deciding_rule(&self) -> &str {
        self.rules.first().map_or(DEFAULT_DENY, |r| r.rule.as_str())
    }
}
