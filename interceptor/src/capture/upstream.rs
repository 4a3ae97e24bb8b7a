//! The daemon's own connections to a protected port, which must not be steered to itself.
//!
//! The exact 4-tuple is written before the connection is made and removed after it is closed:
//! with SYN cookies the kernel looks twice, and an entry that outlives its connection would let
//! whoever binds that source port pass. The kernel program honours it only while a listener of
//! the daemon lives.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use aya::maps::MapError;
use interceptor_ebpf::Tuple;
use tokio::net::{TcpSocket, TcpStream};

use super::maps::{self, Own, canonical};
use super::{CaptureError, Pins};

/// `BPF_NOEXIST`: a tuple that is there belongs to a connection that is not closed yet.
const NEW_ONLY: u64 = 1;
/// Ports tried when the kernel hands out one whose tuple is still taken.
const ATTEMPTS: u32 = 8;

/// Keeps one connection of the daemon exempt. Drop it after the connection is closed.
#[must_use = "dropping it ends the exemption"]
pub struct UpstreamExemption {
    own: Arc<Mutex<Own>>,
    tuple: Tuple,
}

impl std::fmt::Debug for UpstreamExemption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamExemption").field("tuple", &self.tuple).finish_non_exhaustive()
    }
}

impl Drop for UpstreamExemption {
    fn drop(&mut self) {
        let mut own = self.own.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(e) = own.remove(&self.tuple)
            && !maps::is_missing(&e)
        {
            tracing::error!(error = %e, "could not remove an upstream exemption");
        }
    }
}

impl Pins {
    /// Exempts the connection from `source` to `service`, both exact, until the guard is dropped.
    pub fn exempt_upstream(
        &self,
        source: SocketAddr,
        service: SocketAddr,
    ) -> Result<UpstreamExemption, CaptureError> {
        self.try_exempt(source, service)?.ok_or_else(|| {
            CaptureError::Invalid(format!("{source} to {service} is exempt already"))
        })
    }

    /// `None` when the tuple is taken.
    fn try_exempt(
        &self,
        source: SocketAddr,
        service: SocketAddr,
    ) -> Result<Option<UpstreamExemption>, CaptureError> {
        let tuple = maps::tuple(source, service);
        let own = Arc::clone(self.own());
        let inserted = own.lock().unwrap_or_else(|e| e.into_inner()).insert(tuple, 0u32, NEW_ONLY);
        match inserted {
            Ok(()) => Ok(Some(UpstreamExemption { own, tuple })),
            Err(e) => match code(&e) {
                Some(nix::libc::EEXIST) => Ok(None),
                Some(nix::libc::E2BIG) => Err(CaptureError::TooManyUpstreams),
                _ => Err(CaptureError::from_aya("exempt an upstream connection", &e)),
            },
        }
    }
}

fn code(e: &MapError) -> Option<i32> {
    match e {
        MapError::SyscallError(s) => s.io_error.raw_os_error(),
        _ => None,
    }
}

/// Connects to a protected service without being steered. Close the stream before the exemption
/// is dropped.
pub async fn connect_exempt(
    pins: &Pins,
    service: SocketAddr,
) -> Result<(TcpStream, UpstreamExemption), CaptureError> {
    let service = canonical(service);
    let failed = |source| CaptureError::Connect { service, source };
    let from = source_for(service).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        let socket = if service.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = socket.map_err(failed)?;
        socket.bind(SocketAddr::new(from, 0)).map_err(failed)?;
        let source = socket.local_addr().map_err(failed)?;
        let Some(exemption) = pins.try_exempt(source, service)? else { continue };
        let stream = socket.connect(service).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        return Ok((stream, exemption));
    }
    Err(failed(io::Error::from(io::ErrorKind::AddrInUse)))
}

/// The address the kernel would connect from. A connected UDP socket sends nothing.
fn source_for(service: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match service.ip() {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let probe = UdpSocket::bind(SocketAddr::new(any, 0))?;
    probe.connect(service)?;
    Ok(probe.local_addr()?.ip())
}
