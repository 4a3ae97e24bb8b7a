//! The whole path with real parts: each module is one promise, each case what a client sees.

#[macro_use]
extern crate interceptor_tests;

mod bad_input;
mod cancel;
mod clock;
mod copy;
mod death;
mod drivers;
mod extended;
mod holds;
mod masking;
mod modes;
mod record;
mod reload;
mod resolution;
mod story;
mod suite;
mod tokens;
mod transport;
mod versions;

use std::time::Duration;

/// How long an answer may take that waits for nobody.
const SOON: Duration = Duration::from_secs(15);

/// Asserts that none of these customers' regulated values stand in a text.
fn assert_masked(text: &str, ids: impl IntoIterator<Item = u32>) {
    // Word by word, since whole tables of text are looked through for thousands of values.
    let words: std::collections::HashSet<&str> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || "@.-".contains(c)))
        .map(|word| word.trim_matches(['.', '-']))
        .collect();
    for id in ids {
        let real = interceptor_tests::data::customer(id);
        for secret in [&real.email, &real.card_number, &real.iban, &real.national_id] {
            assert!(!words.contains(secret.as_str()), "{secret} came through:\n{text:.4000}");
        }
    }
}
