//! SFTP and the old scp: whatever both sides send, nothing that policy refuses reaches the
//! server.
#![no_main]

use interceptor::wire::ssh::{scp, sftp};
use libfuzzer_sys::fuzz_target;

const GREETING: [u8; 9] = [0, 0, 0, 5, 1, 0, 0, 0, 3];

/// Types that may reach the server without a decision: the greeting, questions for paths, and
/// extensions that concern no file.
const UNJUDGED: [u8; 3] = [1, 16, 200];

fn message() -> String {
    "interceptor: no".to_owned()
}

fn guard(turns: &[(bool, &[u8])]) {
    let mut guard = sftp::Guard::new(sftp::Limits { requests: 8, ..sftp::Limits::default() });
    if guard.from_agent(&GREETING).is_err() {
        return;
    }
    let mut held = Vec::new();
    for (agent, bytes) in turns {
        let result = if *agent { guard.from_agent(bytes) } else { guard.from_server(bytes) };
        while let Some(step) = guard.next() {
            match step {
                sftp::Step::ToServer(bytes) => assert!(UNJUDGED.contains(&bytes[4])),
                sftp::Step::Judge { ticket, operation } => {
                    assert!(!operation.text().is_empty() && !operation.places.is_empty());
                    assert!(operation.places.iter().all(|place| place.path.starts_with('/')));
                    held.push(ticket);
                }
                sftp::Step::ToAgent(_) | sftp::Step::Ended(_) => {}
            }
        }
        if result.is_err() {
            break;
        }
        if bytes.len() % 3 == 0 {
            for ticket in held.drain(..) {
                let _ = guard.decide(ticket, sftp::Decision::Refuse { message: message() });
            }
        }
    }
    guard.end();
    while guard.next().is_some() {}
}

fn watcher(mut watcher: scp::Watcher, turns: &[(bool, &[u8])]) {
    for (agent, bytes) in turns {
        let result = if *agent { watcher.from_agent(bytes) } else { watcher.from_server(bytes) };
        while let Some(step) = watcher.next() {
            match step {
                scp::Step::Judge { ticket, entry } => {
                    assert!(!entry.name.contains('/') && !entry.paths.is_empty());
                    let _ = watcher.decide(ticket, scp::Decision::Refuse { message: message() });
                }
                scp::Step::Ended(_) => panic!("a refused file was transferred"),
                scp::Step::ToServer(_) | scp::Step::ToAgent(_) => {}
            }
        }
        if result.is_err() {
            break;
        }
    }
    watcher.end();
    assert!(watcher.next().is_none());
}

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let mut turns: Vec<(bool, &[u8])> = Vec::new();
    while let [head, tail @ ..] = rest {
        let (piece, after) = tail.split_at(tail.len().min(usize::from(head >> 1)));
        turns.push((head & 1 == 1, piece));
        rest = after;
    }
    guard(&turns);
    watcher(scp::Watcher::upload("up".to_owned(), false), &turns);
    watcher(scp::Watcher::download(vec!["a".to_owned(), "b/*".to_owned()]), &turns);
});
