//! Who is at the other end of the control socket, by the kernel's word.
//!
//! The pid alone could be reused between the connection and the look into `/proc`. A pidfd
//! of the peer closes that gap where the kernel has it (6.5 and later); elsewhere the start
//! time of the process must be the same before and after. Either way the user comes from the
//! socket itself, and a login user only ever confirms it or names the person behind root.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use crate::approval::Peer;

/// The value of `/proc/PID/loginuid` that means "never set".
const UNSET: u32 = u32::MAX;

/// Describes the process that connected.
pub(super) fn of(stream: &impl AsFd) -> io::Result<Peer> {
    let cred = getsockopt(stream, sockopt::PeerCredentials)?;
    let pid = u32::try_from(cred.pid()).unwrap_or(0);
    if pid == 0 {
        return Err(io::Error::other(
            "the client is in another process namespace: run the command on the host itself",
        ));
    }
    let login_uid = match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => with_pidfd(pid, &pidfd)?,
        Err(Errno::ENOPROTOOPT) => with_start_time(pid, cred.uid())?,
        Err(_) => return Err(gone()),
    };
    Ok(Peer { pid, uid: cred.uid(), gid: cred.gid(), login_uid })
}

fn gone() -> io::Error {
    io::Error::other("the process that connected has ended, so nobody can be asked who it was")
}

/// The pid cannot be reused while its pidfd shows a process that has not ended.
fn with_pidfd(pid: u32, pidfd: &OwnedFd) -> io::Result<Option<u32>> {
    let login = login_uid(pid);
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO)? != 0 {
        return Err(gone());
    }
    login
}

fn with_start_time(pid: u32, uid: u32) -> io::Result<Option<u32>> {
    let before = start_time(pid)?;
    let login = login_uid(pid)?;
    if start_time(pid)? != before || !has_uid(pid, uid)? {
        return Err(gone());
    }
    Ok(login)
}

fn login_uid(pid: u32) -> io::Result<Option<u32>> {
    match std::fs::read_to_string(format!("/proc/{pid}/loginuid")) {
        Ok(text) => {
            let uid: u32 = text.trim().parse().map_err(io::Error::other)?;
            Ok((uid != UNSET).then_some(uid))
        }
        // A kernel without audit has no login users.
        Err(e)
            if e.kind() == io::ErrorKind::NotFound
                && std::path::Path::new(&format!("/proc/{pid}")).exists() =>
        {
            Ok(None)
        }
        Err(_) => Err(gone()),
    }
}

/// Start time of a process in clock ticks since boot.
pub(super) fn start_time(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| gone())?;
    // The command's name may hold anything, so count from its closing parenthesis.
    let rest = stat.rsplit_once(')').map_or("", |(_, r)| r);
    rest.split_ascii_whitespace().nth(19).and_then(|t| t.parse().ok()).ok_or_else(gone)
}

fn has_uid(pid: u32, uid: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone())?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap_or_default();
    Ok(line.split_ascii_whitespace().any(|u| u.parse() == Ok(uid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_agree_and_see_that_a_process_has_gone() {
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let me = of(&stream).unwrap();
        assert_eq!(me.pid, std::process::id());
        assert_eq!(with_start_time(me.pid, me.uid).unwrap(), me.login_uid);
        assert!(with_start_time(me.pid, me.uid + 1).is_err(), "another user's process");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(with_start_time(pid, me.uid).is_err());
    }
}
