//! What is attached, as the kernel says it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use interceptor_ebpf::Meta;
use ipnet::IpNet;
use serde::Serialize;

use super::maps::{self, Access, Counters, Exempt, Listeners, Own, Ports};
use super::{CaptureError, diag, netns, object, pins, sys};

/// What is attached.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The directory of pins.
    pub dir: PathBuf,
    /// Inode of the network namespace.
    pub netns: u64,
    /// Whether that is the caller's own.
    pub netns_is_ours: bool,
    /// User id the pins were handed to.
    pub owner: u32,
    /// Tag of the program, in hexadecimal.
    pub program_tag: String,
    /// Whether the program is the one built into this binary; `None` when none is built in.
    pub program_is_current: Option<bool>,
    /// The link; `None` when the caller may not look at it.
    pub link: Option<LinkStatus>,
    /// The protected ports.
    pub ports: Vec<PortStatus>,
    /// Sources that reach a port without the daemon.
    pub exempt: Vec<ExemptStatus>,
    /// The daemon's own upstream connections over TCP.
    pub upstreams: usize,
    /// Other sk_lookup programs in this namespace; `None` when the caller may not look.
    pub foreign: Option<Vec<ForeignLink>>,
    /// What is wrong, in words. Empty when all is well.
    pub problems: Vec<String>,
}

impl Status {
    /// Whether the ports are, as far as can be seen, not protected by these pins.
    pub fn unprotected(&self) -> bool {
        self.link.as_ref().is_some_and(|l| !l.attached)
    }
}

/// The link between program and network namespace.
#[derive(Debug, Clone, Serialize)]
pub struct LinkStatus {
    /// Its id.
    pub id: u32,
    /// Id of the program it runs.
    pub program: u32,
    /// Whether it is in effect.
    pub attached: bool,
}

/// One protected port.
#[derive(Debug, Clone, Serialize)]
pub struct PortStatus {
    /// The port.
    pub port: u16,
    /// Whether a daemon listens for it, else it refuses; `None` when it cannot be told from here.
    pub listening: Option<bool>,
    /// Steered into the daemon.
    pub steered: u64,
    /// Refused since no daemon listened.
    pub refused: u64,
    /// Let through since the source is exempt.
    pub exempt: u64,
    /// The daemon's own upstream connections.
    pub own: u64,
}

/// One exempt source.
#[derive(Debug, Clone, Serialize)]
pub struct ExemptStatus {
    /// The network.
    pub source: IpNet,
    /// The port it reaches directly.
    pub port: u16,
}

/// A program of somebody else that may decide before or after ours.
#[derive(Debug, Clone, Serialize)]
pub struct ForeignLink {
    /// Id of its link.
    pub id: u32,
    /// Id of the program.
    pub program: u32,
}

/// Reads what is attached below `dir`. Needs to be root or the owner of the pins.
pub fn status(dir: &Path) -> Result<Status, CaptureError> {
    let meta = maps::meta(dir)?;
    let here = netns::here()?;
    let mut problems = Vec::new();
    let program = pins::check_program(dir, &meta);
    if let Err(e) = &program {
        problems.push(e.to_string());
    }
    let current = object::embedded_digest().map(|d| d == meta.object);
    if current == Some(false) {
        problems.push(
            "the attached program is not the one built into this binary; \
             run `interceptor capture attach` to upgrade it"
                .into(),
        );
    }
    let link = link(dir, &meta, program.ok(), &mut problems)?;
    let foreign = foreign(&meta, link.as_ref(), &mut problems);
    Ok(Status {
        dir: dir.into(),
        netns: meta.netns,
        netns_is_ours: meta.netns == here,
        owner: meta.owner,
        program_tag: format!("{:016x}", meta.tag),
        program_is_current: current,
        link,
        ports: ports(dir, meta.netns == here)?,
        exempt: exempt(dir)?,
        upstreams: {
            let own: Own = maps::open(dir, maps::OWN, Access::Reader)?;
            own.keys().count()
        },
        foreign,
        problems,
    })
}

fn link(
    dir: &Path,
    meta: &Meta,
    program: Option<u32>,
    problems: &mut Vec<String>,
) -> Result<Option<LinkStatus>, CaptureError> {
    let fd = match sys::open_pin(&dir.join(maps::LINK), false) {
        Ok(fd) => fd,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            problems.push(unprotected("the link is gone"));
            return Ok(Some(LinkStatus { id: 0, program: 0, attached: false }));
        }
        Err(e) => return Err(CaptureError::from_io("open the pinned link", e)),
    };
    let info =
        sys::link_info(fd.as_fd()).map_err(|e| CaptureError::from_io("inspect the link", e))?;
    let Some(info) = info else {
        problems.push(unprotected("the pinned link is not one of sk_lookup"));
        return Ok(None);
    };
    let attached = info.netns == meta.netns;
    if !attached {
        problems.push(unprotected("the link is detached"));
    }
    if program.is_some_and(|p| p != info.program) {
        problems.push(unprotected("the link runs another program than the pinned one"));
    }
    Ok(Some(LinkStatus { id: info.id, program: info.program, attached }))
}

fn unprotected(what: &str) -> String {
    format!("{what}: the ports may be unprotected; run `interceptor capture attach`")
}

fn foreign(
    meta: &Meta,
    ours: Option<&LinkStatus>,
    problems: &mut Vec<String>,
) -> Option<Vec<ForeignLink>> {
    let ours = ours?.id;
    let links = sys::lookup_links().ok()?;
    let foreign: Vec<_> = links
        .into_iter()
        .filter(|l| l.netns == meta.netns && l.id != ours)
        .map(|l| ForeignLink { id: l.id, program: l.program })
        .collect();
    if !foreign.is_empty() {
        problems.push(format!(
            "{} other sk_lookup program(s) in this network namespace can take connections before \
             the daemon sees them; look at them with `bpftool link`",
            foreign.len()
        ));
    }
    Some(foreign)
}

fn ports(dir: &Path, same_netns: bool) -> Result<Vec<PortStatus>, CaptureError> {
    let failed = |e| CaptureError::from_aya("read the protected ports", &e);
    let ports: Ports = maps::open(dir, maps::PORTS, Access::Reader)?;
    let counters: Counters = maps::open(dir, maps::COUNTERS, Access::Reader)?;
    let listeners: Listeners = maps::open(dir, maps::LISTENERS, Access::Reader)?;
    // The map of sockets cannot be read back, so the registered listener is looked for among
    // the living; the kernel empties its slot when it closes.
    let alive = if same_netns { diag::listening_cookies().ok() } else { None };
    let mut all = Vec::new();
    for (port, slot) in maps::ports(&ports).map_err(failed)? {
        let c = maps::counts(&counters, slot).map_err(failed)?;
        let cookie = listeners.get(&slot, 0).map_err(failed)?;
        let listening = alive.as_ref().map(|a| cookie != 0 && a.contains(&cookie));
        let (steered, refused, exempt, own) = (c.steered, c.refused, c.exempt, c.own);
        all.push(PortStatus { port, listening, steered, refused, exempt, own });
    }
    Ok(all)
}

fn exempt(dir: &Path) -> Result<Vec<ExemptStatus>, CaptureError> {
    let map: Exempt = maps::open(dir, maps::EXEMPT, Access::Reader)?;
    let keys = map.keys().collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|e| CaptureError::from_aya("read the exempt sources", &e))?;
    let mut all: Vec<_> = keys.iter().filter_map(maps::network).collect();
    all.sort();
    Ok(all.into_iter().map(|(source, port)| ExemptStatus { source, port }).collect())
}
