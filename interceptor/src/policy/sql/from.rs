//! FROM: relations, views, subselects, functions and joins.

use std::sync::Arc;

use pg_query::NodeEnum;
use pg_query::protobuf::{self, JoinType, Node, RangeVar};

use super::catalog::{Catalog, Relation};
use super::functions;
use super::names;
use super::parse;
use super::pool::Context;
use super::query::{MAX_VIEW_DEPTH, QueryShape, Walker};
use super::scope::{Col, Item};
use super::types::{BaseColumn, RelationUse};
use crate::policy::facts::{ColumnName, Name};

impl Walker<'_> {
    /// A FROM list: every entry sees those before it, if it is LATERAL.
    pub fn from(&mut self, list: &[Node]) {
        for node in list {
            let items = self.source_item(node);
            self.level().items.extend(items);
        }
    }

    pub fn source_item(&mut self, node: &Node) -> Vec<Item> {
        match &node.node {
            Some(NodeEnum::RangeVar(r)) => vec![self.relation(r, false)],
            Some(NodeEnum::RangeSubselect(s)) => vec![self.subselect(s)],
            Some(NodeEnum::RangeFunction(f)) => vec![self.function_item(f)],
            Some(NodeEnum::JoinExpr(j)) => self.join(j),
            Some(NodeEnum::RangeTableSample(s)) => self.sample(s),
            Some(NodeEnum::RangeTableFunc(f)) => vec![self.xml_table(f)],
            other => {
                self.found.problem(format!("{} in FROM", names::kind(other.as_ref())));
                let mut item = Item::new(None, Vec::new());
                item.open = true;
                vec![item]
            }
        }
    }

    /// A relation by name: a WITH query, or what the catalog says.
    pub fn relation(&mut self, r: &RangeVar, written: bool) -> Item {
        self.found.seen_relations += 1;
        let RangeVar {
            catalogname,
            schemaname,
            relname,
            inh: _,
            relpersistence: _,
            alias,
            location: _,
        } = r;
        if !catalogname.is_empty() {
            self.found.problem(format!("database name {catalogname} before a relation"));
        }
        let mut item = match self.with_query(schemaname, relname, written) {
            Some(item) => item,
            None => self.catalog_item(schemaname, relname, written),
        };
        if let Some(alias) = alias {
            names::rename(&mut item.cols, &names::strings(&alias.colnames));
            item.name = Some(alias.aliasname.clone());
        } else {
            item.name = Some(relname.clone());
            item.relation.clone_from(&item.source);
        }
        item
    }

    fn with_query(&mut self, schema: &str, name: &str, written: bool) -> Option<Item> {
        if !schema.is_empty() || written {
            return None;
        }
        let cte = self
            .levels
            .iter()
            .rev()
            .find_map(|level| level.ctes.iter().rev().find(|c| c.name == name))?
            .clone();
        if cte.cols.is_none() {
            self.found.problem(format!("WITH query {name} used before it is known"));
        }
        let mut item = Item::new(None, cte.cols.unwrap_or_default());
        item.open = cte.open;
        Some(item)
    }

    fn catalog_item(&mut self, schema: &str, name: &str, written: bool) -> Item {
        let context = self.context;
        let Some(catalog) = &context.catalog else {
            return self.unknown_item(schema, name, written);
        };
        let Some(relation) = catalog.lookup(schema, name, &context.search_path) else {
            self.found.problem(format!("relation {}, which is not known", dotted(schema, name)));
            return self.unknown_item(schema, name, written);
        };
        self.found.relations.push(RelationUse {
            name: relation.name.clone(),
            oid: relation.oid,
            written,
        });
        self.check_relation(relation, written);
        let mut item = Item::new(None, self.columns(catalog, relation));
        item.source = Some(relation.name.clone());
        item.stored = true;
        item
    }

    fn unknown_item(&mut self, schema: &str, name: &str, written: bool) -> Item {
        let name = Name { schema: schema.to_owned(), name: name.to_owned() };
        self.found.relations.push(RelationUse { name: name.clone(), oid: 0, written });
        let mut item = Item::new(None, Vec::new());
        item.open = true;
        item.stored = true;
        item.source = Some(name);
        item
    }

    fn check_relation(&mut self, relation: &Relation, written: bool) {
        let full = dotted(&relation.name.schema, &relation.name.name);
        if relation.is_system() || is_system_schema(&relation.name.schema) {
            if !relation.is_system() || !functions::relation_listed(&relation.name) {
                self.found.problem(format!(
                    "relation {full}, which is not on the list of system relations that may be read while columns are masked"
                ));
            }
            if written {
                self.found.problem(format!("writing to system relation {full}"));
            }
            return;
        }
        match relation.kind {
            'r' | 'p' | 'v' | 'm' | 'S' => {}
            'f' => self.found.problem(format!("foreign table {full}, whose source is not known")),
            _ => self.found.problem(format!("relation {full}, which is not a table or view")),
        }
        if written && relation.rules {
            self.found.problem(format!("writing to {full}, which has rewrite rules"));
        }
    }

    /// The columns of a relation, a view's with what they hand on.
    pub fn columns(&mut self, catalog: &Arc<Catalog>, relation: &Relation) -> Vec<Col> {
        let through = match relation.kind {
            'v' | 'm' if !relation.is_system() => self.view(catalog, relation),
            _ => None,
        };
        let through = through.unwrap_or_else(|| vec![None; relation.columns.len()]);
        relation
            .columns
            .iter()
            .zip(through)
            .map(|(column, through)| {
                let named =
                    ColumnName { table: relation.name.clone(), column: column.name.clone() };
                let base = BaseColumn {
                    relation: relation.oid,
                    attnum: column.attnum,
                    column: named,
                    through,
                };
                Col { name: column.name.clone(), base: Some(Arc::new(base)) }
            })
            .collect()
    }

    /// What each column of a view hands on; everything else the view does is taken over.
    fn view(
        &mut self,
        catalog: &Arc<Catalog>,
        relation: &Relation,
    ) -> Option<Vec<Option<Arc<BaseColumn>>>> {
        let name = dotted(&relation.name.schema, &relation.name.name);
        let known = catalog.view(relation.oid).or_else(|| {
            let body = relation.definition.as_ref()?;
            if self.view_depth >= MAX_VIEW_DEPTH {
                return None;
            }
            let shape = Arc::new(view_body(catalog, body, self.view_depth + 1)?);
            catalog.keep_view(relation.oid, shape.clone());
            Some(shape)
        });
        let Some(body) = known else {
            self.found.problem(format!("view {name}, whose definition cannot be followed"));
            return None;
        };
        if body.shape.open || body.shape.cols.len() != relation.columns.len() {
            self.found.problem(format!("view {name}, whose columns cannot be followed"));
            return None;
        }
        self.absorb(&body.found);
        Some(body.shape.cols.iter().map(|c| c.base.clone()).collect())
    }

    fn subselect(&mut self, s: &protobuf::RangeSubselect) -> Item {
        let protobuf::RangeSubselect { lateral, subquery, alias } = s;
        let before = self.level().hidden;
        self.level().hidden = before || !lateral;
        let shape = subquery.as_deref().map(|q| self.query(q)).unwrap_or_default();
        self.level().hidden = before;
        let mut item = Item::new(None, shape.cols);
        item.open = shape.open;
        self.alias(&mut item, alias.as_ref());
        item
    }

    fn alias(&mut self, item: &mut Item, alias: Option<&protobuf::Alias>) {
        if let Some(protobuf::Alias { aliasname, colnames }) = alias {
            names::rename(&mut item.cols, &names::strings(colnames));
            item.name = Some(aliasname.clone());
        }
    }

    /// A function, or ROWS FROM of several.
    fn function_item(&mut self, f: &protobuf::RangeFunction) -> Item {
        let protobuf::RangeFunction {
            lateral: _,
            ordinality,
            is_rowsfrom: _,
            functions,
            alias,
            coldeflist,
        } = f;
        let alias_name = alias.as_ref().map(|a| a.aliasname.as_str());
        let mut item = Item::new(None, Vec::new());
        let single = functions.len() == 1;
        for function in functions {
            let Some(NodeEnum::List(pair)) = &function.node else {
                self.found.problem("a function in FROM of unknown form");
                item.open = true;
                continue;
            };
            let defs = if coldeflist.is_empty() {
                match pair.items.get(1).and_then(|n| n.node.as_ref()) {
                    Some(NodeEnum::List(l)) => l.items.as_slice(),
                    _ => &[],
                }
            } else {
                coldeflist.as_slice()
            };
            if let Some(call) = pair.items.first() {
                self.expr(call, "as an argument of a function in FROM");
                self.function_columns(
                    call,
                    defs,
                    if single { alias_name } else { None },
                    &mut item,
                );
            }
        }
        if *ordinality {
            item.cols.push(Col::computed("ordinality"));
        }
        let written = functions.first().and_then(first_name);
        self.alias(&mut item, alias.as_ref());
        item.name = item.name.or(written);
        item
    }

    fn function_columns(
        &mut self,
        call: &Node,
        defs: &[Node],
        alias: Option<&str>,
        item: &mut Item,
    ) {
        if !defs.is_empty() {
            for def in defs {
                if let Some(NodeEnum::ColumnDef(d)) = &def.node {
                    item.cols.push(Col::computed(d.colname.clone()));
                }
            }
            return;
        }
        let Some(NodeEnum::FuncCall(call)) = &call.node else {
            item.cols.push(Col::computed(alias.map_or_else(|| names::figure(call), str::to_owned)));
            return;
        };
        let written = names::strings(&call.funcname);
        let last = written.last().cloned().unwrap_or_default();
        match functions::columns(&written) {
            Some([]) if RECORDS.contains(&last.as_str()) => item.open = true,
            Some([]) if last == "unnest" && call.args.len() > 1 => {
                item.cols.extend(call.args.iter().map(|_| Col::computed("unnest")));
            }
            Some([]) => item.cols.push(Col::computed(alias.map_or(last, str::to_owned))),
            Some(columns) => item.cols.extend(columns.iter().map(|c| Col::computed(*c))),
            None => item.open = true,
        }
    }

    fn sample(&mut self, s: &protobuf::RangeTableSample) -> Vec<Item> {
        let protobuf::RangeTableSample { relation, method, args, repeatable, location: _ } = s;
        let items = relation.as_deref().map(|r| self.source_item(r)).unwrap_or_default();
        let method = names::strings(method);
        let name = method.last().map(String::as_str);
        if !matches!(name, Some("bernoulli" | "system")) {
            self.found.problem(format!("sampling method {}", method.join(".")));
        }
        for arg in args {
            self.expr(arg, "in TABLESAMPLE");
        }
        self.clause(repeatable.as_deref(), "in TABLESAMPLE");
        items
    }

    fn xml_table(&mut self, f: &protobuf::RangeTableFunc) -> Item {
        let protobuf::RangeTableFunc {
            lateral: _,
            docexpr,
            rowexpr,
            namespaces,
            columns,
            alias,
            location: _,
        } = f;
        let how = "in XMLTABLE";
        self.clause(docexpr.as_deref(), how);
        self.clause(rowexpr.as_deref(), how);
        for namespace in namespaces {
            self.expr(namespace, how);
        }
        let mut item = Item::new(Some("xmltable".to_owned()), Vec::new());
        for column in columns {
            if let Some(NodeEnum::RangeTableFuncCol(c)) = &column.node {
                self.clause(c.colexpr.as_deref(), how);
                self.clause(c.coldefexpr.as_deref(), how);
                item.cols.push(Col::computed(c.colname.clone()));
            }
        }
        self.alias(&mut item, alias.as_ref());
        item
    }

    fn join(&mut self, j: &protobuf::JoinExpr) -> Vec<Item> {
        let protobuf::JoinExpr {
            jointype,
            is_natural,
            larg,
            rarg,
            using_clause,
            join_using_alias,
            quals,
            alias,
            rtindex: _,
        } = j;
        let left = larg.as_deref().map(|n| self.source_item(n)).unwrap_or_default();
        let visible = self.level().items.len();
        self.level().items.extend(left.iter().cloned());
        let right = rarg.as_deref().map(|n| self.source_item(n)).unwrap_or_default();
        self.level().items.truncate(visible);
        let (lcols, lopen) = bare_columns(&left);
        let (rcols, ropen) = bare_columns(&right);
        let keys = if *is_natural {
            if lopen || ropen {
                self.found.problem("NATURAL JOIN over columns that are not known");
            }
            let has = |name: &str| rcols.iter().any(|c| c.name == name);
            lcols.iter().filter(|c| has(&c.name)).map(|c| c.name.clone()).collect()
        } else {
            names::strings(using_clause)
        };
        let how = if *is_natural { "as a key of NATURAL JOIN" } else { "as a key of JOIN USING" };
        let merged = self.merge_keys(&keys, &lcols, &rcols, JoinType::try_from(*jointype), how);
        if let Some(quals) = quals {
            let outer = std::mem::take(&mut self.level().items);
            let sides = left.iter().chain(&right).cloned().collect();
            self.level().items = sides;
            self.expr(quals, "in JOIN ON");
            self.level().items = outer;
        }
        let rest = |cols: Vec<Col>| cols.into_iter().filter(|c| !keys.contains(&c.name));
        let cols: Vec<_> = merged.iter().cloned().chain(rest(lcols)).chain(rest(rcols)).collect();
        let mut joined = Item::new(None, cols);
        joined.open = lopen || ropen;
        joined.source = left.iter().chain(&right).find(|i| i.open).and_then(|i| i.source.clone());
        if let Some(alias) = alias {
            self.alias(&mut joined, Some(alias));
            return vec![joined];
        }
        joined.named = false;
        let mut items: Vec<_> = left.into_iter().chain(right).collect();
        for item in &mut items {
            item.bare = false;
        }
        if let Some(using) = join_using_alias {
            let mut keys = Item::new(Some(using.aliasname.clone()), merged);
            keys.bare = false;
            items.push(keys);
        }
        items.push(joined);
        items
    }

    /// The columns USING or NATURAL merges: a use of both sides, and one output.
    fn merge_keys(
        &mut self,
        keys: &[String],
        lcols: &[Col],
        rcols: &[Col],
        kind: Result<JoinType, prost::UnknownEnumValue>,
        how: &str,
    ) -> Vec<Col> {
        let mut merged = Vec::new();
        for key in keys {
            let of = |cols: &[Col]| cols.iter().find(|c| c.name == *key).cloned();
            let (left, right) = (of(lcols), of(rcols));
            for col in left.iter().chain(&right) {
                self.record(col, how);
            }
            let base = match kind {
                Ok(JoinType::JoinInner | JoinType::JoinLeft) => left.and_then(|c| c.base),
                Ok(JoinType::JoinRight) => right.and_then(|c| c.base),
                _ => None,
            };
            merged.push(Col { name: key.clone(), base });
        }
        merged
    }
}

/// Functions whose columns depend on their arguments.
const RECORDS: [&str; 8] = [
    "json_populate_record",
    "json_populate_recordset",
    "jsonb_populate_record",
    "jsonb_populate_recordset",
    "json_to_record",
    "json_to_recordset",
    "jsonb_to_record",
    "jsonb_to_recordset",
];

fn bare_columns(items: &[Item]) -> (Vec<Col>, bool) {
    let bare = items.iter().filter(|i| i.bare);
    let open = bare.clone().any(|i| i.open);
    (bare.flat_map(|i| i.cols.iter().cloned()).collect(), open)
}

fn first_name(function: &Node) -> Option<String> {
    let Some(NodeEnum::List(pair)) = &function.node else { return None };
    match pair.items.first()?.node.as_ref()? {
        NodeEnum::FuncCall(call) => names::strings(&call.funcname).pop(),
        _ => pair.items.first().map(names::figure),
    }
}

/// A name as a person writes it.
pub(super) fn dotted(schema: &str, name: &str) -> String {
    if schema.is_empty() { name.to_owned() } else { format!("{schema}.{name}") }
}

fn is_system_schema(schema: &str) -> bool {
    matches!(schema, "pg_catalog" | "information_schema") || schema.starts_with("pg_toast")
}

/// Analyses the body of a view, whose names the server wrote out in full.
fn view_body(catalog: &Arc<Catalog>, body: &str, depth: usize) -> Option<QueryShape> {
    let parsed = parse::parse(body).ok()?;
    let [statement] = parsed.tree.stmts.as_slice() else { return None };
    let context = Context {
        catalog: Some(catalog.clone()),
        search_path: vec!["pg_catalog".to_owned()],
        epoch: 0,
    };
    let mut walker = Walker::new(&context, depth);
    let shape = walker.query(statement.stmt.as_deref()?);
    let mut found = walker.found;
    super::statement::check_mentions(&mut found, parsed.mentions.first()?, &context);
    Some(QueryShape { shape, found })
}
