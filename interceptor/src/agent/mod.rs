//! The helper on the agent's side: a key, a token bound to it, and an ssh-agent socket that
//! offers both to any SSH client.
//!
//! It needs neither root nor a daemon. The key proves possession three times: to the issuer,
//! which binds the token to it (DPoP); in the self-signed certificate that carries the token;
//! and to the protected host, by the signature of SSH user authentication. So a copied token is
//! worth nothing, and no client needs to know of it.
//!
//! What must never happen here: the key signing anything but client assertions and proofs of our
//! own making, our own certificates, and SSH user authentication; or a token in an argument, an
//! environment variable or a log.

pub mod certificate;
pub mod grant;
pub mod jwt;
pub mod keeper;
pub mod key;
pub mod present;
pub mod run;
pub mod settings;
pub mod socket;
pub mod wire;

pub use certificate::certificate;
pub use grant::{Grant, GrantError, Issuer};
pub use keeper::{Credential, Keeper};
pub use key::{AgentKey, Kind};
pub use settings::Settings;
pub use socket::Socket;
