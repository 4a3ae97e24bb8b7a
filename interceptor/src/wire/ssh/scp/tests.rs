//! Scripted sides, and real `scp` processes.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::wire::ssh::testing::{Pipes, Side, program};

fn sha256(data: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&SHA256, data).as_ref().try_into().unwrap()
}

/// What passed a watcher.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    to_server: Vec<u8>,
    to_agent: Vec<u8>,
    judged: Vec<Entry>,
    ended: Vec<File>,
}

/// Takes all steps; refuses entries with these names.
fn drain(watcher: &mut Watcher, seen: &mut Seen, refused: &[&str]) {
    while let Some(step) = watcher.next() {
        match step {
            Step::ToServer(bytes) => seen.to_server.extend_from_slice(&bytes),
            Step::ToAgent(bytes) => seen.to_agent.extend_from_slice(&bytes),
            Step::Ended(file) => seen.ended.push(file),
            Step::Judge { ticket, entry } => {
                let decision = match refused.contains(&entry.name.as_str()) {
                    true => Decision::Refuse { message: "interceptor: denied\nby rule".into() },
                    false => Decision::Permit { withhold: false },
                };
                seen.judged.push(entry);
                // An error is told again by the next call.
                let _ = watcher.decide(ticket, decision);
            }
        }
    }
}

fn upload() -> Watcher {
    Watcher::upload("up".into(), false)
}

/// An upload in turns: `>` from the agent, `<` from the server.
fn play(
    watcher: &mut Watcher,
    refused: &[&str],
    turns: &[(char, &[u8])],
) -> Result<Seen, ScpError> {
    let mut seen = Seen::default();
    for (side, bytes) in turns {
        let result = match side {
            '>' => watcher.from_agent(bytes),
            _ => watcher.from_server(bytes),
        };
        drain(watcher, &mut seen, refused);
        result?;
    }
    Ok(seen)
}

#[test]
fn an_upload_passes_after_its_line_was_judged() {
    let turns: &[(char, &[u8])] =
        &[('<', b"\0"), ('>', b"C0640 5 x\n"), ('<', b"\0"), ('>', b"hello\0"), ('<', b"\0")];
    let seen = play(&mut upload(), &[], turns).unwrap();
    assert_eq!(seen.to_server, b"C0640 5 x\nhello\0");
    assert_eq!(seen.to_agent, b"\0\0\0");
    let entry = &seen.judged[0];
    assert_eq!((entry.size, entry.mode, entry.directory), (5, 0o640, false));
    assert_eq!(entry.paths, ["up", "up/x"]);
    let [file] = &seen.ended[..] else { panic!("{:?}", seen.ended) };
    assert!(file.complete);
    assert_eq!((file.bytes, file.sha256), (5, sha256(b"hello")));
}

#[test]
fn nothing_of_a_refused_entry_reaches_the_server() {
    let turns: &[(char, &[u8])] = &[
        ('<', b"\0"),
        ('>', b"D0755 0 .ssh\n"),
        ('>', b"C0640 2 x\n"),
        ('>', b"C0640 2 y\n"),
        ('<', b"\0"),
        ('>', b"hi\0"),
        ('<', b"\0"),
    ];
    let seen = play(&mut upload(), &[".ssh", "x"], turns).unwrap();
    assert_eq!(seen.to_server, b"C0640 2 y\nhi\0");
    let refusal = b"\x01interceptor: denied by rule\n";
    assert_eq!(seen.to_agent, [&b"\0"[..], refusal, refusal, b"\0\0"].concat());
}

#[test]
fn a_source_that_does_not_wait_gains_nothing() {
    // The sink cannot make the first file, so what follows are lines to it.
    let smuggled = b"C0640 18 no\nC0640 4 .bashrc\nevil\0";
    let turns: &[(char, &[u8])] =
        &[('<', b"\0"), ('>', smuggled), ('<', b"\x01no: Permission denied\n"), ('<', b"\0")];
    let seen = play(&mut upload(), &[".bashrc"], turns);
    let names = |seen: &Seen| seen.judged.iter().map(|e| e.name.clone()).collect::<Vec<_>>();
    match seen {
        Ok(seen) => assert_eq!(names(&seen), ["no", ".bashrc"]),
        Err(e) => assert!(matches!(e, ScpError::Agent(_) | ScpError::Server(_)), "{e}"),
    }
    let mut watcher = upload();
    let mut seen = Seen::default();
    watcher.from_server(b"\0").unwrap();
    watcher.from_agent(smuggled).unwrap();
    drain(&mut watcher, &mut seen, &[".bashrc"]);
    assert_eq!(seen.to_server, b"C0640 18 no\n");
    watcher.from_server(b"\x01no: Permission denied\n").unwrap();
    drain(&mut watcher, &mut seen, &[".bashrc"]);
    assert_eq!(names(&seen), ["no", ".bashrc"]);
    assert_eq!(seen.to_server, b"C0640 18 no\n");
}

#[test]
fn directories_make_paths() {
    let turns: &[(char, &[u8])] = &[
        ('<', b"\0"),
        ('>', b"T1 0 1 0\n"),
        ('<', b"\0"),
        ('>', b"D0755 0 d\n"),
        ('<', b"\0"),
        ('>', b"C0644 0 x\n"),
        ('<', b"\0"),
        ('>', b"\0"),
        ('<', b"\0"),
        ('>', b"E\n"),
        ('<', b"\0"),
    ];
    let mut watcher = Watcher::upload("/srv".into(), true);
    let seen = play(&mut watcher, &[], turns).unwrap();
    let paths: Vec<_> = seen.judged.iter().flat_map(|entry| entry.paths.clone()).collect();
    assert_eq!(paths, ["/srv/d", "/srv/d/x"]);
    assert!(seen.ended[0].complete);
    assert_eq!(watcher.places.depth(), 0);
}

#[test]
fn a_refused_download_is_skipped_by_both_sides() {
    let turns: &[(char, &[u8])] = &[
        ('>', b"\0"),
        ('<', b"C0600 3 id_ed25519\n"),
        ('<', b"C0600 3 notes\n"),
        ('>', b"\0"),
        ('<', b"abc\0"),
        ('>', b"\0"),
    ];
    let mut watcher = Watcher::download(vec!["*".into()]);
    let seen = play(&mut watcher, &["id_ed25519"], turns).unwrap();
    let refusal = b"\x01interceptor: denied by rule\n";
    assert_eq!(seen.to_server, [&b"\0"[..], refusal, b"\0\0"].concat());
    assert_eq!(seen.to_agent, [&refusal[..], b"C0600 3 notes\nabc\0"].concat());
    assert!(!seen.judged[0].certain);
    assert_eq!(seen.ended[0].sha256, sha256(b"abc"));
}

#[test]
fn withheld_content_is_not_downloaded() {
    let mut watcher = Watcher::download(vec!["/srv/cards".into()]);
    watcher.from_agent(b"\0").unwrap();
    watcher.from_server(b"C0600 3 cards\n").unwrap();
    let ticket = loop {
        match watcher.next() {
            Some(Step::Judge { ticket, .. }) => break ticket,
            Some(_) => {}
            None => panic!("not judged"),
        }
    };
    watcher.decide(ticket, Decision::Permit { withhold: true }).unwrap();
    let mut seen = Seen::default();
    drain(&mut watcher, &mut seen, &[]);
    assert_eq!(seen.to_agent, b"\x01interceptor: the content of this file is withheld\n");
}

#[test]
fn what_breaks_the_protocol_ends_the_channel() {
    let cases: &[(&[u8], &[u8])] = &[
        (b"C0644 1 ../x\n", b""),
        (b"C0644 1 a/b\n", b""),
        (b"E\n", b""),
        (b"rm -rf /\n", b""),
        (b"\n", b""),
        // More data than was announced.
        (b"C0644 1 x\n", b"\0"),
        // An answer that nobody waits for.
        (b"", b"\0"),
    ];
    for (line, answer) in cases {
        let mut turns: Vec<(char, &[u8])> = vec![('<', b"\0"), ('>', line), ('<', answer)];
        if line.starts_with(b"C0644 1 x") {
            turns.push(('>', b"two bytes"));
        }
        let error = play(&mut upload(), &[], &turns).unwrap_err();
        assert_ne!(error, ScpError::Over, "{line:?}");
    }
    let long = [b"C0644 1 ".as_slice(), &[b'x'; 3000], b"\n"].concat();
    let turns: &[(char, &[u8])] = &[('<', b"\0"), ('>', &long)];
    let error = play(&mut upload(), &[], turns).unwrap_err();
    assert_eq!(error, ScpError::Agent("a line is too long"));
}

#[test]
fn an_interrupted_file_is_told_of() {
    let mut watcher = upload();
    let turns: &[(char, &[u8])] =
        &[('<', b"\0"), ('>', b"C0640 5 x\n"), ('<', b"\0"), ('>', b"he")];
    let mut seen = play(&mut watcher, &[], turns).unwrap();
    watcher.end();
    drain(&mut watcher, &mut seen, &[]);
    assert_eq!((seen.ended[0].bytes, seen.ended[0].complete), (2, false));
    assert_eq!(seen.ended[0].failure.as_deref(), Some("not finished"));
}

proptest! {
    /// Wherever both sides' bytes are cut, the same passes, is judged and is told of.
    #[test]
    fn cuts_make_no_difference(cuts in prop::collection::vec(1usize..12, 0..60)) {
        let turns: &[(char, &[u8])] = &[
            ('<', b"\0"), ('>', b"T1 0 1 0\n"), ('<', b"\0"), ('>', b"C0644 6 x\n"),
            ('<', b"\x01x: no\n"), ('>', b"C0644 10 no\n"), ('>', b"D0755 0 d\n"), ('<', b"\0"),
            ('>', b"C0644 26 y\n"), ('<', b"\0"), ('>', b"abcdefghijklmnopqrstuvwxyz\0"),
            ('<', b"\0"), ('>', b"E\n"), ('<', b"\0"),
        ];
        let whole = play(&mut upload(), &["no"], turns).unwrap();
        let mut sizes = cuts.iter().copied().chain(std::iter::repeat(1));
        let mut pieces = Vec::new();
        for (side, mut bytes) in turns.iter().copied() {
            while !bytes.is_empty() {
                let (piece, rest) = bytes.split_at(sizes.next().unwrap_or(1).min(bytes.len()));
                pieces.push((side, piece));
                bytes = rest;
            }
        }
        prop_assert_eq!(play(&mut upload(), &["no"], &pieces).unwrap(), whole);
    }

    /// Nothing but what a policy permits reaches the server, whatever is sent.
    #[test]
    fn nothing_passes_unjudged(
        turns in prop::collection::vec((prop::bool::ANY, "(\x00|\x01m\n|C0644 [0-9] [a-c]\n|D0755 0 d\n|E\n|T1 0 1 0\n|[a-z]{0,9})"), 0..30),
    ) {
        let mut watcher = upload();
        let mut seen = Seen::default();
        for (agent, bytes) in &turns {
            let result = match agent {
                true => watcher.from_agent(bytes.as_bytes()),
                false => watcher.from_server(bytes.as_bytes()),
            };
            drain(&mut watcher, &mut seen, &["a", "b", "c", "d"]);
            if result.is_err() {
                break;
            }
        }
        prop_assert!(!seen.to_server.iter().any(|byte| matches!(byte, b'C' | b'D')), "{:?}", seen);
    }
}

/// Runs a real `scp -O` against a real `scp` in `home`.
fn real(
    home: &Path,
    arguments: &[&str],
    server: &[&str],
    mut watcher: Watcher,
    refused: &[&str],
) -> Option<(bool, String, Seen)> {
    if program(&["/usr/bin/scp"]).is_none() {
        eprintln!("skipped: no scp here");
        return None;
    }
    let mut command = Command::new("/usr/bin/scp");
    command.args(server);
    let arguments = [&["-O", "-q"], arguments].concat();
    let mut pipes = Pipes::start("/usr/bin/scp", &arguments, &mut command, home);
    let mut seen = Seen::default();
    while let Some((side, bytes)) = pipes.recv() {
        match (side, bytes.is_empty()) {
            (Side::Agent, false) => watcher.from_agent(&bytes).unwrap(),
            (Side::Server, false) => watcher.from_server(&bytes).unwrap(),
            (Side::Agent, true) => pipes.close(Side::Server),
            (Side::Server, true) => pipes.close(Side::Agent),
        }
        drain(&mut watcher, &mut seen, refused);
        pipes.send(Side::Agent, Bytes::from(std::mem::take(&mut seen.to_agent)));
        pipes.send(Side::Server, Bytes::from(std::mem::take(&mut seen.to_server)));
    }
    let (ok, said) = pipes.finish();
    Some((ok, said, seen))
}

#[test]
fn a_real_tree_is_uploaded_but_for_what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join(".ssh")).unwrap();
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    let content: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    for (name, content) in [("sub/big", content.as_slice()), ("empty", b""), (".ssh/key", b"k")] {
        std::fs::write(tree.join(name), content).unwrap();
    }
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let watcher = Watcher::upload("up".into(), false);
    let arguments = ["-rp", tree.to_str().unwrap(), "host:up"];
    let Some((ok, said, seen)) = real(&home, &arguments, &["-rpt", "up"], watcher, &[".ssh"])
    else {
        return;
    };
    assert!(!ok && said.contains("interceptor: denied"), "{said}");
    assert_eq!(std::fs::read(home.join("up/sub/big")).unwrap(), content);
    assert!(home.join("up/empty").exists() && !home.join("up/.ssh").exists());
    let big = seen.ended.iter().find(|file| file.entry.name == "big").unwrap();
    assert!(big.complete && big.sha256 == sha256(&content));
    assert_eq!(big.entry.paths, ["up/sub/big", "up/tree/sub/big"]);
}

#[test]
fn a_real_tree_is_downloaded_but_for_what_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir_all(home.join("tree/sub")).unwrap();
    std::fs::write(home.join("tree/sub/a"), "aaa").unwrap();
    std::fs::write(home.join("tree/secret"), "s").unwrap();
    let here = dir.path().join("here");
    let watcher = Watcher::download(vec!["tree".into()]);
    let arguments = ["-r", "host:tree", here.to_str().unwrap()];
    let Some((ok, said, seen)) = real(&home, &arguments, &["-rf", "tree"], watcher, &["secret"])
    else {
        return;
    };
    assert!(!ok && said.contains("interceptor: denied"), "{said}");
    assert_eq!(std::fs::read(here.join("sub/a")).unwrap(), b"aaa");
    assert!(!here.join("secret").exists());
    assert_eq!(seen.ended.len(), 1);
    assert_eq!(seen.ended[0].entry.paths, ["tree/sub/a"]);
    assert!(seen.ended[0].complete);
}

#[test]
fn what_real_programs_cannot_do_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "aaa").unwrap();
    let a = dir.path().join("a");
    let watcher = Watcher::upload("no/such/up".into(), false);
    let arguments = [a.to_str().unwrap(), "host:no/such/up"];
    let Some((ok, said, seen)) = real(dir.path(), &arguments, &["-t", "no/such/up"], watcher, &[])
    else {
        return;
    };
    assert!(!ok && said.contains("No such file"), "{said}");
    assert!(seen.ended[0].failure.as_deref().unwrap_or_default().contains("No such file"));
    let watcher = Watcher::download(vec!["none".into()]);
    let arguments = ["host:none", dir.path().to_str().unwrap()];
    let Some((ok, said, _)) = real(dir.path(), &arguments, &["-f", "none"], watcher, &[]) else {
        return;
    };
    assert!(!ok && said.contains("No such file"), "{said}");
}
