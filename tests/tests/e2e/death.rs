//! Things that die: the daemon, the server, the client.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::DaemonSpec;
use interceptor_tests::net::{HOST_V6, Place};
use interceptor_tests::story::session_that;

use crate::SOON;

fn assert_closed(bed: &Bed) -> Result<()> {
    for (host, from) in [
        ("10.77.0.1", Place::Agent),
        (HOST_V6, Place::Agent),
        ("127.0.0.1", Place::Host),
        ("::1", Place::Host),
    ] {
        let out = bed.psql(&bed.direct("app_ro").host(host).from(from), "SELECT 1")?;
        assert!(out.stderr.contains("Connection refused"), "{host} is not closed: {out}");
    }
    Ok(())
}

#[test]
fn attached_without_a_daemon_the_port_is_closed() -> Result<()> {
    skip_unless_possible!();
    let daemon = DaemonSpec { start: false, ..DaemonSpec::default() };
    let mut bed = Bed::with(Spec { daemon: Some(daemon), ..Spec::default() })?;
    assert_closed(&bed)?;
    bed.interceptor_mut()?.start()?;
    assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success());
    Ok(())
}

#[test]
fn a_dead_daemon_leaves_the_port_closed_and_comes_back() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    for round in 0..2 {
        let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
        psql.ask(&format!("SELECT 'round {round}';"), SOON)?;
        if round == 0 {
            bed.interceptor_mut()?.kill()
        } else {
            bed.interceptor_mut()?.stop()
        }
        assert_closed(&bed)?;
        psql.send("SELECT 'after its death';")?;
        let end = psql.finish(SOON)?;
        assert!(!end.contains("after its death\n"), "{end}");
        bed.interceptor_mut()?.start()?;
        assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success());
        session_that(&bed, &format!("round {round}"))?;
        bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    }
    Ok(())
}

#[test]
fn a_server_that_dies_in_the_middle_is_an_error_and_the_daemon_lives() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    psql.ask("SELECT 1;", SOON)?;
    psql.send("COPY (SELECT g, repeat('x', 9000) FROM generate_series(1, 10000000) g) TO STDOUT;")?;
    psql.expect("xxxx", SOON)?;
    bed.db_mut().process().signal(nix::sys::signal::Signal::SIGQUIT)?;
    let end = psql.finish(SOON)?;
    // In the middle of a message there is no room for an error: then the connection ends.
    assert!(
        ["terminat", "closed", "was lost"].iter().any(|w| end.contains(w)),
        "{}",
        &end[end.len() - 400..]
    );
    let out = bed.psql(&bed.login("app_ro")?, "SELECT 1")?;
    assert!(!out.success() && out.stderr.contains("interceptor"), "{out}");
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_server_process_that_dies_between_answers_is_told() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    let pid = "SELECT pid FROM pg_stat_activity WHERE usename = 'app_ro'";
    psql.ask("SELECT 1;", SOON)?;
    let pid: i32 = bed.db().admin(pid)?.trim().parse()?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    interceptor_tests::proc::wait_for("the session to be closed", SOON, || {
        let sessions = bed.interceptor()?.sessions()?;
        Ok(sessions.iter().all(|s| !s["closed_us"].is_null()).then_some(()))
    })?;
    psql.send("SELECT 2;")?;
    psql.expect("SERVICE_ENDED", SOON)?;
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_client_that_dies_in_a_copy_leaves_a_session_that_says_so() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
    psql.send(
        "CREATE TEMP TABLE t (a text);\nCOPY orders (customer_id, total) FROM STDIN;\n1\t5.00",
    )?;
    psql.signal(nix::sys::signal::Signal::SIGKILL)?;
    drop(psql);
    interceptor_tests::proc::wait_for("the session to be closed", SOON, || {
        let sessions = bed.interceptor()?.sessions()?;
        Ok(sessions.iter().all(|s| !s["closed_us"].is_null()).then_some(()))
    })?;
    assert_eq!(bed.db().admin("SELECT count(*) FROM orders WHERE total = 5.00")?.trim(), "0");
    bed.interceptor_mut()?.still_runs()
}
