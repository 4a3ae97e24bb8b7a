//! The requests of an SSH session with what became of them.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::record::event::*;
use crate::record::screen::Text;
use crate::record::terminal::{Style, clock, duration, safe, safe_lines};
use crate::record::{Reader, StoredEvent, Summary};

/// What became of the requests, by their number.
#[derive(Default)]
pub(super) struct Outcomes {
    exits: HashMap<u64, ChannelExit<'static>>,
    closes: HashMap<u32, ChannelClose<'static>>,
    files: HashMap<u64, Vec<FileDone<'static>>>,
}

fn read<'b, B: serde::Deserialize<'b>>(e: &StoredEvent<'b>) -> Option<B> {
    serde_json::from_slice(e.body).ok()
}

/// The same without what it borrows: the event is gone when it is shown.
fn kept<B: serde::de::DeserializeOwned>(e: &StoredEvent<'_>) -> Option<B> {
    serde_json::from_slice(e.body).ok()
}

impl Outcomes {
    /// Reads them from the record.
    pub fn of(reader: &Reader, session: &Summary) -> anyhow::Result<Self> {
        let mut all = Self::default();
        reader.events(session.number, 0, |e| match e.kind {
            ChannelExit::KIND => {
                if let Some(exit) = kept::<ChannelExit<'static>>(e) {
                    all.exits.insert(exit.n, exit);
                }
            }
            ChannelClose::KIND => {
                if let Some(close) = kept::<ChannelClose<'static>>(e) {
                    all.closes.insert(close.ch, close);
                }
            }
            FileDone::KIND => {
                if let Some(file) = kept::<FileDone<'static>>(e) {
                    all.files.entry(file.n).or_default().push(file);
                }
            }
            _ => {}
        })?;
        Ok(all)
    }

    /// Shows what became of a request.
    pub fn show(&self, n: u64, style: Style, out: &mut impl Write) -> io::Result<()> {
        for file in self.files.get(&n).into_iter().flatten() {
            writeln!(out, "    {}", file_line(file))?;
        }
        let Some(exit) = self.exits.get(&n).filter(|exit| exit.n > 0) else { return Ok(()) };
        let how = how_it_ended(exit);
        let how = if exit.status == Some(0) { style.green(&how) } else { style.red(&how) };
        let took = duration(exit.duration_us);
        match self.closes.get(&exit.ch) {
            Some(close) => writeln!(out, "    {how}, {took}, {}", sums(close)),
            None => writeln!(out, "    {how}, {took}"),
        }
    }
}

fn how_it_ended(exit: &ChannelExit<'_>) -> String {
    match (&exit.signal, exit.status) {
        (Some(signal), _) => format!("killed by {}", safe(signal)),
        (None, Some(status)) => format!("exit {status}"),
        (None, None) => "ended".into(),
    }
}

fn sums(close: &ChannelClose<'_>) -> String {
    let masked =
        if close.masked > 0 { format!(", {} values masked", close.masked) } else { String::new() };
    let ChannelClose { bytes_in, bytes_out, bytes_err, .. } = close;
    format!("{bytes_in} bytes in, {bytes_out} out, {bytes_err} err{masked}")
}

fn file_line(file: &FileDone<'_>) -> String {
    let part = if file.complete { "" } else { " in part" };
    let (op, path, sha256) = (safe(&file.op), safe(&file.path), safe(&file.sha256));
    format!("{op} {path}{part}: {} bytes, sha256 {sha256}", file.bytes)
}

/// Shows an event of a channel; `None` when it is none. Data only with `output`, and what a
/// request came to stands with the request.
pub(super) fn show_event(
    e: &StoredEvent<'_>,
    output: bool,
    style: Style,
    out: &mut impl Write,
) -> Option<io::Result<()>> {
    let at = style.dim(&clock(e.ts_us));
    Some(match e.kind {
        ChannelOpen::KIND => {
            let open: ChannelOpen<'_> = read(e)?;
            let to = open.detail.map(|to| format!(" to {}", safe(&to))).unwrap_or_default();
            writeln!(out, "{at} channel {}: {}{to}", open.ch, safe(&open.kind))
        }
        ChannelPty::KIND => {
            let pty: ChannelPty<'_> = read(e)?;
            let term = safe(&pty.term);
            writeln!(out, "{at} channel {}: terminal of {}x{}, {term}", pty.ch, pty.cols, pty.rows)
        }
        ChannelEnv::KIND => {
            let env: ChannelEnv<'_> = read(e)?;
            writeln!(out, "{at} channel {}: {}={}", env.ch, safe(&env.name), safe(&env.value))
        }
        ChannelData::KIND if output => data(&read(e)?, e.data, &at, style, out),
        ChannelData::KIND | ChannelResize::KIND => Ok(()),
        ChannelSignal::KIND => {
            let signal: ChannelSignal<'_> = read(e)?;
            writeln!(out, "{at} channel {}: signal {}", signal.ch, safe(&signal.name))
        }
        // Of a request they stand with it; an sftp channel has none of its own.
        ChannelExit::KIND => {
            let exit: ChannelExit<'_> = read(e)?;
            if exit.n > 0 {
                return Some(Ok(()));
            }
            let took = duration(exit.duration_us);
            writeln!(out, "{at} channel {}: {}, {took}", exit.ch, how_it_ended(&exit))
        }
        ChannelClose::KIND => {
            let close: ChannelClose<'_> = read(e)?;
            writeln!(out, "{at} channel {} closed: {}", close.ch, sums(&close))
        }
        FileDone::KIND => {
            let file: FileDone<'_> = read(e)?;
            if file.n > 0 {
                return Some(Ok(()));
            }
            writeln!(out, "{at} channel {}: {}", file.ch, file_line(&file))
        }
        _ => return None,
    })
}

/// What went over a stream, as text.
fn data(
    d: &ChannelData<'_>,
    data: &[u8],
    at: &str,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(out, "{at} channel {} {}: {} bytes at {}", d.ch, safe(&d.stream), d.bytes, d.offset)?;
    let note = match (d.redacted, d.truncated, memchr::memchr(0, data)) {
        (true, ..) => "typed unseen, not kept",
        (_, true, _) => "the rest was not kept",
        (.., Some(_)) => "not text",
        _ => "",
    };
    if memchr::memchr(0, data).is_none() {
        let text = Text::default().push(data);
        safe_lines(&text).lines().try_for_each(|line| writeln!(out, "    {line}"))?;
    }
    if note.is_empty() { Ok(()) } else { writeln!(out, "    {}", style.dim(note)) }
}
