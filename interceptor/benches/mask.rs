//! Masking of a batch of rows (1,000 rows of four columns) and of streams (8 MiB in pieces).

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use interceptor::mask::{
    CopyFormat, CopyPlan, Detectors, Field, HashKey, Hits, Kind, Method, RowPlan, StreamMasker,
    TerminalMasker, TextFormat,
};

const ROWS: usize = 1000;

/// Name, masks by column, detectors.
type Case = (&'static str, Vec<(usize, Method)>, Option<Arc<Detectors>>);

fn values(i: usize) -> [String; 4] {
    [
        i.to_string(),
        format!("Customer Number {i}"),
        format!("customer{i}@example.com"),
        format!("ordered {} things, delivered on 2024-05-{:02}, happy", i % 7, i % 28 + 1),
    ]
}

fn rows() -> Vec<Vec<u8>> {
    (0..ROWS)
        .map(|i| {
            let mut row = 4i16.to_be_bytes().to_vec();
            for value in values(i) {
                row.extend_from_slice(&i32::try_from(value.len()).unwrap().to_be_bytes());
                row.extend_from_slice(value.as_bytes());
            }
            row
        })
        .collect()
}

fn batches(c: &mut Criterion) {
    let key = Arc::new(HashKey::from_bytes(&[1; 32]));
    let fields: Vec<_> = [(23, "id"), (25, "name"), (25, "email"), (25, "note")]
        .into_iter()
        .map(|(oid, name)| Field::new(oid, 0, name))
        .collect();
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Method::Redact)).collect();
    let detectors = Arc::new(Detectors::new(&kinds, key.clone()));
    let rows = rows();
    let mut group = c.benchmark_group("rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    let cases: [Case; 7] = [
        ("no mask", vec![], None),
        ("partial name", vec![(1, Method::DEFAULT_PARTIAL)], None),
        ("partial e-mail", vec![(2, Method::DEFAULT_PARTIAL)], None),
        ("redact", vec![(2, Method::Redact)], None),
        ("null", vec![(2, Method::Null)], None),
        ("hash", vec![(2, Method::Hash)], None),
        ("all detectors", vec![], Some(detectors)),
    ];
    for (name, masks, detectors) in cases {
        let plan = RowPlan::compile(&fields, &masks, detectors, key.clone()).unwrap();
        let mut out = BytesMut::with_capacity(1 << 20);
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                for row in &rows {
                    black_box(plan.apply(black_box(row), &mut out).unwrap());
                }
            });
        });
    }
    let lines: Vec<String> = (0..ROWS).map(|i| values(i).join("\t") + "\n").collect();
    group.bench_function("copy text, partial name", |b| {
        let mut out = BytesMut::with_capacity(1 << 20);
        b.iter(|| {
            out.clear();
            let format = CopyFormat::Text(TextFormat::default());
            let masks = [(1, Method::DEFAULT_PARTIAL)];
            let mut plan =
                CopyPlan::compile(&fields, &masks, None, key.clone(), format, 1 << 20).unwrap();
            let mut hits = Hits::default();
            for line in &lines {
                plan.push(black_box(line.as_bytes()), &mut out, &mut hits).unwrap();
            }
            black_box(&hits);
        });
    });
    group.finish();
}

/// Eight MiB made of these lines.
fn repeated(lines: &[&str]) -> Vec<u8> {
    lines
        .iter()
        .cycle()
        .flat_map(|line| [line.as_bytes(), b"\n"])
        .flatten()
        .copied()
        .take(8 << 20)
        .collect()
}

fn streams(c: &mut Criterion) {
    let key = Arc::new(HashKey::from_bytes(&[1; 32]));
    let kinds: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, Method::Redact)).collect();
    let detectors = Arc::new(Detectors::new(&kinds, key.clone()));
    let cards = Arc::new(Detectors::new(&[(Kind::Card, Method::Redact)], key));
    let prose = repeated(&[
        "It was the best of times, it was the worst of times, it was the age of wisdom,",
        "it was the age of foolishness; it was the epoch of belief (and of incredulity).",
        "",
    ]);
    let log = repeated(&[
        "2026-11-24T14:32:44.123456Z INFO  worker[1234]: request id=8f3a9c done in 12 ms",
        "2026-11-24T14:32:45.000012Z WARN  worker[1234]: queue \"orders\" is 80% full",
    ]);
    let customers = repeated(&[
        "1042 | Customer Number 1042 | customer1042@example.com | 4111 1111 1111 1111",
        "1043 | Customer Number 1043 | no address               | none",
    ]);
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    let binary: Vec<u8> = (0..8 << 20)
        .map(|_| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            (noise >> 32) as u8
        })
        .collect();
    let mut group = c.benchmark_group("stream");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(8 << 20));
    for (name, text, detectors) in [
        ("prose", &prose, &detectors),
        ("prose, cards only", &prose, &cards),
        ("log lines", &log, &detectors),
        ("log lines, cards only", &log, &cards),
        ("customers", &customers, &detectors),
        ("binary", &binary, &detectors),
    ] {
        let mut out = BytesMut::with_capacity(1 << 16);
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut masker = StreamMasker::new(detectors.clone());
                for piece in text.chunks(32 << 10) {
                    out.clear();
                    masker.push(black_box(piece), &mut out);
                }
                black_box(masker.hits().found())
            });
        });
    }
    for (name, text) in [("terminal, prose", &prose), ("terminal, customers", &customers)] {
        let mut out = BytesMut::with_capacity(1 << 16);
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut masker = TerminalMasker::new(detectors.clone());
                for piece in text.chunks(4 << 10) {
                    out.clear();
                    masker.push(black_box(piece), &mut out);
                }
                black_box(masker.hits().found())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, batches, streams);
criterion_main!(benches);
