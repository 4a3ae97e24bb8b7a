//! Sockets and processes as `/proc` shows them. What cannot be read is left out.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// State of a listening TCP socket.
pub const LISTEN: u8 = 0x0a;
/// State of an established TCP socket.
pub const ESTABLISHED: u8 = 0x01;

/// One TCP socket of a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// This end; IPv4-mapped addresses as IPv4.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// State, as the kernel numbers it.
    pub state: u8,
    /// Owner.
    pub uid: u32,
    /// Its inode, the key to the process.
    pub inode: u64,
}

/// All TCP sockets in the network namespace of a process (`"self"` for this one).
pub fn tcp(pid: &str) -> Vec<Tcp> {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|f| std::fs::read_to_string(format!("/proc/{pid}/net/{f}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(tcp_line).collect::<Vec<_>>())
        .collect()
}

fn tcp_line(line: &str) -> Option<Tcp> {
    let f: Vec<&str> = line.split_ascii_whitespace().collect();
    Some(Tcp {
        local: address(f.get(1)?)?,
        remote: address(f.get(2)?)?,
        state: u8::from_str_radix(f.get(3)?, 16).ok()?,
        uid: f.get(7)?.parse().ok()?,
        inode: f.get(9)?.parse().ok()?,
    })
}

/// `0100007F:1538`, or 32 digits for IPv6: words in the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Paths of the listening Unix sockets among these inodes; abstract ones begin with `@`.
pub fn unix_listeners(pid: &str, inodes: &HashSet<u64>) -> BTreeSet<PathBuf> {
    const ACCEPTS: u32 = 1 << 16;
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    let line = |line: &str| {
        let f: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = u32::from_str_radix(f.get(3)?, 16).ok()?;
        let inode: u64 = f.get(6)?.parse().ok()?;
        let path = PathBuf::from(f.get(7)?);
        (flags & ACCEPTS != 0 && inodes.contains(&inode)).then_some(path)
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// Inodes of the sockets a process holds.
pub fn sockets_of(pid: u32) -> HashSet<u64> {
    let Ok(dir) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return HashSet::new() };
    let inode = |link: PathBuf| {
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
    };
    dir.flatten().filter_map(|e| std::fs::read_link(e.path()).ok()).filter_map(inode).collect()
}

/// All processes.
pub fn processes() -> Vec<u32> {
    let Ok(dir) = std::fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Inode of the network namespace of a process.
pub fn netns(pid: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Arguments of a process.
pub fn arguments(pid: u32) -> Vec<String> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    raw.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect()
}

/// The processes above a process, the nearest first, without the first of the machine.
pub fn ancestors(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    std::iter::successors(parent(pid), |p| parent(*p)).take_while(|p| *p > 1).take(256).collect()
}

/// A variable of the environment with which a process was started.
pub fn variable(pid: u32, name: &str) -> Option<String> {
    let raw = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{name}=");
    raw.split(|b| *b == 0)
        .find_map(|v| Some(std::str::from_utf8(v).ok()?.strip_prefix(&prefix)?.to_owned()))
}

/// Working directory of a process.
pub fn working_dir(pid: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Whether a user, with all its groups, may read a file, search permission included.
pub fn may_read(uid: u32, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(path) = path.canonicalize() else { return false };
    let groups = groups_of(uid);
    let may = |p: &Path, bit: u32| {
        std::fs::metadata(p).is_ok_and(|m| {
            let shift = if m.uid() == uid {
                6
            } else if groups.contains(&m.gid()) {
                3
            } else {
                0
            };
            m.mode() >> shift & bit != 0
        })
    };
    uid == 0 || (may(&path, 4) && path.ancestors().skip(1).all(|dir| may(dir, 1)))
}

fn groups_of(uid: u32) -> Vec<u32> {
    let lookup = || {
        let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok()??;
        let name = std::ffi::CString::new(user.name).ok()?;
        let groups = nix::unistd::getgrouplist(&name, user.gid).ok()?;
        Some(groups.into_iter().map(|g| g.as_raw()).collect())
    };
    lookup().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = "   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 4711 1 0 100 0 0 10 0";
        let t = tcp_line(line).unwrap();
        assert_eq!(
            (t.local, t.state, t.uid, t.inode),
            ("127.0.0.1:5432".parse().unwrap(), LISTEN, 101, 4711)
        );
        assert_eq!(
            address("0000000000000000FFFF00000100007F:0016").unwrap(),
            "127.0.0.1:22".parse().unwrap()
        );
        assert_eq!(
            address("00000000000000000000000001000000:0016").unwrap(),
            "[::1]:22".parse().unwrap()
        );
        assert!(address("zz:1").is_none() && tcp_line("").is_none());
    }

    #[test]
    fn the_way_up_ends_before_the_first_process() {
        let me = std::process::id();
        let up = ancestors(me);
        assert!(!up.contains(&1) && !up.contains(&me));
        assert_eq!(up.first().copied().unwrap_or(1), std::os::unix::process::parent_id());
        assert_eq!(variable(me, "PATH"), std::env::var("PATH").ok());
        assert_eq!(variable(me, "NO_SUCH_VARIABLE_HERE"), None);
    }

    #[test]
    fn own_sockets_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp_listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mine = sockets_of(std::process::id());
        assert!(unix_listeners("self", &mine).contains(&path));
        let local = tcp_listener.local_addr().unwrap();
        assert!(tcp("self").iter().any(|t| t.local == local && mine.contains(&t.inode)));
        assert!(netns("self").is_some());
    }
}
