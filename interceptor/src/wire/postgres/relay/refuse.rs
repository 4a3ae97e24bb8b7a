//! Refusals: in place of a refused message the server gets one that fails without doing
//! anything, and its error is replaced by ours.
//!
//! So the order of answers and the transaction status are always the server's own. A refused
//! message itself never reaches the server.

use crate::session::sql::Denial;

use super::super::codec::{self, Header, MAX_COLLECTED, Report};
use super::exchange::{Running, Slot};
use super::frontend::Next;
use super::{Fault, Relay};

impl Relay {
    /// In place of a refused simple message the server gets one that fails; its error is
    /// replaced, its ReadyForQuery is genuine.
    pub(super) fn refuse_simple(&mut self, denial: &Denial) {
        codec::query(&mut self.staged, failing_text().as_bytes());
        let ruling = self.judge.nothing();
        let mut running = Running::new(0, ruling, None);
        running.refusal = Some(self.report(denial));
        self.exchange.push(Slot::Query(Box::new(running)));
    }

    /// In place of a refused extended message the server gets a Parse that fails; it then skips
    /// to Sync, and so do we.
    pub(super) fn refuse_extended(&mut self, denial: &Denial) {
        self.skip = true;
        codec::parse(&mut self.staged, b"", failing_text().as_bytes());
        self.exchange.push(Slot::Refused(Box::new(self.report(denial))));
    }

    /// Refuses the extended message at the front of the buffer.
    pub(super) fn refuse_front(&mut self, denial: &Denial) -> Next {
        if let Ok(Some(header)) = Header::peek(&self.io.from_client) {
            self.consume(header);
        }
        self.refuse_extended(denial);
        Next::More
    }

    /// Refuses the message at the front of the buffer, whichever protocol it belongs to.
    pub(super) fn refuse_whatever(&mut self, denial: &Denial) -> Next {
        let simple = matches!(Header::peek(&self.io.from_client), Ok(Some(h)) if h.tag == b'Q');
        if simple {
            if let Ok(Some(header)) = Header::peek(&self.io.from_client) {
                self.consume(header);
            }
            self.refuse_simple(denial);
            Next::More
        } else {
            self.refuse_front(denial)
        }
    }

    pub(super) fn oversized(&mut self, header: Header) -> Result<Next, Fault> {
        self.client_discard = header.total();
        if self.skip {
            return Ok(Next::More);
        }
        let denial = Denial {
            code: "54000",
            message: format!(
                "a message of {} bytes; at most {MAX_COLLECTED} are judged",
                header.body
            ),
            hint: None,
            rule: "message-size".into(),
        };
        if matches!(header.tag, b'Q' | b'F') {
            self.refuse_simple(&denial);
        } else {
            self.refuse_extended(&denial);
        }
        Ok(Next::More)
    }

    fn report(&self, denial: &Denial) -> Report {
        let mut report = Report::error(denial.code, self.words(&denial.message));
        report.hint.clone_from(&denial.hint);
        report
    }
}

/// A text that no server accepts and that does nothing: it is not SQL in any version.
fn failing_text() -> &'static str {
    "refused_by_interceptor"
}

pub(super) fn unknown(code: &'static str, what: &str, name: &[u8]) -> Denial {
    Denial {
        code,
        message: format!("{what} \"{}\" does not exist", String::from_utf8_lossy(name)),
        hint: None,
        rule: "known-statements".into(),
    }
}
