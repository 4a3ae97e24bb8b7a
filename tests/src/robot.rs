//! An agent's own side of SSH: a home directory as any user has it, in which a stock client
//! with untouched configuration finds its key, its certificate and its known hosts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::accounts::write_as;
use crate::net::{HOST_V4, Place};
use crate::proc::Cmd;
use crate::sshkey::{Certificate, Kind, SshKey};

/// The variable that carries a token.
pub const VARIABLE: &str = "LC_OKTA_TOKEN";

/// One agent's account on its machine, and where it goes.
#[derive(Debug, Clone)]
pub struct Robot {
    /// Its home directory.
    pub home: PathBuf,
    /// Its number.
    pub uid: u32,
    /// Its key, under a name that clients look for.
    pub key: SshKey,
    /// From which machine.
    pub from: Place,
    /// Address of the host.
    pub host: String,
    /// As whom it logs in.
    pub user: String,
    /// More of its environment.
    pub env: BTreeMap<String, String>,
    /// `-o` for every client.
    pub options: Vec<String>,
    etc: PathBuf,
}

impl Robot {
    /// An agent that knows the host and has a key, and no token yet.
    pub fn create(
        (home, uid): (PathBuf, u32),
        etc: &Path,
        known_hosts: &str,
        user: &str,
        kind: Kind,
    ) -> Result<Self> {
        write_as(&home.join(".ssh/known_hosts"), known_hosts, uid)?;
        Ok(Self {
            key: SshKey::generate(&home.join(".ssh"), kind, uid)?,
            home,
            uid,
            from: Place::Agent,
            host: HOST_V4.into(),
            user: user.into(),
            env: BTreeMap::new(),
            // A question is a refusal, and an unknown or changed host key an error.
            options: vec!["BatchMode=yes".into(), "StrictHostKeyChecking=yes".into()],
            etc: etc.into(),
        })
    }

    /// From another machine.
    pub fn from(mut self, place: Place) -> Self {
        self.from = place;
        self
    }

    /// To another address.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// As another user.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.into();
        self
    }

    /// With one more option for every client.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// With one more variable in its environment.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// With the token in the variable that Debian's clients send by default.
    pub fn token(self, token: &str) -> Self {
        self.with(VARIABLE, token)
    }

    /// With a certificate beside the key.
    pub fn certified(self, wish: &Certificate) -> Result<Self> {
        self.key.certify(wish)?;
        Ok(self)
    }

    /// Adds to its `~/.ssh/config`.
    pub fn config(&self, text: &str) -> Result<()> {
        write_as(&self.home.join(".ssh/config"), text, self.uid)
    }

    /// Writes a file of its own.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.home.join(name);
        write_as(&path, bytes, self.uid)?;
        Ok(path)
    }

    /// A program in its account, home and environment; not yet on its machine.
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        self.dress(Cmd::new(program))
    }

    /// Puts a whole command line into its account, home and environment.
    pub fn dress(&self, command: Cmd) -> Cmd {
        let mut cmd = command.clear_env().dir(&self.home).env("HOME", &self.home);
        cmd = cmd.env("LANG", "C.UTF-8");
        for (name, value) in &self.env {
            cmd = cmd.env(name, value);
        }
        cmd.as_uid(self.uid).with_etc(&self.etc)
    }

    /// `-o` and option, for programs that know it.
    pub fn words(&self) -> Vec<String> {
        self.options.iter().flat_map(|o| ["-o".to_owned(), o.clone()]).collect()
    }

    /// `user@host`.
    pub fn target(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }

    /// `user@host:path` for scp and rsync.
    pub fn remote(&self, path: impl AsRef<Path>) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{}@{host}:{}", self.user, path.as_ref().display())
    }

    /// `ssh` to the host with more words: options of ssh's own cannot follow.
    pub fn ssh<A: AsRef<std::ffi::OsStr>>(&self, command: impl IntoIterator<Item = A>) -> Cmd {
        self.ssh_with(&[], command)
    }

    /// The same, with options of ssh before the host.
    pub fn ssh_with<A: AsRef<std::ffi::OsStr>>(
        &self,
        options: &[&str],
        command: impl IntoIterator<Item = A>,
    ) -> Cmd {
        let cmd = Cmd::new("ssh").args(self.words()).args(options).arg(self.target());
        self.dress(cmd.args(command))
    }
}
