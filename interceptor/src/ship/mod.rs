//! The host's side of the collector: ships what is recorded, raises holds there, and carries out
//! its signed orders.
//!
//! What this module must never do: ship what is not on disk, let anything be deleted that was
//! not acknowledged, or act on an order whose signature, host, age or number is wrong.

pub mod line;
pub mod link;
pub mod orders;
pub mod people;
pub mod remote;
pub mod reserve;
pub mod wire;
