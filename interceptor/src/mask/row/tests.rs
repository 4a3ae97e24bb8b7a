//! Rows as PostgreSQL sends them, and as it never would.

use proptest::prelude::*;

use super::*;
use crate::mask::Kind;

const TEXT: u32 = 25;

fn key() -> Arc<HashKey> {
    Arc::new(HashKey::from_bytes(&[9; 32]))
}

fn detectors(method: &Method) -> Arc<Detectors> {
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, method.clone())).collect();
    Arc::new(Detectors::new(&kinds, key()))
}

fn body(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = i16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            None => out.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(value) => {
                out.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
                out.extend_from_slice(value);
            }
        }
    }
    out
}

/// The values of one DataRow message; the message is checked on the way.
fn values(message: &[u8]) -> Vec<Option<Vec<u8>>> {
    assert_eq!(message[0], b'D');
    let length = i32::from_be_bytes(message[1..5].try_into().unwrap());
    assert_eq!(usize::try_from(length).unwrap() + 1, message.len());
    let count = i16::from_be_bytes(message[5..7].try_into().unwrap());
    let mut at = 7;
    let values = (0..count)
        .map(|_| {
            let length = i32::from_be_bytes(message[at..at + 4].try_into().unwrap());
            at += 4;
            let length = usize::try_from(length).ok()?;
            at += length;
            Some(message[at - length..at].to_vec())
        })
        .collect();
    assert_eq!(at, message.len());
    values
}

fn one(oid: u32, format: i16, method: Method, value: &[u8]) -> Option<Vec<u8>> {
    let plan =
        RowPlan::compile(&[Field::new(oid, format, "c")], &[(0, method)], None, key()).unwrap();
    let mut out = BytesMut::new();
    plan.apply(&body(&[Some(value)]), &mut out).unwrap();
    values(&out).remove(0)
}

fn scanned(oid: u32, format: i16, method: Method, value: &[u8]) -> Option<Vec<u8>> {
    let field = Field::new(oid, format, "c");
    let plan = RowPlan::compile(&[field], &[], Some(detectors(&method)), key()).unwrap();
    let mut out = BytesMut::new();
    plan.apply(&body(&[Some(value)]), &mut out).unwrap();
    values(&out).remove(0)
}

#[test]
fn masked_by_type_and_method() {
    let fixed = |text: &str| Method::Fixed(text.into());
    let hash = {
        let mut out = Vec::new();
        crate::mask::text::hash_into(&key(), b"alice", &mut out);
        out
    };
    type Case<'a> = (u32, i16, Method, &'a [u8], Option<&'a [u8]>);
    let cases: &[Case<'_>] = &[
        (TEXT, 0, Method::Redact, b"alice", Some(b"[redacted]")),
        (1043, 1, Method::Redact, b"alice", Some(b"[redacted]")),
        (TEXT, 0, Method::Null, b"alice", None),
        (TEXT, 0, Method::Hash, b"alice", Some(&hash)),
        (1042, 1, Method::Hash, b"alice   ", Some(&hash)),
        (19, 0, fixed("x"), b"alice", Some(b"x")),
        (TEXT, 0, Method::DEFAULT_PARTIAL, b"alice@example.com", Some(b"a***@***.com")),
        (142, 0, Method::DEFAULT_PARTIAL, b"<a>alice</a>", Some(b"[redacted]")),
        (114, 0, Method::Redact, b"{\"a\":1}", Some(b"\"[redacted]\"")),
        (3802, 0, Method::Redact, b"{\"a\":1}", Some(b"\"[redacted]\"")),
        (3802, 1, Method::Redact, b"\x01{\"a\":1}", Some(b"\x01\"[redacted]\"")),
        (3802, 1, fixed("{\"x\":2}"), b"\x01{\"a\":1}", Some(b"\x01{\"x\":2}")),
        (3802, 1, Method::DEFAULT_PARTIAL, b"\x01\"Alice\"", Some(b"\x01\"A***e\"")),
        (3802, 1, Method::DEFAULT_PARTIAL, b"\x01{\"a\":1}", Some(b"\x01null")),
        (17, 0, Method::Redact, b"\\x00ff", Some(b"\\x5b72656461637465645d")),
        (17, 1, Method::Redact, b"\x00\xff", Some(b"[redacted]")),
        (17, 0, fixed("\\x0102"), b"\\x00ff", Some(b"\\x0102")),
        (17, 1, fixed("\\x0102"), b"\x00\xff", Some(b"\x01\x02")),
        (23, 0, Method::Redact, b"42", None),
        (23, 0, fixed("7"), b"42", Some(b"7")),
        (23, 1, fixed("7"), &[0, 0, 0, 42], Some(&[0, 0, 0, 7])),
        (21, 1, fixed("70000"), &[0, 42], None),
        (20, 1, fixed("-1"), &[0; 8], Some(&[0xff; 8])),
        (20, 0, Method::Hash, b"42", None),
        (701, 1, fixed("0.5"), &[0; 8], Some(&0.5f64.to_be_bytes())),
        (701, 0, fixed("inf"), b"1", None),
        (1700, 0, fixed("0.00"), b"12.50", Some(b"0.00")),
        (1700, 0, fixed("a"), b"12.50", None),
        (1700, 1, fixed("0.00"), &[0; 8], None),
        (16, 0, fixed("false"), b"t", Some(b"f")),
        (16, 1, fixed("true"), &[0], Some(&[1])),
        (1082, 0, fixed("1970-01-01"), b"1985-03-02", Some(b"1970-01-01")),
        (1082, 1, fixed("2000-01-02"), &[0, 0, 9, 9], Some(&[0, 0, 0, 1])),
        (1082, 1, fixed("1970-01-01"), &[0; 4], Some(&(-10957i32).to_be_bytes())),
        (1114, 1, fixed("2000-01-01 00:00:01"), &[0; 8], Some(&1_000_000i64.to_be_bytes())),
        (1184, 1, fixed("2000-01-01 01:00:00+01"), &[9; 8], Some(&0i64.to_be_bytes())),
        (1082, 0, Method::Redact, b"1985-03-02", None),
        (869, 0, fixed("0.0.0.0"), b"10.1.2.3", Some(b"0.0.0.0")),
        (1009, 0, Method::Redact, b"{a,b}", None),
        (2249, 0, Method::Redact, b"(a,b)", None),
        (90_000, 0, Method::Redact, b"enum", None),
    ];
    for (oid, format, method, value, expected) in cases {
        let masked = one(*oid, *format, method.clone(), value);
        assert_eq!(masked.as_deref(), *expected, "{oid} {format} {method:?}");
    }
    let citext = Field::new(90_000, 0, "c").text_like();
    let plan = RowPlan::compile(&[citext], &[(0, Method::Redact)], None, key()).unwrap();
    let mut out = BytesMut::new();
    plan.apply(&body(&[Some(b"Alice")]), &mut out).unwrap();
    assert_eq!(values(&out), [Some(b"[redacted]".to_vec())]);
}

#[test]
fn a_hashed_uuid_is_a_uuid_and_the_same_in_both_formats() {
    let text = one(2950, 0, Method::Hash, b"550e8400-e29b-41d4-a716-446655440000").unwrap();
    let bytes = crate::mask::types::uuid_bytes(std::str::from_utf8(&text).unwrap()).unwrap();
    let raw = crate::mask::types::uuid_bytes("550e8400-e29b-41d4-a716-446655440000").unwrap();
    assert_eq!(one(2950, 1, Method::Hash, &raw).unwrap(), bytes);
    assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (8, 2), "version 8, variant 1");
    assert_ne!(bytes, raw);
    assert_eq!(one(17, 0, Method::Hash, b"\\x01").unwrap().len(), 2 + 32);
    assert_eq!(one(17, 1, Method::Hash, b"\x01").unwrap().len(), 16);
}

#[test]
fn scanned_by_type() {
    let redact = || Method::Redact;
    let card = 4_111_111_111_111_111i64;
    let numeric = |groups: &[i16], weight: i16| {
        let mut out = i16::try_from(groups.len()).unwrap().to_be_bytes().to_vec();
        for word in [weight, 0, 0].iter().chain(groups) {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out
    };
    assert_eq!(scanned(TEXT, 1, redact(), b"at a@b.co").unwrap(), b"at [redacted]");
    assert_eq!(scanned(TEXT, 0, Method::Null, b" a@b.co "), None);
    assert_eq!(scanned(3802, 1, redact(), b"\x01[\"a@b.co\"]").unwrap(), b"\x01[\"[redacted]\"]");
    assert_eq!(scanned(20, 1, redact(), &card.to_be_bytes()), None);
    assert_eq!(scanned(20, 0, redact(), b"4111111111111111"), None);
    assert_eq!(scanned(20, 0, redact(), b"42").unwrap(), b"42");
    assert_eq!(scanned(1700, 0, redact(), b"4111111111111111.00"), None);
    assert_eq!(scanned(1700, 1, redact(), &numeric(&[4111, 1111, 1111, 1111], 3)), None);
    let other = numeric(&[4111, 1111, 1111, 1112], 3);
    assert_eq!(scanned(1700, 1, redact(), &other).unwrap(), other);
    assert_eq!(scanned(17, 0, redact(), b"\\x6140622e636f").unwrap(), b"\\x5b72656461637465645d");
    assert_eq!(scanned(17, 1, redact(), b"\xff a@b.co").unwrap(), b"\xff a@b.co");
    assert_eq!(scanned(2249, 0, redact(), b"(1,a@b.co)"), None);
    assert_eq!(scanned(2249, 1, redact(), b"\x00\x00\x00\x19\x00\x00\x00\x06a@b.co"), None);
    assert_eq!(scanned(1082, 0, redact(), b"2020-01-01").unwrap(), b"2020-01-01");
    assert_eq!(
        scanned(1009, 0, redact(), br#"{a@b.co,"x \"4111 1111 1111 1111\"",NULL,{"y"}}"#).unwrap(),
        br#"{"[redacted]","x \"[redacted]\"",NULL,{"y"}}"#
    );
    assert_eq!(scanned(1009, 0, Method::Null, b"{a@b.co,b}").unwrap(), b"{NULL,b}");
    assert_eq!(
        scanned(1009, 0, Method::Fixed("a,\"}".into()), b"[0:0]={a@b.co}").unwrap(),
        br#"[0:0]={"a,\"}"}"#
    );
    let array = |flags: i32, elements: &[Option<&[u8]>]| {
        let count = i32::try_from(elements.len()).unwrap();
        let mut out = Vec::new();
        for word in [1, flags, 25, count, 1] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&body(elements)[2..]);
        out
    };
    assert_eq!(
        scanned(1009, 1, redact(), &array(0, &[Some(b"x"), Some(b"a@b.co")])).unwrap(),
        array(0, &[Some(b"x"), Some(b"[redacted]")])
    );
    assert_eq!(
        scanned(1009, 1, Method::Null, &array(0, &[Some(b"x"), Some(b"a@b.co")])).unwrap(),
        array(1, &[Some(b"x"), None])
    );
}

#[test]
fn untouched_columns_are_the_same_bytes_and_hits_are_counted() {
    let fields: Vec<_> =
        ["id", "email", "note", "blob"].into_iter().map(|n| Field::new(TEXT, 0, n)).collect();
    let masks = [(1, Method::DEFAULT_PARTIAL), (1, Method::Redact)];
    let plan = RowPlan::compile(&fields, &masks, Some(detectors(&Method::Redact)), key()).unwrap();
    assert_eq!(plan.last_column(), 3);
    let row = body(&[Some(b"1"), Some(b"x"), Some(b"call +49 171 1234567"), None]);
    let mut out = BytesMut::from(&b"before"[..]);
    let hits = plan.apply(&row, &mut out).unwrap();
    assert_eq!(
        values(&out[6..]),
        [
            Some(b"1".to_vec()),
            Some(b"[redacted]".to_vec()),
            Some(b"call [redacted]".to_vec()),
            None
        ]
    );
    assert_eq!((hits.masked, hits.of(Kind::Phone), hits.found()), (1, 1, 1));
    assert_eq!(hits.columns().iter().collect::<Vec<_>>(), [(&2, &1)]);
    assert_eq!(
        serde_json::to_value(&hits).unwrap(),
        serde_json::json!({"masked": 1, "found": {"phone": 1}, "columns": {"2": 1}})
    );
    let noop = RowPlan::compile(&fields, &[], None, key()).unwrap();
    assert!(noop.is_noop());
    let mut same = BytesMut::new();
    noop.apply(&row, &mut same).unwrap();
    assert_eq!(&same[5..], row);
}

#[test]
fn malformed_rows_and_plans_are_refused() {
    let fields = [Field::new(3802, 1, "a"), Field::new(TEXT, 0, "b")];
    let plan = RowPlan::compile(&fields, &[(0, Method::Hash)], None, key()).unwrap();
    let good = body(&[Some(b"\x01{}"), Some(b"b")]);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut negative = good.clone();
    negative[2..6].copy_from_slice(&(-2i32).to_be_bytes());
    let mut huge = good.clone();
    huge[2..6].copy_from_slice(&i32::MAX.to_be_bytes());
    for bad in [
        &[][..],
        &[0],
        &good[..good.len() - 1],
        &trailing,
        &negative,
        &huge,
        &body(&[Some(b"\x01{}")]),
        &body(&[Some(b"\x01{}"), None, None]),
        &body(&[Some(b"\x02{}"), None]),
        &body(&[Some(b""), None]),
        &[0xff, 0xff],
    ] {
        let mut out = BytesMut::from(&b"kept"[..]);
        assert!(plan.apply(bad, &mut out).is_err(), "{bad:?}");
        assert_eq!(&out[..], b"kept");
    }
    let compile = |fields: &[Field], masks| RowPlan::compile(fields, masks, None, key());
    assert!(matches!(
        compile(&fields, &[(2, Method::Null)]),
        Err(MaskError::NoSuchColumn { column: 2, columns: 2 })
    ));
    assert!(matches!(
        compile(&[Field::new(TEXT, 2, "x")], &[]),
        Err(MaskError::UnknownFormat { .. })
    ));
    for (oid, value) in [(20u32, &b"1234567"[..]), (1700, b"123"), (1009, b"\x00\x00\x00\x01")] {
        let plan = RowPlan::compile(
            &[Field::new(oid, 1, "x")],
            &[],
            Some(detectors(&Method::Redact)),
            key(),
        )
        .unwrap();
        assert!(plan.apply(&body(&[Some(value)]), &mut BytesMut::new()).is_err(), "{oid}");
    }
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![
        Just(Method::Null),
        Just(Method::Redact),
        Just(Method::Hash),
        Just(Method::Fixed("7".into())),
        (0u8..9, 0u8..9)
            .prop_map(|(keep_start, keep_end)| Method::Partial { keep_start, keep_end }),
    ]
}

const OIDS: &[u32] = &[
    25, 1043, 1042, 19, 142, 114, 3802, 17, 2950, 21, 23, 20, 700, 701, 1700, 16, 1082, 1114, 1184,
    869, 18, 1009, 199, 3807, 2249, 600, 90_000,
];

fn field() -> impl Strategy<Value = Field> {
    (proptest::sample::select(OIDS), 0i16..2).prop_map(|(oid, f)| Field::new(oid, f, "phone"))
}

proptest! {
    #[test]
    fn a_masked_value_never_leaks(
        needle in "[A-Z]{3}[a-z0-9]{5}",
        pad in "\\PC{0,20}",
        oid in proptest::sample::select(OIDS),
        format in 0i16..2,
        method in method().prop_filter("shows parts by design", |m| !matches!(m, Method::Partial { .. })),
    ) {
        let value = format!("\"{pad}{needle}{pad}\"");
        let fields = [Field::new(TEXT, 0, "a"), Field::new(oid, format, "b")];
        let plan = RowPlan::compile(&fields, &[(1, method)], None, key()).unwrap();
        let mut out = BytesMut::new();
        let row = body(&[Some(b"left alone"), Some(value.as_bytes())]);
        if plan.apply(&row, &mut out).is_ok() {
            prop_assert!(memchr::memmem::find(&out, needle.as_bytes()).is_none());
            prop_assert!(memchr::memmem::find(&out, b"left alone").is_some());
            values(&out);
        } else {
            prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn partial_hides_at_least_half(value in "\\PC{4,60}", start: u8, end: u8) {
        prop_assume!(!value.contains(['@', '%', '*']));
        let method = Method::Partial { keep_start: start, keep_end: end };
        let masked = one(TEXT, 0, method, value.as_bytes()).unwrap();
        let masked = String::from_utf8(masked).unwrap();
        let shown = masked.chars().filter(|c| *c != '*').count();
        prop_assert!(shown <= value.chars().count() / 2);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        fields in proptest::collection::vec(field(), 0..4),
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        whole: bool,
        method in method(),
    ) {
        // Half of the time a row that is well-formed but for its values.
        let row = if whole {
            let values: Vec<_> = fields.iter().map(|_| Some(&bytes[..])).collect();
            body(&values)
        } else {
            bytes
        };
        let found = detectors(&method);
        let plans = [
            RowPlan::compile(&fields, &[], Some(found), key()).unwrap(),
            RowPlan::compile(
                &fields,
                &fields.iter().enumerate().map(|(i, _)| (i, method.clone())).collect::<Vec<_>>(),
                None,
                key(),
            )
            .unwrap(),
        ];
        for plan in &plans {
            let mut out = BytesMut::new();
            match plan.apply(&row, &mut out) {
                Ok(_) => { values(&out); }
                Err(_) => prop_assert!(out.is_empty()),
            }
        }
    }

    #[test]
    fn a_streamed_row_is_the_whole_row(
        texts in proptest::collection::vec(proptest::option::of("[a-z]{0,12}"), 1..6),
        masked in 0usize..6,
        step in 1usize..9,
    ) {
        let fields: Vec<_> = texts.iter().map(|_| Field::new(TEXT, 0, "c")).collect();
        let column = masked % texts.len();
        let plan = RowPlan::compile(&fields, &[(column, Method::Redact)], None, key()).unwrap();
        let values: Vec<_> = texts.iter().map(|t| t.as_ref().map(|t| t.as_bytes())).collect();
        let row = body(&values);
        let mut whole = BytesMut::new();
        plan.apply(&row, &mut whole).unwrap();
        let mut streamed = BytesMut::new();
        let mut seen = 0;
        let (consumed, mut tail) = loop {
            match plan.apply_head(&row[..seen], row.len(), &mut streamed).unwrap() {
                Head::Done { consumed, tail, .. } => break (consumed, tail),
                Head::NeedMore => seen = (seen + step).min(row.len()),
            }
        };
        for piece in row[consumed..].chunks(step) {
            tail.push(piece).unwrap();
            streamed.extend_from_slice(piece);
        }
        tail.finish().unwrap();
        prop_assert_eq!(streamed, whole);
        prop_assert!(tail.push(&[0]).is_err());
    }
}
