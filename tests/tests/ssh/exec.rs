//! Commands: what is allowed runs as it would, what is not does not run at all.

use anyhow::Result;
use interceptor_tests::accounts::FISHY;
use interceptor_tests::bed::{Bed, Spec};

use crate::{USER, assert_refused, card, session};

#[test]
fn an_allowed_command_runs_as_it_does_directly() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let out = bed.ssh(&agent, "echo marker-exec; id -un")?;
    assert_eq!(out.clone().ok()?, "marker-exec\ndeploy\n");
    assert!(out.stderr.is_empty(), "something was said: {out}");
    let shown = session(&bed, "marker-exec")?.to_string();
    for fact in ["\"exec\"", "alice@example.com", "0oa-reporter", "10.77.0.2", "run-tools"] {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown}");
    }
    Ok(())
}

#[test]
fn the_status_and_the_signal_of_a_command_are_passed_on() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    for (command, code) in [("true", 0), ("false", 1), ("test -e /nowhere", 1), ("exit 42", 42)] {
        let out = bed.ssh(&agent, command)?;
        assert_eq!(out.code, Some(code), "{out}");
    }
    // A signal is told as such: OpenSSH then ends with 255 and says so at -v.
    let cmd = agent.ssh_with(&["-v"], ["kill -TERM $$"]);
    let out = bed.at(&agent, cmd).run()?;
    assert_eq!(out.code, Some(255), "{out}");
    assert!(out.stderr.contains("exit-signal"), "{out}");
    Ok(())
}

/// A client that has nothing more to say closes its channel when the output ends; the server
/// still owes it the status.
#[test]
fn a_status_that_comes_after_the_end_of_output_is_not_lost() -> Result<()> {
    skip_unless_ssh!();
    let python = "[[rule]]\nname = \"python\"\neffect = \"allow\"\nrequest = \"exec\"\n\
                  programs = \"python3\"\nunseen = true\n";
    let bed = Bed::with(Spec::ssh().and_policy("python.toml", python))?;
    let script = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(0.5)\nos._exit(42)\n";
    bed.sshd()?.put(USER, "closes.py", script)?;
    let out = bed.ssh(&bed.agent(USER)?, "python3 closes.py")?;
    assert_eq!(out.code, Some(42), "{out}");
    let shown = session(&bed, "closes.py")?.to_string();
    assert!(shown.contains("\"status\":42"), "{shown}");
    Ok(())
}

#[test]
fn a_refused_command_says_why_and_does_nothing() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let victim = bed.sshd()?.put(USER, "victim", "still here")?;
    let harm = format!("rm {}", victim.display());
    for command in [
        harm.clone(),
        format!("echo before; {harm}"),
        format!("sh -c '{harm}'"),
        format!("echo `{harm}`"),
        format!("cat <<< \"$({harm})\""),
        format!("env {harm}"),
        format!("true && \"r\"m {}", victim.display()),
        format!("> {}", victim.display()),
        format!("echo x > {}", victim.display()),
        format!("find {} -exec rm {{}} +", victim.display()),
        format!("echo {} | xargs rm", victim.display()),
        "echo 'unfinished".into(),
        "python3 -c 'print(1)'".into(),
        "$(echo ls)".into(),
        "if true; then rm x; fi".into(),
    ] {
        let out = bed.ssh(&agent, &command)?;
        assert_refused(&out);
        assert!(!out.stdout.contains("before"), "a part of {command:?} ran: {out}");
        assert_eq!(std::fs::read_to_string(&victim)?, "still here", "{command}");
        // The connection is good for the next command of another session.
    }
    assert!(bed.ssh(&agent, "true")?.success());
    let out = bed.ssh(&agent, &harm)?;
    assert!(out.stderr.contains("never-remove") && out.stderr.contains("session"), "{out}");
    let shown = session(&bed, "victim")?.to_string();
    assert!(shown.contains("\"deny\"") && shown.contains("never-remove"), "{shown}");
    Ok(())
}

#[test]
fn card_numbers_are_masked_in_both_streams_wherever_they_are_cut() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let card = card();
    bed.sshd()?.put(USER, "card", format!("card {card} end\n"))?;
    bed.sshd()?.put(
        USER,
        "long",
        format!("{}{card}{}\n", "x ".repeat(16_380), " y".repeat(20_000)),
    )?;
    let (head, tail) = card.split_at(7);
    bed.sshd()?.put(USER, "slow.sh", "")?;
    for command in [
        "cat card".to_owned(),
        "cat card >&2".into(),
        "cat card card >&2; cat card".into(),
        "cat long".into(),
        // Two writes with a pause, so that they come as two packets.
        format!("printf 'a {head}'; sleep 0.3; printf '{tail} b\\n'"),
        format!("printf 'a {head}' >&2; sleep 0.3; printf '{tail} b\\n' >&2"),
        "for n in 1 2 3 4 5 6 7 8 9; do cat card; done".into(),
    ] {
        let out = bed.ssh(&agent, &command)?;
        assert!(out.success(), "{command}: {out}");
        assert!(!out.all().contains(&card), "{command}: the number came through: {out}");
        assert!(out.all().len() > 10, "{command}: nothing came: {out}");
    }
    let out = bed.ssh(&agent, "cat card")?;
    assert!(out.stdout.starts_with("card ") && out.stdout.ends_with(" end\n"), "{out}");
    // sshd tells the exit of a command as soon as it has ended, also between two packets of what it
    // left in the pipe: that is no end of the output.
    for round in 0..20 {
        let long = bed.ssh(&agent, "cat long")?;
        assert!(long.stdout.len() > 72_000, "{} bytes", long.stdout.len());
        assert!(!long.stdout.contains(&card), "round {round}: the number came through");
    }
    // The record holds what the agent saw, and not what it did not see.
    let record = crate::whole_record(&bed)?;
    assert!(record.contains("cat card") && !record.contains(&card));
    assert!(!crate::on_disk(&bed.interceptor()?.state(), &card)?, "the number is on disk");
    Ok(())
}

#[test]
fn an_unmasked_command_of_the_same_output_shows_that_masks_are_the_rules() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let card = card();
    bed.sshd()?.put("analyst", "card", format!("card {card} end\n"))?;
    // Nothing is masked for the analyst.
    let out = bed.ssh(&bed.agent("analyst")?, "cat card")?;
    assert_eq!(out.ok()?, format!("card {card} end\n"));
    Ok(())
}

#[test]
fn allow_rules_do_not_reach_shells_that_read_otherwise() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    assert_refused(&bed.ssh(&bed.agent(FISHY)?, "echo hello")?);
    Ok(())
}

#[test]
fn commands_that_are_no_text_or_too_long_are_refused() -> Result<()> {
    skip_unless_ssh!();
    use std::os::unix::ffi::OsStrExt;
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let odd = std::ffi::OsStr::from_bytes(b"echo \xff\xfe");
    assert_refused(&bed.at(&agent, agent.ssh([odd])).run()?);
    for (command, passes) in [
        (format!("echo {}", "x ".repeat(2_000)), true),
        (format!("echo {}", "x".repeat(120_000)), false),
        ("(".repeat(20_000), false),
        (format!("{}true{}", "( ".repeat(3000), " )".repeat(3000)), false),
        ("true;".repeat(20_000), false),
        ("echo $(".repeat(5000), false),
        ("true | ".repeat(10_000) + "true", false),
    ] {
        let out = bed.ssh(&agent, &command)?;
        assert_eq!(out.success(), passes, "{command:.40}: {:.500}", out.stderr);
        assert!(out.stderr.len() < 10_000, "{command:.40}: {:.500}", out.stderr);
    }
    assert!(bed.ssh(&agent, "true")?.success());
    bed.interceptor_mut()?.still_runs()
}
