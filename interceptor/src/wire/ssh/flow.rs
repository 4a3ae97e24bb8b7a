//! What one side of a channel sent and the other has not yet taken.
//!
//! A connection's task must never wait for a channel: it would hold up all others, and the
//! windows of its own answers. So whatever arrives is put here at once and taken by the
//! channel's own task. Bytes are bounded by the window that the sender was given, everything
//! else by a count.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

/// Bytes that are kept in one piece. More would only wait longer for its turn.
const PIECE: usize = 64 << 10;

/// Most things that wait beside data: signals and changes of size.
const MAX_WAITING: usize = 64;

/// Which of a channel's streams (RFC 4254, section 5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Ordinary data.
    Data,
    /// `SSH_EXTENDED_DATA_STDERR`.
    Stderr,
}

/// How what ran on a channel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With a status.
    Status(u32),
    /// By a signal.
    Signal {
        /// Its name without `SIG`.
        name: String,
        /// It left a core dump.
        core_dumped: bool,
        /// What the server says about it.
        message: String,
    },
}

/// One thing that happened on a channel.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes arrived.
    Data(Stream, BytesMut),
    /// No more bytes will.
    Eof,
    /// The terminal's size changed: columns and rows, and the same in pixels.
    Resize([u32; 4]),
    /// A signal, its name without `SIG`.
    Signal(String),
    /// What was asked of the server succeeded or failed.
    Reply(bool),
    /// What ran ended.
    Exit(Exit),
    /// The channel is closed, or its connection gone.
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// Nothing is taken after the end.
    closed: bool,
}

/// Closes a flow when whoever takes from it has gone, so that its channel no longer counts.
#[derive(Debug)]
pub struct Taker(pub std::sync::Arc<Flow>);

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.event(Event::Closed);
    }
}

/// The queue between a connection's task and a channel's.
#[derive(Debug, Default)]
pub struct Flow {
    queue: Mutex<Queue>,
    ready: Notify,
}

impl Flow {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in bytes; joined to those of the same stream that still wait.
    pub fn data(&self, stream: Stream, bytes: &[u8]) {
        let mut queue = self.lock();
        if queue.closed || bytes.is_empty() {
            return;
        }
        match queue.events.back_mut() {
            Some(Event::Data(last, waiting)) if *last == stream && waiting.len() < PIECE => {
                waiting.extend_from_slice(bytes);
            }
            _ => queue.events.push_back(Event::Data(stream, BytesMut::from(bytes))),
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// Takes in anything else. Of changes of size only the last counts, and what would not fit is
    /// dropped but for ends and answers, of which there are few.
    pub fn event(&self, event: Event) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        let optional = matches!(event, Event::Resize(_) | Event::Signal(_));
        let full = queue.events.len() >= MAX_WAITING;
        match (queue.events.back_mut(), event) {
            (Some(Event::Resize(last)), Event::Resize(size)) => *last = size,
            (_, Event::Closed) => {
                queue.closed = true;
                queue.events.push_back(Event::Closed);
            }
            (_, _) if optional && full => return,
            (_, event) => queue.events.push_back(event),
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// The next thing that happened, in order. After [`Event::Closed`] it is that for ever. Only
    /// one task may wait here.
    pub async fn next(&self) -> Event {
        loop {
            {
                let mut queue = self.lock();
                match queue.events.pop_front() {
                    Some(event) => return event,
                    None if queue.closed => return Event::Closed,
                    None => {}
                }
            }
            self.ready.notified().await;
        }
    }

    /// Whether the other side closed the channel, whatever still waits before that.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Returns when the other side has closed the channel; takes nothing.
    pub async fn closed(&self) {
        while !self.is_closed() {
            self.ready.notified().await;
        }
        // The permit may have been for whoever takes events.
        self.ready.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_joined_in_order_and_nothing_follows_the_end() {
        let flow = Flow::default();
        flow.data(Stream::Data, b"one ");
        flow.data(Stream::Data, b"two");
        flow.data(Stream::Stderr, b"three");
        flow.event(Event::Resize([1, 1, 0, 0]));
        flow.event(Event::Resize([80, 24, 0, 0]));
        flow.event(Event::Closed);
        flow.data(Stream::Data, b"late");
        assert_eq!(flow.next().await, Event::Data(Stream::Data, BytesMut::from("one two")));
        assert_eq!(flow.next().await, Event::Data(Stream::Stderr, BytesMut::from("three")));
        assert_eq!(flow.next().await, Event::Resize([80, 24, 0, 0]));
        assert_eq!(flow.next().await, Event::Closed);
        assert_eq!(flow.next().await, Event::Closed);
    }

    #[tokio::test]
    async fn a_flood_of_signals_is_cut_and_ends_are_not() {
        let flow = Flow::default();
        for _ in 0..10 * MAX_WAITING {
            flow.event(Event::Signal("INT".into()));
        }
        flow.event(Event::Eof);
        let mut signals = 0;
        while let Event::Signal(_) = flow.next().await {
            signals += 1;
        }
        assert_eq!(signals, MAX_WAITING);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let flow = std::sync::Arc::new(Flow::default());
        let waiting = tokio::spawn({
            let flow = std::sync::Arc::clone(&flow);
            async move { flow.next().await }
        });
        tokio::task::yield_now().await;
        flow.event(Event::Reply(true));
        assert_eq!(waiting.await.unwrap(), Event::Reply(true));
    }
}
