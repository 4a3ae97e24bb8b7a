//! Answers that the agent does not get: an error in their place, the server's statement
//! cancelled, the rest thrown away up to ReadyForQuery.
//!
//! What is thrown away still settles what is owed.

use bytes::BytesMut;

use super::super::super::codec::{Header, Report};
use super::super::exchange::{Rows, Slot};
use super::super::{Fault, Relay};
use super::Fate;

impl Relay {
    /// Throws this row away and all that follow, and tells the agent why.
    pub(super) fn withhold(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
        report: Report,
    ) -> Fate {
        let fate = self.discard(header, input, done);
        self.refuse_answer(report);
        fate
    }

    /// The rest of the running answer is thrown away: an error now, the server's statement
    /// cancelled, its own end swallowed.
    pub(super) fn refuse_answer(&mut self, report: Report) {
        let mut report = report;
        report.message = self.words(&report.message);
        report.write(&mut self.io.to_client);
        if let Some(running) = self.exchange.running() {
            running.rows = Rows::Withheld;
            running.error = Some((report.code.to_owned(), report.message));
        }
        self.mute = true;
        self.cancelling = self.cancel_upstream();
    }

    /// A message of an answer that was refused: it still settles what is owed.
    pub(super) fn muted(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        match tag {
            b'C' => {
                self.complete(&String::from_utf8_lossy(body.strip_suffix(b"\0").unwrap_or(body)))
            }
            b'E' => self.settle_failure(),
            b'T' | b'n' => {
                if matches!(
                    self.exchange.front(),
                    Some(Slot::DescribeStatement(_) | Slot::DescribePortal | Slot::OwnDescribe(_))
                ) {
                    self.exchange.pop();
                }
                Ok(())
            }
            b'G' => Err(Fault::Refused("COPY: copy data was asked for after a refusal".into())),
            _ => {
                self.plain_answer(tag);
                Ok(())
            }
        }
    }
}
