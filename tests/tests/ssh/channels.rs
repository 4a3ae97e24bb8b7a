//! More than one thing over a connection, and what leads elsewhere: forwards, jumps, agents.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::ServiceSpec;
use interceptor_tests::live::Live;
use interceptor_tests::net::{HOST_V4, Place};
use interceptor_tests::proc::{Cmd, Daemon, wait_for};
use interceptor_tests::robot::Robot;

use crate::{SOON, USER, session, whole_record};

/// The port to which a rule allows forwards.
const ECHO: u16 = 7777;
/// A port of the host to which none does.
const OTHER: u16 = 7778;

/// A server on the host that greets with its port and gives back what it gets.
fn echo(bed: &Bed, port: u16) -> Result<Daemon> {
    echo_at(bed, Place::Host, port)
}

/// The same on any machine.
pub fn echo_at(bed: &Bed, place: Place, port: u16) -> Result<Daemon> {
    let script = format!(
        "import socketserver\n\
         class H(socketserver.BaseRequestHandler):\n\
         \x20   def handle(self):\n\
         \x20       self.request.sendall(b'hello from {port}\\n')\n\
         \x20       while (d := self.request.recv(65536)): self.request.sendall(d)\n\
         socketserver.ThreadingTCPServer.allow_reuse_address = True\n\
         socketserver.ThreadingTCPServer(('127.0.0.1', {port}), H).serve_forever()\n"
    );
    let cmd = Cmd::new("/usr/bin/python3").args(["-c", &script]);
    let daemon = cmd.in_netns(&bed.net().name(place)).daemonize(&bed.dir().join("echo"))?;
    wait_for("the echo server", SOON, || {
        let tried = bed.net().inside(place, || Ok(TcpStream::connect(("127.0.0.1", port))?));
        Ok(tried.is_ok().then_some(()))
    })?;
    Ok(daemon)
}

/// `ssh -W`: one forward on the client's standard streams.
fn through(bed: &Bed, agent: &Robot, to: &str) -> Result<interceptor_tests::proc::Output> {
    let cmd = Cmd::new("ssh").args(agent.words()).args(["-W", to, &agent.target()]);
    bed.at(agent, agent.dress(cmd)).stdin("ping\n").limit(SOON).run()
}

#[test]
fn a_forward_leads_only_where_a_rule_says() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (_echo, _other) = (echo(&bed, ECHO)?, echo(&bed, OTHER)?);
    let agent = bed.agent(USER)?;
    for name in ["127.0.0.1", "localhost"] {
        let out = through(&bed, &agent, &format!("{name}:{ECHO}"))?;
        assert_eq!(out.ok()?, format!("hello from {ECHO}\nping\n"), "{name}");
    }
    for to in [
        format!("127.0.0.1:{OTHER}"),
        format!("localhost:{OTHER}"),
        "192.0.2.1:80".into(),
        format!("[::1]:{ECHO}0"),
    ] {
        let out = through(&bed, &agent, &to)?;
        assert!(!out.success() && !out.stdout.contains("hello"), "{to}: {out}");
    }
    let shown = session(&bed, &format!("127.0.0.1:{OTHER}"))?.to_string();
    assert!(shown.contains("\"deny\""), "{shown}");
    // The data of a forward is recorded as a channel's is.
    assert!(whole_record(&bed)?.contains("direct-tcpip"));
    Ok(())
}

/// Even under a rule that allows every forward: it would lead past what is protected.
#[test]
fn a_forward_to_a_protected_port_of_this_host_is_never_opened() -> Result<()> {
    skip_unless_ssh!();
    let all = "[[rule]]\nname = \"all-forwards\"\neffect = \"allow\"\nrequest = \"forward\"\n\
               destinations = [\"*:*\", \"unix:**\"]\n";
    let spec = Spec::ssh().and(ServiceSpec::orders()).and_policy("all.toml", all);
    let bed = Bed::with(spec)?;
    let _other = echo(&bed, OTHER)?;
    let agent = bed.agent(USER)?;
    assert!(through(&bed, &agent, &format!("127.0.0.1:{OTHER}"))?.stdout.contains("hello"));
    let mut refused = 0;
    for port in [22, 5432] {
        for name in [
            "127.0.0.1",
            "localhost",
            HOST_V4,
            "[::1]",
            "[fd77::1]",
            "0.0.0.0",
            "127.0.0.2",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "0x7f.1",
            "[::]",
        ] {
            let out = through(&bed, &agent, &format!("{name}:{port}"))?;
            assert!(!out.success() && !out.stdout.contains("SSH-"), "{name}:{port}: {out}");
            refused += 1;
        }
    }
    let socket = bed.db().socket().display().to_string();
    let local = agent.home.join("pg.sock").display().to_string();
    let forward = format!("{local}:{socket}");
    let cmd = agent.ssh_with(&["-N", "-L", &forward], [""; 0]);
    let mut ssh = Live::start(&bed.at(&agent, cmd))?;
    wait_for("the local socket", SOON, || Ok(std::path::Path::new(&local).exists().then_some(())))?;
    let mut pg = std::os::unix::net::UnixStream::connect(&local)?;
    pg.set_read_timeout(Some(SOON))?;
    pg.write_all(&interceptor_tests::wire::SSL_REQUEST)?;
    let mut answer = [0];
    assert_eq!(pg.read(&mut answer).unwrap_or(0), 0, "PostgreSQL answered past the daemon");
    ssh.expect("open failed", SOON)?;
    // One connection for each agent's own, and none by a forward.
    let connections = bed.sshd()?.log().matches("Connection from").count();
    assert!(connections <= refused + 2, "{}", bed.sshd()?.log());
    Ok(())
}

#[test]
fn remote_forwards_x11_and_agents_are_refused_and_the_session_goes_on() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let cmd = agent.ssh_with(&["-R", "9999:127.0.0.1:1"], ["echo still-works"]);
    let out = bed.at(&agent, cmd).run()?;
    assert!(out.stdout.contains("still-works"), "{out}");
    assert!(out.stderr.contains("remote port forwarding failed"), "{out}");
    let cmd =
        agent.ssh_with(&["-R", "9999:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes"], ["true"]);
    assert!(!bed.at(&agent, cmd).run()?.success());
    let listening =
        bed.net().inside(Place::Host, || Ok(TcpStream::connect(("127.0.0.1", 9999)).is_ok()))?;
    assert!(!listening, "a remote forward listens");

    // An agent and a display of the client, if it is asked to forward them.
    let socket = agent.home.join("agent.sock");
    let ssh_agent = agent.run("ssh-agent").args(["-D", "-a"]).arg(&socket);
    let _ssh_agent = bed.at(&agent, ssh_agent).daemonize(&bed.dir().join("agent.log"))?;
    wait_for("ssh-agent", SOON, || Ok(socket.exists().then_some(())))?;
    let asking = agent.clone().with("SSH_AUTH_SOCK", &socket.display().to_string());
    for options in [&["-A"][..], &["-X"], &["-Y"]] {
        let cmd = asking.clone().with("DISPLAY", ":1").ssh_with(options, ["env; echo still-works"]);
        let out = bed.at(&asking, cmd).run()?;
        assert!(out.stdout.contains("still-works"), "{options:?}: {out}");
        for name in ["SSH_AUTH_SOCK", "DISPLAY"] {
            assert!(!out.stdout.contains(name), "{options:?}: {name} is set: {out}");
        }
    }
    let record = whole_record(&bed)?;
    for class in ["remote-forward", "agent"] {
        assert!(record.contains(class), "no {class} in the record");
    }
    Ok(())
}

#[test]
fn a_jump_leads_to_an_allowed_host_and_the_second_leg_is_the_agents_own() -> Result<()> {
    skip_unless_ssh!();
    // Behind the host: another sshd, to which a rule allows the jump.
    let bed = Bed::with(Spec::ssh())?;
    let place = bed.dir().join("behind");
    let netns = bed.net().name(Place::Host);
    let behind = interceptor_tests::sshd::Sshd::start(&place, &netns, 2222, bed.accounts()?)?;
    let agent = bed.agent(USER)?;
    behind.authorize(&agent.key.public()?)?;
    let known = format!("{}{}", bed.sshd()?.known_hosts()?, behind.known_hosts()?);
    agent.write(".ssh/known_hosts", known)?;
    agent.config("BatchMode yes\nStrictHostKeyChecking yes\n")?;
    let jump = agent.target();
    let run = |option: &[&str]| -> Result<interceptor_tests::proc::Output> {
        let cmd = Cmd::new("ssh").args(option).args(["-p", "2222", "analyst@127.0.0.1", "id -un"]);
        bed.at(&agent, agent.dress(cmd)).run()
    };
    assert_eq!(run(&["-J", &jump])?.ok()?, "analyst\n");
    let proxy = format!("ProxyCommand=ssh -W %h:%p {jump}");
    assert_eq!(run(&["-o", &proxy])?.ok()?, "analyst\n");
    assert!(behind.log().contains("Accepted publickey for analyst"), "{}", behind.log());
    Ok(())
}

#[test]
fn several_sessions_share_a_connection_and_are_judged_one_by_one() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?.option("ControlPath=~/.ssh/cm");
    let cmd = agent.ssh_with(&["-M", "-N"], [""; 0]);
    let master = Live::start(&bed.at(&agent, cmd))?;
    wait_for("the master", SOON, || Ok(agent.home.join(".ssh/cm").exists().then_some(())))?;
    assert_eq!(bed.ssh(&agent, "echo one")?.ok()?, "one\n");
    crate::assert_refused(&bed.ssh(&agent, "rm x")?);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|n| {
                let (bed, agent) = (&bed, &agent);
                scope.spawn(move || bed.ssh(agent, &format!("sleep 0.2; echo {n}; exit {n}")))
            })
            .collect();
        for (n, client) in clients.into_iter().enumerate() {
            let out = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            assert_eq!((out.code, out.stdout.trim()), (i32::try_from(n).ok(), &*n.to_string()));
        }
        anyhow::Ok(())
    })?;
    // One hold on one channel stops none of the others.
    let mut held = bed.live_ssh(&agent, &[], &["touch held-file; echo it ran"])?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    let next = bed.ssh(&agent, "echo next")?;
    assert!(next.success() && next.took < Duration::from_secs(5), "{next}");
    bed.interceptor()?.approve(&id)?.ok()?;
    held.expect("it ran", SOON)?;
    drop(held);
    let sessions = bed.interceptor()?.sessions()?;
    assert_eq!(sessions.len(), 1, "they did not share one connection");
    let cmd = agent.ssh_with(&["-O", "exit"], [""; 0]);
    bed.at(&agent, cmd).run()?;
    master.finish(SOON).context("the master's end")?;
    Ok(())
}

#[test]
fn a_dynamic_forward_is_judged_at_every_connection() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let (_echo, _other) = (echo(&bed, ECHO)?, echo(&bed, OTHER)?);
    let agent = bed.agent(USER)?;
    let cmd = agent.ssh_with(&["-N", "-D", "127.0.0.1:1080"], [""; 0]);
    let _ssh = Live::start(&bed.at(&agent, cmd))?;
    let socks = |port: u16| -> Result<Vec<u8>> {
        bed.net().inside(Place::Agent, || {
            let mut tcp = wait_for("the SOCKS port", SOON, || {
                Ok(TcpStream::connect(("127.0.0.1", 1080)).ok())
            })?;
            tcp.set_read_timeout(Some(SOON))?;
            tcp.write_all(&[5, 1, 0])?;
            tcp.read_exact(&mut [0; 2])?;
            tcp.write_all(&[&[5, 1, 0, 1, 127, 0, 0, 1][..], &port.to_be_bytes()].concat())?;
            let mut answer = vec![0; 64];
            let mut n = 0;
            while n < 10 + 5 {
                match tcp.read(&mut answer[n..]) {
                    Ok(0) | Err(_) => break,
                    Ok(more) => n += more,
                }
            }
            answer.truncate(n);
            Ok(answer)
        })
    };
    assert!(String::from_utf8_lossy(&socks(ECHO)?).contains("hello"));
    assert!(!String::from_utf8_lossy(&socks(OTHER)?).contains("hello"));
    assert!(
        String::from_utf8_lossy(&socks(ECHO)?).contains("hello"),
        "a refusal ended the session"
    );
    Ok(())
}
