//! A client that speaks the protocol by hand: for what no driver would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::login::Login;
use crate::net::Net;

/// The longest silence of the other side.
const SILENCE: Duration = Duration::from_secs(20);
/// SSLRequest.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
/// GSSENCRequest.
pub const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
/// Protocol 3.0.
pub const V3_0: u32 = 0x0003_0000;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub struct Raw {
    stream: Box<dyn Stream>,
}

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub tag: u8,
    /// Everything behind the length.
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse or NoticeResponse, e.g. `C` for the code.
    pub fn field(&self, name: u8) -> String {
        self.body
            .split(|b| *b == 0)
            .find(|f| f.first() == Some(&name))
            .map(|f| String::from_utf8_lossy(&f[1..]).into_owned())
            .unwrap_or_default()
    }

    /// The values of a DataRow, as text.
    pub fn values(&self) -> Vec<Option<String>> {
        let mut rest = self.body.get(2..).unwrap_or_default();
        let mut values = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = i32::from_be_bytes(*length);
            let Ok(length) = usize::try_from(length) else {
                values.push(None);
                rest = after;
                continue;
            };
            let (value, after) = after.split_at(length.min(after.len()));
            values.push(Some(String::from_utf8_lossy(value).into_owned()));
            rest = after;
        }
        values
    }

    /// The text up to the first zero byte, e.g. of a CommandComplete.
    pub fn text(&self) -> String {
        let end = self.body.iter().position(|b| *b == 0).unwrap_or(self.body.len());
        String::from_utf8_lossy(&self.body[..end]).into_owned()
    }
}

/// What an answer amounts to.
#[derive(Debug, Clone, Default)]
pub struct Skimmed {
    /// DataRow and CopyData messages; a server sends one row in each.
    pub rows: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// The last error's message.
    pub error: String,
    ready: bool,
}

impl Skimmed {
    fn count(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'D' | b'd' => {
                self.rows += 1;
                self.bytes += body.len() as u64;
            }
            b'E' => self.error = Message { tag, body: body.to_vec() }.field(b'M'),
            b'Z' => self.ready = true,
            _ => {}
        }
    }
}

impl Raw {
    /// A bare TCP connection from the login's machine.
    pub fn tcp(net: &Net, login: &Login) -> Result<Self> {
        Ok(Self { stream: Box::new(dial(net, login)?) })
    }

    /// A connection on which SSLRequest has been answered and TLS stands.
    pub fn tls(net: &Net, login: &Login) -> Result<Self> {
        let mut tcp = dial(net, login)?;
        tcp.write_all(&SSL_REQUEST)?;
        let mut answer = [0];
        tcp.read_exact(&mut answer).context("no answer to SSLRequest")?;
        if answer != *b"S" {
            bail!("SSLRequest was answered with {answer:?}");
        }
        Ok(Self { stream: Box::new(secured(tcp, login, &[])?) })
    }

    /// A connection that begins with TLS at once, with ALPN.
    pub fn direct_tls(net: &Net, login: &Login) -> Result<Self> {
        let tcp = dial(net, login)?;
        Ok(Self { stream: Box::new(secured(tcp, login, &[b"postgresql".to_vec()])?) })
    }

    /// A connection that is ready for queries.
    pub fn ready(net: &Net, login: &Login) -> Result<Self> {
        let mut raw = Self::tls(net, login)?;
        raw.log_in(login, V3_0, &[])?;
        Ok(raw)
    }

    /// Startup and password on a fresh connection, up to ReadyForQuery.
    pub fn log_in(
        &mut self,
        login: &Login,
        version: u32,
        more: &[(&str, &str)],
    ) -> Result<Vec<Message>> {
        let mut parameters = vec![("user", &*login.user), ("database", &*login.database)];
        parameters.extend(more);
        self.startup(version, &parameters)?;
        loop {
            let message = self.message()?;
            match message.tag {
                b'v' => {}
                b'R' => break,
                b'E' => bail!("refused at startup: {}", message.field(b'M')),
                other => bail!("{:?} instead of an authentication request", other as char),
            }
        }
        let mut password = login.password.clone().into_bytes();
        password.push(0);
        self.send(b'p', &password)?;
        let answer = self.until_ready()?;
        match answer.iter().find(|m| m.tag == b'E') {
            Some(e) => bail!("refused: {} {}", e.field(b'C'), e.field(b'M')),
            None => Ok(answer),
        }
    }

    /// Sends a startup packet.
    pub fn startup(&mut self, version: u32, parameters: &[(&str, &str)]) -> Result<()> {
        let mut body = version.to_be_bytes().to_vec();
        for (name, value) in parameters {
            for part in [name, value] {
                body.extend(part.as_bytes());
                body.push(0);
            }
        }
        body.push(0);
        let mut packet = (u32::try_from(body.len())? + 4).to_be_bytes().to_vec();
        packet.extend(body);
        self.raw(&packet)
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()?;
        Ok(())
    }

    /// Sends one message.
    pub fn send(&mut self, tag: u8, body: &[u8]) -> Result<()> {
        self.raw(&encoded(tag, body)?)
    }

    /// Sends a simple query.
    pub fn query(&mut self, sql: &str) -> Result<()> {
        self.send(b'Q', &[sql.as_bytes(), &[0]].concat())
    }

    /// Runs a simple query to ReadyForQuery.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<Message>> {
        self.query(sql)?;
        self.until_ready()
    }

    /// Reads one message.
    pub fn message(&mut self) -> Result<Message> {
        let mut head = [0_u8; 5];
        self.stream.read_exact(&mut head).context("the server ended the connection")?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = usize::try_from(length)?.checked_sub(4).context("a length below four")?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Message { tag: head[0], body })
    }

    /// Reads up to and with ReadyForQuery, or up to the end of the connection after an error.
    pub fn until_ready(&mut self) -> Result<Vec<Message>> {
        let mut list: Vec<Message> = Vec::new();
        loop {
            match self.message() {
                Ok(message) => {
                    let ready = message.tag == b'Z';
                    list.push(message);
                    if ready {
                        return Ok(list);
                    }
                }
                Err(_) if list.iter().any(|m| m.tag == b'E') => return Ok(list),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads an answer up to ReadyForQuery in large pieces and keeps only what it amounts to.
    pub fn skim(&mut self) -> Result<Skimmed> {
        let mut seen = Skimmed::default();
        let mut buffer = vec![0_u8; 256 * 1024];
        let (mut start, mut end) = (0, 0);
        loop {
            while end - start >= 5 {
                let head = &buffer[start..end];
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
                let whole = 1 + usize::try_from(length)?;
                if whole > head.len() {
                    if whole > buffer.len() {
                        buffer.resize(whole, 0);
                    }
                    break;
                }
                seen.count(head[0], &head[5..whole]);
                start += whole;
                if seen.ready {
                    return Ok(seen);
                }
            }
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
            let n = self.stream.read(&mut buffer[end..])?;
            if n == 0 {
                bail!("the server ended the connection; so far {seen:?}");
            }
            end += n;
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }
}

/// A message as bytes, to be sent together with others.
pub fn encoded(tag: u8, body: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(body.len())? + 4;
    Ok([&[tag][..], &length.to_be_bytes(), body].concat())
}

/// Parse, Bind, Execute of one statement without parameters, unnamed, text format.
pub fn extended(sql: &str) -> Result<Vec<u8>> {
    let parse = [&[0], sql.as_bytes(), &[0, 0, 0]].concat();
    Ok([
        encoded(b'P', &parse)?,
        encoded(b'B', &[0, 0, 0, 0, 0, 0, 0, 0])?,
        encoded(b'E', &[0, 0, 0, 0, 0])?,
    ]
    .concat())
}

/// Sync.
pub const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];

/// The types of messages in order, for comparing whole answers.
pub fn tags(messages: &[Message]) -> String {
    messages.iter().filter(|m| m.tag != b'S').map(|m| m.tag as char).collect()
}

fn dial(net: &Net, login: &Login) -> Result<TcpStream> {
    let address = (login.host.as_str(), login.port);
    let tcp = net.inside(login.from, || Ok(TcpStream::connect(address)?))?;
    tcp.set_read_timeout(Some(SILENCE))?;
    tcp.set_write_timeout(Some(SILENCE))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// What a TLS client needs to trust one authority and nobody else.
pub fn trust(ca: &Path, alpn: &[Vec<u8>]) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.to_vec();
    Ok(config)
}

fn secured(
    mut tcp: TcpStream,
    login: &Login,
    alpn: &[Vec<u8>],
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let config = trust(Path::new(&login.ca), alpn)?;
    let name = ServerName::try_from(login.host.clone())?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp).context("TLS handshake")?;
    }
    Ok(StreamOwned::new(connection, tcp))
}
