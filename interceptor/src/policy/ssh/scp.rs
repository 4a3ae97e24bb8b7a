//! scp's far end, as its command says it: what the relay follows name by name.

use super::facts::{SshClass, SshFacts};

/// A command that is scp's far end and nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScpEnd {
    /// It receives: `scp -t TARGET`. Else it sends: `scp -f SOURCE…`.
    pub upload: bool,
    /// `-d`: the target must be a directory.
    pub directory: bool,
    /// The one target, or the sources.
    pub paths: Vec<String>,
}

impl ScpEnd {
    /// `None` when the command is more than that, or not seen to be that.
    pub fn of(facts: &SshFacts) -> Option<Self> {
        let [program] = facts.programs.as_slice() else { return None };
        if facts.class != SshClass::Scp || facts.unseen.is_some() || program.base() != "scp" {
            return None;
        }
        let mut words: Vec<String> = Vec::new();
        for word in &program.args {
            words.push(word.known()?.to_owned());
        }
        let options = words.iter().take_while(|w| w.starts_with('-') && *w != "--");
        let flags: String = options.clone().flat_map(|w| w.chars().skip(1)).collect();
        let mut rest = words.iter().skip(options.count()).peekable();
        rest.next_if(|w| *w == "--");
        let paths: Vec<String> = rest.cloned().collect();
        let directory = flags.contains('d');
        match (flags.contains('t'), flags.contains('f'), paths.as_slice()) {
            (true, false, [_]) => Some(Self { upload: true, directory, paths }),
            (false, true, [_, ..]) => Some(Self { upload: false, directory, paths }),
            _ => None,
        }
    }
}
