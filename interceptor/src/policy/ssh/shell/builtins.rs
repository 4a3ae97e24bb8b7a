//! Builtins of shells that can do more than they look like.

use super::variables::{assigned, is_name};
use super::walk::Walk;
use crate::policy::ssh::facts::Argument;

/// Builtins that change what later words mean, or run text.
const HIDING: &[&str] = &[
    "source",
    ".",
    "alias",
    "unalias",
    "trap",
    "let",
    "declare",
    "typeset",
    "local",
    "enable",
    "hash",
    "complete",
    "compopt",
    "compgen",
    "bind",
    "fc",
    "history",
    "coproc",
    "mapfile",
    "readarray",
    "getopts",
    "shopt",
    "caller",
    "jobs",
    "newgrp",
    "chdir",
    "logout",
    "suspend",
    "select",
    "function",
];

/// Notes what a builtin does; false when it is none.
pub(super) fn builtin(walk: &mut Walk, name: &str, args: &[Argument]) -> bool {
    let known = args.iter().all(|a| a.literal);
    match name {
        "chdir" | "cd" | "pushd" | "popd" => walk.moved = true,
        "export" | "readonly" => set(walk, name, args),
        "unset" => {
            if !known {
                walk.unseen("which variable is removed");
            }
            for arg in args.iter().filter(|a| !a.text.starts_with('-')) {
                if super::variables::dangerous(&arg.text) {
                    walk.unseen(format!("what removing {:?} does", arg.text));
                }
            }
        }
        "read" => read(walk, args),
        "set" => options(walk, args),
        "printf" => {
            let first = args.first();
            if first.is_some_and(|a| !a.literal || a.text.starts_with("-v")) {
                walk.unseen("which variable printf sets");
            }
        }
        "test" | "[" => test(walk, args),
        "wait" => {
            if !known || args.iter().any(|a| a.text.starts_with("-p")) {
                walk.unseen("which variable wait sets");
            }
        }
        _ if HIDING.contains(&name) => {
            walk.unseen(format!("what {name} changes"));
            for arg in args {
                // `trap 'text' EXIT`
                if name == "trap" && arg.literal && arg.text.contains([' ', ';', '/']) {
                    walk.program(&arg.text);
                }
                if let Some(variable) = assigned(&arg.text) {
                    walk.assign(variable, true);
                }
            }
        }
        ":" | "true" | "false" | "echo" | "pwd" | "exit" | "return" | "break" | "continue"
        | "shift" | "umask" | "ulimit" | "times" | "type" | "kill" | "disown" | "dirs" => {}
        _ => return false,
    }
    true
}

fn set(walk: &mut Walk, name: &str, args: &[Argument]) {
    for arg in args {
        let variable = assigned(&arg.text).or(Some(&*arg.text).filter(|t| is_name(t)));
        match variable {
            // dash divides a value that is not quoted into further names.
            Some(variable) if arg.literal || arg.single => walk.assign(variable, name == "export"),
            _ if arg.known() == Some("-p") => {}
            _ => walk.unseen(format!("what {name} sets")),
        }
    }
}

fn read(walk: &mut Walk, args: &[Argument]) {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.known() {
            Some("-r" | "-s" | "-rs" | "-sr") => {}
            Some("-p" | "-t" | "-n" | "-d" | "-u") => drop(args.next()),
            Some(name) if is_name(name) => walk.assign(name, false),
            _ => return walk.unseen("which variable read sets"),
        }
    }
}

/// Options that only make a script stricter or more talkative; words behind `--` are data.
fn options(walk: &mut Walk, args: &[Argument]) {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let letters = |t: &str| {
            t.strip_prefix(['-', '+'])
                .is_some_and(|l| !l.is_empty() && l.chars().all(|c| "euxvfnC".contains(c)))
        };
        match arg.known() {
            Some("--") => return,
            Some("-o" | "+o" | "-eo" | "-euo" | "-ueo" | "-exo" | "-euxo") => {
                let plain =
                    ["pipefail", "errexit", "nounset", "xtrace", "noglob", "noclobber", "verbose"];
                if !args.next().and_then(Argument::known).is_some_and(|o| plain.contains(&o)) {
                    return walk.unseen("what an option of the shell does");
                }
            }
            Some(text) if letters(text) => {}
            Some(text) if !text.starts_with(['-', '+']) => return,
            _ => return walk.unseen("what an option of the shell does"),
        }
    }
}

/// `-v` and `-R` evaluate an index, which may run a command; so no word may turn into one.
fn test(walk: &mut Walk, args: &[Argument]) {
    let args = match args.split_last() {
        Some((last, rest)) if last.known() == Some("]") => rest,
        _ => args,
    };
    let evaluates = |a: &Argument| matches!(a.known(), Some("-v" | "-R"));
    let compares = |a: &Argument| {
        matches!(
            a.known(),
            Some(
                "=" | "=="
                    | "!="
                    | "-eq"
                    | "-ne"
                    | "-lt"
                    | "-le"
                    | "-gt"
                    | "-ge"
                    | "-nt"
                    | "-ot"
                    | "-ef"
            )
        )
    };
    let safe = match args {
        _ if args.iter().any(evaluates) => false,
        _ if args.iter().all(|a| a.literal) => true,
        _ if !args.iter().all(|a| a.single) => false,
        [_] => true,
        [op, _] => op.known().is_some_and(|o| o.len() == 2 && o.starts_with('-')),
        [_, op, _] => compares(op),
        [not, _, op, _] => not.known() == Some("!") && compares(op),
        _ => false,
    };
    if !safe {
        walk.unseen("what a test evaluates");
    }
}
