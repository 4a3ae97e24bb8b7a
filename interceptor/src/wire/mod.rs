//! Protocols: bytes to requests and answers.

pub mod postgres;
