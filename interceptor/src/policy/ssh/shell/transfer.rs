//! Far ends of scp, rsync and git, and programs whose output is no text.

use super::interpreters::by_option;
use super::walk::Walk;
use crate::policy::ssh::facts::{Argument, FileOp, SshClass};

/// Programs whose output masking would corrupt.
const BINARY: &[&str] = &[
    "tar",
    "bsdtar",
    "cpio",
    "pax",
    "ar",
    "dd",
    "gzip",
    "gunzip",
    "bzip2",
    "bunzip2",
    "xz",
    "unxz",
    "lzma",
    "unlzma",
    "zstd",
    "unzstd",
    "lz4",
    "unlz4",
    "lzop",
    "brotli",
    "compress",
    "uncompress",
    "pigz",
    "unpigz",
    "pbzip2",
    "zip",
    "unzip",
    "7z",
    "7za",
    "7zr",
    "rar",
    "unrar",
    "borg",
    "restic",
    "rdiff-backup",
    "rclone",
    "pg_basebackup",
    "mysqlbinlog",
    "qemu-img",
    "partclone",
    "ffmpeg",
];

/// Marks the command when the program's output is no text.
pub(super) fn binary(walk: &mut Walk, base: &str) {
    walk.binary |= BINARY.contains(&base);
}

/// scp, rsync and git, in whichever role.
pub(super) fn transfer(walk: &mut Walk, base: &str, name: Argument, args: Vec<Argument>) {
    match base {
        "scp" => scp(walk, &args),
        "rsync" => rsync(walk, &args),
        "git" => git(walk, &args),
        "git-shell" => walk.unseen("what git-shell runs"),
        pack => {
            walk.binary = true;
            pack_file(walk, pack.trim_start_matches("git-"), &args);
        }
    }
    walk.note(name, args);
}

/// `scp -t DIR` receives, `scp -f FILE…` sends. Anything else is a client.
fn scp(walk: &mut Walk, args: &[Argument]) {
    walk.binary = true;
    let mut letters = String::new();
    let mut at = 0;
    while let Some(option) =
        args.get(at).and_then(Argument::known).and_then(|t| t.strip_prefix('-'))
    {
        at += 1;
        if option == "-" {
            break;
        }
        letters.push_str(option);
    }
    let paths = &args[at.min(args.len())..];
    let plain = letters.chars().all(|c| "tfrpdvq".contains(c));
    let ends = (letters.contains('t'), letters.contains('f'));
    if !plain || ends.0 == ends.1 || paths.is_empty() {
        walk.unseen("what scp connects to");
        return;
    }
    walk.transfers.push(SshClass::Scp);
    let op = if ends.0 { FileOp::Write } else { FileOp::Read };
    for path in paths {
        let below = ends.0 || letters.contains('r');
        transferred(walk, op, path, below);
    }
}

/// A path of a transfer; the empty one and `.` are the home directory.
fn transferred(walk: &mut Walk, op: FileOp, path: &Argument, below: bool) {
    walk.file(op, path, below, false);
}

const RSYNC_LONG: &[&str] = &[
    "--server",
    "--sender",
    "--delete",
    "--delete-before",
    "--delete-during",
    "--delete-delay",
    "--delete-after",
    "--delete-excluded",
    "--delete-missing-args",
    "--force",
    "--inplace",
    "--append",
    "--append-verify",
    "--partial",
    "--numeric-ids",
    "--ignore-existing",
    "--existing",
    "--ignore-errors",
    "--stats",
    "--no-r",
    "--no-implied-dirs",
    "--no-i-r",
    "--inc-recursive",
    "--no-inc-recursive",
    "--safe-links",
    "--munge-links",
    "--copy-unsafe-links",
    "--fake-super",
    "--delay-updates",
    "--prune-empty-dirs",
    "--ignore-missing-args",
    "--mkpath",
    "--old-args",
    "--fsync",
    "--open-noatime",
    "--preallocate",
    "--size-only",
    "--ignore-times",
    "--whole-file",
    "--no-W",
    "--list-only",
];
const RSYNC_VALUES: &[&str] = &[
    "--timeout=",
    "--bwlimit=",
    "--max-size=",
    "--min-size=",
    "--block-size=",
    "--modify-window=",
    "--compress-level=",
    "--compress-choice=",
    "--checksum-choice=",
    "--checksum-seed=",
    "--max-delete=",
    "--max-alloc=",
    "--skip-compress=",
    "--iconv=",
    "--chmod=",
    "--out-format=",
    "--log-format=",
    "--usermap=",
    "--groupmap=",
    "--stop-after=",
];

/// `rsync --server [--sender] OPTIONS . PATH…`. Anything else is a client.
fn rsync(walk: &mut Walk, args: &[Argument]) {
    walk.binary = true;
    if args.first().and_then(Argument::known) != Some("--server") {
        let connects = |a: &Argument| {
            a.known().is_none_or(|t| t.contains(':') || t.starts_with("-e") || t == "--daemon")
        };
        if args.iter().any(connects) {
            walk.unseen("what rsync connects to");
        }
        return by_option(
            walk,
            "rsync",
            args,
            &[
                "-e",
                "--rsh",
                "--rsync-path",
                "--config",
                "--daemon",
                "-M",
                "--remote-option",
                "--dparam",
            ],
        );
    }
    walk.transfers.push(SshClass::Rsync);
    let sends = args.iter().any(|a| a.known() == Some("--sender"));
    let dot = args.iter().position(|a| a.known() == Some("."));
    let (options, paths) = match dot {
        Some(dot) => (&args[1..dot], &args[dot + 1..]),
        None => (&args[1..], &[][..]),
    };
    let mut links = false;
    for option in options {
        // Letters behind `e` say what the client can do: `-logDtpre.iLsfxCIvu`.
        let letters =
            option.known().and_then(|t| t.strip_prefix('-')).filter(|t| !t.starts_with('-'));
        links |= letters.and_then(|t| t.split('e').next()).is_some_and(|l| l.contains('l'));
        let fits = match (letters, option.known()) {
            (Some(letters), _) => {
                letters.split('e').next().is_some_and(|l| !l.contains(['s', 'M', 'T', 'B', 'f']))
                    && letters.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
            }
            (None, Some(text)) => {
                RSYNC_LONG.contains(&text) || RSYNC_VALUES.iter().any(|v| text.starts_with(v))
            }
            (None, None) => false,
        };
        if !fits {
            walk.unseen("what an option of rsync does");
        }
    }
    if paths.is_empty() {
        // Sent later, within the protocol.
        walk.unseen("which files rsync is about");
        transferred(walk, FileOp::Write, &Argument::unknown("(sent later)"), true);
    }
    for path in paths {
        if sends {
            transferred(walk, FileOp::Read, path, true);
        } else {
            transferred(walk, FileOp::Write, path, true);
            if args.iter().any(|a| a.known().is_some_and(|t| t.starts_with("--delete"))) {
                transferred(walk, FileOp::Remove, path, true);
            }
            // Links that are munged on their way lead nowhere.
            if links && !options.iter().any(|o| o.known() == Some("--munge-links")) {
                transferred(walk, FileOp::Link, path, true);
            }
        }
    }
}

/// The far end of fetch and push.
fn pack_file(walk: &mut Walk, pack: &str, args: &[Argument]) {
    let op = if pack == "receive-pack" { FileOp::Write } else { FileOp::Read };
    let plain = |t: &str| {
        matches!(
            t,
            "--strict"
                | "--no-strict"
                | "--stateless-rpc"
                | "--advertise-refs"
                | "--http-backend-info-refs"
        )
    };
    for arg in args {
        match arg.known() {
            Some(text) if text.starts_with('-') => {
                if !plain(text) && !text.starts_with("--timeout=") {
                    walk.unseen(format!("what an option of {pack} does"));
                }
            }
            Some(text) => {
                let whole = without_dots(text);
                walk.file(op, &read_by_git(repository(whole, op)), true, true);
                if whole.contains('/') || !whole.starts_with(['~', '.']) {
                    // git looks there too, and takes what is a repository.
                    walk.file_besides(op, &read_by_git(&format!("{whole}.git")), true);
                }
            }
            None => walk.file(op, arg, true, true),
        }
    }
}

/// A path without the parts at its end that lead nowhere else.
fn without_dots(path: &str) -> &str {
    let mut whole = path;
    loop {
        let shorter = whole.trim_end_matches('/');
        let shorter = shorter.strip_suffix("/.").unwrap_or(shorter);
        if shorter.is_empty() {
            return if path.starts_with('/') { "/" } else { "." };
        }
        if shorter == whole {
            return whole;
        }
        whole = shorter;
    }
}

/// What a fetch reads, and where a push may write: the files of a repository in `.git` lie beside
/// that directory.
fn repository(whole: &str, op: FileOp) -> &str {
    match whole.rsplit_once('/') {
        _ if op != FileOp::Write => whole,
        Some(("", ".git")) => "/",
        Some((above, ".git")) => above,
        None if whole == ".git" => ".",
        _ => whole,
    }
}

/// A path of which git itself reads a `~`, quoted or not.
fn read_by_git(path: &str) -> Argument {
    Argument { literal: !path.starts_with('~'), single: true, text: path.to_owned() }
}

/// Verbs of git that run nothing their words name, but for the options looked at.
const GIT_OWN: &[&str] = &[
    "add",
    "am",
    "apply",
    "blame",
    "branch",
    "cat-file",
    "check-ignore",
    "checkout",
    "cherry-pick",
    "clean",
    "clone",
    "commit",
    "count-objects",
    "describe",
    "diff",
    "diff-tree",
    "fetch",
    "for-each-ref",
    "fsck",
    "gc",
    "grep",
    "hash-object",
    "init",
    "log",
    "ls-files",
    "ls-remote",
    "ls-tree",
    "merge",
    "merge-base",
    "mv",
    "name-rev",
    "notes",
    "prune",
    "pull",
    "push",
    "reflog",
    "remote",
    "repack",
    "reset",
    "restore",
    "rev-list",
    "rev-parse",
    "revert",
    "rm",
    "shortlog",
    "show",
    "show-ref",
    "stash",
    "status",
    "switch",
    "symbolic-ref",
    "tag",
    "update-index",
    "update-ref",
    "verify-commit",
    "verify-pack",
    "verify-tag",
    "version",
    "worktree",
    "write-tree",
];

fn git(walk: &mut Walk, args: &[Argument]) {
    let mut at = 0;
    while let Some(text) = args.get(at).and_then(Argument::known).filter(|t| t.starts_with('-')) {
        match text {
            "-C" => {
                walk.moved = true;
                at += 1;
            }
            "--no-pager" | "--bare" | "--version" | "--help" | "--no-optional-locks" | "-P" => {}
            _ => walk.unseen("what an option of git runs"),
        }
        at += 1;
    }
    let Some(verb) = args.get(at) else { return };
    match verb.known() {
        Some(pack @ ("upload-pack" | "receive-pack" | "upload-archive")) => {
            walk.binary = true;
            pack_file(walk, pack, &args[at + 1..]);
        }
        // A verb that git does not have itself may be an alias, which can run anything.
        Some(verb) if !GIT_OWN.contains(&verb) => walk.unseen(format!("what git {verb} runs")),
        Some(verb) => {
            let options: &[&str] = match verb {
                "clone" | "init" => {
                    &["--upload-pack", "-u", "--config", "-c", "--template", "--bundle-uri"]
                }
                "fetch" | "pull" | "ls-remote" => &["--upload-pack", "--exec"],
                "push" => &["--receive-pack", "--exec"],
                "grep" => &["-O", "--open-files-in-pager", "--ext-grep", "--textconv"],
                "log" | "diff" | "show" | "stash" | "blame" | "cat-file" | "diff-tree"
                | "shortlog" | "reflog" | "rev-list" => &["--ext-diff", "--textconv", "--filters"],
                "bisect" | "add" | "checkout" | "commit" | "reset" | "restore" => &["--patch"],
                _ => &["--exec"],
            };
            by_option(walk, "git", &args[at + 1..], options);
            if args[at + 1..].iter().any(|a| a.text.contains("ext::")) {
                walk.unseen("what git runs");
            }
        }
        None => walk.unseen("what git runs"),
    }
}
