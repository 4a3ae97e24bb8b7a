//! SSH requests of policy tests and explanations.

use super::facts::{Destination, FileOp, SshFacts};
use super::home::Home;
use super::pool::{LoginShell, ShellAnalyzer};
use super::requests::{self, ForwardKind};
use super::scp::ScpEnd;
use crate::policy::text::{Fields, Node, Read};

/// Keys of a case that say what is asked for.
pub(in crate::policy) const KEYS: &[&str] = &[
    "exec",
    "sftp",
    "forward",
    "remote_forward",
    "variable",
    "request",
    "login_shell",
    "home",
    "subsystem",
];

/// What is asked for, as a test or a command line says it.
#[derive(Debug, Clone)]
pub enum Asked {
    /// A command for a shell.
    Exec(String, LoginShell),
    /// Anything else.
    Other(Box<SshFacts>),
}

impl Asked {
    /// Its facts, as the daemon finds them for a user of that home directory.
    pub fn facts(&self, analyzer: &ShellAnalyzer, home: Option<&Home>) -> SshFacts {
        let mut facts = match self {
            Self::Exec(command, shell) => analyzer.exec_blocking(command.as_bytes(), shell.clone()),
            Self::Other(facts) => (**facts).clone(),
        };
        if let Some(home) = home {
            facts.at_home(home);
        }
        if ScpEnd::of(&facts).is_some_and(|end| end.upload) {
            facts.announce();
        }
        facts
    }

    /// A request that takes no further words.
    pub fn request(class: &str) -> Result<Self, String> {
        Ok(Self::Other(Box::new(match class {
            "shell" => requests::shell_request(),
            "pty" => requests::pty("xterm"),
            "x11" => requests::x11(),
            "agent-forward" => requests::agent_forward(),
            "unknown" => requests::unknown("unknown@example.com"),
            _ => {
                return Err(format!(
                    "{class:?} is none of shell, pty, x11, agent-forward, unknown; the others \
                     have keys of their own"
                ));
            }
        })))
    }

    /// An operation of sftp on one or two paths.
    pub fn sftp(operation: &str, paths: &[&str]) -> Result<Self, String> {
        let op = FileOp::from_name(operation)
            .ok_or_else(|| format!("{operation:?} is no operation on files"))?;
        let paths: Vec<&[u8]> = paths.iter().map(|p| p.as_bytes()).collect();
        Ok(Self::Other(Box::new(requests::sftp_operation(op, &paths))))
    }

    /// A forward to `host:port` or `unix:/path`.
    pub fn forward(kind: ForwardKind, to: &str) -> Result<Self, String> {
        let destination = match to.strip_prefix("unix:") {
            Some(path) => Destination::Unix(path.to_owned()),
            None => {
                let wrong = || format!("{to:?}: write \"host:port\" or \"unix:/path\"");
                let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Destination::Tcp { host, port: port.parse().map_err(|_| wrong())? }
            }
        };
        Ok(Self::Other(Box::new(requests::forward(kind, destination))))
    }

    /// A variable.
    pub fn variable(name: &str) -> Self {
        Self::Other(Box::new(requests::env(name)))
    }

    /// A subsystem.
    pub fn subsystem(name: &str) -> Self {
        Self::Other(Box::new(requests::subsystem(name)))
    }
}

/// The home directory of a case: the one it names, none where it names an empty one, else the
/// usual one of the role.
pub(in crate::policy) fn home(node: Option<&Node<'_>>, role: &str) -> Read<Option<Home>> {
    match node {
        Some(node) if node.str()?.is_empty() => Ok(None),
        Some(node) => Home::new(node.str()?)
            .map(Some)
            .ok_or_else(|| node.err("a plain absolute path, or \"\" where it is not known")),
        None if role == "root" => Ok(Home::new("/root")),
        None if role.contains('/') => Ok(None),
        None => Ok(Home::new(&format!("/home/{role}"))),
    }
}

/// What a case asks for, when it is something of SSH.
pub(in crate::policy) fn read(
    fields: &Fields<'_>,
    defaults: Option<&Fields<'_>>,
) -> Read<Option<Asked>> {
    let shell = match fields.get("login_shell").or_else(|| defaults?.get("login_shell")) {
        Some(node) => LoginShell::from_path(node.str()?),
        None => LoginShell::Posix,
    };
    let mut found = Vec::new();
    if let Some(node) = fields.get("exec") {
        found.push(Asked::Exec(node.str()?.to_owned(), shell));
    }
    if let Some(node) = fields.get("request") {
        found.push(Asked::request(node.str()?).map_err(|e| node.err(e))?);
    }
    if let Some(node) = fields.get("sftp") {
        let table = node.table()?;
        table.known(&["operation", "path", "to"])?;
        let operation = table.need("operation")?;
        let mut paths = vec![table.need("path")?.str()?];
        if let Some(to) = table.get("to") {
            paths.push(to.str()?);
        }
        found.push(Asked::sftp(operation.str()?, &paths).map_err(|e| operation.err(e))?);
    }
    for (key, kind) in [("forward", ForwardKind::Local), ("remote_forward", ForwardKind::Remote)] {
        if let Some(node) = fields.get(key) {
            found.push(Asked::forward(kind, node.str()?).map_err(|e| node.err(e))?);
        }
    }
    if let Some(node) = fields.get("variable") {
        found.push(Asked::variable(node.str()?));
    }
    if let Some(node) = fields.get("subsystem") {
        found.push(Asked::subsystem(node.str()?));
    }
    if found.len() > 1 {
        return Err(fields.err("asks for two things; write two cases"));
    }
    Ok(found.pop())
}
