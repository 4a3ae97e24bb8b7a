//! The host's sshd as it says itself: its version, what its configuration means for a given
//! connection, and whether it would start with it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::procfs;

/// Which sshd, and with which configuration.
#[derive(Debug, Clone, Args)]
pub struct Sshd {
    /// The server's program.
    #[arg(id = "sshd", long, default_value = "/usr/sbin/sshd", value_name = "FILE")]
    pub program: PathBuf,
    /// Its configuration.
    #[arg(
        id = "sshd_config",
        long = "sshd-config",
        default_value = "/etc/ssh/sshd_config",
        value_name = "FILE"
    )]
    pub config: PathBuf,
}

impl Default for Sshd {
    fn default() -> Self {
        Self { program: "/usr/sbin/sshd".into(), config: "/etc/ssh/sshd_config".into() }
    }
}

/// For whose connection the configuration is asked.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// The OS user who would be logged in.
    pub user: &'a str,
    /// The address that would connect.
    pub address: IpAddr,
}

/// What sshd would do, keyword by keyword (in lower case), as `sshd -T` prints it.
#[derive(Debug, Clone, Default)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// From that text.
    pub fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            (key.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self(text.lines().filter(|l| !l.is_empty()).map(pair).collect())
    }

    /// The value of a keyword; empty when it is not set.
    pub fn get(&self, key: &str) -> &str {
        self.all(key).next().unwrap_or_default()
    }

    /// All values of a keyword that can stand several times.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

impl Sshd {
    /// Major and minor number. Old ones know no option for it, but say it all the same.
    pub fn version(&self) -> anyhow::Result<(u32, u32)> {
        let out = Command::new(&self.program).arg("-V").output();
        let out = out.with_context(|| {
            format!("cannot run {}: is openssh-server installed?", self.program.display())
        })?;
        let text = [out.stdout, out.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        version(&text).with_context(|| format!("{} is no OpenSSH server", self.program.display()))
    }

    /// What the configuration means, for everybody or for one connection.
    pub fn settings(&self, from: Option<Client<'_>>) -> anyhow::Result<Settings> {
        let mut command = Command::new(&self.program);
        command.arg("-T").arg("-f").arg(&self.config);
        if let Some(Client { user, address }) = from {
            let here = if address.is_ipv6() { "::1" } else { "127.0.0.1" };
            // A name that resolves to nothing else: no lookup, and no `Match Host` of the admin's
            // counts that would not count for a real connection with UseDNS off.
            let spec = format!("user={user},host={address},addr={address},laddr={here},lport=22");
            command.args(["-C", &spec]);
        }
        let out = command.output().context("cannot run sshd")?;
        ensure!(
            out.status.success(),
            "sshd refuses its configuration: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(Settings::parse(&String::from_utf8_lossy(&out.stdout)))
    }

    /// Whether it would start with the configuration as it stands on disk.
    pub fn check(&self) -> anyhow::Result<()> {
        let out = Command::new(&self.program).arg("-t").arg("-f").arg(&self.config).output();
        let out = out.context("cannot run sshd")?;
        ensure!(
            out.status.success(),
            "sshd refuses its configuration: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(())
    }

    /// The process that listens; `None` when there is none, as where systemd starts one for each
    /// connection.
    pub fn process(&self, settings: &Settings) -> Option<u32> {
        let text = fs::read_to_string(settings.get("pidfile")).ok()?;
        let pid: u32 = text.trim().parse().ok()?;
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (comm.trim() == "sshd").then_some(pid)
    }

    /// Makes the listening process read its configuration again. Gives whether there is one.
    pub fn reload(&self, settings: &Settings) -> anyhow::Result<bool> {
        let Some(pid) = self.process(settings) else { return Ok(false) };
        kill(Pid::from_raw(pid.try_into()?), Signal::SIGHUP).context("cannot reload sshd")?;
        // It starts itself anew under the same number; a refused configuration would end it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(100));
            if self.process(settings).is_some() && listens(pid) {
                return Ok(true);
            }
        }
        bail!("sshd does not listen any more after it was reloaded: see its log")
    }

    /// Whether the main file takes a drop-in in for every connection.
    pub fn includes(&self, drop_in: &Path) -> anyhow::Result<bool> {
        let text = fs::read_to_string(&self.config)
            .with_context(|| format!("cannot read {}", self.config.display()))?;
        Ok(includes(&text, drop_in))
    }
}

fn listens(pid: u32) -> bool {
    let mine = procfs::sockets_of(pid);
    let listens = |t: &procfs::Tcp| t.state == procfs::LISTEN && mine.contains(&t.inode);
    procfs::tcp(&pid.to_string()).iter().any(listens)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let rest = text.split("OpenSSH_").nth(1)?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// An `Include` before the first `Match`, with a pattern that fits. sshd resolves relative
/// patterns below /etc/ssh.
fn includes(config: &str, drop_in: &Path) -> bool {
    for line in config.lines() {
        let mut words = line.split_whitespace();
        match words.next().map(str::to_ascii_lowercase).as_deref() {
            Some("match") => return false,
            Some("include") => {
                let fits = |pattern: &str| {
                    let pattern = Path::new("/etc/ssh").join(pattern.trim_matches('"'));
                    let glob = globset::GlobBuilder::new(&pattern.to_string_lossy())
                        .literal_separator(true)
                        .build();
                    glob.is_ok_and(|g| g.compile_matcher().is_match(drop_in))
                };
                if words.any(fits) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_whatever_it_prints() {
        for (text, want) in [
            ("unknown option -- V\nOpenSSH_9.2p1 Debian-2+deb12u6, OpenSSL 3.0.17\nusage:", (9, 2)),
            ("OpenSSH_10.0p2, OpenSSL 3.5.1", (10, 0)),
        ] {
            assert_eq!(version(text), Some(want));
        }
        assert_eq!(version("Dropbear"), None);
    }

    #[test]
    fn an_include_counts_only_for_everybody() {
        let drop_in = Path::new("/etc/ssh/sshd_config.d/10-interceptor.conf");
        for (text, want) in [
            ("Include /etc/ssh/sshd_config.d/*.conf\nPort 22\n", true),
            ("  include \"sshd_config.d/*.conf\"\n", true),
            ("# Include /etc/ssh/sshd_config.d/*.conf\n", false),
            ("Match User x\nInclude /etc/ssh/sshd_config.d/*.conf\n", false),
            ("Include /etc/ssh/*.conf\n", false),
            ("Include /etc/other/*.conf /etc/ssh/sshd_config.d/1?-*.conf\n", true),
            ("", false),
        ] {
            assert_eq!(includes(text, drop_in), want, "{text:?}");
        }
    }

    #[test]
    fn settings_are_by_keyword() {
        let s = Settings::parse("port 22\nhostkey /a\nhostkey /b c\nListenAddress [::]:22\n");
        assert_eq!(s.get("port"), "22");
        assert_eq!(s.all("hostkey").collect::<Vec<_>>(), ["/a", "/b c"]);
        assert_eq!((s.get("listenaddress"), s.get("none")), ("[::]:22", ""));
    }
}
