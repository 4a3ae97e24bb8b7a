//! COPY as the service sees it: data out, passed or masked row by row, and data in, asked for.

use bytes::{Buf, BytesMut};

use crate::mask::{Hits, MaskError};

use super::super::super::codec::{self, HEADER, Header, Report};
use super::super::compare::withheld;
use super::super::exchange::{CopyDigest, Rows, Running};
use super::super::{Fault, Relay};
use super::Fate;

impl Relay {
    /// The service asks for the agent's data.
    pub(super) fn begin_copy_in(&mut self) {
        self.exchange.begin_copy_in();
        if let Some(running) = self.exchange.running() {
            running.digest = Some(CopyDigest::new(true));
        }
    }

    /// The service is about to send data.
    pub(super) fn begin_copy_out(&mut self) {
        if let Some(running) = self.exchange.running() {
            running.digest = Some(CopyDigest::new(false));
        }
    }

    pub(super) fn copy_data_out(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        let Some(running) = self.exchange.running() else { return Ok(Fate::Pass) };
        if matches!(running.rows, Rows::Withheld) {
            return Ok(self.discard(header, input, done));
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
            return Ok(self.withhold(header, input, done, Report::error("54000", why)));
        }
        if input.len() - *done < header.total() {
            return Ok(Fate::Incomplete);
        }
        self.pass(input, done);
        self.mask_copies(input)?;
        Ok(Fate::Done)
    }

    /// Masks the copy data at the beginning of `input`, as many messages as are complete, from
    /// where it came to where it goes. The server sends one row in a message, and so do we.
    fn mask_copies(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        let out = &mut self.io.to_client;
        let mut used = 0;
        let mut hits = Hits::default();
        let mut failed = None;
        let Some(running) = self.exchange.running() else { return Ok(()) };
        while let Some(chunk) = copy_data(&input[used..], self.row_limit) {
            let Some(plan) = running.copy.as_mut() else { break };
            used += HEADER + chunk.len();
            if let Some(digest) = running.digest.as_mut() {
                digest.messages += 1;
            }
            let at = out.len();
            let mut result = Ok(());
            codec::message(out, b'd', |out| result = plan.push(chunk, out, &mut hits));
            match result {
                Ok(()) => {
                    running.row_count += 1;
                    running.byte_count += (out.len() - at - HEADER) as u64;
                    keep_copied(running, out, at, self.result_limit);
                }
                Err(error) => {
                    out.truncate(at);
                    failed = Some(error);
                    break;
                }
            }
        }
        running.masked += hits.masked + hits.found();
        input.advance(used);
        if let Some(error) = failed {
            self.refuse_copy(&error);
        }
        self.copy_progress()
    }

    fn refuse_copy(&mut self, error: &MaskError) {
        tracing::warn!(session = %self.session.id(), %error, "copy withheld");
        self.refuse_answer(withheld("the copy data could not be masked"));
    }

    /// The data has ended; `false` where that was no good end, and an error was sent.
    pub(super) fn finish_copy_out(&mut self) -> bool {
        let Some(running) = self.exchange.running() else { return true };
        let Some(mut plan) = running.copy.take() else { return true };
        if matches!(running.rows, Rows::Withheld) {
            return true;
        }
        match plan.finish() {
            Ok(()) => true,
            Err(error) => {
                self.refuse_copy(&error);
                false
            }
        }
    }
}

/// The payload of the CopyData at the start of `bytes`, if all of it is there and it is within
/// the limit.
fn copy_data(bytes: &[u8], limit: usize) -> Option<&[u8]> {
    let header = Header::peek(bytes).ok().flatten()?;
    if header.tag != b'd' || header.body > limit {
        return None;
    }
    bytes.get(HEADER..header.total())
}

/// Adds the CopyData that stands at the end of `out`, from `at`, to what is known of the answer;
/// one without data is not sent.
fn keep_copied(running: &mut Running, out: &mut BytesMut, at: usize, limit: usize) {
    if out.len() == at + HEADER {
        return out.truncate(at);
    }
    if let Some(digest) = running.digest.as_mut() {
        digest.update(&out[at + HEADER..]);
    }
    running.capture(&out[at..], limit);
}
