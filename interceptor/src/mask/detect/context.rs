//! What the name of a column (or a JSON key, or the words before a number) says about it.

/// What the name of the place says its values are. Empty when nothing is known.
///
/// The questions the detectors ask are answered once, when it is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The name speaks of telephones.
    pub(super) phone: bool,
    /// The name speaks of secrets.
    pub(super) secret: bool,
    /// The national ids the name speaks of, one bit for each entry of their table.
    pub(super) ids: u32,
}

impl Context {
    /// The context a column name or JSON key gives: `customerPhone_no` is `customer phone no`.
    pub fn named(name: &str) -> Self {
        let words = words(name);
        let says = |any_of: &[&str]| has_word(words.as_bytes(), any_of);
        Self {
            phone: says(super::phone::WORDS),
            secret: says(super::secret::WORDS),
            ids: super::national::named(says),
        }
    }
}

/// The name in lower case, words separated by one space.
fn words(name: &str) -> String {
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
    words
}

/// How far before a number a word still speaks of it, in bytes.
const REACH: usize = 40;

/// True when one of the words stands in the text shortly before `at`.
pub(super) fn said_before(text: &[u8], at: usize, any_of: &[&str]) -> bool {
    has_word(&text[at.saturating_sub(REACH)..at], any_of)
}

/// Whether one of the (lower-case) words stands in `text` with no letter on either side.
fn has_word(text: &[u8], any_of: &[&str]) -> bool {
    let mut inside = false;
    for (at, byte) in text.iter().enumerate() {
        let begins = byte.is_ascii_alphabetic() && !inside;
        inside = byte.is_ascii_alphabetic() || *byte >= 0x80;
        if begins && any_of.iter().any(|word| stands_at(&text[at..], word.as_bytes())) {
            return true;
        }
    }
    false
}

fn stands_at(text: &[u8], word: &[u8]) -> bool {
    text.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word))
        && !text.get(word.len()).is_some_and(u8::is_ascii_alphabetic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_words() {
        for (name, expected) in [
            ("ssn", "ssn"),
            ("customerPhone_no", "customer phone no"),
            ("Work-Tel.", "work tel"),
            ("PHONE", "phone"),
            ("", ""),
        ] {
            assert_eq!(words(name), expected);
        }
        assert!(Context::named("customerPhone_no").phone);
        assert!(Context::named("api_key").secret);
        assert_ne!(Context::named("customer_ssn").ids, 0);
        assert_ne!(Context::named("ssn4").ids, 0);
        assert_eq!(Context::named("cousins"), Context::default());
    }

    #[test]
    fn words_before_a_number() {
        assert!(said_before(b"BSN: 123", 5, &["bsn"]));
        assert!(said_before(b"social security 1", 16, &["social security"]));
        assert!(!said_before(b"absn 123", 5, &["bsn"]));
        assert!(!said_before(b"bsnx 123", 5, &["bsn"]));
        assert!(!said_before(b"123", 0, &["bsn"]));
    }
}
