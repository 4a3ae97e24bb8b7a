//! The startup packet: bytes that nobody has vouched for.
#![no_main]

use interceptor::wire::postgres::startup;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((code, body)) = data.split_first_chunk::<4>() else { return };
    let _ = startup::packet(u32::from_be_bytes(*code), body);
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = interceptor::wire::postgres::options(text);
    }
});
