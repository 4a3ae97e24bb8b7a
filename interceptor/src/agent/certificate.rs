//! The certificate that carries a token: made by the agent's own key about itself, as long-lived
//! as the token and no longer.
//!
//! It says nothing that anybody should believe. The host takes the token out, proves it, and
//! looks whether the key of the certificate is the one that the token is bound to.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::error::Unspecified;
use russh::keys::Certificate;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use secrecy::{ExposeSecret, SecretString};

use crate::identity::CERTIFICATE_EXTENSION;

use super::key::AgentKey;

/// The host's clock may be behind ours by this much.
const BEFORE: Duration = Duration::from_secs(120);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The library refused.
    #[error("no certificate can be made: {0}")]
    Make(#[from] russh::keys::ssh_key::Error),
    /// No randomness.
    #[error("no certificate can be made: no randomness")]
    Random,
}

impl From<Unspecified> for CertificateError {
    fn from(_: Unspecified) -> Self {
        Self::Random
    }
}

/// Makes one for these users. OpenSSH refuses a certificate that names nobody, so `users` must
/// not be empty.
pub fn certificate(
    key: &AgentKey,
    token: &SecretString,
    users: &[String],
    name: &str,
    until: SystemTime,
) -> Result<Certificate, CertificateError> {
    let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let after = seconds(SystemTime::now() - BEFORE);
    let mut nonce = [0_u8; 32];
    aws_lc_rs::rand::fill(&mut nonce)?;
    let mut builder = Builder::new(nonce, key.public().key_data().clone(), after, seconds(until))?;
    builder.cert_type(CertType::User)?;
    builder.key_id(name)?;
    for user in users {
        builder.valid_principal(user)?;
    }
    builder.extension(CERTIFICATE_EXTENSION, token.expose_secret())?;
    builder.comment(name)?;
    Ok(builder.sign(key)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Kind;

    #[test]
    fn a_certificate_is_for_its_users_until_the_token_ends() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [Kind::P256, Kind::Rsa] {
            let key = AgentKey::create(&dir.path().join(format!("{kind:?}")), kind).unwrap();
            let until = SystemTime::now() + Duration::from_secs(300);
            let token = SecretString::from("a.b.c");
            let users = ["deploy".to_owned(), "backup".to_owned()];
            let made = certificate(&key, &token, &users, "0oa1", until).unwrap();
            let read = Certificate::from_bytes(&made.to_bytes().unwrap()).unwrap();
            let own = key.public().fingerprint(Default::default());
            read.validate(&[own]).unwrap();
            assert_eq!(read.public_key(), key.public().key_data());
            assert_eq!(read.cert_type(), CertType::User);
            assert_eq!(read.valid_principals(), users);
            assert_eq!(read.extensions()[CERTIFICATE_EXTENSION], "a.b.c");
            assert!(read.critical_options().is_empty());
            let end = until.duration_since(UNIX_EPOCH).unwrap().as_secs();
            assert_eq!(read.valid_before(), end);
        }
    }
}
