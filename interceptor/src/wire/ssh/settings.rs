//! What is spoken: algorithms, limits and identification, on both legs.
//!
//! No SHA-1 anywhere, strict key exchange always (russh does it whenever the peer can), and
//! nothing that a peer could have us hold without bound.

use std::borrow::Cow;
use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Limits, MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex, mac};

use crate::config;
use crate::sshd::HostKey;

/// What each side may send on a channel before it is consumed. Bytes.
pub const WINDOW: u32 = 2 << 20;

/// Largest packet either way (RFC 4253, section 6.1 asks for 32,768 at least). Bytes.
pub const PACKET: u32 = 32 << 10;

/// Requests of one connection's channels that wait for its task.
const EVENTS: usize = 64;

/// Most authentication requests that may fail on one connection: an agent offers each of its
/// keys, then passwords.
const MAX_AUTH_ATTEMPTS: usize = 16;

/// How we call ourselves (RFC 4253, section 4.2).
fn identification() -> SshId {
    SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-interceptor_", env!("CARGO_PKG_VERSION"))))
}

/// Public key algorithms without SHA-1.
const KEYS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

/// Key exchanges: OpenSSH's own order of those that both know, and the two signals for strict
/// key exchange and extensions.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_G16_SHA512,
    kex::DH_G18_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::AES_128_CTR,
    cipher::AES_192_CTR,
    cipher::AES_256_CTR,
];

/// On our own connection within the host: what costs least.
const OWN_CIPHERS: &[cipher::Name] = &[cipher::AES_128_GCM, cipher::CHACHA20_POLY1305];

const MACS: &[mac::Name] =
    &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];

fn preferred(ciphers: &'static [cipher::Name]) -> Preferred {
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(ciphers),
        mac: Cow::Borrowed(MACS),
        // Compression before masking would hide, and after it leak, what is masked.
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// The methods that a connection may use to prove a token; `none` is never accepted.
pub fn methods() -> MethodSet {
    MethodSet::from(
        &[MethodKind::PublicKey, MethodKind::Password, MethodKind::KeyboardInteractive][..],
    )
}

/// Towards agents. An RSA host key is offered only where there is no other: signing with it
/// cannot be made to take the same time for every message (RUSTSEC-2023-0071).
pub fn server(keys: &[HostKey], settings: &config::Ssh) -> russh::server::Config {
    let rsa = |key: &HostKey| matches!(key.key.algorithm(), Algorithm::Rsa { .. });
    let only_rsa = keys.iter().all(rsa);
    let offered: Vec<&HostKey> = keys.iter().filter(|key| only_rsa || !rsa(key)).collect();
    russh::server::Config {
        server_id: identification(),
        methods: methods(),
        // A refused password waits in its handler; a key that is merely unknown costs nothing, so
        // that the certificate or the password follows at once.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: offered.iter().map(|k| k.key.clone()).collect(),
        certificates: offered.iter().filter_map(|k| k.certificate.clone()).collect(),
        limits: Limits::default(),
        window_size: WINDOW,
        window_by_grant: true,
        maximum_packet_size: PACKET,
        channel_buffer_size: 1,
        event_buffer_size: EVENTS,
        preferred: preferred(CIPHERS),
        max_auth_attempts: MAX_AUTH_ATTEMPTS,
        inactivity_timeout: Some(settings.idle_timeout.0),
        keepalive_interval: Some(Duration::from_secs(30)),
        keepalive_max: 10,
        nodelay: true,
    }
}

/// Towards the host's own sshd.
pub fn client() -> russh::client::Config {
    russh::client::Config {
        client_id: identification(),
        limits: Limits::default(),
        window_size: WINDOW,
        window_by_grant: true,
        maximum_packet_size: PACKET,
        channel_buffer_size: EVENTS,
        preferred: preferred(OWN_CIPHERS),
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(60)),
        keepalive_max: 5,
        anonymous: false,
        gex: russh::client::GexParams::default(),
        nodelay: true,
    }
}
