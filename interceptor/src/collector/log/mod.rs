//! The Merkle log over sealed sessions (RFC 6962): what convinces a third party that a session
//! stands where it stood, unaltered, and that the log was only ever appended to.
//!
//! A leaf is one seal of one host's session ([`leaf`]). The tree's hashes live in the central
//! database ([`store`]); its root is signed as a checkpoint in the form of C2SP signed notes
//! ([`note`]). Checking needs neither database nor network ([`tree`], [`proof`]).
//!
//! What this module must never do: sign a root that does not extend the one before.

pub mod leaf;
pub mod note;
pub mod proof;
pub mod store;
pub mod tree;

pub use leaf::Leaf;
pub use note::{AuditHead, Checkpoint, VerifierKey};
pub use proof::SessionProof;
