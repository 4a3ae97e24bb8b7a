//! What reaches the agent's helper and the address where tokens are presented: messages of the
//! ssh-agent protocol get an answer, and a proof is one or an error.
#![no_main]

use std::sync::LazyLock;

use interceptor::agent::wire::{Offer, answer};
use interceptor::agent::AgentKey;
use interceptor::identity::read_proof;
use libfuzzer_sys::fuzz_target;

/// Made for this target and for nothing else.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgkYe049SXVoidsxVx
qhd/Z2nNwy4NxQFpDTXMufAXLoyhRANCAAQuTa2ZjQlK7VFN+QG2bg584MQA2Bjq
swhD7DbPjEZuK5jQv1a792zsmLne7K9CPGzzoGtcGaDOGDKdGsZ3pXZJ
-----END PRIVATE KEY-----
";

static KEY_READ: LazyLock<AgentKey> = LazyLock::new(|| match KEY.parse() {
    Ok(key) => key,
    Err(why) => panic!("{why}"),
});

fuzz_target!(|data: &[u8]| {
    let offer = Offer { key: &KEY_READ, certificate: None, plain_key: true };
    assert!(!answer(data, offer).is_empty());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = read_proof(text);
    }
});
