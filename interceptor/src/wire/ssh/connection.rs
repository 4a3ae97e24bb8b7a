//! The agent's side of a connection: who it is, and what it may open.
//!
//! User authentication ends in one of three ways: with a token that was proven, with a key that
//! is registered for an agent whose token has yet to come in a variable, or not at all. `none`
//! is never accepted, and no human is awaited here.

mod authentication;
mod handler;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PublicKey;
use russh::server::{self, Msg};
use russh::{ChannelId, ChannelWriteHalf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::Parts;
use super::acting::Acting;
use super::flow::{Event, Flow};
use super::reverse::Wishes;
use super::startups::Startup;
use crate::policy::{SshFacts, ssh};
use crate::session::{Arrived, Effect, Ending, Session};

/// Longest time from the beginning of a connection to its token.
const TOKEN_TIME: Duration = Duration::from_secs(20);

/// Time that channels get to say why the connection ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Time that the protocol gets to end by itself.
const LAST_TIME: Duration = Duration::from_secs(3);

/// Environment requests of a connection before its token.
const MAX_ENV_BEFORE_TOKEN: usize = 32;

/// Environment requests of a channel.
const MAX_ENV: usize = 128;

/// Longest name and value of a variable that is passed on. Bytes.
const MAX_VARIABLE: usize = 16 << 10;

/// Proofs that may fail on one connection.
const MAX_PROOFS: usize = 6;

/// Who is on the other side.
enum Standing {
    /// Nobody is proven.
    Arrived(Session<Arrived>),
    /// A key was proven that is registered for an agent; its token has yet to come.
    Quarantined { session: Session<Arrived>, key: Box<PublicKey> },
    /// A token was proven and policy let the connection in.
    Acting(Arc<Acting>),
    /// The session is over.
    Gone,
}

/// One connection of an agent.
pub struct Connection {
    parts: Arc<Parts>,
    standing: Standing,
    /// The user name that the last authentication was for (RFC 4252, section 5).
    user: String,
    channels: HashMap<ChannelId, Waiting>,
    /// Closed with the connection, for requests that belong to no channel.
    gone: Arc<Flow>,
    /// What is said with the next refusal of a proof.
    banner: Option<String>,
    /// Why a token in a variable was refused; said when something is to run.
    refusal: Option<String>,
    proofs: usize,
    variables_before_token: usize,
    /// The parts of a token that comes in several answers.
    answers: Zeroizing<Vec<u8>>,
    rounds: usize,
    /// Told when a token was proven.
    proven: Option<oneshot::Sender<Arc<Acting>>>,
}

/// A session channel on which nothing runs yet.
struct Waiting {
    flow: Arc<Flow>,
    /// Taken by what runs.
    write: Option<ChannelWriteHalf<Msg>>,
    variables: Vec<(String, String)>,
    terminal: Option<Terminal>,
    wishes: Wishes,
}

impl Waiting {
    /// A channel on which a program can be asked for.
    fn new(write: ChannelWriteHalf<Msg>) -> Self {
        Self { write: Some(write), ..Self::running(Arc::default()) }
    }

    /// A channel that already has somebody who takes what arrives.
    fn running(flow: Arc<Flow>) -> Self {
        Self { flow, write: None, variables: Vec::new(), terminal: None, wishes: Wishes::default() }
    }
}

/// A pseudo-terminal that was asked for (RFC 4254, section 6.2).
#[derive(Debug, Clone)]
pub struct Terminal {
    /// `TERM`.
    pub term: String,
    /// Columns, rows, and the same in pixels.
    pub size: [u32; 4],
    /// Encoded terminal modes.
    pub modes: Vec<(russh::Pty, u32)>,
}

impl Connection {
    /// Serves a connection to its end.
    pub async fn serve(
        parts: Arc<Parts>,
        mut session: Session<Arrived>,
        stream: TcpStream,
        place: Startup,
    ) {
        let mut ending = session.live().ending();
        let (proven, when_proven) = oneshot::channel();
        let settings = Arc::clone(&parts.keys.load().settings);
        let limit = tokio::time::Instant::now() + parts.service.startup_timeout.0.min(TOKEN_TIME);
        let connection = Self {
            parts,
            standing: Standing::Arrived(session),
            user: String::new(),
            channels: HashMap::new(),
            gone: Arc::default(),
            banner: None,
            refusal: None,
            proofs: 0,
            variables_before_token: 0,
            answers: Zeroizing::new(Vec::new()),
            rounds: 0,
            proven: Some(proven),
        };
        let Ok((stream, breaker)) = breakable(stream) else { return };
        let started =
            tokio::time::timeout_at(limit, server::run_stream(settings, stream, connection));
        let Ok(Ok(mut running)) = started.await else { return };
        let handle = running.handle();
        let acting = tokio::select! {
            _ = &mut running => return,
            () = tokio::time::sleep_until(limit) => {
                hang_up(&handle, "no token was shown in time").await;
                return drain(running, &breaker).await;
            }
            acting = when_proven => match acting {
                Ok(acting) => acting,
                Err(_) => return drain(running, &breaker).await,
            },
        };
        drop(place);
        let expiry = acting.with(|s| s.time_left()).flatten();
        let expired = async {
            match expiry {
                Some(left) => tokio::time::sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = &mut running => return,
            () = expired => acting.end(
                "expired",
                "TOKEN_EXPIRED: the token of this session has expired; connect anew with a fresh one",
            ),
            over = acting.over() => tracing::debug!(reason = over.reason, "connection over"),
            told = ending.wait_for(|e| *e != Ending::None) => {
                let order = told.map_or(Ending::Shutdown, |order| order.clone());
                acting.with(|session| session.note_ending(&order));
                acting.end_for(order.reason(), order.words(), order.detail());
            }
        }
        let words = acting.over().await.words;
        drop(acting);
        // What runs tells its client on its own channel first.
        tokio::time::sleep(LAST_WORDS).await;
        hang_up(&handle, &words).await;
        drain(running, &breaker).await;
    }

    /// Whether a terminal may be had, as far as that can be said yet.
    fn terminal_allowed(&self, term: &str) -> bool {
        let Standing::Acting(acting) = &self.standing else { return true };
        acting.with(|s| s.rule_ssh(&ssh::pty(term)).effect == Effect::Allow).unwrap_or(false)
    }

    /// Whether something may be opened back for a channel; a refusal is recorded. Nobody is asked
    /// before the token, and no human is awaited here.
    fn back_allowed(&self, facts: &SshFacts) -> bool {
        let Standing::Acting(acting) = &self.standing else { return false };
        let allowed = acting.with(|session| {
            let ruling = session.rule_ssh(facts);
            let why = match ruling.effect {
                Effect::Allow => return true,
                Effect::Deny => ruling.denial.unwrap_or_default(),
                Effect::Hold => "it needs a human and cannot wait for one".into(),
            };
            session.refuse_ssh(facts, &why);
            false
        });
        allowed.unwrap_or(false)
    }

    /// Leaves the connection to nobody: what is running ends by itself.
    fn close_channels(&mut self) {
        self.gone.event(Event::Closed);
        for waiting in self.channels.values() {
            waiting.flow.event(Event::Closed);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close_channels();
        match std::mem::replace(&mut self.standing, Standing::Gone) {
            Standing::Arrived(session) | Standing::Quarantined { session, .. } => {
                session.end("refused", Some("no token was proven"));
            }
            // The last channel seals the record.
            Standing::Acting(_) | Standing::Gone => {}
        }
    }
}

async fn hang_up(handle: &server::Handle, words: &str) {
    let words = format!("interceptor: {words}");
    let reason = russh::Disconnect::ByApplication;
    let _ = tokio::time::timeout(LAST_WORDS, handle.disconnect(reason, words, String::new())).await;
}

/// The connection, and a second hand on its socket by which it can be cut off.
fn breakable(stream: TcpStream) -> std::io::Result<(TcpStream, std::net::TcpStream)> {
    let stream = stream.into_std()?;
    let breaker = stream.try_clone()?;
    Ok((TcpStream::from_std(stream)?, breaker))
}

/// Waits for the protocol's own end, but not for ever: a client that reads nothing is cut off.
async fn drain(running: server::RunningSession<Connection>, breaker: &std::net::TcpStream) {
    if tokio::time::timeout(LAST_TIME, running).await.is_err() {
        let _ = breaker.shutdown(std::net::Shutdown::Both);
    }
}
