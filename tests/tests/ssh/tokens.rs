//! Tokens of every wrong kind, in the certificates of good keys.

use anyhow::Result;
use interceptor_tests::accounts::{ANALYST, VAULT};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::net::{HOST_V6, Place};
use interceptor_tests::sshkey::Certificate;
use interceptor_tests::tokens::{Claims, now};
use serde_json::json;

use crate::{SOON, USER, session};

fn cases() -> Vec<(&'static str, Claims)> {
    let good = Claims::ssh;
    vec![
        ("TOKEN_EXPIRED", good().shifted(-900)),
        ("TOKEN_NOT_YET", good().shifted(900)),
        ("TOKEN_LIFETIME", good().with("exp", now() + 90_000)),
        ("TOKEN_AUDIENCE", good().with("aud", "api://orders-db")),
        ("TOKEN_AUDIENCE", good().with("aud", json!(["api://host-ssh", "api://orders-db"]))),
        ("TOKEN_ISSUER", good().with("iss", "https://elsewhere.example.com/oauth2/default")),
        ("TOKEN_SIGNATURE", good().sign("foreign")),
        ("TOKEN_ALGORITHM", good().sign("none")),
        ("TOKEN_TYPE", good().header("typ", "dpop+jwt")),
        ("TOKEN_SCOPE_EXCEEDED", good().with("scp", json!(["db.orders"]))),
        ("TOKEN_CLAIM", good().without("jti")),
        ("AGENT_UNKNOWN", good().with("cid", "0oa-nobody")),
    ]
}

#[test]
fn wrong_tokens_are_refused_by_their_code() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    for (code, claims) in cases() {
        let out = bed.ssh(&bed.agent_with(USER, claims)?, "true")?;
        assert!(!out.success() && out.stderr.contains(code), "{code}: {out}");
        session(&bed, code)?;
    }
    assert_eq!(bed.sshd()?.accepted(), 0, "{}", bed.sshd()?.log());
    Ok(())
}

#[test]
fn a_copied_unbound_token_is_found_at_its_second_source() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let token = bed.token(&Claims::ssh())?;
    let first = bed.registered(USER)?.token(&token);
    bed.ssh(&first, "true")?.ok()?;
    bed.ssh(&first, "true")?.ok()?;
    let out = bed.ssh(&first.clone().from(Place::Other), "true")?;
    assert!(!out.success() && out.stderr.contains("TOKEN_COPIED"), "{out}");
    let out = bed.ssh(&first.host(HOST_V6), "true")?;
    assert!(!out.success() && out.stderr.contains("TOKEN_COPIED"), "{out}");
    Ok(())
}

#[test]
fn a_raw_token_stands_nowhere() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.robot(USER)?;
    let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
    let agent = robot.certified(&Certificate::good(USER, &token))?;
    bed.ssh(&agent, "env; echo done")?.ok()?;
    let by_variable = bed.token(&Claims::ssh())?;
    bed.ssh(&bed.registered(USER)?.token(&by_variable), "env; echo done")?.ok()?;
    for secret in [&token, &by_variable] {
        let signature = secret.rsplit('.').next().unwrap_or_default();
        assert!(!crate::whole_record(&bed)?.contains(signature));
        assert!(!bed.interceptor()?.log().contains(signature), "in the daemon's log");
        assert!(!bed.sshd()?.log().contains(signature), "in sshd's log");
        assert!(!crate::on_disk(&bed.interceptor()?.state(), signature)?, "in the state");
    }
    Ok(())
}

#[test]
fn which_users_an_agent_may_become_is_policy() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    assert_eq!(bed.ssh(&bed.agent(ANALYST)?, "id -un")?.ok()?.trim(), ANALYST);
    for user in [VAULT, "root", "nobody-of-that-name", "deploy ", "-oProxyCommand"] {
        let robot = bed.robot("x")?;
        let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
        let robot = robot.certified(&Certificate::good(user, &token))?;
        let words = robot.words();
        let cmd = interceptor_tests::proc::Cmd::new("ssh").args(words);
        let cmd = robot.dress(cmd.args(["-l", user, &robot.host, "id", "-un"]));
        let out = bed.at(&robot, cmd).run()?;
        assert!(!out.success() && out.stdout.is_empty(), "{user:?}: {out}");
    }
    assert_eq!(bed.sshd()?.accepted(), 1, "{}", bed.sshd()?.log());
    Ok(())
}

#[test]
fn a_session_ends_when_its_token_expires() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent_with(USER, Claims::ssh().lasting(4))?;
    let mut ssh = bed.live_ssh(&agent, &[], &["cat"])?;
    ssh.send("in time")?;
    ssh.expect("in time", SOON)?;
    let begun = std::time::Instant::now();
    let end = ssh.expect("TOKEN_EXPIRED", SOON)?;
    assert!(begun.elapsed() < std::time::Duration::from_secs(12), "{end}");
    Ok(())
}
