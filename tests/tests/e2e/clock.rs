//! Clocks that are set forward or back, and rules that watch the clock.

use std::path::{Path, PathBuf};

use anyhow::Result;
use interceptor_tests::bed::{Bed, DAEMON_CLOCK, Spec, skipped};
use interceptor_tests::tokens::{Claims, now};

use crate::SOON;

/// A bed whose daemon has a clock of its own.
struct Clocked {
    bed: Bed,
    clock: PathBuf,
}

impl Clocked {
    fn new() -> Result<Option<Self>> {
        let Some(library) = DAEMON_CLOCK.iter().find(|path| Path::new(path).exists()) else {
            skipped("no libfaketime: run `cargo xtask setup clock`");
            return Ok(None);
        };
        let mut spec = Spec::default();
        spec.daemon.get_or_insert_default().start = false;
        let mut bed = Bed::with(spec)?;
        let clock = bed.dir().join("clock");
        std::fs::write(&clock, "+0")?;
        let interceptor = bed.interceptor_mut()?;
        interceptor.environment("LD_PRELOAD", library);
        interceptor.environment("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
        interceptor.environment("FAKETIME_NO_CACHE", "1");
        interceptor.environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        interceptor.start()?;
        Ok(Some(Self { bed, clock }))
    }

    /// Sets the daemon's clock, relative to the true time.
    fn jump(&self, offset: &str) -> Result<()> {
        // Renamed into place, for the daemon reads it at any moment.
        let new = self.clock.with_extension("new");
        std::fs::write(&new, offset)?;
        Ok(std::fs::rename(&new, &self.clock)?)
    }
}

#[test]
fn a_clock_that_jumps_lets_nobody_stay_or_come_in() -> Result<()> {
    skip_unless_possible!();
    let Some(clocked) = Clocked::new()? else { return Ok(()) };
    let bed = &clocked.bed;
    let login = bed.login("app_ro")?;
    let mut psql = bed.live_psql(&login)?;
    psql.ask("SELECT 'before';", SOON)?;

    clocked.jump("+3h")?;
    psql.send("SELECT 'after';")?;
    psql.expect("TOKEN_EXPIRED", SOON)?;
    let out = bed.psql(&login, "SELECT 1")?;
    assert!(out.all().contains("TOKEN_EXPIRED"), "{out}");

    clocked.jump("-3h")?;
    let out = bed.psql(&login, "SELECT 1")?;
    assert!(out.all().contains("TOKEN_NOT_YET"), "{out}");

    clocked.jump("+0")?;
    bed.psql(&login, "SELECT 'again'")?.ok()?;
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    Ok(())
}

/// Hours and minutes of a moment, UTC.
fn hours(at: i64) -> String {
    format!("{:02}:{:02}", at / 3600 % 24, at / 60 % 60)
}

#[test]
fn one_text_changes_its_verdict_at_the_edge_of_its_hours_for_whom_they_are() -> Result<()> {
    skip_unless_possible!();
    let Some(clocked) = Clocked::new()? else { return Ok(()) };
    let bed = &clocked.bed;
    let (from, to) = (hours(now() + 600), hours(now() + 3600));
    bed.interceptor()?.write_policy(
        "hours.toml",
        &format!(
            "[[rule]]\nname = \"closed\"\neffect = \"deny\"\nstatement = \"any\"\n\
             principal = \"bob@example.com\"\ntables = [\"orders\"]\n\
             hours = \"{from}-{to}\"\ntimezone = \"UTC\"\n"
        ),
    )?;
    bed.interceptor()?.reload()?.ok()?;
    let alice = Claims::reporter().lasting(3000);
    let bob =
        Claims::reporter().lasting(3000).with("sub", "bob@example.com").with("uid", "00u-bob");
    let mut alice = bed.live_psql(&bed.login_with("app_ro", &alice)?)?;
    let mut bob = bed.live_psql(&bed.login_with("app_ro", &bob)?)?;
    let sql = "SELECT count(*) FROM orders;";
    for _ in 0..2 {
        assert_eq!(alice.ask(sql, SOON)?.trim(), "3000");
        assert_eq!(bob.ask(sql, SOON)?.trim(), "3000");
    }
    clocked.jump("+20m")?;
    assert_eq!(alice.ask(sql, SOON)?.trim(), "3000", "the hours are not hers");
    assert!(bob.ask(sql, SOON)?.contains("closed"));
    clocked.jump("+0")?;
    assert_eq!(bob.ask(sql, SOON)?.trim(), "3000");
    Ok(())
}
