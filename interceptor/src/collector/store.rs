//! Where the collector keeps its truth: SQLite in its state directory, or a PostgreSQL database
//! that several collectors share.
//!
//! What this module must never do: speak to a server in the clear over a network, or believe one
//! whose certificate it cannot check.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use postgres::config::{Host, SslMode};
use rustls::ClientConfig;
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::db::{Connection, params};
use super::error::CollectorError;
use super::keys::Keys;
use super::roots;
use crate::config::SecretRef;

/// `[store]`: a PostgreSQL database in place of SQLite.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `postgresql://user@host:port/database`, as libpq has it, without a password.
    pub url: String,
    /// The user's password, when the server asks for one.
    pub password: Option<SecretRef>,
    /// Certificate authorities of the server (PEM). Without them it is only spoken to over a Unix
    /// socket or the loopback address.
    pub ca_file: Option<PathBuf>,
}

/// A server, ready to be connected to.
#[derive(Clone)]
pub struct Server {
    /// Where, as whom, with which password.
    pub config: postgres::Config,
    /// How its certificate is checked; none on the same machine.
    pub tls: Option<ClientConfig>,
}

impl Settings {
    /// Reads the password and the certificates.
    pub fn server(&self) -> Result<Server, CollectorError> {
        let wrong = |what: String| CollectorError::Store(what);
        let mut config: postgres::Config =
            self.url.parse().map_err(|e| wrong(format!("url: {e}")))?;
        if config.get_password().is_some() {
            return Err(wrong("url holds a password: give it as password = { file = … }".into()));
        }
        if config.get_dbname().is_none() || config.get_user().is_none() {
            return Err(wrong("url must name a user and a database".into()));
        }
        if let Some(password) = &self.password {
            config.password(password.read()?.expose_secret());
        }
        let tls = match &self.ca_file {
            Some(file) => {
                config.ssl_mode(SslMode::Require);
                Some(tls(file).map_err(|e| wrong(format!("ca_file {e}")))?)
            }
            None if config.get_hosts().iter().all(is_here) => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            None => {
                return Err(wrong(
                    "the server is on another machine: give the authority of its certificate as \
                     ca_file"
                        .into(),
                ));
            }
        };
        Ok(Server { config, tls })
    }
}

/// Writes down whose database this is; refused where it is somebody else's.
pub fn claim(db: &Connection, keys: &Keys) -> Result<(), CollectorError> {
    let fail = CollectorError::db;
    let own = (keys.authority_pin(), keys.root().0.to_vec());
    db.prepare_cached(
        "INSERT INTO identity (one, authority, signing) VALUES (1, ?1, ?2) ON CONFLICT DO NOTHING",
    )
    .and_then(|mut s| s.execute(params![own.0, own.1]))
    .map_err(fail("claim the database of [store]"))?;
    let there: (String, Vec<u8>) = db
        .query_row("SELECT authority, signing FROM identity", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .map_err(fail("read whose database [store] is"))?;
    if there == own {
        return Ok(());
    }
    Err(CollectorError::Store(
        "is the database of a collector with other keys: copy keys/ of its state directory to \
         this one, or name another database"
            .into(),
    ))
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<IpAddr>().is_ok_and(|a| a.is_loopback())
        }
    }
}

fn tls(file: &std::path::Path) -> Result<ClientConfig, String> {
    let roots = roots::read(file)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn server(url: &str) -> Result<Server, String> {
        let settings = Settings { url: url.into(), password: None, ca_file: None };
        settings.server().map_err(|e| e.to_string())
    }

    #[test]
    fn a_server_elsewhere_is_not_spoken_to_in_the_clear() {
        for here in [
            "postgresql://c@localhost/c",
            "postgresql://c@127.0.0.1:5433/c",
            "postgresql://c@[::1]/c",
            "postgresql://c@%2Frun%2Fpostgresql/c",
        ] {
            let server = server(here).unwrap();
            assert_eq!(server.config.get_ssl_mode(), SslMode::Disable, "{here}");
        }
        for (there, why) in [
            ("postgresql://c@db.example.com/c", "ca_file"),
            ("postgresql://c@10.0.0.1/c?sslmode=disable", "ca_file"),
            ("postgresql://c@localhost,db.example.com/c", "ca_file"),
            ("postgresql://c:hunter2@localhost/c", "password"),
            ("postgresql://localhost/c", "user"),
            ("mysql://c@localhost/c", "url"),
        ] {
            let why_not = server(there).err().unwrap_or_default();
            assert!(why_not.contains(why) && !why_not.contains("hunter2"), "{there}: {why_not}");
        }
    }
}
