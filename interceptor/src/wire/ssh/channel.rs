//! A session channel: one program, from the request to its exit.
//!
//! A refusal is said on standard error and ends with a status, as a program's own failure
//! would: the client shows it and goes on.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use bytes::Bytes;
use russh::ChannelWriteHalf;
use russh::server::Msg;

use super::acting::{Acting, Place};
use super::connection::Terminal;
use super::flow::{Event, Flow, Taker};
use super::machine::Machine;
use super::permit::{Denied, Permitted, Tell, permit};
use super::relay::{Relay, Shape};
use super::reverse::{self, Wishes};
use super::upstream::{UpstreamChannel, UpstreamError};
use crate::policy::{Effect, SshFacts, ssh};
use crate::session::log::event;

/// `SSH_EXTENDED_DATA_STDERR` (RFC 4254, section 5.2).
pub const STDERR: u32 = 1;

/// Exit status of what was refused: found, and not to be executed (POSIX, "Exit Status for
/// Commands").
const REFUSED: u32 = 126;

/// Exit status when what was permitted could not be started.
const FAILED: u32 = 255;

/// What a channel asks for (RFC 4254, section 6.5).
#[derive(Debug, Clone)]
pub enum Program {
    /// A command, as the agent wrote it.
    Exec(Arc<[u8]>),
    /// The login shell.
    Shell,
    /// A subsystem.
    Subsystem(String),
}

/// Everything that a channel starts with.
#[derive(Debug)]
pub struct Start {
    /// Its place among the connection's channels.
    pub place: Place,
    /// What the agent sends.
    pub flow: Arc<Flow>,
    /// Where the agent reads.
    pub write: ChannelWriteHalf<Msg>,
    /// Variables that were asked for.
    pub variables: Vec<(String, String)>,
    /// The terminal that was asked for.
    pub terminal: Option<Terminal>,
    /// What sshd is to open back.
    pub wishes: Wishes,
    /// What is to run.
    pub program: Program,
}

/// Says on standard error why nothing ran, and closes.
pub async fn refuse(write: &ChannelWriteHalf<Msg>, words: &str) {
    end(write, words, REFUSED).await;
}

async fn end(write: &ChannelWriteHalf<Msg>, words: &str, status: u32) {
    say(write, words).await;
    let _ = write.exit_status(status).await;
    let _ = write.eof().await;
    let _ = write.close().await;
}

/// A line on the agent's standard error. The carriage return is for raw terminals.
pub async fn say(write: &ChannelWriteHalf<Msg>, words: &str) {
    let line = Bytes::from(format!("{words}\r\n"));
    let _ = write.extended_data_bytes(STDERR, line).await;
}

impl Tell for ChannelWriteHalf<Msg> {
    async fn tell(&self, words: String) {
        say(self, &words).await;
    }
}

/// Judges what a channel asks for, runs it, and records it, to its end.
pub async fn run(start: Start) {
    let Start { place, flow, write, variables, terminal, wishes, program } = start;
    let _taker = Taker(Arc::clone(&flow));
    let acting = Arc::clone(&place.acting);
    let ch = acting.next_channel();
    note(&acting, &event::ChannelOpen { ch, kind: Cow::Borrowed("session"), detail: None });
    let (mut facts, via) = facts(&acting, &program).await;
    let wants_terminal = terminal.is_some();
    let machine = match &program {
        Program::Subsystem(name) if name == "sftp" => Some(Machine::sftp()),
        // Through a terminal nothing follows what scp is sent.
        Program::Exec(_) if !wants_terminal => Machine::scp(&facts),
        _ => None,
    };
    if machine.as_ref().is_some_and(Machine::judges_uploads) {
        facts.announce();
    }
    let permitted = match terminal_denied(&acting, terminal.as_ref()) {
        Some(why) => Err(Denied::Refused(why)),
        None if matches!(&program, Program::Subsystem(name) if name == "sftp") => Ok(None),
        None => permit(&acting, ch, via, &facts, &flow, &write).await.map(Some),
    };
    let permitted = match permitted {
        Ok(permitted) => permitted,
        Err(Denied::Gone) => return drop(write.close().await),
        Err(Denied::Refused(why)) => return refuse(&write, &acting.words(&why)).await,
    };
    let began = Instant::now();
    let opened = open(&acting, ch, &variables, terminal.as_ref()).await;
    let started = match opened {
        Ok(upstream) => {
            // Programs are told at their start, so it comes before.
            let prepared = reverse::prepare(&acting, ch, &flow, &write, &upstream, &wishes).await;
            match prepared {
                Ok(()) => begin(upstream, &program).await,
                Err(why) => Err(why),
            }
        }
        Err(why) => Err(why),
    };
    let upstream = match started {
        Ok(upstream) => upstream,
        Err(why) => return end(&write, &acting.words(&why), FAILED).await,
    };
    let binary = permitted.as_ref().is_some_and(|p| p.ruling.binary);
    let shape = shape(binary, wants_terminal);
    let columns = AtomicU32::new(terminal.map_or(0, |terminal| terminal.size[0]));
    let (secret, exits) = (false, true);
    Relay {
        acting,
        ch,
        flow,
        write,
        upstream,
        permitted,
        shape,
        columns,
        secret,
        exits,
        machine,
        began,
    }
    .run()
    .await;
    drop(place);
}

/// Appends an event that precedes nothing by itself: durable with the next request's commit.
pub fn note<B: crate::record::Body>(acting: &Acting, body: &B) {
    if let Some(Err(error)) = acting.with(|session| session.log().append(body)) {
        tracing::error!(session = %acting.id(), %error, "record");
        acting.end("store", "RECORD_UNAVAILABLE: the session cannot be recorded any more");
    }
}

async fn facts(acting: &Arc<Acting>, program: &Program) -> (SshFacts, &'static str) {
    match program {
        Program::Exec(command) => {
            let read = acting.parts.reader.exec(Arc::clone(command), acting.shell.clone());
            let mut facts = read.await;
            if let Some(home) = &acting.home {
                facts.at_home(home);
            }
            (facts, "exec")
        }
        Program::Shell => (ssh::shell(), "shell"),
        Program::Subsystem(name) => (ssh::subsystem(name), "subsystem"),
    }
}

/// A terminal that was asked for before anybody was known is judged now.
fn terminal_denied(acting: &Acting, terminal: Option<&Terminal>) -> Option<String> {
    let facts = ssh::pty(&terminal?.term);
    let ruling = acting.with(|session| session.rule_ssh(&facts))?;
    (ruling.effect != Effect::Allow).then(|| {
        ruling.denial.unwrap_or_else(|| "a terminal needs a human and cannot wait for one".into())
    })
}

/// How the bytes of a program are treated.
fn shape(binary: bool, terminal: bool) -> Shape {
    match (terminal, binary) {
        (true, _) => Shape::Terminal,
        (false, true) => Shape::Binary,
        (false, false) => Shape::Text,
    }
}

/// Opens a channel on sshd, with variables and a terminal. The error is for the agent.
async fn open(
    acting: &Arc<Acting>,
    ch: u32,
    variables: &[(String, String)],
    terminal: Option<&Terminal>,
) -> Result<UpstreamChannel, String> {
    let upstream = acting.upstream().await?;
    let failed = |error: UpstreamError| {
        tracing::warn!(session = %acting.id(), %error, "channel refused by sshd");
        format!("SERVICE_UNAVAILABLE: {error}")
    };
    let channel = upstream.session().await.map_err(failed)?;
    let broken = |error: russh::Error| failed(UpstreamError::Ssh(error));
    for (name, value) in variables {
        let ruling = acting.with(|session| session.rule_ssh(&ssh::env(name)));
        let allowed = ruling.is_some_and(|r| r.effect == Effect::Allow);
        if !allowed {
            // As sshd does with what AcceptEnv does not name: it is not set, and that is all.
            acting.with(|session| session.refuse_ssh(&ssh::env(name), "not passed on"));
        } else {
            channel.write.set_env(false, name.as_str(), value.as_str()).await.map_err(broken)?;
            let value = acting.with(|session| session.scrub(value)).unwrap_or_default();
            note(acting, &event::ChannelEnv { ch, name: name.into(), value: value.into() });
        }
    }
    if let Some(Terminal { term, size: [cols, rows, width, height], modes }) = terminal {
        let asked = channel.write.request_pty(true, term, *cols, *rows, *width, *height, modes);
        asked.await.map_err(broken)?;
        if !answered(&channel).await {
            return Err("SERVICE_UNAVAILABLE: sshd gives no terminal".into());
        }
        note(acting, &event::ChannelPty { ch, term: term.into(), cols: *cols, rows: *rows });
    }
    Ok(channel)
}

/// Starts the program on a channel of sshd's. The error is for the agent.
async fn begin(channel: UpstreamChannel, program: &Program) -> Result<UpstreamChannel, String> {
    let asked = match program {
        Program::Exec(command) => channel.write.exec(true, command.to_vec()).await,
        Program::Shell => channel.write.request_shell(true).await,
        Program::Subsystem(name) => channel.write.request_subsystem(true, name.as_str()).await,
    };
    asked.map_err(|error| format!("SERVICE_UNAVAILABLE: {}", UpstreamError::Ssh(error)))?;
    if !answered(&channel).await {
        return Err("SERVICE_UNAVAILABLE: sshd does not start it".into());
    }
    Ok(channel)
}

/// sshd's answer to a request; nothing else can come before it.
pub async fn answered(channel: &UpstreamChannel) -> bool {
    loop {
        match channel.flow.next().await {
            Event::Reply(good) => return good,
            Event::Closed | Event::Exit(_) => return false,
            _ => {}
        }
    }
}

/// The request that a permitted program counts as; sftp's operations count each by itself.
pub fn request_of(permitted: Option<&Permitted>) -> u64 {
    permitted.map_or(0, |p| p.request)
}
