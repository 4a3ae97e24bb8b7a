//! The capture that waits to be confirmed, and what was confirmed before.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::places::{self, Places};
use crate::capture::Before;

/// Ports that are captured and will be given back unless somebody shows that there is a way in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pending {
    /// Directory of the pins.
    pub pins: PathBuf,
    /// Network namespace, where it is not the caller's own.
    pub netns: Option<PathBuf>,
    /// The ports that wait.
    pub ports: Vec<Waiting>,
    /// When they are given back.
    pub deadline: Deadline,
    /// Whether the ports are captured by now; else the attach is still on its way.
    pub attached: bool,
}

/// One port that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Waiting {
    /// Its service.
    pub service: String,
    /// The port.
    pub port: u16,
    /// The daemon's way to the service, on this host.
    pub upstream: SocketAddr,
    /// The exempt sources that wait with it.
    pub exempt: Vec<IpNet>,
    /// What it was, and will be again.
    pub before: Before,
    /// Cookies of the connections that were there when it was captured: none of them proves
    /// that a new one can be made.
    pub older: Vec<u64>,
}

/// A point in the time that the machine has been up, suspended or not: no change of the clock
/// moves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Which run of the machine.
    boot: String,
    /// Milliseconds since its start.
    uptime_ms: u64,
    /// The same by the clock, for people.
    pub at: jiff::Timestamp,
}

impl Deadline {
    /// From now on.
    pub fn after(wait: Duration) -> anyhow::Result<Self> {
        let wait_ms = u64::try_from(wait.as_millis())?;
        let at = jiff::Timestamp::now().checked_add(wait)?;
        Ok(Self { boot: boot()?, uptime_ms: uptime_ms()? + wait_ms, at })
    }

    /// What is left; `None` when the machine has been started since.
    pub fn left(&self) -> Option<Duration> {
        // What cannot be read is no reason to wait longer.
        let now = uptime_ms().unwrap_or(u64::MAX);
        let same = boot().is_ok_and(|boot| boot == self.boot);
        same.then(|| Duration::from_millis(self.uptime_ms.saturating_sub(now)))
    }
}

fn boot() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).context(path)?.trim().to_owned())
}

/// What CLOCK_BOOTTIME shows.
fn uptime_ms() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime").context("/proc/uptime")?;
    let first = text.split_whitespace().next().context("/proc/uptime")?;
    let (seconds, hundredths) = first.split_once('.').context("/proc/uptime")?;
    Ok(seconds.parse::<u64>()? * 1000 + hundredths.parse::<u64>()? * 10)
}

impl Pending {
    /// The capture that waits, if one does. One of an earlier run of the machine does not: its
    /// pins are gone.
    pub fn read(places: &Places) -> anyhow::Result<Option<Self>> {
        let found: Option<Self> = places::read(&places.pending())?;
        Ok(found.filter(|p| p.deadline.left().is_some()))
    }

    /// Keeps it, or forgets it when no port waits any more.
    pub fn keep(&self, places: &Places) -> anyhow::Result<()> {
        if self.ports.is_empty() {
            return places::remove(&places.pending());
        }
        places::write(&places.pending(), self)
    }

    /// Whether a process stands ready to give the ports back; `None` for those who may not know:
    /// whoever can open that file could hold its lock.
    pub fn is_watched(places: &Places) -> Option<bool> {
        match std::fs::File::open(places.watch()) {
            Ok(file) => Some(Flock::lock(file, FlockArg::LockSharedNonblock).is_err()),
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => None,
            Err(_) => Some(false),
        }
    }

    /// For people, one line a port.
    pub fn lines(&self, places: &Places) -> Vec<String> {
        let left = self.deadline.left().unwrap_or_default().as_secs();
        let line = |w: &Waiting| {
            let back = match w.before.exempt {
                None => "opens again",
                Some(_) => "gets its exempt sources back",
            };
            format!(
                "port {} ({}) {back} in {left} s: from a new SSH session run \
                 `interceptor capture confirm`",
                w.port, w.service
            )
        };
        let mut lines: Vec<_> = self.ports.iter().map(line).collect();
        if Self::is_watched(places) == Some(false) {
            lines.push(
                "nobody watches over that: run `interceptor capture undo` or `confirm`".into(),
            );
        }
        lines
    }
}

/// Why a port may be captured without waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Proof {
    /// An operator's live connection came from an exempt source.
    ExemptConnection {
        /// Where from.
        source: SocketAddr,
    },
    /// A session that began after the capture came from an exempt source.
    NewExemptSession {
        /// Where from.
        source: SocketAddr,
    },
    /// A session that began after the capture came through the daemon.
    NewSession {
        /// The daemon's end of it.
        source: SocketAddr,
    },
    /// Somebody said `--no-confirm`.
    NoConfirm,
}

/// One port for which the way in was shown. It holds for the next start of the machine too, as
/// long as no exempt source of then is missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Confirmed {
    /// The service.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// The exempt sources of then.
    pub exempt: Vec<IpNet>,
    /// When.
    pub at: jiff::Timestamp,
    /// How.
    pub proof: Proof,
}

impl Confirmed {
    /// All that was confirmed. What cannot be read was not confirmed.
    pub fn read(places: &Places) -> Vec<Self> {
        places::read(&places.confirmed())
            .unwrap_or_else(|error| {
                tracing::warn!("{error:#}");
                None
            })
            .unwrap_or_default()
    }

    /// Remembers one, in place of what was known of that port.
    pub fn keep(self, places: &Places) -> anyhow::Result<()> {
        let mut all = Self::read(places);
        all.retain(|c| c.port != self.port);
        all.push(self);
        places::write(&places.confirmed(), &all)
    }

    /// Whether this stands for capturing the port with these exempt sources.
    pub fn covers(&self, port: u16, exempt: &[IpNet]) -> bool {
        self.port == port && self.exempt.iter().all(|net| exempt.contains(net))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_countdown_does_not_depend_on_the_clock() {
        let deadline = Deadline::after(Duration::from_secs(100)).unwrap();
        let moved = Deadline { at: jiff::Timestamp::UNIX_EPOCH, ..deadline.clone() };
        for d in [&deadline, &moved] {
            let left = d.left().unwrap();
            assert!(left > Duration::from_secs(90) && left <= Duration::from_secs(100), "{left:?}");
        }
        let past = Deadline { uptime_ms: 0, ..deadline.clone() };
        assert_eq!(past.left(), Some(Duration::ZERO));
        let other = Deadline { boot: "another".into(), ..deadline };
        assert_eq!(other.left(), None);
    }

    #[test]
    fn a_confirmation_holds_while_no_exempt_source_goes() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let confirmed = Confirmed {
            service: "host-ssh".into(),
            port: 22,
            exempt: vec![net("10.0.0.5/32")],
            at: jiff::Timestamp::now(),
            proof: Proof::NoConfirm,
        };
        assert!(confirmed.covers(22, &[net("10.0.0.5/32"), net("10.0.0.6/32")]));
        assert!(!confirmed.covers(22, &[net("10.0.0.6/32")]));
        assert!(!confirmed.covers(2222, &[net("10.0.0.5/32")]));
    }
}
