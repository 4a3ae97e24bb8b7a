//! Copy streams in all formats, in pieces of any size.

use proptest::prelude::*;

use super::*;
use crate::mask::Kind;

fn key() -> Arc<HashKey> {
    Arc::new(HashKey::from_bytes(&[5; 32]))
}

fn detectors() -> Arc<Detectors> {
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Method::Redact)).collect();
    Arc::new(Detectors::new(&kinds, key()))
}

fn fields(count: usize) -> Vec<Field> {
    (0..count).map(|i| Field::new(25, 0, format!("c{i}"))).collect()
}

fn plan(columns: usize, masks: &[(usize, Method)], format: CopyFormat) -> CopyPlan {
    CopyPlan::compile(&fields(columns), masks, None, key(), format, 1000).unwrap()
}

fn run(plan: &mut CopyPlan, input: &[u8], step: usize) -> Result<Vec<u8>, MaskError> {
    let mut out = BytesMut::new();
    for piece in input.chunks(step.max(1)) {
        plan.push(piece, &mut out, &mut Hits::default())?;
    }
    plan.finish()?;
    Ok(out.to_vec())
}

/// Runs a stream in one piece and byte by byte.
fn masked(columns: usize, masks: &[(usize, Method)], format: &CopyFormat, input: &str) -> String {
    let whole = run(&mut plan(columns, masks, format.clone()), input.as_bytes(), input.len());
    for step in [1, 2, 3, 7] {
        let pieces = run(&mut plan(columns, masks, format.clone()), input.as_bytes(), step);
        assert_eq!(pieces, whole, "pieces of {step}");
    }
    String::from_utf8(whole.unwrap()).unwrap()
}

#[test]
fn text_rows() {
    let text = CopyFormat::Text(TextFormat::default());
    let redact = [(1, Method::Redact)];
    for (input, expected) in [
        ("1\talice\tx\n2\t\\N\ty\n", "1\t[redacted]\tx\n2\t\\N\ty\n"),
        ("a\\tb\tc\\\\\t\\N\n", "a\\tb\t[redacted]\t\\N\n"),
        ("a\\\nb\tc\\\td\t\n", "a\\\nb\t[redacted]\t\n"),
        ("", ""),
    ] {
        assert_eq!(masked(3, &redact, &text, input), expected);
    }
    // The value is what the escapes stand for, so its hash is that of the value.
    let hash = |input: &str| masked(1, &[(0, Method::Hash)], &text, input);
    assert_eq!(hash("a\\tb\n"), hash("a\\011b\n"));
    assert_eq!(hash("a\\tb\n"), hash("a\\x09b\n"));
    assert_eq!(masked(1, &[(0, Method::Null)], &text, "a\nb\n"), "\\N\n\\N\n");
    let fixed = |f: &str| [(0, Method::Fixed(f.into()))];
    assert_eq!(masked(1, &fixed("a\tb\\c\n"), &text, "x\n"), "a\\tb\\\\c\\n\n");
    let options =
        CopyFormat::Text(TextFormat { delimiter: b'|', null: b"none".to_vec(), header: true });
    assert_eq!(
        masked(2, &[(1, Method::Fixed("none".into()))], &options, "a|b\n1|x\n2|none\n"),
        "a|b\n1|\\x6eone\n2|none\n"
    );
}

#[test]
fn csv_rows() {
    let csv = CopyFormat::Csv(CsvFormat::default());
    let redact = [(1, Method::Redact)];
    for (input, expected) in [
        ("1,alice,x\n2,,y\n3,\"\",z\n", "1,[redacted],x\n2,,y\n3,\"[redacted]\",z\n"),
        ("\"a,b\",\"c\"\"\nd\",\"e\nf\"\n", "\"a,b\",\"[redacted]\",\"e\nf\"\n"),
    ] {
        assert_eq!(masked(3, &redact, &csv, input), expected);
    }
    let fixed = |f: &str| [(0, Method::Fixed(f.into()))];
    assert_eq!(masked(1, &fixed("a\"b,c"), &csv, "x\n"), "\"a\"\"b,c\"\n");
    assert_eq!(masked(1, &fixed(""), &csv, "x\n"), "\"\"\n");
    assert_eq!(masked(1, &fixed("\\."), &csv, "x\n"), "\"\\.\"\n");
    let options = CopyFormat::Csv(CsvFormat {
        delimiter: b';',
        quote: b'\'',
        escape: b'\\',
        null: b"NULL".to_vec(),
        header: true,
        force_quote: vec![false, true],
    });
    assert_eq!(
        masked(
            2,
            &[(1, Method::Fixed("it's".into()))],
            &options,
            "'na\nme';v\n'a\\'b';x\nc;NULL\nd;'e\\\\'\n"
        ),
        "'na\nme';v\n'a\\'b';'it\\'s'\nc;NULL\nd;'it\\'s'\n"
    );
}

fn tuple(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = i16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        let length = value.map_or(-1, |v| i32::try_from(v.len()).unwrap());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(value.unwrap_or_default());
    }
    out
}

fn binary(tuples: &[Vec<u8>]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\x03ext".to_vec();
    out.extend(tuples.concat());
    out.extend_from_slice(&[0xff, 0xff]);
    out
}

#[test]
fn binary_rows() {
    let input = binary(&[
        tuple(&[Some(b"1"), Some(b"alice")]),
        tuple(&[Some(b""), None]),
        tuple(&[None, Some(b"")]),
    ]);
    let expected = binary(&[
        tuple(&[Some(b"1"), Some(b"[redacted]")]),
        tuple(&[Some(b""), None]),
        tuple(&[None, Some(b"[redacted]")]),
    ]);
    for step in [1, 2, 3, 7, 1000] {
        let mut plan = plan(2, &[(1, Method::Redact)], CopyFormat::Binary);
        assert_eq!(run(&mut plan, &input, step).unwrap(), expected);
    }
    let mut null = plan(2, &[(1, Method::Null)], CopyFormat::Binary);
    let nulls =
        binary(&[tuple(&[Some(b"1"), None]), tuple(&[Some(b""), None]), tuple(&[None, None])]);
    assert_eq!(run(&mut null, &input, 5).unwrap(), nulls);
}

#[test]
fn detectors_look_into_every_format() {
    let compile = |format| {
        CopyPlan::compile(&fields(2), &[], Some(detectors()), key(), format, 1000).unwrap()
    };
    let text = run(
        &mut compile(CopyFormat::Text(TextFormat::default())),
        b"a@b.co\\n4111111111111111\tok\n",
        9,
    );
    assert_eq!(text.unwrap(), b"[redacted]\\n[redacted]\tok\n");
    let csv =
        run(&mut compile(CopyFormat::Csv(CsvFormat::default())), b"\"say \"\"a@b.co\"\"\",ok\n", 9);
    assert_eq!(csv.unwrap(), b"\"say \"\"[redacted]\"\"\",ok\n");
}

#[test]
fn what_is_not_the_format_is_refused() {
    let text = CopyFormat::Text(TextFormat::default());
    let csv = CopyFormat::Csv(CsvFormat::default());
    let header = &binary(&[])[..22];
    let long = format!("{}\tb\n", "a".repeat(1000));
    let cases: Vec<(&CopyFormat, Vec<u8>, &str)> = vec![
        (&text, b"1\n".to_vec(), "1 columns where 2"),
        (&text, b"1\t2\t3\n".to_vec(), "3 columns where 2"),
        (&text, b"1\t2".to_vec(), "whole row"),
        (&text, long.clone().into_bytes(), "longer than 1000"),
        (&text, "a".repeat(1001).into_bytes(), "longer than 1000"),
        (&csv, b"1\n".to_vec(), "1 columns where 2"),
        (&csv, b"\"1\n".to_vec(), "whole row"),
        (&csv, long.replace('\t', ",").into_bytes(), "longer than 1000"),
        (&CopyFormat::Binary, b"PGCOPX".to_vec(), "not valid"),
        (&CopyFormat::Binary, b"PGCOPY\n\xff\r\n\0\0\x01\0\0\0\0\0\0".to_vec(), "critical flags"),
        (&CopyFormat::Binary, header.to_vec(), "trailer"),
        (&CopyFormat::Binary, [&binary(&[])[..], b"x"].concat(), "trailer"),
        (&CopyFormat::Binary, binary(&[tuple(&[None])]), "1 columns where 2"),
        (&CopyFormat::Binary, [header, b"\0\x02\xff\xff\xff\xfe"].concat(), "not valid"),
        (&CopyFormat::Binary, [header, b"\0\x02\x7f\xff\xff\xff", &[0; 1000]].concat(), "longer"),
    ];
    for (format, input, says) in cases {
        for step in [1, 5, input.len()] {
            let mut plan = plan(2, &[(1, Method::Redact)], format.clone());
            let error = run(&mut plan, &input, step).unwrap_err().to_string();
            assert!(error.contains(says), "{format:?} {input:?} in {step}: {error}");
        }
    }
    for format in [
        CopyFormat::Text(TextFormat { delimiter: b'n', ..TextFormat::default() }),
        CopyFormat::Csv(CsvFormat { delimiter: b'"', ..CsvFormat::default() }),
    ] {
        let compiled = CopyPlan::compile(&fields(1), &[], None, key(), format, 10);
        assert!(matches!(compiled, Err(MaskError::UnsupportedCopy { .. })));
    }
}

#[test]
fn without_masks_the_stream_passes() {
    let mut plan = plan(2, &[], CopyFormat::Binary);
    assert!(plan.is_noop());
    assert_eq!(run(&mut plan, b"anything at all", 4).unwrap(), b"anything at all");
}

fn format() -> impl Strategy<Value = CopyFormat> {
    prop_oneof![
        Just(CopyFormat::Text(TextFormat::default())),
        Just(CopyFormat::Csv(CsvFormat::default())),
        Just(CopyFormat::Csv(CsvFormat { escape: b'\\', header: true, ..CsvFormat::default() })),
        Just(CopyFormat::Binary),
    ]
}

proptest! {
    #[test]
    fn pieces_do_not_matter_and_nothing_panics(
        format in format(),
        bytes in proptest::collection::vec(
            proptest::sample::select(&b"ab,\t\n\r\"\\N.x0@\0\x01\xff4111 "[..]), 0..120),
        cuts in proptest::collection::vec(1usize..20, 1..8),
        well_formed: bool,
        scan: bool,
    ) {
        let input = match (&format, well_formed) {
            (CopyFormat::Binary, true) => binary(&[tuple(&[Some(&bytes), None]), tuple(&[None, Some(&bytes)])]),
            _ => bytes,
        };
        let compile = || {
            let found = scan.then(detectors);
            let masks: &[_] = if scan { &[] } else { &[(1, Method::Redact)] };
            CopyPlan::compile(&fields(2), masks, found, key(), format.clone(), 300).unwrap()
        };
        let mut whole = BytesMut::new();
        let mut plan = compile();
        let mut hits = Hits::default();
        let result = plan.push(&input, &mut whole, &mut hits).map(|()| hits.found());
        let mut pieces = BytesMut::new();
        let mut plan = compile();
        let mut rest = &input[..];
        let mut hits = Hits::default();
        let mut ended = Ok(());
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            ended = plan.push(piece, &mut pieces, &mut hits);
            if ended.is_err() {
                break;
            }
        }
        prop_assert_eq!(result, ended.map(|()| hits.found()));
        prop_assert_eq!(whole, pieces);
    }
}
