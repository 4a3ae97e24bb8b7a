//! With a rule that allows everything the wire is transparent: a client's own test-suite ends
//! through the daemon as it ends without.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec, skipped};
use interceptor_tests::login::Login;
use interceptor_tests::suites::{DATABASE, Suite};

/// Everything, seen or not.
const EVERYTHING: &str = r#"
[[rule]]
name = "connect"
on = "connect"
effect = "allow"

[[rule]]
name = "seen"
effect = "allow"
statement = ["any", "fastpath", "unknown"]

[[rule]]
name = "unseen"
effect = "allow"
unseen = true
statement = ["any", "fastpath", "unknown"]
"#;

fn bed(spec: Spec) -> Result<Bed> {
    let mut spec = spec;
    spec.postgres.push("max_prepared_transactions=10".into());
    let bed = Bed::with(spec)?;
    bed.db().admin(&format!("CREATE DATABASE {DATABASE} OWNER app_admin"))?;
    Ok(bed)
}

fn as_direct(text: &str) -> Result<()> {
    skip_unless_possible!();
    let suite = Suite::load(text)?;
    if let Err(why) = suite.place() {
        skipped(&why);
        return Ok(());
    }
    let to_suite = |login: Login| Login { database: DATABASE.into(), ..login };
    let plain = bed(Spec::direct())?;
    let direct = suite.run(&plain, &to_suite(plain.direct("app_admin")))?;
    drop(plain);
    let guarded = bed(Spec::default().policies(&[("everything.toml", EVERYTHING)]))?;
    let through = suite.run(&guarded, &to_suite(guarded.login("app_admin")?))?;
    suite.compare(&direct, &through)
}

#[test]
fn psycopg2_passes_its_own_tests() -> Result<()> {
    as_direct(include_str!("../../data/suites/psycopg2.toml"))
}
