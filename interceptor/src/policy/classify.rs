//! Statements of policy tests and explanations, analysed as the product analyses them, against
//! a catalog made of the tables a test describes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::facts::{SqlFacts, SshFacts};
use super::sql::{Analysis, Analyzer, Catalog, Context, MaskedColumns, ring};
use super::ssh::testing::Asked;
use super::ssh::{Home, ShellAnalyzer};
use super::testing::{Classify, TestTable};
use super::verdict::MaskRule;

/// Relations of the server itself, as far as tests name them.
const SYSTEM: &str = include_str!("sql/relations.txt");
/// System relations that are not on the list above, because no one should read them; with
/// columns where the rules tell them apart.
const GUARDED: [(&str, &[&str]); 15] = [
    ("pg_authid", &[]),
    ("pg_shadow", &[]),
    ("pg_user_mapping", &[]),
    ("pg_user_mappings", &["umid", "srvid", "srvname", "umuser", "usename", "umoptions"]),
    ("pg_statistic", &[]),
    ("pg_statistic_ext_data", &[]),
    ("pg_stats", &[]),
    ("pg_stats_ext", &[]),
    ("pg_stats_ext_exprs", &[]),
    ("pg_largeobject", &[]),
    ("pg_hba_file_rules", &[]),
    ("pg_stat_activity", &[]),
    ("pg_ident_file_mappings", &[]),
    ("pg_file_settings", &[]),
    ("pg_subscription", &SUBSCRIPTION),
];
const SUBSCRIPTION: [&str; 9] = [
    "oid",
    "subdbid",
    "subname",
    "subowner",
    "subenabled",
    "subbinary",
    "substream",
    "subconninfo",
    "subpublications",
];

/// Classifies by the real grammar.
#[derive(Debug)]
pub struct SqlClassifier {
    analyzer: Analyzer,
    shells: ShellAnalyzer,
}

impl SqlClassifier {
    /// Starts a thread for SQL and one for commands.
    pub fn new() -> Self {
        Self { analyzer: Analyzer::new(1), shells: ShellAnalyzer::new(1) }
    }

    fn analyze(
        &self,
        text: &str,
        tables: &[TestTable],
        catalog: Arc<Catalog>,
    ) -> Result<Arc<Analysis>, String> {
        let context = Context {
            catalog: Some(catalog),
            search_path: vec!["pg_catalog".into(), "public".into()],
            // Each catalog is another, and this analyzer serves one run only.
            epoch: digest(tables),
        };
        self.analyzer.analyze_blocking(text, Arc::new(context)).map_err(|e| e.to_string())
    }
}

impl Default for SqlClassifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Classify for SqlClassifier {
    fn classify(&self, text: &str, tables: &[TestTable]) -> Result<Vec<SqlFacts>, String> {
        let catalog = Arc::new(catalog(tables).map_err(|e| e.to_string())?);
        let analysis = self.analyze(text, tables, catalog)?;
        Ok(analysis.statements.iter().map(|s| s.facts.clone()).collect())
    }

    fn shapes(
        &self,
        text: &str,
        tables: &[TestTable],
        masks: &[Arc<MaskRule>],
    ) -> Result<Vec<Option<String>>, String> {
        if masks.iter().all(|rule| rule.columns.is_empty()) {
            return Ok(Vec::new());
        }
        let catalog = Arc::new(catalog(tables).map_err(|e| e.to_string())?);
        let masked = MaskedColumns::new(&catalog, masks);
        let analysis = self.analyze(text, tables, Arc::clone(&catalog))?;
        let refused =
            |s| ring::check(s, &masked, &catalog).err().map(|refusal| refusal.to_string());
        Ok(analysis.statements.iter().map(refused).collect())
    }

    fn ssh(&self, asked: &Asked, home: Option<&Home>) -> SshFacts {
        asked.facts(&self.shells, home)
    }
}

fn digest(tables: &[TestTable]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for table in tables {
        (&table.schema, &table.name, &table.columns).hash(&mut hasher);
    }
    hasher.finish()
}

/// Oid of `text`, which every column of a test has.
const TEXT: &str = "25";

fn catalog(tables: &[TestTable]) -> Result<Catalog, super::sql::CatalogError> {
    let cell = |s: &str| Some(s.to_owned());
    let mut schemas: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows: HashMap<&'static str, Vec<Vec<Option<String>>>> =
        Catalog::QUERIES.iter().map(|q| (q.name, Vec::new())).collect();
    let mut put = |query: &'static str, row| rows.entry(query).or_default().push(row);
    let system = SYSTEM
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .filter_map(|l| l.split_once('.'))
        .map(|(schema, name)| (schema, name, Vec::new(), 1000));
    let guarded =
        GUARDED.iter().map(|(name, columns)| ("pg_catalog", *name, columns.to_vec(), 1000));
    let given = tables.iter().map(|t| {
        let columns = t.columns.iter().map(String::as_str).collect();
        (t.schema.as_str(), t.name.as_str(), columns, 20_000)
    });
    let known = system.chain(guarded);
    for (n, (schema, name, columns, base)) in known.chain(given).enumerate() {
        let next = schemas.len() + 1;
        let schema = *schemas.entry(schema).or_insert(next);
        let oid = (base + n).to_string();
        let relation =
            vec![cell(&oid), cell(&schema.to_string()), cell(name), cell("r"), cell("f")];
        put("relations", relation);
        for (at, column) in columns.iter().enumerate() {
            let number = (at + 1).to_string();
            put("columns", vec![cell(&oid), cell(&number), cell(column), cell(TEXT), cell("f")]);
        }
    }
    for (name, oid) in schemas {
        put("namespaces", vec![cell(&oid.to_string()), cell(name)]);
    }
    let ordered = Catalog::QUERIES.iter().map(|q| rows.remove(q.name).unwrap_or_default());
    Catalog::build(ordered.collect())
}
