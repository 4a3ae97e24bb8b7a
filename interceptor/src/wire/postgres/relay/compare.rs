//! What the server describes, compared with what was judged, and the masks that follow.
//!
//! On any difference there are no masks but a refusal: a result that is not the one that was
//! judged is never shown.

use std::sync::Arc;

use crate::mask::{Method, RowPlan};
use crate::session::sql::{Plan, Shield};

use super::super::codec::{Field, Report};
use super::exchange::{Rows, Running};

/// How the rows of a described result are treated, or why they are withheld.
pub(super) fn treatment(running: &Running, fields: &[Field]) -> Result<Rows, Report> {
    let Some(shield) = &running.ruling.shield else { return Ok(Rows::Plain) };
    let empty = Plan::default();
    let plan = running.ruling.plan(running.statement).unwrap_or(&empty);
    let masks = agreed(shield, plan, fields)
        .ok_or_else(|| withheld("it is not the result that was judged"))?;
    let columns: Vec<crate::mask::Field> = fields.iter().map(mask_field).collect();
    let compiled =
        RowPlan::compile(&columns, &masks, shield.detectors.clone(), Arc::clone(&shield.key))
            .map_err(|_| withheld("it cannot be masked"))?;
    Ok(if compiled.is_noop() { Rows::Plain } else { Rows::Masked(Arc::new(compiled)) })
}

/// The masks of a result, if the server describes what was judged; `None` on any difference.
pub(super) fn agreed(
    shield: &Shield,
    plan: &Plan,
    fields: &[Field],
) -> Option<Vec<(usize, Method)>> {
    if !shield.has_columns() {
        return Some(Vec::new());
    }
    if let Some(expected) = &plan.expected
        && expected.len() != fields.len()
    {
        return None;
    }
    let masked = |index: usize| plan.masks.iter().any(|(at, _)| *at == index);
    for (index, field) in fields.iter().enumerate() {
        let told = (field.table, field.attnum);
        if masked(index) {
            // A view's column is reported as the view's own.
            let judged = plan.expected.as_ref().and_then(|e| e.get(index));
            if judged != Some(&told) {
                return None;
            }
        } else if shield.is_masked(field.table, field.attnum) {
            return None;
        }
    }
    if plan.masks.iter().any(|(at, _)| *at >= fields.len()) {
        return None;
    }
    Some(plan.masks.clone())
}

/// A column as masking sees it.
pub(super) fn mask_field(field: &Field) -> crate::mask::Field {
    let name = String::from_utf8_lossy(&field.name).into_owned();
    crate::mask::Field::new(field.type_oid, field.format, name)
}

/// The error in place of a result that is not shown.
pub(super) fn withheld(why: &str) -> Report {
    Report::error("42501", format!("RESULT_WITHHELD: {why}"))
}
