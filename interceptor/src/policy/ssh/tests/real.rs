//! What real shells run, against what was seen.
//!
//! Every program is replaced by one that only writes down how it was called. Whatever bash or
//! dash then runs must be among the programs that the analysis saw, with the words it saw, and
//! whatever file appears must be among the files, unless it said that something is unseen.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::corpus::groups;
use super::exec;
use crate::policy::SshFacts;
use crate::policy::ssh::{FileOp, Place};

/// Programs that write down how they were called.
const RECORDED: &[&str] = &[
    "ls",
    "cat",
    "rm",
    "id",
    "wc",
    "uptime",
    "head",
    "tail",
    "sort",
    "uniq",
    "cut",
    "tr",
    "seq",
    "date",
    "reboot",
    "tee",
    "evil",
    "x",
    "y",
    "a",
    "b",
    "df",
    "ps",
    "stat",
    "hostname",
    "basename",
    "dirname",
    "shred",
    "systemctl",
    "mv",
    "cp",
    "curl",
    "[[",
    "((",
    "function",
    "select",
    "sudo",
    "]]",
];
/// Programs that run others, as they are.
const GENUINE: &[&str] = &[
    "env", "xargs", "nice", "nohup", "timeout", "setsid", "stdbuf", "find", "sh", "bash", "dash",
    "flock",
];

struct Stage {
    dir: tempfile::TempDir,
}

/// Whom the commands run as where tests run as root.
const NOBODY: u32 = 65534;

impl Stage {
    /// `None`, said aloud, where a shell is missing.
    fn new() -> Option<Self> {
        let shells = ["/bin/bash", "/bin/dash"];
        if shells.iter().any(|s| !Path::new(s).exists()) {
            eprintln!("SKIPPED: no bash or no dash");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        // One printf, that is one write: programs of a pipeline write at the same time.
        let script = format!(
            "#!/bin/dash\nprintf '%s\\0' \"${{0##*/}}\" \"$@\" '\u{1}' >>{}/log\n",
            dir.path().display()
        );
        for name in RECORDED {
            let path = bin.join(name);
            std::fs::write(&path, &script).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        for name in GENUINE {
            let found = ["/bin", "/usr/bin"].map(|d| Path::new(d).join(name));
            if let Some(path) = found.iter().find(|p| p.exists()) {
                symlink(path, bin.join(name)).unwrap();
            }
        }
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let stage = Self { dir };
        for shell in shells {
            let (mut calls, files) = stage.run(shell, "ls a | cat; evil >f 2>&1 &");
            calls.sort();
            assert_eq!(calls, [vec!["cat"], vec!["evil"], vec!["ls", "a"]], "{shell}");
            assert_eq!(files, BTreeSet::from(["f".to_owned()]), "{shell}");
        }
        Some(stage)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Runs a command; what ran, and which files appeared.
    fn run(&self, shell: &str, command: &str) -> (Vec<Vec<String>>, BTreeSet<String>) {
        let home = self.dir.path().join("home");
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir(&home).unwrap();
        std::fs::set_permissions(&home, PermissionsExt::from_mode(0o777)).unwrap();
        std::fs::write(self.log(), "").unwrap();
        std::fs::set_permissions(self.log(), PermissionsExt::from_mode(0o666)).unwrap();
        // Whatever runs keeps descriptor 9, wherever its output goes, so that its end is seen and
        // nothing runs on into the next command.
        let mut run = Command::new("/bin/dash");
        run.args(["-c", "exec 9>&1; exec /usr/bin/timeout -s KILL 2 \"$@\"", "dash"])
            .args([shell, "-c", command])
            .env_clear()
            .env("PATH", self.dir.path().join("bin"))
            .env("HOME", &home)
            .current_dir(&home)
            .stdin(Stdio::null());
        if std::fs::metadata("/proc/self")
            .is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
        {
            run.uid(NOBODY).gid(NOBODY);
        }
        run.output().unwrap();
        let mut calls = vec![Vec::new()];
        for word in std::fs::read(self.log()).unwrap().split(|b| *b == 0) {
            match word {
                b"\x01" => calls.push(Vec::new()),
                word => calls.last_mut().unwrap().push(String::from_utf8_lossy(word).into_owned()),
            }
        }
        calls.pop();
        let files = std::fs::read_dir(&home).unwrap();
        let files = files.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        (calls, files)
    }

    /// Says what a shell did that was not seen.
    fn unseen(&self, shell: &str, command: &str, facts: &SshFacts) -> Option<String> {
        let (calls, files) = self.run(shell, command);
        for call in calls {
            let Some((name, args)) = call.split_first() else { continue };
            // What the host's /etc/profile asks, where a shell is a login shell.
            if call == ["id", "-u"] {
                continue;
            }
            let seen = facts.programs.iter().filter(|p| p.base() == name).any(|p| {
                let literal = p.args.iter().all(|a| a.literal);
                !literal
                    || p.args.iter().map(|a| a.text.as_str()).eq(args.iter().map(String::as_str))
            });
            if !seen {
                return Some(format!("{shell} ran {call:?}"));
            }
        }
        for file in files {
            let seen = facts.files.iter().any(|f| {
                let writes = matches!(f.op, FileOp::Write | FileOp::Append);
                let there = match &f.place {
                    Place::Home(path) => *path == file || path.starts_with(&format!("{file}/")),
                    Place::Unknown | Place::UnderHome(_) => true,
                    Place::At(_) | Place::Under(_) => false,
                };
                writes && there
            });
            // nohup makes a file of its own.
            if !seen && file != "nohup.out" {
                return Some(format!("{shell} made {file:?}"));
            }
        }
        None
    }
}

/// Commands that could reach beyond the stage are judged, not run.
fn harmless(command: &str) -> bool {
    let outside = command.replace("/dev/null", "").replace("<</", "").contains('/');
    let words = [
        "kill", "sudo", "su", "trap", "reboot -", "ulimit", "python3", "perl", "busybox", "watch",
        "wait",
    ];
    !outside
        && !command.contains(":|")
        // These read files of the host first.
        && !command.contains("-l") && !command.contains("login")
        && !words
            .iter()
            .any(|w| command.split(|c: char| !c.is_ascii_alphanumeric()).any(|x| x == *w))
}

#[test]
fn what_shells_run_of_the_corpus_was_seen() {
    let Some(stage) = Stage::new() else { return };
    let mut missed = Vec::new();
    let mut ran = 0;
    for group in groups() {
        let all = [&group.allow, &group.deny, &group.refused, &group.unseen];
        for command in all.into_iter().flatten().filter(|c| harmless(c) && !c.contains('\0')) {
            let facts = exec(command);
            if facts.unseen.is_some() {
                continue;
            }
            ran += 1;
            for shell in ["/bin/bash", "/bin/dash"] {
                if let Some(what) = stage.unseen(shell, command, &facts) {
                    missed.push(format!("{command:?}: {what}; seen: {:?}", facts.programs));
                }
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
    assert!(ran > 150, "{ran}");
}

/// Pieces of commands, chosen for where readers of shell have disagreed.
const PIECES: &[&str] = &[
    "ls",
    "rm",
    "evil",
    "x",
    "y",
    "cat",
    "a",
    "echo",
    " ",
    " ",
    " ",
    " ",
    "\t",
    "\n",
    "\n",
    ";",
    ";",
    "&",
    "&&",
    "||",
    "|",
    "|&",
    "(",
    ")",
    "{ ",
    "; }",
    "}",
    "{",
    "$(",
    ")",
    "`",
    "`",
    "'",
    "'",
    "\"",
    "\"",
    "\\",
    "\\\n",
    "$'",
    "$\"",
    "\\'",
    "\\\"",
    "${x",
    "${x:-",
    "${x#",
    "}",
    "$x",
    "$$",
    "$",
    "#",
    " #",
    "$((",
    "))",
    "((",
    "$[",
    "]",
    "[[ ",
    " ]]",
    "<<E\n",
    "\nE\n",
    "E",
    "<<'E'\n",
    "<<-E\n",
    "<<<",
    "<",
    ">",
    ">>",
    "2>&1",
    "&>",
    "<(",
    ">(",
    ">f",
    "*",
    "~",
    "!",
    "! ",
    "=",
    "x=1 ",
    "x=",
    "case x in x) ",
    ";;",
    " esac",
    "if ",
    "; then ",
    "; fi",
    "else ",
    "while ",
    "; do ",
    "; done",
    "for i in a b",
    "time ",
    "eval ",
    "env ",
    "xargs ",
    "sh -c ",
    "bash -c ",
    "exec ",
    "command ",
    "find . -exec ",
    " {} \\;",
    "function ",
    "f()",
    "coproc ",
    "1",
    "-c",
    "--",
    "\u{e9}",
    ",",
    "..",
    "@(",
    "+",
    "?",
    "[",
    "test ",
    "1>f",
    "{a,b}",
    "x[1]=2",
    "x+=",
    "\\$",
    "\"'",
    "'\"",
    "\"$(",
    ")\"",
    "\"`",
    "`\"",
    "'$(",
    ")'",
];

fn compose(random: &mut StdRng) -> String {
    let mut command = String::new();
    for _ in 0..random.random_range(2..16) {
        command.push_str(PIECES[random.random_range(0..PIECES.len())]);
    }
    command
}

/// Changes a known command here and there.
fn mutate(random: &mut StdRng, from: &str) -> String {
    let mut chars: Vec<char> = from.chars().collect();
    for _ in 0..random.random_range(1..4) {
        let at = random.random_range(0..=chars.len());
        match random.random_range(0..3) {
            0 if at < chars.len() => drop(chars.remove(at)),
            1 if at < chars.len() => {
                let end = (at + random.random_range(1..6)).min(chars.len());
                let part: Vec<char> = chars[at..end].to_vec();
                let to = random.random_range(0..=chars.len());
                chars.splice(to..to, part);
            }
            _ => {
                let piece = PIECES[random.random_range(0..PIECES.len())];
                chars.splice(at..at, piece.chars());
            }
        }
    }
    chars.into_iter().collect()
}

/// How many commands to make up; `INTERCEPTOR_SHELL_CASES` makes it more.
fn cases() -> usize {
    std::env::var("INTERCEPTOR_SHELL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(6_000)
}

#[test]
fn what_shells_run_of_made_up_commands_was_seen() {
    let Some(stage) = Stage::new() else { return };
    let seed =
        std::env::var("INTERCEPTOR_SHELL_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(7);
    let mut random = StdRng::seed_from_u64(seed);
    let known: Vec<String> = groups()
        .into_iter()
        .flat_map(|g| [g.allow, g.deny, g.refused, g.unseen].concat())
        .filter(|c| harmless(c) && !c.contains('\0'))
        .collect();
    let mut missed = Vec::new();
    let mut done = BTreeSet::new();
    for n in 0..cases() {
        let command = match n % 2 {
            0 => compose(&mut random),
            _ => mutate(&mut random, &known[n / 2 % known.len()]),
        };
        if !harmless(&command) || command.contains('\0') || !done.insert(command.clone()) {
            continue;
        }
        let facts = exec(&command);
        // Loops that never end say nothing new.
        if facts.unseen.is_some() || command.contains("while") || command.contains("until") {
            continue;
        }
        for shell in ["/bin/bash", "/bin/dash"] {
            if let Some(what) = stage.unseen(shell, &command, &facts) {
                eprintln!("{command:?}: {what}");
                missed.push(format!("{command:?}: {what}; seen: {:?}", facts.programs));
            }
        }
    }
    assert!(missed.is_empty(), "seed {seed}:\n{}", missed.join("\n"));
}
