//! Moving bytes between the two transports, both directions at once, in one task.
//!
//! Four buffers: what came from each side and what is to go to each side. Each direction makes
//! progress on its own, so that a slow reader on one side never blocks the other, and each is
//! bounded, so that a slow reader holds back its sender and not our memory.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::super::stream::ClientStream;
use super::super::upstream::Upstream;

/// Bytes waiting to be written above which the sender is no longer read.
pub const HIGH_WATER: usize = 256 * 1024;

/// First and smallest read buffer.
const SMALL: usize = 8 * 1024;

/// Largest read at a time.
const LARGE: usize = 64 * 1024;

/// The transports and their buffers.
#[derive(Debug)]
pub struct Io {
    /// The agent.
    pub client: ClientStream,
    /// The service, with what was read from it and not yet handled.
    pub service: Upstream,
    /// Read from the agent, not yet handled.
    pub from_client: BytesMut,
    /// To be written to the agent.
    pub to_client: BytesMut,
    /// To be written to the service; only what has been recorded.
    pub to_upstream: BytesMut,
    client_flush: bool,
    upstream_flush: bool,
    client_read: usize,
    upstream_read: usize,
}

/// What happened on a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// Bytes were read or written.
    Progress,
    /// The agent closed its side.
    ClientEnd,
    /// The service closed its side.
    UpstreamEnd,
}

/// Which transport failed.
#[derive(Debug)]
pub enum IoFailure {
    /// The agent's.
    Client(io::Error),
    /// The service's.
    Upstream(io::Error),
}

/// Which sides may be read now.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// Read the agent.
    pub client: bool,
    /// Read the service.
    pub upstream: bool,
}

impl Io {
    /// Over two transports that are ready.
    pub fn new(client: ClientStream, service: Upstream) -> Self {
        Self {
            client,
            service,
            from_client: BytesMut::new(),
            to_client: BytesMut::new(),
            to_upstream: BytesMut::new(),
            client_flush: false,
            upstream_flush: false,
            client_read: SMALL,
            upstream_read: SMALL,
        }
    }

    /// Writes what waits and reads what is wanted, until neither side can go on.
    pub fn poll(&mut self, cx: &mut Context<'_>, wants: Wants) -> Poll<Result<Moved, IoFailure>> {
        let mut moved = false;
        moved |=
            drain(&mut self.to_upstream, &mut self.service.stream, &mut self.upstream_flush, cx)
                .map_err(IoFailure::Upstream)?;
        moved |= drain(&mut self.to_client, &mut self.client, &mut self.client_flush, cx)
            .map_err(IoFailure::Client)?;
        if wants.upstream && self.to_client.len() < HIGH_WATER {
            let read = fill(
                &mut self.service.inbox,
                &mut self.service.stream,
                &mut self.upstream_read,
                cx,
            )
            .map_err(IoFailure::Upstream)?;
            match read {
                Poll::Ready(0) => return Poll::Ready(Ok(Moved::UpstreamEnd)),
                Poll::Ready(_) => moved = true,
                Poll::Pending => {}
            }
        }
        if wants.client && self.to_upstream.len() < HIGH_WATER {
            let read = fill(&mut self.from_client, &mut self.client, &mut self.client_read, cx)
                .map_err(IoFailure::Client)?;
            match read {
                Poll::Ready(0) => return Poll::Ready(Ok(Moved::ClientEnd)),
                Poll::Ready(_) => moved = true,
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(Ok(Moved::Progress)) } else { Poll::Pending }
    }
}

fn fill<S: tokio::io::AsyncRead + Unpin>(
    buffer: &mut BytesMut,
    stream: &mut S,
    size: &mut usize,
    cx: &mut Context<'_>,
) -> io::Result<Poll<usize>> {
    if buffer.is_empty() && buffer.capacity() > SMALL && *size == SMALL {
        // An idle session gives back what a large answer made it allocate.
        *buffer = BytesMut::new();
    }
    buffer.reserve(*size);
    match poll_read_buf(Pin::new(stream), cx, buffer) {
        Poll::Ready(Ok(n)) => {
            *size = if n >= *size { (*size * 2).min(LARGE) } else { (*size / 2).max(SMALL) };
            Ok(Poll::Ready(n))
        }
        Poll::Ready(Err(e)) => Err(e),
        Poll::Pending => {
            *size = SMALL;
            Ok(Poll::Pending)
        }
    }
}

fn drain<S: AsyncWrite + Unpin>(
    buffer: &mut BytesMut,
    stream: &mut S,
    flush: &mut bool,
    cx: &mut Context<'_>,
) -> io::Result<bool> {
    let mut moved = false;
    while !buffer.is_empty() {
        match Pin::new(&mut *stream).poll_write(cx, buffer) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(n)) => {
                buffer.advance(n);
                *flush = true;
                moved = true;
            }
            Poll::Ready(Err(e)) => return Err(e),
            Poll::Pending => return Ok(moved),
        }
    }
    if *flush {
        match Pin::new(stream).poll_flush(cx) {
            Poll::Ready(Ok(())) => *flush = false,
            Poll::Ready(Err(e)) => return Err(e),
            Poll::Pending => {}
        }
    }
    if buffer.capacity() > SMALL && !*flush {
        *buffer = BytesMut::new();
    }
    Ok(moved)
}
