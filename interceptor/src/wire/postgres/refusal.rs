//! What an agent is told that gets no further, in the protocol's own words. Nothing is decided
//! here.

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use crate::session::{Refused, RefusedKind, Session};

use super::codec::{self, Report};
use super::startup;
use super::stream::ClientStream;

/// Why the service was not opened.
pub(super) enum Refusal {
    /// We refuse.
    Own(Refused),
    /// The server refuses, with this ErrorResponse.
    Server(Vec<u8>),
}

impl Refusal {
    /// Tells the agent, in the server's own words where it was the server, and closes.
    pub async fn tell(&self, stream: &mut ClientStream) {
        match self {
            Self::Own(refused) => tell(stream, refused).await,
            Self::Server(body) => {
                let mut out = BytesMut::new();
                codec::message(&mut out, b'E', |out| out.extend_from_slice(body));
                let _ = stream.write_all(&out).await;
                let _ = stream.shutdown().await;
            }
        }
    }

    /// The reason, for the record.
    pub fn words(&self) -> String {
        match self {
            Self::Own(refused) => refused.message.clone(),
            Self::Server(body) => codec::report_field(body, b'M').unwrap_or_default(),
        }
    }
}

pub(super) fn sqlstate(kind: RefusedKind) -> &'static str {
    match kind {
        RefusedKind::Identity => "28P01",
        RefusedKind::Policy => "42501",
        RefusedKind::Service => "08004",
        RefusedKind::Record => "57P03",
        RefusedKind::Busy => "53300",
    }
}

/// Answers in the protocol and closes; the session is the caller's to end.
pub(super) async fn tell(stream: &mut ClientStream, refused: &Refused) {
    let mut report = Report::fatal(sqlstate(refused.kind), refused.message.clone());
    report.hint.clone_from(&refused.hint);
    let _ = startup::write_report(stream, &report).await;
    let _ = stream.shutdown().await;
}

/// Ends a session before it was opened, and says why.
pub(super) async fn refuse<S>(
    session: Session<S>,
    stream: &mut ClientStream,
    code: &'static str,
    words: &str,
) {
    let message = format!("interceptor: {words} (session {})", session.id());
    let _ = startup::write_report(stream, &Report::fatal(code, message.clone())).await;
    let _ = stream.shutdown().await;
    session.end("refused", Some(&message));
}
