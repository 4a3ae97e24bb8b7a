//! Bytes that are no SFTP: the channel ends, and nothing of them reaches the other side.

use super::*;

fn fault(bytes: &[u8]) -> SftpError {
    let mut rig = Rig::greeted();
    let error = rig.guard.from_agent(bytes).unwrap_err();
    assert!(rig.guard.next().is_none());
    assert_eq!(rig.guard.from_agent(b""), Err(SftpError::Over));
    assert_eq!(rig.guard.from_server(b""), Err(SftpError::Over));
    error
}

#[test]
fn lengths_out_of_bounds_end_the_channel_at_once() {
    let long = u32::try_from(MAX_PACKET + 1).unwrap();
    let error = FrameError::TooLong(long);
    assert_eq!(fault(&long.to_be_bytes()), SftpError::Agent(error.into()));
    for short in 0..5u32 {
        let error = FrameError::TooShort(short);
        assert_eq!(fault(&short.to_be_bytes()), SftpError::Agent(error.into()));
    }
}

#[test]
fn fields_that_run_past_the_packet_end_the_channel() {
    let cases: Vec<Vec<u8>> = vec![
        packet::raw(3, 1, b"\0\0\0\xffx"),
        packet::raw(4, 1, b""),
        packet::raw(4, 1, b"\0\0\0\x01hh"),
        packet::raw(4, 1, &packet::string(&[b'h'; 257])),
        packet::raw(5, 1, &packet::string(b"h")),
        packet::raw(6, 1, &[&packet::string(b"h")[..], &[0; 8], b"\0\0\0\x09x"].concat()),
        packet::raw(6, 1, &[&packet::string(b"h")[..], &[0; 8], b"\0\0\0\x01xx"].concat()),
        packet::raw(10, 1, &[&packet::string(b"h")[..], b"\0\0\0\x01"].concat()),
        packet::raw(20, 1, &packet::string(b"one")),
        packet::raw(200, 1, b"\0\0\0"),
        packet::extended(1, "copy-data", b"\0\0\0\x01h"),
        packet::extended(1, "fsync@openssh.com", b"\0\0\0\x01hh"),
        packet::extended(1, "hardlink@openssh.com", b"\0\0\0\x01h"),
    ];
    for bytes in cases {
        let error = fault(&bytes);
        assert!(matches!(error, SftpError::Agent(Fault::Malformed(_))), "{bytes:?}: {error}");
    }
}

#[test]
fn the_greeting_comes_first_and_once() {
    let mut guard = Guard::new(Limits::default());
    let error = guard.from_agent(&packet::stat(1, "/")).unwrap_err();
    assert_eq!(error, SftpError::Agent(Fault::OutOfTurn(17)));
    assert_eq!(fault(&[0, 0, 0, 5, 1, 0, 0, 0, 3]), SftpError::Agent(Fault::OutOfTurn(1)));
    let mut guard = Guard::new(Limits::default());
    let error = guard.from_agent(&[0, 0, 0, 5, 1, 0, 0, 0, 2]).unwrap_err();
    assert_eq!(error, SftpError::Agent(Fault::Version(2)));
    let mut guard = Guard::new(Limits::default());
    assert!(matches!(guard.from_server(&packet::raw(101, 1, &[0; 12])), Err(SftpError::Server(_))));
}

#[test]
fn a_greeting_of_another_version_ends_the_channel() {
    let mut guard = Guard::new(Limits::default());
    guard.from_agent(&[0, 0, 0, 5, 1, 0, 0, 0, 6]).unwrap();
    let error = guard.from_server(&[0, 0, 0, 5, 2, 0, 0, 0, 4]).unwrap_err();
    assert_eq!(error, SftpError::Server(Fault::Version(4)));
}

/// What the server may not answer to a READ of ten bytes.
#[test]
fn an_answer_to_something_else_ends_the_channel() {
    let wrong: [(u8, &[u8]); 4] =
        [(102, b"\0\0\0\x01h"), (103, b"\0\0\0\x0b01234567890"), (103, b"\0\0\0\x02x"), (1, b"")];
    for (kind, rest) in wrong {
        let mut rig = Rig::greeted();
        rig.send(open(1, "/f", OpenFlags::READ));
        let handle = rig.handle(1);
        rig.guard.from_agent(&packet::read(2, &handle, 0, 10)).unwrap();
        let Some(Step::ToServer(asked)) = rig.guard.next() else { panic!("not asked") };
        let id = u32::from_be_bytes(asked[5..9].try_into().unwrap());
        let error = rig.guard.from_server(&packet::raw(kind, id, rest)).unwrap_err();
        assert!(matches!(error, SftpError::Server(_)), "{kind}: {error}");
        assert!(rig.guard.next().is_none());
    }
    let mut rig = Rig::greeted();
    let unasked = packet::raw(101, 4711, &[0; 12]);
    assert!(matches!(rig.guard.from_server(&unasked), Err(SftpError::Server(_))));
}

#[test]
fn an_agent_that_does_not_stop_is_ended() {
    let mut rig = Rig::with(Limits { requests: 1, ..Limits::default() });
    rig.hold = vec!["/".into()];
    rig.send(packet::stat(1, "/"));
    assert!(rig.guard.is_full());
    let chunk = packet::stat(2, &"/x".repeat(2000)).repeat(200);
    let error = (0..100).find_map(|_| rig.guard.from_agent(&chunk).err());
    assert!(matches!(error, Some(SftpError::Agent(Fault::Overrun(_)))), "{error:?}");
}
