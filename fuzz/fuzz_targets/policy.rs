//! The policy loader: any text is a set of rules or a list of errors.
#![no_main]

use interceptor::policy::{PolicySet, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = PolicySet::from_sources(&[Source { name: "fuzz.toml".into(), text: text.into() }]);
});
