//! A clock that is set forward or back: nobody stays or comes in on it, and the record holds.

use std::path::Path;

use anyhow::Result;
use interceptor_tests::bed::{Bed, DAEMON_CLOCK, Spec, skipped};

use crate::SOON;

#[test]
fn a_clock_that_jumps_lets_nobody_stay_or_come_in() -> Result<()> {
    skip_unless_possible!();
    let Some(library) = DAEMON_CLOCK.iter().find(|path| Path::new(path).exists()) else {
        skipped("no libfaketime: run `cargo xtask setup clock`");
        return Ok(());
    };
    let mut spec = Spec::default();
    spec.daemon.get_or_insert_default().start = false;
    let mut bed = Bed::with(spec)?;
    let clock = bed.dir().join("clock");
    let jump = |offset: &str| {
        // Renamed into place, for the daemon reads it at any moment.
        let new = clock.with_extension("new");
        std::fs::write(&new, offset).and_then(|()| std::fs::rename(&new, &clock))
    };
    jump("+0")?;
    let interceptor = bed.interceptor_mut()?;
    interceptor.environment("LD_PRELOAD", library);
    interceptor.environment("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
    interceptor.environment("FAKETIME_NO_CACHE", "1");
    interceptor.environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    interceptor.start()?;
    let login = bed.login("app_ro")?;
    let mut psql = bed.live_psql(&login)?;
    psql.ask("SELECT 'before';", SOON)?;

    jump("+3h")?;
    psql.send("SELECT 'after';")?;
    psql.expect("TOKEN_EXPIRED", SOON)?;
    let out = bed.psql(&login, "SELECT 1")?;
    assert!(out.all().contains("TOKEN_EXPIRED"), "{out}");

    jump("-3h")?;
    let out = bed.psql(&login, "SELECT 1")?;
    assert!(out.all().contains("TOKEN_NOT_YET"), "{out}");

    jump("+0")?;
    bed.psql(&login, "SELECT 'again'")?.ok()?;
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    Ok(())
}
