//! The daemon's end of steering: a listening socket that only steered connections reach.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::diag;
use super::maps::canonical;

const BACKLOG: i32 = 1024;

/// A steered connection with what the kernel vouches for.
#[derive(Debug)]
pub struct Captured {
    /// The connection; small writes are not delayed (TCP_NODELAY).
    pub stream: TcpStream,
    /// Where the client meant to go. IPv4 is never in IPv6 form.
    pub original_dst: SocketAddr,
    /// Where it came from, in the same form.
    pub peer: SocketAddr,
    /// User that owns the client's socket, known for clients on this machine only.
    pub peer_uid: Option<u32>,
}

impl Captured {
    /// The same connection, driven from here on by the runtime that this is called in.
    pub fn adopt(self) -> io::Result<Self> {
        let stream = TcpStream::from_std(self.stream.into_std()?)?;
        Ok(Self { stream, ..self })
    }
}

/// Accepts the connections to one protected port.
///
/// The socket is bound to a loopback address and a port of the kernel's choice, so that nothing
/// outside reaches it except by steering; what reaches it from inside is told by its local port
/// and closed. It never has SO_REUSEPORT: the kernel would spread connections over the group.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    port: u16,
    strays: AtomicU64,
}

impl Listener {
    pub(super) fn new(socket: Socket, port: u16) -> io::Result<Self> {
        let inner = TcpListener::from_std(socket.into())?;
        Ok(Self { inner, port, strays: AtomicU64::new(0) })
    }

    /// The next steered connection. Errors that concern one connection only (it was reset while
    /// waiting) are passed over; others, such as no more file descriptors, are the caller's to
    /// wait out.
    pub async fn accept(&self) -> io::Result<Captured> {
        loop {
            let (stream, peer) = match self.inner.accept().await {
                Ok(accepted) => accepted,
                Err(e) if concerns_one_connection(&e) => continue,
                Err(e) => return Err(e),
            };
            let Ok(local) = stream.local_addr() else { continue };
            if local.port() != self.port {
                // Connected to the listener itself: nobody knows what for, so it is closed.
                self.strays.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%peer, port = self.port, "closed a connection that was not steered");
                continue;
            }
            stream.set_nodelay(true).ok();
            let (peer, original_dst) = (canonical(peer), canonical(local));
            let peer_uid = diag::peer_uid(peer, original_dst);
            return Ok(Captured { stream, original_dst, peer, peer_uid });
        }
    }

    /// The protected port it serves.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections were closed because they were not steered.
    pub fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }

    /// The socket's own address, which no client ever sees.
    pub fn own_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr().map(canonical)
    }
}

/// accept(2) passes on what the network had against the new connection; the listener is fine.
fn concerns_one_connection(e: &io::Error) -> bool {
    use nix::libc::*;
    matches!(
        e.raw_os_error(),
        Some(
            ECONNABORTED
                | ENETDOWN
                | EPROTO
                | ENOPROTOOPT
                | EHOSTDOWN
                | ENONET
                | EHOSTUNREACH
                | EOPNOTSUPP
                | ENETUNREACH
        )
    )
}

/// A listening socket on loopback that takes both families, or IPv4 alone where the machine has
/// no IPv6. The IPv6 socket is bound to IPv4's loopback in IPv6 form: bound to `::1` the kernel
/// would make it one for IPv6 only.
pub(super) fn socket() -> io::Result<Socket> {
    let both = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), 0).into();
    listen_on(both).or_else(|e| match e.raw_os_error() {
        Some(nix::libc::EAFNOSUPPORT) => listen_on((Ipv4Addr::LOCALHOST, 0).into()),
        _ => Err(e),
    })
}

fn listen_on(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
