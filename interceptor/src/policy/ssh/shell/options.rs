//! Options of programs, as `getopt` reads them.

use crate::policy::ssh::facts::Argument;

/// How a program that runs another takes its own options. What is not listed is not understood.
pub(super) struct Options {
    /// Letters that stand alone.
    pub flags: &'static str,
    /// Letters that take a value, joined or as the next word.
    pub values: &'static str,
    /// Long options that stand alone.
    pub long: &'static [&'static str],
    /// Long options with a value, joined by `=` or as the next word.
    pub long_values: &'static [&'static str],
}

/// An option that was met.
pub(super) struct Met<'a> {
    pub name: &'a str,
    pub value: Option<&'a Argument>,
    /// The value where it is joined to the name.
    pub joined: Option<&'a str>,
}

impl Met<'_> {
    /// Its value, where it is known.
    pub fn text(&self) -> Option<&str> {
        self.joined.or_else(|| self.value.and_then(Argument::known))
    }
}

/// Where the options end, and what they were; `None` when one is not understood.
pub(super) fn parse<'a>(args: &'a [Argument], spec: &Options) -> Option<(usize, Vec<Met<'a>>)> {
    let mut met = Vec::new();
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        // A word that may be nothing or several may be options too.
        let Some(text) = arg.known() else {
            return if may_be_option(arg) { None } else { Some((at, met)) };
        };
        if text == "--" {
            return Some((at + 1, met));
        }
        if let Some(name) = text.strip_prefix("--") {
            at += long(name, args.get(at + 1), spec, &mut met)?;
        } else if let Some(letters) = text.strip_prefix('-').filter(|l| !l.is_empty()) {
            at += short(letters, args.get(at + 1), spec, &mut met)?;
        } else {
            break;
        }
    }
    Some((at, met))
}

/// Whether a word with an unknown part, whose text is as it was written, may turn into one that
/// begins with a dash, or into several words.
pub(super) fn may_be_option(arg: &Argument) -> bool {
    !arg.single || !arg.text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
}

fn long<'a>(
    name: &'a str,
    next: Option<&'a Argument>,
    spec: &Options,
    met: &mut Vec<Met<'a>>,
) -> Option<usize> {
    let (name, joined) = match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    };
    if spec.long_values.contains(&name) {
        let value = if joined.is_some() { None } else { Some(next?) };
        met.push(Met { name, value, joined });
        return Some(if joined.is_some() { 1 } else { 2 });
    }
    if spec.long.contains(&name) {
        met.push(Met { name, value: None, joined });
        return Some(1);
    }
    None
}

fn short<'a>(
    letters: &'a str,
    next: Option<&'a Argument>,
    spec: &Options,
    met: &mut Vec<Met<'a>>,
) -> Option<usize> {
    for (at, letter) in letters.char_indices() {
        let name = &letters[at..at + letter.len_utf8()];
        if spec.values.contains(letter) {
            let rest = &letters[at + letter.len_utf8()..];
            if rest.is_empty() {
                // A value that may be several words shifts all that follow.
                let value = next.filter(|v| v.single)?;
                met.push(Met { name, value: Some(value), joined: None });
                return Some(2);
            }
            met.push(Met { name, value: None, joined: Some(rest) });
            return Some(1);
        }
        if !spec.flags.contains(letter) {
            return None;
        }
        met.push(Met { name, value: None, joined: None });
    }
    Some(1)
}
