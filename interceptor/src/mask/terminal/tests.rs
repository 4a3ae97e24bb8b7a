//! What a person at the terminal sees.

use proptest::prelude::*;

use super::*;
use crate::mask::{HashKey, Kind};

fn masker(kinds: &[Kind], method: &Method) -> TerminalMasker {
    let kinds: Vec<_> = kinds.iter().map(|kind| (*kind, method.clone())).collect();
    TerminalMasker::new(Arc::new(Detectors::new(&kinds, Arc::new(HashKey::from_bytes(&[7; 32])))))
}

fn redacted(pushes: &[&str]) -> String {
    shown(&mut masker(&Kind::ALL, &Method::Redact), pushes)
}

fn shown(masker: &mut TerminalMasker, pushes: &[&str]) -> String {
    let mut out = BytesMut::new();
    for push in pushes {
        masker.push(push.as_bytes(), &mut out);
    }
    masker.flush(&mut out);
    assert_eq!(masker.held(), 0);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn values_are_replaced_in_their_columns() {
    for (text, expected) in [
        ("card 4111 1111 1111 1111, ok\r\n", "card [redacted]*********, ok\r\n"),
        (
            "\x1b[31m4111\x1b[0m 1111 11\x1b[1m11 1111 \r\n",
            "\x1b[31m[redacted]*********\x1b[0m\x1b[1m \r\n",
        ),
        ("to a@b.co \r\n", "to ****** \r\n"),
        ("41\x1b[C11 x", "41\x1b[C11 x"),
        ("4111X\x08 1111 1111 1111 \r\n", "[redacted]*********X\x08 \r\n"),
        ("４１１１１１１１１１１１１１１１ \r\n", "[redacted]********************** \r\n"),
        (
            "4111111111111111\x1b]0;4111111111111111\x07 \r\n",
            "[redacted]******\x1b]0;4111111111111111\x07 \r\n",
        ),
    ] {
        assert_eq!(redacted(&[text]), expected);
    }
}

#[test]
fn other_methods_stand_in_the_first_place() {
    let text = "is \x1b[1m4111 1111\x1b[0m 1111 1111 \r\n";
    let method = |method: Method| shown(&mut masker(&Kind::ALL, &method), &[text]);
    assert_eq!(method(Method::Null), "is \x1b[1m\x1b[0m \r\n");
    assert_eq!(method(Method::Fixed("#".into())), "is \x1b[1m#\x1b[0m \r\n");
    assert_eq!(method(Method::DEFAULT_PARTIAL), "is \x1b[1m4**************1111\x1b[0m \r\n");
}

#[test]
fn the_echo_of_a_key_goes_out_at_once() {
    let mut masker = masker(&Kind::ALL, &Method::Redact);
    let mut out = BytesMut::new();
    for key in "ls -la /tmp | grep error > out; echo é\x08 \x08".chars() {
        out.clear();
        let key = key.to_string();
        masker.push(key.as_bytes(), &mut out);
        assert_eq!(out, key.as_bytes());
        assert_eq!(masker.held(), 0);
    }
    for sequence in
        ["\x1b[A", "\x1b[K", "\x1b[?25l", "\x07", "\r\n", "\x1b]0;joe@host.example.com: ~\x07"]
    {
        out.clear();
        masker.push(sequence.as_bytes(), &mut out);
        assert_eq!(out, sequence.as_bytes());
    }
    // A digit may be the first of a card.
    out.clear();
    masker.push(b"4", &mut out);
    assert_eq!((out.len(), masker.held()), (0, 1));
}

#[test]
fn what_is_typed_is_masked_from_where_it_was_known() {
    let keys: Vec<String> = "mail bob@example.com now\r\n".chars().map(String::from).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(redacted(&keys), "mail bob[redacted]** now\r\n");
    let keys: Vec<String> = "pay 4111111111111111 now\r\n".chars().map(String::from).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(redacted(&keys), "pay [redacted]****** now\r\n");
}

#[test]
fn output_in_pieces_is_masked_whole() {
    let text = "id | name of the customer | card\r\n7 | Alice Example | 4111 1111 1111 1111\r\n";
    let expected = text.replace("4111 1111 1111 1111", "[redacted]*********");
    for cut in (ECHO + 1..text.len()).filter(|cut| text.len() - cut > ECHO) {
        assert_eq!(redacted(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
    }
}

#[test]
fn rows_that_wrap_are_one_line() {
    let mut masker = masker(&Kind::ALL, &Method::Redact);
    masker.resize(20);
    // As bash shows a long line: a space and a return in front of the next row.
    let out = shown(&mut masker, &["$ echo number 411111 \r1111111111 end\r\n"]);
    assert_eq!(out, "$ echo number [redacted]****** \r end\r\n");
}

#[test]
fn keys_are_taken_away_line_by_line() {
    let line = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";
    let pem = |lines: usize| {
        let body = format!("{line}\r\n").repeat(lines);
        format!("-----BEGIN PRIVATE KEY-----\r\n{body}-----END PRIVATE KEY-----")
    };
    for lines in [3, 600] {
        let text = format!("a\r\n{}\r\nb\r\n", pem(lines));
        for size in [1, 100, 5000, 1 << 20] {
            let pushes: Vec<&str> =
                text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
            let out = redacted(&pushes);
            assert!(!out.contains("MIIE") && !out.contains("8cKj"), "{lines} by {size}");
            assert!(out.starts_with("a\r\n") && out.ends_with("\r\nb\r\n"), "{lines} by {size}");
            assert_eq!(out.matches("\r\n").count(), text.matches("\r\n").count());
        }
    }
}

/// The sequences and controls of a stream, without what is printed.
fn movements(bytes: &[u8]) -> Vec<u8> {
    let mut sequences = Sequences::default();
    let mut rest = bytes;
    let mut out = Vec::new();
    while let Some(byte) = rest.first() {
        match sequences.read(rest) {
            Some(taken) => {
                out.extend_from_slice(&rest[..taken.length]);
                rest = &rest[taken.length..];
            }
            None => {
                if byte.is_ascii_control() {
                    out.push(*byte);
                }
                rest = &rest[1..];
            }
        }
    }
    out
}

proptest! {
    #[test]
    fn movements_pass_whole_and_nothing_waits_after_a_flush(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just(b"4111 1111 1111 1111".to_vec()),
                Just(b"alice@example.com".to_vec()),
                Just(b"password=hunter2hunter2".to_vec()),
                Just(b"\x1b[31m".to_vec()),
                Just(b"\x1b[2;3H".to_vec()),
                Just(b"\x1b]0;t\x07".to_vec()),
                Just(b"\x1bPx\x1b\\".to_vec()),
                Just(b"\r\n".to_vec()),
                Just(b"\x08".to_vec()),
                Just(b"\x1b[3D".to_vec()),
                Just(b"\x1b[2C".to_vec()),
                Just("é１".as_bytes().to_vec()),
                proptest::collection::vec(any::<u8>(), 0..5),
            ],
            0..30,
        ),
        columns in 0u32..30,
        size in 1usize..40,
    ) {
        let text = pieces.concat();
        let mut masker = masker(&Kind::ALL, &Method::Redact);
        masker.resize(columns);
        let mut out = BytesMut::new();
        for piece in text.chunks(size) {
            masker.push(piece, &mut out);
            prop_assert!(masker.held() <= MAX_HELD);
        }
        masker.flush(&mut out);
        prop_assert_eq!(masker.held(), 0);
        prop_assert_eq!(movements(&out), movements(&text));
    }
}
