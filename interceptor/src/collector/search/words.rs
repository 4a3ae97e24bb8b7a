//! What counts as a word, which texts of an event are searched, and whether they hold what a
//! person looks for.
//!
//! The index and the check of what it found use the same functions, so that they cannot disagree:
//! what the check accepts, the index has among its candidates.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Words are known by so many bytes; longer ones are encoded data, told apart by the check.
const LONGEST: usize = 64;
/// Words of a search that the index is asked for; the check sees them all.
const ASKED: usize = 24;
/// Stands before each word of a pair: in no word, and no separator for the full-text table.
const BETWEEN: char = '‖';
/// Fields of a body that nobody looks for: sums over exact contents.
const SKIPPED: [&str; 5] = ["hmac", "blake3", "blake3_in", "blake3_out", "blake3_err"];

fn is_word(c: char) -> bool {
    c.is_alphanumeric()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_word(c)).filter(|w| !w.is_empty()).map(|w| {
        let end = w.floor_char_boundary(LONGEST);
        &w[..end]
    })
}

/// A pair of words that stand side by side, as one word of its own: what is between is in no word.
fn pair(first: &str, second: &str) -> String {
    format!("{BETWEEN}{first}{BETWEEN}{second}")
}

/// The words of some events as the index takes them, and which stood side by side in a text: each
/// once, since documents are told apart by what they have and not by where.
#[derive(Debug, Default)]
pub struct Gathered {
    texts: HashSet<Box<str>>,
    known: HashSet<Box<str>>,
    words: String,
}

impl Gathered {
    /// Adds the texts of one event.
    pub fn event(&mut self, body: &[u8]) {
        each_text(body, &mut |text| {
            if !self.texts.contains(text) {
                self.texts.insert(text.into());
                self.text(&text.to_ascii_lowercase());
            }
        });
    }

    fn text(&mut self, text: &str) {
        let mut previous = None;
        for word in words(text) {
            self.word(word);
            if let Some(previous) = previous.replace(word) {
                self.word(&pair(previous, word));
            }
        }
    }

    fn word(&mut self, word: &str) {
        if !self.known.contains(word) {
            self.known.insert(word.into());
            self.words.push_str(word);
            self.words.push(' ');
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Words with one space behind each.
    pub fn into_words(self) -> String {
        self.words
    }
}

/// What a person looks for, word by word: the text as it was written, from the beginning of a
/// word to the end of one; with `*` behind the last word, that one may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    text: String,
    lower: String,
    open_end: bool,
}

impl Query {
    /// Reads what a person wrote; nothing when there is no word in it.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.trim();
        let stem = text.strip_suffix('*').filter(|stem| stem.ends_with(is_word));
        let (text, open_end) = (stem.unwrap_or(text), stem.is_some());
        text.contains(is_word).then(|| Self {
            lower: text.to_ascii_lowercase(),
            text: text.into(),
            open_end,
        })
    }

    /// The text that an event's body contains when it fits.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same for FTS5: one word, or each pair of neighbours. Nothing in it is a person's syntax:
    /// words are letters and digits, and stand in quotes.
    pub fn expression(&self) -> String {
        let all: Vec<&str> = words(&self.lower).take(ASKED + 1).collect();
        let asked = &all[..all.len().min(ASKED)];
        let mut parts: Vec<String> = match asked {
            [one] => vec![format!("\"{one}\"")],
            more => more.windows(2).map(|w| format!("\"{}\"", pair(w[0], w[1]))).collect(),
        };
        if self.open_end
            && all.len() == asked.len()
            && let Some(last) = parts.last_mut()
        {
            last.push('*');
        }
        parts.join(" AND ")
    }

    /// Whether one of an event's texts fits.
    pub fn fits(&self, body: &[u8]) -> bool {
        let mut fits = false;
        each_text(body, &mut |text| fits = fits || self.is_in(text));
        fits
    }

    fn is_in(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let begins = self.lower.starts_with(is_word);
        let ends = !self.open_end && self.lower.ends_with(is_word);
        let mut from = 0;
        while let Some(found) = text[from..].find(&self.lower) {
            let (at, behind) = (from + found, from + found + self.lower.len());
            if !(begins && text[..at].ends_with(is_word)
                || ends && text[behind..].starts_with(is_word))
            {
                return true;
            }
            from = at + text[at..].chars().next().map_or(1, char::len_utf8);
        }
        false
    }
}

/// Every text of an event's body, at any depth, without names of fields and without numbers. A
/// body that is no JSON is one text.
fn each_text(body: &[u8], take: &mut dyn FnMut(&str)) {
    let mut json = serde_json::Deserializer::from_slice(body);
    let walked = Walk { take, top: true }.deserialize(&mut json);
    if walked.is_err() || json.end().is_err() {
        take(&String::from_utf8_lossy(body));
    }
}

struct Walk<'a> {
    take: &'a mut dyn FnMut(&str),
    top: bool,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        (self.take)(text);
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        while all.next_element_seed(Walk { take: &mut *self.take, top: false })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<(), A::Error> {
        while let Some(skipped) = all.next_key_seed(Skipped)? {
            if skipped && self.top {
                all.next_value::<IgnoredAny>()?;
            } else {
                all.next_value_seed(Walk { take: &mut *self.take, top: false })?;
            }
        }
        Ok(())
    }
}

/// Whether a field is passed over.
struct Skipped;

impl<'de> DeserializeSeed<'de> for Skipped {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Skipped {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(SKIPPED.contains(&name))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fits(query: &str, text: &str) -> bool {
        let body = serde_json::json!({ "a": [{ "text": text }] }).to_string();
        Query::read(query).unwrap().fits(body.as_bytes())
    }

    #[test]
    fn texts_fit_from_word_to_word() {
        let text = "SELECT * FROM public.customer_cards WHERE ip = '10.0.0.7' -- Größe";
        for there in [
            "select",
            "customer_cards",
            "cards",
            "CUSTOMER_CARDS where",
            "10.0.0.7",
            "0.0.7'",
            "custom*",
            "SELECT *",
            "SELECT * FROM",
            "größe",
            ".customer",
            "'10.0*",
            "gr*",
        ] {
            assert!(fits(there, text), "{there}");
        }
        for absent in ["custom", "ustomer", "10.0.0", "0.0.70", "FROM SELECT", "gr", "cards*where"]
        {
            let found = fits(absent, text);
            // `10.0.0` ends with a word, and a word ends there.
            assert_eq!(found, absent == "10.0.0", "{absent}");
        }
        // The first place does not fit, a later one does.
        assert!(fits("cards", "cards2 discards cards"));
        assert!(
            fits("rm -rf /srv", "sudo rm -rf /srv/www") && !fits("rm -rf /srv", "rm -rf /srvx")
        );
        assert!(fits("alice@example.com", "for alice@example.com, today"));
    }

    #[test]
    fn nothing_is_syntax() {
        for (text, expression) in [
            ("DROP", "\"drop\""),
            ("DROP TABLE", "\"‖drop‖table\""),
            ("a OR b\" NOT c:", "\"‖a‖or\" AND \"‖or‖b\" AND \"‖b‖not\" AND \"‖not‖c\""),
            ("cust*", "\"cust\"*"),
            ("drop cust*", "\"‖drop‖cust\"*"),
            ("select *", "\"select\""),
            ("NEAR(b)", "\"‖near‖b\""),
            ("a‖b", "\"‖a‖b\""),
        ] {
            assert_eq!(Query::read(text).unwrap().expression(), expression);
        }
        for none in ["", " ", "*", "%_", "--", "\u{0}", "“—”"] {
            assert_eq!(Query::read(none), None, "{none}");
        }
        let long = "word ".repeat(100) + "en*";
        assert!(!Query::read(&long).unwrap().expression().contains('*'));
        let long = Query::read(&"ä".repeat(400)).unwrap().expression();
        assert_eq!(long, format!("\"{}\"", "ä".repeat(32)));
    }

    #[test]
    fn texts_are_taken_once_and_without_what_nobody_looks_for() {
        let mut gathered = Gathered::default();
        for n in [1, 2] {
            let body = serde_json::json!({
                "n": n, "verdict": "allow", "hmac": "9f86d0", "text": "DROP TABLE \"a_b\"\n;",
                "claims": { "hmac": "kept", "sub": "eve", "n": [1, true, null, 1.5, "in"] },
            });
            gathered.event(body.to_string().as_bytes());
        }
        gathered.event(b"{\"verdict\": \"allow\", no JSON \xff");
        let words = gathered.into_words();
        let mut all: Vec<&str> = words.split_terminator(' ').collect();
        all.sort_unstable();
        let mut wanted = vec!["drop", "table", "a", "b", "‖drop‖table", "‖table‖a", "‖a‖b"];
        wanted.extend(["allow", "eve", "in", "kept"]);
        wanted.extend(["verdict", "no", "json", "‖verdict‖allow", "‖allow‖no", "‖no‖json"]);
        wanted.sort_unstable();
        assert_eq!(all, wanted);
    }
}
