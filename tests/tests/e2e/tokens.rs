//! Tokens of every wrong kind: a clear error, a recorded event, nothing reaches the server.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::net::{HOST_V6, Place};
use interceptor_tests::story::{refused, session_that};
use interceptor_tests::tokens::{Claims, now};
use serde_json::json;

fn cases() -> Vec<(&'static str, Claims)> {
    let good = Claims::reporter;
    vec![
        ("TOKEN_EXPIRED", good().shifted(-900)),
        ("TOKEN_NOT_YET", good().shifted(900)),
        ("TOKEN_NOT_YET", good().with("nbf", now() + 900)),
        ("TOKEN_STALE", good().with("iat", now() - 1500)),
        ("TOKEN_LIFETIME", good().with("exp", now() + 90_000)),
        ("TOKEN_AUDIENCE", good().with("aud", "api://something-else")),
        ("TOKEN_AUDIENCE", good().with("aud", json!(["api://orders-db", "api://reports-db"]))),
        ("TOKEN_ISSUER", good().with("iss", "https://elsewhere.example.com/oauth2/default")),
        ("TOKEN_SIGNATURE", good().sign("foreign")),
        ("TOKEN_ALGORITHM", good().sign("none")),
        ("TOKEN_ALGORITHM", good().sign("hs256")),
        ("TOKEN_KEY_UNKNOWN", good().header("kid", "nobody")),
        ("TOKEN_TYPE", good().header("typ", "dpop+jwt")),
        ("TOKEN_CRITICAL", good().header("crit", json!(["x"]))),
        ("TOKEN_SCOPE_EXCEEDED", good().with("scp", json!(["db.other"]))),
        ("TOKEN_CLAIM", good().without("jti")),
        ("TOKEN_CLAIM", good().without("sub")),
        ("AGENT_UNKNOWN", good().with("cid", "0oa-nobody")),
        ("TOKEN_PROOF_REQUIRED", good().with("cnf", json!({"jkt": "abc"}))),
    ]
}

#[test]
fn wrong_tokens_are_refused_by_their_code() -> Result<()> {
    skip_unless_possible!();
    let spec = Spec::default().service(|s| s.settings = "max_token_age = \"20m\"".into());
    let bed = Bed::with(spec)?;
    for (code, claims) in cases() {
        let out = bed.psql(&bed.login_with("app_ro", &claims)?, "SELECT 1")?;
        refused(&out, code)?;
        session_that(&bed, code)?;
    }
    let good = bed.token(&Claims::reporter())?;
    let texts = [
        ("TOKEN_OPAQUE", "hunter2".to_owned()),
        ("TOKEN_MALFORMED", format!("{good}.x")),
        ("TOKEN_MALFORMED", good.replace('.', ".=")),
        ("TOKEN_TOO_LARGE", format!("{good}{}", "A".repeat(20_000))),
    ];
    for (code, token) in texts {
        let out = bed.psql(&bed.login("app_ro")?.password(&token), "SELECT 1")?;
        assert!(!out.success() && out.stderr.contains("TOKEN_"), "{code}: {out}");
    }
    // Admin queries of this test aside, nobody has reached the server.
    let app = bed.db().log().matches("user=app_ro").count();
    assert_eq!(app, 0, "{}", bed.db().log());
    assert!(!bed.interceptor()?.log().contains(&good), "a raw token stands in the log");
    Ok(())
}

#[test]
fn a_token_belongs_to_the_source_that_used_it_first() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    let one = "SELECT 1";
    assert!(bed.psql(&login, one)?.success() && bed.psql(&login, one)?.success());
    refused(&bed.psql(&login.clone().from(Place::Other), one)?, "TOKEN_COPIED")?;
    // IPv6 of the same machine is another source: nothing ties the two together.
    refused(&bed.psql(&login.clone().host(HOST_V6), one)?, "TOKEN_COPIED")?;
    bed.interceptor_mut()?.kill();
    bed.interceptor_mut()?.start()?;
    refused(&bed.psql(&login.clone().from(Place::Other), one)?, "TOKEN_COPIED")?;
    assert!(bed.psql(&login, one)?.success());
    session_that(&bed, "TOKEN_COPIED")?;

    // An agent behind an address set is one source.
    let cluster = bed.login_with("app_ro", &Claims::reporter().with("cid", "0oa-cluster"))?;
    assert!(bed.psql(&cluster, one)?.success());
    assert!(bed.psql(&cluster.clone().from(Place::Other), one)?.success());
    refused(&bed.psql(&cluster.host(HOST_V6), one)?, "AGENT_SOURCE")?;

    // Loopback of the host is one source per operating system user.
    let local = bed.login("app_ro")?.from(Place::Host).host("127.0.0.1");
    assert!(bed.psql(&local, one)?.success());
    assert!(bed.psql(&local.clone().host("::1"), one)?.success());
    Ok(())
}

#[test]
fn machines_and_delegates_are_told_apart() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let delegate = Claims::reporter()
        .with("cid", "0oa-console")
        .with("act", json!({"sub": "0oa-delegate", "act": {"sub": "0oa-planner"}}));
    for (claims, agent) in [(Claims::machine(), "etl"), (delegate, "delegate")] {
        let login = bed.login_with("app_ro", &claims)?;
        let marker = format!("'from {agent}'");
        bed.psql(&login, &format!("SELECT {marker}"))?.ok()?;
        let session = bed.interceptor()?.session(&session_that(&bed, &marker)?)?;
        assert!(session.to_string().contains(&format!("\"agent\":\"{agent}\"")), "{session}");
    }
    Ok(())
}

#[test]
fn a_session_ends_when_its_token_expires() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let mut psql = bed.live_psql(&bed.login_with("app_ro", &Claims::reporter().lasting(3))?)?;
    assert!(psql.ask("SELECT 'in time';", crate::SOON)?.contains("in time"));
    let end = {
        std::thread::sleep(std::time::Duration::from_secs(4));
        psql.send("SELECT 'too late';")?;
        psql.finish(crate::SOON)?
    };
    assert!(!end.contains("too late\n") || end.contains("TOKEN_EXPIRED"), "{end}");
    Ok(())
}

#[test]
fn known_keys_outlive_the_issuer() -> Result<()> {
    skip_unless_possible!();
    let mut bed = Bed::new()?;
    assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success());
    bed.issuer_mut()?.process().kill();
    assert!(bed.psql(&bed.login("app_ro")?, "SELECT 1")?.success());
    bed.interceptor_mut()?.stop();
    bed.interceptor_mut()?.start()?;
    let out = bed.psql(&bed.login("app_ro")?, "SELECT 1")?;
    assert!(out.success(), "the key set kept on disk was not used: {out}");
    Ok(())
}
