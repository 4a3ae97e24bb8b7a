//! The state of one analysis, and how a program text is taken apart.

use std::sync::Arc;

use brush_parser::{ParserOptions, TokenizerOptions, parse_tokens, uncached_tokenize_str};

use super::source;
use crate::policy::ssh::facts::{Argument, FileOp, FileUse, Place, Program, SshClass, SshFacts};
use crate::policy::ssh::requests;

/// Most programs, files and variables of one command.
const MAX_PARTS: usize = 4096;
/// How often a text may stand inside another: `sh -c "sh -c …"`, substitutions, `eval`.
const MAX_DEPTH: usize = 10;
/// Most bytes parsed altogether, texts inside texts counted again.
const MAX_WORK: usize = 256 << 10;
/// Most texts parsed altogether.
const MAX_TEXTS: usize = 1024;
/// Most tokens of one text.
const MAX_TOKENS: usize = 8192;

/// Programs behind which `HOME` may be another, or none.
const REHOMING: &[&str] = &["sudo", "doas", "su", "runuser", "env"];

/// What an analysis has found so far.
#[derive(Default)]
pub(super) struct Walk {
    pub programs: Vec<Program>,
    pub files: Vec<FileUse>,
    pub variables: Vec<String>,
    pub binary: bool,
    /// The first thing that could not be seen.
    unseen: Option<String>,
    /// Classes of programs that are recognized in the command.
    pub transfers: Vec<SshClass>,
    /// Simple commands met, whatever they are.
    pub simple: usize,
    /// Whether relative paths may be seen from elsewhere than the home directory.
    pub moved: bool,
    /// Which files are named by a relative path.
    relative: Vec<usize>,
    /// Whether this text stands in a substitution.
    pub nested: bool,
    /// Through which programs what is met now is run.
    pub via: Vec<String>,
    /// Whether what is met is only a guess at what an opaque program runs.
    pub guessing: bool,
    depth: usize,
    work: usize,
    texts: usize,
}

/// What the standard input of a command is made of.
#[derive(Debug, Clone, Default)]
pub(super) enum Input {
    /// Whatever it inherits.
    #[default]
    Inherited,
    /// A text that is known.
    Text(String),
    /// A text or file that is not.
    Other,
}

/// Options for tokens and words alike. Extended globs are off in shells that run a command.
pub(super) fn options() -> ParserOptions {
    ParserOptions { enable_extended_globbing: false, ..ParserOptions::default() }
}

impl Walk {
    /// Notes that something cannot be seen; what was noted first stays.
    pub fn unseen(&mut self, what: impl Into<String>) {
        if self.unseen.is_none() {
            self.unseen = Some(what.into());
        }
    }

    /// The text of the request itself. An error says why it cannot be parsed.
    pub fn whole(&mut self, text: &str) -> Result<(), String> {
        self.parse(text)
    }

    /// A program text inside another program: `sh -c`, `eval`.
    pub fn program(&mut self, text: &str) {
        let outer = std::mem::take(&mut self.nested);
        self.inner(text);
        self.nested = outer;
    }

    /// The text of a command substitution.
    pub fn substitution(&mut self, text: &str) {
        // Where the text ends depends on these, and the tokenizer does not look at them there.
        let begins = |at: usize| {
            text[..at].ends_with([' ', '\t', '\n', ';', '&', '|', '(', ')', '<', '>']) || at == 0
        };
        if text.match_indices('#').any(|(at, _)| begins(at)) {
            self.unseen("what is a comment in a substitution");
        }
        if text.contains("<<") {
            self.unseen("a here-document in a substitution");
        }
        if text.split(|c: char| !c.is_ascii_alphanumeric()).any(|w| w == "case" || w == "esac") {
            self.unseen("where a substitution with `case` ends");
        }
        let outer = std::mem::replace(&mut self.nested, true);
        self.inner(text);
        self.nested = outer;
    }

    fn inner(&mut self, text: &str) {
        if self.depth >= MAX_DEPTH {
            return self.unseen("a command nested so deeply");
        }
        self.depth += 1;
        if let Err(why) = self.parse(text) {
            self.unseen(why);
        }
        self.depth -= 1;
    }

    fn parse(&mut self, text: &str) -> Result<(), String> {
        self.work += text.len();
        self.texts += 1;
        if self.work > MAX_WORK || self.texts > MAX_TEXTS {
            return Err("a command of so many parts".into());
        }
        let tokenizer =
            TokenizerOptions { enable_extended_globbing: false, ..TokenizerOptions::default() };
        let tokens = uncached_tokenize_str(text, &tokenizer)
            .map_err(|e| format!("the command, which cannot be parsed ({e})"))?;
        if tokens.len() > MAX_TOKENS {
            return Err("a command of so many parts".into());
        }
        let sound = source::check(text, &tokens);
        let program = parse_tokens(&tokens, &options())
            .map_err(|e| format!("the command, which cannot be parsed ({e})"))?;
        if let Err(what) = sound {
            self.unseen(what);
        }
        for list in &program.complete_commands {
            self.list(list);
        }
        Ok(())
    }

    /// Notes a program with its own arguments.
    pub fn note(&mut self, name: Argument, args: Vec<Argument>) {
        if self.programs.len() >= MAX_PARTS {
            return self.unseen("a command of so many parts");
        }
        let (via, guessed) = (self.via.clone(), self.guessing);
        self.programs.push(Program { name, args, via, guessed });
    }

    /// Notes that a variable is set. `exported` means: for programs to see.
    pub fn assign(&mut self, name: &str, exported: bool) {
        if super::variables::dangerous(name) {
            self.unseen(format!("what {name} makes programs do"));
        }
        // A name in small letters is the script's own, unless it is exported.
        let own = !exported && !name.bytes().any(|b| b.is_ascii_uppercase());
        if own
            || self.guessing
            || super::variables::harmless(name)
            || self.variables.iter().any(|v| v == name)
        {
            return;
        }
        if self.variables.len() >= MAX_PARTS {
            return self.unseen("a command of so many parts");
        }
        self.variables.push(name.to_owned());
    }

    /// Notes a use of a file by its name.
    pub fn file(&mut self, op: FileOp, path: &Argument, below: bool, implied: bool) {
        let place = match path.known() {
            Some(text) => Self::place(text, below),
            // Behind these `~` may be somebody else's, or nobody's.
            None if self.via.iter().any(|by| REHOMING.contains(&by.as_str())) => Place::Unknown,
            None => from_tilde(path, below),
        };
        if self.files.len() >= MAX_PARTS {
            return self.unseen("a command of so many parts");
        }
        if path.known().is_some_and(|text| !text.starts_with('/')) {
            self.relative.push(self.files.len());
        }
        let (implied, written) = (implied || self.guessing, path.text.clone());
        let (announced, carried) = (false, false);
        self.files.push(FileUse { op, place, written, implied, announced, carried });
    }

    /// Notes a file that may be meant besides: nothing has to allow it, and what denies it counts.
    pub fn file_besides(&mut self, op: FileOp, path: &Argument, below: bool) {
        let before = self.files.len();
        self.file(op, path, below, true);
        if let Some(file) = self.files.get_mut(before) {
            file.carried = true;
        }
    }

    fn place(path: &str, below: bool) -> Place {
        match requests::place(path) {
            Place::At(path) if below => Place::Under(path),
            Place::Home(path) if below => Place::UnderHome(path),
            place => place,
        }
    }

    /// What was found, as facts.
    pub fn finish(mut self, text: Arc<str>) -> SshFacts {
        if self.moved {
            // A loop may come back to what stands before the change of directory.
            for at in self.relative {
                if let Some(file) = self.files.get_mut(at) {
                    file.place = Place::Unknown;
                }
            }
        }
        let mut class = SshClass::Exec;
        let mut also = self.transfers;
        if self.simple == 1 && self.programs.len() == 1 && also.len() == 1 {
            class = also.remove(0);
        }
        SshFacts {
            class,
            also,
            programs: self.programs,
            files: self.files,
            destination: None,
            home: None,
            variables: self.variables,
            binary: self.binary,
            unseen: self.unseen,
            text,
        }
    }
}

/// `~/x` is known to be in the home directory, though not literal; `~` is that directory.
fn from_tilde(path: &Argument, below: bool) -> Place {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
    let rest = if path.text == "~" { Some("") } else { path.text.strip_prefix("~/") };
    match rest {
        Some(rest) if path.single && !rest.starts_with('/') && rest.chars().all(plain) => {
            match requests::place(rest) {
                Place::Home(rest) if below => Place::UnderHome(rest),
                Place::Home(rest) => Place::Home(rest),
                _ => Place::Unknown,
            }
        }
        _ => Place::Unknown,
    }
}
