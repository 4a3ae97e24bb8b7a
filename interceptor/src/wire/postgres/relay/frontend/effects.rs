//! What a forwarded statement changes for those after it, and the one statement that reaches the
//! service in other words.

use crate::session::sql::{Ruling, StatementAnalysis, StatementKind, set_text};

use super::super::Relay;

impl Relay {
    /// What a forwarded statement may change that has to be asked for before the next one.
    pub(super) fn note_effects(&mut self, ruling: &Ruling) {
        let ends = |s: &StatementAnalysis| matches!(s.kind, StatementKind::Transaction(_));
        let ends = ruling.analysis.statements.iter().any(ends);
        self.stale.settings |= ruling.changes_settings || (ends && self.touched.settings);
        self.stale.catalog |= ruling.changes_catalog || (ends && self.touched.catalog);
        self.touched.settings |= self.stale.settings;
        self.touched.catalog |= self.stale.catalog;
    }

    /// `SET application_name`, so that it keeps the session's id at its front.
    pub(super) fn rewritten(&self, ruling: &Ruling) -> Option<String> {
        let [statement] = ruling.analysis.statements.as_slice() else { return None };
        let StatementKind::Set { name, value, local } = &statement.kind else { return None };
        if !name.eq_ignore_ascii_case("application_name") {
            return None;
        }
        let scope = if *local { "LOCAL" } else { "SESSION" };
        let wanted = set_text(value).unwrap_or_default();
        let name = application_name(&self.prefix, wanted);
        Some(format!("SET {scope} application_name TO '{}'", name.replace('\'', "''")))
    }
}

/// The session's id, then the client's own name, cut to what the server keeps (63 bytes).
pub fn application_name(prefix: &str, own: &str) -> String {
    let mut name = if own.is_empty() { prefix.to_owned() } else { format!("{prefix} {own}") };
    name.truncate((0..=63).rev().find(|n| name.is_char_boundary(*n)).unwrap_or(0));
    name
}
