//! Detectors: regulated data recognised by structure and checksum inside any text.
//!
//! One look at the classes of the bytes tells which detectors can find anything; look-alike
//! characters are folded; each detector then walks the text once, in time linear in its
//! length, and what overlaps is replaced as one, by the stricter method.

mod card;
mod context;
mod digits;
pub(super) mod email;
mod fold;
mod iban;
mod jwt;
mod national;
mod phone;
mod prefix;
mod secret;
mod settle;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::BufMut;
pub use context::Context;
pub(super) use fold::Folded;

pub(super) use secret::KeyEnd;
pub(super) use settle::{BESIDE, Going, Pace, Settled};

use super::text;
use super::{HashKey, Hits, Kind, Method};

/// One finding: bytes `range` of the text are of this kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it stands, in bytes of the text that was searched; on character boundaries when
    /// the text is UTF-8.
    pub range: Range<usize>,
    /// What it is.
    pub kind: Kind,
}

/// The detectors a rule set asks for, with the method for each kind.
#[derive(Debug)]
pub struct Detectors {
    /// By [`Kind::index`]; `None` where no rule asks.
    methods: [Option<Method>; Kind::COUNT],
    key: Arc<HashKey>,
}

/// A text after scrubbing.
pub(super) struct Scrubbed {
    pub bytes: Vec<u8>,
    /// Nothing is left, and the method of all that was removed is null.
    pub null: bool,
}

/// What the detectors saw.
struct Search {
    /// Findings in no order, perhaps overlapping.
    found: Vec<Finding>,
    /// Stretches that were read as one, whether or not there is a finding inside.
    whole: Vec<Range<usize>>,
}

/// Which classes of bytes a text has; decides which detectors are worth running.
struct Classes {
    digits: usize,
    /// `@` and `%`
    at: bool,
    /// What secrets and tokens need at least one of.
    marks: bool,
    upper: bool,
    beyond_ascii: bool,
}

const DIGIT: u8 = 1;
const AT: u8 = 2;
const MARK: u8 = 4;
const UPPER: u8 = 8;
const BEYOND: u8 = 16;

const CLASS: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut byte = 0usize;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'0'..=b'9' => DIGIT,
            b'@' | b'%' => AT,
            b'_' | b'-' | b'=' | b':' | b'.' | b'\'' => MARK,
            b'A'..=b'Z' => UPPER,
            128..=255 => BEYOND,
            _ => 0,
        };
        byte += 1;
    }
    table
};

impl Classes {
    fn of(text: &[u8]) -> Self {
        let mut seen = 0u8;
        let mut digits = 0usize;
        for byte in text {
            let class = CLASS[usize::from(*byte)];
            seen |= class;
            digits += usize::from(class & DIGIT);
        }
        Self {
            digits,
            at: seen & AT != 0,
            marks: seen & MARK != 0,
            upper: seen & UPPER != 0,
            beyond_ascii: seen & BEYOND != 0,
        }
    }

    /// False when a detector of this kind cannot find anything in a folded text.
    fn allow(&self, kind: Kind, length: usize, context: &Context) -> bool {
        match kind {
            Kind::Card => self.digits >= 13,
            Kind::Email => self.at,
            Kind::Phone => self.digits >= 7,
            Kind::Iban => self.digits >= 2 && length >= 15,
            Kind::NationalId => self.digits >= 5 && length >= 9,
            Kind::SecretKey => {
                (length >= 8 && (self.marks || context.secret)) || (self.upper && length >= 20)
            }
            Kind::Jwt => self.upper && self.marks && length >= 20,
        }
    }
}

impl Detectors {
    /// Detectors for these kinds; a kind named twice gets the stricter method.
    pub fn new(kinds: &[(Kind, Method)], key: Arc<HashKey>) -> Self {
        let mut methods: [Option<Method>; Kind::COUNT] = Default::default();
        for (kind, method) in kinds {
            let slot = &mut methods[kind.index()];
            *slot = Some(match slot.take() {
                Some(other) => Method::stricter(other, method.clone()),
                None => method.clone(),
            });
        }
        Self { methods, key }
    }

    /// True when no kind is looked for.
    pub fn is_empty(&self) -> bool {
        self.methods.iter().all(Option::is_none)
    }

    /// The method for a kind, when it is looked for.
    pub fn method(&self, kind: Kind) -> Option<&Method> {
        self.methods[kind.index()].as_ref()
    }

    /// Scrubs a text of which nothing is known but itself.
    pub fn scrub_text<'t>(&self, text: &'t str) -> (Cow<'t, str>, Hits) {
        self.scrub_text_in(text, &Context::default())
    }

    /// Scrubs a text whose place has a name (a column, a JSON key).
    pub fn scrub_text_in<'t>(&self, text: &'t str, context: &Context) -> (Cow<'t, str>, Hits) {
        let mut hits = Hits::default();
        match self.scrub_bytes(text.as_bytes(), context, &mut hits) {
            None => (Cow::Borrowed(text), hits),
            Some(scrubbed) => {
                (Cow::Owned(String::from_utf8_lossy(&scrubbed.bytes).into_owned()), hits)
            }
        }
    }

    /// Scrubs a JSON document: strings, object keys and numbers, each by itself. What is not
    /// JSON is scrubbed as text.
    pub fn scrub_json<'t>(&self, json: &'t str) -> (Cow<'t, str>, Hits) {
        let mut hits = Hits::default();
        let scrubbed = super::json::scrub(self, json.as_bytes(), &Context::default(), &mut hits);
        match scrubbed {
            None => (Cow::Borrowed(json), hits),
            Some(bytes) => (Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()), hits),
        }
    }

    /// Everything found in a text, ordered, without overlaps.
    pub fn find(&self, text: &[u8], context: &Context) -> Vec<Finding> {
        self.found_in(&Folded::new(text), text.len(), context)
            .into_iter()
            .map(|(finding, _)| finding)
            .collect()
    }

    /// Scrubs bytes of an ASCII-compatible encoding; `None` when there is nothing to change.
    pub(super) fn scrub_bytes(
        &self,
        original: &[u8],
        context: &Context,
        hits: &mut Hits,
    ) -> Option<Scrubbed> {
        if !self.worth_it(original, context) {
            return None;
        }
        let folded = Folded::new(original);
        let findings = self.found_in(&folded, original.len(), context);
        if findings.is_empty() {
            return None;
        }
        let mut bytes = Vec::with_capacity(original.len() + 16);
        let mut copied = 0;
        let mut all_null = true;
        for (Finding { range, kind }, method) in &findings {
            bytes.extend_from_slice(&original[copied..range.start]);
            all_null &= *method == Method::Null;
            self.mask(*kind, method, &original[range.clone()], &mut bytes);
            copied = range.end;
            hits.add(*kind);
        }
        bytes.extend_from_slice(&original[copied..]);
        Some(Scrubbed { null: all_null && bytes.trim_ascii().is_empty(), bytes })
    }

    /// Appends what stands in the place of a finding.
    pub(super) fn mask(&self, kind: Kind, method: &Method, value: &[u8], out: &mut impl BufMut) {
        match method {
            Method::Hash => text::hash_into(&self.key, &canonical(kind, value), out),
            method => text::mask_into(method, &self.key, value, out),
        }
    }

    /// Whether any detector could find anything in these bytes.
    pub(super) fn worth_it(&self, text: &[u8], context: &Context) -> bool {
        let classes = Classes::of(text);
        // What folds to digits or signs is only known after folding.
        Kind::ALL.into_iter().any(|kind| {
            self.methods[kind.index()].is_some()
                && (classes.beyond_ascii || classes.allow(kind, text.len(), context))
        })
    }

    /// Runs the detectors over a folded text. Ranges are in the original.
    fn found_in(
        &self,
        folded: &Folded<'_>,
        original_len: usize,
        context: &Context,
    ) -> Vec<(Finding, Method)> {
        let mut merged = self.merge(self.search(folded.bytes.as_ref(), 0, context).found);
        for (finding, _) in &mut merged {
            let end = folded.original(finding.range.end).min(original_len);
            finding.range = folded.original(finding.range.start)..end;
        }
        merged
    }

    /// Runs the detectors over a folded text from somewhere on.
    fn search(&self, text: &[u8], from: usize, context: &Context) -> Search {
        let length = text.len() - from;
        let classes = Classes::of(&text[from..]);
        let wants = |kind: Kind| {
            self.methods[kind.index()].is_some() && classes.allow(kind, length, context)
        };
        let mut found: Vec<Finding> = Vec::new();
        let mut whole = Vec::new();
        let mut add = |kind, range| found.push(Finding { range, kind });
        if wants(Kind::SecretKey) {
            secret::find(
                text,
                from,
                context,
                |range| add(Kind::SecretKey, range),
                |range| whole.push(range),
            );
        }
        if wants(Kind::Jwt) {
            jwt::find(text, from, |range| add(Kind::Jwt, range));
        }
        if wants(Kind::Email) {
            email::find(text, from, |range| add(Kind::Email, range));
        }
        if wants(Kind::Iban) {
            iban::find(text, from, |range| add(Kind::Iban, range));
        }
        let (card, id, phone) = (wants(Kind::Card), wants(Kind::NationalId), wants(Kind::Phone));
        if id {
            national::find_lettered(text, from, |range| add(Kind::NationalId, range));
        }
        if card || id || phone {
            digits::each_run(text, from, |run| {
                let digits = run.total();
                if card && digits >= 13 {
                    card::find(run, |range| add(Kind::Card, range));
                }
                if id && digits >= 9 {
                    national::find_numeric(run, context, |range| add(Kind::NationalId, range));
                }
                if phone && digits >= 7 {
                    phone::find(run, context, |range| add(Kind::Phone, range));
                }
            });
        }
        Search { found, whole }
    }

    /// Orders findings and joins those that overlap, the stricter method for the whole. A
    /// telephone number inside something with a checksum is not one.
    fn merge(&self, mut all: Vec<Finding>) -> Vec<(Finding, Method)> {
        all.sort_by_key(|f| (f.range.start, std::cmp::Reverse(f.range.end)));
        let mut merged: Vec<(Finding, Method)> = Vec::with_capacity(all.len());
        for finding in all {
            let method = self.methods[finding.kind.index()].clone().unwrap_or(Method::Redact);
            match merged.last_mut().filter(|(last, _)| finding.range.start < last.range.end) {
                None => merged.push((finding, method)),
                Some((last, last_method)) => {
                    let inside = finding.range.end <= last.range.end;
                    let around = !inside && finding.range.start == last.range.start;
                    if finding.kind == Kind::Phone && inside {
                        continue;
                    }
                    if last.kind == Kind::Phone && (inside || around) {
                        last.kind = finding.kind;
                    }
                    last.range.end = last.range.end.max(finding.range.end);
                    *last_method = Method::stricter(last_method.clone(), method);
                }
            }
        }
        merged
    }
}

/// The form under which equal values of a kind are equal: no separators, capitals.
fn canonical(kind: Kind, value: &[u8]) -> Cow<'_, [u8]> {
    match kind {
        Kind::Card | Kind::Iban | Kind::NationalId | Kind::Phone => {
            let folded = Folded::new(value);
            let keep = |b: &u8| b.is_ascii_alphanumeric() || (*b == b'+' && kind == Kind::Phone);
            Cow::Owned(
                folded.bytes.iter().filter(|b| keep(b)).map(u8::to_ascii_uppercase).collect(),
            )
        }
        Kind::Email | Kind::SecretKey | Kind::Jwt => Cow::Borrowed(value),
    }
}

/// Whether the shipped patterns can be used; asked once before detectors go into service.
pub(super) fn ready() -> bool {
    secret::ready()
}

#[cfg(test)]
mod tests;
