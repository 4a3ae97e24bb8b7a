//! Statements that are not queries: what each is, and which may run while columns are masked.
//!
//! The list of those that may is short and explicit. A statement that changes the catalog is
//! also a use of every column of every relation it names, so that it cannot touch one with
//! masked columns.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, ObjectType};

use super::kind;
use super::names;
use super::query::Walker;
use super::scope::Col;
use super::statement::Draft;
use super::types::{CopySource, RelationUse, SqlError, StatementKind};
use crate::policy::facts::{ColumnName, Name, StatementClass as Class};

impl Draft<'_> {
    /// Analyses one statement of any kind.
    pub fn statement(&mut self, node: &Node) -> Result<(), SqlError> {
        let Some(inside) = &node.node else {
            self.unknown(node);
            return Ok(());
        };
        match inside {
            NodeEnum::SelectStmt(_) => self.plain_query(node, Class::Select, "select"),
            NodeEnum::InsertStmt(_) => self.plain_query(node, Class::Insert, "insert"),
            NodeEnum::UpdateStmt(_) => self.plain_query(node, Class::Update, "update"),
            NodeEnum::DeleteStmt(_) => self.plain_query(node, Class::Delete, "delete"),
            NodeEnum::MergeStmt(_) => self.plain_query(node, Class::Merge, "merge"),
            NodeEnum::ExplainStmt(s) => self.explain(s)?,
            NodeEnum::PrepareStmt(s) => {
                self.is(Class::Utility, "prepare");
                let inner = Box::new(self.inner(s.query.as_deref())?);
                self.inherit(&inner);
                self.kind = StatementKind::Prepare { name: s.name.clone(), inner };
            }
            NodeEnum::DeclareCursorStmt(s) => {
                self.is(Class::Utility, "declare cursor");
                let inner = Box::new(self.inner(s.query.as_deref())?);
                self.inherit(&inner);
                // CURSOR_OPT_BINARY and CURSOR_OPT_HOLD of the server.
                let (binary, hold) = (s.options & 0x1 != 0, s.options & 0x20 != 0);
                let name = s.portalname.clone();
                self.kind = StatementKind::DeclareCursor { name, hold, binary, inner };
            }
            NodeEnum::ExecuteStmt(s) => {
                self.is(Class::Utility, "execute");
                let mut walker = Walker::new(self.text.context, 0);
                walker.exprs(&s.params, "as a parameter of EXECUTE");
                self.found = walker.found;
                self.walked = true;
                self.kind = StatementKind::Execute { name: s.name.clone() };
            }
            NodeEnum::CopyStmt(s) => self.copy(s)?,
            NodeEnum::CreateTableAsStmt(s) => self.create_table_as(s)?,
            NodeEnum::CallStmt(s) => self.call(s),
            NodeEnum::DoStmt(s) => self.do_block(s)?,
            _ => self.session(node, inside),
        }
        Ok(())
    }

    fn is(&mut self, class: Class, command: &str) {
        self.class = class;
        command.clone_into(&mut self.command);
    }

    fn explain(&mut self, s: &protobuf::ExplainStmt) -> Result<(), SqlError> {
        let protobuf::ExplainStmt { query, options } = s;
        self.is(Class::Utility, "explain");
        let analyze = kind::option_on(options, "analyze").unwrap_or(false);
        let inner = Box::new(self.inner(query.as_deref())?);
        self.inherit(&inner);
        if !analyze {
            // Planned, not run: it is not what it explains, though it names the same things.
            self.also.clear();
        }
        self.shape.cols = vec![Col::computed("QUERY PLAN")];
        self.changes_resolution = false;
        self.kind = StatementKind::Explain { analyze, inner };
        Ok(())
    }

    fn call(&mut self, s: &protobuf::CallStmt) {
        self.is(Class::Call, "call");
        let mut walker = Walker::new(self.text.context, 0);
        if let Some(call) = &s.funccall {
            let node = Node { node: Some(NodeEnum::FuncCall(call.clone())) };
            walker.expr(&node, "as an argument of CALL");
            let name =
                super::functions::function(&names::strings(&call.funcname), self.text.context);
            self.kind = StatementKind::Call(name.0);
        }
        self.found = walker.found;
        self.found.problem("CALL, whose procedure cannot be followed");
        self.shape.open = true;
        self.changes_resolution = true;
        self.walked = true;
    }

    fn copy(&mut self, s: &protobuf::CopyStmt) -> Result<(), SqlError> {
        let protobuf::CopyStmt {
            relation,
            query,
            attlist,
            is_from,
            is_program,
            filename,
            options,
            where_clause,
        } = s;
        let client = !is_program && filename.is_empty();
        self.is(Class::Copy, copy_command(*is_from, *is_program, client));
        let format = kind::copy_format(options);
        if !client {
            self.found.problem("COPY with a file or program of the server");
        }
        if let Some(query) = query {
            let inner = self.inner(Some(query))?;
            self.inherit(&inner);
            match inner.lineage.outputs {
                Ok(outputs) => {
                    let col = |o: super::types::Output| Col { name: o.name, base: o.base };
                    self.shape.cols = outputs.into_iter().map(col).collect();
                }
                Err(_) => self.shape.open = true,
            }
            let source = CopySource::Query { text: self.query_text() };
            self.kind = StatementKind::CopyOut { source, format, to_stdout: client };
            return Ok(());
        }
        let mut walker = Walker::new(self.text.context, 0);
        let Some(relation) = relation else {
            self.found.problem("COPY of nothing");
            return Ok(());
        };
        let item = walker.relation(relation, *is_from);
        let name = item.source.clone().unwrap_or_default();
        let listed = names::strings(attlist);
        let cols = if listed.is_empty() {
            let generated = self.generated(&name, relation);
            item.cols.iter().filter(|c| !generated.contains(&c.name)).cloned().collect()
        } else {
            listed.iter().map(|n| copied(&item, n, &mut walker)).collect::<Vec<_>>()
        };
        let source = CopySource::Table { name: name.clone(), columns: listed };
        if *is_from {
            let written = cols.iter().filter_map(|c| Some(c.base.as_ref()?.column.clone()));
            walker.found.columns_written.extend(written);
            walker.level().items.push(item);
            walker.clause(where_clause.as_deref(), "in COPY WHERE");
            self.kind = StatementKind::CopyIn { source, format, from_stdin: client };
        } else {
            for col in &cols {
                walker.read(col);
            }
            self.shape.cols = cols;
            self.shape.open = item.open;
            if item.open && self.found.columns_read.is_empty() {
                walker.found.columns_read.insert(ColumnName { table: name, column: "*".into() });
            }
            self.kind = StatementKind::CopyOut { source, format, to_stdout: client };
        }
        let problems = std::mem::take(&mut self.found.problems);
        self.found = walker.found;
        self.found.problems.extend(problems);
        self.walked = true;
        Ok(())
    }

    /// Generated columns, which `COPY table` leaves out.
    fn generated(&self, name: &Name, relation: &protobuf::RangeVar) -> Vec<String> {
        let Some(catalog) = &self.text.context.catalog else { return Vec::new() };
        let path = &self.text.context.search_path;
        let schema = if relation.schemaname.is_empty() { "" } else { name.schema.as_str() };
        catalog
            .lookup(schema, &relation.relname, path)
            .map(|r| r.columns.iter().filter(|c| c.generated).map(|c| c.name.clone()).collect())
            .unwrap_or_default()
    }

    /// The query of `COPY (query) TO`, between the outermost parentheses.
    fn query_text(&self) -> String {
        let text = self.text.text.get(self.range.clone()).unwrap_or_default();
        inside_parentheses(text).unwrap_or_default().to_owned()
    }

    fn create_table_as(&mut self, s: &protobuf::CreateTableAsStmt) -> Result<(), SqlError> {
        let view = s.objtype == ObjectType::ObjectMatview as i32;
        self.is(Class::Ddl, if view { "create materialized view" } else { "create table as" });
        let inner = self.inner(s.query.as_deref())?;
        if let StatementKind::Execute { .. } = inner.kind {
            self.found.problem("CREATE TABLE AS EXECUTE, whose columns are not known here");
        }
        self.inherit(&inner);
        if view {
            self.found.problem("CREATE MATERIALIZED VIEW");
        }
        match inner.lineage.outputs {
            Ok(outputs) => {
                let col = |o: super::types::Output| Col { name: o.name, base: o.base };
                self.shape.cols = outputs.into_iter().map(col).collect();
            }
            Err(_) => self.shape.open = true,
        }
        let into = s.into.as_ref().and_then(|i| i.rel.as_ref());
        self.creates_table_of_outputs(into, "as a source of CREATE TABLE AS");
        Ok(())
    }

    /// Statements about the session, and those that change the catalog.
    fn session(&mut self, node: &Node, inside: &NodeEnum) {
        match inside {
            NodeEnum::VariableSetStmt(s) => {
                let (kind, settings) = kind::set(s);
                (self.kind, self.settings) = (kind, settings);
                let transaction = s.name.eq_ignore_ascii_case("transaction");
                let class = if transaction { Class::Transaction } else { Class::Set };
                let reset = matches!(self.kind, StatementKind::Reset(_));
                self.is(class, if reset { "reset" } else { "set" });
            }
            NodeEnum::VariableShowStmt(s) => {
                self.is(Class::Utility, "show");
                let all = s.name == "all";
                let names: &[&str] =
                    if all { &["name", "setting", "description"] } else { &[s.name.as_str()] };
                self.shape.cols = names.iter().map(|n| Col::computed(*n)).collect();
                self.kind = StatementKind::Show(s.name.to_ascii_lowercase());
            }
            NodeEnum::TransactionStmt(s) => match kind::transaction(s) {
                Some(kind) => {
                    self.is(Class::Transaction, transaction_command(&kind));
                    self.kind = StatementKind::Transaction(kind);
                }
                None => self.unknown(node),
            },
            NodeEnum::DeallocateStmt(s) => {
                self.is(Class::Utility, "deallocate");
                let name = (!s.isall && !s.name.is_empty()).then(|| s.name.clone());
                self.kind = StatementKind::Deallocate(name);
            }
            NodeEnum::FetchStmt(s) => {
                self.is(Class::Utility, if s.ismove { "move" } else { "fetch" });
                let cursor = s.portalname.clone();
                self.kind = StatementKind::Fetch { cursor, is_move: s.ismove };
            }
            NodeEnum::ClosePortalStmt(s) => {
                self.is(Class::Utility, "close cursor");
                let name = (!s.portalname.is_empty()).then(|| s.portalname.clone());
                self.kind = StatementKind::CloseCursor(name);
            }
            NodeEnum::DiscardStmt(s) => {
                self.is(Class::Utility, "discard");
                self.kind = StatementKind::Discard(kind::discard(s.target));
                self.changes_resolution = true;
            }
            NodeEnum::ListenStmt(s) => {
                self.is(Class::Utility, "listen");
                self.kind = StatementKind::Listen(s.conditionname.clone());
            }
            NodeEnum::UnlistenStmt(s) => {
                self.is(Class::Utility, "unlisten");
                let name = (!s.conditionname.is_empty()).then(|| s.conditionname.clone());
                self.kind = StatementKind::Unlisten(name);
            }
            NodeEnum::NotifyStmt(s) => {
                self.is(Class::Utility, "notify");
                self.kind = StatementKind::Notify(s.conditionname.clone());
            }
            NodeEnum::CheckPointStmt(_) => self.is(Class::Utility, "checkpoint"),
            NodeEnum::ConstraintsSetStmt(_) => self.is(Class::Utility, "set constraints"),
            NodeEnum::LockStmt(_) => self.names_relations("lock table", Class::Utility),
            NodeEnum::VacuumStmt(s) => {
                let command = if s.is_vacuumcmd { "vacuum" } else { "analyze" };
                self.names_relations(command, Class::Utility);
            }
            NodeEnum::TruncateStmt(_) => {
                self.names_relations("truncate table", Class::Ddl);
                self.found.without_where = true;
            }
            NodeEnum::ClusterStmt(_) => self.names_relations("cluster", Class::Utility),
            NodeEnum::ReindexStmt(_) => self.names_relations("reindex", Class::Utility),
            NodeEnum::LoadStmt(_) => {
                self.is(Class::Utility, "load");
                self.found.problem("LOAD");
            }
            _ => self.ddl_statement(node, inside),
        }
    }

    /// Relations a statement names without reading their values.
    fn names_relations(&mut self, command: &str, class: Class) {
        self.is(class, command);
        for [_, schema, name] in &self.mentions.relations.clone() {
            let relation = self.resolve(schema, name);
            self.found.relations.push(RelationUse { written: class == Class::Ddl, ..relation });
        }
    }

    /// A relation by name, unknown ones with an empty schema.
    pub fn resolve(&mut self, schema: &str, name: &str) -> RelationUse {
        let context = self.text.context;
        let found = context
            .catalog
            .as_ref()
            .and_then(|c| c.lookup(schema, name, &context.search_path).cloned());
        match found {
            Some(r) => RelationUse { name: r.name.clone(), oid: r.oid, written: true },
            None => RelationUse {
                name: Name { schema: schema.to_owned(), name: name.to_owned() },
                oid: 0,
                written: true,
            },
        }
    }

    /// A relation whose definition a statement touches: all its columns are used.
    pub fn touches(&mut self, schema: &str, name: &str) {
        let relation = self.resolve(schema, name);
        let context = self.text.context;
        if let Some(catalog) = &context.catalog
            && let Some(known) = catalog.relation(relation.oid)
        {
            let mut walker = Walker::new(context, 0);
            let how = format!("in a relation that {} touches", self.command.to_uppercase());
            for col in walker.columns(catalog, known) {
                walker.record(&col, &how);
            }
            self.found.uses.extend(walker.found.uses);
            for problem in walker.found.problems {
                self.found.problem(problem.part);
            }
        }
        // What the snapshot does not hold may have been made since, and may be anything.
        if relation.oid == 0 && !self.command.starts_with("drop ") {
            self.found.problem(format!("relation {}, which is not known", relation.name));
        }
        self.found.relations.push(relation);
    }
}

fn copied(item: &super::scope::Item, name: &str, walker: &mut Walker<'_>) -> Col {
    if let Some(col) = item.cols.iter().find(|c| c.name == *name) {
        return col.clone();
    }
    if !item.open {
        walker.found.problem(format!("column {name}, which is not known"));
    }
    match &item.source {
        Some(source) => super::scope::unresolved(source, name),
        None => Col::computed(name),
    }
}

fn copy_command(is_from: bool, is_program: bool, client: bool) -> &'static str {
    match (is_from, is_program, client) {
        (false, _, true) => "copy to stdout",
        (true, _, true) => "copy from stdin",
        (false, true, _) => "copy to program",
        (true, true, _) => "copy from program",
        (false, false, _) => "copy to file",
        (true, false, _) => "copy from file",
    }
}

fn transaction_command(kind: &super::types::TransactionKind) -> &'static str {
    use super::types::TransactionKind as T;
    match kind {
        T::Begin => "begin",
        T::Commit { .. } => "commit",
        T::Rollback { .. } | T::RollbackTo(_) => "rollback",
        T::Savepoint(_) => "savepoint",
        T::Release(_) => "release",
        T::Prepare(_) => "prepare transaction",
        T::CommitPrepared(_) => "commit prepared",
        T::RollbackPrepared(_) => "rollback prepared",
    }
}

/// What stands between the first parenthesis outside comments and its partner.
pub(super) fn inside_parentheses(text: &str) -> Option<&str> {
    let tokens = pg_query::scan_tokens(text).ok()?;
    let mut depth = 0_usize;
    let mut start = 0;
    for token in &tokens {
        let (from, to) = (usize::try_from(token.start).ok()?, usize::try_from(token.end).ok()?);
        match text.get(from..to)? {
            "(" => {
                depth += 1;
                if depth == 1 {
                    start = to;
                }
            }
            ")" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return text.get(start..from).map(str::trim);
                }
            }
            _ => {}
        }
    }
    None
}
