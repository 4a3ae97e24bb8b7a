//! What a host is told: one TOML file, read once at start; policies and host keys alone are read again.
//!
//! Unknown keys are refused, and a secret never stands in the file itself: it is a
//! reference to a file or to a systemd credential ([`SecretRef`]). This module only reads and
//! checks; it opens no socket and starts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use russh::keys::PublicKey;
use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serialize};

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/interceptor/interceptor.toml";

/// Why a configuration cannot be used. Every message names the file and what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The file is not what this version understands; the message carries line and key.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// TOML's own message with line and column.
        message: String,
    },
    /// The file is well-formed but contradicts itself.
    #[error("{path}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What to change.
        message: String,
    },
    /// A referenced secret cannot be had.
    #[error("secret {reference}: {message}")]
    Secret {
        /// The reference as written, never the secret.
        reference: String,
        /// What to do.
        message: String,
    },
}

/// The whole configuration of one protected host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This host's own description.
    #[serde(default)]
    pub host: Host,
    /// Where state, sockets, policies and pins live.
    #[serde(default)]
    pub paths: Paths,
    /// Settings of the kernel side.
    #[serde(default)]
    pub capture: Capture,
    /// The token issuers that are trusted. At least one, names and URLs unique.
    #[serde(default, rename = "issuer")]
    pub issuers: Vec<Issuer>,
    /// The registered agents; a token whose agent is not here is refused.
    #[serde(default, rename = "agent")]
    pub agents: Vec<Agent>,
    /// The protected ports. Names and ports unique.
    #[serde(default, rename = "service")]
    pub services: Vec<Service>,
    /// Who may decide holds on this host.
    #[serde(default, rename = "approver")]
    pub approvers: Vec<Approver>,
    /// How sessions are recorded.
    #[serde(default)]
    pub record: Record,
    /// Where alerts and metrics go.
    #[serde(default)]
    pub metrics: Metrics,
    /// Where agents may present a token beforehand or get a ticket for it; nowhere when absent.
    pub present: Option<Present>,
    /// The collector that gets the records; none when absent.
    pub ship: Option<Ship>,
}

/// The collector that gets the records of this host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ship {
    /// Where it listens for hosts, e.g. `https://collector.example.com:8444`.
    pub collector: String,
    /// Certificate, key and what is acknowledged; `ship` below `paths.state` when absent.
    pub state: Option<PathBuf>,
    /// What becomes of a token that the collector does not answer for in time.
    #[serde(default)]
    pub on_timeout: OnTimeout,
    /// Approvers of this host may decide while the collector cannot be reached.
    #[serde(default)]
    pub local_approvers: bool,
    /// Policies that the collector publishes are in force here, beside this host's own.
    #[serde(default)]
    pub central_policies: bool,
}

/// What becomes of a token that the collector does not answer for in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is refused.
    #[default]
    Deny,
    /// It is let in, and both sessions end when it turns out to be used elsewhere.
    Allow,
}

impl Ship {
    /// A collector, and everything else as it is by default.
    pub fn at(collector: String) -> Self {
        Self {
            collector,
            state: None,
            on_timeout: OnTimeout::default(),
            local_approvers: false,
            central_policies: false,
        }
    }

    /// The same, when its address can be one.
    pub fn checked(self) -> Result<Self, String> {
        self.check().map(|()| self)
    }

    /// The state directory.
    pub fn state(&self, paths: &Paths) -> PathBuf {
        self.state.clone().unwrap_or_else(|| paths.state.join("ship"))
    }

    fn check(&self) -> Result<(), String> {
        let url = &self.collector;
        let rest = url.strip_prefix("https://").unwrap_or_default();
        if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!(
                "ship.collector {url:?}: https://, name and port only, such as \
                 \"https://collector.example.com:8444\""
            ));
        }
        Ok(())
    }
}

/// The address at which agents present a token before they connect.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Present {
    /// Where HTTPS is served.
    pub listen: SocketAddr,
    /// Certificate and key shown there.
    pub tls: ServerTls,
    /// The addresses under which agents know it, e.g. `https://db1.example.com:8443`: what a
    /// proof (DPoP `htu`) must be made for. By default the names in the certificate with the port
    /// of `listen`.
    #[serde(default)]
    pub urls: Vec<String>,
}

/// This host's own description.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Stands in every record and seal; the kernel's host name when absent.
    pub name: Option<String>,
}

/// Where state, sockets, policies and pins live.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// Records, journal, pins of tokens, key-set cache. Mode 0700, owned by the daemon's user.
    pub state: PathBuf,
    /// Control socket and locks.
    pub run: PathBuf,
    /// Directory of policy files (`*.toml`, tests in `*.test.toml`).
    pub policies: PathBuf,
    /// Directory of the pins, below a mounted bpffs.
    pub bpffs: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state: "/var/lib/interceptor".into(),
            run: "/run/interceptor".into(),
            policies: "/etc/interceptor/policies".into(),
            bpffs: "/sys/fs/bpf/interceptor".into(),
        }
    }
}

impl Paths {
    /// The control socket, `control.sock` below [`Paths::run`].
    pub fn control_socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }
}

/// Settings of the kernel side.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Sources that reach a protected port without the daemon: an operator's way in when all
    /// else fails. Counted by the kernel, shown in `status`.
    pub exempt: Vec<Exempt>,
}

/// One exempt source network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exempt {
    /// IPv4 or IPv6 network.
    pub source: IpNet,
    /// Names of the services it may reach directly; never empty.
    pub services: Vec<String>,
}

/// One trusted token issuer (an Okta custom authorization server, or any OIDC issuer that
/// signs JWT access tokens).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// Short name that agents, approvers and rules refer to.
    pub name: String,
    /// The exact `iss` value; discovery is `{url}/.well-known/openid-configuration`.
    pub url: String,
    /// The one signature algorithm that is accepted from it.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// Additional certificate authorities (PEM) for fetching discovery and keys.
    pub ca_file: Option<PathBuf>,
    /// Allow `http://` for an issuer on a loopback address. For development only.
    #[serde(default)]
    pub insecure_loopback: bool,
    /// Longest accepted `exp - iat`.
    #[serde(default = "defaults::max_lifetime")]
    pub max_lifetime: Span,
    /// Longest accepted `now - iat`.
    #[serde(default = "defaults::max_age")]
    pub max_age: Span,
    /// Tolerated clock difference for `exp`, `nbf` and `iat`.
    #[serde(default = "defaults::leeway")]
    pub leeway: Span,
    /// Oldest key set, counted from its fetch, with which a signature is still checked while
    /// the issuer cannot be reached.
    #[serde(default = "defaults::keys_max_stale")]
    pub keys_max_stale: Span,
}

/// Signature algorithms that can be pinned for an issuer (RFC 7518 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, what Okta signs with.
    #[default]
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
}

/// One registered agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Unique name that rules and records use.
    pub name: String,
    /// Name of its issuer.
    pub issuer: String,
    /// Client id (`cid`, or `client_id`) of its tokens. Exactly one of `cid` and `act_sub`.
    pub cid: Option<String>,
    /// Outermost `act.sub` of delegated tokens.
    pub act_sub: Option<String>,
    /// User ids (`uid`) that own it; owners cannot approve its requests.
    #[serde(default)]
    pub owners: Vec<String>,
    /// Labels that rules match, since machine tokens carry no groups.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The address set it may come from; when not empty, the whole set counts as one source
    /// for theft detection (NAT, Kubernetes).
    #[serde(default)]
    pub sources: Vec<IpNet>,
    /// SSH public keys it may authenticate with before its token comes in a variable, as they
    /// stand in `authorized_keys`. Each belongs to one agent, and none proves anything by itself.
    #[serde(default)]
    pub ssh_keys: Vec<SshKey>,
}

/// A registered SSH public key, written `ecdsa-sha2-nistp256 AAAA… comment`.
#[derive(Debug, Clone)]
pub struct SshKey(pub PublicKey);

impl<'de> Deserialize<'de> for SshKey {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use russh::keys::ssh_key::public::KeyData;
        let text = String::deserialize(d)?;
        let fail = |why: &str| {
            let start: String = text.chars().take(40).collect();
            Err(serde::de::Error::custom(format!("ssh_keys: {start:?}… {why}")))
        };
        if text.contains(['\n', '\r']) {
            return fail("is more than one line");
        }
        match PublicKey::from_openssh(&text) {
            Err(e) => fail(&format!("is no SSH public key: {e}")),
            Ok(key) => match key.key_data() {
                KeyData::Ecdsa(_) | KeyData::Ed25519(_) => Ok(Self(key)),
                KeyData::SkEcdsaSha2NistP256(_) | KeyData::SkEd25519(_) => Ok(Self(key)),
                KeyData::Rsa(rsa) if rsa.key_size() >= 2048 => Ok(Self(key)),
                KeyData::Rsa(_) => fail("is an RSA key of fewer than 2048 bits"),
                _ => fail("is no plain ECDSA, Ed25519 or RSA key"),
            },
        }
    }
}

/// Protocols that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// PostgreSQL frontend/backend protocol 3.
    Postgres,
    /// SSH 2 (RFC 4251).
    Ssh,
}

impl Protocol {
    /// The name that configuration and records use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Ssh => "ssh",
        }
    }
}

/// Whether a service's verdicts bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Verdicts bind.
    #[default]
    Enforce,
    /// Records what would have been refused, held or masked, and changes nothing.
    Observe,
}

/// One protected port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// What is spoken on the port.
    pub protocol: Protocol,
    /// The protected TCP port.
    pub port: u16,
    /// Whether verdicts bind.
    #[serde(default)]
    pub mode: Mode,
    /// The single `aud` its tokens must carry.
    pub audience: String,
    /// Scope that a token must hold. Required where services share an audience.
    pub scope: Option<String>,
    /// Issuers accepted here, by name; empty means all.
    #[serde(default)]
    pub issuers: Vec<String>,
    /// Certificate and key shown to clients: normally the database server's own.
    pub tls: Option<ServerTls>,
    /// Accept a token without TLS from loopback addresses.
    #[serde(default)]
    pub plaintext_loopback: bool,
    /// How the real service is reached.
    pub upstream: Upstream,
    /// Credentials per database role; a role that is not here cannot be used.
    #[serde(default, rename = "role")]
    pub roles: BTreeMap<String, Role>,
    /// What only an SSH service has.
    #[serde(default)]
    pub ssh: Ssh,
    /// Roles and networks that stay without token.
    #[serde(default)]
    pub passthrough: Vec<Passthrough>,
    /// Time from accept to the end of authentication.
    #[serde(default = "defaults::startup_timeout")]
    pub startup_timeout: Span,
    /// How long a running statement may outlive its token.
    #[serde(default)]
    pub expiry_grace: Span,
    /// Longest accepted `now - iat` on this service, stricter than the issuer's.
    pub max_token_age: Option<Span>,
    /// Largest row, in bytes, that is held back while it is masked.
    #[serde(default = "defaults::row_buffer")]
    pub row_buffer: u32,
    /// Most connections at a time.
    #[serde(default = "defaults::max_connections")]
    pub max_connections: u32,
    /// What becomes of a token whose first use here the collector does not confirm in time;
    /// `ship.on_timeout` when absent. Without a meaning where there is no `[ship]`.
    pub reserve: Option<Reserve>,
    /// Longest wait for a human outside a transaction.
    #[serde(default = "defaults::hold_timeout")]
    pub hold_timeout: Span,
    /// Longest wait for a human while a transaction is open.
    #[serde(default = "defaults::hold_timeout_in_transaction")]
    pub hold_timeout_in_transaction: Span,
}

/// What becomes of a token whose first use the collector does not confirm in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reserve {
    /// It is refused.
    #[default]
    Deny,
    /// It is taken, and asked for again; should another host have it, both sessions end.
    Allow,
    /// The collector is not asked at all.
    Off,
}

/// What only an SSH service has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The host's private keys, in the order in which they are offered; every
    /// `/etc/ssh/ssh_host_*_key` when empty. Public halves (`.pub`) and host certificates
    /// (`-cert.pub`) are looked for beside them.
    pub host_keys: Vec<PathBuf>,
    /// Private key of the authority that signs the certificates by which the daemon becomes an
    /// operating system user; `ssh/user_ca` below `paths.state` when absent.
    pub ca_key: Option<PathBuf>,
    /// The principal that those certificates carry and that the host's
    /// `AuthorizedPrincipalsFile` lists for each user who may be become.
    pub principal: String,
    /// Most session channels of one connection.
    pub max_channels: u32,
    /// Bytes of one channel's data that are recorded in each direction; the rest only counts
    /// and is hashed.
    pub record_bytes: u64,
    /// Longest time without a byte in either direction.
    pub idle_timeout: Span,
}

impl Default for Ssh {
    fn default() -> Self {
        Self {
            host_keys: Vec::new(),
            ca_key: None,
            principal: "interceptor-session".into(),
            max_channels: 64,
            record_bytes: 16 << 20,
            idle_timeout: Span(Duration::from_secs(3600)),
        }
    }
}

/// Certificate and key shown to clients.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// PEM certificate chain.
    pub certificate: PathBuf,
    /// PEM private key, readable by the daemon.
    pub key: PathBuf,
}

/// How the real service is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum Upstream {
    /// A Unix socket: not steered, so nothing has to be exempted.
    Unix {
        /// Path of the socket itself, e.g. `/var/run/postgresql/.s.PGSQL.5432`.
        socket: PathBuf,
    },
    /// TCP; the daemon's own connection is exempted by its exact 4-tuple.
    Tcp {
        /// Address of the service.
        host: IpAddr,
        /// Port of the service.
        port: u16,
        /// TLS towards the service; absent means plaintext, allowed on loopback only.
        tls: Option<UpstreamTls>,
    },
}

/// TLS towards a service.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM file of the authorities, or of the server's own certificate.
    pub ca_file: PathBuf,
    /// Name the certificate must carry.
    pub server_name: String,
}

/// Credential of one database role.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Password for SCRAM-SHA-256; absent where the server trusts the socket's peer.
    pub password: Option<SecretRef>,
    /// Privileged attributes tolerated for this role: `superuser`, `replication`, `bypassrls`,
    /// `createrole`, `files`, `programs`.
    #[serde(default)]
    pub allow: BTreeSet<String>,
}

/// A role and network that stay without token; recorded as unproven.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passthrough {
    /// Database role, exact.
    pub role: String,
    /// Source network.
    pub network: IpNet,
    /// On loopback, the operating system user that owns the client's socket.
    pub os_user: Option<String>,
}

/// Who may decide holds on this host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approver {
    /// Operating system user name. Exactly one of `user` and `group`.
    pub user: Option<String>,
    /// Operating system group name.
    pub group: Option<String>,
    /// Issuer of the human's identity.
    pub issuer: String,
    /// The human's user id at the issuer (Okta: `uid`). Absent with `group`, where `uids` maps
    /// each member; a member who is not there cannot decide.
    pub uid: Option<String>,
    /// With `group`: operating system user name to user id.
    #[serde(default)]
    pub uids: BTreeMap<String, String>,
}

/// How sessions are recorded.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// What a recorded request survives before it is forwarded.
    pub durability: Durability,
    /// Most bytes of results kept per request, as the agent saw them.
    pub result_bytes: u32,
    /// Most bytes of one statement's text kept.
    pub text_bytes: u32,
    /// Records younger than this are never deleted.
    pub retain: Span,
    /// Most bytes the store may take; beyond it new requests are refused.
    pub max_bytes: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            durability: Durability::Process,
            result_bytes: 16 * 1024,
            text_bytes: 1024 * 1024,
            retain: Span(Duration::from_secs(90 * 86_400)),
            max_bytes: 20 << 30,
        }
    }
}

/// What a recorded request survives before it is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The daemon's death at any instant.
    #[default]
    Process,
    /// Power loss too.
    Disk,
}

/// Where metrics are offered beside the control socket.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Loopback port for Prometheus text; none when absent.
    pub port: Option<u16>,
}

/// A reference to a secret, never the secret itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub enum SecretRef {
    /// A file that only the daemon's user can read; a trailing newline is dropped.
    File {
        /// Its path.
        file: PathBuf,
    },
    /// A systemd credential, by name, below `$CREDENTIALS_DIRECTORY`.
    Credential {
        /// Its name.
        credential: String,
    },
}

impl SecretRef {
    /// Reads the secret. Refuses files that group or others can read.
    pub fn read(&self) -> Result<SecretString, ConfigError> {
        use std::os::unix::fs::MetadataExt;
        let (reference, path, check_mode) = match self {
            Self::File { file } => (file.display().to_string(), file.clone(), true),
            Self::Credential { credential } => {
                let dir = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    ConfigError::Secret {
                        reference: credential.clone(),
                        message: "no $CREDENTIALS_DIRECTORY: add LoadCredential= to the unit"
                            .into(),
                    }
                })?;
                if credential.contains('/') {
                    return Err(ConfigError::Secret {
                        reference: credential.clone(),
                        message: "a credential's name has no slash".into(),
                    });
                }
                (credential.clone(), Path::new(&dir).join(credential), false)
            }
        };
        let fail = |message: String| ConfigError::Secret { reference: reference.clone(), message };
        let meta = std::fs::metadata(&path).map_err(|e| fail(e.to_string()))?;
        if check_mode && meta.mode() & 0o077 != 0 {
            return Err(fail(format!(
                "mode {:04o} lets others read it: chmod 0600 {}",
                meta.mode() & 0o7777,
                path.display()
            )));
        }
        if meta.len() > 64 * 1024 {
            return Err(fail("larger than 64 KiB: not a secret".into()));
        }
        let mut text = std::fs::read_to_string(&path).map_err(|e| fail(e.to_string()))?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(SecretString::from(text))
    }
}

/// A length of time, written as `"90s"`, `"5m"`, `"24h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map(Span).map_err(|e| {
            serde::de::Error::custom(format!("{text:?} is no length of time such as \"5m\": {e}"))
        })
    }
}

mod defaults {
    use super::Span;
    use std::time::Duration;

    pub fn max_lifetime() -> Span {
        Span(Duration::from_secs(3600))
    }
    pub fn max_age() -> Span {
        Span(Duration::from_secs(3600))
    }
    pub fn leeway() -> Span {
        Span(Duration::from_secs(60))
    }
    pub fn keys_max_stale() -> Span {
        Span(Duration::from_secs(86_400))
    }
    pub fn startup_timeout() -> Span {
        Span(Duration::from_secs(15))
    }
    pub fn row_buffer() -> u32 {
        16 << 20
    }
    pub fn max_connections() -> u32 {
        1000
    }
    pub fn hold_timeout() -> Span {
        Span(Duration::from_secs(600))
    }
    pub fn hold_timeout_in_transaction() -> Span {
        Span(Duration::from_secs(30))
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|e| ConfigError::Parse { path: path.into(), message: e.to_string() })?;
        config.check().map_err(|message| ConfigError::Invalid { path: path.into(), message })?;
        Ok(config)
    }

    /// The name that stands in records: configured, else the kernel's.
    pub fn host_name(&self) -> String {
        self.host.name.clone().unwrap_or_else(|| {
            nix::unistd::gethostname()
                .ok()
                .and_then(|n| n.into_string().ok())
                .unwrap_or_else(|| "localhost".into())
        })
    }

    /// The service on a port.
    pub fn service_on(&self, port: u16) -> Option<&Service> {
        self.services.iter().find(|s| s.port == port)
    }

    fn check(&self) -> Result<(), String> {
        unique("issuer name", self.issuers.iter().map(|i| i.name.as_str()))?;
        unique("issuer url", self.issuers.iter().map(|i| i.url.as_str()))?;
        unique("agent name", self.agents.iter().map(|a| a.name.as_str()))?;
        unique("service name", self.services.iter().map(|s| s.name.as_str()))?;
        unique("service port", self.services.iter().map(|s| s.port.to_string()))?;
        self.check_issuers()?;
        self.check_agents()?;
        self.check_services()?;
        self.ship.as_ref().map_or(Ok(()), Ship::check)?;
        for e in &self.capture.exempt {
            if e.services.is_empty() {
                return Err(format!("capture.exempt {}: name the services it may reach", e.source));
            }
            for s in &e.services {
                if !self.services.iter().any(|x| &x.name == s) {
                    return Err(format!("capture.exempt {}: no service {s:?}", e.source));
                }
            }
        }
        for a in &self.approvers {
            if a.user.is_some() == a.group.is_some() {
                return Err("approver: exactly one of `user` and `group`".into());
            }
            if a.user.is_some() != a.uid.is_some() {
                return Err(
                    "approver: `uid` goes with `user`; with `group` map names in `uids`".into()
                );
            }
            self.known_issuer("approver", &a.issuer)?;
        }
        Ok(())
    }

    fn check_issuers(&self) -> Result<(), String> {
        for i in &self.issuers {
            let secure = i.url.starts_with("https://");
            let loopback = i.insecure_loopback && is_loopback_http(&i.url);
            if !secure && !loopback {
                return Err(format!(
                    "issuer {:?}: url must be https (or loopback http with insecure_loopback = true)",
                    i.name
                ));
            }
        }
        Ok(())
    }

    fn check_agents(&self) -> Result<(), String> {
        for a in &self.agents {
            if a.cid.is_some() == a.act_sub.is_some() {
                return Err(format!("agent {:?}: exactly one of `cid` and `act_sub`", a.name));
            }
            self.known_issuer(&format!("agent {:?}", a.name), &a.issuer)?;
        }
        unique(
            "agent identity (issuer with cid or act_sub)",
            self.agents.iter().map(|a| format!("{} {:?} {:?}", a.issuer, a.cid, a.act_sub)),
        )?;
        let keys = self.agents.iter().flat_map(|a| &a.ssh_keys);
        unique("ssh key", keys.map(|k| k.0.fingerprint(Default::default()).to_string()))
    }

    fn check_services(&self) -> Result<(), String> {
        for s in &self.services {
            let name = &s.name;
            for i in &s.issuers {
                self.known_issuer(&format!("service {name:?}"), i)?;
            }
            let shared = self.services.iter().any(|o| o.name != *name && o.audience == s.audience);
            if shared && s.scope.is_none() {
                return Err(format!(
                    "service {name:?}: audience {:?} is shared, so it needs a `scope` of its own",
                    s.audience
                ));
            }
            if s.protocol == Protocol::Ssh {
                s.check_ssh()?;
                continue;
            }
            if s.ssh != Ssh::default() {
                return Err(format!(
                    "service {name:?}: `[service.ssh]` goes with protocol = \"ssh\""
                ));
            }
            if s.tls.is_none() && !s.plaintext_loopback {
                return Err(format!(
                    "service {name:?}: give `tls` a certificate and key, or set plaintext_loopback = true"
                ));
            }
            if let Upstream::Tcp { host, port, tls } = &s.upstream {
                if tls.is_none() && !host.is_loopback() {
                    return Err(format!("service {name:?}: upstream over a network needs `tls`"));
                }
                if *port == 0 {
                    return Err(format!("service {name:?}: upstream port 0"));
                }
            }
        }
        let scoped = self.services.iter().filter_map(|s| {
            s.scope.as_ref().map(|scope| format!("{} with scope {scope}", s.audience))
        });
        unique("audience and scope", scoped)
    }

    fn known_issuer(&self, who: &str, name: &str) -> Result<(), String> {
        if self.issuers.iter().any(|i| i.name == name) {
            Ok(())
        } else {
            Err(format!("{who}: no issuer {name:?}"))
        }
    }
}

impl Service {
    /// What an SSH service may not be told, since it would mean nothing there.
    fn check_ssh(&self) -> Result<(), String> {
        let name = &self.name;
        let Upstream::Tcp { host, port, tls: None } = &self.upstream else {
            return Err(format!(
                "service {name:?}: an SSH service has upstream = {{ host = \"127.0.0.1\", port = 22 }}"
            ));
        };
        if !host.is_loopback() {
            return Err(format!("service {name:?}: the upstream of SSH is this host's own sshd"));
        }
        if *port == 0 {
            return Err(format!("service {name:?}: upstream port 0"));
        }
        let foreign = [
            ("tls", self.tls.is_some()),
            ("plaintext_loopback", self.plaintext_loopback),
            ("role", !self.roles.is_empty()),
            ("passthrough", !self.passthrough.is_empty()),
        ];
        if let Some((key, _)) = foreign.iter().find(|(_, given)| *given) {
            return Err(format!("service {name:?}: `{key}` has no meaning for SSH; drop it"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let principal = &self.ssh.principal;
        if principal.is_empty() || principal.len() > 64 || !principal.chars().all(fits) {
            return Err(format!(
                "service {name:?}: ssh.principal has 1 to 64 letters, digits, dashes, dots and _"
            ));
        }
        if self.ssh.max_channels == 0 {
            return Err(format!("service {name:?}: ssh.max_channels must be at least 1"));
        }
        Ok(())
    }
}

/// Whether a URL is plain HTTP to an address of this very host.
fn is_loopback_http(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => {
            let host = authority.trim_start_matches('[').trim_end_matches(']');
            host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

fn unique<T: Ord + std::fmt::Display>(
    what: &str,
    items: impl Iterator<Item = T>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for item in items {
        if seen.contains(&item) {
            return Err(format!("{what} {item} appears twice"));
        }
        seen.insert(item);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
        [[issuer]]
        name = "okta"
        url = "https://example.okta.com/oauth2/default"
        [[service]]
        name = "orders-db"
        protocol = "postgres"
        port = 5432
        audience = "api://orders-db"
        plaintext_loopback = true
        upstream = { socket = "/var/run/postgresql/.s.PGSQL.5432" }
    "#;

    fn load(text: &str) -> Result<Config, String> {
        let c: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        c.check()?;
        Ok(c)
    }

    #[test]
    fn the_smallest_configuration_is_accepted() {
        let c = load(BASE).unwrap();
        assert_eq!(c.services[0].mode, Mode::Enforce);
        assert_eq!(c.services[0].row_buffer, 16 << 20);
    }

    #[test]
    fn a_collector_is_an_https_origin() {
        let ship = |url: &str| load(&format!("{BASE}\n[ship]\ncollector = {url:?}\n"));
        let c = ship("https://collector.example.com:8444").unwrap();
        let s = c.ship.unwrap();
        assert_eq!(s.state(&c.paths), Path::new("/var/lib/interceptor/ship"));
        assert_eq!((s.on_timeout, s.local_approvers), (OnTimeout::Deny, false));
        for url in ["http://collector:8444", "https://", "https://c/x", "https://u@c", "c:8444"] {
            assert!(ship(url).unwrap_err().contains("ship.collector"), "{url}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let e = load(&BASE.replace("port = 5432", "port = 5432\nprot = 1")).unwrap_err();
        assert!(e.contains("prot"), "{e}");
    }

    #[test]
    fn plain_http_is_for_loopback_addresses_only() {
        for (url, good) in [
            ("http://127.0.0.1:8085/oauth2/default", true),
            ("http://[::1]:8085/x", true),
            ("http://127.evil.example/x", false),
            ("http://localhost.evil.example/x", false),
            ("http://127.0.0.1@evil.example/x", false),
        ] {
            assert_eq!(is_loopback_http(url), good, "{url}");
        }
    }

    #[test]
    fn services_that_share_an_audience_need_scopes() {
        let second = "[[service]]\nname='b'\nprotocol='postgres'\nport=5433\naudience='api://orders-db'\nplaintext_loopback=true\nupstream={socket='/x'}";
        let e = load(&format!("{BASE}\n{second}")).unwrap_err();
        assert!(e.contains("scope"), "{e}");
    }

    #[test]
    fn a_registered_key_is_a_plain_key_of_one_agent() {
        let key = |kind: &str, blob: &[u8]| {
            use base64::Engine;
            let blob = base64::engine::general_purpose::STANDARD.encode(blob);
            format!("ssh_keys = ['{kind} {blob} made for a test']")
        };
        let ed25519 = [b"\0\0\0\x0bssh-ed25519\0\0\0\x20".as_slice(), &[7; 32]].concat();
        let agent = |name: &str, keys: &str| {
            format!("[[agent]]\nname = '{name}'\nissuer = 'okta'\ncid = '{name}'\n{keys}\n")
        };
        let good = key("ssh-ed25519", &ed25519);
        let config = load(&format!("{BASE}\n{}", agent("a", &good))).unwrap();
        assert_eq!(config.agents[0].ssh_keys.len(), 1);
        let twice = format!("{BASE}\n{}{}", agent("a", &good), agent("b", &good));
        assert!(load(&twice).unwrap_err().contains("ssh key SHA256:"));
        for bad in [
            key("ssh-rsa", &ed25519),
            key("ssh-ed25519", &ed25519[..40]),
            key("ssh-dss", b"\0\0\0\x07ssh-dss"),
            "ssh_keys = ['nonsense']".into(),
            "ssh_keys = [\"ssh-ed25519 AAAA\\nssh-ed25519 BBBB\"]".into(),
        ] {
            assert!(load(&format!("{BASE}\n{}", agent("a", &bad))).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_ssh_service_is_told_only_what_means_something_there() {
        const SSH: &str = "[[service]]\nname='host-ssh'\nprotocol='ssh'\nport=22\n\
             audience='api://host-ssh'\nupstream={host='127.0.0.1',port=22}\n";
        let c = load(&format!("{BASE}\n{SSH}")).unwrap();
        assert_eq!(c.services[1].ssh.principal, "interceptor-session");
        for (more, says) in [
            ("plaintext_loopback = true", "plaintext_loopback"),
            ("[service.ssh]\nprincipal = 'a b'", "ssh.principal"),
            ("[service.ssh]\nmax_channels = 0", "max_channels"),
            ("[service.role.x]", "role"),
        ] {
            let e = load(&format!("{BASE}\n{SSH}{more}")).unwrap_err();
            assert!(e.contains(says), "{more}: {e}");
        }
        let remote = SSH.replace("127.0.0.1", "192.0.2.1");
        assert!(load(&format!("{BASE}\n{remote}")).unwrap_err().contains("own sshd"));
        let e = load(&format!("{BASE}\n[service.ssh]\nmax_channels = 3")).unwrap_err();
        assert!(e.contains("protocol"), "{e}");
    }

    #[test]
    fn a_secret_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pw");
        std::fs::write(&file, "hunter2\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let secret = SecretRef::File { file: file.clone() };
        let e = secret.read().unwrap_err().to_string();
        assert!(e.contains("chmod 0600") && !e.contains("hunter2"), "{e}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        use secrecy::ExposeSecret;
        assert_eq!(secret.read().unwrap().expose_secret(), "hunter2");
    }
}
