//! Tries the door before it is opened: sshd with the new files, on one connection of our own, as
//! the daemon would make it. The running server is not touched, and no capture meets it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use russh::client::{self, AuthResult};
use russh::keys::PublicKeyOrCertificate;

use crate::cli::sshd::Sshd;
use crate::sshd::{CertificateSpec, KeyId, LOOPBACK, UserCa, new_session_key};

/// Longest time that a login takes.
const LOGIN: Duration = Duration::from_secs(20);

/// A door to try.
pub struct Door<'a> {
    /// The server.
    pub sshd: &'a Sshd,
    /// The authority it shall trust.
    pub ca: &'a UserCa,
    /// The principal it shall ask for.
    pub principal: &'a str,
}

impl Door<'_> {
    /// Whether a session certificate lets the daemon in as a user. Nothing is run as that user.
    pub async fn opens(&self, user: &str) -> anyhow::Result<bool> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut server = None;
        let tried = tokio::time::timeout(LOGIN, self.knock(user, listener, &mut server)).await;
        if let Some(mut child) = server {
            let _ = child.kill();
            let _ = child.wait();
        }
        tried.context("sshd did not answer in time")?
    }

    async fn knock(
        &self,
        user: &str,
        listener: TcpListener,
        server: &mut Option<Child>,
    ) -> anyhow::Result<bool> {
        let to = listener.local_addr()?;
        let client = TcpStream::connect(to)?;
        *server = Some(self.serve(&listener, client.local_addr()?)?);
        client.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(client)?;
        let config = Arc::new(client::Config::default());
        let mut session = client::connect_stream(config, stream, AnyHost).await?;
        let key = new_session_key()?;
        let certificate = self.ca.issue(&CertificateSpec {
            public_key: key.public_key(),
            principal: self.principal,
            serial: 0,
            key_id: KeyId::new("setup", "interceptor", user),
            source_addresses: &LOOPBACK,
            permit_pty: false,
            permit_forwarding: false,
            permit_x11: false,
            permit_agent: false,
            now: SystemTime::now(),
        })?;
        let answer = session.authenticate_openssh_cert(user, Arc::new(key), certificate).await?;
        let _ = session.disconnect(russh::Disconnect::ByApplication, "", "").await;
        Ok(matches!(answer, AuthResult::Success))
    }

    /// One sshd for the one connection that we made ourselves.
    fn serve(&self, listener: &TcpListener, ours: SocketAddr) -> anyhow::Result<Child> {
        let (accepted, peer) = listener.accept()?;
        ensure!(peer == ours, "somebody else connected to the door under test: try again");
        let (out, input) = (OwnedFd::from(accepted.try_clone()?), OwnedFd::from(accepted));
        Command::new(&self.sshd.program)
            .arg("-i")
            .arg("-f")
            .arg(&self.sshd.config)
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(out))
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run sshd")
    }
}

/// We started the server ourselves.
struct AnyHost;

impl client::Handler for AnyHost {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}
