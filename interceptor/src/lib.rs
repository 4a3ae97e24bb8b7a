//! `interceptor`: steers connections to protected ports through a daemon that proves who acts
//! for whom, applies policy before a request reaches the server, masks what must not flow out,
//! and records every session.
//!
//! The binary is a thin shell around this library; `ARCHITECTURE.md` walks a connection
//! through the modules in order.

pub mod agent;
pub mod approval;
pub mod capture;
pub mod cli;
pub mod collector;
pub mod config;
pub mod control;
pub mod identity;
pub mod mask;
pub mod policy;
pub mod present;
pub mod record;
pub mod session;
pub mod ship;
pub mod sshd;
pub mod wire;
