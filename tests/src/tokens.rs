//! The local issuer that answers as an Okta custom authorization server, and its tokens.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::net::{Net, Place};
use crate::paths::program;
use crate::proc::{Cmd, Daemon, wait_for};

/// The port on the protected host's loopback.
pub const PORT: u16 = 8085;
/// The audience of the first service.
pub const AUDIENCE: &str = "api://orders-db";
/// The scope every default token holds.
pub const SCOPE: &str = "db.orders";

/// The audience of the host's sshd.
pub const SSH_AUDIENCE: &str = "api://host-ssh";
/// The scope of tokens for it.
pub const SSH_SCOPE: &str = "ssh.login";

/// The running issuer.
pub struct Issuer {
    process: Daemon,
    state: PathBuf,
}

/// The `iss` value, where discovery is found.
pub fn url() -> String {
    format!("http://127.0.0.1:{PORT}/oauth2/default")
}

impl Issuer {
    /// Starts the issuer on the loopback address of a namespace.
    pub fn start(dir: &Path, net: &Net) -> Result<Self> {
        let state = dir.join("issuer");
        std::fs::create_dir_all(&state)?;
        let process = Cmd::new(program("okta-like-issuer")?)
            .args(["--listen", &format!("127.0.0.1:{PORT}"), "--state"])
            .arg(&state)
            .in_netns(&net.name(Place::Host))
            .daemonize(&dir.join("issuer.log"))?;
        let mut issuer = Self { process, state };
        wait_for("the issuer to answer", Duration::from_secs(15), || {
            issuer.process.still_runs()?;
            let answer = net.inside(Place::Host, || {
                let mut http = TcpStream::connect(("127.0.0.1", PORT))?;
                http.set_read_timeout(Some(Duration::from_secs(5)))?;
                http.write_all(b"GET /oauth2/default/v1/keys HTTP/1.0\r\nHost: bed\r\n\r\n")?;
                let mut answer = String::new();
                http.read_to_string(&mut answer)?;
                Ok(answer)
            });
            Ok(answer.is_ok_and(|a| a.contains("\"keys\"")).then_some(()))
        })?;
        Ok(issuer)
    }

    /// A token signed with the issuer's current key.
    pub fn mint(&self, claims: &Claims) -> Result<String> {
        let out = Cmd::new(program("okta-like-issuer")?)
            .args(["mint", "--state"])
            .arg(&self.state)
            .args(["--claims", &Value::Object(claims.claims.clone()).to_string()])
            .args(["--header", &Value::Object(claims.header.clone()).to_string()])
            .args(["--sign", claims.sign])
            .ok()?;
        Ok(out.trim().to_owned())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process, to be stopped or killed.
    pub fn process(&mut self) -> &mut Daemon {
        &mut self.process
    }
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The claims of a token to be made, and how it is signed.
#[derive(Debug, Clone)]
pub struct Claims {
    claims: Map<String, Value>,
    header: Map<String, Value>,
    sign: &'static str,
}

impl Claims {
    /// What a reporting agent holds that acts for a person: five minutes from now.
    pub fn reporter() -> Self {
        let now = now();
        let claims = json!({
            "aud": AUDIENCE,
            "sub": "alice@example.com",
            "uid": "00u-alice",
            "cid": "0oa-reporter",
            "scp": [SCOPE],
            "groups": ["analysts"],
            "iat": now,
            "exp": now + 300,
            "auth_time": now - 30,
        });
        let claims = claims.as_object().cloned().unwrap_or_default();
        Self { claims, header: Map::new(), sign: "current" }
    }

    /// What the same agent holds for the host's sshd, bound to no key.
    pub fn ssh() -> Self {
        Self::reporter().with("aud", SSH_AUDIENCE).with("scp", json!([SSH_SCOPE]))
    }

    /// Binds it to a key by its thumbprint.
    pub fn bound(self, thumbprint: &str) -> Self {
        self.with("cnf", json!({ "jkt": thumbprint }))
    }

    /// A machine's own token: neither user nor groups.
    pub fn machine() -> Self {
        Self::reporter()
            .with("cid", "0oa-etl")
            .with("sub", "0oa-etl")
            .without("uid")
            .without("groups")
            .without("auth_time")
    }

    /// Sets one claim.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.into(), value.into());
        self
    }

    /// Takes one claim out.
    pub fn without(self, name: &str) -> Self {
        self.with(name, Value::Null)
    }

    /// Sets one member of the header.
    pub fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header.insert(name.into(), value.into());
        self
    }

    /// Signs with something else: `foreign` (an unpublished key under the current name),
    /// `none` or `hs256`.
    pub fn sign(mut self, how: &'static str) -> Self {
        self.sign = how;
        self
    }

    /// Moves `iat` and `exp` by seconds.
    pub fn shifted(mut self, seconds: i64) -> Self {
        for name in ["iat", "exp"] {
            if let Some(at) = self.claims.get(name).and_then(Value::as_i64) {
                self.claims.insert(name.into(), json!(at + seconds));
            }
        }
        self
    }

    /// Lives for some seconds from now.
    pub fn lasting(self, seconds: i64) -> Self {
        self.with("exp", now() + seconds)
    }
}
