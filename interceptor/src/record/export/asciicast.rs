//! A channel of an SSH session as an asciicast, version 3: a header, then events with the time
//! since the one before, on a line each.
//!
//! | code | holds |
//! |---|---|
//! | `o` | what was shown, as the operator's own terminal may be shown it ([`Screen`]) |
//! | `i` | what was typed, unless it was typed unseen |
//! | `r` | a new size of the terminal |
//! | `m` | verdicts, holds and their outcome, masks, signals, alerts: everything beside the picture |
//! | `x` | the exit status; 128 and the signal's number for a signal |
//!
//! Text is JSON's, so UTF-8: a character that was split over events comes with its last byte,
//! and bytes that are none are replaced. Where no terminal was there, lines get their carriage
//! returns, and each command stands above its output. The JSON lines have every byte.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use anyhow::bail;
use serde_json::{Value, json};

use crate::record::event::*;
use crate::record::reader::Reader;
use crate::record::screen::Screen;
use crate::record::store::StoredEvent;
use crate::record::summary::Summary;

/// Longest label of a marker, in characters.
const MAX_LABEL: usize = 200;

/// Writes one session, or one channel of it: by default the first with a terminal, and all
/// when none has one.
pub(super) fn session(
    reader: &Reader,
    session: &Summary,
    channel: Option<u32>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let Some(scene) = Scene::find(reader, session, channel)? else {
        match channel {
            Some(ch) => bail!("session {} has no channel {ch}", session.id),
            None => bail!("session {} has no channels: asciicast is for SSH", session.id),
        }
    };
    let mut result = writeln!(out, "{}", scene.header(session));
    let mut cast = Cast::new(scene, out);
    reader.events(session.number, 0, |e| {
        if result.is_ok() {
            result = cast.take(e);
        }
    })?;
    result?;
    Ok(cast.finish()?)
}

/// What is played, and where.
#[derive(Debug, Clone)]
struct Scene {
    channel: Option<u32>,
    start_us: i64,
    term: String,
    cols: u32,
    rows: u32,
    command: Option<String>,
}

impl Scene {
    fn find(
        reader: &Reader,
        session: &Summary,
        channel: Option<u32>,
    ) -> anyhow::Result<Option<Self>> {
        let channel = match channel {
            Some(channel) => Some(channel),
            None => crate::record::replay::first_terminal(reader, session)?,
        };
        let mut scene: Option<Self> = None;
        let plays = |ch: u32| channel.is_none_or(|channel| channel == ch);
        reader.events(session.number, 0, |e| match e.kind {
            ChannelOpen::KIND => {
                let Ok(open) = serde_json::from_slice::<ChannelOpen<'_>>(e.body) else { return };
                if scene.is_none() && plays(open.ch) {
                    scene = Some(Self {
                        channel,
                        start_us: e.ts_us,
                        term: "xterm-256color".into(),
                        cols: 80,
                        rows: 24,
                        command: None,
                    });
                }
            }
            ChannelPty::KIND => {
                let Ok(pty) = serde_json::from_slice::<ChannelPty<'_>>(e.body) else { return };
                if let Some(scene) = scene.as_mut().filter(|_| channel == Some(pty.ch)) {
                    scene.term = pty.term.into_owned();
                    (scene.cols, scene.rows) = (pty.cols.max(1), pty.rows.max(1));
                }
            }
            Request::KIND => {
                let Ok(r) = serde_json::from_slice::<Request<'_>>(e.body) else { return };
                let ours = channel.is_some() && r.ch == channel && r.class == "exec";
                if let Some(scene) = scene.as_mut().filter(|_| ours) {
                    scene.command = Some(r.text.into_owned());
                }
            }
            _ => {}
        })?;
        Ok(scene)
    }

    fn header(&self, session: &Summary) -> Value {
        let agent = session.agent.as_deref().unwrap_or("unknown agent");
        let role = session.role.as_deref().unwrap_or("unknown");
        let mut header = json!({
            "version": 3,
            "term": { "cols": self.cols, "rows": self.rows, "type": self.term },
            "timestamp": self.start_us.div_euclid(1_000_000),
            "title": format!("{agent} as {role} on {} ({})", session.host, session.id),
        });
        if let Some(command) = &self.command {
            header["command"] = json!(command);
        }
        header
    }
}

/// Writes the events.
struct Cast<'w, W> {
    out: &'w mut W,
    scene: Scene,
    last_us: i64,
    channels: BTreeMap<u32, Channel>,
    /// Requests of the channels that are played.
    requests: HashSet<u64>,
    /// The last exit, and when it was.
    exit: Option<(i64, String)>,
}

#[derive(Default)]
struct Channel {
    terminal: bool,
    out: Screen,
    err: Screen,
    typed: Split,
}

impl<'w, W: Write> Cast<'w, W> {
    fn new(scene: Scene, out: &'w mut W) -> Self {
        Self {
            out,
            last_us: scene.start_us,
            scene,
            channels: BTreeMap::new(),
            requests: HashSet::new(),
            exit: None,
        }
    }

    fn plays(&self, ch: u32) -> bool {
        self.scene.channel.is_none_or(|channel| channel == ch)
    }

    fn event(&mut self, ts_us: i64, code: &str, data: &str) -> io::Result<()> {
        let waited = (ts_us - self.last_us).max(0);
        self.last_us = self.last_us.max(ts_us);
        let data = Value::from(data);
        writeln!(self.out, "[{}.{:06}, \"{code}\", {data}]", waited / 1_000_000, waited % 1_000_000)
    }

    fn marker(&mut self, ts_us: i64, label: &str) -> io::Result<()> {
        let label: String = label.chars().take(MAX_LABEL).collect();
        self.event(ts_us, "m", &label)
    }

    fn take(&mut self, e: &StoredEvent<'_>) -> io::Result<()> {
        fn read<'b, B: serde::Deserialize<'b>>(e: &StoredEvent<'b>) -> Option<B> {
            serde_json::from_slice(e.body).ok()
        }
        let taken = match e.kind {
            Request::KIND => read(e).map(|r| self.request(e.ts_us, &r)),
            HoldOpen::KIND => read(e).map(|h: HoldOpen<'_>| {
                let rules = h.rules.join(", ");
                self.beside(e.ts_us, h.n, &format!("held as {} by {rules}", h.id))
            }),
            HoldDecided::KIND => read(e).map(|h: HoldDecided<'_>| {
                let by = h.by.map(|by| format!(" by {by}")).unwrap_or_default();
                self.beside(e.ts_us, h.n, &format!("{} {}{by}", h.id, h.outcome))
            }),
            Alert::KIND => read(e).map(|a: Alert<'_>| {
                self.marker(e.ts_us, &format!("alert {}: {}", a.code, a.message))
            }),
            ChannelPty::KIND => read(e).map(|pty: ChannelPty<'_>| {
                self.channels.entry(pty.ch).or_default().terminal = true;
                Ok(())
            }),
            ChannelData::KIND => read(e).map(|d| self.data(e.ts_us, &d, e.data)),
            ChannelResize::KIND => read(e).map(|r: ChannelResize| {
                let size = format!("{}x{}", r.cols.max(1), r.rows.max(1));
                if self.scene.channel == Some(r.ch) {
                    self.event(e.ts_us, "r", &size)
                } else {
                    Ok(())
                }
            }),
            ChannelSignal::KIND => read(e).map(|s: ChannelSignal<'_>| {
                if self.plays(s.ch) {
                    return self.marker(e.ts_us, &format!("signal {} from the agent", s.name));
                }
                Ok(())
            }),
            ChannelExit::KIND => read(e).map(|x| self.exited(e.ts_us, &x)),
            ChannelClose::KIND => read(e).map(|close: ChannelClose<'_>| {
                if self.plays(close.ch) && close.masked > 0 {
                    return self.marker(e.ts_us, &format!("{} values masked", close.masked));
                }
                Ok(())
            }),
            FileDone::KIND => read(e).map(|f: FileDone<'_>| {
                if self.plays(f.ch) {
                    let label =
                        format!("{} {}: {} bytes, sha256 {}", f.op, f.path, f.bytes, f.sha256);
                    return self.marker(e.ts_us, &label);
                }
                Ok(())
            }),
            _ => None,
        };
        taken.unwrap_or(Ok(()))
    }

    fn request(&mut self, ts_us: i64, r: &Request<'_>) -> io::Result<()> {
        let Some(ch) = r.ch.filter(|ch| self.plays(*ch)) else { return Ok(()) };
        self.requests.insert(r.n);
        let rules =
            if r.rules.is_empty() { String::new() } else { format!(" by {}", r.rules.join(", ")) };
        let would = if r.observed { "would be " } else { "" };
        self.marker(ts_us, &format!("{would}{}{rules}: {} {}", r.verdict, r.class, r.text))?;
        let terminal = self.channels.entry(ch).or_default().terminal;
        if terminal || r.class != "exec" {
            return Ok(());
        }
        let command = Screen::default().push(r.text.as_bytes());
        let command = String::from_utf8_lossy(&command).replace('\n', "\r\n");
        self.event(ts_us, "o", &format!("$ {command}\r\n"))
    }

    /// What happened to a request while it waited.
    fn beside(&mut self, ts_us: i64, n: u64, label: &str) -> io::Result<()> {
        if self.requests.contains(&n) { self.marker(ts_us, label) } else { Ok(()) }
    }

    fn data(&mut self, ts_us: i64, d: &ChannelData<'_>, data: &[u8]) -> io::Result<()> {
        if !self.plays(d.ch) {
            return Ok(());
        }
        if d.redacted {
            return self.marker(ts_us, &format!("{} bytes typed unseen", d.bytes));
        }
        let channel = self.channels.entry(d.ch).or_default();
        let (code, text) = match d.stream.as_ref() {
            "in" => ("i", channel.typed.push(data)),
            stream => {
                let screen = if stream == "err" { &mut channel.err } else { &mut channel.out };
                let shown = String::from_utf8_lossy(&screen.push(data)).into_owned();
                ("o", if channel.terminal { shown } else { returned(&shown) })
            }
        };
        if !text.is_empty() {
            self.event(ts_us, code, &text)?;
        }
        if d.truncated {
            return self.marker(ts_us, "the rest was not kept");
        }
        Ok(())
    }

    fn exited(&mut self, ts_us: i64, exit: &ChannelExit<'_>) -> io::Result<()> {
        if !self.plays(exit.ch) {
            return Ok(());
        }
        let status = match (&exit.signal, exit.status) {
            (Some(signal), _) => {
                self.marker(ts_us, &format!("killed by {signal}"))?;
                128 + number(signal)
            }
            (None, status) => status.unwrap_or(255),
        };
        if self.scene.channel.is_none() {
            self.marker(ts_us, &format!("exit {status}"))?;
        }
        self.exit = Some((ts_us, status.to_string()));
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        for (_, mut channel) in std::mem::take(&mut self.channels) {
            let rest = channel.typed.rest();
            if !rest.is_empty() {
                self.event(self.last_us, "i", &rest)?;
            }
        }
        match self.exit.take() {
            Some((ts_us, status)) => self.event(ts_us, "x", &status),
            None => Ok(()),
        }
    }
}

/// Lines as a terminal wants them.
fn returned(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

/// The number of a signal (RFC 4254, section 6.10, by POSIX); 0 for one that is not known.
fn number(signal: &str) -> u32 {
    match signal {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "ABRT" => 6,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        _ => 0,
    }
}

/// Text from bytes that may end inside a character.
#[derive(Default)]
struct Split {
    begun: Vec<u8>,
}

impl Split {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let whole = self.begun.utf8_chunks().last().map_or(0, |last| {
            let unfinished =
                std::str::from_utf8(last.invalid()).is_err_and(|error| error.error_len().is_none());
            self.begun.len() - if unfinished { last.invalid().len() } else { 0 }
        });
        let text = String::from_utf8_lossy(&self.begun[..whole]).into_owned();
        self.begun.drain(..whole);
        text
    }

    fn rest(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.begun)).into_owned()
    }
}
