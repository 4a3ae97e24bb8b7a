//! The host's side of a collector.

pub mod client;
pub mod link;
pub mod orders;
pub mod people;
pub mod remote;
pub mod reserve;
pub mod wire;
