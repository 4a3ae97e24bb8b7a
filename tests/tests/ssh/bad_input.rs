//! Input that no honest client sends: refused clearly, recorded, without harm to others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::clients::{PARAMIKO_RAW, ssh_script};
use interceptor_tests::net::{HOST_V4, Place};

use crate::{SOON, USER, all_ended};

fn dial(bed: &Bed) -> Result<TcpStream> {
    let tcp = bed.net().inside(Place::Agent, || Ok(TcpStream::connect((HOST_V4, 22))?))?;
    tcp.set_read_timeout(Some(SOON))?;
    tcp.set_write_timeout(Some(SOON))?;
    Ok(tcp)
}

/// A packet before encryption: RFC 4253, section 6.
fn packet(payload: &[u8]) -> Result<Vec<u8>> {
    let padding = 16 - (5 + payload.len()) % 8;
    let length = u32::try_from(1 + payload.len() + padding)?;
    Ok([&length.to_be_bytes()[..], &[u8::try_from(padding)?], payload, &vec![0; padding]].concat())
}

/// KEXINIT with these key exchanges and one of everything else.
fn kexinit(kex: &str) -> Vec<u8> {
    let mut bytes = [&[20_u8][..], &[7; 16]].concat();
    for list in [
        kex,
        "ssh-ed25519",
        "aes128-ctr",
        "aes128-ctr",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ] {
        bytes.extend((list.len() as u32).to_be_bytes());
        bytes.extend(list.as_bytes());
    }
    bytes.extend([0; 5]);
    bytes
}

#[test]
fn broken_beginnings_end_their_connection_only() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let hello = b"SSH-2.0-test\r\n".to_vec();
    let after = |bytes: Vec<u8>| [hello.clone(), bytes].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
        ("SSH 1", b"SSH-1.5-old\r\n".to_vec()),
        ("a version without an end", [b"SSH-2.0-".to_vec(), vec![b'x'; 100_000]].concat()),
        ("lines without an end", b"x\r\n".repeat(100_000)),
        ("zeros", vec![0; 100_000]),
        ("a version that is no text", b"SSH-2.0-\xff\xfe\0\r\n".to_vec()),
        ("a packet of no length", after(vec![0; 64])),
        ("a packet of four gigabytes", after(vec![0xff; 64])),
        ("a packet of 300 KB", after([&300_000_u32.to_be_bytes()[..], &vec![4; 300_000]].concat())),
        (
            "more padding than packet",
            after([&12_u32.to_be_bytes()[..], &[255], &[20; 60]].concat()),
        ),
        ("an unknown message", after(packet(&[255, 1, 2, 3])?)),
        ("a cut KEXINIT", after(packet(&[20, 1, 2, 3])?)),
        (
            "a KEXINIT of lies",
            after(packet(&[&[20; 17][..], &[0x7f, 0xff, 0xff, 0xff], &[b'x'; 40]].concat())?),
        ),
        ("no key exchange in common", after(packet(&kexinit("none-at-all"))?)),
        ("only SHA-1", after(packet(&kexinit("diffie-hellman-group1-sha1"))?)),
        (
            "two KEXINITs",
            after(
                [packet(&kexinit("curve25519-sha256"))?, packet(&kexinit("curve25519-sha256"))?]
                    .concat(),
            ),
        ),
        (
            "a point of no length",
            after([packet(&kexinit("curve25519-sha256"))?, packet(&[30, 0, 0, 0, 0])?].concat()),
        ),
        (
            "a point of zeros",
            after(
                [
                    packet(&kexinit("curve25519-sha256"))?,
                    packet(&[&[30, 0, 0, 0, 32][..], &[0; 32]].concat())?,
                ]
                .concat(),
            ),
        ),
        (
            "a point of a megabyte",
            after(
                [packet(&kexinit("curve25519-sha256"))?, packet(&[30, 0, 0xf, 0xff, 0xff])?]
                    .concat(),
            ),
        ),
        (
            "NEWKEYS at once",
            after([packet(&kexinit("curve25519-sha256"))?, packet(&[21])?].concat()),
        ),
        (
            "user authentication at once",
            after(
                [packet(&kexinit("curve25519-sha256"))?, packet(&[50, 0, 0, 0, 1, b'x'])?].concat(),
            ),
        ),
        // Terrapin: messages that strict key exchange forbids.
        (
            "IGNORE in the exchange",
            after(
                [
                    packet(&kexinit("curve25519-sha256,kex-strict-c-v00@openssh.com"))?,
                    packet(&[2, 0, 0, 0, 0])?,
                    packet(&[&[30, 0, 0, 0, 32][..], &[9; 32]].concat())?,
                ]
                .concat(),
            ),
        ),
        ("a DISCONNECT", after(packet(&[1, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0])?)),
    ];
    for (what, bytes) in &cases {
        let mut tcp = dial(&bed)?;
        // The other side may well be gone before everything is sent.
        let _ = tcp.write_all(bytes);
        let _ = tcp.shutdown(std::net::Shutdown::Write);
        let (begun, mut rest) = (Instant::now(), Vec::new());
        let _ = tcp.read_to_end(&mut rest);
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: it hangs");
        assert!(rest.len() < 8192, "{what}: {} bytes came back", rest.len());
        assert!(bed.ssh(&agent, "true")?.success(), "after {what}");
    }
    let sessions = all_ended(&bed)?;
    assert!(sessions.len() >= 2 * cases.len(), "connections are not recorded");
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    bed.interceptor_mut()?.still_runs()
}

fn after_the_exchange(when: &str) -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    let cmd_limit = Duration::from_secs(200);
    let out = interceptor_tests::clients::ssh_script_within(
        &bed,
        &agent,
        PARAMIKO_RAW,
        &[when],
        cmd_limit,
    )?;
    if let Some(out) = out {
        for (what, end) in out.as_object().into_iter().flatten() {
            let end = end.as_str().unwrap_or_default();
            assert!(matches!(end, "ended" | "goes on"), "{what}: {end}");
        }
    }
    assert!(bed.ssh(&agent, "true")?.success());
    all_ended(&bed)?;
    let log = bed.interceptor()?.log();
    assert!(!log.contains("panicked"), "{log}");
    bed.interceptor()?.cli(["sessions", "verify"]).ok()?;
    bed.interceptor_mut()?.still_runs()
}

#[test]
fn broken_messages_before_authentication() -> Result<()> {
    after_the_exchange("before")
}

#[test]
fn broken_messages_after_authentication() -> Result<()> {
    after_the_exchange("after")
}

#[test]
fn a_flood_of_attempts_ends_its_connection() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    if let Some(out) = ssh_script(&bed, &agent, PARAMIKO_RAW, &["auth"])? {
        let tries = out["tries"].as_u64().unwrap_or(0);
        assert!((1..=20).contains(&tries) && out["active"] == false, "{out}");
    }
    // Connections that say nothing do not keep others out.
    let silent: Vec<TcpStream> = (0..200).filter_map(|_| dial(&bed).ok()).collect();
    let out = bed.ssh(&agent, "echo in-time")?;
    assert!(out.success() && out.took < Duration::from_secs(10), "{out}");
    drop(silent);
    Ok(())
}

#[test]
fn a_flood_of_channels_is_bounded() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::ssh())?;
    let agent = bed.agent(USER)?;
    if let Some(out) = ssh_script(&bed, &agent, PARAMIKO_RAW, &["channels"])? {
        let opened = out["opened"].as_u64().unwrap_or(0);
        assert!((1..=64).contains(&opened), "{out}");
        assert!(out["refused"].as_u64().unwrap_or(0) > 900, "{out}");
        assert_eq!(out["first"], "first\n", "{out}");
    }
    assert!(bed.ssh(&agent, "true")?.success());
    bed.interceptor_mut()?.still_runs()
}

/// The limit before the token is the service's own where that is shorter than ssh's 20 s, in
/// whatever state a client falls silent.
#[test]
fn slow_and_silent_clients_are_ended_at_the_services_own_limit() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh().service(|s| s.settings = "startup_timeout = \"2s\"".into()))?;
    for first in [&b""[..], b"SSH-2.0-test\r\n"] {
        let begun = Instant::now();
        let mut tcp = dial(&bed)?;
        tcp.write_all(first)?;
        let mut all = Vec::new();
        // A reset is an end too.
        let _ = tcp.read_to_end(&mut all);
        let took = begun.elapsed();
        let in_time = Duration::from_millis(1900)..Duration::from_secs(10);
        assert!(in_time.contains(&took), "{first:?}: {took:?}");
    }
    // A registered key without its token.
    let agent = bed.registered(USER)?;
    let begun = Instant::now();
    let cmd = agent.ssh_with(&["-N"], [""; 0]);
    let out = bed.at(&agent, cmd).limit(SOON).run()?;
    assert!(!out.success() && out.stderr.contains("no token was shown in time"), "{out}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // Whoever is in stays in.
    let agent = bed.agent(USER)?;
    assert_eq!(bed.ssh(&agent, "sleep 3; echo stays")?.ok()?, "stays\n");
    Ok(())
}
