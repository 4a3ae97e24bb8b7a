//! Whether a DPoP proof belongs to this very request: method, address, token, moment, nonce, and
//! that it has not come before.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::identity::Proof;

use super::nonce::{Nonces, TURN};
use super::origin::Origins;
use super::seen::{Seen, Sight};

/// How far a proof's `iat` may be from our clock, seconds.
const WINDOW: i64 = 60;

/// Why a proof is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It has no nonce of ours, or an old one: the client signs the new one and asks again.
    Nonce,
    /// It is for something else.
    Proof(&'static str),
    /// It came before.
    Replayed,
    /// So many came that nobody can tell.
    Full,
}

/// Checks proofs.
pub struct Checker {
    /// Our addresses.
    pub origins: Origins,
    /// Our nonces.
    pub nonces: Nonces,
    seen: Seen,
}

impl Checker {
    /// For these addresses.
    pub fn new(origins: Origins, nonces: Nonces) -> Self {
        Self { origins, nonces, seen: Seen::default() }
    }

    /// Whether a proof is for this request, without using it up.
    pub fn check(&self, proof: &Proof, path: &str, token: &[u8], now: i64) -> Result<(), Wrong> {
        if proof.htm != "POST" {
            return Err(Wrong::Proof("the proof's htm is not POST"));
        }
        if !self.origins.accept(&proof.htu, path) {
            return Err(Wrong::Proof("the proof's htu is not the address of this request"));
        }
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(token));
        let ath = proof.ath.as_deref().unwrap_or_default();
        if !bool::from(ath.as_bytes().ct_eq(hash.as_bytes())) {
            return Err(Wrong::Proof("the proof's ath is not the hash of the token beside it"));
        }
        if proof.iat.saturating_sub(now).saturating_abs() > WINDOW {
            return Err(Wrong::Proof(
                "the proof's iat is more than 60 s from this host's clock: check both clocks",
            ));
        }
        match &proof.nonce {
            Some(nonce) if self.nonces.accepts(nonce, now) => Ok(()),
            _ => Err(Wrong::Nonce),
        }
    }

    /// Uses a checked proof up.
    pub fn use_up(&self, proof: &Proof, now: i64) -> Result<(), Wrong> {
        // Longer than its nonce or its iat can be accepted.
        let until = now.saturating_add(2 * TURN.as_secs() as i64 + WINDOW);
        match self.seen.note(&proof.jkt, &proof.jti, until, now) {
            Sight::New => Ok(()),
            Sight::Again => Err(Wrong::Replayed),
            Sight::Full => Err(Wrong::Full),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000_000;

    fn checker() -> Checker {
        let origins = Origins::new(&["https://h:8443".into()], b"", 8443).unwrap();
        Checker::new(origins, Nonces::new().unwrap())
    }

    fn proof(checker: &Checker) -> Proof {
        Proof {
            jkt: "T".into(),
            jti: "1".into(),
            htm: "POST".into(),
            htu: "https://h:8443/v1/present".into(),
            iat: NOW,
            ath: Some(URL_SAFE_NO_PAD.encode(Sha256::digest(b"token"))),
            nonce: Some(checker.nonces.current(NOW)),
        }
    }

    #[test]
    fn a_proof_is_good_for_its_own_request_only() {
        let checker = checker();
        type Change = fn(&mut Proof);
        let cases: [(Change, &str); 12] = [
            (|_| (), ""),
            (|p| p.iat += 60, ""),
            (|p| p.htm = "GET".into(), "htm"),
            (|p| p.htm = "post".into(), "htm"),
            (|p| p.htu = "https://h:8443/v1/ticket".into(), "htu"),
            (|p| p.htu = "https://evil:8443/v1/present".into(), "htu"),
            (|p| p.ath = None, "ath"),
            (|p| p.ath = Some("x".into()), "ath"),
            (|p| p.iat += 61, "iat"),
            (|p| p.iat = i64::MIN, "iat"),
            (|p| p.nonce = None, "nonce"),
            (|p| p.nonce = Some("guess".into()), "nonce"),
        ];
        for (change, want) in cases {
            let mut proof = proof(&checker);
            change(&mut proof);
            let got = match checker.check(&proof, "/v1/present", b"token", NOW) {
                Ok(()) => "",
                Err(Wrong::Nonce) => "nonce",
                Err(Wrong::Proof(words)) => words,
                Err(other) => panic!("{other:?}"),
            };
            assert!(got.contains(want) && got.is_empty() == want.is_empty(), "{want}: {got}");
        }
        let good = proof(&checker);
        assert!(checker.check(&good, "/v1/present", b"another", NOW).is_err());
        assert_eq!(
            checker.check(&good, "/v1/present", b"token", NOW + 120),
            Err(Wrong::Proof(
                "the proof's iat is more than 60 s from this host's clock: check both clocks",
            ))
        );
    }

    #[test]
    fn a_proof_is_good_once() {
        let checker = checker();
        let proof = proof(&checker);
        assert_eq!(checker.use_up(&proof, NOW), Ok(()));
        assert_eq!(checker.use_up(&proof, NOW + 179), Err(Wrong::Replayed));
    }
}
