//! Decisions that take their time, and what goes on meanwhile.

use super::*;

#[test]
fn what_is_held_does_not_hold_up_the_rest() {
    let mut rig = Rig::greeted();
    rig.hold = vec!["/held".into()];
    rig.send(open(1, "/held", OpenFlags::READ));
    rig.send(packet::stat(2, "/a"));
    rig.send(packet::rename(3, "/a", "/b"));
    assert_eq!(rig.server.done, ["stat /a", "rename /a /b"]);
    rig.grant();
    assert_eq!(rig.server.done[2], "open /held");
    rig.handle(1);
}

#[test]
fn a_late_permission_counts_for_the_path_that_was_judged() {
    let mut rig = Rig::greeted();
    rig.hold = vec!["/srv/a".into()];
    rig.refuse("/etc/shadow");
    rig.server.links.insert("/home/agent/x".into(), "/srv/a".into());
    rig.send(open(1, "x", OpenFlags::READ));
    // Somebody else turns the link round while a person looks at the question.
    rig.server.links.insert("/home/agent/x".into(), "/etc/shadow".into());
    rig.send(packet::stat(2, "/tmp"));
    rig.grant();
    assert_eq!(rig.status(1), StatusCode::PermissionDenied);
    assert_eq!(rig.server.done, ["stat /tmp"]);
    // The old question is closed.
    let old = rig.judged.len();
    rig.guard.decide(Ticket(1), Decision::Permit { withhold: false }).unwrap();
    rig.settle();
    assert_eq!(rig.judged.len(), old);
}

#[test]
fn a_path_that_never_stays_is_refused_in_the_end() {
    let mut rig = Rig::greeted();
    rig.hold = (0..20).map(|n| format!("/srv/{n}")).collect();
    rig.server.links.insert("/x".into(), "/srv/0".into());
    rig.send(open(1, "/x", OpenFlags::READ));
    for n in 1..20 {
        if rig.tickets.is_empty() {
            break;
        }
        rig.server.links.insert("/x".into(), format!("/srv/{n}"));
        rig.send(packet::stat(2, "/tmp"));
        rig.grant();
    }
    assert_eq!(rig.status(1), StatusCode::Failure);
    assert!(rig.judged.len() < 40);
}

#[test]
fn a_pipelined_link_cannot_pass_an_open_that_was_judged_before_it() {
    let mut rig = Rig::greeted();
    rig.refuse("/etc/shadow");
    rig.server.links.insert("/home/agent/x".into(), "/srv".into());
    // All at once, before the server has answered anything.
    rig.stalled = Some(Vec::new());
    let burst = [
        packet::remove(1, "x"),
        packet::symlink(2, "/etc", "x"),
        open(3, "x/shadow", OpenFlags::READ),
    ];
    rig.send(burst.concat());
    while rig.stalled.as_ref().is_some_and(|waiting| !waiting.is_empty()) {
        let answers = rig.stalled.replace(Vec::new()).unwrap();
        rig.guard.from_server(&answers).unwrap();
        rig.settle();
    }
    assert_eq!(rig.status(3), StatusCode::PermissionDenied);
    assert_eq!(rig.judged.last().unwrap().places[0].path, "/etc/shadow");
}

#[test]
fn what_depends_on_a_new_directory_waits_for_it() {
    let mut rig = Rig::greeted();
    rig.server.missing = vec!["/home/agent/d/f".into()];
    rig.stalled = Some(Vec::new());
    rig.send([packet::mkdir(1, "d"), open(2, "d/f", OpenFlags::WRITE)].concat());
    rig.unstall();
    assert_eq!(rig.server.done, ["mkdir /home/agent/d", "open /home/agent/d/f"]);
}

#[test]
fn resolutions_are_pipelined() {
    let mut rig = Rig::greeted();
    rig.stalled = Some(Vec::new());
    let burst: Vec<u8> = (0..100).flat_map(|n| packet::stat(n, &format!("/f{n}"))).collect();
    let before = rig.server.resolutions;
    rig.send(burst);
    assert_eq!(rig.server.resolutions - before, 100);
    rig.unstall();
    assert_eq!(rig.server.done.len(), 100);
    // Judged at once: nothing had to be asked again.
    assert_eq!(rig.server.resolutions - before, 100);
}

#[test]
fn packets_of_a_handle_keep_their_order_around_a_held_one() {
    let mut rig = Rig::greeted();
    rig.send(open(1, "/f", OpenFlags::WRITE | OpenFlags::TRUNCATE));
    rig.send(open(2, "/g", OpenFlags::WRITE | OpenFlags::TRUNCATE));
    let (f, g) = (rig.handle(1), rig.handle(2));
    rig.hold = vec!["/f".into()];
    rig.server.done.clear();
    rig.send(packet::write(3, &f, 0, b"abc"));
    rig.send(packet::fsetsize(4, &f, 2));
    rig.send(packet::write(5, &f, 2, b"d"));
    rig.send(packet::close(6, &f));
    rig.send(packet::write(7, &g, 0, b"x"));
    assert_eq!(rig.server.done, ["write /f 0", "write /g 0"]);
    rig.grant();
    assert_eq!(rig.server.done[2..], ["on handle 10", "write /f 2", "close /f"]);
    assert!(!rig.ended[0].complete);
}

#[test]
fn a_refused_change_of_a_handle_lets_it_go_on() {
    let mut rig = Rig::greeted();
    rig.send(open(1, "/f", OpenFlags::WRITE | OpenFlags::TRUNCATE));
    let f = rig.handle(1);
    rig.refuse("/f");
    rig.send(packet::fsetsize(2, &f, 9));
    rig.send(packet::close(3, &f));
    assert_eq!(rig.status(2), StatusCode::PermissionDenied);
    assert_eq!(rig.status(3), StatusCode::Ok);
}

#[test]
fn a_copy_on_the_server_is_a_read_and_a_write() {
    let mut rig = Rig::greeted();
    rig.send(open(1, "/from", OpenFlags::READ));
    rig.send(open(2, "/to", OpenFlags::WRITE | OpenFlags::TRUNCATE));
    let (from, to) = (rig.handle(1), rig.handle(2));
    rig.send(packet::copy(3, &from, &to, 10));
    assert_eq!(rig.judged[2].text(), "copy /from -> /to, 10 bytes from 0 to 0");
    let touches: Vec<_> = rig.judged[2].places.iter().map(|place| place.touch).collect();
    assert_eq!(touches, [Touch::Read, Touch::Write]);
    rig.send(packet::copy(4, &to, &from, 10));
    assert_eq!(rig.status(4), StatusCode::PermissionDenied);
    rig.refuse("/from");
    rig.send(packet::copy(5, &from, &to, 10));
    assert_eq!(rig.status(5), StatusCode::PermissionDenied);
    rig.send(packet::close(6, &to));
    // What was copied did not pass here.
    assert!(!rig.ended[0].complete);
    assert_eq!(rig.server.done, ["open /from", "open /to", "copy /from /to", "close /to"]);
}

#[test]
fn requests_beyond_the_limit_wait_and_are_taken_up_again() {
    let mut rig = Rig::with(Limits { requests: 4, ..Limits::default() });
    rig.hold = (0..4).map(|n| format!("/f{n}")).collect();
    let burst: Vec<u8> = (0..8).flat_map(|n| packet::stat(n, &format!("/f{n}"))).collect();
    rig.send(burst);
    assert!(rig.guard.is_full());
    assert!(rig.server.done.is_empty());
    for _ in 0..4 {
        rig.grant();
    }
    assert_eq!(rig.server.done.len(), 8);
    assert!(!rig.guard.is_full());
}
