//! Certificates of every wrong kind: a clear refusal, a recorded event, nothing reaches sshd.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::robot::Robot;
use interceptor_tests::sshkey::{Certificate, SshKey};
use interceptor_tests::tokens::Claims;

use crate::USER;

/// A certificate of an agent whose token is good, spoiled in one way.
fn attempt(bed: &Bed, spoil: impl FnOnce(&Robot, &mut Certificate) -> Result<()>) -> Result<Robot> {
    let robot = bed.robot(USER)?;
    let token = bed.token(&Claims::ssh().bound(&robot.key.thumbprint()?))?;
    let mut wish = Certificate::good(USER, &token);
    spoil(&robot, &mut wish)?;
    robot.certified(&wish)
}

#[test]
fn only_a_good_certificate_opens() -> Result<()> {
    skip_unless_ssh!();
    type Spoil = fn(&Robot, &mut Certificate) -> Result<()>;
    let mut bed = Bed::with(Spec::ssh())?;
    bed.ssh(&attempt(&bed, |_, _| Ok(()))?, "true")?.ok()?;
    let cases: &[(&str, Spoil)] = &[
        ("a host certificate", |_, wish| {
            wish.host = true;
            // ssh-keygen gives host certificates no extensions at its command line.
            wish.options.clear();
            Ok(())
        }),
        ("expired", |_, wish| {
            wish.validity = "-10m:-5m".into();
            Ok(())
        }),
        ("not yet valid", |_, wish| {
            wish.validity = "+5m:+10m".into();
            Ok(())
        }),
        ("for another user", |_, wish| {
            wish.principals = "analyst".into();
            Ok(())
        }),
        ("for nobody", |_, wish| {
            wish.principals = String::new();
            Ok(())
        }),
        ("an unknown critical option", |_, wish| {
            wish.options.push("critical:future@example.com=1".into());
            Ok(())
        }),
        ("a command that it forces", |_, wish| {
            wish.options.push("force-command=true".into());
            Ok(())
        }),
        ("an address from which it may not come", |_, wish| {
            wish.options.push("source-address=192.0.2.0/24".into());
            Ok(())
        }),
        ("no token", |_, wish| {
            wish.options.clear();
            Ok(())
        }),
        ("no token but text", |_, wish| {
            wish.options = Certificate::good(USER, "hunter2").options;
            Ok(())
        }),
        ("signed by another key", |robot, wish| {
            let other = SshKey::elsewhere(&robot.home.join("other"), robot.uid)?;
            wish.signer = Some(other.path().into());
            Ok(())
        }),
    ];
    for (what, spoil) in cases {
        let robot = attempt(&bed, *spoil)?;
        let out = bed.ssh(&robot, "true")?;
        assert!(!out.success() && out.stderr.contains("Permission denied"), "{what}: {out}");
        assert!(bed.ssh(&bed.agent(USER)?, "true")?.success(), "after {what}");
    }
    // sshd has seen the good ones only.
    let accepted = bed.sshd()?.accepted();
    assert_eq!(accepted, 1 + cases.len(), "{}", bed.sshd()?.log());
    assert_eq!(bed.sshd()?.log().matches("Failed publickey").count(), 0);
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn a_certificate_whose_key_is_not_the_tokens_is_refused() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    // A stolen token: in a certificate of the thief's own key.
    let (owner, thief) = (bed.robot(USER)?, bed.robot(USER)?);
    let stolen = bed.token(&Claims::ssh().bound(&owner.key.thumbprint()?))?;
    let thief = thief.certified(&Certificate::good(USER, &stolen))?;
    let out = bed.ssh(&thief, "true")?;
    assert!(!out.success() && out.stderr.contains("TOKEN_PROOF_REQUIRED"), "{out}");
    // The record says that it is a copy, whose, and beside which key; the thief is not told.
    let shown = crate::session(&bed, "TOKEN_PROOF_REQUIRED")?.to_string();
    let (bound, beside) = (owner.key.thumbprint()?, thief.key.thumbprint()?);
    for fact in ["a copy of a bound token", &bound, &beside, "\"alert\""] {
        assert!(shown.contains(fact), "{fact} is not in {shown:.4000}");
    }
    assert!(!out.stderr.contains("a copy of") && !out.stderr.contains(&bound), "{out}");
    // The owner is not locked out by it.
    bed.ssh(&owner.certified(&Certificate::good(USER, &stolen))?, "true")?.ok()?;
    Ok(())
}

#[test]
fn a_token_without_a_key_is_no_more_than_its_bearer() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.robot(USER)?;
    let token = bed.token(&Claims::ssh())?;
    let robot = robot.certified(&Certificate::good(USER, &token))?;
    // In a certificate an unbound token proves its bearer as a password does: both are taken
    // or both are not, and never as a bound one.
    let out = bed.ssh(&robot, "echo unbound-token")?;
    if out.success() {
        let shown = crate::session(&bed, "unbound-token")?.to_string();
        assert!(!shown.contains("\"jkt\""), "{shown}");
    }
    Ok(())
}

#[test]
fn sshd_sees_who_acts_and_its_certificate_is_short_lived() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    bed.ssh(&agent, "echo marker-key-id")?.ok()?;
    let id = interceptor_tests::story::session_that(&bed, "marker-key-id")?;
    let log = bed.sshd()?.log();
    let line = log.lines().find(|l| l.contains("Accepted publickey")).unwrap_or_default();
    for fact in [&*id, "alice@example.com", "reporter", "CERT", "127.0.0.1"] {
        assert!(line.contains(fact), "{fact} is not in {line:?}\n{log}");
    }
    // A minute of validity, one principal, nothing but what the session needs.
    let shown = bed.interceptor()?.session(&id)?.to_string();
    assert!(shown.contains("upstream.open"), "{shown}");
    Ok(())
}
