//! By which SSH connection this command was called, and who else is logged in by one: the kernel
//! says it of sockets, sshd's process titles say who has authenticated.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use crate::capture::Connection;
use crate::cli::procfs;

/// What the caller's surroundings say of its SSH connection. A claim: each is looked for among
/// the connections that the kernel lists before it counts.
#[derive(Debug, Default)]
pub struct Caller {
    /// Ends by SSH_CONNECTION of this process or one above it: remote, local.
    ends: Vec<(SocketAddr, SocketAddr)>,
    /// Sockets of the sshd processes above this one.
    sockets: HashSet<u64>,
}

impl Caller {
    /// Of this very process: sudo drops the variable, a terminal multiplexer the ancestry, so
    /// both are looked at.
    pub fn here() -> Self {
        let mut caller = Self::default();
        caller.add_variable(std::env::var("SSH_CONNECTION").ok().as_deref());
        for pid in procfs::ancestors(std::process::id()) {
            let variable = procfs::variable(pid, "SSH_CONNECTION");
            caller.add_variable(variable.as_deref());
            if is_sshd(pid) {
                caller.sockets.extend(procfs::sockets_of(pid));
            }
        }
        caller
    }

    fn add_variable(&mut self, value: Option<&str>) {
        self.ends.extend(value.and_then(ends));
    }

    /// Whether a connection is the one the caller came by.
    pub fn came_by(&self, c: &Connection) -> bool {
        self.ends.contains(&(c.remote, c.local))
            || (c.inode != 0 && self.sockets.contains(&c.inode))
    }

    /// Whether there is any sign of an SSH connection.
    pub fn is_known(&self) -> bool {
        !self.ends.is_empty() || !self.sockets.is_empty()
    }
}

/// `SSH_CONNECTION`: remote address and port, local address and port.
fn ends(value: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut words = value.split(' ');
    let mut end = || -> Option<SocketAddr> {
        let address = words.next()?.split('%').next()?;
        let ip: IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(ip.to_canonical(), words.next()?.parse().ok()?))
    };
    Some((end()?, end()?))
}

/// Whether somebody is logged in by a connection: an sshd process that has got past
/// authentication holds it. `false` where that cannot be seen.
pub fn is_login(c: &Connection) -> bool {
    let holds = |pid: &u32| {
        is_sshd(*pid)
            && procfs::arguments(*pid).first().is_some_and(|t| is_login_title(t))
            && procfs::sockets_of(*pid).contains(&c.inode)
    };
    c.inode != 0 && procfs::processes().iter().any(holds)
}

fn is_sshd(pid: u32) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim() == "sshd" || comm.trim() == "sshd-session"
}

/// `sshd: alice@pts/0`, `sshd: alice@notty`. Before that a title carries `[accepted]`, `[net]`,
/// `[preauth]` or, of the process that watches over it, `[priv]`.
fn is_login_title(title: &str) -> bool {
    let rest = title.strip_prefix("sshd: ").or_else(|| title.strip_prefix("sshd-session: "));
    rest.is_some_and(|r| r.contains('@') && !r.contains('['))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(remote: &str, local: &str, inode: u64) -> Connection {
        let (remote, local) = (remote.parse().unwrap(), local.parse().unwrap());
        Connection { local, remote, cookie: 1, inode }
    }

    #[test]
    fn the_variable_names_one_connection() {
        let mut caller = Caller::default();
        caller.add_variable(Some("203.0.113.7 50000 192.0.2.1 22"));
        caller.add_variable(Some("fe80::1%eth0 50001 fe80::2%eth0 22"));
        assert!(caller.came_by(&connection("203.0.113.7:50000", "192.0.2.1:22", 0)));
        assert!(caller.came_by(&connection("[fe80::1]:50001", "[fe80::2]:22", 0)));
        assert!(!caller.came_by(&connection("203.0.113.7:50001", "192.0.2.1:22", 0)));
        assert!(!caller.came_by(&connection("203.0.113.7:50000", "192.0.2.1:2222", 0)));
        for bad in ["", "x", "203.0.113.7 1", "203.0.113.7 99999 192.0.2.1 22", "a b c d"] {
            assert_eq!(ends(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_socket_without_process_is_nobodys() {
        let mut caller = Caller::default();
        caller.sockets.insert(0);
        assert!(!caller.came_by(&connection("203.0.113.7:1", "192.0.2.1:22", 0)));
        assert!(!is_login(&connection("203.0.113.7:1", "192.0.2.1:22", 0)));
    }

    #[test]
    fn only_titles_after_authentication_count() {
        for (title, want) in [
            ("sshd: alice@pts/0", true),
            ("sshd-session: alice@notty", true),
            ("sshd: alice@example.com@pts/3,pts/4", true),
            ("sshd: alice [priv]", false),
            ("sshd: alice [net]", false),
            ("sshd: alice@example.com [net]", false),
            ("sshd: [accepted]", false),
            ("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups", false),
            ("sshd: alice [preauth]", false),
            ("bash", false),
        ] {
            assert_eq!(is_login_title(title), want, "{title}");
        }
    }
}
