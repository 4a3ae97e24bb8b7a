//! Statements for the record: literals tied to a masked column replaced by that column's
//! method, everything else passed through the detectors.

use std::borrow::Cow;
use std::ops::Range;

use super::text;
use super::{Context, Detectors, HashKey, Hits, Method};

/// One literal of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiteralMask {
    /// Where it stands in the statement, in bytes, quotes included.
    pub range: Range<usize>,
    /// The method of the column it is compared with or written to, when that is masked.
    pub method: Option<Method>,
    /// The name of that column, for the detectors.
    pub column: Option<String>,
}

/// Scrubs a statement for the record. Literals with a method are replaced by a string literal
/// (or NULL); the rest, comments and names included, goes through the detectors.
///
/// A range that does not lie in the text, and has a method, means that positions cannot be
/// trusted: then the whole text is redacted.
pub fn scrub_statement<'t>(
    text: &'t str,
    literals: &[LiteralMask],
    detectors: Option<&Detectors>,
    key: &HashKey,
) -> (Cow<'t, str>, Hits) {
    let mut hits = Hits::default();
    let mut tied: Vec<(Range<usize>, &LiteralMask)> = Vec::new();
    for literal in literals {
        match widened(text, &literal.range) {
            Some(range) => tied.push((range, literal)),
            None if literal.method.is_some() => {
                hits.masked += 1;
                return (Cow::Borrowed(text::REDACTED), hits);
            }
            None => {}
        }
    }
    tied.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    let mut scrubber = Scrubber { text, detectors, key, out: String::new(), copied: 0, hits };
    let mut covered = 0;
    for (range, literal) in tied {
        // Overlapping ranges: what is already replaced stays replaced, the rest follows.
        let range = range.start.max(covered)..range.end;
        if range.is_empty() {
            continue;
        }
        scrubber.literal(&range, literal);
        covered = range.end;
    }
    scrubber.finish()
}

/// The range on character boundaries, outwards; `None` when it is empty or not in the text.
fn widened(text: &str, range: &Range<usize>) -> Option<Range<usize>> {
    if range.start >= range.end || range.end > text.len() {
        return None;
    }
    let start = (0..=range.start).rev().find(|at| text.is_char_boundary(*at))?;
    let end = (range.end..=text.len()).find(|at| text.is_char_boundary(*at))?;
    Some(start..end)
}

struct Scrubber<'t, 'd> {
    text: &'t str,
    detectors: Option<&'d Detectors>,
    key: &'d HashKey,
    out: String,
    /// The text up to here is dealt with.
    copied: usize,
    hits: Hits,
}

impl<'t> Scrubber<'t, '_> {
    /// The text between literals.
    fn between(&mut self, end: usize) {
        let part = &self.text[self.copied..end];
        let scrubbed = self.scrubbed(part, &Context::default());
        self.out.push_str(&scrubbed);
        self.copied = end;
    }

    fn scrubbed(&mut self, part: &'t str, context: &Context) -> Cow<'t, str> {
        let Some(detectors) = self.detectors else { return Cow::Borrowed(part) };
        let (text, hits) = detectors.scrub_text_in(part, context);
        self.hits += hits;
        text
    }

    fn literal(&mut self, range: &Range<usize>, literal: &LiteralMask) {
        let token = &self.text[range.clone()];
        match &literal.method {
            Some(method) => {
                self.between(range.start);
                self.hits.masked += 1;
                let replacement = masked_literal(token, method, self.key);
                self.out.push_str(&replacement);
                self.copied = range.end;
            }
            // Without a name there is nothing to know that the text around would not tell.
            None => {
                let Some(column) = &literal.column else { return };
                let context = Context::named(column);
                let Some(detectors) = self.detectors else { return };
                if detectors.find(token.as_bytes(), &context).is_empty() {
                    return;
                }
                self.between(range.start);
                let scrubbed = self.scrubbed(token, &context);
                self.out.push_str(&scrubbed);
                self.copied = range.end;
            }
        }
    }

    fn finish(mut self) -> (Cow<'t, str>, Hits) {
        if self.copied == 0 {
            let text = self.scrubbed(self.text, &Context::default());
            return (text, self.hits);
        }
        self.between(self.text.len());
        (Cow::Owned(self.out), self.hits)
    }
}

/// What stands in the place of a literal.
fn masked_literal(token: &str, method: &Method, key: &HashKey) -> String {
    if *method == Method::Null {
        return "NULL".to_owned();
    }
    let mut masked = Vec::new();
    text::mask_into(method, key, literal_value(token).as_bytes(), &mut masked);
    format!("'{}'", String::from_utf8_lossy(&masked).replace('\'', "''"))
}

/// The value a literal stands for, so that its hash is that of the value in a result. The
/// spellings of escape strings are only undone as far as quotes and backslashes go.
fn literal_value(token: &str) -> Cow<'_, str> {
    let quoted = |rest: &str| {
        rest.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).map(str::to_owned)
    };
    if let Some(body) = quoted(token) {
        return Cow::Owned(body.replace("''", "'"));
    }
    if let Some(body) = token.strip_prefix(['E', 'e']).and_then(quoted) {
        return Cow::Owned(body.replace("''", "'").replace("\\'", "'").replace("\\\\", "\\"));
    }
    if let Some((tag, rest)) = token.strip_prefix('$').and_then(|rest| rest.split_once('$')) {
        let closing = format!("${tag}$");
        if let Some(body) = rest.strip_suffix(closing.as_str()) {
            return Cow::Owned(body.to_owned());
        }
    }
    Cow::Borrowed(token)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::mask::Kind;

    fn key() -> Arc<HashKey> {
        Arc::new(HashKey::from_bytes(&[3; 32]))
    }

    fn tied(text: &str, part: &str, method: Option<Method>, column: Option<&str>) -> LiteralMask {
        let start = text.find(part).unwrap();
        let range = start..start + part.len();
        LiteralMask { range, method, column: column.map(str::to_owned) }
    }

    fn detectors() -> Detectors {
        let kinds: Vec<_> = Kind::ALL.into_iter().map(|k| (k, Method::Redact)).collect();
        Detectors::new(&kinds, key())
    }

    #[test]
    fn tied_literals_and_findings_are_replaced() {
        let sql = "update c set email = 'al''ice@x.org', n = 5 where card = '4111111111111111' -- bob@example.org";
        let email = |method| vec![tied(sql, "'al''ice@x.org'", Some(method), Some("email"))];
        let all = |method| {
            scrub_statement(sql, &email(method), Some(&detectors()), &key()).0.into_owned()
        };
        assert_eq!(
            all(Method::Redact),
            "update c set email = '[redacted]', n = 5 where card = '[redacted]' -- [redacted]"
        );
        assert!(all(Method::Null).contains("email = NULL,"));
        assert!(all(Method::Fixed("o'x".into())).contains("email = 'o''x',"));
        let mut hash = Vec::new();
        text::hash_into(&key(), b"al'ice@x.org", &mut hash);
        assert!(all(Method::Hash).contains(&String::from_utf8(hash).unwrap()));
    }

    #[test]
    fn the_column_of_a_literal_tells_the_detectors() {
        let sql = "select * from c where ssn = '123456789' and id = '123456780'";
        let literals = [tied(sql, "'123456789'", None, Some("ssn"))];
        let (text, hits) = scrub_statement(sql, &literals, Some(&detectors()), &key());
        assert_eq!(text, "select * from c where ssn = '[redacted]' and id = '123456780'");
        assert_eq!(hits.of(Kind::NationalId), 1);
    }

    #[test]
    fn positions_that_cannot_be_right_hide_everything() {
        let sql = "select 'é'";
        for range in [(5, 99), (99, 100), (8, 3)] {
            let range = Range { start: range.0, end: range.1 };
            let method = Some(Method::Redact);
            let literal = LiteralMask { range, method, column: None };
            assert_eq!(scrub_statement(sql, &[literal], None, &key()).0, "[redacted]");
        }
        // Inside a character: the whole character goes.
        let literal = LiteralMask { range: 9..10, method: Some(Method::Redact), column: None };
        assert!(!scrub_statement(sql, &[literal], None, &key()).0.contains('é'));
    }

    #[test]
    fn spellings_of_a_literal() {
        for (token, value) in [
            ("'a''b'", "a'b"),
            (r"E'a\'b\\'", r"a'b\"),
            ("$$a'b$$", "a'b"),
            ("$q$a$$b$q$", "a$$b"),
            ("42", "42"),
            ("'", "'"),
            ("$1", "$1"),
        ] {
            assert_eq!(literal_value(token), value);
        }
    }

    proptest! {
        #[test]
        fn no_range_panics_and_no_tied_literal_stays(
            text in "\\PC{0,40}",
            ranges in proptest::collection::vec((0usize..60, 0usize..60), 0..6),
        ) {
            let literals: Vec<_> = ranges
                .iter()
                .map(|(start, end)| LiteralMask {
                    range: Range { start: *start, end: *end },
                    method: (start % 3 > 0).then_some(Method::Redact),
                    column: (end % 2 > 0).then(|| "phone".to_owned()),
                })
                .collect();
            let (out, _) = scrub_statement(&text, &literals, Some(&detectors()), &key());
            let secret = format!("select '{text}Zq9' -- x");
            let end = 9 + text.len() + 3;
            let literal = LiteralMask { range: 7..end, method: Some(Method::Redact), column: None };
            prop_assert!(out.len() <= text.len() + 1000);
            let (out, _) = scrub_statement(&secret, &[literal], None, &key());
            prop_assert!(!out.contains("Zq9"));
        }
    }
}
