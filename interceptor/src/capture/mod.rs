//! The kernel side of a protected host: steering new connections into the daemon, refusing
//! them when there is none, and telling the daemon where each was going.
//!
//! Two steps with different privileges. [`attach`] (root, or CAP_BPF with CAP_NET_ADMIN) loads
//! the program, attaches it to a network namespace and pins everything below a directory of a
//! bpffs; from then on the protected ports are closed until a daemon serves them. [`Pins`] is
//! what the daemon opens, with no privilege but the ownership of those pins: it registers one
//! [`Listener`] per port and gets [`Captured`] connections.
//!
//! What must never happen here: a protected port that reaches its service because something
//! failed. A listener that dies leaves a port that refuses; an exemption of the daemon's own
//! upstream counts only while a listener lives, and old ones are removed before the first
//! listener is registered; an upgrade swaps the program under a link that stays.

mod attach;
mod bpffs;
mod diag;
mod error;
mod listener;
mod maps;
mod netns;
mod object;
mod pins;
mod restore;
mod status;
mod sys;
mod upstream;

pub use attach::{AttachOptions, AttachReport, Outcome, attach, detach};
pub use diag::{Connection, peer_uid};
pub use error::CaptureError;
pub use listener::{Captured, Listener};
pub use pins::{Pins, PortCounters};
pub use restore::{Before, before, connections, is_upstream, restore};
pub use status::{ExemptStatus, ForeignLink, LinkStatus, PortStatus, Status, status};
pub use upstream::{UpstreamExemption, connect_exempt};
