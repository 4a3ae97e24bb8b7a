//! COPY FROM STDIN: the agent's data, passed through and counted, never collected.

use bytes::Buf;

use super::super::super::codec::{self, Header};
use super::super::{Fault, Relay};
use super::Next;

impl Relay {
    pub(super) fn copy_data(&mut self, header: Header) -> Result<Next, Fault> {
        if self.skip {
            self.client_discard = header.total();
            return Ok(Next::More);
        }
        self.staged.extend_from_slice(&self.io.from_client[..codec::HEADER]);
        self.io.from_client.advance(codec::HEADER);
        self.session.log().bytes_in += codec::HEADER as u64;
        self.client_pass = header.body;
        if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
            digest.messages += 1;
        }
        self.copy_progress()?;
        Ok(Next::More)
    }

    pub(super) fn on_copy_end(&mut self, header: Header) -> Result<Next, Fault> {
        self.copy_ended((header.tag == b'f').then_some("the agent gave up"))?;
        self.exchange.end_copy_in();
        Ok(self.forward(header))
    }
}
