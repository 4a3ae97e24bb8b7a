//! The catalog of a database, from the questions that make it; what the masks of the policies
//! miss in it is logged.

use crate::policy::PolicySet;
use crate::policy::sql::MaskedColumns;

use super::Catalog;

/// The queries that make a catalog snapshot, in the order that [`build_catalog`] takes.
pub fn catalog_queries() -> impl Iterator<Item = &'static str> {
    Catalog::QUERIES.iter().map(|query| query.sql)
}

/// A query with one row that differs when the catalog does.
pub fn catalog_fingerprint() -> &'static str {
    Catalog::FINGERPRINT
}

/// Rows of one answer, as text.
pub type Rows = Vec<Vec<Option<String>>>;

/// Makes a catalog of the answers to [`catalog_queries`].
pub fn build_catalog(answers: Vec<Rows>) -> Result<Catalog, String> {
    Catalog::build(answers).map_err(|e| e.to_string())
}

/// Logs which columns that rules want masked are not in the catalog though their table is.
pub fn warn_of_missing_columns(
    policies: &PolicySet,
    service: &str,
    database: &str,
    catalog: &Catalog,
) {
    for (rule, column) in MaskedColumns::missing(catalog, &policies.all_mask_rules(service)) {
        tracing::warn!(
            service,
            database,
            rule,
            column,
            "a mask names a column that its table does not have: nothing is masked by it"
        );
    }
}
