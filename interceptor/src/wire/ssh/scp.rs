//! The old protocol of `scp`, which runs as `scp -t TARGET` or `scp -f SOURCE…` on the server.
//!
//! A [`Watcher`] stands between both programs and moves in step with them: it takes a line of the
//! source only when the sink is at a line, and data only after the sink agreed to take it. What
//! arrives earlier waits. So a source that does not wait for answers cannot make the sink read
//! as a line what was taken for data here.
//!
//! Like [`super::sftp::Guard`] it does no input or output. Each file and directory is judged
//! before its line is passed on, in both directions; the refusal is an answer of the protocol,
//! and the other side goes on to the next file.
//!
//! Paths are as in the command, and a target's may be two: `scp -t up` stores `x` as `up` or as
//! `up/x`, by whether `up` is a directory, and the protocol does not tell. Both are then given and
//! both must be permitted. Nobody resolves links here: rules about canonical paths need SFTP.

mod line;
mod place;
mod told;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{BufMut, Bytes, BytesMut};

use self::line::{Line, MAX_LINE};
use self::place::Places;
pub use self::told::{Entry, File, Step, Ticket};
pub use super::sftp::{Decision, Direction};

/// Most bytes of one side that may lie here unread. A caller that heeds [`Watcher::is_full`]
/// stays far below.
const MAX_UNREAD: usize = 8 << 20;

/// Unread bytes of a side above which no more of it should be taken.
const ENOUGH: usize = 256 << 10;

/// Why the channel must end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScpError {
    /// The agent does not keep to the protocol.
    #[error("scp from the agent: {0}")]
    Agent(&'static str),
    /// The server's program does not.
    #[error("scp from the server: {0}")]
    Server(&'static str),
    /// It had to end before.
    #[error("the scp channel has ended")]
    Over,
}

/// What the sink's next answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Start,
    Times,
    File,
    Enter,
    Leave,
    Content,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The sink must answer.
    Answer(About),
    /// The source says what comes.
    Line,
    /// It is being judged.
    Judging,
    /// The content, of which so much is left.
    Data(u64),
    /// The source says whether its content was good.
    Verdict,
    /// Nothing more may come from the source.
    Over,
}

struct Running {
    entry: Entry,
    bytes: u64,
    hash: Context,
    failure: Option<String>,
}

/// One `scp -t` or `scp -f`.
pub struct Watcher {
    upload: bool,
    state: State,
    source: BytesMut,
    sink: BytesMut,
    steps: VecDeque<Step>,
    places: Places,
    /// The line that is judged.
    held: Option<(Ticket, Bytes, Entry)>,
    running: Option<Running>,
    last: u64,
    over: bool,
}

impl std::fmt::Debug for Watcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Watcher {
    /// For `scp -t TARGET`; `directory` if `-d` says that the target is one.
    pub fn upload(target: String, directory: bool) -> Self {
        Self::new(Places::new(vec![target], true, directory), true)
    }

    /// For `scp -f SOURCE…`.
    pub fn download(sources: Vec<String>) -> Self {
        Self::new(Places::new(sources, false, false), false)
    }

    fn new(places: Places, upload: bool) -> Self {
        Self {
            upload,
            state: State::Answer(About::Start),
            source: BytesMut::new(),
            sink: BytesMut::new(),
            steps: VecDeque::new(),
            places,
            held: None,
            running: None,
            last: 0,
            over: false,
        }
    }

    /// The agent is the source.
    pub fn is_upload(&self) -> bool {
        self.upload
    }

    /// The agent sent `bytes`. On an error the channel must end; steps that came before it may
    /// still be taken.
    pub fn from_agent(&mut self, bytes: &[u8]) -> Result<(), ScpError> {
        self.take(bytes, self.upload)
    }

    /// The server's program wrote `bytes` to its standard output; as [`Watcher::from_agent`].
    pub fn from_server(&mut self, bytes: &[u8]) -> Result<(), ScpError> {
        self.take(bytes, !self.upload)
    }

    /// The next step; `None` until more bytes or a decision come.
    #[allow(clippy::should_implement_trait, reason = "more can come after None")]
    pub fn next(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// No bytes should be taken from the agent for now.
    pub fn agent_is_full(&self) -> bool {
        self.unread(self.upload) >= ENOUGH
    }

    /// No bytes should be taken from the server for now.
    pub fn server_is_full(&self) -> bool {
        self.unread(!self.upload) >= ENOUGH
    }

    /// The channel ends: a file that is under way is told of by [`Watcher::next`].
    pub fn end(&mut self) {
        self.over = true;
        self.finish_file(Some("not finished".to_owned()));
    }

    /// Answers a [`Step::Judge`]. A ticket that is not open is ignored.
    pub fn decide(&mut self, ticket: Ticket, decision: Decision) -> Result<(), ScpError> {
        if self.over {
            return Err(ScpError::Over);
        }
        let Some((_, line, entry)) = self.held.take_if(|(held, ..)| *held == ticket) else {
            return Ok(());
        };
        match decision {
            Decision::Refuse { message } => self.refuse(&message),
            Decision::Permit { withhold: true } if !self.upload => {
                self.refuse("interceptor: the content of this file is withheld");
            }
            Decision::Permit { .. } => {
                self.sink_gets(line);
                self.announce(entry)?;
            }
        }
        self.run()
    }

    fn unread(&self, source: bool) -> usize {
        if source { self.source.len() } else { self.sink.len() }
    }

    fn take(&mut self, bytes: &[u8], source: bool) -> Result<(), ScpError> {
        if self.over {
            return Err(ScpError::Over);
        }
        let buffer = if source { &mut self.source } else { &mut self.sink };
        buffer.extend_from_slice(bytes);
        if buffer.len() > MAX_UNREAD {
            return self.fault(source, "too much is unread");
        }
        self.run()
    }

    fn fault<T>(&mut self, source: bool, what: &'static str) -> Result<T, ScpError> {
        self.over = true;
        Err(if source == self.upload { ScpError::Agent(what) } else { ScpError::Server(what) })
    }

    /// Goes on as far as what has come allows.
    fn run(&mut self) -> Result<(), ScpError> {
        loop {
            let before = (self.source.len(), self.sink.len(), self.state);
            match self.state {
                State::Answer(about) => self.on_answer(about)?,
                State::Line => self.on_line()?,
                State::Data(left) => self.on_data(left),
                State::Verdict => self.on_verdict()?,
                State::Over if !self.source.is_empty() => {
                    return self.fault(true, "something after the end");
                }
                State::Over | State::Judging => {}
            }
            self.unasked_answer()?;
            if before == (self.source.len(), self.sink.len(), self.state) {
                return Ok(());
            }
        }
    }

    /// An answer that nobody waits for would be taken for that to the next line. An agent may
    /// only be early; a server's program says so that it gives up.
    fn unasked_answer(&mut self) -> Result<(), ScpError> {
        if !self.upload || self.sink.is_empty() || matches!(self.state, State::Answer(_)) {
            return Ok(());
        }
        let words = self.sink.split().freeze();
        self.steps.push_back(Step::ToAgent(words));
        self.fault(false, "an answer that nobody waits for")
    }

    fn on_answer(&mut self, about: About) -> Result<(), ScpError> {
        let Some(&first) = self.sink.first() else { return Ok(()) };
        let length = if first == 0 { 1 } else { self.line_end(false)? };
        if length == 0 {
            return Ok(());
        }
        let answer = self.sink.split_to(length).freeze();
        let words = (first != 0).then(|| words(&answer));
        self.source_gets(answer);
        self.state = match (first, about) {
            // Any other first byte makes the source give up.
            (2.., _) => State::Over,
            (1, About::Start) => State::Over,
            (0, About::File) => State::Data(self.running.as_ref().map_or(0, |r| r.entry.size)),
            _ => State::Line,
        };
        match about {
            About::Content | About::File if self.state == State::Line || words.is_some() => {
                self.finish_file(words);
            }
            About::Enter if words.is_some() => {
                self.places.leave();
            }
            _ => {}
        }
        Ok(())
    }

    /// Length of the line at the start of a side's bytes with its end; zero if it is not there.
    fn line_end(&mut self, source: bool) -> Result<usize, ScpError> {
        let buffer = if source { &self.source } else { &self.sink };
        let within = &buffer[..buffer.len().min(MAX_LINE)];
        match memchr::memchr(b'\n', within) {
            Some(at) => Ok(at + 1),
            None if within.len() == MAX_LINE => self.fault(source, "a line is too long"),
            None => Ok(0),
        }
    }

    fn on_line(&mut self) -> Result<(), ScpError> {
        let length = self.line_end(true)?;
        if length == 0 {
            return Ok(());
        }
        let bytes = self.source.split_to(length).freeze();
        let line = match line::parse(&bytes[..length - 1]) {
            Ok(line) => line,
            Err(what) => return self.fault(true, what),
        };
        match line {
            Line::File { mode, size, name } => self.judge(bytes, name, (false, size, mode)),
            Line::Enter { mode, name } => self.judge(bytes, name, (true, 0, mode)),
            Line::Leave if self.places.leave() => self.pass(bytes, State::Answer(About::Leave)),
            Line::Leave => return self.fault(true, "the end of a directory that is not open"),
            Line::Times => self.pass(bytes, State::Answer(About::Times)),
            Line::Warning => self.pass(bytes, State::Line),
            Line::Fatal => self.pass(bytes, State::Over),
        }
        Ok(())
    }

    fn pass(&mut self, line: Bytes, then: State) {
        self.sink_gets(line);
        self.state = then;
    }

    fn judge(&mut self, line: Bytes, name: Vec<u8>, (directory, size, mode): (bool, u64, u32)) {
        let Ok(name) = String::from_utf8(name) else {
            return self.refuse("interceptor: a name is not UTF-8");
        };
        let (paths, certain) = self.places.of(&name);
        let direction = if self.upload { Direction::Write } else { Direction::Read };
        let entry = Entry { direction, directory, name, paths, certain, size, mode };
        self.last += 1;
        let ticket = Ticket(self.last);
        self.held = Some((ticket, line, entry.clone()));
        self.state = State::Judging;
        self.steps.push_back(Step::Judge { ticket, entry });
    }

    /// A permitted line was passed on.
    fn announce(&mut self, entry: Entry) -> Result<(), ScpError> {
        if entry.directory {
            self.state = State::Answer(About::Enter);
            if !self.places.enter(entry.paths) {
                return self.fault(true, "directories are too deep");
            }
            return Ok(());
        }
        self.state = State::Answer(About::File);
        self.running =
            Some(Running { entry, bytes: 0, hash: Context::new(&SHA256), failure: None });
        Ok(())
    }

    /// Answers in the sink's place that the entry is not taken; its source goes on to the next.
    fn refuse(&mut self, message: &str) {
        let mut answer = BytesMut::new();
        answer.put_u8(1);
        answer.extend(message.bytes().take(1000).map(|b| if b < b' ' { b' ' } else { b }));
        answer.put_u8(b'\n');
        let answer = answer.freeze();
        self.source_gets(answer.clone());
        if !self.upload {
            // The agent hears of it as of any file that its source cannot read.
            self.sink_gets(answer);
        }
        self.state = State::Line;
    }

    fn on_data(&mut self, left: u64) {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.source.len());
        if here > 0 {
            let data = self.source.split_to(here).freeze();
            if let Some(running) = &mut self.running {
                running.hash.update(&data);
                running.bytes += here as u64;
            }
            self.sink_gets(data);
        }
        let left = left - here as u64;
        self.state = if left == 0 { State::Verdict } else { State::Data(left) };
    }

    fn on_verdict(&mut self) -> Result<(), ScpError> {
        let Some(&first) = self.source.first() else { return Ok(()) };
        if first > 2 {
            return self.fault(true, "more data than was announced");
        }
        let length = if first == 0 { 1 } else { self.line_end(true)? };
        if length == 0 {
            return Ok(());
        }
        let verdict = self.source.split_to(length).freeze();
        if let (Some(running), true) = (&mut self.running, first != 0) {
            running.failure = Some(words(&verdict));
        }
        self.pass(verdict, if first == 2 { State::Over } else { State::Answer(About::Content) });
        Ok(())
    }

    fn finish_file(&mut self, failure: Option<String>) {
        let Some(running) = self.running.take() else { return };
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(running.hash.finish().as_ref());
        let failure = running.failure.or(failure);
        let complete = failure.is_none() && running.bytes == running.entry.size;
        let Running { entry, bytes, .. } = running;
        self.steps.push_back(Step::Ended(File { entry, bytes, sha256, complete, failure }));
    }

    fn sink_gets(&mut self, bytes: Bytes) {
        self.steps.push_back(match self.upload {
            true => Step::ToServer(bytes),
            false => Step::ToAgent(bytes),
        });
    }

    fn source_gets(&mut self, bytes: Bytes) {
        self.steps.push_back(match self.upload {
            true => Step::ToAgent(bytes),
            false => Step::ToServer(bytes),
        });
    }
}

/// A message of one side, for the record.
fn words(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    text.trim_matches(|c: char| c.is_control()).chars().take(200).collect()
}
