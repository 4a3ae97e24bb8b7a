//! National identity and tax numbers.
//!
//! Numeric ones stand in one table: grouping, whether a bare number counts, words that make it
//! count, and the check. The ones with letters are found at the start of a word.

mod checks;
mod letters;

use std::ops::Range;

use super::context::{Context, said_before};
use super::digits::Run;

/// When a number of the right shape is taken for an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Its check is strong enough alone.
    Always,
    /// Only where the column or the words before it name it.
    Named,
}

struct NumericId {
    /// The groupings in use.
    groupings: &'static [&'static [usize]],
    /// What it takes for a grouped number.
    grouped: When,
    /// What it takes for a bare number of that many digits.
    bare: When,
    check: fn(&[u8]) -> bool,
    words: &'static [&'static str],
}

const TAX: &str = "tax id";
const NATIONAL: &str = "national id";

#[rustfmt::skip]
const NUMERIC: &[NumericId] = &[
    // United States: social security and individual taxpayer numbers. No checksum.
    NumericId { groupings: &[&[3, 2, 4]], grouped: When::Always, bare: When::Named, check: checks::us_ssn,
        words: &["ssn", "social security", "social security number", "itin", TAX, NATIONAL] },
    // Germany: Steuer-Identifikationsnummer.
    NumericId { groupings: &[&[2, 3, 3, 3]], grouped: When::Always, bare: When::Always, check: checks::de_tax_id,
        words: &[] },
    // Netherlands: burgerservicenummer. One in eleven numbers passes its check.
    NumericId { groupings: &[&[3, 3, 3], &[4, 2, 3], &[4, 3, 2], &[3, 2, 4]], grouped: When::Named, bare: When::Named, check: checks::nl_bsn,
        words: &["bsn", "burgerservicenummer", "sofinummer", "sofi", NATIONAL] },
    // Poland: PESEL, with a date of birth from 1900 to 2099.
    NumericId { groupings: &[&[6, 5]], grouped: When::Always, bare: When::Always, check: checks::pl_pesel,
        words: &[] },
    // Sweden: personnummer.
    NumericId { groupings: &[&[6, 4], &[8, 4]], grouped: When::Always, bare: When::Named, check: checks::se_personnummer,
        words: &["personnummer", "personnr", "pnr", "samordningsnummer", NATIONAL] },
    NumericId { groupings: &[], grouped: When::Always, bare: When::Always, check: checks::se_personnummer_long,
        words: &[] },
    // Denmark: CPR number. Its checksum is no longer kept.
    NumericId { groupings: &[&[6, 4]], grouped: When::Named, bare: When::Named, check: checks::dk_cpr,
        words: &["cpr", "cpr nr", "cprnr", "personnummer", NATIONAL] },
    // Switzerland: AHV number.
    NumericId { groupings: &[&[3, 4, 4, 2]], grouped: When::Always, bare: When::Always, check: checks::ch_ahv,
        words: &[] },
    // Belgium: rijksregisternummer.
    NumericId { groupings: &[&[2, 2, 2, 3, 2], &[6, 3, 2]], grouped: When::Always, bare: When::Always, check: checks::be_national,
        words: &[] },
    // Brazil: CPF.
    NumericId { groupings: &[&[3, 3, 3, 2]], grouped: When::Always, bare: When::Named, check: checks::br_cpf,
        words: &["cpf", TAX, NATIONAL] },
    // Canada: social insurance number.
    NumericId { groupings: &[&[3, 3, 3]], grouped: When::Named, bare: When::Named, check: checks::ca_sin,
        words: &["sin", "social insurance", "social insurance number", NATIONAL] },
    // India: Aadhaar.
    NumericId { groupings: &[&[4, 4, 4]], grouped: When::Named, bare: When::Named, check: checks::in_aadhaar,
        words: &["aadhaar", "aadhar", "uidai", NATIONAL] },
    // United Kingdom: NHS number.
    NumericId { groupings: &[&[3, 3, 4]], grouped: When::Named, bare: When::Named, check: checks::uk_nhs,
        words: &["nhs", "nhs number", NATIONAL] },
];

/// The entries of the table whose words a name has, one bit each.
pub(super) fn named(says: impl Fn(&[&str]) -> bool) -> u32 {
    NUMERIC
        .iter()
        .enumerate()
        .filter(|(_, id)| says(id.words))
        .fold(0, |ids, (bit, _)| ids | 1 << bit)
}

/// Finds numeric ids in a run of digit groups.
pub(super) fn find_numeric(run: &Run<'_>, context: &Context, mut found: impl FnMut(Range<usize>)) {
    let mut first = run.first;
    while first < run.groups.len() {
        match NUMERIC
            .iter()
            .enumerate()
            .find_map(|(bit, id)| id.at(run, first, context.ids & (1 << bit) != 0))
        {
            Some(window) => {
                found(run.span(&window));
                first = window.end;
            }
            None => first += 1,
        }
    }
}

/// Finds ids with letters in a folded text.
pub(super) fn find_lettered(text: &[u8], from: usize, found: impl FnMut(Range<usize>)) {
    letters::find(text, from, found);
}

/// Where an id with letters may have begun that more text behind could complete.
pub(super) fn lettered_alive(text: &[u8], from: usize) -> Option<usize> {
    letters::alive(text, from)
}

impl NumericId {
    /// The window of groups from `first` that is this id.
    fn at(&self, run: &Run<'_>, first: usize, named: bool) -> Option<Range<usize>> {
        self.groupings
            .iter()
            .find_map(|grouping| self.grouped_at(run, first, grouping, named))
            .or_else(|| self.bare_at(run, first, named))
    }

    fn grouped_at(
        &self,
        run: &Run<'_>,
        first: usize,
        grouping: &[usize],
        named: bool,
    ) -> Option<Range<usize>> {
        // Most numbers are told apart by the length of their first group.
        if run.groups[first].len() != *grouping.first()? {
            return None;
        }
        let window = first..first + grouping.len();
        let groups = run.groups.get(window.clone())?;
        let shaped = groups.iter().zip(grouping).all(|(g, len)| g.len() == *len)
            && (first..window.end - 1).all(|i| matches!(run.gap(i), b" " | b"-" | b"." | b"/"));
        if !shaped || !(self.check)(&run.digits::<13>(&window)?) {
            return None;
        }
        self.counts(run, &window, self.grouped, named).then_some(window)
    }

    fn bare_at(&self, run: &Run<'_>, first: usize, named: bool) -> Option<Range<usize>> {
        if !(9..=13).contains(&run.groups[first].len()) {
            return None;
        }
        let window = first..first + 1;
        let digits = run.digits::<13>(&window)?;
        if !(self.check)(&digits) {
            return None;
        }
        self.counts(run, &window, self.bare, named).then_some(window)
    }

    fn counts(&self, run: &Run<'_>, window: &Range<usize>, when: When, named: bool) -> bool {
        let alone = run.isolated(window);
        if when == When::Always && alone {
            return true;
        }
        (alone && named)
            || (run.bounded(window)
                && said_before(run.text, run.groups[window.start].start, self.words))
    }
}
