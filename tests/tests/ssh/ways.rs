//! Every way for a token to reach the server, with `BatchMode=yes` and stock clients, and which
//! of them a bound token may take.

use anyhow::Result;
use interceptor_tests::accounts::write_as;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::live::Live;
use interceptor_tests::net::{HOST_V4, Place};
use interceptor_tests::proc::{Output, wait_for};
use interceptor_tests::robot::Robot;
use interceptor_tests::sshkey::{Certificate, Kind};
use interceptor_tests::tokens::Claims;
use interceptor_tests::{clients, present};

use crate::{SOON, USER, session};

/// The record says by which way a token came.
fn came_by(bed: &Bed, marker: &str, way: &str) -> Result<()> {
    let shown = session(bed, marker)?.to_string();
    let fact = format!("\"way\":\"{way}\"");
    anyhow::ensure!(shown.contains(&fact), "{fact} is not in the record:\n{shown}");
    Ok(())
}

#[test]
fn a_bound_certificate_of_every_kind_of_key() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    for kind in [Kind::P256, Kind::Rsa, Kind::Ed25519] {
        let robot = bed.robot_with(USER, kind)?;
        let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
        let agent = robot.certified(&Certificate::good(USER, &token))?;
        let marker = format!("by-certificate-{kind:?}");
        let out = bed.ssh(&agent, &format!("echo {marker}"))?;
        assert!(out.success() && out.stderr.is_empty(), "{kind:?}: {out}");
        came_by(&bed, &marker, "certificate")?;
    }
    Ok(())
}

#[test]
fn a_certificate_from_an_ssh_agent_with_and_without_plain_keys_before_it() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.agent(USER)?;
    let socket = robot.home.join("agent.sock");
    let cmd = robot.run("ssh-agent").args(["-D", "-a"]).arg(&socket);
    let _ssh_agent = bed.at(&robot, cmd).daemonize(&bed.dir().join("agent.log"))?;
    wait_for("ssh-agent", SOON, || Ok(socket.exists().then_some(())))?;
    let robot = robot.with("SSH_AUTH_SOCK", &socket.display().to_string());
    // Keys that the server does not know come first.
    for n in 0..3 {
        let path = robot.home.join(format!("other{n}"));
        let key = interceptor_tests::sshkey::SshKey::elsewhere(&path, robot.uid)?;
        bed.at(&robot, robot.run("ssh-add").arg("-q").arg(key.path())).ok()?;
    }
    bed.at(&robot, robot.run("ssh-add").arg("-q").arg(robot.key.path())).ok()?;
    for file in [robot.key.path().to_owned(), robot.key.certificate()] {
        std::fs::rename(&file, robot.home.join(file.file_name().unwrap_or_default()))?;
    }
    let out = bed.ssh(&robot, "echo by-ssh-agent")?;
    assert!(out.success() && out.stderr.is_empty(), "{out}");
    came_by(&bed, "by-ssh-agent", "certificate")?;
    Ok(())
}

#[test]
fn a_registered_key_and_the_variable_that_debians_client_sends() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.registered(USER)?;
    // The key alone opens nothing.
    let out = bed.ssh(&agent, "echo too-early")?;
    assert!(!out.success() && !out.stdout.contains("too-early"), "{out}");
    let token = bed.token(&Claims::ssh())?;
    let out = bed.ssh(&agent.clone().token(&token), "echo by-variable")?;
    assert!(out.success() && out.stderr.is_empty(), "{out}");
    came_by(&bed, "by-variable", "registered-key")?;
    // Any name that begins with LC_ will do, as Debian's server and client have it.
    let token = bed.token(&Claims::ssh())?;
    let out = bed.ssh(&agent.with("LC_MY_AGENT", &token), "env; echo by-another")?;
    if out.success() {
        assert!(!out.stdout.contains(&token[..40]), "{out}");
    }
    // A key that nobody registered does not even come to that.
    let token = bed.token(&Claims::ssh())?;
    let out = bed.ssh(&bed.robot(USER)?.token(&token), "echo by-nobody")?;
    assert!(!out.success() && out.stderr.contains("Permission denied"), "{out}");
    Ok(())
}

#[test]
fn a_long_token_in_the_variable_arrives_whole() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.registered(USER)?;
    let groups: Vec<String> = (0..120).map(|n| format!("a-group-of-some-length-{n:04}")).collect();
    let token = bed.token(&Claims::ssh().with("groups", groups))?;
    assert!(token.len() > 3000, "{}", token.len());
    bed.ssh(&agent.token(&token), "true")?.ok()?;
    Ok(())
}

/// Presents a robot's bound token beforehand.
fn presented(bed: &Bed, robot: &Robot) -> Result<present::Answer> {
    let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
    present::post(bed, robot, "/v1/present", &token, true)
}

fn with_present() -> Result<Bed> {
    Bed::with(Spec::ssh().presenting())
}

#[test]
fn a_plain_key_whose_token_was_presented_beforehand() -> Result<()> {
    skip_unless_ssh!();
    let bed = with_present()?;
    for kind in [Kind::P256, Kind::Rsa] {
        let robot = bed.robot_with(USER, kind)?;
        assert!(!bed.ssh(&robot, "true")?.success(), "before it was presented");
        let answer = presented(&bed, &robot)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        let marker = format!("by-presented-{kind:?}");
        let out = bed.ssh(&robot, &format!("echo {marker}"))?;
        assert!(out.success() && out.stderr.is_empty(), "{out}");
        came_by(&bed, &marker, "presented-key")?;
        // Again, and not from elsewhere.
        bed.ssh(&robot, "true")?.ok()?;
        let out = bed.ssh(&robot.from(Place::Other), "true")?;
        assert!(!out.success(), "{out}");
    }
    Ok(())
}

/// A client that answers questions by a program, as ssh does without a terminal.
fn asking(bed: &Bed, robot: &Robot, secret: &str, command: &str) -> Result<Output> {
    let askpass = robot.home.join("askpass");
    let file = robot.write("secret", secret)?;
    // Asked again for more it gives the next 1023 bytes, as a person would.
    let text = format!(
        "#!/bin/sh\ncase \"$1\" in *continued*) n=$(cat {home}/n);; *) n=0;; esac\n\
         echo $((n + 1)) > {home}/n\ntail -c +$((n * 1023 + 1)) {file} | head -c 1023\n",
        home = robot.home.display(),
        file = file.display()
    );
    write_as(&askpass, text, robot.uid)?;
    std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut robot = robot.clone().with("SSH_ASKPASS", &askpass.display().to_string());
    robot = robot.with("SSH_ASKPASS_REQUIRE", "force").with("DISPLAY", ":0");
    robot.options = vec!["StrictHostKeyChecking=yes".into(), "NumberOfPasswordPrompts=1".into()];
    bed.ssh(&robot, command)
}

#[test]
fn a_one_time_ticket_as_the_password() -> Result<()> {
    skip_unless_ssh!();
    let bed = with_present()?;
    let robot = bed.robot(USER)?;
    let token = bed.token(&Claims::ssh())?;
    let ticket = || -> Result<String> {
        let answer = present::post(&bed, &robot, "/v1/ticket", &token, false)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok(answer.body["ticket"].as_str().unwrap_or_default().to_owned())
    };
    let one = ticket()?;
    assert_eq!(one.len(), 43, "{one}");
    let out = asking(&bed, &robot, &one, "echo by-ticket")?;
    assert_eq!(out.ok()?, "by-ticket\n");
    came_by(&bed, "by-ticket", "ticket")?;
    assert!(!asking(&bed, &robot, &one, "echo twice")?.success(), "a ticket was taken twice");
    let one = ticket()?;
    let out = asking(&bed, &robot.clone().from(Place::Other), &one, "echo elsewhere")?;
    assert!(!out.success(), "a ticket was taken from elsewhere: {out}");
    Ok(())
}

#[test]
fn a_token_typed_at_the_prompts_of_openssh_which_cut_it() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let groups: Vec<String> = (0..60).map(|n| format!("a-group-of-some-length-{n:04}")).collect();
    for claims in [Claims::ssh(), Claims::ssh().with("groups", groups)] {
        let robot = bed.robot(USER)?.option("PreferredAuthentications=keyboard-interactive");
        let token = bed.token(&claims)?;
        let out = asking(&bed, &robot, &token, "echo by-prompts")?;
        assert!(out.success(), "{} bytes: {out}", token.len());
        came_by(&bed, "by-prompts", "keyboard-interactive")?;
    }
    Ok(())
}

/// A bound token is refused on every way on which its key is not proven.
#[test]
fn a_bound_token_is_not_taken_without_its_key() -> Result<()> {
    skip_unless_ssh!();
    let bed = with_present()?;
    let owner = bed.robot(USER)?;
    let bound = || bed.token(&Claims::ssh().bound(&owner.key.thumbprint()?));
    let is_refused = |what: &str, out: &Output| {
        assert!(!out.success() && !out.stdout.contains("stolen"), "{what}: {out}");
        let known = ["TOKEN_COPIED", "TOKEN_PROOF_REQUIRED", "TOKEN_"];
        assert!(known.iter().any(|k| out.stderr.contains(k)), "{what}: {out}");
    };
    let out = bed.ssh(&bed.registered(USER)?.token(&bound()?), "echo stolen")?;
    is_refused("variable", &out);
    let thief = bed.robot(USER)?;
    let out = asking(&bed, &thief, &bound()?, "echo stolen")?;
    is_refused("keyboard-interactive", &out);
    let answer = present::post(&bed, &thief, "/v1/present", &bound()?, true)?;
    assert_ne!(answer.status, 200, "presented with another key: {answer:?}");
    if let Some(out) =
        clients::ssh_script(&bed, &thief, clients::PARAMIKO_PASSWORD, &[&bound()?, "echo stolen"])?
    {
        assert!(out["error"].is_string() && out["out"] != "stolen\n", "password: {out}");
    }
    // On the connection that proved its key the variable is as good as the certificate.
    let agent = owner.clone().certified(&Certificate::bare(USER))?;
    let _ = bed.ssh(&agent.token(&bound()?), "true")?;
    Ok(())
}

#[test]
fn the_none_method_opens_nothing_and_no_method_says_more_than_it_must() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.robot(USER)?.option("PreferredAuthentications=none");
    let out = bed.ssh(&robot, "true")?;
    assert!(!out.success() && out.stderr.contains("Permission denied"), "{out}");
    for method in ["publickey", "password", "keyboard-interactive"] {
        assert!(out.stderr.contains(method), "{method} is not offered: {out}");
    }
    for method in ["gssapi", "hostbased"] {
        assert!(!out.stderr.contains(method), "{out}");
    }
    Ok(())
}

#[test]
fn an_unknown_plain_key_costs_no_time() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    bed.ssh(&agent, "true")?.ok()?;
    let begun = std::time::Instant::now();
    for _ in 0..5 {
        bed.ssh(&agent, "true")?.ok()?;
    }
    // OpenSSH offers the plain key before its certificate every time.
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn before_its_token_a_connection_can_do_little() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.registered(USER)?;
    let forward = agent.ssh_with(&["-N", "-L", "127.0.0.1:6000:127.0.0.1:7777"], [""; 0]);
    let mut ssh = Live::start(&bed.at(&agent, forward))?;
    let _ = wait_for("the local port", SOON, || {
        let dial = || Ok(std::net::TcpStream::connect(("127.0.0.1", 6000)).ok());
        bed.net().inside(Place::Agent, dial)
    });
    // Either the connection is ended or the channel is refused; it never leads anywhere.
    assert!(ssh.expect("open failed", SOON).is_ok() || ssh.finish(SOON).is_ok());
    let cmd = agent.run("sftp").args(agent.words()).args(["-b", "-"]).arg(agent.target());
    let out = bed.at(&agent, cmd.stdin("ls\n")).run()?;
    assert!(!out.success(), "{out}");
    assert_eq!(bed.sshd()?.accepted(), 0, "{}", bed.sshd()?.log());
    let _ = HOST_V4;
    Ok(())
}
