//! What the host opens back to the agent: remote forwards (RFC 4254, section 7), X11 (section
//! 6.3) and the keys of the agent (`auth-agent-req@openssh.com`).
//!
//! Each is asked of sshd only after its verdict, and what sshd then opens is passed on only while
//! a door for it stands open. sshd's own settings stay in force: what it refuses is refused. A
//! remote forward never listens on a protected port or socket of this host. Everything ends with
//! the connection, since sshd ends what it listens on with it.

mod door;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use russh::server::{self, DeferredAnswer, Msg};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf};
use tokio::sync::{MutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::acting::{Acting, Place};
use super::channel::{answered, note, say};
use super::flow::{Flow, Taker};
use super::permit::{Denied, Permitted, Silent, permit};
use super::relay::Relay;
use super::upstream::{Inbound, Upstream, UpstreamChannel};
use crate::policy::{Effect, SshFacts, ssh};
use crate::session::hold::GrantRef;
use crate::session::log::event;
use crate::session::ssh::Permit;

pub use door::{Door, Origin};

/// Most ports and sockets on which the host listens for one connection.
const MAX_LISTENING: usize = 32;

/// Most requests to listen, or to listen no more, that wait at a time.
const MAX_ASKING: usize = 64;

/// Time that sshd gets to answer.
const ASK_TIME: Duration = Duration::from_secs(10);

/// X11 forwarding as a channel asks for it (RFC 4254, section 6.3.1).
pub struct X11 {
    /// Only one connection.
    pub single: bool,
    /// Name of the authentication protocol.
    pub protocol: String,
    /// What sshd hands to programs; the client exchanges it for the real one.
    pub cookie: String,
    /// Screen number.
    pub screen: u32,
}

impl std::fmt::Debug for X11 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X11").field("screen", &self.screen).finish_non_exhaustive()
    }
}

/// What a session channel wants opened back, before its program starts.
#[derive(Debug, Default)]
pub struct Wishes {
    /// X11.
    pub x11: Option<X11>,
    /// The agent's keys.
    pub agent: bool,
}

/// A door that stands open.
struct Open {
    door: Door,
    /// As it was asked for, and is judged: with port 0 for one that sshd chose.
    facts: SshFacts,
    /// The request by which it was opened.
    request: u64,
    grant: Option<GrantRef>,
    /// A human let it be opened. Rules that ask for one later are not content without.
    decided: bool,
    watch: Option<AbortHandle>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// What one connection has opened.
pub struct Reverse {
    /// Where channels are opened to the agent's client.
    client: OnceLock<server::Handle>,
    /// Locked while sshd is asked, so that nothing that it opens overtakes the answer.
    doors: tokio::sync::Mutex<Vec<Open>>,
    asking: Arc<Semaphore>,
    /// Flows of channels that the client has confirmed, for whoever of two comes second.
    confirmed: Mutex<HashMap<ChannelId, Arc<Flow>>>,
}

impl Default for Reverse {
    fn default() -> Self {
        Self {
            client: OnceLock::new(),
            doors: tokio::sync::Mutex::default(),
            asking: Arc::new(Semaphore::new(MAX_ASKING)),
            confirmed: Mutex::default(),
        }
    }
}

impl Reverse {
    /// Learns how channels are opened to the client.
    pub fn client(&self, handle: server::Handle) {
        let _ = self.client.set(handle);
    }

    /// A place among the requests that wait.
    pub fn ask(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.asking).try_acquire_owned().ok()
    }

    /// The flow of a channel that the client has confirmed. The connection's task and the
    /// channel's own ask once each, in either order.
    pub fn confirmed(&self, id: ChannelId) -> Arc<Flow> {
        let mut confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.remove(&id).unwrap_or_else(|| {
            let flow = Arc::<Flow>::default();
            confirmed.insert(id, Arc::clone(&flow));
            flow
        })
    }

    /// Shuts a door; what came through it before stays.
    async fn shut(&self, door: &Door, upstream: &Upstream) -> bool {
        let mut doors = self.doors.lock().await;
        let Some(at) = doors.iter().position(|open| open.door == *door) else { return false };
        let ended = timeout(ASK_TIME, upstream.unlisten(door)).await;
        doors.remove(at);
        matches!(ended, Ok(Ok(())))
    }
}

/// Judges a request to listen, has sshd listen, and answers.
pub async fn listen(
    acting: Arc<Acting>,
    gone: Arc<Flow>,
    door: Door,
    answer: DeferredAnswer,
    place: OwnedSemaphorePermit,
) {
    let facts = door.facts();
    let refuse = |why: &str| {
        acting.with(|session| session.refuse_ssh(&facts, why));
    };
    if let Some(why) = door.never(&acting.parts.gate.config) {
        refuse(why);
        return answer.failure();
    }
    let permitted = permit(&acting, None, "remote-forward", &facts, &gone, &Silent).await;
    let Ok(permitted) = permitted else { return answer.failure() };
    let Ok(upstream) = acting.upstream().await else { return answer.failure() };
    let doors = acting.reverse.doors.lock().await;
    let listening = doors.iter().filter(|open| open.door.listens()).count();
    if listening >= MAX_LISTENING || doors.iter().any(|open| open.door == door) {
        refuse("TOO_MANY_FORWARDS: it listens there already, or on as many places as it may");
        return answer.failure();
    }
    let chosen = match timeout(ASK_TIME, upstream.listen(&door)).await {
        Ok(Ok(port)) => port,
        Ok(Err(error)) => {
            tracing::warn!(session = %acting.id(), %error, %door, "sshd does not listen");
            return answer.failure();
        }
        Err(_) => {
            tracing::warn!(session = %acting.id(), %door, "sshd does not say whether it listens");
            return answer.failure();
        }
    };
    let door = door.with_port(chosen);
    if let Some(why) = door.never(&acting.parts.gate.config) {
        let _ = timeout(ASK_TIME, upstream.unlisten(&door)).await;
        refuse(why);
        return answer.failure();
    }
    answer.success(chosen);
    open(&acting, doors, door, facts, &permitted);
    drop(place);
}

/// Opens a door for as long as the grant stands under which it was permitted.
fn open(
    acting: &Arc<Acting>,
    mut doors: MutexGuard<'_, Vec<Open>>,
    door: Door,
    facts: SshFacts,
    permitted: &Permitted,
) {
    let watch = permitted.grant.clone().map(|mut grant| {
        let (acting, door) = (Arc::downgrade(acting), door.clone());
        tokio::spawn(async move {
            if !grant.withdrawn().await {
                return;
            }
            let Some(acting) = acting.upgrade() else { return };
            // Shutting the door aborts whoever watches it.
            tokio::spawn(async move {
                if let Ok(upstream) = acting.upstream().await {
                    acting.reverse.shut(&door, &upstream).await;
                }
            });
        })
        .abort_handle()
    });
    let (request, grant) = (permitted.request, permitted.grant.clone());
    let decided = permitted.ruling.effect == Effect::Hold;
    doors.push(Open { door, facts, request, grant, decided, watch });
}

/// Has sshd listen no more, and answers.
pub async fn cancel(
    acting: Arc<Acting>,
    door: Door,
    answer: DeferredAnswer,
    place: OwnedSemaphorePermit,
) {
    // Without a connection to sshd there is nothing to cancel; none is made for it.
    let shut = match acting.upstream_if_any().await {
        Some(upstream) => acting.reverse.shut(&door, &upstream).await,
        None => false,
    };
    if shut {
        answer.success(None)
    } else {
        answer.failure()
    }
    drop(place);
}

/// Asks sshd for what a channel wants opened back, where rules allow it. A program starts without
/// what it does not get, and its client is told. The error is for the agent.
pub async fn prepare(
    acting: &Arc<Acting>,
    ch: u32,
    flow: &Flow,
    write: &ChannelWriteHalf<Msg>,
    upstream: &UpstreamChannel,
    wishes: &Wishes,
) -> Result<(), String> {
    let wanted = [(wishes.x11.is_some(), Door::X11), (wishes.agent, Door::Agent)];
    for door in wanted.into_iter().filter_map(|(is, door)| is.then_some(door)) {
        let facts = door.facts();
        let permitted = match permit(acting, ch, door.class(), &facts, flow, &Silent).await {
            Ok(permitted) => permitted,
            Err(Denied::Refused(why)) => {
                say(write, &acting.words(&why)).await;
                continue;
            }
            Err(Denied::Gone) => return Err("the connection is over".into()),
        };
        let doors = acting.reverse.doors.lock().await;
        // The keys are forwarded for a connection, not for a channel: sshd takes it once.
        let stands = doors.iter().any(|open| open.door == door);
        if stands && door == Door::Agent {
            continue;
        }
        let asked = match (&door, &wishes.x11) {
            (Door::X11, Some(x11)) => {
                let (protocol, cookie) = (x11.protocol.as_str(), x11.cookie.as_str());
                upstream.write.request_x11(true, x11.single, protocol, cookie, x11.screen).await
            }
            _ => upstream.write.agent_forward(true).await,
        };
        let good = match asked {
            Ok(()) => timeout(ASK_TIME, answered(upstream)).await.ok(),
            Err(_) => None,
        };
        match good {
            Some(true) if stands => {}
            Some(true) => open(acting, doors, door, facts, &permitted),
            Some(false) => {
                // The agent may not read for a while, and others want the doors.
                drop(doors);
                let words = format!("SERVICE_REFUSED: sshd of this host refuses {door}");
                say(write, &acting.words(&words)).await;
            }
            None => return Err("SERVICE_UNAVAILABLE: sshd does not answer".into()),
        }
    }
    Ok(())
}

/// Takes what sshd opens, as long as there is anybody whom it could be opened to.
pub async fn accept(acting: Weak<Acting>, mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(inbound) = inbound.recv().await {
        let Some(acting) = acting.upgrade() else { return };
        match acting.enter() {
            Some(place) => drop(tokio::spawn(pass(place, inbound))),
            None => inbound.reject(ChannelOpenFailure::ResourceShortage).await,
        }
    }
}

/// Passes on one channel to the agent, and relays it to its end.
async fn pass(place: Place, inbound: Inbound) {
    let acting = Arc::clone(&place.acting);
    let Some(permitted) = permitted(&acting, &inbound.origin).await else {
        return inbound.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
    };
    let ch = acting.next_channel();
    let detail = inbound.origin.to_string();
    let kind = Cow::Borrowed(inbound.origin.kind());
    note(&acting, &event::ChannelOpen { ch, kind, detail: Some(Cow::Borrowed(&detail)) });
    let opened = tokio::select! {
        opened = ask_client(&acting, &inbound.origin) => opened,
        _ = acting.over() => Err(russh::Error::Disconnect),
    };
    let (_, write) = match opened {
        Ok(channel) => channel.split(),
        Err(russh::Error::ChannelOpenFailure(reason)) => return inbound.reject(reason).await,
        Err(_) => return inbound.reject(ChannelOpenFailure::ConnectFailed).await,
    };
    let flow = acting.reverse.confirmed(write.id());
    let _taker = Taker(Arc::clone(&flow));
    // What is said to an agent may be a private key, to be added to it.
    let secret = inbound.origin == Origin::Agent;
    let upstream = inbound.accept().await;
    let relay = Relay::of_bytes(acting, ch, flow, write, upstream, permitted);
    Relay { secret, ..relay }.run().await;
    drop(place);
}

/// The permission of the door through which a channel comes, judged by the rules of now.
async fn permitted(acting: &Acting, origin: &Origin) -> Option<Permitted> {
    let (facts, request, grant, decided) = {
        let doors = acting.reverse.doors.lock().await;
        let open = doors.iter().find(|open| open.door.lets(origin))?;
        (open.facts.clone(), open.request, open.grant.clone(), open.decided)
    };
    let (ruling, permit) = acting.with(|session| {
        let ruling = session.rule_ssh(&facts);
        let permit = session.permit_after_hold(&ruling);
        (ruling, permit)
    })?;
    let undecided = ruling.effect == Effect::Hold && !decided;
    let refused = match permit {
        Ok(_) if undecided => "HOLD_UNAVAILABLE: rules ask for a human now: ask for it anew".into(),
        Ok(Permit::Granted(commit)) => match commit.durable().await {
            Ok(()) => return Some(Permitted { request, ruling, grant }),
            Err(error) => error.to_string(),
        },
        Ok(Permit::Refused(why)) => why,
        Ok(Permit::Waits(_)) => return None,
        Err(error) => error.to_string(),
    };
    acting.with(|session| session.refuse_ssh(&facts, &refused));
    None
}

async fn ask_client(acting: &Acting, origin: &Origin) -> Result<Channel<Msg>, russh::Error> {
    let client = acting.reverse.client.get().ok_or(russh::Error::Disconnect)?;
    match origin {
        Origin::Tcp { address, port, from: (host, number) } => {
            client.channel_open_forwarded_tcpip(address, *port, host, *number).await
        }
        Origin::Unix { path } => client.channel_open_forwarded_streamlocal(path).await,
        Origin::X11 { from: (host, number) } => client.channel_open_x11(host, *number).await,
        Origin::Agent => client.channel_open_agent().await,
    }
}
