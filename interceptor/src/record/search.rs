//! Finding a text in what programs printed and agents typed.
//!
//! Output stands in attachments, in pieces that end anywhere and with escape sequences in
//! between; so it is read as a person would have read it, line by line, and each line is looked
//! at once.

use std::collections::BTreeMap;

use rusqlite::params_from_iter;
use serde_json::json;

use super::RecordError;
use super::event::{Body as _, ChannelData};
use super::reader::{Filter, Hit, Reader};
use super::screen::Text;
use super::store;

/// A line longer than this is looked at in parts that overlap.
const MAX_LINE: usize = 8 << 10;

/// Characters shown on either side of what was found.
const AROUND: usize = 60;

impl Reader {
    /// Lines of SSH channels that contain a text (ASCII letters in either case), newest session
    /// first.
    pub fn search_output(&self, text: &str, filter: &Filter) -> Result<Vec<Hit>, RecordError> {
        let limit = filter.limit.min(100_000);
        let (clause, values) = filter.sql();
        let sql = format!(
            "SELECT s.id, s.number, e.id, e.ts_us, e.body, e.data FROM sessions s \
             JOIN events e ON e.id > s.number << 31 AND e.id < (s.number + 1) << 31 \
             WHERE {clause} AND s.protocol = 'ssh' AND e.kind = '{}' AND e.data IS NOT NULL \
             ORDER BY s.number DESC, e.id",
            ChannelData::KIND
        );
        // Of a host's own store only: what is in objects would be passed over.
        if self.has_recordings()? {
            return Err(RecordError::Contents(
                "output is searched on the host that recorded it: here some is in objects".into(),
            ));
        }
        let read = || -> rusqlite::Result<Vec<Hit>> {
            let mut statement = self.db.prepare(&sql)?;
            let mut rows = statement.query(params_from_iter(values))?;
            let mut search = Search::new(text);
            while search.hits.len() < limit
                && let Some(row) = rows.next()?
            {
                let place = Place {
                    session: row.get(0)?,
                    number: row.get::<_, i64>(1)? as u64,
                    seq: store::seq_of(row.get(2)?),
                    ts_us: row.get(3)?,
                };
                let body: String = row.get(4)?;
                let Ok(data) = serde_json::from_str::<ChannelData<'_>>(&body) else { continue };
                search.piece(place, data.ch, &data.stream, row.get_ref(5)?.as_blob()?);
            }
            search.session_ends();
            search.hits.truncate(limit);
            Ok(search.hits)
        };
        read().map_err(RecordError::sqlite("search output"))
    }
}

/// Where a piece of output stands.
#[derive(Debug, Clone)]
struct Place {
    session: String,
    number: u64,
    seq: u64,
    ts_us: i64,
}

struct Search {
    wanted: String,
    /// Lines that have no end yet, by channel and stream of the session at hand.
    lines: BTreeMap<(u32, String), (Text, String, Place)>,
    number: Option<u64>,
    hits: Vec<Hit>,
}

impl Search {
    fn new(text: &str) -> Self {
        let wanted = text.to_ascii_lowercase();
        Self { wanted, lines: BTreeMap::new(), number: None, hits: Vec::new() }
    }

    fn piece(&mut self, place: Place, ch: u32, stream: &str, data: &[u8]) {
        if self.number.replace(place.number).is_some_and(|number| number != place.number) {
            self.session_ends();
        }
        let key = (ch, stream.to_owned());
        let (mut text, mut line, _) = self
            .lines
            .remove(&key)
            .unwrap_or_else(|| (Text::default(), String::new(), place.clone()));
        line.push_str(&text.push(data));
        let mut rest = line.as_str();
        while let Some((whole, behind)) = rest.split_once('\n') {
            self.line(&place, ch, stream, whole);
            rest = behind;
        }
        let mut rest = rest.to_owned();
        if rest.len() > MAX_LINE {
            self.line(&place, ch, stream, &rest);
            // Enough stays for a text across the border, and too little to find one twice.
            let keep = rest.len() - self.wanted.len().saturating_sub(1).min(rest.len());
            rest = rest.split_off(rest.ceil_char_boundary(keep));
        }
        self.lines.insert(key, (text, rest, place));
    }

    fn session_ends(&mut self) {
        for ((ch, stream), (_, line, place)) in std::mem::take(&mut self.lines) {
            self.line(&place, ch, &stream, &line);
        }
    }

    fn line(&mut self, place: &Place, ch: u32, stream: &str, line: &str) {
        let Some(at) = line.to_ascii_lowercase().find(&self.wanted) else { return };
        let start = line[..at].char_indices().rev().nth(AROUND - 1).map_or(0, |(start, _)| start);
        let behind = at + self.wanted.len();
        let end = line[behind..].char_indices().nth(AROUND).map_or(line.len(), |(n, _)| behind + n);
        self.hits.push(Hit {
            session: place.session.clone(),
            number: place.number,
            seq: place.seq,
            ts_us: place.ts_us,
            kind: ChannelData::KIND.to_owned(),
            body: json!({ "ch": ch, "stream": stream, "text": &line[start..end] }),
        });
    }
}
