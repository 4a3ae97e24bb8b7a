//! COPY in both directions: masked, streamed, counted.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::data;
use interceptor_tests::net::Place;
use interceptor_tests::story::session_that;
use interceptor_tests::wire::Raw;

use crate::{SOON, assert_masked};

const BENCH: &str = include_str!("../../data/policies/bench.toml");

#[test]
fn copy_out_is_masked_in_every_format() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    for options in [
        "",
        "(FORMAT csv)",
        "(FORMAT csv, HEADER, FORCE_QUOTE *)",
        "(DELIMITER '|')",
        "(FORMAT binary)",
    ] {
        for what in [
            "customers",
            "contacts",
            "customers (email, id)",
            "(SELECT email, iban, id FROM customers)",
        ] {
            let source = if what == "contacts" { "(SELECT * FROM contacts)" } else { what };
            let sql = format!("COPY {source} TO STDOUT {options}");
            let out = bed.psql(&login, &sql)?;
            assert!(out.success(), "{sql}: {out}");
            assert_masked(&out.stdout, 1..=data::CUSTOMERS);
            if !options.contains("binary") {
                let rows = out.stdout.lines().count();
                let header = usize::from(options.contains("HEADER"));
                assert!(rows >= 1200 + header, "{sql}: {rows} rows");
            }
        }
    }
    Ok(())
}

#[test]
fn copy_in_arrives_whole_and_can_fail_without_losing_the_connection() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let rows: String = (0..20_000).map(|n| format!("{}\t{n}.25\tcopied\n", 1 + n % 1000)).collect();
    let sql = format!(
        "COPY orders (customer_id, total, status) FROM STDIN;\n{rows}\\.\nSELECT 'marker';\n"
    );
    let out = bed.psql(&bed.login("app_rw")?, &sql)?.ok()?;
    assert!(out.contains("marker"), "{out}");
    let sum = "SELECT count(*), sum(total) FROM orders WHERE status = 'copied'";
    assert_eq!(bed.db().admin(sum)?.trim(), "20000|199995000.00");
    let shown = bed.interceptor()?.session(&session_that(&bed, "marker")?)?.to_string();
    // Older psqls send the end marker too.
    let digests = [rows.clone(), format!("{rows}\\.\n")].map(|data| blake3::hash(data.as_bytes()));
    let there = digests.iter().any(|digest| shown.contains(digest.to_hex().as_str()));
    assert!(there && shown.contains("copy.end"), "{shown:.2000}");

    let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
    psql.send("COPY orders (customer_id, total) FROM STDIN;\n1\tnot a number\n2\t3\n\\.")?;
    psql.expect("ERROR", SOON)?;
    assert!(psql.ask("SELECT 'next';", SOON)?.contains("next"));
    let denied = psql.ask("COPY archive.customers FROM STDIN;\n\\.", SOON)?;
    assert!(denied.contains("ERROR"), "{denied}");
    Ok(())
}

#[test]
fn the_server_sends_one_row_in_each_message_and_so_do_we() -> Result<()> {
    skip_unless_possible!();
    // No kinds of data to look for: rows without masked columns are streamed as they come.
    let spec = Spec::default()
        .policies(&[("bench.toml", BENCH)])
        .service(|s| s.settings = "plaintext_loopback = true".into());
    let bed = Bed::with(spec)?;
    bed.db().admin(
        "CREATE TABLE readings AS SELECT g AS id, g % 97 AS sensor, 'reading number ' || g AS label, \
         md5(g::text) AS note, 'x@example.com' AS email FROM generate_series(1, 20000) g; \
         GRANT SELECT ON readings TO app_ro",
    )?;
    let plain = bed.login("app_ro")?.from(Place::Host).host("127.0.0.1").sslmode("disable");
    for mut raw in [
        Raw::ready(bed.net(), &bed.login("app_ro")?)?,
        interceptor_tests::bench::cases::connect(&bed, &plain)?,
    ] {
        rows_stay_whole(&mut raw)?;
    }
    Ok(())
}

fn rows_stay_whole(raw: &mut Raw) -> Result<()> {
    for (sql, rows) in [
        ("COPY orders (id, customer_id) TO STDOUT", data::ORDERS),
        ("COPY orders (id, items) TO STDOUT", data::ORDERS),
        ("COPY customers (id, email, notes) TO STDOUT", data::CUSTOMERS),
        ("COPY (SELECT g, md5(g::text) FROM generate_series(1, 50000) g) TO STDOUT", 50_000),
        ("COPY readings (id, sensor, label, note) TO STDOUT", 20_000),
        ("COPY (SELECT g, repeat('x', 5000) FROM generate_series(1, 2000) g) TO STDOUT", 2000),
    ] {
        let answer = raw.ask(sql)?;
        let messages: Vec<_> = answer.iter().filter(|m| m.tag == b'd').collect();
        assert!(messages.iter().all(|m| m.body.ends_with(b"\n")), "{sql}: a row is cut in two");
        assert_eq!(messages.len(), usize::try_from(rows)?, "{sql}");
    }
    Ok(())
}
