//! Commands that are meant to hurt whoever reads them.

use std::time::{Duration, Instant};

use super::exec;
use crate::policy::ssh::{LoginShell, ShellAnalyzer, SshClass};

/// Longest time that one command may take in a build without optimisation on a busy machine.
const LIMIT: Duration = Duration::from_secs(5);

fn quick(name: &str, command: &str) {
    let began = Instant::now();
    let facts = exec(command);
    let took = began.elapsed();
    assert!(took < LIMIT, "{name} took {took:?}: {:?}", facts.unseen);
}

#[test]
fn nesting_and_length_cost_no_more_than_they_should() {
    for depth in [8, 11, 12, 50, 5_000] {
        for (open, close) in [
            ("$(", ")"),
            ("(", ")"),
            ("{ ", "; }"),
            ("\"$(", ")\""),
            ("${x:-", "}"),
            ("\"${x:-", "}\""),
            ("$((", "))"),
            ("((", "))"),
            ("if ", ";then ls;fi"),
            ("case x in x) ", ";;esac"),
            ("while ", ";do ls;done"),
            ("<(", ")"),
            ("sh -c '", "'"),
            ("eval ", ""),
            ("env ", ""),
            ("! ", ""),
            ("x=$(", ")"),
            ("[[ ( ", " ) ]]"),
            ("{a,", "}"),
            ("@(", ")"),
            ("`", "`"),
            ("f() { ", "; }"),
            ("time ", ""),
            ("\"", "\""),
        ] {
            let balanced = format!("{}ls{}", open.repeat(depth), close.repeat(depth));
            quick(&format!("{depth} of {open}"), &balanced);
            quick(&format!("{depth} of {open}, open"), &open.repeat(depth));
            quick(&format!("{depth} of echo {open}"), &format!("echo {balanced}"));
            let spread = format!("{open}ls{close} ; ").repeat(depth.min(2_000));
            quick(&format!("{depth} of {open} in a row"), &spread);
        }
    }
}

#[test]
fn long_commands_take_time_in_proportion() {
    let words = [
        "a ",
        "a;",
        "a|",
        "a&&",
        "'",
        "\"",
        "\\",
        "$",
        "`",
        "#",
        "(",
        ")",
        "{",
        "}",
        "<",
        "<<E\n",
        "\n",
        "$x",
        "${x}",
        "\"$x\" ",
        "$(a) ",
        "\"$(a)\" ",
        "=",
        "a=b ",
        "~",
        "*",
        ">f ",
        "2>&1 ",
        "[",
        "{a,b}",
        "\u{e9}",
        "$'",
        "a=(",
        "1>",
        "! ",
        "case ",
        "if ",
        "'a' ",
        "\"a\" ",
        "\\a",
        "<(a) ",
        "`a` ",
        "$((1)) ",
        "a\\\n",
        "a #b\n",
        "${x:-a} ",
        "E\n",
    ];
    for word in words {
        let text = word.repeat(60_000 / word.len());
        quick(&format!("{word:?} many times"), &text);
        let text = word.repeat(16_000 / word.len());
        quick(&format!("echo {word:?} many times"), &format!("echo {text}"));
        quick(&format!("{word:?} in quotes"), &format!("echo \"{text}\""));
        quick(&format!("{word:?} in a substitution"), &format!("echo $({text})"));
        quick(&format!("{word:?} in a quoted substitution"), &format!("echo \"$({text})\""));
        quick(&format!("{word:?} in a shell"), &format!("sh -c '{text}'"));
        quick(&format!("{word:?} in a document"), &format!("cat <<E\n{text}\nE"));
    }
}

#[test]
fn numbers_that_do_not_fit_and_other_oddities_are_refused_not_fatal() {
    for command in [
        "ls 99999999999999999999>x",
        "echo {1..99999999999999999999}",
        "echo ~99999999999999999999",
        "echo $99999999999",
        "echo ${99999999999999}",
        "ls <&99999999999999",
        "\u{0}",
        "",
        " ",
        "\n",
        ";",
        "echo ${",
        "$",
        "echo ~+",
        "echo ~-",
        "cat <<\n",
        "cat <<''\nx\n\n",
        "a=()",
        "()",
        "{}",
        "<<<",
        "case in",
        "echo \u{10ffff}",
        "[[",
        "]]",
        "!",
        "time",
        "time -p",
        "coproc",
        "function",
        "if",
        "f()",
        "2>",
        "x=",
        "echo $((",
        "`",
        "<<E",
    ] {
        let _ = exec(command);
    }
    assert_eq!(exec(&"a".repeat(65 << 10)).class, SshClass::Unknown);
}

#[tokio::test]
async fn the_threads_answer_whatever_they_are_given() {
    let analyzer = ShellAnalyzer::new(2);
    for command in [&b"ls"[..], b"\xff\xfe", b"ls 99999999999999999999>x", b"$(", b""] {
        for _ in 0..3 {
            let facts = analyzer.exec(command.into(), LoginShell::Posix).await;
            assert_eq!(
                facts.unseen.is_none() && facts.class == SshClass::Exec,
                command == b"ls" || command.is_empty()
            );
        }
    }
    let fish = analyzer.exec(b"ls".as_slice().into(), LoginShell::from_path("/usr/bin/fish")).await;
    assert!(fish.unseen.is_some());
    assert_eq!(LoginShell::from_path("/usr/bin/bash"), LoginShell::Posix);
}

#[test]
fn shapes_tell_any_two_commands_apart() {
    let one = super::super::shell::analyze(b"ls \xff", None).shape();
    let two = super::super::shell::analyze(b"ls \xfe", None).shape();
    let three = super::super::shell::analyze(b"ls \\xff", None).shape();
    assert!(one != two && two != three && one != three, "{one} {two} {three}");
}
