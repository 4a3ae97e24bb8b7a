//! Programs that run code of their own language, or other programs, when their words say so.

use super::options::may_be_option;
use super::outputs;
use super::walk::Walk;
use crate::policy::ssh::facts::{Argument, FileOp};

/// Interpreters: seen where they are given a file, not where they are given code or read it.
const INTERPRETERS: &[&str] = &[
    "python",
    "pypy",
    "perl",
    "ruby",
    "jruby",
    "irb",
    "node",
    "nodejs",
    "deno",
    "bun",
    "php",
    "lua",
    "luajit",
    "tclsh",
    "wish",
    "R",
    "Rscript",
    "julia",
    "guile",
    "racket",
    "sbcl",
    "clisp",
    "ocaml",
    "ghci",
    "runghc",
    "scala",
    "groovy",
    "jshell",
    "erl",
    "escript",
    "elixir",
    "iex",
    "octave",
    "gnuplot",
    "bc",
    "dc",
    "m4",
    "psql",
    "mysql",
    "mariadb",
    "sqlite3",
    "mongo",
    "mongosh",
    "redis-cli",
    "osascript",
    "rake",
    "pry",
    "ipython",
    "bpython",
    "gjs",
    "raku",
];

/// Programs that run what is typed into them.
const TYPED: &[&str] = &[
    "vi",
    "vim",
    "vim.basic",
    "vim.tiny",
    "view",
    "rvim",
    "rview",
    "vimdiff",
    "nvim",
    "ex",
    "ed",
    "red",
    "emacs",
    "emacsclient",
    "nano",
    "pico",
    "micro",
    "joe",
    "jed",
    "mcedit",
    "mc",
    "less",
    "man",
    "more",
    "most",
    "pg",
    "lynx",
    "w3m",
    "elinks",
    "links",
    "mutt",
    "mail",
    "mailx",
    "ftp",
    "lftp",
    "tftp",
    "ncftp",
    "telnet",
    "info",
    "pinfo",
    "crontab",
    "visudo",
    "vipw",
    "vigr",
    "edquota",
    "sudoedit",
    "ranger",
    "nnn",
    "fzf",
    "dialog",
    "whiptail",
    "tig",
    "aptitude",
];

/// Options by which programs run another; a word that begins with one counts.
const RUN_BY_OPTION: &[(&str, &[&str])] = &[
    (
        "tar",
        &[
            "--checkpoint-action",
            "--to-command",
            "--use-compress-program",
            "-I",
            "--info-script",
            "--new-volume-script",
            "-F",
            "--rsh-command",
            "--rmt-command",
        ],
    ),
    ("bsdtar", &["--use-compress-program", "--to-command"]),
    ("cpio", &["--rsh-command", "--rmt-command"]),
    ("zip", &["-TT", "--unzip-command"]),
    ("sort", &["--compress-program"]),
    ("split", &["--filter"]),
    ("mandb", &["-C"]),
    ("apropos", &["-C"]),
    ("curl", &["-K", "--config", "--engine"]),
    ("wget", &["--use-askpass", "--config", "-e", "--execute"]),
    ("tcpdump", &["-z", "--postrotate-command"]),
    ("nmap", &["--script", "--interactive", "--datadir"]),
    ("nc", &["-e", "-c"]),
    ("ncat", &["-e", "-c", "--exec", "--sh-exec", "--lua-exec"]),
    ("netcat", &["-e", "-c"]),
    ("ssh-keygen", &["-D", "-w"]),
    ("ssh-add", &["-s", "-S"]),
    ("ssh-copy-id", &["-o"]),
    ("openssl", &["-engine", "-provider", "req", "engine"]),
    ("ip", &["netns", "vrf", "-ba"]),
    ("systemctl", &["edit", "-H", "--host", "set-environment", "import-environment"]),
    ("rg", &["--pre", "--hostname-bin"]),
    ("ag", &["--pager"]),
    ("fd", &["-x", "-X", "--exec", "--exec-batch"]),
    ("fdfind", &["-x", "-X", "--exec", "--exec-batch"]),
    ("install", &["--strip-program"]),
    ("bat", &["--pager"]),
    ("batcat", &["--pager"]),
    ("pg_dump", &["--compress"]),
];

/// Notes what a program's words make it run.
pub(super) fn interpreter(walk: &mut Walk, base: &str, args: &[Argument]) {
    let stem = base.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
    match stem {
        "awk" | "gawk" | "mawk" | "nawk" | "original-awk" => awk(walk, base, args),
        "sed" | "gsed" | "ssed" => sed(walk, base, args),
        "tee" => {
            for arg in args.iter().filter(|a| !a.literal || !a.text.starts_with('-')) {
                let op = if args.iter().any(|a| matches!(a.known(), Some("-a" | "--append"))) {
                    FileOp::Append
                } else {
                    FileOp::Write
                };
                walk.file(op, arg, false, true);
            }
        }
        "dd" => dd(walk, args),
        "crontab" if matches!(args, [a] if a.known() == Some("-l")) => {}
        _ if TYPED.contains(&base) || TYPED.contains(&stem) => {
            walk.unseen(format!("what is typed into {base}"));
        }
        _ if INTERPRETERS.contains(&stem) => code(walk, base, args),
        _ => {
            outputs::output(walk, base, args);
            if let Some((_, options)) = RUN_BY_OPTION.iter().find(|(name, _)| *name == base) {
                by_option(walk, base, args, options);
            }
        }
    }
}

/// Options whose values, joined or not, name what is run. Long ones may be cut short, short ones
/// may stand behind other letters, and words that are not known may be anything.
pub(super) fn by_option(walk: &mut Walk, base: &str, args: &[Argument], options: &[&str]) {
    let runs = |arg: &Argument| {
        let Some(text) = arg.known() else {
            return may_be_option(arg);
        };
        let name = text.split('=').next().unwrap_or(text);
        options.iter().any(|option| match option.strip_prefix("--") {
            Some(_) => text.starts_with(option) || (name.len() > 3 && option.starts_with(name)),
            None => match option.strip_prefix('-') {
                Some(letter) if letter.len() == 1 => {
                    text.starts_with('-') && !text.starts_with("--") && text.contains(letter)
                }
                _ => text.starts_with(option),
            },
        })
    };
    // tar takes its letters without a dash too, in the first word.
    let bundled = base == "tar"
        && args.first().and_then(Argument::known).is_some_and(|t| t.contains(['I', 'F']));
    if bundled || args.iter().any(runs) {
        walk.unseen(format!("what {base} runs"));
    }
}

/// An interpreter is seen when it is given a file at once, or asked for its version.
fn code(walk: &mut Walk, base: &str, args: &[Argument]) {
    let seen = match args.first().and_then(Argument::known) {
        Some("--version" | "-V" | "--help") => args.len() == 1,
        Some("-u" | "-B" | "-s" | "-I" | "-E" | "-w" | "-W") => args
            .get(1)
            .and_then(Argument::known)
            .is_some_and(|t| !t.starts_with('-') && !t.is_empty()),
        Some("-m") if base.starts_with("python") => {
            args.get(1).is_some_and(|a| a.literal) && args.iter().all(|a| a.literal)
        }
        Some(text) => !text.starts_with(['-', '+']) && !text.is_empty(),
        None => false,
    };
    // Tools of databases take their commands by option; their first word is no script.
    let client = matches!(
        base,
        "psql" | "mysql" | "mariadb" | "sqlite3" | "mongo" | "mongosh" | "redis-cli"
    );
    if !seen || client {
        walk.unseen(format!("what {base} runs"));
    }
}

/// A program of awk is seen when it is given in words and can start nothing and write nothing.
fn awk(walk: &mut Walk, base: &str, args: &[Argument]) {
    let mut args = args.iter();
    let mut program = None;
    while let Some(arg) = args.next() {
        match arg.known() {
            Some("-F" | "-v") => {
                if args.next().is_none_or(|a| !a.single) {
                    break;
                }
            }
            Some("--") => {
                program = args.next();
                break;
            }
            Some(text) if text.len() > 2 && (text.starts_with("-F") || text.starts_with("-v")) => {}
            Some(text) if text.starts_with('-') => break,
            _ => {
                program = Some(arg);
                break;
            }
        }
    }
    let quiet = |text: &str| {
        !["system", "getline", "|", ">", "@", "close", "printf >"].iter().any(|w| text.contains(w))
    };
    if !program.and_then(Argument::known).is_some_and(quiet) {
        walk.unseen(format!("what {base} runs"));
    }
    // gawk takes options behind the program too, and a file as a library.
    if args.any(|a| a.known().is_none_or(|t| t.starts_with('-'))) {
        walk.unseen(format!("what {base} runs"));
    }
}

/// A script of sed is seen when it only prints, deletes or substitutes.
fn sed(walk: &mut Walk, base: &str, args: &[Argument]) {
    let mut scripts = Vec::new();
    let mut files = Vec::new();
    let mut seen = true;
    let mut in_place = false;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.known() {
            Some(
                "-n" | "-E" | "-r" | "-s" | "-u" | "-z" | "-nE" | "-nr" | "--quiet" | "--silent"
                | "--regexp-extended" | "--posix" | "--separate" | "--unbuffered",
            ) => {}
            Some("-i" | "--in-place") => in_place = true,
            Some("-e" | "--expression") => scripts.extend(rest.next()),
            Some(text) if text.starts_with("-i") || text.starts_with("--in-place=") => {
                in_place = true
            }
            Some(text) if text.starts_with('-') && text.len() > 1 => seen = false,
            None if may_be_option(arg) => seen = false,
            _ => files.push(arg),
        }
    }
    if scripts.is_empty() && !files.is_empty() {
        scripts.push(files.remove(0));
    }
    if !seen || !scripts.iter().all(|s| s.known().is_some_and(harmless_sed)) {
        walk.unseen(format!("what {base} runs or writes"));
    }
    if in_place {
        for file in files {
            walk.file(FileOp::Write, file, false, true);
        }
    }
}

/// One command of sed: an address of numbers, `$` or one plain pattern, then `p`, `d`, `q`, `=`,
/// or one substitution with plain flags.
fn harmless_sed(script: &str) -> bool {
    let rest = script.trim_start_matches(|c: char| {
        c.is_ascii_digit() || matches!(c, ',' | '$' | '!' | ' ' | '~' | '+')
    });
    if matches!(rest, "p" | "d" | "q" | "=" | "Q") {
        return true;
    }
    if let Some(rest) = rest.strip_prefix('/') {
        let plain = |c: char| !matches!(c, '/' | '\\' | '\n' | '{' | '}' | ';');
        let end = rest.trim_start_matches(plain);
        return matches!(end, "/p" | "/d" | "/q" | "/!d" | "/!p" | "/=");
    }
    let Some(body) = rest.strip_prefix('s') else { return false };
    let Some(mark) =
        body.chars().next().filter(|c| matches!(c, '/' | '|' | '#' | ',' | '@' | ':' | '%'))
    else {
        return false;
    };
    if body.contains(['\n', '\\', '[']) {
        return false;
    }
    let parts: Vec<&str> = body.split(mark).collect();
    matches!(parts.as_slice(), ["", _, _, flags] if flags.chars().all(|c| matches!(c, 'g' | 'p' | 'i' | 'I') || c.is_ascii_digit()))
}

fn dd(walk: &mut Walk, args: &[Argument]) {
    for arg in args {
        match arg.known() {
            Some(text) => {
                if let Some(path) = text.strip_prefix("of=") {
                    walk.file(FileOp::Write, &Argument::literal(path), false, true);
                } else if let Some(path) = text.strip_prefix("if=") {
                    walk.file(FileOp::Read, &Argument::literal(path), false, true);
                }
            }
            None => walk.file(FileOp::Write, &Argument::unknown(&*arg.text), false, true),
        }
    }
}
