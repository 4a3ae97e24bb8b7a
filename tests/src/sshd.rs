//! Debian's own sshd with host keys, users and a port of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::accounts::{self, Accounts, LOGINS};
use crate::net::{HOST_V4, HOST_V6};
use crate::proc::{Cmd, Daemon, wait_for};

/// The server's program.
pub const PROGRAM: &str = "/usr/sbin/sshd";
/// The principal that opens every login on behalf of the daemon.
pub const PRINCIPAL: &str = "interceptor-session";
/// Types of host keys, in the server's own order.
const HOST_KEYS: [&str; 3] = ["rsa", "ecdsa", "ed25519"];

/// A running sshd.
pub struct Sshd {
    process: Daemon,
    dir: PathBuf,
    port: u16,
    accounts: Accounts,
}

impl Sshd {
    /// Starts it in a namespace, on all addresses.
    pub fn start(dir: &Path, netns: &str, port: u16, accounts: &Accounts) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        for kind in HOST_KEYS {
            keygen(kind, &dir.join(format!("ssh_host_{kind}_key")))?;
        }
        keygen("ed25519", &dir.join("user_ca"))?;
        for part in ["principals", "authorized_keys"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        for (name, _) in LOGINS {
            std::fs::write(dir.join("principals").join(name), format!("{PRINCIPAL}\n"))?;
        }
        // Where the server locks itself up before anybody is known.
        std::fs::create_dir_all("/run/sshd")?;
        let config = dir.join("sshd_config");
        std::fs::write(&config, configuration(dir, port))?;
        let process = Cmd::new(PROGRAM)
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .with_etc(&accounts.etc())
            .in_netns(netns)
            .daemonize(&dir.join("sshd.log"))?;
        let mut me = Self { process, dir: dir.into(), port, accounts: accounts.clone() };
        wait_for("sshd to listen", Duration::from_secs(10), || {
            me.process.still_runs()?;
            Ok(me.log().contains("Server listening on 0.0.0.0").then_some(()))
        })?;
        Ok(me)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its host keys, as the daemon is told to show them.
    pub fn host_keys(&self) -> Vec<PathBuf> {
        HOST_KEYS.iter().map(|kind| self.dir.join(format!("ssh_host_{kind}_key"))).collect()
    }

    /// Where its configuration and keys are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The key that signs certificates which this server trusts.
    pub fn ca_key(&self) -> PathBuf {
        self.dir.join("user_ca")
    }

    /// What a client that has been here before knows about it.
    pub fn known_hosts(&self) -> Result<String> {
        let mut lines = String::new();
        for key in self.host_keys() {
            let public = std::fs::read_to_string(key.with_extension("pub"))?;
            let names = ["127.0.0.1", "::1", "localhost", HOST_V4, HOST_V6];
            let names: Vec<String> = match self.port {
                22 => names.map(String::from).into(),
                port => names.iter().map(|n| format!("[{n}]:{port}")).collect(),
            };
            lines.push_str(&format!("{} {public}", names.join(",")));
        }
        Ok(lines)
    }

    /// Lets a public key in directly, past the daemon, as every user.
    pub fn authorize(&self, public: &str) -> Result<()> {
        for (name, _) in LOGINS {
            let path = self.dir.join("authorized_keys").join(name);
            let mut file = std::fs::File::options().create(true).append(true).open(path)?;
            file.write_all(public.as_bytes())?;
        }
        Ok(())
    }

    /// The home directory of one of its users.
    pub fn home(&self, user: &str) -> PathBuf {
        self.accounts.home(user)
    }

    /// Puts a file into a user's home directory.
    pub fn put(&self, user: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.home(user).join(name);
        accounts::write_as(&path, bytes, accounts::uid(user)?)?;
        Ok(path)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// How many connections it has let in.
    pub fn accepted(&self) -> usize {
        self.log().matches("Accepted publickey for").count()
    }

    /// The server process, to be signalled.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.process
    }

    /// The processes that serve connections now.
    pub fn connections(&self) -> Result<Vec<i32>> {
        let pid = self.process.pid().cast_signed();
        children(pid).with_context(|| format!("the children of {pid}"))
    }

    /// Kills everything that serves connections and what runs on them.
    pub fn kill_connections(&self) -> Result<()> {
        let mut all = self.connections()?;
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            all.extend(children(*pid).unwrap_or_default());
            at += 1;
        }
        for pid in all {
            // It may be gone already, with the one before it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }
}

fn children(pid: i32) -> std::io::Result<Vec<i32>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|p| p.parse().ok()).collect())
}

fn keygen(kind: &str, path: &Path) -> Result<()> {
    let mut cmd = Cmd::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", "bed"]);
    if kind == "rsa" {
        cmd = cmd.args(["-b", "2048"]);
    }
    cmd.arg("-f").arg(path).ok()?;
    Ok(())
}

fn configuration(dir: &Path, port: u16) -> String {
    let d = dir.display();
    let mut text = format!("Port {port}\nListenAddress 0.0.0.0\nListenAddress ::\n");
    for kind in HOST_KEYS {
        text.push_str(&format!("HostKey {d}/ssh_host_{kind}_key\n"));
    }
    // The bed lies below /tmp, which strict modes do not like. Nothing is forbidden here that
    // the daemon has to forbid.
    text.push_str(&format!(
        "UsePAM no\nStrictModes no\nPidFile none\nUseDNS no\nPrintMotd no\nPrintLastLog no\n\
         LogLevel VERBOSE\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         AuthorizedKeysFile {d}/authorized_keys/%u\nTrustedUserCAKeys {d}/user_ca.pub\n\
         AuthorizedPrincipalsFile {d}/principals/%u\nAcceptEnv LANG LC_* BED_*\n\
         Subsystem sftp internal-sftp\nMaxStartups 500:30:1000\nMaxSessions 200\n\
         AllowTcpForwarding yes\nAllowStreamLocalForwarding yes\nAllowAgentForwarding yes\n\
         X11Forwarding yes\nGatewayPorts yes\n"
    ));
    text
}
