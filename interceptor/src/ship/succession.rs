//! How one signing key of the collector follows another.
//!
//! A succession names the key before and the key after, and both have signed it: the one before
//! says who comes next, the one after that it is really there. Whoever knows any key of the
//! collector follows the successions from that one on; so neither hosts nor the holders of proofs
//! need anything new when the collector changes its key, however long they were away.
//!
//! What this module must never do: follow a succession backwards, or to a key that was before.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::record::PublicKey;

/// Stands before every succession that is signed, so that no signature made for something else
/// fits.
const DOMAIN: &[u8] = b"interceptor collector key succession v1\0";
/// Most successions that are read: a key a week for twenty years.
const MOST: usize = 1_000;
/// Largest succession, in bytes of its text.
const MAX_BODY: usize = 1_024;

/// One succession, as it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// 1.
    pub v: u32,
    /// 1 for the first, and one more with each.
    pub number: u64,
    /// The Ed25519 key before, base64.
    pub from: String,
    /// The key after, base64.
    pub to: String,
    /// When; microseconds since the Unix epoch.
    pub issued_us: i64,
}

/// A succession with its signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSuccession {
    /// Exact JSON text of a [`Succession`].
    pub body: String,
    /// Signature of the key before, base64.
    pub by_old: String,
    /// Signature of the key after, base64.
    pub by_new: String,
}

/// Why successions are not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuccessionError {
    /// One is none, or of another version.
    #[error("a succession of the collector's keys cannot be read: {0}")]
    Form(String),
    /// One is not signed by both keys.
    #[error("a succession of the collector's keys is not signed by the keys that it names")]
    Signature,
    /// One does not continue the one before.
    #[error("succession {0} of the collector's keys does not continue the one before")]
    Order(u64),
}

/// The bytes that are signed for a succession of this text.
pub fn message(body: &str) -> Vec<u8> {
    [DOMAIN, body.as_bytes()].concat()
}

impl SignedSuccession {
    /// Reads it without believing it.
    pub fn read(&self) -> Result<(Succession, PublicKey, PublicKey), SuccessionError> {
        let form = |why: &str| SuccessionError::Form(why.to_owned());
        if self.body.len() > MAX_BODY {
            return Err(form("it is too long"));
        }
        let it: Succession =
            serde_json::from_str(&self.body).map_err(|e| SuccessionError::Form(e.to_string()))?;
        if it.v != 1 {
            return Err(SuccessionError::Form(format!("it is of version {}", it.v)));
        }
        let from = PublicKey::of_base64(&it.from).ok_or_else(|| form("the key before is none"))?;
        let to = PublicKey::of_base64(&it.to).ok_or_else(|| form("the key after is none"))?;
        Ok((it, from, to))
    }

    fn is_signed(&self, from: &PublicKey, to: &PublicKey) -> bool {
        let message = message(&self.body);
        let by = |key: &PublicKey, text: &str| {
            STANDARD.decode(text).is_ok_and(|signature| key.verify(&message, &signature))
        };
        by(from, &self.by_old) && by(to, &self.by_new)
    }
}

/// The keys that came after one that is known, oldest first; none when it is the last, or does not
/// occur. Each succession after it must be signed by both of its keys; those before do not matter.
pub fn follow(
    known: &PublicKey,
    chain: &[SignedSuccession],
) -> Result<Vec<PublicKey>, SuccessionError> {
    if chain.len() > MOST {
        return Err(SuccessionError::Form("there are too many".into()));
    }
    let mut keys: Vec<PublicKey> = Vec::new();
    let mut last = 0;
    for signed in chain {
        let (it, from, to) = signed.read()?;
        let at = keys.last().unwrap_or(known);
        if from != *at {
            match keys.is_empty() {
                true => continue,
                false => return Err(SuccessionError::Order(it.number)),
            }
        }
        if !signed.is_signed(&from, &to) {
            return Err(SuccessionError::Signature);
        }
        let continues = keys.is_empty() || it.number == last + 1;
        if !continues || to == *known || keys.contains(&to) {
            return Err(SuccessionError::Order(it.number));
        }
        last = it.number;
        keys.push(to);
    }
    Ok(keys)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::record::HostKey;

    pub(crate) fn key() -> HostKey {
        let dir = tempfile::tempdir().unwrap();
        HostKey::open(dir.path()).unwrap()
    }

    pub(crate) fn signed(number: u64, from: &HostKey, to: &HostKey) -> SignedSuccession {
        let it = Succession {
            v: 1,
            number,
            from: from.public().to_base64(),
            to: to.public().to_base64(),
            issued_us: 1,
        };
        let body = serde_json::to_string(&it).unwrap();
        let by = |key: &HostKey| STANDARD.encode(key.sign(&message(&body)));
        SignedSuccession { by_old: by(from), by_new: by(to), body }
    }

    #[test]
    fn any_key_leads_to_the_last_and_never_back() {
        let (a, b, c, stranger) = (key(), key(), key(), key());
        let chain = [signed(1, &a, &b), signed(2, &b, &c)];
        let keys = |known: &HostKey| follow(known.public(), &chain).unwrap();
        assert_eq!(keys(&a), [*b.public(), *c.public()]);
        assert_eq!(keys(&b), [*c.public()]);
        assert_eq!((keys(&c), keys(&stranger)), (vec![], vec![]));
        let back = [signed(1, &a, &b), signed(2, &b, &a)];
        assert_eq!(follow(a.public(), &back), Err(SuccessionError::Order(2)));
        let stolen = [signed(1, &a, &b), signed(2, &a, &stranger)];
        assert_eq!(follow(a.public(), &stolen), Err(SuccessionError::Order(2)));
        assert_eq!(follow(b.public(), &stolen), Ok(vec![]), "what the old key signs is over");
    }

    #[test]
    fn what_one_of_the_keys_did_not_sign_is_not_followed() {
        let (a, b, other) = (key(), key(), key());
        let good = signed(1, &a, &b);
        let by_other = signed(1, &other, &b);
        let swapped = SignedSuccession {
            by_old: good.by_new.clone(),
            by_new: good.by_old.clone(),
            ..good.clone()
        };
        let altered = good.body.replace("\"issued_us\":1", "\"issued_us\":2");
        for bad in [
            SignedSuccession { by_old: by_other.by_old, ..good.clone() },
            SignedSuccession { by_new: String::new(), ..good.clone() },
            SignedSuccession { body: altered, ..good.clone() },
            swapped,
        ] {
            assert_eq!(follow(a.public(), &[bad]), Err(SuccessionError::Signature));
        }
        for body in ["", "{}", &good.body.replace("\"v\":1", "\"v\":2"), &"x".repeat(2_000)] {
            let bad = SignedSuccession { body: body.into(), ..good.clone() };
            assert!(matches!(follow(a.public(), &[bad]), Err(SuccessionError::Form(_))), "{body}");
        }
        let gap = [signed(1, &a, &b), signed(3, &b, &other)];
        assert_eq!(follow(a.public(), &gap), Err(SuccessionError::Order(3)));
    }
}
