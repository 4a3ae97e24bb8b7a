//! Checksums and structure of numeric ids, over digit values.

use super::super::digits::{luhn, number};

fn day_of_month(month: u64, day: u64) -> bool {
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 29,
        _ => return false,
    };
    (1..=days).contains(&day)
}

fn weighted(digits: &[u8], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(d, w)| u32::from(*d) * w).sum()
}

/// Area, group and serial as the Social Security Administration issues them, or an ITIN.
pub(super) fn us_ssn(digits: &[u8]) -> bool {
    if digits.len() != 9 {
        return false;
    }
    let (area, group, serial) = (number(&digits[..3]), number(&digits[3..5]), number(&digits[5..]));
    if area >= 900 {
        return matches!(group, 50..=65 | 70..=88 | 90..=92 | 94..=99);
    }
    area != 0 && area != 666 && group != 0 && serial != 0
}

/// ISO 7064 mod 11,10; of the first ten digits exactly one stands twice or thrice.
pub(super) fn de_tax_id(digits: &[u8]) -> bool {
    if digits.len() != 11 || digits[0] == 0 {
        return false;
    }
    let (body, check) = digits.split_at(10);
    let mut counts = [0u8; 10];
    for d in body {
        counts[usize::from(*d)] += 1;
    }
    let repeated: Vec<u8> = counts.iter().copied().filter(|n| *n > 1).collect();
    let thrice_in_a_row = body.windows(3).any(|w| w[0] == w[1] && w[1] == w[2]);
    if !matches!(repeated[..], [2 | 3]) || thrice_in_a_row {
        return false;
    }
    let product = body.iter().fold(10u32, |product, d| {
        let sum = match (u32::from(*d) + product) % 10 {
            0 => 10,
            sum => sum,
        };
        sum * 2 % 11
    });
    (11 - product) % 10 == u32::from(check[0])
}

/// The eleven test.
pub(super) fn nl_bsn(digits: &[u8]) -> bool {
    digits.len() == 9
        && digits.iter().any(|d| *d != 0)
        && (weighted(&digits[..8], &[9, 8, 7, 6, 5, 4, 3, 2]) + 11 * 9 - u32::from(digits[8]))
            .is_multiple_of(11)
}

/// Date of birth (the century in the month) and weighted sum.
pub(super) fn pl_pesel(digits: &[u8]) -> bool {
    if digits.len() != 11 {
        return false;
    }
    let month = number(&digits[2..4]);
    let month = if month > 20 { month - 20 } else { month };
    day_of_month(month, number(&digits[4..6]))
        && (weighted(&digits[..10], &[1, 3, 7, 9, 1, 3, 7, 9, 1, 3]) + u32::from(digits[10]))
            .is_multiple_of(10)
}

/// Ten digits, or twelve with the century: date of birth (day plus 60 for coordination
/// numbers), Luhn over the last ten.
pub(super) fn se_personnummer(digits: &[u8]) -> bool {
    let ten = match digits.len() {
        10 => digits,
        12 if (18..=20).contains(&number(&digits[..2])) => &digits[2..],
        _ => return false,
    };
    let day = number(&ten[4..6]);
    let day = if day > 60 { day - 60 } else { day };
    day_of_month(number(&ten[2..4]), day) && luhn(ten)
}

/// Only the form with century.
pub(super) fn se_personnummer_long(digits: &[u8]) -> bool {
    digits.len() == 12 && se_personnummer(digits)
}

/// Date of birth; the old modulus no longer holds for all.
pub(super) fn dk_cpr(digits: &[u8]) -> bool {
    digits.len() == 10 && day_of_month(number(&digits[2..4]), number(&digits[..2]))
}

/// EAN-13 that begins with the country code 756.
pub(super) fn ch_ahv(digits: &[u8]) -> bool {
    digits.len() == 13
        && digits[..3] == [7, 5, 6]
        && (weighted(&digits[..12], &[1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3]) + u32::from(digits[12]))
            .is_multiple_of(10)
}

/// Date of birth, mod 97 (with a leading 2 for births from 2000).
pub(super) fn be_national(digits: &[u8]) -> bool {
    if digits.len() != 11 || !day_of_month(number(&digits[2..4]), number(&digits[4..6])) {
        return false;
    }
    let (body, check) = (number(&digits[..9]), number(&digits[9..]));
    check == 97 - body % 97 || check == 97 - (body + 2_000_000_000) % 97
}

/// Two check digits mod 11; not all the same digit.
pub(super) fn br_cpf(digits: &[u8]) -> bool {
    if digits.len() != 11 || digits.iter().all(|d| *d == digits[0]) {
        return false;
    }
    let check = |len: u32| {
        let sum: u32 = digits.iter().zip((2..len + 2).rev()).map(|(d, w)| u32::from(*d) * w).sum();
        match sum * 10 % 11 {
            10 => 0,
            rest => rest,
        }
    };
    check(9) == u32::from(digits[9]) && check(10) == u32::from(digits[10])
}

/// Luhn; 0 and 8 are not issued.
pub(super) fn ca_sin(digits: &[u8]) -> bool {
    digits.len() == 9 && !matches!(digits[0], 0 | 8) && luhn(digits)
}

/// Verhoeff over twelve digits that begin with 2 to 9.
pub(super) fn in_aadhaar(digits: &[u8]) -> bool {
    digits.len() == 12 && digits[0] >= 2 && verhoeff(digits)
}

/// Mod 11.
pub(super) fn uk_nhs(digits: &[u8]) -> bool {
    if digits.len() != 10 {
        return false;
    }
    let check = (11 - weighted(&digits[..9], &[10, 9, 8, 7, 6, 5, 4, 3, 2]) % 11) % 11;
    check == u32::from(digits[9])
}

/// The dihedral group of order ten, with its permutation applied by position.
fn verhoeff(digits: &[u8]) -> bool {
    const PERMUTATION: [u8; 10] = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4];
    let multiply = |a: u8, b: u8| match (a < 5, b < 5) {
        (true, true) => (a + b) % 5,
        (true, false) => (a + (b - 5)) % 5 + 5,
        (false, true) => (a - 5 + 5 - b) % 5 + 5,
        (false, false) => (a + 5 - b) % 5,
    };
    let sum = digits.iter().rev().enumerate().fold(0u8, |sum, (position, digit)| {
        let moved = (0..position % 8).fold(*digit, |d, _| PERMUTATION[usize::from(d)]);
        multiply(sum, moved)
    });
    sum == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(text: &str) -> Vec<u8> {
        text.bytes().map(|b| b - b'0').collect()
    }

    #[test]
    fn one_wrong_digit_is_noticed() {
        type Check = fn(&[u8]) -> bool;
        let checks: &[(&str, Check)] = &[
            ("44051401359", pl_pesel),
            ("8112189876", se_personnummer),
            ("198112189876", se_personnummer_long),
            ("7569217076985", ch_ahv),
            ("111222333", nl_bsn),
            ("52998224725", br_cpf),
            ("046454286", |n| luhn(n) && n.len() == 9),
            ("9434765919", uk_nhs),
            ("234123412346", in_aadhaar),
            ("85073003328", be_national),
            ("86095742719", de_tax_id),
        ];
        for (valid, check) in checks {
            let digits = d(valid);
            assert!(check(&digits), "{valid}");
            let last = digits.len() - 1;
            for add in 1..10 {
                let mut wrong = digits.clone();
                wrong[last] = (wrong[last] + add) % 10;
                assert!(!check(&wrong), "{wrong:?}");
            }
        }
    }
}
