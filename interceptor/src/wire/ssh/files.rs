//! Files by sftp and scp: every operation is judged, held and recorded by itself.
//!
//! A machine cuts the bytes of both sides into steps ([`super::machine`]); this drives it. A held
//! operation holds up only what depends on it. File contents are not rewritten: where masks
//! apply to what a file may show, opening it is for policy to refuse or to hold.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::channel::{note, request_of, say};
use super::flow::{Event, Exit, Stream};
use super::machine::{Asked, Done, Machine, Step, Ticket};
use super::permit::{Denied, Permitted, Silent, permit};
use super::relay::{Owed, Relay, Stop};
use super::sftp::Decision;
use crate::session::log::event;

/// Time that sshd gets to close a channel that the agent has closed.
const CLOSING: Duration = Duration::from_secs(10);

/// One channel.
struct Files {
    relay: Relay,
    machine: Machine,
    via: &'static str,
    judging: JoinSet<Judged>,
    /// The request by which each path was opened, for the record of its transfer.
    opened: HashMap<String, u64>,
    owed_to_agent: Owed,
    owed_to_server: Owed,
    bytes_in: u64,
    bytes_out: u64,
}

/// A question's name, the file that it opens, and the answer.
type Judged = (Ticket, Option<String>, Result<Permitted, Denied>);

/// Most paths whose requests are remembered.
const MAX_OPENED: usize = 4096;

/// Relays one channel to its end.
pub async fn run(relay: Relay, machine: Machine) {
    let mut files = Files {
        via: match machine {
            Machine::Sftp(_) => "sftp",
            Machine::Scp(_) => "scp",
        },
        relay,
        machine,
        judging: JoinSet::new(),
        opened: HashMap::new(),
        owed_to_agent: Owed::default(),
        owed_to_server: Owed::default(),
        bytes_in: 0,
        bytes_out: 0,
    };
    let stop = files.serve().await.err();
    files.finish(stop).await;
}

impl Files {
    async fn serve(&mut self) -> Result<(), Stop> {
        let acting = Arc::clone(&self.relay.acting);
        let mut agent_closed = false;
        loop {
            self.step().await?;
            let from_agent = !agent_closed && !self.machine.agent_is_full();
            let from_server = !self.machine.server_is_full();
            tokio::select! {
                over = acting.over() => return Err(Stop::Words(acting.words(&over.words))),
                Some(judged) = self.judging.join_next() => {
                    if let Ok(judged) = judged {
                        self.decided(judged)?;
                    }
                }
                event = self.relay.upstream.flow.next(), if from_server => {
                    if self.take_server(event).await? {
                        return Ok(());
                    }
                }
                event = self.relay.flow.next(), if from_agent => {
                    agent_closed = self.take_agent(event).await?;
                }
                () = tokio::time::sleep(CLOSING), if agent_closed => return Ok(()),
            }
        }
    }

    /// Does all that can be done now.
    async fn step(&mut self) -> Result<(), Stop> {
        while let Some(step) = self.machine.step() {
            match step {
                Step::ToServer(bytes) => self.relay.upstream.write.data_bytes(bytes).await?,
                Step::ToAgent(bytes) => self.show(bytes).await?,
                Step::Judge(asked) => self.judge(asked).await?,
                Step::Done(done) => self.transferred(done),
            }
        }
        Ok(())
    }

    async fn show(&mut self, bytes: Bytes) -> Result<(), Stop> {
        self.bytes_out += bytes.len() as u64;
        Ok(self.relay.write.data_bytes(bytes).await?)
    }

    /// Judges an operation: at once unless it has to wait for a human or the disk.
    async fn judge(&mut self, mut asked: Asked) -> Result<(), Stop> {
        if let Some(home) = &self.relay.acting.home {
            asked.facts.at_home(home);
        }
        let (acting, flow) = (Arc::clone(&self.relay.acting), Arc::clone(&self.relay.flow));
        let (ch, via) = (self.relay.ch, self.via);
        let mut judging = Box::pin(async move {
            let answer = permit(&acting, ch, via, &asked.facts, &flow, &Silent).await;
            (asked.ticket, asked.opens, answer)
        });
        match poll_fn(|cx| Poll::Ready(judging.as_mut().poll(cx))).await {
            Poll::Ready(judged) => self.decided(judged),
            Poll::Pending => {
                self.judging.spawn(judging);
                Ok(())
            }
        }
    }

    fn decided(&mut self, (ticket, opens, answer): Judged) -> Result<(), Stop> {
        let decision = match answer {
            Ok(permitted) => {
                if let Some(path) = opens
                    && self.opened.len() < MAX_OPENED
                {
                    self.opened.insert(path, permitted.request);
                }
                Decision::Permit { withhold: false }
            }
            Err(Denied::Refused(why)) => {
                Decision::Refuse { message: self.relay.acting.words(&why) }
            }
            Err(Denied::Gone) => Decision::Refuse { message: String::new() },
        };
        self.machine.decide(ticket, decision).map_err(|e| self.malformed(&e))
    }

    fn malformed(&self, error: &str) -> Stop {
        Stop::Words(self.relay.acting.words(&format!("FILES_MALFORMED: {error}")))
    }

    fn transferred(&self, done: Done) {
        let n = self.opened.get(&done.path).copied().unwrap_or_default();
        let sha256: String = done.sha256.iter().map(|b| format!("{b:02x}")).collect();
        note(
            &self.relay.acting,
            &event::FileDone {
                n,
                ch: self.relay.ch,
                op: done.op,
                path: Cow::Owned(done.path),
                bytes: done.bytes,
                sha256: Cow::Owned(sha256),
                complete: done.complete,
            },
        );
    }

    /// Something came from the server's program; true when the channel is at its end.
    async fn take_server(&mut self, event: Event) -> Result<bool, Stop> {
        match event {
            Event::Data(Stream::Data, bytes) => {
                self.machine.take_server(&bytes).map_err(|e| self.malformed(&e))?;
                if let Some(grant) = self.owed_to_server.add(bytes.len()) {
                    self.relay.upstream.write.grant_window(grant).await?;
                }
            }
            Event::Data(Stream::Stderr, bytes) => {
                let count = bytes.len();
                let write = &self.relay.write;
                write.extended_data_bytes(super::channel::STDERR, bytes.freeze()).await?;
                if let Some(grant) = self.owed_to_server.add(count) {
                    self.relay.upstream.write.grant_window(grant).await?;
                }
            }
            Event::Eof => {
                // Told with the exit, which would come too late after it.
                self.step().await?;
            }
            Event::Exit(exit) => {
                self.exit(exit).await?;
                self.relay.write.eof().await?;
            }
            Event::Closed => return Ok(true),
            Event::Reply(_) | Event::Resize(_) | Event::Signal(_) => {}
        }
        Ok(false)
    }

    async fn exit(&mut self, exit: Exit) -> Result<(), Stop> {
        let status = match exit {
            Exit::Status(status) => status,
            Exit::Signal { .. } => 255,
        };
        note(
            &self.relay.acting,
            &event::ChannelExit {
                ch: self.relay.ch,
                n: request_of(self.relay.permitted.as_ref()),
                status: Some(status),
                signal: None,
                duration_us: crate::session::micros(self.relay.began.elapsed()),
            },
        );
        Ok(self.relay.write.exit_status(status).await?)
    }

    /// Something came from the agent; true when it has closed the channel.
    async fn take_agent(&mut self, event: Event) -> Result<bool, Stop> {
        match event {
            Event::Data(Stream::Data, bytes) => {
                self.machine.take_agent(&bytes).map_err(|e| self.malformed(&e))?;
                self.bytes_in += bytes.len() as u64;
                if let Some(grant) = self.owed_to_agent.add(bytes.len()) {
                    self.relay.write.grant_window(grant).await?;
                }
            }
            Event::Eof => {
                self.step().await?;
                self.relay.upstream.write.eof().await?;
            }
            Event::Closed => {
                let _ = self.relay.upstream.write.close().await;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    async fn finish(mut self, stop: Option<Stop>) {
        self.judging.abort_all();
        self.machine.end();
        while let Some(step) = self.machine.step() {
            if let Step::Done(done) = step {
                self.transferred(done);
            }
        }
        let relay = &self.relay;
        let _ = relay.upstream.write.close().await;
        let gone = relay.acting.end_with_service().map(Stop::Words);
        if let Some(Stop::Words(words)) = stop.or(gone) {
            let told = async {
                say(&relay.write, &words).await;
                let _ = relay.write.exit_status(255).await;
                let _ = relay.write.eof().await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(200), told).await;
        }
        let _ = relay.write.close().await;
        note(
            &relay.acting,
            &event::ChannelClose {
                ch: relay.ch,
                bytes_in: self.bytes_in,
                bytes_out: self.bytes_out,
                ..event::ChannelClose::default()
            },
        );
        relay.acting.with(|session| {
            session.log().bytes_in += self.bytes_in;
            session.log().bytes_out += self.bytes_out;
            let _ = session.log().commit();
        });
    }
}
