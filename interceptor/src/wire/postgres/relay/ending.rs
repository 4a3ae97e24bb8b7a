//! How a session ends: why, in the record's words, and what the agent is still told.
//!
//! A last word is written only where the agent's stream stands at a message's border. Whatever
//! is still owed is closed in the record; nothing ends without one.

use std::future::poll_fn;
use std::time::Duration;

use crate::session::live::Ending;
use crate::session::log::RecordError;

use super::super::codec::{CodecError, Report};
use super::super::upstream::UpstreamError;
use super::Relay;
use super::exchange::Slot;
use super::io::{IoFailure, Moved, Wants};

/// Why a session ends.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The agent broke the protocol.
    #[error("agent: {0}")]
    Agent(CodecError),
    /// The service broke the protocol.
    #[error("service: {0}")]
    Service(CodecError),
    /// A question of our own could not be answered.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A rule of the relay was broken; the message says which.
    #[error("{0}")]
    Refused(String),
}

/// How a session ended, in the record's words.
#[derive(Debug)]
pub struct Finish {
    /// `client`, `server`, `expired`, `policy`, `store`, `shutdown`, `killed`, `conflict`,
    /// `protocol`.
    pub reason: &'static str,
    /// More words.
    pub detail: Option<String>,
}

impl Finish {
    pub(super) fn because(reason: &'static str) -> Self {
        Self { reason, detail: None }
    }
}

impl Relay {
    pub(super) async fn moved(
        &mut self,
        moved: Result<Moved, IoFailure>,
    ) -> Result<Option<Finish>, Fault> {
        Ok(match moved {
            Ok(Moved::Progress) => None,
            Ok(Moved::ClientEnd) => Some(Finish {
                reason: "client",
                detail: Some("the agent closed without Terminate".into()),
            }),
            Ok(Moved::UpstreamEnd) => {
                self.service_gone().await?;
                Some(Finish::because("server"))
            }
            Err(IoFailure::Client(e)) => {
                Some(Finish { reason: "client", detail: Some(e.to_string()) })
            }
            Err(IoFailure::Upstream(e)) => {
                self.service_gone().await?;
                Some(Finish { reason: "server", detail: Some(e.to_string()) })
            }
        })
    }

    /// Hands on what the service still said, and says that it is gone if it did not say so.
    async fn service_gone(&mut self) -> Result<(), Fault> {
        self.backend()?;
        if !self.terminated && !self.told_fatal && self.service_pass == 0 {
            let words = self.words("SERVICE_ENDED: the service closed the connection");
            Report::fatal("08006", words).write(&mut self.io.to_client);
        }
        self.flush_client().await;
        Ok(())
    }

    pub(super) async fn ordered(&mut self, order: Ending) -> Option<Finish> {
        if order == Ending::None {
            return None;
        }
        self.session.note_ending(&order);
        self.farewell("57P01", order.words()).await;
        Some(Finish { reason: order.reason(), detail: order.detail().map(str::to_owned) })
    }

    pub(super) async fn fault(&mut self, fault: &Fault) -> Finish {
        let (reason, code, words) = match fault {
            Fault::Agent(e) => ("protocol", "08P01", format!("PROTOCOL: {e}")),
            Fault::Service(e) => ("server", "08P01", format!("SERVICE_PROTOCOL: {e}")),
            Fault::Upstream(e) => ("server", "08006", format!("SERVICE: {e}")),
            Fault::Record(_) => (
                "store",
                "57P01",
                "RECORD_UNAVAILABLE: nothing can be recorded, so nothing is let through".into(),
            ),
            Fault::Refused(what) => ("policy", "57P01", what.clone()),
        };
        tracing::warn!(session = %self.session.id(), %fault, "session ends");
        self.farewell(code, &words).await;
        Finish { reason, detail: Some(fault.to_string()) }
    }

    /// A last word to the agent, where the stream stands at a message's border.
    pub(super) async fn farewell(&mut self, code: &'static str, words: &str) {
        if self.service_pass == 0 {
            let message = self.words(words);
            Report::fatal(code, message).write(&mut self.io.to_client);
        }
        self.flush_client().await;
        if !self.exchange.is_quiet() {
            self.cancel_upstream();
        }
    }

    /// Writes what waits for the agent, for a second at most.
    async fn flush_client(&mut self) {
        let wants = Wants { client: false, upstream: false };
        let io = &mut self.io;
        let flush = async {
            while !io.to_client.is_empty() {
                io.to_upstream.clear();
                if poll_fn(|cx| io.poll(cx, wants)).await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), flush).await;
    }

    /// Records that the requests in flight have no complete answer.
    pub(super) fn close_requests(&mut self, reason: &str) {
        let slots: Vec<Slot> = self.exchange.drain().collect();
        for slot in slots {
            if let Slot::Query(running) | Slot::Execute(running) = slot {
                let mut running = *running;
                running
                    .error
                    .get_or_insert_with(|| ("08006".into(), format!("session ended: {reason}")));
                let _ = self.record_response(&mut running);
            }
        }
        if let Some(parked) = self.parked.take() {
            let _ = self.session.hold_ended(&parked.waiting, "withdrawn", None, None, None);
        }
    }
}
