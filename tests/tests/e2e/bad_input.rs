//! Input that no honest client sends: a clear error where the protocol allows one, and a
//! daemon that goes on.

use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::wire::{Raw, SYNC, encoded, tags};

use crate::SOON;

#[test]
fn broken_messages_end_their_connection_only() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let before: &[(&str, Vec<u8>)] = &[
        ("a startup packet of zero length", vec![0, 0, 0, 0]),
        ("a startup packet of two gigabytes", vec![0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("a startup packet of 10001 bytes", vec![0, 0, 0x27, 0x11, 0, 3, 0, 0]),
        ("a negative length", vec![0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0]),
        ("protocol 2", [&[0, 0, 0, 9, 0, 2, 0, 0][..], &[0]].concat()),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("parameters without an end", [&[0, 0, 0, 13, 0, 3, 0, 0][..], b"user\0"].concat()),
        ("no user", vec![0, 0, 0, 9, 0, 3, 0, 0, 0]),
    ];
    for (what, bytes) in before {
        for tls in [true, false] {
            let mut raw =
                if tls { Raw::tls(bed.net(), &login)? } else { Raw::tcp(bed.net(), &login)? };
            raw.raw(bytes)?;
            let begun = Instant::now();
            let rest = raw.rest();
            assert!(begun.elapsed() < SOON && rest.len() < 4096, "{what}: {}", rest.len());
        }
        assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success(), "after {what}");
    }
    let after: &[(&str, Vec<u8>)] = &[
        ("an unknown type", encoded(b'@', b"x")?),
        ("a length below four", vec![b'Q', 0, 0, 0, 3]),
        ("a Query without an end", encoded(b'Q', b"SELECT 1")?),
        ("a Query with two ends", encoded(b'Q', b"SELECT 1\0SELECT 2\0")?),
        ("a Bind that is cut", encoded(b'B', &[0, 0, 0, 1])?),
        ("a Bind with a count beyond its end", encoded(b'B', &[0, 0, 0, 0, 0x7f, 0xff])?),
        ("a message of two gigabytes", vec![b'Q', 0x7f, 0xff, 0xff, 0xff, b'x']),
        ("a password in the middle", encoded(b'p', b"again\0")?),
        ("a FunctionCall", encoded(b'F', &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0])?),
        ("a CopyDone out of place", encoded(b'c', b"")?),
        ("bytes that are no UTF-8", encoded(b'Q', b"SELECT '\xff\xfe'\0")?),
    ];
    for (what, bytes) in after {
        let mut raw = Raw::ready(bed.net(), &login)?;
        raw.raw(bytes)?;
        raw.raw(&SYNC).ok();
        let answer = raw.until_ready();
        if let Ok(answer) = &answer {
            assert!(!tags(answer).contains('D'), "{what}: {}", tags(answer));
        }
        assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success(), "after {what}");
    }
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn slow_and_silent_clients_are_ended() -> Result<()> {
    skip_unless_possible!();
    let bed =
        Bed::with(Spec::default().service(|s| s.settings = "startup_timeout = \"2s\"".into()))?;
    let login = bed.login("app_ro")?;
    for first in [&b""[..], &[0], &[0, 0, 0, 8, 4]] {
        let mut raw = Raw::tcp(bed.net(), &login)?;
        raw.raw(first)?;
        let begun = Instant::now();
        raw.rest();
        assert!(begun.elapsed() < Duration::from_secs(6), "{first:?}");
    }
    let mut raw = Raw::tls(bed.net(), &login)?;
    raw.startup(interceptor_tests::wire::V3_0, &[("user", "app_ro"), ("database", "shop")])?;
    let begun = Instant::now();
    raw.rest();
    assert!(begun.elapsed() < Duration::from_secs(6), "the password never came");
    Ok(())
}

#[test]
fn statements_of_every_size_and_depth() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let mut raw = Raw::ready(bed.net(), &bed.login("app_ro")?)?;
    let terms = |n: usize| format!("SELECT {}", vec!["'x'"; n].join("||"));
    let joins = |n: usize| {
        let list: String =
            (1..=n).map(|i| format!(" JOIN (SELECT 1 AS a) t{i} ON t{i}.a = t0.a")).collect();
        format!("SELECT 1 FROM (SELECT 1 AS a) t0{list}")
    };
    let nested =
        |n: usize| format!("{}SELECT 1{}", "SELECT * FROM (".repeat(n), ") AS x".repeat(n));
    for (what, sql, passes) in [
        ("500 terms", terms(500), true),
        ("100,000 terms", terms(100_000), false),
        ("50 subselects", nested(50), true),
        ("100,000 subselects", nested(100_000), false),
        (
            "100,000 parentheses",
            format!("SELECT {}1{}", "(".repeat(100_000), ")".repeat(100_000)),
            false,
        ),
        ("200 joins", format!("SET join_collapse_limit = 1; {}", joins(200)), true),
        ("10 MB that do not parse", format!("SELECT {}", "x ".repeat(5_000_000)), false),
        ("text that does not parse", "SELEC 1".into(), false),
    ] {
        let answer = raw.ask(&sql)?;
        let passed = tags(&answer).contains('D');
        assert_eq!(passed, passes, "{what}: {}", tags(&answer));
        if !passed {
            let error = answer.iter().find(|m| m.tag == b'E').map(|m| m.field(b'C'));
            assert!(error.is_some(), "{what}");
        }
        assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ", "after {what}");
    }
    let large = format!("SELECT length('{}')", "x".repeat(10 << 20));
    assert_eq!(tags(&raw.ask(&large)?), "TDCZ", "10 MB of SQL");

    // 10,000 bind values.
    let places: Vec<String> = (1..=10_000).map(|n| format!("${n}::int")).collect();
    let parse = [&[0], format!("SELECT {}", places.join("+")).as_bytes(), &[0, 0, 0]].concat();
    let wide = format!("SELECT 1 WHERE 1 IN ({})", places.join(","));
    let parse_in = [&[0], wide.as_bytes(), &[0, 0, 0]].concat();
    for (parse, passes) in [(parse_in, true), (parse, false)] {
        let mut bind = vec![0, 0, 0, 0, 0x27, 0x10];
        (0..10_000).for_each(|_| bind.extend([0, 0, 0, 1, b'1']));
        bind.extend([0, 0]);
        raw.raw(
            &[
                encoded(b'P', &parse)?,
                encoded(b'B', &bind)?,
                encoded(b'E', &[0; 5])?,
                SYNC.to_vec(),
            ]
            .concat(),
        )?;
        let answer = raw.until_ready()?;
        assert_eq!(tags(&answer).contains('D'), passes, "{}", tags(&answer));
    }
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn settings_that_change_how_sql_is_read_are_refused() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
    for sql in [
        "SET standard_conforming_strings = off",
        "SET backslash_quote = on",
        "SELECT set_config('standard_conforming_strings', 'off', false)",
        "SET client_encoding = 'SJIS'",
        "SET client_encoding = 'GB18030'",
        "SET session_replication_role = replica",
        "ALTER ROLE app_rw SET standard_conforming_strings = off",
    ] {
        let answer = psql.ask(&format!("{sql};"), SOON)?;
        assert!(answer.contains("ERROR"), "{sql} was let through:\n{answer}");
    }
    // Encodings whose bytes cannot hide ASCII are served.
    for encoding in ["LATIN1", "WIN1252", "EUC_JP", "UTF8"] {
        let answer =
            psql.ask(&format!("SET client_encoding = '{encoding}'; SELECT 'next';"), SOON)?;
        let answer =
            if answer.contains("next") { answer } else { psql.ask("SELECT 'next';", SOON)? };
        assert!(answer.contains("next"), "{encoding}: {answer}");
    }
    for option in
        ["-c search_path=archive", "-c standard_conforming_strings=off", "-c role=postgres"]
    {
        let login = bed.login("app_ro")?;
        let cmd = bed.client(&login, "psql").env("PGOPTIONS", option);
        let out =
            bed.place(&login, cmd.args(["-XAtc", "SELECT email FROM customers LIMIT 1"])).run()?;
        crate::assert_masked(&out.all(), 1..=1200);
    }
    let login = bed.login("app_ro")?;
    let cmd =
        bed.client(&login, "psql").args(["-X", "replication=database", "-c", "IDENTIFY_SYSTEM"]);
    assert!(!bed.place(&login, cmd).run()?.success());
    Ok(())
}
