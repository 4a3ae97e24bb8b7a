//! Interactive shells: refused unless allowed, recorded, replayable, no boundary.

use anyhow::Result;
use interceptor_tests::accounts::ANALYST;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::clients;
use interceptor_tests::proc::Cmd;
use interceptor_tests::story::session_that;

use crate::{SOON, USER, assert_refused, card};

/// Runs a client in a terminal that it makes narrower.
const NARROWER: &str = include_str!("../../data/clients/narrower.py");

#[test]
fn a_shell_is_refused_unless_a_rule_allows_it() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    for options in [&["-T"][..], &["-tt"]] {
        let cmd = agent.ssh_with(options, [""; 0]);
        let out = bed.at(&agent, cmd).stdin("touch made-by-shell\n").run()?;
        assert!(!out.success() && out.all().contains("interceptor:"), "{out}");
    }
    assert!(!bed.sshd()?.home(USER).join("made-by-shell").exists());
    // Nor does `sh` as a command, or a shell reading a script, help.
    for command in ["sh", "bash -i", "exec sh", "bash -l -c true"] {
        assert_refused(&bed.ssh_in(&agent, command, "touch made-by-shell\n")?);
    }
    assert!(!bed.sshd()?.home(USER).join("made-by-shell").exists());
    Ok(())
}

#[test]
fn a_shell_with_a_terminal_is_recorded_and_replays() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(ANALYST)?.with("TERM", "xterm");
    let mut ssh = bed.live_ssh(&agent, &["-tt"], &[])?;
    ssh.send("stty size; echo tty-$(tty | wc -l); PS1='$ '")?;
    ssh.expect("tty-1", SOON)?;
    ssh.send("printf 'mark%s\\n' er-shell; exit 7")?;
    ssh.expect("marker-shell", SOON)?;
    ssh.finish(SOON)?;
    crate::all_ended(&bed)?;
    let id = session_that(&bed, "\"shell\"")?;
    let interceptor = bed.interceptor()?;
    let shown = interceptor.session(&id)?.to_string();
    for fact in ["channel.pty", "xterm", "channel.exit", "channel.close"] {
        assert!(shown.contains(fact), "{fact} is missing:\n{shown:.4000}");
    }
    let replay = interceptor.cli(["sessions", "replay", &id, "--no-wait"]).ok()?;
    assert!(replay.contains("marker-shell"), "{replay}");
    interceptor.cli(["sessions", "verify"]).ok()?;
    Ok(())
}

#[test]
fn a_recorded_terminal_exports_as_asciicast() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(ANALYST)?.with("TERM", "xterm");
    let mut ssh = bed.live_ssh(&agent, &["-tt"], &[])?;
    ssh.send("printf 'mark%s žluťoučký\\n' er-cast; exit")?;
    ssh.expect("marker-cast", SOON)?;
    ssh.finish(SOON)?;
    crate::all_ended(&bed)?;
    let id = session_that(&bed, "\"shell\"")?;
    let cast = bed.interceptor()?.cli(["sessions", "export", "--format", "asciicast", &id]).ok()?;
    let mut lines = cast.lines();
    let head: serde_json::Value = serde_json::from_str(lines.next().unwrap_or_default())?;
    assert_eq!(head["version"], 3, "{head}");
    let mut output = String::new();
    for line in lines.filter(|l| !l.starts_with('#')) {
        let event: (f64, String, String) = serde_json::from_str(line)?;
        assert!(event.0 >= 0.0, "{line}");
        if event.1 == "o" {
            output.push_str(&event.2);
        }
    }
    assert!(output.contains("marker-cast žluťoučký"), "{output}");
    let Some(played) = clients::asciinema(&cast)? else { return Ok(()) };
    assert!(played.errors.is_empty(), "{played:?}");
    assert_eq!(played.output, output);
    assert!(!played.sizes.is_empty() && played.duration > 0.0, "{played:?}");
    Ok(())
}

#[test]
fn what_is_typed_without_echo_is_redacted() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(ANALYST)?.with("TERM", "xterm");
    let mut ssh = bed.live_ssh(&agent, &["-tt"], &[])?;
    ssh.send("PS1='$ '; read -rs -p 'secret? ' S; echo; echo \"length ${#S}\"")?;
    ssh.expect("secret? ", SOON)?;
    // The prompt comes before bash turns the echo off only in the line above; wait for it.
    std::thread::sleep(std::time::Duration::from_millis(300));
    ssh.send("correct-horse-battery")?;
    ssh.expect("length 21", SOON)?;
    ssh.send("exit")?;
    ssh.finish(SOON)?;
    assert!(!crate::whole_record(&bed)?.contains("correct-horse"));
    assert!(
        !crate::on_disk(&bed.interceptor()?.state(), "correct-horse")?,
        "the secret is on disk"
    );
    Ok(())
}

#[test]
fn a_terminal_masks_and_keeps_its_escapes() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.with("TERM", "xterm");
    let card = card();
    bed.sshd()?.put(USER, "tty-card", format!("\x1b[1mcard\x1b[0m \x1b[31m{card}\x1b[0m end\n"))?;
    let cmd = agent.ssh_with(&["-tt"], ["cat tty-card"]);
    let out = bed.at(&agent, cmd).run()?;
    assert!(!out.stdout.contains(&card), "{out}");
    for part in ["\x1b[1mcard\x1b[0m ", "\x1b[31m", "\x1b[0m end"] {
        assert!(out.stdout.contains(part), "{part:?} is missing: {:?}", out.stdout);
    }
    Ok(())
}

/// What wraps at the width that the terminal has now is one value, as it is at the first width.
#[test]
fn a_value_that_wraps_at_a_new_width_is_masked() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.with("TERM", "xterm");
    let card = card();
    let (begin, rest) = card.split_at(6);
    // As bash shows a long line in 20 columns: a space and a return in front of the next row.
    let narrow = format!("$ echo number {begin} \r{rest} end\n");
    bed.sshd()?.put(USER, "narrow", narrow)?;
    let command = "echo wide; until stty size | grep -q ' 20$'; do sleep 0.1; done; cat narrow";
    let ssh = Cmd::new("/usr/bin/python3").args(["-c", NARROWER, "20", "wide", "ssh"]);
    let ssh = ssh.args(agent.words()).args(["-tt", &agent.target(), command]);
    let out = bed.at(&agent, agent.dress(ssh)).limit(SOON).run()?;
    assert!(out.stdout.contains("wide") && out.stdout.contains(" end"), "{out}");
    assert!(!out.stdout.contains(begin) && !out.stdout.contains(rest), "{out}");
    Ok(())
}

#[test]
fn terminals_of_every_size_do_no_harm() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(ANALYST)?;
    let sizes = "0x0 1x1 80x24 65535x65535 4294967295x4294967295 4294967295x0 0x4294967295";
    let out = interceptor_tests::clients::ssh_script(
        &bed,
        &agent,
        interceptor_tests::clients::PARAMIKO_TERMINALS,
        &[sizes],
    )?;
    if let Some(out) = out {
        for size in sizes.split(' ') {
            assert!(out["answers"][size].is_string(), "{size}: {out}");
        }
        assert_eq!(out["answers"]["80x24"], "24 80", "{out}");
    }
    assert!(bed.ssh(&agent, "true")?.success());
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_signal_of_the_client_reaches_the_command() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(ANALYST)?.with("TERM", "xterm");
    let mut ssh = bed.live_ssh(&agent, &["-tt"], &["sleep 100"])?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    // Ctrl-C, as it is typed.
    ssh.send("\x03")?;
    let begun = std::time::Instant::now();
    ssh.finish(SOON)?;
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    Ok(())
}
