//! Events as OTLP logs over HTTP, in their JSON form (`/v1/logs`).
//!
//! A 2xx is the acknowledgement. Everything else is tried again, and what the receiver asks for by
//! `Retry-After` is kept: also what OTLP calls not retryable, since a receiver that is set up
//! wrongly must not make a hole. Only what a receiver took a request for and refused a part of
//! (`partialSuccess`) is gone, as OTLP wants; it is counted and said.

use std::time::Duration;

use jiff::fmt::rfc2822::DateTimeParser;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::Otlp;
use super::line::Line;
use super::sink::{Delivered, Failure};
use crate::identity::https;

/// An answer must be there within this time.
const ANSWER: Duration = Duration::from_secs(30);
/// Most events of one request; fewer where the receiver says that it is too much.
const MOST: usize = 1_000;
/// Most bytes of one request's events.
const MOST_BYTES: usize = 2 << 20;
/// Longest time that a receiver may ask for.
const LONGEST: Duration = Duration::from_secs(3600);
/// Most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 10;

/// The receiver of one forward.
pub struct OtlpSink {
    to: Otlp,
    client: Option<Client>,
    /// Events of one request.
    most: usize,
}

/// What became of a request.
enum Answered {
    Taken(u64),
    TooMuch,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    partial_success: Option<Partial>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Partial {
    /// A 64-bit number, which JSON of protobuf writes as text.
    rejected_log_records: Value,
    error_message: String,
}

impl OtlpSink {
    /// With what is configured.
    pub fn new(to: &Otlp) -> Self {
        Self { to: to.clone(), client: None, most: MOST }
    }

    /// Delivers the first of some events.
    pub async fn send(&mut self, lines: &[Line]) -> Result<Delivered, Failure> {
        loop {
            let some = first(lines, self.most);
            match self.post(some).await {
                Ok(Answered::Taken(rejected)) => {
                    // More again, but not at once: each try that fails costs a request.
                    self.most = (self.most + self.most / 16 + 1).min(MOST);
                    return Ok(Delivered { lines: some.len(), rejected });
                }
                Ok(Answered::TooMuch) if some.len() > 1 => self.most = some.len() / 2,
                Ok(Answered::TooMuch) => {
                    return Err(Failure::new(
                        "otlp: one event is too much for it (413): set max_event lower, or its \
                         limit higher",
                    ));
                }
                Err(failure) => {
                    // The next attempt reads ca_file anew.
                    self.client = None;
                    return Err(failure);
                }
            }
        }
    }

    async fn post(&mut self, lines: &[Line]) -> Result<Answered, Failure> {
        let failed = |why: String| Failure::new(format!("otlp: {why}"));
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let ca_file = self.to.ca_file.as_deref();
                https::receiver_client(&self.to.url, ca_file).map_err(failed)?
            }
        };
        self.client = Some(client.clone());
        let request = client
            .post(self.to.url.clone())
            .headers(self.headers().map_err(failed)?)
            .timeout(ANSWER)
            .body(body(lines).to_string());
        let answer = request.send().await.map_err(|e| {
            // A URL may hold a secret.
            failed(format!("{}: look at url and ca_file", https::chain(&e.without_url())))
        })?;
        match answer.status() {
            status if status.is_success() => Ok(Answered::Taken(rejected(answer).await)),
            StatusCode::PAYLOAD_TOO_LARGE => Ok(Answered::TooMuch),
            status => {
                let wait = retry_after(answer.headers());
                let why = format!("otlp: it answered {status}: {}", hint(status));
                Err(Failure { why, wait })
            }
        }
    }

    fn headers(&self) -> Result<HeaderMap, String> {
        let mut all = HeaderMap::new();
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, secret) in &self.to.headers {
            let secret = secret.read().map_err(|e| e.to_string())?;
            let wrong = || format!("headers: {name:?} holds what no header may hold");
            let mut value = HeaderValue::from_str(secret.expose_secret()).map_err(|_| wrong())?;
            value.set_sensitive(true);
            all.insert(name.parse::<HeaderName>().map_err(|_| wrong())?, value);
        }
        Ok(all)
    }
}

/// As many as one request may have; at least one.
fn first(lines: &[Line], most: usize) -> &[Line] {
    let mut bytes = 0;
    let fit = lines.iter().take(most.max(1)).take_while(|line| {
        bytes += line.text.len();
        bytes <= MOST_BYTES
    });
    &lines[..fit.count().max(1).min(lines.len())]
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "look at headers",
        404 | 405 => "look at url: it ends with /v1/logs",
        429 => "it is asked too often; it is left alone as long as it says",
        500..=599 => "look at its log",
        300..=399 => "redirects are not followed: name its last address in url",
        _ => "it does not want these events: look at its log",
    }
}

/// When to come back: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = DateTimeParser::new().parse_timestamp(text).ok()?;
            Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST))
}

/// How many events a receiver refused for good, of those that it was given.
async fn rejected(mut answer: Response) -> u64 {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        if body.len() + piece.len() > MAX_ANSWER {
            return 0;
        }
        body.extend_from_slice(&piece);
    }
    // Many answer nothing, or not in JSON: that is no refusal.
    let answer: Answer = serde_json::from_slice(&body).unwrap_or_default();
    let Some(partial) = answer.partial_success else { return 0 };
    let count = match &partial.rejected_log_records {
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    };
    if count > 0 {
        let said: String =
            partial.error_message.chars().filter(|c| !c.is_control()).take(200).collect();
        tracing::error!(count, said, "otlp: the receiver refused events for good");
    }
    count
}

/// `ExportLogsServiceRequest`: one resource for each run of events of one host.
fn body(lines: &[Line]) -> Value {
    let of_hosts = lines.chunk_by(|a, b| a.host == b.host).map(|lines| {
        let host = lines.first().map_or("", |line| line.host.as_str());
        json!({
            "resource": { "attributes": [
                text("service.name", "interceptor"), text("host.name", host),
            ] },
            "scopeLogs": [{
                "scope": { "name": "interceptor", "version": env!("CARGO_PKG_VERSION") },
                "logRecords": lines.iter().map(record).collect::<Vec<_>>(),
            }],
        })
    });
    json!({ "resourceLogs": of_hosts.collect::<Vec<_>>() })
}

fn record(line: &Line) -> Value {
    let (number, word) = severity(line.severity);
    json!({
        "timeUnixNano": (i128::from(line.time_us.max(0)) * 1000).to_string(),
        "observedTimeUnixNano": (i128::from(crate::record::now_us()) * 1000).to_string(),
        "severityNumber": number,
        "severityText": word,
        "body": { "stringValue": line.text },
        "attributes": [
            text("log.record.uid", &line.uid),
            { "key": "ocsf.class_uid", "value": { "intValue": line.class.to_string() } },
        ],
    })
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// OpenTelemetry's number and OCSF's word for a severity of OCSF.
fn severity(ocsf: u32) -> (u32, &'static str) {
    match ocsf {
        1 => (9, "Informational"),
        2 => (10, "Low"),
        3 => (13, "Medium"),
        4 => (17, "High"),
        5 => (18, "Critical"),
        6 => (21, "Fatal"),
        _ => (0, "Unknown"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn receivers_say_when_to_come_back_in_two_ways() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("999999999"), Some(LONGEST));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("Wed, 21 Oct 2099 07:28:00 GMT"), Some(LONGEST));
        assert_eq!(after("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn a_request_has_as_many_events_as_fit() {
        let line = |bytes: usize| Line {
            uid: String::new(),
            host: String::new(),
            time_us: 0,
            class: 0,
            severity: 0,
            text: "x".repeat(bytes),
        };
        assert_eq!(first(&vec![line(10); 5], 3).len(), 3);
        assert_eq!(first(&[line(MOST_BYTES - 1), line(10)], 9).len(), 1);
        assert_eq!(first(&[line(MOST_BYTES + 1), line(10)], 9).len(), 1);
    }
}
