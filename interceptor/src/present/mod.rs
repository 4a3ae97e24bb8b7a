//! Tokens before connections: `POST /v1/present` and `POST /v1/ticket` over TLS, on an address of
//! their own, for SSH clients that cannot carry a token themselves.
//!
//! A presented token is bound to a key (`cnf.jkt`): a connection from the same source that
//! authenticates with that key is then proven by it. A ticket is a short one-time password in
//! the place of a token. Both are remembered as claims and hashes, in memory only, and whoever
//! comes with key or ticket is judged anew with every check. A raw token is never kept.

mod answer;
mod check;
mod http;
mod memory;
mod nonce;
mod origin;
mod pace;
mod seen;
mod tls;

pub use http::{Event, Parts, Server, StartError};
pub use memory::{Full, Presented, TICKET_LENGTH, TICKET_LIFE, is_ticket};
pub(crate) use tls::acceptor;
