//! Protocols: bytes to requests and answers.

pub mod postgres;
pub mod ssh;
