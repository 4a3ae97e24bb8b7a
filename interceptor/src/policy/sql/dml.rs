//! INSERT, UPDATE, DELETE and MERGE: what is written, from what, and what comes back.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self, CmdType, DeleteStmt, InsertStmt, MergeStmt, Node, OnConflictAction, RangeVar, UpdateStmt,
};

use super::names;
use super::query::{Shape, Walker};
use super::scope::{Col, Item, Level};
use crate::policy::facts::{ColumnName, StatementClass};

impl Walker<'_> {
    fn begin(&mut self, class: StatementClass) {
        self.found.seen_queries += 1;
        self.found.classes.push(class);
        self.levels.push(Level::default());
    }

    fn end(&mut self, returning: Option<&protobuf::ReturningClause>, target: &Item) -> Shape {
        let shape = returning.map(|r| self.returning(r, target)).unwrap_or_default();
        self.levels.pop();
        shape
    }

    fn target_relation(&mut self, relation: Option<&RangeVar>) -> Item {
        match relation {
            Some(relation) => self.relation(relation, true),
            None => {
                self.found.problem("a write without a target");
                let mut item = Item::new(None, Vec::new());
                item.open = true;
                item
            }
        }
    }

    pub fn insert(&mut self, s: &InsertStmt) -> Shape {
        let InsertStmt {
            relation,
            cols,
            select_stmt,
            on_conflict_clause,
            returning_clause,
            with_clause,
            r#override: _,
        } = s;
        self.begin(StatementClass::Insert);
        self.with(with_clause.as_ref());
        let target = self.target_relation(relation.as_ref());
        let written = self.insert_columns(cols, &target);
        if let Some(source) = select_stmt {
            self.insert_source(source, &written);
        }
        self.level().items = vec![target.clone()];
        if let Some(clause) = on_conflict_clause {
            self.on_conflict(clause, &target);
        }
        self.end(returning_clause.as_ref(), &target)
    }

    /// The columns an INSERT writes, in order.
    fn insert_columns(&mut self, cols: &[Node], target: &Item) -> Vec<ColumnName> {
        let mut written = Vec::new();
        for node in cols {
            if let Some(NodeEnum::ResTarget(t)) = &node.node {
                for step in &t.indirection {
                    self.expr_step(step);
                }
                written.extend(column_of(target, &t.name));
            }
        }
        if cols.is_empty() {
            written =
                target.cols.iter().filter_map(|c| Some(c.base.as_ref()?.column.clone())).collect();
        }
        self.found.columns_written.extend(written.iter().cloned());
        written
    }

    fn insert_source(&mut self, source: &Node, written: &[ColumnName]) {
        if let Some(NodeEnum::SelectStmt(s)) = &source.node
            && !s.values_lists.is_empty()
            && s.with_clause.is_none()
            && s.sort_clause.is_empty()
            && s.limit_count.is_none()
            && s.limit_offset.is_none()
            && s.locking_clause.is_empty()
        {
            self.found.seen_queries += 1;
            self.levels.push(Level::default());
            self.values(&s.values_lists, written);
            self.levels.pop();
            return;
        }
        // `INSERT … SELECT 'x', $1`: constants of the outputs go to the columns.
        if let Some(NodeEnum::SelectStmt(s)) = &source.node {
            for (node, column) in s.target_list.iter().zip(written) {
                if let Some(NodeEnum::ResTarget(t)) = &node.node
                    && let Some(val) = &t.val
                {
                    self.tie_constants(val, column);
                }
            }
        }
        let shape = self.query(source);
        for col in &shape.cols {
            self.record(col, "as a source of INSERT");
        }
        if shape.open {
            self.found.problem("a source of INSERT whose columns are not known");
        }
    }

    fn on_conflict(&mut self, clause: &protobuf::OnConflictClause, target: &Item) {
        let protobuf::OnConflictClause { action, infer, target_list, where_clause, location: _ } =
            clause;
        if *action == OnConflictAction::OnconflictUpdate as i32 {
            self.found.classes.push(StatementClass::Update);
        }
        if let Some(infer) = infer {
            let protobuf::InferClause { index_elems, where_clause, conname, location: _ } =
                infer.as_ref();
            for elem in index_elems {
                if let Some(NodeEnum::IndexElem(e)) = &elem.node {
                    for col in target.cols.iter().filter(|c| c.name == e.name) {
                        self.record(col, "as a key of ON CONFLICT");
                    }
                    self.clause(e.expr.as_deref(), "as a key of ON CONFLICT");
                }
            }
            if !conname.is_empty() {
                for col in &target.cols {
                    self.record(col, "possibly as a key of ON CONFLICT ON CONSTRAINT");
                }
            }
            self.clause(where_clause.as_deref(), "in ON CONFLICT WHERE");
        }
        // What was proposed is the client's own data.
        let proposed = target.cols.iter().map(|c| Col::computed(c.name.clone())).collect();
        let mut excluded = Item::new(Some("excluded".to_owned()), proposed);
        excluded.bare = false;
        excluded.open = target.open;
        self.level().items.push(excluded);
        self.assignments(target_list, target);
        self.clause(where_clause.as_deref(), "in ON CONFLICT WHERE");
        self.level().items.truncate(1);
    }

    /// SET lists.
    fn assignments(&mut self, list: &[Node], target: &Item) {
        for node in list {
            let Some(NodeEnum::ResTarget(t)) = &node.node else {
                self.found.problem("an assignment of unknown form");
                continue;
            };
            let column = column_of(target, &t.name);
            self.found.columns_written.extend(column.clone());
            for step in &t.indirection {
                self.expr_step(step);
            }
            let Some(val) = &t.val else { continue };
            if let Some(column) = &column {
                self.tie_assigned(val, column);
            }
            self.expr(val, &format!("in the value assigned to {}", t.name));
        }
    }

    fn expr_step(&mut self, step: &Node) {
        if let Some(NodeEnum::AIndices(i)) = &step.node {
            self.clause(i.lidx.as_deref(), "in a subscript");
            self.clause(i.uidx.as_deref(), "in a subscript");
        }
    }

    /// `(a, b) = ROW(1, 2)` gives each column its own part.
    fn tie_assigned(&mut self, val: &Node, column: &ColumnName) {
        match &val.node {
            Some(NodeEnum::MultiAssignRef(m)) => {
                let source = m.source.as_ref().and_then(|s| s.node.as_ref());
                let at = usize::try_from(m.colno).ok().and_then(|n| n.checked_sub(1));
                if let (Some(NodeEnum::RowExpr(row)), Some(at)) = (source, at)
                    && let Some(part) = row.args.get(at)
                {
                    self.tie_constants(part, column);
                }
            }
            _ => self.tie_constants(val, column),
        }
    }

    pub fn update(&mut self, s: &UpdateStmt) -> Shape {
        let UpdateStmt {
            relation,
            target_list,
            where_clause,
            from_clause,
            returning_clause,
            with_clause,
        } = s;
        self.begin(StatementClass::Update);
        self.with(with_clause.as_ref());
        let target = self.target_relation(relation.as_ref());
        self.level().items.push(target.clone());
        self.sources_beside(from_clause);
        self.assignments(target_list, &target);
        self.clause(where_clause.as_deref(), "in WHERE");
        self.found.without_where |= where_clause.is_none();
        self.end(returning_clause.as_ref(), &target)
    }

    /// FROM and USING of a write: its entries do not see the target.
    fn sources_beside(&mut self, list: &[Node]) {
        let target = std::mem::take(&mut self.level().items);
        self.from(list);
        let others = std::mem::replace(&mut self.level().items, target);
        self.level().items.extend(others);
    }

    pub fn delete(&mut self, s: &DeleteStmt) -> Shape {
        let DeleteStmt { relation, using_clause, where_clause, returning_clause, with_clause } = s;
        self.begin(StatementClass::Delete);
        self.with(with_clause.as_ref());
        let target = self.target_relation(relation.as_ref());
        self.level().items.push(target.clone());
        self.sources_beside(using_clause);
        self.clause(where_clause.as_deref(), "in WHERE");
        self.found.without_where |= where_clause.is_none();
        self.end(returning_clause.as_ref(), &target)
    }

    pub fn merge(&mut self, s: &MergeStmt) -> Shape {
        let MergeStmt {
            relation,
            source_relation,
            join_condition,
            merge_when_clauses,
            returning_clause,
            with_clause,
        } = s;
        self.begin(StatementClass::Merge);
        self.with(with_clause.as_ref());
        let target = self.target_relation(relation.as_ref());
        let source = source_relation.as_deref().map(|n| self.source_item(n)).unwrap_or_default();
        self.level().items = source;
        self.level().items.push(target.clone());
        self.clause(join_condition.as_deref(), "in MERGE ON");
        for clause in merge_when_clauses {
            match &clause.node {
                Some(NodeEnum::MergeWhenClause(w)) => self.merge_when(w, &target),
                other => {
                    self.found.problem(format!("unknown action {}", names::kind(other.as_ref())));
                }
            }
        }
        self.end(returning_clause.as_ref(), &target)
    }

    fn merge_when(&mut self, w: &protobuf::MergeWhenClause, target: &Item) {
        let protobuf::MergeWhenClause {
            match_kind: _,
            command_type,
            r#override: _,
            condition,
            target_list,
            values,
        } = w;
        self.clause(condition.as_deref(), "in MERGE WHEN");
        match CmdType::try_from(*command_type) {
            Ok(CmdType::CmdUpdate) => {
                self.found.classes.push(StatementClass::Update);
                self.assignments(target_list, target);
            }
            Ok(CmdType::CmdInsert) => {
                self.found.classes.push(StatementClass::Insert);
                let written = self.insert_columns(target_list, target);
                for (at, value) in values.iter().enumerate() {
                    if let Some(column) = written.get(at) {
                        self.tie_constants(value, column);
                    }
                    self.expr(value, "in MERGE INSERT");
                }
            }
            Ok(CmdType::CmdDelete) => self.found.classes.push(StatementClass::Delete),
            Ok(CmdType::CmdNothing) => {}
            _ => self.found.problem("unknown action of MERGE"),
        }
    }

    fn returning(&mut self, clause: &protobuf::ReturningClause, target: &Item) -> Shape {
        let protobuf::ReturningClause { options, exprs } = clause;
        let mut names = vec!["old".to_owned(), "new".to_owned()];
        for option in options {
            if let Some(NodeEnum::ReturningOption(o)) = &option.node {
                names.push(o.value.clone());
            }
        }
        for name in names {
            let taken = self.level().items.iter().any(|i| i.name.as_deref() == Some(&name));
            if !taken {
                let mut row = Item::new(Some(name), target.cols.clone());
                row.bare = false;
                row.open = target.open;
                row.source.clone_from(&target.source);
                row.stored = target.stored;
                self.level().items.push(row);
            }
        }
        self.targets(exprs)
    }
}

/// The column of a target by its name.
fn column_of(target: &Item, name: &str) -> Option<ColumnName> {
    let known = target.cols.iter().find(|c| c.name == name);
    match known {
        Some(col) => col.base.as_ref().map(|b| b.column.clone()),
        None => {
            target.source.as_ref().map(|s| ColumnName { table: s.clone(), column: name.to_owned() })
        }
    }
}
