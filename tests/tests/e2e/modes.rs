//! Observe mode, sources that stay without token, exempt sources, privileged roles.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::UpstreamKind;
use interceptor_tests::data;
use interceptor_tests::net::Place;
use interceptor_tests::story::session_that;

#[test]
fn observe_records_what_it_would_have_done_and_changes_nothing() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::default().service(|s| s.observe = true))?;
    let login = bed.login("app_admin")?;
    let real = data::customer(5);
    let out = bed.psql(&login, "SELECT email FROM customers WHERE id = 5")?.ok()?;
    assert_eq!(out.trim(), real.email);
    bed.db().admin("CREATE TABLE spare(); ALTER TABLE spare OWNER TO app_admin")?;
    bed.psql(&login, "DROP TABLE spare")?.ok()?;
    bed.psql(&login, "UPDATE orders SET status = 'observed' WHERE id = 3")?.ok()?;
    let shown = bed.interceptor()?.session(&session_that(&bed, "DROP TABLE spare")?)?.to_string();
    assert!(shown.contains("never-drop") && shown.contains("observed"), "{shown}");
    let status = bed.interceptor()?.cli(["status"]).ok()?;
    assert!(status.contains("OBSERVE"), "{status}");
    Ok(())
}

#[test]
fn observe_relays_the_clients_own_password_when_there_is_no_token() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::default().service(|s| {
        s.observe = true;
        s.upstream = UpstreamKind::Tcp;
    }))?;
    let out = bed.psql(&bed.direct("app_ro"), "SELECT 'own password'")?;
    assert_eq!(out.ok()?.trim(), "own password");
    let wrong = bed.psql(&bed.direct("app_ro").password("wrong"), "SELECT 1")?;
    assert!(!wrong.success() && wrong.stderr.contains("password authentication failed"), "{wrong}");
    let shown = bed.interceptor()?.session(&session_that(&bed, "own password")?)?.to_string();
    assert!(!shown.contains("ro-service-password"), "{shown}");
    Ok(())
}

/// Over the socket the server trusts the daemon: nobody may come in behind its back.
#[test]
fn nobody_comes_in_on_the_daemons_own_credit() -> Result<()> {
    skip_unless_possible!();
    let observed = Bed::with(Spec::default().service(|s| s.observe = true))?;
    let passed = Bed::with(Spec::default().service(|s| {
        s.tables = "[[service.passthrough]]\nrole = \"app_ro\"\nnetwork = \"10.77.0.0/24\"".into();
    }))?;
    for bed in [&observed, &passed] {
        let out = bed.psql(&bed.direct("app_ro").password("anything"), "SELECT 1")?;
        assert!(!out.success() && out.stderr.contains("NOT_AUTHENTICATED"), "{out}");
    }
    Ok(())
}

#[test]
fn passthrough_is_for_its_role_and_network_only() -> Result<()> {
    skip_unless_possible!();
    let spec = Spec::default().service(|s| {
        s.upstream = UpstreamKind::Tcp;
        s.tables =
            "[[service.passthrough]]\nrole = \"backup_job\"\nnetwork = \"10.78.0.0/24\"".into();
    });
    let bed = Bed::with(spec)?;
    let job = bed.direct("backup_job").from(Place::Other);
    assert_eq!(bed.psql(&job, "SELECT 'backup'")?.ok()?.trim(), "backup");
    for wrong in [bed.direct("backup_job"), bed.direct("app_ro").from(Place::Other)] {
        let out = bed.psql(&wrong, "SELECT 1")?;
        assert!(!out.success() && out.stderr.contains("TOKEN_"), "{out}");
    }
    let sessions = bed.interceptor()?.sessions()?;
    let job = sessions.iter().find(|s| s["source"].to_string().contains("10.78."));
    assert_eq!(job.map(|s| s["proven"].clone()), Some(false.into()), "{sessions:?}");
    Ok(())
}

#[test]
fn exempt_sources_reach_the_server_past_the_daemon() -> Result<()> {
    skip_unless_possible!();
    let spec = Spec::default()
        .config("[[capture.exempt]]\nsource = \"10.78.0.2/32\"\nservices = [\"orders-db\"]");
    let mut bed = Bed::with(spec)?;
    bed.interceptor_mut()?.kill();
    let operator = bed.direct("app_admin").from(Place::Other);
    assert_eq!(bed.psql(&operator, "SELECT 'way in'")?.ok()?.trim(), "way in");
    assert!(!bed.psql(&bed.direct("app_admin"), "SELECT 1")?.success());
    let status = bed.interceptor()?.cli(["capture", "status"]).ok()?;
    assert!(status.contains("10.78.0.2"), "{status}");
    Ok(())
}

#[test]
fn privileged_roles_are_refused_unless_named() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let out = bed.psql(&bed.login("app_super")?, "SELECT 1")?;
    assert!(!out.success() && out.stderr.contains("interceptor"), "{out}");
    let out = bed.psql(&bed.login("postgres")?, "SELECT 1")?;
    assert!(!out.success(), "{out}");
    Ok(())
}
