//! Observe mode, and sources that need no daemon.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::net::Place;

use crate::{USER, card, session};

#[test]
fn observe_records_what_it_would_have_done_and_changes_nothing() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh().service(|s| s.observe = true))?;
    let agent = bed.agent(USER)?;
    let victim = bed.sshd()?.put(USER, "victim", "x")?;
    bed.ssh(&agent, &format!("rm {}", victim.display()))?.ok()?;
    assert!(!victim.exists(), "observe refused");
    bed.ssh(&agent, "touch held-file")?.ok()?;
    bed.sshd()?.put(USER, "card", card())?;
    assert_eq!(bed.ssh(&agent, "cat card")?.ok()?, card());
    let shown = session(&bed, "victim")?.to_string();
    assert!(shown.contains("never-remove") && shown.contains("observed"), "{shown}");
    let status = bed.interceptor()?.cli(["status"]).ok()?;
    assert!(status.contains("OBSERVE"), "{status}");
    Ok(())
}

#[test]
fn observe_lets_nobody_in_on_the_daemons_own_credit() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh().service(|s| s.observe = true))?;
    // A key that sshd knows, and no token: the daemon cannot pass the proof on.
    let out = bed.ssh(&bed.direct_agent(USER)?, "id -un")?;
    assert!(!out.success() && out.stdout.is_empty(), "{out}");
    Ok(())
}

#[test]
fn exempt_sources_reach_sshd_past_the_daemon() -> Result<()> {
    skip_unless_ssh!();
    let spec = Spec::ssh()
        .config("[[capture.exempt]]\nsource = \"10.78.0.2/32\"\nservices = [\"host-ssh\"]");
    let mut bed = Bed::with(spec)?;
    let operator = bed.direct_agent(USER)?.from(Place::Other);
    let out = bed.ssh(&operator, "echo $SSH_CONNECTION")?;
    assert!(out.clone().ok()?.starts_with("10.78.0.2 "), "{out}");
    bed.interceptor_mut()?.kill();
    bed.ssh(&operator, "true")?.ok()?;
    assert!(!bed.ssh(&bed.direct_agent(USER)?, "true")?.success());
    let status = bed.interceptor()?.cli(["capture", "status"]).ok()?;
    assert!(status.contains("10.78.0.2"), "{status}");
    Ok(())
}

#[test]
fn policy_changes_reach_running_connections() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.option("ControlPath=~/.ssh/cm").option("ControlMaster=auto");
    let agent = agent.option("ControlPersist=30");
    bed.ssh(&agent, "uptime")?.ok()?;
    bed.interceptor()?.write_policy(
        "more.toml",
        "[[rule]]\nname = \"no-more-uptime\"\neffect = \"deny\"\nrequest = \"exec\"\n\
         programs = [\"uptime\"]\n",
    )?;
    bed.interceptor()?.reload()?.ok()?;
    let out = bed.ssh(&agent, "uptime")?;
    assert!(out.stderr.contains("no-more-uptime"), "{out}");
    assert_eq!(bed.interceptor()?.sessions()?.len(), 1);
    Ok(())
}
