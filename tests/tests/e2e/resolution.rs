//! Names mean what the server will take them for, whatever the session does to them.

use anyhow::Result;
use interceptor_tests::bed::Bed;
use interceptor_tests::data;

use crate::{SOON, assert_masked};

/// Each line is one connection's script; none of it may print a masked value.
const GAMES: &[&[&str]] = &[
    &["SET search_path = archive, public;", "SELECT * FROM customers LIMIT 3;"],
    &["SET search_path = archive;", "SELECT * FROM public.customers LIMIT 3;"],
    &[
        "SELECT set_config('search_path', 'archive,public', false);",
        "SELECT * FROM contacts LIMIT 3;",
    ],
    &[
        "BEGIN; SET LOCAL search_path = archive;",
        "ROLLBACK;",
        "SELECT email FROM customers LIMIT 3;",
    ],
    &["CREATE TEMP VIEW customers AS SELECT 1 AS x;", "SELECT * FROM customers LIMIT 3;"],
    &[
        "CREATE TABLE pg_temp.customers (email text);",
        "SELECT email FROM public.customers LIMIT 3;",
    ],
    &[
        "CREATE VIEW archive.v AS SELECT email AS harmless FROM public.customers;",
        "SELECT harmless FROM archive.v LIMIT 3;",
    ],
    &[
        "CREATE VIEW archive.v2 AS SELECT email || '' AS harmless FROM public.customers;",
        "SELECT harmless FROM archive.v2 LIMIT 3;",
    ],
    &["CREATE TABLE copy AS SELECT * FROM customers;", "SELECT * FROM copy LIMIT 3;"],
    &[
        "ALTER TABLE customers RENAME COLUMN email TO harmless;",
        "SELECT harmless FROM customers LIMIT 3;",
    ],
    &["ALTER TABLE customers RENAME TO harmless;", "SELECT email FROM harmless LIMIT 3;"],
    &[
        "PREPARE p AS SELECT email FROM customers LIMIT 3;",
        "SET search_path = archive, public;",
        "EXECUTE p;",
    ],
    &[
        "SET search_path = archive; SELECT email FROM customers; SET search_path = public;",
        "SELECT email FROM customers LIMIT 3;",
    ],
    &["SET ROLE app_ro;", "SELECT email FROM customers LIMIT 3;"],
    &["SET SESSION AUTHORIZATION postgres;", "SELECT email FROM customers LIMIT 3;"],
    &["SET standard_conforming_strings = off;", "SELECT 'a\\' || email FROM customers --'\n;"],
    &["SET client_encoding = 'SJIS';", "SELECT email FROM customers LIMIT 3;"],
];

#[test]
fn no_game_with_names_shows_a_masked_value() -> Result<()> {
    skip_unless_possible!();
    for script in GAMES {
        let bed = Bed::new()?;
        let mut psql = bed.live_psql(&bed.login("app_admin")?)?;
        for line in *script {
            let answer = psql.ask(line, SOON)?;
            assert_masked(&answer, 1..=data::CUSTOMERS);
        }
        assert_eq!(psql.ask("SELECT 'next';", SOON)?.trim(), "next", "after {script:?}");
    }
    Ok(())
}

#[test]
fn a_batch_that_changes_resolution_is_refused_as_a_whole() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let mut raw = interceptor_tests::wire::Raw::ready(bed.net(), &login)?;
    let answer = raw.ask("SET search_path = archive, public; SELECT * FROM customers")?;
    assert_eq!(interceptor_tests::wire::tags(&answer), "EZ");
    assert!(answer[0].field(b'M').contains("interceptor:"), "{}", answer[0].field(b'M'));
    let path = raw.ask("SHOW search_path")?;
    assert!(!path[1].values()[0].as_deref().unwrap_or_default().contains("archive"));
    Ok(())
}

#[test]
fn a_statement_of_another_session_changes_what_this_one_sees() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    psql.ask("SELECT name FROM contacts LIMIT 1;", SOON)?;
    bed.db().admin(
        "CREATE OR REPLACE VIEW contacts AS SELECT id, name, card_number::text AS email, phone \
         FROM customers",
    )?;
    let answer = psql.ask("SELECT name, email FROM contacts WHERE id < 20;", SOON)?;
    assert_masked(&answer, 1..20);
    Ok(())
}

/// The server reads a prepared statement anew when the search path changes, and so its old
/// judgement says nothing any more.
#[test]
fn a_prepared_statement_does_not_outlive_what_its_names_meant() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    psql.ask("PREPARE p AS SELECT id FROM customers WHERE id = 1;", crate::SOON)?;
    let before = psql.ask("EXECUTE p;", crate::SOON)?;
    assert!(before.contains('1') && !before.contains("ERROR"), "{before}");
    psql.ask("SET search_path = information_schema, public;", crate::SOON)?;
    let after = psql.ask("EXECUTE p;", crate::SOON)?;
    assert!(after.contains("prepare it again"), "{after}");
    Ok(())
}
