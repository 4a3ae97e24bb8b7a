//! How a client is told to connect: the way any client is, by libpq's environment.

use crate::cluster::DATABASE;
use crate::net::{HOST_V4, Place};
use crate::proc::Cmd;

/// Everything a client needs to connect.
#[derive(Clone)]
pub struct Login {
    /// From which machine.
    pub from: Place,
    /// Address of the server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Database role.
    pub user: String,
    /// The token.
    pub password: String,
    /// Database.
    pub database: String,
    /// libpq's `sslmode`.
    pub sslmode: String,
    /// What the client trusts.
    pub ca: String,
}

impl Login {
    /// From the agent's machine to the plain host and port, with full verification.
    pub fn new(user: &str, password: &str, ca: &std::path::Path) -> Self {
        Self {
            from: Place::Agent,
            host: HOST_V4.into(),
            port: 5432,
            user: user.into(),
            password: password.into(),
            database: DATABASE.into(),
            sslmode: "verify-full".into(),
            ca: ca.display().to_string(),
        }
    }

    /// From another machine.
    pub fn from(mut self, place: Place) -> Self {
        self.from = place;
        self
    }

    /// To another address.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// To another port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// With another token.
    pub fn password(mut self, password: &str) -> Self {
        self.password = password.into();
        self
    }

    /// With another `sslmode`.
    pub fn sslmode(mut self, mode: &str) -> Self {
        self.sslmode = mode.into();
        self
    }

    /// Gives a client program this login through its environment.
    pub fn apply(&self, command: Cmd) -> Cmd {
        command
            .clear_env()
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C.UTF-8")
            .env("PGHOST", &self.host)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", &self.user)
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", &self.database)
            .env("PGSSLMODE", &self.sslmode)
            .env("PGSSLROOTCERT", &self.ca)
            .env("PGCONNECT_TIMEOUT", "10")
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}:{}/{} ({})", self.user, self.host, self.port, self.database, self.sslmode)
    }
}
