//! Asking the kernel about TCP sockets (NETLINK_SOCK_DIAG): who owns the other end of a local
//! connection, which listeners live, and closing connections that are older than the capture.
//!
//! The protocol is a few fixed structures of `linux/inet_diag.h`, so they are written and read
//! here by offset; replies shorter than they must be are errors, never guesses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::Serialize;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const F_DUMP: u16 = 0x300;

const HEADER: usize = 16;
const REQUEST: usize = 56;
/// `struct inet_diag_msg`.
const REPLY: usize = 72;
const NO_COOKIE: [u32; 2] = [u32::MAX; 2];

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const ESTABLISHED: u8 = 1;
const LISTEN: u8 = 10;
/// Everything between the first SYN and the last FIN: not TIME_WAIT, CLOSE, LISTEN.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;

/// One established connection to a local port, as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// This end. IPv4 is never in IPv6 form.
    pub local: SocketAddr,
    /// The other end, in the same form.
    pub remote: SocketAddr,
    /// The kernel's number for the socket, never given twice between two starts of the machine.
    pub cookie: u64,
    /// The key to the process that holds it; 0 while nobody has accepted it.
    pub inode: u64,
}

/// One socket as the kernel describes it.
#[derive(Debug, Clone, Copy)]
struct Socket {
    family: u8,
    state: u8,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    cookie: [u32; 2],
    uid: u32,
    inode: u32,
}

/// User id of the owner of the socket at the other end of a connection, if that end is on this
/// machine (and in this network namespace). `None` for everybody else, and when it is gone.
pub fn peer_uid(peer: SocketAddr, original_dst: SocketAddr) -> Option<u32> {
    let (peer, here) = (super::maps::canonical(peer), super::maps::canonical(original_dst));
    if !peer.ip().is_loopback() && peer.ip() != here.ip() {
        return None;
    }
    let found = Diag::open().and_then(|d| d.exact(peer, here));
    match found {
        Ok(socket) => socket.map(|s| s.uid),
        Err(e) => {
            tracing::debug!(%peer, error = %e, "the owner of a local client is unknown");
            None
        }
    }
}

/// Cookies of all TCP listeners of this network namespace.
pub(super) fn listening_cookies() -> io::Result<Vec<u64>> {
    let mut cookies = Vec::new();
    Diag::open()?.dump(0, 1 << LISTEN, &mut |s| cookies.push(s.cookie()))?;
    Ok(cookies)
}

/// The established connections to a local port of this network namespace.
pub(super) fn established(port: u16) -> io::Result<Vec<Connection>> {
    let mut all = Vec::new();
    Diag::open()?.dump(port, 1 << ESTABLISHED, &mut |s| {
        if s.local.port() == port {
            let (local, remote, inode) = (s.local, s.remote, s.inode.into());
            all.push(Connection { local, remote, cookie: s.cookie(), inode });
        }
    })?;
    Ok(all)
}

/// Closes connections to a local port for which `close(peer, local, uid)` holds; says how many.
pub(super) fn destroy(
    port: u16,
    close: &dyn Fn(SocketAddr, SocketAddr, u32) -> bool,
) -> io::Result<usize> {
    let (diag, mut found, mut closed) = (Diag::open()?, Vec::new(), 0);
    diag.dump(port, CONNECTED, &mut |s| {
        if s.local.port() == port && close(s.remote, s.local, s.uid) {
            found.push(s);
        }
    })?;
    for socket in &found {
        closed += usize::from(diag.destroy(socket)?);
    }
    Ok(closed)
}

struct Diag(OwnedFd);

impl Diag {
    fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        // The kernel answers at once; this only keeps a surprise from blocking for ever.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self(fd))
    }

    /// The established socket with exactly these two ends.
    fn exact(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<Socket>> {
        let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
        let id = id(local, remote, 0, NO_COOKIE);
        self.send(SOCK_DIAG_BY_FAMILY, F_REQUEST, family, u32::MAX, &id)?;
        let mut found = None;
        match self.receive(&mut |s| found = Some(s)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        // Without a match the kernel falls back to a listener on that port.
        Ok(found.filter(|s| s.state == ESTABLISHED && s.local == local && s.remote == remote))
    }

    fn dump(&self, port: u16, states: u32, each: &mut dyn FnMut(Socket)) -> io::Result<()> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
        let local = SocketAddr::new(any.ip(), port);
        for family in [AF_INET, AF_INET6] {
            let id = id(local, any, 0, [0; 2]);
            self.send(SOCK_DIAG_BY_FAMILY, F_REQUEST | F_DUMP, family, states, &id)?;
            while !self.receive(each)? {}
        }
        Ok(())
    }

    /// Closes one socket; `false` when it went away by itself.
    fn destroy(&self, s: &Socket) -> io::Result<bool> {
        let id = id_as(s.family, s.local, s.remote, s.interface, s.cookie);
        self.send(SOCK_DESTROY, F_REQUEST | F_ACK, s.family, 1 << s.state, &id)?;
        match self.receive(&mut |_| {}) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn send(&self, kind: u16, flags: u16, family: u8, states: u32, id: &[u8]) -> io::Result<()> {
        let mut m = Vec::with_capacity(HEADER + REQUEST);
        m.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
        m.extend_from_slice(&kind.to_ne_bytes());
        m.extend_from_slice(&flags.to_ne_bytes());
        m.extend_from_slice(&[0; 8]); // sequence, port id
        m.extend_from_slice(&[family, 6 /* TCP */, 0, 0]);
        m.extend_from_slice(&states.to_ne_bytes());
        m.extend_from_slice(id);
        sendto(self.0.as_raw_fd(), &m, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Reads one datagram of replies. `true` when a dump, or the one answer, is complete.
    fn receive(&self, each: &mut dyn FnMut(Socket)) -> io::Result<bool> {
        let mut buffer = vec![0; 32 * 1024];
        let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        parse(&buffer[..n], each)
    }
}

fn parse(mut rest: &[u8], each: &mut dyn FnMut(Socket)) -> io::Result<bool> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "short netlink reply");
    while !rest.is_empty() {
        let length = u32_at(rest, 0).ok_or_else(short)? as usize;
        let kind = u32_at(rest, 4).ok_or_else(short)? as u16;
        let message = rest.get(HEADER..length).ok_or_else(short)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(message, 0).ok_or_else(short)? as i32;
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(-code));
                }
                return Ok(true);
            }
            SOCK_DIAG_BY_FAMILY => each(Socket::read(message).ok_or_else(short)?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

impl Socket {
    fn cookie(&self) -> u64 {
        u64::from(self.cookie[1]) << 32 | u64::from(self.cookie[0])
    }

    fn read(m: &[u8]) -> Option<Self> {
        let m = m.get(..REPLY)?;
        let end = |port: usize, at: usize| {
            let ip: IpAddr = if m[0] == AF_INET {
                Ipv4Addr::new(m[at], m[at + 1], m[at + 2], m[at + 3]).into()
            } else {
                let octets: [u8; 16] = m[at..at + 16].try_into().ok()?;
                IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
            };
            Some(SocketAddr::new(ip, u16::from_be_bytes([m[port], m[port + 1]])))
        };
        Some(Self {
            family: m[0],
            state: m[1],
            local: end(4, 8)?,
            remote: end(6, 24)?,
            interface: u32_at(m, 40)?,
            cookie: [u32_at(m, 44)?, u32_at(m, 48)?],
            uid: u32_at(m, 64)?,
            inode: u32_at(m, 68)?,
        })
    }
}

/// `struct inet_diag_sockid` for two ends of one family.
fn id(local: SocketAddr, remote: SocketAddr, interface: u32, cookie: [u32; 2]) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    id_as(family, local, remote, interface, cookie)
}

/// The same as a socket of that family has it: IPv4 ends of an IPv6 socket are mapped.
fn id_as(
    family: u8,
    local: SocketAddr,
    remote: SocketAddr,
    interface: u32,
    cookie: [u32; 2],
) -> Vec<u8> {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if family == AF_INET => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&v4.octets());
            octets
        }
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut id = Vec::with_capacity(48);
    id.extend_from_slice(&local.port().to_be_bytes());
    id.extend_from_slice(&remote.port().to_be_bytes());
    id.extend_from_slice(&address(local.ip()));
    id.extend_from_slice(&address(remote.ip()));
    id.extend_from_slice(&interface.to_ne_bytes());
    id.extend_from_slice(&cookie[0].to_ne_bytes());
    id.extend_from_slice(&cookie[1].to_ne_bytes());
    id
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_owner_of_a_local_peer_is_known_whatever_the_family() {
        let me = nix::unistd::geteuid().as_raw();
        for (bind, connect) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")]
        {
            let Ok(listener) = TcpListener::bind(bind) else {
                eprintln!("SKIPPED: cannot bind {bind}");
                continue;
            };
            let port = listener.local_addr().unwrap().port();
            let client = TcpStream::connect((connect.parse::<IpAddr>().unwrap(), port)).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            assert_eq!(peer_uid(peer, local), Some(me), "{bind}");
            drop((client, server));
            assert_eq!(peer_uid(peer, local), None, "{bind} after close");
        }
    }

    #[test]
    fn connections_are_told_apart_by_cookie_even_on_the_same_ports() {
        use std::os::unix::fs::MetadataExt;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let client = TcpStream::connect(to).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let all = established(to.port()).unwrap();
            let [one] = all[..] else { panic!("{all:?}") };
            assert_eq!((one.local, one.remote), (to, peer));
            let fd = format!("/proc/self/fd/{}", server.as_raw_fd());
            assert_eq!(one.inode, std::fs::metadata(fd).unwrap().ino());
            assert!(one.cookie != 0 && !seen.contains(&one.cookie));
            assert_eq!(established(to.port()).unwrap(), [one], "the cookie stays");
            seen.push(one.cookie);
            socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop((client, server));
        }
    }

    #[test]
    fn a_peer_elsewhere_is_never_asked_for() {
        let there = "203.0.113.7:4000".parse().unwrap();
        assert_eq!(peer_uid(there, "192.0.2.1:5432".parse().unwrap()), None);
    }

    #[test]
    fn replies_that_are_too_short_are_errors() {
        let mut reply = vec![0u8; HEADER + 8];
        reply[..4].copy_from_slice(&((HEADER + 8) as u32).to_ne_bytes());
        reply[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert!(parse(&reply, &mut |_| {}).is_err());
        assert!(parse(&reply[..7], &mut |_| {}).is_err());
        reply[..4].copy_from_slice(&3u32.to_ne_bytes());
        assert!(parse(&reply, &mut |_| {}).is_err());
    }
}
