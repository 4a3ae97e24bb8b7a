//! What the name of a column (or a JSON key, or the words before a number) says about it.

/// What the name of the place says its values are. Empty when nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The name in lower case, words separated by one space.
    words: String,
}

impl Context {
    /// The context a column name or JSON key gives: `customerPhone_no` is `customer phone no`.
    pub fn named(name: &str) -> Self {
        let mut words = String::with_capacity(name.len() + 4);
        let mut lower_before = false;
        for c in name.chars().take(128) {
            if !c.is_alphanumeric() {
                if !words.is_empty() && !words.ends_with(' ') {
                    words.push(' ');
                }
                lower_before = false;
                continue;
            }
            if c.is_uppercase() && lower_before {
                words.push(' ');
            }
            lower_before = c.is_lowercase() || c.is_numeric();
            words.extend(c.to_lowercase());
        }
        words.truncate(words.trim_end().len());
        Self { words }
    }

    /// True when the name contains one of these (lower-case) words or phrases.
    pub(super) fn says(&self, any_of: &[&str]) -> bool {
        !self.words.is_empty() && any_of.iter().any(|word| has_word(self.words.as_bytes(), word))
    }
}

/// How far before a number a word still speaks of it, in bytes.
const REACH: usize = 40;

/// True when one of the words stands in the text shortly before `at`.
pub(super) fn said_before(text: &[u8], at: usize, any_of: &[&str]) -> bool {
    let before = &text[at.saturating_sub(REACH)..at];
    if !before.iter().any(u8::is_ascii_alphabetic) {
        return false;
    }
    let lower = before.to_ascii_lowercase();
    any_of.iter().any(|word| has_word(&lower, word))
}

/// Whether `word` stands in `text` with no letter on either side.
fn has_word(text: &[u8], word: &str) -> bool {
    memchr::memmem::find_iter(text, word.as_bytes()).any(|at| {
        let letter =
            |i: Option<usize>| i.and_then(|i| text.get(i)).is_some_and(u8::is_ascii_alphabetic);
        !letter(at.checked_sub(1)) && !letter(Some(at + word.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words() {
        for (name, words) in [
            ("ssn", "ssn"),
            ("customerPhone_no", "customer phone no"),
            ("Work-Tel.", "work tel"),
            ("PHONE", "phone"),
            ("", ""),
        ] {
            assert_eq!(Context::named(name).words, words);
        }
        assert!(Context::named("customer_ssn").says(&["ssn"]));
        assert!(Context::named("ssn4").says(&["ssn"]));
        assert!(!Context::named("cousins").says(&["sin"]));
    }

    #[test]
    fn words_before_a_number() {
        assert!(said_before(b"BSN: 123", 5, &["bsn"]));
        assert!(!said_before(b"absn 123", 5, &["bsn"]));
        assert!(!said_before(b"123", 0, &["bsn"]));
    }
}
