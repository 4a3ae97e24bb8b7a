//! The authority that the host's sshd trusts for sessions: it lets a chosen principal in, from
//! this very host, for about a minute.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, Algorithm, Certificate, LineEnding, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::KeyId;
use crate::config::{Paths, Ssh};

/// A clock that sshd reads a little behind ours must not refuse us; it is the same clock, so
/// this only covers a step.
const BEFORE: Duration = Duration::from_secs(30);
/// sshd looks at the validity only while it authenticates.
const AFTER: Duration = Duration::from_secs(60);
/// A private Ed25519 key takes about 400 bytes.
const LARGEST: u64 = 16 * 1024;
const COMMENT: &str = "interceptor user CA";

/// Where certificates are used from: the daemon on this host.
pub const LOOPBACK: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::LOCALHOST), 32),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
];

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The key cannot be read.
    #[error("CA key {}: {source}; `interceptor setup ssh` makes it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Others could use the key, or it is not what it should be.
    #[error("CA key {}: {message}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What to change.
        message: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a session certificate: {0}")]
    Issue(String),
}

/// What one certificate is for.
#[derive(Debug, Clone)]
pub struct CertificateSpec<'a> {
    /// The session's own key, which only the daemon holds.
    pub public_key: &'a PublicKey,
    /// What the user's AuthorizedPrincipalsFile must hold.
    pub principal: &'a str,
    /// Counts the certificates of this host; stands in sshd's log.
    pub serial: u64,
    /// Who acts for whom; stands in sshd's log.
    pub key_id: KeyId,
    /// Sources from which it counts; never empty. Normally [`LOOPBACK`].
    pub source_addresses: &'a [IpNet],
    /// Whether sshd may give it a terminal.
    pub permit_pty: bool,
    /// Whether sshd may forward ports for it.
    pub permit_forwarding: bool,
    /// Whether sshd may forward X11 for it.
    pub permit_x11: bool,
    /// Whether sshd may forward the client's keys for it.
    pub permit_agent: bool,
    /// The time of issue, from which the validity counts.
    pub now: SystemTime,
}

/// The authority. Its key never leaves this value but into the file that setup makes.
pub struct UserCa {
    key: PrivateKey,
}

impl fmt::Debug for UserCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserCa").field("public", &self.public_line()).finish_non_exhaustive()
    }
}

impl UserCa {
    /// Where the key of a service's authority is.
    pub fn path(paths: &Paths, ssh: &Ssh) -> PathBuf {
        ssh.ca_key.clone().unwrap_or_else(|| paths.state.join("ssh/user_ca"))
    }

    /// Reads the key. Refuses one that is a link, that somebody else owns or can read, that is
    /// encrypted, or that is not Ed25519.
    pub fn open(path: &Path) -> Result<Self, CaError> {
        let unfit = |message: String| CaError::Unfit { path: path.into(), message };
        let read = |source| CaError::Read { path: path.into(), source };
        let mut file = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
            .map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        let (me, mode) = (nix::unistd::geteuid().as_raw(), meta.mode() & 0o7777);
        if !meta.is_file() || meta.len() > LARGEST {
            return Err(unfit("is no key file".into()));
        }
        // Root may look at the daemon's key, the daemon only at its own.
        if me != 0 && meta.uid() != me {
            return Err(unfit(format!("belongs to uid {}, not to the daemon's user", meta.uid())));
        }
        if mode & 0o077 != 0 {
            return Err(unfit(format!("mode {mode:04o} lets others use it: chmod 0600")));
        }
        let mut pem = Zeroizing::new(String::with_capacity(LARGEST as usize));
        (&mut file).take(LARGEST).read_to_string(&mut pem).map_err(read)?;
        let key = PrivateKey::from_openssh(pem.as_bytes())
            .map_err(|e| unfit(format!("is no OpenSSH private key: {e}")))?;
        if key.is_encrypted() {
            return Err(unfit("is encrypted, and nobody could type its passphrase".into()));
        }
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(unfit(format!("is {}, not Ed25519", key.algorithm())));
        }
        Ok(Self { key })
    }

    /// A new authority.
    pub fn generate() -> Result<Self, CaError> {
        let mut key = new_session_key()?;
        key.set_comment(COMMENT);
        Ok(Self { key })
    }

    /// The private key in OpenSSH's format, for the file that only the daemon's user reads.
    pub fn to_openssh(&self) -> Result<Zeroizing<String>, CaError> {
        self.key.to_openssh(LineEnding::LF).map_err(issue)
    }

    /// The line for sshd's TrustedUserCAKeys.
    pub fn public_line(&self) -> String {
        self.key.public_key().to_openssh().unwrap_or_default()
    }

    /// SHA-256 of the public key, as sshd logs it.
    pub fn fingerprint(&self) -> String {
        self.key.fingerprint(ssh_key::HashAlg::Sha256).to_string()
    }

    /// Makes a user certificate: one principal, these sources only, valid from 30 s before to
    /// 60 s after `now`, and no extension that is not asked for.
    pub fn issue(&self, spec: &CertificateSpec<'_>) -> Result<Certificate, CaError> {
        if spec.principal.is_empty() || spec.source_addresses.is_empty() {
            // An empty list would mean everybody, or everywhere.
            return Err(CaError::Issue("a principal and a source address are needed".into()));
        }
        let seconds = |t: SystemTime| t.duration_since(UNIX_EPOCH).map(|d| d.as_secs());
        let after = seconds(spec.now - BEFORE).map_err(|e| CaError::Issue(e.to_string()))?;
        let before = seconds(spec.now + AFTER).map_err(|e| CaError::Issue(e.to_string()))?;
        let sources: Vec<_> = spec.source_addresses.iter().map(IpNet::to_string).collect();
        let mut nonce = [0u8; 32];
        random(&mut nonce)?;
        let mut builder = Builder::new(nonce, spec.public_key.key_data().clone(), after, before)
            .map_err(issue)?;
        builder
            .cert_type(CertType::User)
            .and_then(|b| b.serial(spec.serial))
            .and_then(|b| b.key_id(spec.key_id.as_str()))
            .and_then(|b| b.valid_principal(spec.principal))
            .and_then(|b| b.critical_option("source-address", sources.join(",")))
            .map_err(issue)?;
        for (wanted, name) in [
            (spec.permit_x11, "permit-X11-forwarding"),
            (spec.permit_agent, "permit-agent-forwarding"),
            (spec.permit_forwarding, "permit-port-forwarding"),
            (spec.permit_pty, "permit-pty"),
        ] {
            if wanted {
                builder.extension(name, "").map_err(issue)?;
            }
        }
        builder.sign(&self.key).map_err(issue)
    }
}

/// A new Ed25519 key, as every session gets one of its own.
pub fn new_session_key() -> Result<PrivateKey, CaError> {
    let mut seed = Zeroizing::new([0u8; 32]);
    random(&mut *seed)?;
    PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&seed)), "").map_err(issue)
}

fn random(bytes: &mut [u8]) -> Result<(), CaError> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| CaError::Issue("no random numbers".into()))
}

fn issue(e: ssh_key::Error) -> CaError {
    CaError::Issue(e.to_string())
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
