//! `xargs` and `find`, which run a program once for each of many things.

use super::options::{Options, parse};
use super::walk::{Input, Walk};
use crate::policy::ssh::facts::{Argument, FileOp};

/// Tests of find that take the next word, whatever it looks like.
const OPERANDS: &[&str] = &[
    "-name",
    "-iname",
    "-path",
    "-ipath",
    "-wholename",
    "-regex",
    "-iregex",
    "-type",
    "-xtype",
    "-size",
    "-mtime",
    "-atime",
    "-ctime",
    "-mmin",
    "-amin",
    "-cmin",
    "-newer",
    "-user",
    "-group",
    "-uid",
    "-gid",
    "-perm",
    "-maxdepth",
    "-mindepth",
    "-links",
    "-inum",
    "-fstype",
    "-printf",
];

impl Walk {
    pub(super) fn xargs(&mut self, name: Argument, args: Vec<Argument>) {
        const OPTIONS: Options = Options {
            flags: "0rtpxo",
            values: "InPLsdEa",
            long: &["null", "no-run-if-empty", "verbose", "interactive", "exit", "open-tty"],
            long_values: &["max-args", "max-procs", "max-chars", "delimiter", "arg-file"],
        };
        let Some((at, met)) = parse(&args, &OPTIONS) else {
            return self.not_followed("xargs", name, args);
        };
        let mut replaced = None;
        for option in &met {
            match option.name {
                "I" => match option.text() {
                    Some(text) => replaced = Some(text.to_owned()),
                    None => return self.not_followed("xargs", name, args),
                },
                "a" | "arg-file" => {
                    let path = option.text().map_or(Argument::unknown("?"), Argument::literal);
                    self.file(FileOp::Read, &path, false, true);
                }
                _ => {}
            }
        }
        drop(met);
        let mut own = args;
        let mut rest = own.split_off(at);
        match replaced.filter(|r| !r.is_empty()) {
            Some(mark) => replace(&mut rest, &mark),
            None if rest.is_empty() => {}
            None => rest.push(Argument::unknown("…")),
        }
        self.wrapped(name, own, rest, Input::Other);
    }

    pub(super) fn find(&mut self, name: Argument, args: Vec<Argument>) {
        let mut own = Vec::new();
        let mut args = args.into_iter();
        let mut inner = Vec::new();
        let mut operand = false;
        while let Some(arg) = args.next() {
            let text = arg.known().map(str::to_owned);
            if std::mem::take(&mut operand) && arg.single {
                own.push(arg);
                continue;
            }
            operand = text.as_deref().is_some_and(|t| OPERANDS.contains(&t));
            match text.as_deref() {
                None if !arg.single
                    || !arg.text.starts_with(|c: char| {
                        c.is_ascii_alphanumeric() || matches!(c, '/' | '.')
                    }) =>
                {
                    // It may be `-exec`.
                    self.unseen("what find runs");
                }
                Some("-exec" | "-execdir" | "-ok" | "-okdir") => {
                    self.moved |= text.as_deref().is_some_and(|t| t.ends_with("dir"));
                    let mut words: Vec<Argument> = Vec::new();
                    let mut closed = false;
                    for word in args.by_ref() {
                        let ends = word.known() == Some(";")
                            || (word.known() == Some("+")
                                && words.last().and_then(Argument::known) == Some("{}"));
                        if ends {
                            closed = true;
                            break;
                        }
                        words.push(word);
                    }
                    if !closed {
                        self.unseen("what find runs");
                    }
                    inner.push(words);
                }
                Some("-delete") => {
                    self.file(FileOp::Remove, &Argument::unknown("(found)"), false, false)
                }
                Some("-fprint" | "-fprintf" | "-fprint0" | "-fls") => {
                    let path = args.next().unwrap_or_else(|| Argument::unknown("?"));
                    self.file(FileOp::Write, &path, false, false);
                    own.push(path);
                }
                _ => {}
            }
            own.push(arg);
        }
        self.note(name, own);
        self.via.push("find".into());
        for mut words in inner {
            replace(&mut words, "{}");
            let mut words = words.into_iter();
            if let Some(first) = words.next() {
                self.run(first, words.collect(), Input::Inherited);
            }
        }
        self.via.pop();
    }
}

/// Words in which something stands that only the wrapper knows.
fn replace(words: &mut [Argument], mark: &str) {
    for word in words {
        if word.literal && word.text.contains(mark) {
            word.literal = false;
        } else if !word.literal {
            word.single = false;
        }
    }
}
