//! Who is logged in: sessions on the server, of which the browser holds only a random name.
//!
//! The name is stored as a hash, so that a copy of the database opens nothing. It is new at
//! every login, so that one planted beforehand is worth nothing. A login ends when it is not
//! used, at a fixed time in any case, and at once when the person logs out.

use crate::collector::db::{Connection, OptionalExtension, params};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::oidc::{Begun, Who};
use crate::collector::audit::{self, Entry};
use crate::collector::decisions::Person;
use crate::collector::{CollectorError, Config, Role};
use crate::record::chain;

/// How long a login may take at the issuer.
pub const PENDING_SECONDS: u64 = 600;
/// Most logins under way; the oldest go first.
const MOST_PENDING: i64 = 10_000;
/// How exactly the last use is kept.
const TOUCH_US: i64 = 30_000_000;

/// A random name of 256 bits, as base64url.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new one.
    pub fn new() -> Result<Self, CollectorError> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes)
            .map_err(|_| CollectorError::Key("no randomness from the kernel".into()))?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// What the browser gets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Somebody who is logged in.
#[derive(Debug, Clone)]
pub struct Login {
    /// Who.
    pub person: Person,
    /// Must come with every form.
    pub csrf: String,
    hash: [u8; 32],
}

/// A person with the roles that the configuration gives these groups now.
pub fn person(config: &Config, issuer: &str, sub: &str, name: &str, groups: Vec<String>) -> Person {
    let roles = config.roles.of(groups.iter().map(String::as_str));
    Person { issuer: issuer.into(), sub: sub.into(), name: name.into(), groups, roles }
}

/// Whether a person sees anything here: every role does.
pub fn sees(person: &Person) -> bool {
    !person.roles.is_empty()
}

fn name_hash(name: &str) -> [u8; 32] {
    chain::hash(b"interceptor login v1\0", &[name.as_bytes()])
}

/// The state alone opens nothing: it must come from the browser that began.
fn state_hash(state: &str, binding: &str) -> [u8; 32] {
    chain::hash(b"interceptor login state v1\0", &[state.as_bytes(), b"\0", binding.as_bytes()])
}

fn micros(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

/// Remembers a login that begins, for one browser.
pub fn remember(
    db: &Connection,
    begun: &Begun,
    binding: &str,
    next: &str,
    now_us: i64,
) -> Result<(), CollectorError> {
    let oldest = now_us - micros(PENDING_SECONDS);
    let write = || -> crate::collector::db::Result<()> {
        db.execute("DELETE FROM pending_logins WHERE created_us < ?1", [oldest])?;
        db.execute(
            "DELETE FROM pending_logins WHERE state_hash IN (SELECT state_hash FROM \
             pending_logins ORDER BY created_us DESC LIMIT -1 OFFSET ?1)",
            [MOST_PENDING - 1],
        )?;
        db.execute(
            "INSERT INTO pending_logins (state_hash, nonce, verifier, next, created_us) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                &state_hash(&begun.state, binding)[..],
                begun.nonce,
                begun.verifier,
                next,
                now_us
            ],
        )?;
        Ok(())
    };
    write().map_err(CollectorError::db("remember a login"))
}

/// What was remembered of a login.
#[derive(Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Must stand in the ID token.
    pub nonce: String,
    /// Proves that the code is ours.
    pub verifier: String,
    /// Where to go afterwards.
    pub next: String,
}

/// Takes a remembered login out; each state is good once, for its own browser.
pub fn take(
    db: &Connection,
    state: &str,
    binding: &str,
    now_us: i64,
) -> Result<Option<Remembered>, CollectorError> {
    db.query_row(
        "DELETE FROM pending_logins WHERE state_hash = ?1 \
         RETURNING nonce, verifier, next, created_us",
        [&state_hash(state, binding)[..]],
        |r| {
            let created: i64 = r.get(3)?;
            let it = Remembered { nonce: r.get(0)?, verifier: r.get(1)?, next: r.get(2)? };
            Ok((it, created))
        },
    )
    .optional()
    .map(|found| found.filter(|(_, at)| now_us - at <= micros(PENDING_SECONDS)).map(|f| f.0))
    .map_err(CollectorError::db("read a login"))
}

/// Logs somebody in under a new name, and ends the login that this browser had before.
pub fn create(
    db: &Connection,
    config: &Config,
    issuer: &str,
    who: &Who,
    name: &Secret,
    before: Option<&str>,
    now_us: i64,
) -> Result<(), CollectorError> {
    let csrf = Secret::new()?;
    let groups = serde_json::to_string(&who.groups).unwrap_or_default();
    let until = now_us.saturating_add(micros(config.console.absolute.0.as_secs()));
    let write = || -> crate::collector::db::Result<()> {
        db.execute("DELETE FROM logins WHERE expires_us <= ?1", [now_us])?;
        if let Some(before) = before {
            db.execute("DELETE FROM logins WHERE hash = ?1", [&name_hash(before)[..]])?;
        }
        db.execute(
            "INSERT INTO logins (hash, issuer, sub, name, groups, csrf, created_us, seen_us, \
             expires_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8)",
            params![
                &name_hash(name.as_str())[..],
                issuer,
                who.sub,
                who.name,
                groups,
                csrf.as_str().as_bytes(),
                now_us,
                until
            ],
        )?;
        Ok(())
    };
    write().map_err(CollectorError::db("log somebody in"))?;
    let person = person(config, issuer, &who.sub, &who.name, who.groups.clone());
    let roles: Vec<Role> = person.roles.iter().copied().collect();
    let detail = serde_json::json!({ "roles": roles });
    audit::append(
        db,
        &Entry { who: &person.who(), what: "login", target: "console", detail: &detail },
    )
}

/// Who holds a name now. `Some(true)` beside it: its use should be noted.
pub fn find(
    db: &Connection,
    config: &Config,
    name: &str,
    now_us: i64,
) -> Result<Option<(Login, bool)>, CollectorError> {
    let hash = name_hash(name);
    let idle = micros(config.console.idle.0.as_secs());
    db.prepare_cached(
        "SELECT issuer, sub, name, groups, csrf, seen_us FROM logins \
         WHERE hash = ?1 AND expires_us > ?2 AND seen_us > ?3",
    )
    .and_then(|mut s| {
        s.query_row(params![&hash[..], now_us, now_us.saturating_sub(idle)], |r| {
            let groups: String = r.get(3)?;
            let groups: Vec<String> = serde_json::from_str(&groups).unwrap_or_default();
            let (issuer, sub, name): (String, String, String) = (r.get(0)?, r.get(1)?, r.get(2)?);
            let csrf: Vec<u8> = r.get(4)?;
            let seen: i64 = r.get(5)?;
            let login = Login {
                person: person(config, &issuer, &sub, &name, groups),
                csrf: String::from_utf8_lossy(&csrf).into_owned(),
                hash,
            };
            Ok((login, now_us - seen > TOUCH_US.min(idle / 4)))
        })
        .optional()
    })
    .map_err(CollectorError::db("read a login"))
}

/// Notes that a login is used.
pub fn touch(db: &Connection, login: &Login, now_us: i64) -> Result<(), CollectorError> {
    db.execute(
        "UPDATE logins SET seen_us = ?2 WHERE hash = ?1 AND seen_us < ?2",
        params![&login.hash[..], now_us],
    )
    .map(drop)
    .map_err(CollectorError::db("note the use of a login"))
}

/// Ends a login.
pub fn end(db: &Connection, login: &Login) -> Result<(), CollectorError> {
    db.execute("DELETE FROM logins WHERE hash = ?1", [&login.hash[..]])
        .map_err(CollectorError::db("end a login"))?;
    let detail = serde_json::Value::Null;
    let who = login.person.who();
    audit::append(db, &Entry { who: &who, what: "logout", target: "console", detail: &detail })
}
