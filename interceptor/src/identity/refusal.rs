//! Why a token was refused: one code per check, words for the agent, and what only the record
//! may know. Nothing here ever carries a raw token or the address of somebody else.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::claims::Claims;

/// The check that refused a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Nothing was presented.
    Missing,
    /// More than 16 KiB.
    TooLarge,
    /// No JWT at all: an opaque token of an org authorization server, or a password.
    Opaque,
    /// A JWT that breaks the form: segments, base64url, JSON, duplicate members.
    Malformed,
    /// The header demands an extension (`crit`).
    Critical,
    /// Another kind of token: a foreign `typ`, an ID token, an assertion.
    WrongType,
    /// Not the signature algorithm that is pinned for the issuer.
    WrongAlgorithm,
    /// `iss` is no configured issuer, or none that the service accepts.
    UnknownIssuer,
    /// The issuer does not publish the key named by `kid`, or not for this use.
    UnknownKey,
    /// The issuer's keys cannot be had, or only too old ones.
    KeysUnavailable,
    /// The signature does not verify.
    BadSignature,
    /// A claim is missing or not of its type.
    BadClaim,
    /// `exp` has passed.
    Expired,
    /// `nbf` or `iat` lies ahead.
    NotYet,
    /// `exp - iat` is longer than the issuer may grant.
    TooLong,
    /// `now - iat` is longer than the issuer or the service tolerates.
    Stale,
    /// `aud` is not exactly this service.
    WrongAudience,
    /// The scope that the service demands is not in the token.
    ScopeExceeded,
    /// The `act` chain is broken or too deep.
    ActorChain,
    /// The agent is not registered.
    UnknownAgent,
    /// The agent is registered, but not for this source address.
    SourceNotAllowed,
    /// The token is bound to a key (`cnf`) that was not proven on this connection.
    ProofRequired,
    /// The key that was proven on this connection is registered for another agent.
    ForeignKey,
    /// The token was first used from somewhere else.
    Copied,
    /// The collector did not say in time whether the token is used here alone.
    Unreserved,
    /// An operator ended what the token had opened, or it was used at two hosts.
    Barred,
    /// No token that is bound to the connection's key was presented from its source.
    NotPresented,
    /// The token is not bound to a key, and here only bound ones are taken.
    Unbound,
    /// The ticket is unknown, used, expired, or for another service or source.
    BadTicket,
    /// The ledger of first uses cannot be written.
    Store,
}

impl Code {
    /// Every code, in the order of the checks.
    pub const ALL: &'static [Self] = &[
        Self::Missing,
        Self::TooLarge,
        Self::Opaque,
        Self::Malformed,
        Self::Critical,
        Self::WrongType,
        Self::WrongAlgorithm,
        Self::UnknownIssuer,
        Self::UnknownKey,
        Self::KeysUnavailable,
        Self::BadSignature,
        Self::BadClaim,
        Self::Expired,
        Self::NotYet,
        Self::TooLong,
        Self::Stale,
        Self::WrongAudience,
        Self::ScopeExceeded,
        Self::ActorChain,
        Self::UnknownAgent,
        Self::SourceNotAllowed,
        Self::ProofRequired,
        Self::ForeignKey,
        Self::Copied,
        Self::Unreserved,
        Self::Barred,
        Self::NotPresented,
        Self::Unbound,
        Self::BadTicket,
        Self::Store,
    ];

    /// The code as agents, records and tests see it; stable.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "TOKEN_MISSING",
            Self::TooLarge => "TOKEN_TOO_LARGE",
            Self::Opaque => "TOKEN_OPAQUE",
            Self::Malformed => "TOKEN_MALFORMED",
            Self::Critical => "TOKEN_CRITICAL",
            Self::WrongType => "TOKEN_TYPE",
            Self::WrongAlgorithm => "TOKEN_ALGORITHM",
            Self::UnknownIssuer => "TOKEN_ISSUER",
            Self::UnknownKey => "TOKEN_KEY_UNKNOWN",
            Self::KeysUnavailable => "TOKEN_KEYS_UNAVAILABLE",
            Self::BadSignature => "TOKEN_SIGNATURE",
            Self::BadClaim => "TOKEN_CLAIM",
            Self::Expired => "TOKEN_EXPIRED",
            Self::NotYet => "TOKEN_NOT_YET",
            Self::TooLong => "TOKEN_LIFETIME",
            Self::Stale => "TOKEN_STALE",
            Self::WrongAudience => "TOKEN_AUDIENCE",
            Self::ScopeExceeded => "TOKEN_SCOPE_EXCEEDED",
            Self::ActorChain => "TOKEN_ACTORS",
            Self::UnknownAgent => "AGENT_UNKNOWN",
            Self::SourceNotAllowed => "AGENT_SOURCE",
            Self::ProofRequired => "TOKEN_PROOF_REQUIRED",
            Self::ForeignKey => "AGENT_KEY",
            Self::Copied => "TOKEN_COPIED",
            Self::Unreserved => "TOKEN_UNRESERVED",
            Self::Barred => "TOKEN_BARRED",
            Self::NotPresented => "TOKEN_NOT_PRESENTED",
            Self::Unbound => "TOKEN_UNBOUND",
            Self::BadTicket => "TICKET_INVALID",
            Self::Store => "TOKEN_LEDGER",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

/// A refused token.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The check that failed.
    pub code: Code,
    /// What is wrong and what to do; safe to show to the agent.
    pub message: String,
    /// For the record only: facts that the agent must not learn, such as the source to which
    /// a copied token belongs.
    pub detail: Option<String>,
    /// What the token says; present only when its signature was good.
    pub claims: Option<Arc<Claims>>,
    /// Whether a human should hear of it now.
    pub alert: bool,
}

impl Refusal {
    /// No presented token is bound to the connection's key.
    pub(crate) fn not_presented() -> Self {
        let words = "no token bound to this key was presented from here, or it has expired: \
                     present it again";
        Fault::new(Code::NotPresented, words).into()
    }

    /// A token that is not bound to a key where only bound ones are taken.
    pub(crate) fn unbound(words: &str) -> Self {
        Fault::new(Code::Unbound, words).into()
    }

    /// A ticket that opens nothing. `detail` is for the record alone, and an alert.
    pub(crate) fn bad_ticket(detail: Option<String>) -> Self {
        let words = "this ticket is unknown, used, expired, or for another service or source: \
                     get a new one";
        Self { alert: detail.is_some(), detail, ..Fault::new(Code::BadTicket, words).into() }
    }
}

/// One failed check, before it is known whose token it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: Code,
    pub message: String,
}

impl Fault {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code, message: fault.message, detail: None, claims: None, alert: false }
    }
}

/// Why the identity side cannot start. Refused tokens are [`Refusal`]s, never this.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// An issuer cannot be used as configured.
    #[error("issuer {issuer:?}: {message}")]
    Issuer {
        /// Its configured name.
        issuer: String,
        /// What to change.
        message: String,
    },
    /// A state file or directory cannot be used.
    #[error("{path}: {message}")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
}

/// Quotes a value that came from outside, escaped and shortened, for a message.
pub(super) fn quote(text: &str) -> String {
    const MOST: usize = 96;
    let mut end = text.len().min(MOST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let tail = if end < text.len() { "…" } else { "" };
    format!("{:?}{tail}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_name() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(Code::as_str).collect();
        assert_eq!(names.len(), Code::ALL.len());
    }

    #[test]
    fn quoted_text_cannot_break_a_line_or_flood_a_log() {
        let text = quote(&format!("a\nb\u{1b}[0m{}", "ü".repeat(500)));
        assert!(!text.contains('\n') && !text.contains('\u{1b}') && text.len() < 220, "{text}");
    }
}
