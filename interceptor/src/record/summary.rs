//! A session's row in the list, derived from its events and from nothing else, so that
//! `verify` can derive it again and compare.

use rusqlite::{Connection, OptionalExtension, Row, named_params};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::event::{Admission, IdentityProven, Opening, SessionEnd};
use super::frame::EventFrame;

/// One row of `sessions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// The host's gap-free session number.
    pub number: u64,
    /// ULID.
    pub id: String,
    /// Microseconds since the Unix epoch.
    pub opened_us: i64,
    /// Microseconds since the Unix epoch; absent while open.
    pub closed_us: Option<i64>,
    /// Name of the host.
    pub host: String,
    /// Name of the service.
    pub service: String,
    /// Protocol of the service.
    pub protocol: String,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Address and port of the client.
    pub source: String,
    /// What the client dialled.
    pub original_dst: String,
    /// Registered agent.
    pub agent: Option<String>,
    /// On whose behalf.
    pub principal: Option<String>,
    /// Who says so.
    pub issuer: Option<String>,
    /// A token proved it.
    pub proven: bool,
    /// Database role.
    pub role: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// The client's own name.
    pub client: Option<String>,
    /// Events.
    pub events: u64,
    /// Requests.
    pub requests: u64,
    /// Requests that were allowed at once.
    pub allowed: u64,
    /// Requests that were held.
    pub held: u64,
    /// Requests that were denied, and a connection that was refused.
    pub denied: u64,
    /// Requests that the server failed.
    pub errors: u64,
    /// Rows that went to the agent.
    pub rows: u64,
    /// Values that were masked.
    pub masked: u64,
    /// Alerts that were raised.
    pub alerts: u64,
    /// Why it ended.
    pub reason: Option<String>,
    /// Index of its seal in the ledger.
    pub seal: Option<u64>,
}

/// What is wanted of a response; the rest is passed over.
#[derive(Deserialize)]
struct ResponseCounts {
    #[serde(default)]
    rows: u64,
    #[serde(default)]
    masked: u64,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct VerdictOnly<'a> {
    #[serde(borrow)]
    verdict: std::borrow::Cow<'a, str>,
}

impl Summary {
    /// Before the first event.
    pub fn new(number: u64, id: ulid::Ulid) -> Self {
        Self { number, id: id.to_string(), ..Self::default() }
    }

    /// Takes one more event into account. A body that is not of its kind's shape counts as an
    /// event and changes nothing else.
    pub fn apply(&mut self, e: &EventFrame<'_>) {
        self.events += 1;
        match e.kind {
            "session.open" => self.open(e.body),
            "identity.proven" => self.identity(e.body),
            "identity.refused" => self.denied += 1,
            "admission" => self.admission(e.body),
            "request" => self.request(e.body),
            "response" => self.response(e.body),
            "alert" => self.alerts += 1,
            "session.end" => {
                self.closed_us = Some(e.ts_us);
                if let Ok(end) = serde_json::from_slice::<SessionEnd<'_>>(e.body) {
                    self.reason = Some(end.reason.into_owned());
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, body: &[u8]) {
        let Ok(o) = serde_json::from_slice::<Opening<'_>>(body) else { return };
        self.opened_us = o.ts_us;
        self.host = o.host.into_owned();
        self.service = o.service.into_owned();
        self.protocol = o.protocol.into_owned();
        self.mode = o.mode.into_owned();
        self.source = o.source.into_owned();
        self.original_dst = o.original_dst.into_owned();
    }

    fn identity(&mut self, body: &[u8]) {
        let Ok(i) = serde_json::from_slice::<IdentityProven<'_>>(body) else { return };
        self.proven = i.proven;
        self.agent = Some(i.agent.into_owned());
        self.principal = Some(i.principal.into_owned());
        self.issuer = Some(i.issuer.into_owned());
    }

    fn admission(&mut self, body: &[u8]) {
        let Ok(a) = serde_json::from_slice::<Admission<'_>>(body) else { return };
        self.role = Some(a.role.into_owned());
        self.database = Some(a.database.into_owned());
        self.client = a.client.map(|c| c.into_owned());
        if a.verdict == "deny" {
            self.denied += 1;
        }
    }

    fn request(&mut self, body: &[u8]) {
        self.requests += 1;
        let early = early_verdict(body).map(std::borrow::Cow::Borrowed);
        let verdict = early
            .or_else(|| serde_json::from_slice::<VerdictOnly<'_>>(body).ok().map(|v| v.verdict));
        match verdict.as_deref() {
            Some("allow") => self.allowed += 1,
            Some("hold") => self.held += 1,
            Some("deny") => self.denied += 1,
            _ => {}
        }
    }

    fn response(&mut self, body: &[u8]) {
        if let Ok(r) = serde_json::from_slice::<ResponseCounts>(body) {
            self.rows += r.rows;
            self.masked += r.masked;
            self.errors += u64::from(r.error.is_some());
        }
    }

    /// Writes the row.
    pub fn save(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached(
            "INSERT OR REPLACE INTO sessions (number, id, opened_us, closed_us, host, service, \
             protocol, mode, source, original_dst, agent, principal, issuer, proven, role, \
             database, client, events, requests, allowed, held, denied, errors, rows, masked, \
             alerts, reason, seal) VALUES (:number, :id, :opened_us, :closed_us, :host, :service, \
             :protocol, :mode, :source, :original_dst, :agent, :principal, :issuer, :proven, \
             :role, :database, :client, :events, :requests, :allowed, :held, :denied, :errors, \
             :rows, :masked, :alerts, :reason, :seal)",
        )?
        .execute(named_params! {
            ":number": self.number as i64, ":id": self.id, ":opened_us": self.opened_us,
            ":closed_us": self.closed_us, ":host": self.host, ":service": self.service,
            ":protocol": self.protocol, ":mode": self.mode, ":source": self.source,
            ":original_dst": self.original_dst, ":agent": self.agent,
            ":principal": self.principal, ":issuer": self.issuer, ":proven": self.proven,
            ":role": self.role, ":database": self.database, ":client": self.client,
            ":events": self.events as i64, ":requests": self.requests as i64,
            ":allowed": self.allowed as i64, ":held": self.held as i64,
            ":denied": self.denied as i64, ":errors": self.errors as i64,
            ":rows": self.rows as i64, ":masked": self.masked as i64,
            ":alerts": self.alerts as i64, ":reason": self.reason,
            ":seal": self.seal.map(|s| s as i64),
        })?;
        Ok(())
    }

    /// Reads a row by number.
    pub fn load(db: &Connection, number: u64) -> rusqlite::Result<Option<Self>> {
        db.prepare_cached("SELECT * FROM sessions WHERE number = ?1")?
            .query_row([number as i64], Self::from_row)
            .optional()
    }

    /// Reads the columns of `SELECT *`.
    pub fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let count = |name: &str| row.get::<_, i64>(name).map(|n| n.max(0) as u64);
        Ok(Self {
            number: count("number")?,
            id: row.get("id")?,
            opened_us: row.get("opened_us")?,
            closed_us: row.get("closed_us")?,
            host: row.get("host")?,
            service: row.get("service")?,
            protocol: row.get("protocol")?,
            mode: row.get("mode")?,
            source: row.get("source")?,
            original_dst: row.get("original_dst")?,
            agent: row.get("agent")?,
            principal: row.get("principal")?,
            issuer: row.get("issuer")?,
            proven: row.get("proven")?,
            role: row.get("role")?,
            database: row.get("database")?,
            client: row.get("client")?,
            events: count("events")?,
            requests: count("requests")?,
            allowed: count("allowed")?,
            held: count("held")?,
            denied: count("denied")?,
            errors: count("errors")?,
            rows: count("rows")?,
            masked: count("masked")?,
            alerts: count("alerts")?,
            reason: row.get("reason")?,
            seal: row.get::<_, Option<i64>>("seal")?.map(|s| s.max(0) as u64),
        })
    }
}

/// The verdict of a request whose body begins `{"n":1,"verdict":"allow"`, as it is written
/// here. Not a JSON parser: anything else is left to one.
fn early_verdict(body: &[u8]) -> Option<&str> {
    let rest = body.strip_prefix(b"{\"n\":")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let rest = rest.get(digits..)?.strip_prefix(b",\"verdict\":\"")?;
    let end = rest.iter().take(16).position(|b| *b == b'"')?;
    std::str::from_utf8(&rest[..end]).ok().filter(|v| !v.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_counted_wherever_they_stand() {
        for (body, want) in [
            (r#"{"n":1,"verdict":"deny","text":"x"}"#, (0, 1)),
            (r#"{"text":"\"verdict\":\"deny\"","verdict":"allow","n":1}"#, (1, 0)),
            (r#"{"n":12,"verdict":"allow"}"#, (1, 0)),
            (r#"not json"#, (0, 0)),
        ] {
            let mut s = Summary::default();
            s.request(body.as_bytes());
            assert_eq!((s.requests, s.allowed, s.denied), (1, want.0, want.1), "{body}");
        }
    }
}
