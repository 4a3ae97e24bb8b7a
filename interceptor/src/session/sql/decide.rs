//! How a text that was understood is decided: each statement by the rules, by what it runs or
//! sets, and by the shield; the strictest wins.
//!
//! A denial once found is never taken back by a later statement.

use std::sync::Arc;

use crate::policy::sql::Analysis;
use crate::policy::{Ask, Effect, Verdict};
use crate::session::{Admitted, Session, rule_names};

use super::by_name::named;
use super::settings::{setting_denial, unreadable_setting};
use super::{
    Denial, Judge, Known, Plan, Ruling, StatementAnalysis, StatementKind, TransactionKind,
};

impl Judge {
    pub(super) fn decide(
        &self,
        session: &Session<Admitted>,
        analysis: Arc<Analysis>,
        text: &Arc<str>,
        known: &dyn Known,
    ) -> Ruling {
        let now = jiff::Timestamp::now();
        let mut verdict: Option<Verdict> = None;
        let mut plans = Vec::with_capacity(analysis.statements.len());
        let mut denial = self.batch_denial(&analysis);
        let mut reusable = true;
        let mut changes = Changes::default();
        for statement in &analysis.statements {
            changes.add(statement);
            if let Some(inner) = named(statement, known) {
                inner.analysis.statements.iter().for_each(|s| changes.add(s));
            }
            let one = self.policies.judge(session.subject(), &Ask::Sql(&statement.facts), now);
            let mut judged = Judged { verdict: one, denial: None, plan: Plan::default() };
            self.by_kind(session, statement, known, &mut judged, &mut reusable);
            if judged.denial.is_none() {
                self.by_shield(statement, &mut judged);
            }
            denial = denial.or(judged.denial);
            plans.push(judged.plan);
            verdict = Some(match verdict {
                Some(all) => all.combine(judged.verdict),
                None => judged.verdict,
            });
        }
        let verdict = verdict.unwrap_or_else(neutral);
        reusable &= verdict.cacheable;
        let denial = denial.or_else(|| (verdict.effect == Effect::Deny).then(|| denied(&verdict)));
        let wanted = if denial.is_some() { Effect::Deny } else { verdict.effect };
        self.ruling(
            session,
            Parts { wanted, denial, verdict, plans, analysis, text, changes, reusable },
        )
    }

    pub(super) fn ruling(&self, session: &Session<Admitted>, parts: Parts<'_>) -> Ruling {
        let observed = (!session.enforces()).then_some(parts.wanted);
        let class = parts.analysis.statements.first().map_or("empty", |s| s.facts.class.as_str());
        let mut rules = rule_names(&parts.verdict);
        if let Some(denial) = &parts.denial
            && !rules.contains(&denial.rule)
        {
            rules.insert(0, denial.rule.clone());
        }
        Ruling {
            effect: if observed.is_some() { Effect::Allow } else { parts.wanted },
            denial: parts.denial,
            observed,
            rules,
            verdict: parts.verdict,
            policy: Arc::clone(&self.stamp.policy),
            plans: parts.plans,
            shield: self.shield.clone(),
            recorded: self.recordable(&parts.analysis, parts.text),
            text: Arc::clone(parts.text),
            class,
            changes_settings: parts.changes.settings,
            changes_catalog: parts.changes.catalog,
            analysis: parts.analysis,
            stamp: self.stamp.clone(),
            reusable: parts.reusable,
        }
    }

    /// In one Query message, a statement must not change how a later one resolves.
    fn batch_denial(&self, analysis: &Analysis) -> Option<Denial> {
        let (_, earlier) = analysis.statements.split_last()?;
        // The end of a transaction takes back what was set in it.
        let ends = |s: &StatementAnalysis| {
            matches!(
                s.kind,
                StatementKind::Transaction(
                    TransactionKind::Commit { .. }
                        | TransactionKind::Rollback { .. }
                        | TransactionKind::RollbackTo(_)
                )
            )
        };
        let changes = |s: &StatementAnalysis| {
            s.lineage.changes_resolution || s.facts.unseen.is_some() || ends(s)
        };
        if !self.needs_catalog() || !earlier.iter().any(changes) {
            return None;
        }
        let why = "one statement of this query changes how a later one resolves its names";
        let denial = Denial::new("42501", "one-resolution-per-query", why);
        Some(denial.hint("send the statements one by one"))
    }

    fn by_kind(
        &self,
        session: &Session<Admitted>,
        statement: &StatementAnalysis,
        known: &dyn Known,
        judged: &mut Judged,
        reusable: &mut bool,
    ) {
        match &statement.kind {
            StatementKind::Execute { name } => {
                *reusable = false;
                if let Some(inner) = known.prepared(name)
                    && self.needs_catalog()
                    && (inner.stamp.epoch, &inner.stamp.path)
                        != (self.stamp.epoch, &self.stamp.path)
                {
                    // The server reads it anew with the names of now; what was judged is stale.
                    let why = format!(
                        "prepared statement \"{name}\" was made while its names meant something \
                         else: prepare it again"
                    );
                    judged.denial = Some(Denial::new("0A000", "known-statements", why));
                    return;
                }
                self.by_name(session, known.prepared(name), "prepared statement", name, judged);
            }
            StatementKind::Fetch { cursor, .. } => {
                *reusable = false;
                self.by_name(session, known.cursor(cursor), "cursor", cursor, judged);
            }
            _ => {}
        }
        // Whether by SET or by set_config: what is not certain could be any of them.
        judged.denial = judged.denial.take().or_else(|| {
            statement.settings.iter().find_map(|setting| match &setting.name {
                Some(name) => setting_denial(name, &setting.value),
                None => Some(unreadable_setting("which setting it changes cannot be seen")),
            })
        });
    }
}

/// A statement while it is judged.
pub(super) struct Judged {
    pub verdict: Verdict,
    pub denial: Option<Denial>,
    pub plan: Plan,
}

/// What a ruling is made of.
pub(super) struct Parts<'a> {
    pub wanted: Effect,
    pub denial: Option<Denial>,
    pub verdict: Verdict,
    pub plans: Vec<Plan>,
    pub analysis: Arc<Analysis>,
    pub text: &'a Arc<str>,
    pub changes: Changes,
    pub reusable: bool,
}

/// What a text may change that has to be learnt anew.
#[derive(Default)]
pub(super) struct Changes {
    pub settings: bool,
    pub catalog: bool,
}

impl Changes {
    fn add(&mut self, statement: &StatementAnalysis) {
        let unseen = statement.facts.unseen.is_some();
        let encoding = matches!(
            &statement.kind,
            StatementKind::Set { name, .. } if name == "client_encoding" || name == "names"
        );
        self.settings |= statement.lineage.changes_resolution || unseen || encoding;
        self.catalog |= statement.lineage.ddl || unseen;
    }
}

/// A verdict that changes nothing when combined with another.
pub(super) fn neutral() -> Verdict {
    Verdict {
        effect: Effect::Allow,
        rules: Vec::new(),
        masks: Vec::new(),
        message: None,
        limits: crate::policy::Limits::default(),
        hold: None,
        cacheable: true,
        stream: crate::policy::Stream::Plain,
    }
}

pub(super) fn denied(verdict: &Verdict) -> Denial {
    let rule = verdict.deciding_rule();
    let message = match &verdict.message {
        Some(message) => format!("denied by rule \"{rule}\": {message}"),
        None => format!("denied by rule \"{rule}\""),
    };
    Denial::new("42501", rule, message)
}
