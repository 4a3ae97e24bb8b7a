//! What of a text is settled when more may follow.
//!
//! A text is settled up to a cut when nothing behind could change what is found before it, no
//! finding stands across it, and the detectors, started at the cut, find in the rest exactly
//! what they would have found had they read the whole. The bytes before a cut still stand
//! beside what follows: words that speak of a number, a letter that ties it.

use std::ops::Range;

use super::{
    Context, Detectors, Finding, Search, digits, email, iban, jwt, national, phone, secret,
};
use crate::mask::{Kind, Method};

/// Bytes before a cut that can matter behind it.
pub(in crate::mask) const BESIDE: usize = 64;

/// What goes on behind a text whose end was decided before it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mask) enum Going {
    /// A private key that begins there, until its last line.
    Key(usize),
    /// A token or another secret, as long as its characters follow.
    Run,
}

/// What is known of a text.
pub(in crate::mask) struct Settled {
    /// The text is settled up to here.
    pub cut: usize,
    /// What was found before the cut, ordered, without overlaps.
    pub findings: Vec<(Finding, Method)>,
    /// What goes on behind it, when all was to be decided.
    pub going: Option<Going>,
}

/// How the text came, which tells how much of it is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mask) enum Pace {
    /// In bulk: whatever may become a finding waits for the rest.
    Bulk,
    /// A few characters, as the echo of a key: only what has begun to look like a finding
    /// waits, not every letter that an address could begin with.
    Echo,
}

impl Detectors {
    /// Looks at a folded text from `from` on when more may follow.
    pub(in crate::mask) fn settle(&self, text: &[u8], from: usize) -> Settled {
        self.settle_shown(text, from, from, Pace::Bulk)
    }

    /// The same when the text from `from` to `shown` is out already: what is found there is
    /// reported whole, and the cut is behind it.
    pub(in crate::mask) fn settle_shown(
        &self,
        text: &[u8],
        from: usize,
        shown: usize,
        pace: Pace,
    ) -> Settled {
        let Search { found, whole } = self.search(text, from, &Context::default());
        let mut findings = self.merge(found);
        let alive = self.alive(text, shown, pace).unwrap_or(text.len());
        let mut cut = char_begin(text, alive).max(shown);
        // What is one is not cut. A finding may stand across what was read as one.
        let straddles = |range: &Range<usize>, cut| range.start < cut && cut < range.end;
        while let Some(range) = findings
            .iter()
            .map(|(finding, _)| &finding.range)
            .chain(whole.iter().filter(|_| pace == Pace::Bulk))
            .find(|range| cut > shown && straddles(range, cut))
        {
            cut = range.start.max(shown);
        }
        findings.retain(|(finding, _)| finding.range.end <= cut);
        // A key whose beginning is out is masked as it comes, and will not be seen again.
        let key = (shown > from && self.method(Kind::SecretKey).is_some())
            .then(|| secret::open_key(text, from))
            .flatten();
        let going = key.filter(|start| *start < shown && cut == text.len()).map(Going::Key);
        Settled { cut, findings, going }
    }

    /// Looks at a folded text from `from` on when nothing follows, or none can be waited for.
    /// With `begun`, what is certainly the beginning of something is taken for the whole.
    pub(in crate::mask) fn decide(&self, text: &[u8], from: usize, begun: bool) -> Settled {
        let wants = |kind: Kind| self.method(kind).is_some();
        let Search { mut found, .. } = self.search(text, from, &Context::default());
        if begun
            && wants(Kind::Jwt)
            && let Some(start) = jwt::find(text, from, |_| ()).filter(|s| jwt::has_header(text, *s))
        {
            found.push(Finding { range: start..text.len(), kind: Kind::Jwt });
        }
        let endless = |f: &Finding| {
            matches!(f.kind, Kind::Jwt | Kind::SecretKey) && f.range.end == text.len()
        };
        let run = found.iter().any(endless).then_some(Going::Run);
        let key = || secret::open_key(text, from).filter(|_| wants(Kind::SecretKey));
        let going = run.map(|run| key().map_or(run, Going::Key));
        Settled { cut: text.len(), findings: self.merge(found), going }
    }

    /// Where the earliest thing begins that more text behind could still change.
    fn alive(&self, text: &[u8], from: usize, pace: Pace) -> Option<usize> {
        let wants = |kind: Kind| self.method(kind).is_some();
        let bulk = pace == Pace::Bulk;
        let seen = |start: &usize, shape: fn(&u8) -> bool| bulk || text[*start..].iter().any(shape);
        let mut earliest: Option<usize> = None;
        let mut at = |start: Option<usize>| {
            earliest = match (earliest, start) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        };
        if wants(Kind::SecretKey) {
            at(secret::alive(text, from, bulk));
        }
        if wants(Kind::Jwt) {
            at(jwt::find(text, from, |_| ()).filter(|start| bulk || text.len() - start > 2));
        }
        if wants(Kind::Email) {
            at(email::alive(text, from).filter(|start| seen(start, |b| matches!(b, b'@' | b'%'))));
        }
        if wants(Kind::Iban) {
            at(iban::alive(text, from).filter(|start| seen(start, u8::is_ascii_digit)));
        }
        if wants(Kind::NationalId) {
            at(national::lettered_alive(text, from).filter(|s| seen(s, u8::is_ascii_digit)));
        }
        if wants(Kind::Card) || wants(Kind::NationalId) || wants(Kind::Phone) {
            let number = digits::alive(text, from);
            at(number);
            if wants(Kind::Phone) {
                at(phone::alive(text, from, number)
                    .filter(|start| seen(start, u8::is_ascii_digit)));
            }
        }
        earliest
    }
}

/// Where the character begins that `at` is inside of; `at` when it is between two.
fn char_begin(text: &[u8], at: usize) -> usize {
    let begins = |start: &usize| {
        text[*start..]
            .utf8_chunks()
            .next()
            .and_then(|chunk| chunk.valid().chars().next())
            .is_some_and(|c| start + c.len_utf8() > at)
    };
    (at.saturating_sub(3)..at).find(begins).unwrap_or(at)
}
