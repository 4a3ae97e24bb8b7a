//! The host seen as it is: its own keys, its port, every address, and a strict key exchange.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::net::{HOST_V4, HOST_V6, Place};
use interceptor_tests::proc::{Cmd, wait_for};
use nix::sys::signal::Signal;

use crate::{SOON, USER};

#[test]
fn every_address_family_and_place_is_captured_under_the_hosts_own_keys() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    for (host, from) in [
        (HOST_V4, Place::Agent),
        (HOST_V6, Place::Agent),
        ("127.0.0.1", Place::Host),
        ("::1", Place::Host),
        ("localhost", Place::Host),
    ] {
        let agent = bed.agent(USER)?.host(host).from(from);
        let out = bed.ssh(&agent, "echo $SSH_CONNECTION")?;
        assert!(out.success() && out.stderr.is_empty(), "{host}: {out}");
        // sshd was reached by the daemon, not by the agent.
        assert!(out.stdout.starts_with("127.0.0.1 "), "{host} was not captured: {out}");
    }
    let sessions = bed.interceptor()?.sessions()?;
    let dialled: Vec<_> = sessions.iter().filter_map(|s| s["original_dst"].as_str()).collect();
    for address in ["10.77.0.1:22", "[fd77::1]:22", "127.0.0.1:22", "[::1]:22"] {
        assert!(dialled.contains(&address), "{address} is not in {dialled:?}");
    }
    Ok(())
}

/// What a client sees of the host, with and without the daemon.
#[test]
fn the_host_keys_are_the_same_as_without_the_daemon() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.agent(USER)?;
    let known = bed.sshd()?.known_hosts()?;
    let mut seen = 0;
    for kind in ["ed25519", "ecdsa"] {
        let cmd = Cmd::new("ssh-keyscan").args(["-t", kind, HOST_V4]);
        let out = bed.at(&robot, robot.dress(cmd)).run()?;
        for line in out.stdout.lines().filter(|l| !l.starts_with('#')) {
            let key = line.split(' ').nth(2).unwrap_or("no key");
            assert!(known.contains(key), "{kind}: a strange key: {line}\n{known}");
            seen += 1;
        }
    }
    assert_eq!(seen, 2, "not every key is offered");
    // A client that knows only one of them gets that one.
    for kind in ["ssh-ed25519", "ecdsa-sha2-nistp256"] {
        let agent = bed.agent(USER)?;
        let one: String =
            known.lines().filter(|l| l.contains(kind)).map(|l| format!("{l}\n")).collect();
        agent.write(".ssh/known_hosts", one)?;
        let out = bed.ssh(&agent, "true")?;
        assert!(out.success() && out.stderr.is_empty(), "{kind}: {out}");
    }
    // And one that knows another key warns: the daemon shows no key of its own making.
    let agent = bed.agent(USER)?;
    let wrong = known.replace("AAAA", "AAAB");
    agent.write(".ssh/known_hosts", wrong)?;
    assert!(!bed.ssh(&agent, "true")?.success());
    Ok(())
}

#[test]
fn host_keys_are_read_anew_on_sighup_and_kept_when_they_cannot_be() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.option("HostKeyAlgorithms=ecdsa-sha2-nistp256");
    bed.ssh(&agent, "true")?.ok()?;
    let hang_up = || bed.interceptor()?.process()?.signal(Signal::SIGHUP);
    let path = bed.sshd()?.dir().join("ssh_host_ecdsa_key");

    // A key that cannot be read: the old ones stay, and the log says why.
    std::fs::write(&path, "no key any more")?;
    hang_up()?;
    wait_for("the daemon to say that it keeps the old keys", SOON, || {
        let log = bed.interceptor()?.log();
        Ok((log.contains("ssh_host_ecdsa_key") && log.contains("old ones stay")).then_some(()))
    })?;
    bed.ssh(&agent, "true")?.ok()?;

    // Another key: running connections stay, later ones are shown the new one.
    let mut running = bed.live_ssh(&agent, &[], &["echo runs; cat"])?;
    running.expect("runs", SOON)?;
    std::fs::remove_file(&path)?;
    Cmd::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-N", "", "-f"]).arg(&path).ok()?;
    hang_up()?;
    wait_for("the old key to be shown no more", SOON, || {
        let out = bed.ssh(&agent, "true")?;
        Ok(out.stderr.contains("HOST IDENTIFICATION HAS CHANGED").then_some(()))
    })?;
    agent.write(".ssh/known_hosts", bed.sshd()?.known_hosts()?)?;
    let out = bed.ssh(&agent, "true")?;
    assert!(out.success() && out.stderr.is_empty(), "{out}");
    running.send("still here")?;
    running.expect("still here", SOON)?;
    Ok(())
}

#[test]
fn no_client_is_told_to_forget_keys() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.option("UpdateHostKeys=yes");
    let known = bed.sshd()?.known_hosts()?;
    let one = known.lines().find(|l| l.contains("ed25519")).unwrap_or_default();
    agent.write(".ssh/known_hosts", format!("{one}\n"))?;
    bed.ssh(&agent, "sleep 0.5")?.ok()?;
    let after = std::fs::read_to_string(agent.home.join(".ssh/known_hosts"))?;
    assert_eq!(after.trim(), one, "the client was sent other keys");
    Ok(())
}

#[test]
fn what_is_weak_is_not_offered_and_the_exchange_is_strict() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let out = bed.at(&agent, agent.ssh_with(&["-vv"], ["true"])).run()?;
    assert!(out.success(), "{out}");
    let peer = out.stderr.split("peer server KEXINIT proposal").nth(1).unwrap_or_default();
    let peer = peer.split("kex: algorithm").next().unwrap_or_default();
    assert!(peer.contains("curve25519-sha256"), "{peer}");
    assert!(peer.contains("kex-strict-s-v00@openssh.com"), "no strict key exchange: {peer}");
    for weak in [
        "sha1",
        "ssh-rsa,",
        "ssh-dss",
        "3des",
        "-cbc",
        "arcfour",
        "hmac-md5",
        "none,none",
        "group1-",
    ] {
        assert!(!peer.contains(weak), "{weak} is offered:\n{peer}");
    }
    for option in
        ["KexAlgorithms=diffie-hellman-group14-sha1", "MACs=hmac-sha1,umac-64@openssh.com"]
    {
        let mut weak = agent.clone().option(option);
        if option.starts_with("MACs") {
            weak = weak.option("Ciphers=aes128-ctr");
        }
        let out = bed.ssh(&weak, "true")?;
        assert!(!out.success() && out.stderr.contains("no matching"), "{option}: {out}");
    }
    for cipher in
        ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"]
    {
        let out = bed.ssh(&agent.clone().option(&format!("Ciphers={cipher}")), "echo fine")?;
        assert_eq!(out.ok()?, "fine\n", "{cipher}");
    }
    Ok(())
}

#[test]
fn the_banner_is_an_honest_ssh_2() -> Result<()> {
    skip_unless_ssh!();
    use std::io::Read;
    let bed = Bed::with(Spec::ssh())?;
    let mut tcp =
        bed.net().inside(Place::Agent, || Ok(std::net::TcpStream::connect((HOST_V4, 22))?))?;
    tcp.set_read_timeout(Some(crate::SOON))?;
    let mut line = [0_u8; 255];
    let n = tcp.read(&mut line)?;
    let line = String::from_utf8_lossy(&line[..n]).into_owned();
    assert!(line.starts_with("SSH-2.0-") && line.contains("\r\n"), "{line:?}");
    assert!(!line.to_lowercase().contains("openssh"), "it is not OpenSSH: {line:?}");
    Ok(())
}
