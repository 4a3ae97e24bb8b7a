//! What stands in the record, and that it cannot be changed unseen.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::data;
use interceptor_tests::live::Live;
use interceptor_tests::proc::{Cmd, wait_for};
use interceptor_tests::story::session_that;

use crate::SOON;

#[test]
fn a_session_can_be_listed_shown_replayed_and_verified() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let sql = "SELECT name, email FROM customers WHERE id = 3; DROP TABLE orders; SELECT 'marker';";
    bed.psql(&bed.login("app_ro")?, sql)?;
    let interceptor = bed.interceptor()?;
    let id = session_that(&bed, "marker")?;
    let shown = interceptor.session(&id)?.to_string();
    for fact in ["alice@example.com", "0oa-reporter", "reporter", "10.77.0.2", "DROP TABLE orders"]
    {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown}");
    }
    let real = data::customer(3);
    assert!(!shown.contains(&real.email), "the record holds what the agent did not see");
    let replay = interceptor.cli(["sessions", "replay", &id, "--no-wait"]).ok()?;
    assert!(replay.contains(&real.name) && !replay.contains(&real.email), "{replay}");
    let search = interceptor.cli(["sessions", "search", "marker"]).ok()?;
    assert!(search.contains(&id), "{search}");
    interceptor.cli(["sessions", "verify"]).ok()?;
    let server = bed.db().log();
    assert!(server.contains(&id), "the server's log does not name the session:\n{server}");
    Ok(())
}

#[test]
fn values_that_a_statement_carries_are_recorded_scrubbed() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let card = data::card(987_654_321);
    let sql = format!(
        "INSERT INTO customers (name, email, card_number) \
         VALUES ('marker-insert', 'fresh.person@example.com', '{card}');"
    );
    bed.psql(&bed.login("app_rw")?, &sql)?;
    let shown = bed.interceptor()?.session(&session_that(&bed, "marker-insert")?)?.to_string();
    assert!(!shown.contains(&card) && !shown.contains("fresh.person@"), "{shown}");
    Ok(())
}

#[test]
fn a_changed_record_does_not_verify() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    bed.psql(&bed.login("app_ro")?, "SELECT 'marker'")?.ok()?;
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    bed.interceptor_mut()?.stop();
    let store = bed.interceptor()?.state().join("records.db");
    // Python's own SQLite: the daemon's is inside the daemon.
    let script = "import sqlite3,sys\nd=sqlite3.connect(sys.argv[1])\n\
        for (t,) in d.execute(\"SELECT name FROM sqlite_master WHERE type='trigger'\").fetchall():\n \
        d.execute('DROP TRIGGER '+t)\n\
        n=d.execute(\"UPDATE events SET body=replace(CAST(body AS TEXT),'marker','merker') \
        WHERE instr(CAST(body AS TEXT),'marker')\").rowcount\nd.commit()\nprint(n)";
    let changed =
        interceptor_tests::proc::Cmd::new("python3").args(["-c", script]).arg(&store).ok()?;
    assert_ne!(changed.trim(), "0", "nothing was changed");
    let verify = bed.interceptor()?.cli(["sessions", "verify"]).run()?;
    assert!(!verify.success(), "{verify}");
    Ok(())
}

#[test]
fn every_statement_sent_is_stored_even_when_the_daemon_is_killed() -> Result<()> {
    skip_unless_possible!();
    for durability in ["process", "disk"] {
        let config = format!("[record]\ndurability = \"{durability}\"");
        let mut bed = Bed::with(Spec::default().config(&config))?;
        let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
        for n in 0..50 {
            psql.send(&format!("SELECT 'statement-{n}';"))?;
        }
        psql.expect("statement-49", SOON)?;
        bed.interceptor_mut()?.kill();
        bed.interceptor_mut()?.start()?;
        let id = session_that(&bed, "statement-49")?;
        let shown = bed.interceptor()?.session(&id)?.to_string();
        for n in 0..50 {
            assert!(shown.contains(&format!("statement-{n}'")), "{n} is missing ({durability})");
        }
        bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    }
    Ok(())
}

/// Holds the store's write lock until it is told a line.
const LOCK: &str = "import sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
sys.stdin.readline()
store.execute('ROLLBACK')
print('released', flush=True)
";

#[test]
fn a_store_that_somebody_locks_refuses_in_time_and_loses_nothing() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let store = bed.interceptor()?.state().join("records.db");
    let mut locker = Live::start(&Cmd::new("python3").args(["-c", LOCK]).arg(&store))?;
    locker.expect("locked", SOON)?;
    bed.psql(&login, "SELECT 'while-locked'")?.ok()?;
    wait_for("a refusal", SOON, || {
        let out = bed.psql(&login, "SELECT 1")?;
        Ok(out.all().contains("RECORD_UNAVAILABLE").then_some(()))
    })?;
    locker.send("go")?;
    locker.expect("released", SOON)?;
    wait_for("service again", SOON, || {
        Ok(bed.psql(&login, "SELECT 'after-the-lock'")?.success().then_some(()))
    })?;
    session_that(&bed, "while-locked")?;
    session_that(&bed, "after-the-lock")?;
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    Ok(())
}
