//! What holds for any bytes, cut anywhere.

use proptest::prelude::*;

use super::*;

/// A session of an agent: some of it permitted, some refused.
fn script() -> Vec<u8> {
    let handle = 0u32.to_be_bytes();
    [
        vec![0, 0, 0, 5, 1, 0, 0, 0, 3],
        packet::realpath(1, "."),
        open(2, "up", OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE),
        open(3, "/etc/shadow", OpenFlags::READ),
        packet::rename(4, "a", "b"),
        packet::symlink(5, "/etc/shadow", "c"),
        packet::stat(6, "c"),
        packet::write(7, &handle, 0, &[7; 1000]),
        packet::extended(8, "nonsense@example.com", b""),
        packet::write(9, &handle, 1000, &[9; 500]),
        packet::fsetsize(10, &handle, 1500),
        packet::close(11, &handle),
        packet::lstat(12, "c"),
    ]
    .concat()
}

/// All that can be seen of a session, in an order of its own.
#[derive(Debug, PartialEq)]
struct Seen {
    answers: Vec<(u32, Vec<u8>)>,
    judged: Vec<String>,
    done: Vec<String>,
    ended: Vec<Transfer>,
}

fn run(pieces: &[&[u8]]) -> Seen {
    let mut rig = Rig::new();
    rig.refuse("/etc/shadow");
    for piece in pieces {
        rig.agent(piece);
    }
    let mut answers: Vec<_> = rig
        .raw_answers
        .iter()
        .map(|raw| (u32::from_be_bytes(raw[5..9].try_into().unwrap()), raw[4..].to_vec()))
        .collect();
    answers.sort();
    // Only what depends on each other has an order.
    let mut judged: Vec<_> = rig.judged.iter().map(Operation::text).collect();
    judged.sort();
    judged.dedup();
    rig.server.done.sort();
    Seen { answers, judged, done: rig.server.done, ended: rig.ended }
}

proptest! {
    #[test]
    fn where_the_bytes_are_cut_makes_no_difference(mut cuts in prop::collection::vec(0usize..2200, 0..40)) {
        let script = script();
        // A handle is known only when it was opened, so the first use of it is a piece of its own.
        cuts.retain(|cut| *cut <= script.len());
        let opened = 9 + packet::realpath(1, ".").len()
            + open(2, "up", OpenFlags::WRITE).len();
        cuts.extend([0, opened, script.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &script[cut[0]..cut[1]]).collect();
        let bytewise: Vec<&[u8]> = script.chunks(1).collect();
        prop_assert_eq!(run(&pieces), run(&bytewise));
    }

    /// With a policy that refuses everything nothing but questions reaches the server.
    #[test]
    fn nothing_reaches_the_server_unjudged(
        packets in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)), 0..20),
        plain in prop::collection::vec((3u8..21, "[a-z/.]{0,12}"), 0..20),
    ) {
        let mut bytes = vec![0, 0, 0, 5, 1, 0, 0, 0, 3];
        for (kind, path) in &plain {
            let twice = packet::string(path.as_bytes()).repeat(2);
            bytes.extend(packet::raw(*kind, 1, &twice));
            bytes.extend(packet::raw(*kind, 1, &packet::string(path.as_bytes())));
        }
        for (kind, rest) in &packets {
            bytes.extend(packet::raw(*kind, 2, rest));
        }
        let mut guard = Guard::new(Limits::default());
        let mut server = server::Server::default();
        for chunk in bytes.chunks(50) {
            let mut alive = guard.from_agent(chunk).is_ok();
            while let Some(step) = guard.next() {
                match step {
                    Step::ToServer(bytes) => {
                        prop_assert!(matches!(bytes[4], 1 | 16), "type {}", bytes[4]);
                        alive &= guard.from_server(&server.serve(&bytes)).is_ok();
                    }
                    Step::Judge { ticket, .. } => {
                        let refuse = Decision::Refuse { message: "no".into() };
                        alive &= guard.decide(ticket, refuse).is_ok();
                    }
                    Step::ToAgent(_) | Step::Ended(_) => {}
                }
            }
            if !alive {
                break;
            }
        }
    }

    /// Pieces of a file in any order are hashed as the file.
    #[test]
    fn order_is_restored(order in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle(), size in 1usize..50) {
        let content: Vec<u8> = (0..40 * size).map(|n| (n % 251) as u8).collect();
        let mut passage = transfer::Passage::new();
        let mut window = 1 << 20;
        for n in order {
            let start = usize::try_from(n).unwrap() * size;
            let data = Bytes::copy_from_slice(&content[start..start + size]);
            passage.piece(start as u64, data, &mut window);
        }
        let whole = content.len() as u64;
        let ended = passage.end("/f", Direction::Write, &mut window, |next| next == whole);
        prop_assert!(ended.complete);
        prop_assert_eq!(ended.sha256, rig::sha256(&content));
        prop_assert_eq!(ended.ranges, vec![(0, whole)]);
        prop_assert_eq!(window, 1 << 20);
    }

    /// Pieces anywhere: all bytes are counted, and the ranges are those of a set.
    #[test]
    fn ranges_are_a_union(pieces in prop::collection::vec((0u64..60, 1usize..8), 0..25)) {
        let mut passage = transfer::Passage::new();
        let mut window = 100;
        let mut set = [false; 80];
        let mut bytes = 0;
        for (offset, len) in pieces {
            passage.piece(offset, Bytes::from(vec![0; len]), &mut window);
            bytes += len as u64;
            let offset = usize::try_from(offset).unwrap();
            set[offset..offset + len].fill(true);
        }
        let ended = passage.end("/f", Direction::Read, &mut window, |_| true);
        let mut expected: Vec<(u64, u64)> = Vec::new();
        for at in (0..80u64).filter(|at| set[usize::try_from(*at).unwrap()]) {
            match expected.last_mut() {
                Some(last) if last.1 == at => last.1 += 1,
                _ => expected.push((at, at + 1)),
            }
        }
        prop_assert_eq!(ended.bytes, bytes);
        prop_assert_eq!(ended.ranges, expected);
        prop_assert_eq!(window, 100);
    }
}
