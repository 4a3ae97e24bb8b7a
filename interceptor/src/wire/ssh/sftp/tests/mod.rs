//! The guard between a scripted agent and a server in memory; the real server is in
//! [`real_server`].

mod bulk;
mod held;
mod malformed;
mod packet;
mod paths;
mod properties;
mod real_server;
mod rig;
mod server;

use russh_sftp::protocol::{OpenFlags, StatusCode};

use self::packet::open;
use self::rig::Rig;
use super::*;

#[test]
fn the_greeting_names_only_extensions_that_may_be_used() {
    let mut rig = Rig::new();
    rig.server.extensions =
        vec![("limits@openssh.com", "1"), ("vendor-id", "x"), ("fsync@openssh.com", "1")];
    rig.greet();
    let Some(Packet::Version(version)) = rig.answers.pop() else { panic!("no greeting") };
    let mut names: Vec<_> = version.extensions.keys().cloned().collect();
    names.sort();
    assert_eq!(
        (version.version, names.as_slice()),
        (3, &["fsync@openssh.com".into(), "limits@openssh.com".into()][..])
    );
}

#[test]
fn a_newer_agent_is_answered_in_version_three() {
    let mut rig = Rig::new();
    let init = [0, 0, 0, 5, 1, 0, 0, 0, 6];
    rig.agent(&init);
    assert_eq!(rig.server.version_asked, Some(3));
}

#[test]
fn what_is_permitted_is_done_and_told() {
    let mut rig = Rig::greeted();
    rig.server.file("/home/agent/a.txt", b"hello");
    rig.send(open(1, "a.txt", OpenFlags::READ));
    let handle = rig.handle(1);
    rig.send(packet::read(2, &handle, 0, 100));
    rig.send(packet::read(3, &handle, 5, 100));
    rig.send(packet::close(4, &handle));

    assert_eq!(rig.judged[0].text(), "open /home/agent/a.txt (asked: a.txt) read");
    assert_eq!(rig.judged[0].places[0].touch, Touch::Read);
    assert_eq!(rig.data(2), b"hello");
    assert_eq!(rig.status(3), StatusCode::Eof);
    let [transfer] = &rig.ended[..] else { panic!("{:?}", rig.ended) };
    assert_eq!(transfer.path, "/home/agent/a.txt");
    assert_eq!((transfer.direction, transfer.bytes), (Direction::Read, 5));
    assert!(transfer.complete);
    assert_eq!(transfer.sha256, rig::sha256(b"hello"));
}

#[test]
fn what_is_refused_does_not_reach_the_server() {
    let mut rig = Rig::greeted();
    rig.refuse("/etc/shadow");
    rig.send(open(7, "/etc/shadow", OpenFlags::READ));
    let (code, message) = rig.status_text(7);
    assert_eq!(code, StatusCode::PermissionDenied);
    assert_eq!(message, "interceptor: denied by rule \"test\"");
    assert!(rig.server.done.is_empty(), "{:?}", rig.server.done);
    // The channel goes on.
    rig.send(packet::stat(8, "/tmp"));
    assert_eq!(rig.server.done, ["stat /tmp"]);
}

#[test]
fn withheld_content_is_not_read_and_the_rest_goes_on() {
    let mut rig = Rig::greeted();
    rig.withhold("/srv/cards");
    rig.send(open(1, "/srv/cards", OpenFlags::READ));
    rig.send(packet::rename(2, "/srv/cards", "/tmp/x"));
    rig.send(packet::hardlink(3, "/srv/cards", "/tmp/x"));
    for id in 1..=3 {
        assert_eq!(rig.status_text(id).1, "interceptor: the content of this file is withheld");
    }
    rig.send(packet::stat(4, "/srv/cards"));
    rig.send(open(5, "/srv/cards", OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE));
    assert_eq!(rig.server.done, ["stat /srv/cards", "open /srv/cards"]);
}

#[test]
fn unknown_types_and_extensions_stay_here() {
    let mut rig = Rig::greeted();
    rig.send(packet::raw(99, 1, b""));
    rig.send(packet::extended(2, "check-file@example.com", b"x"));
    // Types of the server's own.
    rig.send(packet::raw(101, 3, b"\0\0\0\0\0\0\0\0\0\0\0\0"));
    for id in 1..=3 {
        assert_eq!(rig.status(id), StatusCode::OpUnsupported);
    }
    assert!(rig.server.done.is_empty());
}

#[test]
fn answers_go_to_who_asked_whatever_ids_the_agent_uses() {
    let mut rig = Rig::greeted();
    // The guard's own ids are small numbers too, and an agent may use one id twice.
    for path in ["/a", "/b", "/c"] {
        rig.send(packet::stat(1, path));
    }
    rig.send(packet::stat(u32::MAX, "/d"));
    assert_eq!(rig.server.done, ["stat /a", "stat /b", "stat /c", "stat /d"]);
    assert_eq!(rig.answers.len(), 4);
}

#[test]
fn handles_are_told_apart_though_they_are_no_text() {
    let mut rig = Rig::greeted();
    rig.server.next_handle = 0x80;
    rig.server.file("/a", b"aaaa");
    rig.server.file("/b", b"bb");
    rig.send(open(1, "/a", OpenFlags::READ));
    rig.send(open(2, "/b", OpenFlags::READ));
    let (a, b) = (rig.handle(1), rig.handle(2));
    assert_eq!(a, [0, 0, 0, 0x80]);
    rig.send(packet::read(3, &b, 0, 9));
    rig.send(packet::close(4, &a));
    rig.send(packet::close(5, &b));
    let told: Vec<_> = rig.ended.iter().map(|t| (t.path.as_str(), t.bytes)).collect();
    assert_eq!(told, [("/a", 0), ("/b", 2)]);
}

#[test]
fn a_handle_serves_only_what_it_was_opened_for() {
    let mut rig = Rig::greeted();
    rig.server.file("/a", b"secret");
    rig.send(open(1, "/a", OpenFlags::WRITE));
    rig.send(open(2, "/a", OpenFlags::READ));
    rig.send(packet::opendir(3, "/"));
    let (w, r, d) = (rig.handle(1), rig.handle(2), rig.handle(3));
    rig.send(packet::read(4, &w, 0, 10));
    rig.send(packet::write(5, &r, 0, b"x"));
    rig.send(packet::readdir(6, &r));
    rig.send(packet::read(7, &d, 0, 10));
    for id in 4..=7 {
        assert_eq!(rig.status(id), StatusCode::PermissionDenied, "{id}");
    }
    rig.send(packet::read(8, b"no such", 0, 10));
    assert_eq!(rig.status(8), StatusCode::Failure);
    rig.send(packet::close(9, &w));
    rig.send(packet::write(10, &w, 0, b"x"));
    assert_eq!(rig.status(10), StatusCode::Failure);
}

#[test]
fn open_handles_are_bounded() {
    let mut rig = Rig::with(Limits { handles: 3, ..Limits::default() });
    for id in 0..5 {
        rig.send(packet::opendir(id, "/"));
    }
    assert_eq!(rig.status_text(3).1, "interceptor: too many open files");
    let handle = rig.handle(0);
    rig.send(packet::close(9, &handle));
    rig.send(packet::opendir(10, "/"));
    rig.handle(10);
}

#[test]
fn an_unclosed_file_is_told_of_at_the_end() {
    let mut rig = Rig::greeted();
    rig.send(open(1, "/new", OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE));
    let handle = rig.handle(1);
    rig.send(packet::write(2, &handle, 0, b"half"));
    rig.guard.end();
    rig.settle();
    let [transfer] = &rig.ended[..] else { panic!("{:?}", rig.ended) };
    assert_eq!((transfer.bytes, transfer.complete), (4, false));
    assert_eq!(transfer.failure.as_deref(), Some("not closed"));
    assert_eq!(rig.guard.from_agent(b"x"), Err(SftpError::Over));
}
