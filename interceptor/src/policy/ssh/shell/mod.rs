//! What a command line runs.
//!
//! The text is tokenized and parsed with bash's grammar; this module walks the tree and lists
//! every program, wherever it stands: in pipelines, loops, functions, substitutions inside words,
//! here-documents, `sh -c`, `eval`, and behind programs that run others.
//!
//! Three readers may disagree: the parser, bash, and dash (which is `sh` on many hosts). A
//! command passes for wholly seen only where all three must agree:
//!
//! * tokens are checked against the text they came from ([`source`]);
//! * words are parsed a second time, and nothing that separates commands may turn up in them
//!   unquoted ([`words`]);
//! * constructs that the three treat differently, or whose meaning depends on values
//!   (arithmetic on variables, `[[`, `$'…'` with escapes), are said to be unseen.
//!
//! This errs towards refusing, and only that way: what is unseen is refused unless a rule says
//! otherwise, and the programs that were found are still there for rules that deny.

mod builtins;
mod each;
mod interpreters;
mod options;
mod outputs;
mod redirects;
mod shells;
mod source;
mod transfer;
mod tree;
pub(super) mod variables;
mod walk;
mod words;
mod wrappers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use walk::Walk;

use super::facts::{SshClass, SshFacts};

/// Longest command, in bytes.
pub const MAX_COMMAND: usize = 64 << 10;

/// Deepest nesting of quotes, substitutions and groups. The parser tries some of them several
/// times at each level, so its work doubles and more with each.
pub(super) const MAX_NESTING: usize = 12;

/// Facts of a command, found on the calling thread. `shell` is a shell whose grammar this is not.
/// The parser has places where it panics, so that is a refusal.
pub(super) fn analyze(command: &[u8], shell: Option<&str>) -> SshFacts {
    catch_unwind(AssertUnwindSafe(|| read(command, shell)))
        .unwrap_or_else(|_| refused(shown(command), "the command, at which the parser gives up"))
}

fn read(command: &[u8], shell: Option<&str>) -> SshFacts {
    let text = shown(command);
    let Ok(source) = std::str::from_utf8(command) else {
        return refused(text, "a command that is not UTF-8");
    };
    if let Err(why) = plausible(source) {
        return refused(text, why);
    }
    let mut walk = Walk::default();
    if let Err(why) = walk.whole(source) {
        let mut facts = refused(text, "the command, which is no shell grammar known here");
        facts.unseen = Some(why);
        return facts;
    }
    if let Some(why) = suspicious(source) {
        walk.unseen(why);
    }
    if let Some(name) = shell {
        walk.unseen(format!("what the login shell {name} makes of it"));
    }
    walk.finish(text)
}

/// Facts of a command that is not looked into.
pub(super) fn refused(text: Arc<str>, why: &str) -> SshFacts {
    SshFacts { unseen: Some(why.into()), ..SshFacts::new(SshClass::Unknown, text) }
}

/// The command as text that tells any two commands apart.
pub(super) fn shown(command: &[u8]) -> Arc<str> {
    match std::str::from_utf8(command) {
        Ok(text) => text.into(),
        Err(_) => format!("bytes:{}", command.escape_ascii()).into(),
    }
}

/// What is not handed to the parser at all.
fn plausible(text: &str) -> Result<(), &'static str> {
    if text.len() > MAX_COMMAND {
        return Err("a command longer than 64 KiB");
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n')) {
        return Err("a command with control characters");
    }
    if nesting(text) > MAX_NESTING {
        return Err("a command nested so deeply");
    }
    if vast(text) {
        return Err("a number so large");
    }
    Ok(())
}

/// Numbers at which the parser gives up: of a file descriptor before a redirection, of an entry
/// of the directory stack behind `~`, and in a brace expansion.
fn vast(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        let after = bytes.get(at + digits);
        if digits >= 10 && matches!(after, Some(b'<' | b'>'))
            || digits >= 19 && matches!(before, Some(b'~' | b'+' | b'-' | b'{' | b'.'))
        {
            return true;
        }
        at += digits.max(1);
    }
    false
}

/// An upper bound of how deeply brackets nest, quoted or not, and of how many compound commands
/// are open at once.
fn nesting(text: &str) -> usize {
    let (mut deepest, mut open) = (0_usize, 0_usize);
    for b in text.bytes() {
        match b {
            b'(' | b'{' | b'[' => open += 1,
            b')' | b'}' | b']' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    let mut compound = 0_usize;
    // Whether a word here would be the first of a command.
    let mut first = true;
    let ends = |c: char| {
        c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '<' | '>' | '`' | '"')
    };
    for piece in text.split_inclusive(ends) {
        match piece.trim_end_matches(ends) {
            "if" | "while" | "until" if first => compound += 1,
            "for" | "case" | "select" if first => {
                compound += 1;
                first = false;
            }
            "fi" | "esac" | "done" if first => compound = compound.saturating_sub(1),
            "" | "do" | "then" | "else" | "elif" | "!" | "time" | "{" | "}" | "in" => {}
            _ => first = false,
        }
        first |= piece.ends_with(|c: char| ends(c) && !matches!(c, ' ' | '\t' | '<' | '>'));
        deepest = deepest.max(compound);
    }
    deepest
}

/// Characters that deceive whoever reads the command, or a shell in another locale.
fn suspicious(text: &str) -> Option<&'static str> {
    let hidden = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    if text.chars().any(hidden) {
        return Some("characters that do not show");
    }
    // A multi-byte character set other than UTF-8 may take the second for a part of the first.
    let swallowed = text.as_bytes().windows(2).any(|w| {
        matches!(w, [0x80..=0xff, b'\\' | b'`' | b'|' | b'{' | b'}' | b'~' | b'[' | b']' | b'^'])
    });
    swallowed.then_some("where a character ends in another locale")
}
