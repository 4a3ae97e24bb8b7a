//! What comes from the service: matched with what is owed, compared with what was judged,
//! masked, counted, and given to the agent.
//!
//! Messages that need no change are never collected: their headers are read in place and runs
//! of them are handed on in one piece, or as they are when nothing else waits.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Buf, BytesMut};

use crate::mask::{Head, Method, RowPlan};
use crate::session::log::event;
use crate::session::micros;
use crate::session::sql::{Plan, Shield, StatementKind};

use super::super::codec::{self, CodecError, Field, HEADER, Header, Report};
use super::super::scrub;
use super::exchange::{CopyDigest, Rows, Running, Slot};
use super::prepared::{Described, Portal, Prepared};
use super::{Fault, Relay};

/// Largest message, other than rows and copy data, that is collected. Bytes.
const MAX_CONTROL: usize = 16 << 20;

/// Copy data after which the record states its progress.
const COPY_STEP: u64 = 256 * 1024;

/// What becomes of a message.
enum Fate {
    /// It goes on as it is.
    Pass,
    /// It was replaced or swallowed.
    Done,
    /// It is not complete yet.
    Incomplete,
}

impl Relay {
    /// Handles what the service has sent, as far as it is complete.
    pub(super) fn backend(&mut self) -> Result<(), Fault> {
        if self.io.service.inbox.is_empty() {
            return Ok(());
        }
        let mut input = std::mem::take(&mut self.io.service.inbox);
        let before = self.io.to_client.len();
        let result = self.walk(&mut input);
        self.io.service.inbox = input;
        self.session.log().bytes_out += (self.io.to_client.len() - before) as u64;
        result
    }

    fn walk(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        // Everything before `done` is to be passed on and has not been yet.
        let mut done = 0;
        loop {
            let rest = input.len() - done;
            if self.service_pass > 0 {
                let n = self.service_pass.min(rest);
                self.note_passed(&input[done..done + n]);
                self.service_pass -= n;
                self.check_tail(&input[done..done + n], self.service_pass == 0)?;
                if self.passing_copy {
                    self.digest_passed(&input[done..done + n]);
                }
                done += n;
                if n == 0 || self.service_pass > 0 {
                    break;
                }
                continue;
            }
            if self.service_discard > 0 {
                self.pass(input, &mut done);
                let n = self.service_discard.min(input.len());
                input.advance(n);
                self.service_discard -= n;
                if n == 0 {
                    break;
                }
                continue;
            }
            let Some(header) = Header::peek(&input[done..]).map_err(Fault::Service)? else { break };
            match self.fate(header, input, &mut done)? {
                Fate::Pass => {
                    let n = header.total().min(input.len() - done);
                    if matches!(header.tag, b'T' | b'D' | b'H' | b'd') {
                        self.note_passed(&input[done..done + n]);
                    }
                    self.service_pass = header.total() - n;
                    self.passing_copy = header.tag == b'd';
                    if self.passing_copy {
                        self.digest_passed(&input[done + HEADER..done + n]);
                    }
                    done += n;
                }
                Fate::Done => {}
                Fate::Incomplete => break,
            }
        }
        self.pass(input, &mut done);
        Ok(())
    }

    /// Hands on the run of passed messages.
    fn pass(&mut self, input: &mut BytesMut, done: &mut usize) {
        if *done == 0 {
            return;
        }
        if *done == input.len() && self.io.to_client.is_empty() {
            std::mem::swap(&mut self.io.to_client, input);
            input.clear();
        } else {
            self.io.to_client.extend_from_slice(&input[..*done]);
            input.advance(*done);
        }
        *done = 0;
    }

    /// The answer's bytes as the agent sees them, for the record.
    fn note_passed(&mut self, bytes: &[u8]) {
        let limit = self.result_limit;
        if let Some(running) = self.exchange.running() {
            running.capture(bytes, limit);
        }
    }

    /// Adds passed copy data to its running digest.
    fn digest_passed(&mut self, data: &[u8]) {
        if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
            digest.update(data);
        }
    }

    fn fate(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        match header.tag {
            b'D' | b'd' if self.mute => {
                self.pass(input, done);
                self.service_discard = header.total();
                return Ok(Fate::Done);
            }
            b'D' => return self.data_row(header, input, done),
            b'd' => return self.copy_data_out(header, input, done),
            _ => {}
        }
        if header.body > MAX_CONTROL {
            let length = u32::try_from(header.body).unwrap_or(u32::MAX);
            return Err(Fault::Service(CodecError::Length { tag: char::from(header.tag), length }));
        }
        let Some(body) = input.get(*done + HEADER..*done + header.total()) else {
            return Ok(Fate::Incomplete);
        };
        if self.mute && !matches!(header.tag, b'Z' | b'A' | b'S' | b'N') {
            let body = body.to_vec();
            self.skip_message(input, done, header);
            self.muted(header.tag, &body)?;
            return Ok(Fate::Done);
        }
        match header.tag {
            b'1' | b'2' | b'3' | b's' | b'I' | b'V' => Ok(self.plain_answer(header.tag)),
            b'C' => {
                let tag = body.split(|b| *b == 0).next().unwrap_or_default();
                let tag = String::from_utf8_lossy(tag).into_owned();
                let whole = input[*done..*done + header.total()].to_vec();
                self.note_passed(&whole);
                self.complete(&tag)?;
                self.pass_now(input, done, header)
            }
            b'Z' => {
                let status = body.first().copied().unwrap_or(b'I');
                self.ready(status)?;
                Ok(Fate::Pass)
            }
            b'T' | b'n' | b't' => {
                let body = body.to_vec();
                self.description(header, &body, input, done)
            }
            b'E' => {
                let body = body.to_vec();
                self.skip_message(input, done, header);
                self.error(&body)?;
                Ok(Fate::Done)
            }
            b'N' => {
                let body = body.to_vec();
                self.skip_message(input, done, header);
                self.notice(&body)?;
                Ok(Fate::Done)
            }
            b'S' | b'A' => {
                let body = body.to_vec();
                self.skip_message(input, done, header);
                self.unasked(header.tag, &body)?;
                Ok(Fate::Done)
            }
            b'G' => {
                self.begin_copy_in();
                Ok(Fate::Pass)
            }
            b'H' => {
                if let Some(running) = self.exchange.running() {
                    running.digest = Some(CopyDigest::new(false));
                }
                Ok(Fate::Pass)
            }
            b'c' => {
                self.pass(input, done);
                self.finish_copy_out()?;
                self.copy_ended(None)?;
                Ok(Fate::Pass)
            }
            tag => Err(Fault::Service(CodecError::Unknown { tag: char::from(tag) })),
        }
    }

    /// A message of an answer that was refused: it still settles what is owed.
    fn muted(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
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

    /// Passes a complete message whose capture has been made already.
    fn pass_now(
        &mut self,
        input: &mut BytesMut,
        done: &mut usize,
        header: Header,
    ) -> Result<Fate, Fault> {
        *done += header.total();
        if input.len() == *done {
            self.pass(input, done);
        }
        Ok(Fate::Done)
    }

    /// Takes a message out of the stream; what comes in its place is written by the caller.
    fn skip_message(&mut self, input: &mut BytesMut, done: &mut usize, header: Header) {
        self.pass(input, done);
        input.advance(header.total());
    }

    fn plain_answer(&mut self, tag: u8) -> Fate {
        match (tag, self.exchange.front()) {
            (b'1', Some(Slot::Parse(_)))
            | (b'2', Some(Slot::Bind))
            | (b'3', Some(Slot::Close(_))) => {
                self.exchange.pop();
            }
            (b'I' | b's', Some(Slot::Execute(_))) => {
                if let Some(Slot::Execute(mut running)) = self.exchange.pop() {
                    running.tag = if tag == b's' { "suspended".into() } else { String::new() };
                    if let Err(fault) = self.record_response(&mut running) {
                        tracing::error!(%fault, "answer could not be recorded");
                    }
                }
            }
            (b'I', Some(Slot::Query(running))) => running.statement += 1,
            _ => {}
        }
        Fate::Pass
    }

    // ---- rows ------------------------------------------------------------------------------

    fn data_row(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        self.resolve_rows()?;
        let limit = self.row_limit;
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
                return self.within_limits(header, input, done);
            }
            Rows::Withheld => {
                self.pass(input, done);
                self.service_discard = header.total();
                return Ok(Fate::Done);
            }
            Rows::Unresolved => {
                return self.withhold(
                    input,
                    done,
                    header,
                    withheld("its result was not described"),
                );
            }
            Rows::Masked(plan) => Arc::clone(plan),
        };
        if header.body > limit {
            return self.large_row(header, input, done, &plan);
        }
        if input.len() - *done < header.total() {
            return Ok(Fate::Incomplete);
        }
        self.pass(input, done);
        let message = input.split_to(header.total());
        let at = self.io.to_client.len();
        match plan.apply(&message[HEADER..], &mut self.io.to_client) {
            Ok(hits) => {
                let out = self.io.to_client[at..].to_vec();
                let limit = self.result_limit;
                if let Some(running) = self.exchange.running() {
                    running.row_count += 1;
                    running.byte_count += out.len() as u64;
                    running.masked += hits.masked + hits.found();
                    running.capture(&out, limit);
                }
                Ok(Fate::Done)
            }
            Err(error) => {
                self.io.to_client.truncate(at);
                tracing::warn!(session = %self.session.id(), %error, "row withheld");
                self.refuse_answer(withheld("a row could not be masked"));
                Ok(Fate::Done)
            }
        }
    }

    /// A row above the limit: held only up to its last governed column, streamed from there on.
    fn large_row(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
        plan: &RowPlan,
    ) -> Result<Fate, Fault> {
        self.pass(input, done);
        let here = input.get(HEADER..).unwrap_or_default();
        let here = &here[..here.len().min(header.body)];
        // Looked at again only when it has doubled, so that the work stays linear.
        if here.len() < self.row_look && here.len() < self.row_limit.min(header.body) {
            return Ok(Fate::Incomplete);
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
                Ok(Fate::Done)
            }
            Ok(Head::NeedMore) if here.len() < self.row_limit => Ok(Fate::Incomplete),
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
                Ok(Fate::Done)
            }
        }
    }

    /// Checks the streamed rest of a large row; one that is not what it should be ends the
    /// session, since its head is gone already.
    fn check_tail(&mut self, bytes: &[u8], last: bool) -> Result<(), Fault> {
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
    fn within_limits(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        let Some(running) = self.exchange.running() else { return Ok(Fate::Pass) };
        let limits = &running.ruling.verdict.limits;
        let rows = limits.rows.is_some_and(|most| running.row_count > most);
        let bytes = limits.bytes.is_some_and(|most| running.byte_count > most);
        if !rows && !bytes || running.ruling.observed.is_some() {
            return Ok(Fate::Pass);
        }
        let report = Report::error(
            "54000",
            "LIMIT: the result is larger than a rule allows; ask for less".to_owned(),
        );
        self.withhold(input, done, header, report)
    }

    /// Throws this row away and all that follow, and tells the agent why.
    fn withhold(
        &mut self,
        input: &mut BytesMut,
        done: &mut usize,
        header: Header,
        report: Report,
    ) -> Result<Fate, Fault> {
        self.pass(input, done);
        self.service_discard = header.total();
        self.refuse_answer(report);
        Ok(Fate::Done)
    }

    /// The rest of the running answer is thrown away: an error now, the server's statement
    /// cancelled, its own end swallowed.
    fn refuse_answer(&mut self, report: Report) {
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

    /// Finds out, at the first row of an extended execution, how its rows are treated.
    fn resolve_rows(&mut self) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        if !matches!(running.rows, Rows::Unresolved) {
            return Ok(());
        }
        let Some(Described::Columns(columns)) =
            running.prepared.as_ref().and_then(|p| p.described())
        else {
            return Ok(());
        };
        let mut fields = columns.to_vec();
        for (index, field) in fields.iter_mut().enumerate() {
            field.format = match running.formats.as_slice() {
                [] => 0,
                [all] => *all,
                each => each.get(index).copied().unwrap_or(0),
            };
        }
        let treatment = treatment(running, &fields);
        match treatment {
            Ok(rows) => running.rows = rows,
            Err(report) => self.refuse_answer(report),
        }
        Ok(())
    }

    fn description(
        &mut self,
        header: Header,
        body: &[u8],
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        match (header.tag, self.exchange.front()) {
            (b't', Some(Slot::OwnDescribe(prepared))) => {
                note_parameters(prepared, body);
                self.skip_message(input, done, header);
                return Ok(Fate::Done);
            }
            (b't', Some(Slot::DescribeStatement(prepared))) => note_parameters(prepared, body),
            (_, Some(Slot::OwnDescribe(prepared))) => {
                let described = if header.tag == b'n' {
                    Described::NoData
                } else {
                    let columns = codec::row_description(body).map_err(Fault::Service)?;
                    Described::Columns(columns.into())
                };
                prepared.describe(described);
                self.exchange.pop();
                self.skip_message(input, done, header);
                return Ok(Fate::Done);
            }
            (b'T' | b'n', Some(Slot::DescribeStatement(_) | Slot::DescribePortal)) => {
                self.exchange.pop();
            }
            (b'T', Some(Slot::Query(running))) if running.ruling.guards_rows() => {
                let fields = codec::row_description(body).map_err(Fault::Service)?;
                match treatment(running, &fields) {
                    Ok(rows) => running.rows = rows,
                    Err(report) => {
                        self.skip_message(input, done, header);
                        self.refuse_answer(report);
                        return Ok(Fate::Done);
                    }
                }
            }
            (b'T', Some(Slot::Query(running))) => running.rows = Rows::Plain,
            _ => {}
        }
        Ok(Fate::Pass)
    }

    // ---- copy ------------------------------------------------------------------------------

    fn begin_copy_in(&mut self) {
        self.exchange.begin_copy_in();
        if let Some(running) = self.exchange.running() {
            running.digest = Some(CopyDigest::new(true));
        }
    }

    fn copy_data_out(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        let Some(running) = self.exchange.running() else { return Ok(Fate::Pass) };
        if matches!(running.rows, Rows::Withheld) {
            self.pass(input, done);
            self.service_discard = header.total();
            return Ok(Fate::Done);
        }
        if running.copy.is_none() {
            running.row_count += 1;
            running.byte_count += header.body as u64;
            if let Some(digest) = running.digest.as_mut() {
                digest.messages += 1;
            }
            self.copy_progress()?;
            return Ok(Fate::Pass);
        }
        if header.body > self.row_limit {
            let why =
                format!("ROW_TOO_LARGE: {} bytes; the limit is {}", header.body, self.row_limit);
            return self.withhold(input, done, header, Report::error("54000", why));
        }
        // The server sends one row in a message, and so do we.
        if input.len() - *done < header.total() {
            return Ok(Fate::Incomplete);
        }
        self.pass(input, done);
        let message = input.split_to(header.total());
        self.mask_copy(&message[HEADER..])?;
        Ok(Fate::Done)
    }

    fn mask_copy(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let mut masked = BytesMut::with_capacity(chunk.len() + 64);
        let Some(running) = self.exchange.running() else { return Ok(()) };
        if matches!(running.rows, Rows::Withheld) {
            return Ok(());
        }
        if let Some(digest) = running.digest.as_mut() {
            digest.messages += 1;
        }
        let Some(plan) = running.copy.as_mut() else { return Ok(()) };
        match plan.push(chunk, &mut masked) {
            Ok(hits) => {
                running.masked += hits.masked + hits.found();
                running.row_count += 1;
                running.byte_count += masked.len() as u64;
                if let Some(digest) = running.digest.as_mut() {
                    digest.update(&masked);
                }
                self.emit_copy(&masked);
            }
            Err(error) => {
                tracing::warn!(session = %self.session.id(), %error, "copy withheld");
                self.refuse_answer(withheld("the copy data could not be masked"));
            }
        }
        self.copy_progress()
    }

    fn emit_copy(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let at = self.io.to_client.len();
        codec::message(&mut self.io.to_client, b'd', |out| out.extend_from_slice(data));
        let limit = self.result_limit;
        if let Some(running) = self.exchange.running() {
            running.capture(&self.io.to_client[at..], limit);
        }
    }

    fn finish_copy_out(&mut self) -> Result<(), Fault> {
        let mut masked = BytesMut::new();
        let Some(running) = self.exchange.running() else { return Ok(()) };
        let Some(mut plan) = running.copy.take() else { return Ok(()) };
        if matches!(running.rows, Rows::Withheld) {
            return Ok(());
        }
        match plan.finish(&mut masked) {
            Ok(hits) => {
                running.masked += hits.masked + hits.found();
                if let Some(digest) = running.digest.as_mut() {
                    digest.update(&masked);
                }
                self.emit_copy(&masked);
            }
            Err(error) => {
                tracing::warn!(session = %self.session.id(), %error, "copy withheld");
                self.refuse_answer(withheld("the copy data could not be masked"));
            }
        }
        Ok(())
    }

    /// States how far a COPY has come, every [`COPY_STEP`] bytes.
    pub(super) fn copy_progress(&mut self) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        let n = running.request;
        let Some(digest) = running.digest.as_mut() else { return Ok(()) };
        if digest.bytes - digest.recorded < COPY_STEP {
            return Ok(());
        }
        digest.recorded = digest.bytes;
        let progress = event::CopyProgress {
            n,
            direction: Cow::Borrowed(if digest.inward { "in" } else { "out" }),
            bytes: digest.bytes,
            rows: digest.messages,
            sha256: Cow::Owned(digest.hex()),
        };
        self.session.log().append(&progress)?;
        Ok(())
    }

    /// Records the end of a COPY's data.
    pub(super) fn copy_ended(&mut self, aborted: Option<&str>) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        let n = running.request;
        let Some(digest) = running.digest.take() else { return Ok(()) };
        self.session.log().append(&event::CopyEnd {
            n,
            direction: Cow::Borrowed(if digest.inward { "in" } else { "out" }),
            bytes: digest.bytes,
            rows: digest.messages,
            sha256: Cow::Owned(digest.hex()),
            aborted: aborted.map(Cow::Borrowed),
        })?;
        Ok(())
    }

    // ---- ends ------------------------------------------------------------------------------

    /// CommandComplete.
    fn complete(&mut self, tag: &str) -> Result<(), Fault> {
        let Some(running) = self.exchange.running() else { return Ok(()) };
        tag.clone_into(&mut running.tag);
        running.copy = None;
        let ruling = Arc::clone(&running.ruling);
        let index = running.statement;
        running.statement += 1;
        if !matches!(running.rows, Rows::Withheld) {
            running.rows = Rows::Plain;
        }
        if let Some(statement) = ruling.statement(index) {
            self.take_effect(&statement.kind, &ruling);
        }
        if matches!(self.exchange.front(), Some(Slot::Execute(_)))
            && let Some(Slot::Execute(mut running)) = self.exchange.pop()
        {
            self.limit = None;
            self.record_response(&mut running)?;
        }
        Ok(())
    }

    /// What a completed statement made or unmade by name.
    fn take_effect(&mut self, kind: &StatementKind, ruling: &Arc<crate::session::sql::Ruling>) {
        let named = || {
            Arc::new(Prepared {
                text: Arc::clone(&ruling.text),
                ruling: std::sync::Mutex::new(Arc::clone(ruling)),
                declared: std::sync::Mutex::new(Vec::new()),
                described: std::sync::Mutex::new(None),
                copy: None,
            })
        };
        match kind {
            StatementKind::Prepare { name, .. } => {
                self.held.hold_statement(name.as_bytes(), named());
            }
            StatementKind::DeclareCursor { name, .. } => {
                let portal = Portal {
                    prepared: named(),
                    formats: Vec::new(),
                    values: Vec::new(),
                    granted: None,
                    is_cursor: true,
                };
                self.held.hold_portal(name.as_bytes(), portal);
            }
            StatementKind::Deallocate(Some(name)) => {
                self.held.forget_statement(name.as_bytes(), None);
            }
            StatementKind::Deallocate(None) => self.held.forget_statements(),
            StatementKind::CloseCursor(Some(name)) => self.held.forget_portal(name.as_bytes()),
            StatementKind::CloseCursor(None) => self.held.forget_portals(),
            StatementKind::Discard(_) => {
                self.held.forget_statements();
                self.held.forget_portals();
            }
            _ => {}
        }
    }

    /// ReadyForQuery.
    fn ready(&mut self, status: u8) -> Result<(), Fault> {
        self.status = status;
        self.mute = false;
        self.io.service.status = status;
        if let Some(Slot::Query(mut running)) = self.exchange.pop() {
            self.limit = None;
            self.record_response(&mut running)?;
        }
        if status == b'I' {
            self.held.end_transaction();
            if self.touched.settings || self.touched.catalog {
                self.stale.settings |= self.touched.settings;
                self.stale.catalog |= self.touched.catalog;
            }
        }
        Ok(())
    }

    fn error(&mut self, body: &[u8]) -> Result<(), Fault> {
        let code = codec::report_field(body, b'C').unwrap_or_default();
        self.told_fatal |=
            matches!(codec::report_field(body, b'V').as_deref(), Some("FATAL" | "PANIC"));
        if let Some(Slot::Refused(report)) = self.exchange.front() {
            report.clone().write(&mut self.io.to_client);
        } else if let Some(running) = self.exchange.running() {
            if let Some(report) = running.refusal.take() {
                running.error = Some((report.code.to_owned(), report.message.clone()));
                report.write(&mut self.io.to_client);
            } else if !matches!(running.rows, Rows::Withheld) {
                let shielded = is_shielded(running);
                let limit = self.result_limit;
                let at = self.io.to_client.len();
                let message = scrub::report(b'E', body, shielded, &mut self.io.to_client);
                if let Some(running) = self.exchange.running() {
                    running.capture(&self.io.to_client[at..], limit);
                    running.error = Some((code, message));
                }
            }
        } else {
            let shielded = self.judge.shield().is_some_and(|s| s.has_columns());
            scrub::report(b'E', body, shielded, &mut self.io.to_client);
        }
        self.settle_failure()
    }

    /// The server failed what was first: everything it skips is settled.
    fn settle_failure(&mut self) -> Result<(), Fault> {
        self.copy_ended(Some("failed"))?;
        self.limit = None;
        let skipped = self.exchange.fail();
        for (index, slot) in skipped.into_iter().enumerate() {
            match slot {
                Slot::Execute(mut running) => {
                    if index > 0 {
                        running.error = Some((
                            "25000".into(),
                            "not executed: an earlier message failed".into(),
                        ));
                    }
                    self.record_response(&mut running)?;
                }
                Slot::Query(mut running) => self.record_response(&mut running)?,
                Slot::Parse(prepared) => self.held.forget(&prepared),
                Slot::Close(Some((name, prepared))) => self.held.hold_statement(&name, prepared),
                _ => {}
            }
        }
        Ok(())
    }

    fn notice(&mut self, body: &[u8]) -> Result<(), Fault> {
        let shielded =
            self.judge.shield().is_some_and(|s| s.has_columns()) && self.session.enforces();
        let message = scrub::report(b'N', body, shielded, &mut self.io.to_client);
        let n = self.exchange.running().map(|running| running.request);
        self.session.log().append(&event::Notice {
            n,
            severity: Cow::Owned(codec::report_field(body, b'V').unwrap_or_default()),
            code: Cow::Owned(codec::report_field(body, b'C').unwrap_or_default()),
            message: Cow::Owned(message),
            from: Cow::Borrowed("server"),
        })?;
        Ok(())
    }

    fn unasked(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        let shielded =
            self.judge.shield().is_some_and(|s| s.has_columns()) && self.session.enforces();
        if tag == b'A' {
            scrub::notification(body, shielded, &mut self.io.to_client);
            return Ok(());
        }
        let mut fields = codec::Body::new(b'S', body);
        let name =
            String::from_utf8_lossy(fields.string("name").map_err(Fault::Service)?).into_owned();
        let value =
            String::from_utf8_lossy(fields.string("value").map_err(Fault::Service)?).into_owned();
        match name.as_str() {
            "standard_conforming_strings" if value != "on" => {
                return Err(Fault::Refused(
                    "SETTINGS: standard_conforming_strings was switched off".into(),
                ));
            }
            "client_encoding" => {
                self.encoding =
                    crate::session::sql::canonical_encoding(&value).ok_or_else(|| {
                        Fault::Refused(format!("ENCODING: {value} can hide ASCII in its bytes"))
                    })?;
            }
            _ => {}
        }
        let shown = scrub::parameter(&name, &value, &self.prefix, shielded);
        codec::parameter_status(&mut self.io.to_client, &name, &shown);
        Ok(())
    }

    /// Records the answer to a request.
    pub(super) fn record_response(&mut self, running: &mut Running) -> Result<(), Fault> {
        if running.request == 0 {
            return Ok(());
        }
        let error = running.error.take().map(|(code, message)| event::ErrorSeen {
            code: Cow::Owned(code),
            message: Cow::Owned(message),
        });
        let response = event::Response {
            n: running.request,
            tag: Cow::Borrowed(&running.tag),
            rows: running.row_count,
            bytes: running.byte_count,
            duration_us: micros(running.started.elapsed()),
            error,
            masked: running.masked,
            truncated: running.truncated,
        };
        self.session.log().append_with(&response, &running.captured)?;
        Ok(())
    }
}

fn is_shielded(running: &Running) -> bool {
    running.ruling.guards_rows()
        && running.ruling.shield.as_ref().is_some_and(|shield| shield.has_columns())
}

fn note_parameters(prepared: &Arc<Prepared>, body: &[u8]) {
    let mut fields = codec::Body::new(b't', body);
    let Ok(count) = fields.i16("count") else { return };
    let types: Option<Vec<u32>> =
        (0..count.cast_unsigned()).map(|_| fields.u32("type").ok()).collect();
    if let Some(types) = types {
        prepared.set_declared(types);
    }
}

fn withheld(why: &str) -> Report {
    Report::error("42501", format!("RESULT_WITHHELD: {why}"))
}

/// A column as masking sees it.
pub(super) fn mask_field(field: &Field) -> crate::mask::Field {
    let name = String::from_utf8_lossy(&field.name).into_owned();
    crate::mask::Field::new(field.type_oid, field.format, name)
}

/// How the rows of a described result are treated, or why they are withheld.
fn treatment(running: &Running, fields: &[Field]) -> Result<Rows, Report> {
    let Some(shield) = &running.ruling.shield else { return Ok(Rows::Plain) };
    let empty = Plan::default();
    let plan = running.ruling.plan(running.statement).unwrap_or(&empty);
    let masks = agreed(shield, plan, fields)
        .ok_or_else(|| withheld("it is not the result that was judged"))?;
    let columns: Vec<crate::mask::Field> = fields.iter().map(mask_field).collect();
    let compiled =
        RowPlan::compile(&columns, &masks, shield.detectors.clone(), Arc::clone(&shield.key))
            .map_err(|_| withheld("it cannot be masked"))?;
    Ok(if compiled.is_noop() { Rows::Plain } else { Rows::Masked(Arc::new(compiled)) })
}

/// The masks of a result, if the server describes what was judged; `None` on any difference.
pub(super) fn agreed(
    shield: &Shield,
    plan: &Plan,
    fields: &[Field],
) -> Option<Vec<(usize, Method)>> {
    if !shield.has_columns() {
        return Some(Vec::new());
    }
    if let Some(expected) = &plan.expected
        && expected.len() != fields.len()
    {
        return None;
    }
    let masked = |index: usize| plan.masks.iter().any(|(at, _)| *at == index);
    for (index, field) in fields.iter().enumerate() {
        let told = (field.table, field.attnum);
        if masked(index) {
            // A view's column is reported as the view's own.
            let judged = plan.expected.as_ref().and_then(|e| e.get(index));
            if judged != Some(&told) {
                return None;
            }
        } else if shield.is_masked(field.table, field.attnum) {
            return None;
        }
    }
    if plan.masks.iter().any(|(at, _)| *at >= fields.len()) {
        return None;
    }
    Some(plan.masks.clone())
}
