//! A running PostgreSQL server as setup sees it: where its files are, asked of the server
//! itself, as the operating system user that owns it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::unistd::{Gid, Group, Pid, Uid, User};

/// Where the server is and who runs it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Directory of its Unix socket.
    pub socket_dir: PathBuf,
    /// Its port, part of the socket's name.
    pub port: u16,
    /// Operating system user that runs it.
    pub owner: String,
    /// Its superuser, of the same name by custom.
    pub superuser: String,
}

/// What the server says about its files.
#[derive(Debug, Clone)]
pub struct Files {
    /// `data_directory`.
    pub data: PathBuf,
    /// `hba_file`.
    pub hba: PathBuf,
    /// `ident_file`.
    pub ident: PathBuf,
    /// `config_file`.
    pub config: PathBuf,
}

impl Server {
    /// The socket itself.
    pub fn socket(&self) -> PathBuf {
        self.socket_dir.join(format!(".s.PGSQL.{}", self.port))
    }

    /// From a data directory: the port and socket of the running postmaster, and its owner.
    pub fn of_data_dir(data: &Path) -> anyhow::Result<Self> {
        let pid_file = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&pid_file).with_context(|| {
            format!("cannot read {}: is the server running?", pid_file.display())
        })?;
        let line = |n: usize| text.lines().nth(n).map(str::trim).unwrap_or_default();
        let port = line(3).parse().context("postmaster.pid names no port")?;
        ensure!(!line(4).is_empty(), "the server has no Unix socket: set unix_socket_directories");
        let owner = user_name(std::fs::metadata(data)?.uid())?;
        Ok(Self { socket_dir: line(4).into(), port, superuser: owner.clone(), owner })
    }

    /// From the path of its socket.
    pub fn of_socket(socket: &Path) -> anyhow::Result<Self> {
        let name = socket.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let port = name.strip_prefix(".s.PGSQL.").and_then(|p| p.parse().ok());
        let Some(port) = port else {
            bail!("{} is no PostgreSQL socket (.s.PGSQL.PORT)", socket.display())
        };
        let meta = std::fs::metadata(socket)
            .with_context(|| format!("no server at {}", socket.display()))?;
        let owner = user_name(meta.uid())?;
        let socket_dir = socket.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Self { socket_dir, port, superuser: owner.clone(), owner })
    }

    /// Asks the server one thing as its owner; tuples only, unaligned.
    pub fn ask(&self, sql: &str) -> anyhow::Result<String> {
        let out = self.psql(&self.owner, &[], &self.superuser, sql)?;
        if !out.status.success() {
            bail!(
                "the server refused {} as {}: {}",
                self.superuser,
                self.owner,
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&out.stdout).trim_end().to_owned())
    }

    /// Runs psql as another user of this host, with further groups.
    pub fn psql(
        &self,
        os_user: &str,
        groups: &[u32],
        role: &str,
        sql: &str,
    ) -> anyhow::Result<Output> {
        let mut command = as_user(os_user, groups)?;
        command
            .args(["psql", "-X", "-w", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .arg("-h")
            .arg(&self.socket_dir)
            .args(["-p", &self.port.to_string(), "-U", role, "-d", "postgres", "-c", sql]);
        // No settings of the caller's: neither PGPASSWORD nor PGSERVICE may decide this.
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        command.env_clear().env("PATH", path).env("LC_ALL", "C");
        command
            .current_dir("/")
            .output()
            .context("cannot run psql: is postgresql-client installed?")
    }

    /// The files the server uses.
    pub fn files(&self) -> anyhow::Result<Files> {
        let show = |name: &str| self.ask(&format!("SHOW {name}")).map(PathBuf::from);
        Ok(Files {
            data: show("data_directory")?,
            hba: show("hba_file")?,
            ident: show("ident_file")?,
            config: show("config_file")?,
        })
    }

    /// What the server thinks is wrong with its authentication files as they stand on disk.
    pub fn complaints(&self) -> anyhow::Result<String> {
        let mut found = self.ask(
            "SELECT 'pg_hba.conf line ' || line_number || ': ' || error \
             FROM pg_hba_file_rules WHERE error IS NOT NULL",
        )?;
        let view =
            self.ask("SELECT to_regclass('pg_catalog.pg_ident_file_mappings') IS NOT NULL")?;
        if view == "t" {
            found.push_str(&self.ask(
                "SELECT 'pg_ident.conf line ' || line_number || ': ' || error \
                 FROM pg_ident_file_mappings WHERE error IS NOT NULL",
            )?);
        }
        Ok(found)
    }

    /// Makes the server read its files again, by signal: that needs no login.
    pub fn reload(&self, data: &Path) -> anyhow::Result<()> {
        let before = self.ask("SELECT pg_conf_load_time()").ok();
        let file = data.join("postmaster.pid");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let pid: i32 = text.lines().next().unwrap_or_default().trim().parse()?;
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        ensure!(
            comm.starts_with("postgres") || comm.starts_with("postmaster"),
            "process {pid} of {} is no PostgreSQL server",
            file.display()
        );
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGHUP)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.ask("SELECT pg_conf_load_time()").ok();
            // Without a login there is nothing to compare: give it a moment.
            if now.is_none() || now != before {
                std::thread::sleep(Duration::from_millis(200));
                return Ok(());
            }
        }
        bail!("the server did not read its files again within 10 s: see its log")
    }

    /// The systemd unit the server runs in, if any.
    pub fn unit(data: &Path) -> Option<String> {
        let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
        super::systemd::unit_of(text.lines().next()?.trim().parse().ok()?)
    }
}

/// Name of a user id.
pub fn user_name(uid: u32) -> anyhow::Result<String> {
    let user = User::from_uid(Uid::from_raw(uid))?;
    Ok(user.with_context(|| format!("uid {uid} is no user of this host"))?.name)
}

/// Name of a group id, or its number.
pub fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |g| g.name)
}

/// A command that runs as a user with its own groups and further ones.
fn as_user(name: &str, groups: &[u32]) -> anyhow::Result<Command> {
    let user = User::from_name(name)?.with_context(|| format!("no user {name:?} on this host"))?;
    if user.uid == nix::unistd::geteuid() {
        return Ok(Command::new("env"));
    }
    ensure!(nix::unistd::geteuid().is_root(), "run this as root: sudo interceptor setup …");
    let own = nix::unistd::getgrouplist(&std::ffi::CString::new(name)?, user.gid)?;
    let all: Vec<_> = own
        .iter()
        .map(|g| g.as_raw())
        .chain(groups.iter().copied())
        .map(|g| g.to_string())
        .collect();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
    command.arg(format!("--groups={}", all.join(",")));
    Ok(command)
}
