//! The detectors against the tables in `testdata/`, and their rates on plain numbers.

use super::*;

const TABLES: &[(&str, &str)] = &[
    ("cards.txt", include_str!("../testdata/cards.txt")),
    ("contacts.txt", include_str!("../testdata/contacts.txt")),
    ("ids.txt", include_str!("../testdata/ids.txt")),
    ("secrets.txt", include_str!("../testdata/secrets.txt")),
];

fn detectors(kinds: &[(Kind, Method)]) -> Detectors {
    Detectors::new(kinds, Arc::new(HashKey::from_bytes(&[7; 32])))
}

fn every_kind(method: &Method) -> Detectors {
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, method.clone())).collect();
    detectors(&kinds)
}

/// `\n`, `\t`, `\\` and `\u{..}` as a person writes them in a table.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some((hex, after)) = rest.strip_prefix("u{").and_then(|r| r.split_once('}')) {
            out.push(char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap());
            rest = after;
            continue;
        }
        let c = rest.chars().next().unwrap();
        out.push(match c {
            'n' => '\n',
            't' => '\t',
            other => other,
        });
        rest = &rest[c.len_utf8()..];
    }
    out + rest
}

#[test]
fn tables() {
    let mut wrong = Vec::new();
    let mut lines = 0;
    for (file, table) in TABLES {
        for (n, line) in table.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            lines += 1;
            let mut parts = line.splitn(3, '\t');
            let (kind, expected, text) =
                (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or_default());
            let at = format!("{file}:{}", n + 1);
            let (kind, column) = kind.split_once('@').unwrap_or((kind, ""));
            let kind = Kind::from_name(kind).unwrap_or_else(|| panic!("{at}: kind {kind}"));
            let detectors = detectors(&[(kind, Method::Redact)]);
            let text = unescape(text);
            // «…» marks exactly what must be found; without it, finding anything will do.
            let marked = text.find('«').zip(text.find('»'));
            let plain = text.replace(['«', '»'], "");
            let found = detectors.find(plain.as_bytes(), &Context::named(column));
            let good = match (expected, marked) {
                ("positive", Some((start, end))) => {
                    matches!(&found[..], [one] if one.range == (start..end - '«'.len_utf8()))
                }
                ("positive", None) => !found.is_empty(),
                ("negative", _) => found.is_empty(),
                (other, _) => panic!("{at}: {other:?} is neither positive nor negative"),
            };
            if !good {
                let shown: Vec<_> = found.iter().map(|f| &plain[f.range.clone()]).collect();
                wrong.push(format!("{at}: {kind} {expected} {plain:?}: found {shown:?}"));
            }
        }
    }
    assert!(lines > 200, "the tables are not empty");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A small generator of plain numbers; the same ones on every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 11
    }

    fn digits(&mut self, count: u32) -> String {
        let low = 10u64.pow(count - 1);
        (low + self.next() % (low * 9)).to_string()
    }
}

/// Share of random numbers of `count` digits in which something is found, by ten thousand.
fn rate(kinds: &[Kind], count: u32, tries: u64) -> u64 {
    let kinds: Vec<_> = kinds.iter().map(|kind| (*kind, Method::Redact)).collect();
    let detectors = detectors(&kinds);
    let mut numbers = Numbers(count.into());
    let hits = (0..tries)
        .filter(|_| {
            let text = format!("order {} shipped", numbers.digits(count));
            !detectors.find(text.as_bytes(), &Context::default()).is_empty()
        })
        .count();
    u64::try_from(hits).unwrap() * 10_000 / tries
}

#[test]
fn plain_numbers_are_left_alone() {
    for count in 1..=10 {
        assert_eq!(
            rate(&Kind::ALL, count, if count == 9 { 20_000 } else { 2_000 }),
            0,
            "{count} digits"
        );
    }
    // One number in so many thousand by chance passes the strict checks of longer ids.
    for (kind, count, at_most) in [
        (Kind::NationalId, 11, 200),
        (Kind::NationalId, 12, 20),
        (Kind::NationalId, 13, 10),
        (Kind::NationalId, 15, 30),
        (Kind::Card, 12, 0),
        (Kind::Card, 13, 150),
        (Kind::Card, 16, 300),
        (Kind::Phone, 11, 0),
        (Kind::Phone, 15, 0),
    ] {
        let rate = rate(&[kind], count, 20_000);
        println!("{kind} among random numbers of {count} digits: {rate} of 10,000");
        assert!(rate <= at_most, "{kind}, {count} digits: {rate} of 10,000");
    }
}

#[test]
fn timestamps_are_left_alone() {
    let detectors = every_kind(&Method::Redact);
    let mut numbers = Numbers(1);
    for _ in 0..5_000 {
        let seconds = 946_684_800 + numbers.next() % 1_000_000_000;
        let millis = seconds * 1000 + numbers.next() % 1000;
        let text = format!("{seconds} {millis}000 {millis}000000 at {millis}");
        let single = format!("{millis}");
        for text in [&text, &single] {
            assert_eq!(detectors.find(text.as_bytes(), &Context::default()), [], "{text}");
        }
    }
}

#[test]
fn methods_inside_a_text() {
    let text = "card 4111 1111 1111 1111, mail alice@example.com.";
    let scrub = |method: Method| every_kind(&method).scrub_text(text).0.into_owned();
    assert_eq!(scrub(Method::Redact), "card [redacted], mail [redacted].");
    assert_eq!(scrub(Method::Null), "card , mail .");
    assert_eq!(scrub(Method::Fixed("#".into())), "card #, mail #.");
    assert_eq!(scrub(Method::DEFAULT_PARTIAL), "card 4**************1111, mail a***@***.com.");
    let (unchanged, hits) = every_kind(&Method::Redact).scrub_text("nothing here");
    assert!(matches!(unchanged, Cow::Borrowed("nothing here")) && hits.is_empty());
}

#[test]
fn equal_values_have_equal_hashes_however_written() {
    let detectors = every_kind(&Method::Hash);
    let scrub = |text: &str| detectors.scrub_text(text).0.into_owned();
    let plain = scrub("4111111111111111");
    for other in ["4111 1111 1111 1111", "4111-1111-1111-1111", "４１１１１１１１１１１１１１１１"]
    {
        assert_eq!(scrub(other), plain);
    }
    assert_ne!(scrub("5500005555555559"), plain);
}

#[test]
fn overlaps_become_one_by_the_stricter_method() {
    let detectors = detectors(&[
        (Kind::SecretKey, Method::Hash),
        (Kind::Email, Method::Fixed("!".into())),
        (Kind::Card, Method::DEFAULT_PARTIAL),
        (Kind::Card, Method::Redact),
    ]);
    let (text, hits) = detectors.scrub_text("password=bob@example.com 4111111111111111");
    assert_eq!(text, "password=! [redacted]");
    assert_eq!(hits.found(), 2);
}

#[test]
fn json_is_scrubbed_in_place() {
    let redact = every_kind(&Method::Redact);
    for (json, expected) in [
        (r#"{"a": "alice@example.com", "n": 1.50}"#, r#"{"a": "[redacted]", "n": 1.50}"#),
        (r#"[4111111111111111, 1e400, -0.0]"#, r#"["[redacted]", 1e400, -0.0]"#),
        (r#"{"alice@example.com":1}"#, r#"{"[redacted]":1}"#),
        (r#""\u0061lice\u0040example.com""#, r#""[redacted]""#),
        (r#"{"ssn":123456789,"order":123456789}"#, r#"{"ssn":"[redacted]","order":123456789}"#),
        (r#"{"phone":["5551234567"]}"#, r#"{"phone":["[redacted]"]}"#),
        (r#"{"password":"Tr0ub4dor&3x"}"#, r#"{"password":"[redacted]"}"#),
        (r#""\ud800 alice@example.com""#, r#""\\ud800 [redacted]""#),
        (r#"{"a":"say \"4111 1111 1111 1111\"\n"}"#, r#"{"a":"say \"[redacted]\"\u000a"}"#),
        (r#"{"broken": alice@example.com"#, r#"{"broken": [redacted]"#),
        (r#"{"a":"x","a":"y"}"#, r#"{"a":"x","a":"y"}"#),
        ("  null ", "  null "),
    ] {
        assert_eq!(redact.scrub_json(json).0, expected);
    }
    let null = every_kind(&Method::Null);
    assert_eq!(
        null.scrub_json(r#"["alice@example.com","to alice@example.com",4111111111111111]"#).0,
        r#"[null,"to ",null]"#
    );
    let deep = "[".repeat(200_000) + "\"alice@example.com\"" + &"]".repeat(200_000);
    assert!(!redact.scrub_json(&deep).0.contains("alice"));
}

#[test]
fn hostile_texts_take_linear_time() {
    let detectors = every_kind(&Method::Redact);
    for piece in [
        "4111 ",
        "4 1 ",
        "1",
        "4111-",
        "@",
        "a@",
        "a@a.",
        "eyJ",
        "eyJ.",
        "eyJhbGciOiJub25lIn0.",
        "DE89",
        "DE 8 9 ",
        "AB 12 ",
        "+49 ",
        "(0",
        "0",
        "00-",
        "password=",
        "://a:",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "xoxb-",
        "A1",
        "é",
        "１",
        "\u{200b}",
        "secret:secret:",
    ] {
        let time = |bytes: usize| {
            let text = piece.repeat(bytes / piece.len());
            let start = std::time::Instant::now();
            let _ = detectors.find(text.as_bytes(), &Context::named("phone"));
            start.elapsed()
        };
        let (small, large) = (time(20_000), time(160_000));
        assert!(
            large < small * 40 + std::time::Duration::from_millis(400),
            "{piece:?}: {small:?} for 20 kB, {large:?} for 160 kB"
        );
    }
}
