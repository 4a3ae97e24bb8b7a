//! A command that waits for a human: every way the wait can end.

use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::APPROVER;
use interceptor_tests::live::Live;
use interceptor_tests::proc::wait_for;
use nix::sys::signal::Signal;

use crate::{SOON, USER, session};

/// What is held, and the file by which is seen whether it ran.
const TOUCH: &str = "touch held-file; echo it ran";

fn ran(bed: &Bed) -> Result<bool> {
    Ok(bed.sshd()?.home(USER).join("held-file").exists())
}

/// Starts a command that is held, and waits until its client has been told.
fn held(bed: &Bed, command: &str) -> Result<(Live, String)> {
    let agent = bed.agent(USER)?;
    let mut ssh = bed.live_ssh(&agent, &[], &[command])?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    ssh.expect(&id, SOON).context("the hold's id on stderr")?;
    Ok((ssh, id))
}

#[test]
fn approved_it_runs_and_denied_it_does_not() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (ssh, id) = held(&bed, TOUCH)?;
    bed.interceptor()?.deny(&id)?.ok()?;
    let end = ssh.finish(SOON)?;
    assert!(end.contains("interceptor:") && end.contains("not today"), "{end}");
    assert!(!end.contains("it ran") && !ran(&bed)?, "{end}");

    let (mut ssh, id) = held(&bed, TOUCH)?;
    assert!(!ran(&bed)?, "it ran before it was approved");
    bed.interceptor()?.approve(&id)?.ok()?;
    ssh.expect("it ran", SOON)?;
    assert!(ran(&bed)?);
    assert!(!bed.interceptor()?.approve(&id)?.success(), "decided twice");
    let shown = session(&bed, &id)?.to_string();
    for fact in ["hold.open", "hold.decided", "00u-approver", "touch held-file"] {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown}");
    }
    Ok(())
}

#[test]
fn what_is_sent_while_it_waits_is_not_lost() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (mut ssh, id) = held(&bed, "touch held-file; wc -c")?;
    for _ in 0..1000 {
        ssh.send(&"x".repeat(99))?;
    }
    bed.interceptor()?.approve(&id)?.ok()?;
    let end = ssh.finish(SOON)?;
    assert!(end.contains("100000"), "{end}");
    Ok(())
}

#[test]
fn a_grant_of_the_shape_lets_the_same_shape_pass() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (mut ssh, id) = held(&bed, TOUCH)?;
    let interceptor = bed.interceptor()?;
    interceptor.cli_as(APPROVER, ["approvals", "approve", &id, "--for", "10m"]).ok()?;
    ssh.expect("it ran", SOON)?;
    let out = bed.ssh(&bed.agent(USER)?, TOUCH)?;
    assert!(out.success() && out.stdout.contains("it ran"), "{out}");
    // Another program is another shape.
    let mut other = bed.live_ssh(&bed.agent(USER)?, &[], &["mkdir held-dir"])?;
    let id = interceptor.next_hold(SOON)?;
    interceptor.deny(&id)?.ok()?;
    other.expect("interceptor:", SOON)?;
    Ok(())
}

#[test]
fn time_and_the_client_end_the_wait() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh().service(|s| s.settings = "hold_timeout = \"2s\"".into()))?;
    let (ssh, _) = held(&bed, TOUCH)?;
    let end = ssh.finish(SOON)?;
    assert!(end.contains("interceptor:") && !end.contains("it ran"), "{end}");

    let bed = Bed::with(Spec::ssh())?;
    let (ssh, _) = held(&bed, TOUCH)?;
    ssh.signal(Signal::SIGINT)?;
    drop(ssh);
    wait_for("the hold to be withdrawn", SOON, || {
        Ok(bed.interceptor()?.holds()?.is_empty().then_some(()))
    })?;
    assert!(!ran(&bed)?);
    Ok(())
}

#[test]
fn others_go_on_while_one_waits() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (_ssh, _) = held(&bed, TOUCH)?;
    for _ in 0..3 {
        let out = bed.ssh(&bed.agent(USER)?, "echo next")?;
        assert!(out.success() && out.took < Duration::from_secs(5), "{out}");
    }
    Ok(())
}

#[test]
fn a_held_sftp_operation_waits_for_its_human_too() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let cmd = bed.at(&agent, agent.run("sftp").args(agent.words()).arg(agent.target()));
    let mut sftp = Live::start(&cmd)?;
    sftp.send("mkdir held-by-sftp")?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    assert!(!bed.sshd()?.home(USER).join("held-by-sftp").exists());
    bed.interceptor()?.approve(&id)?.ok()?;
    // The client repeats what it is told; it does this only after the directory is there.
    sftp.send("pwd")?;
    sftp.expect("Remote working directory", SOON)?;
    assert!(bed.sshd()?.home(USER).join("held-by-sftp").exists());
    Ok(())
}
