//! What we know of the host's own sshd: the authority whose session certificates it trusts, the
//! host keys that agents expect to meet, the shell and the directory that a user's commands reach.
//!
//! Nothing here speaks the SSH protocol. `wire/ssh/` uses it to serve, `cli/setup/` to prepare a
//! host, `cli/doctor/` to look for what is wrong.

mod account;
mod ca;
mod host_keys;
mod key_id;

pub use account::{Account, login_shell};
pub use ca::{CaError, CertificateSpec, LOOPBACK, UserCa, new_session_key};
pub use host_keys::{CREDENTIAL_PREFIX, DIRECTORY, HostKey, HostKeyError, host_keys, paths};
pub use key_id::KeyId;
