//! Events as syslog messages (RFC 5424) over TLS (RFC 5425).
//!
//! Syslog has no acknowledgement: that bytes were written says nothing about who read them. So
//! each batch has a connection of its own, which ends with the sender's `close_notify`; the
//! receiver's own comes after it has read everything before that, and is taken for the
//! acknowledgement. A receiver that closes earlier, or not at all, gets the batch again. So does
//! one whose connection ends without `close_notify`, since the kernel of a process that was killed
//! does the same, and so can anybody on the way.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::{Acknowledge, Syslog};
use super::line::Line;
use super::sink::Failure;
use crate::collector::roots;
use crate::identity::https::chain;

/// A connection must stand within this time, and TLS within the same again.
const CONNECT: Duration = Duration::from_secs(10);
/// The receiver must take some bytes within this time, and close within the same again.
const STALL: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
/// Bytes that are written at a time.
const PIECE: usize = 64 << 10;
/// Most characters of a host's name in a header (RFC 5424, section 6).
const MAX_HOSTNAME: usize = 255;

/// Delivers events; the receiver has read them afterwards.
pub async fn send(to: &Syslog, lines: &[Line]) -> Result<(), Failure> {
    deliver(to, lines).await.map_err(|why| Failure::new(format!("syslog {}: {why}", to.address)))
}

async fn deliver(to: &Syslog, lines: &[Line]) -> Result<(), String> {
    // Read anew each time: a certificate that was renewed is used without a restart.
    let connector = TlsConnector::from(Arc::new(tls(to)?));
    let tcp = timeout(CONNECT, TcpStream::connect(&to.address))
        .await
        .map_err(|_| "it does not answer: look at address, and at firewalls".to_owned())?
        .map_err(|e| format!("{e}: look at address, and whether it listens"))?;
    let tls = timeout(CONNECT, connector.connect(to.server_name.clone(), tcp))
        .await
        .map_err(|_| "it does not speak TLS in time: is this its TLS port?".to_owned())?;
    let mut tls =
        tls.map_err(|e| format!("{}: look at ca_file, server_name and client", chain(&e)))?;
    write(&mut tls, &frames(to.facility, lines)).await?;
    if is_closed(&mut tls).await {
        return Err(EARLY.into());
    }
    let broken = |e: std::io::Error| format!("the connection broke ({e})");
    timeout(STALL, tls.shutdown()).await.map_err(|_| STALLED.to_owned())?.map_err(broken)?;
    timeout(STALL, closed(&mut tls, to.acknowledge)).await.unwrap_or_else(|_| {
        Err("it did not close the connection after its end: a receiver that closes when the \
             sender does is needed, since that says that it has read everything"
            .into())
    })
}

const EARLY: &str = "it closed the connection before it had everything: look at its log, whether \
                     it wants a client certificate, and at its limit for a message";
const CUT: &str = "the connection ended without close_notify, as it does when a receiver is killed: \
                   whether it read everything is not known. If it always ends so, let it close TLS \
                   (rsyslog: streamDriver.Name=\"ossl\"), or see `acknowledge` in docs/collector.md";
const STALLED: &str = "it does not read what it is sent: look at its log and its load";

async fn write(tls: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Result<(), String> {
    for piece in bytes.chunks(PIECE) {
        let written = timeout(STALL, tls.write_all(piece)).await;
        let written = written.map_err(|_| STALLED.to_owned())?;
        written.map_err(|e| format!("{EARLY} ({e})"))?;
    }
    let flushed = timeout(STALL, tls.flush()).await.map_err(|_| STALLED.to_owned())?;
    flushed.map_err(|e| format!("{EARLY} ({e})"))
}

/// Whether the receiver has closed already: then it did not read to the end.
async fn is_closed(tls: &mut TlsStream<TcpStream>) -> bool {
    let mut said = [0; 256];
    // One look, without waiting.
    match timeout(Duration::ZERO, tls.read(&mut said)).await {
        Err(_) => false,
        Ok(Ok(n)) => n == 0,
        Ok(Err(_)) => true,
    }
}

/// Waits for the receiver's close. What it says before that means nothing.
async fn closed(tls: &mut TlsStream<TcpStream>, acknowledge: Acknowledge) -> Result<(), String> {
    let mut said = [0; 4096];
    loop {
        match tls.read(&mut said).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return match acknowledge {
                    Acknowledge::Close => Ok(()),
                    Acknowledge::CloseNotify => Err(CUT.into()),
                };
            }
            Err(e) => return Err(format!("{EARLY} ({})", chain(&e))),
        }
    }
    // A receiver that said goodbye and left something unread: its kernel resets the connection.
    let (tcp, _) = tls.get_mut();
    loop {
        match tcp.read(&mut said).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) => return Err(format!("{EARLY} ({e})")),
        }
    }
}

fn tls(to: &Syslog) -> Result<ClientConfig, String> {
    let fail =
        |path: &std::path::Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let roots = roots::read(&to.ca_file)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let Some(client) = &to.client else { return Ok(config.with_no_client_auth()) };
    let shown = CertificateDer::pem_file_iter(&client.certificate)
        .and_then(|all| all.collect::<Result<Vec<_>, _>>())
        .map_err(|e| fail(&client.certificate, &e))?;
    let key = PrivateKeyDer::from_pem_file(&client.key).map_err(|e| fail(&client.key, &e))?;
    config.with_client_auth_cert(shown, key).map_err(|e| fail(&client.certificate, &e))
}

/// Octet counting (RFC 5425, section 4.3): the length, a space, the message.
fn frames(facility: u8, lines: &[Line]) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.iter().map(|l| l.text.len() + 128).sum());
    for line in lines {
        let message = message(facility, line);
        out.extend_from_slice(format!("{} ", message.len()).as_bytes());
        out.extend_from_slice(message.as_bytes());
    }
    out
}

/// A message (RFC 5424, section 6). It is ASCII alone, so it needs no byte order mark.
fn message(facility: u8, line: &Line) -> String {
    let priority = u32::from(facility) * 8 + severity(line.severity);
    let time = jiff::Timestamp::from_microsecond(line.time_us)
        .map_or_else(|_| "-".to_owned(), |t| t.to_string());
    let mut host: String =
        line.host.chars().filter(char::is_ascii_graphic).take(MAX_HOSTNAME).collect();
    if host.is_empty() {
        host.push('-');
    }
    format!("<{priority}>1 {time} {host} interceptor - {} - {}", line.class, line.text)
}

/// Severity (RFC 5424, section 6.2.1) of OCSF's.
fn severity(ocsf: u32) -> u32 {
    match ocsf {
        5 | 6 => 2,
        4 => 3,
        3 => 4,
        2 => 5,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_every_field_and_its_length_before_it() {
        let line = Line {
            uid: "01J:3".into(),
            host: "db 1\u{e9}".into(),
            time_us: 1_700_000_000_123_456,
            class: 6005,
            severity: 3,
            text: "{\"a\":1}".into(),
        };
        let said = message(13, &line);
        assert_eq!(said, "<108>1 2023-11-14T22:13:20.123456Z db1 interceptor - 6005 - {\"a\":1}");
        let framed = frames(13, &[line.clone(), line]);
        let one = format!("{} {said}", said.len());
        assert_eq!(String::from_utf8_lossy(&framed), format!("{one}{one}"));
    }
}
