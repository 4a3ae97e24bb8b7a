//! Variables that a client sends: what is allowed arrives, what carries a token never does.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::robot::VARIABLE;
use interceptor_tests::tokens::Claims;

use crate::{USER, session, whole_record};

#[test]
fn the_variable_that_carries_a_token_is_consumed() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let token = bed.token(&Claims::ssh())?;
    let agent = bed.registered(USER)?.token(&token);
    let out = bed.ssh(&agent, "env; echo marker-env")?;
    let env = out.ok()?;
    assert!(env.contains("marker-env"), "{env}");
    assert!(!env.contains(VARIABLE) && !env.contains(&token[..40]), "{env}");
    let shown = session(&bed, "marker-env")?.to_string();
    assert!(!shown.contains(&token[..200]) && !shown.contains(VARIABLE), "{shown}");
    // Its sibling that carries none is passed on.
    let out = bed.ssh(&agent.with("LC_ALL", "C.UTF-8"), "env")?;
    assert!(out.ok()?.contains("LC_ALL=C.UTF-8"));
    Ok(())
}

#[test]
fn a_token_that_is_already_proven_is_consumed_all_the_same() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let token = bed.token(&Claims::ssh())?;
    // A certificate has let it in; the variable is sent besides.
    let agent = bed.agent(USER)?.token(&token);
    let out = bed.ssh(&agent, "env")?;
    if out.success() {
        assert!(!out.stdout.contains(&token[..40]), "{out}");
    }
    let signature = token.rsplit('.').next().unwrap_or_default();
    assert!(!whole_record(&bed)?.contains(signature));
    Ok(())
}

#[test]
fn only_allowed_variables_are_passed_on() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let mut agent = bed.agent(USER)?.with("LC_ALL", "C.UTF-8");
    for (name, value) in [("BED_SECRET", "no"), ("LD_PRELOAD_X", "no"), ("BASH_ENV", "/tmp/x")] {
        agent = agent.option(&format!("SetEnv={name}={value}"));
    }
    // SetEnv is read once: all of them in one.
    agent.options.retain(|o| !o.starts_with("SetEnv"));
    let agent = agent.option("SetEnv=BED_SECRET=no BASH_ENV=/tmp/x LC_TIME=C");
    let env = bed.ssh(&agent, "env")?.ok()?;
    assert!(env.contains("LC_ALL=C.UTF-8") && env.contains("LC_TIME=C"), "{env}");
    // sshd itself would take BED_ variables: it is the daemon that does not pass them on.
    assert!(!env.contains("BED_SECRET") && !env.contains("BASH_ENV"), "{env}");
    let shown = session(&bed, "BED_SECRET")?.to_string();
    assert!(shown.contains("deny"), "{shown}");
    Ok(())
}

#[test]
fn giant_environments_are_bounded() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    for (count, size) in [(200, 10), (3, 100_000), (40, 20_000)] {
        let mut agent = bed.agent(USER)?;
        for n in 0..count {
            agent = agent.with(&format!("LC_BED_{n}"), &"x".repeat(size));
        }
        let out = bed.ssh(&agent, "env | wc -c")?;
        if out.success() {
            let bytes: usize = out.stdout.trim().parse()?;
            assert!(bytes < 200_000, "{count} of {size} bytes: {bytes} arrived");
        }
        assert!(bed.ssh(&bed.agent(USER)?, "true")?.success(), "after {count} of {size}");
    }
    // Before its token a connection may send few.
    let mut agent = bed.registered(USER)?;
    for n in 0..60 {
        agent = agent.with(&format!("LC_BED_{n}"), "x");
    }
    let token = bed.token(&Claims::ssh())?;
    let out = bed.ssh(&agent.with("LC_ZZZ", "x").token(&token), "echo too-many")?;
    assert!(!out.stdout.contains("too-many") || out.success(), "{out}");
    bed.interceptor_mut()?.still_runs()
}
