//! Capture on real parts: network namespaces, the kernel program, and connections as a client
//! sees them. Needs root and a kernel with BPF; says so when it cannot run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "capture/bed.rs"]
mod bed;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use bed::{AGENT_V4, AGENT_V6, Bed, HOST_V4, HOST_V6, skip};
use interceptor::capture::{self, CaptureError, Outcome, Pins, connect_exempt};
use socket2::{Domain, SockRef, Socket, Type};

const REFUSED: Result<String, ErrorKind> = Err(ErrorKind::ConnectionRefused);
const NOBODY: u32 = 65_534;

fn service() -> Result<String, ErrorKind> {
    Ok("service".into())
}

/// What the daemon of the bed answers a client that is not on its machine.
fn captured(original_dst: &str, from: &str) -> Result<String, ErrorKind> {
    Ok(format!("captured {original_dst} from {from} uid unknown"))
}

fn captured_locally(original_dst: &str, from: &str) -> Result<String, ErrorKind> {
    Ok(format!("captured {original_dst} from {from} uid 0"))
}

/// Not a test: the daemon that tests start as a process of its own.
#[test]
#[ignore = "started by other tests"]
fn daemon_process() {
    bed::be_daemon_process();
}

/// Not a test: attaching as a process with fewer privileges.
#[test]
#[ignore = "started by other tests"]
fn attach_process() {
    bed::be_attach_process();
}

#[test]
fn the_kernel_program_fits_a_screen() {
    let lines = include_str!("../../interceptor-ebpf/src/main.rs").lines().count();
    assert!(lines <= 100, "{lines} lines: what it does belongs into user space");
}

#[test]
fn every_way_to_the_port_leads_into_the_daemon() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    assert_eq!(bed.agent.ask(&format!("{HOST_V4}:5432")), service(), "before attach");
    bed.attach(&[5432]);
    let _daemon = bed.daemon(&[5432]);

    let v4 = format!("{HOST_V4}:5432");
    assert_eq!(bed.agent.ask(&v4), captured(&v4, AGENT_V4));
    let v6 = format!("[{HOST_V6}]:5432");
    assert_eq!(bed.agent.ask(&v6), captured(&v6, AGENT_V6));
    let mapped = format!("[::ffff:{HOST_V4}]:5432");
    assert_eq!(bed.agent.ask(&mapped), captured(&v4, AGENT_V4), "an IPv6 socket to IPv4");
    for local in ["127.0.0.1:5432", "127.9.9.9:5432", "[::1]:5432"] {
        let from = if local.starts_with('[') { "::1" } else { "127.0.0.1" };
        assert_eq!(bed.host.ask(local), captured_locally(local, from));
    }
    let local = "127.0.0.1:5432";
    let mapped = "[::ffff:127.0.0.1]:5432";
    assert_eq!(bed.host.ask(mapped), captured_locally(local, "127.0.0.1"));
    assert_eq!(bed.host.ask(&v4), captured_locally(&v4, HOST_V4), "its own outer address");

    assert_eq!(bed.counts(5432), [8, 0, 0, 0]);
}

#[test]
fn other_ports_are_left_alone() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5433);
    bed.attach(&[5432]);
    let _daemon = bed.daemon(&[5432]);
    assert_eq!(bed.agent.ask(&format!("{HOST_V4}:5433")), service());
}

#[test]
fn without_a_daemon_the_port_refuses_at_once() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    let report = bed.attach(&[5432]);
    assert_eq!((report.outcome, report.mounted), (Outcome::Created, true));
    for to in [format!("{HOST_V4}:5432"), format!("[{HOST_V6}]:5432")] {
        assert_eq!(bed.agent.ask(&to), REFUSED);
    }
    for to in ["127.0.0.1:5432", "[::1]:5432", "[::ffff:127.0.0.1]:5432"] {
        assert_eq!(bed.host.ask(to), REFUSED);
    }
    assert_eq!(bed.counts(5432), [0, 5, 0, 0]);
    assert_eq!(bed.status().ports[0].listening, Some(false));
}

#[test]
fn a_killed_daemon_leaves_a_closed_port_and_the_next_one_opens_it() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    let to = format!("{HOST_V4}:5432");
    for _ in 0..3 {
        let mut daemon = bed.daemon_process(5432, None);
        assert_eq!(bed.agent.ask(&to), captured(&to, AGENT_V4));
        assert_eq!(bed.status().ports[0].listening, Some(true));
        daemon.kill();
        assert_eq!(bed.agent.ask(&to), REFUSED);
        assert_eq!(bed.status().ports[0].listening, Some(false));
    }
}

#[test]
fn a_daemon_without_privilege_serves_what_it_was_handed() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    let options = capture::AttachOptions { owner: Some((NOBODY, NOBODY)), ..bed.options(&[5432]) };
    capture::attach(&options).unwrap();
    let _daemon = bed.daemon_process(5432, Some(NOBODY));
    let to = format!("{HOST_V4}:5432");
    assert_eq!(bed.agent.ask(&to), captured(&to, AGENT_V4));

    use std::os::unix::fs::MetadataExt;
    for (pin, uid, mode) in [
        ("SERVICES", NOBODY, 0o600),
        ("OWN", NOBODY, 0o600),
        ("PORTS", NOBODY, 0o400),
        ("EXEMPT", NOBODY, 0o400),
        ("link", 0, 0o600),
    ] {
        let meta = bed.pins.join(pin).metadata().unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (uid, mode), "{pin}");
    }
    assert_eq!(bed.pins.metadata().unwrap().uid(), 0, "it cannot remove the pins");
}

#[test]
fn the_unit_has_the_capabilities_that_attaching_needs() {
    if skip() {
        return;
    }
    let unit = include_str!("../../systemd/interceptor-capture.service");
    let set = unit.lines().find_map(|l| l.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let set: String = set
        .split(' ')
        .map(|c| format!(",+{}", c.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    let bed = Bed::new();
    bed.service(5432);
    // Mounting takes more; systemd does that.
    bed.attach(&[5432]);
    capture::detach(&bed.pins).unwrap();
    for outcome in ["Created", "Unchanged"] {
        assert_eq!(bed.attach_process(5432, NOBODY, &set), outcome);
    }
    assert_eq!(bed.attach_process(5433, NOBODY, &set), "Updated");
    assert_eq!(bed.attach_process(5432, NOBODY, &set), "Updated");
    let _daemon = bed.daemon_process(5432, Some(NOBODY));
    let to = format!("{HOST_V4}:5432");
    assert_eq!(bed.agent.ask(&to), captured(&to, AGENT_V4));
    let refused = bed.attach_process(5433, NOBODY, "");
    assert!(refused.contains("not permitted"), "{refused}");
}

#[test]
fn exempt_sources_pass_with_and_without_a_daemon() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.service(5433);
    let exempt = vec![
        (format!("{AGENT_V4}/32").parse().unwrap(), vec![5432]),
        ("::/0".parse().unwrap(), vec![5433]),
    ];
    let options = capture::AttachOptions { exempt, ..bed.options(&[5432, 5433]) };
    capture::attach(&options).unwrap();
    let check = |without: &str| {
        let at = |ip: &str, port: u16| bed.agent.ask(&format!("{ip}:{port}"));
        assert_eq!(at(HOST_V4, 5432), service(), "{without}");
        assert_eq!(at(&format!("[{HOST_V6}]"), 5433), service(), "{without}");
        let v4_at_5433 = at(HOST_V4, 5433);
        let v6_at_5432 = at(&format!("[{HOST_V6}]"), 5432);
        let local = bed.host.ask("127.0.0.1:5432");
        (v4_at_5433, v6_at_5432, local)
    };
    assert_eq!(check("no daemon"), (REFUSED, REFUSED, REFUSED));
    let _daemon = bed.daemon(&[5432, 5433]);
    let (v4, v6, local) = check("a daemon");
    assert_eq!(v4, captured(&format!("{HOST_V4}:5433"), AGENT_V4), "::/0 is not IPv4");
    assert_eq!(v6, captured(&format!("[{HOST_V6}]:5432"), AGENT_V6));
    assert_eq!(local, captured_locally("127.0.0.1:5432", "127.0.0.1"));
    assert_eq!(bed.counts(5432), [2, 2, 2, 0]);
    assert_eq!(bed.status().exempt.len(), 2);

    // Taken away in place.
    let report = capture::attach(&bed.options(&[5432, 5433])).unwrap();
    assert_eq!(report.outcome, Outcome::Updated);
    let to = format!("{HOST_V4}:5432");
    assert_eq!(bed.agent.ask(&to), captured(&to, AGENT_V4));
}

#[test]
fn the_daemon_reaches_its_own_upstream_and_nobody_else_does() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    for upstream in ["127.0.0.1:5432", "[::1]:5432", "[::ffff:127.0.0.1]:5432"] {
        bed.host.run_async(|| async {
            let mut pins = Pins::open(&bed.pins).unwrap();
            let listener = pins.serve(5432).unwrap();
            let to: SocketAddr = upstream.parse().unwrap();
            let (stream, exemption) = connect_exempt(&pins, to).await.unwrap();
            let from = stream.local_addr().unwrap();
            assert_eq!(first_line(&stream).await, "service", "{upstream}");
            assert_eq!(capture::status(&bed.pins).unwrap().upstreams, 1);

            // Closed by a reset, so that the port is free at once.
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(stream);
            drop(exemption);
            assert_eq!(capture::status(&bed.pins).unwrap().upstreams, 0);

            // Who takes the same source port afterwards is steered.
            let client = connect_from(from, canonical(to)).unwrap();
            assert_eq!(listener.accept().await.unwrap().peer, from, "{upstream}");
            drop(client);
        });
    }
    assert_eq!(bed.counts(5432)[3], 3);
}

#[test]
fn syn_cookies_change_nothing_but_the_counters() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    // Always, not only under pressure: the kernel looks up the SYN and the ACK.
    bed.host.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2").unwrap());
    bed.host.run_async(|| async {
        let mut pins = Pins::open(&bed.pins).unwrap();
        let listener = pins.serve(5432).unwrap();
        let to: SocketAddr = "127.0.0.1:5432".parse().unwrap();
        for _ in 0..50 {
            let (stream, _exemption) = connect_exempt(&pins, to).await.unwrap();
            assert_eq!(first_line(&stream).await, "service");
            let client = TcpStream::connect(to).unwrap();
            assert_eq!(listener.accept().await.unwrap().original_dst, to);
            drop((client, stream));
        }
        let c = pins.counters().unwrap()[0];
        // Under load some of either come twice.
        assert!((50..=200).contains(&c.own) && (50..=200).contains(&c.steered), "{c:?}");
        assert_eq!((c.refused, c.exempt), (0, 0));
    });
}

#[test]
fn an_exemption_counts_only_while_a_listener_lives() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    bed.host.run_async(|| async {
        let mut pins = Pins::open(&bed.pins).unwrap();
        let listener = pins.serve(5432).unwrap();
        let (from, to) = ("127.0.0.1:40001".parse().unwrap(), "127.0.0.1:5432".parse().unwrap());
        let exemption = pins.exempt_upstream(from, to).unwrap();
        drop(listener);
        let refused = connect_from(from, to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        // As a daemon that died leaves it behind: the next one clears it before it serves.
        std::mem::forget(exemption);
        let mut next = Pins::open(&bed.pins).unwrap();
        assert_eq!(capture::status(&bed.pins).unwrap().upstreams, 1);
        let listener = next.serve(5432).unwrap();
        assert_eq!(capture::status(&bed.pins).unwrap().upstreams, 0);
        let client = connect_from(from, to).unwrap();
        assert_eq!(listener.accept().await.unwrap().peer, from);
        drop(client);
    });
}

#[test]
fn the_listener_itself_cannot_be_used() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.attach(&[5432]);
    let from_outside = bed.host.run_async(|| async {
        let mut pins = Pins::open(&bed.pins).unwrap();
        let listener = pins.serve(5432).unwrap();
        let own = listener.own_addr().unwrap();
        assert!(own.ip().is_loopback());
        let mut stray = TcpStream::connect(own).unwrap();
        let to: SocketAddr = "127.0.0.1:5432".parse().unwrap();
        let client = TcpStream::connect(to).unwrap();
        let accepted = listener.accept().await.unwrap();
        assert_eq!(accepted.peer, client.local_addr().unwrap(), "only the steered one comes out");
        assert_eq!(listener.strays(), 1);
        assert_eq!(stray.read(&mut [0]).unwrap_or(0), 0, "the other one is closed");
        [HOST_V4.to_string(), format!("[{HOST_V6}]")]
            .map(|ip| bed.agent.ask(&format!("{ip}:{}", own.port())))
    });
    assert_eq!(from_outside, [REFUSED, REFUSED]);
}

#[test]
fn two_services_have_their_own_listeners_and_counters() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.attach(&[5432, 5433]);
    // A process: what another test forks meanwhile holds none of its sockets open.
    let mut first = bed.daemon_process(5432, None);
    let (a, b) = (format!("{HOST_V4}:5432"), format!("{HOST_V4}:5433"));
    assert_eq!(bed.agent.ask(&a), captured(&a, AGENT_V4));
    assert_eq!(bed.agent.ask(&b), REFUSED);
    let second = bed.daemon(&[5433]);
    assert_eq!(bed.agent.ask(&b), captured(&b, AGENT_V4));
    first.kill();
    assert_eq!(bed.agent.ask(&a), REFUSED);
    assert_eq!(bed.agent.ask(&b), captured(&b, AGENT_V4));
    drop(second);
    assert_eq!((bed.counts(5432), bed.counts(5433)), ([1, 1, 0, 0], [2, 1, 0, 0]));
    let unknown = bed.host.run_async(|| async { Pins::open(&bed.pins).unwrap().serve(5434) });
    assert!(matches!(unknown, Err(CaptureError::NotProtected { port: 5434, .. })));
}

#[test]
fn attaching_again_changes_nothing_and_ports_change_in_place() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.service(5433);
    bed.attach(&[5432]);
    let _daemon = bed.daemon(&[5432]);
    let (a, b) = (format!("{HOST_V4}:5432"), format!("{HOST_V4}:5433"));
    let link = bed.status().link.unwrap();
    assert_eq!(bed.attach(&[5432]).outcome, Outcome::Unchanged);
    assert_eq!(bed.agent.ask(&a), captured(&a, AGENT_V4));

    let report = bed.attach(&[5432, 5433]);
    assert_eq!((report.outcome, report.added), (Outcome::Updated, vec![5433]));
    assert_eq!(bed.agent.ask(&b), REFUSED);
    assert_eq!(bed.agent.ask(&a), captured(&a, AGENT_V4));

    let report = bed.attach(&[5433]);
    assert_eq!((report.outcome, report.removed), (Outcome::Updated, vec![5432]));
    assert_eq!(bed.agent.ask(&a), service());
    // The slot of a port that went and came again does not remember the listener.
    bed.attach(&[5432, 5433]);
    assert_eq!(bed.agent.ask(&a), REFUSED);
    assert_eq!(bed.counts(5432), [0, 1, 0, 0]);

    let now = bed.status().link.unwrap();
    assert_eq!((now.id, now.program), (link.id, link.program));
    assert!(bed.status().problems.is_empty(), "{:?}", bed.status().problems);
}

#[test]
fn an_upgrade_swaps_the_program_under_load_without_a_gap() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    let Some(object) = object() else {
        bed::say_skipped("the object file is not where it was built, so no other can be made");
        return;
    };
    let _daemon = bed.daemon(&[5432]);
    let before = bed.status().link.unwrap();
    let (to, done) = (format!("{HOST_V4}:5432"), AtomicBool::new(false));
    let asked = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut asked = 0u64;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(bed.agent.ask(&to), captured(&to, AGENT_V4));
                asked += 1;
            }
            asked
        });
        for n in 1..=5 {
            // The same program in another file is another object.
            let file = bed.pins.parent().unwrap().parent().unwrap().join(format!("{n}.o"));
            let mut bytes = std::fs::read(&object).unwrap();
            bytes.extend(std::iter::repeat_n(0, n));
            std::fs::write(&file, bytes).unwrap();
            let options = capture::AttachOptions { object: Some(file), ..bed.options(&[5432]) };
            assert_eq!(capture::attach(&options).unwrap().outcome, Outcome::Upgraded);
            assert_eq!(capture::attach(&options).unwrap().outcome, Outcome::Unchanged);
        }
        done.store(true, Ordering::Relaxed);
        client.join().unwrap()
    });
    let after = bed.status().link.unwrap();
    assert_eq!(after.id, before.id, "the link stays");
    assert_ne!(after.program, before.program);
    assert_eq!(bed.counts(5432), [asked, 0, 0, 0], "counters survive");
}

#[test]
fn detaching_opens_the_ports_and_says_when_there_is_nothing() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    bed.attach(&[5432]);
    let to = format!("{HOST_V4}:5432");
    assert_eq!(bed.agent.ask(&to), REFUSED);
    capture::detach(&bed.pins).unwrap();
    assert_eq!(bed.agent.ask(&to), service());
    assert!(matches!(capture::detach(&bed.pins), Err(CaptureError::NotAttached { .. })));
    assert!(matches!(capture::status(&bed.pins), Err(CaptureError::NotAttached { .. })));
    assert!(matches!(Pins::open(&bed.pins), Err(CaptureError::NotAttached { .. })));
}

#[test]
fn connections_older_than_the_capture_are_closed_when_asked() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.service(5432);
    let to: SocketAddr = format!("{HOST_V4}:5432").parse().unwrap();
    let mut old = bed.agent.run(|| TcpStream::connect(to).unwrap());
    let mut greeting = [0; 8];
    old.read_exact(&mut greeting).unwrap();
    bed.attach(&[5432]);
    let options = capture::AttachOptions { destroy_existing: true, ..bed.options(&[5432]) };
    let kept = capture::AttachOptions {
        exempt: vec![(format!("{AGENT_V4}/32").parse().unwrap(), vec![5432])],
        ..options.clone()
    };
    assert_eq!(close(&kept), 0, "exempt sources keep theirs");
    // A fresh attach counts the port as new, whoever owns the sockets.
    capture::detach(&bed.pins).unwrap();
    assert_eq!(close(&options), 1);
    let end = old.read(&mut greeting);
    assert!(matches!(&end, Err(e) if e.kind() == ErrorKind::ConnectionReset), "{end:?}");
    // What the daemon holds is not older than the capture.
    let _daemon = bed.daemon(&[5432]);
    assert_eq!(close(&options), 0);
}

fn close(options: &capture::AttachOptions) -> usize {
    match capture::attach(options) {
        Ok(report) => report.closed,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn what_weakens_the_capture_is_named() {
    if skip() {
        return;
    }
    let bed = Bed::new();
    bed.attach(&[5432]);
    assert!(bed.status().problems.is_empty());

    let elsewhere = bed.agent.run(|| Pins::open(&bed.pins));
    assert!(matches!(elsewhere, Err(CaptureError::Namespace { .. })), "{elsewhere:?}");

    let second =
        capture::AttachOptions { dir: bed.pins.with_file_name("second"), ..bed.options(&[5432]) };
    capture::attach(&second).unwrap();
    let status = bed.status();
    assert_eq!(status.foreign.unwrap().len(), 1);
    assert!(status.problems[0].contains("other sk_lookup"), "{:?}", status.problems);
    capture::detach(&second.dir).unwrap();

    std::fs::remove_file(bed.pins.join("link")).unwrap();
    let status = bed.status();
    assert!(status.unprotected() && status.problems[0].contains("link is gone"));
    assert_eq!(bed.attach(&[5432]).outcome, Outcome::Replaced);
    assert!(bed.status().problems.is_empty());
    assert_eq!(bed.agent.ask(&format!("{HOST_V4}:5432")), REFUSED);
}

async fn first_line(stream: &tokio::net::TcpStream) -> String {
    let mut buffer = [0; 64];
    loop {
        stream.readable().await.unwrap();
        match stream.try_read(&mut buffer) {
            Ok(n) => return String::from_utf8_lossy(&buffer[..n]).trim().to_owned(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// The object file, if it is where `cargo xtask build-ebpf` puts it.
fn object() -> Option<std::path::PathBuf> {
    let named = std::env::var_os("INTERCEPTOR_EBPF_OBJECT").map(Into::into);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../target").into(), Into::into);
    let built: std::path::PathBuf = target;
    named.or_else(|| Some(built.join("bpf/interceptor-capture.o"))).filter(|p| p.exists())
}
