//! A whole protected host in miniature, from its network to its daemon.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cluster::{Cluster, Server};
use crate::daemon::{DaemonSpec, Interceptor, ServiceSpec};
use crate::live::Live;
use crate::login::Login;
use crate::net::{Net, Place};
use crate::proc::{Cmd, Output};
use crate::tls::Tls;
use crate::tokens::{Claims, Issuer};

/// Why beds cannot be made here, if they cannot; tests print it and pass.
pub fn cannot_run() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root (network namespaces, eBPF)".into());
    }
    ["ip", "nsenter", "setpriv", "psql"]
        .into_iter()
        .find(|p| !installed(p))
        .map(|p| format!("needs {p}: run `cargo xtask setup`"))
}

/// Where libfaketime lies, preloaded to give a daemon a clock of its own.
pub const DAEMON_CLOCK: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

/// Whether a program is on the path.
pub fn installed(program: &str) -> bool {
    Cmd::new("which").arg(program).run().is_ok_and(|o| o.success())
}

/// Says on the terminal itself that something is left out: the test harness would swallow what
/// a passing test prints.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Leaves a test early, saying why, where beds cannot be made.
#[macro_export]
macro_rules! skip_unless_possible {
    () => {
        if let Some(why) = $crate::bed::cannot_run() {
            $crate::bed::skipped(&why);
            return Ok(());
        }
    };
}

/// What a bed is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Which PostgreSQL; Debian's unless set.
    pub server: Option<Server>,
    /// Settings of PostgreSQL, `name=value`.
    pub postgres: Vec<String>,
    /// The services, each with a cluster of its own.
    pub services: Vec<ServiceSpec>,
    /// The daemon; none for a plain PostgreSQL.
    pub daemon: Option<DaemonSpec>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            server: None,
            postgres: Vec::new(),
            services: vec![ServiceSpec::orders()],
            daemon: Some(DaemonSpec::default()),
        }
    }
}

impl Spec {
    /// PostgreSQL alone, reached directly: neither issuer nor daemon.
    pub fn direct() -> Self {
        Self { daemon: None, ..Self::default() }
    }

    /// With other policies than the default ones.
    pub fn policies(mut self, files: &[(&str, &str)]) -> Self {
        self.daemon.get_or_insert_default().policies =
            files.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect();
        self
    }

    /// Changes the first service.
    pub fn service(mut self, change: impl FnOnce(&mut ServiceSpec)) -> Self {
        if let Some(first) = self.services.first_mut() {
            change(first);
        }
        self
    }

    /// Adds a service.
    pub fn and(mut self, service: ServiceSpec) -> Self {
        self.services.push(service);
        self
    }

    /// Adds to the daemon's configuration.
    pub fn config(mut self, toml: &str) -> Self {
        let daemon = self.daemon.get_or_insert_default();
        daemon.config.push_str(toml);
        daemon.config.push('\n');
        self
    }
}

/// A protected host with everything around it. Parts are dropped in this order.
pub struct Bed {
    interceptor: Option<Interceptor>,
    issuer: Option<Issuer>,
    clusters: Vec<Cluster>,
    /// Certificates.
    pub tls: Tls,
    net: Net,
    dir: Directory,
}

impl Bed {
    /// The usual bed: one service, default policy, daemon ready.
    pub fn new() -> Result<Self> {
        Self::with(Spec::default())
    }

    /// A bed made to measure.
    pub fn with(spec: Spec) -> Result<Self> {
        let net = Net::create()?;
        let dir = Directory::create(net.id())?;
        let host = net.name(Place::Host);
        let tls = Tls::create(&dir.0)?;
        let server = spec.server.map_or_else(Server::debian, Ok)?;
        let mut clusters = Vec::new();
        for service in &spec.services {
            let place = dir.0.join(&service.name);
            clusters.push(Cluster::start(
                &place,
                &host,
                service.port,
                &server,
                &tls,
                &spec.postgres,
            )?);
        }
        let mut bed = Self { interceptor: None, issuer: None, clusters, tls, net, dir };
        if let Some(daemon) = &spec.daemon {
            bed.issuer = Some(Issuer::start(&bed.dir.0, &bed.net)?);
            let services: Vec<(ServiceSpec, PathBuf)> = spec
                .services
                .iter()
                .cloned()
                .zip(bed.clusters.iter().map(Cluster::socket))
                .collect();
            let id = bed.net.id().to_owned();
            let made = Interceptor::create(&bed.dir.0, &id, &host, &bed.tls, &services, daemon);
            bed.interceptor = Some(made?);
        }
        Ok(bed)
    }

    /// Its files.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Its network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The PostgreSQL of the first service.
    pub fn db(&self) -> &Cluster {
        &self.clusters[0]
    }

    /// The same, to be signalled.
    pub fn db_mut(&mut self) -> &mut Cluster {
        &mut self.clusters[0]
    }

    /// All PostgreSQLs, in the order of the services.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// The daemon.
    pub fn interceptor(&self) -> Result<&Interceptor> {
        self.interceptor.as_ref().context("this bed has no daemon")
    }

    /// The daemon, to be stopped, killed or started.
    pub fn interceptor_mut(&mut self) -> Result<&mut Interceptor> {
        self.interceptor.as_mut().context("this bed has no daemon")
    }

    /// The issuer.
    pub fn issuer(&self) -> Result<&Issuer> {
        self.issuer.as_ref().context("this bed has no issuer")
    }

    /// The issuer, to be stopped.
    pub fn issuer_mut(&mut self) -> Result<&mut Issuer> {
        self.issuer.as_mut().context("this bed has no issuer")
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Claims) -> Result<String> {
        self.issuer()?.mint(claims)
    }

    /// A login of the reporting agent as some role, with a fresh token.
    pub fn login(&self, role: &str) -> Result<Login> {
        self.login_with(role, &Claims::reporter())
    }

    /// A login with a token of these claims.
    pub fn login_with(&self, role: &str, claims: &Claims) -> Result<Login> {
        Ok(Login::new(role, &self.token(claims)?, &self.tls.ca))
    }

    /// A login with the role's own database password, for beds without a daemon.
    pub fn direct(&self, role: &str) -> Login {
        let password = crate::cluster::ROLES.iter().find(|(r, _)| *r == role).map_or("", |r| r.1);
        Login::new(role, password, &self.tls.ca)
    }

    /// Any program with this login, on the machine the login says.
    pub fn client(&self, login: &Login, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
        login.apply(Cmd::new(program))
    }

    /// Puts a prepared command on the login's machine.
    pub fn place(&self, login: &Login, command: Cmd) -> Cmd {
        command.in_netns(&self.net.name(login.from))
    }

    /// Runs statements in psql, one connection, unaligned rows without headers.
    pub fn psql(&self, login: &Login, sql: &str) -> Result<Output> {
        let cmd = self.client(login, "psql").args(["-X", "-At", "-f", "-"]).stdin(sql);
        self.place(login, cmd).run()
    }

    /// A psql that is talked to line by line.
    pub fn live_psql(&self, login: &Login) -> Result<Live> {
        let cmd = self.client(login, "psql").args(["-X", "-At"]);
        Live::start(&self.place(login, cmd))
    }
}

/// The bed's directory; others may pass through it, as the database's user must.
struct Directory(PathBuf);

impl Directory {
    fn create(id: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(id);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path)?;
        Cmd::new("chmod").arg("755").arg(&path).ok()?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::env::var_os("INTERCEPTOR_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
