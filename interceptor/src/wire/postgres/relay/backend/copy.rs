//! COPY as the service sees it: data out, passed or masked row by row, and data in, asked for.

use bytes::BytesMut;

use crate::mask::{Hits, MaskError};

use super::super::super::codec::{self, HEADER, Header, Report};
use super::super::compare::withheld;
use super::super::exchange::{CopyDigest, Rows};
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
        let result = plan.push(chunk, &mut masked);
        if result.is_ok() {
            running.row_count += 1;
            running.byte_count += masked.len() as u64;
        }
        self.hand_out(&masked, result);
        self.copy_progress()
    }

    /// Gives masked data to the agent, or an error where it could not be masked.
    fn hand_out(&mut self, masked: &[u8], result: Result<Hits, MaskError>) {
        let Some(running) = self.exchange.running() else { return };
        match result {
            Ok(hits) => {
                running.masked += hits.masked + hits.found();
                if let Some(digest) = running.digest.as_mut() {
                    digest.update(masked);
                }
                self.emit_copy(masked);
            }
            Err(error) => {
                tracing::warn!(session = %self.session.id(), %error, "copy withheld");
                self.refuse_answer(withheld("the copy data could not be masked"));
            }
        }
    }

    fn emit_copy(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let at = self.io.to_client.len();
        codec::message(&mut self.io.to_client, b'd', |out| out.extend_from_slice(data));
        if let Some(running) = self.exchange.running() {
            running.capture(&self.io.to_client[at..], self.result_limit);
        }
    }

    pub(super) fn finish_copy_out(&mut self) {
        let mut masked = BytesMut::new();
        let Some(running) = self.exchange.running() else { return };
        let Some(mut plan) = running.copy.take() else { return };
        if !matches!(running.rows, Rows::Withheld) {
            let result = plan.finish(&mut masked);
            self.hand_out(&masked, result);
        }
    }
}
