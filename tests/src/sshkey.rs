//! Keys of agents: their thumbprints, and certificates good and bad.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::accounts::give;
use crate::proc::Cmd;

/// The certificate extension that carries a token.
pub const EXTENSION: &str = "okta-at@interceptor";

/// Kinds of keys that tokens can be bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA on P-256, what Okta's DPoP takes first.
    P256,
    /// RSA of 2048 bits.
    Rsa,
    /// Ed25519, to which no token of Okta's can be bound.
    Ed25519,
}

impl Kind {
    fn words(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::P256 => ("id_ecdsa", &["-t", "ecdsa", "-b", "256"]),
            Self::Rsa => ("id_rsa", &["-t", "rsa", "-b", "2048"]),
            Self::Ed25519 => ("id_ed25519", &["-t", "ed25519"]),
        }
    }
}

/// A private key in a file, its public half beside it.
#[derive(Debug, Clone)]
pub struct SshKey {
    path: PathBuf,
    uid: u32,
}

impl SshKey {
    /// Makes a key under the name by which a stock client finds it.
    pub fn generate(dir: &Path, kind: Kind, uid: u32) -> Result<Self> {
        let (name, words) = kind.words();
        Self::at(&dir.join(name), words, uid)
    }

    /// Makes a P-256 key under a name that no client looks for.
    pub fn elsewhere(path: &Path, uid: u32) -> Result<Self> {
        Self::at(path, Kind::P256.words().1, uid)
    }

    fn at(path: &Path, words: &[&str], uid: u32) -> Result<Self> {
        let _ = std::fs::remove_file(path);
        let cmd = Cmd::new("ssh-keygen").args(["-q", "-N", "", "-C", "agent"]).args(words);
        cmd.arg("-f").arg(path).ok()?;
        let me = Self { path: path.into(), uid };
        give(&me.path, uid)?;
        give(&me.public_file(), uid)?;
        Ok(me)
    }

    /// The private half.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn public_file(&self) -> PathBuf {
        self.path.with_extension("pub")
    }

    /// The public half as it stands in authorized_keys.
    pub fn public(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.public_file())?)
    }

    /// The certificate, which a stock client offers by itself.
    pub fn certificate(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{name}-cert.pub"))
    }

    /// The thumbprint (RFC 7638) that a token's `cnf.jkt` names.
    pub fn thumbprint(&self) -> Result<String> {
        let public = self.public()?;
        let blob = public.split(' ').nth(1).context("a public key without a key")?;
        let blob = STANDARD.decode(blob)?;
        let fields = strings(&blob)?;
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let json = match fields.as_slice() {
            [_, b"nistp256", point] => {
                let (x, y) = point.get(1..).context("a short point")?.split_at(32);
                format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, b64(x), b64(y))
            }
            [b"ssh-rsa", e, n] => {
                let n = n.strip_prefix(&[0]).unwrap_or(n);
                format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, b64(e), b64(n))
            }
            [b"ssh-ed25519", x] => {
                format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, b64(x))
            }
            _ => bail!("a key of an unknown type: {public}"),
        };
        Ok(b64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, json.as_bytes()).as_ref()))
    }

    /// Makes a certificate for this key, with whatever is asked for.
    pub fn certify(&self, wish: &Certificate) -> Result<()> {
        let signer = wish.signer.as_deref().unwrap_or(&self.path);
        let mut cmd = Cmd::new("ssh-keygen").args(["-q", "-I", "agent", "-V", &wish.validity]);
        cmd = cmd.arg("-s").arg(signer);
        if !wish.principals.is_empty() {
            cmd = cmd.args(["-n", &wish.principals]);
        }
        if wish.host {
            cmd = cmd.arg("-h");
        }
        for option in &wish.options {
            cmd = cmd.args(["-O", option]);
        }
        cmd.arg(self.public_file()).ok()?;
        give(&self.certificate(), self.uid)
    }
}

/// What a certificate shall say. The default is what the agent's helper makes.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Who signs; the key itself unless set.
    pub signer: Option<PathBuf>,
    /// Comma-separated.
    pub principals: String,
    /// `ssh-keygen -V`.
    pub validity: String,
    /// A host certificate.
    pub host: bool,
    /// `ssh-keygen -O`.
    pub options: Vec<String>,
}

impl Certificate {
    /// A good one: self-signed, for one user, with the token.
    pub fn good(user: &str, token: &str) -> Self {
        Self {
            signer: None,
            principals: user.into(),
            validity: "-1m:+5m".into(),
            host: false,
            options: vec![format!("extension:{EXTENSION}={token}")],
        }
    }

    /// Without any token in it.
    pub fn bare(user: &str) -> Self {
        Self { options: Vec::new(), ..Self::good(user, "") }
    }
}

/// The length-prefixed strings of a public key.
fn strings(mut blob: &[u8]) -> Result<Vec<&[u8]>> {
    let mut fields = Vec::new();
    while let Some((length, rest)) = blob.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length))?;
        let (field, rest) = rest.split_at_checked(length).context("a cut public key")?;
        fields.push(field);
        blob = rest;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_are_those_of_rfc_7638() -> Result<()> {
        // The key of RFC 7638, section 3.1, in OpenSSH's form.
        let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
        let n = [&[0][..], &URL_SAFE_NO_PAD.decode(n)?].concat();
        let mut blob = Vec::new();
        for field in [&b"ssh-rsa"[..], &[1, 0, 1], &n] {
            blob.extend(u32::try_from(field.len())?.to_be_bytes());
            blob.extend(field);
        }
        let dir = tempfile::tempdir()?;
        let key = SshKey { path: dir.path().join("id_rsa"), uid: 0 };
        std::fs::write(key.public_file(), format!("ssh-rsa {} x\n", STANDARD.encode(blob)))?;
        assert_eq!(key.thumbprint()?, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        Ok(())
    }
}
