//! Doctor against a real sshd.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::cli::setup::ssh_bed::Bed;

fn look(bed: &Bed) -> Vec<(&'static str, Severity, String)> {
    let config = bed.config();
    let mut found = Findings::default();
    check_with(&bed.sshd(), &config.services[0], &config, &mut found);
    found.0.into_iter().map(|f| (f.check, f.severity, f.what)).collect()
}

fn has(found: &[(&str, Severity, String)], check: &str, part: &str) -> bool {
    found.iter().any(|(c, _, what)| *c == check && what.contains(part))
}

#[tokio::test]
async fn a_host_without_setup_is_told_what_is_missing() {
    let Some(bed) = Bed::new("GatewayPorts yes\nPerSourceMaxStartups 3\n") else { return };
    let found = look(&bed);
    for (check, part) in [
        ("ca-key", "user_ca"),
        ("no-exempt", "no source"),
        ("sshd-setting", "gatewayports"),
        ("startups", "3 logins"),
        ("direct-login", "exempt sources"),
        ("exempt-port", "port 22"),
        ("other-port", "127.0.0.1"),
    ] {
        assert!(has(&found, check, part), "{check} {part} in {found:?}");
    }
}

#[tokio::test]
async fn setup_mends_what_doctor_finds_and_a_broken_one_is_found_again() {
    let Some(bed) = Bed::new("") else { return };
    bed.run(&["--user=games"]).await.unwrap();
    let found = look(&bed);
    assert!(!has(&found, "ca-key", "") && !has(&found, "trust", ""), "{found:?}");
    assert!(has(&found, "users", "login shell of games"), "{found:?}");

    let key = bed.path("state/ssh/user_ca");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(has(&look(&bed), "ca-key", "chmod 0600"));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let anywhere = format!("TrustedUserCAKeys {}\n", bed.path("trust/ssh/user_ca.pub").display());
    bed.write("sshd_config.d/05-admin.conf", &anywhere);
    assert!(has(&look(&bed), "trust", "from anywhere"));
    bed.write("sshd_config.d/05-admin.conf", "Match Address 127.0.0.1\nTrustedUserCAKeys none\n");
    assert!(has(&look(&bed), "trust", "does not trust"));
    bed.write("sshd_config.d/05-admin.conf", "NoSuchKeyword\n");
    assert!(has(&look(&bed), "sshd", "NoSuchKeyword"));
}

#[test]
fn wide_and_local_exemptions_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("interceptor.toml");
    for (source, want) in [
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("127.0.0.0/8", "127.0.0.0/8"),
        ("::1/128", "::1/128"),
        ("10.0.0.5/32", ""),
    ] {
        std::fs::write(
            &file,
            format!(
                "[[service]]\nname='host-ssh'\nprotocol='ssh'\nport=22\naudience='a'\n\
                 upstream={{host='127.0.0.1',port=22}}\n\
                 [capture]\nexempt=[{{source='{source}',services=['host-ssh']}}]\n"
            ),
        )
        .unwrap();
        let config = Config::load(&file).unwrap();
        let mut found = Findings::default();
        exempt(&config.services[0], &config, &mut found);
        assert_eq!(found.0.iter().any(|f| f.what.contains(want)), !want.is_empty(), "{source}");
    }
}
