//! The daemon of a bed: its configuration, the capture, its start and its death.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::{ROLES, write_private};
use crate::paths::program;
use crate::proc::{Cmd, Daemon, Output, wait_for};
use crate::sshd::PRINCIPAL;
use crate::tls::Tls;
use crate::tokens::{AUDIENCE, SCOPE, SSH_AUDIENCE, SSH_SCOPE, url};

/// The operating system user who may approve in a bed, and its group. The group is root's so
/// that the control socket can be reached.
pub const APPROVER: &str = "backup";
/// The key, below a bed's directory, that is registered for the reporting agent.
pub const REGISTERED: &str = "registered";
/// An operating system user whom nothing maps to a person.
pub const STRANGER: &str = "games";

/// How the daemon reaches the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamKind {
    /// The Unix socket, by `peer`.
    #[default]
    Socket,
    /// The host's own port over loopback, TLS and SCRAM.
    Tcp,
}

/// What stands behind a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A PostgreSQL with the sample database.
    #[default]
    Postgres,
    /// An sshd with users of its own.
    Ssh,
}

/// Where the real service of one [`ServiceSpec`] is.
#[derive(Debug, Clone)]
pub enum Behind {
    /// PostgreSQL's Unix socket.
    Socket(PathBuf),
    /// sshd's host keys, and the key whose certificates it trusts.
    Sshd(Vec<PathBuf>, PathBuf),
}

/// One protected service.
#[derive(Debug, Clone)]
pub struct ServiceSpec {
    /// Name in configuration and rules.
    pub name: String,
    /// What stands behind it.
    pub kind: Kind,
    /// Port.
    pub port: u16,
    /// Audience its tokens carry.
    pub audience: String,
    /// Scope its tokens hold.
    pub scope: Option<String>,
    /// `mode = "observe"`.
    pub observe: bool,
    /// How it is reached.
    pub upstream: UpstreamKind,
    /// More lines for its `[[service]]` table, e.g. `expiry_grace = "5s"`.
    pub settings: String,
    /// Tables that follow it, e.g. `[[service.passthrough]]`; for ssh also lines for its
    /// `[service.ssh]`.
    pub tables: String,
}

impl ServiceSpec {
    /// The service that every bed has unless told otherwise.
    pub fn orders() -> Self {
        Self {
            name: "orders-db".into(),
            kind: Kind::Postgres,
            port: 5432,
            audience: AUDIENCE.into(),
            scope: Some(SCOPE.into()),
            observe: false,
            upstream: UpstreamKind::Socket,
            settings: String::new(),
            tables: String::new(),
        }
    }

    /// The host's own sshd.
    pub fn ssh() -> Self {
        Self {
            name: "host-ssh".into(),
            kind: Kind::Ssh,
            port: 22,
            audience: SSH_AUDIENCE.into(),
            scope: Some(SSH_SCOPE.into()),
            ..Self::orders()
        }
    }

    fn mode(&self) -> &'static str {
        if self.observe { "observe" } else { "enforce" }
    }

    /// A second service with an audience of its own.
    pub fn reports() -> Self {
        Self {
            name: "reports-db".into(),
            port: 5433,
            audience: "api://reports-db".into(),
            scope: None,
            ..Self::orders()
        }
    }
}

/// What the daemon is told beside its services.
#[derive(Debug, Clone)]
pub struct DaemonSpec {
    /// Policy files: name and contents.
    pub policies: Vec<(String, String)>,
    /// More of the configuration, top-level tables such as `[record]`; `{dir}` is the bed's
    /// directory.
    pub config: String,
    /// Attach the capture.
    pub attach: bool,
    /// Start the daemon.
    pub start: bool,
}

impl Default for DaemonSpec {
    fn default() -> Self {
        Self {
            policies: vec![("shop.toml".into(), include_str!("../data/policies/shop.toml").into())],
            config: String::new(),
            attach: true,
            start: true,
        }
    }
}

/// The daemon of one bed; it can die and be started again.
pub struct Interceptor {
    process: Option<Daemon>,
    program: PathBuf,
    dir: PathBuf,
    config: PathBuf,
    pins: PathBuf,
    netns: String,
    /// What stands in place of files of `/etc` for it.
    etc: Option<PathBuf>,
    attached: bool,
    environment: Vec<(String, String)>,
}

impl Interceptor {
    /// Writes configuration and policies, and attaches and starts as asked.
    pub fn create(
        dir: &Path,
        id: &str,
        netns: &str,
        tls: &Tls,
        services: &[(ServiceSpec, Behind)],
        spec: &DaemonSpec,
        etc: Option<PathBuf>,
    ) -> Result<Self> {
        let pins = PathBuf::from(format!("/sys/fs/bpf/interceptor-{id}"));
        for part in ["state", "run", "policies", "secrets"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        for (role, password) in ROLES {
            write_private(&dir.join("secrets").join(role), password.as_bytes())?;
        }
        let config = dir.join("interceptor.toml");
        std::fs::write(&config, configuration(dir, &pins, tls, services, spec)?)?;
        let mut me = Self {
            process: None,
            program: program("interceptor")?,
            dir: dir.into(),
            config,
            pins,
            netns: netns.into(),
            etc,
            attached: false,
            environment: Vec::new(),
        };
        for (name, text) in &spec.policies {
            me.write_policy(name, text)?;
        }
        if spec.attach {
            me.attach()?;
        }
        if spec.start {
            me.start()?;
        }
        Ok(me)
    }

    /// Writes or replaces one policy file; takes effect with [`Interceptor::reload`].
    pub fn write_policy(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.policies().join(name), text)?;
        Ok(())
    }

    /// `interceptor policy reload`.
    pub fn reload(&self) -> Result<Output> {
        self.cli(["policy", "reload"]).run()
    }

    /// `interceptor capture attach`. Nobody is logged in here who could show a way in, and a capture
    /// of SSH would otherwise undo itself in the middle of a test.
    pub fn attach(&mut self) -> Result<()> {
        self.attached = true;
        self.cli(["capture", "attach", "--no-confirm"]).ok()?;
        Ok(())
    }

    /// Gives the daemon a variable of its environment from its next start on.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.into(), value.into()));
    }

    /// Starts the daemon and waits until it says it is ready.
    pub fn start(&mut self) -> Result<()> {
        let path = self.dir.join("run/notify.sock");
        let _ = std::fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path)?;
        notify.set_nonblocking(true)?;
        let mut daemon = self.host_cli(["daemon"]);
        for (name, value) in &self.environment {
            daemon = daemon.env(name, value);
        }
        let mut process = daemon
            .env("NOTIFY_SOCKET", &path)
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()))
            .daemonize(&self.dir.join("daemon.log"))?;
        let mut buffer = [0_u8; 4096];
        let ready = wait_for("READY=1 from the daemon", Duration::from_secs(20), || {
            process.still_runs()?;
            match notify.recv(&mut buffer) {
                Ok(n) if buffer[..n].windows(7).any(|w| w == b"READY=1") => Ok(Some(())),
                _ => Ok(None),
            }
        });
        ready.with_context(|| process.log())?;
        // A bed makes no group on the machine: root's own stands for `interceptor`.
        let socket = self.dir.join("run/control.sock");
        Cmd::new("chgrp").arg("root").arg(&socket).ok()?;
        Cmd::new("chmod").arg("660").arg(&socket).ok()?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the daemon with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends the daemon in order (SIGTERM).
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// The running daemon.
    pub fn process(&self) -> Result<&Daemon> {
        self.process.as_ref().context("the daemon does not run")
    }

    /// Fails with the log if the daemon has ended by itself.
    pub fn still_runs(&mut self) -> Result<()> {
        match &mut self.process {
            Some(process) => process.still_runs(),
            None => bail!("the daemon does not run"),
        }
    }

    /// What the daemon has logged, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its policy directory.
    pub fn policies(&self) -> PathBuf {
        self.dir.join("policies")
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// A command line of `interceptor` with this bed's configuration, on the host.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.tool(args).in_netns(&self.netns)
    }

    /// The same, where the bed's own users exist.
    pub fn host_cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        match &self.etc {
            Some(etc) => self.tool(args).with_etc(etc).in_netns(&self.netns),
            None => self.cli(args),
        }
    }

    /// The same, as another operating system user of root's group, with the login uid that a
    /// login session of that user would have where the kernel lets us set it.
    pub fn cli_as<'a>(&self, user: &str, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        const LOGIN: &str = "id -u \"$0\" > /proc/self/loginuid 2>/dev/null; \
             u=$0; shift 0; exec setpriv --reuid=\"$u\" --regid=root --clear-groups -- \"$@\"";
        let mut cmd = Cmd::new("sh").args(["-c", LOGIN, user]).arg(&self.program);
        cmd = cmd.arg("--config").arg(&self.config);
        cmd.args(args).in_netns(&self.netns)
    }

    fn tool<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new(&self.program).arg("--config").arg(&self.config).args(args)
    }

    /// Runs a listing verb with `--json` and reads what it prints.
    pub fn json<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Value> {
        let out = self.cli(args).arg("--json").ok()?;
        read_json(&out)
    }

    /// Recorded sessions, oldest first.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        let mut list = items(self.json(["sessions", "list", "--limit", "1000000"])?);
        list.sort_by_key(|s| text(s, &["id", "session"]));
        Ok(list)
    }

    /// Everything recorded of one session, as `sessions show --json` gives it.
    pub fn session(&self, id: &str) -> Result<Value> {
        self.json(["sessions", "show", id])
    }

    /// Holds that wait now.
    pub fn holds(&self) -> Result<Vec<Value>> {
        Ok(items(self.json(["approvals", "list"])?))
    }

    /// Waits for a hold and gives back its id.
    pub fn next_hold(&self, limit: Duration) -> Result<String> {
        wait_for("a held statement", limit, || {
            Ok(self.holds()?.first().map(|hold| text(hold, &["id", "hold"])))
        })
    }

    /// `interceptor approvals approve ID`, as the mapped approver.
    pub fn approve(&self, id: &str) -> Result<Output> {
        self.cli_as(APPROVER, ["approvals", "approve", id]).run()
    }

    /// `interceptor approvals deny ID`, as the mapped approver.
    pub fn deny(&self, id: &str) -> Result<Output> {
        self.cli_as(APPROVER, ["approvals", "deny", id, "--reason", "not today"]).run()
    }
}

impl Drop for Interceptor {
    fn drop(&mut self) {
        self.stop();
        if self.attached {
            let _ = self.cli(["capture", "detach"]).run();
        }
        let _ = std::fs::remove_dir_all(&self.pins);
    }
}

/// The elements of a listing: the array itself, or the first array in its object; JSON lines
/// arrive here as an array already.
pub fn items(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        Value::Object(map) => {
            map.into_iter().find_map(|(_, v)| v.as_array().cloned()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// The first of several members that is there, as text.
pub fn text(value: &Value, names: &[&str]) -> String {
    names
        .iter()
        .find_map(|n| match &value[*n] {
            Value::Null => None,
            Value::String(s) => Some(s.clone()),
            other => Some(other.to_string()),
        })
        .unwrap_or_default()
}

/// One JSON document, or one per line.
fn read_json(out: &str) -> Result<Value> {
    if let Ok(value) = serde_json::from_str(out) {
        return Ok(value);
    }
    let lines: Result<Vec<Value>, _> =
        out.lines().filter(|l| !l.trim().is_empty()).map(serde_json::from_str).collect();
    Ok(Value::Array(lines.with_context(|| format!("not JSON:\n{out}"))?))
}

fn configuration(
    dir: &Path,
    pins: &Path,
    tls: &Tls,
    services: &[(ServiceSpec, Behind)],
    spec: &DaemonSpec,
) -> Result<String> {
    let d = dir.display();
    let registered = match std::fs::read_to_string(dir.join(REGISTERED).with_extension("pub")) {
        Ok(key) => format!("ssh_keys = [\"{}\"]\n", key.trim()),
        Err(_) => String::new(),
    };
    let mut toml = format!(
        r#"[host]
name = "bed-host"

[paths]
state = "{d}/state"
run = "{d}/run"
policies = "{d}/policies"
bpffs = "{}"

[[issuer]]
name = "okta"
url = "{}"
insecure_loopback = true

[[agent]]
name = "reporter"
issuer = "okta"
cid = "0oa-reporter"
owners = ["00u-owner"]
labels = {{ team = "analytics" }}
{registered}
[[agent]]
name = "etl"
issuer = "okta"
cid = "0oa-etl"
owners = ["00u-owner"]
labels = {{ team = "data", kind = "machine" }}

[[agent]]
name = "delegate"
issuer = "okta"
act_sub = "0oa-delegate"
owners = ["00u-owner"]

[[agent]]
name = "cluster"
issuer = "okta"
cid = "0oa-cluster"
sources = ["10.77.0.0/24", "10.78.0.0/24"]
labels = {{ team = "analytics" }}

[[approver]]
user = "{APPROVER}"
issuer = "okta"
uid = "00u-approver"
"#,
        pins.display(),
        url(),
    );
    for (service, behind) in services {
        match behind {
            Behind::Socket(socket) => postgres_table(&mut toml, dir, tls, service, socket)?,
            Behind::Sshd(keys, ca) => ssh_table(&mut toml, service, keys, ca)?,
        }
    }
    toml.push('\n');
    toml.push_str(&spec.config.replace("{dir}", &d.to_string()));
    Ok(toml)
}

fn postgres_table(
    toml: &mut String,
    dir: &Path,
    tls: &Tls,
    service: &ServiceSpec,
    socket: &Path,
) -> Result<()> {
    let upstream = match service.upstream {
        UpstreamKind::Socket => format!("{{ socket = \"{}\" }}", socket.display()),
        UpstreamKind::Tcp => format!(
            "{{ host = \"127.0.0.1\", port = {}, tls = {{ ca_file = \"{}\", server_name = \"localhost\" }} }}",
            service.port,
            tls.ca.display()
        ),
    };
    write!(
        toml,
        r#"
[[service]]
name = "{}"
protocol = "postgres"
port = {}
audience = "{}"
mode = "{}"
tls = {{ certificate = "{}", key = "{}" }}
upstream = {upstream}
"#,
        service.name,
        service.port,
        service.audience,
        service.mode(),
        tls.certificate.display(),
        tls.key.display(),
    )?;
    if let Some(scope) = &service.scope {
        writeln!(toml, "scope = \"{scope}\"")?;
    }
    writeln!(toml, "{}", service.settings)?;
    for (role, _) in ROLES {
        writeln!(toml, "[service.role.{role}]")?;
        if service.upstream == UpstreamKind::Tcp {
            writeln!(toml, "password = {{ file = \"{}/secrets/{role}\" }}", dir.display())?;
        }
    }
    writeln!(toml, "{}", service.tables)?;
    Ok(())
}

fn ssh_table(
    toml: &mut String,
    service: &ServiceSpec,
    host_keys: &[PathBuf],
    ca_key: &Path,
) -> Result<()> {
    let keys: Vec<String> =
        host_keys.iter().map(|k| format!("{:?}", k.display().to_string())).collect();
    write!(
        toml,
        r#"
[[service]]
name = "{}"
protocol = "ssh"
port = {port}
audience = "{}"
mode = "{}"
upstream = {{ host = "127.0.0.1", port = {port} }}
"#,
        service.name,
        service.audience,
        service.mode(),
        port = service.port,
    )?;
    if let Some(scope) = &service.scope {
        writeln!(toml, "scope = \"{scope}\"")?;
    }
    writeln!(toml, "{}", service.settings)?;
    writeln!(
        toml,
        "[service.ssh]\nhost_keys = [{}]\nca_key = \"{}\"\nprincipal = \"{PRINCIPAL}\"\n{}",
        keys.join(", "),
        ca_key.display(),
        service.tables
    )?;
    Ok(())
}
