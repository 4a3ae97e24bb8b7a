//! What the host opens back to the agent: remote forwards, X11, the agent's keys. Refused unless
//! allowed, recorded as every channel is, and gone with the session.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use interceptor_tests::accounts::ANALYST;
use interceptor_tests::bed::{Bed, Spec, installed, skipped};
use interceptor_tests::daemon::{APPROVER, ServiceSpec, items, text};
use interceptor_tests::live::Live;
use interceptor_tests::net::Place;
use interceptor_tests::proc::wait_for;
use interceptor_tests::robot::Robot;

use crate::channels::echo_at;
use crate::{SOON, USER, whole_record};

/// A port of the agent's own machine, where something answers.
const HOME: u16 = 7000;

const BACK: &str = r#"
[[rule]]
name = "back"
effect = "allow"
service = "host-ssh"
request = "remote-forward"
destinations = ["localhost:9100-9199", "localhost:0", "unix:/tmp/*/home/*/back.sock"]

[[rule]]
name = "back-with-a-human"
effect = "hold"
service = "host-ssh"
request = "remote-forward"
destinations = "localhost:9300"
message = "who listens here waits for a human"

[[rule]]
name = "keys"
effect = "allow"
service = "host-ssh"
request = ["agent-forward", "x11"]

[[rule]]
name = "programs-that-use-them"
effect = "allow"
service = "host-ssh"
request = "exec"
programs = ["ssh-add", "xauth"]
"#;

fn bed() -> Result<Bed> {
    Bed::with(Spec::ssh().and_policy("back.toml", BACK))
}

/// A client that has the host listen as told, and does nothing else.
fn listen(bed: &Bed, agent: &Robot, forwards: &[&str]) -> Result<Live> {
    let options: Vec<&str> =
        ["-N"].into_iter().chain(forwards.iter().flat_map(|f| ["-R", *f])).collect();
    Live::start(&bed.at(agent, agent.ssh_with(&options, [""; 0])))
}

/// A connection to a port of the host from the host itself.
fn dial(bed: &Bed, port: u16) -> Result<TcpStream> {
    let tcp = bed.net().inside(Place::Host, || Ok(TcpStream::connect(("127.0.0.1", port))?))?;
    tcp.set_read_timeout(Some(SOON))?;
    tcp.set_write_timeout(Some(SOON))?;
    Ok(tcp)
}

fn dial_soon(bed: &Bed, port: u16) -> Result<TcpStream> {
    wait_for("the host to listen", SOON, || Ok(dial(bed, port).ok()))
}

fn closed_soon(bed: &Bed, port: u16) -> Result<()> {
    wait_for("the host to listen no more", SOON, || Ok(dial(bed, port).is_err().then_some(())))
}

/// Says something to what stands behind a forward to [`HOME`], and gives back all that came.
fn talk(mut stream: impl Read + Write, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut all = vec![0; format!("hello from {HOME}\n").len()];
    stream.read_exact(&mut all)?;
    assert_eq!(all, format!("hello from {HOME}\n").into_bytes());
    for part in bytes.chunks(32 << 10) {
        stream.write_all(part)?;
        let mut back = vec![0; part.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, part);
        all.extend(back);
    }
    Ok(all)
}

#[test]
fn a_remote_forward_leads_back_where_a_rule_says_and_ends_with_the_session() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?;
    let (good, bad) = (format!("9100:127.0.0.1:{HOME}"), format!("9200:127.0.0.1:{HOME}"));
    let mut ssh = listen(&bed, &agent, &[&good, &bad])?;
    ssh.expect("remote port forwarding failed for listen port 9200", SOON)?;
    let bytes: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    let all = talk(dial_soon(&bed, 9100)?, &bytes)?;
    // Several at a time, and each by itself.
    let mut others: Vec<TcpStream> = (0..5).map(|_| dial(&bed, 9100)).collect::<Result<_>>()?;
    others.iter_mut().try_for_each(|other| talk(other, b"ping").map(drop))?;
    assert!(dial(&bed, 9200).is_err(), "what was refused listens");
    drop(others);
    ssh.signal(nix::sys::signal::Signal::SIGTERM)?;
    closed_soon(&bed, 9100)?;
    drop(ssh);
    let record = whole_record(&bed)?;
    for fact in ["\"remote-forward\"", "\"deny\"", "\"allow\"", "forwarded-tcpip"] {
        assert!(record.contains(fact), "{fact} is not in the record");
    }
    assert!(record.contains("localhost:9100 from 127.0.0.1:"), "{record:.4000}");
    // Both directions, to the last byte.
    for sum in [&bytes, &all].map(|bytes| blake3::hash(bytes).to_hex().to_string()) {
        assert!(record.contains(&sum), "{sum} is not in the record");
    }
    Ok(())
}

#[test]
fn a_forward_can_be_made_and_cancelled_while_the_session_goes_on() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?.option("ControlPath=~/.ssh/cm");
    let cmd = agent.ssh_with(&["-M", "-N"], [""; 0]);
    let _master = Live::start(&bed.at(&agent, cmd))?;
    wait_for("the master", SOON, || Ok(agent.home.join(".ssh/cm").exists().then_some(())))?;
    let control = |what: &str, forward: &str| {
        let cmd = agent.ssh_with(&["-O", what, "-R", forward], [""; 0]);
        bed.at(&agent, cmd).run()
    };
    let forward = format!("9101:127.0.0.1:{HOME}");
    for _ in 0..2 {
        control("forward", &forward)?.ok()?;
        let mut running = dial(&bed, 9101)?;
        talk(&mut running, b"one")?;
        control("cancel", &forward)?.ok()?;
        closed_soon(&bed, 9101)?;
        // What came through before goes on.
        running.write_all(b"still")?;
        let mut back = [0; 5];
        running.read_exact(&mut back)?;
        assert_eq!(&back, b"still");
    }
    // A port that sshd chooses.
    let chosen = control("forward", &format!("0:127.0.0.1:{HOME}"))?.ok()?;
    let port: u16 = chosen.trim().parse().with_context(|| format!("no port: {chosen:?}"))?;
    talk(dial(&bed, port)?, b"chosen")?;
    control("cancel", &format!("{port}:127.0.0.1:{HOME}"))?;
    assert_eq!(bed.ssh(&agent, "echo next")?.ok()?, "next\n");
    assert_eq!(bed.interceptor()?.sessions()?.len(), 1);
    Ok(())
}

#[test]
fn a_socket_of_the_host_leads_back_too() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?;
    let at = |name: &str| bed.sshd().map(|sshd| sshd.home(USER).join(name));
    let (good, bad) = (at("back.sock")?, at("other.sock")?);
    let forward = |path: &std::path::Path| format!("{}:127.0.0.1:{HOME}", path.display());
    let mut ssh = listen(&bed, &agent, &[&forward(&good), &forward(&bad)])?;
    ssh.expect("remote port forwarding failed for listen path", SOON)?;
    let stream = wait_for("the socket", SOON, || Ok(UnixStream::connect(&good).ok()))?;
    stream.set_read_timeout(Some(SOON))?;
    talk(stream, b"by socket")?;
    assert!(!bad.exists(), "what was refused listens");
    ssh.signal(nix::sys::signal::Signal::SIGTERM)?;
    wait_for("the socket to be let go", SOON, || {
        Ok(UnixStream::connect(&good).is_err().then_some(()))
    })?;
    drop(ssh);
    assert!(whole_record(&bed)?.contains("forwarded-streamlocal@openssh.com"));
    Ok(())
}

/// Even under a rule that allows everything: what connects there would meet the agent.
#[test]
fn nothing_listens_on_a_protected_port_or_socket() -> Result<()> {
    skip_unless_ssh!();
    let all = "[[rule]]\nname = \"all\"\neffect = \"allow\"\nrequest = \"remote-forward\"\n\
               destinations = [\"*:*\", \"unix:**\"]\n";
    let spec = Spec::ssh().and(ServiceSpec::orders()).and_policy("all.toml", all);
    let bed = Bed::with(spec)?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?;
    let to = format!("127.0.0.1:{HOME}");
    let socket = bed.db().socket().display().to_string();
    let mut refused = 0;
    for place in ["5432", "127.0.0.3:5432", "*:5432", "22", &socket] {
        let mut ssh = listen(&bed, &agent, &[&format!("{place}:{to}")])?;
        ssh.expect("remote port forwarding failed", SOON)?;
        refused += 1;
    }
    let ssh = listen(&bed, &agent, &[&format!("9400:{to}")])?;
    talk(dial_soon(&bed, 9400)?, b"another port")?;
    ssh.signal(nix::sys::signal::Signal::SIGTERM)?;
    drop(ssh);
    let record = whole_record(&bed)?;
    assert!(record.matches("FORWARD_PROTECTED").count() >= refused, "{record:.8000}");
    Ok(())
}

#[test]
fn a_forward_that_needs_a_human_waits_and_holds_up_nothing() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?.option("ControlPath=~/.ssh/cm");
    let forward = format!("9300:127.0.0.1:{HOME}");
    let cmd = agent.ssh_with(&["-M", "-N", "-R", &forward], [""; 0]);
    let _master = Live::start(&bed.at(&agent, cmd))?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    assert!(dial(&bed, 9300).is_err(), "it listens before anybody said yes");
    // The same connection goes on meanwhile; what is asked for later is answered later.
    wait_for("the master", SOON, || Ok(agent.home.join(".ssh/cm").exists().then_some(())))?;
    assert_eq!(bed.ssh(&agent, "echo meanwhile")?.ok()?, "meanwhile\n");
    bed.interceptor()?.approve(&id)?.ok()?;
    talk(dial_soon(&bed, 9300)?, b"approved")?;
    // Denied.
    let other = bed.agent(USER)?;
    let mut ssh = listen(&bed, &other, &[&format!("9300:127.0.0.1:{HOME}")])?;
    let id = bed.interceptor()?.next_hold(SOON)?;
    bed.interceptor()?.deny(&id)?.ok()?;
    ssh.expect("remote port forwarding failed", SOON)?;
    Ok(())
}

#[test]
fn a_withdrawn_grant_ends_what_listens_under_it_and_what_came_through() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let _home = echo_at(&bed, Place::Agent, HOME)?;
    let agent = bed.agent(USER)?;
    let _ssh = listen(&bed, &agent, &[&format!("9300:127.0.0.1:{HOME}")])?;
    let interceptor = bed.interceptor()?;
    let id = interceptor.next_hold(SOON)?;
    interceptor.cli_as(APPROVER, ["approvals", "approve", &id, "--for", "10m"]).ok()?;
    let mut through = dial_soon(&bed, 9300)?;
    talk(&mut through, b"under the grant")?;
    let grants = items(interceptor.json(["approvals", "grants"])?);
    let grant = grants.first().map(|g| text(g, &["id"])).context("no grant")?;
    interceptor.cli_as(APPROVER, ["approvals", "revoke", &grant]).ok()?;
    closed_soon(&bed, 9300)?;
    assert_eq!(through.read(&mut [0]).unwrap_or(0), 0, "what came through goes on");
    Ok(())
}

#[test]
fn one_connection_listens_on_a_bounded_number_of_places() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let agent = bed.agent(USER)?;
    let forwards: Vec<String> = (9100..9140).map(|port| format!("{port}:127.0.0.1:1")).collect();
    let forwards: Vec<&str> = forwards.iter().map(String::as_str).collect();
    let mut ssh = listen(&bed, &agent, &forwards)?;
    // The client has all answers when it has the last refusal, or sooner.
    for _ in 0..8 {
        ssh.expect("remote port forwarding failed for listen port", SOON)?;
    }
    wait_for("32 places", SOON, || {
        let listening = (9100..9140).filter(|port| dial(&bed, *port).is_ok()).count();
        Ok((listening == 32).then_some(()))
    })?;
    Ok(())
}

#[test]
fn the_agents_keys_are_forwarded_where_a_rule_says() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let agent = bed.agent(USER)?;
    let socket = agent.home.join("agent.sock");
    let ssh_agent = agent.run("ssh-agent").args(["-D", "-a"]).arg(&socket);
    let _ssh_agent = bed.at(&agent, ssh_agent).daemonize(&bed.dir().join("agent.log"))?;
    wait_for("ssh-agent", SOON, || Ok(socket.exists().then_some(())))?;
    let agent = agent.with("SSH_AUTH_SOCK", &socket.display().to_string());
    let path = agent.home.join("carried");
    let key = interceptor_tests::sshkey::SshKey::elsewhere(&path, agent.uid)?;
    bed.at(&agent, agent.run("ssh-add").arg("-q").arg(key.path())).ok()?;
    let here = bed.at(&agent, agent.run("ssh-add").arg("-l")).ok()?;
    let far = |options: &[&str]| bed.at(&agent, agent.ssh_with(options, ["ssh-add -l"])).run();
    let there = far(&["-A"])?;
    assert_eq!(there.ok()?, here);
    // Who does not ask for it does not get it.
    assert!(!far(&["-a"])?.success());
    let record = whole_record(&bed)?;
    assert!(record.contains("auth-agent@openssh.com"), "{record:.4000}");
    Ok(())
}

/// MIT-MAGIC-COOKIE-1, as a program on the host would show it (X11 protocol, section 8).
fn x11_hello(cookie: &str) -> Result<Vec<u8>> {
    let name = b"MIT-MAGIC-COOKIE-1";
    let mut hello = vec![b'l', 0, 11, 0, 0, 0, 18, 0, 16, 0, 0, 0];
    hello.extend(name);
    hello.extend([0; 2]);
    for at in (0..cookie.len()).step_by(2) {
        hello.push(u8::from_str_radix(cookie.get(at..at + 2).context("a short cookie")?, 16)?);
    }
    Ok(hello)
}

#[test]
fn x11_leads_back_to_the_agents_display_where_a_rule_says() -> Result<()> {
    skip_unless_ssh!();
    if !installed("xauth") {
        skipped("needs xauth: apt-get install xauth");
        return Ok(());
    }
    let bed = bed()?;
    // A made-up X server, display 77 of the agent's machine.
    let _display = echo_at(&bed, Place::Agent, 6077)?;
    let agent = bed.agent(ANALYST)?.with("DISPLAY", "127.0.0.1:77");
    let mut ssh =
        bed.live_ssh(&agent, &["-Y"], &["echo at $DISPLAY; xauth list; echo all; cat"])?;
    let said = ssh.expect("\nall", SOON)?;
    let display = said.split("at localhost:").nth(1).and_then(|s| s.split('.').next());
    let display: u16 = display.with_context(|| format!("no display: {said}"))?.trim().parse()?;
    let cookie = said.split_whitespace().skip_while(|w| !w.starts_with("MIT-MAGIC")).nth(1);
    let hello = x11_hello(cookie.with_context(|| format!("no cookie: {said}"))?)?;
    let mut x = dial(&bed, 6000 + display)?;
    x.write_all(&hello)?;
    let mut answer = vec![0; "hello from 6077\n".len() + hello.len()];
    x.read_exact(&mut answer)?;
    assert!(answer.starts_with(b"hello from 6077\n"), "{answer:?}");
    drop(x);
    ssh.finish(SOON)?;
    closed_soon(&bed, 6000 + display)?;
    let record = whole_record(&bed)?;
    assert!(record.contains("\"x11\""), "{record:.4000}");
    Ok(())
}
