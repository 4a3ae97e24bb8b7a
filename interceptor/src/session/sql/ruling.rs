//! What a judgement says: the [`Ruling`] on a text, with the plan of each answer and the reason
//! of a denial.
//!
//! A ruling is made once and never changed. It holds only for the state of things that its
//! stamp names; whoever keeps one compares the stamp before using it again.

use std::sync::Arc;

use crate::mask::Method;
use crate::policy::sql::Analysis;
use crate::policy::{Effect, Verdict};

use super::{Shield, StatementAnalysis};

/// Why a request was denied, for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// SQLSTATE.
    pub code: &'static str,
    /// Reason, without the session id.
    pub message: String,
    /// What the agent can do.
    pub hint: Option<String>,
    /// The rule.
    pub rule: String,
}

impl Denial {
    /// A denial without a hint.
    pub fn new(code: &'static str, rule: &str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, rule: rule.to_owned() }
    }

    /// Adds what the agent can do.
    pub fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }
}

/// What one statement's answer has to look like, and what happens to it.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Masked output columns.
    pub masks: Vec<(usize, Method)>,
    /// Per output column its table and column number, when the shield compares: 0, 0 for a
    /// column that must not come from a masked one. None: nothing is compared.
    pub expected: Option<Vec<(u32, i16)>>,
}

/// What was decided about one text.
#[derive(Debug)]
pub struct Ruling {
    /// What is enforced.
    pub effect: Effect,
    /// With [`Effect::Deny`], the reason.
    pub denial: Option<Denial>,
    /// What would have been enforced, in observe mode.
    pub observed: Option<Effect>,
    /// Policy's verdict.
    pub verdict: Verdict,
    /// The names of its rules.
    pub rules: Vec<String>,
    /// Version of the policies.
    pub policy: Arc<str>,
    /// The exact text.
    pub text: Arc<str>,
    /// The statements.
    pub analysis: Arc<Analysis>,
    /// Per statement, its answer's plan.
    pub plans: Vec<Plan>,
    /// The shield, when one is up.
    pub shield: Option<Arc<Shield>>,
    /// The text as it may be recorded.
    pub recorded: Arc<str>,
    /// Class of the first statement, for the record.
    pub class: &'static str,
    /// What names mean may be different after it: it sets a search path or role, or runs
    /// something of which that cannot be ruled out.
    pub changes_settings: bool,
    /// It changes the catalog, or may.
    pub changes_catalog: bool,
    pub(super) stamp: Stamp,
    pub(super) reusable: bool,
}

impl Ruling {
    /// The plan of a statement.
    pub fn plan(&self, index: usize) -> Option<&Plan> {
        self.plans.get(index)
    }

    /// A statement.
    pub fn statement(&self, index: usize) -> Option<&StatementAnalysis> {
        self.analysis.statements.get(index)
    }

    /// Whether its results have to be looked at before the agent sees them.
    pub fn guards_rows(&self) -> bool {
        self.shield.is_some() && self.observed.is_none()
    }

    /// What approvers grant when they grant the shape.
    pub fn shape(&self) -> String {
        let shapes: Vec<&str> = self.analysis.statements.iter().map(|s| s.shape.as_str()).collect();
        shapes.join(";\n")
    }
}

/// Under what a ruling was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    pub policy: Arc<str>,
    pub epoch: u64,
    pub path: Arc<[String]>,
    pub role: Arc<str>,
}
