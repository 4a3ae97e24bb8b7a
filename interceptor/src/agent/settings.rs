//! What the helper is told: flags over environment over `~/.config/interceptor/agent.toml`.
//!
//! None of it is secret: the key is named by its file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What an assertion is made out to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Audience {
    /// The address of the token endpoint, as Okta wants it.
    #[default]
    TokenEndpoint,
    /// The issuer, as RFC 7523's successor wants it.
    Issuer,
}

/// Settings as given in one place; all may be missing there. The flags and environment variables
/// of the command line have the same names.
#[derive(Debug, Clone, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    /// URL of the issuer (Okta: `https://ORG.okta.com/oauth2/SERVER`).
    #[arg(long, value_name = "URL", env = "INTERCEPTOR_AGENT_ISSUER")]
    pub issuer: Option<String>,
    /// The agent's client id there.
    #[arg(long, value_name = "ID", env = "INTERCEPTOR_AGENT_CLIENT_ID")]
    pub client_id: Option<String>,
    /// File with the private key: authenticates the client, binds tokens, opens SSH.
    #[arg(long, value_name = "FILE", env = "INTERCEPTOR_AGENT_KEY")]
    pub key: Option<PathBuf>,
    /// File with another private key for authenticating the client.
    #[arg(long, value_name = "FILE", env = "INTERCEPTOR_AGENT_CLIENT_KEY")]
    pub client_key: Option<PathBuf>,
    /// Name of the client's key at the issuer; by default its thumbprint.
    #[arg(long, value_name = "KID", env = "INTERCEPTOR_AGENT_KEY_ID")]
    pub key_id: Option<String>,
    /// Scope to ask for; repeat for more.
    #[arg(
        long = "scope",
        value_name = "SCOPE",
        env = "INTERCEPTOR_AGENT_SCOPES",
        value_delimiter = ' '
    )]
    pub scopes: Option<Vec<String>>,
    /// Resource to ask for (RFC 8707), where the issuer wants one.
    #[arg(long, value_name = "URI", env = "INTERCEPTOR_AGENT_RESOURCE")]
    pub resource: Option<String>,
    /// What client assertions are made out to.
    #[arg(long, value_enum, value_name = "WHAT", env = "INTERCEPTOR_AGENT_AUDIENCE")]
    pub audience: Option<Audience>,
    /// Operating system user to log in as; repeat for more. By default $USER.
    #[arg(
        long = "user",
        value_name = "NAME",
        env = "INTERCEPTOR_AGENT_USERS",
        value_delimiter = ','
    )]
    pub users: Option<Vec<String>>,
    /// More certificate authorities (PEM) for the issuer.
    #[arg(long, value_name = "FILE", env = "INTERCEPTOR_AGENT_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Allow plain HTTP to an issuer on a loopback address. For development only.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_loopback: Option<bool>,
}

/// Complete settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// URL of the issuer.
    pub issuer: String,
    /// The agent's client id.
    pub client_id: String,
    /// File of the key that tokens are bound to.
    pub key: PathBuf,
    /// File of the key that authenticates the client.
    pub client_key: PathBuf,
    /// Name of that key at the issuer.
    pub key_id: Option<String>,
    /// Scopes to ask for.
    pub scopes: Vec<String>,
    /// Resource to ask for.
    pub resource: Option<String>,
    /// What client assertions are made out to.
    pub audience: Audience,
    /// Users to log in as; never empty.
    pub users: Vec<String>,
    /// More certificate authorities.
    pub ca_file: Option<PathBuf>,
    /// Plain HTTP to loopback.
    pub insecure_loopback: bool,
}

/// Where settings are looked for: `$XDG_CONFIG_HOME/interceptor`, else `~/.config/interceptor`.
pub fn directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    Some(config?.join("interceptor"))
}

impl Given {
    /// Reads a settings file; a missing one says nothing unless it was asked for by name.
    pub fn read(path: &Path, named: bool) -> Result<Self, String> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !named => Ok(Self::default()),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    /// These settings, and where they are silent the others.
    pub fn or(self, other: Self) -> Self {
        Self {
            issuer: self.issuer.or(other.issuer),
            client_id: self.client_id.or(other.client_id),
            key: self.key.or(other.key),
            client_key: self.client_key.or(other.client_key),
            key_id: self.key_id.or(other.key_id),
            scopes: self.scopes.or(other.scopes),
            resource: self.resource.or(other.resource),
            audience: self.audience.or(other.audience),
            users: self.users.or(other.users),
            ca_file: self.ca_file.or(other.ca_file),
            insecure_loopback: self.insecure_loopback.or(other.insecure_loopback),
        }
    }

    /// Complete settings, or what is missing.
    pub fn complete(self) -> Result<Settings, String> {
        let missing = |what: &str, flag: &str| {
            format!("{what}: give --{flag}, or write it into agent.toml (see --help)")
        };
        let key = match self.key.or_else(|| Some(directory()?.join("agent.key"))) {
            Some(key) => expand(key),
            None => return Err(missing("no key", "key")),
        };
        let users = match self.users {
            Some(users) => users,
            None => std::env::var("USER").into_iter().collect(),
        };
        if users.is_empty() || users.iter().any(|u| !is_user(u)) {
            return Err(missing("no user to log in as", "user"));
        }
        Ok(Settings {
            issuer: self.issuer.ok_or_else(|| missing("no issuer", "issuer"))?,
            client_id: self.client_id.ok_or_else(|| missing("no client id", "client-id"))?,
            client_key: self.client_key.map_or_else(|| key.clone(), expand),
            key,
            key_id: self.key_id,
            scopes: self.scopes.unwrap_or_default(),
            resource: self.resource,
            audience: self.audience.unwrap_or_default(),
            users,
            ca_file: self.ca_file.map(expand),
            insecure_loopback: self.insecure_loopback.unwrap_or(false),
        })
    }
}

/// A leading `~/` is the home directory, also in a file that no shell reads.
fn expand(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// Whether a text can stand as a user's name in a certificate.
fn is_user(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && name.chars().all(|c| c.is_alphanumeric() || "._-@+$\\".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(toml: &str) -> Given {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn what_stands_nearer_counts_and_the_rest_comes_from_afar() {
        let near = given("issuer = 'https://a'\nusers = ['deploy', 'backup']");
        let far = given("issuer = 'https://b'\nclient_id = '0oa1'\nkey = '/k'\nscopes = ['x']");
        let s = near.or(far).complete().unwrap();
        assert_eq!((s.issuer.as_str(), s.client_id.as_str()), ("https://a", "0oa1"));
        assert_eq!((s.key.to_str(), s.client_key.to_str()), (Some("/k"), Some("/k")));
        assert_eq!(s.users, ["deploy", "backup"]);
        assert_eq!(s.audience, Audience::TokenEndpoint);
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        let base = "issuer='https://a'\nclient_id='x'\nkey='/k'\nusers=['u']\n";
        assert!(given(base).complete().is_ok());
        for (line, says) in
            [("issuer='https://a'\n", "--issuer"), ("client_id='x'\n", "--client-id")]
        {
            let error = given(&base.replace(line, "")).complete().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        for users in ["[]", "['']", "['a,b']", "['a b']", "[\"a\\nb\"]"] {
            let text = base.replace("['u']", users);
            assert!(given(&text).complete().is_err(), "{users}");
        }
        assert!(toml::from_str::<Given>("client_secret = 'x'").is_err());
        assert!(Given::read(Path::new("/nowhere/agent.toml"), false).is_ok());
        assert!(Given::read(Path::new("/nowhere/agent.toml"), true).is_err());
    }
}
