//! The daemon's side of the control socket.
//!
//! Few connections, short lines, short patience: a client that sends garbage, floods or sits
//! still is dropped and costs the daemon nothing. Everything that concerns holds is answered
//! here; the rest is asked of a [`ControlHandler`].

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::peer;
use super::protocol::{
    Answer, ControlError, Decided, Drained, Held, Killed, LiveSession, MAX_ANSWER, MAX_REQUEST, Op,
    PolicyStatus, Reply, Request, Status, VERSION,
};
use crate::approval::{Accounts, Approvals, Decider, Decision, MAX_REASON, Outcome, Peer, Scope};
use crate::session::Target;

/// Group whose members may talk to the daemon.
pub const GROUP: &str = "interceptor";
/// Most connections at a time.
const MAX_CONNECTIONS: usize = 64;
/// A line must be complete, and an answer taken, within this time.
const IDLE: Duration = Duration::from_secs(60);
/// Longest wait for a change of the holds; the client asks again.
const LONG_POLL: Duration = Duration::from_secs(25);

/// What the rest of the daemon answers. Implemented by `session/`.
pub trait ControlHandler: Send + Sync + 'static {
    /// The state at one glance. `held` and `grants` are filled in by the server.
    fn status(&self) -> Answer<'_, Status>;
    /// Drains the recorder so that a reader sees everything.
    fn drain(&self) -> Answer<'_, Drained>;
    /// Loads policies (and approvers) anew, all or nothing.
    fn policy_reload(&self) -> Answer<'_, PolicyStatus>;
    /// The sessions open now.
    fn live_sessions(&self) -> Answer<'_, Vec<LiveSession>>;
    /// Ends running sessions; `who` says who wants that and why, for the record.
    fn kill(&self, target: Target, who: String) -> Answer<'_, Killed>;
    /// Prometheus text.
    fn metrics(&self) -> Answer<'_, String>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon answers there.
    #[error("another daemon already answers at {0}: stop it first")]
    InUse(PathBuf),
    /// Something else is in the way.
    #[error("{0} is in the way and is no socket: move it aside")]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("cannot listen at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

/// A listening control socket; removed when dropped.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that only our own socket is removed.
    inode: (u64, u64),
    shared: Arc<Shared>,
}

struct Shared {
    handler: Arc<dyn ControlHandler>,
    approvals: Arc<Approvals>,
    slots: Arc<Semaphore>,
    idle: Duration,
}

impl Server {
    /// Listens at `path`. A socket that a dead daemon left is replaced in one step; a living
    /// daemon's is not.
    pub fn new(
        path: &Path,
        handler: Arc<dyn ControlHandler>,
        approvals: Arc<Approvals>,
    ) -> Result<Self, ServerError> {
        let fail = |source| ServerError::Io { path: path.into(), source };
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(ServerError::NotASocket(path.into()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(ServerError::InUse(path.into()));
            }
            _ => {}
        }
        // Made aside and renamed into place: never there with a wider mode than meant.
        let aside = path.with_extension(format!("new.{}", std::process::id()));
        let _ = std::fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside).map_err(fail)?;
        let placed = restrict(&aside).and_then(|()| std::fs::rename(&aside, path));
        if let Err(e) = placed {
            let _ = std::fs::remove_file(&aside);
            return Err(fail(e));
        }
        let inode = inode(path).map_err(fail)?;
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shared = Arc::new(Shared { handler, approvals, slots, idle: IDLE });
        Ok(Self { listener, path: path.into(), inode, shared })
    }

    /// The same server with another patience.
    #[cfg(test)]
    pub(super) fn with_idle(mut self, idle: Duration) -> Self {
        let s = &self.shared;
        self.shared = Arc::new(Shared {
            handler: s.handler.clone(),
            approvals: s.approvals.clone(),
            slots: s.slots.clone(),
            idle,
        });
        self
    }

    /// Serves until the future is dropped.
    pub async fn run(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Full: the connection is closed at once rather than queued.
                    if let Ok(slot) = self.shared.slots.clone().try_acquire_owned() {
                        let shared = self.shared.clone();
                        tokio::spawn(async move {
                            shared.serve(stream).await;
                            drop(slot);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "control socket: accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|i| i == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Mode 0660 with the group [`GROUP`] where the host has it, else 0600.
fn restrict(path: &Path) -> io::Result<()> {
    let group = nix::unistd::Group::from_name(GROUP).ok().flatten();
    let owned = group.is_some_and(|g| nix::unistd::chown(path, None, Some(g.gid)).is_ok());
    let mode = if owned { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

impl Shared {
    async fn serve(&self, stream: UnixStream) {
        let peer = peer::of(&stream).map_err(|e| ControlError::new("UNKNOWN_PEER", e.to_string()));
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut read).take(MAX_REQUEST as u64 + 1);
            match timeout(self.idle, limited.read_until(b'\n', &mut line)).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => return,
            }
            let last = line.last() != Some(&b'\n');
            let reply = if last && line.len() > MAX_REQUEST {
                failure(0, ControlError::new("TOO_LARGE", "a request has at most 1 MiB"))
            } else {
                self.reply(&line, &peer).await
            };
            let sent = timeout(self.idle, write.write_all(&encode(reply))).await;
            if last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    }

    async fn reply(&self, line: &[u8], peer: &Result<Peer, ControlError>) -> Reply {
        let request: Request = match serde_json::from_slice(line) {
            Ok(r) => r,
            Err(e) => {
                let say = format!("no request of this protocol (version {VERSION}): {e}");
                return failure(0, ControlError::new("BAD_REQUEST", say));
            }
        };
        if request.v != VERSION {
            let say = format!(
                "the daemon speaks version {VERSION} of this protocol and the command {}: use the same release of both",
                request.v
            );
            return failure(request.id, ControlError::new("VERSION", say));
        }
        let answer = match peer {
            Ok(peer) => self.answer(request.op, peer).await,
            Err(e) => Err(e.clone()),
        };
        match answer {
            Ok(ok) => Reply { v: VERSION, id: request.id, ok: Some(ok), error: None },
            Err(e) => failure(request.id, e),
        }
    }

    async fn answer(&self, op: Op, peer: &Peer) -> Result<Value, ControlError> {
        self.admit(&op, peer).await?;
        match op {
            Op::Status => {
                let mut status = self.handler.status().await?;
                status.held = self.approvals.held() as u64;
                status.grants = self.approvals.grants().len() as u64;
                json(&status)
            }
            Op::Drain => json(&self.handler.drain().await?),
            Op::PolicyReload => json(&self.handler.policy_reload().await?),
            Op::SessionsLive => json(&self.handler.live_sessions().await?),
            Op::SessionsKill { target, reason } => {
                if reason.as_ref().is_some_and(|r| r.chars().count() > MAX_REASON) {
                    let say = format!("the reason is longer than {MAX_REASON} characters");
                    return Err(ControlError::new("INVALID", say));
                }
                let why = reason.map(|r| format!(": {r}")).unwrap_or_default();
                let who = format!("{}{why}", self.name(peer).await);
                json(&self.handler.kill(target, who).await?)
            }
            Op::Metrics => json(&self.handler.metrics().await?),
            Op::ApprovalsList { after } => json(&self.held(after).await),
            Op::ApprovalsGrants => json(&self.approvals.grants()),
            Op::ApprovalsShow { id } => {
                let decider = self.decider(peer).await?;
                json(&self.approvals.show(&id, &decider)?)
            }
            Op::ApprovalsDecide { id, approve, for_seconds, reason } => {
                let scope =
                    for_seconds.map_or(Scope::Once, |s| Scope::ShapeFor(Duration::from_secs(s)));
                let decider = self.decider(peer).await?;
                let decision = Decision { approve, scope, reason };
                let outcome = self.approvals.decide(&id, &decider, decision)?;
                json(&decided(id, decider, &outcome))
            }
            Op::ApprovalsRevoke { id } => {
                // Taking a permission back needs no permission: whoever may talk here may.
                let by = self.name(peer).await;
                json(&self.approvals.revoke(&id, &by)?)
            }
        }
    }

    /// The socket's mode already keeps others out; this holds when somebody widens it. Root,
    /// the daemon's user and the group may ask all; an approver what concerns approvals.
    async fn admit(&self, op: &Op, peer: &Peer) -> Result<(), ControlError> {
        let approver = match op {
            // Decided by who the decider is, which their own code asks.
            Op::ApprovalsShow { .. } | Op::ApprovalsDecide { .. } => return Ok(()),
            Op::ApprovalsList { .. } | Op::ApprovalsGrants | Op::ApprovalsRevoke { .. } => true,
            _ => false,
        };
        let own = nix::unistd::geteuid().as_raw();
        if peer.uid == 0 || peer.uid == own || (approver && self.decider(peer).await.is_ok()) {
            return Ok(());
        }
        let peer = *peer;
        let member = move || {
            let group = nix::unistd::Group::from_name(GROUP).ok().flatten();
            let user =
                nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(peer.uid)).ok().flatten();
            let accounts = crate::approval::SystemAccounts;
            group.is_some_and(|g| g.gid.as_raw() == peer.gid)
                || user.is_some_and(|u| accounts.is_member(&u.name, GROUP))
        };
        if tokio::task::spawn_blocking(member).await.unwrap_or(false) {
            return Ok(());
        }
        let say = format!("join the group `{GROUP}` or use sudo for this");
        Err(ControlError::new("NOT_ALLOWED", say))
    }

    /// Account databases may be slow and block, so they are asked aside.
    async fn decider(&self, peer: &Peer) -> Result<Decider, ControlError> {
        let (approvals, peer) = (self.approvals.clone(), *peer);
        let found = tokio::task::spawn_blocking(move || approvals.identify(&peer)).await;
        Ok(found.map_err(ControlError::failed)??)
    }

    /// Who a peer is, for the record.
    async fn name(&self, peer: &Peer) -> String {
        match self.decider(peer).await {
            Ok(decider) => decider.to_string(),
            Err(_) => format!("uid {}", peer.uid),
        }
    }

    async fn held(&self, after: Option<u64>) -> Held {
        let mut changes = self.approvals.changes();
        if let Some(after) = after {
            let _ = timeout(LONG_POLL, changes.wait_for(|now| *now != after)).await;
        }
        // The revision first: a change in between is then reported again, never missed.
        let revision = *changes.borrow();
        Held { revision, holds: self.approvals.list() }
    }
}

fn decided(id: String, by: Decider, outcome: &Outcome) -> Decided {
    let (scope, grant) = match outcome {
        Outcome::Granted { scope, grant, .. } => {
            (Some(*scope), grant.as_ref().map(|g| g.id().to_owned()))
        }
        _ => (None, None),
    };
    Decided { id, outcome: outcome.as_str().into(), by, scope, grant }
}

fn failure(id: u64, error: ControlError) -> Reply {
    Reply { v: VERSION, id, ok: None, error: Some(error) }
}

fn json(value: &impl Serialize) -> Result<Value, ControlError> {
    serde_json::to_value(value).map_err(ControlError::failed)
}

/// One line; wiped once it is sent, since it may hold what an approver was shown.
fn encode(reply: Reply) -> Zeroizing<Vec<u8>> {
    let id = reply.id;
    let mut line = serde_json::to_vec(&reply).unwrap_or_default();
    if line.is_empty() || line.len() > MAX_ANSWER {
        let error = ControlError::new("TOO_LARGE", "the answer is too large for one line");
        line = serde_json::to_vec(&failure(id, error)).unwrap_or_default();
    }
    line.push(b'\n');
    Zeroizing::new(line)
}
