//! What is said on the control socket.
//!
//! Every line is one JSON object. A request carries the protocol's version, an id that the
//! answer repeats, and an operation; an answer carries either `ok` or `error`.

use std::pin::Pin;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::approval::Scope;

/// Version of the protocol; a daemon answers only its own.
pub const VERSION: u32 = 1;
/// Longest request line.
pub const MAX_REQUEST: usize = 1 << 20;
/// Longest answer line: a held statement of the largest size, every byte escaped.
pub const MAX_ANSWER: usize = 8 << 20;

/// What a handler gives back, later.
pub type Answer<'a, T> =
    Pin<Box<dyn std::future::Future<Output = Result<T, ControlError>> + Send + 'a>>;

/// One request line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub v: u32,
    /// Chosen by the client, repeated in the answer.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub op: Op,
}

/// The operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", content = "args", deny_unknown_fields)]
pub enum Op {
    /// Answers [`Status`].
    #[serde(rename = "status")]
    Status,
    /// Drains the recorder into its database; answers [`Drained`].
    #[serde(rename = "drain")]
    Drain,
    /// Loads the policies anew; answers [`PolicyStatus`].
    #[serde(rename = "policy.reload")]
    PolicyReload,
    /// Answers a list of [`LiveSession`].
    #[serde(rename = "sessions.live")]
    SessionsLive,
    /// Ends running sessions; answers [`Killed`].
    #[serde(rename = "sessions.kill")]
    SessionsKill {
        /// Which ones.
        target: crate::session::Target,
        /// Why; recorded.
        #[serde(default)]
        reason: Option<String>,
    },
    /// Answers Prometheus text as a JSON string.
    #[serde(rename = "metrics")]
    Metrics,
    /// Answers [`Held`]; with `after`, waits until the set of holds has changed since.
    #[serde(rename = "approvals.list")]
    ApprovalsList {
        /// The `revision` of an earlier answer.
        #[serde(default)]
        after: Option<u64>,
    },
    /// Answers [`crate::approval::HoldDetail`].
    #[serde(rename = "approvals.show")]
    ApprovalsShow {
        /// The hold.
        id: String,
    },
    /// Answers [`Decided`].
    #[serde(rename = "approvals.decide")]
    ApprovalsDecide {
        /// The hold.
        id: String,
        /// Whether it may run.
        approve: bool,
        /// Grant the shape for this many seconds; absent means that request alone.
        #[serde(default)]
        for_seconds: Option<u64>,
        /// The decider's words.
        #[serde(default)]
        reason: Option<String>,
    },
    /// Answers a list of [`crate::approval::GrantSummary`].
    #[serde(rename = "approvals.grants")]
    ApprovalsGrants,
    /// Answers the withdrawn [`crate::approval::GrantSummary`].
    #[serde(rename = "approvals.revoke")]
    ApprovalsRevoke {
        /// The grant.
        id: String,
    },
}

/// One answer line. Exactly one of `ok` and `error`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`] of the daemon.
    pub v: u32,
    /// The request's id; 0 when the request could not be read.
    pub id: u64,
    /// The answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ok: Option<Value>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ControlError>,
}

/// A refusal or failure, with a stable code for scripts and words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// Stable code in capitals.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
}

impl ControlError {
    /// A failure with its code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }

    /// Something inside the daemon failed.
    pub fn failed(message: impl std::fmt::Display) -> Self {
        Self::new("FAILED", message.to_string())
    }
}

impl From<crate::approval::DecideError> for ControlError {
    fn from(e: crate::approval::DecideError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

/// Answer to [`Op::ApprovalsList`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Held {
    /// Changes whenever the set of holds does; goes into the next `after`.
    pub revision: u64,
    /// All that waits, oldest first.
    pub holds: Vec<crate::approval::HoldSummary>,
}

/// Answer to [`Op::ApprovalsDecide`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decided {
    /// The hold.
    pub id: String,
    /// `granted` or `denied`.
    pub outcome: String,
    /// Who decided.
    pub by: crate::approval::Decider,
    /// How far an approval reaches.
    pub scope: Option<Scope>,
    /// The standing grant, when the scope is a shape.
    pub grant: Option<String>,
}

/// Answer to [`Op::SessionsKill`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Killed {
    /// Ids of the sessions that were told to end.
    pub sessions: Vec<String>,
}

/// Answer to [`Op::Drain`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Drained {
    /// Events moved into the database by this call, where the recorder counts them.
    pub events: Option<u64>,
}

/// The state of a daemon at one glance.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon's binary.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Name of the host in records.
    pub host: String,
    /// Seconds since it began to serve.
    pub uptime_s: u64,
    /// Every configured service.
    pub services: Vec<ServiceStatus>,
    /// Sessions open now.
    pub live_sessions: u64,
    /// Requests that wait for a human (filled by the server).
    pub held: u64,
    /// Grants that stand (filled by the server).
    pub grants: u64,
    /// The rules in force.
    pub policy: PolicyStatus,
    /// Every configured issuer.
    pub issuers: Vec<IssuerStatus>,
    /// The store.
    pub record: RecordStatus,
    /// The way to the collector, where one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ship: Option<ShipStatus>,
}

/// The way to the collector in [`Status`]. Times in microseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShipStatus {
    /// Its address.
    pub collector: String,
    /// This host has a certificate of it.
    pub enrolled: bool,
    /// It answered last.
    pub connected: bool,
    /// Events that it does not have.
    pub waiting_events: u64,
    /// When the oldest session with such events opened.
    pub oldest_us: Option<i64>,
    /// When it acknowledged something last.
    pub acknowledged_us: Option<i64>,
    /// Ledger entries up to here are on its disk.
    pub acknowledged_ledger: u64,
    /// Events shipped since the daemon began.
    pub shipped_events: u64,
    /// Batches that it took since.
    pub batches: u64,
    /// Failures since.
    pub errors: u64,
    /// Why nothing is shipped now.
    pub problem: Option<String>,
    /// When the certificate ends.
    pub certificate_until_us: Option<i64>,
}

/// One service in [`Status`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    /// Configured name.
    pub name: String,
    /// What is spoken on it.
    pub protocol: String,
    /// The protected port.
    pub port: u16,
    /// `enforce` or `observe`.
    pub mode: String,
    /// Whether the daemon's listener stands in the kernel's slot.
    pub listening: bool,
    /// Sessions open now.
    pub live: u64,
    /// Connections the kernel gave to the daemon.
    pub steered: u64,
    /// Connections the kernel refused for want of a listener.
    pub refused: u64,
    /// Connections let through from exempt sources.
    pub exempt: u64,
    /// The daemon's own connections to the service.
    pub own: u64,
}

/// The rules in force.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// Short digest of their contents.
    pub version: String,
    /// How many rules.
    pub rules: u64,
    /// When they were loaded, microseconds since the Unix epoch.
    pub loaded_us: i64,
    /// Why the newest files are not in force, when the last reload failed.
    pub reload_error: Option<String>,
    /// What the centre has to do with it; absent where this host takes nothing from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub central: Option<CentralStatus>,
}

/// Policies from the centre on a host that takes them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CentralStatus {
    /// The newest version that was taken; 0 before the first.
    pub version: u64,
    /// Its rules are in force; false before the first version and after a withdrawal.
    pub in_force: bool,
    /// Digest of its files, hex.
    pub sha256: String,
    /// How many rules it has.
    pub rules: u64,
    /// When this host took it, microseconds since the Unix epoch.
    pub since_us: Option<i64>,
    /// Why a newer version is not in force.
    pub error: Option<String>,
    /// That newer version, where it is known.
    pub refused: Option<u64>,
}

/// One issuer in [`Status`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IssuerStatus {
    /// Configured name.
    pub name: String,
    /// Keys known.
    pub keys: u64,
    /// Seconds since the key set was fetched; absent when there is none.
    pub keys_age_s: Option<u64>,
    /// Why the last fetch failed.
    pub error: Option<String>,
}

/// The store in [`Status`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RecordStatus {
    /// Bytes it takes.
    pub bytes: u64,
    /// Most bytes it may take.
    pub max_bytes: u64,
    /// `process` or `disk`.
    pub durability: String,
    /// Why new requests are refused, when they are.
    pub refusing: Option<String>,
}

/// One open session.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LiveSession {
    /// Session id.
    pub id: String,
    /// Configured name of the service.
    pub service: String,
    /// Registered name of the agent; empty when unproven.
    pub agent: String,
    /// On whose behalf.
    pub principal: String,
    /// Address it came from.
    pub source: String,
    /// Database.
    pub database: String,
    /// Database role.
    pub role: String,
    /// When it began, microseconds since the Unix epoch.
    pub opened_us: i64,
    /// Requests so far.
    pub requests: u64,
    /// Id of the hold it waits on.
    pub held: Option<String>,
}
