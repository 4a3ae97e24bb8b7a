//! Refusals: in place of a refused message the server gets one that fails without doing
//! anything, and its error is replaced by ours.
//!
//! So the order of answers and the transaction status are always the server's own. A refused
//! message itself never reaches the server.

use crate::session::sql::Denial;

use super::super::codec::{self, Header, MAX_COLLECTED, Report};
use super::Relay;
use super::exchange::{Running, Slot};
use super::frontend::Next;

impl Relay {
    /// Refuses the extended message at the front of the buffer.
    pub(super) fn refuse_front(&mut self, denial: &Denial) -> Next {
        self.drop_front();
        self.refuse_extended(denial);
        Next::More
    }

    /// Refuses the simple message at the front of the buffer.
    pub(super) fn refuse_query(&mut self, denial: &Denial) -> Next {
        self.drop_front();
        self.refuse_simple(denial);
        Next::More
    }

    /// Refuses the message at the front of the buffer, whichever protocol it belongs to.
    pub(super) fn refuse_whatever(&mut self, denial: &Denial) -> Next {
        match Header::peek(&self.io.from_client) {
            Ok(Some(header)) if matches!(header.tag, b'Q' | b'F') => self.refuse_query(denial),
            _ => self.refuse_front(denial),
        }
    }

    fn drop_front(&mut self) {
        if let Ok(Some(header)) = Header::peek(&self.io.from_client) {
            self.consume(header);
        }
    }

    /// In place of a refused simple message the server gets one that fails; its error is
    /// replaced, its ReadyForQuery is genuine.
    fn refuse_simple(&mut self, denial: &Denial) {
        codec::query(&mut self.staged, failing_text().as_bytes());
        let ruling = self.judge.nothing();
        let mut running = Running::new(0, ruling, None);
        running.refusal = Some(self.report(denial));
        self.exchange.push(Slot::Query(Box::new(running)));
    }

    /// In place of a refused extended message the server gets a Parse that fails; it then skips
    /// to Sync, and so do we.
    fn refuse_extended(&mut self, denial: &Denial) {
        self.skip = true;
        codec::parse(&mut self.staged, b"", failing_text().as_bytes());
        self.exchange.push(Slot::Refused(Box::new(self.report(denial))));
    }

    /// Refuses a message that is too large to be collected, and throws it away as it comes.
    pub(super) fn oversized(&mut self, header: Header) -> Next {
        self.client_discard = header.total();
        if self.skip {
            return Next::More;
        }
        let why = format!("a message of {} bytes; at most {MAX_COLLECTED} are judged", header.body);
        let denial = Denial::new("54000", "message-size", why);
        if matches!(header.tag, b'Q' | b'F') {
            self.refuse_simple(&denial);
        } else {
            self.refuse_extended(&denial);
        }
        Next::More
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

/// A name that the session does not hold.
pub(super) fn unknown(code: &'static str, what: &str, name: &[u8]) -> Denial {
    let why = format!("{what} \"{}\" does not exist", String::from_utf8_lossy(name));
    Denial::new(code, "known-statements", why)
}
