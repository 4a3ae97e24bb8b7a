//! The reading of commands: any bytes are facts, quickly, and what is unseen passes no rule about
//! programs.
#![no_main]

use std::sync::LazyLock;

use interceptor::policy::ssh::{LoginShell, ShellAnalyzer, SshClass};
use libfuzzer_sys::fuzz_target;

static READER: LazyLock<ShellAnalyzer> = LazyLock::new(|| ShellAnalyzer::new(1));

fuzz_target!(|data: &[u8]| {
    let facts = READER.exec_blocking(data, LoginShell::Posix);
    assert!(facts.class != SshClass::Unknown || facts.unseen.is_some());
    // A second reading is the same, and a name that is not known is never called seen.
    assert!(facts.unseen.is_some() || facts.programs.iter().all(|p| p.name.literal));
    assert_eq!(facts, READER.exec_blocking(data, LoginShell::Posix));
});
