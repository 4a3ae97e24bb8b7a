//! What the daemon opens: the pinned maps, without privilege.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use interceptor_ebpf::Meta;
use serde::Serialize;

use super::maps::{self, Access, Counters, Listeners, Own, Ports, Services};
use super::{CaptureError, Listener, listener, netns, sys};

/// What the kernel counted for one protected port. Lookups, not connections: where SYN cookies
/// are in use a connection counts twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PortCounters {
    /// The protected port.
    pub port: u16,
    /// Steered into the daemon.
    pub steered: u64,
    /// Refused since no daemon listened.
    pub refused: u64,
    /// Let through since the source is exempt.
    pub exempt: u64,
    /// The daemon's own upstream connections.
    pub own: u64,
}

/// The opened pins of one network namespace.
pub struct Pins {
    dir: PathBuf,
    services: Services,
    ports: Ports,
    counters: Counters,
    listeners: Listeners,
    own: Arc<Mutex<Own>>,
    /// Whether what an earlier daemon left in `own` is gone.
    cleared: bool,
}

impl std::fmt::Debug for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pins").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Pins {
    /// Opens the pins below `dir`. Refuses those of another layout, of another network namespace
    /// than the caller's, and those whose program is not the one that was attached.
    pub fn open(dir: &Path) -> Result<Self, CaptureError> {
        let meta = maps::meta(dir)?;
        let here = netns::here()?;
        if meta.netns != here {
            return Err(CaptureError::Namespace { dir: dir.into(), attached: meta.netns, here });
        }
        check_program(dir, &meta)?;
        if super::object::embedded_digest().is_some_and(|d| d != meta.object) {
            tracing::warn!(
                dir = %dir.display(),
                "the attached program is not the one built into this binary; \
                 `interceptor capture attach` upgrades it without a gap"
            );
        }
        Ok(Self {
            dir: dir.into(),
            services: maps::open(dir, maps::SERVICES, Access::Daemon)?,
            ports: maps::open(dir, maps::PORTS, Access::Daemon)?,
            counters: maps::open(dir, maps::COUNTERS, Access::Daemon)?,
            listeners: maps::open(dir, maps::LISTENERS, Access::Daemon)?,
            own: Arc::new(Mutex::new(maps::open(dir, maps::OWN, Access::Daemon)?)),
            cleared: false,
        })
    }

    /// Makes the listener of a protected port and lets the kernel steer to it. Must run within
    /// a tokio runtime, in the network namespace of the pins.
    pub fn serve(&mut self, port: u16) -> Result<Listener, CaptureError> {
        let slot = self.ports.get(&port, 0).map_err(|e| match &e {
            e if maps::is_missing(e) => CaptureError::NotProtected { port, dir: self.dir.clone() },
            e => CaptureError::from_aya(format!("look up port {port}"), e),
        })?;
        let failed = |source| CaptureError::from_io(format!("listen for port {port}"), source);
        let socket = listener::socket().map_err(failed)?;
        // Before the first registration: what a dead daemon left would otherwise count again.
        if !self.cleared {
            let mut own = self.own.lock().unwrap_or_else(|e| e.into_inner());
            maps::clear(&mut own)
                .map_err(|e| CaptureError::from_aya("clear old upstream exemptions", &e))?;
            self.cleared = true;
        }
        let cookie = socket.cookie().map_err(failed)?;
        let register = |e| CaptureError::from_aya(format!("register for port {port}"), &e);
        self.listeners.set(slot, cookie, 0).map_err(register)?;
        self.services.set(slot, &socket, 0).map_err(register)?;
        Listener::new(socket, port).map_err(failed)
    }

    /// What the kernel counted, by port.
    pub fn counters(&self) -> Result<Vec<PortCounters>, CaptureError> {
        let failed = |e| CaptureError::from_aya("read counters", &e);
        let ports = maps::ports(&self.ports).map_err(failed)?;
        ports
            .into_iter()
            .map(|(port, slot)| {
                let c = maps::counts(&self.counters, slot).map_err(failed)?;
                let (steered, refused, exempt, own) = (c.steered, c.refused, c.exempt, c.own);
                Ok(PortCounters { port, steered, refused, exempt, own })
            })
            .collect()
    }

    /// The protected ports.
    pub fn ports(&self) -> Result<Vec<u16>, CaptureError> {
        let all = maps::ports(&self.ports).map_err(|e| CaptureError::from_aya("read ports", &e))?;
        Ok(all.into_iter().map(|(port, _)| port).collect())
    }

    pub(super) fn own(&self) -> &Arc<Mutex<Own>> {
        &self.own
    }
}

/// Whether the pinned program is the one that META says was attached.
pub(super) fn check_program(dir: &Path, meta: &Meta) -> Result<u32, CaptureError> {
    use std::os::fd::AsFd;
    let pin = sys::open_pin(&dir.join(maps::PROGRAM), true)
        .map_err(|e| CaptureError::from_pin(dir, maps::PROGRAM, e))?;
    let (id, tag) = sys::program_info(pin.as_fd())
        .map_err(|e| CaptureError::from_io("inspect the program", e))?;
    if tag == meta.tag {
        return Ok(id);
    }
    let message = format!("the program has tag {tag:016x}, attached was {:016x}", meta.tag);
    Err(CaptureError::Inconsistent { dir: dir.into(), message })
}
