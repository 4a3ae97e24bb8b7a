//! The structured walk: queries, their outputs, and every use of a column.
//!
//! For each query it says which column each output is, if it is nothing but that column, and
//! records every other use. It handles the kinds of nodes it names and no others: anything else
//! becomes a problem, and a problem is a refusal while columns are masked. Fields are taken
//! apart by name so that a new one cannot be overlooked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, SelectStmt};

use super::catalog::FIRST_USER_OID;
use super::functions;
use super::names;
use super::pool::Context;
use super::scope::{self, Col, Cte, Level, Meaning};
use super::types::{BaseColumn, ColumnUse, Problem, RelationUse, Setting};
use crate::policy::facts::{ColumnName, Name, StatementClass};

/// Views inside views that are followed.
pub(super) const MAX_VIEW_DEPTH: usize = 16;

/// The outputs of a query.
#[derive(Debug, Clone, Default)]
pub(super) struct Shape {
    pub cols: Vec<Col>,
    /// There may be outputs that are not known.
    pub open: bool,
}

/// The outputs of a view's body and what it does on the way.
#[derive(Debug, Default)]
pub(super) struct QueryShape {
    pub shape: Shape,
    pub found: Found,
}

/// What a walk found.
#[derive(Debug, Default, Clone)]
pub(super) struct Found {
    pub uses: Vec<ColumnUse>,
    pub whole_rows: Vec<Name>,
    pub relations: Vec<RelationUse>,
    pub problems: Vec<Problem>,
    pub columns_read: BTreeSet<ColumnName>,
    pub columns_written: BTreeSet<ColumnName>,
    pub classes: Vec<StatementClass>,
    pub without_where: bool,
    /// Start of a constant → column it is tied to.
    pub ties: HashMap<i32, ColumnName>,
    /// Number of a parameter → column it is tied to.
    pub params: BTreeMap<u32, ColumnName>,
    /// Calls of `set_config`.
    pub settings: Vec<Setting>,
    /// Accounted for, to be compared with what the visitor saw.
    pub seen_columns: usize,
    pub seen_relations: usize,
    pub seen_queries: usize,
}

impl Found {
    pub fn problem(&mut self, part: impl Into<String>) {
        let problem = Problem { part: part.into() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Walks one statement.
pub(super) struct Walker<'a> {
    pub context: &'a Context,
    pub levels: Vec<Level>,
    pub view_depth: usize,
    pub found: Found,
    /// The recursive WITH query whose first arm is about to be known.
    recursive: Option<(String, Vec<String>)>,
}

impl<'a> Walker<'a> {
    pub fn new(context: &'a Context, view_depth: usize) -> Self {
        Self { context, levels: Vec::new(), view_depth, found: Found::default(), recursive: None }
    }

    pub fn level(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Any statement that gives rows.
    pub fn query(&mut self, node: &Node) -> Shape {
        match &node.node {
            Some(NodeEnum::SelectStmt(s)) => self.select(s),
            Some(NodeEnum::InsertStmt(s)) => self.insert(s),
            Some(NodeEnum::UpdateStmt(s)) => self.update(s),
            Some(NodeEnum::DeleteStmt(s)) => self.delete(s),
            Some(NodeEnum::MergeStmt(s)) => self.merge(s),
            other => {
                self.found.problem(format!("unknown query {}", names::kind(other.as_ref())));
                Shape { cols: Vec::new(), open: true }
            }
        }
    }

    pub fn with(&mut self, clause: Option<&protobuf::WithClause>) {
        let Some(protobuf::WithClause { ctes, recursive, location: _ }) = clause else { return };
        let ctes: Vec<_> = ctes
            .iter()
            .filter_map(|n| match &n.node {
                Some(NodeEnum::CommonTableExpr(c)) => Some(c.as_ref()),
                _ => None,
            })
            .collect();
        if *recursive {
            let pending =
                ctes.iter().map(|c| Cte { name: c.ctename.clone(), cols: None, open: true });
            self.level().ctes.extend(pending);
        }
        for cte in ctes {
            self.cte(cte, *recursive);
        }
    }

    fn cte(&mut self, cte: &protobuf::CommonTableExpr, recursive: bool) {
        let protobuf::CommonTableExpr {
            ctename,
            aliascolnames,
            ctematerialized: _,
            ctequery,
            search_clause,
            cycle_clause,
            location: _,
            cterecursive: _,
            cterefcount: _,
            ctecolnames: _,
            ctecoltypes: _,
            ctecoltypmods: _,
            ctecolcollations: _,
        } = cte;
        if search_clause.is_some() || cycle_clause.is_some() {
            self.found.problem("SEARCH or CYCLE of a recursive WITH query");
        }
        let mut shape = Shape { cols: Vec::new(), open: true };
        if let Some(query) = ctequery {
            let union = matches!(&query.node, Some(NodeEnum::SelectStmt(s)) if s.larg.is_some());
            let aliases = names::strings(aliascolnames);
            self.recursive = (recursive && union).then(|| (ctename.clone(), aliases));
            shape = self.query(query);
            self.recursive = None;
        }
        names::rename(&mut shape.cols, &names::strings(aliascolnames));
        let entry = Cte { name: ctename.clone(), cols: Some(shape.cols), open: shape.open };
        let level = self.level();
        match level.ctes.iter_mut().find(|c| c.name == *ctename && recursive) {
            Some(pending) => *pending = entry,
            None => level.ctes.push(entry),
        }
    }

    pub fn select(&mut self, s: &SelectStmt) -> Shape {
        self.found.seen_queries += 1;
        let recursive = self.recursive.take();
        self.levels.push(Level::default());
        let shape = self.select_in_level(s, recursive);
        self.levels.pop();
        shape
    }

    fn select_in_level(
        &mut self,
        s: &SelectStmt,
        recursive: Option<(String, Vec<String>)>,
    ) -> Shape {
        let SelectStmt {
            distinct_clause,
            into_clause,
            target_list,
            from_clause,
            where_clause,
            group_clause,
            group_distinct: _,
            having_clause,
            window_clause,
            values_lists,
            sort_clause,
            limit_offset,
            limit_count,
            limit_option: _,
            locking_clause,
            with_clause,
            op: _,
            all: _,
            larg,
            rarg,
        } = s;
        if into_clause.is_some() && self.levels.len() > 1 {
            self.found.problem("INTO inside a query");
        }
        if let Some(into) = into_clause {
            self.found.seen_relations += usize::from(into.rel.is_some());
        }
        self.with(with_clause.as_ref());
        let mut shape = if let (Some(larg), Some(rarg)) = (larg, rarg) {
            self.set_operation(larg, rarg, recursive)
        } else if !values_lists.is_empty() {
            self.values(values_lists, &[])
        } else {
            self.from(from_clause);
            self.targets(target_list)
        };
        self.clause(where_clause.as_deref(), "in WHERE");
        for item in group_clause {
            self.group_item(item, &shape);
        }
        self.clause(having_clause.as_deref(), "in HAVING");
        for window in window_clause {
            self.expr(window, "in WINDOW");
        }
        self.distinct(distinct_clause, &shape);
        for item in sort_clause {
            self.sort_item(item, &shape, "in ORDER BY");
        }
        self.clause(limit_offset.as_deref(), "in OFFSET");
        self.clause(limit_count.as_deref(), "in LIMIT");
        for lock in locking_clause {
            match &lock.node {
                Some(NodeEnum::LockingClause(l)) => {
                    self.found.seen_relations += l.locked_rels.len();
                }
                other => {
                    self.found.problem(format!("unknown lock {}", names::kind(other.as_ref())));
                }
            }
        }
        if larg.is_some() {
            for col in &mut shape.cols {
                col.base = None;
            }
        }
        shape
    }

    pub fn clause(&mut self, node: Option<&Node>, how: &str) {
        if let Some(node) = node {
            self.expr(node, how);
        }
    }

    fn set_operation(
        &mut self,
        larg: &SelectStmt,
        rarg: &SelectStmt,
        recursive: Option<(String, Vec<String>)>,
    ) -> Shape {
        let left = self.select(larg);
        let names: Vec<_> = left.cols.iter().map(|c| Col::computed(c.name.clone())).collect();
        if let Some((name, aliases)) = recursive {
            let mut own = names.clone();
            names::rename(&mut own, &aliases);
            let found = self.levels.iter_mut().rev().find_map(|level| {
                level.ctes.iter_mut().find(|c| c.name == name && c.cols.is_none())
            });
            if let Some(cte) = found {
                cte.cols = Some(own);
                cte.open = left.open;
            }
        }
        let right = self.select(rarg);
        for col in left.cols.iter().chain(&right.cols) {
            self.record(col, "as a member of UNION, INTERSECT or EXCEPT");
        }
        Shape { cols: names, open: left.open || right.open }
    }

    /// VALUES, with the columns its positions are written to.
    pub fn values(&mut self, lists: &[Node], targets: &[ColumnName]) -> Shape {
        let mut width = 0;
        for list in lists {
            let Some(NodeEnum::List(list)) = &list.node else {
                self.found.problem("a VALUES list of unknown form");
                continue;
            };
            width = width.max(list.items.len());
            for (at, value) in list.items.iter().enumerate() {
                if let Some(column) = targets.get(at) {
                    self.tie_constants(value, column);
                }
                if self.star(value).is_some() {
                    self.found.problem("* in VALUES");
                }
                self.expr(value, "in VALUES");
            }
        }
        let cols = (1..=width).map(|n| Col::computed(format!("column{n}"))).collect();
        Shape { cols, open: false }
    }

    pub fn targets(&mut self, list: &[Node]) -> Shape {
        let mut shape = Shape::default();
        for node in list {
            match &node.node {
                Some(NodeEnum::ResTarget(t)) => self.target(t, &mut shape),
                other => {
                    self.found.problem(format!("unknown output {}", names::kind(other.as_ref())));
                    shape.open = true;
                }
            }
        }
        shape
    }

    fn target(&mut self, t: &protobuf::ResTarget, shape: &mut Shape) {
        let protobuf::ResTarget { name, indirection, val, location: _ } = t;
        let Some(val) = val else {
            self.found.problem("an output without a value");
            shape.open = true;
            return;
        };
        if !indirection.is_empty() {
            self.found.problem("indirection on an output's name");
        }
        if let Some(qualifier) = self.star(val) {
            self.found.seen_columns += 1;
            self.expand(&qualifier, shape);
            return;
        }
        let label = if name.is_empty() { names::figure(val) } else { name.clone() };
        let base = match &val.node {
            Some(NodeEnum::ColumnRef(c)) => {
                let meaning = self.meaning(c);
                self.bare_output(meaning)
            }
            Some(NodeEnum::AIndirection(i)) if i.indirection.iter().any(names::is_star) => {
                self.found.problem("expansion of a composite value with .*");
                shape.open = true;
                self.expr(val, "in an expression of the output");
                return;
            }
            _ => {
                self.expr(val, "in an expression of the output");
                None
            }
        };
        shape.cols.push(Col { name: label, base });
    }

    /// The column an output is, when the output is only a reference.
    fn bare_output(&mut self, meaning: Meaning) -> Option<Arc<BaseColumn>> {
        match meaning {
            Meaning::Column(col) => {
                self.read(&col);
                col.base
            }
            other => {
                self.used(other, "in an expression of the output");
                None
            }
        }
    }

    /// The parts before the star, when a node is `*` or `x.*`.
    pub fn star(&self, node: &Node) -> Option<Vec<String>> {
        match &node.node {
            Some(NodeEnum::ColumnRef(c)) if c.fields.last().is_some_and(names::is_star) => {
                Some(names::strings(&c.fields))
            }
            _ => None,
        }
    }

    fn expand(&mut self, qualifier: &[String], shape: &mut Shape) {
        let parts: Vec<&str> = qualifier.iter().map(String::as_str).collect();
        let items: Vec<_> = match parts.as_slice() {
            [] => self.level().items.iter().filter(|i| i.bare).cloned().collect(),
            [name] => scope::item_named(&self.levels, None, name).cloned().into_iter().collect(),
            [schema, name] => {
                scope::item_named(&self.levels, Some(schema), name).cloned().into_iter().collect()
            }
            _ => Vec::new(),
        };
        if items.is_empty() {
            self.found.problem(format!("output {}.*, which is not known", qualifier.join(".")));
            shape.open = true;
        }
        for item in items {
            shape.open |= item.open;
            if let (true, Some(relation)) = (item.open, &item.source) {
                let all = scope::unresolved(relation, "*");
                self.read(&all);
            }
            for col in item.cols {
                self.read(&col);
                shape.cols.push(col);
            }
        }
    }

    fn distinct(&mut self, clause: &[Node], shape: &Shape) {
        match clause {
            [] => {}
            // Plain DISTINCT is a list of one empty node.
            [Node { node: None }] => {
                for col in &shape.cols {
                    self.record(col, "in DISTINCT");
                }
            }
            items => {
                for item in items {
                    self.sort_item(item, shape, "in DISTINCT ON");
                }
            }
        }
    }

    /// ORDER BY and DISTINCT ON: ordinals and output names come first.
    pub fn sort_item(&mut self, node: &Node, shape: &Shape, how: &str) {
        let inner = match &node.node {
            Some(NodeEnum::SortBy(s)) => s.node.as_deref(),
            _ => Some(node),
        };
        let Some(inner) = inner else { return };
        if self.ordinal(inner, shape, how) {
            return;
        }
        if let Some(name) = names::single_name(inner) {
            let named: Vec<_> = shape.cols.iter().filter(|c| c.name == name).cloned().collect();
            if !named.is_empty() {
                self.found.seen_columns += 1;
                for col in named {
                    self.record(&col, how);
                }
                return;
            }
            if shape.open {
                self.found.problem(format!("name {name} {how}, which may be an output's"));
            }
        }
        self.expr(inner, how);
    }

    /// An integer constant that stands for an output.
    fn ordinal(&mut self, node: &Node, shape: &Shape, how: &str) -> bool {
        let Some(NodeEnum::AConst(c)) = &node.node else { return false };
        if let Some(protobuf::a_const::Val::Ival(n)) = &c.val {
            let at = usize::try_from(n.ival).ok().and_then(|n| n.checked_sub(1));
            match at.and_then(|at| shape.cols.get(at)) {
                Some(col) if !shape.open => self.record(&col.clone(), how),
                _ => {
                    for col in shape.cols.clone() {
                        self.record(&col, how);
                    }
                }
            }
        }
        true
    }

    /// GROUP BY: input columns come before output names.
    fn group_item(&mut self, node: &Node, shape: &Shape) {
        let how = "in GROUP BY";
        match &node.node {
            Some(NodeEnum::GroupingSet(g)) => {
                for item in &g.content {
                    self.group_item(item, shape);
                }
                return;
            }
            Some(NodeEnum::List(l)) => {
                for item in &l.items {
                    self.group_item(item, shape);
                }
                return;
            }
            _ => {}
        }
        if self.ordinal(node, shape, how) {
            return;
        }
        if let Some(name) = names::single_name(node) {
            let last = self.levels.len().saturating_sub(1);
            let local = scope::resolve(&self.levels[last..], &[name]);
            let input = matches!(local, Meaning::Column(_));
            let named: Vec<_> = shape.cols.iter().filter(|c| c.name == name).cloned().collect();
            if !input && !named.is_empty() {
                self.found.seen_columns += 1;
                for col in named {
                    self.record(&col, how);
                }
                return;
            }
        }
        self.expr(node, how);
    }

    /// The meaning of a reference, counted.
    pub fn meaning(&mut self, c: &protobuf::ColumnRef) -> Meaning {
        self.found.seen_columns += 1;
        self.peek(c)
    }

    /// The meaning of a reference, not counted.
    pub fn peek(&self, c: &protobuf::ColumnRef) -> Meaning {
        let parts = names::strings(&c.fields);
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        scope::resolve(&self.levels, &parts)
    }

    /// Notes that a column's value is read.
    pub fn read(&mut self, col: &Col) {
        if let Some(base) = &col.base {
            if (1..FIRST_USER_OID).contains(&base.relation)
                && functions::column_hidden(&base.column)
            {
                self.found.problem(format!("column {} of the server", base.column));
            }
            for column in base.chain() {
                if !self.found.columns_read.contains(&column.column) {
                    self.found.columns_read.insert(column.column.clone());
                }
            }
        }
    }

    /// Notes a use of a column that is not handing it on.
    pub fn record(&mut self, col: &Col, how: &str) {
        self.read(col);
        if let Some(base) = &col.base {
            let known = self.found.uses.iter().any(|u| Arc::ptr_eq(&u.base, base) && u.how == how);
            if !known {
                self.found.uses.push(ColumnUse {
                    column: base.column.clone(),
                    base: base.clone(),
                    how: how.to_owned(),
                });
            }
        }
    }

    /// Notes the use of whatever a reference means.
    pub fn used(&mut self, meaning: Meaning, how: &str) {
        match meaning {
            Meaning::Column(col) => self.record(&col, how),
            Meaning::Other => {}
            Meaning::Row { name, relation, cols, open } => {
                let whole = format!("in the whole row {name}");
                for col in &cols {
                    self.record(col, &whole);
                }
                if open {
                    self.found.problem(format!("whole row {name}, whose columns are not known"));
                }
                self.found.whole_rows.extend(relation);
            }
            Meaning::Unknown { why, candidates } => {
                self.found.problem(why);
                for col in &candidates {
                    self.record(col, how);
                }
            }
        }
    }

    /// Adds what was found in a view.
    pub fn absorb(&mut self, other: &Found) {
        for used in &other.uses {
            let col = Col { name: String::new(), base: Some(used.base.clone()) };
            self.record(&col, &used.how);
        }
        for problem in &other.problems {
            self.found.problem(problem.part.clone());
        }
        self.found.relations.extend(other.relations.iter().cloned());
        self.found.columns_read.extend(other.columns_read.iter().cloned());
        self.found.whole_rows.extend(other.whole_rows.iter().cloned());
    }
}
