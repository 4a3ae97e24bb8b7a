//! The address at which a token is presented beforehand, asked as an agent's side-car does:
//! over TLS, with a proof of possession for a bound token (RFC 9449).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::net::HOST_V4;
use crate::proc::Cmd;
use crate::robot::Robot;
use crate::tokens::now;
use crate::wire::trust;

/// The port on which the daemon of a bed listens for it.
pub const PORT: u16 = 8443;

/// An answer of the daemon.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Value,
    nonce: Option<String>,
}

/// Sends a token to `/v1/present` or `/v1/ticket`, with a proof by the robot's key if asked
/// for, and once more with the nonce that the first answer demands.
pub fn post(bed: &Bed, robot: &Robot, path: &str, token: &str, bound: bool) -> Result<Answer> {
    let key = Prover::of(robot)?;
    let ask = |nonce: Option<&str>| -> Result<Answer> {
        let proof = bound.then(|| key.proof(path, token, nonce)).transpose()?;
        let (scheme, proof) = match proof {
            Some(proof) => ("DPoP", format!("DPoP: {proof}\r\n")),
            None => ("Bearer", String::new()),
        };
        let body = json!({"service": "host-ssh"}).to_string();
        request(
            bed,
            robot,
            &format!(
                "POST {path} HTTP/1.1\r\nHost: {HOST_V4}:{PORT}\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\
                 Authorization: {scheme} {token}\r\n{proof}\r\n{body}",
                body.len()
            ),
        )
    };
    let first = ask(None)?;
    match &first.nonce {
        Some(nonce) if bound && first.status == 401 => ask(Some(nonce)),
        _ => Ok(first),
    }
}

/// One request on a connection of its own.
pub fn request(bed: &Bed, robot: &Robot, text: &str) -> Result<Answer> {
    let answer = bed.net().inside(robot.from, || {
        let tcp = TcpStream::connect((HOST_V4, PORT))?;
        tcp.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        let config = trust(&bed.tls.ca, &[])?;
        let name = ServerName::try_from(HOST_V4)?;
        let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, tcp);
        tls.write_all(text.as_bytes())?;
        let mut bytes = Vec::new();
        // A server that closes without TLS's own goodbye is an error here and none to us.
        let _ = tls.read_to_end(&mut bytes);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let nonce = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("dpop-nonce").then(|| value.trim().to_owned())
    });
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default(), nonce })
}

/// Signs proofs with the key of a robot.
struct Prover {
    key: EncodingKey,
    algorithm: Algorithm,
    jwk: Jwk,
}

impl Prover {
    fn of(robot: &Robot) -> Result<Self> {
        // The JOSE library reads no OpenSSH keys: one copy in the usual form.
        let copy = robot.home.join("proof.pem");
        std::fs::copy(robot.key.path(), &copy)?;
        let cmd = Cmd::new("ssh-keygen").args(["-q", "-p", "-m", "PKCS8", "-N", "", "-f"]);
        cmd.arg(&copy).ok()?;
        let pem = std::fs::read(&copy)?;
        std::fs::remove_file(&copy)?;
        let (key, algorithm) = match robot.key.public()?.starts_with("ssh-rsa") {
            true => (EncodingKey::from_rsa_pem(&pem)?, Algorithm::RS256),
            false => (EncodingKey::from_ec_pem(&pem)?, Algorithm::ES256),
        };
        let jwk = Jwk::from_encoding_key(&key, algorithm)?;
        Ok(Self { key, algorithm, jwk })
    }

    fn proof(&self, path: &str, token: &str, nonce: Option<&str>) -> Result<String> {
        let mut header = Header::new(self.algorithm);
        header.typ = Some("dpop+jwt".into());
        // Only what names the key: the library would add what it is for.
        let mut jwk = self.jwk.clone();
        jwk.common = jsonwebtoken::jwk::CommonParameters::default();
        header.jwk = Some(jwk);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let mut claims = json!({
            "jti": format!("{}-{}", now(), fresh()),
            "htm": "POST",
            "htu": format!("https://{HOST_V4}:{PORT}{path}"),
            "iat": now(),
            "ath": URL_SAFE_NO_PAD.encode(hash.as_ref()),
        });
        if let Some(nonce) = nonce {
            claims["nonce"] = json!(nonce);
        }
        Ok(jsonwebtoken::encode(&header, &claims, &self.key)?)
    }
}

/// A number that comes once in this process, and with the process's id once at all.
fn fresh() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
