//! The ground the end-to-end tests, the demo and the benchmark stand on.
//!
//! A [`bed::Bed`] is one protected host in miniature: network namespaces, a real PostgreSQL
//! with sample data and TLS, a local token issuer, the capture and the daemon. Everything in
//! it is a real part started from its real binary; nothing here imitates the daemon. A bed
//! owns every process and file it makes and removes them when it is dropped, so that beds can
//! stand side by side and a failed test leaves nothing behind.

pub mod accounts;
pub mod bed;
pub mod bench;
pub mod central;
pub mod clients;
pub mod cluster;
pub mod daemon;
pub mod data;
pub mod flow;
pub mod forward;
pub mod issuer;
pub mod live;
pub mod login;
pub mod net;
pub mod paths;
pub mod people;
pub mod present;
pub mod proc;
pub mod provider;
pub mod robot;
pub mod sshd;
pub mod sshkey;
pub mod story;
pub mod suites;
pub mod tls;
pub mod tokens;
pub mod visitor;
pub mod wire;
