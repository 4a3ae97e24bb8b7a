//! The way to the host's own sshd: one connection for each of ours, let in by a certificate
//! that is made for it and good for about a minute.
//!
//! The key behind the certificate is made here, used once and dropped; the agent never holds
//! anything that sshd would accept. The server must show one of the host's own keys.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use russh::client::{self, AuthResult, ChannelOpenHandle, Handle, Msg};
use russh::keys::{PublicKey, PublicKeyOrCertificate};
use russh::{ChannelId, ChannelOpenFailure, ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::flow::{Event, Exit, Flow, Stream};
use super::reverse::{Door, Origin};
use crate::capture::{self, CaptureError, Pins, UpstreamExemption};
use crate::config::{Service, Upstream as UpstreamConfig};
use crate::session::ssh::Forwards;
use crate::sshd::{self, CaError, CertificateSpec, KeyId, UserCa};

/// Time for reaching sshd and being let in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// `SSH_EXTENDED_DATA_STDERR` (RFC 4254, section 5.2).
const STDERR: u32 = 1;

/// Why sshd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It cannot be reached, or the connection broke.
    #[error("sshd not reachable: {0}")]
    Io(#[from] io::Error),
    /// The protocol failed.
    #[error("sshd: {0}")]
    Ssh(#[from] russh::Error),
    /// Our own connection cannot be exempted from capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The certificate cannot be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It is not the host's own sshd.
    #[error("sshd shows a key that is none of this host's: name its keys in service.ssh.host_keys")]
    ForeignKey,
    /// It does not accept our certificate.
    #[error(
        "sshd does not let the daemon become {user}: `interceptor setup ssh --user {user}` makes \
         it trust session certificates"
    )]
    Refused {
        /// The operating system user.
        user: String,
    },
    /// It did not answer in time.
    #[error("sshd did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// It refused to open a channel.
    #[error("sshd refused the channel ({0:?})")]
    Channel(ChannelOpenFailure),
    /// The configuration names no TCP upstream.
    #[error("an SSH service needs a TCP upstream")]
    NoAddress,
}

/// Who becomes what, for one connection.
#[derive(Debug)]
pub struct Spec<'a> {
    /// The operating system user.
    pub user: &'a str,
    /// The session, agent and subject, for sshd's log.
    pub key_id: KeyId,
    /// Number of the certificate on this host.
    pub serial: u64,
    /// What any rule may let it forward.
    pub forwards: Forwards,
    /// Who is told of the channels that sshd opens.
    pub inbound: mpsc::Sender<Inbound>,
}

/// Where the channels of one connection to sshd put what arrives.
#[derive(Debug, Clone, Default)]
struct Flows(Arc<Mutex<HashMap<ChannelId, Place>>>);

/// A channel's flow, and whether whoever took from it has gone before sshd closed the channel.
#[derive(Debug, Default)]
struct Place {
    flow: Arc<Flow>,
    abandoned: bool,
}

impl Flows {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flow of a channel that was opened, made by whoever comes first: sshd may send before
    /// the opener knows the channel.
    fn get(&self, id: ChannelId) -> Arc<Flow> {
        Arc::clone(&self.lock().entry(id).or_default().flow)
    }

    /// The channel's taker goes. Its place stays until sshd has closed the channel, so that
    /// nothing that still comes makes a new one.
    fn leave(&self, id: ChannelId) {
        let mut places = self.lock();
        match places.get_mut(&id) {
            Some(place) if !place.flow.is_closed() => place.abandoned = true,
            _ => drop(places.remove(&id)),
        }
    }

    fn closed(&self, id: ChannelId) {
        let mut places = self.lock();
        let place = places.entry(id).or_default();
        place.flow.event(Event::Closed);
        if place.abandoned {
            places.remove(&id);
        }
    }

    fn close_all(&self) {
        for place in self.lock().values() {
            place.flow.event(Event::Closed);
        }
    }
}

/// A connection to sshd as one user.
pub struct Upstream {
    handle: Handle<Client>,
    flows: Flows,
    /// Our address on it, by which sshd's log and the session can be told to belong together.
    pub local: Option<SocketAddr>,
    /// Its address.
    pub address: SocketAddr,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").field("local", &self.local).finish_non_exhaustive()
    }
}

/// One channel on it.
#[derive(Debug)]
pub struct UpstreamChannel {
    /// Where we write.
    pub write: ChannelWriteHalf<Msg>,
    /// What arrives.
    pub flow: Arc<Flow>,
    flows: Flows,
}

impl Drop for UpstreamChannel {
    fn drop(&mut self) {
        self.flows.leave(self.write.id());
    }
}

impl Upstream {
    /// Connects, checks the host key, and becomes the user.
    pub async fn open(
        service: &Service,
        pins: Option<&Pins>,
        keys: Vec<PublicKey>,
        ca: &UserCa,
        spec: Spec<'_>,
    ) -> Result<Self, UpstreamError> {
        tokio::time::timeout(CONNECT_TIMEOUT, Self::open_inner(service, pins, keys, ca, spec))
            .await
            .map_err(|_| UpstreamError::Timeout)?
    }

    async fn open_inner(
        service: &Service,
        pins: Option<&Pins>,
        keys: Vec<PublicKey>,
        ca: &UserCa,
        spec: Spec<'_>,
    ) -> Result<Self, UpstreamError> {
        let UpstreamConfig::Tcp { host, port, .. } = &service.upstream else {
            return Err(UpstreamError::NoAddress);
        };
        let address = SocketAddr::new(*host, *port);
        let (stream, exemption) = match pins {
            Some(pins) => {
                let (stream, exemption) = capture::connect_exempt(pins, address).await?;
                (stream, Some(exemption))
            }
            None => (TcpStream::connect(address).await?, None),
        };
        stream.set_nodelay(true)?;
        let local = stream.local_addr().ok();
        let transport = Transport { stream, _exemption: exemption };
        let flows = Flows::default();
        let client = Client { keys, flows: flows.clone(), inbound: spec.inbound };
        let settings = Arc::new(super::settings::client());
        let mut handle = client::connect_stream(settings, transport, client).await?;
        let key = sshd::new_session_key()?;
        let certificate = ca.issue(&CertificateSpec {
            public_key: key.public_key(),
            principal: &service.ssh.principal,
            serial: spec.serial,
            key_id: spec.key_id,
            source_addresses: &sshd::LOOPBACK,
            permit_pty: true,
            permit_forwarding: spec.forwards.ports,
            permit_x11: spec.forwards.x11,
            permit_agent: spec.forwards.agent,
            now: SystemTime::now(),
        })?;
        let asked = handle.authenticate_openssh_cert(spec.user, Arc::new(key), certificate).await?;
        match asked {
            AuthResult::Success => Ok(Self { handle, flows, local, address }),
            AuthResult::Failure { .. } => {
                Err(UpstreamError::Refused { user: spec.user.to_owned() })
            }
        }
    }

    fn channel(&self, channel: russh::Channel<Msg>) -> UpstreamChannel {
        // What arrives comes through the flow; nothing is read from the channel itself.
        let (_, write) = channel.split();
        let flow = self.flows.get(write.id());
        UpstreamChannel { write, flow, flows: self.flows.clone() }
    }

    /// Opens a session channel (RFC 4254, section 6.1).
    pub async fn session(&self) -> Result<UpstreamChannel, UpstreamError> {
        Ok(self.channel(self.handle.channel_open_session().await.map_err(failed)?))
    }

    /// Opens a forward to an address (RFC 4254, section 7.2).
    pub async fn direct_tcpip(
        &self,
        to: SocketAddr,
        from: SocketAddr,
    ) -> Result<UpstreamChannel, UpstreamError> {
        let opened = self.handle.channel_open_direct_tcpip(
            to.ip().to_string(),
            u32::from(to.port()),
            from.ip().to_string(),
            u32::from(from.port()),
        );
        Ok(self.channel(opened.await.map_err(failed)?))
    }

    /// Opens a forward to a Unix socket (OpenSSH PROTOCOL, section 2.4).
    pub async fn direct_streamlocal(&self, path: &str) -> Result<UpstreamChannel, UpstreamError> {
        let opened = self.handle.channel_open_direct_streamlocal(path);
        Ok(self.channel(opened.await.map_err(failed)?))
    }

    /// Has it listen for the agent (RFC 4254, section 7.1; OpenSSH PROTOCOL, section 2.4). Gives the
    /// port that it chose, when it was to choose one.
    pub async fn listen(&self, door: &Door) -> Result<Option<u32>, russh::Error> {
        match door {
            Door::Tcp { address, port } => {
                let chosen = self.handle.tcpip_forward(address, *port).await?;
                Ok((*port == 0 && chosen != 0).then_some(chosen))
            }
            Door::Unix { path } => {
                self.handle.streamlocal_forward(path).await?;
                Ok(None)
            }
            Door::X11 | Door::Agent => Err(russh::Error::RequestDenied),
        }
    }

    /// Has it listen no more. What X11 and agents come through ends by itself.
    pub async fn unlisten(&self, door: &Door) -> Result<(), russh::Error> {
        match door {
            Door::Tcp { address, port } => self.handle.cancel_tcpip_forward(address, *port).await,
            Door::Unix { path } => self.handle.cancel_streamlocal_forward(path).await,
            Door::X11 | Door::Agent => Ok(()),
        }
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }
}

fn failed(error: russh::Error) -> UpstreamError {
    match error {
        russh::Error::ChannelOpenFailure(reason) => UpstreamError::Channel(reason),
        other => UpstreamError::Ssh(other),
    }
}

/// A channel that sshd wants to open. Refused when it is dropped.
pub struct Inbound {
    /// Where it comes from.
    pub origin: Origin,
    write: ChannelWriteHalf<Msg>,
    reply: ChannelOpenHandle,
    flows: Flows,
}

impl Inbound {
    /// Lets it be opened.
    pub async fn accept(self) -> UpstreamChannel {
        let flow = self.flows.get(self.write.id());
        self.reply.accept().await;
        UpstreamChannel { write: self.write, flow, flows: self.flows }
    }

    /// Refuses it.
    pub async fn reject(self, reason: ChannelOpenFailure) {
        self.reply.reject(reason).await;
    }
}

/// Takes what sshd sends and puts it into the flows; never waits.
struct Client {
    keys: Vec<PublicKey>,
    flows: Flows,
    inbound: mpsc::Sender<Inbound>,
}

impl Client {
    /// Tells of a channel. When nobody listens, or too many wait, it is refused by being dropped.
    fn offer(&self, origin: Origin, channel: russh::Channel<Msg>, reply: ChannelOpenHandle) {
        let (_, write) = channel.split();
        let _ = self.inbound.try_send(Inbound { origin, write, reply, flows: self.flows.clone() });
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.flows.close_all();
    }
}

impl client::Handler for Client {
    type Error = UpstreamError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            return Err(UpstreamError::ForeignKey);
        };
        if self.keys.iter().any(|own| own.key_data() == key.key_data()) {
            return Ok(true);
        }
        Err(UpstreamError::ForeignKey)
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: russh::Channel<Msg>,
        address: &str,
        port: u32,
        host: &str,
        number: u32,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let from = (host.to_owned(), number);
        self.offer(Origin::Tcp { address: address.to_owned(), port, from }, channel, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: russh::Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer(Origin::Unix { path: path.to_owned() }, channel, reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: russh::Channel<Msg>,
        host: &str,
        number: u32,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer(Origin::X11 { from: (host.to_owned(), number) }, channel, reply);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: russh::Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.offer(Origin::Agent, channel, reply);
        Ok(())
    }

    /// Nothing that is not asked for is opened.
    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.get(channel).data(Stream::Data, data);
        Ok(())
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        ext: u32,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        if ext == STDERR {
            self.flows.get(channel).data(Stream::Stderr, data);
        }
        Ok(())
    }

    async fn channel_success(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.get(channel).event(Event::Reply(true));
        Ok(())
    }

    async fn channel_failure(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.get(channel).event(Event::Reply(false));
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.get(channel).event(Event::Eof);
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.closed(channel);
        Ok(())
    }

    async fn exit_status(
        &mut self,
        channel: ChannelId,
        status: u32,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.flows.get(channel).event(Event::Exit(Exit::Status(status)));
        Ok(())
    }

    async fn exit_signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        core_dumped: bool,
        message: &str,
        _: &str,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let name = signal.name().to_owned();
        let exit = Exit::Signal { name, core_dumped, message: message.to_owned() };
        self.flows.get(channel).event(Event::Exit(exit));
        Ok(())
    }
}

/// The connection with its exemption, which must outlive it: fields are dropped in this order.
struct Transport {
    stream: TcpStream,
    _exemption: Option<UpstreamExemption>,
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
