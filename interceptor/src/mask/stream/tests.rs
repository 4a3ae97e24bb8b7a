//! A stream in pieces against the whole of it.

use base64::Engine as _;
use proptest::prelude::*;

use super::*;
use crate::mask::{HashKey, Kind, Method};

fn detectors(method: &Method) -> Arc<Detectors> {
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, method.clone())).collect();
    only(&kinds)
}

fn only(kinds: &[(Kind, Method)]) -> Arc<Detectors> {
    Arc::new(Detectors::new(kinds, Arc::new(HashKey::from_bytes(&[7; 32]))))
}

/// What the detectors make of a text that they see whole.
fn whole(detectors: &Detectors, text: &[u8]) -> (Vec<u8>, Hits) {
    let (folded, _) = Folded::lossy(text, 0);
    let mut out = Vec::new();
    let mut hits = Hits::default();
    let mut copied = 0;
    for (finding, method) in detectors.decide(&folded.bytes, 0, false).findings {
        let start = folded.original(finding.range.start);
        let end = folded.original(finding.range.end);
        out.extend_from_slice(&text[copied..start]);
        detectors.mask(finding.kind, &method, &text[start..end], &mut out);
        hits.add(finding.kind);
        copied = end;
    }
    out.extend_from_slice(&text[copied..]);
    (out, hits)
}

/// The same in pieces that end at these places.
fn pieces(detectors: &Arc<Detectors>, text: &[u8], cuts: &[usize]) -> (Vec<u8>, Hits) {
    let mut masker = StreamMasker::new(detectors.clone());
    let mut out = BytesMut::new();
    let mut from = 0;
    for cut in cuts.iter().copied().chain([text.len()]) {
        masker.push(&text[from..cut], &mut out);
        assert!(masker.held() <= MAX_HELD, "{} held", masker.held());
        from = cut;
    }
    masker.flush(&mut out);
    assert_eq!(masker.held(), 0);
    (out.to_vec(), masker.hits().clone())
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn same(detectors: &Arc<Detectors>, text: &[u8], cuts: &[usize]) {
    let (expected, expected_hits) = whole(detectors, text);
    let (out, hits) = pieces(detectors, text, cuts);
    assert_eq!(shown(&out), shown(&expected), "{:?} cut at {cuts:?}", shown(text));
    assert_eq!(hits, expected_hits);
}

fn jwt(payload: usize) -> String {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let noise: Vec<u8> = (0..payload).map(|i| (i * i % 251) as u8).collect();
    format!("{}.{}.{}", encode(br#"{"alg":"ES256","typ":"JWT"}"#), encode(&noise), encode(b"sig"))
}

fn pem(lines: usize) -> String {
    let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    let body = format!("{line}\n").repeat(lines);
    format!("-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----")
}

/// Values that are found, and texts that are nearly found.
fn values() -> Vec<String> {
    [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "３７８２８２２４６３１０００５",
        "4111\u{200b}1111\u{a0}1111 1111",
        "4111 1111 1111 1112",
        "alice@example.com",
        "jürgen.o'neil+x@müller.example.org",
        "bob%40example.co.uk",
        "root@[192.0.2.7]",
        "icon@2x.png",
        "+49 (171) 123-4567",
        "(415) 555-2671",
        "0049 171 1234567",
        "phone: 5551234567",
        "tel\n 0301234567",
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "DE89 3704 0044 0532 0130 01",
        "ssn 123456789",
        "123-45-6789",
        "BSN: 111222333",
        "RSSMRA85T10A562S",
        "AB 12 34 56 C",
        "52998224725",
        "529.982.247-25",
        "44051401359",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefABCDEF0123456789abcdef",
        "password=hunter2hunter2",
        "token: password=x9Y!x9Y!x9",
        "api key := \"Zx81-Qq22-Aa11\"",
        "ALTER ROLE joe PASSWORD\n 'it''s a secret'",
        "PASSWORD 'never closed",
        "postgres://joe:s3cr3t@db/orders",
        "https://example.com:8080/a@b",
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.",
        "eyJhbGciOiJub25lIn0.x",
        "-----BEGIN PUBLIC KEY-----\nMIIBIjAN\n-----END PUBLIC KEY-----",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([jwt(40), jwt(900), pem(1), pem(24)])
    .collect()
}

/// What stands between them, chosen to tie, to join and to separate.
fn noise() -> Vec<&'static [u8]> {
    vec![
        b" ",
        b"\n",
        b",",
        b"\t",
        b" - ",
        b"x",
        b"7",
        b"_",
        b".",
        b"-",
        b"'",
        b"\"",
        b"(",
        b"+",
        b"/",
        b"@",
        b"%",
        b"=",
        b":",
        b"&a=",
        b"the words of a sentence ",
        b"eyJ",
        b"-----",
        b"-----BEGIN ",
        b"\0",
        b"\xff",
        b"\xc3",
        b"\xe2\x80",
        "é".as_bytes(),
        "例".as_bytes(),
        "\u{200b}".as_bytes(),
        "１".as_bytes(),
        "\u{ad}".as_bytes(),
        b"pass",
        b"secret",
        b"AK",
        b"DE8",
        b"12345678901234567890123",
        b"   ",
        b"phone ",
        b"://",
        b"sk-",
        b"12 34 ",
    ]
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        2 => proptest::sample::select(values()).prop_map(String::into_bytes),
        3 => proptest::sample::select(noise()).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn text_with_cuts() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    text().prop_flat_map(|text| {
        let cuts = proptest::collection::vec(0..=text.len(), 0..12).prop_map(|mut cuts| {
            cuts.sort_unstable();
            cuts
        });
        (Just(text), cuts)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn cuts_change_nothing((text, cuts) in text_with_cuts()) {
        same(&detectors(&Method::Redact), &text, &cuts);
    }

    #[test]
    fn nor_with_few_kinds((text, cuts) in text_with_cuts(), kinds in 1usize..128) {
        let kinds: Vec<_> = Kind::ALL
            .into_iter()
            .filter(|kind| kinds & (1 << kind.index()) != 0)
            .map(|kind| (kind, Method::Hash))
            .collect();
        same(&only(&kinds), &text, &cuts);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(80) })]

    #[test]
    fn nor_does_a_stream_of_single_bytes(text in text()) {
        let cuts: Vec<_> = (0..text.len()).collect();
        same(&detectors(&Method::DEFAULT_PARTIAL), &text, &cuts);
    }
}

/// What the random texts have found before.
#[test]
fn found_before() {
    let texts: [&[u8]; 4] = [
        b"\xa9phone: 5551234567",
        b"secret://api key := \"Zx81-Qq22-Aa11\"",
        b"0eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.AAEECRAZJDFAUWR5kKnE4QUmSW6VvukbSnuu4x9Yk9AUVZjdKXK9Dw.c2lnbob%40example.co.uk",
        b"root@[192.0.2.7]\x9d\x9fW\x97j\xc3\xbcrgen.o'neil+x@m\xc3\xbcller.example.org",
    ];
    for text in texts {
        for size in 1..text.len() {
            let cuts: Vec<_> = (0..text.len()).step_by(size).collect();
            same(&detectors(&Method::Redact), text, &cuts);
        }
    }
}

#[test]
fn every_value_in_every_two_pieces() {
    // What a value becomes says little of where it may be cut.
    for (method, step) in
        [(Method::Redact, 1), (Method::Null, 7), (Method::Hash, 6), (Method::Fixed("#".into()), 5)]
    {
        let detectors = detectors(&method);
        for value in values() {
            let text = format!("so: {value}, and");
            for cut in (0..=text.len()).step_by(step) {
                same(&detectors, text.as_bytes(), &[cut]);
            }
        }
    }
}

#[test]
fn long_streams_cross_blocks() {
    let detectors = detectors(&Method::Redact);
    let mut text = Vec::new();
    for (i, value) in values().iter().cycle().take(2000).enumerate() {
        text.extend_from_slice(&b"some words that stand between the values  "[..i % 41]);
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice([b" ".as_slice(), b"\n", b", ", b"\r\n"][i % 4]);
    }
    // A quote that is never closed makes what follows depend on where the 512 characters end.
    for (size, bytes) in
        [(1, 20_000), (7, 40_000), (1000, 1 << 20), (4096, 1 << 20), (32_768, 1 << 20)]
    {
        let text = &text[..text.len().min(bytes)];
        let cuts: Vec<_> = (0..text.len()).step_by(size).collect();
        same(&detectors, text, &cuts);
    }
}

#[test]
fn plain_text_does_not_wait_and_binary_passes() {
    let detectors = detectors(&Method::Redact);
    let mut masker = StreamMasker::new(detectors.clone());
    let mut out = BytesMut::new();
    for line in ["total 12\n", "drwxr-xr-x 2 root root, ok\n", "\0\0\x07 \n"] {
        masker.push(line.as_bytes(), &mut out);
        assert_eq!(masker.held(), 0, "{line:?}");
    }
    let bytes: Vec<u8> =
        (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (expected, hits) = whole(&detectors, &bytes);
    if hits.is_empty() {
        assert!(expected == bytes);
    }
    let cuts: Vec<_> = (0..bytes.len()).step_by(777).collect();
    assert!(pieces(&detectors, &bytes, &cuts).0 == expected);
}

#[test]
fn nothing_of_a_value_beyond_the_bound_gets_out() {
    let detectors = detectors(&Method::Redact);
    for (value, end) in [
        (jwt(60_000), " behind"),
        (pem(900), " behind"),
        (format!("ghp_{}", "aB3dE5".repeat(9000)), " behind"),
    ] {
        let text = format!("before {value}{end}");
        for size in [1, 13, 5000, 8192, 16_384, 100_000, 1 << 20] {
            let cuts: Vec<_> = (0..text.len()).step_by(size).collect();
            let out = shown(&pieces(&detectors, text.as_bytes(), &cuts).0);
            assert_eq!(out, "before [redacted] behind", "pieces of {size}");
        }
    }
}

#[test]
fn long_things_that_are_no_findings_pass() {
    let detectors = detectors(&Method::Redact);
    for text in [
        format!("eyJ{} end", "Zm9v".repeat(9000)),
        format!("{} end", "Zm9v".repeat(30_000)),
        format!("{} end", "1".repeat(40_000)),
        format!("{} end", "1 ".repeat(20_000)),
        format!("PASSWORD '{} end", "x".repeat(50_000)),
        format!("4111{} end", "\u{200b}".repeat(9000)),
    ] {
        for size in [100, 5000, 1 << 20] {
            let cuts: Vec<_> = (0..text.len()).step_by(size).collect();
            let (out, _) = pieces(&detectors, text.as_bytes(), &cuts);
            assert!(out == text.as_bytes(), "{}", &text[..20]);
        }
    }
}

#[test]
fn patience_decides_as_at_the_end_and_still_takes_away_the_rest() {
    let detectors = detectors(&Method::Redact);
    for (first, second, expected) in [
        ("card 4111 1111 1111 1111", " x", "card [redacted] x"),
        ("to alice@example.com", ".", "to [redacted]."),
        ("password=hunter2hun", "ter2 x", "password=[redacted] x"),
        ("is ghp_0123456789abcdefABCDEF0123456789abcdef", "0123 x", "is [redacted] x"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----E", "ND PRIVATE KEY-----\nx", "[redacted]\nx"),
    ] {
        let mut masker = StreamMasker::new(detectors.clone());
        let mut out = BytesMut::new();
        masker.push(first.as_bytes(), &mut out);
        masker.flush(&mut out);
        masker.push(second.as_bytes(), &mut out);
        masker.flush(&mut out);
        assert_eq!(shown(&out), shown(expected.as_bytes()));
    }
}

#[test]
fn hostile_streams_take_linear_time() {
    let detectors = detectors(&Method::Redact);
    for piece in [
        "4111 ",
        "1",
        "1 ",
        "@",
        "a@a.",
        "eyJ",
        "eyJhbGciOiJub25lIn0.",
        "DE 8 9 ",
        "+(",
        "password=",
        "://a:",
        "PASSWORD '",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----\n",
        "ghp_",
        "sk-",
        "a.b-",
        "\u{200b}",
        "é",
        "１",
        "token:'",
    ] {
        let time = |bytes: usize, size: usize| {
            let text = piece.repeat(bytes / piece.len());
            let mut masker = StreamMasker::new(detectors.clone());
            let mut out = BytesMut::new();
            let start = std::time::Instant::now();
            for piece in text.as_bytes().chunks(size) {
                masker.push(piece, &mut out);
                out.clear();
            }
            masker.flush(&mut out);
            start.elapsed()
        };
        for size in [64, 32_768] {
            let (small, large) = (time(15_000, size), time(120_000, size));
            assert!(
                large < small * 40 + std::time::Duration::from_millis(400),
                "{piece:?} by {size}: {small:?} for 50 kB, {large:?} for 400 kB"
            );
        }
    }
}
