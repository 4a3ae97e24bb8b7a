//! What runs under a name: a prepared statement or a cursor is judged by what it holds, as if
//! that stood in the place of its name.
//!
//! A name that this session did not make is refused; what it might run was never seen.

use std::sync::Arc;

use crate::policy::Ask;
use crate::session::{Admitted, Session};

use super::decide::{Judged, neutral};
use super::{Denial, Judge, Ruling, StatementAnalysis, StatementKind};

/// What else the session holds by name: prepared statements and cursors.
pub trait Known {
    /// The ruling of a prepared statement.
    fn prepared(&self, name: &str) -> Option<Arc<Ruling>>;
    /// The ruling of an open cursor or portal.
    fn cursor(&self, name: &str) -> Option<Arc<Ruling>>;
}

impl Judge {
    /// What runs under a name is judged as if it stood here.
    pub(super) fn by_name(
        &self,
        session: &Session<Admitted>,
        found: Option<Arc<Ruling>>,
        what: &str,
        name: &str,
        judged: &mut Judged,
    ) {
        let Some(inner) = found else {
            let why = format!("{what} \"{name}\" was not made in this session");
            judged.denial = Some(Denial::new("26000", "known-statements", why));
            return;
        };
        let now = jiff::Timestamp::now();
        for statement in &inner.analysis.statements {
            let statement = inner_statement(statement);
            let verdict = self.policies.judge(session.subject(), &Ask::Sql(&statement.facts), now);
            let earlier = std::mem::replace(&mut judged.verdict, neutral());
            judged.verdict = earlier.combine(verdict);
            self.by_shield(statement, judged);
        }
    }
}

/// The ruling of what a statement runs by name.
pub(super) fn named(statement: &StatementAnalysis, known: &dyn Known) -> Option<Arc<Ruling>> {
    match &statement.kind {
        StatementKind::Execute { name } => known.prepared(name),
        StatementKind::Fetch { cursor, .. } => known.cursor(cursor),
        _ => None,
    }
}

/// The statement that runs under a name: what PREPARE or DECLARE CURSOR holds.
fn inner_statement(statement: &StatementAnalysis) -> &StatementAnalysis {
    match &statement.kind {
        StatementKind::Prepare { inner, .. } | StatementKind::DeclareCursor { inner, .. } => inner,
        _ => statement,
    }
}
