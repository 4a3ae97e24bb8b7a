//! What hosts and the collector say to each other over HTTPS, as JSON. Journal frames go as
//! they are.

use serde::{Deserialize, Serialize};

use super::replica::Position;
use crate::ship::succession::SignedSuccession;

/// Media type of a body of journal frames.
pub const FRAMES: &str = "application/vnd.interceptor.frames";
/// Domain of the record key's signature in an enrolment.
pub const ENROL_DOMAIN: &[u8] = b"interceptor enrol v1\0";

/// A host asks to be known.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrol {
    /// The one-time code.
    pub code: String,
    /// Request for a client certificate, PEM.
    pub csr_pem: String,
    /// The host's record key, base64.
    pub record_key: String,
    /// What the host calls itself.
    pub name: String,
    /// Version of its binary.
    pub version: String,
    /// Signature of the record key over [`Enrol::signed`], base64.
    pub proof: String,
}

impl Enrol {
    /// What the record key signs: everything else, each with its length.
    pub fn signed(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for text in [&self.code, &self.csr_pem, &self.record_key, &self.name, &self.version] {
            out.extend_from_slice(&(text.len() as u64).to_be_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        out
    }
}

/// The host is known now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enrolled {
    /// Its client certificate.
    pub certificate_pem: String,
    /// The authority to believe from now on.
    pub authority_pem: String,
    /// Key that signs orders and the log, base64.
    pub collector_key: String,
    /// Key of the log as signed notes write it.
    pub log_key: String,
    /// Name under which the collector lists it.
    pub name: String,
}

/// A host asks for a new certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// Request for it, PEM.
    pub csr_pem: String,
}

/// Its new certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Renewed {
    /// PEM.
    pub certificate_pem: String,
}

/// What is on the collector's disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Standing {
    /// Up to where.
    pub position: Position,
    /// Newest signed checkpoint of the log.
    pub log: Option<String>,
}

/// Where the log stands, and that it continues what the host saw before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogStanding {
    /// The signed checkpoint.
    pub checkpoint: String,
    /// Consistency proof from the asked size, hex.
    pub consistency: Vec<String>,
    /// How the log's keys followed the one that the host believes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SignedSuccession>,
}

/// Asks for proofs that sessions of the asking host stand in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskProofs {
    /// In the tree of this size.
    pub size: u64,
    /// Session numbers, at most [`MOST_PROOFS`].
    pub numbers: Vec<u64>,
}

/// Most proofs in one answer.
pub const MOST_PROOFS: usize = 1000;

/// That one session stands in the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inclusion {
    /// Session number.
    pub number: u64,
    /// Place in the log.
    pub index: u64,
    /// Hashes to the root, hex.
    pub path: Vec<String>,
    /// When the collector's retention deleted its contents; microseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_us: Option<i64>,
}

/// What a host tells of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// As `interceptor status` shows it.
    pub status: crate::control::Status,
    /// Events that are not shipped yet.
    pub lag_events: u64,
    /// The host's clock, microseconds since the Unix epoch.
    pub now_us: i64,
}

/// Why a request of a host is not answered as it wished.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Refused {
    /// Stable word: `gap`, `altered`, `revoked`, `unknown`, `code`, `busy`, `form`, `failed`.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// With `gap`: where the collector stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
}
