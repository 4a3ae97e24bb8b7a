//! What comes from the service: matched with what is owed, compared with what was judged,
//! masked, counted, and given to the agent.
//!
//! The walk over the service's bytes is here. What becomes of a message stands by its kind:
//! `rows`, `described` (what rows will look like), `copy`, `reports` (errors, notices, what was
//! not asked for), `ends`; `withhold` throws an answer away that must not be shown.
//!
//! Messages that need no change are never collected: their headers are read in place and runs
//! of them are handed on in one piece, or as they are when nothing else waits. A message type
//! that is not known ends the session; none is passed on trust.

mod copy;
mod described;
mod ends;
mod reports;
mod rows;
mod withhold;

use bytes::{Buf, BytesMut};

use super::super::codec::{CodecError, HEADER, Header};
use super::{Fault, Relay};

/// Largest message, other than rows and copy data, that is collected. Bytes.
const MAX_CONTROL: usize = 16 << 20;

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
        if let Some(running) = self.exchange.running() {
            running.capture(bytes, self.result_limit);
        }
    }

    /// Adds passed copy data to its running digest.
    fn digest_passed(&mut self, data: &[u8]) {
        if let Some(digest) = self.exchange.running().and_then(|r| r.digest.as_mut()) {
            digest.update(data);
        }
    }

    /// What becomes of the message at `done`, of which the header is here.
    fn fate(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        match header.tag {
            b'D' | b'd' if self.mute => return Ok(self.discard(header, input, done)),
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
        let in_words = matches!(header.tag, b'E' | b'N' | b'S' | b'A');
        if in_words || (self.mute && header.tag != b'Z') {
            let body = body.to_vec();
            self.skip_message(input, done, header);
            self.reworded(header.tag, &body)?;
            return Ok(Fate::Done);
        }
        self.control(header, input, done)
    }

    /// A message that the agent gets in other words, or not at all.
    fn reworded(&mut self, tag: u8, body: &[u8]) -> Result<(), Fault> {
        match tag {
            b'N' => self.notice(body),
            b'S' | b'A' => self.unasked(tag, body),
            _ if self.mute => self.muted(tag, body),
            _ => self.error(body),
        }
    }

    /// A complete message that settles something and goes on as it is, unless it describes a
    /// result that is not shown.
    fn control(
        &mut self,
        header: Header,
        input: &mut BytesMut,
        done: &mut usize,
    ) -> Result<Fate, Fault> {
        let whole = &input[*done..*done + header.total()];
        let body = &whole[HEADER..];
        match header.tag {
            b'1' | b'2' | b'3' | b's' | b'I' | b'V' => self.plain_answer(header.tag),
            b'C' => {
                self.note_passed(whole);
                let tag = body.split(|b| *b == 0).next().unwrap_or_default();
                self.complete(&String::from_utf8_lossy(tag))?;
                return Ok(self.pass_now(input, done, header));
            }
            b'Z' => self.ready(body.first().copied().unwrap_or(b'I'))?,
            b'T' | b'n' | b't' => {
                let body = body.to_vec();
                return self.description(header, &body, input, done);
            }
            b'G' => self.begin_copy_in(),
            b'H' => self.begin_copy_out(),
            b'c' => {
                self.pass(input, done);
                if !self.finish_copy_out() {
                    self.copy_ended(Some("withheld"))?;
                    self.skip_message(input, done, header);
                    return Ok(Fate::Done);
                }
                self.copy_ended(None)?;
            }
            tag => return Err(Fault::Service(CodecError::Unknown { tag: char::from(tag) })),
        }
        Ok(Fate::Pass)
    }

    /// Passes a complete message whose capture has been made already.
    fn pass_now(&mut self, input: &mut BytesMut, done: &mut usize, header: Header) -> Fate {
        *done += header.total();
        if input.len() == *done {
            self.pass(input, done);
        }
        Fate::Done
    }

    /// Throws the message away, of which the rest may be still to come.
    fn discard(&mut self, header: Header, input: &mut BytesMut, done: &mut usize) -> Fate {
        self.pass(input, done);
        self.service_discard = header.total();
        Fate::Done
    }

    /// Takes a message out of the stream; what comes in its place is written by the caller.
    fn skip_message(&mut self, input: &mut BytesMut, done: &mut usize, header: Header) {
        self.pass(input, done);
        input.advance(header.total());
    }
}
