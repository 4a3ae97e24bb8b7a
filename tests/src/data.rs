//! The sample database: customers with regulated data, their orders and payments.
//!
//! Every value is computed from its row number, so that a test can ask for the real value of
//! any cell and prove that it did not come through. Card numbers pass Luhn, IBANs pass
//! mod 97, and no number belongs to anybody: card numbers use the issuers' published test
//! prefixes.

use std::fmt::Write;

/// How many customers there are; ids count from 1.
pub const CUSTOMERS: u32 = 1_200;
/// How many orders there are; ids count from 1. Each has one payment.
pub const ORDERS: u32 = 3_000;

/// Tables, roles and rights.
pub const SCHEMA: &str = include_str!("../data/schema.sql");

/// One row of `public.customers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer {
    /// Primary key.
    pub id: u32,
    /// First and last name.
    pub name: String,
    /// Unique.
    pub email: String,
    /// International form with spaces.
    pub phone: String,
    /// Sixteen digits, Luhn-valid.
    pub card_number: String,
    /// German, mod-97-valid.
    pub iban: String,
    /// In the form of a US social security number.
    pub national_id: String,
    /// Free text that sometimes repeats the above.
    pub notes: String,
    /// Time of entry.
    pub created_at: String,
}

const FIRST: [&str; 16] = [
    "Ada", "Björn", "Chidi", "Dolores", "Emil", "Fatima", "Grace", "Hana", "Ivo", "José", "Kaja",
    "Liu", "Maya", "Nils", "Olga", "Priya",
];
const LAST: [&str; 16] = [
    "Almeida", "Brandt", "Costa", "Dvořák", "Eriksen", "Fischer", "García", "Haddad", "Ito",
    "Jansen", "Kowalski", "Lindgren", "Moreau", "Novak", "O'Brien", "Petrov",
];
const ITEMS: [&str; 8] =
    ["lamp", "desk", "chair", "kettle", "bicycle pump", "notebook", "rope, 20 m", "\"Q\" mug"];

/// A number that depends on nothing but its arguments (splitmix64).
fn mix(row: u32, column: u64) -> u64 {
    let mut z = (u64::from(row) << 8 | column).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn pick<'a>(list: &[&'a str], number: u64) -> &'a str {
    list[usize::try_from(number % list.len() as u64).unwrap_or(0)]
}

/// A sixteen-digit card number with a valid Luhn digit.
pub fn card(seed: u64) -> String {
    let prefix = pick(&["411111", "555555", "400000", "222300"], seed);
    let body = format!("{prefix}{:09}", seed / 7 % 1_000_000_000);
    let sum: u32 = body
        .bytes()
        .rev()
        .enumerate()
        .map(|(i, b)| {
            let digit = u32::from(b - b'0');
            match (i % 2 == 0, digit * 2) {
                (true, twice) if twice > 9 => twice - 9,
                (true, twice) => twice,
                (false, _) => digit,
            }
        })
        .sum();
    format!("{body}{}", (10 - sum % 10) % 10)
}

/// A German IBAN with valid check digits.
pub fn iban(seed: u64) -> String {
    let account = format!("{:08}{:010}", seed % 100_000_000, seed / 11 % 10_000_000_000);
    // "DE00" behind the account, letters as numbers: D = 13, E = 14.
    let rest = format!("{account}131400")
        .bytes()
        .fold(0_u64, |rest, b| (rest * 10 + u64::from(b - b'0')) % 97);
    format!("DE{:02}{account}", 98 - rest)
}

/// The customer with this id.
pub fn customer(id: u32) -> Customer {
    let first = pick(&FIRST, mix(id, 1));
    let last = pick(&LAST, mix(id, 2));
    let plain = |s: &str| -> String {
        s.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_lowercase()
    };
    let email = format!("{}.{}{id}@example.com", plain(first), plain(last));
    let phone = format!(
        "+49 {} {:07}",
        pick(&["30", "40", "89", "221"], mix(id, 3)),
        1_000_000 + mix(id, 4) % 8_999_999
    );
    let card_number = card(mix(id, 5));
    let iban = iban(mix(id, 6));
    let national_id = format!(
        "{:03}-{:02}-{:04}",
        100 + mix(id, 7) % 500,
        10 + mix(id, 8) % 89,
        1000 + mix(id, 9) % 8999
    );
    let notes = match mix(id, 10) % 6 {
        0 => format!("Prefers mail to {email}; card on file {card_number}."),
        1 => format!("Called from {phone} about a refund to {iban}"),
        2 => "Returned one lamp,\tbroken.\nNo further contact wanted.".into(),
        3 => format!("ID checked: {national_id}. Ünïcode: žluťoučký kůň 馬"),
        4 => String::new(),
        _ => format!("Order reference 2026-{id:06}, build 4.1.{}", id % 100),
    };
    Customer {
        id,
        name: format!("{first} {last}"),
        email,
        phone,
        card_number,
        iban,
        national_id,
        notes,
        created_at: format!(
            "2025-{:02}-{:02} {:02}:{:02}:00+00",
            1 + mix(id, 11) % 12,
            1 + mix(id, 12) % 28,
            mix(id, 13) % 24,
            mix(id, 14) % 60
        ),
    }
}

/// Every customer.
pub fn customers() -> impl Iterator<Item = Customer> {
    (1..=CUSTOMERS).map(customer)
}

fn order(id: u32) -> String {
    let buyer = 1 + mix(id, 20) % u64::from(CUSTOMERS);
    let cents = 500 + mix(id, 21) % 90_000;
    let status = pick(&["new", "paid", "shipped", "returned"], mix(id, 22));
    let contact = customer(u32::try_from(buyer).unwrap_or(1)).email;
    let items = serde_json::json!({
        "items": [
            {"sku": format!("SKU-{:04}", mix(id, 23) % 10_000), "name": pick(&ITEMS, mix(id, 24)), "count": 1 + mix(id, 25) % 4},
            {"sku": format!("SKU-{:04}", mix(id, 26) % 10_000), "name": pick(&ITEMS, mix(id, 27)), "count": 1},
        ],
        "contact": contact,
        "gift": mix(id, 28).is_multiple_of(5),
    });
    format!(
        "{id}\t{buyer}\t{}.{:02}\t{status}\t{}\t2026-{:02}-{:02} 12:00:00+00\n",
        cents / 100,
        cents % 100,
        escaped(&items.to_string()),
        1 + mix(id, 29) % 10,
        1 + mix(id, 30) % 28,
    )
}

fn payment(id: u32) -> String {
    let buyer = 1 + mix(id, 20) % u64::from(CUSTOMERS);
    let cents = 500 + mix(id, 21) % 90_000;
    format!(
        "{id}\t{id}\t{}\t{}.{:02}\t2026-{:02}-{:02} 12:30:00+00\n",
        customer(u32::try_from(buyer).unwrap_or(1)).card_number,
        cents / 100,
        cents % 100,
        1 + mix(id, 29) % 10,
        1 + mix(id, 30) % 28,
    )
}

/// A value in COPY's text form.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n")
}

/// The whole sample database as a script for psql, to be run as superuser in `shop`.
pub fn script() -> String {
    let mut sql = String::from(SCHEMA);
    sql.push_str("COPY public.customers FROM stdin;\n");
    for c in customers() {
        let _ = writeln!(
            sql,
            "{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            c.id,
            escaped(&c.name),
            c.email,
            c.phone,
            c.card_number,
            c.iban,
            c.national_id,
            escaped(&c.notes),
            c.created_at
        );
    }
    sql.push_str("\\.\nCOPY public.orders FROM stdin;\n");
    (1..=ORDERS).for_each(|id| sql.push_str(&order(id)));
    sql.push_str("\\.\nCOPY public.payments FROM stdin;\n");
    (1..=ORDERS).for_each(|id| sql.push_str(&payment(id)));
    sql.push_str("\\.\n");
    for (table, next) in
        [("customers", CUSTOMERS + 1), ("orders", ORDERS + 1), ("payments", ORDERS + 1)]
    {
        let _ = writeln!(sql, "ALTER TABLE public.{table} ALTER id RESTART WITH {next};");
    }
    sql.push_str("ANALYZE;\n");
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    fn luhn(number: &str) -> bool {
        let sum: u32 = number
            .bytes()
            .rev()
            .enumerate()
            .map(|(i, b)| {
                let digit = u32::from(b - b'0');
                if i % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
            })
            .sum();
        sum.is_multiple_of(10)
    }

    fn mod97(iban: &str) -> bool {
        let turned = format!("{}{}", &iban[4..], &iban[..4]);
        let rest = turned.chars().fold(0_u64, |rest, c| {
            let n = u64::from(c.to_digit(36).unwrap());
            (rest * if n > 9 { 100 } else { 10 } + n) % 97
        });
        rest == 1
    }

    #[test]
    fn regulated_values_are_valid_and_unique() {
        assert!(luhn("4111111111111111") && mod97("DE89370400440532013000"));
        let all: Vec<_> = customers().collect();
        let mut emails: Vec<_> = all.iter().map(|c| &c.email).collect();
        emails.sort();
        emails.dedup();
        assert_eq!(emails.len(), all.len());
        for c in all {
            assert!(luhn(&c.card_number), "{c:?}");
            assert!(mod97(&c.iban) && c.iban.len() == 22, "{c:?}");
        }
    }

    #[test]
    fn the_same_script_every_time() {
        assert_eq!(script(), script());
        assert!(customers().any(|c| c.notes.contains(&c.card_number)));
    }
}
