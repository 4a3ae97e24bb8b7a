//! Secret keys: tokens with a known prefix, private key blocks, passwords in URLs and
//! assignments, and values in places named after a secret.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memmem;
use regex::bytes::Regex;

use super::context::Context;
use super::prefix;

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

/// A name that speaks of a secret, an assignment, a value.
const NAMED: &str = r#"(?xi-u)
    (?:secret|passw(?:or)?d|passphrase|pwd|api[_\-\ ]?key|access[_\-]?key|account[_\-]?key
      |private[_\-]?key|auth[_\-]?token|access[_\-]?token|refresh[_\-]?token|token|credentials?)
    [a-z0-9_-]{0,24} ["']? [\ \t]{0,3} (?P<sign>:=|=>|=|:) [\ \t]{0,3} ["']?
    (?P<value>[^\s"',;<>]{4,512})
"#;

/// A password in SQL: `ALTER ROLE … PASSWORD '…'`.
const SQL: &str = r"(?xi-u) passw(?:or)?d [\ \t\r\n]{1,8} E?'(?P<sql>(?:[^']|''){1,512})'";

/// The password of a URL.
const URL: &str = r"(?xi-u)
    [a-z][a-z0-9+.-]{1,20}://[^\s/:@]{0,64}:(?P<url>[^\s/@]{1,256})@
";

/// At most this many bytes stand between the beginning and the end of what these three match.
const REACH: usize = 1100;

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
static ASSIGNED_PATTERN: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(&format!("{NAMED}|{SQL}|{URL}")).ok());
static TOKEN_OPEN: LazyLock<Option<Regex>> = LazyLock::new(|| prefix::unfinished(TOKENS));
static NAMED_OPEN: LazyLock<Option<Regex>> =
    LazyLock::new(|| prefix::unfinished(&format!("{NAMED}|{URL}")));
static SQL_OPEN: LazyLock<Option<Regex>> = LazyLock::new(|| prefix::unfinished(SQL));

/// Whether the patterns can be used.
pub(super) fn ready() -> bool {
    TOKEN_PATTERN.is_some()
        && ASSIGNED_PATTERN.is_some()
        && TOKEN_OPEN.is_some()
        && NAMED_OPEN.is_some()
        && SQL_OPEN.is_some()
}

/// Finds secrets in a folded text. `whole` hears of every stretch that was read as one, a
/// finding or not: what stands inside is not read again.
pub(super) fn find(
    text: &[u8],
    from: usize,
    context: &Context,
    mut found: impl FnMut(Range<usize>),
    mut whole: impl FnMut(Range<usize>),
) {
    if context.secret {
        let value = trimmed(text);
        if looks_random(&text[value.clone()]) {
            return found(value);
        }
    }
    if let Some(tokens) = TOKEN_PATTERN.as_ref() {
        let mut at = from;
        while let Some(token) = tokens.find_at(text, at) {
            found(token.range());
            at = token.end();
        }
    }
    private_keys(text, from, &mut found);
    if !may_assign(text, from) {
        return;
    }
    let Some(assigned) = ASSIGNED_PATTERN.as_ref() else { return };
    let mut captures = assigned.capture_locations();
    let mut at = from;
    while let Some(all) = assigned.captures_read_at(&mut captures, text, at) {
        at = all.end();
        whole(all.range());
        let group = |i: usize| captures.get(i).map(|(start, end)| start..end);
        if let Some(password) = group(GROUP_SQL).or_else(|| group(GROUP_URL)) {
            found(password);
        } else if let (Some(sign), Some(value)) = (group(GROUP_SIGN), group(GROUP_VALUE)) {
            let length = parameter_len(&text[value.clone()]);
            if is_secret_value(&text[sign], &text[value.start..value.start + length]) {
                found(value.start..value.start + length);
            }
        }
    }
}

/// The groups of [`ASSIGNED_PATTERN`], in the order in which they are written.
const GROUP_SIGN: usize = 1;
const GROUP_VALUE: usize = 2;
const GROUP_SQL: usize = 3;
const GROUP_URL: usize = 4;

/// Whether there is anything for [`ASSIGNED_PATTERN`]: a name before a sign, a word before a
/// quote, an `@` behind `://`. Far cheaper than the pattern, and most text has none.
fn may_assign(text: &[u8], from: usize) -> bool {
    memchr::memchr3_iter(b'=', b':', b'\'', &text[from..]).any(|at| {
        let (before, behind) = (&text[from..from + at], &text[from + at..]);
        match behind[0] {
            b'\'' => password_before(before),
            _ if name_before(before) => true,
            _ => {
                let reach = behind.len().min(3 + 64 + 1 + 256 + 1);
                behind.starts_with(b"://") && memchr::memchr(b'@', &behind[..reach]).is_some()
            }
        }
    })
}

/// `passwd `, `password E`
fn password_before(before: &[u8]) -> bool {
    let before = before.strip_suffix(b"E").or(before.strip_suffix(b"e")).unwrap_or(before);
    let word = before.trim_ascii_end();
    word.len() < before.len() && matches!(word, [.., b'd' | b'D'])
}

/// Whether the word before a sign holds the name of a secret.
fn name_before(before: &[u8]) -> bool {
    const NAMES: [&[u8]; 7] =
        [b"secret", b"passw", b"passphrase", b"pwd", b"key", b"token", b"credential"];
    let before = before.strip_suffix(b":").unwrap_or(before);
    let before = &before[before.len() - before.len().min(3 + 1 + 24 + 12)..];
    let blanks = before.iter().rev().take(3).take_while(|b| matches!(b, b' ' | b'\t')).count();
    let before = &before[..before.len() - blanks];
    let before = before.strip_suffix(b"\"").or(before.strip_suffix(b"'")).unwrap_or(before);
    let in_word = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let word = &before[before.len() - before.iter().rev().take_while(in_word).count()..];
    (0..word.len()).any(|at| {
        matches!(word[at] | 0x20, b's' | b'p' | b'k' | b't' | b'c')
            && NAMES.iter().any(|name| {
                word.get(at..at + name.len()).is_some_and(|part| part.eq_ignore_ascii_case(name))
            })
    })
}

/// Where something begins that more text behind could make a secret, or lengthen. If not in
/// `bulk`, a name alone, or the first letters of a token, do not count.
pub(super) fn alive(text: &[u8], from: usize, bulk: bool) -> Option<usize> {
    let unfinished = |pattern: &Option<Regex>, reach: usize| {
        let start = from.max(text.len().saturating_sub(reach));
        pattern.as_ref()?.find_at(text, start).map(|m| m.start())
    };
    // Before the quote of a password in SQL stand at most a word and eight blanks.
    let tail = &text[from.max(text.len().saturating_sub(REACH))..];
    let sql = if tail.contains(&b'\'') { REACH } else { 20 };
    let assigned =
        |start: &usize| bulk || text[*start..].iter().any(|b| matches!(b, b'=' | b':' | b'\''));
    let longer = |start: &usize, than: usize| {
        *start < text.len().saturating_sub(if bulk { 0 } else { than })
    };
    [
        unfinished(&TOKEN_OPEN, text.len()).filter(|start| longer(start, 3)),
        unfinished(&NAMED_OPEN, REACH).filter(assigned),
        unfinished(&SQL_OPEN, sql).filter(assigned),
        key_alive(text, from).filter(|start| longer(start, 5)),
    ]
    .into_iter()
    .flatten()
    .filter(|start| *start < text.len())
    .min()
}

/// Where a private key begins whose first or last line is not complete.
fn key_alive(text: &[u8], from: usize) -> Option<usize> {
    let mut open = None;
    walk_keys(text, from, |key| {
        if let Key::Open(start) | Key::Unlabelled(start) = key {
            open = open.or(Some(start));
        }
    });
    let prefix = || (1..BEGIN.len()).rev().find(|n| text[from..].ends_with(&BEGIN[..*n]));
    open.or_else(|| prefix().map(|n| text.len() - n))
}

/// Where a private key begins that has no end.
pub(super) fn open_key(text: &[u8], from: usize) -> Option<usize> {
    let mut open = None;
    walk_keys(text, from, |key| {
        if let Key::Open(start) = key {
            open = Some(start);
        }
    });
    open
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

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";
/// The first line of a key is at most this long behind [`BEGIN`].
const LABEL: usize = 60;

/// A private key in PEM, by where it begins.
enum Key {
    /// From its first to its last line.
    Closed(Range<usize>),
    /// Its last line is not there.
    Open(usize),
    /// Its first line is not complete.
    Unlabelled(usize),
}

/// PEM private keys, from BEGIN to END; without an END all that follows.
fn private_keys(text: &[u8], from: usize, found: &mut impl FnMut(Range<usize>)) {
    walk_keys(text, from, |key| match key {
        Key::Closed(range) => found(range),
        Key::Open(start) => found(start..text.len()),
        Key::Unlabelled(_) => {}
    });
}

fn walk_keys(text: &[u8], from: usize, mut visit: impl FnMut(Key)) {
    let mut from = from;
    while let Some(start) = memmem::find(&text[from..], BEGIN).map(|p| p + from) {
        let label_start = start + BEGIN.len();
        from = label_start;
        let window = &text[label_start..text.len().min(label_start + LABEL)];
        let Some(label) = memmem::find(window, DASHES).map(|len| &window[..len]) else {
            if window.len() < LABEL {
                visit(Key::Unlabelled(start));
            }
            continue;
        };
        if memmem::find(label, b"PRIVATE KEY").is_none() {
            continue;
        }
        let end = memmem::find(&text[label_start..], END)
            .map(|p| p + label_start + END.len())
            .and_then(|p| memmem::find(&text[p..], DASHES).map(|q| p + q + DASHES.len()));
        let Some(end) = end else { return visit(Key::Open(start)) };
        visit(Key::Closed(start..end));
        from = end;
    }
}

/// The end of a private key, looked for in pieces as they come.
#[derive(Debug, Default)]
pub(in crate::mask) struct KeyEnd {
    /// How much of [`END`], and behind it of [`DASHES`], has been seen.
    matched: usize,
}

impl KeyEnd {
    /// Where in this piece the key ends; `None` when it goes on behind it.
    pub fn find(&mut self, piece: &[u8]) -> Option<usize> {
        for (at, byte) in piece.iter().enumerate() {
            let labelled = self.matched >= END.len();
            self.matched = match (labelled, byte) {
                (true, b'-') => self.matched + 1,
                (true, _) => END.len(),
                (false, byte) if *byte == END[self.matched] => self.matched + 1,
                // A sixth dash in a row is the fifth of another five.
                (false, b'-') if self.matched == DASHES.len() => self.matched,
                (false, b'-') => 1,
                (false, _) => 0,
            };
            if self.matched == END.len() + DASHES.len() {
                return Some(at + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patterns_compile() {
        assert!(ready());
        let pattern = ASSIGNED_PATTERN.as_ref().unwrap();
        let names: Vec<_> = pattern.capture_names().collect();
        let groups = [GROUP_SIGN, GROUP_VALUE, GROUP_SQL, GROUP_URL].map(|i| names[i]);
        assert_eq!(groups, [Some("sign"), Some("value"), Some("sql"), Some("url")]);
    }

    #[test]
    fn secrets_that_may_go_on() {
        for (text, alive) in [
            ("", None),
            ("so ", None),
            ("is AKIAIOSFOD", Some(3)),
            ("is AKIAIOSFODNN7EXAMPLE", Some(3)),
            ("is AKIAIOSFODNN7EXAMPLE ", None),
            ("is ghp_0123456789012345678901234567890123456789", Some(3)),
            ("is ghp_01234567890123456789012345678901234567890.", None),
            ("my passw", Some(3)),
            ("my password", Some(3)),
            ("my password = hunt", Some(3)),
            ("my password = hunter2 ", None),
            ("my password\n\n   'it''s ", Some(3)),
            ("my password\n\n   'it''s' ", None),
            ("at postgres://joe:hunt", Some(3)),
            ("at postgres://joe:hunter2/", None),
            ("a\n-----BEG", Some(2)),
            ("a\n-----BEGIN RSA PRIVATE KEY-----\nabc", Some(2)),
            ("a\n-----BEGIN PUBLIC KEY-----\nabc ", None),
            ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n", None),
        ] {
            assert_eq!(super::alive(text.as_bytes(), 0, true), alive, "{text:?}");
        }
    }

    #[test]
    fn nothing_is_missed_for_want_of_a_sign() {
        let pattern = ASSIGNED_PATTERN.as_ref().unwrap();
        for text in [
            "token=abcd",
            "TOKEN_of_the_first_order := abcd",
            "'api key' : abcd",
            "\"Credentials\" => abcd",
            "passwd \n 'x'",
            "PASSWORD E'x'",
            "a1://:x@",
            "postgres://joe:hunter2@db",
            "private-key=abcd",
            "secret://abcd",
        ] {
            assert!(pattern.is_match(text.as_bytes()), "{text}");
            assert!(may_assign(text.as_bytes(), 0), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_key_in_pieces() {
        let text = b"--- ----- -----EN -------END A KEY---- -----rest";
        for piece in 1..text.len() {
            let mut end = KeyEnd::default();
            let mut at = 0;
            let found = text.chunks(piece).find_map(|chunk| {
                let found = end.find(chunk).map(|n| at + n);
                at += chunk.len();
                found
            });
            assert_eq!(found, Some(text.len() - 4), "pieces of {piece}");
        }
    }
}
