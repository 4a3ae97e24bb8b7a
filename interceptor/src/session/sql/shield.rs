//! What protects a database's values: which columns are masked for this session, and whether a
//! statement has a shape in which masking its result is enough.
//!
//! While masked columns are in reach a shape that is not known is refused, never let through in
//! the hope that it shows nothing.

use std::sync::Arc;

use crate::mask::{Detectors, HashKey, Method};
use crate::policy::sql::{MaskedColumns, ring};
use crate::policy::{ColumnName, MASKING, MaskRule};
use crate::session::{Admitted, Session};

use super::decide::Judged;
use super::{Catalog, Denial, Judge, Plan, StatementAnalysis};

/// What protects the values of a database from this session.
#[derive(Debug)]
pub struct Shield {
    masked: MaskedColumns,
    catalog: Arc<Catalog>,
    /// Detectors for text and JSON values of every result, when a rule asks.
    pub detectors: Option<Arc<Detectors>>,
    /// Key of the keyed hash.
    pub key: Arc<HashKey>,
}

impl Shield {
    /// Whether a column of the catalog is masked, by its table's OID and its number.
    pub fn is_masked(&self, table: u32, attnum: i16) -> bool {
        table != 0 && self.masked.is_masked(table, attnum)
    }

    /// How a column is masked, by its name.
    pub(super) fn method_of(&self, column: &ColumnName) -> Option<Method> {
        self.masked.method(column).cloned()
    }

    /// Whether masked columns are in reach, so that only known shapes of statements pass.
    pub fn has_columns(&self) -> bool {
        !self.masked.is_empty()
    }
}

impl Judge {
    pub(super) fn raise_shield(&mut self, session: &Session<Admitted>) {
        let rules = self.policies.mask_rules(session.subject(), jiff::Timestamp::now());
        let Some(catalog) = &self.context.catalog else { return };
        let kinds = MaskRule::detectors(&rules);
        let detectors = (!kinds.is_empty())
            .then(|| Arc::new(Detectors::new(&kinds, Arc::clone(&self.hash_key))));
        let masked = MaskedColumns::new(catalog, &rules);
        self.shield = (!masked.is_empty() || detectors.is_some()).then(|| {
            Arc::new(Shield {
                masked,
                catalog: Arc::clone(catalog),
                detectors,
                key: Arc::clone(&self.hash_key),
            })
        });
    }

    /// With masked columns in reach only known shapes pass, and each has a plan.
    pub(super) fn by_shield(&self, statement: &StatementAnalysis, judged: &mut Judged) {
        let Some(shield) = self.shield.as_ref().filter(|s| s.has_columns()) else { return };
        match ring::check(statement, &shield.masked, &shield.catalog) {
            Ok(masks) => {
                if judged.plan.masks.is_empty() && judged.plan.expected.is_none() {
                    judged.plan = plan(statement, &masks);
                }
            }
            Err(refusal) => {
                let hint = "select masked columns by name only, and keep them out of conditions, \
                            joins and expressions";
                let denial = Denial::new("42501", MASKING, refusal.to_string()).hint(hint);
                judged.denial.get_or_insert(denial);
            }
        }
    }
}

fn plan(statement: &StatementAnalysis, masks: &[ring::OutputMask]) -> Plan {
    let expected = statement.lineage.outputs.as_ref().ok().map(|outputs| {
        outputs
            .iter()
            .map(|output| output.base.as_ref().map_or((0, 0), |b| (b.relation, b.attnum)))
            .collect()
    });
    let masks = masks.iter().map(|mask| (mask.index, mask.method.clone())).collect();
    Plan { masks, expected }
}
