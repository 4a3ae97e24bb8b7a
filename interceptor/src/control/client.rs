//! The command line's side of the control socket. Blocking, because a command does one thing
//! at a time.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::protocol::{ControlError, MAX_ANSWER, Op, Reply, Request, VERSION};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a command got no answer. Messages are for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens.
    #[error(
        "the daemon is not running ({path}: {source}): start it with `systemctl start interceptor`"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The socket's mode shuts this user out.
    #[error(
        "this user may not talk to the daemon at {path}: join the group `interceptor` or use sudo"
    )]
    NotAllowed {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the daemon did not answer: {0}")]
    Io(#[from] std::io::Error),
    /// The answer cannot be understood.
    #[error(
        "the daemon's answer cannot be understood ({0}): are this command and the daemon of the same version?"
    )]
    Protocol(String),
    /// The daemon refused or failed.
    #[error(transparent)]
    Refused(#[from] ControlError),
}

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    next: u64,
}

impl Client {
    /// Connects to a daemon's control socket.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => ClientError::NotAllowed { path: path.into() },
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: path.into(), source }
            }
            _ => ClientError::Io(source),
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), next: 1 })
    }

    /// Asks one thing and waits for the answer.
    pub fn call<T: DeserializeOwned>(&mut self, op: Op) -> Result<T, ClientError> {
        let id = self.next;
        self.next += 1;
        let mut line = serde_json::to_vec(&Request { v: VERSION, id, op })
            .map_err(|e| ClientError::Protocol(e.to_string()))?;
        line.push(b'\n');
        // A daemon that refuses before reading closes; its answer may still be there.
        let written = self.stream.get_mut().write_all(&line);
        let mut answer = Vec::new();
        let limit = MAX_ANSWER as u64 + 1;
        let read = self.stream.by_ref().take(limit).read_until(b'\n', &mut answer);
        if answer.is_empty() {
            written?;
        }
        read?;
        if answer.last() != Some(&b'\n') {
            return Err(ClientError::Io(ErrorKind::UnexpectedEof.into()));
        }
        let reply: Reply =
            serde_json::from_slice(&answer).map_err(|e| ClientError::Protocol(e.to_string()))?;
        match (reply.ok, reply.error) {
            (_, Some(error)) => Err(error.into()),
            (Some(ok), None) if reply.id == id => {
                serde_json::from_value(ok).map_err(|e| ClientError::Protocol(e.to_string()))
            }
            _ => Err(ClientError::Protocol("an answer to another request".into())),
        }
    }
}
