//! Certificates as OpenSSH's own tools read them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

fn spec<'a>(key: &'a PublicKey) -> CertificateSpec<'a> {
    CertificateSpec {
        public_key: key,
        principal: "interceptor-session",
        serial: 4711,
        key_id: KeyId::new("01J9ZK", "billing-bot", "alice"),
        source_addresses: &LOOPBACK,
        permit_pty: true,
        permit_forwarding: false,
        permit_x11: false,
        permit_agent: false,
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn write(dir: &Path, ca: &UserCa, mode: u32) -> PathBuf {
    let path = dir.join("user_ca");
    std::fs::write(&path, ca.to_openssh().unwrap().as_bytes()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// What ssh-keygen prints; `None`, visibly, where it is not installed.
fn keygen(args: &[&str]) -> Option<String> {
    let Ok(out) = Command::new("ssh-keygen").env("TZ", "UTC").args(args).output() else {
        eprintln!("SKIPPED: no ssh-keygen");
        return None;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

#[test]
fn openssh_reads_the_certificate_as_it_was_meant() {
    let (ca, key) = (UserCa::generate().unwrap(), new_session_key().unwrap());
    let certificate = ca.issue(&spec(key.public_key())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id-cert.pub");
    std::fs::write(&path, certificate.to_openssh().unwrap()).unwrap();
    let Some(said) = keygen(&["-L", "-f", path.to_str().unwrap()]) else { return };
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    let after = |name: &str| {
        let at = lines.iter().position(|l| *l == name).unwrap_or_else(|| panic!("{name}: {said}"));
        lines[at + 1..].iter().take_while(|l| !l.ends_with(':')).copied().collect::<Vec<_>>()
    };
    for want in [
        "Type: ssh-ed25519-cert-v01@openssh.com user certificate",
        "Key ID: \"sess=01J9ZK agent=billing-bot sub=alice\"",
        "Serial: 4711",
        "Valid: from 2027-01-15T07:59:30 to 2027-01-15T08:01:00",
    ] {
        assert!(lines.contains(&want), "{want} in {said}");
    }
    assert!(said.contains(&ca.fingerprint()), "{said}");
    assert_eq!(after("Principals:"), ["interceptor-session"]);
    assert_eq!(after("Critical Options:"), ["source-address 127.0.0.1/32,::1/128"]);
    assert_eq!(after("Extensions:"), ["permit-pty"]);
}

#[test]
fn extensions_are_only_those_asked_for() {
    let (ca, key) = (UserCa::generate().unwrap(), new_session_key().unwrap());
    let names = [
        "permit-pty",
        "permit-port-forwarding",
        "permit-X11-forwarding",
        "permit-agent-forwarding",
    ];
    for wanted in 0..16_u8 {
        let is = |n: usize| wanted & (1 << n) != 0;
        let spec = CertificateSpec {
            permit_pty: is(0),
            permit_forwarding: is(1),
            permit_x11: is(2),
            permit_agent: is(3),
            ..spec(key.public_key())
        };
        let made = ca.issue(&spec).unwrap();
        assert_eq!(made.cert_type(), CertType::User);
        for (n, name) in names.into_iter().enumerate() {
            assert_eq!(made.extensions().contains_key(name), is(n), "{name} of {wanted}");
        }
        assert_eq!(made.extensions().len(), wanted.count_ones() as usize);
    }
}

#[test]
fn nothing_is_issued_for_everybody_or_from_everywhere() {
    let (ca, key) = (UserCa::generate().unwrap(), new_session_key().unwrap());
    let no_principal = CertificateSpec { principal: "", ..spec(key.public_key()) };
    let no_source = CertificateSpec { source_addresses: &[], ..spec(key.public_key()) };
    assert!(ca.issue(&no_principal).is_err() && ca.issue(&no_source).is_err());
}

#[test]
fn the_key_is_written_and_read_as_openssh_does() {
    let dir = tempfile::tempdir().unwrap();
    let ca = UserCa::generate().unwrap();
    let path = write(dir.path(), &ca, 0o600);
    assert_eq!(UserCa::open(&path).unwrap().public_line(), ca.public_line());
    let Some(public) = keygen(&["-y", "-f", path.to_str().unwrap()]) else { return };
    assert_eq!(public.trim(), ca.public_line());
    assert!(!format!("{ca:?}").contains("PRIVATE"));
}

#[test]
fn a_key_that_others_could_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let ca = UserCa::generate().unwrap();
    for mode in [0o640, 0o604, 0o660] {
        let error = UserCa::open(&write(dir.path(), &ca, mode)).unwrap_err().to_string();
        assert!(error.contains("chmod 0600"), "{error}");
    }
    let path = write(dir.path(), &ca, 0o600);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(UserCa::open(&link), Err(CaError::Read { .. })));
    assert!(matches!(UserCa::open(dir.path()), Err(CaError::Unfit { .. })));
    let none = UserCa::open(&dir.path().join("none")).unwrap_err().to_string();
    assert!(none.contains("interceptor setup ssh"), "{none}");
    std::fs::write(&path, "no key").unwrap();
    assert!(matches!(UserCa::open(&path), Err(CaError::Unfit { .. })));
}

#[test]
fn keys_of_other_kinds_and_encrypted_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind, passphrase, want) in
        [("ecdsa", "ecdsa", "", "not Ed25519"), ("locked", "ed25519", "secret", "encrypted")]
    {
        let path = dir.path().join(name);
        let file = path.to_str().unwrap();
        if keygen(&["-q", "-t", kind, "-N", passphrase, "-f", file]).is_none() {
            return;
        }
        let error = UserCa::open(&path).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
    }
}
