//! Other major versions of PostgreSQL, from the npm packages of `cargo xtask setup`.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::cluster::Server;
use interceptor_tests::data;

use crate::{SOON, assert_masked};

fn works_on(major: u32) -> Result<()> {
    skip_unless_possible!();
    let Some(server) = Server::from_npm(major) else {
        interceptor_tests::bed::skipped(&format!(
            "no PostgreSQL {major}: run `cargo xtask setup npm`"
        ));
        return Ok(());
    };
    let bed = Bed::with(Spec { server: Some(server), ..Spec::default() })?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    assert!(psql.ask("SHOW server_version;", SOON)?.starts_with(&major.to_string()));
    let rows = psql.ask("SELECT * FROM customers WHERE id < 20;", SOON)?;
    assert!(rows.contains(&data::customer(7).name), "{rows}");
    assert_masked(&rows, 1..20);
    assert_masked(&psql.ask("COPY customers TO STDOUT;", SOON)?, 1..=data::CUSTOMERS);
    for sql in ["DROP TABLE orders;", "SELECT upper(email) FROM customers;"] {
        assert!(psql.ask(sql, SOON)?.contains("interceptor:"), "{sql}");
    }
    psql.ask("SET search_path = archive, public;", SOON)?;
    assert_masked(&psql.ask("SELECT * FROM public.customers LIMIT 20;", SOON)?, 1..=20);
    for command in ["\\d customers", "\\dt", "\\df", "\\du"] {
        assert!(!psql.ask(command, SOON)?.contains("ERROR"), "{command}");
    }
    Ok(())
}

#[test]
fn postgresql_13() -> Result<()> {
    works_on(13)
}

#[test]
fn postgresql_18() -> Result<()> {
    works_on(18)
}
