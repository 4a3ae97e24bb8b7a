//! The wire codec: cutting a stream into messages, and reading the bodies that are looked at.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use bytes::{BufMut, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use interceptor::wire::postgres::codec::{self, Header};
use interceptor::wire::postgres::relay::bind_values;

const MESSAGES: usize = 1000;

/// Bind with one value, Execute and Sync, as a driver sends them.
fn requests() -> BytesMut {
    let mut out = BytesMut::new();
    for n in 0..MESSAGES / 3 {
        codec::message(&mut out, b'B', |body| {
            body.put_slice(b"\0S_1\0");
            body.put_i16(0);
            body.put_i16(1);
            let value = n.to_string();
            body.put_i32(value.len() as i32);
            body.put_slice(value.as_bytes());
            body.put_i16(0);
        });
        codec::execute(&mut out, b"");
        codec::bare(&mut out, b'S');
    }
    out
}

/// DataRows of four columns.
fn rows() -> BytesMut {
    let mut out = BytesMut::new();
    for n in 0..MESSAGES {
        codec::message(&mut out, b'D', |body| {
            body.put_i16(4);
            for value in [n.to_string(), format!("name {n}"), "x".repeat(40), String::new()] {
                body.put_i32(value.len() as i32);
                body.put_slice(value.as_bytes());
            }
        });
    }
    out
}

/// A RowDescription of four columns.
fn description() -> BytesMut {
    let mut body = BytesMut::new();
    body.put_i16(4);
    for name in ["id", "name", "email", "note"] {
        codec::put_string(&mut body, name.as_bytes());
        body.put_u32(16_384);
        body.put_i16(1);
        body.put_u32(25);
        body.put_i16(-1);
        body.put_i32(-1);
        body.put_i16(0);
    }
    body
}

fn streams(c: &mut Criterion) {
    for (name, bytes) in [("requests", requests()), ("rows", rows())] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function("headers only, as messages that pass through", |b| {
            b.iter(|| {
                let mut at = 0;
                while let Ok(Some(header)) = Header::peek(black_box(&bytes[at..])) {
                    at += header.total();
                }
                assert_eq!(at, bytes.len());
            });
        });
        group.bench_function("split into messages", |b| {
            b.iter_batched(
                || bytes.clone(),
                |mut bytes| {
                    while let Ok(Some((tag, body))) = codec::split_message(&mut bytes, 1 << 20) {
                        black_box((tag, body));
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn bodies(c: &mut Criterion) {
    let description = description();
    let first =
        |mut stream: BytesMut| codec::split_message(&mut stream, 1 << 20).unwrap().unwrap().1;
    let (bind, row) = (first(requests()), first(rows()));
    let mut group = c.benchmark_group("bodies");
    group.bench_function("row description, 4 columns", |b| {
        b.iter(|| codec::row_description(black_box(&description)).unwrap());
    });
    group.bench_function("data row, 4 columns", |b| {
        b.iter(|| codec::data_row(black_box(&row)).unwrap().len());
    });
    group.bench_function("bind, 1 value", |b| {
        b.iter(|| bind_values(black_box(&bind)).unwrap());
    });
    group.finish();
}

criterion_group!(benches, streams, bodies);
criterion_main!(benches);
