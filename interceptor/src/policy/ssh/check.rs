//! What a rule about SSH is allowed to say but probably does not mean.

use super::facts::SshClass;
use super::rules::{NAMED_ONLY, SshMatchers};

/// Programs that run whatever they are told.
const LIMITLESS: &[&str] = &[
    "python", "python3", "perl", "ruby", "node", "php", "lua", "docker", "podman", "kubectl",
    "make", "npm", "npx", "pip", "pip3", "apt", "apt-get", "dpkg", "cargo", "go", "ansible", "ssh",
    "gdb", "vim", "vi", "less", "man", "tar", "find", "xargs", "awk", "sed", "env", "sudo",
];

/// Looks at a rule that lets through.
pub(in crate::policy) fn say_unsafe(m: &SshMatchers, by_text: bool, say: &mut impl FnMut(String)) {
    let Some(first) = m.key() else { return };
    let covers = m.request.map_or(0, |r| r.covers());
    if by_text && !m.names_programs() && covers & SshClass::Exec.bit() != 0 {
        say("allows commands by text alone, which says little of what they run; add `programs`"
            .into());
    }
    let interpreter = m.programs.iter().flatten().find(|p| LIMITLESS.contains(&p.as_str()));
    if let Some(program) = interpreter.filter(|_| m.arguments.is_none()) {
        say(format!(
            "{:?} runs whatever its words say; name its `arguments` too",
            program.as_str()
        ));
    }
    if let Some(path) = m.paths.iter().flatten().find(|p| p.as_str().starts_with('~')) {
        say(format!(
            "{:?} never allows: whose home it is, is not known; write the whole path",
            path.as_str()
        ));
    }
    if covers & SshClass::Shell.bit() != 0 {
        say("allows a shell, in which nothing that is typed is judged".into());
    }
    let named = |bit: u32| covers & bit != 0;
    if m.destinations.is_some() && !named(SshClass::Forward.bit() | SshClass::RemoteForward.bit()) {
        say("names destinations and no request they go with; add request = \"forward\"".into());
    } else if m.destinations.is_none() && named(SshClass::Forward.bit()) {
        say("allows forwards to everywhere; add `destinations`".into());
    } else if m.destinations.is_none() && named(SshClass::RemoteForward.bit()) {
        say("lets the host listen everywhere; add `destinations`".into());
    }
    if m.request.is_some_and(|r| r.covers() & !NAMED_ONLY == 0) && m.names_programs() {
        say(format!("`{first}` names no request that has programs"));
    }
}
