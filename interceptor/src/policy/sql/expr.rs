//! Expressions: every column in them is a use.
//!
//! Also ties constants and parameters to the column they meet, so that a record can hide them
//! as it hides the column.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node, SubLinkType};

use super::kind::constant;
use super::names;
use super::query::Walker;
use super::scope::Meaning;
use super::types::{SetValue, Setting};
use crate::policy::facts::ColumnName;

impl Walker<'_> {
    pub fn exprs(&mut self, nodes: &[Node], how: &str) {
        for node in nodes {
            self.expr(node, how);
        }
    }

    /// Records every use of a column in an expression.
    pub fn expr(&mut self, node: &Node, how: &str) {
        let Some(node) = &node.node else { return };
        match node {
            NodeEnum::ColumnRef(c) => self.reference(c, how),
            NodeEnum::AConst(_)
            | NodeEnum::ParamRef(_)
            | NodeEnum::SetToDefault(_)
            | NodeEnum::SqlvalueFunction(_)
            | NodeEnum::CurrentOfExpr(_)
            | NodeEnum::MergeSupportFunc(_)
            | NodeEnum::String(_) => {}
            NodeEnum::AExpr(e) => self.operator(e, how),
            NodeEnum::BoolExpr(e) => self.exprs(&e.args, how),
            NodeEnum::NullTest(e) => self.clause(e.arg.as_deref(), how),
            NodeEnum::BooleanTest(e) => self.clause(e.arg.as_deref(), how),
            NodeEnum::TypeCast(c) => {
                self.clause(c.arg.as_deref(), how);
                self.type_modifiers(c.type_name.as_ref());
            }
            NodeEnum::CollateClause(c) => self.clause(c.arg.as_deref(), how),
            NodeEnum::CaseExpr(c) => self.case(c, how),
            NodeEnum::CaseWhen(w) => {
                self.clause(w.expr.as_deref(), how);
                self.clause(w.result.as_deref(), how);
            }
            NodeEnum::CoalesceExpr(c) => self.exprs(&c.args, how),
            NodeEnum::MinMaxExpr(m) => self.exprs(&m.args, how),
            NodeEnum::RowExpr(r) => self.exprs(&r.args, how),
            NodeEnum::AArrayExpr(a) => self.exprs(&a.elements, how),
            NodeEnum::List(l) => self.exprs(&l.items, how),
            NodeEnum::AIndirection(i) => {
                self.clause(i.arg.as_deref(), how);
                self.subscripts(&i.indirection, how);
            }
            NodeEnum::FuncCall(f) => self.call(f),
            NodeEnum::NamedArgExpr(a) => self.clause(a.arg.as_deref(), how),
            NodeEnum::GroupingFunc(g) => self.exprs(&g.args, how),
            NodeEnum::SubLink(s) => self.sublink(s, how),
            NodeEnum::MultiAssignRef(m) => self.clause(m.source.as_deref(), how),
            NodeEnum::SortBy(s) => self.clause(s.node.as_deref(), how),
            NodeEnum::WindowDef(w) => self.window(w),
            NodeEnum::ResTarget(t) => {
                self.subscripts(&t.indirection, how);
                self.clause(t.val.as_deref(), how);
            }
            NodeEnum::XmlExpr(x) => {
                self.exprs(&x.named_args, how);
                self.exprs(&x.args, how);
            }
            NodeEnum::XmlSerialize(x) => {
                self.clause(x.expr.as_deref(), how);
                self.type_modifiers(x.type_name.as_ref());
            }
            other => self.json(other, how),
        }
    }

    /// SQL/JSON constructors and functions.
    fn json(&mut self, node: &NodeEnum, how: &str) {
        match node {
            NodeEnum::JsonObjectConstructor(c) => self.exprs(&c.exprs, how),
            NodeEnum::JsonArrayConstructor(c) => self.exprs(&c.exprs, how),
            NodeEnum::JsonKeyValue(k) => {
                self.clause(k.key.as_deref(), how);
                self.json_value(k.value.as_deref(), how);
            }
            NodeEnum::JsonValueExpr(v) => self.json_value(Some(v), how),
            NodeEnum::JsonIsPredicate(p) => self.clause(p.expr.as_deref(), how),
            NodeEnum::JsonScalarExpr(s) => self.clause(s.expr.as_deref(), how),
            NodeEnum::JsonParseExpr(p) => self.json_value(p.expr.as_deref(), how),
            NodeEnum::JsonSerializeExpr(s) => self.json_value(s.expr.as_deref(), how),
            NodeEnum::JsonObjectAgg(a) => {
                if let Some(pair) = &a.arg {
                    self.clause(pair.key.as_deref(), how);
                    self.json_value(pair.value.as_deref(), how);
                }
                self.json_aggregate(a.constructor.as_deref(), how);
            }
            NodeEnum::JsonArrayAgg(a) => {
                self.json_value(a.arg.as_deref(), how);
                self.json_aggregate(a.constructor.as_deref(), how);
            }
            other => self.found.problem(format!("unknown expression {}", names::kind(Some(other)))),
        }
    }

    fn json_value(&mut self, value: Option<&protobuf::JsonValueExpr>, how: &str) {
        if let Some(value) = value {
            self.clause(value.raw_expr.as_deref(), how);
            self.clause(value.formatted_expr.as_deref(), how);
        }
    }

    fn json_aggregate(&mut self, of: Option<&protobuf::JsonAggConstructor>, how: &str) {
        if let Some(of) = of {
            self.clause(of.agg_filter.as_deref(), how);
            self.exprs(&of.agg_order, how);
            if let Some(window) = &of.over {
                self.window(window);
            }
        }
    }

    fn reference(&mut self, c: &protobuf::ColumnRef, how: &str) {
        if c.fields.last().is_some_and(names::is_star) {
            self.found.seen_columns += 1;
            return self.star_in_expression(&names::strings(&c.fields), how);
        }
        let meaning = self.meaning(c);
        self.used(meaning, how);
    }

    /// `t.*` inside an expression is the whole row.
    fn star_in_expression(&mut self, qualifier: &[String], how: &str) {
        let parts: Vec<&str> = qualifier.iter().map(String::as_str).collect();
        let item = match parts.as_slice() {
            [name] => super::scope::item_named(&self.levels, None, name).cloned(),
            [schema, name] => super::scope::item_named(&self.levels, Some(schema), name).cloned(),
            _ => None,
        };
        match item {
            Some(item) => {
                let name = parts.join(".");
                let row = Meaning::Row {
                    name,
                    relation: item.source.clone(),
                    cols: item.cols,
                    open: item.open,
                };
                self.used(row, how);
            }
            None => self.found.problem(format!("{}.* inside an expression", parts.join("."))),
        }
    }

    fn operator(&mut self, e: &protobuf::AExpr, how: &str) {
        let protobuf::AExpr {
            kind: _,
            name: _,
            lexpr,
            rexpr,
            rexpr_list_start: _,
            rexpr_list_end: _,
            location: _,
        } = e;
        if let (Some(left), Some(right)) = (lexpr, rexpr) {
            self.tie_pair(left, right);
            self.tie_pair(right, left);
        }
        self.clause(lexpr.as_deref(), how);
        self.clause(rexpr.as_deref(), how);
    }

    /// Ties the constants of one side to the column of the other.
    fn tie_pair(&mut self, column: &Node, constants: &Node) {
        let reference = match &column.node {
            Some(NodeEnum::ColumnRef(c)) => c,
            Some(NodeEnum::TypeCast(c)) => match c.arg.as_ref().and_then(|a| a.node.as_ref()) {
                Some(NodeEnum::ColumnRef(c)) => c,
                _ => return,
            },
            Some(NodeEnum::FuncCall(f)) => match f.args.first().and_then(|a| a.node.as_ref()) {
                Some(NodeEnum::ColumnRef(c)) => c,
                _ => return,
            },
            _ => return,
        };
        let base = match self.peek(reference) {
            Meaning::Column(col) => col.base,
            Meaning::Unknown { candidates, .. } => candidates.into_iter().find_map(|c| c.base),
            _ => None,
        };
        if let Some(base) = base {
            self.tie_constants(constants, &base.column);
        }
    }

    /// Ties every constant and parameter of an expression to a column.
    pub fn tie_constants(&mut self, node: &Node, column: &ColumnName) {
        match &node.node {
            Some(NodeEnum::AConst(c)) => {
                self.found.ties.entry(c.location).or_insert_with(|| column.clone());
            }
            Some(NodeEnum::ParamRef(p)) => {
                if let Ok(number) = u32::try_from(p.number) {
                    self.found.params.entry(number).or_insert_with(|| column.clone());
                }
            }
            Some(NodeEnum::TypeCast(c)) => {
                if let Some(arg) = &c.arg {
                    self.tie_constants(arg, column);
                }
            }
            Some(NodeEnum::List(l)) => l.items.iter().for_each(|n| self.tie_constants(n, column)),
            Some(NodeEnum::AArrayExpr(a)) => {
                a.elements.iter().for_each(|n| self.tie_constants(n, column));
            }
            Some(NodeEnum::FuncCall(f)) => {
                f.args.iter().for_each(|n| self.tie_constants(n, column));
            }
            Some(NodeEnum::CoalesceExpr(c)) => {
                c.args.iter().for_each(|n| self.tie_constants(n, column));
            }
            Some(NodeEnum::AExpr(e)) => {
                for side in e.lexpr.iter().chain(&e.rexpr) {
                    self.tie_constants(side, column);
                }
            }
            _ => {}
        }
    }

    fn case(&mut self, c: &protobuf::CaseExpr, how: &str) {
        let protobuf::CaseExpr {
            xpr: _,
            casetype: _,
            casecollid: _,
            arg,
            args,
            defresult,
            location: _,
        } = c;
        if let Some(arg) = arg {
            for when in args {
                if let Some(NodeEnum::CaseWhen(w)) = &when.node
                    && let Some(value) = &w.expr
                {
                    self.tie_pair(arg, value);
                }
            }
        }
        self.clause(arg.as_deref(), how);
        self.exprs(args, how);
        self.clause(defresult.as_deref(), how);
    }

    fn subscripts(&mut self, indirection: &[Node], how: &str) {
        for step in indirection {
            match &step.node {
                Some(NodeEnum::AIndices(i)) => {
                    self.clause(i.lidx.as_deref(), how);
                    self.clause(i.uidx.as_deref(), how);
                }
                Some(NodeEnum::String(_) | NodeEnum::AStar(_)) => {}
                other => {
                    self.found.problem(format!("unknown step {}", names::kind(other.as_ref())));
                }
            }
        }
    }

    /// Type modifiers may look like columns and are none.
    fn type_modifiers(&mut self, of: Option<&protobuf::TypeName>) {
        let Some(of) = of else { return };
        for modifier in &of.typmods {
            if let Some(NodeEnum::ColumnRef(_)) = &modifier.node {
                self.found.seen_columns += 1;
            } else {
                self.expr(modifier, "in a type modifier");
            }
        }
    }

    fn call(&mut self, f: &protobuf::FuncCall) {
        let protobuf::FuncCall {
            funcname,
            args,
            agg_order,
            agg_filter,
            over,
            agg_within_group: _,
            agg_star: _,
            agg_distinct: _,
            func_variadic: _,
            funcformat: _,
            location: _,
        } = f;
        let name = names::strings(funcname).pop().unwrap_or_default();
        if name == "set_config" {
            self.found.settings.push(set_config(args));
        }
        let how = format!("as an argument of {name}()");
        self.exprs(args, &how);
        self.exprs(agg_order, &how);
        self.clause(agg_filter.as_deref(), "in FILTER");
        if let Some(window) = over {
            self.window(window);
        }
    }

    fn window(&mut self, w: &protobuf::WindowDef) {
        let protobuf::WindowDef {
            name: _,
            refname: _,
            partition_clause,
            order_clause,
            frame_options: _,
            start_offset,
            end_offset,
            location: _,
        } = w;
        self.exprs(partition_clause, "in PARTITION BY");
        self.exprs(order_clause, "in a window's ORDER BY");
        self.clause(start_offset.as_deref(), "in a window's frame");
        self.clause(end_offset.as_deref(), "in a window's frame");
    }

    fn sublink(&mut self, s: &protobuf::SubLink, how: &str) {
        let protobuf::SubLink {
            xpr: _,
            sub_link_type,
            sub_link_id: _,
            testexpr,
            oper_name: _,
            subselect,
            location: _,
        } = s;
        self.clause(testexpr.as_deref(), how);
        let Some(query) = subselect else { return };
        let shape = self.query(query);
        // EXISTS asks whether there are rows and never looks at their columns.
        if *sub_link_type == SubLinkType::ExistsSublink as i32 {
            return;
        }
        for col in &shape.cols {
            self.record(col, "as the output of a subquery in an expression");
        }
        if shape.open {
            self.found.problem("a subquery in an expression whose outputs are not known");
        }
    }
}

/// What a call of `set_config` sets, as far as its arguments are constants.
fn set_config(args: &[Node]) -> Setting {
    let [name, value, local] = args else {
        return Setting { name: None, value: SetValue::Unknown, local: false };
    };
    let local = match constant(local).as_deref() {
        Some("true" | "t" | "yes" | "on" | "1") => Some(true),
        Some("false" | "f" | "no" | "off" | "0") => Some(false),
        _ => None,
    };
    Setting {
        name: constant(name).filter(|_| local.is_some()).map(|n| n.to_ascii_lowercase()),
        value: constant(value).map_or(SetValue::Unknown, |v| SetValue::Values(vec![v])),
        local: local.unwrap_or(false),
    }
}
