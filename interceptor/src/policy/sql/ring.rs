//! The first ring of masking: an allow-list of shapes.
//!
//! While columns of a database are masked, a statement passes only if everything in it is
//! understood and masked columns do nothing but come out, where they can be masked, or are
//! written to. It must never let a statement pass because something in it was not looked at.

use super::catalog::Catalog;
pub use super::masked::MaskedColumns;
use super::types::{BaseColumn, StatementAnalysis, StatementKind};
use crate::mask::Method;

/// One column of a result that must be masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputMask {
    /// Its place in the result, from zero.
    pub index: usize,
    /// How.
    pub method: Method,
}

/// Why a statement does not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("masked columns are in reach and {part}")]
pub struct RingRefusal {
    /// The part that stands in the way, in words.
    pub part: String,
}

/// Judges a statement; on success says which of its outputs must be masked.
///
/// For `EXECUTE` and `FETCH` the outputs are those of the prepared statement or cursor: check
/// the inner statement of its `PREPARE` or `DECLARE` for their masks. `PREPARE` and `DECLARE`
/// themselves give no rows.
pub fn check(
    analysis: &StatementAnalysis,
    masked: &MaskedColumns,
    catalog: &Catalog,
) -> Result<Vec<OutputMask>, RingRefusal> {
    if masked.is_empty() {
        return Ok(Vec::new());
    }
    let refuse = |part: String| Err(RingRefusal { part });
    let lineage = &analysis.lineage;
    for used in &lineage.uses {
        if let Some(column) = used.base.chain().find(|c| is_masked(masked, catalog, c)) {
            let table = &column.column.table.name;
            return refuse(format!("column {table}.{} {}", column.column.column, used.how));
        }
    }
    if let Some(problem) = lineage.problems.first() {
        return refuse(problem.part.clone());
    }
    if let Some(name) = lineage.creates.iter().find(|n| masked.governs(&n.name)) {
        return refuse(format!("the name {}, which would hide a governed table", name.name));
    }
    match &analysis.kind {
        StatementKind::Prepare { inner, .. } | StatementKind::DeclareCursor { inner, .. } => {
            check(inner, masked, catalog)?;
        }
        StatementKind::Explain { inner, .. } => {
            check(inner, masked, catalog)?;
        }
        StatementKind::CopyOut { format, .. } | StatementKind::CopyIn { format, .. }
            if !format.other.is_empty() =>
        {
            return refuse(format!("COPY option {}", format.other.join(", ")));
        }
        _ => {}
    }
    let outputs = match &lineage.outputs {
        Ok(outputs) => outputs,
        Err(why) => return refuse(why.clone()),
    };
    let mut masks = Vec::new();
    for (index, output) in outputs.iter().enumerate() {
        let Some(base) = &output.base else { continue };
        let method =
            base.chain().filter_map(|c| method_of(masked, catalog, c)).reduce(Method::stricter);
        masks.extend(method.map(|method| OutputMask { index, method }));
    }
    Ok(masks)
}

fn is_masked(masked: &MaskedColumns, catalog: &Catalog, column: &BaseColumn) -> bool {
    method_of(masked, catalog, column).is_some()
}

/// How a column is masked; one the catalog does not hold is masked when its name is governed.
fn method_of(masked: &MaskedColumns, catalog: &Catalog, column: &BaseColumn) -> Option<Method> {
    if let Some(method) = masked.method_at(column.relation, column.attnum) {
        return Some(method.clone());
    }
    let unknown = column.relation == 0 || catalog.relation(column.relation).is_none();
    (unknown && masked.governs(&column.column.table.name)).then_some(Method::Null)
}
