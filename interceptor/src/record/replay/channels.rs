//! The channels of an SSH session: a terminal as a terminal, everything else as text.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use super::Player;
use crate::record::event::*;
use crate::record::screen::{Screen, Text};
use crate::record::store::StoredEvent;
use crate::record::terminal::{duration, safe, safe_lines};

/// What is known of the channels while they are played.
#[derive(Default)]
pub(super) struct Channels {
    /// Only this one, if any.
    pub only: Option<u32>,
    /// A terminal's picture is on the screen.
    pub picture: bool,
    known: BTreeMap<u32, Channel>,
    /// Whose output was shown last.
    last: Option<u32>,
    /// Requests of channels that are not played.
    hidden: HashSet<u64>,
}

#[derive(Default)]
struct Channel {
    terminal: bool,
    screen: Screen,
    out: Text,
    err: Text,
}

impl Channels {
    fn plays(&self, ch: u32) -> bool {
        self.only.is_none_or(|only| only == ch)
    }

    /// Whether a request belongs to a channel that is not played.
    pub fn hides(&self, n: u64) -> bool {
        self.hidden.contains(&n)
    }
}

impl<W: Write> Player<'_, W> {
    /// Shows an event of a channel; `None` when it is none, or no such event.
    pub(super) fn channel_event(&mut self, e: &StoredEvent<'_>) -> Option<io::Result<()>> {
        match e.kind {
            Request::KIND => {
                let r: Request<'_> = serde_json::from_slice(e.body).ok()?;
                if self.channels.plays(r.ch?) {
                    return self.heading(r.ch?).err().map(Err);
                }
                self.channels.hidden.insert(r.n);
                Some(Ok(()))
            }
            ChannelOpen::KIND => self.with(e, Self::channel_open),
            ChannelPty::KIND => self.with(e, Self::channel_pty),
            ChannelEnv::KIND => self.with(e, |p, env: ChannelEnv<'_>| {
                p.channel_aside(env.ch, &format!("{}={}", safe(&env.name), safe(&env.value)))
            }),
            ChannelData::KIND => self.with(e, |p, d: ChannelData<'_>| p.channel_data(&d, e.data)),
            ChannelResize::KIND => self.with(e, |p, r: ChannelResize| {
                p.channel_aside(r.ch, &format!("terminal of {}x{}", r.cols, r.rows))
            }),
            ChannelSignal::KIND => self.with(e, |p, s: ChannelSignal<'_>| {
                p.channel_aside(s.ch, &format!("signal {} from the agent", safe(&s.name)))
            }),
            ChannelExit::KIND => self.with(e, Self::channel_exit),
            ChannelClose::KIND => self.with(e, Self::channel_close),
            FileDone::KIND => self.with(e, Self::file_done),
            _ => None,
        }
    }

    /// Says which channel what follows belongs to, where it is not the one before.
    fn heading(&mut self, ch: u32) -> io::Result<()> {
        if self.channels.last.replace(ch) == Some(ch) || self.channels.only.is_some() {
            return Ok(());
        }
        self.end_line()?;
        writeln!(self.out, "{}", self.style.bold(&format!("channel {ch}")))
    }

    fn channel_aside(&mut self, ch: u32, text: &str) -> io::Result<()> {
        if self.channels.picture || !self.channels.plays(ch) {
            return Ok(());
        }
        self.heading(ch)?;
        self.aside(text)
    }

    fn channel_open(&mut self, open: ChannelOpen<'_>) -> io::Result<()> {
        self.channels.known.insert(open.ch, Channel::default());
        match open.detail {
            Some(to) => {
                self.channel_aside(open.ch, &format!("{} to {}", safe(&open.kind), safe(&to)))
            }
            None => Ok(()),
        }
    }

    fn channel_pty(&mut self, pty: ChannelPty<'_>) -> io::Result<()> {
        self.channels.known.entry(pty.ch).or_default().terminal = true;
        let text = format!("terminal of {}x{}, {}", pty.cols, pty.rows, safe(&pty.term));
        self.channel_aside(pty.ch, &text)
    }

    fn channel_data(&mut self, d: &ChannelData<'_>, data: &[u8]) -> io::Result<()> {
        if !self.channels.plays(d.ch) {
            return Ok(());
        }
        let drawn = self.channels.only.is_some()
            && self.channels.known.get(&d.ch).is_some_and(|channel| channel.terminal);
        match d.stream.as_ref() {
            // A terminal shows what is typed by itself.
            "in" if drawn => Ok(()),
            "in" if d.redacted => {
                self.channel_aside(d.ch, &format!("{} bytes typed unseen", d.bytes))
            }
            "in" => self.channel_aside(d.ch, &format!("{} bytes of input", d.bytes)),
            _ if drawn => self.draw(d.ch, data),
            stream => {
                self.heading(d.ch)?;
                self.print(d.ch, stream == "err", data)?;
                if !d.truncated {
                    return Ok(());
                }
                self.channel_aside(d.ch, "the rest of the output was not kept")
            }
        }
    }

    /// Output of a terminal, on the operator's.
    fn draw(&mut self, ch: u32, data: &[u8]) -> io::Result<()> {
        self.end_line()?;
        self.channels.picture = true;
        let shown = self.channels.known.entry(ch).or_default().screen.push(data);
        self.out.write_all(&shown)?;
        self.out.flush()
    }

    /// Output that is text, or that cannot be shown.
    fn print(&mut self, ch: u32, err: bool, data: &[u8]) -> io::Result<()> {
        if memchr::memchr(0, data).is_some() {
            return self.aside(&format!("{} bytes that are not text", data.len()));
        }
        let channel = self.channels.known.entry(ch).or_default();
        let text = if err { channel.err.push(data) } else { channel.out.push(data) };
        let text = safe_lines(&text);
        if text.is_empty() {
            return Ok(());
        }
        self.open_line = !text.ends_with('\n');
        let text = if err { self.style.yellow(&text) } else { text };
        self.out.write_all(text.as_bytes())
    }

    /// Gives the screen back after a terminal's picture.
    pub(super) fn leave_picture(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.channels.picture) {
            return Ok(());
        }
        let shown = self.channels.only.and_then(|ch| self.channels.known.get_mut(&ch));
        let reset = shown.map(|channel| channel.screen.reset()).unwrap_or_default();
        self.out.write_all(&reset)?;
        writeln!(self.out)
    }

    fn channel_exit(&mut self, exit: ChannelExit<'_>) -> io::Result<()> {
        if self.channels.only == Some(exit.ch) {
            self.leave_picture()?;
        }
        let how = match (&exit.signal, exit.status) {
            (Some(signal), _) => format!("killed by {}", safe(signal)),
            (None, Some(status)) => format!("exit {status}"),
            (None, None) => "ended".into(),
        };
        self.channel_aside(exit.ch, &format!("{how} after {}", duration(exit.duration_us)))
    }

    fn channel_close(&mut self, close: ChannelClose<'_>) -> io::Result<()> {
        if self.channels.only == Some(close.ch) {
            self.leave_picture()?;
        }
        let masked = if close.masked > 0 {
            format!(", {} values masked", close.masked)
        } else {
            String::new()
        };
        self.channel_aside(
            close.ch,
            &format!(
                "channel closed: {} bytes in, {} out, {} err{masked}",
                close.bytes_in, close.bytes_out, close.bytes_err
            ),
        )
    }

    fn file_done(&mut self, file: FileDone<'_>) -> io::Result<()> {
        let part = if file.complete { "" } else { " in part" };
        self.channel_aside(
            file.ch,
            &format!(
                "{} {}{part}: {} bytes, sha256 {}",
                safe(&file.op),
                safe(&file.path),
                file.bytes,
                safe(&file.sha256)
            ),
        )
    }
}
