//! Going back: a port is again what it was before an attach that nobody confirmed, and every
//! other port stays as it is.

use std::net::SocketAddr;
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::attach::{self, ExemptSet};
use super::diag::Connection;
use super::maps::{self, Access, Exempt, Own, Ports};
use super::{CaptureError, bpffs, diag, netns, status};

/// What one port was before it was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The port.
    pub port: u16,
    /// The sources that were exempt; `None` where the port was not protected at all.
    pub exempt: Option<Vec<IpNet>>,
}

/// What these ports are now. Without pins, or with pins that are without effect, none is
/// protected.
pub fn before(dir: &Path, ports: &[u16]) -> Result<Vec<Before>, CaptureError> {
    let now = match status(dir) {
        Ok(now) => Some(now).filter(|s| !s.unprotected()),
        Err(CaptureError::NotAttached { .. }) => None,
        Err(e) => return Err(e),
    };
    let of = |port: u16| {
        let now = now.as_ref()?;
        let protected = now.ports.iter().any(|p| p.port == port);
        let exempt = now.exempt.iter().filter(|e| e.port == port).map(|e| e.source);
        protected.then(|| exempt.collect())
    };
    Ok(ports.iter().map(|&port| Before { port, exempt: of(port) }).collect())
}

/// Makes these ports what they were. Where nothing is protected afterwards, all is detached.
/// Doing it again changes nothing.
pub fn restore(dir: &Path, before: &[Before]) -> Result<(), CaptureError> {
    let _lock = match bpffs::lock(dir) {
        Err(CaptureError::NotAttached { .. }) => return Ok(()),
        lock => lock?,
    };
    if !dir.exists() {
        return Ok(());
    }
    let failed = |e| CaptureError::from_aya("restore the ports", &e);
    let mut ports: Ports = maps::open(dir, maps::PORTS, Access::Loader)?;
    for port in before.iter().filter(|b| b.exempt.is_none()).map(|b| b.port) {
        match ports.remove(&port) {
            Err(e) if !maps::is_missing(&e) => return Err(failed(e)),
            _ => {}
        }
    }
    attach::fill_exempt(dir, &exempt_again(dir, before)?)?;
    if maps::ports(&ports).map_err(failed)?.is_empty() {
        return attach::detach_locked(dir);
    }
    Ok(())
}

/// The exemptions of other ports, with those that these ports had.
fn exempt_again(dir: &Path, before: &[Before]) -> Result<ExemptSet, CaptureError> {
    let map: Exempt = maps::open(dir, maps::EXEMPT, Access::Reader)?;
    let keys = map.keys().collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|e| CaptureError::from_aya("read the exempt sources", &e))?;
    let ours = |port: u16| before.iter().any(|b| b.port == port);
    let mut all: ExemptSet = keys.iter().filter_map(maps::network).collect();
    all.retain(|(_, port)| !ours(*port));
    for b in before {
        all.extend(b.exempt.iter().flatten().map(|net| (*net, b.port)));
    }
    Ok(all)
}

/// The established connections to a local port, in a network namespace (the caller's own when
/// none is named).
pub fn connections(netns: Option<&Path>, port: u16) -> Result<Vec<Connection>, CaptureError> {
    let netns = netns::open(netns)?;
    netns::within(&netns, || diag::established(port))
        .map_err(|e| CaptureError::from_io(format!("list connections to port {port}"), e))
}

/// Whether a connection from `source` to `service` is the daemon's own upstream.
pub fn is_upstream(
    dir: &Path,
    source: SocketAddr,
    service: SocketAddr,
) -> Result<bool, CaptureError> {
    let own: Own = maps::open(dir, maps::OWN, Access::Reader)?;
    match own.get(&maps::tuple(source, service), 0) {
        Ok(_) => Ok(true),
        Err(e) if maps::is_missing(&e) => Ok(false),
        Err(e) => Err(CaptureError::from_aya("look up an upstream connection", &e)),
    }
}
