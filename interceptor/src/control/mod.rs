//! The control socket: how operators and other commands talk to a running daemon.
//!
//! One request per line, one answer per line, JSON both ways ([`protocol`]). Access is the
//! socket's mode and the kernel's word on who connected; nothing a client says about itself
//! is believed. This module must never carry a token, a credential, or the exact text of a
//! request to anyone who may not decide it.

pub mod client;
pub mod metrics;
mod peer;
pub mod protocol;
mod server;

pub use client::{Client, ClientError};
pub use protocol::{
    Answer, CentralStatus, ControlError, Drained, IssuerStatus, LiveSession, PolicyStatus,
    RecordStatus, ServiceStatus, ShipStatus, Status,
};
pub use server::{ControlHandler, Server, ServerError};

#[cfg(test)]
mod tests;
