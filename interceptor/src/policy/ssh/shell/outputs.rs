//! Programs that show something and write it to a file when they are told to, by an option or by
//! the place of a word. Rules that let anybody look rarely mean that.

use super::options::{Options, may_be_option, parse};
use super::walk::Walk;
use crate::policy::ssh::facts::{Argument, FileOp};

/// How a program is told.
struct Output {
    program: &'static str,
    options: Options,
    /// Options whose value is the file.
    by: &'static [&'static str],
    /// The second operand is one.
    second: bool,
}

const OUTPUTS: [Output; 3] = [
    Output {
        program: "sort",
        options: Options {
            flags: "bdfgihMnRrVcCmsuz",
            values: "kotST",
            long: &[
                "ignore-leading-blanks",
                "dictionary-order",
                "ignore-case",
                "general-numeric-sort",
                "ignore-nonprinting",
                "month-sort",
                "human-numeric-sort",
                "numeric-sort",
                "random-sort",
                "reverse",
                "version-sort",
                "check",
                "merge",
                "stable",
                "unique",
                "zero-terminated",
                "debug",
                "help",
                "version",
            ],
            long_values: &[
                "key",
                "output",
                "field-separator",
                "buffer-size",
                "temporary-directory",
                "batch-size",
                "files0-from",
                "random-source",
                "sort",
                "parallel",
            ],
        },
        by: &["o", "output"],
        second: false,
    },
    Output {
        program: "uniq",
        options: Options {
            flags: "cdDuiz0123456789",
            values: "fsw",
            long: &[
                "count",
                "repeated",
                "all-repeated",
                "group",
                "ignore-case",
                "unique",
                "zero-terminated",
                "help",
                "version",
            ],
            long_values: &["skip-fields", "skip-chars", "check-chars"],
        },
        by: &[],
        second: true,
    },
    Output {
        program: "ss",
        options: Options {
            flags: "hVHQnraloeOmpiTsEZzbKM460tudwxS",
            values: "fADFN",
            long: &[
                "help",
                "version",
                "no-header",
                "no-queues",
                "numeric",
                "resolve",
                "all",
                "listening",
                "options",
                "extended",
                "oneline",
                "memory",
                "processes",
                "info",
                "tcp",
                "udp",
                "unix",
                "raw",
                "packet",
                "ipv4",
                "ipv6",
                "summary",
                "events",
            ],
            long_values: &["family", "query", "socket", "diag", "filter", "net"],
        },
        by: &["D", "diag"],
        second: false,
    },
];

/// Notes the file that a program's words make it write; any, where that cannot be told.
pub(super) fn output(walk: &mut Walk, base: &str, args: &[Argument]) {
    let Some(known) = OUTPUTS.iter().find(|known| known.program == base) else { return };
    for file in files(known, args) {
        walk.file(FileOp::Write, &file, false, true);
    }
}

fn files(known: &Output, args: &[Argument]) -> Vec<Argument> {
    let anywhere = || vec![Argument::unknown("?")];
    let (mut files, mut operands) = (Vec::new(), Vec::new());
    let (mut at, mut ended) = (0, false);
    while let Some(arg) = args.get(at) {
        // Options may stand behind operands too.
        if !ended {
            let Some((read, met)) = parse(&args[at..], &known.options) else { return anywhere() };
            let names = met.iter().filter(|option| known.by.contains(&option.name));
            files.extend(names.map(|o| o.text().map_or(Argument::unknown("?"), Argument::literal)));
            at += read;
            // An option's value may look like the end of the options.
            let value = met.last().and_then(|option| option.value);
            let last =
                args[..at].last().filter(|last| !value.is_some_and(|v| std::ptr::eq(v, *last)));
            ended = read > 0 && last.and_then(Argument::known) == Some("--");
            if read > 0 {
                continue;
            }
        }
        // A word that may be several shifts all that follow.
        if !arg.single || !ended && arg.known().is_none() && may_be_option(arg) {
            return anywhere();
        }
        operands.push(arg.clone());
        at += 1;
    }
    if known.second {
        files.extend(operands.into_iter().nth(1).filter(|file| file.known() != Some("-")));
    }
    files
}
