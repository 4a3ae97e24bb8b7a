//! A session as it happened: what was asked, what came back, who was asked, when.

mod channels;

use std::io::{self, Write};
use std::time::Duration;

use super::event::*;
use super::reader::Reader;
use super::rows::{self, Column, Message};
use super::store::StoredEvent;
use super::terminal::{self, Style, clock, duration, safe, safe_lines};
use super::{RecordError, Summary};

/// Widest column of a result.
const MAX_CELL: usize = 60;

/// How a replay runs.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many times faster than it was; zero does not wait at all.
    pub speed: f64,
    /// Longest wait between two events.
    pub longest: Duration,
}

impl Pace {
    /// Everything at once.
    pub fn at_once() -> Self {
        Self { speed: 0.0, longest: Duration::ZERO }
    }

    fn wait(self, us: i64) -> Duration {
        if self.speed <= 0.0 || us <= 0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(us as f64 / 1e6 / self.speed)
            .map_or(self.longest, |d| d.min(self.longest))
    }
}

/// Plays the events of one session onto a terminal.
pub struct Player<'w, W: Write> {
    out: &'w mut W,
    style: Style,
    pace: Pace,
    last_us: Option<i64>,
    prompt: String,
    /// The service, for prompts.
    service: String,
    /// The last line has no end yet.
    open_line: bool,
    channels: channels::Channels,
}

impl<'w, W: Write> Player<'w, W> {
    /// A player that has not begun.
    pub fn new(out: &'w mut W, style: Style, pace: Pace) -> Self {
        Self {
            out,
            style,
            pace,
            last_us: None,
            prompt: "=> ".into(),
            service: String::new(),
            open_line: false,
            channels: channels::Channels::default(),
        }
    }

    /// Of an SSH session only this channel; a terminal is then played as a terminal.
    pub fn only(mut self, channel: Option<u32>) -> Self {
        self.channels.only = channel;
        self
    }

    /// Leaves the operator's terminal as it was found.
    pub fn finish(&mut self) -> io::Result<()> {
        self.leave_picture()?;
        self.end_line()?;
        self.out.flush()
    }

    /// Waits as long as it took, then shows one event.
    pub fn play(&mut self, e: &StoredEvent<'_>) -> io::Result<()> {
        let waited = self.last_us.map_or(0, |last| e.ts_us - last);
        self.last_us = Some(e.ts_us);
        let wait = self.pace.wait(waited);
        if !wait.is_zero() {
            self.out.flush()?;
            std::thread::sleep(wait);
        }
        self.show(e)
    }

    fn show(&mut self, e: &StoredEvent<'_>) -> io::Result<()> {
        if let Some(shown) = self.channel_event(e) {
            return shown;
        }
        // Nothing else is drawn into a terminal's picture.
        if self.channels.picture && e.kind != SessionEnd::KIND {
            return Ok(());
        }
        self.leave_picture()?;
        self.end_line()?;
        let shown = match e.kind {
            Opening::KIND => self.with(e, Self::opening),
            IdentityProven::KIND => self.with(e, Self::proven),
            IdentityRefused::KIND => self.with(e, Self::refused),
            Admission::KIND => self.with(e, Self::admission),
            UpstreamOpen::KIND => self.with(e, Self::upstream),
            Request::KIND => self.with(e, Self::request),
            HoldOpen::KIND => self.with(e, Self::hold),
            HoldDecided::KIND => self.with(e, Self::decided),
            Response::KIND => self.with(e, |p, r: Response<'_>| p.response(r, e.data)),
            Prepare::KIND => self.with(e, Self::prepare),
            Notice::KIND => self.with(e, Self::notice),
            CopyProgress::KIND => Some(Ok(())),
            CopyEnd::KIND => self.with(e, Self::copy_end),
            Alert::KIND => self.with(e, Self::alert),
            SessionEnd::KIND => self.with(e, |p, s: SessionEnd<'_>| p.end(s, e.ts_us)),
            _ => None,
        };
        shown.unwrap_or_else(|| {
            let body = safe(&String::from_utf8_lossy(e.body));
            self.aside(&format!("{}: {body}", safe(e.kind)))
        })
    }

    /// Reads the body as what its kind says; `None` when it is not.
    fn with<'b, B: serde::Deserialize<'b>>(
        &mut self,
        e: &StoredEvent<'b>,
        show: impl FnOnce(&mut Self, B) -> io::Result<()>,
    ) -> Option<io::Result<()>> {
        serde_json::from_slice(e.body).ok().map(|body| show(self, body))
    }

    /// Ends a line that a program left open.
    fn end_line(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.open_line) { writeln!(self.out) } else { Ok(()) }
    }

    fn aside(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        writeln!(self.out, "{}", self.style.dim(&format!("-- {text}")))
    }

    fn opening(&mut self, o: Opening<'_>) -> io::Result<()> {
        self.service = safe(&o.service);
        let title = format!("session {} on {}", o.id, self.service);
        writeln!(self.out, "{}", self.style.bold(&title))?;
        let mode = if o.mode == "enforce" { String::new() } else { format!(", {}", safe(&o.mode)) };
        self.aside(&format!(
            "{} from {} to {}{mode}",
            terminal::local_time(o.ts_us),
            safe(&o.source),
            safe(&o.original_dst)
        ))
    }

    fn proven(&mut self, i: IdentityProven<'_>) -> io::Result<()> {
        let how = match &i.way {
            _ if !i.proven => " (unproven)".to_owned(),
            Some(way) => format!(", token by {}", safe(way)),
            None => String::new(),
        };
        self.aside(&format!(
            "agent {} for {} by {}{how}",
            safe(&i.agent),
            safe(&i.principal),
            safe(&i.issuer)
        ))
    }

    fn refused(&mut self, r: IdentityRefused<'_>) -> io::Result<()> {
        let text = format!("token refused: {} {}", safe(&r.code), safe(&r.message));
        writeln!(self.out, "{}", self.style.red(&text))
    }

    fn admission(&mut self, a: Admission<'_>) -> io::Result<()> {
        self.prompt = match a.database.as_ref() {
            "" => format!("{}@{}$ ", safe(&a.role), self.service),
            database => format!("{}@{}=> ", safe(&a.role), safe(database)),
        };
        if a.verdict == "allow" {
            return Ok(());
        }
        let rules = a.rules.iter().map(|r| safe(r)).collect::<Vec<_>>().join(", ");
        writeln!(self.out, "connection {} by {rules}", self.style.verdict(&a.verdict))
    }

    fn upstream(&mut self, u: UpstreamOpen<'_>) -> io::Result<()> {
        self.aside(&format!("connected to {} {}", safe(&u.address), safe(&u.server_version)))
    }

    fn request(&mut self, r: Request<'_>) -> io::Result<()> {
        let text = safe_lines(&r.text);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let prompt = if r.class == "sftp" { "sftp> " } else { &self.prompt };
        writeln!(self.out, "{}{first}", self.style.bold(prompt))?;
        let dots = format!("{:>width$}", "-> ", width = prompt.chars().count());
        for line in lines {
            writeln!(self.out, "{dots}{line}")?;
        }
        if let Some(all) = r.text_bytes {
            self.aside(&format!("statement cut: {all} bytes in all"))?;
        }
        for (i, value) in r.values.iter().enumerate() {
            let value = value.as_ref().map_or_else(|| "null".into(), |v| format!("'{}'", safe(v)));
            self.aside(&format!("${} = {value}", i + 1))?;
        }
        if r.verdict == "allow" && !r.observed {
            return Ok(());
        }
        let rules = r.rules.iter().map(|r| safe(r)).collect::<Vec<_>>().join(", ");
        let message = r.message.map(|m| format!(": {}", safe(&m))).unwrap_or_default();
        let would = if r.observed { "would be " } else { "" };
        let by = if rules.is_empty() { "no rule".into() } else { format!("rule {rules}") };
        writeln!(self.out, "{would}{} by {by}{message}", self.style.verdict(&r.verdict))
    }

    fn hold(&mut self, h: HoldOpen<'_>) -> io::Result<()> {
        if self.channels.hides(h.n) {
            return Ok(());
        }
        let text = format!("held as {}, until {}", safe(&h.id), clock(h.deadline_us));
        writeln!(self.out, "{}", self.style.yellow(&text))
    }

    fn decided(&mut self, h: HoldDecided<'_>) -> io::Result<()> {
        if self.channels.hides(h.n) {
            return Ok(());
        }
        let by = h.by.map(|b| format!(" by {}", safe(&b))).unwrap_or_default();
        let scope = h.scope.map(|s| format!(" ({})", safe(&s))).unwrap_or_default();
        let reason = h.reason.map(|r| format!(": {}", safe(&r))).unwrap_or_default();
        writeln!(
            self.out,
            "{} {}{by}{scope} after {}{reason}",
            safe(&h.id),
            self.style.verdict(&h.outcome),
            duration(h.waited_us)
        )
    }

    fn response(&mut self, r: Response<'_>, data: &[u8]) -> io::Result<()> {
        print_rows(self.out, data, self.style)?;
        if let Some(e) = &r.error {
            let text = format!("ERROR:  {}: {}", safe(&e.code), safe_lines(&e.message));
            return writeln!(self.out, "{}", self.style.red(&text));
        }
        let mut facts = vec![duration(r.duration_us)];
        if r.truncated {
            facts.push(format!("{} rows in all, recorded in part", r.rows));
        }
        if r.masked > 0 {
            facts.push(format!("{} values masked", r.masked));
        }
        let facts = self.style.dim(&format!("({})", facts.join(", ")));
        writeln!(self.out, "{} {facts}", safe(&r.tag))
    }

    fn prepare(&mut self, p: Prepare<'_>) -> io::Result<()> {
        self.aside(&format!("prepare {:?}: {}", safe(&p.name), safe(&p.text)))
    }

    fn notice(&mut self, n: Notice<'_>) -> io::Result<()> {
        let text = format!("{}:  {}", safe(&n.severity), safe_lines(&n.message));
        writeln!(self.out, "{}", self.style.yellow(&text))
    }

    fn copy_end(&mut self, c: CopyEnd<'_>) -> io::Result<()> {
        let aborted = c.aborted.map(|a| format!(", aborted: {}", safe(&a))).unwrap_or_default();
        self.aside(&format!(
            "copy {}: {} rows, {} bytes, blake3 {}{aborted}",
            safe(&c.direction),
            c.rows,
            c.bytes,
            safe(&c.blake3)
        ))
    }

    fn alert(&mut self, a: Alert<'_>) -> io::Result<()> {
        let text = format!("ALERT {}: {}", safe(&a.code), safe(&a.message));
        writeln!(self.out, "{}", self.style.red(&text))
    }

    fn end(&mut self, s: SessionEnd<'_>, ts_us: i64) -> io::Result<()> {
        let detail = s.detail.map(|d| format!(": {}", safe(&d))).unwrap_or_default();
        self.aside(&format!("ended {} ({}){detail}", clock(ts_us), safe(&s.reason)))?;
        match s.lost_tail {
            Some(lost) => {
                let text = format!("lost tail: {}", safe(&lost));
                writeln!(self.out, "{}", self.style.red(&text))
            }
            None => Ok(()),
        }
    }
}

/// The channel of a session that is played when none is named: the first with a terminal.
pub fn first_terminal(reader: &Reader, session: &Summary) -> Result<Option<u32>, RecordError> {
    let mut first = None;
    reader.events(session.number, 0, |e| {
        if first.is_none() && e.kind == ChannelPty::KIND {
            first = serde_json::from_slice::<ChannelPty<'_>>(e.body).ok().map(|pty| pty.ch);
        }
    })?;
    Ok(first)
}

/// Prints the rows of a result as tables.
pub fn print_rows(out: &mut impl Write, data: &[u8], style: Style) -> io::Result<()> {
    let mut columns: Vec<Column> = Vec::new();
    let mut table: Vec<Vec<String>> = Vec::new();
    for message in rows::decode(data) {
        match message {
            Message::Columns(c) => {
                flush_table(out, &columns, &mut table, style)?;
                columns = c;
            }
            Message::Row(values) => table.push(
                values
                    .iter()
                    .enumerate()
                    .map(|(i, v)| cell(columns.get(i), v.as_deref()))
                    .collect(),
            ),
            Message::Complete(_) => {
                flush_table(out, &columns, &mut table, style)?;
                columns.clear();
            }
            Message::Copy(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                writeln!(out, "{}", safe(text.trim_end_matches('\n')))?;
            }
            Message::Other(_) => {}
            Message::Cut => {
                flush_table(out, &columns, &mut table, style)?;
                columns.clear();
                writeln!(out, "{}", style.dim("-- the rest of the result was not kept"))?;
            }
        }
    }
    flush_table(out, &columns, &mut table, style)
}

fn cell(column: Option<&Column>, value: Option<&[u8]>) -> String {
    let text = value.map_or_else(String::new, |v| safe(&rows::display(column, v)));
    if text.chars().count() <= MAX_CELL {
        return text;
    }
    let mut short: String = text.chars().take(MAX_CELL - 1).collect();
    short.push('…');
    short
}

fn flush_table(
    out: &mut impl Write,
    columns: &[Column],
    table: &mut Vec<Vec<String>>,
    style: Style,
) -> io::Result<()> {
    let rows = std::mem::take(table);
    if columns.is_empty() && rows.is_empty() {
        return Ok(());
    }
    let head: Vec<String> = columns.iter().map(|c| safe(&c.name)).collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or(0).max(head.len());
    let widths: Vec<usize> = (0..count)
        .map(|i| {
            let cells = rows.iter().chain([&head]).filter_map(|r| r.get(i));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &[String]| {
        let cells = widths.iter().enumerate().map(|(i, w)| {
            let text = row.get(i).map_or("", String::as_str);
            format!(" {text:<w$} ")
        });
        cells.collect::<Vec<_>>().join("|").trim_end().to_owned()
    };
    writeln!(out, "{}", style.bold(&line(&head)))?;
    let rule: Vec<String> = widths.iter().map(|w| "-".repeat(w + 2)).collect();
    writeln!(out, "{}", rule.join("+"))?;
    for row in &rows {
        writeln!(out, "{}", line(row))?;
    }
    Ok(())
}
