//! What the collector is told: one TOML file, unknown keys refused, secrets by reference.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::forward::{self, Forward};
use super::recordings;
use super::retention::Retention;
use super::store;
use crate::config::{Agent, ConfigError, SecretRef, ServerTls, Span};

/// Where the configuration is looked for unless `--collector-config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/interceptor/collector.toml";

/// The whole configuration of a collector.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where keys, replicas and the central database live.
    #[serde(default = "state")]
    pub state: PathBuf,
    /// Origin under which people reach the console, such as `https://collector.example.com`:
    /// no path, no trailing slash. Redirects and links begin with it.
    pub origin: String,
    /// Where hosts come in.
    pub hosts: Hosts,
    /// Where people come in.
    pub console: Console,
    /// How people log in; nobody does when absent.
    pub login: Option<Login>,
    /// Which groups have which role.
    #[serde(default)]
    pub roles: Roles,
    /// Who owns which agent, as on the hosts.
    #[serde(default, rename = "agent")]
    pub agents: Vec<Agent>,
    /// Who decides which holds. All that fit a hold count, the strictest of each; a hold that none
    /// fits can be decided by every approver.
    #[serde(default, rename = "approval")]
    pub approvals: Vec<Approval>,
    /// Where holds are announced.
    #[serde(default, rename = "webhook")]
    pub webhooks: Vec<Webhook>,
    /// Other systems that get events.
    #[serde(default, rename = "forward")]
    pub forwards: Vec<Forward>,
    /// How long the contents of sessions are kept; for ever when absent.
    #[serde(default)]
    pub retention: Retention,
    /// Where attachments of large sessions go.
    #[serde(default)]
    pub recordings: recordings::Settings,
    /// A PostgreSQL database that holds what this collector knows, shared with others; without it
    /// SQLite in the state directory does.
    pub store: Option<store::Settings>,
}

fn state() -> PathBuf {
    "/var/lib/interceptor-collector".into()
}

/// Where hosts come in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hosts {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// Names and addresses under which hosts reach it; they stand in its certificate. At least
    /// one.
    pub names: Vec<String>,
}

/// Where people come in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Address of the listener.
    pub listen: SocketAddr,
    /// Certificate and key shown there. Without them HTTP is spoken, on loopback only.
    pub tls: Option<ServerTls>,
    /// Audience of access tokens for the REST API; by default the origin.
    pub audience: Option<String>,
    /// A login ends after this time without use.
    #[serde(default = "idle")]
    pub idle: Span,
    /// A login ends after this time in any case.
    #[serde(default = "absolute")]
    pub absolute: Span,
}

fn idle() -> Span {
    Span(Duration::from_secs(30 * 60))
}

fn absolute() -> Span {
    Span(Duration::from_secs(12 * 3600))
}

/// How people log in (OpenID Connect, code flow with PKCE).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Name of the issuer, as hosts call it in `[[issuer]]`: people are compared by it.
    pub name: String,
    /// Its URL.
    pub issuer: String,
    /// The console's client id there.
    pub client_id: String,
    /// The console's secret there; absent for a public client.
    pub client_secret: Option<SecretRef>,
    /// Scopes beside `openid`.
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// Claim that lists groups.
    #[serde(default = "groups")]
    pub groups_claim: String,
    /// Certificate authorities for the issuer beside the web's (PEM), for tests and private ones.
    pub ca_file: Option<PathBuf>,
}

fn scopes() -> Vec<String> {
    vec!["profile".into(), "groups".into()]
}

fn groups() -> String {
    "groups".into()
}

/// What a person may do. Higher roles include lower ones' sight of things, not their powers: an
/// administrator does not decide holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees sessions.
    Viewer,
    /// Decides holds.
    Approver,
    /// Ends sessions, enrols and revokes hosts.
    Admin,
}

/// Which groups have which role.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Roles {
    /// Groups of viewers.
    pub viewer: BTreeSet<String>,
    /// Groups of approvers.
    pub approver: BTreeSet<String>,
    /// Groups of administrators.
    pub admin: BTreeSet<String>,
}

impl Roles {
    /// The roles of a person with these groups.
    pub fn of<'a>(&self, groups: impl IntoIterator<Item = &'a str>) -> BTreeSet<Role> {
        let mut roles = BTreeSet::new();
        for group in groups {
            for (role, members) in [
                (Role::Viewer, &self.viewer),
                (Role::Approver, &self.approver),
                (Role::Admin, &self.admin),
            ] {
                if members.contains(group) {
                    roles.insert(role);
                }
            }
        }
        roles
    }
}

/// Who decides which holds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Services it is about, as globs; all when empty.
    #[serde(default)]
    pub services: Vec<String>,
    /// Names of rules it is about, as globs; all when empty.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Groups whose members decide; every approver when empty.
    #[serde(default)]
    pub groups: BTreeSet<String>,
    /// How many different people must approve; one denial denies.
    #[serde(default = "one")]
    pub count: u32,
    /// Refused when nobody decides within this time; the host's own time when absent or shorter.
    pub expires: Option<Span>,
}

fn one() -> u32 {
    1
}

/// Where holds are announced.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// Form of the message.
    #[serde(default)]
    pub form: WebhookForm,
    /// Signs generic messages (HMAC-SHA-256).
    pub secret: Option<SecretRef>,
}

/// Form of a webhook's message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WebhookForm {
    /// Our own JSON, signed.
    #[default]
    Generic,
    /// What Slack's incoming webhooks read.
    Slack,
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

    /// Audience of access tokens for the REST API.
    pub fn audience(&self) -> &str {
        self.console.audience.as_deref().unwrap_or(&self.origin)
    }

    fn check(&self) -> Result<(), String> {
        if self.hosts.names.is_empty() {
            return Err(
                "hosts.names: name what hosts dial, such as \"collector.example.com\"".into()
            );
        }
        if self.console.tls.is_none() && !self.console.listen.ip().is_loopback() {
            return Err("console.listen: without [console.tls] only a loopback address".into());
        }
        let secure = self.origin.strip_prefix("https://");
        let Some(rest) = secure.or_else(|| self.origin.strip_prefix("http://")) else {
            return Err(format!("origin {:?}: begin it with https://", self.origin));
        };
        if rest.is_empty() || rest.contains(['/', '?', '#', '@', ' ']) {
            return Err(format!("origin {:?}: scheme, name and port only", self.origin));
        }
        if secure.is_none() && self.console.tls.is_some() {
            return Err(format!(
                "origin {:?}: with [console.tls] it begins with https://",
                self.origin
            ));
        }
        let mut names = BTreeMap::new();
        for agent in &self.agents {
            if names.insert(&agent.name, ()).is_some() {
                return Err(format!("agent {:?} stands there twice", agent.name));
            }
        }
        forward::unique(&self.forwards)?;
        // Messages are kept by their address: of two forms for one, half would go out wrong.
        for (at, webhook) in self.webhooks.iter().enumerate() {
            if self.webhooks[..at].iter().any(|w| w.url == webhook.url) {
                return Err(format!("webhook {}: its url stands there twice", at + 1));
            }
        }
        if let Some(a) = self.approvals.iter().find(|a| a.count == 0) {
            return Err(format!("approval {:?}: count is at least 1", a.services));
        }
        for glob in self.approvals.iter().flat_map(|a| a.services.iter().chain(&a.rules)) {
            globset::Glob::new(glob).map_err(|e| format!("approval: {e}"))?;
        }
        self.recordings.check(self.store.is_some())?;
        self.retention.check()
    }
}
