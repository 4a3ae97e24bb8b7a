//! Rows: passed, masked or withheld, and counted.
//!
//! A row is given to the agent only after its governed columns have been masked; of a large one
//! the rest is streamed, but never a byte before its last governed column.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use crate::mask::{Head, RowPlan};

use super::super::super::codec::{CodecError, HEADER, Header, Report};
use super::super::compare::withheld;
use super::super::exchange::Rows;
use super::super::{Fault, Relay};
use super::Fate;

impl Relay {
    pub(super) fn data_row(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        self.resolve_rows()?;
        let Some(running) = self.exchange.running() else {
            return Err(Fault::Service(CodecError::Malformed {
                tag: 'D',
                what: "a row nobody asked for",
            }));
        };
        let plan = match &running.rows {
            Rows::Plain => {
                running.row_count += 1;
                running.byte_count += header.body as u64;
                return Ok(self.within_limits(header, input, done));
            }
            Rows::Withheld => return Ok(self.discard(header, input, done)),
            Rows::Unresolved => {
                let report = withheld("its result was not described");
                return Ok(self.withhold(header, input, done, report));
            }
            Rows::Masked(plan) => Arc::clone(plan),
        };
        Ok(if header.body > self.row_limit {
            self.large_row(header, input, done, &plan)
        } else {
            self.masked_row(header, input, done, &plan)
        })
    }

    fn masked_row(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
        plan: &RowPlan,
    ) -> Fate {
        if input.len() - *done < header.total() {
            return Fate::Incomplete;
        }
        self.pass(input, done);
        let message = input.split_to(header.total());
        let at = self.io.to_client.len();
        match plan.apply(&message[HEADER..], &mut self.io.to_client) {
            Ok(hits) => {
                let out = &self.io.to_client[at..];
                if let Some(running) = self.exchange.running() {
                    running.row_count += 1;
                    running.byte_count += out.len() as u64;
                    running.masked += hits.masked + hits.found();
                    running.capture(out, self.result_limit);
                }
            }
            Err(error) => {
                self.io.to_client.truncate(at);
                tracing::warn!(session = %self.session.id(), %error, "row withheld");
                self.refuse_answer(withheld("a row could not be masked"));
            }
        }
        Fate::Done
    }

    /// A row above the limit: held only up to its last governed column, streamed from there on.
    fn large_row(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
        plan: &RowPlan,
    ) -> Fate {
        self.pass(input, done);
        let here = input.get(HEADER..).unwrap_or_default();
        let here = &here[..here.len().min(header.body)];
        // Looked at again only when it has doubled, so that the work stays linear.
        if here.len() < self.row_look && here.len() < self.row_limit.min(header.body) {
            return Fate::Incomplete;
        }
        self.row_look = here.len().max(1) * 2;
        match plan.apply_head(here, header.body, &mut self.io.to_client) {
            Ok(Head::Done { consumed, hits, tail }) => {
                input.advance(HEADER + consumed);
                self.row_look = 0;
                self.service_pass = header.body - consumed;
                self.tail = (self.service_pass > 0).then_some(tail);
                if let Some(running) = self.exchange.running() {
                    running.row_count += 1;
                    running.byte_count += header.body as u64;
                    running.masked += hits.masked + hits.found();
                    running.truncated = true;
                }
            }
            Ok(Head::NeedMore) if here.len() < self.row_limit => return Fate::Incomplete,
            outcome => {
                self.row_look = 0;
                let why = match outcome {
                    Ok(_) => format!(
                        "ROW_TOO_LARGE: {} bytes before the last masked or searched column; the \
                         limit is {}",
                        self.row_limit, self.row_limit
                    ),
                    Err(_) => "RESULT_WITHHELD: a row could not be masked".into(),
                };
                self.service_discard = header.total();
                self.refuse_answer(Report::error("54000", why));
            }
        }
        Fate::Done
    }

    /// Checks the streamed rest of a large row; one that is not what it should be ends the
    /// session, since its head is gone already.
    pub(super) fn check_tail(&mut self, bytes: &[u8], last: bool) -> Result<(), Fault> {
        let Some(tail) = self.tail.as_mut() else { return Ok(()) };
        let broken = |_| Fault::Service(CodecError::Malformed { tag: 'D', what: "value" });
        tail.push(bytes).map_err(broken)?;
        if last {
            tail.finish().map_err(broken)?;
            self.tail = None;
        }
        Ok(())
    }

    /// Ends an answer that exceeds what policy allows.
    fn within_limits(&mut self, header: Header, input: &mut BytesMut, done: &mut usize) -> Fate {
        let Some(running) = self.exchange.running() else { return Fate::Pass };
        let limits = &running.ruling.verdict.limits;
        let rows = limits.rows.is_some_and(|most| running.row_count > most);
        let bytes = limits.bytes.is_some_and(|most| running.byte_count > most);
        if !rows && !bytes || running.ruling.observed.is_some() {
            return Fate::Pass;
        }
        let report = Report::error(
            "54000",
            "LIMIT: the result is larger than a rule allows; ask for less".to_owned(),
        );
        self.withhold(header, input, done, report)
    }
}
