//! Standard streams: bytes as they are, ends as they come, and nobody waits for ever.

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::flow::{self, Source};
use interceptor_tests::live::Live;

use crate::{SOON, USER};

#[test]
fn the_end_of_input_reaches_the_command() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    assert_eq!(bed.ssh_in(&agent, "wc -c", "12345")?.ok()?.trim(), "5");
    assert_eq!(bed.ssh_in(&agent, "wc -c", "")?.ok()?.trim(), "0");
    let text = "line\n".repeat(50_000);
    assert_eq!(bed.ssh_in(&agent, "cat", text.clone())?.ok()?, text);
    // Without input at all.
    let cmd = agent.ssh_with(&["-n"], ["cat"]);
    assert_eq!(bed.at(&agent, cmd).run()?.ok()?, "");
    Ok(())
}

#[test]
fn the_two_output_streams_stay_apart() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let out = bed.ssh(&agent, "echo out; echo err >&2; echo out2; exit 3")?;
    assert_eq!((out.code, &*out.stdout), (Some(3), "out\nout2\n"), "{out}");
    assert_eq!(out.stderr, "err\n", "{out}");
    Ok(())
}

#[test]
fn binary_output_arrives_byte_for_byte() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let mut bytes: Vec<u8> = (0..=255_u8).cycle().take(300_001).collect();
    let mut source = Source::new(700_000, 99);
    while let Some(piece) = source.next() {
        bytes.extend(piece);
    }
    bed.sshd()?.put(USER, "bytes", &bytes)?;
    let out = bed.ssh(&agent, "cat bytes")?;
    assert!(out.success() && out.raw == bytes, "{} of {} bytes", out.raw.len(), bytes.len());
    let back = bed.ssh_in(&agent, "cat", bytes.clone())?;
    assert!(back.success() && back.raw == bytes, "{} of {} bytes", back.raw.len(), bytes.len());
    Ok(())
}

#[test]
fn output_is_not_held_back_until_the_end() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let mut ssh = bed.live_ssh(&agent, &[], &["cat"])?;
    for word in ["first", "second 4111", "third"] {
        ssh.send(word)?;
        // "4111" begins a card number, and yet must come when nothing follows.
        ssh.expect(word, Duration::from_secs(5))?;
    }
    ssh.finish(SOON)?;
    Ok(())
}

/// A command that reads nothing while it writes much, and gets much: both directions are full.
/// Directly this ends when the command does, and so it must here.
#[test]
fn input_that_nobody_reads_does_not_stop_the_output() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let command = "head -c 40000000 /dev/zero; wc -c";
    let cmd = bed.at(&agent, agent.ssh([command])).stdin(vec![b'a'; 20_000_000]);
    let out = cmd.limit(Duration::from_secs(60)).run()?;
    assert!(out.success(), "{}", out.stderr);
    assert_eq!(out.raw.iter().filter(|b| **b == 0).count(), 40_000_000);
    assert!(out.stdout.trim_end().ends_with("20000000"), "the input was lost");
    // One that ends without reading.
    let cmd = bed.at(&agent, agent.ssh(["true"])).stdin(vec![b'a'; 20_000_000]);
    assert!(cmd.run()?.success());
    Ok(())
}

#[test]
fn a_slow_reader_holds_back_its_sender_and_nobody_else() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let pid = bed.interceptor()?.process()?.pid();
    let before = interceptor_tests::bench::memory::resident(pid)?;
    // A client whose output nobody reads: stopped while it downloads.
    let cmd = bed.at(&agent, agent.ssh(["head -c 2000000000 /dev/zero"]));
    let mut slow = Unread::start(&cmd)?;
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..3 {
        let out = bed.ssh(&agent, "echo next")?;
        assert!(out.success() && out.took < Duration::from_secs(5), "{out}");
    }
    let after = interceptor_tests::bench::memory::resident(pid)?;
    assert!(after < before + (64 << 20), "{} MiB more are held", (after - before) >> 20);
    slow.kill()?;
    bed.interceptor_mut()?.still_runs()
}

/// More than the client's window waits behind it when its command has long ended, and so has
/// the input: whoever rests still gets all of it.
#[test]
fn a_reader_that_rests_gets_everything_of_a_command_that_ended() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let cmd = bed.at(&agent, agent.ssh(["head -c 3500000 /dev/zero"]));
    let mut resting = Unread::start_writing(&cmd)?;
    std::thread::sleep(Duration::from_secs(13));
    assert_eq!(resting.rest()?, 3_500_000);
    Ok(())
}

/// A program whose output is not read.
struct Unread(std::process::Child);

impl Unread {
    fn start(cmd: &interceptor_tests::proc::Cmd) -> Result<Self> {
        use std::process::Stdio;
        let mut command = cmd.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    /// The same with endless input.
    fn start_writing(cmd: &interceptor_tests::proc::Cmd) -> Result<Self> {
        use std::process::Stdio;
        let mut command = cmd.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            std::thread::spawn(move || {
                use std::io::Write;
                while stdin.write_all(&[b'x'; 4096]).is_ok() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
        Ok(Self(child))
    }

    /// How much still comes to its end.
    fn rest(&mut self) -> Result<u64> {
        use anyhow::Context;
        let mut out = self.0.stdout.take().context("it was read before")?;
        let count = std::io::copy(&mut out, &mut std::io::sink())?;
        self.0.wait()?;
        Ok(count)
    }

    fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

#[test]
fn a_command_goes_on_writing_after_its_input_ended() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let cmd = bed.at(&agent, agent.ssh(["cat > /dev/null; sleep 1; seq 1 100000"]));
    let mut ssh = Live::start(&cmd)?;
    ssh.send("something")?;
    let all = ssh.finish(SOON)?;
    assert!(all.ends_with("\n100000\n"), "{}", &all[all.len().saturating_sub(100)..]);
    let flow = flow::download(&bed.at(&agent, agent.ssh(["seq 1 3000000"])))?;
    let direct: String = (1..=3_000_000_u32).map(|n| format!("{n}\n")).collect();
    assert_eq!(flow.bytes, direct.len() as u64);
    Ok(())
}
