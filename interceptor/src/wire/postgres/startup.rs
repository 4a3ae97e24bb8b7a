//! The opening of a connection: TLS and GSSAPI requests, direct TLS, the startup packet, version
//! negotiation, cancel requests (manual, "Message Flow", "Start-up").
//!
//! Everything here happens before anybody is known, so every read is exact and capped: no byte
//! is ever buffered across the switch to TLS, and nothing is allocated by a claimed length
//! above the startup limit.

use std::io;
use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::codec::{self, Body, CodecError, MAX_STARTUP, Report};
use super::stream::ClientStream;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// Largest password message, as in the server (`PG_MAX_AUTH_TOKEN_LENGTH`).
const MAX_PASSWORD: usize = 65_535;

/// First byte of a TLS handshake record (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The name that direct TLS must negotiate (IANA, "TLS ALPN Protocol IDs").
pub const ALPN: &[u8] = b"postgresql";

/// A protocol version, major 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// 3.0, what every client speaks.
    pub const V3_0: Self = Self(3 << 16);
    /// 3.2: cancel keys of up to 256 bytes (PostgreSQL 18).
    pub const V3_2: Self = Self((3 << 16) | 2);
}

/// How a connection opened.
#[derive(Debug)]
pub enum Opening {
    /// It wants a session.
    Startup(Box<Startup>),
    /// It asks to cancel another session's statement, by key only.
    Cancel {
        /// The process id of BackendKeyData.
        pid: u32,
        /// The secret of BackendKeyData, 1 to 256 bytes.
        secret: Vec<u8>,
    },
}

/// A startup packet and the stream it came on.
#[derive(Debug)]
pub struct Startup {
    /// The stream, after TLS if there was any.
    pub stream: ClientStream,
    /// The version that both sides now speak.
    pub version: Version,
    /// Parameters in their order, `user` among them.
    pub parameters: Vec<(String, String)>,
    /// In observe mode, the client's own password for the service, on its way there.
    pub relayed_password: Option<Zeroizing<Vec<u8>>>,
}

impl Startup {
    /// A parameter's value.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Why a connection did not open.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// The transport failed or ended.
    #[error("connection ended during start-up: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no startup.
    #[error("{0}")]
    Protocol(String),
    /// The packet is malformed.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

fn protocol<T>(message: impl Into<String>) -> Result<T, StartupError> {
    Err(StartupError::Protocol(message.into()))
}

/// Reads up to and including the startup packet.
///
/// On an error that the protocol can answer, the answer has been written.
pub async fn open(socket: TcpStream, tls: Option<&TlsAcceptor>) -> Result<Opening, StartupError> {
    let mut first = [0u8; 1];
    if socket.peek(&mut first).await? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let mut stream = if first[0] == TLS_HANDSHAKE {
        direct_tls(socket, tls).await?
    } else {
        ClientStream::Plain(socket)
    };
    let (mut asked_tls, mut asked_gss) = (false, false);
    loop {
        let packet = read_packet(&mut stream).await?;
        let (code, body) = packet.split_at(4);
        let code = u32::from_be_bytes([code[0], code[1], code[2], code[3]]);
        match code {
            SSL_REQUEST if !asked_tls && body.is_empty() => {
                asked_tls = true;
                stream = accept_tls(stream, tls).await?;
            }
            GSSENC_REQUEST if !asked_gss && body.is_empty() => {
                asked_gss = true;
                stream.write_all(b"N").await?;
                stream.flush().await?;
            }
            CANCEL_REQUEST => return cancel(body),
            SSL_REQUEST | GSSENC_REQUEST => {
                return refuse(stream, "encryption was requested twice").await;
            }
            _ => return startup(stream, code, body).await,
        }
    }
}

async fn direct_tls(
    socket: TcpStream,
    tls: Option<&TlsAcceptor>,
) -> Result<ClientStream, StartupError> {
    let Some(acceptor) = tls else { return protocol("TLS is not configured for this service") };
    let stream = acceptor.accept(socket).await?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return protocol("direct TLS without the ALPN protocol \"postgresql\"");
    }
    Ok(ClientStream::Tls(Box::new(stream)))
}

async fn accept_tls(
    stream: ClientStream,
    tls: Option<&TlsAcceptor>,
) -> Result<ClientStream, StartupError> {
    match (stream, tls) {
        (ClientStream::Plain(mut socket), Some(acceptor)) => {
            socket.write_all(b"S").await?;
            // The packet was read to its last byte, so whatever the client sent early is
            // still in the socket and has to be a TLS record.
            Ok(ClientStream::Tls(Box::new(acceptor.accept(socket).await?)))
        }
        (ClientStream::Plain(mut socket), None) => {
            socket.write_all(b"N").await?;
            Ok(ClientStream::Plain(socket))
        }
        (stream @ ClientStream::Tls(_), _) => {
            drop(stream);
            protocol("TLS inside TLS")
        }
    }
}

async fn refuse(mut stream: ClientStream, message: &str) -> Result<Opening, StartupError> {
    write_report(&mut stream, &Report::fatal("08P01", message)).await?;
    protocol(message)
}

/// Writes one report and flushes it.
pub async fn write_report(stream: &mut ClientStream, report: &Report) -> io::Result<()> {
    let mut out = BytesMut::with_capacity(256);
    report.write(&mut out);
    stream.write_all(&out).await?;
    stream.flush().await
}

/// A packet without a type byte: length, then at least a code of four bytes.
async fn read_packet(stream: &mut ClientStream) -> Result<Vec<u8>, StartupError> {
    let length = stream.read_u32().await? as usize;
    if !(8..=MAX_STARTUP).contains(&length) {
        return protocol(format!(
            "startup packet of {length} bytes; 8 to {MAX_STARTUP} are possible"
        ));
    }
    let mut packet = vec![0u8; length - 4];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}

fn cancel(body: &[u8]) -> Result<Opening, StartupError> {
    if !(5..=260).contains(&body.len()) {
        return protocol("a cancel key has 1 to 256 bytes");
    }
    let (pid, secret) = body.split_at(4);
    let pid = u32::from_be_bytes([pid[0], pid[1], pid[2], pid[3]]);
    Ok(Opening::Cancel { pid, secret: secret.to_vec() })
}

/// What a startup packet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The version to speak.
    pub version: Version,
    /// Parameters in their order.
    pub parameters: Vec<(String, String)>,
    /// Protocol options (`_pq_.`) that are not known here.
    pub unknown: Vec<String>,
    /// Whether the client has to be told another version or unknown options.
    pub negotiate: bool,
}

/// Reads a startup packet: its version code, and the bytes after it.
pub fn packet(code: u32, body: &[u8]) -> Result<Packet, String> {
    if code >> 16 != 3 {
        return Err(format!("unsupported frontend protocol {}.{}", code >> 16, code & 0xffff));
    }
    let mut parameters = Vec::new();
    let mut unknown = Vec::new();
    let mut fields = Body::new(b'0', body);
    loop {
        let name = fields.string("parameter name").map_err(|e| e.to_string())?;
        if name.is_empty() {
            break;
        }
        let value = fields.string("parameter value").map_err(|e| e.to_string())?;
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return Err("startup parameters must be UTF-8".into());
        };
        if name.starts_with("_pq_.") {
            unknown.push(name.to_owned());
        } else {
            parameters.push((name.to_owned(), value.to_owned()));
        }
    }
    fields.end().map_err(|e| e.to_string())?;
    let asked = Version(code);
    let version = match asked {
        Version::V3_0 | Version::V3_2 => asked,
        v if v > Version::V3_2 => Version::V3_2,
        _ => Version::V3_0,
    };
    let negotiate = version != asked || !unknown.is_empty();
    Ok(Packet { version, parameters, unknown, negotiate })
}

async fn startup(
    mut stream: ClientStream,
    code: u32,
    body: &[u8],
) -> Result<Opening, StartupError> {
    let packet = match packet(code, body) {
        Ok(packet) => packet,
        Err(message) => return refuse(stream, &message).await,
    };
    let Packet { version, parameters, unknown, negotiate: differs } = packet;
    if differs {
        negotiate(&mut stream, version, &unknown).await?;
    }
    let startup = Startup { stream, version, parameters, relayed_password: None };
    Ok(Opening::Startup(Box::new(startup)))
}

/// NegotiateProtocolVersion, with the whole version number as PostgreSQL 18 sends it.
async fn negotiate(
    stream: &mut ClientStream,
    version: Version,
    unknown: &[String],
) -> io::Result<()> {
    let mut out = BytesMut::new();
    codec::message(&mut out, b'v', |out| {
        out.put_u32(version.0);
        out.put_u32(u32::try_from(unknown.len()).unwrap_or(u32::MAX));
        for name in unknown {
            codec::put_string(out, name.as_bytes());
        }
    });
    stream.write_all(&out).await?;
    stream.flush().await
}

/// Asks for the password in clear text and reads it; the caller made sure of TLS.
pub async fn ask_password(stream: &mut ClientStream) -> Result<Zeroizing<Vec<u8>>, StartupError> {
    let mut out = BytesMut::new();
    codec::message(&mut out, b'R', |out| out.put_u32(3));
    stream.write_all(&out).await?;
    stream.flush().await?;
    let tag = stream.read_u8().await?;
    let length = stream.read_u32().await? as usize;
    if tag != b'p' {
        return protocol("expected the password");
    }
    if !(5..=MAX_PASSWORD + 4).contains(&length) {
        return protocol(format!("a password of {length} bytes; at most {MAX_PASSWORD} are read"));
    }
    let mut password = Zeroizing::new(vec![0u8; length - 4]);
    stream.read_exact(&mut password).await?;
    if password.pop() != Some(0) || password.contains(&0) {
        return protocol("malformed password message");
    }
    Ok(password)
}

/// Whether a token may be asked for without TLS from this address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
