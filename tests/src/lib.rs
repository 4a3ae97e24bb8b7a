//! The parts that end-to-end tests stand on.

pub mod issuer;
