//! The file protocols behind one face: what passes, what is to be judged, what was transferred.

use std::borrow::Cow;

use bytes::Bytes;

use super::scp::{self, Entry, Watcher};
use super::sftp::{self, Decision, Direction, Guard, Limits, Operation, Touch, Verb};
use crate::policy::ssh::{self, FileOp, ScpEnd};
use crate::policy::{SshClass, SshFacts};

/// A file protocol that runs on a channel.
#[derive(Debug)]
pub enum Machine {
    /// The sftp subsystem.
    Sftp(Box<Guard>),
    /// The old protocol of scp.
    Scp(Box<Watcher>),
}

/// Names a question.
#[derive(Debug, Clone, Copy)]
pub enum Ticket {
    /// Of sftp.
    Sftp(sftp::Ticket),
    /// Of scp.
    Scp(scp::Ticket),
}

/// What is to be judged.
#[derive(Debug)]
pub struct Asked {
    /// Names the question.
    pub ticket: Ticket,
    /// The request.
    pub facts: SshFacts,
    /// The file whose transfer it begins.
    pub opens: Option<String>,
}

/// A transfer that ended.
#[derive(Debug)]
pub struct Done {
    /// The path that was judged.
    pub path: String,
    /// `read` or `write`.
    pub op: Cow<'static, str>,
    /// Bytes that passed.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: [u8; 32],
    /// They are the whole file.
    pub complete: bool,
}

/// What is to be done now.
#[derive(Debug)]
pub enum Step {
    /// Send this to the server.
    ToServer(Bytes),
    /// Send this to the agent.
    ToAgent(Bytes),
    /// Ask policy.
    Judge(Asked),
    /// Record this.
    Done(Done),
}

impl Machine {
    /// For the sftp subsystem.
    pub fn sftp() -> Self {
        Self::Sftp(Box::new(Guard::new(Limits::default())))
    }

    /// For a command that is nothing but scp's far end; `None` when it is more than that.
    pub fn scp(facts: &SshFacts) -> Option<Self> {
        let end = ScpEnd::of(facts)?;
        let watcher = match (end.upload, end.paths.as_slice()) {
            (true, [target]) => Watcher::upload(target.clone(), end.directory),
            (true, _) => return None,
            (false, _) => Watcher::download(end.paths),
        };
        Some(Self::Scp(Box::new(watcher)))
    }

    /// Whether every name that the agent sends is judged before it is used.
    pub fn judges_uploads(&self) -> bool {
        match self {
            Self::Sftp(_) => true,
            Self::Scp(watcher) => watcher.is_upload(),
        }
    }

    /// The agent sent bytes. The error ends the channel.
    pub fn take_agent(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::Sftp(guard) => guard.from_agent(bytes).map_err(|e| e.to_string()),
            Self::Scp(watcher) => watcher.from_agent(bytes).map_err(|e| e.to_string()),
        }
    }

    /// The server's program wrote bytes. The error ends the channel.
    pub fn take_server(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::Sftp(guard) => guard.from_server(bytes).map_err(|e| e.to_string()),
            Self::Scp(watcher) => watcher.from_server(bytes).map_err(|e| e.to_string()),
        }
    }

    /// No bytes should be taken from the agent for now.
    pub fn agent_is_full(&self) -> bool {
        match self {
            Self::Sftp(guard) => guard.is_full(),
            Self::Scp(watcher) => watcher.agent_is_full(),
        }
    }

    /// No bytes should be taken from the server for now.
    pub fn server_is_full(&self) -> bool {
        match self {
            Self::Sftp(_) => false,
            Self::Scp(watcher) => watcher.server_is_full(),
        }
    }

    /// Answers a question. The error ends the channel.
    pub fn decide(&mut self, ticket: Ticket, decision: Decision) -> Result<(), String> {
        match (self, ticket) {
            (Self::Sftp(guard), Ticket::Sftp(ticket)) => {
                guard.decide(ticket, decision).map_err(|e| e.to_string())
            }
            (Self::Scp(watcher), Ticket::Scp(ticket)) => {
                watcher.decide(ticket, decision).map_err(|e| e.to_string())
            }
            _ => Ok(()),
        }
    }

    /// The channel ends.
    pub fn end(&mut self) {
        match self {
            Self::Sftp(guard) => guard.end(),
            Self::Scp(watcher) => watcher.end(),
        }
    }

    /// The next step, until `None`.
    pub fn step(&mut self) -> Option<Step> {
        match self {
            Self::Sftp(guard) => Some(match guard.next()? {
                sftp::Step::ToServer(bytes) => Step::ToServer(bytes),
                sftp::Step::ToAgent(bytes) => Step::ToAgent(bytes),
                sftp::Step::Judge { ticket, operation } => Step::Judge(Asked {
                    ticket: Ticket::Sftp(ticket),
                    facts: operation_facts(&operation),
                    opens: (operation.verb == Verb::Open)
                        .then(|| operation.places.first().map(|p| p.path.clone()))
                        .flatten(),
                }),
                sftp::Step::Ended(t) => Step::Done(Done {
                    path: t.path,
                    op: direction(t.direction),
                    bytes: t.bytes,
                    sha256: t.sha256,
                    complete: t.complete,
                }),
            }),
            Self::Scp(watcher) => Some(match watcher.next()? {
                scp::Step::ToServer(bytes) => Step::ToServer(bytes),
                scp::Step::ToAgent(bytes) => Step::ToAgent(bytes),
                scp::Step::Judge { ticket, entry } => Step::Judge(Asked {
                    ticket: Ticket::Scp(ticket),
                    facts: entry_facts(&entry),
                    opens: entry.paths.first().cloned(),
                }),
                scp::Step::Ended(file) => Step::Done(Done {
                    path: file.entry.paths.into_iter().next().unwrap_or(file.entry.name),
                    op: direction(file.entry.direction),
                    bytes: file.bytes,
                    sha256: file.sha256,
                    complete: file.complete,
                }),
            }),
        }
    }
}

fn direction(direction: Direction) -> Cow<'static, str> {
    Cow::Borrowed(match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    })
}

/// What an sftp operation does at a place, in the words of rules.
fn uses(verb: Verb, touch: Touch) -> &'static [FileOp] {
    match (verb, touch) {
        (Verb::ReadLink, _) => &[FileOp::Readlink],
        (Verb::RealPath, _) => &[FileOp::Realpath],
        (Verb::MakeDirectory, _) => &[FileOp::Mkdir],
        (Verb::RemoveDirectory, _) => &[FileOp::Rmdir],
        // A name that a file's content goes on under: what may be read there, and is written.
        (Verb::Rename, Touch::Move) => &[FileOp::Rename],
        (Verb::Rename, _) => &[FileOp::Rename, FileOp::Write],
        (Verb::HardLink | Verb::Symlink, Touch::Look) => &[FileOp::Link],
        (Verb::HardLink | Verb::Symlink, Touch::Read) => &[FileOp::Link, FileOp::Read],
        (Verb::HardLink | Verb::Symlink, Touch::Write) => &[FileOp::Link, FileOp::Write],
        (Verb::HardLink | Verb::Symlink, _) => &[FileOp::Link, FileOp::Read, FileOp::Write],
        (_, Touch::Look) => &[FileOp::Stat],
        (_, Touch::List) => &[FileOp::List],
        (_, Touch::Read) => &[FileOp::Read],
        (_, Touch::Write) => &[FileOp::Write],
        (_, Touch::ReadWrite) => &[FileOp::Read, FileOp::Write],
        (_, Touch::Attributes) => &[FileOp::Setstat],
        (_, Touch::Remove) => &[FileOp::Remove],
        (_, Touch::Move) => &[FileOp::Read, FileOp::Remove],
    }
}

/// Whether a place gets a name under which all that lies below can be reached.
fn carries(verb: Verb, touch: Touch) -> Option<FileOp> {
    match (verb, touch) {
        (Verb::Rename, Touch::Move) => None,
        (Verb::Rename, _) => Some(FileOp::Rename),
        (Verb::Symlink, _) => Some(FileOp::Link),
        _ => None,
    }
}

fn operation_facts(operation: &Operation) -> SshFacts {
    let mut all = SshFacts::new(SshClass::Sftp, operation.text());
    for place in &operation.places {
        for op in uses(operation.verb, place.touch) {
            add(&mut all, ssh::sftp(*op, &[place.path.as_bytes()]));
        }
        if let Some(op) = carries(operation.verb, place.touch) {
            all.files.push(ssh::carried(op, place.path.as_bytes()));
        }
        // What a file shows cannot be masked on its way.
        all.binary |= place.touch.reads();
    }
    all
}

fn entry_facts(entry: &Entry) -> SshFacts {
    let (word, op) = match (entry.direction, entry.directory) {
        (Direction::Read, false) => ("read", FileOp::Read),
        (Direction::Read, true) => ("list", FileOp::List),
        (Direction::Write, false) => ("write", FileOp::Write),
        (Direction::Write, true) => ("mkdir", FileOp::Mkdir),
    };
    let paths: String = entry.paths.join(" or ").escape_debug().collect();
    let mut all = SshFacts::new(SshClass::Scp, format!("{word} {paths}"));
    for path in &entry.paths {
        add(&mut all, ssh::sftp(op, &[path.as_bytes()]));
    }
    if !entry.certain {
        all.unseen.get_or_insert_with(|| "which file the shell's pattern means".into());
    }
    all.binary = entry.direction == Direction::Read;
    all
}

fn add(all: &mut SshFacts, one: SshFacts) {
    all.files.extend(one.files);
    all.unseen = all.unseen.take().or(one.unseen);
}
