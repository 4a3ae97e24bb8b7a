//! Shells and what hands them a text: `sh -c`, `eval`, `su -c`, `watch`, `ssh`.

use super::options::{Options, parse};
use super::walk::{Input, Walk};
use crate::policy::ssh::facts::Argument;

/// A shell of the family whose grammar this is.
pub(super) fn shell(walk: &mut Walk, name: Argument, args: Vec<Argument>, input: &Input) {
    const OPTIONS: Options = Options {
        flags: "ceuxvfCl",
        values: "o",
        long: &["login", "norc", "noprofile", "posix", "version", "help"],
        long_values: &[],
    };
    let base = name.text.rsplit('/').next().unwrap_or_default().to_owned();
    let Some((at, met)) = parse(&args, &OPTIONS) else {
        return walk.not_followed(&base, name, args);
    };
    let plain = ["pipefail", "errexit", "nounset", "xtrace", "noglob", "noclobber"];
    if met.iter().any(|m| m.name == "o" && !m.text().is_some_and(|o| plain.contains(&o))) {
        walk.unseen(format!("what an option of {base} does"));
    }
    let asks = met.iter().any(|m| matches!(m.name, "version" | "help"));
    let text = met.iter().any(|m| m.name == "c");
    let operand = args.get(at).cloned();
    walk.note(name, args);
    if asks {
        return;
    }
    walk.via.push(base.clone());
    match (operand, text) {
        // bash takes these for options too, and the next word for the text.
        (Some(script), true) if script.text.starts_with(['+', '-']) => {
            walk.unseen(format!("what {base} -c runs"));
        }
        // Words behind the text are expansions in it, which are not known anyway.
        (Some(script), true) => match script.known() {
            Some(text) => walk.program(text),
            None => walk.unseen(format!("what {base} -c runs")),
        },
        (None, true) => walk.unseen(format!("what {base} -c runs")),
        (Some(script), false) => walk.unseen(format!("the script {:?}", script.text)),
        (None, false) => match input {
            Input::Text(text) => walk.program(text),
            _ => walk.unseen(format!("what {base} reads")),
        },
    }
    walk.via.pop();
}

/// A shell of another family: what it runs is looked at, and not relied on.
pub(super) fn foreign(walk: &mut Walk, name: Argument, args: Vec<Argument>) {
    let base = name.text.rsplit('/').next().unwrap_or_default().to_owned();
    walk.not_followed(&base, name, args);
}

/// `eval` reads its words, joined, as a program.
pub(super) fn eval(walk: &mut Walk, name: Argument, args: Vec<Argument>) {
    let words: Option<Vec<String>> = args.iter().map(|a| a.known().map(str::to_owned)).collect();
    walk.note(name, args);
    walk.via.push("eval".into());
    match words {
        Some(words) => {
            let text = words.join(" ");
            walk.program(text.strip_prefix("-- ").unwrap_or(&text));
        }
        None => walk.unseen("what eval runs"),
    }
    walk.via.pop();
}

/// `su [options] [-] [user [arguments]]`, `runuser -u user [--] command`.
pub(super) fn su(walk: &mut Walk, name: Argument, args: Vec<Argument>) {
    const OPTIONS: Options = Options {
        flags: "lmp",
        values: "cgGu",
        long: &["login", "preserve-environment"],
        long_values: &["command", "group", "supp-group", "user"],
    };
    walk.moved = true;
    let base = name.text.rsplit('/').next().unwrap_or_default().to_owned();
    // Options may stand behind the user too.
    let (mut words, mut given) = (Vec::new(), None);
    let mut at = 0;
    while at < args.len() {
        let Some((end, met)) = parse(&args[at..], &OPTIONS) else {
            return walk.not_followed(&base, name, args);
        };
        for option in &met {
            match option.name {
                "c" | "command" => match option.text() {
                    Some(text) => given = Some(text.to_owned()),
                    None => return walk.not_followed(&base, name, args),
                },
                "u" | "user" => words.push(Argument::literal("-u")),
                _ => {}
            }
        }
        at += end;
        if base == "runuser" && words.iter().any(|w| w.text == "-u") {
            break;
        }
        if let Some(word) = args.get(at) {
            if !word.literal {
                return walk.not_followed(&base, name, args);
            }
            words.push(word.clone());
            at += 1;
        }
    }
    let direct = base == "runuser" && words.first().is_some_and(|w| w.text == "-u");
    if direct {
        let mut own = args;
        let rest = own.split_off(at.min(own.len()));
        return walk.wrapped(name, own, rest, Input::Inherited);
    }
    // A user, perhaps a dash before it; anything more goes to the shell.
    let users = words.iter().filter(|w| w.text != "-").count();
    walk.note(name, args);
    walk.via.push(base.clone());
    match given {
        Some(text) if users <= 1 => walk.program(&text),
        _ => walk.unseen(format!("what the shell of {base} runs")),
    }
    // The shell is that user's own.
    walk.unseen(format!("which shell {base} starts"));
    walk.via.pop();
}

/// `watch` joins its words and hands them to a shell.
pub(super) fn watch(walk: &mut Walk, name: Argument, args: Vec<Argument>) {
    const OPTIONS: Options = Options {
        flags: "bcdegptwx",
        values: "nq",
        long: &[
            "beep",
            "color",
            "differences",
            "errexit",
            "chgexit",
            "precise",
            "no-title",
            "exec",
            "no-wrap",
        ],
        long_values: &["interval"],
    };
    let Some((at, met)) = parse(&args, &OPTIONS) else {
        return walk.not_followed("watch", name, args);
    };
    if met.iter().any(|m| matches!(m.name, "x" | "exec")) {
        let mut own = args;
        let rest = own.split_off(at);
        return walk.wrapped(name, own, rest, Input::Inherited);
    }
    let words: Option<Vec<String>> =
        args[at..].iter().map(|a| a.known().map(str::to_owned)).collect();
    let mut own = args;
    own.truncate(at);
    walk.note(name, own);
    walk.via.push("watch".into());
    match words {
        Some(words) => walk.program(&words.join(" ")),
        None => walk.unseen("what watch runs"),
    }
    walk.via.pop();
}

/// `flock [options] file command…`, `flock [options] file -c text`, `flock number`.
pub(super) fn flock(walk: &mut Walk, name: Argument, args: Vec<Argument>, input: Input) {
    const OPTIONS: Options = Options {
        flags: "enosux",
        values: "wE",
        long: &["shared", "exclusive", "unlock", "nonblock", "close", "no-fork", "verbose"],
        long_values: &["timeout", "wait", "conflict-exit-code"],
    };
    let Some((at, _)) = parse(&args, &OPTIONS) else {
        return walk.not_followed("flock", name, args);
    };
    if args.get(at).is_some_and(|file| !file.literal) {
        return walk.not_followed("flock", name, args);
    }
    let mut own = args;
    let mut rest = own.split_off((at + 1).min(own.len()));
    let text = matches!(rest.first().and_then(Argument::known), Some("-c" | "--command"));
    if !text {
        return walk.wrapped(name, own, rest, input);
    }
    rest.remove(0);
    walk.note(name, own);
    walk.via.push("flock".into());
    match rest.first().and_then(Argument::known).filter(|_| rest.len() == 1) {
        Some(text) => walk.program(text),
        None => walk.unseen("what flock runs"),
    }
    walk.via.pop();
}

/// What ssh runs is run elsewhere; what it runs here (`ProxyCommand`) hides in its options.
pub(super) fn ssh(walk: &mut Walk, name: Argument, args: Vec<Argument>) {
    walk.not_followed("ssh", name, args);
}
