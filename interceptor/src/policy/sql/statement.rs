//! One analysis per statement of a text.
//!
//! Puts together what the visitor saw, what the structured walk understood, and what the kind
//! of statement means. Whatever the two disagree on is a problem and cannot be seen by rules.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, Token};

use super::functions;
use super::names;
use super::parse::Parsed;
use super::pool::Context;
use super::query::{Found, Shape, Walker};
use super::types::{
    Analysis, Lineage, Literal, Lookups, Output, SetValue, Setting, SqlError, StatementAnalysis,
    StatementKind,
};
use super::visit::Mentions;
use crate::policy::facts::{ColumnName, Name, SqlFacts, StatementClass};

/// What all statements of one text share.
pub(super) struct Text<'a> {
    pub text: &'a Arc<str>,
    pub context: &'a Context,
    constants: Vec<Range<usize>>,
}

/// Analyses every statement of a parsed text.
pub(super) fn analyze(
    text: &Arc<str>,
    parsed: &Parsed,
    context: &Context,
) -> Result<Analysis, SqlError> {
    let shared = Text { text, context, constants: constants(text)? };
    let mut statements = Vec::with_capacity(parsed.tree.stmts.len());
    for (raw, mentions) in parsed.tree.stmts.iter().zip(&parsed.mentions) {
        let range = range_of(text, raw)?;
        let node = raw.stmt.as_deref().ok_or_else(|| lost("a statement"))?;
        statements.push(one(&shared, node, mentions, range)?);
    }
    Ok(Analysis { statements })
}

fn lost(what: &str) -> SqlError {
    SqlError::Unsupported(format!("the parser lost {what}; report the text"))
}

/// The bytes of a statement, blanks around it left out.
fn range_of(text: &str, raw: &protobuf::RawStmt) -> Result<Range<usize>, SqlError> {
    let start = usize::try_from(raw.stmt_location).unwrap_or(0);
    let len = usize::try_from(raw.stmt_len).unwrap_or(0);
    let end = if len == 0 { text.len() } else { start + len };
    let slice = text.get(start..end).ok_or_else(|| lost("a statement's place"))?;
    let start = start + (slice.len() - slice.trim_start().len());
    Ok(start..start + slice.trim().len())
}

/// Where constants stand in a text, by the server's own scanner.
fn constants(text: &str) -> Result<Vec<Range<usize>>, SqlError> {
    // The scanner is not asked when there can be no constant.
    if !text.bytes().any(|b| b == b'\'' || b == b'$' || b.is_ascii_digit()) {
        return Ok(Vec::new());
    }
    let tokens = pg_query::scan_tokens(text).map_err(|e| SqlError::Unsupported(e.to_string()))?;
    let constant = |t: &protobuf::ScanToken| {
        matches!(
            Token::try_from(t.token),
            Ok(Token::Sconst
                | Token::Usconst
                | Token::Bconst
                | Token::Xconst
                | Token::Iconst
                | Token::Fconst)
        )
    };
    tokens
        .iter()
        .filter(|t| constant(t))
        .map(|t| match (usize::try_from(t.start), usize::try_from(t.end)) {
            (Ok(start), Ok(end)) if text.is_char_boundary(start) && text.is_char_boundary(end) => {
                Ok(start..end)
            }
            _ => Err(lost("a constant's place")),
        })
        .collect()
}

/// Analyses one statement, or the one inside another.
pub(super) fn one(
    text: &Text<'_>,
    node: &Node,
    mentions: &Mentions,
    range: Range<usize>,
) -> Result<StatementAnalysis, SqlError> {
    let mut draft = Draft::new(text, mentions, range);
    draft.statement(node)?;
    draft.finish()
}

/// An analysis in the making.
pub(super) struct Draft<'a> {
    pub text: &'a Text<'a>,
    pub mentions: &'a Mentions,
    pub range: Range<usize>,
    pub found: Found,
    pub shape: Shape,
    pub kind: StatementKind,
    pub class: StatementClass,
    pub also: Vec<StatementClass>,
    pub command: String,
    pub inner_commands: Vec<String>,
    pub settings: Vec<Setting>,
    pub roles: Vec<String>,
    pub unseen: Option<String>,
    pub creates: Vec<Name>,
    pub ddl: bool,
    pub changes_resolution: bool,
    /// The walk must account for all the visitor saw.
    pub walked: bool,
    /// Functions beyond those the visitor saw: of a statement's body.
    pub functions: BTreeSet<Name>,
    pub written: Vec<Name>,
}

impl<'a> Draft<'a> {
    fn new(text: &'a Text<'a>, mentions: &'a Mentions, range: Range<usize>) -> Self {
        Self {
            text,
            mentions,
            range,
            found: Found::default(),
            shape: Shape::default(),
            kind: StatementKind::Plain,
            class: StatementClass::Unknown,
            also: Vec::new(),
            command: String::new(),
            inner_commands: Vec::new(),
            settings: Vec::new(),
            roles: Vec::new(),
            unseen: None,
            creates: Vec::new(),
            ddl: false,
            changes_resolution: false,
            walked: false,
            functions: BTreeSet::new(),
            written: Vec::new(),
        }
    }

    /// Walks a query; its outputs become the statement's.
    pub fn walk(&mut self, node: &Node) {
        let mut walker = Walker::new(self.text.context, 0);
        self.shape = walker.query(node);
        self.found = walker.found;
        self.walked = true;
    }

    /// Takes over what an inner statement says.
    pub fn inherit(&mut self, inner: &StatementAnalysis) {
        let facts = &inner.facts;
        self.also.push(facts.class);
        self.also.extend(&facts.also);
        self.inner_commands.extend(facts.commands.iter().cloned());
        self.found.columns_read.extend(facts.columns_read.iter().cloned());
        self.found.columns_written.extend(facts.columns_written.iter().cloned());
        self.functions.extend(facts.functions.iter().cloned());
        self.found.without_where |= facts.without_where;
        self.found.relations.extend(inner.lineage.relations.iter().cloned());
        self.found.uses.extend(inner.lineage.uses.iter().cloned());
        self.found.whole_rows.extend(inner.lineage.whole_rows.iter().cloned());
        for problem in &inner.lineage.problems {
            self.found.problem(problem.part.clone());
        }
        // Whether and when the inner statement runs is not known here.
        let unsure = |s: &Setting| Setting { value: SetValue::Unknown, ..s.clone() };
        self.settings.extend(inner.settings.iter().map(unsure));
        self.roles.extend(facts.roles_assumed.iter().cloned());
        self.unseen = self.unseen.take().or_else(|| facts.unseen.clone());
        self.changes_resolution |= inner.lineage.changes_resolution;
        self.written.extend(facts.tables_written.iter().cloned());
        self.creates.extend(inner.lineage.creates.iter().cloned());
    }

    /// Analyses a statement inside this one.
    pub fn inner(&self, node: Option<&Node>) -> Result<StatementAnalysis, SqlError> {
        let node = node.ok_or_else(|| lost("an inner statement"))?;
        let mentions = Mentions::of(node)?;
        one(self.text, node, &mentions, self.range.clone())
    }

    fn finish(mut self) -> Result<StatementAnalysis, SqlError> {
        let context = self.text.context;
        self.account();
        self.settings.append(&mut self.found.settings);
        check_mentions_with(&mut self.found, self.mentions, context, &self.settings);
        if context.catalog.is_none() {
            self.found.problem("names, which cannot be resolved without the catalog");
        }
        self.roles_and_settings();
        if self.class == StatementClass::Unknown && self.unseen.is_none() {
            self.unseen = Some(format!("what {} does", self.command));
        }
        let (literals, params) = self.constants();
        let facts = self.facts();
        let shape = self.shape_of();
        let lineage = self.lineage();
        Ok(StatementAnalysis {
            facts,
            kind: self.kind,
            lineage,
            range: self.range,
            shape,
            settings: self.settings,
            literals,
            params,
            max_param: self.mentions.max_param,
            lookups: lookups(self.mentions),
        })
    }

    /// What rules match on.
    fn facts(&mut self) -> SqlFacts {
        let mut functions = std::mem::take(&mut self.functions);
        for written in &self.mentions.functions {
            functions.insert(functions::function(written, self.text.context).0);
        }
        if let Some(runner) = functions.iter().find(|f| runs_text(&f.name)) {
            self.unseen.get_or_insert_with(|| format!("the SQL that {}() runs", runner.name));
        }
        self.also.append(&mut self.found.classes);
        let mut also = Vec::new();
        for class in self.also.iter().filter(|c| **c != self.class) {
            push_new(&mut also, *class);
        }
        let mut commands = vec![self.command.clone()];
        for command in &self.inner_commands {
            push_new(&mut commands, command.clone());
        }
        let mut settings = Vec::new();
        for setting in &self.settings {
            push_new(&mut settings, setting.name.clone().unwrap_or_else(|| "*".to_owned()));
        }
        let tables = |written: bool| -> BTreeSet<Name> {
            let used = self.found.relations.iter().filter(|r| r.written == written);
            used.map(|r| r.name.clone()).collect()
        };
        let (tables_read, mut tables_written) = (tables(false), tables(true));
        tables_written.extend(self.written.iter().cloned());
        let text: Arc<str> = if self.range == (0..self.text.text.len()) {
            self.text.text.clone()
        } else {
            self.text.text.get(self.range.clone()).unwrap_or_default().into()
        };
        SqlFacts {
            class: self.class,
            also,
            commands,
            settings,
            tables_read: tables_read.into_iter().collect(),
            tables_written: tables_written.into_iter().collect(),
            columns_read: std::mem::take(&mut self.found.columns_read).into_iter().collect(),
            columns_written: std::mem::take(&mut self.found.columns_written).into_iter().collect(),
            functions: functions.into_iter().collect(),
            without_where: self.found.without_where,
            unseen: self.unseen.take(),
            roles_assumed: std::mem::take(&mut self.roles),
            text,
        }
    }

    /// Where its data comes from.
    fn lineage(&mut self) -> Lineage {
        let found = std::mem::take(&mut self.found);
        let shape = std::mem::take(&mut self.shape);
        let outputs = if shape.open {
            Err("columns of the result, which are not known".to_owned())
        } else {
            Ok(shape.cols.into_iter().map(|c| Output { name: c.name, base: c.base }).collect())
        };
        Lineage {
            outputs,
            uses: found.uses,
            whole_rows: found.whole_rows,
            relations: found.relations,
            problems: found.problems,
            changes_resolution: self.changes_resolution || self.ddl,
            creates: std::mem::take(&mut self.creates),
            ddl: self.ddl,
        }
    }

    /// What the visitor saw and the walk did not is a hole.
    fn account(&mut self) {
        if !self.walked {
            return;
        }
        let seen = (self.found.seen_columns, self.found.seen_relations, self.found.seen_queries);
        let there = (self.mentions.columns, self.mentions.relations.len(), self.mentions.queries);
        if seen != there {
            self.found.problem("a construct this product does not know");
            self.unseen.get_or_insert_with(|| "a construct this product does not know".to_owned());
        }
    }

    /// What settings mean for roles and for the resolution of names.
    fn roles_and_settings(&mut self) {
        for setting in &self.settings {
            let Some(name) = &setting.name else {
                self.changes_resolution = true;
                self.unseen.get_or_insert_with(|| "which setting set_config() changes".to_owned());
                self.roles.push("*".to_owned());
                continue;
            };
            match name.as_str() {
                "role" | "session_authorization" => {
                    self.changes_resolution = true;
                    match &setting.value {
                        SetValue::Values(v) => {
                            let assumed = v.iter().filter(|r| *r != "none");
                            self.roles.extend(assumed.cloned());
                        }
                        SetValue::Unknown => {
                            self.roles.push("*".to_owned());
                            self.unseen.get_or_insert_with(|| "which role is assumed".to_owned());
                        }
                        _ => {}
                    }
                }
                "search_path" | "all" => self.changes_resolution = true,
                _ => {}
            }
        }
    }

    /// The statement with its constants replaced by parameters, and its class.
    fn shape_of(&self) -> String {
        let text = &self.text.text;
        let mut shape = format!("{}: ", self.class);
        let mut at = self.range.start;
        let mut number = self.mentions.max_param;
        for constant in self.text.constants.iter().filter(|r| self.holds(r)) {
            number = number.saturating_add(1);
            shape.push_str(text.get(at..constant.start).unwrap_or_default());
            shape.push_str(&format!("${number}"));
            at = constant.end;
        }
        shape.push_str(text.get(at..self.range.end).unwrap_or_default());
        shape
    }

    fn holds(&self, place: &Range<usize>) -> bool {
        place.start >= self.range.start && place.end <= self.range.end
    }

    fn constants(&self) -> (Vec<Literal>, Vec<Option<ColumnName>>) {
        let mut literals: Vec<Literal> = self
            .text
            .constants
            .iter()
            .filter(|r| self.holds(r))
            .map(|r| Literal { range: r.clone(), column: None })
            .collect();
        for (at, column) in &self.found.ties {
            let Ok(at) = usize::try_from(*at) else { continue };
            // A negative number stands at its sign: the constant follows.
            let found = literals.partition_point(|l| l.range.start < at);
            if let Some(literal) = literals.get_mut(found) {
                literal.column.get_or_insert_with(|| column.clone());
            }
        }
        let mut params = vec![None; self.mentions.max_param.min(65_535) as usize];
        for (number, column) in &self.found.params {
            let at = (*number as usize).wrapping_sub(1);
            if let Some(slot) = params.get_mut(at) {
                *slot = Some(column.clone());
            }
        }
        (literals, params)
    }
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Refuses functions, operators and types that are not the server's own or known.
pub(super) fn check_mentions(found: &mut Found, mentions: &Mentions, context: &Context) {
    let seen = (found.seen_columns, found.seen_relations, found.seen_queries);
    if seen != (mentions.columns, mentions.relations.len(), mentions.queries) {
        found.problem("a construct this product does not know");
    }
    check_mentions_with(found, mentions, context, &[]);
}

fn check_mentions_with(
    found: &mut Found,
    mentions: &Mentions,
    context: &Context,
    settings: &[Setting],
) {
    let constant = |s: &Setting| s.name.is_some() && matches!(s.value, SetValue::Values(_));
    let is_set_config = |f: &Vec<String>| {
        matches!(f.as_slice(), [n] if n == "set_config")
            || matches!(f.as_slice(), [s, n] if s == "pg_catalog" && n == "set_config")
    };
    // set_config of constants is a SET and is judged as one.
    let sets = mentions.functions.iter().filter(|f| is_set_config(f)).count();
    let plain_sets = sets > 0 && sets == settings.len() && settings.iter().all(constant);
    for written in &mentions.functions {
        let (name, why) = functions::function(written, context);
        if plain_sets && is_set_config(written) && name.schema == "pg_catalog" {
            continue;
        }
        if let Some(why) = why {
            found.problem(why);
        }
    }
    let implied = ["=", "<>", "<", ">", "<=", ">="].map(|o| vec![o.to_owned()]);
    let implied = if mentions.implied_comparison { implied.as_slice() } else { &[] };
    for written in mentions.operators.iter().chain(implied) {
        if let Some(why) = functions::operator(written, context) {
            found.problem(why);
        }
    }
    for written in &mentions.types {
        if let Some(why) = functions::type_name(written, context) {
            found.problem(why);
        }
    }
}

/// Parameters that change nothing about what a statement means or shows.
const HARMLESS: [&str; 5] =
    ["bytea_output", "extra_float_digits", "jit", "lock_timeout", "statement_timeout"];

/// Whether all calls of `set_config` run exactly once when the query does: each is an output of
/// its own, and nothing can take the one row away.
fn sets_for_sure(node: &Node, calls: usize) -> bool {
    let Some(NodeEnum::SelectStmt(s)) = &node.node else { return calls == 0 };
    let plain = s.from_clause.is_empty()
        && s.where_clause.is_none()
        && s.group_clause.is_empty()
        && s.having_clause.is_none()
        && s.distinct_clause.is_empty()
        && s.values_lists.is_empty()
        && s.sort_clause.is_empty()
        && s.limit_count.is_none()
        && s.limit_offset.is_none()
        && s.with_clause.is_none()
        && s.into_clause.is_none()
        && s.larg.is_none();
    let call = |n: &&Node| match &n.node {
        Some(NodeEnum::ResTarget(t)) => match t.val.as_ref().and_then(|v| v.node.as_ref()) {
            Some(NodeEnum::FuncCall(f)) => {
                names::strings(&f.funcname).last().is_some_and(|n| n == "set_config")
                    && f.over.is_none()
                    && f.agg_filter.is_none()
            }
            _ => false,
        },
        _ => false,
    };
    calls == 0 || (plain && s.target_list.iter().all(|n| call(&n)) && s.target_list.len() == calls)
}

impl Draft<'_> {
    /// A statement that is a query itself.
    pub fn plain_query(&mut self, node: &Node, class: StatementClass, command: &str) {
        self.class = class;
        self.command = command.to_owned();
        self.walk(node);
        if !sets_for_sure(node, self.found.settings.len()) {
            for setting in &mut self.found.settings {
                let harmless = setting.name.as_deref().is_some_and(|n| HARMLESS.contains(&n));
                if !harmless {
                    setting.value = SetValue::Unknown;
                }
            }
        }
        if let [only] = self.found.settings.as_slice()
            && let Some(name) = &only.name
        {
            self.kind = match name.as_str() {
                "role" | "session_authorization" => StatementKind::Plain,
                _ => StatementKind::Set {
                    name: name.clone(),
                    value: only.value.clone(),
                    local: only.local,
                },
            };
        }
        self.select_into(node);
    }

    /// `SELECT … INTO` is a `CREATE TABLE AS`.
    fn select_into(&mut self, node: &Node) {
        if !self.mentions.nodes.contains("IntoClause") {
            return;
        }
        self.command = "select into".to_owned();
        self.also.push(StatementClass::Ddl);
        let Some(NodeEnum::SelectStmt(select)) = &node.node else { return };
        let mut leftmost = select.as_ref();
        while let Some(larg) = &leftmost.larg {
            leftmost = larg;
        }
        let into = leftmost.into_clause.as_ref().and_then(|i| i.rel.as_ref());
        self.creates_table_of_outputs(into, "as a source of SELECT INTO");
    }

    /// The outputs go into a new table.
    pub fn creates_table_of_outputs(&mut self, into: Option<&protobuf::RangeVar>, how: &str) {
        self.ddl = true;
        if let Some(into) = into {
            self.creates_relation(into);
        }
        let shape = std::mem::take(&mut self.shape);
        if shape.open {
            self.found.problem(format!("columns {how}, which are not known"));
        }
        for col in shape.cols {
            if let Some(base) = col.base {
                self.found.uses.push(super::types::ColumnUse {
                    column: base.column.clone(),
                    base,
                    how: how.to_owned(),
                });
            }
        }
    }

    /// Notes a relation that comes to be.
    pub fn creates_relation(&mut self, relation: &protobuf::RangeVar) {
        let temporary = relation.relpersistence == "t";
        let schema = match relation.schemaname.as_str() {
            "" if temporary => "pg_temp".to_owned(),
            "" => self.creation_schema(),
            schema => schema.to_owned(),
        };
        let name = Name { schema, name: relation.relname.clone() };
        self.creates.push(name.clone());
        self.written.push(name);
    }

    /// Where an unqualified new object goes.
    pub fn creation_schema(&self) -> String {
        let mut path = self.text.context.search_path.iter();
        let implicit = |s: &&String| s.as_str() != "pg_catalog" && !s.starts_with("pg_temp");
        path.find(|s| implicit(s)).cloned().unwrap_or_default()
    }

    /// A statement that is none the product knows.
    pub fn unknown(&mut self, node: &Node) {
        let kind = names::kind(node.node.as_ref());
        self.command = kind;
        self.class = StatementClass::Unknown;
        self.found.problem(format!("statement {}, which is not known", self.command));
    }
}

/// Functions that run SQL which they are given as text, or read tables named in it, in whatever
/// schema: `*` at the end stands for anything. What they touch is in no list of tables.
const RUN_TEXT: [&str; 12] = [
    // The input of a type that is named in text: a domain's is what its checks call.
    "pg_input_*",
    "query_to_xml*",
    "table_to_xml*",
    "schema_to_xml*",
    "database_to_xml*",
    "cursor_to_xml*",
    "ts_stat",
    "ts_rewrite",
    "crosstab*",
    "connectby*",
    "xpath_table",
    "dblink*",
];

fn runs_text(function: &str) -> bool {
    RUN_TEXT.iter().any(|known| match known.strip_suffix('*') {
        Some(start) => function.starts_with(start),
        None => function == *known,
    })
}

/// Operators that constructs use without naming them: `IN`, `BETWEEN`, `CASE`, `USING`, `ORDER BY`.
const IMPLIED: [&str; 6] = ["=", "<>", "<", ">", "<=", ">="];

fn lookups(mentions: &Mentions) -> Lookups {
    let last = |names: &[Vec<String>]| names.iter().filter_map(|n| n.last().cloned()).collect();
    let mut operators: BTreeSet<String> = last(&mentions.operators);
    operators.extend(IMPLIED.map(str::to_owned));
    let columns = mentions.fields.clone();
    Lookups {
        functions: last(&mentions.functions),
        columns,
        operators,
        types: last(&mentions.types),
    }
}
