//! The service's side of a connection: reaching it, proving the service credential to it, and
//! asking it questions of our own.
//!
//! The credential is read, used and wiped here; the agent's side never holds it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::SCRAM_SHA_256_PLUS;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::io::read_buf;

use crate::capture::{self, CaptureError, Pins};
use crate::config::{Service, Upstream as UpstreamConfig};

use super::codec::{self, Body, CodecError};
use super::stream::UpstreamStream;
use super::tls::{self, TlsError};

/// Largest message of the service that is collected while the connection is set up. Bytes.
const MAX_SETUP_MESSAGE: usize = 1 << 20;

/// Largest answer to a question of our own (the catalog of a large database). Bytes.
const MAX_ANSWER_MESSAGE: usize = 16 << 20;

/// Time for reaching the service and authenticating.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Name of the prepared statement and portal that our own questions use; never the unnamed
/// one, which belongs to the agent.
const OWN: &[u8] = b"interceptor_internal";

/// What BackendKeyData of the service said.
#[derive(Debug, Clone)]
pub struct UpstreamKey {
    /// The server process.
    pub pid: u32,
    /// Its cancel secret; never shown to the agent.
    pub secret: Vec<u8>,
}

/// Why the service cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It cannot be reached, or the connection broke.
    #[error("service not reachable: {0}")]
    Io(#[from] io::Error),
    /// It answered something that the protocol does not allow here.
    #[error("service broke the protocol: {0}")]
    Protocol(String),
    /// It sent a malformed message.
    #[error("service broke the protocol: {0}")]
    Codec(#[from] CodecError),
    /// It refused; the body of its ErrorResponse.
    #[error("service refused: {}", codec::report_field(.0, b'M').unwrap_or_default())]
    Refused(Vec<u8>),
    /// TLS towards it cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The own connection cannot be exempted from capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It did not answer in time.
    #[error("service did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// It wants an authentication method for which there is no credential.
    #[error(
        "service wants {0}, for which role has no credential: add [service.role.NAME] password"
    )]
    Credential(&'static str),
}

fn protocol<T>(message: impl Into<String>) -> Result<T, UpstreamError> {
    Err(UpstreamError::Protocol(message.into()))
}

/// Opens the transport, TLS included.
pub async fn connect(
    service: &Service,
    pins: Option<&Pins>,
) -> Result<UpstreamStream, UpstreamError> {
    tokio::time::timeout(CONNECT_TIMEOUT, connect_inner(service, pins))
        .await
        .map_err(|_| UpstreamError::Timeout)?
}

async fn connect_inner(
    service: &Service,
    pins: Option<&Pins>,
) -> Result<UpstreamStream, UpstreamError> {
    match &service.upstream {
        UpstreamConfig::Unix { socket } => {
            Ok(UpstreamStream::Unix(UnixStream::connect(socket).await?))
        }
        UpstreamConfig::Tcp { host, port, tls } => {
            let address = SocketAddr::new(*host, *port);
            let (mut socket, exemption) = match pins {
                Some(pins) => {
                    let (socket, exemption) = capture::connect_exempt(pins, address).await?;
                    (socket, Some(exemption))
                }
                None => (tokio::net::TcpStream::connect(address).await?, None),
            };
            socket.set_nodelay(true)?;
            let Some(settings) = tls else { return Ok(UpstreamStream::Tcp(socket, exemption)) };
            let mut request = BytesMut::new();
            request.put_u32(8);
            request.put_u32(80_877_103);
            socket.write_all(&request).await?;
            if socket.read_u8().await? != b'S' {
                return protocol("it speaks no TLS: set ssl = on there, or drop upstream.tls");
            }
            let name = ServerName::try_from(settings.server_name.clone())
                .map_err(|e| UpstreamError::Protocol(format!("upstream.tls.server_name: {e}")))?;
            let stream = tls::connector(settings)?.connect(name, socket).await?;
            Ok(UpstreamStream::Tls(Box::new(stream), exemption))
        }
    }
}

/// Asks the service to cancel what a session runs; the service answers by closing.
pub async fn cancel(
    service: &Service,
    pins: Option<&Pins>,
    key: &UpstreamKey,
) -> Result<(), UpstreamError> {
    let mut stream = connect(service, pins).await?;
    let mut request = BytesMut::new();
    request.put_u32(u32::try_from(12 + key.secret.len()).unwrap_or(12));
    request.put_u32(80_877_102);
    request.put_u32(key.pid);
    request.extend_from_slice(&key.secret);
    stream.write_all(&request).await?;
    stream.flush().await?;
    let mut end = [0u8; 1];
    // The server closes once the signal is sent; waiting keeps a later statement from being hit.
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, stream.read(&mut end)).await;
    Ok(())
}

/// A service connection that is authenticated and ready.
#[derive(Debug)]
pub struct Upstream {
    /// The transport.
    pub stream: UpstreamStream,
    /// Bytes read and not yet handled.
    pub inbox: BytesMut,
    /// The cancel key, if the service gave one (some poolers do not).
    pub key: Option<UpstreamKey>,
    /// ParameterStatus as last reported, in order of first report.
    pub parameters: Vec<(String, String)>,
    /// Transaction status of the last ReadyForQuery: `I`, `T` or `E`.
    pub status: u8,
    /// Whether the server checked a password, rather than trusting the daemon's own connection.
    pub checked_password: bool,
    /// Messages that came unasked while we asked a question: notices and notifications.
    pub unasked: BytesMut,
}

impl Upstream {
    /// Sends the startup packet and authenticates.
    pub async fn start(
        stream: UpstreamStream,
        parameters: &[(String, String)],
        password: Option<&SecretString>,
    ) -> Result<Self, UpstreamError> {
        let mut upstream = Self {
            stream,
            inbox: BytesMut::with_capacity(8 * 1024),
            key: None,
            parameters: Vec::new(),
            status: b'I',
            checked_password: false,
            unasked: BytesMut::new(),
        };
        tokio::time::timeout(CONNECT_TIMEOUT, upstream.handshake(parameters, password))
            .await
            .map_err(|_| UpstreamError::Timeout)??;
        Ok(upstream)
    }

    async fn handshake(
        &mut self,
        parameters: &[(String, String)],
        password: Option<&SecretString>,
    ) -> Result<(), UpstreamError> {
        let mut packet = BytesMut::new();
        packet.put_u32(0);
        packet.put_u32(3 << 16);
        for (name, value) in parameters {
            codec::put_string(&mut packet, name.as_bytes());
            codec::put_string(&mut packet, value.as_bytes());
        }
        packet.put_u8(0);
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        packet[..4].copy_from_slice(&length.to_be_bytes());
        self.send(&packet).await?;
        self.authenticate(parameters, password).await?;
        loop {
            let (tag, body) = self.next(MAX_SETUP_MESSAGE).await?;
            match tag {
                b'K' => {
                    let mut fields = Body::new(b'K', &body);
                    let pid = fields.u32("process id")?;
                    self.key = Some(UpstreamKey { pid, secret: fields.rest().to_vec() });
                }
                b'S' => self.note_parameter(&body)?,
                b'Z' => {
                    self.status = body.first().copied().unwrap_or(b'I');
                    return Ok(());
                }
                b'N' => {}
                b'E' => return Err(UpstreamError::Refused(body.to_vec())),
                other => return protocol(format!("{:?} during start-up", char::from(other))),
            }
        }
    }

    async fn authenticate(
        &mut self,
        parameters: &[(String, String)],
        password: Option<&SecretString>,
    ) -> Result<(), UpstreamError> {
        let mut scram: Option<ScramSha256> = None;
        loop {
            let (tag, body) = self.next(MAX_SETUP_MESSAGE).await?;
            match tag {
                b'R' => {}
                b'N' => continue,
                b'E' => return Err(UpstreamError::Refused(body.to_vec())),
                other => {
                    return protocol(format!("{:?} instead of authentication", char::from(other)));
                }
            }
            let mut fields = Body::new(b'R', &body);
            let kind = fields.i32("authentication kind")?;
            self.checked_password |= matches!(kind, 3 | 5 | 10);
            match kind {
                0 => return Ok(()),
                3 => self.send_password(need(password, "a password")?.expose_secret()).await?,
                5 => {
                    let salt = fields.take(4, "salt")?;
                    let salt = [salt[0], salt[1], salt[2], salt[3]];
                    let user = parameters
                        .iter()
                        .find(|(n, _)| n == "user")
                        .map(|(_, v)| v.as_str())
                        .unwrap_or_default();
                    let secret = need(password, "an MD5 password")?.expose_secret();
                    let hash = md5_hash(user.as_bytes(), secret.as_bytes(), salt);
                    self.send_password(&hash).await?;
                }
                10 => scram = Some(self.sasl(fields, need(password, "SCRAM-SHA-256")?).await?),
                11 | 12 => {
                    let Some(exchange) = scram.as_mut() else {
                        return protocol("SASL data before a mechanism was chosen");
                    };
                    if kind == 11 {
                        exchange.update(fields.rest())?;
                        let mut out = BytesMut::new();
                        codec::message(&mut out, b'p', |out| {
                            out.extend_from_slice(exchange.message());
                        });
                        self.send(&out).await?;
                    } else {
                        exchange.finish(fields.rest())?;
                    }
                }
                _ => return Err(UpstreamError::Credential("an unsupported method")),
            }
        }
    }

    async fn sasl(
        &mut self,
        mut fields: Body<'_>,
        password: &SecretString,
    ) -> Result<ScramSha256, UpstreamError> {
        let mut mechanisms = Vec::new();
        loop {
            let name = fields.string("SASL mechanism")?;
            if name.is_empty() {
                break;
            }
            mechanisms.push(name.to_vec());
        }
        let offers = |name: &str| mechanisms.iter().any(|m| m == name.as_bytes());
        let (mechanism, binding) = match self.end_point() {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
            }
            Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        };
        if !offers(mechanism) {
            return Err(UpstreamError::Credential("a SASL mechanism other than SCRAM-SHA-256"));
        }
        let exchange = ScramSha256::new(password.expose_secret().as_bytes(), binding);
        let mut out = BytesMut::new();
        codec::message(&mut out, b'p', |out| {
            codec::put_string(out, mechanism.as_bytes());
            let first = exchange.message();
            out.put_u32(u32::try_from(first.len()).unwrap_or(u32::MAX));
            out.extend_from_slice(first);
        });
        self.send(&out).await?;
        Ok(exchange)
    }

    /// `tls-server-end-point` (RFC 5929 §4): the hash of the certificate by its own signature's
    /// hash function, SHA-256 where that is MD5 or SHA-1. None without TLS, or for a signature
    /// (Ed25519) that names no hash.
    fn end_point(&self) -> Option<Vec<u8>> {
        use aws_lc_rs::digest;
        use x509_parser::prelude::FromDer;
        let UpstreamStream::Tls(stream, _) = &self.stream else { return None };
        let certificate = stream.get_ref().1.peer_certificates()?.first()?;
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
        let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
            // md5/sha1/sha256 with RSA, ECDSA with SHA-1/SHA-256
            "1.2.840.113549.1.1.4"
            | "1.2.840.113549.1.1.5"
            | "1.2.840.113549.1.1.11"
            | "1.2.840.10045.4.1"
            | "1.2.840.10045.4.3.2" => &digest::SHA256,
            "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
            "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
            _ => return None,
        };
        Some(digest::digest(algorithm, certificate).as_ref().to_vec())
    }

    async fn send_password(&mut self, password: &str) -> Result<(), UpstreamError> {
        let mut out = BytesMut::new();
        codec::message(&mut out, b'p', |out| codec::put_string(out, password.as_bytes()));
        let sent = self.send(&out).await;
        zeroize::Zeroize::zeroize(&mut out[..]);
        sent
    }

    /// Writes and flushes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), UpstreamError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn next(&mut self, limit: usize) -> Result<(u8, BytesMut), UpstreamError> {
        loop {
            if let Some(message) = codec::split_message(&mut self.inbox, limit)? {
                return Ok(message);
            }
            if read_buf(&mut self.stream, &mut self.inbox).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    fn note_parameter(&mut self, body: &[u8]) -> Result<(), UpstreamError> {
        let mut fields = Body::new(b'S', body);
        let name = String::from_utf8_lossy(fields.string("parameter name")?).into_owned();
        let value = String::from_utf8_lossy(fields.string("parameter value")?).into_owned();
        match self.parameters.iter_mut().find(|(n, _)| *n == name) {
            Some(known) => known.1 = value,
            None => self.parameters.push((name, value)),
        }
        Ok(())
    }

    /// Asks a question of our own and collects its rows as text.
    ///
    /// Only while nothing of the agent's is outstanding. Uses a named statement, so that the
    /// agent's unnamed one stays what it was.
    pub async fn rows(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, UpstreamError> {
        let mut out = BytesMut::with_capacity(sql.len() + 160);
        codec::parse(&mut out, OWN, sql.as_bytes());
        codec::bind(&mut out, OWN, OWN);
        codec::execute(&mut out, OWN);
        codec::target(&mut out, b'C', b'P', OWN);
        codec::target(&mut out, b'C', b'S', OWN);
        codec::bare(&mut out, b'S');
        self.send(&out).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let (tag, body) = self.next(MAX_ANSWER_MESSAGE).await?;
            match tag {
                b'D' => rows.push(text_row(&body)?),
                b'E' => failure = Some(body.to_vec()),
                b'Z' => {
                    self.status = body.first().copied().unwrap_or(b'I');
                    return match failure {
                        Some(body) => Err(UpstreamError::Refused(body)),
                        None => Ok(rows),
                    };
                }
                _ => self.aside(tag, &body)?,
            }
        }
    }

    /// Describes a statement without running it: its result columns, empty if it has none.
    pub async fn describe(&mut self, sql: &str) -> Result<Vec<codec::Field>, UpstreamError> {
        let mut out = BytesMut::with_capacity(sql.len() + 120);
        codec::parse(&mut out, OWN, sql.as_bytes());
        codec::target(&mut out, b'D', b'S', OWN);
        codec::target(&mut out, b'C', b'S', OWN);
        codec::bare(&mut out, b'S');
        self.send(&out).await?;
        let mut fields = Vec::new();
        let mut failure = None;
        loop {
            let (tag, body) = self.next(MAX_ANSWER_MESSAGE).await?;
            match tag {
                b'T' => fields = codec::row_description(&body)?,
                b'E' => failure = Some(body.to_vec()),
                b'Z' => {
                    self.status = body.first().copied().unwrap_or(b'I');
                    return match failure {
                        Some(body) => Err(UpstreamError::Refused(body)),
                        None => Ok(fields),
                    };
                }
                _ => self.aside(tag, &body)?,
            }
        }
    }

    /// Keeps what belongs to the agent, drops what only answers us.
    fn aside(&mut self, tag: u8, body: &[u8]) -> Result<(), UpstreamError> {
        match tag {
            b'A' => {
                codec::message(&mut self.unasked, tag, |out| out.extend_from_slice(body));
                Ok(())
            }
            b'S' => {
                codec::message(&mut self.unasked, tag, |out| out.extend_from_slice(body));
                self.note_parameter(body)
            }
            b'1' | b'2' | b'3' | b't' | b'n' | b'C' | b'N' | b'T' | b'I' => Ok(()),
            other => protocol(format!("unexpected message {:?}", char::from(other))),
        }
    }
}

fn need<'a>(
    password: Option<&'a SecretString>,
    method: &'static str,
) -> Result<&'a SecretString, UpstreamError> {
    password.ok_or(UpstreamError::Credential(method))
}

fn text_row(body: &[u8]) -> Result<Vec<Option<String>>, UpstreamError> {
    Ok(codec::data_row(body)?
        .into_iter()
        .map(|v| v.map(|v| String::from_utf8_lossy(v).into_owned()))
        .collect())
}
