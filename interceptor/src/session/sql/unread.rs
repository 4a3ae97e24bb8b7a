//! Rulings on what could not be read: a text that the grammar does not know, a function called
//! by its number, the place of a refused message.
//!
//! None of them is ever kept.

use std::sync::Arc;

use crate::policy::sql::{Analysis, SqlError};
use crate::policy::{Ask, Effect, MASKING, SqlFacts, StatementClass};
use crate::session::{Admitted, Session};

use super::decide::{Changes, Parts, denied, neutral};
use super::{Denial, Judge, Ruling};

impl Judge {
    /// A ruling about nothing, for the place of a refused message.
    pub fn nothing(&self) -> Arc<Ruling> {
        Arc::new(Ruling {
            effect: Effect::Deny,
            denial: None,
            observed: None,
            verdict: neutral(),
            rules: Vec::new(),
            policy: Arc::clone(&self.stamp.policy),
            analysis: Arc::new(Analysis { statements: Vec::new() }),
            plans: Vec::new(),
            shield: None,
            recorded: Arc::from(""),
            text: Arc::from(""),
            class: "refused",
            changes_settings: false,
            changes_catalog: false,
            stamp: self.stamp.clone(),
            reusable: false,
        })
    }

    pub(super) fn unreadable(
        &self,
        session: &Session<Admitted>,
        text: &Arc<str>,
        error: &SqlError,
    ) -> Ruling {
        let mut verdict = neutral();
        verdict.effect = Effect::Deny;
        let denial = Denial::new(error.sqlstate(), "readable-sql", error.to_string());
        self.ruling(
            session,
            Parts {
                wanted: Effect::Deny,
                denial: Some(denial),
                verdict,
                plans: Vec::new(),
                analysis: Arc::new(Analysis { statements: Vec::new() }),
                text,
                changes: Changes::default(),
                reusable: false,
            },
        )
    }

    /// Judges a call of a function by its OID (FunctionCall), of which nothing can be seen.
    pub fn rule_function_call(&self, session: &Session<Admitted>, oid: u32) -> Arc<Ruling> {
        let text: Arc<str> = Arc::from(format!("function call by oid {oid}"));
        let facts = SqlFacts {
            class: StatementClass::Fastpath,
            unseen: Some("a function is called by its OID".into()),
            text: Arc::clone(&text),
            ..Default::default()
        };
        let verdict =
            self.policies.judge(session.subject(), &Ask::Sql(&facts), jiff::Timestamp::now());
        let denial = if self.has_masked_columns() {
            let why = "masked columns are in reach and a function is called by its OID";
            Some(Denial::new("42501", MASKING, why))
        } else {
            (verdict.effect == Effect::Deny).then(|| denied(&verdict))
        };
        let wanted = if denial.is_some() { Effect::Deny } else { verdict.effect };
        Arc::new(self.ruling(
            session,
            Parts {
                wanted,
                denial,
                verdict,
                plans: Vec::new(),
                analysis: Arc::new(Analysis { statements: Vec::new() }),
                text: &text,
                changes: Changes { settings: true, catalog: true },
                reusable: false,
            },
        ))
    }
}
