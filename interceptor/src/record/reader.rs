//! Reading records: everything that was acknowledged, whether SQLite or the journal has it.
//!
//! While a daemon runs it is asked to drain; while none runs the reader takes the store lock
//! and drains by itself. A reader never seals, never deletes and never needs the host's key.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

use super::RecordError;
use super::consume::{Consumer, Pass};
use super::keys::PublicKey;
use super::ledger::{Anchor, Damage};
use super::recorder::lock_store;
use super::recordings::{self, Objects};
use super::store::{self, Store, StoredEvent};
use super::summary::Summary;
use crate::config::{Config, Durability};

/// Which sessions are wanted. Empty fields do not restrict.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Registered name of the agent.
    pub agent: Option<String>,
    /// On whose behalf.
    pub principal: Option<String>,
    /// Name of the service.
    pub service: Option<String>,
    /// Opened at or after; microseconds since the Unix epoch.
    pub since_us: Option<i64>,
    /// Opened before.
    pub until_us: Option<i64>,
    /// Only open, or only closed sessions.
    pub open: Option<bool>,
    /// Only numbers below: for the next page.
    pub below: Option<u64>,
    /// At most so many, newest first.
    pub limit: usize,
}

/// Where a text was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Hit {
    /// The session.
    pub session: String,
    /// The host's session number.
    pub number: u64,
    /// Position of the event.
    pub seq: u64,
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// Kind of the event.
    pub kind: String,
    /// The event's body.
    pub body: serde_json::Value,
}

/// Reads the records of a host.
pub struct Reader {
    pub(super) db: Connection,
    state: PathBuf,
    warnings: Vec<String>,
    damage: Vec<Damage>,
    /// Where attachments are that a replica does not have itself.
    pub(super) objects: Option<Box<dyn Objects>>,
}

impl Reader {
    /// Opens the records below a state directory. `ask` tells a running daemon to drain.
    pub fn open(state: &Path, ask: &dyn Fn() -> std::io::Result<()>) -> Result<Self, RecordError> {
        if !Store::path(state).exists() {
            return Err(RecordError::Contents(format!(
                "nothing is recorded in {}: is paths.state right, and has the daemon run?",
                state.display()
            )));
        }
        let mut warnings = Vec::new();
        let mut damage = Vec::new();
        match lock_store(state, Duration::ZERO) {
            Ok(_held) => damage = drain_alone(state)?,
            Err(RecordError::Locked(_)) => {
                if let Err(e) = ask() {
                    warnings.push(format!(
                        "the daemon did not answer ({e}): its last moments may be missing here"
                    ));
                }
            }
            Err(e) => return Err(e),
        }
        for d in damage.iter().filter(|d| !d.torn_tail) {
            warnings.push(format!(
                "the journal is damaged at byte {} of segment {:x} ({}): what follows is not \
                 shown until the daemon has started and recovered it",
                d.offset, d.segment, d.why
            ));
        }
        Ok(Self {
            db: store::open_read_only(state)?,
            state: state.into(),
            warnings,
            damage,
            objects: None,
        })
    }

    /// Opens the replica of another host's records: there is no journal and nobody to ask.
    pub fn of_replica(dir: &Path) -> Result<Self, RecordError> {
        if !Store::path(dir).exists() {
            return Err(RecordError::Contents(format!(
                "nothing has come from this host yet: {} holds no records",
                dir.display()
            )));
        }
        Ok(Self {
            db: store::open_read_only(dir)?,
            state: dir.into(),
            warnings: Vec::new(),
            damage: Vec::new(),
            objects: None,
        })
    }

    /// The same for a configured host.
    pub fn of(config: &Config) -> Result<Self, RecordError> {
        let socket = config.paths.control_socket();
        Self::open(&config.paths.state, &|| ask_daemon(&socket))
    }

    /// How far a replica followed its host's feed, where collectors share a database: the place,
    /// and the number drawn for it; zeroes elsewhere.
    pub fn followed(&self) -> Result<(i64, i64), RecordError> {
        let number = |key| store::meta(&self.db, key).map(Option::unwrap_or_default);
        Ok((number("feed_at")?, number("feed_mark")?))
    }

    /// What a person should know before trusting what is shown.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of the journal that could not be read.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// The state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Sessions, newest first.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Summary>, RecordError> {
        let (clause, values) = filter.sql();
        let sql = format!("SELECT * FROM sessions WHERE {clause} ORDER BY number DESC LIMIT {}", {
            filter.limit.min(1_000_000)
        });
        self.db
            .prepare(&sql)
            .and_then(|mut s| s.query_map(params_from_iter(values), Summary::from_row)?.collect())
            .map_err(RecordError::sqlite("list sessions"))
    }

    /// A session by its id, the beginning or end of its id, or its number.
    pub fn find(&self, name: &str) -> Result<Summary, RecordError> {
        let fail = RecordError::sqlite;
        if let Ok(number) = name.parse::<u32>()
            && let Some(s) = Summary::load(&self.db, number.into()).map_err(fail("find"))?
        {
            return Ok(s);
        }
        let id = name.to_ascii_uppercase();
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(RecordError::Contents(format!("{name:?} is no session id")));
        }
        let found: Vec<Summary> = self
            .db
            .prepare("SELECT * FROM sessions WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 2")
            .and_then(|mut s| s.query_map([&id, &format!("{id}~")], Summary::from_row)?.collect())
            .map_err(fail("find a session"))?;
        match <[Summary; 1]>::try_from(found) {
            Ok([session]) => Ok(session),
            Err(none) if none.is_empty() => Err(RecordError::Contents(format!(
                "no session {name:?}: see `interceptor sessions list`"
            ))),
            Err(_) => Err(RecordError::Contents(format!(
                "several sessions begin with {name:?}: say more"
            ))),
        }
    }

    /// The events of a session behind a position, in order.
    pub fn events(
        &self,
        number: u64,
        after: u64,
        mut take: impl FnMut(&StoredEvent<'_>),
    ) -> Result<(), RecordError> {
        self.events_until(number, after, |e| {
            take(e);
            true
        })
    }

    /// The same until the taker has enough.
    pub fn events_until(
        &self,
        number: u64,
        after: u64,
        take: impl FnMut(&StoredEvent<'_>) -> bool,
    ) -> Result<(), RecordError> {
        recordings::each_event_until(&self.db, self.objects.as_deref(), number, after, take)
    }

    /// The same without attachments, wherever these are.
    pub fn bodies_until(
        &self,
        number: u64,
        after: u64,
        take: impl FnMut(&StoredEvent<'_>) -> bool,
    ) -> Result<(), RecordError> {
        store::each_body_until(&self.db, number, after, take)
            .map_err(RecordError::sqlite("read events"))
    }

    /// Bytes of a session's events, without reading them.
    pub fn bytes_of(&self, number: u64) -> Result<u64, RecordError> {
        let sql = "SELECT coalesce(sum(octet_length(body) + coalesce(octet_length(data), 0)), 0) \
                   FROM events WHERE id > ?1 AND id <= ?2";
        let range = params![store::event_id(number, 0), store::event_id(number, store::MAX_SEQ)];
        self.db
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(range, |r| r.get::<_, i64>(0)))
            .map(|bytes| bytes.max(0).unsigned_abs())
            .map_err(RecordError::sqlite("measure a session"))
    }

    /// Events whose body contains a text (ASCII letters in either case), newest session first.
    pub fn search(&self, text: &str, filter: &Filter) -> Result<Vec<Hit>, RecordError> {
        let (clause, mut values) = filter.sql();
        values.push(Value::Text(like(text)));
        let sql = format!(
            "SELECT s.id, s.number, e.id, e.ts_us, e.kind, e.body FROM sessions s \
             JOIN events e ON e.id > s.number << 31 AND e.id < (s.number + 1) << 31 \
             WHERE {clause} AND e.body LIKE ?{} ESCAPE '!' \
             ORDER BY s.number DESC, e.id LIMIT {}",
            values.len(),
            filter.limit.min(100_000)
        );
        self.db
            .prepare(&sql)
            .and_then(|mut s| s.query_map(params_from_iter(values), Hit::from_row)?.collect())
            .map_err(RecordError::sqlite("search"))
    }

    /// The first event of one session whose body contains a text, as [`Reader::search`] finds it.
    pub fn first_hit(&self, number: u64, text: &str) -> Result<Option<Hit>, RecordError> {
        self.first_hit_of(number, (0, store::MAX_SEQ), text, |_| true)
    }

    /// The same behind an event and up to another, and only where the body fits.
    pub fn first_hit_of(
        &self,
        number: u64,
        (behind, last): (u64, u64),
        text: &str,
        fits: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Hit>, RecordError> {
        let id = |seq: u64| store::event_id(number, seq.min(store::MAX_SEQ));
        let read = || -> rusqlite::Result<Option<Hit>> {
            let mut s = self.db.prepare_cached(
                "SELECT s.id, s.number, e.id, e.ts_us, e.kind, e.body FROM sessions s \
                 JOIN events e ON e.id > ?2 AND e.id <= ?3 \
                 WHERE s.number = ?1 AND e.body LIKE ?4 ESCAPE '!' ORDER BY e.id",
            )?;
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            let mut rows = s.query(params![number, id(behind), id(last), like(text)])?;
            while let Some(row) = rows.next()? {
                if fits(row.get_ref(5)?.as_bytes().unwrap_or_default()) {
                    return Hit::from_row(row).map(Some);
                }
            }
            Ok(None)
        };
        read().map_err(RecordError::sqlite("search a session"))
    }

    /// The newest checkpoint, to be kept elsewhere.
    pub fn anchor(&self) -> Result<Anchor, RecordError> {
        let (checkpoint, signature): (String, Vec<u8>) = self
            .db
            .query_row(
                "SELECT body, signature FROM checkpoints ORDER BY idx DESC LIMIT 1",
                [],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .map_err(RecordError::sqlite("read the last checkpoint"))?;
        Ok(Anchor {
            checkpoint,
            signature: STANDARD.encode(signature),
            public_key: STANDARD.encode(self.public_key()?.0),
        })
    }

    /// The host's public key as exported beside the store.
    pub fn public_key(&self) -> Result<PublicKey, RecordError> {
        PublicKey::load(&self.state.join("host.pub"))
    }
}

impl Hit {
    fn from_row(r: &Row<'_>) -> rusqlite::Result<Self> {
        let body: String = r.get(5)?;
        Ok(Self {
            session: r.get(0)?,
            number: r.get::<_, i64>(1)? as u64,
            seq: store::seq_of(r.get(2)?),
            ts_us: r.get(3)?,
            kind: r.get(4)?,
            body: serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body)),
        })
    }
}

/// A pattern for `LIKE … ESCAPE '!'`. Bodies are JSON, so a text is looked for as JSON writes it.
fn like(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    let escaped = inner.replace('!', "!!").replace('%', "!%").replace('_', "!_");
    format!("%{escaped}%")
}

impl Filter {
    pub(super) fn sql(&self) -> (String, Vec<Value>) {
        let mut clause = String::from("1");
        let mut values = Vec::new();
        let mut add = |condition: &str, value: Value| {
            values.push(value);
            clause.push_str(&format!(" AND {condition} ?{}", values.len()));
        };
        for (column, value) in [
            ("agent =", &self.agent),
            ("principal =", &self.principal),
            ("service =", &self.service),
        ] {
            if let Some(value) = value {
                add(column, Value::Text(value.clone()));
            }
        }
        if let Some(t) = self.since_us {
            add("opened_us >=", Value::Integer(t));
        }
        if let Some(t) = self.until_us {
            add("opened_us <", Value::Integer(t));
        }
        if let Some(n) = self.below {
            add("number <", Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)));
        }
        match self.open {
            Some(true) => clause.push_str(" AND seal IS NULL"),
            Some(false) => clause.push_str(" AND seal IS NOT NULL"),
            None => {}
        }
        (clause, values)
    }
}

/// Asks the daemon behind a control socket to drain the journal: one line of its protocol,
/// which this module does not import because it stands below it.
pub fn ask_daemon(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"{\"v\":1,\"id\":1,\"op\":\"drain\"}\n")?;
    let mut line = String::new();
    BufReader::new(stream.take(64 * 1024)).read_line(&mut line)?;
    let answer: serde_json::Value = serde_json::from_str(&line)?;
    if answer.get("ok").is_some_and(|ok| !ok.is_null() && *ok != false) {
        return Ok(());
    }
    let why = answer.get("error").map_or_else(|| line.trim().to_owned(), ToString::to_string);
    Err(std::io::Error::other(why))
}

fn drain_alone(state: &Path) -> Result<Vec<Damage>, RecordError> {
    let mut store = Store::open(state, Durability::Process)?;
    let key = PublicKey::load(&state.join("host.pub"))?;
    let mut consumer = Consumer::new(&state.join("journal"), key, &store)?.strict();
    let mut found = Pass::default();
    consumer.run(&mut store, None, &mut found)?;
    Ok(found.damage)
}
