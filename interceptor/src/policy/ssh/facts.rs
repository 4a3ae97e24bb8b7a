//! What a rule can see of one SSH request.
//!
//! The same promise as for SQL: whatever could not be determined says so ([`SshFacts::unseen`],
//! an [`Argument`] that is not literal, a [`Place`] that is not known), because a fact that is
//! silently missing would be a fact no rule can deny.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::home::Home;

/// What kind of request it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum SshClass {
    /// A command.
    Exec,
    /// A login shell.
    Shell,
    /// One operation of the sftp subsystem.
    Sftp,
    /// A command that is scp's far end.
    Scp,
    /// A command that is rsync's far end.
    Rsync,
    /// A subsystem other than sftp.
    Subsystem,
    /// A connection the host makes for the agent: `ssh -L`, `-W`, `-J`.
    Forward,
    /// A port or socket the host listens on for the agent: `ssh -R`.
    RemoteForward,
    /// X11 forwarding.
    X11,
    /// Forwarding of the agent's own keys.
    AgentForward,
    /// An environment variable.
    Env,
    /// A terminal.
    Pty,
    /// Not known: allowed only by a rule that names it.
    #[default]
    Unknown,
}

impl SshClass {
    /// Every class.
    pub const ALL: [Self; 13] = [
        Self::Exec,
        Self::Shell,
        Self::Sftp,
        Self::Scp,
        Self::Rsync,
        Self::Subsystem,
        Self::Forward,
        Self::RemoteForward,
        Self::X11,
        Self::AgentForward,
        Self::Env,
        Self::Pty,
        Self::Unknown,
    ];

    /// The name rules and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Shell => "shell",
            Self::Sftp => "sftp",
            Self::Scp => "scp",
            Self::Rsync => "rsync",
            Self::Subsystem => "subsystem",
            Self::Forward => "forward",
            Self::RemoteForward => "remote-forward",
            Self::X11 => "x11",
            Self::AgentForward => "agent-forward",
            Self::Env => "env",
            Self::Pty => "pty",
            Self::Unknown => "unknown",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }

    pub(in crate::policy) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for SshClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One word of a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Argument {
    /// What the program is given, when it is known; else the word as it was written.
    pub text: String,
    /// Whether it is known to the last character: no expansion, no glob.
    pub literal: bool,
    /// Whether it is one word after all expansions: not nothing, not several.
    pub single: bool,
}

impl Argument {
    /// A word that is known.
    pub fn literal(text: impl Into<String>) -> Self {
        Self { text: text.into(), literal: true, single: true }
    }

    /// A word, or words, with a part that is not known.
    pub fn unknown(text: impl Into<String>) -> Self {
        Self { text: text.into(), literal: false, single: false }
    }

    /// The text, when it is known.
    pub fn known(&self) -> Option<&str> {
        self.literal.then_some(&*self.text)
    }
}

/// One program that a command starts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Its name or path.
    pub name: Argument,
    /// What it is given; of a program that runs another (`sudo`, `xargs`) only its own part.
    pub args: Vec<Argument>,
    /// Through which programs it is run, the outermost first.
    pub via: Vec<String>,
    /// It is only a guess at what an opaque program runs: for rules that deny, no rule need
    /// allow it.
    #[serde(default)]
    pub guessed: bool,
}

impl Program {
    /// The last part of its path; empty where the name is not known.
    pub fn base(&self) -> &str {
        self.name.known().map_or("", |name| name.rsplit('/').next().unwrap_or(name))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name.text)?;
        self.via.last().map_or(Ok(()), |via| write!(f, " (by {via})"))
    }
}

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileOp {
    /// Its content is read.
    Read,
    /// Its content is replaced, or it is made.
    Write,
    /// Its content is added to.
    Append,
    /// It is removed.
    Remove,
    /// It gets another name; both names are uses.
    Rename,
    /// The names in a directory are read.
    List,
    /// Its attributes are read.
    Stat,
    /// Its attributes are changed.
    Setstat,
    /// It is made as a directory.
    Mkdir,
    /// It is removed as a directory.
    Rmdir,
    /// It becomes a link, hard or symbolic, or is what a link points to.
    Link,
    /// What a link points to is read.
    Readlink,
    /// Its canonical name is asked for.
    Realpath,
}

impl FileOp {
    /// Every operation.
    pub const ALL: [Self; 13] = [
        Self::Read,
        Self::Write,
        Self::Append,
        Self::Remove,
        Self::Rename,
        Self::List,
        Self::Stat,
        Self::Setstat,
        Self::Mkdir,
        Self::Rmdir,
        Self::Link,
        Self::Readlink,
        Self::Realpath,
    ];

    /// The name rules and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Append => "append",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::List => "list",
            Self::Stat => "stat",
            Self::Setstat => "setstat",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Link => "link",
            Self::Readlink => "readlink",
            Self::Realpath => "realpath",
        }
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }

    pub(in crate::policy) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for FileOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// At this absolute path.
    At(String),
    /// At this path, or below it under a name that is not known.
    Under(String),
    /// At this path seen from the user's home directory; empty is that directory itself.
    Home(String),
    /// The same, or below it under a name that is not known.
    UnderHome(String),
    /// Not known.
    Unknown,
}

/// One use of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileUse {
    /// What is done.
    pub op: FileOp,
    /// Where.
    pub place: Place,
    /// The path as it was written.
    pub written: String,
    /// Whether the program's own arguments say so, and nothing beside the program does it.
    pub implied: bool,
    /// Whether every name below the place is judged by itself before it is used.
    #[serde(default)]
    pub announced: bool,
    /// Whether it is only about what comes along: what lies in a directory that gets this name,
    /// or below what a link leads to. For rules that deny; no rule need allow it.
    #[serde(default)]
    pub carried: bool,
}

impl fmt::Display for FileUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::At(path) => write!(f, "{} {path}", self.op),
            Place::Under(path) => write!(f, "{} {path} and below", self.op),
            _ => write!(f, "{} {}", self.op, self.written),
        }
    }
}

/// The far end of a forward.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// A host, by name or address, and a port.
    Tcp {
        /// The host.
        host: String,
        /// The port.
        port: u32,
    },
    /// A Unix socket.
    Unix(String),
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// What is known of one SSH request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SshFacts {
    /// What it is.
    pub class: SshClass,
    /// What it is besides: an scp inside a longer command.
    pub also: Vec<SshClass>,
    /// Every program it starts, through whatever other program.
    pub programs: Vec<Program>,
    /// Files it uses by itself: redirections, transfers.
    pub files: Vec<FileUse>,
    /// The far end of a forward.
    pub destination: Option<Destination>,
    /// The home directory of whom it runs as, where that is known.
    pub home: Option<Home>,
    /// Variables it sets for programs.
    pub variables: Vec<String>,
    /// Its output is not text, and masking would corrupt it.
    pub binary: bool,
    /// What about it cannot be seen, in words for a human.
    pub unseen: Option<String>,
    /// The request in words: the command, an operation with its path.
    pub text: Arc<str>,
}

impl SshFacts {
    /// Facts of a class with a text and nothing else.
    pub fn new(class: SshClass, text: impl Into<Arc<str>>) -> Self {
        Self { class, text: text.into(), ..Self::default() }
    }

    /// All its classes, the main one first.
    pub fn classes(&self) -> impl Iterator<Item = SshClass> + '_ {
        std::iter::once(self.class).chain(self.also.iter().copied())
    }

    /// Says from which home directory its paths are seen, and so where they lead. Where something
    /// is unseen, it may go elsewhere first: then they stay as they were.
    pub fn at_home(&mut self, home: &Home) {
        if self.unseen.is_none() {
            for file in &mut self.files {
                file.place = home.settle(std::mem::replace(&mut file.place, Place::Unknown));
            }
        }
        self.home = Some(home.clone());
    }

    /// Says that every name below the places it names will be judged by itself before it is used.
    /// Whoever calls this sees to it.
    pub fn announce(&mut self) {
        for file in &mut self.files {
            file.announced = true;
        }
    }

    /// Whether it opens the sftp subsystem, in which every operation is a request of its own.
    pub fn opens_sftp(&self) -> bool {
        self.class == SshClass::Subsystem && &*self.text == "sftp"
    }

    /// Bits of all its classes, as rules count them.
    pub(in crate::policy) fn class_bits(&self) -> u32 {
        if self.opens_sftp() {
            return SshClass::Sftp.bit();
        }
        self.classes().fold(0, |bits, c| bits | c.bit())
    }

    /// What a grant is about: this very text. Two commands that look alike to a human need not
    /// do alike, so nothing is left open.
    pub fn shape(&self) -> String {
        format!("{} {}", self.class, self.text)
    }
}
