//! Secret keys: tokens with a known prefix, private key blocks, passwords in URLs and
//! assignments, and values in places named after a secret.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem;
use regex::bytes::Regex;

use super::context::Context;

/// Tokens that are recognisable by their prefix. Each alternative ends by itself.
const TOKENS: &str = r"(?x-u)
    \b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b
  | \bgh[pousr]_[A-Za-z0-9]{36,}
  | \bgithub_pat_[A-Za-z0-9_]{22,}
  | \bglpat-[A-Za-z0-9_-]{20,}
  | \bxox[abeoprs]-[A-Za-z0-9-]{10,}
  | \bxapp-[0-9]-[A-Za-z0-9-]{10,}
  | hooks\.slack\.com/services/[A-Za-z0-9/_-]{20,}
  | \bAIza[0-9A-Za-z_-]{35}
  | \bya29\.[0-9A-Za-z_-]{20,}
  | \bGOCSPX-[A-Za-z0-9_-]{28}
  | \b[sr]k_(?:live|test)_[0-9A-Za-z]{16,}
  | \bwhsec_[A-Za-z0-9+/=]{24,}
  | \bsk-[A-Za-z0-9_-]{40,}
  | \bnpm_[A-Za-z0-9]{36}
  | \bpypi-AgE[A-Za-z0-9_-]{50,}
  | \bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}
  | \bdop_v1_[a-f0-9]{64}
  | \bhv[sb]\.[A-Za-z0-9_-]{24,}
  | \bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}
  | \bAGE-SECRET-KEY-1[0-9A-Z]{58}
";

/// A name that speaks of a secret, an assignment, a value; the password of a URL, or one in
/// SQL (`ALTER ROLE … PASSWORD '…'`).
const ASSIGNED: &str = r#"(?xi-u)
    (?:secret|passw(?:or)?d|passphrase|pwd|api[_\-\ ]?key|access[_\-]?key|account[_\-]?key
      |private[_\-]?key|auth[_\-]?token|access[_\-]?token|refresh[_\-]?token|token|credentials?)
    [a-z0-9_-]{0,24} ["']? [\ \t]{0,3} (?P<sign>:=|=>|=|:) [\ \t]{0,3} ["']?
    (?P<value>[^\s"',;<>]{4,512})
  | passw(?:or)?d [\ \t\r\n]{1,8} E?'(?P<sql>(?:[^']|''){1,512})'
  | [a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,64}:(?P<url>[^\s/@]{1,256})@
"#;

/// Names of columns and JSON keys whose values are secrets.
pub(super) const WORDS: &[&str] = &[
    "secret",
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "api key",
    "apikey",
    "access key",
    "private key",
    "secret key",
    "auth token",
    "access token",
    "refresh token",
    "api token",
    "client secret",
    "credential",
    "credentials",
    "bearer",
];

/// The patterns are constants and are compiled by a test; one that did not compile would
/// find nothing, so [`ready`] is asked before detectors are made.
static TOKEN_PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(TOKENS).ok());
static ASSIGNED_PATTERN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(ASSIGNED).ok());

/// Whether the patterns can be used.
pub(super) fn ready() -> bool {
    TOKEN_PATTERN.is_some() && ASSIGNED_PATTERN.is_some()
}

/// Finds secrets in a folded text.
pub(super) fn find(text: &[u8], context: &Context, mut found: impl FnMut(Range<usize>)) {
    if context.secret {
        let value = trimmed(text);
        if looks_random(&text[value.clone()]) {
            return found(value);
        }
    }
    if let Some(tokens) = TOKEN_PATTERN.as_ref() {
        for token in tokens.find_iter(text) {
            found(token.range());
        }
    }
    if memchr::memchr(b'-', text).is_some() {
        private_keys(text, &mut found);
    }
    if !text.iter().any(|b| matches!(b, b'=' | b':' | b'\'')) {
        return;
    }
    let Some(assigned) = ASSIGNED_PATTERN.as_ref() else { return };
    for captures in assigned.captures_iter(text) {
        if let Some(password) = captures.name("url").or(captures.name("sql")) {
            found(password.range());
        } else if let (Some(sign), Some(value)) = (captures.name("sign"), captures.name("value")) {
            let length = parameter_len(value.as_bytes());
            if is_secret_value(sign.as_bytes(), &value.as_bytes()[..length]) {
                found(value.start()..value.start() + length);
            }
        }
    }
}

/// Length of a value up to the next parameter of a query (`&name=`).
fn parameter_len(value: &[u8]) -> usize {
    memchr::memchr_iter(b'&', value)
        .find(|at| {
            let next = &value[at + 1..];
            let name = next.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
            name > 0 && next.get(name) == Some(&b'=')
        })
        .unwrap_or(value.len())
}

fn trimmed(text: &[u8]) -> Range<usize> {
    let start = text.len() - text.trim_ascii_start().len();
    start..start + text.trim_ascii().len()
}

/// `password=` is followed by a password; `password:` in prose may be followed by a word.
fn is_secret_value(sign: &[u8], value: &[u8]) -> bool {
    const NOT_VALUES: &[&[u8]] =
        &[b"null", b"none", b"true", b"false", b"undefined", b"[redacted]"];
    if value.len() < 4 {
        return false;
    }
    let placeholder = NOT_VALUES.iter().any(|word| value.eq_ignore_ascii_case(word))
        || value.iter().all(|b| matches!(b, b'*' | b'x' | b'X' | b'.'))
        || matches!(value[0], b'$' | b'{' | b'<' | b'%' | b'(' | b'/');
    !placeholder && (sign == b"=" || sign == b":=" || looks_random(value))
}

/// Long enough, without spaces, and mixed like a password or key rather than a word.
fn looks_random(value: &[u8]) -> bool {
    if value.len() < 8 || value.len() > 4096 || value.iter().any(u8::is_ascii_whitespace) {
        return false;
    }
    let has = |class: fn(&u8) -> bool| usize::from(value.iter().any(class));
    let classes = has(u8::is_ascii_digit)
        + has(u8::is_ascii_lowercase)
        + has(u8::is_ascii_uppercase)
        + has(u8::is_ascii_punctuation);
    classes >= 2 && bits_per_byte(value) > 2.5
}

/// Shannon entropy of the byte frequencies.
fn bits_per_byte(value: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for byte in value {
        counts[usize::from(*byte)] += 1;
    }
    let total = f64::from(u32::try_from(value.len()).unwrap_or(u32::MAX));
    counts
        .iter()
        .filter(|n| **n > 0)
        .map(|n| {
            let share = f64::from(*n) / total;
            -share * share.log2()
        })
        .sum()
}

/// PEM private keys, from BEGIN to END; without an END all that follows.
fn private_keys(text: &[u8], found: &mut impl FnMut(Range<usize>)) {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const END: &[u8] = b"-----END ";
    let mut from = 0;
    while let Some(start) = memmem::find(&text[from..], BEGIN).map(|p| p + from) {
        let label_start = start + BEGIN.len();
        let window = &text[label_start..text.len().min(label_start + 60)];
        let Some(label) = memmem::find(window, b"-----").map(|len| &window[..len]) else {
            from = label_start;
            continue;
        };
        if memmem::find(label, b"PRIVATE KEY").is_none() {
            from = label_start;
            continue;
        }
        let end = memmem::find(&text[label_start..], END)
            .map(|p| p + label_start + END.len())
            .and_then(|p| memmem::find(&text[p..], b"-----").map(|q| p + q + 5))
            .unwrap_or(text.len());
        found(start..end);
        from = end;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_patterns_compile() {
        assert!(super::ready());
    }
}
