//! A running channel: both directions, masked and recorded, until either side ends.
//!
//! The two directions are futures of one task. Each waits for its own reader only, so that a
//! program that does not read its input still gets rid of its output, and what was consumed is
//! what gives the sender new window.

use std::borrow::Cow;
use std::future::pending;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use russh::server::Msg;
use russh::{ChannelWriteHalf, Sig};
use tokio::time::sleep_until;

use super::acting::Acting;
use super::channel::{STDERR, note, request_of, say};
use super::flow::{Event, Exit, Flow, Stream};
use super::machine::Machine;
use super::permit::Permitted;
use super::tape::{Sum, Tape};
use super::typed::Typed;
use super::upstream::UpstreamChannel;
use crate::mask::{Detectors, StreamMasker, TerminalMasker};
use crate::session::hold::GrantRef;
use crate::session::log::{RecordError, event};

/// Consumed bytes after which the sender gets new window.
const GRANT: u32 = 64 << 10;

/// How long what may be the beginning of a masked value waits for the rest, where nobody types.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same at a terminal.
const PATIENCE_AT_TERMINAL: Duration = Duration::from_millis(50);

/// A timer that comes later than this says that we stood still ourselves.
const LATE: Duration = Duration::from_millis(20);

/// Exit status of what was ended from here.
const ENDED: u32 = 255;

/// How long the end of output waits for the exit that belongs to it.
const EXIT_TIME: Duration = Duration::from_millis(500);

/// Time that sshd gets to close a channel that the agent has closed.
const CLOSING: Duration = Duration::from_secs(10);

/// How the bytes of a channel are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Text in two streams.
    Text,
    /// A terminal.
    Terminal,
    /// Whatever it is, a changed byte would break it.
    Binary,
}

/// A channel on which a program runs.
#[derive(Debug)]
pub struct Relay {
    /// The connection.
    pub acting: Arc<Acting>,
    /// The channel's number.
    pub ch: u32,
    /// What the agent sends.
    pub flow: Arc<Flow>,
    /// Where the agent reads.
    pub write: ChannelWriteHalf<Msg>,
    /// The program's side.
    pub upstream: UpstreamChannel,
    /// Under what it runs; none for sftp, whose operations are permitted one by one.
    pub permitted: Option<Permitted>,
    /// How its bytes are treated.
    pub shape: Shape,
    /// Width of its terminal; 0 where there is none.
    pub columns: AtomicU32,
    /// Whether its bytes must not be kept, only counted and hashed.
    pub secret: bool,
    /// Whether a program runs on it that will exit.
    pub exits: bool,
    /// The file protocol that it speaks, when it does.
    pub machine: Option<Machine>,
    /// When it was forwarded.
    pub began: Instant,
}

/// Why a direction stopped.
#[derive(Debug)]
pub enum Stop {
    /// Its reader is gone.
    Gone,
    /// It cannot be recorded.
    Record(RecordError),
    /// It has to end, for this reason.
    Words(String),
}

impl From<russh::Error> for Stop {
    fn from(_: russh::Error) -> Self {
        Self::Gone
    }
}

impl From<RecordError> for Stop {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// Bytes consumed that the sender has no new window for yet.
#[derive(Debug, Default)]
pub struct Owed(u32);

impl Owed {
    /// Adds, and says what to grant now.
    pub fn add(&mut self, bytes: usize) -> Option<u32> {
        self.0 = self.0.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.0 >= GRANT).then(|| std::mem::take(&mut self.0))
    }
}

/// The input's place in the record.
enum Input {
    Plain(Tape),
    Typed(Typed),
}

impl Input {
    fn push(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        match self {
            Self::Plain(tape) => tape.push(bytes),
            Self::Typed(typed) => typed.typed(bytes),
        }
    }

    fn shown(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Typed(typed) => typed.shown(bytes),
        }
    }

    fn due(&self) -> Option<tokio::time::Instant> {
        match self {
            Self::Plain(tape) => tape.due(),
            Self::Typed(typed) => typed.due(),
        }
    }

    fn write(&mut self) -> Result<(), RecordError> {
        match self {
            Self::Plain(tape) => tape.write(),
            Self::Typed(typed) => typed.write(),
        }
    }

    fn finish(self) -> Result<Sum, RecordError> {
        match self {
            Self::Plain(tape) => tape.finish(),
            Self::Typed(typed) => typed.finish(),
        }
    }
}

/// A stream's masker, where rules ask for one.
enum Masker {
    None,
    Text(Box<StreamMasker>),
    Terminal(Box<TerminalMasker>),
}

impl Masker {
    fn new(detectors: Option<&Arc<Detectors>>, shape: Shape) -> Self {
        match (detectors, shape) {
            (Some(d), Shape::Text) => Self::Text(Box::new(StreamMasker::new(Arc::clone(d)))),
            (Some(d), Shape::Terminal) => {
                Self::Terminal(Box::new(TerminalMasker::new(Arc::clone(d))))
            }
            // Masks that apply made policy refuse what is binary, or a human let it run whole.
            _ => Self::None,
        }
    }

    fn push(&mut self, bytes: BytesMut) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::None => return bytes.freeze(),
            Self::Text(masker) => masker.push(&bytes, &mut out),
            Self::Terminal(masker) => masker.push(&bytes, &mut out),
        }
        out.freeze()
    }

    fn flush(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::None => {}
            Self::Text(masker) => masker.flush(&mut out),
            Self::Terminal(masker) => masker.flush(&mut out),
        }
        out.freeze()
    }

    /// What is shown from now on wraps at this width.
    fn resize(&mut self, columns: u32) {
        if let Self::Terminal(masker) = self {
            masker.resize(columns);
        }
    }

    fn held(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Text(masker) => masker.held(),
            Self::Terminal(masker) => masker.held(),
        }
    }

    fn masked(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Text(masker) => masker.hits().found(),
            Self::Terminal(masker) => masker.hits().found(),
        }
    }
}

async fn at(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// Resolves when a grant is withdrawn, never when there is none or its time just ends.
pub async fn withdrawn(grant: Option<&mut GrantRef>) {
    let gone = match grant {
        Some(grant) => grant.withdrawn().await,
        None => false,
    };
    if !gone {
        pending().await
    }
}

impl Relay {
    /// Over a channel of bytes of any kind, on which no program runs that we know of.
    pub fn of_bytes(
        acting: Arc<Acting>,
        ch: u32,
        flow: Arc<Flow>,
        write: ChannelWriteHalf<Msg>,
        upstream: UpstreamChannel,
        permitted: Permitted,
    ) -> Self {
        Self {
            acting,
            ch,
            flow,
            write,
            upstream,
            permitted: Some(permitted),
            shape: Shape::Binary,
            columns: AtomicU32::new(0),
            secret: false,
            exits: false,
            machine: None,
            began: Instant::now(),
        }
    }

    /// Runs it to its end.
    pub async fn run(mut self) {
        match self.machine.take() {
            Some(machine) => super::files::run(self, machine).await,
            None => self.pipe().await,
        }
    }

    fn tape(&self, stream: &'static str) -> Tape {
        let tape = Tape::new(&self.acting, self.ch, stream);
        if self.secret { tape.unkept() } else { tape }
    }

    async fn pipe(mut self) {
        let mut grant = self.permitted.as_mut().and_then(|p| p.grant.take());
        let limits = self.permitted.as_ref().map(|p| p.ruling.verdict.limits).unwrap_or_default();
        let input = match self.shape {
            Shape::Terminal => Input::Typed(Typed::new(self.tape("in"))),
            _ => Input::Plain(self.tape("in")),
        };
        let input = Mutex::new(input);
        let mut out = Output::new(&self, limits.bytes, &input);
        let deadline = limits.seconds.map(|s| tokio::time::Instant::now() + Duration::from_secs(s));
        let stop = {
            let inbound = self.inbound(&input);
            let outbound = out.run();
            tokio::pin!(inbound, outbound);
            let mut reading = true;
            loop {
                tokio::select! {
                    biased;
                    over = self.acting.over() => {
                        break Some(Stop::Words(self.acting.words(&over.words)));
                    }
                    stop = &mut outbound => break stop.err(),
                    stop = &mut inbound, if reading => match stop {
                        // The agent closed the channel; sshd answers by closing it too.
                        Ok(()) => reading = false,
                        Err(Stop::Gone) => reading = false,
                        Err(stop) => break Some(stop),
                    },
                    () = withdrawn(grant.as_mut()) => {
                        let words = "GRANT_WITHDRAWN: the grant under which it ran was withdrawn";
                        break Some(Stop::Words(self.acting.words(words)));
                    }
                    () = at(deadline) => {
                        let words = "LIMIT: it ran longer than a rule lets it";
                        break Some(Stop::Words(self.acting.words(words)));
                    }
                    () = tokio::time::sleep(CLOSING), if !reading => break Some(Stop::Gone),
                }
            }
        };
        let sums = out.finish();
        self.end(stop).await;
        let input = input.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
        self.close(input, sums);
    }

    /// What the agent sends, to the program.
    async fn inbound(&self, input: &Mutex<Input>) -> Result<(), Stop> {
        let lock = || input.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owed = Owed::default();
        loop {
            let due = lock().due();
            let event = tokio::select! {
                event = self.flow.next() => event,
                () = at(due) => {
                    lock().write()?;
                    continue;
                }
            };
            match event {
                Event::Data(_, bytes) => {
                    let count = bytes.len();
                    lock().push(&bytes)?;
                    self.upstream.write.data_bytes(bytes.freeze()).await?;
                    if let Some(grant) = owed.add(count) {
                        self.write.grant_window(grant).await?;
                    }
                }
                Event::Eof => self.upstream.write.eof().await?,
                Event::Resize([cols, rows, width, height]) => {
                    note(&self.acting, &event::ChannelResize { ch: self.ch, cols, rows });
                    // Before the program knows, so that all that it draws for the new size is
                    // read at that size.
                    self.columns.store(cols, Ordering::Release);
                    self.upstream.write.window_change(cols, rows, width, height).await?;
                }
                Event::Signal(name) => {
                    let seen = event::ChannelSignal { ch: self.ch, name: name.as_str().into() };
                    note(&self.acting, &seen);
                    self.upstream.write.signal(signal(&name)).await?;
                }
                Event::Closed => {
                    let _ = self.upstream.write.close().await;
                    return Ok(());
                }
                Event::Reply(_) | Event::Exit(_) => {}
            }
        }
    }

    /// Closes both sides; with a reason of our own the agent is told.
    async fn end(&self, stop: Option<Stop>) {
        let words = match stop {
            None | Some(Stop::Gone) => None,
            Some(Stop::Words(words)) => Some(words),
            Some(Stop::Record(error)) => {
                tracing::error!(session = %self.acting.id(), %error, "channel ended: it cannot be recorded");
                let words = "RECORD_UNAVAILABLE: the session cannot be recorded any more";
                self.acting.end("store", words);
                Some(self.acting.words(words))
            }
        };
        let _ = self.upstream.write.close().await;
        let words = words.or_else(|| self.acting.end_with_service());
        if let Some(words) = words {
            // A reader that stands still is not waited for.
            let told = async {
                say(&self.write, &words).await;
                let _ = self.write.exit_status(ENDED).await;
                let _ = self.write.eof().await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(200), told).await;
        }
        let _ = self.write.close().await;
    }

    fn close(&self, input: Result<Sum, RecordError>, sums: Sums) {
        let (input, out, err) = (input.unwrap_or_default(), sums.out, sums.err);
        note(
            &self.acting,
            &event::ChannelClose {
                ch: self.ch,
                bytes_in: input.bytes,
                bytes_out: out.bytes,
                bytes_err: err.bytes,
                blake3_in: Cow::Owned(input.blake3),
                blake3_out: Cow::Owned(out.blake3),
                blake3_err: Cow::Owned(err.blake3),
                masked: sums.masked,
            },
        );
        self.acting.with(|session| {
            session.log().bytes_in += input.bytes;
            session.log().bytes_out += out.bytes + err.bytes;
            let _ = session.log().commit();
        });
    }
}

/// A signal by its name (RFC 4254, section 6.10).
fn signal(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}

/// What the program's streams came to.
#[derive(Debug, Default)]
struct Sums {
    out: Sum,
    err: Sum,
    masked: u64,
}

/// What the program shows, to the agent.
struct Output<'a> {
    acting: &'a Arc<Acting>,
    ch: u32,
    request: u64,
    began: Instant,
    write: &'a ChannelWriteHalf<Msg>,
    upstream: &'a UpstreamChannel,
    input: &'a Mutex<Input>,
    streams: [(Masker, Tape); 2],
    columns: &'a AtomicU32,
    patience: Duration,
    /// When what is held back goes out as it is.
    hold_until: Option<tokio::time::Instant>,
    /// Bytes that may still be shown.
    left: Option<u64>,
    /// Whether an exit is to come. The end of output is told with it, since a client with nothing
    /// more to say closes the channel at the end, and the exit would come too late.
    exits: bool,
    /// When the end of output is told at the latest.
    eof_at: Option<tokio::time::Instant>,
}

impl<'a> Output<'a> {
    fn new(relay: &'a Relay, limit: Option<u64>, input: &'a Mutex<Input>) -> Self {
        let detectors = relay.permitted.as_ref().and_then(|p| p.ruling.detectors.as_ref());
        let stream = |name| {
            let tape = relay.tape(name);
            (Masker::new(detectors, relay.shape), tape)
        };
        Self {
            acting: &relay.acting,
            ch: relay.ch,
            request: request_of(relay.permitted.as_ref()),
            began: relay.began,
            write: &relay.write,
            upstream: &relay.upstream,
            input,
            streams: [stream("out"), stream("err")],
            columns: &relay.columns,
            patience: match relay.shape {
                Shape::Terminal => PATIENCE_AT_TERMINAL,
                _ => PATIENCE,
            },
            hold_until: None,
            left: limit,
            exits: relay.exits,
            eof_at: None,
        }
    }

    async fn run(&mut self) -> Result<(), Stop> {
        let mut owed = Owed::default();
        loop {
            let due = self.streams.iter().filter_map(|(_, tape)| tape.due()).min();
            let event = tokio::select! {
                // What has come is looked at before patience ends: a reader that stood still must
                // not make half a value go out.
                biased;
                event = self.upstream.flow.next() => event,
                () = at(self.hold_until) => {
                    match self.hold_until.and_then(|due| again(due, self.patience)) {
                        None => self.flush().await?,
                        until => self.hold_until = until,
                    }
                    continue;
                }
                () = at(self.eof_at) => {
                    self.tell_eof().await?;
                    continue;
                }
                () = at(due) => {
                    self.streams.iter_mut().try_for_each(|(_, tape)| tape.write())?;
                    continue;
                }
            };
            match event {
                Event::Data(stream, bytes) => {
                    let count = bytes.len();
                    self.input.lock().unwrap_or_else(PoisonError::into_inner).shown(&bytes)?;
                    let masker = &mut self.streams[index(stream)].0;
                    masker.resize(self.columns.load(Ordering::Acquire));
                    let shown = masker.push(bytes);
                    self.send(stream, shown).await?;
                    let held = self.streams.iter().any(|(masker, _)| masker.held() > 0);
                    let now = tokio::time::Instant::now();
                    self.hold_until = held.then(|| now + self.patience);
                    for (_, tape) in &mut self.streams {
                        if tape.due().is_some_and(|due| due <= now) {
                            tape.write()?;
                        }
                    }
                    if let Some(grant) = owed.add(count) {
                        self.upstream.write.grant_window(grant).await?;
                    }
                }
                Event::Eof => {
                    self.flush().await?;
                    let wait = if self.exits { EXIT_TIME } else { Duration::ZERO };
                    self.eof_at = Some(tokio::time::Instant::now() + wait);
                }
                Event::Exit(exit) => {
                    self.exits = false;
                    self.exit(exit).await?;
                    self.tell_eof().await?;
                }
                Event::Closed => {
                    self.flush().await?;
                    return self.tell_eof().await;
                }
                Event::Reply(_) | Event::Resize(_) | Event::Signal(_) => {}
            }
        }
    }

    async fn tell_eof(&mut self) -> Result<(), Stop> {
        if self.eof_at.take().is_some() {
            self.write.eof().await?;
        }
        Ok(())
    }

    async fn send(&mut self, stream: Stream, bytes: Bytes) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(left) = self.left.as_mut() {
            *left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                Stop::Words(self.acting.words("LIMIT: it shows more bytes than a rule lets it"))
            })?;
        }
        self.streams[index(stream)].1.push(&bytes)?;
        match stream {
            Stream::Data => self.write.data_bytes(bytes).await?,
            Stream::Stderr => self.write.extended_data_bytes(STDERR, bytes).await?,
        }
        Ok(())
    }

    /// Lets go of what maskers hold back.
    async fn flush(&mut self) -> Result<(), Stop> {
        self.hold_until = None;
        for stream in [Stream::Data, Stream::Stderr] {
            let rest = self.streams[index(stream)].0.flush();
            self.send(stream, rest).await?;
        }
        Ok(())
    }

    /// Passes the end of the program on. It is not the end of its output: sshd may tell it between
    /// two packets of what is still in the pipe, so maskers keep what they hold.
    async fn exit(&mut self, exit: Exit) -> Result<(), Stop> {
        let (status, signal) = match &exit {
            Exit::Status(status) => (Some(*status), None),
            Exit::Signal { name, .. } => (None, Some(Cow::Borrowed(name.as_str()))),
        };
        self.streams.iter_mut().try_for_each(|(_, tape)| tape.write())?;
        note(
            self.acting,
            &event::ChannelExit {
                ch: self.ch,
                n: self.request,
                status,
                signal,
                duration_us: crate::session::micros(self.began.elapsed()),
            },
        );
        match exit {
            Exit::Status(status) => self.write.exit_status(status).await?,
            Exit::Signal { name, core_dumped, message } => {
                self.write
                    .exit_signal(self::signal(&name), core_dumped, message, String::new())
                    .await?;
            }
        }
        Ok(())
    }

    fn finish(self) -> Sums {
        let masked = self.streams.iter().map(|(masker, _)| masker.masked()).sum();
        let [(_, out), (_, err)] = self.streams;
        Sums {
            out: out.finish().unwrap_or_default(),
            err: err.finish().unwrap_or_default(),
            masked,
        }
    }
}

/// Until when to wait once more, after a wait until `due` that does not count: on a machine under load
/// this thread may stand still for longer than the patience, and what came meanwhile is still in a
/// socket that nobody has read. Half a value would go out for that.
fn again(due: tokio::time::Instant, patience: Duration) -> Option<tokio::time::Instant> {
    let now = tokio::time::Instant::now();
    (now.saturating_duration_since(due) > LATE).then(|| now + patience)
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Data => 0,
        Stream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_that_ended_late_does_not_count() {
        let now = tokio::time::Instant::now();
        assert_eq!(again(now, PATIENCE), None);
        let until = again(now - Duration::from_secs(1), PATIENCE).unwrap_or(now);
        assert!(until >= now + PATIENCE);
    }
}
