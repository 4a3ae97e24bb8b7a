//! What happened in a session, as a page shows it: one entry per event, answers beside their
//! requests, output put together.

use serde_json::Value;

use super::output::Output;
use super::table::Table;
use super::text::{Shown, When, bytes, count};
use crate::record::event::*;
use crate::record::terminal::duration;
use crate::record::{Body, StoredEvent};

/// One thing that happened.
#[derive(Debug)]
pub struct Entry {
    /// Position of its event.
    pub seq: u64,
    /// When.
    pub when: When,
    /// Since the session began, e.g. `+1.5 s`.
    pub since: String,
    /// What.
    pub item: Item,
}

/// What happened.
#[derive(Debug)]
pub enum Item {
    /// Something was asked for.
    Request(Box<Asked>),
    /// An answer whose request is not on this page.
    Answer {
        /// Number of the request.
        n: u64,
        /// The answer.
        answer: Box<Answer>,
    },
    /// A request began to wait, or the wait ended.
    Hold {
        /// `waiting`, `granted`, `denied`, …
        state: String,
        /// In words.
        text: Shown,
        /// The reason that was given.
        reason: Shown,
    },
    /// Output or input of a channel.
    Output(Box<Output>),
    /// Something a person should look at.
    Alert {
        /// Code.
        code: Shown,
        /// Words.
        text: Shown,
    },
    /// Something else, in words.
    Note {
        /// What.
        what: Shown,
        /// More.
        text: Shown,
    },
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Its number in the session.
    pub n: u64,
    /// `allow`, `hold` or `deny`: one of three words, whatever was recorded.
    pub verdict: &'static str,
    /// Class.
    pub class: Shown,
    /// Channel, when there is one.
    pub channel: Option<u32>,
    /// The verdict was only recorded.
    pub observed: bool,
    /// Rules that made the verdict.
    pub rules: Vec<Shown>,
    /// Version of the policy.
    pub policy: Shown,
    /// What the agent was told.
    pub message: Shown,
    /// The statement or command.
    pub text: Shown,
    /// It was cut when it was recorded.
    pub cut: bool,
    /// Bind values.
    pub values: Vec<Shown>,
    /// Masked columns.
    pub masks: Vec<Shown>,
    /// The answer, when it is on this page.
    pub answer: Option<Answer>,
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// It failed, and how.
    pub error: Option<Shown>,
    /// In words: rows, masked values, time.
    pub words: Shown,
    /// The rows that were kept.
    pub tables: Vec<Table>,
    /// Not all of them were kept, or not all are shown.
    pub partial: bool,
}

impl Item {
    /// Bytes that it has on a page, about.
    fn bytes(&self) -> usize {
        match self {
            Self::Request(asked) => {
                let texts = [&asked.class, &asked.policy, &asked.message, &asked.text];
                let lists = [&asked.rules, &asked.values, &asked.masks];
                let texts = texts.into_iter().chain(lists.into_iter().flatten());
                texts.map(Shown::bytes).sum()
            }
            Self::Answer { answer, .. } => answer.bytes(),
            Self::Hold { text, reason: more, .. }
            | Self::Alert { code: more, text }
            | Self::Note { what: more, text } => text.bytes() + more.bytes(),
            Self::Output(output) => output.size(),
        }
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        let words = self.words.bytes() + self.error.as_ref().map_or(0, Shown::bytes);
        words + self.tables.iter().map(Table::bytes).sum::<usize>()
    }
}

/// Puts entries together.
pub struct Timeline {
    entries: Vec<Entry>,
    began_us: Option<i64>,
    last: u64,
    rows: bool,
    bytes: usize,
}

impl Timeline {
    /// Empty; times count from the session's begin.
    pub fn new(began_us: i64, rows: bool) -> Self {
        Self { entries: Vec::new(), began_us: Some(began_us), last: 0, rows, bytes: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that they have on a page, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Position of the last event that was taken.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// All entries.
    pub fn finish(self) -> Vec<Entry> {
        self.entries
    }

    /// Takes one event.
    pub fn take(&mut self, e: &StoredEvent<'_>) {
        self.last = e.seq;
        if let Some(item) = self.item(e) {
            self.bytes += item.bytes();
            let began = self.began_us.unwrap_or(e.ts_us);
            let since = u64::try_from(e.ts_us - began).unwrap_or(0);
            self.entries.push(Entry {
                seq: e.seq,
                when: When::at(e.ts_us),
                since: format!("+{}", duration(since)),
                item,
            });
        }
    }

    fn item(&mut self, e: &StoredEvent<'_>) -> Option<Item> {
        let shown = match e.kind {
            // The page says these above the timeline.
            Opening::KIND | IdentityProven::KIND | CopyProgress::KIND => return None,
            Request::KIND => read(e, |r: Request<'_>| Item::Request(Box::new(asked(&r)))),
            Response::KIND => match serde_json::from_slice::<Response<'_>>(e.body) {
                Ok(r) => return self.answer(&r, e.data),
                Err(_) => None,
            },
            ChannelData::KIND => match serde_json::from_slice::<ChannelData<'_>>(e.body) {
                Ok(d) => return self.output(&d, e.data),
                Err(_) => None,
            },
            HoldOpen::KIND => read(e, hold_open),
            HoldDecided::KIND => read(e, hold_decided),
            Alert::KIND => read(e, |a: Alert<'_>| Item::Alert {
                code: Shown::line(&a.code),
                text: Shown::line(&a.message),
            }),
            _ => note(e),
        };
        // What is not of its kind's shape is shown as it stands.
        Some(shown.unwrap_or_else(|| Item::Note {
            what: Shown::line(e.kind),
            text: Shown::lines(&String::from_utf8_lossy(e.body)),
        }))
    }

    fn answer(&mut self, r: &Response<'_>, data: &[u8]) -> Option<Item> {
        let (tables, more) = if self.rows { Table::all(data) } else { (Vec::new(), false) };
        let mut words = Vec::new();
        if !r.tag.is_empty() {
            words.push(r.tag.to_string());
        }
        words.push(format!("{} rows", count(r.rows)));
        if r.masked > 0 {
            words.push(format!("{} values masked", count(r.masked)));
        }
        words.push(duration(r.duration_us));
        let answer = Answer {
            error: r.error.as_ref().map(|e| Shown::line(&format!("{} {}", e.code, e.message))),
            words: Shown::line(&words.join(" · ")),
            tables,
            partial: more || r.truncated,
        };
        let place = self.entries.iter_mut().rev().find_map(|e| match &mut e.item {
            Item::Request(asked) if asked.n == r.n && asked.answer.is_none() => Some(asked),
            _ => None,
        });
        match place {
            Some(asked) => {
                self.bytes += answer.bytes();
                asked.answer = Some(answer);
                None
            }
            None => Some(Item::Answer { n: r.n, answer: Box::new(answer) }),
        }
    }

    /// Pieces of one stream that follow each other are one entry.
    fn output(&mut self, d: &ChannelData<'_>, data: &[u8]) -> Option<Item> {
        if let Some(Entry { item: Item::Output(last), .. }) = self.entries.last_mut()
            && last.takes(d)
        {
            let before = last.size();
            last.push(d, data);
            self.bytes += last.size() - before;
            return None;
        }
        let mut output = Output::new(d);
        output.push(d, data);
        Some(Item::Output(Box::new(output)))
    }
}

fn read<'a, T, F>(e: &StoredEvent<'a>, make: F) -> Option<Item>
where
    T: serde::Deserialize<'a>,
    F: FnOnce(T) -> Item,
{
    serde_json::from_slice::<T>(e.body).ok().map(make)
}

/// One of the three words, so that it can name a class of the style sheet.
pub fn verdict(word: &str) -> &'static str {
    match word {
        "allow" => "allow",
        "hold" => "hold",
        _ => "deny",
    }
}

fn asked(r: &Request<'_>) -> Asked {
    Asked {
        n: r.n,
        verdict: verdict(&r.verdict),
        class: Shown::short(&r.class, 60),
        channel: r.ch,
        observed: r.observed,
        rules: r.rules.iter().take(20).map(|rule| Shown::short(rule, 120)).collect(),
        policy: Shown::short(&r.policy, 60),
        message: Shown::lines(r.message.as_deref().unwrap_or_default()),
        text: Shown::lines(&r.text),
        cut: r.text_bytes.is_some(),
        values: r
            .values
            .iter()
            .take(100)
            .map(|v| v.as_deref().map_or_else(|| Shown::line("null"), Shown::line))
            .collect(),
        masks: r.masks.iter().take(50).map(|m| Shown::short(m, 60)).collect(),
        answer: None,
    }
}

fn hold_open(h: HoldOpen<'_>) -> Item {
    let until = When::at(h.deadline_us).clock;
    let rules = h.rules.join(", ");
    Item::Hold {
        state: "waiting".into(),
        text: Shown::line(&format!("#{} waits as {} until {until} UTC ({rules})", h.n, h.id)),
        reason: Shown::default(),
    }
}

fn hold_decided(h: HoldDecided<'_>) -> Item {
    let state = match &*h.outcome {
        "granted" => "granted",
        "expired" => "expired",
        "cancelled" => "cancelled",
        "withdrawn" => "withdrawn",
        _ => "denied",
    };
    let by = h.by.map(|by| format!(" by {by}")).unwrap_or_default();
    let scope = h.scope.map(|s| format!(", {s}")).unwrap_or_default();
    let waited = duration(h.waited_us);
    Item::Hold {
        state: state.into(),
        text: Shown::line(&format!("#{} {state}{by}{scope}, waited {waited}", h.n)),
        reason: Shown::line(h.reason.as_deref().unwrap_or_default()),
    }
}

/// Events that are told in a line.
fn note(e: &StoredEvent<'_>) -> Option<Item> {
    let v: Value = serde_json::from_slice(e.body).ok()?;
    let s = |name: &str| v[name].as_str().unwrap_or_default();
    let n = |name: &str| v[name].as_u64().unwrap_or(0);
    let (what, text) = match e.kind {
        IdentityRefused::KIND => ("token refused", format!("{}: {}", s("code"), s("message"))),
        Admission::KIND => {
            let at = if s("database").is_empty() {
                String::new()
            } else {
                format!("@{}", s("database"))
            };
            let said =
                if s("message").is_empty() { String::new() } else { format!(": {}", s("message")) };
            ("connection", format!("{} {}{at}{said}", verdict(s("verdict")), s("role")))
        }
        UpstreamOpen::KIND => (
            "service reached",
            format!("{} as {} in {}", s("address"), s("role"), duration(n("duration_us"))),
        ),
        Prepare::KIND => ("prepared", format!("{} {}", s("name"), s("text"))),
        Notice::KIND => ("notice", format!("{} {}: {}", s("severity"), s("code"), s("message"))),
        CopyEnd::KIND => (
            "copy",
            format!("{}: {} rows, {}", s("direction"), count(n("rows")), bytes(n("bytes"))),
        ),
        ChannelOpen::KIND => {
            ("channel opened", format!("{}: {} {}", n("ch"), s("kind"), s("detail")))
        }
        ChannelPty::KIND => (
            "terminal",
            format!("channel {}: {} of {} by {}", n("ch"), s("term"), n("cols"), n("rows")),
        ),
        ChannelEnv::KIND => ("variable", format!("{}={}", s("name"), s("value"))),
        ChannelResize::KIND => ("resized", format!("{} by {}", n("cols"), n("rows"))),
        ChannelSignal::KIND => ("signal", s("name").to_owned()),
        ChannelExit::KIND => {
            let how = match v["signal"].as_str() {
                Some(signal) => format!("signal {signal}"),
                None => format!("status {}", n("status")),
            };
            ("ended", format!("#{} {how} after {}", n("n"), duration(n("duration_us"))))
        }
        ChannelClose::KIND => (
            "channel closed",
            format!(
                "{}: {} in, {} out, {} masked",
                n("ch"),
                bytes(n("bytes_in")),
                bytes(n("bytes_out") + n("bytes_err")),
                count(n("masked"))
            ),
        ),
        FileDone::KIND => (
            "file",
            format!("{} {} ({}, SHA-256 {})", s("op"), s("path"), bytes(n("bytes")), s("sha256")),
        ),
        SessionEnd::KIND => ("end", format!("{} {}", s("reason"), s("detail"))),
        _ => return None,
    };
    Some(Item::Note { what: Shown::line(what), text: Shown::lines(text.trim()) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn event<'a>(seq: u64, kind: &'a str, body: &'a str, data: &'a [u8]) -> StoredEvent<'a> {
        StoredEvent {
            seq,
            ts_us: 1_000_000 * seq as i64,
            kind,
            body: body.as_bytes(),
            data,
            hash: &[],
        }
    }

    #[test]
    fn an_answer_stands_with_its_request_and_hostile_text_stays_text() {
        let mut t = Timeline::new(0, true);
        t.take(&event(
            1,
            "request",
            r#"{"n":1,"verdict":"<b>","class":"select","text":"select '<script>'"}"#,
            &[],
        ));
        t.take(&event(2, "response", r#"{"n":1,"tag":"SELECT 1","rows":1,"masked":2}"#, &[]));
        t.take(&event(3, "response", r#"{"n":9,"rows":0}"#, &[]));
        t.take(&event(4, "file.done", r#"{"op":"read","path":"/tmp/<img src=x>\u001b[2J"}"#, &[]));
        t.take(&event(5, "request", "no json <i>", &[]));
        let all = t.finish();
        assert_eq!(all.len(), 4);
        let Item::Request(asked) = &all[0].item else { panic!("{all:?}") };
        assert_eq!(asked.verdict, "deny", "an unknown word is not taken over");
        assert_eq!(asked.text.to_string(), "select &#39;&lt;script&gt;&#39;");
        assert!(asked.answer.as_ref().unwrap().words.to_string().contains("2 values masked"));
        assert!(matches!(&all[1].item, Item::Answer { n: 9, .. }));
        let shown = format!("{:?}{:?}", all[2].item, all[3].item);
        assert!(
            !shown.contains("<img") && !shown.contains("<i>") && !shown.contains('\x1b'),
            "{shown}"
        );
    }

    #[test]
    fn output_of_one_stream_is_put_together() {
        let mut t = Timeline::new(0, true);
        let body = |stream: &str| format!(r#"{{"ch":0,"stream":"{stream}","offset":0,"bytes":3}}"#);
        let (out, err) = (body("out"), body("err"));
        t.take(&event(1, "channel.data", &out, b"\x1b[31mred"));
        t.take(&event(2, "channel.data", &out, b" <b>\n"));
        t.take(&event(3, "channel.data", &err, b"oops"));
        let all = t.finish();
        assert_eq!(all.len(), 2);
        let Item::Output(o) = &all[0].item else { panic!("{all:?}") };
        assert_eq!(o.text().to_string(), "red &lt;b&gt;\n");
    }
}
