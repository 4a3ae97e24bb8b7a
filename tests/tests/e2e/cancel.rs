//! Cancel requests: the client's own, with our secret, and nobody else's.

use anyhow::Result;
use interceptor_tests::bed::Bed;
use interceptor_tests::wire::Raw;
use nix::sys::signal::Signal;

use crate::SOON;

/// A cancel request that comes before its statement cancels nothing.
fn running(bed: &Bed) -> Result<()> {
    interceptor_tests::proc::wait_for("the statement to run", SOON, || {
        let running = bed.db().admin(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
             AND query LIKE '%orders b%' AND usename = 'app_ro'",
        )?;
        Ok((running.trim() == "1").then_some(()))
    })
}

#[test]
fn ctrl_c_in_psql_stops_the_statement_and_nothing_else() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let mut other = bed.live_psql(&login)?;
    for _ in 0..3 {
        // Reading from a pipe, psql ends after a cancelled statement.
        let mut psql = bed.live_psql(&login)?;
        psql.send("SELECT count(*) FROM orders a, orders b, orders c;")?;
        running(&bed)?;
        psql.signal(Signal::SIGINT)?;
        psql.expect("canceling statement due to user request", SOON)?;
        assert_eq!(other.ask("SELECT 'next';", SOON)?.trim(), "next");
    }
    Ok(())
}

#[test]
fn only_the_right_secret_cancels() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let mut raw = Raw::tls(bed.net(), &login)?;
    let greeting = raw.log_in(&login, interceptor_tests::wire::V3_0, &[])?;
    let Some(key) = greeting.iter().find(|m| m.tag == b'K').map(|m| m.body.clone()) else {
        anyhow::bail!("no BackendKeyData");
    };
    let server_pid = raw.ask("SELECT pg_backend_pid()")?[1].values()[0].clone();
    let pid = i32::from_be_bytes([key[0], key[1], key[2], key[3]]);
    assert_eq!(server_pid, Some(pid.to_string()), "not the server's own pid");

    let request =
        |key: &[u8]| [&16_u32.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat();
    raw.query("SELECT count(*) FROM orders a, orders b, orders c")?;
    running(&bed)?;
    let mut wrong = key.clone();
    wrong[7] ^= 1;
    for bad in [&wrong[..], &key[..6]] {
        Raw::tls(bed.net(), &login)?.raw(&request(bad))?;
    }
    let other = bed.login("app_ro")?;
    assert!(bed.psql(&other, "SELECT 1")?.success());
    let mut cancel = Raw::tls(bed.net(), &login)?;
    cancel.raw(&request(&key))?;
    assert!(cancel.rest().is_empty());
    let answer = raw.until_ready()?;
    assert_eq!(answer.iter().find(|m| m.tag == b'E').map(|m| m.field(b'C')), Some("57014".into()));

    raw.query("SELECT count(*) FROM orders a, orders b, orders c")?;
    running(&bed)?;
    let mut plain = Raw::tcp(bed.net(), &login)?;
    plain.raw(&request(&key))?;
    assert!(plain.rest().is_empty());
    let answer = raw.until_ready()?;
    assert_eq!(answer.iter().find(|m| m.tag == b'E').map(|m| m.field(b'C')), Some("57014".into()));
    Ok(())
}
