//! Policies from the centre as they travel: one version, signed whole.
//!
//! A bundle is the exact JSON text that the collector's key signed, under a domain of its own.
//! It holds all files of the version in order, or says that there are none any more. Versions
//! only grow: a roll-back is old content under a new number, and so is a withdrawal, so that an
//! older bundle shown again is never taken. Collector and host read and check it with what
//! stands here, and neither believes anything of one that it has not checked.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::succession::SignedSuccession;
use crate::policy::{PolicyErrors, PolicySet, Source, source_name};
use crate::record::PublicKey;
use crate::record::chain::hex;

/// Stands before every bundle that is signed, so that no signature made for something else fits.
pub const BUNDLE_DOMAIN: &[u8] = b"interceptor policies v1\0";
/// Most bytes of all files of a bundle. Escaped twice on its way it still fits into an answer.
pub const MAX_FILES_BYTES: usize = 1 << 20;
/// Most files of a bundle.
pub const MAX_FILES: usize = 200;
/// Longest name of a file.
const MAX_NAME: usize = 100;
/// Most bytes of the text that is signed: every byte of the files escaped, and what is around.
pub const MAX_BUNDLE: usize = 2 * MAX_FILES_BYTES + (64 << 10);

/// Why a bundle is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not signed with the collector's key, or changed since.
    #[error("not signed with the key of the collector that this host enrolled with")]
    Forged,
    /// No bundle at all, or one that this version does not understand.
    #[error("no bundle of policies that this version understands: {0}")]
    Unreadable(String),
    /// Overtaken.
    #[error(
        "it is version {version}, and this host has had version {seen}: versions only grow; was \
         the collector put back? publish with `--above {seen}` there"
    )]
    Old {
        /// Its version.
        version: u64,
        /// The newest that was seen.
        seen: u64,
    },
    /// What it says cannot be used.
    #[error(transparent)]
    Policies(#[from] PolicyErrors),
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name, without a directory.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// One version, as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// 1.
    pub v: u32,
    /// Its number: greater than that of all before it.
    pub version: u64,
    /// When it was published, microseconds since the Unix epoch.
    pub published_us: i64,
    /// [`digest`] of its files; empty when there are none.
    pub sha256: String,
    /// The files in order; `None` withdraws what was published before.
    pub files: Option<Vec<File>>,
}

/// A bundle with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    /// Exact JSON text of a [`Bundle`].
    pub body: String,
    /// Ed25519 signature in base64.
    pub signature: String,
}

/// Answer to a host that asks for policies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// The newest version that was published; 0 when none was.
    pub newest: u64,
    /// It, when it is newer than what the host has.
    pub bundle: Option<SignedBundle>,
    /// How the collector's keys followed the one that the host believes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<SignedSuccession>,
}

/// What a host tells of its policies from the centre.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What is in force; nothing on a host that did not opt in.
    pub central: Option<crate::control::CentralStatus>,
}

/// SHA-256 of the files in their canonical form: each name and text after its length, in order.
/// The same content has the same digest under every number.
pub fn digest(files: &[File]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"interceptor policy files v1\0");
    for text in files.iter().flat_map(|f| [&f.name, &f.text]) {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hex(&hash.finalize())
}

/// Whether these can be the files of a bundle, leaving aside what they say.
pub fn check_files(files: &[File]) -> Result<(), String> {
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(format!("a bundle has between 1 and {MAX_FILES} files"));
    }
    let bytes: usize = files.iter().map(|f| f.name.len() + f.text.len()).sum();
    if bytes > MAX_FILES_BYTES {
        return Err(format!("the files have {bytes} bytes, and {MAX_FILES_BYTES} are the most"));
    }
    let mut names = BTreeSet::new();
    for file in files {
        let name = &file.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.len() > MAX_NAME
            || !name.chars().all(plain)
            || name.starts_with('.')
            || !name.ends_with(".toml")
            || name.ends_with(".test.toml")
        {
            return Err(format!(
                "{name:?}: a file is called like orders.toml, in letters, digits, dashes, dots \
                 and _"
            ));
        }
        if !names.insert(name) {
            return Err(format!("two files are called {name:?}"));
        }
        if file.text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err(format!("{name}: holds control characters"));
        }
    }
    Ok(())
}

impl Bundle {
    /// A version with these files, or one that withdraws.
    pub fn new(version: u64, published_us: i64, files: Option<Vec<File>>) -> Self {
        let sha256 = files.as_deref().map(digest).unwrap_or_default();
        Self { v: 1, version, published_us, sha256, files }
    }

    /// The bytes that are signed for a bundle of this text.
    pub fn message(body: &str) -> Vec<u8> {
        [BUNDLE_DOMAIN, body.as_bytes()].concat()
    }

    /// Reads a bundle that this key signed.
    pub fn read(signed: &SignedBundle, key: &PublicKey) -> Result<Self, BundleError> {
        let unreadable = |why: String| BundleError::Unreadable(why);
        if signed.body.len() > MAX_BUNDLE {
            return Err(unreadable(format!("it has more than {MAX_BUNDLE} bytes")));
        }
        let signature = STANDARD.decode(&signed.signature).map_err(|_| BundleError::Forged)?;
        if !key.verify(&Self::message(&signed.body), &signature) {
            return Err(BundleError::Forged);
        }
        let bundle: Self =
            serde_json::from_str(&signed.body).map_err(|e| unreadable(e.to_string()))?;
        if bundle.v != 1 {
            return Err(unreadable(format!("it is of version {} of the format", bundle.v)));
        }
        if bundle.version == 0 || i64::try_from(bundle.version).is_err() {
            return Err(unreadable(format!("{} is no version", bundle.version)));
        }
        if let Some(files) = &bundle.files {
            check_files(files).map_err(unreadable)?;
        }
        if bundle.sha256 != bundle.files.as_deref().map(digest).unwrap_or_default() {
            return Err(unreadable("its files are not those of its SHA-256".into()));
        }
        Ok(bundle)
    }

    /// Its rules, all or nothing; `None` when it withdraws.
    pub fn policies(&self) -> Result<Option<PolicySet>, PolicyErrors> {
        let Some(files) = &self.files else { return Ok(None) };
        let name = |f: &File| source_name(self.version, &f.name);
        let sources: Vec<Source> =
            files.iter().map(|f| Source { name: name(f), text: f.text.clone() }).collect();
        PolicySet::central(self.version, &sources).map(Some)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::record::HostKey;

    fn file(name: &str, text: &str) -> File {
        File { name: name.into(), text: text.into() }
    }

    fn signed(key: &HostKey, bundle: &Bundle) -> SignedBundle {
        let body = serde_json::to_string(bundle).unwrap();
        let signature = STANDARD.encode(key.sign(&Bundle::message(&body)));
        SignedBundle { body, signature }
    }

    #[test]
    fn only_what_the_key_signed_in_its_own_domain_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        let bundle = Bundle::new(3, 5, Some(vec![file("a.toml", "# nothing\n")]));
        let good = signed(&key, &bundle);
        assert_eq!(Bundle::read(&good, key.public()).unwrap(), bundle);
        let altered =
            SignedBundle { body: good.body.replace("nothing", "anything"), ..good.clone() };
        let bare = STANDARD.encode(key.sign(good.body.as_bytes()));
        let order = STANDARD.encode(key.sign(&super::super::wire::order_message(&good.body)));
        let mut wrong = vec![altered];
        for signature in [bare, order, String::new(), "AAAA".into(), "no base64!".into()] {
            wrong.push(SignedBundle { signature, ..good.clone() });
        }
        for signed in &wrong {
            assert_eq!(Bundle::read(signed, key.public()), Err(BundleError::Forged), "{signed:?}");
        }
        let other = tempfile::tempdir().unwrap();
        let other = HostKey::open(other.path()).unwrap();
        assert_eq!(Bundle::read(&signed(&other, &bundle), key.public()), Err(BundleError::Forged));
    }

    #[test]
    fn what_is_signed_and_makes_no_sense_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        let files = || Some(vec![file("a.toml", "x")]);
        let changed = |change: fn(&mut Bundle)| {
            let mut bundle = Bundle::new(3, 5, files());
            change(&mut bundle);
            signed(&key, &bundle)
        };
        let all = [
            changed(|b| b.v = 2),
            changed(|b| b.version = 0),
            changed(|b| b.version = u64::MAX),
            changed(|b| b.sha256 = "00".into()),
            changed(|b| b.files = None),
            changed(|b| b.files = Some(Vec::new())),
            signed(&key, &Bundle::new(3, 5, Some(vec![file("../a.toml", "x")]))),
            signed(&key, &Bundle::new(3, 5, Some(vec![file("a.test.toml", "x")]))),
            signed(&key, &Bundle::new(3, 5, Some(vec![file("a.toml", "x"), file("a.toml", "y")]))),
            signed(&key, &Bundle::new(3, 5, Some(vec![file("a.toml", "\u{1b}[2J")]))),
            signed(&key, &Bundle::new(3, 5, Some(vec![file("a.toml", &"#".repeat(1 << 20))]))),
        ];
        for signed in &all {
            let refused = Bundle::read(signed, key.public());
            assert!(matches!(refused, Err(BundleError::Unreadable(_))), "{refused:?}");
        }
    }

    #[test]
    fn the_largest_bundle_fits_into_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::open(dir.path()).unwrap();
        let text = "\"".repeat(MAX_FILES_BYTES - 6);
        let bundle = Bundle::new(3, 5, Some(vec![file("a.toml", &text)]));
        let signed = signed(&key, &bundle);
        assert!(Bundle::read(&signed, key.public()).is_ok());
        let offer = Offer { newest: 3, bundle: Some(signed), keys: Vec::new() };
        assert!(serde_json::to_vec(&offer).unwrap().len() < super::super::line::MAX_ANSWER);
    }

    #[test]
    fn the_digest_tells_names_texts_and_their_order_apart() {
        let all = [
            digest(&[file("a", "b"), file("c", "d")]),
            digest(&[file("c", "d"), file("a", "b")]),
            digest(&[file("a", "bc"), file("", "d")]),
            digest(&[file("a", "b")]),
        ];
        let different: BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
