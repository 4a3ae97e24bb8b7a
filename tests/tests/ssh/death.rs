//! Things that die in the middle: the client, the server's child, the daemon, the whole server.

use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::DaemonSpec;
use interceptor_tests::live::Live;
use interceptor_tests::net::{HOST_V4, HOST_V6, Place};
use interceptor_tests::proc::{Cmd, wait_for};
use nix::sys::signal::Signal;

use crate::{SOON, USER, all_ended};

fn assert_closed(bed: &Bed) -> Result<()> {
    for (host, from) in [
        (HOST_V4, Place::Agent),
        (HOST_V6, Place::Agent),
        ("127.0.0.1", Place::Host),
        ("::1", Place::Host),
    ] {
        let agent = bed.direct_agent(USER)?.host(host).from(from);
        let out = bed.ssh(&agent, "true")?;
        assert!(out.stderr.contains("Connection refused"), "{host} is not closed: {out}");
    }
    Ok(())
}

/// A download that never ends by itself, running; what is shown is its client's own words.
fn endless(bed: &Bed) -> Result<Live> {
    let agent = bed.agent(USER)?;
    let words = agent.words().join(" ");
    let line =
        format!("ssh {words} {} yes | tee running > /dev/null; echo status $?", agent.target());
    let cmd = agent.dress(Cmd::new("bash").args(["-o", "pipefail", "-c", &line]));
    let ssh = Live::start(&bed.at(&agent, cmd))?;
    wait_for("the download to run", SOON, || {
        let size = agent.home.join("running").metadata().map_or(0, |m| m.len());
        Ok((size > 1 << 20).then_some(()))
    })?;
    Ok(ssh)
}

#[test]
fn with_a_dead_daemon_the_port_is_closed_and_comes_back() -> Result<()> {
    skip_unless_ssh!();
    let daemon = DaemonSpec { start: false, ..Spec::ssh().daemon.unwrap_or_default() };
    let mut bed = Bed::with(Spec { daemon: Some(daemon), ..Spec::ssh() })?;
    assert_closed(&bed)?;
    bed.interceptor_mut()?.start()?;
    for round in 0..2 {
        let agent = bed.agent(USER)?;
        bed.ssh(&agent, &format!("echo round-{round}"))?.ok()?;
        let running = endless(&bed)?;
        if round == 0 {
            bed.interceptor_mut()?.kill()
        } else {
            bed.interceptor_mut()?.stop()
        }
        assert_closed(&bed)?;
        let end = running.finish(SOON).context("the client hangs")?;
        let told = match round {
            0 => end.contains("closed") || end.contains("reset") || end.contains("Broken pipe"),
            _ => end.contains("interceptor: SHUTDOWN: interceptor is stopping"),
        };
        assert!(told && end.contains("status 255"), "of the daemon's end: {end}");
        wait_for("the command to end with its connection", SOON, || {
            Ok(bed.sshd()?.connections()?.is_empty().then_some(()))
        })?;
        bed.interceptor_mut()?.start()?;
        assert!(bed.ssh(&bed.agent(USER)?, "true")?.success());
        crate::session(&bed, &format!("round-{round}"))?;
        bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    }
    Ok(())
}

#[test]
fn a_client_that_dies_ends_its_command_and_leaves_a_whole_record() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    // One that downloads: its shell dies with it.
    let agent = bed.agent(USER)?;
    let mut ssh = bed.live_ssh(&agent, &[], &["yes"])?;
    ssh.expect("y", SOON)?;
    ssh.signal(Signal::SIGKILL)?;
    drop(ssh);
    // One that uploads.
    let agent = bed.agent(USER)?;
    let mut ssh = bed.live_ssh(&agent, &[], &["cat > /dev/null"])?;
    for _ in 0..1000 {
        ssh.send(&"x".repeat(1000))?;
    }
    ssh.signal(Signal::SIGKILL)?;
    drop(ssh);
    all_ended(&bed)?;
    wait_for("the commands to end", SOON, || {
        Ok(bed.sshd()?.connections()?.is_empty().then_some(()))
    })?;
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_server_child_that_dies_is_an_error_and_the_daemon_lives() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let ssh = endless(&bed)?;
    bed.sshd()?.kill_connections()?;
    let end = ssh.finish(SOON).context("the client hangs")?;
    assert!(end.contains("status 255"), "an end that is none of the command's: {end}");
    assert!(end.contains("interceptor:"), "the client was not told why: {end}");
    all_ended(&bed)?;
    assert!(bed.ssh(&bed.agent(USER)?, "true")?.success());

    // The whole server: nobody is let in, and told why.
    bed.sshd_mut()?.process().kill();
    let out = bed.ssh(&bed.agent(USER)?, "true")?;
    assert!(!out.success() && out.stderr.contains("interceptor"), "{out}");
    assert!(out.took < Duration::from_secs(15), "{out}");
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_server_that_shows_another_key_is_not_trusted() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    bed.sshd_mut()?.process().kill();
    // Somebody else listens behind the daemon, with keys of his own.
    let place = bed.dir().join("impostor");
    let netns = bed.net().name(Place::Host);
    let impostor = interceptor_tests::sshd::Sshd::start(&place, &netns, 22, bed.accounts()?)?;
    let out = bed.ssh(&bed.agent(USER)?, "true")?;
    assert!(!out.success() && out.stderr.contains("interceptor"), "{out}");
    assert_eq!(impostor.accepted(), 0, "{}", impostor.log());
    Ok(())
}

/// How long a connection may be nobody's.
const LONGEST: Duration = Duration::from_secs(26);

#[test]
fn a_silent_connection_is_ended() -> Result<()> {
    skip_unless_ssh!();
    use std::io::{Read, Write};
    let bed = Bed::with(Spec::ssh())?;
    std::thread::scope(|scope| {
        let silent = [&b""[..], b"SSH-2.0-x\r\n", b"SSH-2.0-"].map(|first| {
            let dial = || Ok(std::net::TcpStream::connect((HOST_V4, 22))?);
            let tcp = bed.net().inside(Place::Agent, dial);
            scope.spawn(move || -> Result<Duration> {
                let mut tcp = tcp?;
                tcp.set_read_timeout(Some(LONGEST * 2))?;
                tcp.write_all(first)?;
                let begun = std::time::Instant::now();
                let _ = tcp.read_to_end(&mut Vec::new());
                Ok(begun.elapsed())
            })
        });
        for one in silent {
            let took = one.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            assert!(took < LONGEST, "{took:?}");
        }
        anyhow::Ok(())
    })?;
    // Authenticated with a key alone, and the token never comes.
    let agent = bed.registered(USER)?;
    let cmd = agent.ssh_with(&["-N"], [""; 0]);
    let begun = std::time::Instant::now();
    let out = bed.at(&agent, cmd).limit(Duration::from_secs(40)).run()?;
    assert!(!out.success() && begun.elapsed() < LONGEST, "{out}");
    Ok(())
}
