//! Redirections: files a command uses by itself, and texts it is given.

use brush_parser::ast::{
    IoFileRedirectKind as Kind, IoFileRedirectTarget as Target, IoRedirect, RedirectList,
};

use super::walk::{Input, Walk};
use crate::policy::ssh::facts::{Argument, FileOp};

impl Walk {
    /// Redirections of a compound command. What its parts read from is not followed.
    pub(super) fn redirects(&mut self, list: Option<&RedirectList>) {
        let mut input = Input::Inherited;
        for redirect in list.iter().flat_map(|l| &l.0) {
            self.redirect(redirect, &mut input);
        }
    }

    pub(super) fn redirect(&mut self, redirect: &IoRedirect, input: &mut Input) {
        match redirect {
            IoRedirect::File(fd, kind, target) => self.redirect_file(*fd, kind, target, input),
            IoRedirect::OutputAndError(word, append) => {
                let path = self.word(&word.value);
                self.file(
                    if *append { FileOp::Append } else { FileOp::Write },
                    &path,
                    false,
                    false,
                );
            }
            IoRedirect::HereDocument(fd, document) => {
                self.descriptor(*fd);
                if self.nested {
                    self.unseen("a here-document in a substitution");
                }
                let text = if document.requires_expansion {
                    self.document(&document.doc.value)
                } else {
                    Some(document.doc.value.clone())
                };
                if matches!(fd, None | Some(0)) {
                    *input = text.map_or(Input::Other, Input::Text);
                }
            }
            IoRedirect::HereString(fd, word) => {
                self.descriptor(*fd);
                let text = self.word(&word.value);
                if matches!(fd, None | Some(0)) {
                    *input = text.known().map_or(Input::Other, |t| Input::Text(t.to_owned()));
                }
            }
        }
    }

    fn redirect_file(&mut self, fd: Option<i32>, kind: &Kind, target: &Target, input: &mut Input) {
        self.descriptor(fd);
        let reads = matches!(kind, Kind::Read | Kind::ReadAndWrite | Kind::DuplicateInput);
        if reads && matches!(fd, None | Some(0)) {
            *input = Input::Other;
        }
        let word = match target {
            Target::Filename(word) | Target::Duplicate(word) => self.word(&word.value),
            Target::ProcessSubstitution(_, process) => return drop(self.process(process)),
            Target::Fd(_) => return,
        };
        // `2`, `2-`, `-`; bash takes a dash for the end, whatever follows.
        let digits = word.text.strip_suffix('-').unwrap_or(&word.text);
        let number = word.literal && digits.bytes().all(|b| b.is_ascii_digit());
        let ops: &[FileOp] = match kind {
            // `>& name` is bash's other way to write `&> name`.
            Kind::DuplicateInput | Kind::DuplicateOutput if number => return,
            Kind::DuplicateInput => &[FileOp::Read],
            Kind::Read => &[FileOp::Read],
            Kind::Write | Kind::Clobber | Kind::DuplicateOutput => &[FileOp::Write],
            Kind::Append => &[FileOp::Append],
            Kind::ReadAndWrite => &[FileOp::Read, FileOp::Write],
        };
        // bash connects such a name to a host.
        if word.text.starts_with("/dev/tcp/") || word.text.starts_with("/dev/udp/") {
            self.unseen("what a redirection to a host sends");
        }
        // bash expands such a name twice, quotes or not.
        if matches!(kind, Kind::DuplicateInput | Kind::DuplicateOutput) {
            self.unseen("what a redirection by & expands to");
        }
        for op in ops {
            self.file(*op, &word, false, false);
        }
    }

    /// dash takes only one digit for a descriptor, the rest for a word of the command.
    fn descriptor(&mut self, fd: Option<i32>) {
        if fd.is_some_and(|n| !(0..=9).contains(&n)) {
            self.unseen("which file a redirection is about");
        }
    }

    /// The text of a here-document, when nothing in it is expanded.
    fn document(&mut self, body: &str) -> Option<String> {
        match brush_parser::word::parse_heredoc(body, &super::walk::options()) {
            Ok(pieces) => {
                let mut word = Argument::literal("");
                self.pieces(body, &pieces, true, &mut word);
                word.literal.then_some(word.text)
            }
            Err(_) => {
                self.unseen("a here-document, which cannot be parsed");
                None
            }
        }
    }
}
