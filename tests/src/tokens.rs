//! The local issuer that answers as an Okta custom authorization server, and its tokens.

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
            let answers = net.inside(Place::Host, || Ok(TcpStream::connect(("127.0.0.1", PORT))?));
            Ok(answers.is_ok().then_some(()))
        })?;
        Ok(issuer)
    }

    /// A token signed with the issuer's current key.
    pub fn mint(&self, claims: &Claims) -> Result<String> {
        let out = Cmd::new(program("okta-like-issuer")?)
            .args(["mint", "--state"])
            .arg(&self.state)
            .arg("--claims")
            .arg(claims.json().to_string())
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

/// The claims of a token to be made.
#[derive(Debug, Clone)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// What a reporting agent holds that acts for a person: five minutes from now.
    pub fn reporter() -> Self {
        let now = now();
        let unique: u128 = rand_id();
        Self(Map::from_iter([
            ("ver".into(), json!(1)),
            ("iss".into(), json!(url())),
            ("aud".into(), json!(AUDIENCE)),
            ("sub".into(), json!("alice@example.com")),
            ("uid".into(), json!("00u-alice")),
            ("cid".into(), json!("0oa-reporter")),
            ("scp".into(), json!([SCOPE])),
            ("groups".into(), json!(["analysts"])),
            ("iat".into(), json!(now)),
            ("exp".into(), json!(now + 300)),
            ("auth_time".into(), json!(now - 30)),
            ("jti".into(), json!(format!("AT.{unique:032x}"))),
        ]))
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
        self.0.insert(name.into(), value.into());
        self
    }

    /// Removes one claim.
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// Moves `iat` and `exp` by seconds.
    pub fn shifted(mut self, seconds: i64) -> Self {
        for name in ["iat", "exp"] {
            if let Some(at) = self.0.get(name).and_then(Value::as_i64) {
                self.0.insert(name.into(), json!(at + seconds));
            }
        }
        self
    }

    /// Whole set.
    pub fn json(&self) -> Value {
        Value::Object(self.0.clone())
    }
}

fn rand_id() -> u128 {
    let mut bytes = [0_u8; 16];
    // Without randomness there is no unique token, and the tests say so by themselves.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u128::from_be_bytes(bytes)
}

/// The same token with a signature that does not belong to it.
pub fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let turned: String = signature.chars().rev().collect();
    format!("{signed}.{turned}")
}
