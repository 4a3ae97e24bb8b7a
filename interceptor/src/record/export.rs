//! Records for other systems: JSON lines with everything, OCSF events, or recordings.

mod asciicast;

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::ocsf;
use super::reader::Reader;
use super::store::StoredEvent;
use super::summary::Summary;

/// In which form records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Every event with its whole body and attachment, one JSON object per line.
    Jsonl,
    /// OCSF events, one per line.
    Ocsf,
    /// A recording that the asciinema player plays: one SSH session, one channel of it or all.
    Asciicast,
}

/// Writes the events of one session; of a recording only one channel, if one is named.
pub fn session(
    reader: &Reader,
    session: &Summary,
    format: Format,
    channel: Option<u32>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    match format {
        Format::Jsonl => lines(reader, session, out, |e| Some(plain(session, e))),
        Format::Ocsf => {
            let answers = ocsf::answers(reader, session)?;
            let mut identity = ocsf::Identity::default();
            let host = reader.public_key().ok().map(|key| key.fingerprint_hex());
            let mut previous: Option<Vec<u8>> = None;
            lines(reader, session, out, |e| {
                let before = previous.replace(e.hash.to_vec());
                let link = ocsf::Link { authority: host.as_deref(), previous: before.as_deref() };
                ocsf::event(session, e, &answers, &mut identity, link)
            })
        }
        Format::Asciicast => asciicast::session(reader, session, channel, out),
    }
}

/// Writes what is made of each event on a line of its own.
fn lines(
    reader: &Reader,
    session: &Summary,
    out: &mut impl Write,
    mut line: impl FnMut(&StoredEvent<'_>) -> Option<Value>,
) -> anyhow::Result<()> {
    let mut result: io::Result<()> = Ok(());
    reader.events(session.number, 0, |e| {
        if result.is_err() {
            return;
        }
        if let Some(line) = line(e) {
            result = serde_json::to_writer(&mut *out, &line)
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"));
        }
    })?;
    Ok(result?)
}

/// One event as it is stored.
pub fn plain(session: &Summary, e: &StoredEvent<'_>) -> Value {
    let body: Value = serde_json::from_slice(e.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(e.body).into_owned()));
    let mut line = json!({
        "host": session.host,
        "session": session.id,
        "number": session.number,
        "seq": e.seq,
        "ts_us": e.ts_us,
        "kind": e.kind,
        "body": body,
        "hash": super::chain::hex(e.hash),
    });
    if !e.data.is_empty() {
        line["data"] = Value::String(STANDARD.encode(e.data));
    }
    line
}
