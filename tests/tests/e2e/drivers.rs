//! The drivers that agents really use, each through a small script of ordinary work.

use std::sync::Arc;

use anyhow::{Context, Result};
use interceptor_tests::bed::Bed;
use interceptor_tests::clients::{Run, tokio_connect};
use interceptor_tests::net::Place;
use interceptor_tests::{clients, data};
use serde_json::Value;

use crate::assert_masked;

/// What every script prints, in whatever order it worked.
fn judge(out: &Value) {
    let text = out.to_string();
    assert_masked(&text, 1..=data::CUSTOMERS);
    let names: Vec<_> = (1..=3).map(|id| data::customer(id).name).collect();
    let rows: Vec<_> =
        out["rows"].as_array().into_iter().flatten().filter_map(|r| r[1].as_str()).collect();
    assert_eq!(rows, names, "{text}");
    assert!(out["denied"].as_str().is_some_and(|m| m.starts_with("interceptor:")), "{text}");
    assert_eq!(out["shape"], "42501", "{text}");
    assert_eq!(out["next"], "next", "{text}");
    for (name, count) in [("cursor", 5), ("copy", 3), ("binary", 1)] {
        if !out[name].is_null() {
            assert_eq!(out[name].as_array().map(Vec::len), Some(count), "{name}: {text}");
        }
    }
    if !out["pipeline"].is_null() {
        assert_eq!(out["pipeline"], serde_json::json!([1, 2, 3, 4, 5]), "{text}");
    }
}

fn script(client: clients::Script) -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    match clients::run(&bed, &bed.login("app_ro")?, client)? {
        Run::Absent(why) => interceptor_tests::bed::skipped(&why),
        Run::Printed(out) => judge(&serde_json::from_str(&out).context(out)?),
    }
    Ok(())
}

#[test]
fn psycopg_3() -> Result<()> {
    script(clients::PSYCOPG3)
}

#[test]
fn psycopg2() -> Result<()> {
    script(clients::PSYCOPG2)
}

#[test]
fn node_postgres() -> Result<()> {
    script(clients::NODE)
}

#[test]
fn pgbench_in_every_protocol() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let sql = "\\set id random(1, 1000)\nSELECT id, name, email FROM customers WHERE id = :id;\n";
    for protocol in ["simple", "extended", "prepared"] {
        let login = bed.login("app_ro")?;
        let file = bed.dir().join("bench.sql");
        std::fs::write(&file, sql)?;
        let cmd =
            bed.client(&login, "pgbench").args(["-n", "-c", "4", "-t", "50", "-M", protocol, "-f"]);
        let out = bed.place(&login, cmd.arg(&file)).run()?;
        assert!(out.all().contains("200/200"), "{protocol}: {out}");
    }
    Ok(())
}

#[test]
fn tokio_postgres() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let out = bed.net().inside(Place::Agent, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Arc::new(tokio_connect(&login).await?);
            let mut out = serde_json::json!({});
            let sql = "SELECT id::int4, name, email FROM customers WHERE id <= $1 ORDER BY id";
            let mut rows = Vec::new();
            for row in client.query(sql, &[&3_i64]).await? {
                rows.push(serde_json::json!([
                    row.get::<_, i32>(0),
                    row.get::<_, String>(1),
                    row.get::<_, String>(2)
                ]));
            }
            out["rows"] = rows.into();
            let denied = client.batch_execute("DROP TABLE orders").await.err();
            let denied = denied.as_ref().and_then(|e| e.as_db_error());
            out["denied"] = denied.map(|e| e.message().to_owned()).into();
            let shape = client.query("SELECT upper(email) FROM customers", &[]).await.err();
            out["shape"] = shape.and_then(|e| e.code().map(|c| c.code().to_owned())).into();
            let many = (0..5).map(|n: i32| {
                let client = Arc::clone(&client);
                tokio::spawn(async move { client.query_one("SELECT $1::int4 + 1", &[&n]).await })
            });
            let mut pipeline = Vec::new();
            for one in many.collect::<Vec<_>>() {
                pipeline.push(one.await??.get::<_, i32>(0));
            }
            out["pipeline"] = pipeline.into();
            out["next"] = client.query_one("SELECT 'next'", &[]).await?.get::<_, String>(0).into();
            anyhow::Ok(out)
        })
    })?;
    judge(&out);
    Ok(())
}
