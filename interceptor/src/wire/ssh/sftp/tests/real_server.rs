//! OpenSSH's own `sftp` and `sftp-server` with the guard between them. Where they are not
//! installed the tests say so and pass.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;
use crate::wire::ssh::testing::{Pipes, Side, program};

const SERVERS: &[&str] = &[
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/lib/ssh/sftp-server",
    "/usr/libexec/sftp-server",
];

/// What came of a run of `sftp`.
struct Run {
    ok: bool,
    said: String,
    judged: Vec<Operation>,
    ended: Vec<Transfer>,
}

impl Run {
    fn texts(&self) -> Vec<String> {
        self.judged.iter().map(Operation::text).collect()
    }
}

/// Runs `batch` in `home`; `refused` says what policy refuses.
fn sftp(home: &Path, batch: &str, refused: fn(&Operation) -> bool) -> Option<Run> {
    let (Some(server), Some(_)) = (program(SERVERS), program(&["/usr/bin/sftp"])) else {
        eprintln!("skipped: no OpenSSH here");
        return None;
    };
    let script = home.join("batch");
    std::fs::write(&script, batch).unwrap();
    let arguments = ["-q", "-b", script.to_str().unwrap(), "host"];
    let mut pipes = Pipes::start("/usr/bin/sftp", &arguments, &mut Command::new(server), home);
    let mut guard = Guard::new(Limits::default());
    let (mut judged, mut ended) = (Vec::new(), Vec::new());
    while let Some((side, bytes)) = pipes.recv() {
        match (side, bytes.is_empty()) {
            (Side::Agent, false) => guard.from_agent(&bytes).unwrap(),
            (Side::Server, false) => guard.from_server(&bytes).unwrap(),
            (Side::Agent, true) => pipes.close(Side::Server),
            (Side::Server, true) => pipes.close(Side::Agent),
        }
        while let Some(step) = guard.next() {
            match step {
                Step::ToServer(bytes) => pipes.send(Side::Server, bytes),
                Step::ToAgent(bytes) => pipes.send(Side::Agent, bytes),
                Step::Ended(transfer) => ended.push(transfer),
                Step::Judge { ticket, operation } => {
                    let decision = match refused(&operation) {
                        true => {
                            Decision::Refuse { message: "interceptor: denied by rule \"t\"".into() }
                        }
                        false => Decision::Permit { withhold: false },
                    };
                    judged.push(operation);
                    guard.decide(ticket, decision).unwrap();
                }
            }
        }
    }
    let (ok, said) = pipes.finish();
    Some(Run { ok, said, judged, ended })
}

fn nothing(_: &Operation) -> bool {
    false
}

#[test]
fn files_go_both_ways_and_are_hashed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let content: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(home.join("local"), &content).unwrap();
    std::fs::set_permissions(home.join("local"), PermissionsExt::from_mode(0o640)).unwrap();
    let local = home.join("local");
    let back = home.join("back");
    let batch = format!("put -p {} remote\nget remote {}\n", local.display(), back.display());
    let Some(run) = sftp(&home, &batch, nothing) else { return };
    assert!(run.ok, "{}", run.said);
    assert_eq!(std::fs::read(back).unwrap(), content);
    let [up, down] = &run.ended[..] else { panic!("{:?}", run.ended) };
    let path = home.join("remote").to_str().unwrap().to_owned();
    for (transfer, direction) in [(up, Direction::Write), (down, Direction::Read)] {
        assert_eq!((&transfer.path, transfer.direction), (&path, direction));
        assert_eq!(transfer.bytes, content.len() as u64);
        assert!(transfer.complete, "{transfer:?}");
        assert_eq!(transfer.sha256, rig::sha256(&content));
    }
    assert_eq!(std::fs::metadata(home.join("remote")).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn every_command_of_the_client_works() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    std::fs::write(home.join("a"), "hello").unwrap();
    let batch = "pwd\nls -la\nmkdir d\ncp a d/copy\nrename a d/b\nln d/b hard\nln -s d/b soft\n\
        chmod 600 d/b\nchmod -h 777 soft\ndf .\nls -l d/b\nls -l soft\ncd d\nls\nrm ../hard\nrm b\n\
        rm copy\ncd ..\nrmdir d\nrm soft\n";
    let batch = batch.replace("chmod -h 777 soft\n", "");
    let Some(run) = sftp(&home, &batch, nothing) else { return };
    assert!(run.ok, "{}\n{:?}", run.said, run.texts());
    let mut left: Vec<_> =
        std::fs::read_dir(&home).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["batch"], "{:?}", run.texts());
    let texts = run.texts().join("\n").replace(home.to_str().unwrap(), "~");
    for expected in [
        "mkdir ~/d",
        "copy ~/a -> ~/d/copy, 0 bytes from 0 to 0",
        "rename ~/a",
        "link ~/d/b",
        "symlink ~/soft",
        "setstat ~/d/b",
        "remove ~/d/copy",
        "rmdir ~/d",
        "list ~",
    ] {
        assert!(texts.contains(expected), "{expected} is not in\n{texts}");
    }
}

#[test]
fn a_link_out_of_the_way_is_refused_by_where_it_leads() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    symlink("/etc", home.join("innocent")).unwrap();
    symlink("/etc/cron.d/no-such", home.join("dangling")).unwrap();
    let got = home.join("got");
    std::fs::write(home.join("a"), "x").unwrap();
    let batch = format!(
        "-get innocent/passwd {got}\n-put {a} dangling\n-ls innocent/../innocent/\n-get {a} {got}2\n",
        got = got.display(),
        a = home.join("a").display(),
    );
    let etc = |operation: &Operation| {
        operation.places.iter().any(|place| Path::new(&place.path).starts_with("/etc"))
    };
    let Some(run) = sftp(&home, &batch, etc) else { return };
    assert!(!got.exists());
    assert!(home.join("got2").exists(), "the channel did not go on: {}", run.said);
    assert!(!Path::new("/etc/cron.d/no-such").exists());
    assert!(
        run.said.contains("denied by rule \"t\"") || run.said.contains("ermission denied"),
        "{}",
        run.said
    );
}

#[test]
fn what_the_server_refuses_is_passed_on() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let batch = "-get no-such\n-get no/such/at/all\n-rmdir no-such\n-mkdir no/such\n-rename a b\n";
    let Some(run) = sftp(&home, batch, nothing) else { return };
    assert!(run.ok, "{}", run.said);
    assert!(run.said.contains("not found") || run.said.contains("No such file"), "{}", run.said);
}
