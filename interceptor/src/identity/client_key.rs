//! The key that a client proved on its connection, named the same way whatever protocol proved
//! it: by its RFC 7638 thumbprint, which is what a token's `cnf.jkt` holds.

use jsonwebtoken::jwk::{
    AlgorithmParameters, CommonParameters, EllipticCurve, EllipticCurveKeyParameters,
    EllipticCurveKeyType, Jwk, OctetKeyPairParameters, OctetKeyPairType, RSAKeyParameters,
    RSAKeyType, ThumbprintHash,
};
use russh::keys::ssh_key::public::{EcdsaPublicKey, KeyData};
use russh::keys::{EcdsaCurve, PublicKey as SshKey};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::strict::to_base64url;
use super::token::hex;

const OID_EC_P256: &str = "1.2.840.10045.3.1.7";
const OID_EC_P384: &str = "1.2.840.10045.3.1.34";
const OID_EC_P384_SECG: &str = "1.3.132.0.34";
const OID_ED25519: &str = "1.3.101.112";

/// A key whose possession the client proved on this very connection.
#[derive(Debug, Clone, Copy)]
pub enum ProvenKey<'a> {
    /// SubjectPublicKeyInfo (DER) of a TLS client certificate.
    Spki(&'a [u8]),
    /// The key of SSH user authentication; of a certificate the key inside it.
    Ssh(&'a SshKey),
    /// RFC 7638 thumbprint of the key that signed a DPoP proof ([`super::read_proof`]).
    Jkt(&'a str),
}

impl ProvenKey<'_> {
    /// Its thumbprint, or `spki-sha256:…` or `ssh-sha256:…` for a kind of key that has none here.
    pub fn name(&self) -> String {
        match self {
            Self::Spki(spki) => thumbprint(spki)
                .unwrap_or_else(|| format!("spki-sha256:{}", hex(&Sha256::digest(spki)))),
            Self::Jkt(name) => (*name).to_owned(),
            Self::Ssh(key) => ssh_thumbprint(key).unwrap_or_else(|| {
                format!("ssh-sha256:{}", hex(&Sha256::digest(key.to_bytes().unwrap_or_default())))
            }),
        }
    }
}

/// The RFC 7638 SHA-256 thumbprint of the key in a DER SubjectPublicKeyInfo, if it is an RSA,
/// P-256, P-384 or Ed25519 key.
pub fn thumbprint(spki: &[u8]) -> Option<String> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    if !rest.is_empty() {
        return None;
    }
    if info.algorithm.algorithm.to_id_string() == OID_ED25519 {
        return digest(ed25519(info.subject_public_key.data.as_ref())?);
    }
    digest(match info.parsed().ok()? {
        PublicKey::RSA(key) => rsa(key.modulus, key.exponent),
        PublicKey::EC(point) => {
            let curve = info.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
            let curve = match curve.as_str() {
                OID_EC_P256 => EllipticCurve::P256,
                OID_EC_P384 | OID_EC_P384_SECG => EllipticCurve::P384,
                _ => return None,
            };
            ec(curve, point.data())?
        }
        _ => return None,
    })
}

/// The same of an SSH public key.
pub fn ssh_thumbprint(key: &SshKey) -> Option<String> {
    digest(match key.key_data() {
        KeyData::Rsa(key) => rsa(key.n().as_positive_bytes()?, key.e().as_positive_bytes()?),
        KeyData::Ecdsa(key) => ec(curve_of(key)?, key.as_sec1_bytes())?,
        KeyData::Ed25519(key) => ed25519(&key.0)?,
        _ => return None,
    })
}

fn curve_of(key: &EcdsaPublicKey) -> Option<EllipticCurve> {
    match key.curve() {
        EcdsaCurve::NistP256 => Some(EllipticCurve::P256),
        EcdsaCurve::NistP384 => Some(EllipticCurve::P384),
        EcdsaCurve::NistP521 => None,
    }
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> AlgorithmParameters {
    AlgorithmParameters::RSA(RSAKeyParameters {
        key_type: RSAKeyType::RSA,
        n: to_base64url(minimal(modulus)),
        e: to_base64url(minimal(exponent)),
    })
}

/// From an uncompressed point; another form of it has no coordinates to name.
fn ec(curve: EllipticCurve, point: &[u8]) -> Option<AlgorithmParameters> {
    let width = if curve == EllipticCurve::P256 { 32 } else { 48 };
    let coordinates = point.strip_prefix(&[4])?;
    if coordinates.len() != 2 * width {
        return None;
    }
    let (x, y) = coordinates.split_at(width);
    Some(AlgorithmParameters::EllipticCurve(EllipticCurveKeyParameters {
        key_type: EllipticCurveKeyType::EC,
        curve,
        x: to_base64url(x),
        y: to_base64url(y),
    }))
}

/// An octet key pair (RFC 8037).
fn ed25519(key: &[u8]) -> Option<AlgorithmParameters> {
    (key.len() == 32).then(|| {
        AlgorithmParameters::OctetKeyPair(OctetKeyPairParameters {
            key_type: OctetKeyPairType::OctetKeyPair,
            curve: EllipticCurve::Ed25519,
            x: to_base64url(key),
        })
    })
}

fn digest(algorithm: AlgorithmParameters) -> Option<String> {
    let jwk = Jwk { common: CommonParameters::default(), algorithm };
    jwk.thumbprint(ThumbprintHash::SHA256).ok()
}

fn minimal(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|b| **b == 0).count();
    &integer[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;

    fn der(pem: &str) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(pem).unwrap()
    }

    /// The modulus of the RSA key of RFC 7638 §3.1.
    fn rfc7638_modulus() -> Vec<u8> {
        super::super::strict::base64url(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        )
        .unwrap()
    }

    /// The same key as SubjectPublicKeyInfo.
    fn rfc7638_spki() -> Vec<u8> {
        fn tlv(tag: u8, body: &[u8]) -> Vec<u8> {
            let mut out = vec![tag];
            match body.len() {
                n if n < 128 => out.push(n as u8),
                n => out.extend([0x82, (n >> 8) as u8, n as u8]),
            }
            out.extend(body);
            out
        }
        let modulus = tlv(2, &[&[0], rfc7638_modulus().as_slice()].concat());
        let key = tlv(0x30, &[modulus, tlv(2, &[1, 0, 1])].concat());
        let oid = der("MA0GCSqGSIb3DQEBAQUA");
        let bits = tlv(3, &[&[0], key.as_slice()].concat());
        tlv(0x30, &[oid, bits].concat())
    }

    /// An SSH public key from its fields.
    fn ssh(fields: &[&[u8]]) -> SshKey {
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend((field.len() as u32).to_be_bytes());
            bytes.extend(*field);
        }
        SshKey::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn the_thumbprint_is_that_of_the_standard() {
        let want = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";
        assert_eq!(thumbprint(&rfc7638_spki()).unwrap(), want);
        let modulus = [&[0], rfc7638_modulus().as_slice()].concat();
        let key = ssh(&[b"ssh-rsa", &[1, 0, 1], &modulus]);
        assert_eq!(ssh_thumbprint(&key).unwrap(), want);
        assert_eq!(ProvenKey::Ssh(&key).name(), want);
    }

    #[test]
    fn an_ed25519_key_is_named_as_rfc_8037_says() {
        let want = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
        let x = super::super::strict::base64url("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        let x = x.unwrap();
        assert_eq!(ssh_thumbprint(&ssh(&[b"ssh-ed25519", &x])).unwrap(), want);
        let spki = [&[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0], x.as_slice()];
        assert_eq!(thumbprint(&spki.concat()).unwrap(), want);
    }

    #[test]
    fn a_key_has_one_name_over_tls_and_over_ssh() {
        for (rcgen, name) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, "nistp256"),
            (&rcgen::PKCS_ECDSA_P384_SHA384, "nistp384"),
        ] {
            let key = rcgen::KeyPair::generate_for(rcgen).unwrap();
            let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
            let point = rcgen::PublicKeyData::der_bytes(&key);
            let kind = format!("ecdsa-sha2-{name}");
            let ssh = ssh(&[kind.as_bytes(), name.as_bytes(), point]);
            assert_eq!(thumbprint(&spki), ssh_thumbprint(&ssh));
            assert_eq!(ProvenKey::Spki(&spki).name(), ProvenKey::Ssh(&ssh).name());
            assert_eq!(ProvenKey::Ssh(&ssh).name().len(), 43);
        }
    }

    #[test]
    fn rubbish_and_other_kinds_have_no_thumbprint_but_a_name() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        for end in 0..spki.len() {
            assert!(thumbprint(&spki[..end]).is_none());
        }
        assert!(thumbprint(&[spki.clone(), vec![0]].concat()).is_none());
        assert!(ProvenKey::Spki(b"rubbish").name().starts_with("spki-sha256:"));
        let other = ssh(&[b"ssh-unheard@of", b"material"]);
        assert!(ssh_thumbprint(&other).is_none());
        let name = ProvenKey::Ssh(&other).name();
        assert!(name.starts_with("ssh-sha256:") && name.len() == 11 + 64, "{name}");
    }
}
