//! The sftp subsystem: every operation is judged, held and recorded by itself.
//!
//! The guard cuts the bytes of both sides into steps ([`super::sftp`]); this drives it. A held
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

use super::channel::{note, say};
use super::flow::{Event, Exit, Stream};
use super::permit::{Denied, Permitted, Silent, permit};
use super::relay::{Owed, Relay, Stop};
use super::sftp::{
    Decision, Direction, Guard, Limits, Operation, Step, Ticket, Touch, Transfer, Verb,
};
use crate::policy::ssh::{self, FileOp};
use crate::policy::{SshClass, SshFacts};
use crate::session::log::event;

/// Time that sshd gets to close a channel that the agent has closed.
const CLOSING: Duration = Duration::from_secs(10);

/// What an operation does at a place, in the words of rules.
fn uses(verb: Verb, touch: Touch) -> &'static [FileOp] {
    match (verb, touch) {
        (Verb::ReadLink, _) => &[FileOp::Readlink],
        (Verb::RealPath, _) => &[FileOp::Realpath],
        (Verb::MakeDirectory, _) => &[FileOp::Mkdir],
        (Verb::RemoveDirectory, _) => &[FileOp::Rmdir],
        // A name that a file's content goes on under: what may be read there, and is written.
        (Verb::Rename, Touch::Move) => &[FileOp::Rename],
        (Verb::Rename, _) => &[FileOp::Rename, FileOp::Write],
        (Verb::HardLink | Verb::Symlink, Touch::Look) => &[FileOp::Link],
        (Verb::HardLink | Verb::Symlink, Touch::Read) => &[FileOp::Link, FileOp::Read],
        (Verb::HardLink | Verb::Symlink, Touch::Write) => &[FileOp::Link, FileOp::Write],
        (Verb::HardLink | Verb::Symlink, _) => &[FileOp::Link, FileOp::Read, FileOp::Write],
        (_, Touch::Look) => &[FileOp::Stat],
        (_, Touch::List) => &[FileOp::List],
        (_, Touch::Read) => &[FileOp::Read],
        (_, Touch::Write) => &[FileOp::Write],
        (_, Touch::ReadWrite) => &[FileOp::Read, FileOp::Write],
        (_, Touch::Attributes) => &[FileOp::Setstat],
        (_, Touch::Remove) => &[FileOp::Remove],
        (_, Touch::Move) => &[FileOp::Read, FileOp::Remove],
    }
}

/// The facts of an operation.
fn facts(operation: &Operation) -> SshFacts {
    let mut all = SshFacts::new(SshClass::Sftp, operation.text());
    for place in &operation.places {
        for op in uses(operation.verb, place.touch) {
            let one = ssh::sftp(*op, &[place.path.as_bytes()]);
            all.files.extend(one.files);
            all.unseen = all.unseen.or(one.unseen);
        }
        // What a file shows cannot be masked on its way.
        all.binary |= place.touch.reads();
    }
    all
}

/// One sftp channel.
struct Files {
    relay: Relay,
    guard: Guard,
    judging: JoinSet<(Ticket, Operation, Result<Permitted, Denied>)>,
    /// The request by which each path was opened, for the record of its transfer.
    opened: HashMap<String, u64>,
    from_agent: Owed,
    from_server: Owed,
    bytes_in: u64,
    bytes_out: u64,
}

/// Most paths whose requests are remembered.
const MAX_OPENED: usize = 4096;

/// Relays one sftp channel to its end.
pub async fn run(relay: Relay) {
    let mut files = Files {
        relay,
        guard: Guard::new(Limits::default()),
        judging: JoinSet::new(),
        opened: HashMap::new(),
        from_agent: Owed::default(),
        from_server: Owed::default(),
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
            let room = !self.guard.is_full();
            tokio::select! {
                over = acting.over() => return Err(Stop::Words(over.words)),
                Some(judged) = self.judging.join_next() => {
                    if let Ok((ticket, operation, answer)) = judged {
                        self.decided(ticket, &operation, answer);
                    }
                }
                event = self.relay.upstream.flow.next() => {
                    if self.from_server(event).await? {
                        return Ok(());
                    }
                }
                event = self.relay.flow.next(), if room && !agent_closed => {
                    agent_closed = self.from_agent(event).await?;
                }
                () = tokio::time::sleep(CLOSING), if agent_closed => return Ok(()),
            }
        }
    }

    /// Does all that can be done now.
    async fn step(&mut self) -> Result<(), Stop> {
        while let Some(step) = self.guard.next() {
            match step {
                Step::ToServer(bytes) => self.relay.upstream.write.data_bytes(bytes).await?,
                Step::ToAgent(bytes) => self.to_agent(bytes).await?,
                Step::Judge { ticket, operation } => self.judge(ticket, operation).await,
                Step::Ended(transfer) => self.transferred(transfer),
            }
        }
        Ok(())
    }

    async fn to_agent(&mut self, bytes: Bytes) -> Result<(), Stop> {
        self.bytes_out += bytes.len() as u64;
        Ok(self.relay.write.data_bytes(bytes).await?)
    }

    /// Judges an operation: at once unless it has to wait for a human or the disk.
    async fn judge(&mut self, ticket: Ticket, operation: Operation) {
        let (acting, flow) = (Arc::clone(&self.relay.acting), Arc::clone(&self.relay.flow));
        let ch = self.relay.ch;
        let mut judging = Box::pin(async move {
            let facts = facts(&operation);
            let answer = permit(&acting, ch, "sftp", &facts, &flow, &Silent).await;
            (ticket, operation, answer)
        });
        match poll_fn(|cx| Poll::Ready(judging.as_mut().poll(cx))).await {
            Poll::Ready((ticket, operation, answer)) => self.decided(ticket, &operation, answer),
            Poll::Pending => drop(self.judging.spawn(judging)),
        }
    }

    fn decided(
        &mut self,
        ticket: Ticket,
        operation: &Operation,
        answer: Result<Permitted, Denied>,
    ) {
        let decision = match answer {
            Ok(permitted) => {
                if operation.verb == Verb::Open && self.opened.len() < MAX_OPENED {
                    let path = operation.places.first().map(|p| p.path.clone());
                    self.opened.insert(path.unwrap_or_default(), permitted.request);
                }
                Decision::Permit { withhold: false }
            }
            Err(Denied::Refused(why)) => {
                Decision::Refuse { message: self.relay.acting.words(&why) }
            }
            Err(Denied::Gone) => Decision::Refuse { message: String::new() },
        };
        self.guard.decide(ticket, decision);
    }

    fn transferred(&mut self, transfer: Transfer) {
        let n = self.opened.get(&transfer.path).copied().unwrap_or_default();
        let sha256: String = transfer.sha256.iter().map(|b| format!("{b:02x}")).collect();
        note(&self.relay.acting, &event::FileDone {
            n,
            ch: self.relay.ch,
            op: Cow::Borrowed(match transfer.direction {
                Direction::Read => "read",
                Direction::Write => "write",
            }),
            path: Cow::Owned(transfer.path),
            bytes: transfer.bytes,
            sha256: Cow::Owned(sha256),
            complete: transfer.complete,
        });
    }

    /// Something came from sftp-server; true when the channel is at its end.
    async fn from_server(&mut self, event: Event) -> Result<bool, Stop> {
        match event {
            Event::Data(Stream::Data, bytes) => {
                let broken = |error: super::sftp::SftpError| Stop::Words(error.to_string());
                self.guard.from_server(&bytes).map_err(broken)?;
                if let Some(grant) = self.from_server.add(bytes.len()) {
                    self.relay.upstream.write.grant_window(grant).await?;
                }
            }
            Event::Data(Stream::Stderr, bytes) => {
                let count = bytes.len();
                let write = &self.relay.write;
                write.extended_data_bytes(super::channel::STDERR, bytes.freeze()).await?;
                if let Some(grant) = self.from_server.add(count) {
                    self.relay.upstream.write.grant_window(grant).await?;
                }
            }
            Event::Eof => {
                self.step().await?;
                self.relay.write.eof().await?;
            }
            Event::Exit(exit) => self.exit(exit).await?,
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
        note(&self.relay.acting, &event::ChannelExit {
            ch: self.relay.ch,
            n: 0,
            status: Some(status),
            signal: None,
            duration_us: crate::session::micros(self.relay.began.elapsed()),
        });
        Ok(self.relay.write.exit_status(status).await?)
    }

    /// Something came from the agent; true when it has closed the channel.
    async fn from_agent(&mut self, event: Event) -> Result<bool, Stop> {
        match event {
            Event::Data(Stream::Data, bytes) => {
                let acting = &self.relay.acting;
                let broken = |error: super::sftp::SftpError| {
                    Stop::Words(acting.words(&format!("SFTP_MALFORMED: {error}")))
                };
                self.guard.from_agent(&bytes).map_err(broken)?;
                self.bytes_in += bytes.len() as u64;
                if let Some(grant) = self.from_agent.add(bytes.len()) {
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
        self.guard.end();
        while let Some(step) = self.guard.next() {
            if let Step::Ended(transfer) = step {
                self.transferred(transfer);
            }
        }
        let relay = &self.relay;
        let _ = relay.upstream.write.close().await;
        if let Some(Stop::Words(words)) = stop {
            let told = async {
                say(&relay.write, &words).await;
                let _ = relay.write.exit_status(255).await;
                let _ = relay.write.eof().await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(200), told).await;
        }
        let _ = relay.write.close().await;
        note(&relay.acting, &event::ChannelClose {
            ch: relay.ch,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            ..event::ChannelClose::default()
        });
        relay.acting.with(|session| {
            session.log().bytes_in += self.bytes_in;
            session.log().bytes_out += self.bytes_out;
            let _ = session.log().commit();
        });
    }
}
