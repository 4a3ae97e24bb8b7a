//! The two transports of a connection: the agent's side and the service's side.
//!
//! Reading and writing only; what the bytes mean is decided elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{client, server};

use crate::capture::UpstreamExemption;

/// The agent's side.
#[derive(Debug)]
pub enum ClientStream {
    /// Before TLS, or without it.
    Plain(TcpStream),
    /// After a TLS handshake.
    Tls(Box<server::TlsStream<TcpStream>>),
}

/// What TLS showed of the client.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Protocol version, e.g. `TLSv1_3`.
    pub version: String,
    /// Cipher suite.
    pub cipher: String,
    /// SubjectPublicKeyInfo (DER) of the client certificate whose key the handshake proved.
    pub client_key: Option<Arc<[u8]>>,
}

impl ClientStream {
    /// What TLS showed, if TLS is on.
    pub fn tls(&self) -> Option<ClientTls> {
        let Self::Tls(stream) = self else { return None };
        let (_, connection) = stream.get_ref();
        let client_key = connection.peer_certificates().and_then(|c| c.first()).and_then(|cert| {
            use x509_parser::prelude::FromDer;
            let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(cert).ok()?;
            Some(Arc::from(parsed.public_key().raw))
        });
        Some(ClientTls {
            version: connection.protocol_version().map(|v| format!("{v:?}")).unwrap_or_default(),
            cipher: connection
                .negotiated_cipher_suite()
                .map(|c| format!("{:?}", c.suite()))
                .unwrap_or_default(),
            client_key,
        })
    }
}

/// The service's side.
#[derive(Debug)]
pub enum UpstreamStream {
    /// A Unix socket, which nothing steers.
    Unix(UnixStream),
    /// TCP; the exemption lives exactly as long as the socket.
    Tcp(TcpStream, Option<UpstreamExemption>),
    /// TLS over TCP.
    Tls(Box<client::TlsStream<TcpStream>>, Option<UpstreamExemption>),
}

/// Reads and writes through whichever transport it is.
macro_rules! delegate {
    ($stream:ident: $($transport:pat => $inner:ident),+) => {
        impl AsyncRead for $stream {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() { $($transport => Pin::new($inner).poll_read(cx, buf)),+ }
            }
        }

        impl AsyncWrite for $stream {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() { $($transport => Pin::new($inner).poll_write(cx, buf)),+ }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($transport => Pin::new($inner).poll_flush(cx)),+ }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() { $($transport => Pin::new($inner).poll_shutdown(cx)),+ }
            }
        }
    };
}

delegate!(ClientStream: Self::Plain(s) => s, Self::Tls(s) => s);
delegate!(UpstreamStream: Self::Unix(s) => s, Self::Tcp(s, _) => s, Self::Tls(s, _) => s);
