//! ORDER BY, GROUP BY and DISTINCT: where a number or a bare name may mean an output.

use pg_query::NodeEnum;
use pg_query::protobuf::{self, Node};

use super::names;
use super::query::{Shape, Walker};
use super::scope::{self, Meaning};

impl Walker<'_> {
    pub fn distinct(&mut self, clause: &[Node], shape: &Shape) {
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
    pub fn group_item(&mut self, node: &Node, shape: &Shape) {
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
}
