//! The bed itself: its network, its PostgreSQL and its sample data, without the daemon.

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::net::{HOST_V6, Place};
use interceptor_tests::{data, skip_unless_possible};

#[test]
fn a_plain_bed_serves_its_sample_data_to_the_agent() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::direct())?;
    let login = bed.direct("app_ro");

    let counts = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM orders), \
                  (SELECT count(*) FROM payments)";
    let expected = format!("{}|{}|{}\n", data::CUSTOMERS, data::ORDERS, data::ORDERS);
    for (host, from) in [
        (login.host.as_str(), Place::Agent),
        (HOST_V6, Place::Agent),
        (login.host.as_str(), Place::Other),
        ("127.0.0.1", Place::Host),
    ] {
        let login = login.clone().host(host).from(from);
        assert_eq!(bed.psql(&login, counts)?.ok()?, expected, "{host} from {from:?}");
    }

    for id in [1, 7, 600, data::CUSTOMERS] {
        let real = data::customer(id);
        let row = bed.psql(
            &login,
            &format!("SELECT name, email, card_number, iban FROM customers WHERE id = {id}"),
        )?;
        let expected = format!("{}|{}|{}|{}\n", real.name, real.email, real.card_number, real.iban);
        assert_eq!(row.ok()?, expected);
    }

    let refused = bed.psql(&login, "DROP TABLE customers")?;
    assert!(refused.stderr.contains("must be owner"), "{refused}");
    assert!(!bed.psql(&login.clone().password("wrong"), "SELECT 1")?.success());
    let tls = bed.psql(&login, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")?;
    assert_eq!(tls.ok()?, "t\n");
    Ok(())
}

#[test]
fn two_beds_stand_side_by_side_and_leave_nothing() -> Result<()> {
    skip_unless_possible!();
    let (one, two) = (Bed::with(Spec::direct())?, Bed::with(Spec::direct())?);
    one.db().admin("CREATE TABLE only_here()")?;
    let has = "SELECT to_regclass('only_here') IS NOT NULL";
    assert_eq!(one.db().admin(has)?, "t\n");
    assert_eq!(two.db().admin(has)?, "f\n");
    let (dir, netns) = (one.dir().to_owned(), one.net().name(Place::Host));
    drop(one);
    assert!(!dir.exists() && !std::path::Path::new("/run/netns").join(netns).exists());
    Ok(())
}

#[test]
fn a_live_psql_answers_line_by_line() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::direct())?;
    let mut psql = bed.live_psql(&bed.direct("app_ro"))?;
    let limit = Duration::from_secs(10);
    assert_eq!(psql.ask("SELECT 41 + 1;", limit)?.trim(), "42");
    assert!(psql.ask("SELECT 1/0;", limit)?.contains("division by zero"));
    psql.send("SELECT pg_sleep(30);")?;
    bed.db().admin(
        "DO $$ BEGIN LOOP EXIT WHEN EXISTS (SELECT FROM pg_stat_activity \
         WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'); \
         PERFORM pg_sleep(0.01); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$",
    )?;
    psql.signal(nix::sys::signal::Signal::SIGINT)?;
    psql.expect("canceling statement due to user request", limit)?;
    Ok(())
}

#[test]
fn clients_inside_this_process_can_enter_a_machine() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::direct())?;
    let answer = bed.net().inside(Place::Agent, || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect("10.77.0.1:5432")?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    })?;
    assert_eq!(answer, b'S');
    Ok(())
}

#[test]
fn the_hand_written_client_reads_what_psql_reads() -> Result<()> {
    use interceptor_tests::wire::{SYNC, encoded, extended, tags};
    skip_unless_possible!();
    // Cleartext, as the daemon asks for it: the hand-written client knows nothing else.
    let bed = Bed::with(Spec::direct())?;
    let hba = bed.dir().join("orders-db/data/pg_hba.conf");
    let old = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, old.replace("scram-sha-256", "password"))?;
    bed.db().admin("SELECT pg_reload_conf()")?;
    let mut raw = interceptor_tests::wire::Raw::ready(bed.net(), &bed.direct("app_ro"))?;
    let answer = raw.ask("SELECT 1, NULL, 'x'")?;
    assert_eq!(tags(&answer), "TDCZ");
    assert_eq!(answer[1].values(), [Some("1".into()), None, Some("x".into())]);
    raw.raw(&[extended("SELECT 2")?, extended("SELECT 3")?, SYNC.to_vec()].concat())?;
    assert_eq!(tags(&raw.until_ready()?), "12DC12DCZ");
    raw.raw(&encoded(b'Q', b"SELECT 1/0\0")?)?;
    let answer = raw.until_ready()?;
    assert_eq!((tags(&answer).as_str(), answer[0].field(b'C').as_str()), ("EZ", "22012"));
    Ok(())
}

#[test]
fn the_benchmark_can_measure_the_ways_beside_the_daemon() -> Result<()> {
    use interceptor_tests::bench::cases::{all, one};
    use interceptor_tests::bench::targets::{Rivals, Way};
    skip_unless_possible!();
    if ["haproxy", "pgbouncer"].iter().any(|p| !interceptor_tests::bed::installed(p)) {
        interceptor_tests::bed::skipped("no haproxy or pgbouncer: run `cargo xtask setup proxies`");
        return Ok(());
    }
    let plan = interceptor_tests::bench::Plan::quick();
    let rivals = Rivals::build(&plan)?;
    for way in [Way::Direct, Way::Haproxy, Way::Pgbouncer] {
        for case in
            all().iter().filter(|c| c.name.contains("prepared 1") || c.name.contains("SELECT"))
        {
            let sample = one(rivals.bed(), &rivals.login(way, case.tls), case, &plan)?;
            assert!(sample.rate > 1.0 && sample.count > 0, "{way} {}: {sample:?}", case.name);
            assert_eq!(sample.median_ms.is_some(), case.name.contains("prepared 1"));
        }
    }
    Ok(())
}
