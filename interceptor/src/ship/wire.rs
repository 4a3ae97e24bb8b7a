//! What host and collector say to each other about holds, orders and tokens.
//!
//! An [`Order`] is what the collector tells a host to do. It travels as the exact text that was
//! signed, so that nobody has to agree on how JSON is written; a host does nothing that is not
//! signed with the key it learnt when it enrolled.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::succession::SignedSuccession;
use crate::approval::{HoldSummary, Impact, Scope};
use crate::session::Target;

/// Stands before every order that is signed, so that no signature made for something else fits.
pub const ORDER_DOMAIN: &[u8] = b"interceptor order v1\0";
/// Largest order, in bytes of its text.
pub const MAX_ORDER: usize = 64 << 10;
/// Longest name of a person that is taken, in characters.
pub const MAX_NAME: usize = 200;

/// The bytes that are signed for an order of this text.
pub fn order_message(body: &str) -> Vec<u8> {
    [ORDER_DOMAIN, body.as_bytes()].concat()
}

/// A held request on its way to the collector. The exact text and values are wiped as it goes.
#[derive(Clone, Serialize, Deserialize)]
pub struct Raise {
    /// What a list shows.
    pub hold: HoldSummary,
    /// The exact statement.
    pub statement: String,
    /// The exact values; `None` is NULL.
    pub values: Vec<Option<String>>,
    /// `iss` and id of the principal and of every actor.
    pub principal_ids: Vec<(String, String)>,
    /// `iss` and user id of the agent's owners.
    pub owners: Vec<(String, String)>,
    /// What the token said.
    pub claims: Value,
    /// What it would touch; comes a moment after the rest, with the same hold again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impact: Option<Impact>,
}

impl fmt::Debug for Raise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raise").field("hold", &self.hold).finish_non_exhaustive()
    }
}

impl Zeroize for Raise {
    fn zeroize(&mut self) {
        self.statement.zeroize();
        self.values.zeroize();
        self.impact.zeroize();
    }
}

impl Drop for Raise {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for Raise {}

/// How a hold ended on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Withdrawal {
    /// `ended`: decided, expired or taken back there.
    pub how: String,
}

/// A person, as the collector knows them from their login: never by e-mail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// `iss` of the login.
    pub issuer: String,
    /// `sub` of the login: the user id, `uid` in access tokens.
    pub sub: String,
    /// What people call them; proves nothing.
    pub name: String,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} at {})", self.name, self.sub, self.issuer)
    }
}

/// What the collector wants done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Command {
    /// People decided about a held request.
    Decide {
        /// The hold's id on the host.
        hold: String,
        /// Whether it may run.
        approve: bool,
        /// How far an approval reaches.
        scope: Scope,
        /// Everybody who took part in the decision.
        by: Vec<By>,
        /// Their words.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Nobody decided about a held request in the time that the collector gives.
    Expire {
        /// The hold's id on the host.
        hold: String,
    },
    /// Running sessions have to end.
    Kill {
        /// Which ones.
        #[serde(flatten)]
        target: Target,
        /// Who wants that.
        by: By,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A standing grant ends, and what runs under it.
    RevokeGrant {
        /// The grant's id on the host.
        grant: String,
        /// Who wants that.
        by: By,
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A token is in use at another host too: its sessions here end.
    Conflict {
        /// `iss` of the token.
        issuer: String,
        /// Hash of its `jti`.
        jti_hash: String,
    },
}

impl Command {
    /// The hold that it is about, by its id on the host.
    pub fn hold(&self) -> Option<&str> {
        match self {
            Self::Decide { hold, .. } | Self::Expire { hold } => Some(hold),
            Self::Kill { .. } | Self::RevokeGrant { .. } | Self::Conflict { .. } => None,
        }
    }
}

/// One order, as it is signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// 1.
    pub v: u32,
    /// Fingerprint of the host it is for.
    pub host: String,
    /// Grows with every order for this host.
    pub seq: u64,
    /// When it was given, microseconds since the Unix epoch.
    pub issued_us: i64,
    /// When it is worth nothing any more.
    pub expires_us: i64,
    /// What to do.
    pub order: Command,
}

/// An order with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedOrder {
    /// The order's number, to be looked up by; the one in the text counts.
    pub seq: u64,
    /// Exact JSON text of an [`Order`].
    pub body: String,
    /// Ed25519 signature in base64.
    pub signature: String,
}

/// Answer to a poll for orders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    /// Changes when the collector has started anew: it then knows no exact texts any more, and
    /// the host raises its holds again.
    pub instance: String,
    /// What is new, oldest first.
    pub orders: Vec<SignedOrder>,
    /// How the collector's keys followed the one that the host believes; to be followed before
    /// anything else here is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SignedSuccession>,
    /// The newest version of the policies of the centre, for a host that takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policies: Option<u64>,
}

/// What became of an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// One word: `granted`, `denied`, `ended`, `revoked`, `refused`.
    pub result: String,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The grant that came of a decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// How long that grant stands, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant_seconds: Option<u64>,
    /// The sessions that were told to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<String>,
}

/// A token that a host wants for itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReserveToken {
    /// `iss`.
    pub issuer: String,
    /// Lower-case hex of the SHA-256 of its `jti`.
    pub jti_hash: String,
    /// When it can no longer be used, microseconds since the Unix epoch.
    pub expires_us: i64,
    /// The place it came from.
    pub source: String,
    /// The host took it already, since the answer did not come in time.
    #[serde(default)]
    pub taken: bool,
}

/// Answer to [`ReserveToken`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ReserveAnswer {
    /// Whether the token is this host's alone.
    pub ours: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_read_as_they_are_documented() {
        let kill: Command = serde_json::from_value(serde_json::json!({
            "kind": "kill", "agent": "etl", "reason": "runs wild",
            "by": {"issuer": "https://e", "sub": "00u1", "name": "Ann"},
        }))
        .unwrap();
        let Command::Kill { target, by, .. } = &kill else { panic!("{kill:?}") };
        assert_eq!((target, by.sub.as_str()), (&Target::Agent("etl".into()), "00u1"));
        let back: Command = serde_json::from_str(&serde_json::to_string(&kill).unwrap()).unwrap();
        assert_eq!(back, kill);
        for bad in [r#"{"kind":"kill","by":{}}"#, r#"{"kind":"run"}"#, "{}"] {
            assert!(serde_json::from_str::<Command>(bad).is_err(), "{bad}");
        }
    }
}
