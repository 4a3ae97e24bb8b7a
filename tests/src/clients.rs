//! Client programs beside psql: small scripts for the drivers that agents really use, and
//! tokio-postgres over rustls.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use crate::bed::Bed;
use crate::login::Login;
use crate::paths;
use crate::proc::Cmd;
use crate::robot::Robot;
use crate::wire::trust;

/// A driver's script, which prints one JSON object.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    name: &'static str,
    text: &'static str,
    node: bool,
}

/// psycopg 3.
pub const PSYCOPG3: Script =
    Script { name: "psycopg", text: include_str!("../data/clients/psycopg3.py"), node: false };
/// psycopg2.
pub const PSYCOPG2: Script =
    Script { name: "psycopg2", text: include_str!("../data/clients/psycopg2.py"), node: false };
/// node-postgres.
pub const NODE: Script =
    Script { name: "pg", text: include_str!("../data/clients/pg.js"), node: true };

/// paramiko at ordinary work.
pub const PARAMIKO: Script = Script {
    name: "paramiko",
    text: include_str!("../data/clients/paramiko_work.py"),
    node: false,
};
/// paramiko with one password and nothing else.
pub const PARAMIKO_PASSWORD: Script = Script {
    name: "paramiko",
    text: include_str!("../data/clients/paramiko_password.py"),
    node: false,
};
/// paramiko with terminals of every size.
pub const PARAMIKO_TERMINALS: Script = Script {
    name: "paramiko",
    text: include_str!("../data/clients/paramiko_terminals.py"),
    node: false,
};
/// paramiko with messages that no client sends.
pub const PARAMIKO_RAW: Script =
    Script { name: "paramiko", text: include_str!("../data/clients/ssh_raw.py"), node: false };
/// asyncssh at ordinary work.
pub const ASYNCSSH: Script = Script {
    name: "asyncssh",
    text: include_str!("../data/clients/asyncssh_work.py"),
    node: false,
};
/// asyncssh with many commands over one connection.
pub const ASYNCSSH_MANY: Script = Script {
    name: "asyncssh",
    text: include_str!("../data/clients/asyncssh_many.py"),
    node: false,
};
/// Node's ssh2 at ordinary work.
pub const SSH2: Script =
    Script { name: "ssh2", text: include_str!("../data/clients/ssh2_work.js"), node: true };

/// How a script's run ended.
pub enum Run {
    /// The driver is not installed; where it should be.
    Absent(String),
    /// What it printed.
    Printed(String),
}

impl Script {
    /// The program that reads the script from its standard input.
    fn interpreter(self) -> Result<std::result::Result<Cmd, String>> {
        if self.node {
            let npm = paths::npm().filter(|n| n.join("node_modules").join(self.name).exists());
            let Some(npm) = npm else {
                return Ok(Err(format!("no {} of npm: run `cargo xtask setup npm`", self.name)));
            };
            let modules = format!("NODE_PATH={}", npm.join("node_modules").display());
            return Ok(Ok(Cmd::new("env").args([&*modules, "node", "-"])));
        }
        let Some(python) = paths::python() else {
            return Ok(Err("no Python drivers: run `cargo xtask setup python`".into()));
        };
        let import = Cmd::new(&python).args(["-c", &format!("import {}", self.name)]).run()?;
        Ok(if import.success() {
            Ok(Cmd::new(python).arg("-"))
        } else {
            Err(format!("no {} of Python: run `cargo xtask setup python`", self.name))
        })
    }
}

/// Runs a script on the login's machine.
pub fn run(bed: &Bed, login: &Login, script: Script) -> Result<Run> {
    Ok(match script.interpreter()? {
        Err(why) => Run::Absent(why),
        Ok(cmd) => {
            let cmd = login.apply(cmd).stdin(script.text);
            Run::Printed(bed.place(login, cmd).run()?.ok()?)
        }
    })
}

/// Runs a script in a robot's account and reads what it prints; `None`, and said so, where its
/// library is not installed.
pub fn ssh_script(
    bed: &Bed,
    robot: &Robot,
    script: Script,
    args: &[&str],
) -> Result<Option<serde_json::Value>> {
    ssh_script_within(bed, robot, script, args, Duration::from_secs(60))
}

/// The same with a limit of its own.
pub fn ssh_script_within(
    bed: &Bed,
    robot: &Robot,
    script: Script,
    args: &[&str],
    limit: Duration,
) -> Result<Option<serde_json::Value>> {
    let cmd = match script.interpreter()? {
        Err(why) => {
            crate::bed::skipped(&why);
            return Ok(None);
        }
        Ok(cmd) => cmd,
    };
    let cmd = robot.dress(cmd.args(args)).stdin(script.text).limit(limit);
    let cmd = cmd.env("SSH_HOST", &robot.host).env("SSH_LOGIN", &robot.user);
    let out = bed.at(robot, cmd).run()?.ok()?;
    Ok(Some(serde_json::from_str(&out).with_context(|| out.clone())?))
}

/// Connects tokio-postgres with full verification; its connection runs as a task.
pub async fn tokio_connect(login: &Login) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&login.host)
        .port(login.port)
        .user(&login.user)
        .password(&login.password)
        .dbname(&login.database)
        .ssl_mode(tokio_postgres::config::SslMode::Require);
    let tls = Rustls(Arc::new(trust(Path::new(&login.ca), &[])?));
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[derive(Clone)]
struct Rustls(Arc<rustls::ClientConfig>);

struct Connector(Arc<rustls::ClientConfig>, ServerName<'static>);

struct Stream<S>(tokio_rustls::client::TlsStream<S>);

impl<S> MakeTlsConnect<S> for Rustls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Connector;
    type Error = rustls::pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Connector, Self::Error> {
        Ok(Connector(Arc::clone(&self.0), ServerName::try_from(domain.to_owned())?))
    }
}

impl<S> TlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connector = tokio_rustls::TlsConnector::from(self.0);
        Box::pin(async move { connector.connect(self.1, stream).await.map(Stream) })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(task, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(task)
    }
}

/// What the asciinema player makes of a cast.
#[derive(Debug, serde::Deserialize)]
pub struct Played {
    /// All that it writes to its terminal.
    pub output: String,
    /// Columns and rows, first and after each change.
    pub sizes: Vec<(u16, u16)>,
    /// In seconds.
    pub duration: f64,
    /// What it complains of.
    pub errors: Vec<String>,
}

/// Plays an asciicast in the asciinema player; `None`, and said so, where it is not installed.
pub fn asciinema(cast: &str) -> Result<Option<Played>> {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/clients/asciinema.mjs");
    let modules = paths::npm().map(|npm| npm.join("node_modules"));
    let Some(modules) = modules.filter(|m| m.join("asciinema-player").exists()) else {
        crate::bed::skipped("no asciinema-player of npm: run `cargo xtask setup console`");
        return Ok(None);
    };
    let out = Cmd::new("node").arg(SCRIPT).arg(modules).stdin(cast).run()?.ok()?;
    Ok(Some(serde_json::from_str(&out).with_context(|| out.clone())?))
}
