//! Facts of requests that are no commands.

use super::facts::{Destination, FileOp, FileUse, Place, SshClass, SshFacts};
use super::shell::variables;

/// Longest text of a request that is kept whole.
const MAX_SHOWN: usize = 4096;

/// In which direction a forward leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardKind {
    /// The host connects for the agent.
    Local,
    /// The host listens for the agent.
    Remote,
}

/// A login shell.
pub fn shell_request() -> SshFacts {
    SshFacts::new(SshClass::Shell, "login shell")
}

/// A subsystem. What runs in it cannot be seen, nor masked; but sftp, whose operations are asked
/// for one by one, so that to rules its opening is an sftp request about no file.
pub fn subsystem(name: &str) -> SshFacts {
    let facts = SshFacts::new(SshClass::Subsystem, shown(name));
    SshFacts { binary: !facts.opens_sftp(), ..facts }
}

/// One operation of the sftp subsystem, with the paths it names as the server resolved them.
pub fn sftp(op: FileOp, paths: &[&[u8]]) -> SshFacts {
    let mut files: Vec<FileUse> = paths.iter().map(|path| file(op, path)).collect();
    let words: Vec<String> = files.iter().map(|f| f.written.clone()).collect();
    match (op, paths) {
        (FileOp::Rename, [_, to]) => files.push(carried(op, to)),
        (FileOp::Link, [..]) => files.extend(paths.iter().map(|path| carried(op, path))),
        _ => {}
    }
    let text = format!("{op} {}", words.join(" "));
    let unseen = files.is_empty().then(|| format!("what {op} is about"));
    SshFacts { files, unseen, ..SshFacts::new(SshClass::Sftp, text) }
}

/// An operation as agents ask for it, by all that it makes possible: what `sftp` on a connection
/// is judged by, where the server has said what is a link.
pub fn sftp_operation(op: FileOp, paths: &[&[u8]]) -> SshFacts {
    let mut all = sftp(op, paths);
    let also: &[(usize, FileOp)] = match (op, paths.len()) {
        // The content goes on under another name.
        (FileOp::Rename, 2) => &[(1, FileOp::Write)],
        // Under the new name the old one may be read and written.
        (FileOp::Link, 2) => &[(0, FileOp::Read), (0, FileOp::Write), (1, FileOp::Write)],
        _ => &[],
    };
    all.files.extend(also.iter().filter_map(|(at, op)| Some(file(*op, paths.get(*at)?))));
    // What a file shows cannot be masked on its way.
    all.binary = matches!(op, FileOp::Read | FileOp::Rename | FileOp::Link);
    all
}

/// What comes along when a directory, or a link to one, gets this name, or a link leads there.
pub fn carried(op: FileOp, path: &[u8]) -> FileUse {
    let file = file(op, path);
    let place = match file.place {
        Place::At(path) => Place::Under(path),
        Place::Home(path) => Place::UnderHome(path),
        place => place,
    };
    FileUse { place, carried: true, ..file }
}

fn file(op: FileOp, path: &[u8]) -> FileUse {
    let place = match std::str::from_utf8(path) {
        Ok(text) if !text.contains('\0') => place(text),
        _ => Place::Unknown,
    };
    // A shape must tell any two paths apart, so what is not text is spelled out.
    let written = match std::str::from_utf8(path) {
        Ok(text) => quoted(text),
        Err(_) => format!("bytes:{}", path.escape_ascii()),
    };
    FileUse { op, place, written, implied: false, announced: false, carried: false }
}

/// Where a path leads that the server will resolve from the home directory.
pub(super) fn place(path: &str) -> Place {
    let absolute = path.starts_with('/');
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // What lies above a link is not what lies above its target.
            ".." => return Place::Unknown,
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if !absolute {
        return Place::Home(joined);
    }
    if aliased(&parts) { Place::Unknown } else { Place::At(format!("/{joined}")) }
}

/// Paths of the system that are other names of any file.
fn aliased(parts: &[&str]) -> bool {
    match parts {
        ["dev", "fd", ..] => true,
        ["proc", of, ..] => of.ends_with("self") || of.bytes().all(|b| b.is_ascii_digit()),
        _ => false,
    }
}

/// A forward, of either direction.
pub fn forward(kind: ForwardKind, destination: Destination) -> SshFacts {
    let class = match kind {
        ForwardKind::Local => SshClass::Forward,
        ForwardKind::Remote => SshClass::RemoteForward,
    };
    let facts = SshFacts::new(class, shown(&destination.to_string()));
    SshFacts { destination: Some(destination), binary: true, ..facts }
}

/// An environment variable. Its value is not policy's to see.
pub fn env(name: &str) -> SshFacts {
    let unseen =
        variables::dangerous(name).then(|| format!("what {} makes programs do", shown(name)));
    SshFacts {
        variables: vec![name.to_owned()],
        unseen,
        ..SshFacts::new(SshClass::Env, shown(name))
    }
}

/// A terminal.
pub fn pty(term: &str) -> SshFacts {
    SshFacts::new(SshClass::Pty, format!("terminal {}", shown(term)))
}

/// X11 forwarding. What programs draw is no text.
pub fn x11() -> SshFacts {
    SshFacts { binary: true, ..SshFacts::new(SshClass::X11, "X11 forwarding") }
}

/// Forwarding of the agent's keys. What programs have signed can be anything.
pub fn agent_forward() -> SshFacts {
    SshFacts { binary: true, ..SshFacts::new(SshClass::AgentForward, "agent forwarding") }
}

/// A request that is none of the known ones.
pub fn unknown(what: &str) -> SshFacts {
    SshFacts {
        unseen: Some("what this request asks for".into()),
        ..SshFacts::new(SshClass::Unknown, shown(what))
    }
}

/// A path or name as a record shows it, with its edges visible.
fn quoted(text: &str) -> String {
    let plain =
        !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"');
    if plain { text.to_owned() } else { format!("{text:?}") }
}

fn shown(text: &str) -> String {
    let cut = text.floor_char_boundary(MAX_SHOWN.min(text.len()));
    quoted(&text[..cut])
}
