//! The miniature network: a protected host and two machines that reach it.
//!
//! ```text
//!   agent  10.77.0.2 ─┐
//!                     ├─ 10.77.0.1  host   (services, issuer, capture, daemon)
//!   other  10.78.0.2 ─┘
//! ```
//!
//! Addresses are the same in every bed; only the names of the namespaces differ.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::proc::Cmd;

/// The protected host's IPv4 address, as agents dial it.
pub const HOST_V4: &str = "10.77.0.1";
/// The protected host's IPv6 address.
pub const HOST_V6: &str = "fd77::1";
/// The agent's own IPv4 address.
pub const AGENT_V4: &str = "10.77.0.2";
/// The agent's own IPv6 address.
pub const AGENT_V6: &str = "fd77::2";
/// The other machine's own IPv4 address.
pub const OTHER_V4: &str = "10.78.0.2";

const PREFIX: &str = "icbed";

/// From which machine something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The protected host itself.
    Host,
    /// The machine on which the agent runs.
    Agent,
    /// A second machine, for tokens that travelled.
    Other,
}

/// Three network namespaces, removed on drop.
pub struct Net {
    id: String,
}

impl Net {
    /// Makes the namespaces, links and addresses.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let net = Self { id: format!("{PREFIX}{}x{number}", std::process::id()) };
        net.lay()?;
        Ok(net)
    }

    fn lay(&self) -> Result<()> {
        let (host, agent, other) =
            (self.name(Place::Host), self.name(Place::Agent), self.name(Place::Other));
        ip(
            None,
            &format!(
                "netns add {host}\nnetns add {agent}\nnetns add {other}\n\
                 link add name agent0 netns {host} type veth peer name eth0 netns {agent}\n\
                 link add name other0 netns {host} type veth peer name eth0 netns {other}\n"
            ),
        )?;
        ip(
            Some(&host),
            "link set lo up\n\
             addr add 10.77.0.1/24 dev agent0\naddr add fd77::1/64 dev agent0 nodad\n\
             addr add 10.78.0.1/24 dev other0\naddr add fd78::1/64 dev other0 nodad\n\
             link set agent0 up\nlink set other0 up\n",
        )?;
        for (name, net) in [(&agent, 77), (&other, 78)] {
            ip(
                Some(name),
                &format!(
                    "link set lo up\naddr add 10.{net}.0.2/24 dev eth0\n\
                     addr add fd{net}::2/64 dev eth0 nodad\nlink set eth0 up\n\
                     route add default via 10.{net}.0.1\nroute add default via fd{net}::1\n"
                ),
            )?;
        }
        Ok(())
    }

    /// The unique name of this bed.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The name of a namespace.
    pub fn name(&self, place: Place) -> String {
        let place = match place {
            Place::Host => "host",
            Place::Agent => "agent",
            Place::Other => "other",
        };
        format!("{}-{place}", self.id)
    }

    /// Runs a function on a thread of its own inside a namespace: for clients that live in
    /// the test's process.
    pub fn inside<T: Send>(
        &self,
        place: Place,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        let path = format!("/run/netns/{}", self.name(place));
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    let file = std::fs::File::open(&path).with_context(|| path.clone())?;
                    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| path.clone())?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("the work inside the namespace panicked"))?
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for place in [Place::Agent, Place::Other, Place::Host] {
            let name = self.name(place);
            // What a login session has started outlives its server.
            end_processes(&name);
            let _ = Cmd::new("ip").args(["netns", "del", &name]).run();
        }
    }
}

/// Kills what still runs in a namespace of ours.
fn end_processes(namespace: &str) {
    let pids = Cmd::new("ip").args(["netns", "pids", namespace]).ok().unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|p| p.parse().ok()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
}

fn ip(namespace: Option<&str>, batch: &str) -> Result<()> {
    let mut command = Cmd::new("ip");
    if let Some(name) = namespace {
        command = command.args(["-n", name]);
    }
    command.args(["-batch", "-"]).stdin(batch).ok()?;
    Ok(())
}

/// Removes what beds of processes that no longer live have left: their namespaces, the
/// processes inside them, their pins and directories.
fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('x').next()) else {
            continue;
        };
        if std::path::Path::new("/proc").join(owner).exists() {
            continue;
        }
        end_processes(&name);
        let _ = Cmd::new("ip").args(["netns", "del", &name]).run();
        if let Some(id) = name.strip_suffix("-host") {
            let _ = std::fs::remove_dir_all(format!("/sys/fs/bpf/interceptor-{id}"));
            let _ = std::fs::remove_dir_all(std::env::temp_dir().join(id));
        }
    }
}
