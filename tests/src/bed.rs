//! A whole protected host in miniature, from its network to its daemon.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::accounts::Accounts;
use crate::cluster::{Cluster, Server};
use crate::daemon::{Behind, DaemonSpec, Interceptor, Kind, REGISTERED, ServiceSpec};
use crate::live::Live;
use crate::login::Login;
use crate::net::{Net, Place};
use crate::proc::{Cmd, Output};
use crate::robot::Robot;
use crate::sshd::{self, Sshd};
use crate::sshkey::{self, Certificate, SshKey};
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

/// Why beds with an sshd cannot be made here, if they cannot.
pub fn cannot_ssh() -> Option<String> {
    let missing = || {
        ["ssh", "ssh-keygen", "unshare", "mount", sshd::PROGRAM].into_iter().find(|p| !installed(p))
    };
    cannot_run().or_else(|| missing().map(|p| format!("needs {p}: run `cargo xtask setup ssh`")))
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

/// The same for tests that need an sshd.
#[macro_export]
macro_rules! skip_unless_ssh {
    () => {
        if let Some(why) = $crate::bed::cannot_ssh() {
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

/// The rules that every set for SSH should stand on.
pub const SSH_BASE: &str = include_str!("../../policies/ssh-base.toml");
/// The rules of beds with an sshd.
pub const SSH_RULES: &str = include_str!("../data/policies/ssh.toml");

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

    /// The host's sshd and no PostgreSQL, with the rules of the SSH tests.
    pub fn ssh() -> Self {
        Self { services: vec![ServiceSpec::ssh()], ..Self::default() }
            .policies(&[("ssh-base.toml", SSH_BASE), ("ssh.toml", SSH_RULES)])
    }

    /// sshd alone, reached directly.
    pub fn direct_ssh() -> Self {
        Self { daemon: None, ..Self::ssh() }
    }

    /// PostgreSQL and sshd on one host.
    pub fn both() -> Self {
        let mut spec = Self::default().and(ServiceSpec::ssh());
        let daemon = spec.daemon.get_or_insert_default();
        daemon.policies.extend([
            ("ssh-base.toml".into(), SSH_BASE.into()),
            ("ssh.toml".into(), SSH_RULES.into()),
        ]);
        spec
    }

    /// With an address at which tokens are presented beforehand.
    pub fn presenting(self) -> Self {
        self.config(&format!(
            "[present]\nlisten = \"0.0.0.0:{}\"\n\
             tls = {{ certificate = \"{{dir}}/server.pem\", key = \"{{dir}}/server.key\" }}",
            crate::present::PORT
        ))
    }

    /// With other policies than the default ones.
    pub fn policies(mut self, files: &[(&str, &str)]) -> Self {
        self.daemon.get_or_insert_default().policies =
            files.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect();
        self
    }

    /// With one more policy file.
    pub fn and_policy(mut self, name: &str, text: &str) -> Self {
        self.daemon.get_or_insert_default().policies.push((name.into(), text.into()));
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
    sshds: Vec<Sshd>,
    accounts: Option<Accounts>,
    robots: AtomicU32,
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
        let accounts = spec.services.iter().any(|s| s.kind == Kind::Ssh);
        let accounts = accounts.then(|| Accounts::create(&dir.0)).transpose()?;
        if accounts.is_some() {
            SshKey::elsewhere(&dir.0.join(REGISTERED), 0)?;
        }
        let (mut clusters, mut sshds, mut services) = (Vec::new(), Vec::new(), Vec::new());
        for service in &spec.services {
            let place = dir.0.join(&service.name);
            let behind = match (service.kind, &accounts) {
                (Kind::Ssh, Some(accounts)) => {
                    let sshd = Sshd::start(&place, &host, service.port, accounts)?;
                    let behind = Behind::Sshd(sshd.host_keys(), sshd.ca_key());
                    sshds.push(sshd);
                    behind
                }
                _ => {
                    let server = spec.server.clone().map_or_else(Server::debian, Ok)?;
                    let settings = &spec.postgres;
                    let made =
                        Cluster::start(&place, &host, service.port, &server, &tls, settings)?;
                    let behind = Behind::Socket(made.socket());
                    clusters.push(made);
                    behind
                }
            };
            services.push((service.clone(), behind));
        }
        let robots = AtomicU32::new(0);
        let mut bed = Self {
            interceptor: None,
            issuer: None,
            clusters,
            sshds,
            accounts,
            robots,
            tls,
            net,
            dir,
        };
        if let Some(daemon) = &spec.daemon {
            bed.issuer = Some(Issuer::start(&bed.dir.0, &bed.net)?);
            let (id, etc) = (bed.net.id().to_owned(), bed.accounts.as_ref().map(Accounts::etc));
            let made =
                Interceptor::create(&bed.dir.0, &id, &host, &bed.tls, &services, daemon, etc);
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

    /// The users of a bed with an sshd.
    pub fn accounts(&self) -> Result<&Accounts> {
        self.accounts.as_ref().context("this bed has no accounts")
    }

    /// The host's sshd.
    pub fn sshd(&self) -> Result<&Sshd> {
        self.sshds.first().context("this bed has no sshd")
    }

    /// The same, to be signalled.
    pub fn sshd_mut(&mut self) -> Result<&mut Sshd> {
        self.sshds.first_mut().context("this bed has no sshd")
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

impl Bed {
    /// An agent's account with a key of its own, and nothing that would let it in.
    pub fn robot(&self, user: &str) -> Result<Robot> {
        self.robot_with(user, sshkey::Kind::P256)
    }

    /// The same with a key of some kind.
    pub fn robot_with(&self, user: &str, kind: sshkey::Kind) -> Result<Robot> {
        let accounts = self.accounts()?;
        let home = accounts.robot(self.robots.fetch_add(1, Ordering::Relaxed))?;
        Robot::create(home, &accounts.etc(), &self.sshd()?.known_hosts()?, user, kind)
    }

    /// An agent that gets in as some user: its certificate carries a token bound to its key.
    pub fn agent(&self, user: &str) -> Result<Robot> {
        self.agent_with(user, Claims::ssh())
    }

    /// The same with a token of these claims, bound to its key.
    pub fn agent_with(&self, user: &str, claims: Claims) -> Result<Robot> {
        let robot = self.robot(user)?;
        let token = self.token(&claims.bound(&robot.key.thumbprint()?))?;
        robot.certified(&Certificate::good(user, &token))
    }

    /// An agent whose key is registered with the daemon, and that has no token yet.
    pub fn registered(&self, user: &str) -> Result<Robot> {
        let robot = self.robot(user)?;
        let key = self.dir.0.join(REGISTERED);
        robot.write(".ssh/id_ecdsa", std::fs::read(&key)?)?;
        robot.write(".ssh/id_ecdsa.pub", std::fs::read(key.with_extension("pub"))?)?;
        Ok(robot)
    }

    /// An agent that sshd lets in directly, for beds without a daemon.
    pub fn direct_agent(&self, user: &str) -> Result<Robot> {
        let robot = self.robot(user)?;
        self.sshd()?.authorize(&robot.key.public()?)?;
        Ok(robot)
    }

    /// Puts a robot's command on its machine.
    pub fn at(&self, robot: &Robot, command: Cmd) -> Cmd {
        command.in_netns(&self.net.name(robot.from))
    }

    /// Runs a command on the host with stock `ssh`.
    pub fn ssh(&self, robot: &Robot, command: &str) -> Result<Output> {
        self.at(robot, robot.ssh([command])).run()
    }

    /// The same with something to read.
    pub fn ssh_in(
        &self,
        robot: &Robot,
        command: &str,
        stdin: impl Into<Vec<u8>>,
    ) -> Result<Output> {
        self.at(robot, robot.ssh([command])).stdin(stdin).run()
    }

    /// An `ssh` that is talked to.
    pub fn live_ssh(&self, robot: &Robot, options: &[&str], command: &[&str]) -> Result<Live> {
        Live::start(&self.at(robot, robot.ssh_with(options, command)))
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
