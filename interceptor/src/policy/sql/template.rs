//! What one analysis says of another text that differs from its own in whole numbers only.
//!
//! Drivers that do not use parameters send one statement with ever new keys in it. Such a text
//! need not be parsed again, if it is certain that the grammar and our walk would take the same
//! steps: the text is of a small alphabet without quotes, comments and casts, what differs are
//! decimal numbers that are constants of type integer in both, and in the first analysis each
//! of them was nothing but a value that a column is compared with or set to. A place in a list,
//! a limit, an argument or a setting is no such value, and whatever is in doubt is parsed.

use std::ops::Range;
use std::sync::Arc;

use super::types::{Analysis, Literal, StatementAnalysis, StatementKind};
use crate::policy::facts::{SqlFacts, StatementClass};

/// Most digits that are certainly of type integer: `999999999` is below 2³¹.
const DIGITS: usize = 9;

/// Stands for a number; no text of the alphabet holds it.
const HOLE: u8 = b'#';

/// A text with its numbers taken out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// The text with [`HOLE`] for every number.
    pub frame: Vec<u8>,
    /// Where the numbers stand in the text.
    pub numbers: Vec<Range<usize>>,
}

impl Template {
    /// Takes the numbers out of a text; nothing if it has none or is not of the alphabet.
    pub fn of(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut frame = Vec::with_capacity(bytes.len());
        let mut numbers = Vec::new();
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let start = at;
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                    at += run(&bytes[at..], |b| b.is_ascii_alphanumeric() || b == b'_');
                    frame.extend_from_slice(&bytes[start..at]);
                }
                b'0'..=b'9' => {
                    at += run(&bytes[at..], |b| b.is_ascii_digit());
                    let joined = |b: Option<&u8>| {
                        b.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
                    };
                    let before = start.checked_sub(1).and_then(|i| bytes.get(i));
                    if at - start > DIGITS || joined(before) || joined(bytes.get(at)) {
                        return None;
                    }
                    numbers.push(start..at);
                    frame.push(HOLE);
                }
                b' ' | b'\t' | b'\n' | b',' | b'.' | b'(' | b')' | b'=' | b'<' | b'>' | b'*'
                | b';' => {
                    at += 1;
                    frame.push(byte);
                }
                _ => return None,
            }
        }
        (!numbers.is_empty()).then_some(Self { frame, numbers })
    }

    /// Whether the analysis of the text that this was made of holds for every text of the same
    /// frame.
    pub fn carries(&self, analysis: &Analysis) -> bool {
        let [statement] = analysis.statements.as_slice() else { return false };
        let classes = [
            StatementClass::Select,
            StatementClass::Insert,
            StatementClass::Update,
            StatementClass::Delete,
        ];
        let values = statement.literals.iter().map(|l| (l.column.is_some(), &l.range));
        matches!(statement.kind, StatementKind::Plain)
            && classes.contains(&statement.facts.class)
            && statement.facts.unseen.is_none()
            && statement.settings.is_empty()
            && statement.lineage.problems.is_empty()
            && statement.lineage.creates.is_empty()
            && !statement.lineage.ddl
            && !statement.lineage.changes_resolution
            && values.eq(self.numbers.iter().map(|range| (true, range)))
    }

    /// The analysis of the text that this was made of, from that of another of the same frame
    /// with its numbers at `there`. `None` where the two do not agree after all.
    pub fn apply(
        &self,
        analysis: &Analysis,
        there: &[Range<usize>],
        text: &Arc<str>,
    ) -> Option<Analysis> {
        let [known] = analysis.statements.as_slice() else { return None };
        if there.len() != self.numbers.len() || known.literals.len() != there.len() {
            return None;
        }
        let moved = |at: usize| {
            let before = there.iter().take_while(|range| range.end <= at).count();
            match before.checked_sub(1) {
                Some(last) => at - there[last].end + self.numbers[last].end,
                None => at,
            }
        };
        let range = moved(known.range.start)..moved(known.range.end);
        let own = if range == (0..text.len()) {
            Arc::clone(text)
        } else {
            Arc::from(text.get(range.clone())?)
        };
        let literals = known
            .literals
            .iter()
            .zip(&self.numbers)
            .map(|(l, range)| Literal { range: range.clone(), column: l.column.clone() })
            .collect();
        let facts = SqlFacts { text: own, ..known.facts.clone() };
        let statement = StatementAnalysis { facts, range, literals, ..known.clone() };
        Some(Analysis { statements: vec![statement] })
    }
}

/// How many bytes at the start belong together.
fn run(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|b| !belongs(*b)).unwrap_or(bytes.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::policy::sql::pool::analyze_here;
    use crate::policy::sql::testing;

    #[test]
    fn only_plain_integers_are_taken_out() {
        let template = Template::of("SELECT t1.a FROM t1 WHERE b = 42 AND c IN (7,8);").unwrap();
        assert_eq!(template.frame, b"SELECT t1.a FROM t1 WHERE b = # AND c IN (#,#);");
        assert_eq!(template.numbers, [30..32, 43..44, 45..46]);
        for text in [
            "SELECT a FROM t",
            "SELECT a FROM t WHERE b = 1.5",
            "SELECT a FROM t WHERE b = .5",
            "SELECT a FROM t WHERE b = 1e5",
            "SELECT a FROM t WHERE b = 0x1F",
            "SELECT a FROM t WHERE b = 1_000",
            "SELECT a FROM t WHERE b = 1234567890",
            "SELECT a FROM t WHERE b = 1--2",
            "SELECT a FROM t WHERE b = 1/*2*/",
            "SELECT a FROM t WHERE b = $1 AND c = 2",
            "SELECT a FROM t WHERE b = 'x' AND c = 2",
            "SELECT \"a\" FROM t WHERE c = 2",
            "SELECT a FROM t WHERE b = 1::bigint",
            "SELECT é FROM t WHERE b = 1",
            "SELECT a FROM t WHERE b = 1 # 2",
        ] {
            assert_eq!(Template::of(text), None, "{text}");
        }
    }

    /// Texts with holes, and whether their analysis may be used for other numbers.
    const FRAMES: &[(&str, bool)] = &[
        ("SELECT name FROM customers WHERE id = #", true),
        ("  SELECT name FROM customers WHERE id = # ; ", true),
        ("SELECT * FROM customers WHERE id = # AND id < #", true),
        ("SELECT c.name FROM customers c WHERE c.id IN (#, #,#)", true),
        ("UPDATE customers SET name = name WHERE id = #", true),
        ("DELETE FROM customers WHERE id = #", true),
        ("SELECT name FROM customers ORDER BY #", false),
        ("SELECT name FROM customers WHERE id = # ORDER BY #", false),
        ("SELECT name FROM customers WHERE id = # LIMIT #", false),
        ("SELECT name, # FROM customers WHERE id = #", false),
        ("SELECT name FROM customers WHERE # = #", false),
        ("SELECT name FROM customers WHERE id = # GROUP BY #", false),
        ("SELECT substr(name, #) FROM customers WHERE id = #", false),
        ("SELECT name FROM customers WHERE id = #; SELECT name FROM customers", false),
        ("SET work_mem = #", false),
        ("FETCH # FROM c", false),
        ("EXPLAIN SELECT name FROM customers WHERE id = #", false),
        ("CREATE TABLE x AS SELECT name FROM customers WHERE id = #", false),
    ];

    fn filled(frame: &str, mut number: impl FnMut() -> u32) -> Arc<str> {
        let mut text = String::new();
        for part in frame.split_inclusive('#') {
            match part.strip_suffix('#') {
                Some(before) => text.push_str(&format!("{before}{}", number())),
                None => text.push_str(part),
            }
        }
        text.into()
    }

    #[test]
    fn a_carried_analysis_is_what_parsing_gives() {
        let Some(cluster) = testing::cluster() else { return };
        let catalog = cluster.catalog();
        let context = testing::context(&catalog, &["pg_catalog", "public"]);
        let mut seed = 1_u32;
        for (frame, carried) in FRAMES {
            let first = filled(frame, || 1);
            let known = analyze_here(&first, &context).unwrap();
            let template = Template::of(&first).unwrap();
            assert_eq!(template.carries(&known), *carried, "{frame}: {known:#?}");
            for _ in 0..if *carried { 50 } else { 0 } {
                let text = filled(frame, || {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> (seed % 28)) % 1_000_000_000
                });
                let other = Template::of(&text).unwrap();
                assert_eq!(other.frame, template.frame);
                let applied = other.apply(&known, &template.numbers, &text).unwrap();
                let parsed = analyze_here(&text, &context).unwrap();
                assert_eq!(format!("{applied:?}"), format!("{parsed:?}"), "{text}");
            }
        }
    }
}
