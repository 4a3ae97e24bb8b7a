//! What we know of the host's own sshd: the authority whose session certificates it trusts, the
//! host keys that agents expect to meet, and the shell that a user's commands will reach.
//!
//! Nothing here speaks the SSH protocol. `wire/ssh/` uses it to serve, `cli/setup/` to prepare a
//! host, `cli/doctor/` to look for what is wrong.

mod ca;
mod host_keys;
mod key_id;
mod shell;

pub use ca::{CaError, CertificateSpec, LOOPBACK, UserCa, new_session_key};
pub use host_keys::{CREDENTIAL_PREFIX, DIRECTORY, HostKey, HostKeyError, host_keys, paths};
pub use key_id::KeyId;
pub use shell::login_shell;
