//! What the protocol asks of us, request by request. Nothing here waits for sshd or a human:
//! what runs has a task of its own.

use std::sync::Arc;

use russh::keys::ssh_key::Certificate;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Response, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use zeroize::Zeroizing;

use super::super::channel::{self, Program};
use super::super::flow::{Event, Flow, Stream};
use super::super::forward::{self, Target};
use super::super::reverse::{self, Door, X11};
use super::authentication::reject;
use super::{Connection, MAX_ENV, MAX_ENV_BEFORE_TOKEN, MAX_VARIABLE, Standing, Terminal, Waiting};
use crate::identity::{self, Way};

/// Sizes of a terminal beyond which programs, and those who read the record, would break.
const MAX_SIDE: u32 = 4096;

/// Longest `TERM`, and longest name of an authentication protocol of X11. Bytes.
const MAX_TERM: usize = 64;

/// Longest cookie of X11, in hex. Bytes.
const MAX_COOKIE: usize = 512;

/// A word of the agent's that programs can be given.
fn is_plain(word: &str, longest: usize) -> bool {
    word.len() <= longest && word.bytes().all(|b| b.is_ascii_graphic())
}

/// A size that a terminal can have; 0 means unknown (RFC 4254, section 6.2).
fn size(cols: u32, rows: u32, width: u32, height: u32) -> [u32; 4] {
    let or = |n: u32, usual| if n == 0 { usual } else { n.min(MAX_SIDE) };
    [or(cols, 80), or(rows, 24), width.min(1 << 16), height.min(1 << 16)]
}

impl Connection {
    fn waiting(&mut self, id: ChannelId) -> Option<&mut Waiting> {
        self.channels.get_mut(&id).filter(|w| w.write.is_some())
    }

    /// Starts what was asked for on a channel, once. Whatever comes of it is said on the
    /// channel itself, in order with everything else.
    fn start(
        &mut self,
        id: ChannelId,
        program: Program,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some(waiting) = self.channels.get_mut(&id) else { return session.channel_failure(id) };
        let Some(write) = waiting.write.take() else { return session.channel_failure(id) };
        session.channel_success(id)?;
        let flow = Arc::clone(&waiting.flow);
        let variables = std::mem::take(&mut waiting.variables);
        let terminal = waiting.terminal.take();
        let wishes = std::mem::take(&mut waiting.wishes);
        let place = match &self.standing {
            Standing::Acting(acting) => match acting.enter() {
                Some(place) => place,
                None => {
                    let words =
                        acting.words("TOO_MANY_CHANNELS: this connection runs as many as it may");
                    flow.event(Event::Closed);
                    tokio::spawn(async move { channel::refuse(&write, &words).await });
                    return Ok(());
                }
            },
            _ => {
                let words = self.refusal.take().unwrap_or_else(|| {
                    "interceptor: TOKEN_MISSING: this key needs its agent's token in an LC_* \
                     variable, e.g. LC_OKTA_TOKEN with SendEnv"
                        .into()
                });
                tokio::spawn(async move { channel::refuse(&write, &words).await });
                return Ok(());
            }
        };
        tokio::spawn(channel::run(channel::Start {
            place,
            flow,
            write,
            variables,
            terminal,
            wishes,
            program,
        }));
        Ok(())
    }

    /// Whether a variable may be set; one that carries a token is consumed here.
    async fn variable(&mut self, id: ChannelId, name: &str, value: &str) -> bool {
        if self.waiting(id).is_none() || name.len() + value.len() > MAX_VARIABLE {
            return false;
        }
        if !matches!(self.standing, Standing::Acting(_)) {
            self.variables_before_token += 1;
            if self.variables_before_token > MAX_ENV_BEFORE_TOKEN {
                return false;
            }
        }
        if identity::is_token(value.as_bytes()) {
            if !name.starts_with("LC_") {
                return false;
            }
            return match self.token_in_variable(value).await {
                Ok(()) => true,
                Err(words) => {
                    self.refusal = Some(words);
                    false
                }
            };
        }
        let Some(waiting) = self.waiting(id) else { return false };
        if waiting.variables.len() >= MAX_ENV {
            return false;
        }
        waiting.variables.push((name.to_owned(), value.to_owned()));
        true
    }

    fn forward(&mut self, channel: Channel<Msg>, reply: ChannelOpenHandle, target: Target) {
        let Standing::Acting(acting) = &self.standing else {
            tokio::spawn(reply.reject(ChannelOpenFailure::AdministrativelyProhibited));
            return;
        };
        let Some(place) = acting.enter() else {
            tokio::spawn(reply.reject(ChannelOpenFailure::ResourceShortage));
            return;
        };
        let flow = Arc::new(Flow::default());
        let (_, write) = channel.split();
        self.insert(write.id(), Waiting::running(Arc::clone(&flow)));
        tokio::spawn(forward::run(place, flow, write, reply, target));
    }

    fn insert(&mut self, id: ChannelId, waiting: Waiting) {
        // What we closed first is told of by nobody.
        self.channels.retain(|_, waiting| !waiting.flow.is_closed());
        self.channels.insert(id, waiting);
    }

    /// Has somebody look after a request to listen, or to listen no more; the answer follows.
    fn ask(&mut self, door: Door, listen: bool, session: &mut Session) {
        let Standing::Acting(acting) = &self.standing else { return };
        let Some(place) = acting.reverse.ask() else { return };
        acting.reverse.client(session.handle());
        let (acting, answer) = (Arc::clone(acting), session.defer_answer());
        if listen {
            tokio::spawn(reverse::listen(acting, Arc::clone(&self.gone), door, answer, place));
        } else {
            tokio::spawn(reverse::cancel(acting, door, answer, place));
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _: &str) -> Result<Auth, Self::Error> {
        Ok(reject())
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        Ok(self.password(user, password, Way::Password).await)
    }

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.offered(offer))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: russh::server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.key(user, key.public_key).await)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        Ok(self.certificate(user, certificate).await)
    }

    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        let answers = response.map(|r| r.take(2).map(|a| Zeroizing::new(a.to_vec())).collect());
        Ok(self.answers(user, answers).await)
    }

    fn rejection_banner(&mut self) -> Option<String> {
        self.banner.take()
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // What we closed first is told of by nobody.
        self.channels.retain(|_, waiting| !waiting.flow.is_closed());
        let most = match &self.standing {
            Standing::Acting(acting) => acting.limit(),
            _ => 1,
        };
        if self.channels.len() >= most {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // What arrives comes through the callbacks below; nothing is read from the channel.
        let (_, write) = channel.split();
        self.insert(write.id(), Waiting::new(write));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(port) = u16::try_from(port) else {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        self.forward(channel, reply, Target::Tcp { host: host.to_owned(), port });
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.forward(channel, reply, Target::Unix { path: path.to_owned() });
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let door = Door::Tcp { address: address.to_owned(), port: *port };
        self.ask(door, true, session);
        Ok(false)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.ask(Door::Tcp { address: address.to_owned(), port }, false, session);
        Ok(false)
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.ask(Door::Unix { path: path.to_owned() }, true, session);
        Ok(false)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        self.ask(Door::Unix { path: path.to_owned() }, false, session);
        Ok(false)
    }

    async fn agent_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let allowed = self.back_allowed(&Door::Agent.facts());
        if let Standing::Acting(acting) = &self.standing {
            acting.reverse.client(session.handle());
        }
        let Some(waiting) = self.waiting(id) else { return Ok(false) };
        waiting.wishes.agent |= allowed;
        Ok(allowed)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        single: bool,
        protocol: &str,
        cookie: &str,
        screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let plain = is_plain(protocol, MAX_TERM) && is_plain(cookie, MAX_COOKIE);
        let allowed = self.back_allowed(&Door::X11.facts());
        if let Standing::Acting(acting) = &self.standing {
            acting.reverse.client(session.handle());
        }
        let Some(waiting) = self.waiting(id) else { return session.channel_failure(id) };
        if !allowed || !plain {
            return session.channel_failure(id);
        }
        let (protocol, cookie) = (protocol.to_owned(), cookie.to_owned());
        waiting.wishes.x11 = Some(X11 { single, protocol, cookie, screen });
        session.channel_success(id)
    }

    /// The client has taken a channel that was opened back to it.
    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Standing::Acting(acting) = &self.standing else { return Ok(()) };
        if !self.channels.contains_key(&id) {
            let flow = acting.reverse.confirmed(id);
            self.insert(id, Waiting::running(flow));
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.variable(id, name, value).await {
            session.channel_success(id)
        } else {
            session.channel_failure(id)
        }
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let allowed = self.terminal_allowed(term);
        let Some(waiting) = self.waiting(id) else { return session.channel_failure(id) };
        if !allowed || !is_plain(term, MAX_TERM) || waiting.terminal.is_some() {
            return session.channel_failure(id);
        }
        waiting.terminal = Some(Terminal {
            term: term.to_owned(),
            size: size(cols, rows, width, height),
            modes: modes.to_vec(),
        });
        session.channel_success(id)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(id, Program::Exec(command.into()), session)
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(id, Program::Shell, session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(id, Program::Subsystem(name.to_owned()), session)
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        cols: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let new = size(cols, rows, width, height);
        if let Some(waiting) = self.channels.get_mut(&id) {
            match waiting.terminal.as_mut() {
                Some(terminal) => terminal.size = new,
                None => waiting.flow.event(Event::Resize(new)),
            }
        }
        session.channel_success(id)
    }

    async fn signal(
        &mut self,
        id: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(waiting) = self.channels.get(&id) {
            let name: String = signal.name().chars().take(32).collect();
            waiting.flow.event(Event::Signal(name));
        }
        Ok(())
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(waiting) = self.channels.get(&id) {
            waiting.flow.data(Stream::Data, data);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(waiting) = self.channels.get(&id) {
            waiting.flow.event(Event::Eof);
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        if let Some(waiting) = self.channels.remove(&id) {
            waiting.flow.event(Event::Closed);
        }
        Ok(())
    }
}
