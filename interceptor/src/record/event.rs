//! What a session's record consists of: one struct per kind of event.
//!
//! The recorder itself treats a body as opaque JSON; these structs are the contract between the
//! pipeline that writes events and the readers that show, search and replay them. A raw token,
//! a service credential or an unmasked governed value must never be put into one of them.
//!
//! Fields that come from a hot path borrow (`Cow`), so that writing an event copies nothing
//! but the JSON text. Readers accept bodies with unknown fields, so that old readers can show
//! newer records.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One event, ready to be appended to a session's record.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a, B: ?Sized> {
    /// Microseconds since the Unix epoch.
    pub ts_us: i64,
    /// What happened; at most 64 bytes, e.g. `request`.
    pub kind: &'a str,
    /// Serialised as JSON.
    pub body: &'a B,
    /// Binary attachment, e.g. result rows as the agent saw them ([`crate::record::rows`]).
    pub data: &'a [u8],
}

impl<'a, B: Body> Event<'a, B> {
    /// An event that happens now.
    pub fn now(body: &'a B) -> Self {
        Self::at(now_us(), body)
    }

    /// An event that happened at a known time.
    pub fn at(ts_us: i64, body: &'a B) -> Self {
        Self { ts_us, kind: B::KIND, body, data: &[] }
    }

    /// The same event with a binary attachment.
    pub fn with_data(self, data: &'a [u8]) -> Self {
        Self { data, ..self }
    }
}

/// A body that knows its kind.
pub trait Body: Serialize {
    /// The kind that stands in the record.
    const KIND: &'static str;
}

/// Microseconds since the Unix epoch, zero for clocks before it.
pub fn now_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

macro_rules! kinds {
    ($($body:ty => $kind:literal),* $(,)?) => {
        $(impl Body for $body { const KIND: &'static str = $kind; })*
        /// Every kind that the pipeline writes.
        pub const KINDS: &[&str] = &[$($kind),*];
    };
}

kinds! {
    Opening<'_> => "session.open",
    IdentityProven<'_> => "identity.proven",
    IdentityRefused<'_> => "identity.refused",
    Admission<'_> => "admission",
    UpstreamOpen<'_> => "upstream.open",
    Request<'_> => "request",
    HoldOpen<'_> => "hold.open",
    HoldDecided<'_> => "hold.decided",
    Response<'_> => "response",
    Prepare<'_> => "prepare",
    Notice<'_> => "notice",
    CopyProgress<'_> => "copy.progress",
    CopyEnd<'_> => "copy.end",
    ChannelOpen<'_> => "channel.open",
    ChannelPty<'_> => "channel.pty",
    ChannelEnv<'_> => "channel.env",
    ChannelData<'_> => "channel.data",
    ChannelResize => "channel.resize",
    ChannelSignal<'_> => "channel.signal",
    ChannelExit<'_> => "channel.exit",
    ChannelClose<'_> => "channel.close",
    FileDone<'_> => "file.done",
    Alert<'_> => "alert",
    SessionEnd<'_> => "session.end",
}

/// First event of every session: what the kernel and the configuration know before a byte is
/// read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening<'a> {
    /// The session.
    #[serde(with = "ulid_text")]
    pub id: ulid::Ulid,
    /// When the connection was accepted; microseconds since the Unix epoch.
    pub ts_us: i64,
    /// Name of the host as configured.
    pub host: Cow<'a, str>,
    /// Name of the service.
    pub service: Cow<'a, str>,
    /// `postgres` or `ssh`.
    pub protocol: Cow<'a, str>,
    /// Address and port of the client.
    pub source: Cow<'a, str>,
    /// Address and port that the client dialled.
    pub original_dst: Cow<'a, str>,
    /// `enforce` or `observe`.
    pub mode: Cow<'a, str>,
    /// Owner of the client's socket, where the kernel told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_uid: Option<u32>,
}

/// The token was good and the agent is registered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdentityProven<'a> {
    /// Registered name of the agent.
    pub agent: Cow<'a, str>,
    /// On whose behalf it acts (`sub`).
    pub principal: Cow<'a, str>,
    /// Configured name of the issuer.
    pub issuer: Cow<'a, str>,
    /// The agent's labels at that moment.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Everything the identity module captured: claims, key, digest of the token, its age.
    pub claims: Value,
    /// This use pinned the token to its source.
    #[serde(default)]
    pub pinned_new: bool,
    /// What counts as the token's source, e.g. `loopback/uid:1000`.
    #[serde(default)]
    pub source_key: Cow<'a, str>,
    /// When the token ends; seconds since the Unix epoch.
    #[serde(default)]
    pub expires_at: i64,
    /// False for `[[service.passthrough]]` and for `observe` without a token.
    #[serde(default = "yes")]
    pub proven: bool,
    /// How the token came ([`crate::identity::Way`]): `password`, `certificate`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Cow<'a, str>>,
}

/// The token was refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdentityRefused<'a> {
    /// Code such as `TOKEN_EXPIRED`.
    pub code: Cow<'a, str>,
    /// What the agent was told.
    pub message: Cow<'a, str>,
    /// Claims, when the signature was good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Value>,
    /// Somebody should look.
    #[serde(default)]
    pub alert: bool,
    /// Only recorded, not enforced (`observe`).
    #[serde(default)]
    pub observed: bool,
}

/// What policy said about the connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Admission<'a> {
    /// `allow`, `hold` or `deny`.
    pub verdict: Cow<'a, str>,
    /// Database role the agent asked for.
    pub role: Cow<'a, str>,
    /// Database the agent asked for.
    pub database: Cow<'a, str>,
    /// The client's own name (`application_name`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Cow<'a, str>>,
    /// Startup parameters, without anything secret.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// Rules that made the verdict.
    #[serde(default)]
    pub rules: Cow<'a, [String]>,
    /// Version of the policy set.
    #[serde(default)]
    pub policy: Cow<'a, str>,
    /// What the agent was told, when it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// `TLSv1.3 TLS_AES_256_GCM_SHA384`, or absent for plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Cow<'a, str>>,
    /// Only recorded, not enforced (`observe`).
    #[serde(default)]
    pub observed: bool,
}

/// The service was reached with its own credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UpstreamOpen<'a> {
    /// Socket or address.
    pub address: Cow<'a, str>,
    /// Role that was authenticated.
    pub role: Cow<'a, str>,
    /// Database that was opened.
    pub database: Cow<'a, str>,
    /// Process of the server that serves this session.
    #[serde(default)]
    pub server_pid: Option<i32>,
    /// The server's version.
    #[serde(default)]
    pub server_version: Cow<'a, str>,
    /// How it was authenticated: `scram-sha-256`, `trust`, `agent` (relayed).
    #[serde(default)]
    pub auth: Cow<'a, str>,
    /// Time it took.
    #[serde(default)]
    pub duration_us: u64,
}

/// One thing the agent asked for, with its verdict. Durable before it is forwarded.
///
/// The verdict stands before the text: the store counts verdicts by looking at the first bytes
/// of the body only.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request<'a> {
    /// Counts the requests of the session from 1.
    pub n: u64,
    /// `allow`, `hold` or `deny`.
    pub verdict: Cow<'a, str>,
    /// Class of the statement: `select`, `update`, `ddl`, …; of an SSH request: `exec`, `shell`,
    /// `sftp`, …
    pub class: Cow<'a, str>,
    /// The SSH channel on which it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ch: Option<u32>,
    /// Only recorded, not enforced (`observe`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub observed: bool,
    /// `simple`, `extended`, `function`, …
    #[serde(default)]
    pub via: Cow<'a, str>,
    /// Rules that made the verdict.
    #[serde(default)]
    pub rules: Cow<'a, [String]>,
    /// Version of the policy set.
    #[serde(default)]
    pub policy: Cow<'a, str>,
    /// Code of a refusal, e.g. `42501`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Cow<'a, str>>,
    /// What the agent was told, when it was refused or held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Cow<'a, str>>,
    /// The statement, scrubbed of masked literals and detected values.
    pub text: Cow<'a, str>,
    /// Length of the whole statement when `text` was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_bytes: Option<u64>,
    /// Bind values, scrubbed; `null` is SQL null.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub values: Cow<'a, [Option<String>]>,
    /// HMAC of the exact text and values ([`crate::record::HmacKey`]).
    #[serde(default)]
    pub hmac: Cow<'a, str>,
    /// Masked columns of its result: `index:method`.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub masks: Cow<'a, [String]>,
}

/// A request began to wait for a human.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldOpen<'a> {
    /// The request.
    pub n: u64,
    /// The hold, e.g. `h-7k2m9q`.
    pub id: Cow<'a, str>,
    /// Rules that hold it.
    #[serde(default)]
    pub rules: Cow<'a, [String]>,
    /// When waiting ends in a refusal; microseconds since the Unix epoch.
    pub deadline_us: i64,
}

/// The wait ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HoldDecided<'a> {
    /// The request.
    pub n: u64,
    /// The hold.
    pub id: Cow<'a, str>,
    /// `granted`, `denied`, `expired`, `cancelled` or `withdrawn`.
    pub outcome: Cow<'a, str>,
    /// Who decided, e.g. `alice (okta:00u1)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Cow<'a, str>>,
    /// `once`, or how long the same shape may pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Cow<'a, str>>,
    /// What the decider wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// How long the request waited.
    #[serde(default)]
    pub waited_us: u64,
}

/// The answer to a request, as the agent saw it; the attachment holds its first bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response<'a> {
    /// The request.
    pub n: u64,
    /// Command tag, e.g. `SELECT 3`.
    #[serde(default)]
    pub tag: Cow<'a, str>,
    /// Rows that were sent.
    #[serde(default)]
    pub rows: u64,
    /// Bytes that were sent.
    #[serde(default)]
    pub bytes: u64,
    /// From forwarding to the last byte.
    #[serde(default)]
    pub duration_us: u64,
    /// SQLSTATE and message, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorSeen<'a>>,
    /// Values that were masked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub masked: u64,
    /// The attachment does not hold everything that was sent.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// An error as the agent saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorSeen<'a> {
    /// SQLSTATE.
    pub code: Cow<'a, str>,
    /// Message, scrubbed.
    pub message: Cow<'a, str>,
}

/// A statement was prepared without being run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare<'a> {
    /// Name of the prepared statement; empty for the unnamed one.
    pub name: Cow<'a, str>,
    /// Class of the statement.
    #[serde(default)]
    pub class: Cow<'a, str>,
    /// The statement, scrubbed.
    pub text: Cow<'a, str>,
}

/// A notice, warning or notification as the agent saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Notice<'a> {
    /// The running request, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// `NOTICE`, `WARNING`, …
    pub severity: Cow<'a, str>,
    /// SQLSTATE.
    #[serde(default)]
    pub code: Cow<'a, str>,
    /// Message, scrubbed.
    pub message: Cow<'a, str>,
    /// `server`, or `interceptor` for our own.
    #[serde(default)]
    pub from: Cow<'a, str>,
}

/// Data inside a running COPY, stated at most 256 KiB or 100 ms late.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyProgress<'a> {
    /// The request.
    pub n: u64,
    /// `in` or `out`.
    pub direction: Cow<'a, str>,
    /// Bytes so far.
    pub bytes: u64,
    /// Rows (or messages) so far.
    #[serde(default)]
    pub rows: u64,
    /// Running BLAKE3 over everything so far, hex.
    pub blake3: Cow<'a, str>,
}

/// The end of a COPY.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyEnd<'a> {
    /// The request.
    pub n: u64,
    /// `in` or `out`.
    pub direction: Cow<'a, str>,
    /// Bytes in all.
    pub bytes: u64,
    /// Rows (or messages) in all.
    #[serde(default)]
    pub rows: u64,
    /// BLAKE3 over everything, hex.
    pub blake3: Cow<'a, str>,
    /// It ended before its end, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted: Option<Cow<'a, str>>,
}

/// An SSH channel was opened by the agent, or back to it (RFC 4254, section 5.1).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelOpen<'a> {
    /// Number of the channel, unique in its session.
    pub ch: u32,
    /// `session`, `direct-tcpip`, `direct-streamlocal@openssh.com`; back to the agent
    /// `forwarded-tcpip`, `forwarded-streamlocal@openssh.com`, `x11`, `auth-agent@openssh.com`.
    pub kind: Cow<'a, str>,
    /// Where a forward leads, or comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
}

/// A channel asked for a pseudo-terminal (RFC 4254, section 6.2).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelPty<'a> {
    /// The channel.
    pub ch: u32,
    /// `TERM`.
    pub term: Cow<'a, str>,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

/// A channel set an environment variable that was passed on. One that carried a token is
/// consumed and stands nowhere.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelEnv<'a> {
    /// The channel.
    pub ch: u32,
    /// Its name.
    pub name: Cow<'a, str>,
    /// Its value, scrubbed.
    pub value: Cow<'a, str>,
}

/// Data of a channel as the agent sent or saw it; the bytes are the attachment. May trail what
/// was forwarded by at most 256 KiB or 100 ms.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelData<'a> {
    /// The channel.
    pub ch: u32,
    /// `in` from the agent; `out` and `err` to it.
    pub stream: Cow<'a, str>,
    /// Bytes of this stream before these.
    pub offset: u64,
    /// Bytes that this event stands for.
    pub bytes: u64,
    /// They were typed while the terminal showed nothing (a password) and are not kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub redacted: bool,
    /// The limit of what is kept is reached: the attachment does not hold all of them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
}

/// A terminal's size changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelResize {
    /// The channel.
    pub ch: u32,
    /// Columns.
    pub cols: u32,
    /// Rows.
    pub rows: u32,
}

/// The agent sent a signal (RFC 4254, section 6.9).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelSignal<'a> {
    /// The channel.
    pub ch: u32,
    /// Its name without `SIG`.
    pub name: Cow<'a, str>,
}

/// What ran on a channel ended (RFC 4254, section 6.10).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChannelExit<'a> {
    /// The channel.
    pub ch: u32,
    /// The request that ran.
    pub n: u64,
    /// Exit status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// Signal that ended it, without `SIG`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Cow<'a, str>>,
    /// From forwarding to the end.
    #[serde(default)]
    pub duration_us: u64,
}

/// The end of a channel: what went over it in all.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ChannelClose<'a> {
    /// The channel.
    pub ch: u32,
    /// Bytes from the agent.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to the agent.
    #[serde(default)]
    pub bytes_out: u64,
    /// Bytes to the agent's standard error.
    #[serde(default)]
    pub bytes_err: u64,
    /// BLAKE3 over everything from the agent, hex.
    #[serde(default)]
    pub blake3_in: Cow<'a, str>,
    /// BLAKE3 over everything to the agent, hex.
    #[serde(default)]
    pub blake3_out: Cow<'a, str>,
    /// BLAKE3 over everything to its standard error, hex.
    #[serde(default)]
    pub blake3_err: Cow<'a, str>,
    /// Values that were masked.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub masked: u64,
}

/// A file was transferred, or as much of it as was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FileDone<'a> {
    /// The request that opened it.
    pub n: u64,
    /// The channel.
    pub ch: u32,
    /// `read` or `write`.
    pub op: Cow<'a, str>,
    /// Its path.
    pub path: Cow<'a, str>,
    /// Bytes that were transferred.
    pub bytes: u64,
    /// SHA-256 of them, hex.
    pub sha256: Cow<'a, str>,
    /// They are the file from its first byte on, without a gap.
    #[serde(default)]
    pub complete: bool,
}

/// Something that a person should look at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alert<'a> {
    /// Short code, e.g. `TOKEN_COPIED`.
    pub code: Cow<'a, str>,
    /// What happened.
    pub message: Cow<'a, str>,
}

/// Last event of a session that ended in order; see [`End`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionEnd<'a> {
    /// `client`, `server`, `expired`, `refused`, `policy`, `store`, `shutdown`, `interrupted`.
    pub reason: Cow<'a, str>,
    /// More words, when there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Cow<'a, str>>,
    /// Requests the session made.
    #[serde(default)]
    pub requests: u64,
    /// Bytes from the agent.
    #[serde(default)]
    pub bytes_in: u64,
    /// Bytes to the agent.
    #[serde(default)]
    pub bytes_out: u64,
    /// Data whose record was lost, in words; stands in the seal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_tail: Option<Cow<'a, str>>,
}

/// How a session ended; recorded as its last event and stated in its seal.
pub type End<'a> = SessionEnd<'a>;

impl<'a> SessionEnd<'a> {
    /// An end with a reason and nothing else to say.
    pub fn because(reason: &'a str) -> Self {
        Self {
            reason: Cow::Borrowed(reason),
            detail: None,
            requests: 0,
            bytes_in: 0,
            bytes_out: 0,
            lost_tail: None,
        }
    }
}

mod ulid_text {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(id: &ulid::Ulid, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(id.array_to_str(&mut [0; ulid::ULID_LEN]))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<ulid::Ulid, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        ulid::Ulid::from_string(&text).map_err(serde::de::Error::custom)
    }
}

fn yes() -> bool {
    true
}
fn is_false(b: &bool) -> bool {
    !*b
}
fn is_zero(n: &u64) -> bool {
    *n == 0
}
#[allow(clippy::ptr_arg)]
fn is_empty<T: Clone>(c: &Cow<'_, [T]>) -> bool {
    c.is_empty()
}
