//! Ways to connect: address families, TLS, protocol versions, the server seen as it is.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::daemon::{ServiceSpec, UpstreamKind};
use interceptor_tests::net::{HOST_V6, Place};
use interceptor_tests::tokens::Claims;
use interceptor_tests::wire::{GSS_REQUEST, Raw, SSL_REQUEST, V3_0, tags};

#[test]
fn every_address_family_and_place_is_captured() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    for (host, from) in [
        ("10.77.0.1", Place::Agent),
        (HOST_V6, Place::Agent),
        ("127.0.0.1", Place::Host),
        ("::1", Place::Host),
    ] {
        // A token belongs to one source, so each place has its own.
        let login = bed.login("app_ro")?.host(host).from(from);
        let out = bed.psql(&login, "SELECT current_setting('application_name')")?;
        let name = out.ok()?;
        assert_eq!(name.trim().get(..26).map(str::len), Some(26), "no session id: {name}");
        bed.interceptor()?.session(&name[..26])?;
    }
    let sessions = bed.interceptor()?.sessions()?;
    let dialled: Vec<_> = sessions.iter().filter_map(|s| s["original_dst"].as_str()).collect();
    for address in ["10.77.0.1:5432", "[fd77::1]:5432", "127.0.0.1:5432", "[::1]:5432"] {
        assert!(dialled.contains(&address), "{address} is not in {dialled:?}");
    }
    Ok(())
}

#[test]
fn upstream_by_tcp_with_tls_and_scram() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::default().service(|s| s.upstream = UpstreamKind::Tcp))?;
    let mut psql = bed.live_psql(&bed.login("app_ro")?)?;
    assert_eq!(psql.ask("SELECT 1;", crate::SOON)?.trim(), "1");
    let seen = bed.db().admin(
        "SELECT ssl, client_addr FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE usename = 'app_ro'",
    )?;
    assert_eq!(seen.trim(), "t|127.0.0.1");
    Ok(())
}

#[test]
fn two_services_do_not_share_tokens() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::with(Spec::default().and(ServiceSpec::reports()))?;
    bed.clusters()[1].admin("CREATE TABLE which(); COMMENT ON TABLE which IS 'reports'")?;
    let orders = bed.login("app_ro")?;
    let reports =
        bed.login_with("app_ro", &Claims::reporter().with("aud", "api://reports-db"))?.port(5433);
    let sql = "SELECT to_regclass('which') IS NULL";
    assert_eq!(bed.psql(&orders, sql)?.ok()?.trim(), "t");
    assert_eq!(bed.psql(&reports, sql)?.ok()?.trim(), "f");
    for wrong in [orders.port(5433), reports.port(5432)] {
        interceptor_tests::story::refused(&bed.psql(&wrong, "SELECT 1")?, "TOKEN_AUDIENCE")?;
    }
    Ok(())
}

#[test]
fn plaintext_and_channel_binding_are_refused_before_the_token_is_asked_for() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let out = bed.psql(&bed.login("app_ro")?.sslmode("disable"), "SELECT 1")?;
    assert!(!out.success() && out.stderr.contains("TLS"), "{out}");
    let login = bed.login("app_ro")?;
    let cmd = bed.client(&login, "psql").args(["-X", "-c", "SELECT 1"]);
    let out = bed.place(&login, cmd.env("PGCHANNELBINDING", "require")).run()?;
    assert!(!out.success(), "{out}");
    Ok(())
}

#[test]
fn versions_and_requests_of_the_startup() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;

    let mut raw = Raw::direct_tls(bed.net(), &login)?;
    raw.log_in(&login, V3_0, &[])?;
    assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ");

    for (version, more) in [
        (0x0003_0002_u32, vec![]),
        (0x0003_270F, vec![("_pq_.test_protocol_negotiation", "x")]),
        (0x0003_0001, vec![]),
    ] {
        let mut raw = Raw::tls(bed.net(), &login)?;
        let answer = raw.log_in(&login, version, &more)?;
        let key = answer.iter().find(|m| m.tag == b'K').map_or(0, |k| k.body.len());
        assert!(key == 8 || (version >= 0x0003_0002 && key == 36), "{version:x}: key of {key}");
        assert_eq!(tags(&raw.ask("SELECT 1")?), "TDCZ", "{version:x}");
    }

    let mut raw = Raw::tcp(bed.net(), &login)?;
    raw.raw(&GSS_REQUEST)?;
    raw.raw(&SSL_REQUEST[..0])?;
    let mut twice = Raw::tcp(bed.net(), &login)?;
    twice.raw(&[GSS_REQUEST, GSS_REQUEST].concat())?;
    assert_eq!(twice.rest().first(), Some(&b'N'));

    // Bytes that a man in the middle could have put before the handshake.
    let mut early = Raw::tcp(bed.net(), &login)?;
    early.raw(&[&SSL_REQUEST[..], b"early data"].concat())?;
    let rest = early.rest();
    assert!(!rest.windows(5).any(|w| w == b"SELEC") && rest.len() < 2000);
    Ok(())
}

#[test]
fn many_connections_at_once() -> Result<()> {
    skip_unless_possible!();
    let bed = Bed::new()?;
    let login = bed.login("app_ro")?;
    std::thread::scope(|scope| {
        let clients: Vec<_> =
            (0..20).map(|_| scope.spawn(|| bed.psql(&login, "SELECT 1")?.ok())).collect();
        for client in clients {
            let answer = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            assert_eq!(answer.trim(), "1");
        }
        anyhow::Ok(())
    })?;
    assert!(bed.interceptor()?.sessions()?.len() >= 20);
    Ok(())
}
