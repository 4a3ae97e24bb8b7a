//! A statement that waits for a human: every way the wait can end.

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::{STRANGER, items};
use interceptor_tests::live::Live;
use interceptor_tests::net::Place;
use interceptor_tests::story::{held, session_that};
use nix::sys::signal::Signal;

use crate::SOON;

const SQL: &str = "UPDATE orders SET status = 'touched' WHERE id = 11;";

fn touched(bed: &Bed) -> Result<bool> {
    Ok(bed.db().admin("SELECT status FROM orders WHERE id = 11")?.trim() == "touched")
}

#[test]
fn approved_it_runs_and_denied_it_does_not() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let (mut psql, id) = held(&bed, "app_rw", SQL)?;
    let denied = bed.interceptor()?.deny(&id)?;
    assert!(denied.success(), "{denied}");
    let answer = psql.ask("SELECT 'next';", SOON)?;
    assert!(answer.contains("interceptor:") && answer.contains("not today"), "{answer}");
    assert!(answer.contains("next") && !touched(&bed)?);

    psql.send(SQL)?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    assert!(!touched(&bed)?);
    let approved = bed.interceptor()?.approve(&id)?;
    assert!(approved.success(), "{approved}");
    psql.expect("UPDATE 1", SOON)?;
    assert!(touched(&bed)?);
    let again = bed.interceptor()?.approve(&id)?;
    assert!(!again.success(), "decided twice: {again}");
    Ok(())
}

#[test]
fn a_grant_of_the_shape_lets_the_same_shape_pass() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let (mut psql, id) = held(&bed, "app_rw", SQL)?;
    let interceptor = bed.interceptor()?;
    let user = interceptor_tests::daemon::APPROVER;
    interceptor.cli_as(user, ["approvals", "approve", &id, "--for", "10m"]).ok()?;
    psql.expect("UPDATE 1", SOON)?;
    let same = psql.ask("UPDATE orders SET status = 'other' WHERE id = 12;", SOON)?;
    assert!(same.contains("UPDATE 1"), "{same}");
    psql.send("UPDATE orders SET total = 1 WHERE id = 12;")?;
    let other = interceptor.next_hold(SOON)?;
    assert!(other != id);
    Ok(())
}

#[test]
fn a_withdrawn_grant_ends_what_runs_under_it_and_the_record_names_it() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let (mut psql, id) = held(&bed, "app_rw", SQL)?;
    let interceptor = bed.interceptor()?;
    let user = interceptor_tests::daemon::APPROVER;
    interceptor.cli_as(user, ["approvals", "approve", &id, "--for", "10m"]).ok()?;
    psql.expect("UPDATE 1", SOON)?;
    let grant = items(interceptor.json(["approvals", "grants"])?).remove(0);
    let grant = grant["id"].as_str().unwrap_or_default().to_owned();

    let admin = bed.db().admin_tool("psql").args(["-X", "-At"]);
    let admin = admin.as_user("postgres", "postgres").in_netns(&bed.net().name(Place::Host));
    let mut locker = Live::start(&admin)?;
    locker.ask("BEGIN; UPDATE orders SET total = 1 WHERE id = 12;", SOON)?;
    psql.send("UPDATE orders SET status = 'under-a-grant' WHERE id = 12;")?;
    interceptor_tests::proc::wait_for("the statement to wait for the lock", SOON, || {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        Ok((bed.db().admin(waits)?.trim() == "1").then_some(()))
    })?;
    interceptor.cli_as(user, ["approvals", "revoke", &grant]).ok()?;
    psql.expect("canceling statement due to user request", SOON)?;
    let session = session_that(&bed, "under-a-grant")?;
    let shown = interceptor.session(&session)?.to_string();
    assert!(shown.contains("standing grant") && shown.contains(&grant), "{shown}");
    Ok(())
}

#[test]
fn time_and_cancel_end_the_wait() -> Result<()> {
    skip_unless_possible!();
    let spec = Spec::default().service(|s| {
        s.settings = "hold_timeout = \"2s\"\nhold_timeout_in_transaction = \"1s\"".into();
    });
    let bed = Bed::with(spec)?;
    let mut psql = bed.live_psql(&bed.login("app_rw")?)?;
    let late = psql.ask(SQL, SOON)?;
    assert!(late.contains("ERROR") && late.contains("interceptor:"), "{late}");
    let late = psql.ask(&format!("BEGIN; {SQL}"), SOON)?;
    assert!(late.contains("ERROR"), "{late}");
    assert!(!psql.ask("ROLLBACK;", SOON)?.contains("ERROR"));

    psql.send(SQL)?;
    bed.interceptor()?.next_hold(SOON)?;
    psql.signal(Signal::SIGINT)?;
    psql.expect("canceling statement due to user request", SOON)?;
    assert!(bed.interceptor()?.holds()?.is_empty() && !touched(&bed)?);
    Ok(())
}

#[test]
fn only_mapped_people_decide_and_the_client_may_leave() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let (psql, id) = held(&bed, "app_rw", SQL)?;
    let interceptor = bed.interceptor()?;
    let stranger = interceptor.cli_as(STRANGER, ["approvals", "approve", &id]).run()?;
    assert!(!stranger.success(), "{stranger}");
    let root = interceptor.cli_as("root", ["approvals", "approve", &id]).run()?;
    assert!(!root.success(), "{root}");
    drop(psql);
    interceptor_tests::proc::wait_for("the hold to be withdrawn", SOON, || {
        Ok(interceptor.holds()?.is_empty().then_some(()))
    })?;
    assert!(!touched(&bed)?);
    Ok(())
}

#[test]
fn a_token_that_expires_while_waiting_denies() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let claims = interceptor_tests::tokens::Claims::reporter().lasting(4);
    let mut psql = bed.live_psql(&bed.login_with("app_rw", &claims)?)?;
    psql.ask("SELECT 1;", SOON)?;
    psql.send(SQL)?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    let end = psql.finish(Duration::from_secs(30))?;
    assert!(end.contains("TOKEN_EXPIRED") || end.contains("expired"), "{end}");
    assert!(!bed.interceptor()?.approve(&id)?.success() && !touched(&bed)?);
    Ok(())
}

/// What an approver is shown of the held request's reach.
fn impact(bed: &Bed, id: &str) -> Result<serde_json::Value> {
    let interceptor = bed.interceptor()?;
    let user = interceptor_tests::daemon::APPROVER;
    interceptor_tests::proc::wait_for("what it would touch", SOON, || {
        let shown = interceptor.cli_as(user, ["approvals", "show", id, "--json"]).ok()?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        Ok(shown.get("impact").cloned())
    })
}

#[test]
fn approvers_see_the_tables_and_a_plan_that_was_not_run() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    bed.db().admin("ANALYZE orders")?;
    let (_psql, id) = held(&bed, "app_rw", SQL)?;
    let told = impact(&bed, &id)?;
    let table = &told["tables"][0];
    assert_eq!((&table["name"], &table["written"]), (&"public.orders".into(), &true.into()));
    assert!(table["rows"].as_u64() > Some(0) && table["bytes"].as_u64() > Some(8192), "{told}");
    let plan = told["plan"].as_str().unwrap_or_default();
    assert!(plan.contains("Update on orders") && !plan.contains("actual"), "{told}");
    assert!(!touched(&bed)?);
    Ok(())
}

#[test]
fn nothing_is_planned_where_planning_could_run_code() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    // Says it is immutable, so that the planner may run it.
    bed.db().admin(
        "CREATE SEQUENCE planned; GRANT ALL ON planned TO PUBLIC; \
         CREATE FUNCTION counted(text) RETURNS text IMMUTABLE LANGUAGE plpgsql \
         AS $$ BEGIN PERFORM nextval('public.planned'); RETURN $1; END $$; \
         CREATE DOMAIN guarded AS text CHECK (VALUE IS NULL OR public.counted(VALUE) IS NOT NULL); \
         ALTER TABLE orders ADD COLUMN extra guarded",
    )?;
    for (change, why) in [
        ("SELECT 1", "depends on type"),
        (
            "ALTER TABLE orders DROP COLUMN extra; CREATE INDEX x ON orders (counted(status))",
            "depends on function",
        ),
        (
            "DROP INDEX x; CREATE FUNCTION as_int(text) RETURNS int IMMUTABLE LANGUAGE sql \
             AS 'SELECT 1'; CREATE CAST (text AS int) WITH FUNCTION as_int(text)",
            "a cast by",
        ),
        (
            "DROP CAST (text AS int); ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
            "has rules or row security",
        ),
    ] {
        bed.db().admin(change)?;
        bed.db().admin("ALTER SEQUENCE planned RESTART")?;
        let (psql, id) = held(&bed, "app_rw", SQL)?;
        let told = impact(&bed, &id)?;
        let remark = told["remark"].as_str().unwrap_or_default();
        assert!(told["plan"].is_null(), "{told}");
        assert!(remark.contains("could run code") && remark.contains(why), "{told}");
        assert_eq!(told["tables"][0]["name"], "public.orders");
        assert_eq!(bed.db().admin("SELECT is_called FROM planned")?.trim(), "f");
        drop(psql);
        interceptor_tests::proc::wait_for("the hold to be withdrawn", SOON, || {
            Ok(bed.interceptor()?.holds()?.is_empty().then_some(()))
        })?;
    }
    Ok(())
}

/// Code of the agent's own: whoever runs it leaves a line in the server's log. It says that it is
/// immutable, so that the planner may run it.
const EVIL: &str = "(text) RETURNS text IMMUTABLE LANGUAGE plpgsql \
                    AS $$ BEGIN RAISE LOG '%', 'code ' || 'ran'; RETURN $1; END $$;";

fn times_run(bed: &Bed) -> usize {
    bed.db().log().matches("code ran").count()
}

/// Nothing ran since then: the next line in the log is one of ours.
fn nothing_ran_since(bed: &Bed, before: usize) -> Result<()> {
    bed.db().admin("SELECT public.evil('x')")?;
    interceptor_tests::proc::wait_for("our own line in the server's log", SOON, || {
        Ok((times_run(bed) > before).then_some(()))
    })?;
    assert_eq!(times_run(bed), before + 1, "{}", bed.db().log());
    Ok(())
}

#[test]
fn temporary_objects_in_the_place_of_others_run_nothing_when_a_plan_is_made() -> Result<()> {
    skip_unless_possible!();
    // No masks, which would keep most of this out before anybody is asked.
    let spec = Spec::default().policies(&[(
        "own.toml",
        "[[rule]]\nname = 'in'\non = 'connect'\neffect = 'allow'\n\
         [[rule]]\nname = 'all'\neffect = 'allow'\n\
         [[rule]]\nname = 'changes-wait'\neffect = 'hold'\nstatement = 'update'\n",
    )]);
    let bed = Bed::with(spec)?;
    bed.db().admin(&format!("CREATE FUNCTION public.evil{EVIL}"))?;
    nothing_ran_since(&bed, 0)?;
    let lower = format!("CREATE FUNCTION pg_temp.lower{EVIL}");
    let table = "CREATE TEMP TABLE orders (id bigint, status text CHECK (public.evil(status) \
                 IS NOT NULL)); CREATE INDEX ON orders (public.evil(status));";
    let gone = || {
        interceptor_tests::proc::wait_for("the hold to be withdrawn", SOON, || {
            Ok(bed.interceptor()?.holds()?.is_empty().then_some(()))
        })
    };
    for (setup, sql) in [
        (table, SQL),
        (
            "CREATE TEMP VIEW orders AS SELECT id, public.evil(status) AS status \
             FROM public.orders;",
            "UPDATE orders SET id = id WHERE status = 'x';",
        ),
        (&lower, "UPDATE orders SET status = lower('X') WHERE id = 11;"),
        (
            "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (public.evil(VALUE) IS NOT NULL);",
            "UPDATE orders SET status = 'X'::text WHERE id = 11;",
        ),
    ] {
        let mut psql = bed.live_psql(&bed.login("app_admin")?)?;
        let made = psql.ask(setup, SOON)?;
        assert!(!made.contains("ERROR"), "{setup}\n{made}");
        let before = times_run(&bed);
        psql.send(sql)?;
        let id = bed.interceptor()?.next_hold(SOON)?;
        let told = impact(&bed, &id)?;
        let remark = told["remark"].as_str().unwrap_or_default();
        assert!(told["plan"].is_null() && remark.contains("no plan"), "{setup}\n{told}");
        nothing_ran_since(&bed, before)?;
        drop(psql);
        gone()?;
    }

    // Those of another session are in the way of nothing, or of the plan.
    let mut other = bed.live_psql(&bed.login("app_admin")?)?;
    let made = other.ask(&format!("{table} {lower}"), SOON)?;
    assert!(!made.contains("ERROR"), "{made}");
    let before = times_run(&bed);
    for (sql, plan, why) in [
        (SQL, "Update on orders", ""),
        ("UPDATE orders SET status = lower('X') WHERE id = 11;", "", "there is a function"),
    ] {
        let (psql, id) = held(&bed, "app_admin", sql)?;
        let told = impact(&bed, &id)?;
        let said = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
        assert!(said("plan").contains(plan) && said("remark").contains(why), "{told}");
        assert_eq!(told["plan"].is_null(), plan.is_empty(), "{told}");
        drop(psql);
        gone()?;
    }
    nothing_ran_since(&bed, before)
}
