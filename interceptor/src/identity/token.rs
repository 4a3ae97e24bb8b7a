//! The form of a token: three strict segments, a header that asks for nothing unusual, and
//! claims that are one JSON object. Nothing here is trusted yet; no signature was looked at.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::refusal::{Code, Fault, quote};
use super::strict;

/// Largest token that is looked at.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Longest identifier (`kid`, `jti`, `sub`, `cid`, …) that is accepted.
const MAX_IDENTIFIER: usize = 1024;

/// `typ` values of an access token; absent is fine too.
const ACCESS_TYPES: &[&str] = &["jwt", "at+jwt", "application/at+jwt"];

const NO_JWT: &str = "this is not a JWT access token. Get one from a custom authorization server \
    (its issuer ends in /oauth2/default or /oauth2/<id>): tokens of the org authorization server \
    are opaque and are not accepted, and neither is a password";

/// Whether a secret has the form of a JWT (RFC 7519): three segments of base64url. Says nothing
/// about its being one, but what looks like this must be treated as a token.
pub fn is_token(secret: &[u8]) -> bool {
    let mut segments = secret.split(|b| *b == b'.');
    let well_formed = |s: &[u8]| {
        s.len() > 8 && s.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    segments.by_ref().take(2).filter(|s| well_formed(s)).count() == 2
        && segments.next().is_some()
        && segments.next().is_none()
}

/// The SHA-256 of a token in lower-case hex: the only form in which one is kept.
pub fn hash_token(token: &[u8]) -> String {
    hex(&Sha256::digest(token))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// A token's header as far as it matters. Key material in it (`jku`, `jwk`, `x5u`, `x5c`) is
/// never looked at.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub alg: String,
    pub kid: String,
    pub typ: Option<String>,
}

/// A well-formed, unverified token.
pub(super) struct Parsed {
    pub header: Header,
    pub claims: Map<String, Value>,
}

/// Reads a token's form. The order of the checks decides which code a token gets that is wrong
/// in several ways.
pub(super) fn parse(token: &[u8]) -> Result<Parsed, Fault> {
    if token.is_empty() {
        return Err(Fault::new(Code::Missing, "no token: give the access token as the password"));
    }
    if token.len() > MAX_TOKEN {
        return Err(Fault::new(
            Code::TooLarge,
            format!("the token has {} bytes; at most {MAX_TOKEN} are accepted", token.len()),
        ));
    }
    let text = std::str::from_utf8(token).map_err(|_| malformed("it is not ASCII"))?;
    let mut segments = text.split('.');
    let (header, claims, signature) =
        match (segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some(h), Some(c), Some(s), None) => (h, c, s),
            (Some(_), None, ..) => return Err(Fault::new(Code::Opaque, NO_JWT)),
            _ if text.bytes().filter(|b| *b == b'.').count() == 4 => {
                return Err(malformed("it is encrypted (five segments)"));
            }
            _ => return Err(malformed("it does not have three segments")),
        };
    let header = parse_header(header)?;
    let claims = decode_object("claims", claims)?;
    if signature.is_empty() || strict::base64url(signature).map(Zeroizing::new).is_none() {
        return Err(malformed("its signature is not base64url without padding"));
    }
    Ok(Parsed { header, claims })
}

fn parse_header(segment: &str) -> Result<Header, Fault> {
    let map = decode_object("header", segment)?;
    if map.contains_key("crit") || map.contains_key("b64") {
        return Err(Fault::new(
            Code::Critical,
            "the token's header demands an extension (crit or b64); none is supported",
        ));
    }
    let typ = match map.get("typ") {
        None => None,
        Some(Value::String(typ)) => Some(typ.clone()),
        Some(_) => return Err(malformed("its header has a typ that is not a string")),
    };
    if let Some(typ) = &typ
        && !ACCESS_TYPES.contains(&typ.to_ascii_lowercase().as_str())
    {
        return Err(Fault::new(
            Code::WrongType,
            format!("the token's typ is {}: this is not an access token", quote(typ)),
        ));
    }
    let alg = match map.get("alg") {
        Some(Value::String(alg)) => alg.clone(),
        _ => return Err(malformed("its header names no alg")),
    };
    if !matches!(alg.as_str(), "RS256" | "ES256") {
        return Err(Fault::new(
            Code::WrongAlgorithm,
            format!("the token's alg is {}; only RS256 and ES256 are accepted", quote(&alg)),
        ));
    }
    let kid = match map.get("kid") {
        Some(Value::String(kid)) if is_identifier(kid) => kid.clone(),
        _ => return Err(malformed("its header names no usable kid")),
    };
    Ok(Header { alg, kid, typ })
}

fn decode_object(what: &str, segment: &str) -> Result<Map<String, Value>, Fault> {
    let bytes = strict::base64url(segment)
        .map(Zeroizing::new)
        .ok_or_else(|| malformed(&format!("its {what} is not base64url without padding")))?;
    strict::object(&bytes).map_err(|e| malformed(&format!("its {what} is not strict JSON: {e}")))
}

fn malformed(what: &str) -> Fault {
    Fault::new(Code::Malformed, format!("the token is malformed: {what}"))
}

/// Whether a text can stand for somebody or something: not empty, not long, nothing that could
/// forge a line of a log.
pub(super) fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_IDENTIFIER && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn jwt(header: &str, claims: &str) -> String {
        let b = |s: &str| strict::to_base64url(s.as_bytes());
        format!("{}.{}.{}", b(header), b(claims), b("signature"))
    }

    const HEADER: &str = r#"{"alg":"RS256","kid":"k1"}"#;

    #[test]
    fn each_break_of_the_form_has_its_code() {
        let good = jwt(HEADER, "{}");
        let head = |h: &str| jwt(h, "{}");
        let cases: Vec<(&str, String, Code)> = vec![
            ("empty", String::new(), Code::Missing),
            ("too large", "a".repeat(MAX_TOKEN + 1), Code::TooLarge),
            ("opaque", "00abcdefOpaqueToken".into(), Code::Opaque),
            ("two segments", "a.b".into(), Code::Malformed),
            ("four segments", format!("{good}.x"), Code::Malformed),
            ("encrypted", "a.b.c.d.e".into(), Code::Malformed),
            ("padding", good.replacen('.', "==.", 1), Code::Malformed),
            ("trailing newline", format!("{good}\n"), Code::Malformed),
            ("leading space", format!(" {good}"), Code::Malformed),
            ("no signature", format!("{}.", good.rsplit_once('.').unwrap().0), Code::Malformed),
            ("stray bits", format!("{}.AB", good.rsplit_once('.').unwrap().0), Code::Malformed),
            ("not ASCII", "ä.b.c".into(), Code::Malformed),
            ("claims are a list", jwt(HEADER, "[]"), Code::Malformed),
            ("duplicate claim", jwt(HEADER, r#"{"sub":"a","sub":"b"}"#), Code::Malformed),
            ("duplicate deep", jwt(HEADER, r#"{"act":{"sub":"a","sub":"b"}}"#), Code::Malformed),
            ("duplicate alg", head(r#"{"alg":"RS256","alg":"none","kid":"k"}"#), Code::Malformed),
            ("header is text", head(r#""RS256""#), Code::Malformed),
            ("no alg", head(r#"{"kid":"k"}"#), Code::Malformed),
            ("alg is a list", head(r#"{"alg":["RS256"],"kid":"k"}"#), Code::Malformed),
            ("no kid", head(r#"{"alg":"RS256"}"#), Code::Malformed),
            ("empty kid", head(r#"{"alg":"RS256","kid":""}"#), Code::Malformed),
            ("kid forges a line", head(r#"{"alg":"RS256","kid":"a\nb"}"#), Code::Malformed),
            ("typ is a number", head(r#"{"alg":"RS256","kid":"k","typ":1}"#), Code::Malformed),
            ("alg none", head(r#"{"alg":"none","kid":"k"}"#), Code::WrongAlgorithm),
            ("alg None", head(r#"{"alg":"None","kid":"k"}"#), Code::WrongAlgorithm),
            ("alg HS256", head(r#"{"alg":"HS256","kid":"k"}"#), Code::WrongAlgorithm),
            ("alg PS256", head(r#"{"alg":"PS256","kid":"k"}"#), Code::WrongAlgorithm),
            ("crit", head(r#"{"alg":"RS256","kid":"k","crit":["exp"]}"#), Code::Critical),
            ("empty crit", head(r#"{"alg":"RS256","kid":"k","crit":[]}"#), Code::Critical),
            ("b64", head(r#"{"alg":"RS256","kid":"k","b64":false}"#), Code::Critical),
            ("DPoP proof", head(r#"{"alg":"RS256","kid":"k","typ":"dpop+jwt"}"#), Code::WrongType),
            (
                "ID-JAG",
                head(r#"{"alg":"RS256","kid":"k","typ":"oauth-id-jag+jwt"}"#),
                Code::WrongType,
            ),
        ];
        for (name, token, code) in cases {
            let fault = parse(token.as_bytes()).err().map(|f| f.code);
            assert_eq!(fault, Some(code), "{name}");
        }
    }

    #[test]
    fn the_usual_headers_are_accepted() {
        for header in [
            HEADER,
            r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#,
            r#"{"alg":"RS256","kid":"k","typ":"at+jwt"}"#,
            r#"{"alg":"RS256","kid":"k","typ":"application/at+jwt"}"#,
            r#"{"alg":"RS256","kid":"k","jku":"https://evil.example/","jwk":{},"x5c":[]}"#,
        ] {
            assert!(parse(jwt(header, "{}").as_bytes()).is_ok(), "{header}");
        }
    }

    #[test]
    fn a_hash_is_all_that_is_kept() {
        assert_eq!(
            hash_token(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn arbitrary_json_never_panics(header in "\\PC{0,80}", claims in "[\\PC]{0,200}") {
            let _ = parse(jwt(&header, &claims).as_bytes());
            let _ = parse(jwt(HEADER, &claims).as_bytes());
        }
    }
}
