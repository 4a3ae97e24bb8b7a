//! The ssh-agent protocol (draft-miller-ssh-agent), two messages of it: list and sign. Everything
//! else is answered with a failure, which clients expect of an agent that cannot.
//!
//! The key signs SSH user authentication (RFC 4252 §7) and nothing else. Whoever reaches the
//! socket, here or through agent forwarding, could otherwise have client assertions or DPoP
//! proofs signed and get tokens of their own.

use russh::keys::ssh_encoding::{Decode, Encode, Error, Reader};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Certificate, HashAlg, key::parse_public_key};

use super::key::AgentKey;

/// Largest message, as in OpenSSH.
pub const MAX_MESSAGE: usize = 256 * 1024;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;
const USERAUTH_REQUEST: u8 = 50;
/// Methods of user authentication that sign; the second binds the host key too.
const METHODS: [&[u8]; 2] = [b"publickey", b"publickey-hostbound-v00@openssh.com"];

/// What an agent offers.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Signs.
    pub key: &'a AgentKey,
    /// The certificate that holds the token, while there is one.
    pub certificate: Option<&'a Certificate>,
    /// Offer the key by itself as well, after the certificate.
    pub plain_key: bool,
}

/// The answer to a message (both without their length).
pub fn answer(message: &[u8], offer: Offer<'_>) -> Vec<u8> {
    let answered = match message.split_first() {
        Some((&REQUEST_IDENTITIES, _)) => identities(offer).ok(),
        Some((&SIGN_REQUEST, rest)) => sign(rest, offer.key),
        _ => None,
    };
    answered.unwrap_or_else(|| vec![FAILURE])
}

fn identities(offer: Offer<'_>) -> Result<Vec<u8>, Error> {
    let mut blobs = Vec::new();
    if let Some(certificate) = offer.certificate {
        let mut blob = Vec::new();
        certificate.encode(&mut blob)?;
        blobs.push((blob, certificate.comment()));
    }
    if offer.plain_key {
        let mut blob = Vec::new();
        offer.key.public().key_data().encode(&mut blob)?;
        blobs.push((blob, "interceptor agent"));
    }
    let mut out = vec![IDENTITIES_ANSWER];
    (blobs.len() as u32).encode(&mut out)?;
    for (blob, comment) in blobs {
        blob.encode(&mut out)?;
        comment.encode(&mut out)?;
    }
    Ok(out)
}

fn sign(mut rest: &[u8], key: &AgentKey) -> Option<Vec<u8>> {
    let blob = Vec::<u8>::decode(&mut rest).ok()?;
    let data = Vec::<u8>::decode(&mut rest).ok()?;
    let flags = u32::decode(&mut rest).ok()?;
    if !rest.is_empty() || !is_ours(&blob, key) || !is_user_authentication(&data, key) {
        return None;
    }
    let hash = match flags {
        f if f & RSA_SHA2_512 != 0 => HashAlg::Sha512,
        f if f & RSA_SHA2_256 != 0 => HashAlg::Sha256,
        // SHA-1 is what an RSA key would have to use here.
        _ if key.public().algorithm().is_rsa() => return None,
        _ => HashAlg::Sha512,
    };
    let mut signature = Vec::new();
    key.sign(&data, hash).ok()?.encode(&mut signature).ok()?;
    let mut out = vec![SIGN_RESPONSE];
    signature.encode(&mut out).ok()?;
    Some(out)
}

/// Whether a blob is our key, or a certificate of it: the present one or one before.
fn is_ours(blob: &[u8], key: &AgentKey) -> bool {
    let Ok(parsed) = parse_public_key(blob) else { return false };
    let own = key.public().key_data();
    match parsed.key_data() {
        KeyData::Certificate(certificate) => certificate.public_key() == own,
        plain => plain == own,
    }
}

/// Whether data is what a client signs to authenticate with our key, to the last byte.
fn is_user_authentication(mut data: &[u8], key: &AgentKey) -> bool {
    let mut read = || -> Result<bool, Error> {
        let session = Vec::<u8>::decode(&mut data)?;
        let message = u8::decode(&mut data)?;
        let _user = Vec::<u8>::decode(&mut data)?;
        let service = Vec::<u8>::decode(&mut data)?;
        let method = Vec::<u8>::decode(&mut data)?;
        let signed = u8::decode(&mut data)?;
        let _algorithm = Vec::<u8>::decode(&mut data)?;
        let blob = Vec::<u8>::decode(&mut data)?;
        if method == METHODS[1] {
            let _host_key = Vec::<u8>::decode(&mut data)?;
        }
        Ok(!session.is_empty()
            && session.len() <= 64
            && message == USERAUTH_REQUEST
            && service == b"ssh-connection"
            && METHODS.iter().any(|m| method == *m)
            && signed == 1
            && is_ours(&blob, key)
            && data.is_finished())
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::agent::{Kind, certificate};
    use proptest::prelude::*;
    use russh::keys::signature::Verifier;
    use russh::keys::ssh_key::Signature;

    fn key(kind: Kind) -> AgentKey {
        let dir = tempfile::tempdir().unwrap();
        AgentKey::create(&dir.path().join("k"), kind).unwrap()
    }

    fn certify(key: &AgentKey) -> Certificate {
        let until = SystemTime::now() + Duration::from_secs(60);
        certificate(key, &"a.b.c".into(), &["u".into()], "0oa1", until).unwrap()
    }

    fn string(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend((bytes.len() as u32).to_be_bytes());
        out.extend(bytes);
    }

    fn authentication(method: &[u8], blob: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        string(&mut out, &[7; 32]);
        out.push(USERAUTH_REQUEST);
        string(&mut out, b"deploy");
        string(&mut out, b"ssh-connection");
        string(&mut out, method);
        out.push(1);
        string(&mut out, b"ecdsa-sha2-nistp256");
        string(&mut out, blob);
        if method == METHODS[1] {
            string(&mut out, b"host key");
        }
        out
    }

    fn request(blob: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
        let mut out = vec![SIGN_REQUEST];
        string(&mut out, blob);
        string(&mut out, data);
        out.extend(flags.to_be_bytes());
        out
    }

    fn offer(key: &AgentKey) -> Offer<'_> {
        Offer { key, certificate: None, plain_key: false }
    }

    #[test]
    fn a_list_has_the_certificate_first() {
        let key = key(Kind::P256);
        let certificate = certify(&key);
        for (certificate, plain_key, count) in
            [(None, false, 0), (Some(&certificate), false, 1), (Some(&certificate), true, 2)]
        {
            let out = answer(&[REQUEST_IDENTITIES], Offer { key: &key, certificate, plain_key });
            assert_eq!(out[..5], [IDENTITIES_ANSWER, 0, 0, 0, count]);
            if count > 0 {
                let mut rest = &out[5..];
                let blob = Vec::<u8>::decode(&mut rest).unwrap();
                assert_eq!(blob, certify_bytes(certificate.unwrap()));
            }
        }
    }

    fn certify_bytes(certificate: &Certificate) -> Vec<u8> {
        certificate.to_bytes().unwrap()
    }

    #[test]
    fn user_authentication_is_signed_for_key_and_certificate() {
        for (kind, flags) in [(Kind::P256, 0), (Kind::Rsa, RSA_SHA2_512), (Kind::Rsa, RSA_SHA2_256)]
        {
            let key = key(kind);
            for blob in [key.public().to_bytes().unwrap(), certify_bytes(&certify(&key))] {
                for method in METHODS {
                    let data = authentication(method, &blob);
                    let out = answer(&request(&blob, &data, flags), offer(&key));
                    assert_eq!(out[0], SIGN_RESPONSE, "{kind:?}");
                    let mut rest = &out[1..];
                    let blob = Vec::<u8>::decode(&mut rest).unwrap();
                    let signature = Signature::try_from(blob.as_slice()).unwrap();
                    key.public().key_data().verify(&data, &signature).unwrap();
                }
            }
        }
    }

    #[test]
    fn nothing_else_is_signed() {
        let (key, other) = (key(Kind::P256), key(Kind::P256));
        let own = key.public().to_bytes().unwrap();
        let foreign = other.public().to_bytes().unwrap();
        let good = authentication(METHODS[0], &own);
        assert_eq!(answer(&request(&own, &good, 0), offer(&key))[0], SIGN_RESPONSE);
        let mut longer = good.clone();
        longer.push(0);
        let mut not_signed = good.clone();
        let at = good.windows(9).position(|w| w == b"publickey").unwrap() + 9;
        not_signed[at] = 0;
        for (blob, data) in [
            (&foreign, &good),
            (&own, &authentication(METHODS[0], &foreign)),
            (&own, &authentication(b"hostbased", &own)),
            (&own, &good[..good.len() - 1].to_vec()),
            (&own, &longer),
            (&own, &not_signed),
            (&own, &b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiIwb2ExIn0".to_vec()),
            (&own, &b"SSHSIG\0\0\0\x04file\0\0\0\0".to_vec()),
            (&own, &Vec::new()),
        ] {
            assert_eq!(answer(&request(blob, data, 0), offer(&key)), [FAILURE]);
        }
        for message in [&[][..], &[17], &[19], &[22, 0, 0, 0, 0], &[27], &[13, 255, 255, 255, 255]]
        {
            assert_eq!(answer(message, offer(&key)), [FAILURE]);
        }
        let rsa = self::key(Kind::Rsa);
        let own = rsa.public().to_bytes().unwrap();
        let data = authentication(METHODS[0], &own);
        assert_eq!(answer(&request(&own, &data, 0), offer(&rsa)), [FAILURE], "no SHA-1");
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            static KEY: std::sync::LazyLock<AgentKey> =
                std::sync::LazyLock::new(|| key(Kind::P256));
            let _ = answer(&message, offer(&KEY));
            let _ = answer(&[&[SIGN_REQUEST], message.as_slice()].concat(), offer(&KEY));
        }
    }
}
