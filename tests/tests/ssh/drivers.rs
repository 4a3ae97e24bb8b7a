//! The libraries that agents really use, each through a small script of ordinary work.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::clients::{self, Script};
use interceptor_tests::proc::wait_for;
use interceptor_tests::robot::Robot;
use interceptor_tests::tokens::Claims;
use serde_json::Value;

use crate::{SOON, USER, card};

/// A bed with what the scripts look at.
fn bed() -> Result<Bed> {
    let bed = Bed::with(Spec::ssh().presenting())?;
    let sshd = bed.sshd()?;
    sshd.put(USER, "card", format!("card {} end\n", card()))?;
    sshd.put(USER, "readme", "what stands in readme\n")?;
    let inbox = sshd.home(USER).join("inbox");
    std::fs::create_dir(&inbox)?;
    interceptor_tests::accounts::give(&inbox, interceptor_tests::accounts::uid(USER)?)?;
    Ok(bed)
}

/// What every script prints, in whatever way it came in.
fn judge(bed: &Bed, out: &Value) -> Result<()> {
    assert_eq!(out["out"], "out\n", "{out}");
    assert_eq!(out["err"], "err\n", "{out}");
    assert_eq!(out["code"], 3, "{out}");
    assert_eq!(out["stdin"], "12345", "{out}");
    assert!(out["denied"].as_str().is_some_and(|m| m.contains("interceptor:")), "{out}");
    assert!(out["denied_code"].as_i64().is_some_and(|c| c != 0), "{out}");
    let masked = out["card"].as_str().unwrap_or_default();
    assert!(masked.starts_with("card ") && masked.ends_with(" end\n"), "{out}");
    assert!(!out.to_string().contains(&card()), "{out}");
    if !out["signal"].is_null() {
        assert_eq!(out["signal"], "TERM", "{out}");
    }
    assert_eq!(out["readme"], "what stands in readme\n", "{out}");
    assert_eq!(out["sftp_denied"], true, "{out}");
    let put = std::fs::read_to_string(bed.sshd()?.home(USER).join("inbox/by-driver"))?;
    assert_eq!(put, "by driver\n");
    assert_eq!(out["next"], "next\n", "{out}");
    Ok(())
}

/// Runs a script as it is usually used, with the password if one is given.
fn drive(script: Script, enter: impl FnOnce(&Bed) -> Result<(Robot, String)>) -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let (robot, password) = enter(&bed)?;
    let begun = std::time::Instant::now();
    if let Some(out) = clients::ssh_script(&bed, &robot, script, &[&password])? {
        judge(&bed, &out)?;
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    Ok(())
}

fn by_certificate(bed: &Bed) -> Result<(Robot, String)> {
    Ok((bed.agent(USER)?, String::new()))
}

fn by_password(bed: &Bed) -> Result<(Robot, String)> {
    let robot = bed.robot(USER)?;
    let token = bed.token(&Claims::ssh())?;
    // No key at all for the library to find.
    for file in ["id_ecdsa", "id_ecdsa.pub"] {
        std::fs::remove_file(robot.home.join(".ssh").join(file))?;
    }
    Ok((robot, token))
}

#[test]
fn paramiko_with_the_certificate_it_finds() -> Result<()> {
    drive(clients::PARAMIKO, by_certificate)
}

#[test]
fn paramiko_with_the_token_as_password() -> Result<()> {
    drive(clients::PARAMIKO, by_password)
}

/// paramiko's own order: keys of the agent first, then those it finds, then the password. A
/// server that answers its second service request with silence hangs it here.
#[test]
fn paramiko_with_strange_keys_in_its_agent_and_then_the_password() -> Result<()> {
    skip_unless_ssh!();
    let bed = bed()?;
    let robot = bed.robot(USER)?;
    let socket = robot.home.join("agent.sock");
    let cmd = robot.run("ssh-agent").args(["-D", "-a"]).arg(&socket);
    let _ssh_agent = bed.at(&robot, cmd).daemonize(&bed.dir().join("agent.log"))?;
    wait_for("ssh-agent", SOON, || Ok(socket.exists().then_some(())))?;
    let robot = robot.with("SSH_AUTH_SOCK", &socket.display().to_string());
    for n in 0..2 {
        let path = robot.home.join(format!("other{n}"));
        let key = interceptor_tests::sshkey::SshKey::elsewhere(&path, robot.uid)?;
        bed.at(&robot, robot.run("ssh-add").arg("-q").arg(key.path())).ok()?;
    }
    let token = bed.token(&Claims::ssh())?;
    let begun = std::time::Instant::now();
    if let Some(out) = clients::ssh_script(&bed, &robot, clients::PARAMIKO, &[&token])? {
        judge(&bed, &out)?;
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn asyncssh_with_the_certificate_it_finds() -> Result<()> {
    drive(clients::ASYNCSSH, by_certificate)
}

#[test]
fn asyncssh_with_the_token_as_password() -> Result<()> {
    drive(clients::ASYNCSSH, by_password)
}

#[test]
fn node_ssh2_with_the_token_as_password() -> Result<()> {
    drive(clients::SSH2, by_password)
}

#[test]
fn node_ssh2_with_a_plain_key_whose_token_was_presented() -> Result<()> {
    drive(clients::SSH2, |bed| {
        let robot = bed.robot(USER)?;
        let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
        let answer = interceptor_tests::present::post(bed, &robot, "/v1/present", &token, true)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        Ok((robot, String::new()))
    })
}
