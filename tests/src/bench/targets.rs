//! The four ways to the same data: direct, HAProxy, pgbouncer, and the daemon.
//!
//! Two beds stand side by side, one without and one with the daemon. All clients run on the
//! protected host and dial 127.0.0.1, so that the network costs every way the same.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::bed::{Bed, Spec};
use crate::bench::Plan;
use crate::cluster::ROLES;
use crate::daemon::DaemonSpec;
use crate::login::Login;
use crate::net::Place;
use crate::proc::{Cmd, Daemon, wait_for};
use crate::tokens::Claims;

const HAPROXY: u16 = 6431;
const PGBOUNCER: u16 = 6432;
/// The role that everything is measured with.
const ROLE: &str = "app_rw";

/// One way to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Straight to PostgreSQL.
    Direct,
    /// Through HAProxy in TCP mode.
    Haproxy,
    /// Through pgbouncer in session mode.
    Pgbouncer,
    /// Through the daemon.
    Interceptor,
}

impl Way {
    /// All of them, in the order in which a round goes through them.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Haproxy, Self::Pgbouncer, Self::Interceptor];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy",
            Self::Pgbouncer => "pgbouncer",
            Self::Interceptor => "interceptor",
        })
    }
}

/// A bed without the daemon, and the proxies in front of it.
pub struct Rivals {
    _proxies: Vec<Daemon>,
    bed: Bed,
}

impl Rivals {
    /// Builds the bed, fills it and starts the proxies.
    pub fn build(plan: &Plan) -> Result<Self> {
        let bed = Bed::with(Spec::direct())?;
        // Our own client knows cleartext passwords only; only connecting differs by it.
        let hba = bed.dir().join("orders-db/data/pg_hba.conf");
        let old = std::fs::read_to_string(&hba)?;
        std::fs::write(&hba, old.replace("scram-sha-256", "password"))?;
        bed.db().admin("SELECT pg_reload_conf()")?;
        fill(&bed, plan)?;
        Ok(Self { _proxies: vec![haproxy(&bed)?, pgbouncer(&bed)?], bed })
    }

    /// The bed.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    /// How a client connects on one of their ways.
    pub fn login(&self, way: Way, tls: bool) -> Login {
        local(self.bed.direct(ROLE), way, tls)
    }
}

fn local(login: Login, way: Way, tls: bool) -> Login {
    let port = match way {
        Way::Direct | Way::Interceptor => 5432,
        Way::Haproxy => HAPROXY,
        Way::Pgbouncer => PGBOUNCER,
    };
    let mode = if tls { "verify-full" } else { "disable" };
    login.port(port).sslmode(mode).from(Place::Host).host("127.0.0.1")
}

/// Both beds with everything that runs in them.
pub struct Targets {
    rivals: Rivals,
    ours: Bed,
}

impl Targets {
    /// Builds both beds and fills them.
    pub fn build(plan: &Plan) -> Result<Self> {
        let ours = with_daemon("process")?;
        fill(&ours, plan)?;
        Ok(Self { rivals: Rivals::build(plan)?, ours })
    }

    /// The bed that a way leads through.
    pub fn bed(&self, way: Way) -> &Bed {
        if way == Way::Interceptor { &self.ours } else { &self.rivals.bed }
    }

    /// How a client connects, with a fresh token where one is needed.
    pub fn login(&self, way: Way, tls: bool) -> Result<Login> {
        match way {
            Way::Interceptor => Ok(local(token_login(&self.ours)?, way, tls)),
            _ => Ok(self.rivals.login(way, tls)),
        }
    }

    /// Protocol and cipher that psql sees.
    pub fn cipher(&self, way: Way) -> Result<String> {
        let login = self.login(way, true)?;
        let cmd = self.bed(way).client(&login, "psql").args(["-X", "-c", "\\conninfo"]);
        let out = self.bed(way).place(&login, cmd).ok()?;
        let line = out.lines().find(|l| l.contains("SSL")).unwrap_or("no TLS");
        Ok(line.trim().replace("SSL connection ", "").replace(", compression: off", ""))
    }
}

/// A login of the benchmark's role with a token that outlives every measurement.
pub fn token_login(bed: &Bed) -> Result<Login> {
    let login = bed.login_with(ROLE, &Claims::reporter().lasting(3500))?;
    Ok(login.from(Place::Host).host("127.0.0.1"))
}

/// A bed with the daemon as it is measured.
pub fn with_daemon(durability: &str) -> Result<Bed> {
    Bed::with(daemon_spec(durability))
}

/// The same, still to be made.
pub fn daemon_spec(durability: &str) -> Spec {
    let policy = include_str!("../../data/policies/bench.toml");
    let daemon = DaemonSpec {
        policies: vec![("bench.toml".into(), policy.into())],
        config: format!("[record]\ndurability = \"{durability}\"\n"),
        ..DaemonSpec::default()
    };
    Spec { daemon: Some(daemon), ..Spec::default() }.service(|s| {
        s.settings = "plaintext_loopback = true\nmax_connections = 2000".into();
    })
}

/// pgbench's tables, and one with rows to be read in bulk.
pub fn fill(bed: &Bed, plan: &Plan) -> Result<()> {
    let host = bed.net().name(Place::Host);
    bed.db()
        .admin_tool("pgbench")
        .args(["-i", "-q", "-s", &plan.scale.to_string()])
        .as_user("postgres", "postgres")
        .in_netns(&host)
        .limit(Duration::from_secs(300))
        .ok()?;
    bed.db().admin(&format!(
        "CREATE TABLE readings AS SELECT g AS id, g % 97 AS sensor, \
           'reading number ' || g AS label, md5(g::text) AS note, \
           'person.' || g || '@example.com' AS email FROM generate_series(1, {}) g; \
         CREATE UNLOGGED TABLE sink (line text); \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO {ROLE}; GRANT INSERT ON sink TO {ROLE}; \
         VACUUM ANALYZE readings; CHECKPOINT",
        plan.rows
    ))?;
    Ok(())
}

fn haproxy(bed: &Bed) -> Result<Daemon> {
    let file = bed.dir().join("haproxy.cfg");
    std::fs::write(
        &file,
        format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 10s\n  \
             timeout client 1h\n  timeout server 1h\n\
             listen pg\n  bind 127.0.0.1:{HAPROXY}\n  server pg 127.0.0.1:5432\n"
        ),
    )?;
    let cmd = Cmd::new("haproxy").arg("-db").arg("-f").arg(&file);
    run(bed, cmd, "haproxy.log", HAPROXY)
}

fn pgbouncer(bed: &Bed) -> Result<Daemon> {
    let socket = bed.db().socket();
    let sockets = socket.parent().context("a socket without a directory")?;
    let users = bed.dir().join("users.txt");
    let password = ROLES.iter().find(|(r, _)| *r == ROLE).map_or("", |r| r.1);
    std::fs::write(&users, format!("\"{ROLE}\" \"{password}\"\n"))?;
    let key = bed.dir().join("pgbouncer.key");
    std::fs::copy(&bed.tls.key, &key)?;
    let file = bed.dir().join("pgbouncer.ini");
    std::fs::write(&file, pgbouncer_ini(bed, sockets, &users, &key))?;
    for path in [&users, &key, &file] {
        Cmd::new("chown").arg("postgres:postgres").arg(path).ok()?;
    }
    let cmd = Cmd::new("pgbouncer").arg("-q").arg(&file).as_user("postgres", "postgres");
    run(bed, cmd, "pgbouncer.log", PGBOUNCER)
}

fn pgbouncer_ini(bed: &Bed, sockets: &Path, users: &Path, key: &Path) -> String {
    format!(
        "[databases]\n* = host={} port=5432\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {PGBOUNCER}\nunix_socket_dir =\npool_mode = session\nauth_type = plain\n\
         auth_file = {}\nmax_client_conn = 1500\ndefault_pool_size = 1100\n\
         client_tls_sslmode = allow\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n\
         ignore_startup_parameters = extra_float_digits\nlog_connections = 0\n\
         log_disconnections = 0\n",
        sockets.display(),
        users.display(),
        bed.tls.certificate.display(),
        key.display()
    )
}

fn run(bed: &Bed, cmd: Cmd, log: &str, port: u16) -> Result<Daemon> {
    let log = bed.dir().join(log);
    // Those who write it run as somebody else.
    let mut daemon = cmd.in_netns(&bed.net().name(Place::Host)).daemonize(&log)?;
    wait_for("a proxy to listen", Duration::from_secs(10), || {
        if daemon.still_runs().is_err() {
            bail!("{}", daemon.log());
        }
        let reached = bed.net().inside(Place::Host, || {
            std::net::TcpStream::connect(("127.0.0.1", port))?;
            Ok(())
        });
        Ok(reached.is_ok().then_some(()))
    })?;
    Ok(daemon)
}
