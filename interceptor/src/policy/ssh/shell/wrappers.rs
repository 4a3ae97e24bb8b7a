//! Programs that run another program, and what they run.

use super::options::{Met, Options, parse};
use super::walk::{Input, Walk};
use super::{builtins, interpreters, shells, transfer};
use crate::policy::ssh::facts::{Argument, FileOp};

/// How a wrapper's command line goes on behind its options.
struct Wrapper {
    names: &'static [&'static str],
    options: Options,
    /// Whether `NAME=value` may stand before the program.
    assigns: bool,
    /// How many words stand before the program: a time, a file.
    before: usize,
}

const fn wrapper(
    names: &'static [&'static str],
    flags: &'static str,
    values: &'static str,
    long: &'static [&'static str],
    long_values: &'static [&'static str],
) -> Wrapper {
    let options = Options { flags, values, long, long_values };
    Wrapper { names, options, assigns: false, before: 0 }
}

const WRAPPERS: &[Wrapper] = &[
    Wrapper {
        assigns: true,
        ..wrapper(
            &["env"],
            "i0v",
            "uC",
            &["ignore-environment", "null", "debug"],
            &["unset", "chdir"],
        )
    },
    Wrapper {
        assigns: true,
        ..wrapper(
            &["sudo"],
            "nEHSkKbABPvl",
            "ugpCTDU",
            &[
                "non-interactive",
                "preserve-env",
                "set-home",
                "stdin",
                "background",
                "reset-timestamp",
                "preserve-groups",
            ],
            &["user", "group", "prompt", "close-from", "command-timeout", "chdir"],
        )
    },
    Wrapper { assigns: true, ..wrapper(&["doas"], "n", "u", &[], &[]) },
    wrapper(&["nohup"], "", "", &[], &[]),
    Wrapper {
        before: 1,
        ..wrapper(
            &["timeout"],
            "v",
            "ks",
            &["foreground", "preserve-status", "verbose"],
            &["kill-after", "signal"],
        )
    },
    wrapper(&["setsid"], "cfw", "", &["ctty", "fork", "wait"], &[]),
    wrapper(&["stdbuf"], "", "ioe", &[], &["input", "output", "error"]),
    wrapper(&["ionice"], "t", "cn", &["ignore"], &["class", "classdata"]),
    wrapper(&["exec"], "cl", "a", &[], &[]),
    wrapper(
        &["time"],
        "pavq",
        "fo",
        &["portability", "append", "verbose", "quiet"],
        &["format", "output"],
    ),
    wrapper(&["builtin"], "", "", &[], &[]),
    wrapper(&["toybox"], "", "", &[], &[]),
];

/// Programs that run others in ways that are not followed.
const OPAQUE: &[&str] = &[
    "parallel",
    "sem",
    "at",
    "batch",
    "systemd-run",
    "unshare",
    "nsenter",
    "chroot",
    "screen",
    "tmux",
    "expect",
    "autoexpect",
    "unbuffer",
    "gdb",
    "lldb",
    "strace",
    "ltrace",
    "valgrind",
    "perf",
    "proot",
    "bwrap",
    "firejail",
    "nsjail",
    "fakeroot",
    "fakechroot",
    "dbus-run-session",
    "dbus-launch",
    "xvfb-run",
    "ssh-agent",
    "start-stop-daemon",
    "daemon",
    "daemonize",
    "run-parts",
    "runcon",
    "newgrp",
    "sg",
    "setarch",
    "linux32",
    "linux64",
    "i386",
    "x86_64",
    "setpriv",
    "capsh",
    "cgexec",
    "rlwrap",
    "entr",
    "pexec",
    "prlimit",
    "taskset",
    "chrt",
    "numactl",
    "pkexec",
    "machinectl",
    "systemd-nspawn",
    "script",
    "catchsegv",
    "torsocks",
    "proxychains",
    "proxychains4",
    "chpst",
    "softlimit",
    "setlock",
    "envdir",
    "s6-setuidgid",
    "gosu",
    "su-exec",
    "tini",
    "dumb-init",
    "watchexec",
    "dtach",
    "abduco",
    "tmate",
    "ttyd",
    "openvt",
    "agetty",
    "login",
    "xterm",
    "x-terminal-emulator",
    "mosh",
    "rsh",
    "rlogin",
    "rexec",
    "socat",
    "ldd",
    "memusage",
    "sotruss",
    "sftp-server",
    "internal-sftp",
    "sshd",
    "sshd-session",
    "sshd-auth",
    "kexec",
    "slogin",
    "sftp",
    "wall",
];

impl Walk {
    /// A program is started with these words.
    pub(super) fn run(&mut self, name: Argument, args: Vec<Argument>, input: Input) {
        let Some(text) = name.known().map(str::to_owned) else {
            self.unseen(format!("which program {:?} is", name.text));
            return self.note(name, args);
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "/._-+[:%,@".contains(c);
        if text.is_empty() || !text.chars().all(fits) {
            self.unseen(format!("which program {text:?} is"));
        }
        let base = text.rsplit('/').next().unwrap_or(&text).to_owned();
        if text.contains('/') && !text.starts_with('/') {
            self.unseen(format!("which program {text:?} is, seen from an unknown directory"));
        }
        if text.split('/').any(|part| part == ".." || part == ".") {
            self.unseen(format!("which program {text:?} is"));
        }
        match &*base {
            "sh" | "bash" | "dash" | "ash" | "rbash" => shells::shell(self, name, args, &input),
            "zsh" | "fish" | "ksh" | "mksh" | "csh" | "tcsh" | "yash" | "posh" | "rc" | "nu"
            | "pwsh" | "elvish" | "xonsh" => shells::foreign(self, name, args),
            "su" | "runuser" => shells::su(self, name, args),
            "eval" => shells::eval(self, name, args),
            "watch" => shells::watch(self, name, args),
            "flock" => shells::flock(self, name, args, input),
            "ssh" => shells::ssh(self, name, args),
            "xargs" => self.xargs(name, args),
            "find" => self.find(name, args),
            "nice" => self.nice(name, args, input),
            "command" => self.command_builtin(name, args, input),
            "busybox" => self.wrapped(name, Vec::new(), args, input),
            "scp" | "rsync" | "git" | "git-upload-pack" | "git-receive-pack"
            | "git-upload-archive" | "git-shell" => transfer::transfer(self, &base, name, args),
            _ if OPAQUE.contains(&&*base)
                || base.starts_with("ld-")
                || base.starts_with("ld64")
                || base.starts_with("qemu-") =>
            {
                self.unseen(format!("what {base} runs"));
                self.suspects(&args);
                self.note(name, args);
            }
            _ => match WRAPPERS.iter().find(|w| w.names.contains(&&*base)) {
                Some(wrapper) => self.wrapper(wrapper, &base, name, args, input),
                None => {
                    transfer::binary(self, &base);
                    if !builtins::builtin(self, &base, &args) {
                        interpreters::interpreter(self, &base, &args);
                    }
                    self.note(name, args);
                }
            },
        }
    }

    /// Notes the wrapper with its own words, and runs the rest.
    pub(super) fn wrapped(
        &mut self,
        name: Argument,
        own: Vec<Argument>,
        rest: Vec<Argument>,
        input: Input,
    ) {
        let base = name.text.rsplit('/').next().unwrap_or_default().to_owned();
        self.note(name, own);
        let mut rest = rest.into_iter();
        let Some(inner) = rest.next() else { return };
        if self.via.len() > 16 {
            return self.unseen("a command nested so deeply");
        }
        self.via.push(base);
        self.run(inner, rest.collect(), input);
        self.via.pop();
    }

    fn wrapper(
        &mut self,
        wrapper: &Wrapper,
        base: &str,
        name: Argument,
        args: Vec<Argument>,
        input: Input,
    ) {
        let Some((mut at, met)) = parse(&args, &wrapper.options) else {
            return self.not_followed(base, name, args);
        };
        self.effects(base, &met);
        if wrapper.assigns {
            // env takes a lone dash for -i.
            while base == "env" && args.get(at).and_then(Argument::known) == Some("-") {
                at += 1;
            }
            while let Some(word) = args.get(at) {
                // The name must be known even where the value is not.
                let Some(variable) = super::variables::assigned(&word.text) else { break };
                if !word.single {
                    return self.not_followed(base, name, args);
                }
                self.assign(variable, true);
                at += 1;
            }
            if args.get(at).and_then(Argument::known).is_some_and(|t| t.contains('=')) {
                self.unseen(format!("what {base} sets"));
            }
        }
        let before = args.get(at..at + wrapper.before);
        if wrapper.before > 0 && before.is_none_or(|b| b.iter().any(|a| !a.literal)) {
            return self.not_followed(base, name, args);
        }
        at += wrapper.before;
        let mut own = args;
        let rest = own.split_off(at.min(own.len()));
        self.wrapped(name, own, rest, input);
    }

    /// What options do beside choosing the program.
    fn effects(&mut self, base: &str, met: &[Met<'_>]) {
        for option in met {
            match (base, option.name) {
                ("env", "C" | "chdir") | ("sudo", "D" | "chdir") => self.moved = true,
                ("time", "o" | "output") => {
                    let path = option.text().map_or(Argument::unknown("?"), Argument::literal);
                    self.file(FileOp::Write, &path, false, true);
                }
                _ => {}
            }
        }
    }

    pub(super) fn not_followed(&mut self, base: &str, name: Argument, args: Vec<Argument>) {
        self.unseen(format!("what {base} runs"));
        self.suspects(&args);
        self.note(name, args);
    }

    /// Words that may be programs, noted so that a rule that denies finds them.
    fn suspects(&mut self, args: &[Argument]) {
        let outer = std::mem::replace(&mut self.guessing, true);
        self.guess(args);
        self.guessing = outer;
    }

    fn guess(&mut self, args: &[Argument]) {
        for arg in args {
            let text = arg.known().unwrap_or_default();
            if !text.is_empty() && !text.starts_with('-') {
                self.note(arg.clone(), vec![Argument::unknown("…")]);
            }
            // A command in one word.
            if text.contains([' ', '\n', ';', '|', '&', '$']) {
                self.program(text);
            }
        }
    }

    fn nice(&mut self, name: Argument, args: Vec<Argument>, input: Input) {
        let number = |a: &Argument| {
            a.known().and_then(|t| t.strip_prefix('-')).is_some_and(|n| {
                let digits = n.trim_start_matches(['-', '+']);
                !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
            })
        };
        if args.first().is_some_and(number) {
            let mut own = args;
            let rest = own.split_off(1);
            return self.wrapped(name, own, rest, input);
        }
        let nice = wrapper(&["nice"], "", "n", &[], &["adjustment"]);
        self.wrapper(&nice, "nice", name, args, input);
    }

    fn command_builtin(&mut self, name: Argument, args: Vec<Argument>, input: Input) {
        let asks = |a: &Argument| matches!(a.known(), Some("-v" | "-V"));
        if args.first().is_some_and(asks) {
            return self.note(name, args);
        }
        let command = wrapper(&["command"], "p", "", &[], &[]);
        self.wrapper(&command, "command", name, args, input);
    }
}
