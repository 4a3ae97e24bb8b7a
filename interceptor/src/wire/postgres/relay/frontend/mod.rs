//! What comes from the agent: cut into messages, judged, recorded, staged for the service.
//!
//! The cutting is here. What a message asks for stands by its kind: `query` (the simple
//! protocol), `parse`, `portal` (Bind and Execute), `naming` (Describe and Close) and `copy_in`;
//! `effects` knows what a statement changes for those after it.
//!
//! Nothing is staged without a ruling that allows it, and staged bytes leave only after the
//! record is committed (`Relay::commit`).

mod copy_in;
mod effects;
mod naming;
mod parse;
mod portal;
mod query;

pub use effects::application_name;

use std::sync::Arc;

use bytes::Buf;

use crate::session::sql::{Denial, Ruling};

use super::super::codec::{self, CodecError, Header, MAX_COLLECTED};
use super::exchange::Slot;
use super::{Fault, Relay, is_full};

/// Largest message that only names something. Bytes.
const MAX_NAMING: usize = 64 * 1024;

/// What to do after a look at the agent's next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Take the next one.
    More,
    /// Nothing to do until more bytes, answers or a decision have come.
    Wait,
}

impl Relay {
    /// Handles what the agent has sent, as far as that is possible now.
    pub(super) async fn frontend(&mut self) -> Result<(), Fault> {
        self.wants_quiet = false;
        while self.parked.is_none()
            && self.cancelling.is_none()
            && !self.terminated
            && !is_full(&self.staged)
        {
            if self.pass_rest() {
                continue;
            }
            let header = match Header::peek(&self.io.from_client) {
                Ok(Some(header)) if self.client_pass + self.client_discard == 0 => header,
                Ok(_) => return Ok(()),
                Err(e) => return Err(Fault::Agent(e)),
            };
            if self.message(header).await? == Next::Wait {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Passes through or throws away the rest of a message; false when there is none at hand.
    fn pass_rest(&mut self) -> bool {
        let input = &mut self.io.from_client;
        if self.client_pass > 0 && !input.is_empty() {
            let n = self.client_pass.min(input.len());
            self.staged.extend_from_slice(&input[..n]);
            if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
                digest.update(&input[..n]);
            }
            input.advance(n);
            self.client_pass -= n;
            self.session.log().bytes_in += n as u64;
            return true;
        }
        if self.client_discard > 0 && !input.is_empty() {
            let n = self.client_discard.min(input.len());
            input.advance(n);
            self.client_discard -= n;
            return true;
        }
        false
    }

    async fn message(&mut self, header: Header) -> Result<Next, Fault> {
        let limit = match header.tag {
            b'd' => return self.copy_data(header),
            b'Q' | b'P' | b'B' | b'F' => MAX_COLLECTED,
            b'f' => 1 << 20,
            b'E' | b'D' | b'C' | b'H' | b'S' | b'X' | b'c' => MAX_NAMING,
            tag => return Err(Fault::Agent(CodecError::Unknown { tag: char::from(tag) })),
        };
        if header.body > limit {
            return Ok(self.oversized(header));
        }
        if self.io.from_client.len() < header.total() {
            return Ok(Next::Wait);
        }
        if self.skip && !matches!(header.tag, b'S' | b'X') {
            self.consume(header);
            return Ok(Next::More);
        }
        match header.tag {
            b'Q' => self.on_query(header).await,
            b'P' => self.on_parse(header).await,
            b'B' => self.on_bind(header).await,
            b'E' => self.on_execute(header).await,
            b'F' => self.on_function_call(header).await,
            b'D' => self.on_describe(header),
            b'C' => self.on_close(header),
            b'S' => Ok(self.on_sync(header)),
            b'H' => Ok(self.forward(header)),
            b'c' | b'f' => self.on_copy_end(header),
            _ => {
                self.forward(header);
                self.terminated = true;
                Ok(Next::Wait)
            }
        }
    }

    /// Takes the message off the buffer.
    pub(super) fn consume(&mut self, header: Header) {
        self.session.log().bytes_in += header.total() as u64;
        self.io.from_client.advance(header.total());
    }

    /// Takes the message off the buffer and stages it as it is.
    fn forward(&mut self, header: Header) -> Next {
        self.staged.extend_from_slice(&self.io.from_client[..header.total()]);
        self.consume(header);
        Next::More
    }

    fn peek(&self, header: Header) -> &[u8] {
        &self.io.from_client[codec::HEADER..header.total()]
    }

    /// Whether something must be asked of the server, or settled, before a statement is judged.
    /// Asks, when nothing is owed.
    async fn settle(&mut self) -> Result<Option<Next>, Fault> {
        if !self.stale.settings && !self.stale.catalog && !self.is_aged() {
            return Ok(None);
        }
        if self.exchange.is_quiet() && self.staged.is_empty() {
            self.resync().await?;
            return Ok(None);
        }
        if !self.stale.settings && !self.stale.catalog {
            // Only aged: it can wait for a quieter moment.
            return Ok(None);
        }
        if self.exchange.is_open_batch() {
            let why = "an earlier statement of this pipeline may change what names mean";
            let denial = Denial::new("0A000", "one-resolution-per-pipeline", why);
            return Ok(Some(self.refuse_whatever(&denial.hint("send Sync after it"))));
        }
        Ok(Some(self.until_quiet()))
    }

    /// Waits until everything owed has come.
    pub(super) fn until_quiet(&mut self) -> Next {
        self.wants_quiet = true;
        Next::Wait
    }

    /// Whether the text names a prepared statement or cursor that an earlier message, not yet
    /// answered, may be making.
    fn awaits_names(&self, ruling: &Ruling) -> bool {
        !self.exchange.is_quiet()
            && !self.exchange.is_open_batch()
            && ruling.denial.as_ref().is_some_and(|denial| denial.code == "26000")
    }

    fn decode(&self, bytes: &[u8]) -> Result<Arc<str>, Denial> {
        if self.encoding == encoding_rs::UTF_8 {
            return std::str::from_utf8(bytes).map(Arc::from).map_err(|_| not_encoded("UTF8"));
        }
        self.encoding
            .decode_without_bom_handling_and_without_replacement(bytes)
            .map(|text| Arc::from(text.as_ref()))
            .ok_or_else(|| not_encoded(self.encoding.name()))
    }

    fn on_sync(&mut self, header: Header) -> Next {
        self.skip = false;
        self.batch_grant = None;
        self.exchange.push(Slot::Sync);
        self.forward(header)
    }
}

fn not_encoded(encoding: &str) -> Denial {
    Denial::new("22021", "readable-sql", format!("the text is not valid {encoding}"))
}
