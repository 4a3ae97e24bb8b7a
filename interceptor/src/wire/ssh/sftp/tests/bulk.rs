//! File content: untouched, hashed in the file's order, and accounted for.

use super::*;

/// Opens `/f` and gives its handle.
fn opened(rig: &mut Rig, flags: OpenFlags) -> Vec<u8> {
    rig.send(open(0, "/f", flags));
    rig.handle(0)
}

fn written(flags: OpenFlags, pieces: &[(u64, &[u8])]) -> Transfer {
    let mut rig = Rig::greeted();
    let handle = opened(&mut rig, flags);
    for (n, (offset, data)) in (1..).zip(pieces) {
        rig.send(packet::write(n, &handle, *offset, data));
    }
    rig.send(packet::close(99, &handle));
    rig.ended.remove(0)
}

const NEW: OpenFlags = OpenFlags::WRITE.union(OpenFlags::CREATE).union(OpenFlags::TRUNCATE);

#[test]
fn an_upload_out_of_order_is_hashed_in_order() {
    let transfer = written(NEW, &[(2, b"cd"), (4, b"ef"), (0, b"ab"), (6, b"g")]);
    assert!(transfer.complete);
    assert_eq!(transfer.sha256, rig::sha256(b"abcdefg"));
    assert_eq!(transfer.ranges, [(0, 7)]);
}

#[test]
fn what_is_no_whole_file_is_not_called_one() {
    let gap = written(NEW, &[(0, b"ab"), (10, b"cd")]);
    assert_eq!((gap.complete, gap.ranges), (false, vec![(0, 2), (10, 12)]));
    assert_eq!(gap.sha256, rig::sha256(b"abcd"));
    assert!(!written(NEW, &[(0, b"ab"), (0, b"cd")]).complete);
    assert!(!written(NEW, &[(0, b"abcd"), (2, b"x"), (4, b"e")]).complete);
    // An earlier content may be left behind what was written.
    assert!(!written(OpenFlags::WRITE, &[(0, b"ab")]).complete);
    assert!(!written(NEW | OpenFlags::APPEND, &[(0, b"ab")]).complete);
    assert!(written(NEW, &[]).complete);
}

#[test]
fn a_download_is_whole_by_its_size_or_by_its_end() {
    for ask_for_end in [false, true] {
        let mut rig = Rig::greeted();
        rig.server.file("/f", b"0123456789");
        let handle = opened(&mut rig, OpenFlags::READ);
        rig.send(packet::read(2, &handle, 4, 6));
        rig.send(packet::read(1, &handle, 0, 4));
        if ask_for_end {
            rig.send(packet::read(3, &handle, 10, 4));
        }
        rig.send(packet::close(4, &handle));
        assert!(rig.ended[0].complete);
        assert_eq!(rig.ended[0].sha256, rig::sha256(b"0123456789"));
    }
    let mut rig = Rig::greeted();
    rig.server.file("/f", b"0123456789");
    let handle = opened(&mut rig, OpenFlags::READ);
    rig.send(packet::read(1, &handle, 0, 4));
    rig.send(packet::close(2, &handle));
    assert!(!rig.ended[0].complete);
}

#[test]
fn a_file_opened_both_ways_is_told_of_for_both() {
    let mut rig = Rig::greeted();
    let handle = opened(&mut rig, NEW | OpenFlags::READ);
    rig.send(packet::write(1, &handle, 0, b"abc"));
    rig.send(packet::read(2, &handle, 0, 3));
    rig.send(packet::close(3, &handle));
    let told: Vec<_> = rig.ended.iter().map(|t| (t.direction, t.bytes)).collect();
    assert_eq!(told, [(Direction::Read, 3), (Direction::Write, 3)]);
}

#[test]
fn early_pieces_are_bounded() {
    let mut rig = Rig::with(Limits { window: 10, ..Limits::default() });
    let handle = opened(&mut rig, NEW);
    rig.send(packet::write(1, &handle, 8, b"12345678"));
    rig.send(packet::write(2, &handle, 16, b"12345678"));
    rig.send(packet::write(3, &handle, 0, b"12345678"));
    rig.send(packet::close(4, &handle));
    assert_eq!((rig.ended[0].complete, rig.ended[0].bytes), (false, 24));
    assert_eq!(rig.guard.handles.window, 10);
}

#[test]
fn ranges_are_merged_and_bounded() {
    let mut passage = transfer::Passage::new();
    let mut window = 0;
    for n in (0..100u64).step_by(2) {
        passage.piece(n, Bytes::from_static(b"x"), &mut window);
    }
    let ended = passage.end("/f", Direction::Write, &mut window, |_| true);
    assert_eq!((ended.ranges.len(), ended.more_ranges), (MAX_RANGES, true));

    let mut passage = transfer::Passage::new();
    for n in [0u64, 4, 2, 1, 3] {
        passage.piece(n, Bytes::from_static(b"x"), &mut window);
    }
    let ended = passage.end("/f", Direction::Write, &mut window, |_| true);
    assert_eq!(ended.ranges, [(0, 5)]);
}

#[test]
fn bulk_bytes_pass_as_they_are() {
    let mut rig = Rig::greeted();
    let handle = opened(&mut rig, NEW);
    let mut guard = rig.guard;
    let sent = packet::write(77, &handle, 0, &[0xff; 40_000]);
    guard.from_agent(&sent).unwrap();
    let Some(Step::ToServer(bytes)) = guard.next() else { panic!("nothing is sent") };
    assert_eq!(bytes[..5], sent[..5]);
    assert_eq!(bytes[9..], sent[9..]);
}

const PIECE: usize = 32 << 10;
const COUNT: usize = 16_384;

/// Run with `cargo test --release -p interceptor --lib sftp::tests::bulk -- --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn throughput() {
    let data = vec![0x5a; PIECE];
    let hashing = timed(|| {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        (0..COUNT).for_each(|_| hash.update(&data));
        std::hint::black_box(hash.finish());
    });
    for (name, flags) in [("upload", NEW), ("download", OpenFlags::READ)] {
        let mut rig = Rig::greeted();
        let handle = opened(&mut rig, flags);
        let mut guard = rig.guard;
        let whole = timed(|| (0..COUNT).for_each(|n| one(&mut guard, &handle, n, &data, flags)));
        println!(
            "{name} {:.0} MB/s with the hash, {:.0} MB/s without; the hash alone {:.0} MB/s",
            rate(whole),
            rate(whole.saturating_sub(hashing)),
            rate(hashing)
        );
    }
}

/// One piece and its answer, as they come through a channel.
fn one(guard: &mut Guard, handle: &[u8], n: usize, data: &[u8], flags: OpenFlags) {
    let offset = (n * PIECE) as u64;
    let id = u32::try_from(n).unwrap();
    let reads = flags.contains(OpenFlags::READ);
    let asked = match reads {
        true => packet::read(id, handle, offset, u32::try_from(PIECE).unwrap()),
        false => packet::write(id, handle, offset, data),
    };
    for piece in asked.chunks(32 << 10) {
        guard.from_agent(piece).unwrap();
    }
    while let Some(step) = guard.next() {
        let Step::ToServer(bytes) = step else { continue };
        let id = u32::from_be_bytes(bytes[5..9].try_into().unwrap());
        let answer = match reads {
            true => packet::raw(103, id, &packet::string(data)),
            false => packet::raw(101, id, &[0; 12]),
        };
        for piece in answer.chunks(32 << 10) {
            guard.from_server(piece).unwrap();
        }
    }
}

/// Processor time, since other work may share the machine.
fn timed(work: impl FnOnce()) -> std::time::Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;

    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
        let time = usage.user_time() + usage.system_time();
        std::time::Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap())
    };
    let start = used();
    work();
    used() - start
}

#[allow(clippy::cast_precision_loss, reason = "a measurement")]
fn rate(time: std::time::Duration) -> f64 {
    (COUNT * PIECE) as f64 / 1e6 / time.as_secs_f64()
}
