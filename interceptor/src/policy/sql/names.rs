//! Small questions about nodes: the strings of a list, what an output is called.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, SqlValueFunctionOp, SubLinkType};

use super::scope::Col;

/// The strings of a list of nodes; others are left out.
pub(super) fn strings(nodes: &[Node]) -> Vec<String> {
    nodes
        .iter()
        .filter_map(|n| match &n.node {
            Some(NodeEnum::String(s)) => Some(s.sval.clone()),
            _ => None,
        })
        .collect()
}

/// Whether a node is `*`.
pub(super) fn is_star(node: &Node) -> bool {
    matches!(node.node, Some(NodeEnum::AStar(_)))
}

/// The name of a reference of one part.
pub(super) fn single_name(node: &Node) -> Option<&str> {
    match &node.node {
        Some(NodeEnum::ColumnRef(c)) => match c.fields.as_slice() {
            [Node { node: Some(NodeEnum::String(s)) }] => Some(&s.sval),
            _ => None,
        },
        _ => None,
    }
}

/// The kind of a node, in words.
pub(super) fn kind(node: Option<&NodeEnum>) -> String {
    let Some(node) = node else { return "(nothing)".to_owned() };
    let mut start = Start(String::new());
    // The writer ends the printing after the name; that is not an error.
    let _ = std::fmt::write(&mut start, format_args!("{node:?}"));
    start.0
}

/// Keeps what is printed up to the first bracket, and then stops the printing.
struct Start(String);

impl std::fmt::Write for Start {
    fn write_str(&mut self, s: &str) -> std::fmt::Result {
        let end = s.find(['(', ' ', '{']);
        self.0.push_str(&s[..end.unwrap_or(s.len())]);
        if end.is_some() || self.0.len() > 60 { Err(std::fmt::Error) } else { Ok(()) }
    }
}

/// Gives the first columns the names of a column alias list.
pub(super) fn rename(cols: &mut [Col], aliases: &[String]) {
    for (col, alias) in cols.iter_mut().zip(aliases) {
        col.name.clone_from(alias);
    }
}

/// What the server calls an output that was given no name.
pub(super) fn figure(node: &Node) -> String {
    named(node).map_or_else(|| "?column?".to_owned(), |(name, _)| name)
}

/// The name and whether it is a strong one, as the server's `FigureColnameInternal`.
fn named(node: &Node) -> Option<(String, bool)> {
    let strong = |s: &str| Some((s.to_owned(), true));
    let of = |n: Option<&Node>| n.and_then(named);
    match node.node.as_ref()? {
        NodeEnum::ColumnRef(c) => strings(&c.fields).pop().map(|n| (n, true)),
        NodeEnum::AIndirection(i) => {
            strings(&i.indirection).pop().map(|n| (n, true)).or_else(|| of(i.arg.as_deref()))
        }
        NodeEnum::FuncCall(f) => strings(&f.funcname).pop().map(|n| (n, true)),
        NodeEnum::AExpr(e) if e.kind == pg_query::protobuf::AExprKind::AexprNullif as i32 => {
            strong("nullif")
        }
        NodeEnum::TypeCast(c) => match of(c.arg.as_deref()) {
            Some((name, true)) => Some((name, true)),
            weak => {
                let of_type = c.type_name.as_ref().and_then(|t| strings(&t.names).pop());
                of_type.map(|n| (n, false)).or(weak)
            }
        },
        NodeEnum::CollateClause(c) => of(c.arg.as_deref()),
        NodeEnum::GroupingFunc(_) => strong("grouping"),
        NodeEnum::MergeSupportFunc(_) => strong("merge_action"),
        NodeEnum::SubLink(s) => match SubLinkType::try_from(s.sub_link_type) {
            Ok(SubLinkType::ExistsSublink) => strong("exists"),
            Ok(SubLinkType::ArraySublink) => strong("array"),
            Ok(SubLinkType::ExprSublink) => first_output(s.subselect.as_deref()?),
            _ => None,
        },
        NodeEnum::CaseExpr(c) => match of(c.defresult.as_deref()) {
            Some((name, true)) => Some((name, true)),
            _ => Some(("case".to_owned(), false)),
        },
        NodeEnum::AArrayExpr(_) => strong("array"),
        NodeEnum::RowExpr(_) => strong("row"),
        NodeEnum::CoalesceExpr(_) => strong("coalesce"),
        NodeEnum::MinMaxExpr(m) => strong(if m.op == 1 { "greatest" } else { "least" }),
        NodeEnum::SqlvalueFunction(f) => strong(value_function(f.op)),
        NodeEnum::XmlExpr(x) => strong(xml_function(x.op)?),
        NodeEnum::XmlSerialize(_) => strong("xmlserialize"),
        NodeEnum::JsonParseExpr(_) => strong("json"),
        NodeEnum::JsonScalarExpr(_) => strong("json_scalar"),
        NodeEnum::JsonSerializeExpr(_) => strong("json_serialize"),
        NodeEnum::JsonObjectConstructor(_) => strong("json_object"),
        NodeEnum::JsonArrayConstructor(_) | NodeEnum::JsonArrayQueryConstructor(_) => {
            strong("json_array")
        }
        NodeEnum::JsonObjectAgg(_) => strong("json_objectagg"),
        NodeEnum::JsonArrayAgg(_) => strong("json_arrayagg"),
        _ => None,
    }
}

/// A scalar subquery is called after its one output.
fn first_output(query: &Node) -> Option<(String, bool)> {
    let NodeEnum::SelectStmt(select) = query.node.as_ref()? else { return None };
    let mut leftmost = select.as_ref();
    while let Some(larg) = &leftmost.larg {
        leftmost = larg;
    }
    if !leftmost.values_lists.is_empty() {
        return Some(("column1".to_owned(), true));
    }
    match leftmost.target_list.first()?.node.as_ref()? {
        NodeEnum::ResTarget(t) if !t.name.is_empty() => Some((t.name.clone(), true)),
        NodeEnum::ResTarget(t) => named(t.val.as_deref()?).map(|(name, _)| (name, true)),
        _ => None,
    }
}

fn value_function(op: i32) -> &'static str {
    use SqlValueFunctionOp as Op;
    match Op::try_from(op) {
        Ok(Op::SvfopCurrentDate) => "current_date",
        Ok(Op::SvfopCurrentTime | Op::SvfopCurrentTimeN) => "current_time",
        Ok(Op::SvfopCurrentTimestamp | Op::SvfopCurrentTimestampN) => "current_timestamp",
        Ok(Op::SvfopLocaltime | Op::SvfopLocaltimeN) => "localtime",
        Ok(Op::SvfopLocaltimestamp | Op::SvfopLocaltimestampN) => "localtimestamp",
        Ok(Op::SvfopCurrentRole) => "current_role",
        Ok(Op::SvfopCurrentUser) => "current_user",
        Ok(Op::SvfopUser) => "user",
        Ok(Op::SvfopSessionUser) => "session_user",
        Ok(Op::SvfopCurrentCatalog) => "current_catalog",
        Ok(Op::SvfopCurrentSchema) => "current_schema",
        _ => "?column?",
    }
}

fn xml_function(op: i32) -> Option<&'static str> {
    // protobuf's XmlExprOp, undefined first.
    ["xmlconcat", "xmlelement", "xmlforest", "xmlparse", "xmlpi", "xmlroot", "xmlserialize"]
        .get(usize::try_from(op).ok()?.checked_sub(1)?)
        .copied()
}
