//! Client programs beside psql: small scripts for the drivers that agents really use, and
//! tokio-postgres over rustls.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use anyhow::Result;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

use crate::bed::Bed;
use crate::login::Login;
use crate::paths;
use crate::proc::Cmd;
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

/// How a script's run ended.
pub enum Run {
    /// The driver is not installed; where it should be.
    Absent(String),
    /// What it printed.
    Printed(String),
}

/// Runs a script on the login's machine.
pub fn run(bed: &Bed, login: &Login, script: Script) -> Result<Run> {
    let cmd = if script.node {
        let Some(npm) = paths::npm().filter(|n| n.join("node_modules").join(script.name).exists())
        else {
            return Ok(Run::Absent("no node-postgres: run `cargo xtask setup npm`".into()));
        };
        bed.client(login, "node").arg("-").env("NODE_PATH", npm.join("node_modules"))
    } else {
        let Some(python) = paths::python() else {
            return Ok(Run::Absent("no Python drivers: run `cargo xtask setup python`".into()));
        };
        let import = Cmd::new(&python).args(["-c", &format!("import {}", script.name)]).run()?;
        if !import.success() {
            return Ok(Run::Absent(format!("no {} in {}", script.name, python.display())));
        }
        bed.client(login, python).arg("-")
    };
    Ok(Run::Printed(bed.place(login, cmd.stdin(script.text)).run()?.ok()?))
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
