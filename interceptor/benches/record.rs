//! What recording costs on the way of a request: append and commit of one event.
//!
//! The drain runs beside it, as in the daemon, so the numbers include its share of the journal
//! lock; at the end the events in SQLite are counted against those acknowledged.

#![allow(missing_docs)] // criterion_group! makes an undocumented function

use std::borrow::Cow;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use interceptor::config::{Durability, Record};
use interceptor::record::event::{Request, Response};
use interceptor::record::{Opening, Recorder, SessionLog, now_us};

fn begin(recorder: &Recorder) -> Option<SessionLog> {
    recorder
        .begin(Opening {
            id: ulid::Ulid::new(),
            ts_us: now_us(),
            host: "bench".into(),
            service: "orders-db".into(),
            protocol: "postgres".into(),
            source: "10.0.0.1:4711".into(),
            original_dst: "10.0.0.2:5432".into(),
            mode: "enforce".into(),
            peer_uid: None,
        })
        .ok()
}

fn request(n: u64, rules: &[String]) -> Request<'_> {
    Request {
        n,
        verdict: "allow".into(),
        class: "select".into(),
        ch: None,
        observed: false,
        via: "extended".into(),
        rules: Cow::Borrowed(rules),
        policy: "3f2a91c07d55".into(),
        code: None,
        message: None,
        text: "SELECT abalance FROM pgbench_accounts WHERE aid = $1;".into(),
        text_bytes: None,
        values: Cow::Borrowed(&[]),
        hmac: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into(),
        masks: Cow::Borrowed(&[]),
    }
}

fn response(n: u64) -> Response<'static> {
    Response {
        n,
        tag: "SELECT 1".into(),
        rows: 1,
        bytes: 31,
        duration_us: 117,
        error: None,
        masked: 0,
        truncated: false,
    }
}

/// CPU time of this thread so far: what a commit takes from the sessions, whatever else the
/// machine does meanwhile.
fn cpu() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let spent = getrusage(UsageWho::RUSAGE_THREAD).map(|u| u.user_time() + u.system_time());
    spent.map_or(Duration::ZERO, |t| {
        Duration::from_nanos(t.tv_sec() as u64 * 1_000_000_000 + t.tv_usec() as u64 * 1_000)
    })
}

fn bench(c: &mut Criterion) {
    for (name, durability) in [("process", Durability::Process), ("disk", Durability::Disk)] {
        let Ok(dir) = tempfile::tempdir() else { return };
        let settings = Record { durability, ..Record::default() };
        let Ok(recorder) = Recorder::open_with(dir.path(), "bench", &settings, 32 << 20) else {
            return;
        };
        let rules = vec!["read-orders".to_owned()];
        let mut group = c.benchmark_group(format!("record/{name}"));
        group.measurement_time(Duration::from_secs(3)).throughput(Throughput::Elements(1));
        let Some(mut log) = begin(&recorder) else { return };
        let mut n = 0;
        group.bench_function("request: append and commit", |b| {
            b.iter(|| {
                n += 1;
                log.record(&request(n, &rules)).and_then(|_| log.commit()).map(|c| c.wait())
            })
        });
        group.bench_function("request: append and commit, CPU time", |b| {
            b.iter_custom(|rounds| {
                let start = cpu();
                for _ in 0..rounds {
                    n += 1;
                    let _ = log
                        .record(&request(n, &rules))
                        .and_then(|_| log.commit())
                        .map(|c| c.wait());
                }
                (cpu() - start).max(Duration::from_nanos(1))
            })
        });
        if durability == Durability::Process {
            group.bench_function("append without commit, CPU time", |b| {
                b.iter_custom(|rounds| {
                    let start = cpu();
                    for _ in 0..rounds {
                        n += 1;
                        let _ = log.record(&request(n, &rules));
                    }
                    (cpu() - start).max(Duration::from_nanos(1))
                })
            });
            group.bench_function("request and response: two appends, one commit", |b| {
                b.iter(|| {
                    n += 1;
                    log.record(&response(n))
                        .and_then(|_| log.record(&request(n, &rules)))
                        .and_then(|_| log.commit())
                        .map(|c| c.wait())
                })
            });
        }
        group.finish();
        drop(log);
        let flushed = recorder.flush();
        let health = recorder.health();
        println!(
            "record/{name}: {} events appended, {} stored, flush {}",
            health.appended,
            health.stored,
            if flushed.is_ok() { "ok" } else { "failed" }
        );
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
