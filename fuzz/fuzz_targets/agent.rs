//! What reaches the agent's helper and the address where tokens are presented: messages of the
//! ssh-agent protocol get an answer, and a proof is one or an error.
#![no_main]

use std::sync::LazyLock;

use interceptor::agent::wire::{Offer, answer};
use interceptor::agent::{AgentKey, Kind};
use interceptor::identity::read_proof;
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<AgentKey> = LazyLock::new(|| {
    let file = std::env::temp_dir().join(format!("fuzz-agent-{}", std::process::id()));
    let key = AgentKey::create(&file, Kind::P256);
    let _ = std::fs::remove_file(&file);
    match key {
        Ok(key) => key,
        Err(why) => panic!("{why}"),
    }
});

fuzz_target!(|data: &[u8]| {
    let offer = Offer { key: &KEY, certificate: None, plain_key: true };
    assert!(!answer(data, offer).is_empty());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = read_proof(text);
    }
});
