//! One admitted connection: its session, its way to sshd, and what its channels share.
//!
//! Channels run as tasks of their own and meet here. The session is locked only for as long as
//! something is judged or appended; nobody waits with it in hand. The last one to leave seals
//! the record.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use super::Parts;
use super::reverse::{self, Reverse};
use super::upstream::{Spec, Upstream};
use crate::policy::ssh::{Home, LoginShell};
use crate::session::{Admitted, Session, UpstreamFacts, Who};
use crate::sshd::{Account, KeyId};

/// Why a connection is over, for those who still run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over {
    /// Reason in the seal: `expired`, `policy`, `shutdown`, …
    pub reason: &'static str,
    /// What the agent is told.
    pub words: String,
    /// What the record says instead, where the agent need not know.
    pub detail: Option<String>,
}

/// An admitted connection.
pub struct Acting {
    /// What all connections of the service share.
    pub parts: Arc<Parts>,
    /// The operating system user.
    pub user: String,
    /// What reads its commands.
    pub shell: LoginShell,
    /// Where its commands start, when that is known.
    pub home: Option<Home>,
    /// The agent's address.
    pub peer: SocketAddr,
    /// `Some` until the record is sealed.
    session: Mutex<Option<Session<Admitted>>>,
    upstream: tokio::sync::Mutex<Option<Arc<Upstream>>>,
    /// What sshd may open back to the agent.
    pub reverse: Reverse,
    over: watch::Sender<Option<Over>>,
    next_channel: AtomicU32,
    running: AtomicUsize,
}

impl std::fmt::Debug for Acting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acting").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Acting {
    /// Over a session that policy let in as this user.
    pub fn new(parts: Arc<Parts>, session: Session<Admitted>, user: &str) -> Arc<Self> {
        let peer = session.peer();
        let account = Account::of(user);
        Arc::new(Self {
            shell: login_shell(account.as_ref()),
            home: account.as_ref().and_then(Account::home),
            parts,
            user: user.to_owned(),
            peer,
            session: Mutex::new(Some(session)),
            upstream: tokio::sync::Mutex::new(None),
            reverse: Reverse::default(),
            over: watch::channel(None).0,
            next_channel: AtomicU32::new(0),
            running: AtomicUsize::new(0),
        })
    }

    /// Does something short with the session. `None` only while the last one leaves.
    pub fn with<T>(&self, work: impl FnOnce(&mut Session<Admitted>) -> T) -> Option<T> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(work)
    }

    /// The session's id, for messages.
    pub fn id(&self) -> String {
        self.with(|s| s.id().to_string()).unwrap_or_default()
    }

    /// A message as agents read it.
    pub fn words(&self, text: &str) -> String {
        format!("interceptor: {text} (session {})", self.id())
    }

    /// Numbers the next channel, from 1.
    pub fn next_channel(&self) -> u32 {
        self.next_channel.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Takes a place among the channels that run, unless there are too many.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit();
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        let place = Place { acting: Arc::clone(self) };
        (before < limit).then_some(place)
    }

    /// Most channels at a time.
    pub fn limit(&self) -> usize {
        self.parts.service.ssh.max_channels as usize
    }

    /// Ends the connection for everybody on it; the first reason stands.
    pub fn end(&self, reason: &'static str, words: impl Into<String>) {
        self.end_for(reason, words, None);
    }

    /// The same with words for the record alone.
    pub fn end_for(&self, reason: &'static str, words: impl Into<String>, detail: Option<&str>) {
        let detail = detail.map(str::to_owned);
        self.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(Over { reason, words: words.into(), detail });
            }
            first
        });
    }

    /// Returns when the connection is over, with the reason.
    pub async fn over(&self) -> Over {
        let mut over = self.over.subscribe();
        loop {
            if let Some(over) = over.borrow_and_update().clone() {
                return over;
            }
            if over.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The connection to sshd, made when it is first needed. The error is for the agent.
    pub async fn upstream(self: &Arc<Self>) -> Result<Arc<Upstream>, String> {
        let mut kept = self.upstream.lock().await;
        if let Some(upstream) = kept.as_ref().filter(|u| !u.is_closed()) {
            return Ok(Arc::clone(upstream));
        }
        if kept.is_some() {
            return Err("SERVICE_UNAVAILABLE: sshd closed the connection of this session".into());
        }
        let began = std::time::Instant::now();
        let parts = &self.parts;
        let (inbound, opened) = mpsc::channel(self.limit().max(1));
        let spec = Spec {
            user: &self.user,
            key_id: self.key_id(),
            serial: self.parts.next_serial(),
            forwards: self.with(|s| s.forwards()).unwrap_or_default(),
            inbound,
        };
        tokio::spawn(reverse::accept(Arc::downgrade(self), opened));
        let keys = parts.keys.load().public.clone();
        let pins = parts.gate.pins().map(Arc::as_ref);
        let opened = Upstream::open(&parts.service, pins, keys, &parts.ca, spec).await;
        let upstream = opened.map_err(|error| {
            tracing::error!(session = %self.id(), user = %self.user, %error, "sshd cannot be used");
            let why = "SERVICE_UNAVAILABLE: sshd cannot be used; the daemon's log says why";
            self.with(|s| s.refuse_service("SERVICE_UNAVAILABLE", why));
            why.to_owned()
        })?;
        let facts = UpstreamFacts {
            address: match upstream.local {
                Some(local) => format!("{} from {local}", upstream.address),
                None => upstream.address.to_string(),
            },
            role: self.user.clone(),
            database: String::new(),
            server_pid: None,
            server_version: String::new(),
        };
        self.with(|s| s.record_upstream(&facts, began.elapsed()));
        let upstream = Arc::new(upstream);
        *kept = Some(Arc::clone(&upstream));
        Ok(upstream)
    }

    /// The connection to sshd, when there is one.
    pub async fn upstream_if_any(&self) -> Option<Arc<Upstream>> {
        self.upstream.lock().await.clone()
    }

    /// Ends the connection when sshd has: what ran on it is gone with it. Gives what to say.
    pub fn end_with_service(&self) -> Option<String> {
        let kept = self.upstream.try_lock().ok()?;
        if !kept.as_ref()?.is_closed() {
            return None;
        }
        let words = "SERVICE_GONE: sshd has closed the connection of this session";
        self.end("server", words);
        Some(self.words(words))
    }

    fn key_id(&self) -> KeyId {
        let made = self.with(|s| {
            let id = s.id().to_string();
            match s.who() {
                Who::Token(proven) => {
                    KeyId::new(&id, &proven.agent().name, proven.claims().principal())
                }
                Who::Unproven(why) => KeyId::new(&id, why, "unproven"),
            }
        });
        made.unwrap_or_else(|| KeyId::new("", "", ""))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let over = self.over.borrow().clone();
        if let Some(session) = session {
            match over {
                Some(over) => {
                    let detail = over.detail.as_deref().unwrap_or(&over.words);
                    session.end(over.reason, Some(detail));
                }
                None => session.end("client", None),
            }
        }
    }
}

/// A running channel's place; given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    /// The connection.
    pub acting: Arc<Acting>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.acting.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What reads the commands of a user: rules that allow hold only for shells whose grammar is
/// known.
fn login_shell(account: Option<&Account>) -> LoginShell {
    let Some(path) = account.map(Account::shell) else {
        return LoginShell::Other("unknown".into());
    };
    match path.file_name().and_then(|name| name.to_str()) {
        Some("sh" | "dash" | "bash") => LoginShell::Posix,
        _ => LoginShell::Other(path.display().to_string()),
    }
}

/// Numbers of certificates: unique on this host without a file of their own, since they begin at
/// the time of the daemon's start in microseconds.
pub fn first_serial() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0))
}
