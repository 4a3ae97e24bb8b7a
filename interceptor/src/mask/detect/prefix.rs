//! What may still become a match: from a pattern, the pattern of all its beginnings.

use regex::bytes::Regex;
use regex_syntax::hir::{Hir, HirKind, Look, Repetition};

/// Repetitions beyond this count as endless, so that the pattern stays small.
const MANY: u32 = 64;

/// The pattern of texts that end inside, or right behind, a match of this one; the leftmost
/// match of it is where the earliest begins. Finds an empty match at the end of other texts.
/// Sees some beginnings that cannot be completed (where repetitions are bounded), and misses
/// none.
pub(super) fn unfinished(pattern: &str) -> Option<Regex> {
    let mut parser = regex_syntax::ParserBuilder::new().utf8(false).unicode(false).build();
    let hir = parser.parse(pattern).ok()?;
    let whole = Hir::concat(vec![beginnings(&hir), Hir::look(Look::End)]);
    Regex::new(&whole.to_string()).ok()
}

fn optional(sub: Hir) -> Hir {
    Hir::repetition(Repetition { min: 0, max: Some(1), greedy: true, sub: Box::new(sub) })
}

/// All beginnings of what a pattern matches, from nothing to the whole.
fn beginnings(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Hir::empty(),
        HirKind::Class(_) => optional(hir.clone()),
        HirKind::Literal(literal) => literal.0.iter().rev().fold(Hir::empty(), |rest, byte| {
            optional(Hir::concat(vec![Hir::literal([*byte]), rest]))
        }),
        HirKind::Capture(capture) => beginnings(&capture.sub),
        HirKind::Alternation(all) => Hir::alternation(all.iter().map(beginnings).collect()),
        HirKind::Concat(all) => all.iter().rev().fold(Hir::empty(), |rest, part| {
            let beyond = Hir::concat(vec![endless(part), rest]);
            Hir::alternation(vec![beyond, beginnings(part)])
        }),
        HirKind::Repetition(repetition) => {
            let many = Repetition { min: 0, ..repetition.clone() };
            Hir::concat(vec![endless(&Hir::repetition(many)), beginnings(&repetition.sub)])
        }
    }
}

/// The pattern itself, with long repetitions made endless.
fn endless(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Repetition(repetition) => {
            let max = repetition.max.filter(|max| *max <= MANY);
            Hir::repetition(Repetition { max, ..repetition.clone() })
        }
        HirKind::Capture(capture) => endless(&capture.sub),
        _ => hir.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(pattern: &str, text: &str) -> Option<usize> {
        let found = unfinished(pattern).unwrap().find(text.as_bytes()).unwrap();
        (found.start() < text.len()).then(|| found.start())
    }

    #[test]
    fn every_beginning_is_seen() {
        for (pattern, whole) in [
            (r"(?-u)\bab[0-9]{3}\b", "ab123"),
            (r"(?i-u)pass(?:wor)?d[ ]{1,8}'(?:[^']|''){1,512}'", "PASSWORD  'it''s'"),
            (r"(?-u)a|bc(?P<x>d+)", "bcddd"),
            (r"(?-u)[a-z]{1,20}://[^/]{0,64}@", "http://me@"),
        ] {
            for end in 1..=whole.len() {
                let text = format!(". {}", &whole[..end]);
                assert_eq!(begins(pattern, &text), Some(2), "{pattern} {text:?}");
            }
            assert_eq!(begins(pattern, &format!("{whole}/ ")), None, "{pattern}");
        }
        assert_eq!(begins(r"(?-u)\bab", "xa"), None, "a word must begin there");
    }
}
