//! Texts and values as they may be recorded: what is tied to a masked column, and what a
//! detector finds, does not get into the record.

use std::sync::Arc;

use crate::mask::{LiteralMask, scrub_statement};
use crate::policy::ColumnName;
use crate::policy::sql::Analysis;

use super::{Judge, Ruling};

impl Judge {
    /// Scrubs a value for the record, by the column it is tied to, else by detectors.
    pub fn scrub_value(&self, ruling: &Ruling, parameter: usize, value: &str) -> String {
        let tied = ruling
            .analysis
            .statements
            .first()
            .and_then(|s| s.params.get(parameter))
            .and_then(Option::as_ref)
            .and_then(|column| self.shield.as_ref()?.method_of(column));
        match tied {
            Some(_) => "[masked]".to_owned(),
            None => self.recording.scrub_text(value).0.into_owned(),
        }
    }

    pub(super) fn recordable(&self, analysis: &Analysis, text: &str) -> Arc<str> {
        let method = |column: &ColumnName| self.shield.as_ref()?.method_of(column);
        let literals: Vec<LiteralMask> = analysis
            .statements
            .iter()
            .flat_map(|s| &s.literals)
            .filter_map(|literal| {
                let column = literal.column.as_ref()?;
                Some(LiteralMask {
                    range: literal.range.clone(),
                    method: method(column),
                    column: Some(column.column.clone()),
                })
            })
            .collect();
        let (scrubbed, _) = scrub_statement(text, &literals, Some(&self.recording), &self.hash_key);
        Arc::from(scrubbed.as_ref())
    }
}
