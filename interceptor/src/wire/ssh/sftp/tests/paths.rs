//! Which path is judged, and which one the server is asked for.

use super::*;

fn places(operation: &Operation) -> Vec<(&str, Touch)> {
    operation.places.iter().map(|place| (place.path.as_str(), place.touch)).collect()
}

#[test]
fn a_link_is_judged_and_opened_by_where_it_leads() {
    let mut rig = Rig::greeted();
    rig.server.links.insert("/home/agent/x".into(), "/etc/shadow".into());
    rig.refuse("/etc/shadow");
    rig.send(open(1, "x", OpenFlags::READ));
    rig.send(packet::stat(2, "x"));
    rig.send(packet::setstat(3, "x", 0o777));
    for id in 1..=3 {
        assert_eq!(rig.status(id), StatusCode::PermissionDenied);
    }
    rig.server.links.insert("/home/agent/y".into(), "/srv/data".into());
    rig.send(open(4, "y", OpenFlags::READ));
    // By the path that was judged, so that turning the link round changes nothing.
    assert_eq!(rig.server.done, ["open /srv/data"]);
}

#[test]
fn operations_on_a_name_keep_it() {
    let mut rig = Rig::greeted();
    rig.server.links.insert("/home/agent/x".into(), "/etc/shadow".into());
    rig.server.links.insert("/home/agent/dir".into(), "/srv".into());
    rig.send(packet::lstat(1, "x"));
    rig.send(packet::readlink(2, "dir/x"));
    rig.send(packet::remove(3, "dir/../a"));
    rig.send(packet::mkdir(4, "dir/new/"));
    rig.send(packet::rename(5, "dir/a", "/tmp/b"));
    rig.send(packet::hardlink(6, "x", "dir/h"));
    assert_eq!(
        rig.server.done,
        [
            "lstat /home/agent/x",
            "readlink /srv/x",
            "remove /a",
            "mkdir /srv/new",
            "rename /srv/a /tmp/b",
            "hardlink /home/agent/x /srv/h",
        ]
    );
    assert_eq!(places(&rig.judged[4]), [("/srv/a", Touch::Move), ("/tmp/b", Touch::Write)]);
    let linked = [("/home/agent/x", Touch::ReadWrite), ("/srv/h", Touch::Write)];
    assert_eq!(places(&rig.judged[5]), linked);
}

#[test]
fn a_new_file_is_made_where_its_name_is() {
    let mut rig = Rig::greeted();
    rig.server.links.insert("/home/agent/x".into(), "/etc/cron.d/x".into());
    let new = OpenFlags::WRITE | OpenFlags::CREATE;
    // The kernel refuses to follow with both flags, and follows with one.
    rig.send(open(1, "x", new | OpenFlags::EXCLUDE));
    rig.send(open(2, "x", new));
    assert_eq!(places(&rig.judged[0]), [("/home/agent/x", Touch::Write)]);
    assert_eq!(places(&rig.judged[1]), [("/etc/cron.d/x", Touch::Write)]);
}

#[test]
fn opening_is_judged_by_what_the_server_makes_of_the_flags() {
    let cases = [
        (OpenFlags::READ, Touch::Read),
        (OpenFlags::WRITE, Touch::Write),
        (OpenFlags::READ | OpenFlags::WRITE, Touch::ReadWrite),
        // Cuts the file although it is opened for reading.
        (OpenFlags::READ | OpenFlags::TRUNCATE, Touch::ReadWrite),
        // Opens for reading.
        (OpenFlags::empty(), Touch::Read),
        (OpenFlags::CREATE, Touch::ReadWrite),
        (OpenFlags::WRITE | OpenFlags::APPEND, Touch::Write),
    ];
    for (flags, touch) in cases {
        let mut rig = Rig::greeted();
        rig.send(open(1, "/a", flags));
        assert_eq!(rig.judged[0].places[0].touch, touch, "{}", flags.bits());
    }
}

#[test]
fn a_symlink_is_judged_by_its_place_and_by_what_it_leads_to() {
    let mut rig = Rig::greeted();
    rig.server.links.insert("/home/agent/dir".into(), "/srv".into());
    rig.send(packet::symlink(1, "../etc/shadow", "dir/x"));
    assert_eq!(
        rig.judged[0].text(),
        "symlink /srv/x (asked: dir/x) -> /etc/shadow (asked: ../etc/shadow)"
    );
    // The link says what the agent wrote.
    assert_eq!(rig.server.done, ["symlink /srv/x to ../etc/shadow"]);
}

#[test]
fn a_symlink_may_lead_to_nothing() {
    let mut rig = Rig::greeted();
    rig.server.missing = vec!["/no/such".into()];
    rig.send(packet::symlink(1, "/no/such", "x"));
    assert!(!rig.judged[0].places[1].resolved);
    assert_eq!(rig.server.done, ["symlink /home/agent/x to /no/such"]);
}

#[test]
fn what_cannot_be_resolved_is_judged_as_it_reads_and_not_sent() {
    let mut rig = Rig::greeted();
    rig.server.missing = vec!["/home/agent/no/x".into(), "/etc/no".into()];
    rig.send(open(1, "no/./x", OpenFlags::READ));
    let place = &rig.judged[0].places[0];
    assert_eq!((place.path.as_str(), place.resolved), ("/home/agent/no/x", false));
    assert_eq!(rig.status(1), StatusCode::NoSuchFile);
    assert!(rig.server.done.is_empty());
    // Whether it is there is told only to who may know.
    rig.refuse("/etc/no");
    rig.send(packet::stat(2, "/etc/no"));
    assert_eq!(rig.status(2), StatusCode::PermissionDenied);
}

#[test]
fn a_realpath_is_answered_with_what_was_judged() {
    let mut rig = Rig::greeted();
    rig.server.links.insert("/home/agent/x".into(), "/srv/y".into());
    rig.send(packet::realpath(5, "x"));
    let Some(Packet::Name(name)) = rig.answers.last() else { panic!("{:?}", rig.answers) };
    assert_eq!((name.id, name.files[0].filename.as_str()), (5, "/srv/y"));
    rig.refuse("/srv/y");
    rig.send(packet::realpath(6, "x"));
    assert_eq!(rig.status(6), StatusCode::PermissionDenied);
}

#[test]
fn paths_that_are_no_text_are_refused() {
    let mut rig = Rig::greeted();
    rig.send(packet::raw(17, 1, &packet::string(b"/tmp/\xff")));
    rig.send(packet::raw(17, 2, &packet::string(b"/tmp/a\0b")));
    rig.send(packet::stat(3, &format!("/{}", "x".repeat(4095))));
    rig.send(packet::extended(4, "statvfs@openssh.com", &packet::string(b"\xff")));
    for id in 1..=4 {
        let (code, message) = rig.status_text(id);
        assert_eq!(code, StatusCode::BadMessage, "{id}");
        assert!(message.starts_with("interceptor: "), "{message}");
    }
    // A path that holds the replacement character itself is a path.
    rig.send(packet::stat(5, "/tmp/\u{fffd}"));
    rig.server.not_text = vec!["/tmp/link".into()];
    rig.send(packet::stat(6, "/tmp/link"));
    assert_eq!(rig.status_text(6).1, "interceptor: the path leads to one that is not UTF-8");
    assert_eq!(rig.server.done, ["stat /tmp/\u{fffd}"]);
}

#[test]
fn what_was_not_decoded_is_not_sent() {
    let mut rig = Rig::greeted();
    // Bytes at the end, an unknown attribute, an unknown flag.
    rig.send(packet::raw(17, 1, &[&packet::string(b"/a")[..], b"more"].concat()));
    let extended = [&packet::string(b"/a")[..], &0x8000_0000u32.to_be_bytes(), &[0; 4]].concat();
    rig.send(packet::raw(9, 2, &extended));
    let flags = [&packet::string(b"/a")[..], &0x101u32.to_be_bytes(), &[0; 4]].concat();
    rig.send(packet::raw(3, 3, &flags));
    for id in 1..=3 {
        assert_eq!(rig.status(id), StatusCode::BadMessage, "{id}");
    }
    assert!(rig.judged.is_empty() && rig.server.done.is_empty());
}

#[test]
fn attributes_stand_in_the_record_in_words() {
    let mut rig = Rig::greeted();
    rig.send(packet::setstat(1, "/a", 0o4755));
    assert_eq!(rig.judged[0].text(), "setstat /a, mode 4755");
    rig.send(open(2, "/a\n", OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE));
    assert_eq!(rig.judged[1].text(), "open /a\\n write create truncate");
}
