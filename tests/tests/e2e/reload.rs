//! Policies that change while sessions live.

use anyhow::Result;
use interceptor_tests::bed::Bed;

use crate::SOON;

const DENY: &str = "[[rule]]\nname = \"no-more-orders\"\neffect = \"deny\"\nstatement = \"any\"\n\
                    tables = [\"orders\"]\n";

#[test]
fn a_reload_judges_live_sessions_anew_and_a_bad_file_changes_nothing() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let interceptor = bed.interceptor()?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    let sql = "SELECT count(*) FROM orders;";
    assert_eq!(psql.ask(sql, SOON)?.trim(), "3000");

    interceptor.write_policy("more.toml", DENY)?;
    assert_eq!(psql.ask(sql, SOON)?.trim(), "3000", "in force before the reload");
    assert!(interceptor.reload()?.success());
    assert!(psql.ask(sql, SOON)?.contains("no-more-orders"));

    interceptor.write_policy("more.toml", "[[rule]]\nname = \"x\"\nefect = \"allow\"\n")?;
    let bad = interceptor.reload()?;
    assert!(!bad.success(), "{bad}");
    for part in ["more.toml", "3", "efect"] {
        assert!(bad.all().contains(part), "the error does not name {part}: {bad}");
    }
    assert!(psql.ask(sql, SOON)?.contains("no-more-orders"), "the old set is gone");

    interceptor.write_policy("more.toml", "# nothing\n")?;
    interceptor.process()?.signal(nix::sys::signal::Signal::SIGHUP)?;
    interceptor_tests::proc::wait_for("SIGHUP to take effect", SOON, || {
        Ok((psql.ask(sql, SOON)?.trim() == "3000").then_some(()))
    })
}

#[test]
fn one_text_two_principals_two_verdicts() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    bed.interceptor()?.write_policy(
        "more.toml",
        "[[rule]]\nname = \"not-for-bob\"\neffect = \"deny\"\nstatement = \"any\"\n\
         principal = \"bob@example.com\"\ntables = [\"orders\"]\n",
    )?;
    bed.interceptor()?.reload()?.ok()?;
    let bob = interceptor_tests::tokens::Claims::reporter()
        .with("sub", "bob@example.com")
        .with("uid", "00u-bob");
    let bob = bed.login_with("app_ro", &bob)?;
    let alice = bed.login("app_ro")?;
    for _ in 0..3 {
        assert!(bed.psql(&alice, "SELECT count(*) FROM orders")?.success());
        let out = bed.psql(&bob, "SELECT count(*) FROM orders")?;
        assert!(out.stderr.contains("not-for-bob"), "{out}");
    }
    Ok(())
}

#[test]
fn a_mask_of_a_column_that_is_not_there_is_told() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    bed.psql(&bed.login("app_ro")?, "SELECT 1")?.ok()?;
    let interceptor = bed.interceptor()?;
    interceptor.write_policy(
        "slip.toml",
        "[[rule]]\nname = \"slip\"\n\
         masks = [{ columns = [\"customers.emial\", \"nowhere.email\"], method = \"null\" }]\n",
    )?;
    interceptor.reload()?.ok()?;
    let log = interceptor.log();
    assert!(log.contains("customers.emial"), "{log}");
    assert!(!log.contains("nowhere.email"), "a table of another database is no slip: {log}");
    Ok(())
}
