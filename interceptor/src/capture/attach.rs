//! Attaching and detaching: the privileged, one-shot half.
//!
//! The order keeps the ports closed at every step: maps are filled before the program is
//! attached, an upgrade is one link update, a change of configuration happens in place, and the
//! pins appear under their name by one rename. Everything runs under one lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use aya::programs::SkLookup;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader};
use interceptor_ebpf::{Counts, EXEMPTIONS, LAYOUT, Meta, SLOTS};
use ipnet::IpNet;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use serde::Serialize;

use super::maps::{self, Access, Counters, Exempt, Listeners, Own, Ports, Services};
use super::object::Object;
use super::{CaptureError, bpffs, diag, netns, pins, sys};

/// Name of the program in the object file.
const ENTRY: &str = "interceptor";

/// What to attach, and where.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Directory of the pins, below a bpffs (mounted if there is none).
    pub dir: PathBuf,
    /// Every port to protect. Ports protected before and not named here become unprotected.
    pub ports: Vec<u16>,
    /// Source networks that reach some of these ports without the daemon.
    pub exempt: Vec<(IpNet, Vec<u16>)>,
    /// File of the network namespace; the caller's own when absent.
    pub netns: Option<PathBuf>,
    /// Object file to load instead of the one built in.
    pub object: Option<PathBuf>,
    /// Close connections to the ports that were open before.
    pub destroy_existing: bool,
    /// Ports on which even so none is closed.
    pub keep_existing: Vec<u16>,
    /// User and group id that get the maps a daemon needs. Unchanged (at first root) when absent.
    pub owner: Option<(u32, u32)>,
}

/// What [`attach`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was attached before.
    Created,
    /// Pins were there but protected nothing any more (link detached, namespace gone).
    Replaced,
    /// Another program was attached; the link now runs this one.
    Upgraded,
    /// Only ports or exempt sources changed.
    Updated,
    /// Everything was as it should be.
    Unchanged,
}

/// What [`attach`] did.
#[derive(Debug, Clone, Serialize)]
pub struct AttachReport {
    /// In one word.
    pub outcome: Outcome,
    /// All protected ports.
    pub ports: Vec<u16>,
    /// Ports that were not protected before.
    pub added: Vec<u16>,
    /// Ports that are not protected any more.
    pub removed: Vec<u16>,
    /// Connections closed because they were older than the capture.
    pub closed: usize,
    /// Whether a bpffs was mounted.
    pub mounted: bool,
}

/// Protects exactly the given ports. Doing it again changes nothing; with another program or
/// other ports it brings what is attached up to date without a gap.
pub fn attach(options: &AttachOptions) -> Result<AttachReport, CaptureError> {
    let exempt = check(options)?;
    let dir = options.dir.as_path();
    let netns = netns::open(options.netns.as_deref())?;
    let inode = netns.metadata().map_err(|e| CaptureError::from_io("network namespace", e))?.ino();
    let mounted = bpffs::ensure(dir)?;
    let _lock = bpffs::lock(dir)?;
    let (mut outcome, changes) = match existing(dir, inode)? {
        Existing::Live(link, meta) => {
            let upgraded = upgrade(dir, options, &link, meta)?;
            let changes = fill(dir, options, &exempt)?;
            (if upgraded { Outcome::Upgraded } else { Outcome::Unchanged }, changes)
        }
        Existing::Nothing => (Outcome::Created, create(options, &netns, inode, &exempt)?),
        Existing::Dead => (Outcome::Replaced, create(options, &netns, inode, &exempt)?),
    };
    if outcome == Outcome::Unchanged && changes.any {
        outcome = Outcome::Updated;
    }
    hand_over(dir, options.owner)?;
    let closed = if options.destroy_existing {
        close_older(dir, &netns, options, &exempt, &changes)?
    } else {
        0
    };
    let Changes { added, removed, .. } = changes;
    let ports = options.ports.clone();
    Ok(AttachReport { outcome, ports, added, removed, closed, mounted })
}

/// Removes program, link and maps: the ports are open to everybody afterwards. Connections that
/// the daemon holds go on.
pub fn detach(dir: &Path) -> Result<(), CaptureError> {
    let _lock = bpffs::lock(dir)?;
    detach_locked(dir)
}

pub(super) fn detach_locked(dir: &Path) -> Result<(), CaptureError> {
    if !dir.exists() {
        return Err(CaptureError::NotAttached { dir: dir.into() });
    }
    match sys::open_pin(&dir.join(maps::LINK), false) {
        // Removing the pin would do, were it certain that nobody else holds the link.
        Ok(link) => match sys::detach_link(link.as_fd()) {
            Ok(()) => {}
            // Its namespace is gone already.
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOLINK) => {}
            Err(e) => return Err(CaptureError::from_io("detach", e)),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(CaptureError::from_io("open the pinned link", e)),
    }
    bpffs::remove(dir)
}

pub(super) type ExemptSet = BTreeSet<(IpNet, u16)>;

fn check(options: &AttachOptions) -> Result<ExemptSet, CaptureError> {
    let invalid = |m: String| Err(CaptureError::Invalid(m));
    let ports: BTreeSet<u16> = options.ports.iter().copied().collect();
    if ports.is_empty() {
        return invalid("no port to protect: configure at least one service".into());
    }
    if ports.contains(&0) || ports.len() != options.ports.len() {
        return invalid("ports to protect must differ and not be 0".into());
    }
    if ports.len() > SLOTS as usize {
        return invalid(format!("at most {SLOTS} ports can be protected"));
    }
    let mut exempt = ExemptSet::new();
    for (net, for_ports) in &options.exempt {
        for port in for_ports {
            if !ports.contains(port) {
                return invalid(format!("exempt source {net}: port {port} is not protected"));
            }
            // In the form the kernel side reads back.
            let key = maps::source(*net, *port);
            exempt.extend(maps::network(&key));
        }
    }
    if exempt.len() > EXEMPTIONS as usize {
        return invalid(format!("at most {EXEMPTIONS} pairs of exempt source and service"));
    }
    Ok(exempt)
}

enum Existing {
    Nothing,
    /// Pins without effect.
    Dead,
    /// A link that works, in the right namespace.
    Live(OwnedFd, Meta),
}

fn existing(dir: &Path, inode: u64) -> Result<Existing, CaptureError> {
    if !dir.exists() {
        return Ok(Existing::Nothing);
    }
    let link = match sys::open_pin(&dir.join(maps::LINK), false) {
        Ok(link) => link,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Existing::Dead),
        Err(e) => return Err(CaptureError::from_io("open the pinned link", e)),
    };
    let info = sys::link_info(link.as_fd())
        .map_err(|e| CaptureError::from_io("inspect the pinned link", e))?;
    match info {
        Some(l) if l.netns == inode => {}
        None | Some(sys::LinkInfo { netns: 0, .. }) => return Ok(Existing::Dead),
        Some(l) => {
            let (dir, attached) = (dir.into(), l.netns);
            return Err(CaptureError::Namespace { dir, attached, here: inode });
        }
    }
    let meta = maps::meta(dir)?;
    let whole = maps::ALL.iter().all(|(name, _)| dir.join(name).exists());
    Ok(if whole { Existing::Live(link, meta) } else { Existing::Dead })
}

/// Loads the object with the maps pinned below `dir`, which are made if they are not there.
fn load(object: &Object, dir: &Path) -> Result<Ebpf, CaptureError> {
    // Kernels before 5.11 charge maps against this limit; on others it changes nothing.
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).ok();
    let mut loader = EbpfLoader::new();
    for (name, _) in maps::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    let mut ebpf = loader.load(&object.bytes).map_err(|e| refused(object, &e))?;
    program(&mut ebpf, object)?.load().map_err(|e| refused(object, &e))?;
    Ok(ebpf)
}

fn program<'a>(ebpf: &'a mut Ebpf, object: &Object) -> Result<&'a mut SkLookup, CaptureError> {
    ebpf.program_mut(ENTRY).and_then(|p| p.try_into().ok()).ok_or_else(|| {
        let message = format!("it has no sk_lookup program named {ENTRY}");
        CaptureError::BadObject { object: object.name.clone(), message }
    })
}

/// Sorts an error of loading: privilege and kernel support first, the object only then.
fn refused(object: &Object, e: &(dyn std::error::Error + 'static)) -> CaptureError {
    match CaptureError::from_aya("load the eBPF program", e) {
        CaptureError::System { .. } => {
            let mut message = e.to_string();
            let mut cause = e.source();
            while let Some(c) = cause {
                message.push_str(&format!(": {c}"));
                cause = c.source();
            }
            CaptureError::BadObject { object: object.name.clone(), message }
        }
        sorted => sorted,
    }
}

fn create(
    options: &AttachOptions,
    netns: &File,
    inode: u64,
    exempt: &ExemptSet,
) -> Result<Changes, CaptureError> {
    let object = Object::find(options.object.as_deref())?;
    let draft = bpffs::Draft::new(&options.dir)?;
    let mut ebpf = load(&object, draft.path())?;
    let changes = fill(draft.path(), options, exempt)?;
    let program = program(&mut ebpf, &object)?;
    pin_program(program, &draft.path().join(maps::PROGRAM))?;
    describe(draft.path(), program, &object, Meta { netns: inode, ..Meta::default() })?;
    let attached = |e| CaptureError::from_aya("attach to the network namespace", &e);
    let id = program.attach(netns).map_err(attached)?;
    let link: FdLink = program.take_link(id).map_err(attached)?.into();
    link.pin(draft.path().join(maps::LINK))
        .map_err(|e| CaptureError::from_aya("pin the link", &e))?;
    hand_over(draft.path(), Some(options.owner.unwrap_or((0, 0))))?;
    draft.publish(&options.dir)?;
    Ok(changes)
}

/// Lets the link run the given object unless it does. Without an object what runs stays.
fn upgrade(
    dir: &Path,
    options: &AttachOptions,
    link: &OwnedFd,
    meta: Meta,
) -> Result<bool, CaptureError> {
    let object = match Object::find(options.object.as_deref()) {
        Err(CaptureError::NoObject) => return Ok(false),
        found => found?,
    };
    let running = sys::link_info(link.as_fd())
        .map_err(|e| CaptureError::from_io("inspect the pinned link", e))?
        .map(|l| l.program);
    if object.digest() == meta.object && pins::check_program(dir, &meta).ok() == running {
        return Ok(false);
    }
    let mut ebpf = load(&object, dir)?;
    let program = program(&mut ebpf, &object)?;
    let (new, pin) = (dir.join("program-new"), dir.join(maps::PROGRAM));
    std::fs::remove_file(&new).ok();
    pin_program(program, &new)?;
    let fd = program.fd().map_err(|e| CaptureError::from_aya("upgrade", &e))?;
    sys::update_link(link.as_fd(), fd.as_fd())
        .map_err(|e| CaptureError::from_io("upgrade the attached program", e))?;
    std::fs::rename(&new, &pin)
        .map_err(|e| CaptureError::from_io(format!("rename {}", new.display()), e))?;
    let owner = (meta.owner != 0).then(|| dir.join(maps::OWN)).and_then(|p| p.metadata().ok());
    describe(dir, program, &object, meta)?;
    hand_over(dir, owner.map(|m| (m.uid(), m.gid())))?;
    Ok(true)
}

fn pin_program(program: &mut SkLookup, path: &Path) -> Result<(), CaptureError> {
    program.pin(path).map_err(|e| CaptureError::from_aya("pin the program", &e))
}

/// Writes META for the program that was just loaded.
fn describe(
    dir: &Path,
    program: &SkLookup,
    object: &Object,
    meta: Meta,
) -> Result<(), CaptureError> {
    let failed = |e| CaptureError::from_aya("describe what is attached", &e);
    let fd = program.fd().map_err(|e| CaptureError::from_aya("inspect the program", &e))?;
    let (_, tag) = sys::program_info(fd.as_fd())
        .map_err(|e| CaptureError::from_io("inspect the program", e))?;
    let meta = Meta { layout: LAYOUT, tag, object: object.digest(), ..meta };
    let mut map: aya::maps::Array<aya::maps::MapData, Meta> =
        maps::open(dir, maps::META, Access::Loader)?;
    map.set(0, meta, 0).map_err(failed)
}

/// Gives the daemon's user the maps and the program, read-only where it only reads. Directory
/// and link stay root's: whoever opens the link may detach it.
fn hand_over(dir: &Path, owner: Option<(u32, u32)>) -> Result<(), CaptureError> {
    let writable = maps::ALL.iter().map(|(name, writes)| (*name, *writes));
    for (name, writes) in writable.chain([(maps::PROGRAM, false)]) {
        let path = dir.join(name);
        let what = || format!("hand over {}", path.display());
        let mode = if writes { 0o600 } else { 0o400 };
        std::fs::set_permissions(&path, Permissions::from_mode(mode))
            .map_err(|e| CaptureError::from_io(what(), e))?;
        if let Some((uid, gid)) = owner {
            chown(&path, Some(uid), Some(gid)).map_err(|e| CaptureError::from_io(what(), e))?;
        }
    }
    if let Some((uid, _)) = owner {
        let failed = |e| CaptureError::from_aya("describe what is attached", &e);
        let mut map: aya::maps::Array<aya::maps::MapData, Meta> =
            maps::open(dir, maps::META, Access::Loader)?;
        let meta = map.get(&0, 0).map_err(failed)?;
        map.set(0, Meta { owner: uid, ..meta }, 0).map_err(failed)?;
    }
    Ok(())
}

#[derive(Default)]
struct Changes {
    added: Vec<u16>,
    removed: Vec<u16>,
    any: bool,
}

/// Brings PORTS and EXEMPT to what is wanted, in place. Exemptions go before ports come, so that
/// none that is not wanted ever holds for a new port.
fn fill(dir: &Path, options: &AttachOptions, exempt: &ExemptSet) -> Result<Changes, CaptureError> {
    let failed = |e| CaptureError::from_aya("write the protected ports", &e);
    let exempt_changed = fill_exempt(dir, exempt)?;
    let mut ports: Ports = maps::open(dir, maps::PORTS, Access::Loader)?;
    let mut slots: BTreeMap<u16, u32> = maps::ports(&ports).map_err(failed)?.into_iter().collect();
    let wanted: BTreeSet<u16> = options.ports.iter().copied().collect();
    let mut changes = Changes { any: exempt_changed, ..Changes::default() };
    for port in slots.keys().copied().filter(|p| !wanted.contains(p)).collect::<Vec<_>>() {
        ports.remove(&port).map_err(failed)?;
        slots.remove(&port);
        changes.removed.push(port);
    }
    for port in wanted {
        if slots.contains_key(&port) {
            continue;
        }
        let used: BTreeSet<u32> = slots.values().copied().collect();
        let slot = (0..SLOTS).find(|s| !used.contains(s)).unwrap_or(0);
        empty_slot(dir, slot)?;
        ports.insert(port, slot, 0).map_err(failed)?;
        slots.insert(port, slot);
        changes.added.push(port);
    }
    changes.any |= !changes.added.is_empty() || !changes.removed.is_empty();
    Ok(changes)
}

/// Forgets what an earlier port left in a slot.
fn empty_slot(dir: &Path, slot: u32) -> Result<(), CaptureError> {
    let failed = |e| CaptureError::from_aya("empty a slot", &e);
    let mut services: Services = maps::open(dir, maps::SERVICES, Access::Loader)?;
    // The kernel calls an empty slot an invalid argument.
    services.clear_index(&slot).ok();
    let mut listeners: Listeners = maps::open(dir, maps::LISTENERS, Access::Loader)?;
    listeners.set(slot, 0, 0).map_err(failed)?;
    let mut counters: Counters = maps::open(dir, maps::COUNTERS, Access::Loader)?;
    let cpus = counters.get(&slot, 0).map_err(failed)?.len();
    let zero = aya::maps::PerCpuValues::try_from(vec![Counts::default(); cpus])
        .map_err(|e| CaptureError::from_io("empty a slot", e))?;
    counters.set(slot, zero, 0).map_err(failed)
}

pub(super) fn fill_exempt(dir: &Path, wanted: &ExemptSet) -> Result<bool, CaptureError> {
    let failed = |e| CaptureError::from_aya("write the exempt sources", &e);
    let mut map: Exempt = maps::open(dir, maps::EXEMPT, Access::Loader)?;
    let keys = map.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut current = ExemptSet::new();
    let mut changed = false;
    for key in keys {
        match maps::network(&key) {
            Some(entry) if wanted.contains(&entry) => {
                current.insert(entry);
            }
            _ => {
                map.remove(&key).map_err(failed)?;
                changed = true;
            }
        }
    }
    for (net, port) in wanted.difference(&current) {
        map.insert(&maps::source(*net, *port), 0u32, 0).map_err(failed)?;
        changed = true;
    }
    Ok(changed)
}

/// Closes connections that did not come through the capture. Spared are exempt sources, the
/// daemon's upstreams and, on ports that were protected before, what the daemon's user owns.
fn close_older(
    dir: &Path,
    netns: &File,
    options: &AttachOptions,
    exempt: &ExemptSet,
    changes: &Changes,
) -> Result<usize, CaptureError> {
    let failed = |e| CaptureError::from_aya("read upstream exemptions", &e);
    let own: Own = maps::open(dir, maps::OWN, Access::Reader)?;
    let own = own.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let daemon = maps::meta(dir)?.owner;
    let mut closed = 0;
    for &port in options.ports.iter().filter(|p| !options.keep_existing.contains(p)) {
        let is_new = changes.added.contains(&port);
        let older = |peer: SocketAddr, local: SocketAddr, uid: u32| {
            let captured = !is_new && uid == daemon;
            let let_through = exempt.iter().any(|(net, p)| *p == port && net.contains(&peer.ip()));
            !captured && !let_through && !own.contains(&maps::tuple(peer, local))
        };
        closed += netns::within(netns, || diag::destroy(port, &older))
            .map_err(|e| CaptureError::from_io("close older connections", e))?;
    }
    Ok(closed)
}
