//! Where events go. What a sink says it delivered, the receiver has: a file on its disk, a syslog
//! receiver read to the end, an OTLP receiver acknowledged.

use std::time::Duration;

use super::config::{Forward, Syslog, To};
use super::file::FileSink;
use super::line::Line;
use super::otlp::OtlpSink;
use super::syslog;

/// Why events were not delivered. Nothing secret stands in it.
#[derive(Debug)]
pub struct Failure {
    /// What happened, and what to do.
    pub why: String,
    /// How long the receiver wants to be left alone.
    pub wait: Option<Duration>,
}

impl Failure {
    /// A failure after which one tries again as usual.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), wait: None }
    }
}

/// What became of the first events of those that were to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// So many are done with.
    pub lines: usize,
    /// So many of them the receiver does not want, and never will.
    pub rejected: u64,
}

impl Delivered {
    /// All of them were taken.
    pub fn all(lines: &[Line]) -> Self {
        Self { lines: lines.len(), rejected: 0 }
    }
}

/// Where events of one forward go.
pub enum Sink {
    /// A file.
    File(FileSink),
    /// A syslog receiver.
    Syslog(Syslog),
    /// An OTLP receiver.
    Otlp(OtlpSink),
}

impl Sink {
    /// The one that is configured. Nothing is opened before there is something to deliver.
    pub fn new(forward: &Forward) -> Self {
        match &forward.to {
            To::File { path } => Self::File(FileSink::new(path)),
            To::Syslog(syslog) => Self::Syslog(syslog.clone()),
            To::Otlp(otlp) => Self::Otlp(OtlpSink::new(otlp)),
        }
    }

    /// Delivers at least the first of some events.
    pub async fn send(&mut self, lines: &[Line]) -> Result<Delivered, Failure> {
        match self {
            Self::File(file) => file.send(lines).await.map(|()| Delivered::all(lines)),
            Self::Syslog(to) => syslog::send(to, lines).await.map(|()| Delivered::all(lines)),
            Self::Otlp(otlp) => otlp.send(lines).await,
        }
    }
}
