//! Describe and Close: messages that only name what is held.

use super::super::super::codec::{Body, CodecError, Header};
use super::super::exchange::Slot;
use super::super::refuse::unknown;
use super::super::{Fault, Relay};
use super::Next;

impl Relay {
    pub(super) fn on_describe(&mut self, header: Header) -> Result<Next, Fault> {
        let (kind, name) = self.naming(header)?;
        match kind {
            b'S' => {
                let Some(prepared) = self.held.statement(&name).cloned() else {
                    return Ok(self.refuse_front(&unknown("26000", "prepared statement", &name)));
                };
                self.exchange.push(Slot::DescribeStatement(prepared));
            }
            b'P' => self.exchange.push(Slot::DescribePortal),
            _ => return Err(malformed('D', "kind")),
        }
        Ok(self.forward(header))
    }

    pub(super) fn on_close(&mut self, header: Header) -> Result<Next, Fault> {
        let (kind, name) = self.naming(header)?;
        let mut undo = None;
        match kind {
            b'S' => {
                undo = self.held.statement(&name).cloned().map(|prepared| (name.clone(), prepared));
                self.held.forget_statement(&name, None);
            }
            b'P' => self.held.forget_portal(&name),
            _ => return Err(malformed('C', "kind")),
        }
        self.exchange.push(Slot::Close(undo));
        Ok(self.forward(header))
    }

    fn naming(&self, header: Header) -> Result<(u8, Box<[u8]>), Fault> {
        let mut body = Body::new(header.tag, self.peek(header));
        let kind = body.u8("kind").map_err(Fault::Agent)?;
        let name = body.string("name").map_err(Fault::Agent)?.into();
        body.end().map_err(Fault::Agent)?;
        Ok((kind, name))
    }
}

fn malformed(tag: char, what: &'static str) -> Fault {
    Fault::Agent(CodecError::Malformed { tag, what })
}
