//! What the doctor says of broken hosts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

fn config(dir: &Path, more: &str) -> Config {
    let text = format!(
        "{more}\n[paths]\nstate = \"{0}/state\"\nrun = \"{0}\"\nbpffs = \"{0}/none\"",
        dir.display()
    );
    toml::from_str(&text).unwrap()
}

fn checks(found: &Findings) -> Vec<(&'static str, Severity)> {
    found.0.iter().map(|f| (f.check, f.severity)).collect()
}

#[test]
fn kernels_are_told_apart() {
    for (text, want) in [
        ("5.4.0-1", Some(Severity::Error)),
        ("5.15.0-91-generic", Some(Severity::Warning)),
        ("6.1.0-18-cloud-amd64", Some(Severity::Info)),
        ("6.18.44", None),
    ] {
        let mut found = Findings::default();
        host::kernel_version(host::release(text).unwrap(), text, &mut found);
        assert_eq!(found.0.first().map(|f| f.severity), want, "{text}");
    }
}

#[test]
fn the_state_directory_must_be_private() {
    let dir = tempfile::tempdir().unwrap();
    let c = config(dir.path(), "");
    let mut found = Findings::default();
    host::state(&c, &mut found);
    assert_eq!(checks(&found), [("state", Severity::Error)], "absent");
    std::fs::create_dir(&c.paths.state).unwrap();
    for (mode, want) in [(0o755, 1), (0o700, 0)] {
        std::fs::set_permissions(&c.paths.state, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut found = Findings::default();
        host::state(&c, &mut found);
        assert_eq!(found.0.len(), want, "{mode:o}");
    }
}

#[test]
fn people_who_cannot_decide_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let more = "[[approver]]\nuser='no-such-user'\nissuer='x'\nuid='u'\n[[approver]]\ngroup='root'\nissuer='x'";
    let mut found = Findings::default();
    host::approvers(&config(dir.path(), more), &mut found);
    assert!(found.0[0].what.contains("no-such-user"));
    assert!(found.0[1].what.contains("uids"));
    let mut found = Findings::default();
    host::approvers(&config(dir.path(), ""), &mut found);
    assert_eq!(checks(&found), [("approvers", Severity::Warning)]);
}

#[test]
fn a_host_without_daemon_and_capture_says_so_and_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let c = config(dir.path(), "");
    let mut found = Findings::default();
    host::daemon(&c, &mut found);
    capture::check(&c, &mut found);
    let names: Vec<_> = found.0.iter().map(|f| f.check).collect();
    assert_eq!(names, ["daemon", "capture"]);
    assert!(found.0.iter().all(|f| !f.means.is_empty() && !f.fix.is_empty()));
    let text = render(&found.0, Paint::plain());
    assert!(text.contains("systemctl start interceptor") && text.contains("errors, 0 warnings"));
}

#[test]
fn a_broken_configuration_is_a_finding_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("interceptor.toml");
    std::fs::write(&path, "[host]\nnmae = 'x'").unwrap();
    let found = examine(&path);
    let bad = found.iter().find(|f| f.check == "config").unwrap();
    assert!(bad.severity == Severity::Error && bad.what.contains("nmae"), "{bad:?}");
}

#[test]
fn an_open_socket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(".s.PGSQL.5432");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let service = format!(
        "name='orders-db'\nprotocol='postgres'\nport=5432\naudience='a'\nplaintext_loopback=true\nupstream={{socket='{}'}}",
        socket.display()
    );
    let service: crate::config::Service = toml::from_str(&service).unwrap();
    for (dir_mode, mode, want) in [(0o755, 0o777, 1), (0o755, 0o770, 0), (0o750, 0o777, 0)] {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(dir_mode)).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut found = Findings::default();
        server::socket_mode(&service, &socket, &mut found);
        assert_eq!(found.0.len(), want, "{mode:o} in {dir_mode:o}");
    }
    let mut found = Findings::default();
    server::socket_mode(&service, Path::new("@pg"), &mut found);
    assert_eq!(checks(&found), [("unix-socket", Severity::Error)]);
}

#[test]
fn an_open_server_is_found_and_setup_closes_it() {
    let Some(cluster) = crate::cli::setup::tests::Cluster::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = format!(
        "[[service]]\nname='orders-db'\nprotocol='postgres'\nport=5432\naudience='a'\nplaintext_loopback=true\nupstream={{socket='{}'}}",
        cluster.socket().display()
    );
    let c = config(dir.path(), &more);
    let look = || {
        let mut found = Findings::default();
        server::check(
            &c.services[0],
            &c,
            procfs::netns("self"),
            &server::postmasters(),
            &mut found,
        );
        server::socket_mode(&c.services[0], &cluster.socket(), &mut found);
        found.0.sort_by_key(|f| f.severity);
        found
    };
    let before = look();
    assert!(
        before.0.iter().any(|f| f.check == "pg-hba"
            && f.severity == Severity::Error
            && f.what.contains("local all all trust")),
        "{before:?}"
    );
    assert!(before.0.iter().any(|f| f.check == "unix-socket"), "{before:?}");
    assert!(!before.0.iter().any(|f| f.check == "server"), "{before:?}");
    // Another namespace than the capture's, where it listens on TCP, is found only then.
    assert!(!before.0.iter().any(|f| f.check == "namespace"), "it has no TCP port");
    cluster.run(&[]).unwrap();
    let after = look();
    let left: Vec<_> = after
        .0
        .iter()
        .filter(|f| f.severity == Severity::Error || f.check == "unix-socket")
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
