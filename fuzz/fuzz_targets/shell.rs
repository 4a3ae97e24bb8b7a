//! The reading of commands: any bytes are facts, quickly, and what is unseen passes no rule about
//! programs.
#![no_main]

use std::sync::LazyLock;

use interceptor::policy::ssh::{LoginShell, ShellAnalyzer, SshClass};
use libfuzzer_sys::fuzz_target;

static READER: LazyLock<ShellAnalyzer> = LazyLock::new(|| {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Where the grammar itself gives up, the command is refused; that is looked at below.
        if !panic.location().is_some_and(|at| at.file().contains("brush-parser")) {
            abort(panic);
        }
    }));
    ShellAnalyzer::new(1)
});

fuzz_target!(|data: &[u8]| {
    let facts = READER.exec_blocking(data, LoginShell::Posix);
    assert!(facts.class != SshClass::Unknown || facts.unseen.is_some());
    // A second reading is the same, and a name that is not known is never called seen.
    assert!(facts.unseen.is_some() || facts.programs.iter().all(|p| p.name.literal));
    assert_eq!(facts, READER.exec_blocking(data, LoginShell::Posix));
});
