//! The pinned maps with their types, and the keys in them.
//!
//! Addresses are brought into one form here and in the kernel program alike: IPv4 stands as
//! `::ffff:a.b.c.d`, whatever family of socket it came from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SockMap};
use interceptor_ebpf::{
    Addr, Counts, IPV4, IPV6, LAYOUT, Meta, SOURCE_FIXED_BITS, Source, Tuple, is_mapped, mapped,
};
use ipnet::IpNet;

use super::{CaptureError, sys};

pub(super) const SERVICES: &str = "SERVICES";
pub(super) const PORTS: &str = "PORTS";
pub(super) const EXEMPT: &str = "EXEMPT";
pub(super) const OWN: &str = "OWN";
pub(super) const COUNTERS: &str = "COUNTERS";
pub(super) const LISTENERS: &str = "LISTENERS";
pub(super) const META: &str = "META";
/// Pin of the link; only root opens it, since whoever can may also detach it.
pub(super) const LINK: &str = "link";
/// Pin of the program.
pub(super) const PROGRAM: &str = "program";

/// Every map, and whether the daemon writes to it. It gets the others read-only: it can neither
/// unprotect a port nor exempt a source.
pub(super) const ALL: [(&str, bool); 7] = [
    (SERVICES, true),
    (PORTS, false),
    (EXEMPT, false),
    (OWN, true),
    (COUNTERS, false),
    (LISTENERS, true),
    (META, false),
];

pub(super) type Ports = HashMap<MapData, u16, u32>;
pub(super) type Exempt = LpmTrie<MapData, Source, u32>;
pub(super) type Own = HashMap<MapData, Tuple, u32>;
pub(super) type Counters = PerCpuArray<MapData, Counts>;
pub(super) type Listeners = Array<MapData, u64>;
pub(super) type Services = SockMap<MapData>;

/// Who opens the maps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The loader: everything for writing.
    Loader,
    /// The daemon: for writing what it must write.
    Daemon,
    /// Only looking.
    Reader,
}

/// Opens one pinned map with its type.
pub(super) fn open<M>(dir: &Path, name: &str, access: Access) -> Result<M, CaptureError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let daemon_writes = ALL.iter().any(|(n, writes)| *n == name && *writes);
    let read_only = match access {
        Access::Loader => false,
        Access::Daemon => !daemon_writes,
        Access::Reader => true,
    };
    let fd = sys::open_pin(&dir.join(name), read_only)
        .map_err(|e| CaptureError::from_pin(dir, name, e))?;
    MapData::from_fd(fd)
        .and_then(Map::from_map_data)
        .and_then(M::try_from)
        .map_err(|e| inconsistent(dir, name, &e))
}

fn inconsistent(dir: &Path, name: &str, e: &MapError) -> CaptureError {
    CaptureError::Inconsistent { dir: dir.into(), message: format!("pin {name}: {e}") }
}

/// Reads what is attached. Refuses another layout before anything else is looked at.
pub(super) fn meta(dir: &Path) -> Result<Meta, CaptureError> {
    let fd =
        sys::open_pin(&dir.join(META), true).map_err(|e| CaptureError::from_pin(dir, META, e))?;
    let data = MapData::from_fd(fd).map_err(|e| inconsistent(dir, META, &e))?;
    let map = Map::from_map_data(data).map_err(|e| inconsistent(dir, META, &e))?;
    // A layout whose META has another size is another layout all the same.
    let map: Array<MapData, Meta> = map.try_into().map_err(|_| other_layout(dir, 0))?;
    let meta = map.get(&0, 0).map_err(|e| inconsistent(dir, META, &e))?;
    if meta.layout == LAYOUT { Ok(meta) } else { Err(other_layout(dir, meta.layout)) }
}

fn other_layout(dir: &Path, found: u32) -> CaptureError {
    CaptureError::Layout { dir: dir.into(), found, wanted: LAYOUT }
}

/// Sum over all CPUs.
pub(super) fn counts(counters: &Counters, slot: u32) -> Result<Counts, MapError> {
    let all = counters.get(&slot, 0)?;
    Ok(all.iter().fold(Counts::default(), |sum, c| Counts {
        steered: sum.steered + c.steered,
        refused: sum.refused + c.refused,
        exempt: sum.exempt + c.exempt,
        own: sum.own + c.own,
    }))
}

/// All entries, sorted by port.
pub(super) fn ports(map: &Ports) -> Result<Vec<(u16, u32)>, MapError> {
    let mut all = map.iter().collect::<Result<Vec<_>, _>>()?;
    all.sort_unstable();
    Ok(all)
}

/// Removes every entry of a hash; one that vanishes meanwhile is fine.
pub(super) fn clear<V: Pod>(map: &mut HashMap<MapData, Tuple, V>) -> Result<(), MapError> {
    // Deleting while iterating makes the iteration start over, so keys are collected first;
    // again and again, until none is found.
    loop {
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            match map.remove(&key) {
                Err(e) if !is_missing(&e) => return Err(e),
                _ => {}
            }
        }
    }
}

/// Whether an error says that the key is not there.
pub(super) fn is_missing(e: &MapError) -> bool {
    match e {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(s) => s.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The common form of an address.
pub(super) fn addr(ip: IpAddr) -> Addr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let o = v6.octets();
            std::array::from_fn(|i| {
                u32::from_ne_bytes([o[4 * i], o[4 * i + 1], o[4 * i + 2], o[4 * i + 3]])
            })
        }
    }
}

/// The address that stands in a key.
pub(super) fn ip(addr: &Addr) -> IpAddr {
    if is_mapped(addr) {
        return Ipv4Addr::from(addr[3].to_ne_bytes()).into();
    }
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(addr) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ipv6Addr::from(octets).into()
}

/// Address and port, IPv4 never in IPv6 form.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Key of the daemon's own connection from `source` to `service`.
pub(super) fn tuple(source: SocketAddr, service: SocketAddr) -> Tuple {
    Tuple {
        local: addr(service.ip()),
        remote: addr(source.ip()),
        local_port: service.port(),
        remote_port: source.port(),
    }
}

/// Key of an exempt network. A network of mapped addresses is the IPv4 network it stands for.
pub(super) fn source(net: IpNet, port: u16) -> Key<Source> {
    let address = addr(net.trunc().network());
    let (family, bits) = match net {
        IpNet::V4(_) => (IPV4, 96 + net.prefix_len()),
        IpNet::V6(_) if is_mapped(&address) && net.prefix_len() >= 96 => (IPV4, net.prefix_len()),
        IpNet::V6(_) => (IPV6, net.prefix_len()),
    };
    Key::new(SOURCE_FIXED_BITS + u32::from(bits), Source { port, family, addr: address })
}

/// The exempt network and port of a key.
pub(super) fn network(key: &Key<Source>) -> Option<(IpNet, u16)> {
    let (source, bits) = (key.data(), key.prefix_len().checked_sub(SOURCE_FIXED_BITS)?);
    let bits = if source.family == IPV4 { bits.checked_sub(96)? } else { bits };
    let ip = match source.family {
        IPV4 => ip(&source.addr),
        _ => {
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(&source.addr) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets).into()
        }
    };
    Some((IpNet::new(ip, u8::try_from(bits).ok()?).ok()?, source.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_has_one_form_whatever_the_socket_says() {
        for (a, b) in [("10.1.2.3", "::ffff:10.1.2.3"), ("127.0.0.1", "::ffff:7f00:1")] {
            let (a, b): (IpAddr, IpAddr) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(addr(a), addr(b));
            assert_eq!(ip(&addr(b)), a);
        }
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(ip(&addr(v6)), v6);
        assert!(!is_mapped(&addr(v6)));
    }

    #[test]
    fn exempt_networks_keep_their_family_and_prefix() {
        for (written, stored) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            let key = source(written.parse().unwrap(), 5432);
            assert_eq!(network(&key), Some((stored.parse().unwrap(), 5432)), "{written}");
        }
        let everything_v6 = source("::/0".parse().unwrap(), 1).data();
        assert_eq!(everything_v6.family, IPV6, "::/0 must not cover IPv4");
    }
}
