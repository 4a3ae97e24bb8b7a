//! Judging SQL: from a statement's text to what may happen to it and to its answer.
//!
//! Parsing and classification come from the shared analyzer and are cached there by the full
//! text. A ruling is kept only here, in one session, and only for the policies, catalog, search
//! path and role under which it was made; conditions on time are judged at every execution.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use crate::mask::{Detectors, HashKey, LiteralMask, Method, scrub_statement};
use crate::policy::sql::ring::MaskedColumns;
use crate::policy::sql::{Analysis, Analyzer, Context, SqlError, ring};
use crate::policy::{Ask, ColumnName, Effect, MaskRule, PolicySet, StatementClass, Verdict};

use super::catalogs::Snapshot;
use super::{Admitted, Session, rule_names};

pub use crate::policy::sql::{
    Catalog, CopyFormat, CopyKind, CopySource, SetValue, StatementAnalysis, StatementKind,
    TransactionKind,
};

/// Rulings kept per session.
const KEPT: NonZeroUsize = match NonZeroUsize::new(256) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};

/// Longest text, in bytes, whose ruling is kept.
const KEPT_TEXT: usize = 16 * 1024;

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
    fn method_of(&self, column: &ColumnName) -> Option<Method> {
        self.masked.method(column).cloned()
    }

    /// Whether masked columns are in reach, so that only known shapes of statements pass.
    pub fn has_columns(&self) -> bool {
        !self.masked.is_empty()
    }
}

/// Why a request was denied, for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// SQLSTATE.
    pub code: &'static str,
    /// Reason, without the session id.
    pub message: String,
    /// What the agent can do.
    pub hint: Option<String>,
    /// The rule.
    pub rule: String,
}

/// What one statement's answer has to look like, and what happens to it.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Masked output columns.
    pub masks: Vec<(usize, Method)>,
    /// Per output column its table and column number, when the shield compares: 0, 0 for a
    /// column that must not come from a masked one. None: nothing is compared.
    pub expected: Option<Vec<(u32, i16)>>,
}

/// What was decided about one text.
#[derive(Debug)]
pub struct Ruling {
    /// What is enforced.
    pub effect: Effect,
    /// With [`Effect::Deny`], the reason.
    pub denial: Option<Denial>,
    /// What would have been enforced, in observe mode.
    pub observed: Option<Effect>,
    /// Policy's verdict.
    pub verdict: Verdict,
    /// The names of its rules.
    pub rules: Vec<String>,
    /// Version of the policies.
    pub policy: Arc<str>,
    /// The exact text.
    pub text: Arc<str>,
    /// The statements.
    pub analysis: Arc<Analysis>,
    /// Per statement, its answer's plan.
    pub plans: Vec<Plan>,
    /// The shield, when one is up.
    pub shield: Option<Arc<Shield>>,
    /// The text as it may be recorded.
    pub recorded: Arc<str>,
    /// Class of the first statement, for the record.
    pub class: &'static str,
    /// What names mean may be different after it: it sets a search path or role, or runs
    /// something of which that cannot be ruled out.
    pub changes_settings: bool,
    /// It changes the catalog, or may.
    pub changes_catalog: bool,
    stamp: Stamp,
    reusable: bool,
}

impl Ruling {
    /// The plan of a statement.
    pub fn plan(&self, index: usize) -> Option<&Plan> {
        self.plans.get(index)
    }

    /// A statement.
    pub fn statement(&self, index: usize) -> Option<&StatementAnalysis> {
        self.analysis.statements.get(index)
    }

    /// Whether its results have to be looked at before the agent sees them.
    pub fn guards_rows(&self) -> bool {
        self.shield.is_some() && self.observed.is_none()
    }

    /// What approvers grant when they grant the shape.
    pub fn shape(&self) -> String {
        let shapes: Vec<&str> = self.analysis.statements.iter().map(|s| s.shape.as_str()).collect();
        shapes.join(";\n")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    policy: Arc<str>,
    epoch: u64,
    path: Arc<[String]>,
    role: Arc<str>,
}

/// What else the session holds by name: prepared statements and cursors.
pub trait Known {
    /// The ruling of a prepared statement.
    fn prepared(&self, name: &str) -> Option<Arc<Ruling>>;
    /// The ruling of an open cursor or portal.
    fn cursor(&self, name: &str) -> Option<Arc<Ruling>>;
}

/// The judge of one session.
#[derive(Debug)]
pub struct Judge {
    analyzer: Arc<Analyzer>,
    hash_key: Arc<HashKey>,
    recording: Arc<Detectors>,
    context: Arc<Context>,
    policies: Arc<PolicySet>,
    shield: Option<Arc<Shield>>,
    stamp: Stamp,
    kept: LruCache<Arc<str>, Arc<Ruling>>,
}

impl Judge {
    /// A judge that knows no catalog yet.
    pub fn new(session: &Session<Admitted>) -> Self {
        let gate = session.gate();
        let policies = gate.policies();
        let stamp = Stamp {
            policy: Arc::from(policies.version()),
            epoch: 0,
            path: Arc::from([]),
            role: Arc::from(session.subject().role.as_str()),
        };
        Self {
            analyzer: Arc::clone(&gate.analyzer),
            hash_key: Arc::clone(&gate.hash_key),
            recording: Arc::clone(&gate.recording),
            context: Arc::new(Context { catalog: None, search_path: Vec::new(), epoch: 0 }),
            policies,
            shield: None,
            stamp,
            kept: LruCache::new(KEPT),
        }
    }

    /// Takes over a catalog and an effective search path.
    pub fn resolve_by(
        &mut self,
        session: &Session<Admitted>,
        snapshot: &Snapshot,
        search_path: Vec<String>,
    ) {
        self.stamp.epoch = snapshot.epoch;
        self.stamp.path = Arc::from(search_path.as_slice());
        self.stamp.role = Arc::from(session.subject().role.as_str());
        self.context = Arc::new(Context {
            catalog: Some(Arc::clone(&snapshot.catalog)),
            search_path,
            epoch: snapshot.epoch,
        });
        self.raise_shield(session);
    }

    /// Takes over the policies of now, if they changed.
    pub fn follow_policies(&mut self, session: &Session<Admitted>) {
        let policies = session.gate().policies();
        if policies.version() != self.policies.version() {
            self.stamp.policy = Arc::from(policies.version());
            self.policies = policies;
            self.raise_shield(session);
        }
    }

    fn raise_shield(&mut self, session: &Session<Admitted>) {
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

    /// The shield, when one is up.
    pub fn shield(&self) -> Option<&Arc<Shield>> {
        self.shield.as_ref()
    }

    /// Whether it matters here that the catalog is the server's of now.
    pub fn needs_catalog(&self) -> bool {
        self.shield.as_ref().is_some_and(|s| s.has_columns()) || self.policies.names_tables()
    }

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

    /// Judges a text, from the cache where that is possible.
    pub async fn rule(
        &mut self,
        session: &Session<Admitted>,
        text: &Arc<str>,
        known: &(dyn Known + Sync),
    ) -> Arc<Ruling> {
        self.follow_policies(session);
        if text.len() <= KEPT_TEXT
            && let Some(kept) = self.kept.get(text)
            && kept.reusable
            && kept.stamp == self.stamp
        {
            return Arc::clone(kept);
        }
        let analysis = self.analyzer.analyze(Arc::clone(text), Arc::clone(&self.context)).await;
        let ruling = Arc::new(match analysis {
            Ok(analysis) => self.decide(session, analysis, text, known),
            Err(error) => self.unreadable(session, text, &error),
        });
        if ruling.reusable && text.len() <= KEPT_TEXT {
            self.kept.put(Arc::clone(text), Arc::clone(&ruling));
        }
        ruling
    }

    /// Judges again what was prepared earlier, at its execution.
    pub async fn rule_again(
        &mut self,
        session: &Session<Admitted>,
        text: &Arc<str>,
        earlier: &Arc<Ruling>,
        known: &(dyn Known + Sync),
    ) -> Arc<Ruling> {
        self.follow_policies(session);
        if earlier.reusable && earlier.stamp == self.stamp {
            return Arc::clone(earlier);
        }
        self.rule(session, text, known).await
    }

    fn decide(
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

    fn ruling(&self, session: &Session<Admitted>, parts: Parts<'_>) -> Ruling {
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

    fn recordable(&self, analysis: &Analysis, text: &str) -> Arc<str> {
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

    /// In one Query message, a statement must not change how a later one resolves.
    fn batch_denial(&self, analysis: &Analysis) -> Option<Denial> {
        let (_, earlier) = analysis.statements.split_last()?;
        let governs =
            self.shield.as_ref().is_some_and(|s| s.has_columns()) || self.policies.names_tables();
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
        if !governs || !earlier.iter().any(changes) {
            return None;
        }
        Some(Denial {
            code: "42501",
            message: "one statement of this query changes how a later one resolves its names"
                .into(),
            hint: Some("send the statements one by one".into()),
            rule: "one-resolution-per-query".into(),
        })
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
                    judged.denial = Some(Denial {
                        code: "0A000",
                        message: format!(
                            "prepared statement \"{name}\" was made while its names meant \
                             something else: prepare it again"
                        ),
                        hint: None,
                        rule: "known-statements".into(),
                    });
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

    /// What runs under a name is judged as if it stood here.
    fn by_name(
        &self,
        session: &Session<Admitted>,
        found: Option<Arc<Ruling>>,
        what: &str,
        name: &str,
        judged: &mut Judged,
    ) {
        let Some(inner) = found else {
            judged.denial = Some(Denial {
                code: "26000",
                message: format!("{what} \"{name}\" was not made in this session"),
                hint: None,
                rule: "known-statements".into(),
            });
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

    /// With masked columns in reach only known shapes pass, and each has a plan.
    fn by_shield(&self, statement: &StatementAnalysis, judged: &mut Judged) {
        let Some(shield) = self.shield.as_ref().filter(|s| s.has_columns()) else { return };
        match ring::check(statement, &shield.masked, &shield.catalog) {
            Ok(masks) => {
                if judged.plan.masks.is_empty() && judged.plan.expected.is_none() {
                    judged.plan = plan(statement, &masks);
                }
            }
            Err(refusal) => {
                judged.denial.get_or_insert(Denial {
                    code: "42501",
                    message: format!("masked columns are in reach and {}", refusal.part),
                    hint: Some(
                        "select masked columns by name only, and keep them out of conditions, \
                         joins and expressions"
                            .into(),
                    ),
                    rule: "masking".into(),
                });
            }
        }
    }

    fn unreadable(&self, session: &Session<Admitted>, text: &Arc<str>, error: &SqlError) -> Ruling {
        let mut verdict = neutral();
        verdict.effect = Effect::Deny;
        let denial = Denial {
            code: error.sqlstate(),
            message: error.to_string(),
            hint: None,
            rule: "readable-sql".into(),
        };
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
        let facts = crate::policy::SqlFacts {
            class: StatementClass::Fastpath,
            unseen: Some("a function is called by its OID".into()),
            text: Arc::clone(&text),
            ..Default::default()
        };
        let verdict =
            self.policies.judge(session.subject(), &Ask::Sql(&facts), jiff::Timestamp::now());
        let shielded = self.shield.as_ref().is_some_and(|s| s.has_columns());
        let denial = if shielded {
            Some(Denial {
                code: "42501",
                message: "masked columns are in reach and a function is called by its OID".into(),
                hint: None,
                rule: "masking".into(),
            })
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

/// A verdict that changes nothing when combined with another.
fn neutral() -> Verdict {
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

/// What a text may change that has to be learnt anew.
#[derive(Default)]
struct Changes {
    settings: bool,
    catalog: bool,
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

/// The ruling of what a statement runs by name.
fn named(statement: &StatementAnalysis, known: &dyn Known) -> Option<Arc<Ruling>> {
    match &statement.kind {
        StatementKind::Execute { name } => known.prepared(name),
        StatementKind::Fetch { cursor, .. } => known.cursor(cursor),
        _ => None,
    }
}

struct Judged {
    verdict: Verdict,
    denial: Option<Denial>,
    plan: Plan,
}

struct Parts<'a> {
    wanted: Effect,
    denial: Option<Denial>,
    verdict: Verdict,
    plans: Vec<Plan>,
    analysis: Arc<Analysis>,
    text: &'a Arc<str>,
    changes: Changes,
    reusable: bool,
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

/// The statement that runs under a name: what PREPARE or DECLARE CURSOR holds.
fn inner_statement(statement: &StatementAnalysis) -> &StatementAnalysis {
    match &statement.kind {
        StatementKind::Prepare { inner, .. } | StatementKind::DeclareCursor { inner, .. } => inner,
        _ => statement,
    }
}

/// The value of a SET with one constant.
pub fn set_text(value: &SetValue) -> Option<&str> {
    match value {
        SetValue::Values(values) => match values.as_slice() {
            [one] => Some(one),
            _ => None,
        },
        SetValue::Default | SetValue::Current | SetValue::Unknown => None,
    }
}

fn denied(verdict: &Verdict) -> Denial {
    let rule = verdict.deciding_rule().to_owned();
    let message = match &verdict.message {
        Some(message) => format!("denied by rule \"{rule}\": {message}"),
        None => format!("denied by rule \"{rule}\""),
    };
    Denial { code: "42501", message, hint: None, rule }
}

fn unreadable_setting(message: impl Into<String>) -> Denial {
    Denial {
        code: "42501",
        message: message.into(),
        hint: None,
        rule: "settings-that-change-how-sql-is-read".into(),
    }
}

/// Settings on which the meaning of names depends.
const NAMING: &[&str] = &["search_path", "role", "session_authorization"];

/// Settings that change how SQL is read, which nothing may change.
fn setting_denial(name: &str, value: &SetValue) -> Option<Denial> {
    let deny = |message: String| Some(unreadable_setting(message));
    let name = name.to_ascii_lowercase();
    if NAMING.contains(&name.as_str()) && matches!(value, SetValue::Unknown) {
        return deny(format!("the value that {name} will have cannot be seen"));
    }
    match name.as_str() {
        "standard_conforming_strings" | "backslash_quote" | "transform_null_equals" => {
            match set_text(value).map(str::to_ascii_lowercase).as_deref() {
                Some("on" | "true" | "yes" | "1") if name == "standard_conforming_strings" => None,
                Some("safe_encoding") if name == "backslash_quote" => None,
                Some("off" | "false" | "no" | "0") if name == "transform_null_equals" => None,
                _ => deny(format!("{name} changes how SQL is read")),
            }
        }
        "client_encoding" => match set_text(value) {
            Some(encoding) if crate::session::sql::encoding_is_safe(encoding) => None,
            Some(encoding) => {
                deny(format!("client_encoding {encoding} can hide ASCII in its bytes"))
            }
            None if matches!(value, SetValue::Default) => None,
            None => deny("the value that client_encoding will have cannot be seen".into()),
        },
        _ => None,
    }
}

/// Whether no byte of a character of this encoding can look like ASCII, so that what is judged
/// is what the server reads. Names as PostgreSQL spells them, any case, with or without
/// punctuation (manual, "Supported Character Sets").
pub fn encoding_is_safe(name: &str) -> bool {
    canonical_encoding(name).is_some()
}

/// The decoder for an encoding that is accepted; `None` for one that is refused.
pub fn canonical_encoding(name: &str) -> Option<&'static encoding_rs::Encoding> {
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect();
    Some(match name.as_str() {
        "UTF8" | "UNICODE" | "SQLASCII" => encoding_rs::UTF_8,
        "LATIN1" | "ISO88591" | "WIN1252" | "WINDOWS1252" => encoding_rs::WINDOWS_1252,
        "LATIN2" | "ISO88592" => encoding_rs::ISO_8859_2,
        "LATIN3" | "ISO88593" => encoding_rs::ISO_8859_3,
        "LATIN4" | "ISO88594" => encoding_rs::ISO_8859_4,
        "LATIN5" | "ISO88599" | "WIN1254" | "WINDOWS1254" => encoding_rs::WINDOWS_1254,
        "LATIN6" | "ISO885910" => encoding_rs::ISO_8859_10,
        "LATIN7" | "ISO885913" => encoding_rs::ISO_8859_13,
        "LATIN8" | "ISO885914" => encoding_rs::ISO_8859_14,
        "LATIN9" | "ISO885915" => encoding_rs::ISO_8859_15,
        "LATIN10" | "ISO885916" => encoding_rs::ISO_8859_16,
        "ISO88595" => encoding_rs::ISO_8859_5,
        "ISO88596" => encoding_rs::ISO_8859_6,
        "ISO88597" => encoding_rs::ISO_8859_7,
        "ISO88598" => encoding_rs::ISO_8859_8,
        "WIN1250" | "WINDOWS1250" => encoding_rs::WINDOWS_1250,
        "WIN1251" | "WINDOWS1251" | "WIN" => encoding_rs::WINDOWS_1251,
        "WIN1253" | "WINDOWS1253" => encoding_rs::WINDOWS_1253,
        "WIN1255" | "WINDOWS1255" => encoding_rs::WINDOWS_1255,
        "WIN1256" | "WINDOWS1256" => encoding_rs::WINDOWS_1256,
        "WIN1257" | "WINDOWS1257" => encoding_rs::WINDOWS_1257,
        "WIN1258" | "WINDOWS1258" | "TCVN" | "ABC" | "VSCII" => encoding_rs::WINDOWS_1258,
        "WIN866" | "WINDOWS866" | "ALT" => encoding_rs::IBM866,
        "WIN874" | "WINDOWS874" => encoding_rs::WINDOWS_874,
        "KOI8R" | "KOI8" => encoding_rs::KOI8_R,
        "KOI8U" => encoding_rs::KOI8_U,
        "EUCJP" | "EUCJIS2004" => encoding_rs::EUC_JP,
        "EUCKR" => encoding_rs::EUC_KR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_that_hide_ascii_are_refused() {
        for name in [
            "SJIS",
            "Shift_JIS",
            "BIG5",
            "GBK",
            "UHC",
            "GB18030",
            "JOHAB",
            "SHIFT_JIS_2004",
            "nonsense",
        ] {
            assert!(!encoding_is_safe(name), "{name}");
        }
        for name in
            ["UTF8", "utf-8", "UNICODE", "LATIN1", "iso-8859-15", "win1251", "SQL_ASCII", "EUC_JP"]
        {
            assert!(encoding_is_safe(name), "{name}");
        }
    }
}
